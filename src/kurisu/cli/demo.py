"""`kurisu demo`: the whole way once, on a day of real candles that ships with Kurisu."""

from __future__ import annotations

import typer

from kurisu.cli.command import Session, command

MARKET = "binance:PEPE/USDT"

NEXT = """\
That was one day. What to do now, with a live exchange:
  kurisu markets sync binance                             its markets and their rules
  kurisu candles backfill binance BTC/USDT --since 2026-01-01
                                                          history; goes on where it was stopped
  kurisu stream binance BTC/USDT ETH/USDT                 live, and what was missed meanwhile
  kurisu candles gaps --market binance:BTC/USDT           what is missing, and why
With your own files, and further on:
  kurisu candles import FILE --market binance:BTC/USDT
  kurisu candles show --market {market} --timeframe 15m --chart
  kurisu candles export --market {market} --timeframe 1h --output pepe.parquet
  export KURISU_DATABASE_URL=postgresql://user:password@host/database, then kurisu db upgrade
                                                          a PostgreSQL or TimescaleDB of your own
In Python:
  async with kurisu.open() as store:
      market = await store.markets.get("binance", "PEPE/USDT")
      frame = (await store.candles.read(market, "1h")).to_polars()
"""


def add_to(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    command(app, "demo")(demo)


async def demo(session: Session) -> int:
    """Import a day of real candles, look at it and check it; in the embedded server.

    Uses the database of KURISU_DATABASE_URL only if --database names it. Twice does no harm.
    """
    from kurisu import api, config
    from kurisu.cli.candles import candle_table, draw, gaps_text, verify_text
    from kurisu.cli.candles_import import WORDING
    from kurisu.cli.db import status_text
    from kurisu.cli.file_import import report_text
    from kurisu.domain.market import MarketName
    from kurisu.domain.timeframe import BASE
    from kurisu.ingest.candle_import import import_file
    from kurisu.sample import candle_file
    from kurisu.server import Cluster, data_home
    from kurisu.store import store as stores

    def step(title: str) -> None:
        if not session.json:
            print(f"\n== {title}")

    def say(text: str) -> None:
        if not session.json:
            print(text)

    url = session.database
    if url is None:
        step("the embedded server")
        server = Cluster()
        status = server.start()
        url = server.url
        say(f"PostgreSQL {status.version} runs, its data is in {status.data_dir}")
    step("kurisu db upgrade")
    done = await stores.upgrade(url, config.load(data_home()))
    say("\n".join(done) or "the database is up to date")
    async with api.open(url) as store:
        with candle_file() as path:
            step(f"kurisu candles import {path.name} --market {MARKET}")
            report = await import_file(
                store, path, MarketName.parse(MARKET), working=session.working
            )
        say(report_text(report, WORDING))
        name = MarketName.parse(MARKET)
        market = await store.markets.get(name.exchange, name.symbol)
        for timeframe in ("1d", "1h"):
            step(f"kurisu candles show --market {MARKET} --timeframe {timeframe} --chart")
            bars = list((await store.candles.read(market, timeframe)).candles())
            say(candle_table(bars))
        say("\n" + draw(bars))
        step(f"kurisu candles gaps --market {MARKET}")
        gaps = await store.candles.gaps(market)
        say(gaps_text(gaps, {"missing": sum(gap.bars for gap in gaps)}, BASE))
        step(f"kurisu candles verify --market {MARKET}")
        verified = await store.candles.verify([market])
        say(verify_text(verified))
        step("kurisu db status")
        found = await store.db.status()
        shown = store.database.url.set(drivername="postgresql", query={})
        say(status_text(found, shown.render_as_string(hide_password=True)))
    say("\n" + NEXT.format(market=MARKET))
    session.result({"import": report.as_dict(), "verified": verified.ok, "status": found}, "")
    return 0 if verified.ok else 1
