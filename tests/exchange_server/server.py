"""The server: HTTP on 127.0.0.1 in a thread of its own, for as long as a test needs it.

    with ExchangeServer(now_ms) as server:
        server.binance.add(Listing("SHIBUSDT", binance.entry("SHIBUSDT", "SHIB", "USDT"), ...))
        exchange = ccxt.async_support.binance(server.options("binance"))

A test may change the clock, the listings and the faults at any time from its own thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from email.utils import formatdate
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web

from exchange_server.binance import Binance
from exchange_server.bitfinex import Bitfinex
from exchange_server.bitfinex_streams import BitfinexStreams
from exchange_server.clock import VirtualClock
from exchange_server.faults import Fault, Faults, Rule
from exchange_server.kraken import Kraken
from exchange_server.streams import Streams, agg_trade_event, kline_event, trade_event
from exchange_server.truth import Bar, Tick
from exchange_server.venue import Answer, Venue
from exchange_server.wire import Request, dump

_T = TypeVar("_T")
#: How long starting, stopping and sending may take.
PATIENCE_S: Final = 10
_HTML: Final = (
    "<!DOCTYPE html><html><head><title>Attention Required!</title></head>"
    "<body><h1>Please check your browser</h1></body></html>"
)


class ExchangeServer:
    """Three venues behind one port. binance, bitfinex, kraken: see their modules.

    requests: everything that came in, in order.
    """

    def __init__(self, now_ms: int, speed: float = 0.0) -> None:
        self.clock = VirtualClock(now_ms, speed)
        self.faults = Faults()
        self.binance = Binance(self.clock)
        self.bitfinex = Bitfinex(self.clock, None)
        self.kraken = Kraken(self.clock, None)
        self.streams = Streams()
        self.bitfinex_streams = BitfinexStreams(self.bitfinex)
        self.requests: list[Request] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._serve, name="exchange server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._started.wait(PATIENCE_S):
            raise TimeoutError("the exchange server did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)

    def run(self, task: Coroutine[Any, Any, _T]) -> _T:
        """Run something on the server's loop, from the test's thread."""
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(PATIENCE_S)

    def spawn(self, task: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start something on the server's loop; it ends with the server at the latest."""
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def options(self, venue: str, **more: Any) -> dict[str, Any]:
        """Constructor options that point CCXT's class of that name here."""
        base = f"{self.url}/{venue}"
        if venue == "binance":
            api = dict.fromkeys(("public", "private"), f"{base}/api/v3")
            api |= dict.fromkeys(("sapi", "sapiV2", "sapiV3", "sapiV4"), f"{base}/sapi/v1")
            for version in ("", "V2", "V3"):
                api[f"fapiPrivate{version}"] = f"{base}/fapi/{version.lower() or 'v1'}"
            api["fapiPublic"] = f"{base}/fapi/v1"
            kinds = ["spot", "linear"] if self.binance.futures.entries else ["spot"]
            streams = f"ws://127.0.0.1:{self.port}/stream/ws"
            spot = {**api, "ws": dict.fromkeys(("spot", "margin", "linear"), streams)}
            return {"urls": {"api": spot}, "options": {"fetchMarkets": kinds}, **more}
        urls: dict[str, Any] = dict.fromkeys(("public", "private", "v1"), base)
        if venue == "bitfinex":
            urls["ws"] = {"public": f"ws://127.0.0.1:{self.port}/stream/bitfinex"}
        return {"urls": {"api": urls}, **more}

    def asked(self, path: str) -> list[Request]:
        """The requests whose path contains `path`."""
        return [request for request in self.requests if path in request.path]

    def send_candle(self, symbol: str, timeframe: str, bar: Bar, *, closed: bool) -> int:
        """Publish a kline; how many connections listened."""
        event = kline_event(symbol, timeframe, bar, self.clock.now_ms(), closed=closed)
        return self.run(self.streams.publish(f"{symbol.lower()}@kline_{timeframe}", event))

    def send_trade(self, symbol: str, tick: Tick) -> int:
        event = trade_event(symbol, tick, self.clock.now_ms())
        return self.run(self.streams.publish(f"{symbol.lower()}@trade", event))

    def send_agg_trade(self, symbol: str, tick: Tick) -> int:
        event = agg_trade_event(symbol, tick, None, self.clock.now_ms())
        return self.run(self.streams.publish(f"{symbol.lower()}@aggTrade", event))

    def cut_streams(self) -> None:
        """Cut every WebSocket connection."""
        self.run(self.streams.cut())
        self.run(self.bitfinex_streams.cut())

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/stream/ws/{number}", self.streams.handle)
        app.router.add_get("/stream/market/ws/{number}", self.streams.handle)
        app.router.add_get("/stream/bitfinex", self.bitfinex_streams.handle)
        app.router.add_route("*", "/{venue}/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        # Requests that are still held back by a TIMEOUT.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        venue: Venue | None = getattr(self, request.match_info["venue"], None)
        if not isinstance(venue, Venue):
            return web.Response(status=404)
        path, query = request.match_info["path"], dict(request.query)
        signed = f"{request.rel_url.raw_query_string}{(await request.read()).decode()}"
        query |= dict(parse_qsl(signed))
        rule = self.faults.take(f"{venue.name}/{path}", {**query, "method": request.method})
        weight = venue.weight(path, query)
        used, wait_s = venue.meter.charge(path, weight)
        if wait_s is not None:
            answer = venue.refuse(wait_s, banned=venue.meter.banned())
        elif rule is not None and rule.fault in (Fault.STATUS, Fault.LOST):
            answer = Answer(None, rule.status)
        elif venue.is_private(path):
            answer = venue.answer_signed(request.method, path, signed, request.headers)
        else:
            asked = venue.earlier(query) if rule and rule.fault is Fault.OVERLAP else query
            answer = venue.answer(path, asked)
        self.requests.append(
            Request(
                venue.name, path, query, self.clock.now_ms(), weight, answer.status, request.method
            )
        )
        headers = {
            # What a client without a time endpoint goes by.
            "Date": formatdate((self.clock.now_ms() + venue.told_skew_ms) / 1000, usegmt=True),
            **venue.usage(used),
            **answer.headers,
        }
        if rule is not None:
            return await self._commit(request, venue, rule, answer, headers)
        return _json(dump(answer.payload), answer.status, headers)

    async def _commit(
        self,
        request: web.Request,
        venue: Venue,
        rule: Rule,
        answer: Answer,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Get it wrong, as the rule says."""
        if rule.fault in (Fault.STATUS, Fault.STATUS_AFTER):
            if rule.retry_after is not None:
                headers = {**headers, "Retry-After": rule.retry_after}
            return _json(rule.body, rule.status, headers)
        if rule.fault in (Fault.TIMEOUT, Fault.LOST):
            await asyncio.sleep(rule.seconds)
        if rule.fault is Fault.CUT and request.transport is not None:
            request.transport.abort()
        if rule.fault is Fault.HTML:
            return web.Response(text=_HTML, content_type="text/html", headers=headers)
        rows = venue.rows(answer.payload)
        if rows is not None:
            _spoil(rows, rule.fault)
        text = dump(answer.payload)
        if rule.fault is Fault.NOT_A_NUMBER:
            text = text.replace('"', 'NaN,"', 1) if '"' in text else "[NaN]"
        if rule.fault is Fault.TRUNCATED_JSON:
            text = text[: len(text) // 2]
        if rule.fault is Fault.CUT_BODY:
            return await _cut_body(request, text, headers)
        return _json(text, answer.status, headers)


def _spoil(rows: list[Any], fault: Fault) -> None:
    """Spoil the rows of a payload, in place."""
    if fault is Fault.EMPTY:
        rows.clear()
    elif fault is Fault.SHORT:
        del rows[(len(rows) + 1) // 2 :]
    elif fault is Fault.DUPLICATE_ROWS:
        rows[:] = [row for i, row in enumerate(rows) for _ in range(2 if i % 3 == 0 else 1)]


def _json(text: str, status: int, headers: Mapping[str, str]) -> web.Response:
    return web.Response(text=text, status=status, headers=headers, content_type="application/json")


async def _cut_body(
    request: web.Request, text: str, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Promise all of it, send half of it, and cut the connection."""
    body = text.encode()
    response = web.StreamResponse(headers={**headers, "Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.abort()
    return response
