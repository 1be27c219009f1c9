"""Which column of a file of trades is which: by name, by `--columns`, or by a known layout.

The fields of a `Layout` for trades: time, price, amount, and where they are there trade_id, side,
maker (whether the buyer was the maker: then the taker sold), cost and taker_or_maker. The last two
are taken from Kurisu's own exports alone: elsewhere the cost is price x amount, rounded somehow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Final

import pyarrow as pa

from kurisu.domain.faults import Rule
from kurisu.ingest.files.columns import Layout
from kurisu.ingest.files.detect import CannotRead
from kurisu.ingest.files.numbers import read_number
from kurisu.ingest.files.shape import Row, Shape
from kurisu.ingest.files.trade_times import read_trade_time

#: What no trade can do without.
NEEDED: Final = ("time", "price", "amount")
STANDARD: Final = "ts,id,side,price,amount"
#: Columns of a file of trades, at least.
LEAST: Final = len(NEEDED)
#: Share of sampled rows that a layout without names must fit.
MIN_FITTING_SHARE: Final = 0.5

AGG_TRADES: Final = "Binance aggTrades"
BINANCE_TRADES: Final = "Binance trades"
FREQTRADE: Final = "freqtrade"
KURISU: Final = "Kurisu"

# Names of columns in lower case without anything but letters and digits. Of several the first in
# this order is taken: numbers before texts.
_NAMES: Final[Mapping[str, Sequence[str]]] = {
    "time": (
        "transacttime", "tradetime", "timestampms", "tsms", "mts", "timestamp", "ts", "unix",
        "time", "createdtime", "createdat", "epoch", "datetimeutc", "datetime", "date", "exectime",
        "timestampnano",
    ),
    "trade_id": ("aggtradeid", "tradeid", "trdmatchid", "execid", "tid", "id"),
    "side": (
        "side", "takerside", "takersidetype", "direction", "takerdirection", "bidask", "buysell",
    ),
    "maker": ("isbuyermaker", "buyermaker", "wasthebuyerthemaker", "buyerismaker"),
    "price": ("price", "tradeprice", "rate", "px"),
    "amount": (
        "amount", "qty", "quantity", "size", "volume", "vol", "tradesize", "baseamount",
        "basevolume", "sz",
    ),
}  # fmt: skip
# One letter each, as Binance's API and streams spell them.
_LETTERS: Final = {"T": "time", "a": "trade_id", "t": "trade_id", "p": "price", "q": "amount",
                   "m": "maker"}  # fmt: skip
_SYMBOLS: Final = ("symbol", "pair", "ticker", "market", "instrument", "instid", "instrumentname")
_OPTION_NAMES: Final = {
    "ts": "time", "time": "time", "date": "time", "timestamp": "time", "datetime": "time",
    "unix": "time", "id": "trade_id", "trade_id": "trade_id", "side": "side",
    "is_buyer_maker": "maker", "price": "price", "amount": "amount", "qty": "amount",
    "quantity": "amount", "size": "amount", "volume": "amount",
}  # fmt: skip
_SKIP: Final = frozenset({"_", "-", ""})
_OWN: Final = ["time", "trade_id", "side", "price", "amount", "cost", "taker_or_maker"]
_FREQTRADE: Final = ["timestamp", "id", "type", "side", "price", "amount", "cost"]
_BOOLEANS: Final = frozenset({"true", "false"})
_SIDES: Final = frozenset({"buy", "sell", "b", "s"})


def from_option(columns: Sequence[str], width: int) -> Layout:
    """From `--columns`, by position, for rows of `width` columns. Raises CannotRead."""
    given = ",".join(columns)
    names = [_OPTION_NAMES.get(name.strip().casefold(), name.strip()) for name in columns]
    unknown = [n for n in names if n not in _SKIP and n not in _OPTION_NAMES.values()]
    if unknown:
        raise CannotRead(
            f"--columns {given}: {unknown[0]!r} is unknown; there are ts, id, side, "
            "is_buyer_maker, price, amount, and _ for a column to skip"
        )
    fields = {}
    for name in dict.fromkeys(_OPTION_NAMES.values()):
        if names.count(name) > 1 or (name in NEEDED and name not in names):
            what = "misses" if name not in names else "has more than one"
            raise CannotRead(f"--columns {given} {what} {'ts' if name == 'time' else name}")
        if name in names:
            fields[name] = names.index(name)
    if len(names) != width:
        raise CannotRead(
            f"--columns {given} names {len(names)} columns, but the file has {width}: name each "
            "one, with _ for a column to skip"
        )
    return Layout(width, fields, _numbered(fields))


def from_names(names: Sequence[str], first_row: Row = ()) -> Layout:
    """From the names of the columns. Raises CannotRead where one is missing."""
    keys = [_key(name) for name in names]
    fields: dict[str, int] = {}
    for field, known in _NAMES.items():
        at = next((keys.index(name) for name in known if name in keys), None)
        if at is not None:
            fields[field] = at
    for letter, field in _LETTERS.items():
        if field not in fields and letter in names:
            fields[field] = list(names).index(letter)
    if "side" not in fields and "type" in keys and first_row:
        at = keys.index("type")  # of the trade, and not of the order as in freqtrade's files
        if (first_row[at] or "").casefold() in _SIDES:
            fields["side"] = at
    if "side" in fields:
        fields.pop("maker", None)
    missing = [name for name in NEEDED if name not in fields]
    if missing:
        shown = ", ".join(repr(name[:40]) for name in names[:20])
        hint = (
            f": if they are trades, say it with --columns, one name for each of the {len(names)} "
            f"columns in their order, e.g. {example(len(names))}"
        )
        raise CannotRead(
            f"no column for {', '.join(missing)} among {shown}"
            + (hint if len(names) >= len(NEEDED) else "")
        )
    label = _label(names, keys)
    if label == KURISU:
        fields |= {name: names.index(name) for name in ("cost", "taker_or_maker")}
    symbol = [keys.index(name) for name in _SYMBOLS if name in keys]
    same = {"symbol": symbol[0]} if symbol else {}
    sources = {name: names[at] for name, at in fields.items()}
    return Layout(len(names), fields, sources, same, tuple(names), label)


def _label(names: Sequence[str], keys: Sequence[str]) -> str:
    if "aggtradeid" in keys:
        return AGG_TRADES
    if list(keys[:4]) == ["id", "price", "qty", "quoteqty"]:
        return BINANCE_TRADES
    return {tuple(_FREQTRADE): FREQTRADE, tuple(_OWN): KURISU}.get(tuple(names), "")


def looks_like_names(cells: Sequence[str]) -> bool:
    """True if these cells name all that a trade needs."""
    keys = {_key(cell) for cell in cells}
    return all(not keys.isdisjoint(_NAMES[name]) for name in NEEDED)


# Files without a header, by what stands in their rows. t: a time, n: a number, i: a whole number,
# b: true or false, s: a side, ?: anything.
_HEADLESS: Final = (
    # agg id, price, quantity, first id, last id, time, buyer is maker, (best match)
    ("inniitbb", AGG_TRADES, {"trade_id": 0, "price": 1, "amount": 2, "time": 5, "maker": 6}),
    ("inniitb", AGG_TRADES, {"trade_id": 0, "price": 1, "amount": 2, "time": 5, "maker": 6}),
    # id, price, quantity, quote quantity, time, buyer is maker, (best match)
    ("innntbb", BINANCE_TRADES, {"trade_id": 0, "price": 1, "amount": 2, "time": 4, "maker": 5}),
    ("innntb", BINANCE_TRADES, {"trade_id": 0, "price": 1, "amount": 2, "time": 4, "maker": 5}),
    # time, id, order type, side, price, amount, cost
    ("t??snnn", FREQTRADE, {"time": 0, "trade_id": 1, "side": 3, "price": 4, "amount": 5}),
    # time in seconds, price, volume
    ("tnn", "Kraken", {"time": 0, "price": 1, "amount": 2}),
)  # fmt: skip


def guess(rows: Sequence[Row], width: int) -> Layout | None:
    """The known layout that rows of that width have; None if there is none."""
    for kinds, label, fields in _HEADLESS:
        if len(kinds) != width:
            continue
        fitting = sum(all(map(_is, kinds, row)) for row in rows)
        if rows and fitting >= len(rows) * MIN_FITTING_SHARE:
            return Layout(width, fields, _numbered(fields), label=label, assumed=True)
    return None


def _is(kind: str, cell: str | None) -> bool:
    text = (cell or "").strip()
    match kind:
        case "t":
            return not isinstance(read_trade_time(text), Rule)
        case "n":
            return isinstance(read_number(text), Decimal)
        case "i":
            return text.isdecimal()
        case "b":
            return text.casefold() in _BOOLEANS
        case "s":
            return text.casefold() in _SIDES
        case _:
            return True


def _check(layout: Layout, rows: Sequence[Row]) -> None:
    """`guess` has looked already."""


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _numbered(fields: Mapping[str, int]) -> dict[str, str]:
    return {name: f"column {at + 1}" for name, at in fields.items()}


def example(width: int) -> str:
    """A `--columns` for rows of `width` columns."""
    names = STANDARD.split(",")
    return f"--columns {','.join([*names, *['_'] * max(0, width - len(names))])}"


def is_usable(kind: pa.DataType, name: str) -> bool:
    """Whether a field can be read exactly from an Arrow type."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return True
    if types.is_null(kind) or types.is_integer(kind):
        return True
    if name in ("side", "maker", "taker_or_maker"):
        return bool(types.is_boolean(kind))
    if name == "time":
        return bool(types.is_timestamp(kind) or types.is_date(kind) or types.is_float64(kind))
    if types.is_decimal(kind) or types.is_float64(kind):
        return True
    return bool(types.is_float32(kind)) and name != "trade_id"


TRADES: Final = Shape(
    what="trades",
    columns="a time, a price and an amount",
    least=LEAST,
    looks_like_names=looks_like_names,
    from_names=from_names,
    from_option=from_option,
    guess=guess,
    check=_check,
    example=example,
    is_usable=is_usable,
    is_streamed=True,
)
