"""Python's cyclic garbage collector, in a process that does nothing but ingest."""

from __future__ import annotations

import gc
from typing import Final

#: New containers before the youngest are looked at; a page of candles has thousands, all of which
#: live until it is stored.
THRESHOLD: Final = 50_000


def quiet_collector() -> None:
    """Look at what is loaded by now never again, and at new objects less often.

    CCXT keeps a hundred thousand objects of an exchange's markets, and parsing pages makes the
    collector walk them over and over: a third of the time of a backfill. For commands; a library
    does not decide this for its caller.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD, 20, 20)
