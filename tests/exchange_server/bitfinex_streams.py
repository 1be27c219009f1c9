"""Bitfinex's WebSocket channels, trades and candles: JSON numbers, and a snapshot first."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from exchange_server.bitfinex import Bitfinex, candle, trade
from exchange_server.streams import Session, Streams
from exchange_server.truth import Bar, Tick
from exchange_server.wire import dump

#: Rows of the snapshot that comes first.
SNAPSHOT_TRADES: Final = 30
SNAPSHOT_CANDLES: Final = 10
#: Channels of one connection; one more is refused.
MOST_CHANNELS: Final = 25


@dataclass(eq=False)
class _Channel:
    session: Session
    number: int
    name: str


class BitfinexStreams(Streams):
    """As `Streams`; a channel is named trades:tBTCUSD or candles:trade:1m:tBTCUSD."""

    def __init__(self, venue: Bitfinex) -> None:
        super().__init__()
        self.venue = venue
        self._channels: list[_Channel] = []

    async def _control(self, session: Session, text: str) -> None:
        message = json.loads(text)
        if message["event"] == "ping":
            await session.socket.send_str(dump({"event": "pong", "cid": message.get("cid")}))
        if message["event"] != "subscribe":
            return
        if len(session.subscribed) >= MOST_CHANNELS:
            refusal = {"event": "error", "msg": "subscribe: limit", "code": 10305}
            await session.socket.send_str(dump(refusal))
            return
        kind = message["channel"]
        key = message["symbol"] if kind == "trades" else message["key"]
        channel = _Channel(session, 100 + len(self._channels), f"{kind}:{key}")
        self._channels.append(channel)
        self.requests.append(("subscribe", (channel.name,)))
        answer = {"event": "subscribed", "channel": kind, "chanId": channel.number}
        answer |= {"symbol": key} if kind == "trades" else {"key": key}
        await session.socket.send_str(dump(answer))
        await session.socket.send_str(dump([channel.number, self._snapshot(kind, key)]))
        session.subscribed.add(channel.name)

    def _snapshot(self, kind: str, key: str) -> list[Any]:
        """Newest first."""
        now = self.venue.clock.now_ms()
        if kind == "trades":
            ticks = self.venue.listings[key].tape.visible(now)[-SNAPSHOT_TRADES:]
            return [trade(tick) for tick in ticks[::-1]]
        _, timeframe, name = key.split(":", 2)
        bars = self.venue.listings[name].candles(
            timeframe, now, None, None, SNAPSHOT_CANDLES, newest=True
        )
        return [candle(bar) for bar in bars[::-1]]

    async def publish(self, stream: str, payload: Any) -> int:
        live = [c for c in self._channels if c.name == stream and c.session in self.sessions]
        for channel in live:
            with suppress(ConnectionError):
                await channel.session.socket.send_str(dump([channel.number, *payload]))
        return len(live)

    async def send_trade(self, name: str, tick: Tick) -> int:
        """What comes twice for each trade: executed, and updated."""
        count = await self.publish(f"trades:{name}", ["te", trade(tick)])
        await self.publish(f"trades:{name}", ["tu", trade(tick)])
        return count

    async def send_candle(self, name: str, timeframe: str, bar: Bar) -> int:
        return await self.publish(f"candles:trade:{timeframe}:{name}", [candle(bar)])
