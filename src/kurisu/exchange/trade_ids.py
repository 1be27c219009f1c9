"""Ids for trades of venues that give none; the same for every source of the same trades."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from kurisu.domain.money import plain

#: Hexadecimal digits: 128 bits, so that no two of any number of trades fall together.
ID_DIGITS: Final = 32


def derived_ids(trades: Iterable[tuple[int, str | None, Decimal, Decimal]]) -> list[str]:
    """Of (time in ms, side, price, amount), in any order; whole milliseconds only.

    Two trades that are alike in all of these are legitimate; they are counted, and the number is
    part of the id. So that the numbers are the same every time, all trades of a millisecond have
    to be in one call.
    """
    seen: Counter[str] = Counter()
    ids = []
    for time_ms, side, price, amount in trades:
        text = f"{time_ms}|{side or ''}|{plain(price)}|{plain(amount)}"
        seen[text] += 1
        digest = hashlib.sha256(f"{text}|{seen[text]}".encode("ascii")).hexdigest()
        ids.append(digest[:ID_DIGITS])
    return ids
