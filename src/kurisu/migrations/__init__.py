"""Alembic migrations, in the order of the design document's plan; `kurisu db upgrade` runs them.

A migration is frozen: it spells its own SQL and imports no model. Everything that depends on the
engine beyond `create_hypertable` (continuous aggregates, compression, policies) is not here but
in `kurisu.store.layout`, which converges after every upgrade, because the engine under a
database can change without a change of schema.
"""

from typing import Final

#: Advisory lock: one migration at a time per database. The number is arbitrary, but must never
#: change.
ADVISORY_LOCK: Final = 7_295_412_201
