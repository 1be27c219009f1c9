"""What became of the rows of one file; candles and trades add what only they have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from kurisu.domain.faults import Conflict, Reject, TradeConflict
from kurisu.store.candle_write import WriteReport
from kurisu.store.coverage import Stretch
from kurisu.store.trades import TradeWriteReport

C = TypeVar("C", Conflict, TradeConflict)

#: Rejects (and conflicts) that --json lists of one file; the counts are always whole.
JSON_ROWS: Final = 1_000


@dataclass(slots=True, kw_only=True)
class FileReport(ABC, Generic[C]):
    """What became of the rows of one file.

    read = inserted + updated + unchanged + len(rejects) + len(conflicts) + duplicates.
    updated: None where a stored row is never changed. rejects: of the file and of the store, by
    row. coverage: stretches that were not known to be complete before. seconds: reading and
    storing, elapsed.
    """

    file: str
    format: str
    market: str
    read: int
    inserted: int = 0
    updated: int | None = None
    unchanged: int = 0
    duplicates: int = 0
    seconds: float = 0.0
    rejects: list[Reject] = field(default_factory=list)
    conflicts: list[C] = field(default_factory=list)
    coverage: Sequence[Stretch] = ()
    notes: list[str] = field(default_factory=list)

    @property
    @abstractmethod
    def kind(self) -> dict[str, Any]:
        """What the rows were taken for."""

    @property
    def counts(self) -> dict[str, int]:
        """How many rows went which way; all but `read` add up to it."""
        counts = {
            "read": self.read,
            "inserted": self.inserted,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "rejected": len(self.rejects),
            "conflicts": len(self.conflicts),
            "duplicates": self.duplicates,
        }
        return {name: count for name, count in counts.items() if count is not None}

    def add(self, written: WriteReport | TradeWriteReport) -> None:
        """What the store did with some of the rows."""
        self.inserted += written.inserted
        self.unchanged += written.unchanged
        self.duplicates += written.duplicates
        self.rejects += written.rejects
        self.conflicts += written.conflicts  # type: ignore[arg-type]  # of the rows' own kind
        self.notes += written.notes

    def sort(self) -> None:
        """Rejects of the file and of the store, and conflicts, by row."""
        self.rejects.sort(key=lambda reject: reject.row)
        self.conflicts.sort(key=lambda conflict: conflict.row)

    def as_dict(self) -> dict[str, Any]:
        """For --json; `rejects` and `conflict_rows` are cut at JSON_ROWS."""
        return {
            "file": self.file,
            "format": self.format,
            "market": self.market,
            **self.kind,
            **self.counts,
            "seconds": round(self.seconds, 3),
            "coverage": [{"since": s.since, "until": s.until} for s in self.coverage],
            "rejects": self.rejects[:JSON_ROWS],
            "conflict_rows": self.conflicts[:JSON_ROWS],
            "notes": self.notes,
        }
