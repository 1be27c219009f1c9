"""Imports point down: import-linter holds it, and notices when one does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the package and of the contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "src" / "kurisu", tmp_path / "src" / "kurisu",
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    return tmp_path


def lint_imports(project: Path) -> subprocess.CompletedProcess[str]:
    # The package is only parsed, never imported; the copy has to come before the installed one.
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from importlinter.cli import lint_imports_command\n"
        "lint_imports_command(['--no-cache'])\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(project / "src")],
        cwd=project, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_imports_point_down(project: Path) -> None:
    done = lint_imports(project)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("domain/candle.py", "from kurisu.store import markets", "the layers"),
        ("report/terminal.py", "import kurisu.ingest.files", "the layers"),
        ("store/markets.py", "    from kurisu import api", "the layers"),
        ("domain/money.py", "import numpy", "values do no input or output"),
    ],
)
def test_an_import_that_points_up_is_noticed(
    project: Path, module: str, line: str, contract: str
) -> None:
    """Also one inside a function."""
    path = project / "src" / "kurisu" / module
    code = f"def planted() -> None:\n{line}\n" if line.startswith(" ") else f"{line}\n"
    path.write_text(f"{path.read_text()}\n\n{code}")
    done = lint_imports(project)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in done.stdout


def test_a_package_without_a_layer_is_noticed(project: Path) -> None:
    package = project / "src" / "kurisu" / "utils"
    package.mkdir()
    (package / "__init__.py").touch()
    assert lint_imports(project).returncode == 1
