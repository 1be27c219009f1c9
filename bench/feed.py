"""An exchange that sends trades as fast as it is told to, in a process of its own.

The exchange of the tests, with Binance's protocol, behind it; each trade is a message of its own,
as Binance sends them, and REST serves the same trades. Commands come on stdin, one a line:

    rate N      send N trades a second from now on
    count       print how many were sent so far
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from exchange_server import binance
from exchange_server.server import ExchangeServer
from exchange_server.truth import Listing, Tick

MARKETS: Final = 10
#: What is due is sent so often.
TICK_S: Final = 0.005
_SHORT: Final = 126
_FINAL_TEXT: Final = 0x81


def symbol(number: int) -> str:
    """The venue's name of a market."""
    return f"COIN{number}USDT"


class Feed:
    """Sends trades of every market in turn."""

    def __init__(self, server: ExchangeServer) -> None:
        self._server = server
        self.rate = 0
        self.sent = 0
        self._ids = [1_000_000] * MARKETS

    async def run(self) -> None:
        due, last = 0.0, time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            due += (now - last) * self.rate
            last = now
            count = int(due)
            due -= count
            if count:
                self._send(count)

    def _send(self, count: int) -> None:
        now = self._server.clock.now_ms()
        frames: list[bytes] = []
        for _ in range(count):
            at = self.sent % MARKETS
            self.sent += 1
            self._ids[at] += 1
            number = self._ids[at]
            # Digits that no two neighbours share, eight decimals as Binance spells them.
            price, amount = (
                f"{61_000 + number % 997}.12{number % 10**6:06d}",
                f"0.{number % 10**8:08d}",
            )
            side = number % 3 == 0
            name = symbol(at)
            text = (
                f'{{"e":"aggTrade","E":{now},"s":"{name}","a":{number},"p":"{price}",'
                f'"q":"{amount}","f":{number},"l":{number},"T":{now},'
                f'"m":{"true" if side else "false"},"M":true}}'
            ).encode()
            head = bytes([_FINAL_TEXT, _SHORT]) + len(text).to_bytes(2, "big")
            frames.append(head + text)
            self._server.binance.aggregates[name].tape.ticks.append(
                Tick(number, now, Decimal(price), Decimal(amount), "sell" if side else "buy")
            )
        data = b"".join(frames)
        for session in self._server.streams.sessions:
            if session.subscribed:
                session.write_raw(data)


def main() -> None:
    server = ExchangeServer(int(time.time() * 1000), speed=1.0)
    for at in range(MARKETS):
        entry = binance.entry(symbol(at), f"COIN{at}", "USDT", step="0.00000001")
        server.binance.add(Listing(symbol(at), entry), aggregates=[])
    with server:
        feed = Feed(server)
        running: Any = server.spawn(feed.run())
        print(json.dumps(server.options("binance")), flush=True)
        for line in sys.stdin:
            command, *rest = line.split()
            if command == "rate":
                feed.rate = int(rest[0])
            print(feed.sent, flush=True)
        running.cancel()


if __name__ == "__main__":
    main()
