"""`patiently`: what a restart may mend is asked again, and nothing else."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from kurisu.errors import DatabaseError
from kurisu.store.connect import transaction
from kurisu.store.patience import patiently
from kurisu.store.store import Store


@pytest.mark.parametrize("tier", ["plain"], indirect=True)
@pytest.mark.parametrize(
    ("statement", "asked"),
    [
        ("SELECT pg_terminate_backend(pg_backend_pid(), 5000)", 2),
        ("SELECT * FROM no_such_table", 1),
        ("SET ROLE pg_monitor; SELECT * FROM orders", 1),
    ],
)
async def test_what_a_restart_does_not_mend_is_said_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, statement: str, asked: int
) -> None:
    monkeypatch.setattr("kurisu.store.patience.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("kurisu.store.patience.DATABASE_ATTEMPTS", 2)
    calls = 0

    async def call(by: str) -> None:
        nonlocal calls
        calls += 1
        async with transaction(store.database) as connection:
            for part in by.split("; "):
                await connection.execute(text(part))

    with pytest.raises(DatabaseError):
        await patiently(call, statement)
    assert calls == asked
