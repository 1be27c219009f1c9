"""What is known about the private side of venues: client order ids, windows, page sizes.

Read in CCXT 4.5.90 (the methods are named beside each value) and in the venues' documentation. A
venue that is not here can be read, with cautious pages; orders are not sent there, because it is
not known how to find one again whose answer was lost.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from kurisu.errors import InvalidArgument

#: Rows a page where neither this table nor CCXT's features know.
CAUTIOUS_LIMIT: Final = 50
#: Rows a page, at most, where only CCXT's features know: a venue that shows fewer than it is asked
#: for would look as if that were all.
FEATURES_LIMIT: Final = 100
DAY_MS: Final = 86_400_000

# Crockford's base 32, small: sorts like the number, and has no letter that reads like a digit.
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_DIGITS: Final = 9  # 45 bits of milliseconds: until the year 3084
_RANDOM_DIGITS: Final = 16  # 80 bits


class OrderLookup(StrEnum):
    """How an order is found by the id that we gave it."""

    ID = "id"  # one request for it
    OPEN_AND_CLOSED = "open_and_closed"  # a filter on the lists of open and of closed orders
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Cursor:
    """How a venue's list goes on, beside what CCXT unifies.

    parameter: that the next page is asked for with. at: where the answer says with which value,
    keys and indices; () where it is the number of rows to skip.
    """

    parameter: str
    at: tuple[str | int, ...] = ()

    def found_in(self, answer: object) -> str | None:
        """What an answer says; "" where it says that there is no more, None where it says nothing
        about it."""
        part: Any = answer
        try:
            for step in self.at:
                part = part[step]
        except (KeyError, IndexError, TypeError):
            return None
        return "" if part is None else str(part)


@dataclass(frozen=True, slots=True)
class ClientIds:
    """What a venue takes as an order's client id.

    pattern: of the whole id. prefix: with which it has to begin. hexadecimal: 32 digits of it,
    nothing else.
    """

    pattern: str
    prefix: str = ""
    hexadecimal: bool = False

    def fits(self, client_order_id: str) -> bool:
        return re.fullmatch(self.pattern, client_order_id) is not None

    def make(self) -> str:
        """A new id: 45 bits of time in milliseconds, so that ids sort as they were made, and 80
        bits of chance."""
        if self.hexadecimal:
            return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
        number = (time.time_ns() // 1_000_000) << (5 * _RANDOM_DIGITS) | secrets.randbits(
            5 * _RANDOM_DIGITS
        )
        digits = ""
        for _ in range(_TIME_DIGITS + _RANDOM_DIGITS):
            digits = _ALPHABET[number & 31] + digits
            number >>= 5
        return f"{self.prefix}k{digits}"


@dataclass(frozen=True, slots=True)
class PrivateVenue:
    """Facts about the private side of one exchange.

    client_ids: None where orders cannot be sent with an id of ours.
    lookup: how an order is found by it.
    absent_after: an order that the venue does not know so long after it was sent will not
        appear any more; the request's own expiry (recvWindow) and the venue's delay are in it.
    forgets_after: how long the venue finds an ended order by its client id; None for long.
    contracts: CCXT sends our id with orders for contracts, too, and finds them by it.
    stop_orders: triggers of spot markets are found by our id like any other order. Where this is
        False they are kept apart from orders, or CCXT sends them as plain ones.
    market_buy_by_amount: a spot market buy takes an amount of base, not a cost.
    trade_window_ms, trade_limit: longest window and page of one request for fills.
    order_window_ms, order_limit: likewise for orders.
    all_markets: a request gives the records of every market, whichever was asked for.
    time_margin_ms: bounds in time are cut to whole seconds, or exclusive, or it is not known: ask
        for so much more on both ends.
    trade_cursor, order_cursor: how the next page of a question for fills and for ended orders is
        asked for; None where it is not known.
    newest_without_time: with neither time nor id it gives its newest records, and fewer than a
        page are all there are.
    id_paging: records can be asked for from an id on (CCXT's params: fromId, orderId).
    wallets: those that are kept apart, by Kurisu's name, and what CCXT's fetch_balance asks for
        them with; what is not here is in the first wallet, or there is only one.
    settled: in rows of the answer about balances: the key of the asset, of the total without
        unrealised PnL, and of what is to be taken off it (or ""). None where CCXT's total has none.
    funding_sign: 1 where CCXT's amount of a funding payment is what the wallet gained, -1 where it
        is what was paid; None where it was not looked up, and funding is not read.
    funding_bounds: the venue's own parameters of a window of time, where CCXT hands none on.
    """

    client_ids: ClientIds | None = None
    lookup: OrderLookup = OrderLookup.NONE
    absent_after: timedelta = timedelta(seconds=30)
    forgets_after: timedelta | None = None
    contracts: bool = False
    stop_orders: bool = False
    market_buy_by_amount: bool = False
    trade_window_ms: int | None = None
    trade_limit: int | None = None
    order_window_ms: int | None = None
    order_limit: int | None = None
    all_markets: bool = False
    time_margin_ms: int = 0
    trade_cursor: Cursor | None = None
    order_cursor: Cursor | None = None
    newest_without_time: bool = False
    id_paging: bool = False
    wallets: Mapping[str, Mapping[str, str | bool]] = field(default_factory=dict)
    settled: tuple[str, str, str] | None = None
    funding_sign: int | None = None
    funding_bounds: tuple[str, str] | None = None

    def lists_of(self, symbol: str) -> PrivateVenue:
        """How a market's records are asked for. Lists of contracts have shorter windows and pages,
        and without a time some show the last week only."""
        if ":" not in symbol:
            return self
        return replace(
            self,
            trade_window_ms=min(self.trade_window_ms or _CONTRACTS_MS, _CONTRACTS_MS),
            trade_limit=min(self.trade_limit or CAUTIOUS_LIMIT, CAUTIOUS_LIMIT),
            order_window_ms=min(self.order_window_ms or _CONTRACTS_MS, _CONTRACTS_MS),
            order_limit=min(self.order_limit or CAUTIOUS_LIMIT, CAUTIOUS_LIMIT),
            newest_without_time=False,
            id_paging=False,
        )

    def wallet_of(self, symbol: str) -> str:
        """The wallet that a market's fills move; "" for the first one."""
        if ":" not in symbol:
            return ""
        pair, _, settle = symbol.partition(":")
        kind = "linear" if settle.partition("-")[0] == pair.partition("/")[2] else "inverse"
        return kind if kind in self.wallets else ""

    def check_client_order_id(self, exchange: str, client_order_id: str) -> None:
        """Raises InvalidArgument if the venue would not take that id, or take another for it."""
        if self.client_ids is None or not self.client_ids.fits(client_order_id):
            wanted = "none" if self.client_ids is None else self.client_ids.pattern
            raise InvalidArgument(
                f"{exchange} does not take {client_order_id!r} as a client order id; it takes "
                f"{wanted}"
            )


#: Where it is not known whether bounds are exclusive, or cut to seconds.
_UNKNOWN_MARGIN_MS: Final = 2_000
#: The longest window of contracts' orders and fills: Binance's, Bybit's and KuCoin's is 7 days.
_CONTRACTS_MS: Final = 7 * DAY_MS - 10

_BYBIT_CURSOR: Final = Cursor("cursor", ("result", "nextPageCursor"))
_COINBASE_CURSOR: Final = Cursor("cursor", ("cursor",))
_KRAKEN_CURSOR: Final = Cursor("ofs")
#: Of the spot lists of today's accounts; the lists that they replaced have numbered pages.
_KUCOIN_CURSOR: Final = Cursor("lastId", ("data", "lastId"))

_BINANCE: Final = PrivateVenue(
    # Binance's rule for newClientOrderId; sign() and create_order_request() hand it on.
    client_ids=ClientIds(r"[.A-Z:/a-z0-9_-]{1,36}"),
    lookup=OrderLookup.ID,  # fetch_order(): origClientOrderId
    # recvWindow is at most a minute; CCXT's is ten seconds.
    absent_after=timedelta(seconds=30),
    contracts=True,
    stop_orders=True,
    market_buy_by_amount=True,  # quantity
    # myTrades and allOrders: "The time between startTime and endTime can't be longer than
    # 24 hours" (CCXT's features say 10,000 days for orders); fromId and orderId page.
    trade_window_ms=DAY_MS,
    trade_limit=1_000,
    order_window_ms=DAY_MS,
    order_limit=1_000,
    newest_without_time=True,
    id_paging=True,
    # fetch_balance() and parse_balance_custom().
    wallets={
        "spot": {"type": "spot"},
        "margin": {"type": "margin"},
        "funding": {"type": "funding"},
        "linear": {"type": "swap", "subType": "linear"},
        "inverse": {"type": "delivery", "subType": "inverse"},
    },
    settled=("asset", "walletBalance", ""),
    funding_sign=1,  # parse_income(): income
)


def _days(count: int) -> int:
    """A window of almost so many days: venues count its margins, too."""
    return count * DAY_MS - 10


PRIVATE_VENUES: Final[Mapping[str, PrivateVenue]] = {
    "binance": _BINANCE,
    "binanceus": replace(_BINANCE, wallets={}, funding_sign=None),
    # Binance's contracts under ids of their own; orders are sent there as "binance".
    "binanceusdm": PrivateVenue(settled=_BINANCE.settled, funding_sign=1),
    "binancecoinm": PrivateVenue(settled=_BINANCE.settled, funding_sign=1),
    "bybit": PrivateVenue(
        # orderLinkId, create_order_request().
        client_ids=ClientIds(r"[A-Za-z0-9_-]{1,36}"),
        # fetch_order() wants acknowledgements and sees 500 orders; the lists filter by
        # orderLinkId.
        lookup=OrderLookup.OPEN_AND_CLOSED,
        contracts=True,
        time_margin_ms=1,
        trade_window_ms=_days(7),  # features: untilDays
        trade_limit=100,
        order_window_ms=_days(7),
        order_limit=50,
        trade_cursor=_BYBIT_CURSOR,
        order_cursor=_BYBIT_CURSOR,
        wallets={"unified": {}, "funding": {"type": "funding"}},
        funding_sign=-1,  # parse_income(): execFee, which is what was paid
    ),
    "okx": PrivateVenue(
        # clOrdId: letters and digits, at most 32.
        client_ids=ClientIds(r"[A-Za-z0-9]{1,32}"),
        lookup=OrderLookup.ID,  # fetch_order(): clOrdId
        forgets_after=timedelta(hours=2),  # canceled without a fill
        contracts=True,
        market_buy_by_amount=True,  # create_order_request(): tgtCcy base_ccy
        wallets={"trading": {}, "funding": {"type": "funding"}},
        settled=("ccy", "cashBal", ""),  # CCXT's total is eq
        funding_sign=1,  # fetch_funding_history(): balChg
        funding_bounds=("begin", "end"),
        time_margin_ms=1,
        trade_window_ms=_days(90),
        trade_limit=100,
        # A market order may have more fills in one millisecond than a page has rows.
        trade_cursor=Cursor("after", ("data", -1, "billId")),
        order_window_ms=_days(90),
        order_limit=100,
    ),
    "kraken": PrivateVenue(
        # cl_ord_id: a UUID, 32 hexadecimal digits, or up to 18 characters.
        client_ids=ClientIds(r"[0-9a-f]{32}|[!-~]{1,18}", hexadecimal=True),
        # fetch_order() takes a client id for userref; the lists filter by cl_ord_id.
        lookup=OrderLookup.OPEN_AND_CLOSED,
        stop_orders=True,
        market_buy_by_amount=True,  # volume
        trade_limit=50,  # a page of TradesHistory
        order_limit=50,  # a page of ClosedOrders
        all_markets=True,
        time_margin_ms=2_000,  # start is exclusive, and whole seconds
        trade_cursor=_KRAKEN_CURSOR,
        order_cursor=_KRAKEN_CURSOR,
    ),
    "kucoin": PrivateVenue(
        client_ids=ClientIds(r"[A-Za-z0-9_-]{1,40}"),  # clientOid
        lookup=OrderLookup.ID,  # fetch_spot_order()
        market_buy_by_amount=True,  # size
        time_margin_ms=1,
        trade_window_ms=_days(7),
        # fetch_my_spot_trades() hands its limit on where it asks for hf/fills, which shows 100 at
        # most; else the venue shows 50.
        trade_limit=50,
        trade_cursor=_KUCOIN_CURSOR,
        wallets={
            "spot": {"type": "spot"},
            "main": {"type": "main"},
            "linear": {"type": "swap", "code": "USDT"},
            "inverse": {"type": "swap", "code": "BTC"},
        },
        settled=("currency", "marginBalance", ""),
        order_window_ms=_days(7),
        order_limit=100,
        order_cursor=_KUCOIN_CURSOR,
    ),
    "gate": PrivateVenue(
        # text: prefix t-, at most 28 characters behind it. create_order_request() refuses more
        # than 28 with the prefix and adds the prefix only where the first letter is no t.
        client_ids=ClientIds(r"t-[0-9A-Za-z_.-]{1,26}", prefix="t-"),
        lookup=OrderLookup.ID,  # fetch_order_request()
        contracts=True,
        forgets_after=timedelta(hours=1),
        time_margin_ms=1,
        trade_window_ms=_days(30),
        trade_limit=1_000,
        order_window_ms=_days(30),
        order_limit=100,
        wallets={
            "spot": {"type": "spot"},
            "linear": {"type": "swap", "settle": "usdt"},
            "inverse": {"type": "swap", "settle": "btc"},
        },
    ),
    "htx": PrivateVenue(
        client_ids=ClientIds(r"[0-9A-Za-z_-]{1,64}"),  # client-order-id
        lookup=OrderLookup.ID,  # fetch_order(): clientOrderId
        forgets_after=timedelta(hours=2),
        time_margin_ms=1,
        trade_window_ms=_days(2),
        trade_limit=500,
        order_window_ms=_days(2),
        order_limit=100,
        wallets={
            "spot": {"type": "spot"},
            "linear": {"type": "swap", "subType": "linear"},
            "inverse": {"type": "swap", "subType": "inverse"},
        },
    ),
    "bitget": PrivateVenue(
        client_ids=ClientIds(r"[0-9A-Za-z_:#/+.-]{1,50}"),  # clientOid
        lookup=OrderLookup.ID,  # fetch_order(): clientOid
        contracts=True,
        time_margin_ms=1,
        trade_window_ms=_days(90),
        trade_limit=100,
        order_window_ms=_days(90),
        order_limit=100,
        wallets={
            "spot": {"type": "spot"},
            "linear": {"type": "swap", "productType": "USDT-FUTURES"},
            "inverse": {"type": "swap", "productType": "COIN-FUTURES"},
        },
        settled=("marginCoin", "accountEquity", "unrealizedPL"),
        funding_sign=1,
    ),
    "mexc": PrivateVenue(
        client_ids=ClientIds(r"[0-9A-Za-z_-]{1,32}"),  # newClientOrderId
        lookup=OrderLookup.ID,  # fetch_order(): origClientOrderId
        time_margin_ms=1,
        trade_window_ms=_days(30),
        trade_limit=100,
        order_window_ms=_days(7),
        order_limit=1_000,
        wallets={"spot": {"type": "spot"}, "linear": {"type": "swap"}},
        settled=("currency", "equity", "unrealized"),
    ),
    # cid is a number, unique for a day only, and CCXT does not look for it.
    "bitfinex": PrivateVenue(trade_limit=1_000, order_limit=1_000),
    "coinbase": PrivateVenue(
        time_margin_ms=_UNKNOWN_MARGIN_MS,
        trade_limit=100,  # CCXT's features say 3,000, which nobody saw
        trade_cursor=_COINBASE_CURSOR,
        order_limit=100,
        order_cursor=_COINBASE_CURSOR,
        # CCXT's default asks for v2/accounts, which shows one page, and not what orders hold.
        wallets={"spot": {"v3": True}},
    ),
    "deribit": PrivateVenue(
        time_margin_ms=_UNKNOWN_MARGIN_MS,
        settled=("currency", "balance", ""),  # CCXT's total is equity
    ),
    "hyperliquid": PrivateVenue(
        time_margin_ms=_UNKNOWN_MARGIN_MS,
        funding_sign=1,  # parse_income(): usdc
    ),
}


def private_venue_of(exchange_id: str) -> PrivateVenue:
    """What is known about the CCXT exchange of that id."""
    return PRIVATE_VENUES.get(exchange_id, PrivateVenue(time_margin_ms=_UNKNOWN_MARGIN_MS))
