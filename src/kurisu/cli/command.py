"""What every command shares: its options, how its function is run, and how it speaks."""

from __future__ import annotations

import contextlib
import functools
import inspect
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, TypeVar

import typer

from kurisu.cli.output import safe, to_json
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.domain.market import MarketName
    from kurisu.store.markets import Market
    from kurisu.store.store import Store

T = TypeVar("T")

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help="The database to use; else KURISU_DATABASE_URL, else the embedded server.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout; errors are JSON on stderr.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")
]
MarketOption = Annotated[
    str, typer.Option("--market", metavar="EXCHANGE:SYMBOL", help="E.g. binance:BTC/USDT.")
]
OneMarketArgument = Annotated[
    str | None,
    typer.Argument(metavar="MARKET", help="E.g. binance:BTC/USDT.", show_default=False),
]
OneMarketOption = Annotated[
    str | None,
    typer.Option(
        "--market",
        metavar="EXCHANGE:SYMBOL",
        help="The same, as other commands have it.",
        show_default=False,
    ),
]
ManyMarketsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MARKET...", help="E.g. binance:BTC/USDT; all if not given.", show_default=False
    ),
]
ManyMarketsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--market",
        metavar="EXCHANGE:SYMBOL",
        help="The same, as other commands have it; may be given more than once.",
        show_default=False,
    ),
]
OneExchangeOption = Annotated[
    str | None,
    typer.Option(
        "--exchange", metavar="NAME", help="All markets of this exchange.", show_default=False
    ),
]
ExchangeArgument = Annotated[
    str, typer.Argument(metavar="EXCHANGE", help="CCXT's id, or a name in kurisu.toml.")
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="First open time: a date, an ISO time (UTC if it names no zone), or an epoch.",
        show_default=False,
    ),
]
TradesSinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        help="First time: a date, an ISO time (UTC if it names no zone), or an epoch.",
        show_default=False,
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="End, exclusive; written like --since.", show_default=False),
]
TimeframeOption = Annotated[
    str, typer.Option("--timeframe", metavar="TIMEFRAME", help="1m, 5m, 15m, 1h, 4h, 1d, 1w, 1M.")
]
AllowExpiringOption = Annotated[
    bool,
    typer.Option(
        "--allow-expiring",
        help="Store what is older than the retention you have set all the same.",
    ),
]


class Interrupted(BaseException):
    """A signal other than Ctrl-C asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class ReaderGone(Exception):
    """Nobody reads our output any more."""


@dataclass(slots=True)
class Session:
    """What the options say that every command has.

    database: the URL given; None for KURISU_DATABASE_URL or the embedded server.
    json: machine output. verbose: tracebacks.
    """

    database: str | None = None
    json: bool = False
    verbose: bool = False

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        """The store that the options name."""
        from kurisu import api

        async with api.open(self.database) as store:
            yield store

    def result(self, data: Any, text: str | Callable[[], str]) -> None:
        """Print a command's result: `data` with --json, else `text`, whose lines are safe."""
        if self.json:
            print(to_json(data))
            return
        shown = text if isinstance(text, str) else text()
        if shown:
            print(shown)

    def note(self, text: str) -> None:
        """Something beside the result, on stderr."""
        print(safe(text), file=sys.stderr)

    @contextlib.contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A spinner on stderr while something takes long, if somebody is watching."""
        if self.json or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status(Text(safe(what))):
            yield


def command(
    app: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, ...], Any]], Callable[..., None]]:
    """Make a function a command of `app`, with the options that every command has.

    The function gets a `Session` first and then its own parameters; it may be a coroutine. It
    returns an exit code, or None for 0.
    """

    def decorate(function: Callable[Concatenate[Session, ...], Any]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(
            ctx: typer.Context,
            *,
            database: str | None,
            as_json: bool,
            verbose: bool,
            **arguments: Any,
        ) -> None:
            session: Session = ctx.obj
            # Each may stand before the command as well as after it.
            session.database = database or session.database
            session.json |= as_json
            session.verbose |= verbose
            try:
                found = function(session, **arguments)
                code = run_coroutine(found) if inspect.iscoroutine(found) else found
                sys.stdout.flush()
            except BrokenPipeError as error:
                # Typer has an answer of its own to this one, which hides the command's.
                raise ReaderGone from error
            if code:
                raise typer.Exit(code)

        own = inspect.signature(function, eval_str=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        extra = [
            inspect.Parameter(name, keyword, default=default, annotation=annotation)
            for name, default, annotation in (
                ("database", None, DatabaseOption),
                ("as_json", False, JsonOption),
                ("verbose", False, VerboseOption),
            )
        ]
        context = inspect.Parameter(
            "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        mine = [p.replace(kind=keyword) for p in list(own.parameters.values())[1:]]
        run.__signature__ = own.replace(  # type: ignore[attr-defined]  # what Typer reads
            parameters=[context, *mine, *extra], return_annotation=None
        )
        app.command(name)(run)
        return run

    return decorate


def run_coroutine(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; Ctrl-C and SIGTERM cancel it, so that it ends what it holds open first."""
    import asyncio  # a third of the start-up time, and `--help` needs none

    received: list[int] = []

    async def main() -> T:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def cancel(number: int) -> None:
            received.append(number)
            if task is not None:
                task.cancel()

        # asyncio does the same for SIGINT by itself.
        loop.add_signal_handler(signal.SIGTERM, cancel, signal.SIGTERM)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise


def parse_time(text: str | None, option: str) -> datetime | None:
    """The time that an option gives. Raises InvalidArgument."""
    if text is None:
        return None
    from kurisu.domain.faults import Rule
    from kurisu.ingest.files.times import read_time

    found = read_time(text)
    if isinstance(found, Rule):
        with contextlib.suppress(ValueError):
            # A file's row of 1970 is a fault; here it is a way to say "from the beginning".
            early = datetime.fromisoformat(text.strip())
            if early.replace(tzinfo=UTC) <= _EPOCH:
                return _EPOCH
        raise InvalidArgument(
            f"{option} {text!r} is not a time: write a date (2024-10-27), an ISO time "
            "(2024-10-27T08:00, UTC if it names no zone) or an epoch in s or ms."
        )
    return _EPOCH + timedelta(microseconds=found)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def parse_range(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """What --since and --until say. Raises InvalidArgument."""
    first, end = parse_time(since, "--since"), parse_time(until, "--until")
    if first is not None and end is not None and first >= end:
        raise InvalidArgument(f"--since {since} is not before --until {until}")
    return first, end


def exchange_and_symbols(exchange: str, symbols: Sequence[str] | None) -> tuple[str, list[str]]:
    """What an EXCHANGE and its SYMBOLs say, also where a market is one word: binance:BTC/USDT."""
    name, colon, first = exchange.partition(":")
    found = [first] if colon else []
    return name, [*found, *(symbol.removeprefix(f"{name}:") for symbol in symbols or ())]


def one_market(argument: str | None, option: str | None) -> MarketName:
    """The one market that is named, as argument or as option. Raises InvalidArgument."""
    from kurisu.domain.market import MarketName

    if (argument is None) == (option is None):
        raise InvalidArgument("name one market, e.g. binance:BTC/USDT.")
    return MarketName.parse(argument or option or "")


async def find_market(store: Store, name: str | MarketName) -> Market:
    """The market of that name. Raises InvalidArgument, NotFound."""
    from kurisu.domain.market import MarketName

    parsed = MarketName.parse(name) if isinstance(name, str) else name
    return await store.markets.get(parsed.exchange, parsed.symbol)


async def find_markets(
    store: Store,
    names: Sequence[str] | None,
    more: Sequence[str] | None = None,
    exchange: str | None = None,
) -> list[Market]:
    """The markets that are named, each once; else all of `exchange`, or of every exchange.

    Raises InvalidArgument if both are given, NotFound.
    """
    wanted = [*(names or ()), *(more or ())]
    if wanted and exchange:
        raise InvalidArgument("name markets or --exchange, not both")
    if wanted:
        return [await find_market(store, name) for name in dict.fromkeys(wanted)]
    return await store.markets.list(exchange)
