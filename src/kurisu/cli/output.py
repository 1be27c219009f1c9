"""How values look: JSON for programs, aligned text for people, and nothing that garbles either."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Final

from kurisu.domain.money import plain

# Control, format (bidirectional overrides), surrogate, private use, line and paragraph separator.
_UNSAFE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def safe(text: str, *, keep: str = "\n") -> str:
    """`text` for a terminal: what could move its cursor or change its state is escaped."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in keep or unicodedata.category(c) not in _UNSAFE else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def iso(time: datetime) -> str:
    """ISO 8601 in UTC: 2024-10-27T00:00:00Z."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def to_json(data: Any, indent: int | None = 2) -> str:
    """JSON in ASCII: Decimals as plain strings, times as ISO 8601 UTC. indent: None for a line."""
    return json.dumps(_plain(data), indent=indent)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def cell(value: Any) -> str:
    """One value as a table shows it; None is empty."""
    match value:
        case None:
            return ""
        case Decimal():
            return plain(value)
        case datetime():
            return iso(value)
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case _:
            return safe(str(value), keep="")


def table(
    headers: Sequence[str], rows: Iterable[Sequence[Any]], right: Collection[str] = ()
) -> str:
    """Aligned columns, two blanks apart; never cut and never wrapped, because a digit that is not
    shown is a wrong number. right: headers of the columns that are aligned to the right."""
    shown = [list(headers), *([cell(value) for value in row] for row in rows)]
    widths = [max(_width(line[i]) for line in shown) for i in range(len(headers))]
    lines = []
    for line in shown:
        parts = []
        for i, text in enumerate(line):
            blanks = " " * (widths[i] - _width(text))
            parts.append(blanks + text if headers[i] in right else text + blanks)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def size(count: int) -> str:
    """Bytes for people: 1.5 MB."""
    value, unit = count, 0
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    while value >= 10_000 and unit < len(units) - 1:
        value //= 1_000
        unit += 1
    return f"{value:,} {units[unit]}"
