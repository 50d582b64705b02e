"""Law 9: what is derived is never wider; what can't be shown to be within its base counts as wider."""

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbctld.core.duplicates import read_duplicates
from kbctld.core.entry import read_entries
from kbctld.core.grant import Grant
from kbctld.core.ledger import Ledger
from kbctld.core.limits import ADDING, WIRE_NAMES, Limits, first_wider, merged, replaced, tightened
from kbctld.core.pace import Rate, read_loop, read_rate
from kbctld.core.policy import Access, Permit, authorize
from kbctld.core.rule import read_rule
from kbctld.core.vendor import Vendor, read_vendor
from tests.core.support import HEAD, NOW, RATES, USD, VENDOR, access, grant, request, scope

OTHER = read_vendor(
    HEAD.replace('"acme"', '"other"')
    + """
[[operation]]
name = "payments.create"
match = "POST /v1/pay"
cost = { kind = "free" }

[[operation]]
name = "letters.create"
match = "POST /v1/customers"
cost = { kind = "free" }

[[operation]]
name = "keys.list"
match = "GET /v1/tips"
cost = { kind = "free" }
privileged = true

[[operation]]
name = "folders.create"
match = "POST /v1/folders/"
cost = { kind = "free" }
"""
)
"""A second vendor; the same paths are other operations there, and a name stands for another path."""
BOTH = (VENDOR, OTHER)


def wider(field: str, value: Any, bound: Any, *others: Vendor, **also: Any) -> bool:
    """Whether that value of a field is wider than the base's."""
    found = first_wider({field: value}, Limits(**{field: bound}, **also), (VENDOR, *others))
    assert found in (None, WIRE_NAMES[field])
    return found is not None


# --- one field --------------------------------------------------------------------------------------------


NUMBERS = ["daily_cap_nano", "total_cap_nano", "call_cap_nano", "daily_requests", "lifetime_ns"]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize(
    ("value", "bound", "yes"),
    [
        pytest.param(5, 5, False, id="the same"),
        pytest.param(4, 5, False, id="less"),
        pytest.param(6, 5, True, id="one more"),
        pytest.param(None, 5, True, id="none under some"),
        pytest.param(10**18, None, False, id="some under none"),
        pytest.param(None, None, False, id="none under none"),
    ],
)
def test_law_9_a_number_is_wider_when_it_is_larger(
    field: str, value: int | None, bound: int | None, yes: bool
) -> None:
    """None is the widest value, and a child may say it only where the base says it, too."""
    assert wider(field, value, bound) is yes


@pytest.mark.parametrize(
    ("value", "bound", "yes"),
    [
        pytest.param("5/s", "5/s", False, id="the same"),
        pytest.param("4/s", "5/s", False, id="slower"),
        pytest.param("6/s", "5/s", True, id="faster"),
        pytest.param("300/m", "5/s", True, id="the same pace with a larger burst"),
        pytest.param("5/m", "5/s", False, id="the same burst at a slower pace"),
        pytest.param("5/s", "300/m", False, id="the same pace with a smaller burst"),
        pytest.param("5/s", "5/m", True, id="the same burst at a faster pace"),
        pytest.param("1/s", "3599/h", True, id="one an hour more"),
        pytest.param("1/s", "3600/h", False, id="exactly"),
        pytest.param(None, "5/s", True, id="none under some"),
        pytest.param("5/s", None, False, id="some under none"),
    ],
)
def test_law_9_a_rate_is_wider_by_its_pace_or_by_its_burst(
    value: str | None, bound: str | None, yes: bool
) -> None:
    """Both must be no more than the base's."""
    rate, most = (None if text is None else read_rate(text) for text in (value, bound))
    assert wider("rate", rate, most) is yes


@given(st.integers(1, 50), st.sampled_from("smh"), st.integers(1, 50), st.sampled_from("smh"))
def test_law_9_a_rate_that_is_no_wider_lets_no_more_through(
    count: int, unit: str, most: int, most_unit: str
) -> None:
    """At once, and within any number of seconds."""

    def through(rate: Rate, seconds: int) -> int:
        return rate.count + seconds * 10**9 * rate.count // rate.per_ns

    child, base = read_rate(f"{count}/{unit}"), read_rate(f"{most}/{most_unit}")
    fits = all(through(child, s) <= through(base, s) for s in (0, 1, 59, 60, 3600, 10**6))
    assert wider("rate", child, base) is not fits


@pytest.mark.parametrize(
    ("value", "bound", "yes"),
    [
        ("flag/10m", None, False),
        (None, None, False),
        (None, "flag/10m", True),
        ("flag/10m", "flag/10m", False),
        ("refuse/10m", "flag/10m", False),
        ("refuse/9m", "flag/10m", True),
        ("flag/1h", "refuse/10m", True),
        ("refuse/1h", "refuse/10m", False),
        ("refuse/1m", "refuse/10m", True),
    ],
)
def test_law_9_duplicates_are_wider_when_less_of_them_is_seen_or_less_is_done(
    value: str | None, bound: str | None, yes: bool
) -> None:
    """A shorter window, a flag where it was a refusal, or none at all."""
    said, most = (None if text is None else read_duplicates(text) for text in (value, bound))
    assert wider("duplicates", said, most) is yes


@pytest.mark.parametrize(
    ("value", "bound", "yes"),
    [
        pytest.param("20/1m deny", "20/1m deny", False, id="the same"),
        pytest.param("19/1m deny", "20/1m deny", False, id="fewer"),
        pytest.param("21/1m deny", "20/1m deny", True, id="more"),
        pytest.param("20/2m deny", "20/1m deny", False, id="in a longer window"),
        pytest.param("20/59s deny", "20/1m deny", True, id="in a shorter window"),
        pytest.param("10/30s deny", "20/1m deny", True, id="the same pace, in a shorter window"),
        pytest.param("20/1m pause", "20/1m deny", False, id="pause for deny"),
        pytest.param("20/1m deny", "20/1m pause", True, id="deny for pause"),
        pytest.param("1/24h pause", "20/1m pause", False, id="all stricter"),
        pytest.param(None, "20/1m deny", True, id="none under some"),
        pytest.param("20/1m deny", None, False, id="some under none"),
    ],
)
def test_law_9_a_loop_guard_is_wider_when_it_trips_later_or_does_less(
    value: str | None, bound: str | None, yes: bool
) -> None:
    """As often, within as long, and no milder."""
    loop, most = (None if text is None else read_loop(*text.split()) for text in (value, bound))
    assert wider("loop", loop, most) is yes


@pytest.mark.parametrize(
    ("value", "bound", "yes"),
    [
        pytest.param(("a",), ("a", "b"), False, id="one of two"),
        pytest.param(("b", "a"), ("a", "b"), False, id="both in another order"),
        pytest.param((), ("a",), False, id="nothing"),
        pytest.param(("a", "c"), ("a", "b"), True, id="another one"),
        pytest.param(None, ("a",), True, id="all under some"),
        pytest.param(("a",), None, False, id="some under all"),
    ],
)
def test_law_9_vendors_are_wider_by_any_other_one(value: Any, bound: Any, yes: bool) -> None:
    """A child reaches none that its parent does not."""
    assert wider("vendors", value, bound) is yes


@pytest.mark.parametrize(
    ("value", "bound", "yes"), [(True, True, False), (True, False, False), (False, True, True)]
)
def test_law_9_who_must_stamp_can_not_stop_it(value: bool, bound: bool, yes: bool) -> None:
    """Not to be named in the vendor's records is wider."""
    assert wider("stamp", value, bound) is yes


@pytest.mark.parametrize("field", sorted(ADDING))
def test_law_9_what_only_adds_up_is_never_wider(field: str) -> None:
    """One more denial or rule never lets more through."""
    assert not wider(field, ("POST /v1/tips",), ("POST /v1/customers",))


def test_every_field_has_a_name_that_people_know() -> None:
    """A field that is forgotten here would be a KeyError where somebody asks for too much."""
    assert [*WIRE_NAMES] == [field.name for field in fields(Limits)]


def test_law_9_the_first_wider_field_is_named_and_the_others_do_not_hide_it() -> None:
    """As it is called on the wire."""
    base = Limits(daily_cap_nano=5, rate=read_rate("5/s"))
    said = {"call_cap_nano": 9, "deny": ("POST /v1/tips",), "rate": None, "daily_cap_nano": 6}
    assert first_wider(said, base, [VENDOR]) == "rate"
    assert first_wider({}, base, [VENDOR]) is None


# --- endpoint lists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "bases", "yes"),
    [
        pytest.param("POST /v1/tips", "POST /v1/tips", True, id="the same path"),
        pytest.param("POST /v1/tips", "POST /v1/customers;POST /v1/tips", True, id="one of several"),
        pytest.param("POST /v1/tips", "GET /v1/tips", False, id="another method"),
        pytest.param("POST /v1/tips", "", False, id="an empty list"),
        pytest.param("POST /v1/tips", "POST /v1/*", True, id="within a rest"),
        pytest.param("POST /v1/tips", "POST /v1/tips/*", False, id="a rest is not none"),
        pytest.param("POST /v1/tips/a/b", "POST /v1/tips/*", True, id="far within a rest"),
        pytest.param("POST /v1/tips", "POST /*", True, id="within everything"),
        pytest.param("POST /v2/tips", "POST /v1/*", False, id="beside a rest"),
        pytest.param("POST /v1/*/a", "POST /v1/*/a", True, id="a star within the same"),
        pytest.param("POST /v1/x/a", "POST /v1/*/a", True, id="a segment within a star"),
        pytest.param("POST /v1/*/a", "POST /v1/x/a", False, id="a star within a segment"),
        pytest.param("POST /v1/*/a", "POST /v1/*/b", False, id="another end"),
        pytest.param("POST /v1/*/a", "POST /v1/*", True, id="a star within a rest"),
        pytest.param("POST /v1/*", "POST /v1/*/a", False, id="a rest within a star"),
        pytest.param("POST /v1/*", "POST /v1/*", True, id="the same rest"),
        pytest.param("POST /v1/x/*", "POST /v1/*", True, id="a rest within a shorter rest"),
        pytest.param("POST /v1/*", "POST /v1/x/*", False, id="a rest within a longer rest"),
        pytest.param("POST /v1/*/*", "POST /v1/*", True, id="a star and a rest within a rest"),
        pytest.param("POST /v1/*", "POST /v1/*/*", False, id="a rest of one within a rest of two"),
        pytest.param("POST /v1/*", "POST /v1/x", False, id="a rest within a path"),
        pytest.param("GET /v1/x/", "GET /v1/x/", True, id="with its slash"),
        pytest.param("GET /v1/x/", "GET /v1/x", False, id="a slash more"),
        pytest.param("GET /v1/x", "GET /v1/x/", False, id="a slash less"),
        pytest.param("GET /v1/x/", "GET /v1/*", False, id="no rest reaches a slash behind"),
        pytest.param("tips.create", "tips.create", True, id="the same name"),
        pytest.param("tips.create", "payments.create", False, id="another name"),
        pytest.param("tips.create", "POST /v1/tips", True, id="a name within its path"),
        pytest.param("tips.create", "POST /v1/*", True, id="a name within a rest"),
        pytest.param("tips.create", "GET /v1/*", False, id="a name within another method"),
        pytest.param("POST /v1/tips", "tips.create", True, id="a path within its name"),
        pytest.param("POST /v1/payments/p_1", "payments.update", True, id="one object within its operation"),
        pytest.param("POST /v1/payments/*", "payments.update", False, id="a rest is more than an operation"),
        pytest.param("POST /v1/*/capture", "payments.capture", False, id="a star is more than an operation"),
        pytest.param("POST /v1/tips/", "tips.create", False, id="with a slash it is no operation"),
        pytest.param("POST /v1/unlisted", "tips.create", False, id="an unlisted path within a name"),
        pytest.param("payments.update", "POST /v1/payments/*", True, id="any object within a rest"),
        pytest.param("payments.update", "POST /v1/payments/p_1", False, id="any object within one"),
        pytest.param("payments.capture", "POST /v1/payments/*/capture", True, id="within a star"),
        pytest.param("payments.capture", "POST /v1/payments/p_1/*", False, id="within a rest of one object"),
        pytest.param("keys.create", "keys.create", True, id="privileged by name"),
        pytest.param("keys.create", "POST /v1/keys", True, id="a privileged name within its very path"),
        pytest.param("POST /v1/keys", "keys.create", True, id="a privileged path within its name"),
        pytest.param("keys.create", "POST /v1/*", False, id="no star reaches a privileged name"),
        pytest.param("POST /v1/keys", "POST /*", False, id="no star reaches a privileged path"),
        pytest.param("POST /v1/keys/k_1", "POST /v1/keys/*", False, id="nor one of its objects"),
        pytest.param("POST /v1/keys/*", "POST /v1/keys/*", True, id="a star that reaches none"),
        pytest.param("keys.update", "POST /v1/keys/k_1", False, id="all privileged objects within one"),
    ],
)
def test_law_9_an_entry_is_within_a_list_when_each_of_its_calls_is(entry: str, bases: str, yes: bool) -> None:
    """Shown by one entry of the list; two that only cover it together don't count."""
    listed = tuple(filter(None, bases.split(";")))
    assert wider("allow", (entry,), listed) is not yes
    assert wider("allow", ("GET /v1/y", entry), ("GET /v1/y", *listed)) is not yes


@pytest.mark.parametrize(
    ("entry", "capped", "free"),
    [
        pytest.param("POST /v1/payments", True, True, id="priced"),
        pytest.param("payments.create", True, True, id="by name"),
        pytest.param("GET /v1/*", True, True, id="reads"),
        pytest.param("POST /v1/unlisted", True, False, id="an unlisted write"),
        pytest.param("POST /v1/*", True, False, id="writes, unlisted ones among them"),
        pytest.param("POST /v1/payments/", True, False, id="with a slash it is unlisted"),
        pytest.param("POST /v1/payments/*/capture", True, False, id="a star"),
        pytest.param("POST /v1/payments/p_1", True, True, id="one object"),
        pytest.param("keys.create", False, False, id="privileged by name"),
        pytest.param("POST /v1/keys", False, False, id="privileged by path"),
        pytest.param("POST /v1/keys/k_1", False, False, id="a privileged object"),
    ],
)
def test_law_9_no_list_is_all_that_is_known_and_not_privileged(entry: str, capped: bool, free: bool) -> None:
    """Without a cap an unlisted write is refused where no list names it; under one its price is unknown."""
    for caps in ({"daily_cap_nano": 1}, {"total_cap_nano": 1}, {"call_cap_nano": 0}):
        also: dict[str, Any] = {**caps}
        assert wider("allow", (entry,), None, **also) is not capped
    assert wider("allow", (entry,), None) is not free


def test_law_9_without_a_list_of_its_own_it_has_its_parents() -> None:
    """To drop a list is wider, to take nothing is not."""
    assert wider("allow", None, ("POST /v1/*",))
    assert not wider("allow", None, None)
    assert not wider("allow", (), ())
    assert not wider("allow", (), None)


@pytest.mark.parametrize(
    ("entry", "base", "yes"),
    [
        pytest.param("POST /v1/tips", "tips.create", False, id="unlisted by the other"),
        pytest.param("POST /v1/customers", "customers.create", False, id="another operation of the other"),
        pytest.param("tips.create", "POST /v1/tips", True, id="a name that one of them has"),
        pytest.param("payments.create", "POST /v1/payments", False, id="the other has it elsewhere"),
        pytest.param("payments.create", "POST /v1/*", True, id="wherever they have it"),
        pytest.param("payments.create", "payments.create", True, id="whichever has it"),
        pytest.param("GET /v1/tips", "GET /v1/*", False, id="privileged with one of them"),
        pytest.param("POST /v1/tips", None, False, id="unlisted by one, without a list and cap"),
        pytest.param("POST /v1/customers", None, True, id="listed by both"),
        pytest.param("GET /v1/tips", None, False, id="privileged with one of them, without a list"),
        pytest.param("folders.create", "POST /v1/folders/", True, id="a name with a slash at its end"),
    ],
)
def test_law_9_a_path_is_one_of_every_vendor(entry: str, base: str | None, yes: bool) -> None:
    """A key over two vendors may send it to either."""
    assert wider("allow", (entry,), None if base is None else (base,), OTHER) is not yes


def test_law_9_a_name_of_a_vendor_that_the_key_does_not_reach_covers_nothing() -> None:
    """It is no error: a parent may reach more vendors than its child."""
    assert not wider("allow", ("tips.create",), ("letters.create", "tips.create"))
    assert wider("allow", ("tips.create",), ("letters.create",))
    assert not wider("allow", ("letters.create",), ("tips.create",))


# --- putting sets together --------------------------------------------------------------------------------

BASE = Limits(
    vendors=("acme", "other"),
    daily_cap_nano=5,
    allow=("POST /v1/*", "keys.create"),
    deny=("POST /v1/tips",),
    rules=("customer == cus_1",),
    rate=read_rate("5/s"),
)


def test_what_was_said_stands_over_the_base_and_lists_that_narrow_add_up() -> None:
    """Once each, the base's first."""
    said = {"daily_cap_nano": None, "allow": (), "deny": ("GET /v1/x", "POST /v1/tips"), "rules": ("a == b",)}
    found = merged(said, BASE)
    assert (found.daily_cap_nano, found.allow, found.rate) == (None, (), BASE.rate)
    assert found.deny == ("POST /v1/tips", "GET /v1/x")
    assert found.rules == ("customer == cus_1", "a == b")
    assert merged({}, BASE) == BASE


def test_an_override_replaces_lists_too() -> None:
    """The operator's own word, whole."""
    found = replaced({"deny": ("GET /v1/x",), "daily_cap_nano": 9}, BASE)
    assert (found.deny, found.rules, found.daily_cap_nano) == (("GET /v1/x",), BASE.rules, 9)


@pytest.mark.parametrize(
    ("said", "field", "found"),
    [
        pytest.param({"daily_cap_nano": 4}, "daily_cap_nano", 4, id="less stays"),
        pytest.param({"daily_cap_nano": 6}, "daily_cap_nano", 5, id="more gives way"),
        pytest.param({"daily_cap_nano": None}, "daily_cap_nano", 5, id="none gives way"),
        pytest.param({"total_cap_nano": 6}, "total_cap_nano", 6, id="where the base says nothing it stays"),
        pytest.param({"rate": read_rate("6/s")}, "rate", BASE.rate, id="a faster rate gives way"),
        pytest.param({"vendors": ("acme",)}, "vendors", ("acme",), id="fewer vendors"),
        pytest.param({"vendors": ("acme", "x")}, "vendors", ("acme",), id="those that both have"),
        pytest.param({"vendors": ("x",)}, "vendors", (), id="none in common"),
        pytest.param({"vendors": None}, "vendors", (), id="all vendors can't be cut to size"),
        pytest.param({"allow": ("POST /v1/a",)}, "allow", ("POST /v1/a",), id="a shorter list stays"),
        pytest.param(
            {"allow": ("POST /v1/a", "GET /v1/a", "keys.update", "keys.create")},
            "allow",
            ("POST /v1/a", "keys.create"),
            id="entry by entry",
        ),
        pytest.param({"allow": None}, "allow", (), id="no list can't be cut to size"),
        pytest.param({"deny": ("GET /v1/x",)}, "deny", ("POST /v1/tips", "GET /v1/x"), id="denials add up"),
    ],
)
def test_law_9_what_would_be_wider_gives_way(said: dict[str, Any], field: str, found: Any) -> None:
    """And only that; what is within stays as it was said."""
    assert getattr(tightened(said, BASE, [VENDOR]), field) == found


def test_law_9_a_list_gives_way_entry_by_entry_to_no_list_too() -> None:
    """A base that lost its list keeps privileged operations back, and nothing else of what was said."""
    said = {"allow": ("keys.create", "tips.create")}
    assert tightened(said, Limits(daily_cap_nano=5), [VENDOR]).allow == ("tips.create",)


# --- the law, over random keys and calls --------------------------------------------------------------------

PATHS = [
    *("/v1/payments", "/v1/tips", "/v1/customers", "/v1/keys", "/v1/pay", "/v1/x", "/v1/folders/"),
    *("/v1/payments/p_1", "/v1/keys/k_1", "/v1/customers/", "/v1/payments/p_1/capture", "/v2/x/y"),
]
CALLS = [f"{method} {path}" for method in ("GET", "HEAD", "POST", "DELETE") for path in PATHS]
ENTRIES = [
    *(f"{method} {path}" for method in ("GET", "POST") for path in PATHS),
    *("POST /v1/*", "GET /v1/*", "POST /*", "GET /*", "POST /v1/payments/*", "POST /v1/*/capture"),
    *("POST /v1/*/*", "POST /v1/keys/*", "POST /v1/*/k_1", "DELETE /v1/*", "GET /v1/*/"),
    *("payments.create", "payments.update", "payments.capture", "tips.create", "customers.create"),
    *("keys.create", "keys.update", "keys.list", "letters.create", "customers.retrieve", "folders.create"),
]
LISTS = st.lists(st.sampled_from(ENTRIES), max_size=4).map(tuple)
CAP = st.none() | st.integers(1, 4).map(lambda usd: usd * USD)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "vendors": st.sampled_from([("acme",), ("other",), ("acme", "other")]),
    "daily_cap_nano": CAP,
    "total_cap_nano": CAP,
    "call_cap_nano": CAP,
    "allow": st.none() | LISTS,
    "deny": LISTS,
    "rules": st.lists(st.sampled_from(["customer == c", "tips.create: amount <= 99"]), max_size=2).map(tuple),
}
BASES = st.fixed_dictionaries(FIELDS).map(lambda values: Limits(**values))
SAID = st.fixed_dictionaries({}, optional=FIELDS)


def key_of(limits: Limits) -> Grant:
    """A key of its own, with these limits and no ancestor that could correct them."""
    key = grant(
        scope(limits.daily_cap_nano, limits.total_cap_nano),
        call_cap=limits.call_cap_nano,
        vendors=limits.vendors or (),
    )
    key.allow = None if limits.allow is None else read_entries(limits.allow, BOTH)
    key.deny = read_entries(limits.deny, BOTH)
    key.rules = tuple(read_rule(text, BOTH) for text in limits.rules)
    return key


ATTEMPTS = [access(call, vendor=vendor) for call in CALLS for vendor in BOTH]
BODIES = st.sampled_from(["", "amount=100&currency=usd", "amount=100&currency=usd&customer=c"])


def leaves(key: Grant, attempt: Access, body: str = "") -> bool:
    """Whether that call would go out."""
    verdict = authorize(
        key, attempt, request(body), Ledger(), RATES, now_ns=NOW, tick_ns=0, row=None, call_id=""
    )
    return isinstance(verdict, Permit)


def reached(said: dict[str, Any], base: Limits) -> list[Vendor]:
    """The vendors of a key on these terms."""
    names = said.get("vendors", base.vendors) or ()
    return [vendor for vendor in BOTH if vendor.name in names]


def check_within(limits: Limits, base: Limits, body: str) -> None:
    """Whatever leaves by one key leaves by the other."""
    child, parent = key_of(limits), key_of(base)
    for attempt in ATTEMPTS:
        if leaves(child, attempt, body):
            assert leaves(parent, attempt, body), attempt.title


@settings(max_examples=400)
@given(SAID, BASES, BODIES)
def test_law_9_nothing_that_is_taken_for_no_wider_lets_more_through(
    said: dict[str, Any], base: Limits, body: str
) -> None:
    """Whatever the child may call, its parent may: each judged by itself, price, caps and rules included."""
    if first_wider(said, base, reached(said, base)) is None:
        check_within(merged(said, base), base, body)


@settings(max_examples=200)
@given(SAID, BASES, BODIES)
def test_law_9_what_gave_way_lets_no_more_through(said: dict[str, Any], base: Limits, body: str) -> None:
    """``tightened`` is always within, and its result is taken for no wider."""
    vendors = reached(said, base)
    found = tightened(said, base, vendors)
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    assert first_wider(values, base, vendors) is None
    check_within(found, base, body)


def test_law_9_control_entries_that_look_alike_are_not_the_same() -> None:
    """By a comparison with one vendor alone, either of these would let through what its base refuses."""
    for entry, base in (("POST /v1/customers", "customers.create"), ("payments.create", "POST /v1/payments")):
        child, parent = (key_of(Limits(("acme", "other"), allow=(text,))) for text in (entry, base))
        assert any(leaves(child, each) and not leaves(parent, each) for each in ATTEMPTS)
        assert not wider("allow", (entry,), (base,))
        assert wider("allow", (entry,), (base,), OTHER)


@pytest.mark.parametrize(
    ("rules", "base", "wider"),
    [
        (("acme-account in acct_1",), (), "param_rules"),
        (("Acme-Account in acct_1",), (), "param_rules"),
        (("acme-account in acct_1",), ("acme-account in acct_1,acct_2",), None),
        (("amount <= 5",), (), None),
    ],
)
def test_a_rule_that_lists_an_account_opens_it(
    rules: tuple[str, ...], base: tuple[str, ...], wider: str | None
) -> None:
    """Every other rule takes away; this one is wider where the base lists no account."""
    assert first_wider({"rules": rules}, Limits(rules=base), [VENDOR]) == wider
    kept = tightened({"rules": (*rules, "amount <= 9")}, Limits(rules=base), [VENDOR]).rules
    assert set(kept) == {*base, "amount <= 9", *(() if wider else rules)}
