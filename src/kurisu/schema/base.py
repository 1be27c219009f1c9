"""What all tables share: naming of constraints, and the column types for money and time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Identity, MetaData, Numeric, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

from kurisu.domain.money import PRECISION, SCALE

MONEY = Numeric(PRECISION, SCALE)
TIMESTAMPTZ = DateTime(timezone=True)

#: Price, amount, cost or fee; exact. The unit is in each column's comment.
Money = Annotated[Decimal, mapped_column(MONEY)]
#: Aware UTC.
Timestamp = Annotated[datetime, mapped_column(TIMESTAMPTZ)]
BigIdentity = Annotated[int, mapped_column(BigInteger, Identity(always=True), primary_key=True)]
Json = Annotated[dict[str, Any], mapped_column(JSONB, server_default=text("'{}'::jsonb"))]
#: An exchange's id, or ours. Compared byte by byte: a unique key that goes by a language's order is
#: rebuilt or wrong when the operating system changes that order, and takes longer.
IDS: Final = "C"
CreatedAt = Annotated[datetime, mapped_column(TIMESTAMPTZ, server_default=text("now()"))]


class Base(DeclarativeBase):
    """Names follow one pattern, so that a migration and a model cannot disagree about them."""

    metadata = MetaData(
        naming_convention={
            "ix": "idx_%(table_name)s_%(column_0_N_name)s",
            "uq": "unique_%(table_name)s_%(column_0_N_name)s",
            "ck": "check_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def one_of(column: str, *values: str) -> str:
    """A CHECK expression: `column` is one of `values`."""
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


def any_of(column: str, *values: str) -> str:
    """The same in a form of which PostgreSQL stores less, for tables with a statement a row.

    It reads the stored text of every CHECK again for each statement.
    """
    return f"{column} = ANY ('{{{','.join(values)}}}')"


def rules(function: str, columns: str, named: Mapping[str, str]) -> CheckConstraint:
    """The CHECKs of a table with a statement a row as one; a migration makes its function.

    The function keeps what it was read as. It raises what a CHECK of the broken rule would, with
    that one's name: check_<table>_<rule>. columns: its arguments. named: expressions by rule, with
    operators that bind equally.
    """
    return CheckConstraint(f"{function}({columns})", name="rules", info={"rules": named})


def within_times(least: str, greatest: str | None = None) -> str:
    """A CHECK expression: a time that Python can read; no infinity, no year of five digits."""
    return f"{least} >= '1970-01-01 00:00:00+00' AND {greatest or least} < '9999-12-31 00:00:00+00'"
