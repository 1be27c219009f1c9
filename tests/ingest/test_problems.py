"""What goes wrong while history is fetched."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from kurisu.domain.trade import IdSpace
from kurisu.errors import ExchangeUnavailable, InMaintenance
from kurisu.exchange.port import TradeRow
from kurisu.exchange.trades import trade_table
from kurisu.ingest.problems import concat, problem_of

AT = datetime(2024, 1, 1, tzinfo=UTC)


def test_pages_are_one_table_also_where_a_number_of_one_does_not_fit() -> None:
    rows = [TradeRow(1, "1", "buy", "1.5", "2"), TradeRow(2, "2", "sell", "1e-19", "2")]
    fits, odd, none = (trade_table(page, IdSpace.RAW) for page in (rows[:1], rows[1:], []))
    table = concat([fits, none, odd])
    assert table.column("price").to_pylist() == ["1.500000000000000000", "1e-19"]
    assert table.column("amount").to_pylist() == [Decimal(2), Decimal(2)]
    assert concat([none]).num_rows == 0
    assert concat([none, fits]).schema == fits.schema


def test_what_an_error_means_for_coverage() -> None:
    down = problem_of(AT, AT, InMaintenance("x", "GET https://x/y?since=1 503"))
    assert (down.status, down.passes) == ("outage", True)
    failed = problem_of(AT, AT, ExchangeUnavailable("x", "GET https://x/y?since=1 503"))
    assert failed.status == "failed"
    # Neighbouring pages differ in nothing but what was asked for.
    assert failed.reason == "GET https://x/y 503"
