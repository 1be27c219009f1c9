"""`kurisu account`: names of environment variables, never what they hold."""

from __future__ import annotations

import json
import re

import pytest
from cli.conftest import Program

SECRET = "aV3rYs3cr3tK3yTh4tMustN0tAppear9f8e7d6c5b4a"


def test_an_account_is_added_and_listed(kurisu_program: Program) -> None:
    run = kurisu_program
    added = run(
        "account", "add", "kept", "--exchange", "binance", "--key-env", "KEPT_KEY",
        "--secret-env", "KEPT_SECRET", "--json", KEPT_KEY="set",
    )  # fmt: skip
    assert added.json == {
        "account": "binance:kept", "exchange": "binance", "name": "kept", "paper": False,
        "credentials": {"apiKey": "KEPT_KEY", "secret": "KEPT_SECRET"},
        "missing": ["KEPT_SECRET"], "wallets": [],
    }  # fmt: skip
    listed = run("account", "list", "--exchange", "binance", "--json", KEPT_KEY="1", KEPT_SECRET="")
    assert added.json in listed.json
    text = run("account", "list", KEPT_KEY="set", KEPT_SECRET="set").out
    assert re.search("binance:kept +apiKey=KEPT_KEY, secret=KEPT_SECRET", text)
    again = run(
        "account", "add", "kept", "--exchange", "binance", "--key-env", "KEPT_KEY",
        "--secret-env", "KEPT_SECRET", code=2,
    )  # fmt: skip
    assert "binance:kept is there already" in again.err


def test_other_credentials_by_their_names(kurisu_program: Program) -> None:
    added = kurisu_program(
        "account", "add", "pass", "--exchange", "kucoin", "--key-env", "KC_KEY", "--secret-env",
        "KC_SECRET", "--env", "password=KC_PASS", "--wallet", "spot", "--wallet", "main", "--json",
    )  # fmt: skip
    assert added.json["credentials"]["password"] == "KC_PASS"
    assert added.json["wallets"] == ["spot", "main"]
    assert "spot, main" in kurisu_program("account", "list", "--exchange", "kucoin").out


def test_a_paper_account(kurisu_program: Program) -> None:
    added = kurisu_program("account", "add", "toy", "--exchange", "binance", "--paper", "--json")
    assert (added.json["paper"], added.json["credentials"]) == (True, {})
    assert "none, it is a paper account" in kurisu_program("account", "list").out
    refused = kurisu_program("ledger", "sync", "toy", code=1)
    assert "nothing at binance to read" in refused.err
    both = ("account", "add", "x", "--exchange", "binance", "--paper", "--key-env", "A_KEY")
    assert "a paper account has no credentials" in kurisu_program(*both, code=2).err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--key-env", SECRET, "--secret-env", "MY_SECRET"), "name of an environment variable"),
        (("--key-env", "MY_KEY", "--secret-env", SECRET.upper()), "environment variable"),
        (("--key-env", "MY_KEY"), "needs secret: give --secret-env VARIABLE"),
        (("--key-env", "MY_KEY", "--secret-env", "MY_SECRET", "--env", SECRET), "OPTION=VARIABLE"),
        (
            ("--key-env", "MY_KEY", "--secret-env", "MY_SECRET", "--env", f"uid={SECRET}"),
            "name of an environment variable",
        ),
        (("--key-env", "MY_KEY", "--secret-env", "MY_SECRET", "--env", "foo=MY_FOO"), "foo is no"),
        (("--key-env", "MY_KEY", "--secret-env", "MY_SECRET", "--wallet", "x"), "no wallet 'x'"),
    ],
    ids=["key", "upper case", "missing", "no name", "uid", "unknown", "wallet"],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_what_is_refused_is_not_repeated(
    kurisu_program: Program, arguments: tuple[str, ...], said: str, as_json: bool
) -> None:
    more = ("--json",) if as_json else ("--verbose",)
    refused = kurisu_program(
        "account", "add", "secretive", "--exchange", "binance", *arguments, *more, code=2
    )
    assert said in refused.err
    assert SECRET.lower() not in (refused.out + refused.err).lower()
    assert "secretive" not in kurisu_program("account", "list").out


def test_an_unknown_exchange(kurisu_program: Program) -> None:
    refused = kurisu_program(
        "account", "add", "x", "--exchange", "binanse", "--key-env", "A_KEY", "--secret-env",
        "A_SECRET", "--json", code=1,
    )  # fmt: skip
    assert "perhaps" in json.loads(refused.err)["message"]


def test_a_variable_that_is_not_set_is_named(kurisu_program: Program) -> None:
    kurisu_program(
        "account", "add", "unset", "--exchange", "binance", "--key-env", "UNSET_KEY",
        "--secret-env", "UNSET_SECRET",
    )  # fmt: skip
    for command in ("sync", "reconcile"):
        refused = kurisu_program("ledger", command, "unset", code=1, UNSET_KEY=SECRET)
        assert refused.err == (
            "kurisu: account binance:unset: UNSET_SECRET is not set. Put the credential into that "
            "environment variable; `kurisu account list` shows which variables an account needs.\n"
        )
    assert "`kurisu account add` adds one" in kurisu_program("ledger", "sync", "no", code=1).err
