"""docs/schema.md says what the models say, and its check would notice if it did not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, Table

from kurisu.schema import Base
from scripts.make_schema_docs import (
    AREAS,
    PAGE,
    diagram,
    main,
    reference,
    sql_type,
    undeclared_references,
    updated,
)


def test_the_generated_parts_are_current() -> None:
    assert main(["--check"]) == 0, "run python scripts/make_schema_docs.py"


@pytest.mark.parametrize(
    ("found", "planted"),
    [
        ("numeric(38,18)", "numeric(20,10)"),
        ("markets ||--o{ ohlcv", "markets |o--o{ ohlcv"),
        ("| `bars` | integer | no |", "| `bars` | integer | yes |"),
        ("Closed candles as the exchange gave them", "Candles as the exchange gave them"),
    ],
)
def test_the_check_finds_a_difference_and_changes_nothing(
    found: str, planted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "schema.md"
    before = PAGE.read_text(encoding="utf-8")
    assert found in before
    page.write_text(before.replace(found, planted, 1), encoding="utf-8")
    planted_text = page.read_text(encoding="utf-8")

    assert main(["--check", str(page)]) == 1

    assert planted in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == planted_text


def test_writing_repairs_the_generated_parts_and_keeps_what_is_written_by_hand(
    tmp_path: Path,
) -> None:
    page = tmp_path / "schema.md"
    before = PAGE.read_text(encoding="utf-8")
    added = "\nA line by hand.\n"
    page.write_text(before.replace("numeric(38,18)", "numeric(20,10)") + added, encoding="utf-8")

    assert main([str(page)]) == 0

    assert page.read_text(encoding="utf-8") == before + added


def test_a_page_without_a_marker_is_refused() -> None:
    with pytest.raises(ValueError, match="markers"):
        updated("# The schema\n")


@pytest.fixture
def new_table() -> Iterator[Table]:
    """A table of the models that no area of the page has."""
    table = Table("left_out", Base.metadata, Column("id", Integer, primary_key=True))
    yield table
    Base.metadata.remove(table)


def test_a_table_that_nobody_placed_is_refused(new_table: Table) -> None:
    with pytest.raises(ValueError, match="left_out"):
        reference()


def test_every_table_and_every_column_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert {name for names in AREAS.values() for name in names} == set(Base.metadata.tables)
    for table in Base.metadata.tables.values():
        part = page[page.index(f"#### `{table.name}`\n") :]
        for column in table.columns:
            assert f"| `{column.name}` | {sql_type(column)} |" in part


def test_the_diagram_has_every_reference_declared_or_kept_by_a_trigger() -> None:
    drawn = diagram()
    assert undeclared_references() == {
        ("ohlcv", "market_id"): "markets",
        ("trades", "market_id"): "markets",
        ("executions", "order_id"): "orders",
    }
    assert 'markets ||--o{ ohlcv : "market_id (kept by a trigger)"' in drawn
    assert 'markets ||--o{ trades : "market_id (kept by a trigger)"' in drawn
    assert 'orders |o--o{ executions : "order_id (kept by a trigger)"' in drawn
    for table in Base.metadata.tables.values():
        for key in table.foreign_keys:
            parent = "|o" if key.parent.nullable else "||"
            line = f'{key.column.table.name} {parent}--o{{ {table.name} : "{key.parent.name}"'
            assert line in drawn
