"""docs/cli.md says what `--help` says, and its check would notice if it did not."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.make_cli_docs import PAGE, helps, main, page


def test_the_page_is_current() -> None:
    assert main(["--check"]) == 0, "run python scripts/make_cli_docs.py"


def test_the_check_finds_a_difference_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tmp_path / "cli.md"
    planted.write_text(page().replace("--allow-expiring", "--allow-expired"), encoding="utf-8")
    before = planted.read_text(encoding="utf-8")

    assert main(["--check", str(planted)]) == 1

    assert "--allow-expired" in capsys.readouterr().out
    assert planted.read_text(encoding="utf-8") == before


def test_the_page_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert page() == PAGE.read_text(encoding="utf-8")


def test_it_reaches_the_commands_below_the_groups() -> None:
    names = [name for name, _ in helps()]
    assert names[0] == "kurisu"
    assert {"kurisu demo", "kurisu candles import", "kurisu db upgrade"} <= set(names)
