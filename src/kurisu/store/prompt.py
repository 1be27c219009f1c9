"""Waits for an answer that comes sooner than a processor that sleeps is awake again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Generator
from time import monotonic
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

#: No answer is waited for awake any longer, and none at all while answers usually take longer.
LONGEST_S: Final = 0.001
#: How much the last answer counts in what is usual.
_WEIGHT: Final = 0.1


def _processors() -> int:
    """How many this process may run on; 1 where it could not give way to others."""
    try:
        os.sched_yield()
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on every system.
        return 1


class Awake:
    """Keeps the event loop from sleeping while it is entered; other tasks go on as ever.

    In a virtual machine it takes 50 microseconds and more until a processor that has nothing to do
    looks at what has arrived. So the loop asks again and again instead, for as long as answers are
    quick, where there is another processor for the server. Each time it gives way to whoever else
    has something to do on its own.
    """

    def __init__(self) -> None:
        self._is_of_use = _processors() > 1
        self._is_asking = False
        self._began = self._until = self._usual = 0.0

    def __enter__(self) -> None:
        self._began = monotonic()
        if self._is_of_use and self._usual < LONGEST_S:
            self._until = self._began + LONGEST_S
            if not self._is_asking:
                self._is_asking = True
                loop = asyncio.get_running_loop()
                loop.call_soon(self._ask, loop)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._until = 0.0
        self._usual += _WEIGHT * (monotonic() - self._began - self._usual)

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        # With a call that waits its turn, the loop looks for events without sleeping.
        self._is_asking = monotonic() < self._until
        if self._is_asking:
            os.sched_yield()
            loop.call_soon(self._ask, loop)


class Begun(Generic[T]):
    """A coroutine that has run until it had to wait; to await this is to wait for the rest.

    What is done in between, without another await, takes no time of its own while a server works.
    What the coroutine raises before it waits is raised at once.
    """

    __slots__ = ("_awaited", "_rest")

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._rest = coroutine.__await__()
        try:
            self._awaited = [next(self._rest)]
        except StopIteration as end:
            self._awaited = []
            self._rest = _only(end.value)

    def __await__(self) -> Generator[Any, Any, T]:
        value: T = yield from self
        return value

    def __iter__(self) -> Begun[T]:
        return self

    def __next__(self) -> Any:
        return self._awaited.pop() if self._awaited else next(self._rest)

    def throw(self, error: BaseException) -> Any:
        return self._rest.throw(error)


def _only(value: T) -> Generator[Any, Any, T]:
    """Ends with `value` without waiting for anything."""
    yield from ()
    return value
