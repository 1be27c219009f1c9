"""What every way to page through public trades has in common: pages, questions, and two ways.

Some rows come twice, some answers come empty, rows may have ids or none: that is seen to here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import pyarrow as pa

from kurisu.domain.money import parse_decimal
from kurisu.domain.trade import IdSpace, cost_of, derived_ids
from kurisu.errors import BadAnswer, IndistinctTrades, InvalidArgument
from kurisu.exchange.candles import PageStatus, exact_column
from kurisu.exchange.clock import from_ms, to_ms
from kurisu.exchange.port import Exchange, TradeAnswer, TradeQuery, TradeRow
from kurisu.exchange.venues import HOUR_MS

_MS: Final = pa.timestamp("us", tz="UTC")
#: How often an answer with rows that are alike and have no ids is asked for again.
DOUBTS: Final = 2


@dataclass(frozen=True, slots=True)
class TradePage:
    """The trades of [since, until), complete; pages follow each other without a gap.

    table: time (timestamp[us, UTC], whole milliseconds), trade_id, side (text, may be null),
        price, amount, cost (decimal128(38, 18)). Trades at `until` itself may be there already.
    id_space: what the ids are. missing_ids: ids that the venue skips, where it should not.
    reason: why the exchange does not give them, if it does not; "" if that is all that is known.
    """

    since: datetime
    until: datetime
    status: PageStatus
    table: pa.Table
    id_space: IdSpace
    missing_ids: int = 0
    reason: str = ""


class TradeWalk:
    """One walk through a market's trades. Times are milliseconds since 1970."""

    def __init__(
        self,
        exchange: Exchange,
        symbol: str,
        since: int,
        until: int | None,
        grace: timedelta,
        id_space: IdSpace | None,
        known_from: str | None,
    ) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self._since = since
        self._until = until
        self._grace = grace
        self._space = id_space
        self._known_from = known_from
        self._limit = exchange.venue.trade_limit
        #: Rows of an answer that may have been cut.
        self._full = self._limit
        #: Milliseconds, or seconds, that the ends of a window are cut to; None if nobody knows.
        self._unit = exchange.venue.trade_time_unit_ms

    async def by_time(self) -> AsyncIterator[TradePage]:
        """From the last time on, inclusive. Venue: bitfinex."""
        at, before = self._since, set[TradeRow]()
        while True:
            end = await self._end()
            query = TradeQuery(since_ms=at, limit=self._limit)
            rows = self._from(at, await self._ask(query))
            last = rows[-1].time_ms if rows else at
            if rows and not before.intersection(rows) and before:
                raise BadAnswer(
                    self._exchange.name,
                    f"it gives no trades of {self._symbol} from {from_ms(at).isoformat()} on, "
                    "where it had some before",
                )
            if rows and last >= end:
                yield self._page(at, end, (r for r in rows if r.time_ms < end))
                return
            if last > at:
                # The last millisecond may be cut: it comes again, whole.
                yield self._page(at, last, (r for r in rows if r.time_ms < last))
                at, before = last, {row for row in rows if row.time_ms == last}
                continue
            if len(rows) >= self._full:
                raise IndistinctTrades(
                    self._exchange.name,
                    f"{len(rows)} trades of {self._symbol} or more at {from_ms(at).isoformat()}: "
                    "they cannot be told apart by time",
                    at,
                )
            later = await self._goes_on_after(at)
            if later is None:
                yield self._page(at, max(at, end), rows)
                return
            yield self._page(at, later, rows)
            at, before = later, set()

    async def newest(self) -> AsyncIterator[TradePage]:
        """There is no history; only the newest trades can be had. Venues: bybit, kucoin, ..."""
        end = await self._end()
        rows = self._from(0, await self._ask(TradeQuery(limit=self._limit)))
        end, last = self._reach(end, rows)
        # The oldest millisecond of the answer may be cut; if it lies before, nothing is.
        first = rows[0].time_ms + 1 if rows else end
        first = min(max(first, self._since), end)
        if first > self._since:
            yield self._hidden(self._since, first)
        found = [row for row in rows if first <= row.time_ms < last]
        if first < end or found:
            yield self._page(first, end, found)

    def _reach(self, end: int, rows: Sequence[TradeRow]) -> tuple[int, int]:
        """Of the newest rows: up to when they are whole, and up to when they can be handed on.

        end: up to when they are for being older than the grace.
        """
        if rows:
            # Few rows may all be younger than the grace. Half of it is for trades that come late,
            # half for an answer that is old, and of that its newest row tells.
            late = self._grace // (2 * timedelta(milliseconds=1))
            end = max(end, self._bounded(rows[-1].time_ms - late))
        met = [row.time_ms for row in rows if row.trade_id == self._known_from is not None]
        if met and rows[-1].time_ms > met[0]:
            # What lies before that trade is here, what comes after it the caller has.
            end = max(end, self._bounded(met[0] + 1))
        # Next time they may be gone: what is younger comes along, where ids tell it apart.
        has_ids = self._space is not IdSpace.DERIVED and all(row.trade_id for row in rows)
        return end, self._bounded(rows[-1].time_ms + 1) if rows and has_ids else end

    def _bounded(self, until: int) -> int:
        return until if self._until is None else min(until, self._until)

    async def _end(self) -> int:
        """Up to when trades are asked for: all that were made by now."""
        settled = to_ms(await self._exchange.now() - self._grace)
        return settled if self._until is None else min(settled, self._until)

    async def _ask(self, query: TradeQuery) -> list[TradeRow]:
        """Rows without repetitions, as far as ids show them; asked twice if there are none."""
        for _ in range(2):
            rows = (await self._answer(query)).rows
            if rows:
                break
        seen: set[str] = set()
        unique = []
        for row in rows:
            if row.trade_id is None or row.trade_id not in seen:
                unique.append(row)
            if row.trade_id is not None:
                seen.add(row.trade_id)
        return unique

    async def _answer(self, query: TradeQuery) -> TradeAnswer:
        """What the exchange says; rows without ids that are alike only as often as it repeats it.

        They are legitimate, and they are also what an answer looks like that has rows twice. So
        it is asked again, and the fewest count.
        """
        answer = await self._exchange.fetch_trades(self._symbol, query)
        counts = Counter(answer.rows)
        alike = {row: count for row, count in counts.items() if count > 1 and row.trade_id is None}
        if not alike:
            return answer
        first = min(row.time_ms for row in answer.rows)
        for _ in range(DOUBTS):
            again = (await self._exchange.fetch_trades(self._symbol, query)).rows
            if not again:
                continue
            # An answer that is cut says nothing of what is behind its end; and the newest trades
            # are others by now, and say nothing of what is before their beginning.
            whole = len(again) >= len(counts)
            end = max(row.time_ms for row in again)
            begin = min(row.time_ms for row in again)
            found = Counter(again)
            for row, count in alike.items():
                if (whole or row.time_ms < end) and (begin <= first or begin < row.time_ms):
                    alike[row] = min(count, max(1, found[row]))
        rows = []
        for row in answer.rows:
            if row in alike:
                alike[row] -= 1
                if alike[row] < 0:
                    continue
            rows.append(row)
        return TradeAnswer(rows, answer.cursor)

    @staticmethod
    def _from(at: int, rows: Iterable[TradeRow]) -> list[TradeRow]:
        return sorted((row for row in rows if row.time_ms >= at), key=lambda row: row.time_ms)

    async def _goes_on_after(self, at: int) -> int | None:
        """Where to go on after an answer that shows nothing new; None if that was the end.

        Some venues (and CCXT for some) answer for an hour at a time: an hour without trades
        looks like the end.
        """
        newest = await self._ask(TradeQuery(limit=self._limit))
        if max((row.time_ms for row in newest), default=at) <= at:
            return None
        later = [row.time_ms for row in newest if row.time_ms > at]
        if len(newest) < self._limit and min(row.time_ms for row in newest) <= at:
            return min(later)
        again = await self._ask(TradeQuery(since_ms=at, limit=self._limit))
        if any(row.time_ms > at for row in again):
            return min(row.time_ms for row in again if row.time_ms > at)
        if self._exchange.venue.trades_open_ended:
            raise BadAnswer(
                self._exchange.name,
                f"it gives no trades of {self._symbol} from {from_ms(at).isoformat()} on, and "
                "there are newer ones",
            )
        return min(at + (self._exchange.venue.trade_window_ms or HOUR_MS), *later)

    def _hidden(self, since: int, until: int, reason: str = "") -> TradePage:
        """A page that says that the exchange does not give these trades."""
        page = self._page(since, until, [], status=PageStatus.UNAVAILABLE)
        return replace(page, reason=reason)

    def _page(
        self,
        since: int,
        until: int,
        rows: Iterable[TradeRow],
        missing: int = 0,
        status: PageStatus = PageStatus.ANSWERED,
    ) -> TradePage:
        found = list(rows)
        space = self._id_space(found)
        return TradePage(
            from_ms(since), from_ms(max(since, until)), status, trade_table(found, space), space,
            missing,
        )  # fmt: skip

    def _id_space(self, rows: Sequence[TradeRow]) -> IdSpace:
        """Of the walk, which keeps to one: the first rows decide, if the caller has not."""
        without = any(row.trade_id is None for row in rows)
        if self._space is None and rows:
            self._space = IdSpace.DERIVED if without else self._exchange.venue.trade_id_space
        if without and self._space is not IdSpace.DERIVED:
            raise BadAnswer(self._exchange.name, "some of its trades have ids and some have none")
        return self._space or self._exchange.venue.trade_id_space


def trade_table(rows: Sequence[TradeRow], space: IdSpace) -> pa.Table:
    """Rows as an Arrow table, digit for digit; whole milliseconds if ids are derived."""
    rows = sorted(rows, key=lambda row: (row.time_ms, order(row)))
    prices = [_number(row.price) for row in rows]
    amounts = [_number(row.amount) for row in rows]
    if space is IdSpace.DERIVED:
        ids: list[str | None] = list(
            derived_ids(
                (row.time_ms, row.side, price, amount)
                for row, price, amount in zip(rows, prices, amounts, strict=True)
            )
        )
    else:
        ids = [row.trade_id for row in rows]
    costs = [
        row.cost if row.cost is not None else str(cost_of(price, amount))
        for row, price, amount in zip(rows, prices, amounts, strict=True)
    ]
    return pa.table(
        {
            "time": pa.array([row.time_ms * 1000 for row in rows], pa.int64()).cast(_MS),
            "trade_id": pa.array(ids, pa.string()),
            "side": pa.array([row.side for row in rows], pa.string()),
            "price": exact_column([row.price for row in rows]),
            "amount": exact_column([row.amount for row in rows]),
            "cost": exact_column(costs),
        }
    )


def _number(text: str) -> Decimal:
    found = parse_decimal(text)
    if found is None or not found.is_finite():
        raise InvalidArgument(f"a trade's number is {text!r}")
    return found


def order(row: TradeRow) -> tuple[int, str]:
    """Numeric ids in their order, others by their text."""
    text = row.trade_id or ""
    return (int(text), "") if text.isdecimal() else (0, text)
