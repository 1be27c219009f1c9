"""kurisu.toml: where it is looked for, and a sentence for everything that can be wrong in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kurisu.config import FILE_NAME, Config, find, load
from kurisu.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory; the working directory is another one, and KURISU_CONFIG is not set."""
    for name in ("home", "cwd", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("KURISU_CONFIG", raising=False)
    return tmp_path / "home"


def write(folder: Path, text: str = "", name: str = FILE_NAME) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(home: Path, text: str) -> str:
    """What is said of a file with that text, after its path."""
    path = write(home, text)
    with pytest.raises(ConfigError) as caught:
        load(home)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def test_without_a_file_nothing_is_configured(home: Path) -> None:
    assert find(home) is None
    assert load(home) == Config(None, {}, {})


def test_the_file_in_the_data_directory_is_found(home: Path) -> None:
    path = write(home)
    assert find(home) == path


def test_a_byte_order_mark_and_windows_lines_do_no_harm(home: Path) -> None:
    write(home, '\ufeff[retention]\r\nohlcv = "2 years"\r\n')
    assert load(home).retention == {"ohlcv": "2 years"}


def test_the_working_directory_comes_before_the_data_directory(home: Path) -> None:
    write(home)
    here = write(Path.cwd())
    assert find(home) == here


def test_the_named_file_comes_before_every_other(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home)
    write(Path.cwd())
    named = write(home.parent / "elsewhere", '[retention]\nohlcv = "2 years"\n', "mine.toml")
    monkeypatch.setenv("KURISU_CONFIG", str(named))
    assert find(home) == named
    assert load(home) == Config(named, {"ohlcv": "2 years"}, {})


def test_a_named_file_may_be_relative(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path.cwd(), name="mine.toml")
    monkeypatch.setenv("KURISU_CONFIG", "mine.toml")
    assert find(home) == Path("mine.toml")


def test_an_empty_name_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KURISU_CONFIG", "")
    assert find(home) is None


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_named_file_that_is_none_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Even where another one would be found: it is not what was asked for."""
    write(home)
    monkeypatch.setenv("KURISU_CONFIG", name)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'KURISU_CONFIG names {Path(name)}')}, "):
        load(home)


def test_a_folder_of_that_name_is_no_file(home: Path) -> None:
    (Path.cwd() / FILE_NAME).mkdir()
    path = write(home)
    assert find(home) == path


def test_every_key_is_read(home: Path) -> None:
    path = write(
        home,
        '[retention]\nohlcv = "5 years"\ntrades = "off"\n'
        '[compression]\nohlcv = "7 days"\ntrades = "3 days"\n',
    )
    assert load(home) == Config(
        path,
        {"ohlcv": "5 years", "trades": "off"},
        {"ohlcv": "7 days", "trades": "3 days"},
    )


def test_what_is_not_named_is_not_there(home: Path) -> None:
    path = write(home, '[compression]\ntrades = "1 day"\n')
    assert load(home) == Config(path, {}, {"trades": "1 day"})


def test_an_empty_file_configures_nothing(home: Path) -> None:
    path = write(home)
    assert load(home) == Config(path, {}, {})


def test_an_unknown_section_is_refused(home: Path) -> None:
    assert refused(home, '[retentoin]\nohlcv = "1 year"\n') == (
        ": unknown section [retentoin]; known are retention, compression, exchanges."
    )


def test_a_key_outside_a_section_is_refused(home: Path) -> None:
    assert refused(home, 'ohlcv = "1 year"\n') == (
        ": unknown section [ohlcv]; known are retention, compression, exchanges."
    )


def test_a_section_that_is_a_value_is_refused(home: Path) -> None:
    said = ": retention has to be a section: [retention]."
    assert refused(home, 'retention = "1 year"\n') == said
    assert refused(home, '[[retention]]\nohlcv = "1 year"\n') == said


def test_an_unknown_key_is_refused(home: Path) -> None:
    assert refused(home, '[retention]\nohlvc = "1 year"\n') == (
        ": unknown key ohlvc in [retention]; known: ohlcv, trades."
    )


@pytest.mark.parametrize("value", ["5", "true", "2024-01-01", '["1 year"]', "{ years = 1 }"])
def test_a_value_that_is_no_text_is_refused(home: Path, value: str) -> None:
    assert refused(home, f"[compression]\ntrades = {value}\n") == (
        ": [compression] trades has to be text, e.g. '1 year' or 'off'."
    )


def test_a_file_that_is_no_toml_is_refused_with_the_place(home: Path) -> None:
    said = refused(home, "[retention]\nohlcv = 1 year\n")
    assert said.startswith(" is not valid TOML: ")
    assert "line 2" in said


def test_a_file_that_is_no_text_is_refused(home: Path) -> None:
    path = home / FILE_NAME
    path.write_bytes(b'[retention]\nohlcv = "\xff"\n')
    with pytest.raises(ConfigError, match="cannot be read: "):
        load(home)


def test_a_file_that_cannot_be_opened_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for root, who may read everything."""
    path = write(home)

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(ConfigError, match=r"cannot be read: .*Permission denied"):
        load(home)


def test_sections_of_exchanges_are_kept_as_they_are(home: Path) -> None:
    write(home, '[exchanges.binance]\nrate_limit_ms = 5\n[exchanges.binance.urls]\napi = "x"\n')
    assert load(home).exchanges == {"binance": {"rate_limit_ms": 5, "urls": {"api": "x"}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[exchanges]\nbinance = 5", "exchanges.binance has to be a section"),
        ("[exchanges.Binance]", "small letters"),
        ("exchanges = 5", "exchanges has to be sections"),
    ],
)
def test_exchanges_that_are_no_sections_are_refused(home: Path, text: str, said: str) -> None:
    assert said in refused(home, text)
