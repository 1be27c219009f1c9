"""Candlesticks in a terminal: text, from exact candles.

A column is a candle, a character two steps of price. Rising and falling bodies are told apart by
colour, and without colour by their shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from kurisu.domain.candle import Candle
from kurisu.domain.money import plain
from kurisu.errors import InvalidArgument

HEIGHT: Final = 16

_GREEN, _RED, _RESET = "\x1b[32m", "\x1b[31m", "\x1b[0m"
_NONE, _WICK, _BODY = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Style:
    """What the terminal can show.

    unicode: box-drawing characters. colour: ANSI colours.
    """

    unicode: bool = True
    colour: bool = True


# Upper and lower half of a character -> how it is drawn, rising and falling.
_HEAVY: Final = {
    (_NONE, _NONE): " ", (_WICK, _WICK): "│", (_BODY, _BODY): "┃",
    (_WICK, _NONE): "╵", (_NONE, _WICK): "╷", (_BODY, _NONE): "╹", (_NONE, _BODY): "╻",
    (_WICK, _BODY): "╽", (_BODY, _WICK): "╿",
}  # fmt: skip
# A body that differs from _HEAVY in shape, where colour cannot tell them apart.
_BLOCK: Final = _HEAVY | {
    (_BODY, _BODY): "█", (_BODY, _NONE): "▀", (_NONE, _BODY): "▄",
    (_WICK, _BODY): "█", (_BODY, _WICK): "█",
}  # fmt: skip


def _ascii(body: str) -> dict[tuple[int, int], str]:
    halves = (_NONE, _WICK, _BODY)
    return {
        (up, down): body if _BODY in (up, down) else "|" if _WICK in (up, down) else " "
        for up in halves
        for down in halves
    }


_ASCII_RISING: Final = _ascii("o")
_ASCII_FALLING: Final = _ascii("#")


def chart(
    candles: Sequence[Candle], *, width: int = 80, height: int = HEIGHT, style: Style | None = None
) -> str:
    """A chart of as many of the newest candles as fit into `width` columns.

    The prices that are written beside it are ones that occur: the highest, the lowest and the
    last close, exactly. Raises InvalidArgument if there is no candle or no room.
    """
    if not candles:
        raise InvalidArgument("there are no candles to draw")
    style = style or Style()
    room = width - 2 - max(len(label) for label in _prices(candles))
    if room < 1 or height < 3:
        raise InvalidArgument(f"a chart does not fit into {width} columns and {height} lines")
    candles = candles[-room:]
    # A few candles stand apart, many side by side.
    blanks = " " * (min(3, room // len(candles)) - 1)
    scale = _Scale(min(c.low for c in candles), max(c.high for c in candles), height)
    high, low, close = _prices(candles)
    margin = max(len(high), len(low), len(close))
    labels = {scale.row(candles[-1].close): close, 0: high, height - 1: low}
    columns = [_column(candle, scale, style) for candle in candles]
    lines = [
        f"{labels.get(row, ''):>{margin}} {blanks.join(column[row] for column in columns)}".rstrip()
        for row in range(height)
    ]
    lines.append(_time_axis(candles, margin, len(candles) + len(blanks) * (len(candles) - 1)))
    lines.append(" " * (margin + 1) + _legend(candles, style))
    return "\n".join(lines)


def _prices(candles: Sequence[Candle]) -> tuple[str, str, str]:
    """The highest, the lowest and the last close."""
    return (
        plain(max(c.high for c in candles)),
        plain(min(c.low for c in candles)),
        plain(candles[-1].close),
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a price stands: half characters from the top. Exact up to the last division."""

    low: Decimal
    high: Decimal
    height: int

    def half(self, price: Decimal) -> int:
        halves = self.height * 2
        if self.high == self.low:
            return halves // 2
        # Every price has a half of its own: the highest the first, the lowest the last.
        return int((self.high - price) * (halves - 1) / (self.high - self.low) + Decimal("0.5"))

    def row(self, price: Decimal) -> int:
        return self.half(price) // 2


def _column(candle: Candle, scale: _Scale, style: Style) -> list[str]:
    """A candle's characters from top to bottom."""
    is_rising = candle.close >= candle.open
    body = range(
        scale.half(max(candle.open, candle.close)), scale.half(min(candle.open, candle.close)) + 1
    )
    wick = range(scale.half(candle.high), scale.half(candle.low) + 1)
    if not style.unicode:
        glyphs = _ASCII_RISING if is_rising else _ASCII_FALLING
    else:
        glyphs = _HEAVY if style.colour or is_rising else _BLOCK
    paint = (_GREEN if is_rising else _RED) if style.colour else ""
    column = []
    for row in range(scale.height):
        halves = [
            _BODY if half in body else _WICK if half in wick else _NONE
            for half in (2 * row, 2 * row + 1)
        ]
        drawn = glyphs[halves[0], halves[1]]
        column.append(f"{paint}{drawn}{_RESET}" if paint and drawn != " " else drawn)
    return column


def _time_axis(candles: Sequence[Candle], margin: int, drawn: int) -> str:
    """Open times of the first and the last candle. drawn: columns that the candles take."""
    first, last = (f"{c.time:%Y-%m-%d %H:%M}" for c in (candles[0], candles[-1]))
    blanks = " " * (margin + 1)
    if len(candles) == 1:
        return blanks + first
    between = drawn - len(first) - len(last)
    return blanks + first + (" " * between if between >= 1 else " to ") + last


def _legend(candles: Sequence[Candle], style: Style) -> str:
    if style.colour:
        rising, falling = f"{_GREEN}┃{_RESET}", f"{_RED}┃{_RESET}"
        if not style.unicode:
            rising, falling = f"{_GREEN}o{_RESET}", f"{_RED}#{_RESET}"
    else:
        rising, falling = ("┃", "█") if style.unicode else ("o", "#")
    count = f"{len(candles)} candle{'' if len(candles) == 1 else 's'}"
    return f"{count}, UTC; {rising} rose, {falling} fell"
