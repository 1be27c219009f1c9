"""The example of docs/orders.md runs, and prints what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["plain"])
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_example_runs_and_prints_what_the_page_says(url: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "orders.md").read_text(encoding="utf-8")
    code, expected = (
        re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[0]
        for language in ("python", "text")
    )
    kept = {key: value for key, value in os.environ.items() if not key.startswith("KURISU_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**kept, "KURISU_DATABASE_URL": url, "PYTHONPATH": str(ROOT / "src")}, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == expected
