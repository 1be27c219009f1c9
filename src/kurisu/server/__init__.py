"""The embedded PostgreSQL: one private cluster per home, started when it is needed.

In: a home directory (`KURISU_HOME`, else the user's data directory) and whatever PostgreSQL
binaries this machine has. Out: a running server that listens on a private Unix socket only,
and its URL. Everything here is synchronous; asyncio callers use `asyncio.to_thread`.

The server outlives the process that started it and is shared by every Kurisu process of the
same home. `Cluster(home).start()` is what each command calls: it returns at once when the
server already answers.
"""

from kurisu.server.cluster import Cluster, ClusterStatus
from kurisu.server.home import data_home

__all__ = ["Cluster", "ClusterStatus", "data_home"]
