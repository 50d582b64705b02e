"""A Secret shows itself by reveal() and by nothing else."""

import copy
import json
import logging
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kbctl.errors import KbctlError
from kbctld.secrets.secret import SECRET_BYTES_MAX, Secret, checked

TEXT = "sk_test_canary_4eC39HqLyjWDarjtT1zdp7dc"


def test_only_reveal_gives_the_text() -> None:
    assert Secret(TEXT).reveal() == TEXT


def test_no_way_of_printing_leaks_or_raises(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(TEXT)
    shown = [
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret!s:>99}",
        f"{secret!a}",
        "%s %r" % (secret, secret),  # noqa: UP031
    ]
    shown += [format(secret, ">99"), "{:d}".format(secret), str([secret]), str({"k": secret})]  # noqa: UP032
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").warning("secret: %s %r", secret, secret)
    shown.append(caplog.text)
    assert all(TEXT not in line and "Secret(***)" in line for line in shown)
    assert {len(format(Secret(text), ">99")) for text in ("a", TEXT)} == {len("Secret(***)")}


def test_nothing_serializes_it() -> None:
    secret = Secret(TEXT)
    attempts: list[Callable[[Any], object]] = [pickle.dumps, copy.copy, copy.deepcopy, json.dumps]
    attempts += [msgspec.json.encode, vars, hash, iter, len]
    for attempt in attempts:
        with pytest.raises(TypeError) as caught:
            attempt(secret)
        assert TEXT not in str(caught.value)


def test_it_holds_no_attribute_to_find_and_takes_none() -> None:
    secret = Secret(TEXT)
    assert not hasattr(secret, "__dict__")
    assert not hasattr(secret, "text")
    with pytest.raises(AttributeError):
        secret.text = TEXT  # type: ignore[attr-defined]


def test_equality_is_of_secrets_only() -> None:
    assert Secret(TEXT) == Secret(TEXT)
    assert Secret(TEXT) != Secret(TEXT + "x")
    assert Secret("ü\ud800") == Secret("ü\ud800")
    assert Secret(TEXT) != TEXT


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "secret_empty"),
        ("x" * (SECRET_BYTES_MAX + 1), "secret_too_large"),
        ("ü" * 9000, "secret_too_large"),
    ],
)
def test_what_cannot_be_stored_is_refused(text: str, code: str) -> None:
    with pytest.raises(KbctlError) as caught:
        checked(Secret(text))
    assert caught.value.code == code


def test_the_largest_secret_may_be_stored() -> None:
    assert checked(Secret("x" * SECRET_BYTES_MAX)) == "x" * SECRET_BYTES_MAX
