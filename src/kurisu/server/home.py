"""Where Kurisu keeps its data: the database cluster, and `kurisu.toml` if there is one."""

import os
from pathlib import Path

import platformdirs


def data_home() -> Path:
    """The absolute path of `KURISU_HOME`, else of the user's data directory.

    Nothing is created. An empty `KURISU_HOME` counts as unset, as a shell's `KURISU_HOME= cmd`
    means it.
    """
    chosen = os.environ.get("KURISU_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return platformdirs.user_data_path("kurisu", appauthor=False)
