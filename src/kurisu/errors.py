"""The whole tree of Kurisu's exceptions.

    KurisuError
    ├── ConfigError             kurisu.toml or an environment variable cannot be used
    ├── ServerError             the embedded PostgreSQL could not be started, stopped or found
    ├── DatabaseError           the database said no, or is not fit for Kurisu
    │   ├── EngineRefused       a server that Kurisu does not run on, or not safely
    │   ├── MigrationNeeded     the schema is older or newer than this program
    │   └── WriteRefused        a guard in the database refused rows
    ├── NotFound                a market, account or strategy that is not there
    ├── InvalidArgument         a value that a caller passed cannot be used
    │   └── OrderBreaksRule     an order that its market would not take, with every rule it breaks
    ├── UnreadableFile          a file that cannot be read at all
    ├── LedgerRuleBroken        a value or a call that breaks a rule of the ledger
    ├── ExchangeError           an exchange could not be asked, or said no
    │   ├── ExchangeUnavailable no usable answer, after every retry: try again later
    │   │   ├── RateLimited     too many requests; it says for how long to wait
    │   │   ├── InMaintenance   it says that it is being maintained
    │   │   ├── BadAnswer       what came back is no answer: HTML, cut JSON, rows without a time
    │   │   └── OrderOutcomeUnknown  an order was sent, and no answer says what became of it
    │   ├── IndistinctTrades    more trades at one time than it gives at once
    │   ├── BadSymbol           the exchange does not list that market
    │   ├── ExchangeRefused     it understood and said no: credentials, permission, parameters
    │   │   └── OrderRejected   an order that is surely not there
    │   │       ├── InsufficientFunds      the account has too little for it
    │   │       └── DuplicateClientOrderId its client id is that of an order that is there
    │   └── NotOffered          neither the exchange nor CCXT has that: timeframe, history
    ├── IdSpaceConflict         trades whose ids are of another kind than the stored ones
    └── RetentionConflict       rows older than a retention policy that the user has set

Faults in data (one row of a file, one candle) are not exceptions: they are values of
`kurisu.domain.faults`, so that one run reports all of them.
"""

from collections.abc import Mapping


class KurisuError(Exception):
    """Anything that Kurisu refuses or fails at; its text says what to do about it."""


class ConfigError(KurisuError):
    """kurisu.toml or an environment variable cannot be used."""


class ServerError(KurisuError):
    """The embedded PostgreSQL could not be started, stopped or found."""


class DatabaseError(KurisuError):
    """The database said no, or is not fit for Kurisu."""


class EngineRefused(DatabaseError):
    """A server that Kurisu does not run on, or not safely."""


class MigrationNeeded(DatabaseError):
    """The schema is older or newer than this program."""


class WriteRefused(DatabaseError):
    """A guard in the database refused rows."""


class NotFound(KurisuError):
    """A market, account or strategy that is not there."""


class InvalidArgument(KurisuError, ValueError):
    """A value that a caller passed cannot be used."""


class OrderBreaksRule(InvalidArgument):
    """An order that its market would not take as it is; nothing was stored or sent.

    rules: every rule that it breaks, in snake case, e.g. "amount_step".
    """

    def __init__(self, market: str, faults: Mapping[str, str]) -> None:
        super().__init__(
            f"{market} does not take this order: "
            + "; ".join(f"{detail} [{rule}]" for rule, detail in faults.items())
        )
        self.market = market
        self.rules = tuple(faults)


class UnreadableFile(KurisuError):
    """A file that cannot be read at all; nothing of it was stored."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class LedgerRuleBroken(KurisuError):
    """A value or a call that breaks a rule of the ledger; nothing was applied.

    rule: the broken rule in snake case, e.g. "filled_within_amount".
    detail: what broke it, with the numbers.
    """

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


class IdSpaceConflict(KurisuError):
    """Trades whose ids are of another kind than those that the market holds; nothing was stored.

    market: its name. stored, given: what kind: raw, aggregate or derived.
    """

    def __init__(self, market: str, stored: str, given: str) -> None:
        super().__init__(
            f"{market} holds trades with {stored} ids, and these have {given} ids. Ids of two "
            "kinds cannot be compared, so a market holds one kind, and nothing was stored. Take "
            f"trades with {stored} ids, or keep these under an exchange name of their own."
        )
        self.market = market
        self.stored = stored
        self.given = given


class RetentionConflict(KurisuError):
    """Rows older than a retention policy that the user has set; nothing was stored."""


class ExchangeError(KurisuError):
    """An exchange could not be asked, or said no. exchange: its name, e.g. "binance"."""

    def __init__(self, exchange: str, reason: str) -> None:
        super().__init__(f"{exchange}: {reason}")
        self.exchange = exchange
        self.reason = reason


class ExchangeUnavailable(ExchangeError):
    """No usable answer, after every retry. Nothing is lost: the same call can be made later."""


class RateLimited(ExchangeUnavailable):
    """Too many requests. retry_after_s: how long to wait, in seconds; None if it does not say."""

    def __init__(self, exchange: str, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(exchange, reason)
        self.retry_after_s = retry_after_s


class InMaintenance(ExchangeUnavailable):
    """The exchange says that it is being maintained."""


class BadAnswer(ExchangeUnavailable):
    """What came back is no answer: HTML, JSON that ends in the middle, rows without a time."""


class OrderOutcomeUnknown(ExchangeUnavailable):
    """An order (or its cancel) was sent, and no answer says what became of it.

    It must not be sent again: the exchange has to be asked for its client id.
    """


class IndistinctTrades(ExchangeError):
    """More trades at one time than a request gives, and nothing but the time to page by.

    time_ms, until_ms: that time, in milliseconds since 1970: [time_ms, until_ms).
    """

    def __init__(
        self, exchange: str, reason: str, time_ms: int, until_ms: int | None = None
    ) -> None:
        super().__init__(exchange, reason)
        self.time_ms = time_ms
        self.until_ms = time_ms + 1 if until_ms is None else until_ms


class BadSymbol(ExchangeError):
    """The exchange does not list that market, or no longer."""


class ExchangeRefused(ExchangeError):
    """The exchange understood the request and said no: credentials, permission, parameters."""


class OrderRejected(ExchangeRefused):
    """An order that is surely not at the exchange: refused there, or never sent."""


class InsufficientFunds(OrderRejected):
    """The account has too little for the order."""


class DuplicateClientOrderId(OrderRejected):
    """The order's client id is that of an order that is there already."""


class NotOffered(ExchangeError):
    """Neither the exchange nor CCXT has that: a timeframe, a history, an exchange's name."""
