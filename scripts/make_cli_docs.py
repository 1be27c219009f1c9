"""Writes docs/cli.md: what `--help` says of every command.

    python scripts/make_cli_docs.py            write it
    python scripts/make_cli_docs.py --check    say what differs, and exit with 1 if anything does

In: the program's own commands. Out: the whole page; nothing in it is written by hand.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import typer

from kurisu.cli.main import app

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

INTRODUCTION: Final = """\
# The command line

Generated from the help of every command by `scripts/make_cli_docs.py`.

Every command takes `--database`, `--json` and `--verbose`. With `--json` results are JSON on
stdout and errors are JSON on stderr; numbers of candles are text in it, because most readers of
JSON would make floats of them. Notes and progress go to stderr.

Exit codes: 0 done; 1 failed; 2 wrong use, or a file that cannot be read; 130 and 143 after Ctrl-C
and SIGTERM; 141 when whoever read the output has gone.
"""

#: Of the page, whatever terminal it is made in.
WIDTH: Final = 88


def helps() -> Iterator[tuple[str, str]]:
    """(command as typed, its help) of the program and every command below it, groups first."""
    # The width of help is the terminal's, and so is whether it is coloured.
    with patch.dict(os.environ, COLUMNS=str(WIDTH), NO_COLOR="1", TERM="dumb"):
        yield from _helps(typer.main.get_command(app), "kurisu", None)


def _helps(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    # Typer builds its commands on classes that it does not export, hence Any.
    context = command.context_class(
        command, info_name=name if parent is None else command.name, parent=parent,
        max_content_width=WIDTH, terminal_width=WIDTH, **command.context_settings,
    )  # fmt: skip
    yield name, str(command.get_help(context)).strip()
    for below in getattr(command, "commands", {}).values():
        if not below.hidden:
            yield from _helps(below, f"{name} {below.name}", context)


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for name, text in helps():
        level = "##" if len(name.split()) <= 2 else "###"
        body = "\n".join(line.rstrip() for line in text.splitlines())
        parts.append(f"{level} `{name}`\n\n```text\n{body}\n```\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes docs/cli.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    parser.add_argument("page", nargs="?", type=Path, default=PAGE, help="default: docs/cli.md")
    given = parser.parse_args(arguments)
    path: Path = given.page
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    wanted = page()
    if found == wanted:
        return 0
    if not given.check:
        path.write_text(wanted, encoding="utf-8")
        return 0
    lines = difflib.unified_diff(
        found.splitlines(), wanted.splitlines(), path.name, "what --help says", lineterm="", n=1
    )
    print("\n".join(lines))
    print(f"{path.name} is out of date: run python scripts/make_cli_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
