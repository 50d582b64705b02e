"""One target: what passes is canonical, and what was matched is what is sent."""

import posixpath
import re
import string

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from kbctld.core.form import read_form
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import Arrived, Target, read_target, settle_target

VENDORS = frozenset({"stripe", "acme"})
JOINS = ("/v1/", "/v1", "/", "")
ROOTS = ("/v1/", "/v2/")


def read(raw: str) -> Target | Refusal:
    """Both steps, as an exchange takes them."""
    arrived = read_target(raw, VENDORS)
    return arrived if isinstance(arrived, Refusal) else settle_target(arrived, JOINS, ROOTS)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        pytest.param("/v1/refunds", "/v1/refunds", id="plain"),
        pytest.param("/v2/core/events", "/v2/core/events", id="another root"),
        pytest.param("/v1/v1/refunds", "/v1/refunds", id="version twice"),
        pytest.param("/v1/v2/core/events", "/v2/core/events", id="version of the base URL in front"),
        pytest.param("/v1//v1/refunds", "/v1/refunds", id="version with a slash in front"),
        pytest.param("/stripe/v1/refunds", "/v1/refunds", id="prefix"),
        pytest.param("/stripe//v1/refunds", "/v1/refunds", id="prefix with a slash"),
        pytest.param("/stripe/v1/v1/refunds", "/v1/refunds", id="prefix and version"),
        pytest.param("/stripe/v1//v1/refunds", "/v1/refunds", id="prefix and version with a slash"),
        pytest.param("/stripe/v1/v2/core/events", "/v2/core/events", id="prefix and another version"),
        pytest.param("/v1/refunds/", "/v1/refunds/", id="a trailing slash is kept"),
        pytest.param(
            "/v1/customers/cus_1~a.b-c", "/v1/customers/cus_1~a.b-c", id="all unreserved characters"
        ),
        pytest.param("/v1/stripe/v1", "/v1/stripe/v1", id="a vendor's name further on is a segment"),
        pytest.param("/v1/refunds.", "/v1/refunds.", id="a dot behind is another path"),
        pytest.param("/v1/...", "/v1/...", id="three dots are a name"),
    ],
)
def test_P6_what_sdks_send_arrives_canonical(raw: str, path: str) -> None:
    """The forms that SDKs make of a base URL and a path come out as the vendor's own path."""
    target = read(raw)
    assert isinstance(target, Target)
    assert target.path == target.text == path
    assert target.segments == tuple(path.strip("/").split("/"))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param("/v1/../v1/refunds", Code.AMBIGUOUS_REQUEST, id="dot-dot"),
        pytest.param("/v1/refunds/..", Code.AMBIGUOUS_REQUEST, id="dot-dot at the end"),
        pytest.param("/v1/refunds/.", Code.AMBIGUOUS_REQUEST, id="dot at the end"),
        pytest.param("/v1/./refunds", Code.AMBIGUOUS_REQUEST, id="dot"),
        pytest.param("/v1/refunds/../", Code.AMBIGUOUS_REQUEST, id="dot-dot and a slash at the end"),
        pytest.param("/stripe/../v1/refunds", Code.AMBIGUOUS_REQUEST, id="dot-dot behind the prefix"),
        pytest.param("/../v1/refunds", Code.AMBIGUOUS_REQUEST, id="dot-dot at the start"),
        pytest.param("/v1/%2e%2e/refunds", Code.AMBIGUOUS_REQUEST, id="dot-dot in escapes"),
        pytest.param("/v1/.%2E/refunds", Code.AMBIGUOUS_REQUEST, id="dot-dot half in escapes"),
        pytest.param("/v1%2frefunds", Code.AMBIGUOUS_REQUEST, id="a slash in escapes"),
        pytest.param("/v1/refunds%2F..", Code.AMBIGUOUS_REQUEST, id="a slash in escapes and dot-dot"),
        pytest.param("/v1/%72efunds", Code.AMBIGUOUS_REQUEST, id="a letter in escapes"),
        pytest.param("/v1/%252e%252e/refunds", Code.AMBIGUOUS_REQUEST, id="escaped twice"),
        pytest.param("/v1/%2Brefunds", Code.AMBIGUOUS_REQUEST, id="a plus in escapes, and no number"),
        pytest.param("/v1/1%2B1", Code.AMBIGUOUS_REQUEST, id="a plus in escapes, within a number"),
        pytest.param("/v1/1+1", Code.AMBIGUOUS_REQUEST, id="a plus within a number"),
        pytest.param("/v1/%252B1", Code.AMBIGUOUS_REQUEST, id="a plus escaped twice"),
        pytest.param("/v1/%2B%31", Code.AMBIGUOUS_REQUEST, id="a plus and a digit in escapes"),
        pytest.param("/v1/refunds%00", Code.AMBIGUOUS_REQUEST, id="NUL in escapes"),
        pytest.param("/v1/refunds\x00", Code.AMBIGUOUS_REQUEST, id="NUL"),
        pytest.param("/v1/refunds\n", Code.AMBIGUOUS_REQUEST, id="a newline at the end"),
        pytest.param("/v1//refunds", Code.AMBIGUOUS_REQUEST, id="an empty segment"),
        pytest.param("/v1/refunds//", Code.AMBIGUOUS_REQUEST, id="two slashes at the end"),
        pytest.param("//v1/refunds", Code.AMBIGUOUS_REQUEST, id="two slashes at the start"),
        pytest.param("//evil.test/v1/refunds", Code.AMBIGUOUS_REQUEST, id="another host"),
        pytest.param("//stripe/v1/refunds", Code.AMBIGUOUS_REQUEST, id="a prefix behind two slashes"),
        pytest.param("///v1/refunds", Code.AMBIGUOUS_REQUEST, id="three slashes"),
        pytest.param("/stripe///v1/refunds", Code.AMBIGUOUS_REQUEST, id="three slashes behind the prefix"),
        pytest.param("/stripe//v1//v1/refunds", Code.AMBIGUOUS_REQUEST, id="two joins at once"),
        pytest.param("/v1/v1/v1//refunds", Code.AMBIGUOUS_REQUEST, id="joins before an empty segment"),
        pytest.param("/v1/refunds;x=1", Code.AMBIGUOUS_REQUEST, id="a path parameter"),
        pytest.param("/v1;/refunds", Code.AMBIGUOUS_REQUEST, id="a semicolon in the middle"),
        pytest.param("/v1/..;/refunds", Code.AMBIGUOUS_REQUEST, id="dot-dot and a semicolon"),
        pytest.param("/v1\\refunds", Code.AMBIGUOUS_REQUEST, id="a backslash"),
        pytest.param("/v1/..\\refunds", Code.AMBIGUOUS_REQUEST, id="dot-dot and a backslash"),
        pytest.param("/v1/refunds#x", Code.AMBIGUOUS_REQUEST, id="a fragment"),
        pytest.param("/v1/refunds x", Code.AMBIGUOUS_REQUEST, id="a blank"),
        pytest.param("/v1/refunds\u00e9", Code.AMBIGUOUS_REQUEST, id="not ASCII"),
        pytest.param("/v1/\uff0e\uff0e/refunds", Code.AMBIGUOUS_REQUEST, id="full-width dots"),
        pytest.param("/v1/refunds@evil", Code.AMBIGUOUS_REQUEST, id="an at sign"),
        pytest.param("/v1/refunds:x", Code.AMBIGUOUS_REQUEST, id="a colon"),
        pytest.param("http://api.acme.test/v1/refunds", Code.AMBIGUOUS_REQUEST, id="absolute form"),
        pytest.param("HTTP://127.0.0.1:4815/v1/refunds", Code.AMBIGUOUS_REQUEST, id="absolute form of ours"),
        pytest.param("*", Code.MALFORMED_REQUEST, id="asterisk form"),
        pytest.param("api.acme.test:443", Code.MALFORMED_REQUEST, id="authority form"),
        pytest.param("v1/refunds", Code.MALFORMED_REQUEST, id="no slash in front"),
        pytest.param("", Code.MALFORMED_REQUEST, id="empty"),
        pytest.param("/", Code.ENDPOINT_NOT_ALLOWED, id="the root"),
        pytest.param("/stripe", Code.ENDPOINT_NOT_ALLOWED, id="a prefix alone"),
        pytest.param("/stripe/", Code.ENDPOINT_NOT_ALLOWED, id="a prefix and a slash"),
        pytest.param("/v3/refunds", Code.ENDPOINT_NOT_ALLOWED, id="no root of the vendor"),
        pytest.param("/V1/refunds", Code.ENDPOINT_NOT_ALLOWED, id="a root in capitals"),
        pytest.param("/Stripe/v1/refunds", Code.ENDPOINT_NOT_ALLOWED, id="a prefix in capitals"),
        pytest.param("/stripe/stripe/v1/refunds", Code.ENDPOINT_NOT_ALLOWED, id="a prefix twice"),
        pytest.param("/v1", Code.ENDPOINT_NOT_ALLOWED, id="a root without its slash"),
        pytest.param("/v1/refunds?", Code.AMBIGUOUS_REQUEST, id="a question mark and nothing"),
        pytest.param("/v1/refunds?a=b;c=d", Code.AMBIGUOUS_REQUEST, id="a semicolon in the query"),
        pytest.param("/v1/refunds?a=b#c", Code.AMBIGUOUS_REQUEST, id="a fragment behind the query"),
        pytest.param("/v1/refunds?a=\u00e9", Code.AMBIGUOUS_REQUEST, id="a query that is not ASCII"),
        pytest.param("/v1/refunds?a=\\", Code.AMBIGUOUS_REQUEST, id="a backslash in the query"),
        pytest.param("/v1/refunds?a=%4", Code.MALFORMED_REQUEST, id="half an escape in the query"),
        pytest.param("/v1/refunds?a=%ff", Code.MALFORMED_REQUEST, id="a query that is not UTF-8"),
        pytest.param("/v1/refunds?a%00=1", Code.MALFORMED_REQUEST, id="NUL in a name of the query"),
    ],
)
def test_P6_tricks_are_refused_not_repaired(raw: str, code: Code) -> None:
    """Whatever two readers could read as two paths is refused with its code."""
    refusal = read(raw)
    assert isinstance(refusal, Refusal)
    assert refusal.code is code


def test_a_whole_url_is_answered_with_the_reason_that_clients_have() -> None:
    """Clients send absolute forms because of HTTP_PROXY; the remedy says so."""
    refusal = read_target("http://127.0.0.1:4815/v1/refunds", VENDORS)
    assert isinstance(refusal, Refusal)
    assert "HTTP_PROXY" in refusal.sentence
    assert "NO_PROXY" in refusal.remedy


def test_the_query_goes_out_as_it_came_and_is_read() -> None:
    """Query text is kept byte for byte; its fields are decoded beside it."""
    target = read("/stripe/v1/customers?expand[]=data.source&email=a%40b.c&q=a+b")
    assert isinstance(target, Target)
    assert target.text == "/v1/customers?expand[]=data.source&email=a%40b.c&q=a+b"
    assert target.form.pairs == (("expand[]", "data.source"), ("email", "a@b.c"), ("q", "a b"))


def test_a_prefix_is_told_apart_from_a_path() -> None:
    """The first segment is a prefix only where a vendor has exactly that name."""
    assert read_target("/acme/v1/x?y=1", VENDORS) == Arrived("acme", "/v1/x", "y=1", read_form(b"y=1"))
    assert read_target("/acmes/v1/x", VENDORS) == Arrived(None, "/acmes/v1/x", "", read_form(b""))


@pytest.mark.parametrize("plus", ["+", "%2B", "%2b"])
def test_a_phone_number_in_a_path_has_one_form(plus: str) -> None:
    """SDKs send its plus as it is or escaped; in a path both mean a plus."""
    target = read(f"/v1/numbers/{plus}14155550100/x?a=%2B1")
    assert isinstance(target, Target)
    assert target.text == "/v1/numbers/+14155550100/x?a=%2B1"


# --- properties -------------------------------------------------------------------------------------

PIECES = st.sampled_from(
    "/ / / // /// v1 v1 v2 refunds re_1 stripe acme . .. ... %2e %2f %2F ; \\ # ? ? = & % %41 a~b x.y - _ @ "
    "+1415 %2B1415 + %2B : http:// \u00e9 \x00 \n \t \u2025 cus_1 V1".split(" ")
)
TARGETS = st.builds("".join, st.lists(PIECES, max_size=10)) | st.builds(
    "/v1/{}".format, st.text(string.printable, max_size=12)
)
LIKELY = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "/stripe", "/stripe/", "/acme", "/"]),
    st.sampled_from(["/v1", "/v1/v1", "/v1//v1", "/v1/v2", "/v2", "//v1", ""]),
    st.builds("".join, st.lists(PIECES, max_size=5)),
)
SEGMENTS = st.sampled_from(["v1", "v1", "v2", "stripe", "refunds", "..", "..", ".", "", "%2e%2e", "..;", "x"])
JOINED = st.lists(SEGMENTS, min_size=1, max_size=6).map(lambda segments: "/" + "/".join(segments))
THOROUGH = settings(max_examples=5000, phases=[Phase.generate])
UNRESERVED = set(string.ascii_letters + string.digits + "._~-")


def is_canonical(path: str) -> bool:
    """Whether a path is its own normal form, but for a trailing slash."""
    plain = path.removesuffix("/") or "/"
    bare = re.sub(r"/\+(?=[0-9]+(?:/|\Z))", "/", path)
    return posixpath.normpath(path) == plain and set(bare) <= UNRESERVED | {"/"}


@settings(max_examples=800)
@given(TARGETS | LIKELY | JOINED)
def test_P6_whatever_passes_is_canonical_and_sent_as_matched(raw: str) -> None:
    """A path that passes has no escapes, no dot segments, no empty ones, and is a tail of what arrived."""
    target = read(raw)
    if isinstance(target, Refusal):
        return
    assert is_canonical(target.path)
    assert target.path.startswith(ROOTS)
    assert target.segments == tuple(target.path.strip("/").split("/"))
    assert target.text.partition("?")[0] == target.path
    assert target.text.partition("?")[2] == target.query == raw.partition("?")[2]
    assert re.sub("%2[Bb]", "+", raw.partition("?")[0]).endswith(target.path)
    again = settle_target(Arrived(None, target.path, target.query, target.form), ("",), ROOTS)
    assert again == target


def test_P6_control_the_generator_finds_what_collapsing_would_let_out() -> None:
    """A naive proxy that matches the raw prefix and lets its client collapse dots leaves the allowlist."""

    def escapes(raw: str) -> bool:
        return raw.startswith("/v1/") and not posixpath.normpath(raw).startswith("/v1")

    raw = find(JOINED, escapes, settings=THOROUGH)
    assert isinstance(read(raw), Refusal)


def test_P6_control_the_generator_finds_targets_that_pass() -> None:
    """The property is not empty."""
    raw = find(LIKELY, lambda raw: isinstance(read(raw), Target) and "?" in raw, settings=THOROUGH)
    assert isinstance(read(raw), Target)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/stripe/refunds", "/v1/refunds"),
        ("/refunds/re_1", "/v1/refunds/re_1"),
        ("/stripe/v1/refunds", "/v1/refunds"),
        ("/v1/v1/refunds", "/v1/refunds"),
        ("/v3/refunds", "/v1/v3/refunds"),
        ("/stripe//refunds", None),
    ],
)
def test_a_base_url_may_leave_the_version_out_where_the_vendor_says_so(raw: str, path: str | None) -> None:
    """It is put in front of what starts with no root; nothing else is repaired."""
    arrived = read_target(raw, VENDORS)
    assert isinstance(arrived, Arrived)
    target = settle_target(arrived, JOINS, ROOTS, "/v1")
    if path is None:
        assert isinstance(target, Refusal)
    else:
        assert isinstance(target, Target)
        assert (target.path, target.segments) == (path, tuple(path.strip("/").split("/")))
