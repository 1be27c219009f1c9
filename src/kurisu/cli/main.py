"""The program `kurisu`: its groups of commands, and what becomes of errors and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Annotated, Any, Final, NoReturn

import typer

from kurisu import __version__
from kurisu.cli import (
    account,
    candles,
    candles_backfill,
    candles_import,
    candles_repair,
    db,
    demo,
    ledger,
    ledger_sync,
    markets,
    server,
    streaming,
    trades,
    worker,
)
from kurisu.cli.command import (
    DatabaseOption,
    Interrupted,
    JsonOption,
    ReaderGone,
    Session,
    VerboseOption,
)
from kurisu.cli.output import safe, to_json
from kurisu.errors import InvalidArgument, KurisuError, UnreadableFile

#: What a shell reports for a program that a signal ended: 128 + its number.
SIGNALLED: Final = 128
FAILED: Final = 1
WRONG_USE: Final = 2

app = typer.Typer(
    help="Exact crypto market data on PostgreSQL and TimescaleDB.",
    # Rich's help costs half of the start-up time.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group, name in (
    (server.app, "server"),
    (db.app, "db"),
    (markets.app, "markets"),
    (candles.app, "candles"),
    (trades.app, "trades"),
    (account.app, "account"),
    (ledger.app, "ledger"),
):
    app.add_typer(group, name=name)
candles_import.add_to(candles.app)
ledger_sync.add_to(ledger.app)
candles_backfill.add_to(candles.app)
candles_repair.add_to(candles.app)
streaming.add_to(app)
worker.add_to(app)
demo.add_to(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"kurisu {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    version: Annotated[  # noqa: ARG001  # its callback does the work
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    ctx.obj = Session(database, as_json, verbose)


def run() -> NoReturn:
    """The entry point: runs a command and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not an exception.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = execute(sys.argv[1:])
    _flush()
    if code > SIGNALLED:
        # At once: a thread in the middle of a file would be waited for.
        os._exit(code)
    sys.exit(code)


def execute(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit code.

    0 done; 1 failed; 2 wrong use, or a file that cannot be read; 130 and 143 after Ctrl-C and
    SIGTERM; 141 when whoever read our output has gone.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = arguments[:end]
    is_verbose = "--verbose" in options or "-v" in options
    return _run(arguments, as_json="--json" in options, is_verbose=is_verbose)


def _run(given: Sequence[str], *, as_json: bool, is_verbose: bool) -> int:
    try:
        with _signals():
            code: Any = app(args=list(given), prog_name="kurisu", standalone_mode=False)
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
    except (ReaderGone, BrokenPipeError):
        return SIGNALLED + signal.SIGPIPE
    except Interrupted as interrupted:
        return SIGNALLED + interrupted.number
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    except typer.TyperException as error:
        _report(error, as_json=as_json)
        return error.exit_code
    except KurisuError as error:
        _report(error, as_json=as_json, is_verbose=is_verbose)
        return WRONG_USE if isinstance(error, UnreadableFile | InvalidArgument) else FAILED
    except Exception as error:
        _report(error, as_json=as_json, is_verbose=is_verbose)
        return FAILED


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    def interrupt(number: int, _frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    # Not one that our parent has switched off (nohup).
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _report(error: Exception, *, as_json: bool, is_verbose: bool = False) -> None:
    if is_verbose:
        traceback.print_exception(error)
    kind = type(error).__name__
    if isinstance(error, typer.TyperException):
        message = error.format_message()
    elif isinstance(error, KurisuError):
        message = str(error)
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        message = f"{where}{error.strerror}"
    else:
        message = f"internal error, {kind}: {error}" + ("" if is_verbose else " (-v shows where)")
    if as_json:
        text = to_json({"error": kind, "message": message})
    elif kind == "NoArgsIsHelpError":
        text = message
    else:
        text = f"kurisu: {safe(message)}"
        context = getattr(error, "ctx", None)
        if context is not None:
            text += f"\nSee: {context.command_path} --help"
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)


def _flush() -> None:
    """Write out what is left. Where that fails it was said already, and the interpreter, which
    tries once more at its end, must not complain again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    run()
