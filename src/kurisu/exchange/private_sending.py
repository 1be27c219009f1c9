"""An order on its way out: what its request has to carry, and what a failure says about it.

CCXT cuts amounts to the market's step, rounds prices, and on some paths goes through a float. So
the request that it made is looked at before it leaves: what does not carry the order digit for
digit is not sent. After it has left, a failure is sure or it is not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from kurisu.domain.money import parse_decimal, plain
from kurisu.errors import (
    DuplicateClientOrderId,
    ExchangeError,
    InsufficientFunds,
    OrderOutcomeUnknown,
    OrderRejected,
)
from kurisu.exchange.exact import reply_of
from kurisu.exchange.translate import translate

#: How long an order may wait for the rate limit. Whoever looks for an order of unknown fate takes
#: it for absent after a while, and relies on it that it is not sent after that.
QUEUED_S: Final = 5.0
#: HTTP statuses that mean: refused before anything was done with it.
_NOT_DONE: Final = frozenset({401, 403, 404, 405, 418, 422, 429, 451})


@dataclass(slots=True)
class Outgoing:
    """What the request that is about to be made has to carry, and whether it was sent.

    deadline_s: by the monotonic clock; from then on it is not sent any more. None for none.
    """

    client_order_id: str
    numbers: Mapping[str, Decimal] = field(default_factory=dict)
    deadline_s: float | None = None
    is_sent: bool = False


#: Of the request that is being made in this task.
outgoing_now: ContextVar[Outgoing | None] = ContextVar("outgoing", default=None)


def failure_of(
    exchange: str, error: Exception, outgoing: Outgoing, secrets: Collection[str]
) -> ExchangeError:
    """What is known of an order whose request ended in `error`."""
    import ccxt

    if isinstance(error, ExchangeError):
        return error
    reason = translate(exchange, error, secrets).error.reason
    what = f"order {outgoing.client_order_id}: {reason}"
    if not outgoing.is_sent or _never_connected(error):
        return OrderRejected(exchange, f"{what}; it was not sent")
    reply = reply_of(error)
    status = None if reply is None else reply.status
    if isinstance(error, ccxt.InsufficientFunds):
        return InsufficientFunds(exchange, what)
    if isinstance(error, ccxt.DuplicateOrderId) or (
        isinstance(error, ccxt.ExchangeError) and "duplicate" in reason.lower()
    ):
        return DuplicateClientOrderId(exchange, what)
    refusals = (
        ccxt.InvalidOrder, ccxt.BadRequest, ccxt.AuthenticationError, ccxt.OperationRejected,
        ccxt.ArgumentsRequired, ccxt.NotSupported, ccxt.InvalidNonce, ccxt.RateLimitExceeded,
    )  # fmt: skip
    if isinstance(error, refusals) or status in _NOT_DONE:
        return OrderRejected(exchange, what)
    return OrderOutcomeUnknown(exchange, what)


def check_request(exchange: str, outgoing: Outgoing, url: str, body: Any) -> None:
    """Raises OrderRejected unless the request has our id and every number, digit for digit, and
    is not too late."""
    if outgoing.deadline_s is not None and time.monotonic() > outgoing.deadline_s:
        raise OrderRejected(
            exchange,
            f"order {outgoing.client_order_id} waited for its turn for longer than {QUEUED_S:g} s; "
            "it was not sent",
        )
    leaves = list(_leaves(url, body))
    wanted = outgoing.client_order_id
    if not any(wanted in leaf for leaf in leaves):
        raise OrderRejected(
            exchange, f"the request that CCXT made does not carry the id {wanted}; it was not sent"
        )
    for name, number in outgoing.numbers.items():
        if not any(_spells(leaf, number) for leaf in leaves):
            raise OrderRejected(
                exchange,
                f"the request that CCXT made for order {wanted} does not carry the {name} "
                f"{plain(number)} as it is; it was not sent",
            )


def _spells(text: str, number: Decimal) -> bool:
    """True if `text` is that number, without an exponent; contracts are signed on some venues."""
    if "e" in text.lower():
        return False
    found = parse_decimal(text)
    return found is not None and found.is_finite() and found.copy_abs() == number


def _leaves(url: str, body: Any) -> Iterator[str]:
    """Every value of a request, as text."""
    parts = urlsplit(url)
    yield from parts.path.split("/")
    yield from (value for _, value in parse_qsl(parts.query))
    if isinstance(body, bytes):
        body = body.decode()
    if not isinstance(body, str) or not body:
        return
    if body[0] in "{[":
        yield from _values(json.loads(body, parse_float=str, parse_int=str))
    else:
        yield from (value for _, value in parse_qsl(body))


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _values(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner)
    elif value is not None:
        yield str(value)


def _never_connected(error: BaseException) -> bool:
    """True if there was no connection to send anything through."""
    import aiohttp

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
