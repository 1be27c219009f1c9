"""Writes the generated parts of docs/schema.md from the models in `kurisu.schema`.

    python scripts/make_schema_docs.py            write them
    python scripts/make_schema_docs.py --check    say what differs, and exit with 1 if anything does

In: `Base.metadata` and the ORM's relationships. Out: the diagram and the tables, between the
markers of docs/schema.md. What stands outside the markers is written by hand and stays.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import CheckConstraint, Column, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import RelationshipDirection, RelationshipProperty
from sqlalchemy.schema import CreateIndex

from kurisu.domain.timeframe import BASE, ROLLUPS
from kurisu.schema import ROLLUP_TABLES, Base

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "schema.md"

#: The order of the page. A table that is in no area is an error: somebody has to place it.
AREAS: Final[dict[str, tuple[str, ...]]] = {
    "Markets": ("markets",),
    "Candles": (
        "ohlcv",
        *(table.name for table in ROLLUP_TABLES.values()),
        "candle_series",
        "candle_coverage",
        "candle_revisions",
    ),
    "Trades": ("trades", "trade_coverage"),
    "Accounts and the ledger": (
        "accounts",
        "orders",
        "executions",
        "waiting_orders",
        "order_corrections",
        "execution_corrections",
        "ledger_entries",
        "positions",
        "balances",
        "reported_balances",
        "sync_cursors",
    ),
    "Strategies and risk": ("strategies", "strategy_runs", "risk_events"),
    "Upkeep": ("retention_policies", "rollup_pending"),
}

#: A CHECK that is longer is cut here; the whole of it is in the model.
LONGEST_RULE: Final = 150

_DIALECT: Final = postgresql.dialect()  # type: ignore[no-untyped-call]
_SHORT_TYPES: Final = {
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
    "NUMERIC(38, 18)": "numeric(38,18)",
}


def tables() -> Iterator[tuple[str, Table]]:
    """(area, table) in the order of the page. Raises ValueError if a table is in no area."""
    known = Base.metadata.tables
    placed = [name for names in AREAS.values() for name in names]
    if sorted(placed) != sorted(known):
        difference = sorted(set(placed) ^ set(known))
        raise ValueError(f"AREAS and the models differ by {', '.join(difference)}")
    for area, names in AREAS.items():
        for name in names:
            yield area, known[name]


def sql_type(column: Column[object]) -> str:
    """PostgreSQL's name of the column's type, in the short spelling and without a collation."""
    spelled = column.type.compile(dialect=_DIALECT).partition(" COLLATE ")[0]
    return _SHORT_TYPES.get(spelled, spelled.lower())


def undeclared_references() -> dict[tuple[str, str], str]:
    """(table, column) -> referenced table, where a trigger keeps what no foreign key declares.

    These are the ORM's many-to-one relationships over columns without a foreign key.
    """
    found: dict[tuple[str, str], str] = {}
    for mapper in Base.registry.mappers:
        for relationship in mapper.relationships:
            if relationship.direction is not RelationshipDirection.MANYTOONE:
                continue
            for local in relationship.local_columns:
                if not local.foreign_keys:
                    found[_table_name(local), local.name] = _target(relationship)
    return found


def _table_name(column: object) -> str:
    table = getattr(column, "table", None)
    if not isinstance(table, Table):
        raise TypeError(f"{column} is not a table's column")
    return table.name


def _target(relationship: RelationshipProperty[object]) -> str:
    target = relationship.mapper.local_table
    if not isinstance(target, Table):
        raise TypeError(f"{relationship} does not lead to a table")
    return target.name


def diagram() -> str:
    """The entity relationship diagram, in Mermaid."""
    lines = ["```mermaid", "erDiagram"]
    kept = undeclared_references()
    for _, table in tables():
        for column in table.columns:
            # The parent's side says whether a row may do without one; the child's side is always
            # zero or many, since no foreign key here is unique by itself.
            parent = "|o" if column.nullable else "||"
            lines += [
                f'    {key.column.table.name} {parent}--o{{ {table.name} : "{column.name}"'
                for key in column.foreign_keys
            ]
            if (referenced := kept.get((table.name, column.name))) is not None:
                lines.append(
                    f"    {referenced} {parent}--o{{ {table.name} : "
                    f'"{column.name} (kept by a trigger)"'
                )
    source = "ohlcv"
    for frame in ROLLUPS:
        rollup = ROLLUP_TABLES[frame.name].name
        inside = BASE.name if source == "ohlcv" else source
        lines.append(f'    {rollup} |o..o{{ {source} : "is made from {inside}"')
        source = rollup
    for _, table in tables():
        lines.append(f"    {table.name} {{")
        for column in table.columns:
            marks = [
                mark
                for mark, holds in (
                    ("PK", column.primary_key),
                    ("FK", bool(column.foreign_keys) or (table.name, column.name) in kept),
                )
                if holds
            ]
            # Mermaid's types are single words.
            word = sql_type(column).split("(")[0].replace(" ", "_")
            lines.append(f"        {word} {column.name} {', '.join(marks)}".rstrip())
        lines.append("    }")
    return "\n".join([*lines, "```"])


def reference() -> str:
    """Every relation: what it is, its columns, and the rules that the database keeps."""
    parts: list[str] = []
    area_before = None
    for area, table in tables():
        if area != area_before:
            parts.append(f"### {area}")
            area_before = area
        parts.append(f"#### `{table.name}`")
        if said := _description(table):
            parts.append(said)
        parts.append("\n".join(_column_rows(table)))
        parts.append("\n".join(f"- {line}" for line in _rules(table)))
    return "\n\n".join(parts)


def _description(table: Table) -> str:
    for mapper in Base.registry.mappers:
        if mapper.local_table is table:
            return inspect.cleandoc(mapper.class_.__doc__ or "")
    return table.comment or ""


def _column_rows(table: Table) -> Iterator[str]:
    yield "| column | type | null | comment |"
    yield "| :-- | :-- | :-- | :-- |"
    for column in table.columns:
        null = "yes" if column.nullable else "no"
        comment = _cell(column.comment or _key_comment(column))
        yield f"| `{column.name}` | {sql_type(column)} | {null} | {comment} |"


def _key_comment(column: Column[object]) -> str:
    """For a reference without a comment of its own: where it leads."""
    return ", ".join(f"{key.column.table.name}.{key.column.name}" for key in column.foreign_keys)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _rules(table: Table) -> Iterator[str]:
    names = ", ".join(column.name for column in table.primary_key.columns)
    yield f"Key: ({names})."
    kept = undeclared_references()
    for (owner, column), referenced in kept.items():
        if owner == table.name:
            yield f"References: {column} -> {referenced}, checked once per statement by a trigger."
    constraints = sorted(table.constraints, key=lambda c: str(c.name))
    for constraint in constraints:
        if isinstance(constraint, UniqueConstraint):
            columns = ", ".join(column.name for column in constraint.columns)
            nulls = constraint.dialect_options["postgresql"]["nulls_not_distinct"]
            how = ", nulls not distinct" if nulls else ""
            yield f"Unique `{constraint.name}`: ({columns}){how}."
        elif isinstance(constraint, CheckConstraint):
            named = constraint.info.get("rules", {})
            for name, rule in sorted(named.items()):
                yield f"Check `check_{table.name}_{name}`: {_rule(rule)}."
            if not named:
                yield f"Check `{constraint.name}`: {_rule(str(constraint.sqltext))}."
    for index in sorted(table.indexes, key=lambda i: str(i.name)):
        statement = str(CreateIndex(index).compile(dialect=_DIALECT))
        yield f"Index `{index.name}`: {statement[statement.index('(') :]}."


def _rule(expression: str) -> str:
    flat = " ".join(expression.split())
    if len(flat) > LONGEST_RULE:
        flat = flat[:LONGEST_RULE].rsplit(" ", 1)[0] + " ..."
    return f"`{flat}`"


SECTIONS: Final = {"diagram": diagram, "tables": reference}


def updated(page: str) -> str:
    """`page` with its generated parts made anew. Raises ValueError if a marker is missing."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end of generated: {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise ValueError(f"the page needs the markers {begin} and {end}, once each")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes the generated parts of docs/schema.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if they differ")
    parser.add_argument("page", nargs="?", type=Path, default=PAGE, help="default: docs/schema.md")
    given = parser.parse_args(arguments)
    page: Path = given.page
    found = page.read_text(encoding="utf-8")
    wanted = updated(found)
    if found == wanted:
        return 0
    if not given.check:
        page.write_text(wanted, encoding="utf-8")
        return 0
    lines = difflib.unified_diff(
        found.splitlines(), wanted.splitlines(), page.name, "what the models say", lineterm="", n=1
    )
    print("\n".join(lines))
    print(f"{page.name} is out of date: run python scripts/make_schema_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
