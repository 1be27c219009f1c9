"""The ledger imports values and errors, and has no float in it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kurisu.ledger
from kurisu.domain import balance, execution, order, position

ALLOWED = {
    "__future__", "collections.abc", "dataclasses", "datetime", "decimal", "enum", "hashlib",
    "itertools", "re", "typing",
}  # fmt: skip
OURS = ("kurisu.domain", "kurisu.ledger", "kurisu.errors")
FILES = sorted(
    [
        *Path(kurisu.ledger.__path__[0]).glob("*.py"),
        *(Path(str(module.__file__)) for module in (balance, execution, order, position)),
    ]
)


def faults(source: str) -> list[str]:
    """Imports that are not allowed, and floats."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module not in ALLOWED and not node.module.startswith(OURS):
                found.append(node.module)
        elif isinstance(node, ast.Import):
            found.extend(alias.name for alias in node.names if alias.name not in ALLOWED)
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            found.append(repr(node.value))
        elif isinstance(node, ast.Name) and node.id in {"float", "sum", "now"}:
            found.append(node.id)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found.append("/")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_ledger_is_pure(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


def test_the_check_finds_what_it_looks_for() -> None:
    planted = "import asyncio\nfrom sqlalchemy import text\nx = 0.5 / float(1)\nsum([x])\n"
    assert set(faults(planted)) == {"asyncio", "sqlalchemy", "/", "0.5", "float", "sum"}
