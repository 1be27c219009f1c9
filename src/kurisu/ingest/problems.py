"""What goes wrong while history is fetched, and what it means for coverage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import pyarrow as pa

from kurisu.errors import ExchangeError, ExchangeUnavailable, InMaintenance, KurisuError

#: The parameters of a request: the reasons of neighbouring pages differ in nothing else.
_QUERY: Final = re.compile(r"(?<=\w)\?\w+=\S*")


@dataclass(frozen=True, slots=True)
class Problem:
    """A stretch that could not be fetched, and why. passes: asking again later may help."""

    since: datetime
    until: datetime
    status: str
    reason: str
    passes: bool = False


def problem_of(since: datetime, until: datetime, error: ExchangeError) -> Problem:
    """A stretch that was asked for in vain."""
    status = "outage" if isinstance(error, InMaintenance) else "failed"
    passes = isinstance(error, ExchangeUnavailable)
    return Problem(since, until, status, _QUERY.sub("", error.reason), passes)


def merged(problems: Sequence[Problem]) -> list[Problem]:
    """By time; neighbours with one reason are one."""
    found: list[Problem] = []
    for one in sorted(problems, key=lambda p: (p.since, p.until)):
        last = found[-1] if found else None
        same = last is not None and (last.status, last.reason) == (one.status, one.reason)
        if last is not None and same and last.until >= one.since:
            found[-1] = replace(last, until=max(last.until, one.until))
        else:
            found.append(one)
    return found


def first_error(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that says most: Kurisu's own before others."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [failed]
    while pending:
        one = pending.pop(0)
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
        else:
            leaves.append(one)
    return next((one for one in leaves if isinstance(one, KurisuError)), leaves[0])


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """One table of several pages; a column is text in all of them if a number of one page does
    not fit, and it is text there."""
    rows = [table for table in tables if table.num_rows] or list(tables[:1])
    schema = rows[0].schema
    if any(table.schema != schema for table in rows):
        text = {
            field.name for table in rows for field in table.schema if pa.types.is_string(field.type)
        }
        fields = [(one.name, pa.string() if one.name in text else one.type) for one in schema]
        rows = [table.cast(pa.schema(fields)) for table in rows]
    return pa.concat_tables(rows)
