"""Binance's WebSocket streams: kline, trade and aggTrade, with SUBSCRIBE, UNSUBSCRIBE and pings."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import WSMsgType, web

from exchange_server.binance import agg_trade, eight, raw_trade
from exchange_server.truth import LENGTH_MS, Bar, Tick
from exchange_server.wire import dump

#: Close code of a server that restarts.
GOING_AWAY: Final = 1001


@dataclass(eq=False)
class Session:
    """One connection. subscribed: stream names; pongs: answered pings."""

    socket: web.WebSocketResponse
    subscribed: set[str] = field(default_factory=set)
    pongs: int = 0

    def write_raw(self, frames: bytes) -> None:
        """Send frames as they are: a message at a time costs more than what listens to it."""
        request = self.socket._req
        if request is not None and request.transport is not None:
            request.transport.write(frames)

    def abort(self) -> None:
        """Cut the connection, without a goodbye."""
        request = self.socket._req
        if request is not None and request.transport is not None:
            request.transport.abort()


class Streams:
    """Every connection, and what is sent to them. Methods run on the server's loop."""

    def __init__(self) -> None:
        self.sessions: set[Session] = set()
        #: Every SUBSCRIBE and UNSUBSCRIBE that came: (method, streams).
        self.requests: list[tuple[str, tuple[str, ...]]] = []
        self.refuse_next = 0

    @property
    def subscribed(self) -> set[str]:
        """Streams that somebody listens to."""
        return {name for session in self.sessions for name in session.subscribed}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.refuse_next > 0:
            self.refuse_next -= 1
            return web.Response(status=503, text="<html>503</html>")
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        session = Session(socket)
        self.sessions.add(session)
        try:
            async for message in socket:
                if message.type is WSMsgType.PING:
                    await socket.pong(message.data)
                elif message.type is WSMsgType.PONG:
                    session.pongs += 1
                elif message.type is WSMsgType.TEXT:
                    await self._control(session, message.data)
        finally:
            self.sessions.discard(session)
        return socket

    async def _control(self, session: Session, text: str) -> None:
        try:
            message = json.loads(text)
            method, params, number = message["method"], message.get("params", []), message["id"]
        except (ValueError, KeyError, TypeError):
            await session.socket.send_str(
                dump({"error": {"code": 3, "msg": "Invalid JSON: expected an object"}, "id": None})
            )
            return
        self.requests.append((method, tuple(params)))
        result: Any = None
        if method == "SUBSCRIBE":
            session.subscribed.update(params)
        elif method == "UNSUBSCRIBE":
            session.subscribed.difference_update(params)
        elif method == "LIST_SUBSCRIPTIONS":
            result = sorted(session.subscribed)
        else:
            error = {"code": 2, "msg": f"Invalid request: unknown method {method}"}
            await session.socket.send_str(dump({"error": error, "id": number}))
            return
        await session.socket.send_str(dump({"result": result, "id": number}))

    async def publish(self, stream: str, payload: Any) -> int:
        """Send to everybody who listens to the stream; how many there were."""
        listeners = [s for s in self.sessions if stream in s.subscribed]
        for session in listeners:
            # It may have been cut, or killed, at this very moment.
            with suppress(ConnectionError):
                await session.socket.send_str(dump(payload))
        return len(listeners)

    async def ping(self) -> None:
        """What Binance does every 20 seconds."""
        for session in list(self.sessions):
            await session.socket.ping()

    async def cut(self) -> None:
        """Cut every connection, without a goodbye."""
        for session in list(self.sessions):
            session.abort()
        await asyncio.sleep(0)

    async def close(self) -> None:
        for session in list(self.sessions):
            await session.socket.close(code=GOING_AWAY)


def kline_event(
    symbol: str, timeframe: str, bar: Bar, now_ms: int, *, closed: bool
) -> dict[str, object]:
    """A message of <symbol>@kline_<timeframe>."""
    return {
        "e": "kline", "E": now_ms, "s": symbol,
        "k": {
            "t": bar.open_ms, "T": bar.open_ms + LENGTH_MS[timeframe] - 1, "s": symbol,
            "i": timeframe, "f": 1, "L": 2, "o": eight(bar.open), "c": eight(bar.close),
            "h": eight(bar.high), "l": eight(bar.low), "v": eight(bar.volume), "n": 2,
            "x": closed, "q": "0.00000000", "V": "0.00000000", "Q": "0.00000000", "B": "0",
        },
    }  # fmt: skip


def trade_event(symbol: str, tick: Tick, now_ms: int) -> dict[str, object]:
    """A message of <symbol>@trade."""
    row = raw_trade(tick)
    return {
        "e": "trade", "E": now_ms, "s": symbol, "t": row["id"], "p": row["price"],
        "q": row["qty"], "T": row["time"], "m": row["isBuyerMaker"], "M": True,
    }  # fmt: skip


def agg_trade_event(
    symbol: str, tick: Tick, span: tuple[int, int] | None, now_ms: int
) -> dict[str, object]:
    """A message of <symbol>@aggTrade."""
    return {"e": "aggTrade", "E": now_ms, "s": symbol, **agg_trade(tick, span)}
