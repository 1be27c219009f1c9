"""`kurisu stream`: live trades and candles into the database."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from kurisu.cli.command import Session, TimeframeOption, command
from kurisu.cli.output import safe, to_json
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.ingest.live.events import StreamEvent
    from kurisu.ingest.live.options import StreamRequest


def add_to(app: typer.Typer) -> None:
    """Make `stream` a command of `app`."""

    @command(app, "stream")
    async def stream(
        session: Session,
        markets: Annotated[
            list[str],
            typer.Argument(
                metavar="MARKET",
                help="An exchange and its markets, any number of times: binance BTC/USDT ETH/USDT "
                "bitfinex BTC/USD; or whole names: binance:BTC/USDT bitfinex:BTC/USD.",
                show_default=False,
            ),
        ],
        candles: Annotated[
            bool, typer.Option("--candles", help="Candles; without --trades only candles.")
        ] = False,
        trades: Annotated[
            bool, typer.Option("--trades", help="Trades; without --candles only trades.")
        ] = False,
        timeframe: TimeframeOption = "1m",
        buffer: Annotated[
            int | None,
            typer.Option(
                metavar="ROWS", min=1, show_default=False,
                help="Rows kept in memory at most while the database is away (500,000). Then "
                "nothing more is read, and REST is asked for the rest once it is back.",
            ),
        ] = None,
        max_gap: Annotated[
            float,
            typer.Option(
                metavar="DAYS", min=0,
                help="What was missed longer ago than this is left to a backfill.",
            ),
        ] = 7.0,
        status_every: Annotated[
            float, typer.Option(metavar="SECONDS", min=0, help="Between status lines; 0 for none.")
        ] = 10.0,
    ) -> None:  # fmt: skip
        """Store live trades and candles until Ctrl-C.

        Without --candles and --trades both. What was missed while it did not run, or while a
        connection was lost, is asked from REST. Lines say what happens: on stdout as JSON with
        --json, else on stderr.
        """
        from kurisu.ingest.collector import quiet_collector
        from kurisu.ingest.live import options as live
        from kurisu.ingest.live.stream import stream as run_stream

        both = candles == trades
        options = live.StreamOptions(
            trades=trades or both,
            candles=candles or both,
            timeframe=timeframe,
            required=not both,
            buffer_rows=live.BUFFER_ROWS if buffer is None else buffer,
            max_gap=timedelta(days=max_gap),
            status_s=status_every,
        )
        requests = parse(markets)

        def say(event: StreamEvent) -> None:
            if event.event == "connected":
                # What CCXT keeps is loaded by now.
                quiet_collector()
            if session.json:
                print(to_json(event.as_dict(), indent=None), flush=True)
            else:
                print(safe(_line(event)), file=sys.stderr, flush=True)

        async with session.open() as store:
            await run_stream(store, requests, options, say)


def parse(words: Sequence[str]) -> list[StreamRequest]:
    """What the arguments name: an exchange is a word without a slash, and what follows is its.

    Raises InvalidArgument.
    """
    from kurisu.domain.market import MarketName, check_exchange
    from kurisu.ingest.live.options import StreamRequest

    found: list[StreamRequest] = []
    current: str | None = None
    for word in words:
        head, slash, _ = word.partition("/")
        if not slash:
            check_exchange(word)
            current = word
            found.append(StreamRequest(word, []))
            continue
        if ":" in head:
            name = MarketName.parse(word)
        elif current is None:
            raise InvalidArgument(
                f"{word} is a market of which exchange? Write it in front (binance {word}), or as "
                f"one word (binance:{word})."
            )
        else:
            name = MarketName.of(current, word)
        found.append(StreamRequest(name.exchange, [name.symbol]))
    named = {request.exchange for request in found if request.symbols}
    for request in found:
        if request.exchange not in named:
            raise InvalidArgument(f"no market of {request.exchange} is named, e.g. BTC/USDT")
    return found


def _line(event: StreamEvent) -> str:
    whom = event.market or event.exchange
    return f"{event.at:%H:%M:%S} {event.event:<14} {f'{whom}: ' if whom else ''}{event.text}"
