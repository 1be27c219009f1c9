"""Answers that come at once are waited for awake; what can be done meanwhile is done."""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kurisu.store import prompt
from kurisu.store.prompt import LONGEST_S, Awake, Begun


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(prompt, "monotonic", found)
    monkeypatch.setattr(prompt, "_processors", lambda: 2)
    return found


class Recorder(selectors.DefaultSelector):
    """Notes how long the loop would sleep each time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float | None] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.asked.append(timeout)
        return super().select(timeout)


def run(main: Callable[[Recorder], Coroutine[Any, Any, None]]) -> None:
    """`main` in a loop that looks for events with a recorder."""
    recorder = Recorder()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(recorder)) as runner:
        runner.run(main(recorder))


async def sleeps(recorder: Recorder, awake: Awake, then: Callable[[], None] | None = None) -> bool:
    """Whether the loop sleeps while an answer is waited for. then: done before it comes."""
    loop = asyncio.get_running_loop()
    answer = loop.create_future()
    loop.call_later(0.02, answer.set_result, None)
    if then is not None:
        loop.call_soon(then)
    with awake:
        recorder.asked.clear()
        await answer
        asked = recorder.asked.copy()
    return any(timeout != 0 for timeout in asked)


def test_the_loop_does_not_sleep_for_an_answer_that_comes_soon(clock: Clock) -> None:
    async def main(recorder: Recorder) -> None:
        awake = Awake()
        for _ in range(3):
            assert not await sleeps(recorder, awake)
        recorder.asked.clear()
        await asyncio.sleep(0.02)
        assert any(timeout != 0 for timeout in recorder.asked)

    run(main)


def test_the_loop_sleeps_when_an_answer_is_late(clock: Clock) -> None:
    async def main(recorder: Recorder) -> None:
        def late() -> None:
            clock.now += 2 * LONGEST_S

        assert await sleeps(recorder, Awake(), late)

    run(main)


def test_the_loop_sleeps_while_answers_are_slow(clock: Clock) -> None:
    async def main(recorder: Recorder) -> None:
        def slow() -> None:
            clock.now += 5 * LONGEST_S

        awake = Awake()
        for _ in range(5):
            await sleeps(recorder, awake, slow)
        assert await sleeps(recorder, awake)
        for _ in range(20):
            await sleeps(recorder, awake)
        assert not await sleeps(recorder, awake)

    run(main)


def test_a_single_processor_is_left_to_the_server(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "_processors", lambda: 1)

    async def main(recorder: Recorder) -> None:
        assert await sleeps(recorder, Awake())

    run(main)


def test_processors_are_those_that_this_process_may_run_on() -> None:
    assert prompt._processors() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("call", ["sched_yield", "sched_getaffinity"])
def test_a_system_that_cannot_say_is_taken_for_one_processor(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.delattr(os, call)
    assert prompt._processors() == 1


def test_others_on_the_same_processor_come_first(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[None] = []
    monkeypatch.setattr(os, "sched_yield", lambda: given.append(None))

    async def main(recorder: Recorder) -> None:
        awake = Awake()
        given.clear()
        assert not await sleeps(recorder, awake)
        # Once for each time that the loop asked, but for the last.
        assert len(given) >= len(recorder.asked) - 2 > 0

    run(main)


def test_others_go_on_while_an_answer_is_waited_for_awake(clock: Clock) -> None:
    async def main(recorder: Recorder) -> None:
        done: list[int] = []

        async def other() -> None:
            for number in range(5):
                await asyncio.sleep(0)
                done.append(number)

        task = asyncio.create_task(other())
        assert not await sleeps(recorder, Awake())
        assert done == [0, 1, 2, 3, 4]
        await task

    run(main)


async def test_a_coroutine_begins_at_once_and_ends_when_it_is_awaited() -> None:
    done: list[str] = []
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ask() -> int:
        done.append("asked")
        found = await answer
        done.append("answered")
        await asyncio.sleep(0)
        return found

    begun = Begun(ask())
    done.append("meanwhile")
    asyncio.get_running_loop().call_soon(answer.set_result, 7)
    assert await begun == 7
    assert done == ["asked", "meanwhile", "answered"]


async def test_a_coroutine_that_has_nothing_to_wait_for() -> None:
    async def ask() -> int:
        return 7

    assert await Begun(ask()) == 7


async def test_an_error_before_the_first_wait_is_raised_at_once() -> None:
    async def ask() -> int:
        raise ConnectionError("closed")

    with pytest.raises(ConnectionError, match="closed"):
        Begun(ask())


async def test_an_error_after_the_first_wait_is_raised_where_it_is_awaited() -> None:
    async def ask() -> int:
        await asyncio.sleep(0)
        raise ConnectionError("lost")

    begun = Begun(ask())
    with pytest.raises(ConnectionError, match="lost"):
        await begun


async def test_to_cancel_reaches_what_is_waited_for() -> None:
    done: list[str] = []
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ask() -> int:
        try:
            return await answer
        except asyncio.CancelledError:
            done.append("cancelled")
            raise
        finally:
            done.append("tidied up")

    async def main() -> None:
        await Begun(ask())

    task = asyncio.create_task(main())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["cancelled", "tidied up"]
    assert answer.cancelled()
