"""Endpoint lists allow what they spell out; labels match by whole segments."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.entry import EntryError, read_entries, read_entry
from kbctld.core.grant import label_matches, label_segments, nobodys
from tests.core.support import NOW, USD, VENDOR, access, grant, scope


def covers(entry: str, call: str) -> bool:
    """Whether an entry, as the operator wrote it, speaks of a call."""
    attempt = access(call)
    target = attempt.target
    return read_entry(entry, [VENDOR]).covers(attempt.operation, attempt.method, target.path, target.segments)


def allows(entry: str, call: str) -> bool:
    """Whether an entry of an allow list lets a call through."""
    attempt = access(call)
    target = attempt.target
    return read_entry(entry, [VENDOR]).allows(attempt.operation, attempt.method, target.path, target.segments)


@pytest.mark.parametrize(
    ("entry", "call", "yes"),
    [
        pytest.param("POST /v1/payments", "POST /v1/payments", True, id="the very path"),
        pytest.param("POST /v1/payments", "GET /v1/payments", False, id="another method"),
        pytest.param("POST /v1/payments", "POST /v1/payment", False, id="a shorter word"),
        pytest.param("POST /v1/payments", "POST /v1/payments2", False, id="a longer word"),
        pytest.param("POST /v1/payments", "POST /v1/Payments", False, id="another case"),
        pytest.param("POST /v1/payments", "POST /v1/payments/p_1", False, id="a segment more"),
        pytest.param("GET /v1/payments/", "GET /v1/payments/", True, id="with its slash"),
        pytest.param("POST /v1/*/capture", "POST /v1/p_1/capture", True, id="star in the middle"),
        pytest.param("POST /v1/*/capture", "POST /v1/payments/p_1/capture", False, id="star is one segment"),
        pytest.param("POST /v1/*/capture", "POST /v1/capture", False, id="star is not none"),
        pytest.param("GET /v1/customers/*", "GET /v1/customers/cus_1", True, id="rest of one"),
        pytest.param("GET /v1/customers/*", "GET /v1/customers/cus_1/cards/c_1", True, id="rest of three"),
        pytest.param("GET /v1/customers/*", "GET /v1/customers", False, id="rest is not none"),
        pytest.param("GET /v1/customers/*", "GET /v1/customers2/cus_1", False, id="rest of another"),
        pytest.param("GET /*", "GET /v1/customers", True, id="everything"),
        pytest.param("GET /v1/*/*", "GET /v1/customers/cus_1", True, id="star and rest"),
        pytest.param("GET /v1/*/*", "GET /v1/customers", False, id="star and an empty rest"),
        pytest.param("payments.create", "POST /v1/payments", True, id="by name"),
        pytest.param("payments.create", "POST /v1/payments/p_1", False, id="another operation"),
        pytest.param("payments.create", "POST /v1/unlisted", False, id="no operation"),
    ],
)
def test_an_entry_covers_what_it_spells_out(entry: str, call: str, yes: bool) -> None:
    """A star is one whole segment, a trailing one is one or more, and everything else is to the letter."""
    assert covers(entry, call) is yes
    slashes = "." in entry or entry.endswith("/") == call.endswith("/")
    assert allows(entry, call) is (yes and slashes)


@pytest.mark.parametrize(
    ("entry", "yes"),
    [
        pytest.param("keys.update", True, id="by name"),
        pytest.param("POST /v1/keys/k_1", True, id="by its whole path"),
        pytest.param("POST /v1/keys/*", False, id="by a rest"),
        pytest.param("POST /v1/*/k_1", False, id="by a star in the middle"),
        pytest.param("POST /v1/*", False, id="by a longer rest"),
        pytest.param("POST /*", False, id="by everything"),
    ],
)
def test_a_privileged_operation_is_allowed_only_when_spelt_out(entry: str, yes: bool) -> None:
    """No star of an allow list reaches what mints credentials; in a deny list it does."""
    assert allows(entry, "POST /v1/keys/k_1") is yes
    assert covers(entry, "POST /v1/keys/k_1")


_SEGMENTS = st.sampled_from(["v1", "payments", "keys", "k_1", "*", "customers"])
_PATHS = st.lists(_SEGMENTS, min_size=1, max_size=5).map(lambda names: f"/{'/'.join(names)}")
_LINES = st.one_of(
    st.sampled_from(["payments.create", "keys.update"]),
    st.builds(
        lambda method, path, end: f"{method} {path}{end}",
        st.sampled_from(["GET", "POST"]),
        _PATHS,
        st.sampled_from(["", "/", "/*"]),
    ),
)


@given(
    lines=st.lists(_LINES, max_size=12),
    method=st.sampled_from(["GET", "POST", "DELETE"]),
    names=st.lists(_SEGMENTS, min_size=1, max_size=5),
    end=st.sampled_from(["", "/"]),
    operation=st.sampled_from([None, "payments.create", "keys.update"]),
)
def test_a_list_says_what_its_lines_say_one_by_one(
    lines: list[str], method: str, names: list[str], end: str, operation: str | None
) -> None:
    """Asking only those that can speak of a call changes nothing, nor which of them comes first."""
    listed = read_entries(lines, [VENDOR])
    known = None if operation is None else VENDOR.operations[operation]
    call = (known, method, f"/{'/'.join(names)}{end}", tuple(names))
    assert listed.covering(known, method, tuple(names)) == [entry for entry in listed if entry.covers(*call)]
    assert listed.allowing(*call) is any(entry.allows(*call) for entry in listed)


def test_in_a_long_list_a_star_is_found_beside_the_word_that_it_stands_for() -> None:
    lines = [f"GET /v1/{no}/{kind}" for no in range(66) for kind in ("a", "*", "b/*")]
    listed = read_entries([*lines, "GET /v1/*/a", "GET /*", "payments.create"], [VENDOR])
    near = listed.covering(VENDOR.operations["payments.create"], "GET", ("v1", "7", "a"))
    assert [entry.text for entry in near] == [
        "GET /v1/7/a",
        "GET /v1/7/*",
        "GET /v1/*/a",
        "GET /*",
        "payments.create",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("payments.creat", "neither METHOD /path nor an operation", id="no such operation"),
        pytest.param("", "neither METHOD /path nor an operation", id="empty"),
        pytest.param("*", "neither METHOD /path nor an operation", id="a star alone"),
        pytest.param("/v1/payments", "neither METHOD /path nor an operation", id="no method"),
        pytest.param("post /v1/payments", "one of DELETE, GET, PATCH, POST, PUT", id="a small method"),
        pytest.param("* /v1/payments", "starts with no method", id="a star for the method"),
        pytest.param("OPTIONS /v1/payments", "starts with no method", id="a method that is never forwarded"),
        pytest.param("POST v1/payments", "holds no path", id="no slash"),
        pytest.param("POST  /v1/payments", "holds no path", id="two blanks"),
        pytest.param("POST /", "holds no path", id="only a slash"),
        pytest.param("POST /v1//payments", "holds no path", id="an empty segment"),
        pytest.param("POST /v1/pay*", "holds no path", id="a star in a segment"),
        pytest.param("POST /v1/**", "holds no path", id="two stars"),
        pytest.param("POST /v1/{id}", "holds no path", id="a parameter"),
        pytest.param("POST /v1/../keys", "holds no path", id="dot-dot"),
        pytest.param("POST /v1/.", "holds no path", id="a dot at the end"),
        pytest.param("POST /v1/%70", "holds no path", id="an escape"),
        pytest.param("POST /v1/x?y=1", "holds no path", id="a query"),
        pytest.param("POST /v1/payments\n", "holds no path", id="a newline"),
    ],
)
def test_an_entry_that_cannot_match_is_an_error(text: str, says: str) -> None:
    """A misspelt entry is refused when it is written, since on a deny list it would deny nothing."""
    with pytest.raises(EntryError, match=says):
        read_entry(text, [VENDOR])


def test_an_operation_is_one_of_the_vendors_of_the_key() -> None:
    """A name that only another vendor has is an error."""
    with pytest.raises(EntryError):
        read_entry("payments.create", [])


@pytest.mark.parametrize(
    ("limits", "capped"),
    [
        pytest.param({}, False, id="none"),
        pytest.param({"call_cap": 1}, True, id="per call"),
        pytest.param({"daily": 1}, True, id="per day"),
        pytest.param({"total": 1}, True, id="in total"),
        pytest.param({"call_cap": 0}, True, id="zero is a cap"),
    ],
)
def test_a_key_is_capped_when_any_amount_is_limited(limits: dict[str, int], capped: bool) -> None:
    """Any one limit makes every cost count."""
    key = grant(scope(limits.get("daily"), limits.get("total")), call_cap=limits.get("call_cap"))
    assert key.capped is capped


def test_a_limit_of_any_scope_makes_a_key_capped() -> None:
    """An ancestor's cap counts for a key that has none of its own."""
    assert grant(scope(), scope(daily=USD)).capped


@pytest.mark.parametrize(
    ("expires_ns", "revoked_ns", "frozen", "status"),
    [
        pytest.param(None, None, None, "active", id="never expires"),
        pytest.param(NOW + 1, None, None, "active", id="a nanosecond before"),
        pytest.param(NOW, None, None, "expired", id="exactly then"),
        pytest.param(NOW - 1, None, None, "expired", id="after"),
        pytest.param(None, None, "why", "frozen", id="frozen"),
        pytest.param(NOW, None, "why", "expired", id="expired and frozen"),
        pytest.param(NOW, NOW, "why", "revoked", id="revoked above all"),
    ],
)
def test_a_status_is_the_last_word_about_a_key(
    expires_ns: int | None, revoked_ns: int | None, frozen: str | None, status: str
) -> None:
    """Revoked, then expired, then frozen; expiry bites at its very nanosecond."""
    key = grant(expires_ns=expires_ns)
    key.revoked_ns, key.frozen = revoked_ns, frozen
    assert key.status(NOW) == status


def test_a_key_knows_where_it_comes_from() -> None:
    """Its parent is the next above it, its root the one that an operator issued."""
    root = grant()
    parent = grant(parent=root)
    child = grant(parent=parent)
    assert (child.parent, child.root, child.lineage) == (parent, root, (child, parent, root))
    assert (root.parent, root.root, root.lineage) == (None, root, (root,))
    assert child.scopes == (child.scope, parent.scope, root.scope)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_law_9_a_status_is_that_of_whoever_above_it_is_worst_off(place: int) -> None:
    """Paused, frozen, expired, revoked: each of any holder, and a later one of them goes before."""
    root = grant()
    parent = grant(parent=root)
    child = grant(parent=parent)
    holder = (child, parent, root)[place]
    seen = [child.status(NOW)]
    for field, value in (("paused", "why"), ("frozen", "why"), ("expires_ns", NOW), ("revoked_ns", NOW)):
        setattr(holder, field, value)
        seen.append(child.status(NOW))
    assert seen == ["active", "paused", "frozen", "expired", "revoked"]
    assert (root.status(NOW) == "active") is (holder is not root)


# --- labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "wanted", "yes"),
    [
        pytest.param("tenant:acme", "tenant:acme", True, id="the same"),
        pytest.param("tenant:acme2", "tenant:acme", False, id="a longer name"),
        pytest.param("tenant:acme", "tenant:acme2", False, id="a shorter name"),
        pytest.param("tenant:acme/agent:x", "tenant:acme", True, id="one of two"),
        pytest.param("agent:x/tenant:acme", "tenant:acme/agent:x", True, id="both in another order"),
        pytest.param("agent:x", "tenant:acme/agent:x", False, id="only one of both"),
        pytest.param("tenant:acme", "acme", False, id="a part of a segment"),
        pytest.param("xtenant:acme", "tenant:acme", False, id="something in front"),
        pytest.param("tenant:acme", "Tenant:acme", False, id="another case"),
        pytest.param("tenant:acme", "", False, id="an empty filter finds nothing"),
        pytest.param("tenant:acme", "//", False, id="a filter of slashes finds nothing"),
        pytest.param("", "tenant:acme", False, id="no label"),
        pytest.param("//tenant:acme//", "tenant:acme/", True, id="empty segments don't count"),
    ],
)
def test_law_8_a_label_matches_by_whole_segments(label: str, wanted: str, yes: bool) -> None:
    """A tenant's filter never finds a tenant whose name only begins the same."""
    assert label_matches(label, wanted) is yes


def test_law_8_control_a_substring_would_find_another_tenant() -> None:
    """The naive filter shows acme2's calls to acme."""
    assert "tenant:acme" in "tenant:acme2"
    assert not label_matches("tenant:acme2", "tenant:acme")


SEGMENT = st.text("ab:1", min_size=1, max_size=3)


@given(st.lists(SEGMENT, max_size=4), st.lists(SEGMENT, min_size=1, max_size=3))
def test_law_8_matching_is_inclusion_of_segments(label: list[str], wanted: list[str]) -> None:
    """A filter finds a label exactly when each of its segments is one of the label's."""
    assert label_matches("/".join(label), "/".join(wanted)) is all(segment in label for segment in wanted)


def test_segments_keep_their_order_and_stand_once() -> None:
    """A label is read from left to right; a repeated segment is one."""
    assert label_segments("/b/a//b/") == ("b", "a")


@pytest.mark.parametrize("entry", ["POST /v1/payments", "GET /v1/customers/*", "GET /v1/payments/"])
def test_law_10_an_allow_list_takes_a_slash_to_the_letter(entry: str) -> None:
    """What it denies a slash more does not free; what it allows a slash more does not widen."""
    method, _, path = entry.replace("*", "cus_1").partition(" ")
    other = path.rstrip("/") if path.endswith("/") else path + "/"
    read = read_entry(entry, [VENDOR])
    for asked, allowed in ((path, True), (other, False)):
        segments = tuple(asked.strip("/").split("/"))
        assert read.covers(None, method, asked, segments)
        assert read.allows(None, method, asked, segments) is allowed


def test_a_grant_that_no_key_stands_behind_reaches_one_vendor() -> None:
    """Nothing but its scope limits it."""
    made = nobodys(scope(), "acme", "acme:two")
    assert (made.no, made.vendors, made.credential, made.allow) == (0, ("acme",), "acme:two", None)
    assert made.scopes == (made.scope,)
