"""Faults on demand: what to get wrong, for which requests, and how often."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Fault(StrEnum):
    """What a server does instead of answering properly."""

    STATUS = "status"  # an HTTP error, with its body and Retry-After
    STATUS_AFTER = "status_after"  # an HTTP error, although what was asked for was done
    TIMEOUT = "timeout"  # no answer for `seconds`, although what was asked for was done
    LOST = "lost"  # no answer for `seconds`, and nothing was done
    CUT = "cut"  # the connection is cut before the answer
    CUT_BODY = "cut_body"  # the connection is cut in the middle of the answer
    TRUNCATED_JSON = "truncated_json"  # 200, but the JSON ends in the middle
    HTML = "html"  # 200, but a page for people
    NOT_A_NUMBER = "not_a_number"  # 200, but a number is NaN
    EMPTY = "empty"  # 200, no rows
    DUPLICATE_ROWS = "duplicate_rows"  # every third row twice
    OVERLAP = "overlap"  # rows from before what was asked for
    SHORT = "short"  # half of the rows


@dataclass(slots=True)
class Rule:
    """One fault for the next `times` requests whose path contains `path`.

    skip: matching requests that are answered properly first. query: has to match, too;
    it has "method" beside the parameters. present: a parameter that has to be there. status, body,
    retry_after: for STATUS and STATUS_AFTER (retry_after is the header's text). seconds: for
    TIMEOUT and LOST.
    """

    fault: Fault
    path: str = ""
    times: int = 1
    skip: int = 0
    query: Mapping[str, str] = field(default_factory=dict)
    present: str = ""
    status: int = 500
    body: str = ""
    retry_after: str | None = None
    seconds: float = 5.0
    hits: int = 0


class Faults:
    """The rules in force, first come first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.rules: list[Rule] = []

    def add(self, rule: Rule) -> Rule:
        with self._lock:
            self.rules.append(rule)
        return rule

    def clear(self) -> None:
        with self._lock:
            self.rules.clear()

    def take(self, path: str, query: Mapping[str, str]) -> Rule | None:
        """The rule that this request runs into, counted; None if it is to be answered."""
        with self._lock:
            for rule in self.rules:
                if rule.path not in path or rule.hits >= rule.times:
                    continue
                if rule.present and rule.present not in query:
                    continue
                if any(query.get(name) != wanted for name, wanted in rule.query.items()):
                    continue
                if rule.skip > 0:
                    rule.skip -= 1
                    continue
                rule.hits += 1
                return rule
        return None
