"""Pages of candles by column, where CCXT only picks fields of a row.

CCXT parses a page row by row, a hundred Python calls each. For most venues all that happens to a
row is that six of its fields are picked. Which ones, CCXT's own parser tells, given a row of
numbers that are all different; its answers for the first and the last row of the page have to be
the same as those picked here. Wherever that is not so, the page is parsed row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kurisu.exchange.port import CandleRow

#: Shorter pages are not worth it.
FEWEST_ROWS: Final = 8
#: A time in seconds or milliseconds that is like no other field of the probe.
_FIRST_PROBE: Final = 1_500_000_001
_NUMBERS: Final = len(CandleRow._fields) - 1


class _Places(NamedTuple):
    """Which field of a row is what. factor: from the time's unit to milliseconds."""

    time: int
    factor: int
    numbers: tuple[int, ...]


def pick(rows: Any, parse: Callable[[Any], Any]) -> list[CandleRow] | None:
    """The candles of a page, as they come; None if they have to be parsed one by one.

    parse: CCXT's parser of a row.
    """
    if not isinstance(rows, list) or len(rows) < FEWEST_ROWS or type(rows[0]) is not list:
        return None
    width = len(rows[0])
    if any(type(row) is not list or len(row) != width for row in rows):
        return None
    places = _places(width, parse)
    if places is None:
        return None
    columns = list(zip(*rows, strict=True))
    times = _times(columns[places.time], places.factor)
    numbers = [_texts(columns[place]) for place in places.numbers]
    if times is None or None in numbers:
        return None
    made = list(map(CandleRow, times, *numbers))  # type: ignore[arg-type]  # no None is left
    for at in (0, -1):
        theirs = parse(rows[at])
        if not isinstance(theirs, list) or made[at] != (theirs[0], *map(_text, theirs[1:])):
            return None
    return made


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _places(width: int, parse: Callable[[Any], Any]) -> _Places | None:
    probe = [_FIRST_PROBE + 7 * place for place in range(width)]
    try:
        found = parse(list(probe))
    except Exception:  # its parser wants something else of a row
        return None
    if not isinstance(found, list) or len(found) != 1 + _NUMBERS or type(found[0]) is not int:
        return None
    for factor in (1, 1000):
        if found[0] % factor == 0 and found[0] // factor in probe:
            break
    else:
        return None
    texts = [str(value) for value in probe]
    wanted = [str(value) for value in found[1:]]
    if any(text not in texts for text in wanted):
        return None
    return _Places(
        probe.index(found[0] // factor), factor, tuple(texts.index(text) for text in wanted)
    )


def _times(column: tuple[Any, ...], factor: int) -> list[int] | None:
    kinds = set(map(type, column))
    if kinds == {str} and all(map(str.isdecimal, column)):
        column = tuple(map(int, column))
    elif kinds != {int}:
        return None
    return [value * factor for value in column] if factor != 1 else list(column)


def _texts(column: tuple[Any, ...]) -> list[str] | None:
    kinds = set(map(type, column))
    if kinds == {str}:
        # CCXT takes an empty text for nothing at all.
        return None if "" in column else list(column)
    return list(map(str, column)) if kinds <= {str, int} and "" not in column else None
