"""``credential set|list|remove``: the secret goes one way."""

from collections.abc import Callable

import pytest

from kbctl import wire
from tests.cli.conftest import Cli, Seen
from tests.cli.support import PretendDaemon, credential

SECRET = "sk_test_canary"  # a pretend one


@pytest.mark.parametrize("given", [SECRET, f"{SECRET}\n", f"{SECRET}\r\n"])
def test_set_from_stdin(cli: Cli, daemon: PretendDaemon, given: str) -> None:
    """Without its final newline; shown nowhere."""
    daemon.on("PUT /credentials/stripe", credential())

    result = cli("credential", "set", "stripe", input=given)

    assert (result.exit_code, result.stdout, result.stderr) == (0, "stripe: stored, for stripe\n", "")
    assert daemon.only.body == {"secret": SECRET}


def test_set_at_a_terminal(terminal: Callable[..., Seen], daemon: PretendDaemon) -> None:
    """Typed unseen; a second time it is a rotation. A name may hold a colon or a slash."""
    daemon.on("PUT /credentials/eu%2Fstripe", credential(name="eu/stripe", version=2))

    seen = terminal("credential", "set", "eu/stripe", "--vendor", "stripe", typed=f"{SECRET}\n")

    assert (seen.exit_code, seen.stdout) == (0, "eu/stripe: rotated to version 2, for stripe\n")
    assert daemon.only.body == {"secret": SECRET, "vendor": "stripe"}
    assert SECRET not in seen.stderr


@pytest.mark.parametrize("given", ["", "\n", "  \n"])
def test_nothing_is_no_secret(cli: Cli, daemon: PretendDaemon, given: str) -> None:
    """Refused, with how to do it."""
    result = cli("credential", "set", "stripe", input=given)

    assert (result.exit_code, daemon.asked) == (2, [])
    assert "try: kbctl credential set stripe" in result.stderr


def test_a_secret_is_no_argument(cli: Cli, daemon: PretendDaemon) -> None:
    """Every process may read arguments: there is no place for one, and the complaint does not repeat it."""
    result = cli("credential", "set", "stripe", SECRET)

    assert (result.exit_code, daemon.asked) == (2, [])
    assert SECRET not in result.stdout + result.stderr


def test_set_but_unusable(cli: Cli, daemon: PretendDaemon) -> None:
    """Stored, and why it does not work yet."""
    daemon.on("PUT /credentials/stripe", credential(available=False, problem="the keyring is locked"))

    assert (
        "cannot be used yet: the keyring is locked" in cli("credential", "set", "stripe", input=SECRET).stderr
    )


def test_list(cli: Cli, daemon: PretendDaemon) -> None:
    """Names and states."""
    found = [
        credential(),
        credential(name="twilio", vendor="twilio", version=3, available=False, problem="locked"),
    ]
    daemon.on("GET /credentials", wire.CredentialList(credentials=found))

    plain, machine = cli("credential", "list"), cli("credential", "list", "--json")

    assert [line.split() for line in plain.stdout.splitlines()] == [
        ["NAME", "VENDOR", "VERSION", "SET", "USABLE"],
        ["stripe", "stripe", "1", "2026-11-20", "10:00:00Z", "yes"],
        ["twilio", "twilio", "3", "2026-11-20", "10:00:00Z", "no:", "locked"],
    ]
    assert wire.decode(machine.stdout.encode(), wire.CredentialList).credentials == found


def test_empty_list(cli: Cli, daemon: PretendDaemon) -> None:
    """The way to the first one."""
    daemon.on("GET /credentials", wire.CredentialList(credentials=[]))

    assert "kbctl credential set stripe" in cli("credential", "list").stderr


def test_remove(cli: Cli, daemon: PretendDaemon, terminal: Callable[..., Seen]) -> None:
    """Only after a yes."""
    daemon.on("DELETE /credentials/stripe", b"", 204)

    assert cli("credential", "remove", "stripe").exit_code == 3
    assert terminal("credential", "remove", "stripe", typed="no\n").exit_code == 3
    assert daemon.asked == []
    assert terminal("credential", "remove", "stripe", typed="y\n").exit_code == 0
    assert cli("credential", "remove", "stripe", "--yes").stdout == "stripe: removed\n"
    assert len(daemon.asked) == 2
