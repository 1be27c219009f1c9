"""Two things measured alternately, and what is printed about them."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

#: Fewer would make the median a matter of luck.
LEAST_PAIRS: Final = 5

#: Named durations in seconds of one run; a run prepares itself untimed.
Sample: TypeAlias = dict[str, float]
Run: TypeAlias = Callable[[], Awaitable[Sample]]

Better: TypeAlias = Literal["less", "more"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    what: what is done. ours, theirs: medians, in `unit`. against: what "theirs" is.
    ratio: the median over the pairs of ours / theirs, or, where `better` is "more", of
        theirs / ours. low, high: the smallest and the largest ratio of a pair.
    goal: at most ("less") or at least ("more") this; None for information.
    pairs: how many pairs were measured; 0 for what is counted, not timed.
    """

    what: str
    against: str
    ours: float
    theirs: float
    unit: Literal["s", "B/candle"]
    ratio: float
    low: float
    high: float
    goal: float | None
    better: Better
    pairs: int

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return self.ratio <= self.goal if self.better == "less" else self.ratio >= self.goal


@dataclass(frozen=True, slots=True)
class Pairs:
    """Samples of two runs, taken alternately: ours[i] and theirs[i] are one pair."""

    ours: Sequence[Sample]
    theirs: Sequence[Sample]

    def figure(
        self,
        what: str,
        against: str,
        *,
        ours: str = "total",
        theirs: str = "total",
        goal: float | None = None,
        better: Better = "less",
    ) -> Figure:
        """The figure of one duration of each side, by the names in the samples."""
        mine = [sample[ours] for sample in self.ours]
        other = [sample[theirs] for sample in self.theirs]
        ratios = [m / o if better == "less" else o / m for m, o in zip(mine, other, strict=True)]
        return Figure(
            what=what,
            against=against,
            ours=statistics.median(mine),
            theirs=statistics.median(other),
            unit="s",
            ratio=statistics.median(ratios),
            low=min(ratios),
            high=max(ratios),
            goal=goal,
            better=better,
            pairs=len(ratios),
        )


async def alternate(pairs: int, ours: Run, theirs: Run) -> Pairs:
    """Run both once unmeasured, then `pairs` times each; who goes first changes with each pair."""
    if pairs < LEAST_PAIRS:
        raise ValueError(f"{pairs} pairs are too few for a median; take {LEAST_PAIRS}.")
    await ours()
    await theirs()
    mine: list[Sample] = []
    other: list[Sample] = []
    for number in range(pairs):
        if number % 2 == 0:
            mine.append(await ours())
            other.append(await theirs())
        else:
            other.append(await theirs())
            mine.append(await ours())
    return Pairs(mine, other)


def counted(
    what: str, against: str, ours_bytes: float, theirs_bytes: float, goal: float | None = None
) -> Figure:
    """A figure of bytes per candle, which does not vary."""
    ratio = ours_bytes / theirs_bytes
    return Figure(
        what, against, ours_bytes, theirs_bytes, "B/candle", ratio, ratio, ratio, goal, "less", 0
    )
