"""`kurisu account`: accounts at exchanges, and where their credentials are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from kurisu.cli.command import Session, command
from kurisu.cli.output import safe, table
from kurisu.errors import InvalidArgument

if TYPE_CHECKING:
    from kurisu.store.accounts import Account

app = typer.Typer(
    help="Accounts at exchanges: which environment variables hold their credentials.",
    no_args_is_help=True,
)


def _variable(option: str, what: str) -> Any:
    return typer.Option(
        option, metavar="VARIABLE", help=f"The NAME of the variable with the {what}.",
        show_default=False,
    )  # fmt: skip


@command(app, "add")
async def add(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="How you call it, e.g. main.")],
    exchange: Annotated[
        str,
        typer.Option(metavar="EXCHANGE", help="CCXT's id, or a section of kurisu.toml."),
    ],
    key_env: Annotated[str | None, _variable("--key-env", "API key")] = None,
    secret_env: Annotated[str | None, _variable("--secret-env", "API secret")] = None,
    password_env: Annotated[str | None, _variable("--password-env", "API passphrase")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VARIABLE",
            help="Any other credential by CCXT's name, e.g. uid=MY_UID. May be given repeatedly.",
            show_default=False,
        ),
    ] = None,
    wallet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A wallet to read, e.g. spot, linear, inverse, funding. May be given repeatedly; "
            "else the spot wallet and those of the contracts that are looked at.",
            show_default=False,
        ),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="A paper account: simulated, without credentials.")
    ] = False,
) -> None:
    """Add an account. Only the names of environment variables are stored, never a credential.

    The variables are read, and have to be set, when the account is used. Give the key no right to
    withdraw; reading needs no right to trade either. A paper account trades by the markets of its
    exchange, and at none.
    """
    from kurisu.trading.accounts import PAPER, WALLETS, check_credentials, check_wallets

    given = {"apiKey": key_env, "secret": secret_env, "password": password_env}
    credentials = {option: variable for option, variable in given.items() if variable is not None}
    for pair in env or ():
        option, equals, variable = pair.partition("=")
        if not equals or not option.isalnum():
            # What was given is not repeated: it may be the credential itself.
            raise InvalidArgument("--env has to be OPTION=VARIABLE, e.g. uid=MY_UID")
        credentials[option] = variable
    if paper and (credentials or wallet):
        raise InvalidArgument(
            "a paper account has no credentials and one wallet: leave out --paper or the rest"
        )
    async with session.open() as store:
        check_credentials(store.config, exchange, credentials, is_paper=paper)
        check_wallets(store.config, exchange, wallet or ())
        meta: dict[str, Any] = {PAPER: True} if paper else {}
        if wallet:
            meta[WALLETS] = list(dict.fromkeys(wallet))
        account = await store.accounts.add(exchange, name, credentials, meta)
    session.result(_as_dict(account), lambda: _added(account))


@command(app, "list")
async def list_(
    session: Session,
    exchange: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this exchange's.", show_default=False)
    ] = None,
) -> None:
    """List accounts, the environment variables that each needs, and which of them are not set."""
    async with session.open() as store:
        found = await store.accounts.list(exchange)
    if not found and not session.json:
        where = f" at {exchange}" if exchange else ""
        session.note(f"No accounts{where} yet; `kurisu account add --help` shows how to add one.")
        return
    session.result([_as_dict(account) for account in found], lambda: _table(found))


def _as_dict(account: Account) -> dict[str, Any]:
    from kurisu.trading.accounts import PAPER, missing_variables, wallets_of

    return {
        "account": str(account),
        "exchange": account.exchange,
        "name": account.name,
        "paper": bool(account.meta.get(PAPER)),
        "wallets": list(wallets_of(account)),
        "credentials": dict(account.credentials),
        "missing": missing_variables(account),
    }


def _added(account: Account) -> str:
    missing = _as_dict(account)["missing"]
    text = safe(f"added account {account}")
    if missing:
        text += f"\nnot set yet: {', '.join(missing)}"
    return text


def _table(accounts: list[Account]) -> str:
    rows = []
    for account in accounts:
        found = _as_dict(account)
        variables = ", ".join(f"{o}={v}" for o, v in found["credentials"].items())
        if found["paper"]:
            variables = "none, it is a paper account"
        wallets = ", ".join(found["wallets"])
        rows.append((found["account"], variables, ", ".join(found["missing"]), wallets))
    columns = ("account", "credentials", "not set", "wallets")
    if not any(row[-1] for row in rows):
        return table(columns[:-1], [row[:-1] for row in rows])
    return table(columns, rows)
