"""CCXT's errors and HTTP's, translated once into Kurisu's; and which of them pass by themselves.

The HTTP status goes first where it is clear: CCXT's bitfinex raises a plain ExchangeError for a
429, and a response that is cut in the middle is one, too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from kurisu.errors import (
    BadAnswer,
    BadSymbol,
    ExchangeError,
    ExchangeRefused,
    ExchangeUnavailable,
    InMaintenance,
    NotOffered,
    RateLimited,
)
from kurisu.exchange.exact import BODY_CHARACTERS, BrokenAnswer, Reply, reply_of

#: The same request will get the same answer. 451: not served in this country.
_FINAL_STATUS: Final = frozenset({400, 401, 404, 405, 410, 422, 451})
#: Binance's answer to those who go on after a 429.
_BANNED: Final = 418
_LIMIT_STATUS: Final = frozenset({_BANNED, 429})
_FORBIDDEN: Final = 403
_SERVER_ERROR: Final = 500
_TOKEN: Final = re.compile(r"(token=)[^&\s]+")


@dataclass(frozen=True, slots=True)
class Failure:
    """error: what to raise. passes: asking again may help. banned: going on makes it worse."""

    error: ExchangeError
    passes: bool
    banned: bool = False


def translate(
    exchange: str, error: Exception, secrets: Collection[str] = (), now: datetime | None = None
) -> Failure:
    """What an error of CCXT means. secrets: text that must not appear in a message."""
    import ccxt

    if isinstance(error, ExchangeError):
        return Failure(error, passes=isinstance(error, ExchangeUnavailable))
    reply = reply_of(error) or Reply()
    text = _message(error, reply, secrets)
    if reply.status in _LIMIT_STATUS or isinstance(error, ccxt.DDoSProtection):
        wait_s = retry_after_s(reply.header("retry-after"), now)
        limited = RateLimited(exchange, f"too many requests ({text})", wait_s)
        return Failure(limited, passes=True, banned=reply.status == _BANNED)
    # A page that forbids is of what stands in front of the exchange, and not the exchange's.
    is_page = reply.status == _FORBIDDEN and reply.body.lstrip().startswith("<")
    if is_page or (isinstance(error, BrokenAnswer) and reply.status not in _FINAL_STATUS):
        return Failure(BadAnswer(exchange, text), passes=True)
    if isinstance(error, ccxt.OnMaintenance):
        return Failure(InMaintenance(exchange, text), passes=True)
    if isinstance(error, ccxt.BadSymbol):
        return Failure(BadSymbol(exchange, text), passes=False)
    if isinstance(error, ccxt.NotSupported):
        return Failure(NotOffered(exchange, text), passes=False)
    if isinstance(error, (ccxt.AuthenticationError, ccxt.ArgumentsRequired, ccxt.BadRequest)):
        return Failure(ExchangeRefused(exchange, text), passes=False)
    if reply.status in _FINAL_STATUS:
        return Failure(ExchangeRefused(exchange, text), passes=False)
    if isinstance(error, (ccxt.NetworkError, ccxt.OperationFailed, asyncio.TimeoutError, OSError)):
        return Failure(ExchangeUnavailable(exchange, text), passes=True)
    if (reply.status or 0) >= _SERVER_ERROR or _is_of_connection(error):
        return Failure(ExchangeUnavailable(exchange, text), passes=True)
    if isinstance(error, ccxt.BaseError):
        return Failure(ExchangeRefused(exchange, text), passes=False)
    # CCXT stumbled over the answer: a list where it expected an object, a field that is not there.
    return Failure(BadAnswer(exchange, f"not what was expected ({text})"), passes=True)


def retry_after_s(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds to wait by a Retry-After header, which is seconds or a date; None if it has none."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    if at.tzinfo is None:
        return None
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())


def _is_of_connection(error: BaseException) -> bool:
    """aiohttp's errors come wrapped: a body that ends early is an ExchangeError of CCXT."""
    import aiohttp

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientError):
            return True
        cause = cause.__cause__
    return False


def _message(error: Any, reply: Reply, secrets: Collection[str]) -> str:
    text = " ".join(str(error).split())
    cause = error.__cause__
    if cause is not None:
        text = f"{text}: {type(cause).__name__} {cause}".strip()
    # Requests are signed in their address; some streams are opened with a token in it.
    text = _TOKEN.sub(r"\1***", text.split("signature=", 1)[0])
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = text[: 2 * BODY_CHARACTERS] or type(error).__name__
    return text if reply.status is None else f"{text} [HTTP {reply.status}]"
