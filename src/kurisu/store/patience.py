"""What is asked of a database that restarts is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError

from kurisu.errors import DatabaseError, EngineRefused, MigrationNeeded, WriteRefused
from kurisu.store.connect import sqlstate

P = ParamSpec("P")
T = TypeVar("T")

#: A database that restarts is back in seconds: what it is asked is tried so often, with such
#: pauses.
DATABASE_ATTEMPTS: Final = 8
FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 10.0
#: What a statement says that is wrong, or that a role may not make: a restart changes nothing.
_WRONG: Final = "42"


async def patiently(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """`await call(*args, **kwargs)`, again while the database restarts. Raises what it said last.

    The call may have been carried out before the connection broke. So it has to be one that changes
    nothing the second time; what it says that it changed is then what the second one did.
    """
    for attempt in range(DATABASE_ATTEMPTS):
        try:
            return await call(*args, **kwargs)
        except (WriteRefused, EngineRefused, MigrationNeeded):
            raise
        except DatabaseError as error:
            if attempt + 1 == DATABASE_ATTEMPTS or _is_wrong(error):
                raise
            await asyncio.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))
    raise AssertionError("the loop returns or raises")  # pragma: no cover


def _is_wrong(error: DatabaseError) -> bool:
    cause = error.__cause__
    state = sqlstate(cause) if isinstance(cause, DBAPIError) else getattr(cause, "sqlstate", None)
    return (state or "").startswith(_WRONG)
