"""Values as SQL literals, for the one statement that takes no parameters: COPY."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from decimal import Decimal

# Quoted parts and comments come first, so that a `$1` inside them is left alone. `a$1` is a name.
_PLACEHOLDER = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | (?<![\w$])\$(\d+)\b""",
    re.DOTALL | re.VERBOSE,
)


def inline_arguments(query: str, args: Sequence[object]) -> str:
    """Write `args` into `query` in place of `$1`, `$2`, ..., as literals that cannot break out.

    COPY takes no parameters. asyncpg would have the server quote them, which costs two more round
    trips, reaches into quoted parts of the query, and passes a time through the session's
    DateStyle: the styles other than ISO write the zone as an abbreviation, and servers before
    PostgreSQL 18 read `IST` as Israel's even where the session is in India.
    Raises ValueError for a placeholder without an argument, an argument without a placeholder, a
    naive datetime, and whatever has no literal here. `query` must have no dollar-quoted string
    and no backslash-quoted quote; it is the program's own text, only `args` come from outside.
    """
    used: set[int] = set()

    def literal_or_same(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        number = int(match[1])
        if not 1 <= number <= len(args):
            raise ValueError(f"The query has ${number}, but {len(args)} arguments were given.")
        used.add(number)
        return _literal(args[number - 1])

    inlined = _PLACEHOLDER.sub(literal_or_same, query)
    if len(used) < len(args):
        unused = min(set(range(1, len(args) + 1)) - used)
        raise ValueError(f"The query has no ${unused}, but {len(args)} arguments were given.")
    return inlined


def _literal(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bool():
            return "TRUE" if value else "FALSE"
        case int():
            if not -(2**63) <= value < 2**63:
                raise ValueError(f"The argument {value} does not fit int8.")
            return f"({value})"  # in parentheses, or `- $1` would begin a comment
        case Decimal():
            if not value.is_finite():
                raise ValueError(f"The argument {value} is not a finite number.")
            return f"'{value}'::numeric"
        case dt.datetime():
            if value.utcoffset() is None:
                raise ValueError(f"The argument {value.isoformat()} has no time zone.")
            return f"'{value.astimezone(dt.UTC).isoformat()}'::timestamptz"
        case str():
            if "\0" in value:
                raise ValueError("PostgreSQL has no text with a NUL character.")
            # An E'' literal reads the same whatever standard_conforming_strings says.
            doubled = value.replace("\\", "\\\\").replace("'", "''")
            return f" E'{doubled}'"
        case list() | tuple():
            return f"ARRAY[{', '.join(_literal(item) for item in value)}]" if value else "'{}'"
        case _:
            raise ValueError(f"There is no literal for an argument of {type(value).__name__}.")
