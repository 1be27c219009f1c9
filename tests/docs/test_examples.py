"""What the pages tell a reader to do works: examples run, commands and links exist."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from kurisu import config
from kurisu.cli.main import app
from kurisu.exchange.settings import ExchangeSettings
from kurisu.server import Cluster
from kurisu.store import policies

ROOT: Final = Path(__file__).resolve().parents[2]
READMES: Final = (ROOT / "README.md", ROOT / "README.zh-CN.md")
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMPOSE: Final = ROOT / "docker-compose.yml"

#: The example starts a server and makes a database.
EXAMPLE_TIMEOUT_S: Final = 180


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def home() -> Iterator[Path]:
    """A KURISU_HOME of its own; its server is stopped afterwards."""
    # Not pytest's tmp_path: the server's account could not enter it when root runs the tests.
    made = Path(tempfile.mkdtemp(prefix="kurisu-docs-"))
    made.chmod(0o755)
    yield made
    Cluster(made).stop()
    shutil.rmtree(made)


def test_the_python_example_runs_and_prints_what_the_readme_says(home: Path) -> None:
    (code,) = blocks(READMES[0], "python")
    expected = blocks(READMES[0], "text")[0]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KURISU_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "KURISU_HOME": str(home), "PYTHONPATH": str(ROOT / "src")},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=EXAMPLE_TIMEOUT_S,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == expected


def test_both_readmes_show_the_same_examples() -> None:
    def told(line: str) -> str:
        return line.split("  #", maxsplit=1)[0].rstrip()

    for language in ("python", "toml", "text"):
        assert blocks(READMES[0], language) == blocks(READMES[1], language)
    shells = [
        [[told(line) for line in block.splitlines()] for block in blocks(page, "sh")]
        for page in READMES
    ]
    assert shells[0] == shells[1]


def shell_lines(page: Path) -> list[str]:
    """The lines of the shell examples, and what is set as a command within the text."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    if page.name == COMPOSE.name:
        lines = [line.removeprefix("#").strip() for line in text.splitlines() if line[:1] == "#"]
    return lines + re.findall(r"`(kurisu [a-z][^`\n]*|make [a-z]+)`", text)


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `kurisu ...` that a page names, once each."""
    found = {
        (relative(page), line)
        for page in [*PAGES, COMPOSE]
        # Generated from the program itself, and from its help texts.
        if page.name != "cli.md"
        for line in shell_lines(page)
        if line.startswith("kurisu ")
    }
    return sorted(found)


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_that_a_page_names_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: Any = typer.main.get_command(app)
    context: Any = None
    while words and words[0] in getattr(command, "commands", {}):
        context = command.context_class(command, info_name=command.name, parent=context)
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{page}: {line} is not a command"
    if words:
        # Parses as the program would, and runs nothing.
        command.make_context(command.name, words, parent=context)


def test_a_command_that_does_not_exist_would_be_found() -> None:
    with pytest.raises(AssertionError):
        test_commands_that_a_page_names_exist("README.md", "kurisu db retain")
    with pytest.raises(typer.TyperException):
        test_commands_that_a_page_names_exist("README.md", "kurisu db retention --for '5 years'")


def test_targets_of_make_that_a_page_names_exist() -> None:
    named = {
        line.split()[1] for page in PAGES for line in shell_lines(page) if line.startswith("make ")
    }
    assert {"demo", "test"} <= named
    targets = re.findall(r"^([a-z][\w-]*)\s*:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named <= set(targets)


@pytest.mark.parametrize("page", READMES, ids=relative)
def test_the_example_of_kurisu_toml_is_taken(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(blocks(page, "toml"))
    (tmp_path / config.FILE_NAME).write_text(text, encoding="utf-8")
    monkeypatch.delenv("KURISU_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)

    found = config.load(tmp_path)

    assert {
        "retention": found.retention, "compression": found.compression,
        "exchanges": found.exchanges,
    } == tomllib.loads(text)  # fmt: skip
    for name, section in found.exchanges.items():
        assert ExchangeSettings.from_section(name, section).env
    for duration in (*found.retention.values(), *found.compression.values()):
        assert policies.parse_duration(duration) is not None


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get: words in lower case, joined by hyphens."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_that_a_page_names_exist(page: Path) -> None:
    pattern = r"`((?:src|tests|docs|scripts|bench|requirements)/[\w./*-]*)`"
    named = set(re.findall(pattern, page.read_text(encoding="utf-8")))
    assert [path for path in sorted(named) if not list(ROOT.glob(path.rstrip("/")))] == []


#: Dotted names that are no Python: a file, a setting of PostgreSQL.
NO_PYTHON: Final = {"kurisu.toml", "kurisu.expiring"}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_python_names_on_a_page_exist(page: Path) -> None:
    named = set(re.findall(r"`(kurisu(?:\.\w+)+)", page.read_text(encoding="utf-8")))
    assert [name for name in sorted(named - NO_PYTHON) if not is_there(name)] == []


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_the_layers_on_the_page_are_those_that_are_enforced() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (layers,) = (
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    page = ROOT / "ARCHITECTURE.md"
    assert "\n".join(layers) + "\n" in blocks(page, "text")


def test_every_decision_has_its_parts() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [int(page.name[:4]) for page in pages]
    assert numbers == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:4]} "), page.name
        headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
        if "What was measured" in headings:
            headings.remove("What was measured")
        assert headings == ["Context", "Decision", "Consequences", "Alternatives", "Check"]


def test_docker_compose_pins_its_image_and_listens_on_this_machine_only() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    assert re.search(r"image: timescale/timescaledb:\d+\.\d+\.\d+-pg\d+\n", text)
    published = re.findall(r'- "(.*:5432)"', text)
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "${KURISU_DB_PASSWORD:?" in text
