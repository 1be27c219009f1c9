"""Which column of a file is which: by name, by `--columns`, or by a known layout."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kurisu.ingest.files.detect import CannotRead

#: What a candle is read from, in the order of the table that `read_candles` returns.
FIELDS: Final = ("time", "open", "high", "low", "close", "volume")
STANDARD: Final = "ts,open,high,low,close,volume"

# Names of columns in lower case without anything but letters and digits. Where a file has more
# than one time, the first of these is taken: open times before others, numbers before texts.
_TIMES: Final = (
    "opentime", "timeopen", "opentimems", "opentimestamp", "timeperiodstart", "periodstart",
    "starttime", "startat", "start", "candlebegintime", "begintime", "bucket", "mts",
    "unix", "unixtimestamp", "unixtime", "unixms", "epoch", "epochms", "timestampms", "timestamp",
    "tsms", "ts", "timestamputc", "timeutc", "utctime", "gmttime", "utc", "time", "t",
    "datetimeutc", "datetime", "dateutc", "date", "day",
)  # fmt: skip
# Only where nothing else is a time: an index that pandas wrote without a name.
_INDEXES: Final = ("indexlevel0", "index", "unnamed0", "")
_PRICES: Final = {
    "open": ("open", "o", "openprice", "priceopen"),
    "high": ("high", "h", "highprice", "pricehigh"),
    "low": ("low", "l", "lowprice", "pricelow"),
    "close": ("close", "c", "closeprice", "priceclose"),
}
_VOLUMES: Final = (
    "volume", "vol", "v", "basevolume", "volumebase", "baseassetvolume", "volumetraded",
    "volumefrom",
)  # fmt: skip
# "Volume USDT", "Volume_(BTC)": what follows is an asset, unless it says that it is the quote.
_VOLUME_OF: Final = re.compile(r"vol(?:ume)?([a-z0-9]+)")
_NOT_BASE: Final = frozenset(
    {"quote", "currency", "to", "usdvalue", "24h", "ma", "change", "delta"}
)
_TIME_OF_DAY: Final = re.compile(r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?")
_SYMBOLS: Final = ("symbol", "pair", "ticker", "market", "instrument", "instid", "tic", "coin")
_TIMEFRAMES: Final = ("timeframe", "interval", "resolution", "granularity")

_OPTION_NAMES: Final = {
    "ts": "time", "time": "time", "date": "time", "open_time": "time", "timestamp": "time",
    "datetime": "time", "unix": "time", "open": "open", "high": "high", "low": "low",
    "close": "close", "volume": "volume",
}  # fmt: skip
_SKIP: Final = frozenset({"_", "-", ""})

_BINANCE: Final = (
    "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count",
    "taker_buy_volume", "taker_buy_quote_volume", "ignore",
)  # fmt: skip
_FREQTRADE: Final = ["date", "open", "high", "low", "close", "volume"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in a file's rows the parts of a candle stand.

    width: columns in a row.
    fields: each of FIELDS -> 0-based position.
    sources: each of FIELDS -> how the file names that column; "column 3" where it has no names.
    same: what must not change inside one file ("symbol", "timeframe") -> 0-based position.
    names: what the file calls its columns; empty where it has no names.
    label: whose layout it is, e.g. "Binance klines"; "" if nobody's.
    assumed: True where the file has no names and none were given: the order is then checked.
    id_space: what the ids of its trades are, where the file says so; only our own do.
    """

    width: int
    fields: Mapping[str, int]
    sources: Mapping[str, str]
    same: Mapping[str, int] = field(default_factory=dict)
    names: Sequence[str] = ()
    label: str = ""
    assumed: bool = False
    id_space: str = ""


def from_option(columns: Sequence[str], width: int) -> Layout:
    """From `--columns`, by position, for rows of `width` columns. Raises CannotRead."""
    given = ",".join(columns)
    names = [_OPTION_NAMES.get(name.strip().casefold(), name.strip()) for name in columns]
    unknown = [name for name in names if name not in FIELDS and name not in _SKIP]
    if unknown:
        raise CannotRead(
            f"--columns {given}: {unknown[0]!r} is unknown; there are ts, open, high, low, close, "
            "volume, and _ for a column to skip"
        )
    for name in FIELDS:
        if names.count(name) != 1:
            what = "misses" if name not in names else "has more than one"
            raise CannotRead(f"--columns {given} {what} {'ts' if name == 'time' else name}")
    if len(names) != width:
        raise CannotRead(
            f"--columns {given} names {len(names)} columns, but the file has {width}: name each "
            "one, with _ for a column to skip"
        )
    fields = {name: names.index(name) for name in FIELDS}
    return Layout(width, fields, _numbered(fields))


def without_names(width: int) -> Layout | None:
    """The layout that files without a header have at this width, if there is just one."""
    label = {6: "", 7: "Kraken", len(_BINANCE): "Binance klines"}.get(width)
    if label is None:
        return None
    fields = {name: i for i, name in enumerate(FIELDS)}
    return Layout(width, fields, _numbered(fields), label=label, assumed=True)


def from_names(names: Sequence[str], first_row: Sequence[str | None] = ()) -> Layout:
    """From the names of the columns. Raises CannotRead where one is missing or ambiguous.

    first_row: its cells, for what the names alone do not say (which asset is the base).
    """
    keys = [_key(name) for name in names]
    time = _first_of(keys, names, _TIMES, "the time")
    if time is None:
        time = _first_of(keys, names, _INDEXES, "the time")
    fields = {} if time is None else {"time": time}
    for name, known in _PRICES.items():
        if (at := _only_one(keys, names, known, name)) is not None:
            fields[name] = at
    same = {}
    for what, aliases in (("symbol", _SYMBOLS), ("timeframe", _TIMEFRAMES)):
        if (at := _first_of(keys, names, aliases, what)) is not None:
            same[what] = at
    missing = [name for name in FIELDS[:5] if name not in fields]
    if not missing:
        symbol = first_row[same["symbol"]] if "symbol" in same and first_row else None
        if (at := _volume(keys, names, symbol)) is not None:
            fields["volume"] = at
        else:
            missing = ["volume"]
    if "time" in fields and first_row:
        _refuse_clock(names, keys, first_row)
    if missing:
        raise CannotRead(
            f"no column for {', '.join(missing)} among {_shown(names)}"
            # Fewer columns than a candle has cannot be named so that they are one.
            + (f": if they are candles, {_say_which(names)}" if len(names) >= len(FIELDS) else "")
        )
    label = ""
    if keys[0] == "opentime" and "closetime" in keys and len(keys) == len(_BINANCE):
        label = "Binance klines"
    elif list(names) == _FREQTRADE:
        label = "freqtrade"
    ordered = {name: fields[name] for name in FIELDS}
    sources = {name: names[at] for name, at in ordered.items()}
    return Layout(len(names), ordered, sources, same, tuple(names), label)


def looks_like_names(cells: Sequence[str]) -> bool:
    """True if these cells name all that a candle needs, or at least several parts of it."""
    keys = {_key(cell) for cell in cells}
    known = sum(not keys.isdisjoint(names) for names in (*_PRICES.values(), _TIMES, _VOLUMES))
    return known >= 3


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _first_of(
    keys: Sequence[str], names: Sequence[str], known: Sequence[str], what: str
) -> int | None:
    for name in known:
        at = [i for i, key in enumerate(keys) if key == name]
        if len(at) > 1:
            raise _ambiguous(what, [names[i] for i in at], names)
        if at:
            return at[0]
    return None


def _only_one(
    keys: Sequence[str], names: Sequence[str], known: Sequence[str], what: str
) -> int | None:
    at = [i for i, key in enumerate(keys) if key in known]
    if len(at) > 1:
        raise _ambiguous(f"the {what}", [names[i] for i in at], names)
    return at[0] if at else None


def _volume(keys: Sequence[str], names: Sequence[str], symbol: str | None) -> int | None:
    plain = _only_one(keys, names, _VOLUMES, "volume in base units")
    # Huobi writes the quote volume as `vol` and the base volume as `amount`.
    if plain is not None and keys[plain] == "vol" and "amount" in keys:
        raise _ambiguous("volume in base units", ["vol", "amount"], names)
    if plain is not None:
        return plain
    by_asset = {
        i: match[1]
        for i, key in enumerate(keys)
        if (match := _VOLUME_OF.fullmatch(key)) and match[1] not in _NOT_BASE
    }
    market = _key(symbol or "")
    base = [i for i, asset in by_asset.items() if market.startswith(asset) and asset != market]
    if len(base) > 1:
        # BTC and BTCST: the one whose rest of the symbol is the other volume's asset.
        assets = set(by_asset.values())
        base = [i for i in base if market.removeprefix(by_asset[i]) in assets]
    if not market and len(by_asset) == 1 and "volumecurrency" in keys:
        base = list(by_asset)
    if len(base) == 1:
        return base[0]
    if by_asset:
        raise _ambiguous("volume in base units", [names[i] for i in by_asset], names)
    return None


def _refuse_clock(
    names: Sequence[str], keys: Sequence[str], first_row: Sequence[str | None]
) -> None:
    """A time of day in a column of its own (MetaTrader) makes the date alone a wrong time."""
    for name, key, cell in zip(names, keys, first_row, strict=True):
        if key in ("time", "clock") and _TIME_OF_DAY.fullmatch((cell or "").strip()):
            raise CannotRead(
                f"the time of day stands in a column of its own, {name!r}: join it with the date "
                "into one column"
            )


def _ambiguous(what: str, candidates: Sequence[str], names: Sequence[str]) -> CannotRead:
    return CannotRead(
        f"cannot tell which column is {what}: {_shown(candidates)}: {_say_which(names)}"
    )


def _say_which(names: Sequence[str]) -> str:
    return (
        f"say it with --columns, one name for each of the {len(names)} columns in their order, "
        f"e.g. {example(len(names))}"
    )


def example(width: int) -> str:
    """A `--columns` for rows of `width` columns."""
    return f"--columns {','.join([STANDARD, *['_'] * max(0, width - len(FIELDS))])}"


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _numbered(fields: Mapping[str, int]) -> dict[str, str]:
    return {name: f"column {at + 1}" for name, at in fields.items()}
