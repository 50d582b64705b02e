"""Every refusal in Stripe's shape: status, code, param. Value in, value out; no network."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from kbctld.sandbox import Sandbox
from tests.sandbox.support import SECRET, ask, pay

GOOD = {"amount": "500", "currency": "usd"}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"amount": None}, (400, "parameter_missing", "amount")),
        ({"currency": None}, (400, "parameter_missing", "currency")),
        ({"amount": "20_00"}, (400, "parameter_invalid_integer", "amount")),
        ({"amount": "1e3"}, (400, "parameter_invalid_integer", "amount")),
        ({"amount": "20.5"}, (400, "parameter_invalid_integer", "amount")),
        ({"amount": "+5"}, (400, "parameter_invalid_integer", "amount")),
        ({"amount": "-500"}, (400, "parameter_invalid_integer", "amount")),
        ({"amount": "0"}, (400, "parameter_invalid_integer", "amount")),
        ({"amount": "５００"}, (400, "parameter_invalid_integer", "amount")),  # noqa: RUF001 full-width digits
        ({"amount": ""}, (400, "parameter_invalid_empty", "amount")),
        ({"amount": "49"}, (400, "amount_too_small", "amount")),
        ({"amount": "100000000"}, (400, "amount_too_large", "amount")),
        ({"currency": "xyz"}, (400, None, "currency")),
        ({"confirm": "true"}, (400, "parameter_missing", "payment_method")),
        ({"confirm": "yes"}, (400, None, "confirm")),
        ({"capture_method": "never"}, (400, None, "capture_method")),
        ({"metadata": "x"}, (400, None, "metadata")),
        ({"metadata[k]": "v" * 501}, (400, None, "metadata[k]")),
        ({"expand[0]": "nothing"}, (400, None, "expand")),
    ],
)
def test_a_bad_parameter_is_named_and_moves_nothing(
    sandbox: Sandbox, changes: dict[str, str | None], error: tuple[int, str | None, str | None]
) -> None:
    params = {name: value for name, value in (GOOD | changes).items() if value is not None}
    assert ask(sandbox, "POST", "/v1/payment_intents", params, key="k").error == error
    assert sandbox.book()["entries"] == 0
    # A failed validation is not remembered: the same key is free for the repaired request.
    assert ask(sandbox, "POST", "/v1/payment_intents", GOOD, key="k").status == 200


@pytest.mark.parametrize(
    ("method", "path", "params", "error"),
    [
        ("GET", "/v1/payment_intents/pi_0", {}, (404, "resource_missing", "id")),
        ("POST", "/v1/payment_intents/pi_0/confirm", {}, (404, "resource_missing", "id")),
        ("POST", "/v1/refunds", {"charge": "ch_0"}, (404, "resource_missing", "charge")),
        ("POST", "/v1/refunds", {}, (400, "parameter_missing", "payment_intent")),
        ("POST", "/v1/charges", GOOD, (400, "parameter_missing", "source")),
        ("POST", "/v1/transfers", GOOD, (400, "parameter_missing", "destination")),
        ("POST", "/v1/prices", {"currency": "usd"}, (400, "parameter_missing", "unit_amount")),
        ("GET", "/v1/charges", {"limit": "101"}, (400, "parameter_invalid_integer", "limit")),
        ("GET", "/v1/charges", {"starting_after": "ch_0"}, (404, "resource_missing", "starting_after")),
        ("GET", "/v1/unheard_of", {}, (404, None, None)),
        ("DELETE", "/v1/payment_intents/pi_0", {}, (404, None, None)),
        ("GET", "/v1/charges/", {}, (404, None, None)),
        ("GET", "//v1/charges", {}, (404, None, None)),
        ("GET", "/v1/charges/a/b/c/d/e", {}, (404, None, None)),
        ("GET", "/", {}, (404, None, None)),
    ],
)
def test_what_is_not_there_is_said_in_stripes_words(
    sandbox: Sandbox, method: str, path: str, params: dict[str, Any], error: tuple[int, str, str]
) -> None:
    refused = ask(sandbox, method, path, params)
    assert refused.error == error
    assert refused.json["error"]["type"] == "invalid_request_error"
    assert refused.headers["Request-Id"].startswith("req_")


def test_a_body_that_is_not_a_form_is_refused(sandbox: Sandbox) -> None:
    refused = ask(sandbox, "POST", "/v1/charges", GOOD, content_type="application/json")
    assert refused.status == 400


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {SECRET}", 200),
        (f"bearer  {SECRET}", 200),
        ("Basic " + base64.b64encode(f"{SECRET}:".encode()).decode(), 200),
        ("Basic " + base64.b64encode(f":{SECRET}".encode()).decode(), 401),
        ("Basic ***", 401),
        (f"Token {SECRET}", 401),
        (SECRET, 401),
        ("Bearer ", 401),
        ("", 401),
        ("Bearer vault_key_0123456789abcdef", 401),
    ],
)
def test_only_the_secret_itself_opens(sandbox: Sandbox, authorization: str, status: int) -> None:
    answered = ask(sandbox, "GET", "/v1/balance", authorization=authorization)
    assert answered.status == status
    assert SECRET not in str(answered)


@pytest.mark.parametrize("secret", ["", " sk_test", "vault_key_1"])
def test_a_vault_key_is_never_the_expected_secret(sandbox: Sandbox, secret: str) -> None:
    with pytest.raises(ValueError, match="not a vault key"):
        sandbox.expect(secret)


def test_nested_parameters_are_decoded(sandbox: Sandbox) -> None:
    intent = pay(
        sandbox,
        500,
        **{
            "metadata[a]": "1",
            "metadata[b c]": "ü",
            "payment_method_types[0]": "card",
            "expand[]": "latest_charge",
        },
    ).json
    assert intent["metadata"] == {"a": "1", "b c": "ü"}
    assert intent["payment_method_types"] == ["card"]
    assert intent["latest_charge"]["object"] == "charge"
    path = f"/v1/payment_intents/{intent['id']}"
    assert ask(sandbox, "POST", path, {"metadata[a]": "", "metadata[d]": "4"}).json["metadata"] == {
        "b c": "ü",
        "d": "4",
    }
    assert ask(sandbox, "POST", path, {"metadata": ""}).json["metadata"] == {}


@pytest.mark.parametrize("name", ["metadata[a", "metadata[a]b", "a[b][c][d][e][f][g][h][i]", "amount[x]"])
def test_a_crooked_parameter_name_is_refused(sandbox: Sandbox, name: str) -> None:
    assert ask(sandbox, "POST", "/v1/payment_intents", GOOD | {name: "1"}).status == 400


def test_money_in_the_query_of_a_post_counts(sandbox: Sandbox) -> None:
    assert ask(sandbox, "POST", "/v1/payment_intents?amount=900&currency=usd").json["amount"] == 900
    # A path that hides the amount from a proxy would move it all the same.
    assert sandbox.book()["authorised_minor"] == {"usd": 900}


def test_what_an_answer_names_can_be_expanded_in_depth_and_in_lists(sandbox: Sandbox) -> None:
    intent = pay(sandbox, 500).json
    path = f"/v1/payment_intents/{intent['id']}"
    deep = ask(sandbox, "GET", path, {"expand[0]": "latest_charge.payment_intent"}).json
    assert deep["latest_charge"]["payment_intent"] == intent
    listed = ask(sandbox, "GET", "/v1/payment_intents", {"expand[]": "data.latest_charge"}).json
    assert listed["data"][0]["latest_charge"]["id"] == intent["latest_charge"]
    assert ask(sandbox, "GET", path).json == intent
