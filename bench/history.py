"""An exchange with a history of candles that it answers at once, in a process of its own.

The exchange of the tests, with Binance's protocol. What it says is spelled once, before anything is
measured: the measurement is of who asks. Without a limit on requests, because a limit would be all
that is measured. It prints the constructor options that point CCXT at it, and ends with its stdin.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from exchange_server import binance, data
from exchange_server.clock import MINUTE_MS
from exchange_server.server import ExchangeServer
from exchange_server.truth import Listing, Series

START_MS: Final = 1_609_459_200_000  # 2021-01-01T00:00:00Z
#: A day of made-up candles, repeated: spelling a year of them takes a minute.
_REPEATED: Final = 1_440


def main() -> None:
    markets, candles = int(sys.argv[1]), int(sys.argv[2])
    server = ExchangeServer(START_MS + candles * MINUTE_MS + 30_000)
    server.binance.meter.limit = None
    for number in range(markets):
        day = data.generated_bars(number, START_MS, _REPEATED)
        bars = [
            day[at % _REPEATED]._replace(open_ms=START_MS + at * MINUTE_MS) for at in range(candles)
        ]
        listing = Listing(
            f"COIN{number}USDT",
            binance.entry(f"COIN{number}USDT", f"COIN{number}", "USDT"),
            Series(bars),
        )
        server.binance.add(listing)
        for bar in bars:
            binance.spelled(listing, "1m", bar)
    with server:
        print(json.dumps(server.options("binance")), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
