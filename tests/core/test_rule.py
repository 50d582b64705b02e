"""A rule binds what it says, admits what it says, and is an error where it says nothing."""

from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.document import read_document
from kbctld.core.form import read_form
from kbctld.core.rule import OPS, RULE_MAX, Op, Place, Rule, RuleBreak, RuleError, check_rules, read_rule
from tests.core.support import VENDOR, access


def rule(text: str) -> Rule:
    """A rule of a key that reaches the small vendor."""
    return read_rule(text, [VENDOR])


def check(
    rules: str | tuple[str, ...],
    *bodies: Place,
    call: str = "POST /v1/payments",
    form: str | None = None,
    json: str | None = None,
    query: str = "",
    headers: dict[str, str] | None = None,
) -> RuleBreak | None:
    """Ask the rules about one call, as the proxy would."""
    method, _, path = call.partition(" ")
    attempt = access(f"{'GET' if method == 'HEAD' else method} {path}")
    body: Place = None
    if form is not None:
        body = read_form(form.encode())
    if json is not None:
        body = read_document(json.encode())
    return check_rules(
        [rule(text) for text in ([rules] if isinstance(rules, str) else rules)],
        operation=attempt.operation,
        method=method,
        path=path,
        segments=attempt.target.segments,
        places=(body, read_form(query.encode()), attempt.parameters, headers or {}, *bodies),
    )


def kind(found: RuleBreak | None) -> str | None:
    """How a call broke a rule."""
    return found.kind if found else None


# --- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "scope", "field", "op", "values"),
    [
        pytest.param("customer in cus_1,cus_2", None, "customer", "in", ("cus_1", "cus_2"), id="one of two"),
        pytest.param("customer in cus_1 , cus_2", None, "customer", "in", ("cus_1", "cus_2"), id="blanks"),
        pytest.param("customer in cus_1", None, "customer", "in", ("cus_1",), id="one of one"),
        pytest.param("currency == usd", None, "currency", "==", ("usd",), id="equal"),
        pytest.param("status != open", None, "status", "!=", ("open",), id="other than"),
        pytest.param("amount <= 20000", None, "amount", "<=", ("20000",), id="at most"),
        pytest.param("amount < -0.5", None, "amount", "<", ("-0.5",), id="a negative fraction"),
        pytest.param("amount >= 007", None, "amount", ">=", ("007",), id="zeros in front"),
        pytest.param("metadata.tier == gold", None, "metadata.tier", "==", ("gold",), id="nested"),
        pytest.param("a.b.c-d == x", None, "a.b.c-d", "==", ("x",), id="nested twice"),
        pytest.param("to startswith +1", None, "to", "startswith", ("+1",), id="a beginning"),
        pytest.param("To startswith +1", None, "To", "startswith", ("+1",), id="a capital stays one"),
        pytest.param("name == John Smith", None, "name", "==", ("John Smith",), id="a blank in the value"),
        pytest.param("name == a,b", None, "name", "==", ("a,b",), id="a comma in the value"),
        pytest.param("url == http://x", None, "url", "==", ("http://x",), id="a colon in the value"),
        pytest.param("note == a: b", None, "note", "==", ("a: b",), id="a colon and a blank in the value"),
        pytest.param(
            "note == POST /v1/x: y", None, "note", "==", ("POST /v1/x: y",), id="a scope in the value"
        ),
        pytest.param("note in x: a,b", None, "note", "in", ("x: a", "b"), id="a colon in a list"),
        pytest.param("note == == x", None, "note", "==", ("== x",), id="an operator in the value"),
        pytest.param("  amount   <=   5  ", None, "amount", "<=", ("5",), id="many blanks"),
        pytest.param(
            "refunds.create: amount <= 500", "refunds.create", "amount", "<=", ("500",), id="an operation"
        ),
        pytest.param(
            "POST /v1/payments: customer == cus_1",
            "POST /v1/payments",
            "customer",
            "==",
            ("cus_1",),
            id="a path",
        ),
        pytest.param("GET /v1/*/x/*:  a == b: c", "GET /v1/*/x/*", "a", "==", ("b: c",), id="stars"),
        pytest.param("acme-account in acct_1", None, "acme-account", "in", ("acct_1",), id="a header"),
        pytest.param("note == \u00fc\u4e2d", None, "note", "==", ("\u00fc\u4e2d",), id="other scripts"),
        pytest.param("note == it's", None, "note", "==", ("it's",), id="a quote inside"),
    ],
)
def test_a_rule_is_read(text: str, scope: str | None, field: str, op: Op, values: tuple[str, ...]) -> None:
    """[SCOPE: ]FIELD OP VALUE, blanks apart; what stands behind the operator is the value."""
    read = rule(text)
    assert read.text == text
    assert (read.scope.text if read.scope else None) == scope
    assert (read.field, read.op, read.values) == (field, op, values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", "'' is no field; .*metadata.tier == gold", id="empty"),
        pytest.param("   ", "'' is no field", id="blanks"),
        pytest.param("amount", "'' is no operator; .*amount <= 20000", id="only a field"),
        pytest.param("amount = 5", "'=' is no operator; write one of == != in <= < >= > startswith", id="="),
        pytest.param("amount === 5", "'===' is no operator", id="==="),
        pytest.param("amount =< 5", "'=<' is no operator", id="=<"),
        pytest.param("amount <> 5", "'<>' is no operator", id="<>"),
        pytest.param("amount \uff1c 5", "is no operator", id="a full-width <"),
        pytest.param("amount \u2264 5", "is no operator", id="a single character for <="),
        pytest.param("amount IN 5", "'IN' is no operator", id="a capital operator"),
        pytest.param("amount not in 5", "'not' is no operator", id="not in"),
        pytest.param("amount matches .*", "'matches' is no operator", id="a pattern"),
        pytest.param("amount<=5", "'amount<=5' is no field", id="no blanks"),
        pytest.param("amount <=5", "'<=5' is no operator", id="no blank behind"),
        pytest.param("amount <=", "amount <= lacks a value; .*amount <= 20000", id="no value"),
        pytest.param("amount <=   ", "lacks a value", id="a blank value"),
        pytest.param("customer == ", "customer == lacks a value; .*customer == cus_1", id="equal to nothing"),
        pytest.param("to startswith ", "to startswith lacks a value", id="any beginning"),
        pytest.param(
            "customer in ", "customer in lacks a value; .*customer in cus_1,cus_2", id="an empty list"
        ),
        pytest.param("customer in cus_1,", "lacks a value", id="a comma behind"),
        pytest.param("customer in ,cus_1", "lacks a value", id="a comma in front"),
        pytest.param("customer in cus_1,,cus_2", "lacks a value", id="two commas"),
        pytest.param("customer != 'cus_1'", "is in quotes, which would be part of it", id="quotes"),
        pytest.param('customer in "a","b"', "is in quotes", id="double quotes in a list"),
        pytest.param("amount <= 1e3", "'1e3' is no plain number; .*amount <= 20000", id="an exponent"),
        pytest.param("amount <= 1_000", "is no plain number", id="an underscore"),
        pytest.param("amount <= 1,000", "is no plain number", id="a comma in a number"),
        pytest.param("amount <= +5", "is no plain number", id="a plus"),
        pytest.param("amount <= --5", "is no plain number", id="two minus signs"),
        pytest.param("amount <= .5", "is no plain number", id="no digit in front"),
        pytest.param("amount <= 5.", "is no plain number", id="no digit behind"),
        pytest.param("amount <= 1.0.0", "is no plain number", id="two points"),
        pytest.param("amount <= \uff15", "is no plain number", id="a full-width digit"),
        pytest.param("amount <= \u0665", "is no plain number", id="an Arabic digit"),
        pytest.param("amount <= NaN", "is no plain number", id="NaN"),
        pytest.param("amount <= Infinity", "is no plain number", id="infinity"),
        pytest.param("amount <= $5", "is no plain number", id="a currency sign"),
        pytest.param("amount <= 5 usd", "is no plain number", id="a unit"),
        pytest.param("amount <= 1234567890123456", "is no plain number", id="sixteen digits"),
        pytest.param("amount <= 0.1234567890", "is no plain number", id="ten decimals"),
        pytest.param("metadata[tier] == gold", "is no field", id="brackets"),
        pytest.param("metadata. == gold", "is no field", id="a dot behind"),
        pytest.param(".tier == gold", "is no field", id="a dot in front"),
        pytest.param("metadata..tier == gold", "is no field", id="two dots"),
        pytest.param("metadata.* == gold", "is no field", id="a star"),
        pytest.param("1st == gold", "is no field", id="a digit in front"),
        pytest.param("-x == gold", "is no field", id="a dash in front"),
        pytest.param("am\u043eunt == 5", "is no field", id="a Cyrillic letter"),
        pytest.param("amount\t<= 5", "does not print", id="a tab"),
        pytest.param("customer == cus_1\n", "does not print", id="a newline"),
        pytest.param("customer != cus_1\x00", "does not print", id="NUL"),
        pytest.param("customer != cus_1\u200b", "does not print", id="a blank of no width"),
        pytest.param("customer != cus_1\u00a0", "does not print", id="a blank that doesn't break"),
        pytest.param("customer != \ud800", "does not print", id="half a pair"),
        pytest.param("refunds.creat: amount <= 500", "scope: 'refunds.creat' is neither", id="no operation"),
        pytest.param("refunds.create:amount <= 500", "is no field", id="no blank behind the colon"),
        pytest.param("refunds.create : amount <= 500", "':' is no operator", id="a blank before the colon"),
        pytest.param(
            "refunds.create: ", "'' is no operator|'refunds.create:' is no field", id="only a scope"
        ),
        pytest.param(": amount <= 500", "':' is no field", id="an empty scope"),
        pytest.param("post /v1/x: amount <= 5", "starts with no method", id="a small method"),
        pytest.param("/v1/x: amount <= 5", "scope: '/v1/x' is neither", id="no method"),
        pytest.param("POST  /v1/x: amount <= 5", "holds no path", id="two blanks before the path"),
        pytest.param("POST /v1/../x: amount <= 5", "holds no path", id="a trick in the path"),
        pytest.param("POST v1/x: amount <= 5", "holds no path", id="no slash in front"),
        pytest.param("HEAD /v1/x: a == b", "GET speaks of HEAD too", id="HEAD"),
        pytest.param("refunds.create: POST /v1/x: a == b", "is no operator", id="two scopes"),
        pytest.param("tips.create: refunds.create: a == b", "is no field", id="two operations"),
        pytest.param("amount ~ x: y", "'~' is no operator", id="no operator and a colon"),
    ],
)
def test_law_10_a_rule_that_is_not_understood_is_an_error(text: str, says: str) -> None:
    """A slip in a rule is refused when it is written, in one sentence that shows a rule that works."""
    with pytest.raises(RuleError, match=says) as caught:
        rule(text)
    assert "\n" not in str(caught.value)


def test_a_rule_has_a_bounded_length() -> None:
    """The limit is taken at n and refused at n + 1."""
    text = "note == ".ljust(RULE_MAX, "x")
    assert len(rule(text).values[0]) == RULE_MAX - 8
    with pytest.raises(RuleError, match="at most 500 characters"):
        rule(text + "x")


def test_a_scope_is_an_operation_of_the_vendors_of_the_key() -> None:
    """A name that only another vendor has is an error."""
    with pytest.raises(RuleError, match="neither METHOD /path nor an operation"):
        read_rule("refunds.create: amount <= 500", [])


NAMES = st.from_regex(r"[a-z][a-z_-]{0,5}(\.[a-z]{1,4}){0,2}", fullmatch=True)
WORDS = st.text("ab:=<>/ .,", min_size=1, max_size=8).map(str.strip).filter(bool)


@given(st.sampled_from(["", "refunds.create: ", "POST /v1/*: "]), NAMES, st.sampled_from(["==", "!="]), WORDS)
def test_a_rule_is_read_as_it_was_put_together(scope: str, field: str, op: str, value: str) -> None:
    """No value is taken for a scope, an operator or a field, nor the other way round."""
    read = rule(f"{scope}{field} {op} {value}")
    assert (read.field, read.op, read.values) == (field, op, (value,))
    assert (read.scope.text + ": " if read.scope else "") == scope


@given(st.text("abc.:/ =<>!in,POST15'\"\n\u00e9", max_size=20))
def test_any_text_is_a_rule_or_an_error(text: str) -> None:
    """Nothing else is raised, and what is read has an operator, a field and values."""
    try:
        read = rule(text)
    except RuleError:
        return
    assert read.op in OPS
    assert read.field
    assert all(read.values)


# --- one value ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        pytest.param(
            "customer == cus_1",
            ["cus_1"],
            ["cus_2", "CUS_1", " cus_1", "cus_1 ", "cus_1\0", "cus_1\n", "cus_11", "", "cus_\uff11"],
            id="==",
        ),
        pytest.param(
            "customer != cus_1", ["cus_2", "", "CUS_1", "cus_11"], ["cus_1", "cus_1\0", "cus_1\0x"], id="!="
        ),
        pytest.param(
            "customer in cus_1, cus_2",
            ["cus_1", "cus_2"],
            ["cus_1,cus_2", "cus_", "s_1", ",", "", " cus_2", "cus_3"],
            id="in",
        ),
        pytest.param(
            "to startswith +1",
            ["+1", "+1555", "+1,"],
            ["", "+", " 1555", "1555", "x+1", "\uff0b1"],
            id="starts",
        ),
        pytest.param(
            "amount <= 500",
            ["500", "500.0", "500.000000000", "499.999999999", "0", "-0", "-1", "0500", "000000000000500"],
            [
                "501",
                "500.000000001",
                "5e2",
                "1e1",
                "",
                " 5",
                "5 ",
                "5\n",
                "+5",
                "1_0",
                "0x10",
                "\uff15",
                "\u0665",
                "NaN",
                "-Infinity",
                "-inf",
                "1,0",
                ".5",
                "5.",
                "--5",
                "0000000000000005",
                "5.0000000000",
                "true",
                "5\0",
            ],
            id="<=",
        ),
        pytest.param(
            "amount < 500", ["499", "499.999999999", "-500"], ["500", "500.0", "501", "1e1"], id="<"
        ),
        pytest.param(
            "amount >= 0.5", ["0.5", "0.50", "1"], ["0.499999999", "0", "-1", "1e3", "inf"], id=">="
        ),
        pytest.param("amount > -1", ["0", "-0", "-0.999999999"], ["-1", "-1.0", "-2", "NaN", "9e9"], id=">"),
        pytest.param(
            "amount <= 9007199254740.993",
            ["9007199254740.993"],
            ["9007199254740.993000001"],
            id="no float in between",
        ),
        pytest.param(
            "currency == usd",
            ["usd", "USD", "Usd"],
            ["eur", "us", "usd ", "u\u017fd", "\uff35SD"],
            id="currency",
        ),
        pytest.param("currency == USD", ["usd", "USD"], ["eur"], id="a currency in capitals"),
        pytest.param(
            "currency in usd,SKK", ["skk", "SKK"], ["s\u212ak", "usd,skk"], id="one of the currencies"
        ),
        pytest.param("currency != usd", ["eur", "EUR"], ["usd", "USD", "uSd", "u\u017fd"], id="no currency"),
        pytest.param("currency startswith U", ["usd", "UAH"], ["eur", "\uff35"], id="a currency's beginning"),
        pytest.param("a.b.currency == usd", ["USD"], ["eur"], id="a currency deep down"),
        pytest.param("currency.a == usd", ["usd"], ["USD"], id="in a currency"),
        pytest.param("currency_x == usd", ["usd"], ["USD"], id="a longer name"),
    ],
)
def test_a_rule_admits_what_it_says(text: str, yes: list[str], no: list[str]) -> None:
    """Text is compared to the letter, numbers as exact decimals, currencies in either case."""
    read = rule(text)
    assert [value for value in yes if not read.admits(value)] == []
    assert [value for value in no if read.admits(value)] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("amount <= 500", "1e1", id="an exponent"),
        pytest.param("amount <= 500", "\uff15", id="a full-width digit"),
        pytest.param("amount <= 500", "1_0", id="an underscore"),
        pytest.param("amount <= 500", "5\n", id="a newline"),
        pytest.param("amount <= 500", "-Infinity", id="infinity"),
    ],
)
def test_control_a_plain_conversion_would_take_them(text: str, value: str) -> None:
    """Decimal() reads each of these as a number within the rule."""
    assert Decimal(value) <= 500
    assert not rule(text).admits(value)


NUMBERS = st.from_regex(r"-?[0-9]{1,15}(\.[0-9]{1,9})?", fullmatch=True).filter(str.isascii)


@given(NUMBERS, NUMBERS)
def test_the_four_comparisons_are_those_of_exact_numbers(value: str, bound: str) -> None:
    """They agree with integers of a billionth."""

    def billionths(text: str) -> int:
        whole, _, part = text.lstrip("-").partition(".")
        return int(whole + part.ljust(9, "0")) * (-1 if text.startswith("-") else 1)

    a, b = billionths(value), billionths(bound)
    assert [rule(f"x {op} {bound}").admits(value) for op in ("<=", "<", ">=", ">")] == [
        a <= b,
        a < b,
        a >= b,
        a > b,
    ]


# --- one call ----------------------------------------------------------------------------------------

ONE = "customer == cus_1"


@pytest.mark.parametrize(
    ("rules", "call", "asked", "found"),
    [
        pytest.param(ONE, "POST /v1/payments", {"form": "customer=cus_1"}, None, id="as it says"),
        pytest.param(ONE, "POST /v1/payments", {"form": "customer=cus_2"}, "not_allowed", id="another value"),
        pytest.param(ONE, "POST /v1/payments", {"form": ""}, "not_allowed", id="absent"),
        pytest.param(ONE, "POST /v1/payments", {}, "not_allowed", id="no body"),
        pytest.param(ONE, "POST /v1/unlisted", {}, "not_allowed", id="a write that no file lists"),
        pytest.param(ONE, "PUT /v1/unlisted", {}, "not_allowed", id="PUT"),
        pytest.param(ONE, "PATCH /v1/unlisted", {}, "not_allowed", id="PATCH"),
        pytest.param(ONE, "DELETE /v1/unlisted", {}, "not_allowed", id="DELETE"),
        pytest.param(ONE, "PURGE /v1/unlisted", {}, "not_allowed", id="a method nobody knows writes"),
        pytest.param(ONE, "DELETE /v1/x", {"query": "customer=cus_1"}, None, id="a write with a query"),
        pytest.param(ONE, "GET /v1/x", {}, None, id="a read without it"),
        pytest.param(ONE, "HEAD /v1/x", {}, None, id="HEAD without it"),
        pytest.param(ONE, "GET /v1/x", {"query": "customer=cus_1"}, None, id="a read as it says"),
        pytest.param(ONE, "GET /v1/x", {"query": "customer=cus_2"}, "not_allowed", id="a read of another"),
        pytest.param(ONE, "HEAD /v1/x", {"query": "customer=cus_2"}, "not_allowed", id="HEAD of another"),
        pytest.param(ONE, "GET /v1/x", {"query": "Customer=cus_1"}, "ambiguous", id="a read with a capital"),
        pytest.param(ONE, "GET /v1/x", {"form": "customer=cus_2"}, "not_allowed", id="a read with a body"),
        pytest.param(
            ONE, "POST /v1/x", {"form": "customer=cus_1&customer=cus_1"}, "ambiguous", id="twice in a form"
        ),
        pytest.param(
            ONE,
            "POST /v1/x",
            {"form": "customer=cus_1", "query": "customer=cus_1"},
            "ambiguous",
            id="in body and query",
        ),
        pytest.param(
            ONE,
            "POST /v1/x",
            {"form": "customer=cus_1", "query": "Customer=cus_2"},
            "ambiguous",
            id="in the body, and a capital in the query",
        ),
        pytest.param(
            ONE,
            "POST /v1/x",
            {"json": '{"customer":"cus_1"}', "query": "customer[]=x"},
            "ambiguous",
            id="json too",
        ),
        pytest.param(ONE, "POST /v1/x", {"json": '{"customer":"cus_1"}'}, None, id="in a document"),
        pytest.param(
            ONE, "POST /v1/x", {"json": '{"\\u0063ustomer":"cus_2"}'}, "not_allowed", id="in escapes"
        ),
        pytest.param(ONE, "POST /v1/x", {"json": '{"customer":null}'}, "ambiguous", id="null"),
        pytest.param(ONE, "POST /v1/x", {"json": '{"customer":{"id":"cus_1"}}'}, "ambiguous", id="an object"),
        pytest.param(ONE, "POST /v1/x", {"json": '{"Customer":"cus_1"}'}, "ambiguous", id="a capital"),
        pytest.param(ONE, "POST /v1/x", {"json": "{}"}, "not_allowed", id="absent in a document"),
        pytest.param(ONE, "POST /v1/customers/cus_1", {"form": ""}, None, id="in the path"),
        pytest.param(ONE, "POST /v1/customers/cus_2", {"form": ""}, "not_allowed", id="another in the path"),
        pytest.param(ONE, "GET /v1/customers/cus_2", {}, "not_allowed", id="a read of another in the path"),
        pytest.param(
            ONE, "POST /v1/customers/cus_1", {"form": "customer=cus_1"}, "ambiguous", id="in path and body"
        ),
        pytest.param(
            "metadata.tier == gold",
            "POST /v1/x",
            {"form": "metadata[tier]=gold"},
            None,
            id="nested in a form",
        ),
        pytest.param(
            "metadata.tier == gold",
            "POST /v1/x",
            {"form": "metadata.tier=gold"},
            "ambiguous",
            id="with a dot",
        ),
        pytest.param(
            "metadata.tier == gold",
            "POST /v1/x",
            {"json": '{"metadata":{"tier":"gold"}}'},
            None,
            id="nested in a document",
        ),
        pytest.param(
            "to startswith +1",
            "POST /v1/x",
            {"json": '{"to":["+15","+16"]}'},
            None,
            id="every one of an array",
        ),
        pytest.param(
            "to startswith +1",
            "POST /v1/x",
            {"json": '{"to":["+15","+44"]}'},
            "not_allowed",
            id="one that is not",
        ),
        pytest.param(
            "to startswith +1", "POST /v1/x", {"json": '{"to":[]}'}, "ambiguous", id="an empty array"
        ),
        pytest.param(
            "to != +44", "POST /v1/x", {"json": '{"to":["+15","+44"]}'}, "not_allowed", id="one that must not"
        ),
        pytest.param("amount <= 500", "POST /v1/x", {"json": '{"amount":500}'}, None, id="a number"),
        pytest.param("amount <= 500", "POST /v1/x", {"json": '{"amount":501}'}, "not_allowed", id="too much"),
        pytest.param(
            "amount <= 500", "POST /v1/x", {"json": '{"amount":1e1}'}, "ambiguous", id="an exponent"
        ),
        pytest.param(
            "amount != 1000", "POST /v1/x", {"json": '{"amount":1e3}'}, "ambiguous", id="not a thousand"
        ),
        pytest.param("live == true", "POST /v1/x", {"json": '{"live":true}'}, None, id="true"),
        pytest.param(
            "amount <= 500", "POST /v1/x", {"form": "amount=\uff15"}, "not_allowed", id="full width"
        ),
        pytest.param(
            "acme-account in acct_1",
            "POST /v1/x",
            {"headers": {"acme-account": "acct_1"}},
            None,
            id="a header",
        ),
        pytest.param(
            "Acme-Account in acct_1",
            "GET /v1/x",
            {"headers": {"acme-account": "acct_2"}},
            "not_allowed",
            id="another",
        ),
        pytest.param("acme-account in acct_1", "GET /v1/x", {}, None, id="a read without the header"),
        pytest.param(
            "acme-account in acct_1", "POST /v1/x", {}, "not_allowed", id="a write without the header"
        ),
        pytest.param(
            "acme-account in acct_1",
            "POST /v1/x",
            {"headers": {"acme-account": "acct_1"}, "form": "acme-account=acct_1"},
            "ambiguous",
            id="a header and a field",
        ),
    ],
)
def test_law_10_a_rule_without_a_scope(
    rules: str, call: str, asked: dict[str, Any], found: str | None
) -> None:
    """Every write carries the field once, with a value that the rule admits; a read where it carries it."""
    assert kind(check(rules, call=call, **asked)) == found


@pytest.mark.parametrize(
    ("scope", "call", "query", "found"),
    [
        pytest.param("refunds.create", "POST /v1/refunds", "", "not_allowed", id="absent"),
        pytest.param("refunds.create", "POST /v1/refunds", "amount=500", None, id="as it says"),
        pytest.param("refunds.create", "POST /v1/refunds", "amount=501", "not_allowed", id="too much"),
        pytest.param("refunds.create", "POST /v1/payments", "amount=501", None, id="another operation"),
        pytest.param("refunds.create", "GET /v1/refunds", "amount=501", None, id="another method"),
        pytest.param("POST /v1/*/refund", "POST /v1/p_1/refund", "", "not_allowed", id="a star"),
        pytest.param(
            "POST /v1/*", "POST /v1/keys/k_1", "", "not_allowed", id="a star binds a privileged one"
        ),
        pytest.param("GET /v1/things", "GET /v1/things", "", "not_allowed", id="a read that must carry it"),
        pytest.param("GET /v1/things", "HEAD /v1/things", "", "not_allowed", id="HEAD is held to GET"),
        pytest.param("GET /v1/things", "GET /v1/things", "amount=5", None, id="a read as it says"),
        pytest.param("customers.retrieve", "HEAD /v1/customers/c", "", "not_allowed", id="HEAD by name"),
        pytest.param(
            "GET /v1/things", "POST /v1/things", "amount=501", None, id="a write that it leaves alone"
        ),
    ],
)
def test_law_10_a_rule_with_a_scope(scope: str, call: str, query: str, found: str | None) -> None:
    """Exactly the calls of its entry, reads too, and each of them carries the field."""
    assert kind(check(f"{scope}: amount <= 500", call=call, query=query)) == found


@pytest.mark.parametrize(
    ("text", "call", "yes"),
    [
        pytest.param("amount <= 5", "POST /v1/x", True, id="a write"),
        pytest.param("amount <= 5", "GET /v1/x", True, id="a read, which may carry it"),
        pytest.param("refunds.create: amount <= 5", "POST /v1/refunds", True, id="its operation"),
        pytest.param("refunds.create: amount <= 5", "POST /v1/payments", False, id="another operation"),
        pytest.param("GET /v1/x: amount <= 5", "HEAD /v1/x", True, id="HEAD"),
    ],
)
def test_a_rule_says_whether_the_body_must_be_read(text: str, call: str, yes: bool) -> None:
    """A rule without a scope has a say in every call."""
    method, _, path = call.partition(" ")
    attempt = access(call)
    assert rule(text).binds(attempt.operation, method, path, attempt.target.segments) is yes


def test_every_rule_must_hold() -> None:
    """The first rule that is broken is named; two readings come before anything else."""
    rules = ("amount <= 500", "currency == usd", "customer in cus_1")
    assert check(rules, form="amount=5&currency=USD&customer=cus_1") is None
    for form, broken, how in (
        ("amount=501&currency=eur&customer=cus_1", 0, "not_allowed"),
        ("amount=500&currency=eur&customer=cus_2", 1, "not_allowed"),
        ("amount=500&currency=usd", 2, "not_allowed"),
        ("amount=501&currency=eur&customer=a&customer=b", 2, "ambiguous"),
    ):
        found = check(rules, form=form)
        assert found is not None
        assert (found.rule.text, found.kind) == (rules[broken], how)
    assert check(()) is None


def test_further_places_count_too() -> None:
    """A place without a body is passed over; a field in any two places is one too many."""
    assert check(ONE, None, {"customer": "cus_1"}) is None
    assert kind(check(ONE, {"customer": "cus_1"}, {"customer": "cus_1"})) == "ambiguous"


# --- what a refusal says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "how", "sentence"),
    [
        pytest.param(
            "customer=cus_9",
            "not_allowed",
            "the rule 'customer == cus_1' does not admit the customer 'cus_9'",
            id="another value",
        ),
        pytest.param(
            "customer=a%0Ab%00%1b",
            "not_allowed",
            r"the rule 'customer == cus_1' does not admit the customer 'a\nb\x00\x1b'",
            id="a value that would break a line",
        ),
        pytest.param(
            "customer=" + "x" * 60,
            "not_allowed",
            f"the rule 'customer == cus_1' does not admit the customer '{'x' * 60}'",
            id="sixty characters",
        ),
        pytest.param(
            "customer=" + "x" * 61,
            "not_allowed",
            f"the rule 'customer == cus_1' does not admit the customer '{'x' * 60}'...",
            id="sixty-one characters",
        ),
        pytest.param(
            "customer=x+vault_key_abcdef",
            "not_allowed",
            "the rule 'customer == cus_1' does not admit the customer that was sent, a vault key",
            id="a vault key",
        ),
        pytest.param(
            "x=cus_9",
            "not_allowed",
            "the request states no customer, and the rule 'customer == cus_1' asks for it",
            id="absent",
        ),
        pytest.param(
            "customer=cus_9&customer=cus_8",
            "ambiguous",
            "customer can be read in more than one way, and the rule 'customer == cus_1' depends on it",
            id="twice",
        ),
    ],
)
def test_a_refusal_names_the_rule(form: str, how: Literal["ambiguous", "not_allowed"], sentence: str) -> None:
    """One printable sentence with the rule, and the start of what was sent: never a vault key."""
    assert check(ONE, form=form) == RuleBreak(how, rule(ONE), sentence)
    assert sentence.isprintable()


@given(st.text(min_size=1, max_size=400).filter(lambda text: text != "cus_1"))
def test_a_refusal_repeats_little_of_what_was_sent(value: str) -> None:
    """However long and odd the value, the sentence holds at most a hundred characters of it."""
    found = check(ONE, {"customer": value})
    assert found is not None
    assert found.sentence.isprintable()
    assert not any(value[at : at + 101] in found.sentence for at in range(len(value) - 100))
