"""Messages of real venues, as CCXT documents them, through CCXT's own handlers: every digit, whole.

The numbers have more digits than a double; the rest is the venue's.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kurisu.errors import ExchangeError
from kurisu.exchange.ccxt_adapter import CcxtExchange, open_exchange
from kurisu.exchange.port import Batch, CandleRow, TradeRow
from kurisu.exchange.settings import ExchangeSettings
from kurisu.exchange.streams import Wires

#: venue: (its name of the market, a message of trades, what it says)
TRADES: dict[str, tuple[str, str, TradeRow]] = {
    "bybit": (
        "BTCUSDT",
        '{"topic":"publicTrade.BTCUSDT","type":"snapshot","ts":1672304486868,"data":[{"T":'
        '1672304486865,"s":"BTCUSDT","S":"Buy","v":"0.00100000000000000001","p":"16578.50",'
        '"L":"PlusTick","i":"20f43950-d8dd-5b31-9112-a178eb6023af","BT":false}]}',
        TradeRow(
            1672304486865, "20f43950-d8dd-5b31-9112-a178eb6023af", "buy", "16578.50",
            "0.00100000000000000001",
        ),
    ),
    "okx": (
        "BTC-USDT",
        '{"arg":{"channel":"trades","instId":"BTC-USDT"},"data":[{"instId":"BTC-USDT","tradeId":'
        '"130639474","px":"42219.9","sz":"0.12060306000000001","side":"buy",'
        '"ts":"1630048897897"}]}',
        TradeRow(1630048897897, "130639474", "buy", "42219.9", "0.12060306000000001"),
    ),
    # Three trades of REST's in one.
    "okx, joined": (
        "BTC-USDT",
        '{"arg":{"channel":"trades","instId":"BTC-USDT"},"data":[{"instId":"BTC-USDT","tradeId":'
        '"130639474","px":"42219.9","sz":"0.12060306","side":"buy","ts":"1630048897897","count":'
        '"3","source":"0","seqId":1234}]}',
        TradeRow(1630048897897, "130639474", "buy", "42219.9", "0.12060306", parts=3),
    ),
    "coinbase": (
        "BTC-USDT",
        '{"channel":"market_trades","client_id":"","timestamp":"2023-02-09T20:19:35.39625135Z",'
        '"sequence_num":0,"events":[{"type":"snapshot","trades":[{"trade_id":"000000000",'
        '"product_id":"BTC-USDT","price":"1260.01","size":"0.3000000000000000001","side":"BUY",'
        '"time":"2019-08-14T20:42:27.265Z"}]}]}',
        TradeRow(1565815347265, "000000000", "buy", "1260.01", "0.3000000000000000001"),
    ),
    "kucoin": (
        "BTC-USDT",
        '{"type":"message","topic":"/market/match:BTC-USDT","subject":"trade.l3match","data":'
        '{"makerOrderId":"5","price":"0.00000010000000000001","sequence":"160","side":"buy",'
        '"size":"1","symbol":"BTC-USDT","takerOrderId":"6","time":"1547697294838004923",'
        '"tradeId":"5c24","type":"match"}}',
        TradeRow(1547697294838, "5c24", "buy", "0.00000010000000000001", "1"),
    ),
    "gate": (
        "BTC_USDT",
        '{"time":1648725035,"time_ms":1648725035923,"channel":"spot.trades","event":"update",'
        '"result":[{"id":3130257995,"create_time":1648725035,"create_time_ms":'
        '"1648725035923.000000","side":"sell","currency_pair":"BTC_USDT","amount":'
        '"0.01160000000000000001","price":"130.11"}]}',
        TradeRow(1648725035923, "3130257995", "sell", "130.11", "0.01160000000000000001"),
    ),
    "bitget": (
        "BTCUSDT",
        '{"action":"snapshot","arg":{"instType":"SPOT","channel":"trade","instId":"BTCUSDT"},'
        '"data":[{"ts":"1701910980366","price":"43854.01","size":"0.0535000000000000001","side":'
        '"buy","tradeId":"1116461060594286593"}],"ts":1701910980730}',
        TradeRow(1701910980366, "1116461060594286593", "buy", "43854.01", "0.0535000000000000001"),
    ),
    # JSON numbers.
    "kraken": (
        "XBTUSDT",
        '{"channel":"trade","type":"update","data":[{"symbol":"BTC/USDT","side":"sell","price":'
        '0.5117000000000000001,"qty":40.0,"ord_type":"market","trade_id":4665906,"timestamp":'
        '"2023-09-25T07:49:37.708706Z"}]}',
        TradeRow(1695628177708, "4665906", "sell", "0.5117000000000000001", "40.0"),
    ),
    "htx": (
        "btcusdt",
        '{"ch":"market.btcusdt.trade.detail","ts":1583495834011,"tick":{"id":105004645372,"ts":'
        '1583495833751,"data":[{"id":105004645372102090727790,"ts":1583495833751,"tradeId":'
        '102090727790,"amount":0.0034280000000000001,"price":9101.2,"direction":"buy"}]}}',
        TradeRow(
            1583495833751, "105004645372102090727790", "buy", "9101.2", "0.0034280000000000001"
        ),
    ),
}  # fmt: skip

CANDLES: dict[str, tuple[str, str, CandleRow]] = {
    "bybit": (
        "BTCUSDT",
        '{"topic":"kline.1.BTCUSDT","data":[{"start":1672324800000,"end":1672325099999,"interval":'
        '"1","open":"16649.5","close":"16677","high":"16677.5","low":"16608","volume":'
        '"2.08100000000000000001","turnover":"34666.4","confirm":false,"timestamp":'
        '1672324988882}],"ts":1672324988882,"type":"snapshot"}',
        CandleRow(
            1672324800000, "16649.5", "16677.5", "16608", "16677", "2.08100000000000000001"
        ),
    ),
    "okx": (
        "BTC-USDT",
        '{"arg":{"channel":"candle1m","instId":"BTC-USDT"},"data":[["1597026360000","8533.02",'
        '"8553.74","8527.17","8548.26","45247.00000000000001","529.5858061","529.5","0"]]}',
        CandleRow(
            1597026360000, "8533.02", "8553.74", "8527.17", "8548.26", "45247.00000000000001"
        ),
    ),
    "kucoin": (
        "BTC-USDT",
        '{"type":"message","topic":"/market/candles:BTC-USDT_1min","subject":'
        '"trade.candles.update","data":{"symbol":"BTC-USDT","candles":["1636461600","0.013",'
        '"0.014","0.0140000000000000001","0.012","0.1","0.0"],"time":1589970010253893337}}',
        CandleRow(1636461600000, "0.013", "0.0140000000000000001", "0.012", "0.014", "0.1"),
    ),
    "gate": (
        "BTC_USDT",
        '{"time":1606292600,"channel":"spot.candlesticks","event":"update","result":[{"t":'
        '"1606292580","v":"2362.32035","c":"19128.1","h":"19128.4","l":"19128",'
        '"o":"19128.3","n":"1m_BTC_USDT","a":"3.8283000000000000001","w":true}]}',
        # `v` is of the quote currency.
        CandleRow(
            1606292580000, "19128.3", "19128.4", "19128", "19128.1", "3.8283000000000000001"
        ),
    ),
    "bitget": (
        "BTCUSDT",
        '{"action":"snapshot","arg":{"instType":"SPOT","channel":"candle1m","instId":"BTCUSDT"},'
        '"data":[["1701871620000","44080.23","44080.24","44028.5","44028.51",'
        '"9.9287000000000001","437404.1","437404.1","437404.1"]],"ts":1}',
        CandleRow(
            1701871620000, "44080.23", "44080.24", "44028.5", "44028.51", "9.9287000000000001"
        ),
    ),
    "kraken": (
        "XBTUSDT",
        '{"channel":"ohlc","type":"update","timestamp":"2023-10-04T16:26:30.524394914Z","data":'
        '[{"symbol":"BTC/USDT","open":0.5624,"high":0.5628000000000000001,"low":0.5622,"close":'
        '0.5627,"trades":12,"volume":30927.68066226,"vwap":0.5626,"interval_begin":'
        '"2023-10-04T16:25:00.000000000Z","interval":1,"timestamp":'
        '"2023-10-04T16:26:00.000000Z"}]}',
        CandleRow(
            1696436700000, "0.5624", "0.5628000000000000001", "0.5622", "0.5627", "30927.68066226"
        ),
    ),
    "htx": (
        "btcusdt",
        '{"ch":"market.btcusdt.kline.1min","ts":1583501786794,"tick":{"id":1583501760,"open":'
        '8094.5,"close":8094.4,"low":8094.3,"high":8094.58000000000001,"amount":0.456,"vol":'
        '3693.0,"count":14}}',
        CandleRow(1583501760000, "8094.5", "8094.58000000000001", "8094.3", "8094.4", "0.456"),
    ),
}  # fmt: skip

PAIR = "BTC/USDT"


def list_market(exchange: CcxtExchange, name: str) -> None:
    """The exchange lists the pair and another, without being asked."""
    client = exchange.client
    other = client.safe_market_structure(
        {
            "id": "ETH-USDT", "symbol": "ETH/USDT", "base": "ETH", "quote": "USDT", "type": "spot",
            "spot": True, "contract": False, "precision": {}, "limits": {}, "info": {},
        }
    )  # fmt: skip
    market = client.safe_market_structure(
        {
            "id": name, "symbol": PAIR, "base": "BTC", "quote": "USDT", "baseId": "BTC",
            "quoteId": "USDT", "type": "spot", "spot": True, "swap": False, "contract": False,
            "active": True, "precision": {}, "limits": {}, "info": {},
        }
    )  # fmt: skip
    client.set_markets([market, other])
    client.options["marketsByWsName"] = {PAIR: market}
    exchange._loaded = True


async def received(
    venue: str, name: str, messages: str | list[bytes], kind: str, url: str
) -> Batch[Any]:
    """What a stream of the venue yields when the messages come."""
    settings = ExchangeSettings(venue, options={"timeout_on_exit": 0})
    async with open_exchange(settings, streams=True) as exchange:
        list_market(exchange, name)
        client = exchange.client
        connection = client.client(url)

        async def watch(*_: Any, **__: Any) -> None:
            """As CCXT's: over a connection, until there is something."""
            client.client(url)
            await asyncio.Event().wait()

        for method in ("watch_trades", "watch_trades_for_symbols", "watch_ohlcv",
                       "watch_ohlcv_for_symbols", "subscribe"):  # fmt: skip
            setattr(client, method, watch)
        batches: Any = (
            exchange.watch_trades([PAIR]) if kind == "trades"
            else exchange.watch_candles([PAIR], "1m")
        )  # fmt: skip
        async with aclosing(batches), asyncio.timeout(5):
            first = asyncio.create_task(anext(batches))
            for _ in range(5):
                await asyncio.sleep(0)
            for message in [messages] if isinstance(messages, str) else messages:
                connection.handle_text_or_binary_message(message)
            found: Batch[Any] = await first
        client.clients.clear()
        return found


@pytest.mark.parametrize("venue", TRADES)
async def test_trades(venue: str) -> None:
    name, message, row = TRADES[venue]
    venue = venue.removesuffix(", joined")
    batch = await received(venue, name, message, "trades", "ws://127.0.0.1/spot/public")
    assert batch.rows == [(PAIR, row)]


@pytest.mark.parametrize("venue", CANDLES)
async def test_candles(venue: str) -> None:
    name, message, row = CANDLES[venue]
    batch = await received(venue, name, message, "candles", "ws://127.0.0.1/spot/public")
    assert [(symbol, update.row) for symbol, update in batch.rows] == [(PAIR, row)]


#: venue: a message about this market and, first, about another one; what it says of this one.
MIXED: dict[str, tuple[str, str, str, Any]] = {
    "kraken": (
        "XBTUSDT",
        "trades",
        '{"channel":"trade","type":"update","data":[{"symbol":"ETH/USDT","side":"buy","price":1,'
        '"qty":2,"ord_type":"limit","trade_id":1,"timestamp":"2023-09-25T07:49:37.708706Z"},'
        '{"symbol":"BTC/USDT","side":"sell","price":3.5,"qty":4.5,"ord_type":"limit","trade_id":2,'
        '"timestamp":"2023-09-25T07:49:37.708706Z"}]}',
        TradeRow(1695628177708, "2", "sell", "3.5", "4.5"),
    ),
    "kraken, candles": (
        "XBTUSDT",
        "candles",
        '{"channel":"ohlc","type":"snapshot","data":[{"symbol":"ETH/USDT","open":1,"high":1,"low":'
        '1,"close":1,"volume":1,"interval_begin":"2023-10-04T16:25:00.000000000Z","interval":1},'
        '{"symbol":"BTC/USDT","open":2.5,"high":2.5,"low":2.5,"close":2.5,"volume":3.5,'
        '"interval_begin":"2023-10-04T16:25:00.000000000Z","interval":1}]}',
        CandleRow(1696436700000, "2.5", "2.5", "2.5", "2.5", "3.5"),
    ),
    "coinbase": (
        "BTC-USDT",
        "trades",
        '{"channel":"market_trades","sequence_num":0,"events":[{"type":"update","trades":['
        '{"trade_id":"1","product_id":"ETH-USDT","price":"1","size":"2","side":"BUY",'
        '"time":"2019-08-14T20:42:27.265Z"},{"trade_id":"2","product_id":"BTC-USDT","price":'
        '"3.5","size":"4.5","side":"SELL","time":"2019-08-14T20:42:27.265Z"}]}]}',
        TradeRow(1565815347265, "2", "sell", "3.5", "4.5"),
    ),
    # Markets in USDC share the book of those in USD, and their trades come under that name.
    "coinbase, in USDC": (
        "BTC-USDC",
        "trades",
        '{"channel":"market_trades","sequence_num":0,"events":[{"type":"update","trades":['
        '{"trade_id":"2","product_id":"BTC-USD","price":"3.5","size":"4.5","side":"SELL",'
        '"time":"2019-08-14T20:42:27.265Z"}]}]}',
        TradeRow(1565815347265, "2", "sell", "3.5", "4.5"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("venue", MIXED)
async def test_a_message_about_several_markets(venue: str) -> None:
    """To CCXT all rows of it are of the first one's market."""
    name, kind, message, row = MIXED[venue]
    venue = venue.partition(",")[0]
    batch = await received(venue, name, message, kind, "ws://127.0.0.1/spot/public")
    assert [(symbol, getattr(found, "row", found)) for symbol, found in batch.rows] == [(PAIR, row)]


#: venue: what it says when it refuses a market that was asked for.
REFUSALS = {
    "okx": '{"event":"error","code":"60018","msg":"instId:BTC-USDT doesn\'t exist."}',
    "bybit": '{"success":false,"ret_msg":"error:not found","req_id":"NUMBER","op":"subscribe"}',
    "kraken": '{"error":"Currency pair not supported BTC/USDT","method":"subscribe","req_id":1,'
    '"success":false,"symbol":"BTC/USDT"}',
    "gate": '{"id":1,"channel":"spot.trades","event":"subscribe","error":{"code":2,"message":'
    '"unknown currency pair"},"result":null}',
}  # fmt: skip


@pytest.mark.parametrize("is_heard", [False, True])
@pytest.mark.parametrize("venue", REFUSALS)
async def test_what_is_refused_is_told_and_asked_for_again(venue: str, is_heard: bool) -> None:
    """CCXT takes a market that was refused for subscribed; Kraken's refusal it does not hear, and
    OKX's not if another market has brought something before."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if "subscribe" in message.data:
                asked.append(message.data)
                if is_heard and venue != "bybit":
                    await socket.send_str(TRADES[venue][1])
                    await asyncio.sleep(0.05)
                number = str(json.loads(message.data).get("req_id"))
                await socket.send_str(REFUSALS[venue].replace("NUMBER", number))
        return socket

    app = web.Application()
    app.router.add_get("/{any:.*}", handle)
    settings = ExchangeSettings(venue, options={"timeout_on_exit": 0})
    async with TestServer(app) as server, open_exchange(settings, streams=True) as exchange:
        url = str(server.make_url("/spot")).replace("http", "ws")
        apis = exchange.client.urls["api"]
        apis["ws"] = {"okx": url, "bybit": {"public": {"spot": url}}}.get(venue, {"publicV2": url})
        apis["spot"] = url
        list_market(exchange, TRADES[venue][0])
        for times in (1, 2):
            with pytest.raises(ExchangeError, match="not |unknown|exist"):
                async with (
                    asyncio.timeout(5),
                    aclosing(exchange.watch_trades([PAIR])) as batches,
                ):
                    async for batch in batches:
                        assert len(batch.rows) == 0 or is_heard
            assert len(asked) == times


@pytest.mark.parametrize("has_beats", [False, True])
async def test_a_connection_whose_heartbeats_stop_is_dead(has_beats: bool) -> None:
    """Without them it may be that nobody trades."""
    asked: list[Any] = []

    async def handle(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            asked.append(json.loads(message.data)["channel"])
            if asked[-1] == "heartbeats" and has_beats:
                await socket.send_str('{"channel":"heartbeats","events":[]}')
        return socket

    app = web.Application()
    app.router.add_get("/{any:.*}", handle)
    settings = ExchangeSettings("coinbase", options={"timeout_on_exit": 0})
    async with TestServer(app) as server, open_exchange(settings, streams=True) as exchange:
        exchange._venue = replace(exchange.venue, stream_silence_s=0.2)
        exchange.client.urls["api"]["ws"] = str(server.make_url("/")).replace("http", "ws")
        list_market(exchange, "BTC-USDT")
        error = ExchangeError if has_beats else TimeoutError
        with pytest.raises(error, match="heartbeat" if has_beats else None):
            async with asyncio.timeout(1), aclosing(exchange.watch_trades([PAIR])) as batches:
                async for batch in batches:
                    assert not batch.rows
    assert sorted(asked) == ["heartbeats", "market_trades"]


def test_what_is_refused_again_and_again_is_asked_for_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each time costs the connection, which brings other markets, too."""
    lost: list[float] = []
    clock = [0.0]
    monkeypatch.setattr("kurisu.exchange.streams.time.monotonic", lambda: clock[0])

    class Connection:
        def on_error(self, _: Exception) -> None:
            lost.append(clock[0])

    wires = Wires()
    while clock[0] < 3600:
        wires.refused(Connection(), ExchangeError("okx", "no such market"))
        clock[0] += 10
    assert lost == [0, 10, 20, 100, 260, 580, 1220, 2500]


async def test_a_message_of_mexc_that_is_said_again_is_heard_once() -> None:
    """Its trades have no ids; two that are alike are two."""
    from ccxt.protobuf.mexc import PushDataV3ApiWrapper_pb2

    push = PushDataV3ApiWrapper_pb2.PushDataV3ApiWrapper()
    push.channel, push.symbol = "spot@public.aggre.deals.v3.api.pb@100ms@BTCUSDT", "BTCUSDT"
    for _ in range(2):
        deal = push.publicAggreDeals.deals.add()
        deal.price, deal.quantity, deal.time, deal.tradeType = "93220.00", "0.04438243", 17, 2
    row = TradeRow(17, None, "sell", "93220.00", "0.04438243")
    push.sendTime = 100
    first = push.SerializeToString()
    push.sendTime = 200
    batch = await received(
        "mexc", "BTCUSDT", [first, first, push.SerializeToString()], "trades", "ws://127.0.0.1/ws"
    )
    assert batch.rows == [(PAIR, row)] * 4


#: venue: how it refuses, and what is no refusal.
UNHEARD = {
    "bitfinex": (
        '{"channel":"trades","symbol":"tXXX","event":"error","msg":"symbol: invalid","code":10300}',
        '{"channel":"trades","event":"error","msg":"subscribe: dup","code":10301}',
    ),
    "cryptocom": (
        '{"id":1,"method":"subscribe","code":40003,"message":"Unknown symbol"}',
        '{"id":1,"method":"subscribe","code":0,"channel":"trade.BTC_USDT"}',
    ),
    "mexc": (
        '{"id":0,"code":0,"msg":"Not Subscribed successfully! [x@y].  Reason: Blocked! "}',
        '{"id":0,"code":0,"msg":"spot@public.aggre.deals.v3.api.pb@100ms@BTCUSDT"}',
    ),
}


@pytest.mark.parametrize("venue", UNHEARD)
async def test_refusals_that_ccxt_does_not_hear(venue: str) -> None:
    class Heard(Wires):
        def refused(self, client: Any, error: Exception) -> None:
            refused.append(str(error))

    refused: list[str] = []
    settings = ExchangeSettings(venue, options={"timeout_on_exit": 0})
    async with open_exchange(settings, streams=True) as exchange:
        exchange.client.kurisu_listener = Heard()
        connection = exchange.client.client("ws://127.0.0.1/spot")
        for message in reversed(UNHEARD[venue]):
            assert not refused
            connection.handle_text_or_binary_message(message)
        exchange.client.clients.clear()
    assert len(refused) == 1
    assert refused[0].startswith("not subscribed")
