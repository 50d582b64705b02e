"""A host is a label out of a list, an account the credential's own or one that a rule lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbctld.core.account import AccountTable, Acting, find_account
from kbctld.core.hosts import HostTable
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import Target, read_target
from kbctld.core.vendor import read_vendor
from kbctld.core.vendor_file import VendorFileError
from tests.core.support import HEAD

LABELS = '["api", "verify", "flex-api"]'
HOSTS = f"""
[hosts]
template = "https://{{label}}.acme.test"
default = "api"
labels = {LABELS}

[[operation]]
name = "things.list"
match = "GET /verify/v2/things"
cost = {{ kind = "free" }}
"""
ROOT = HEAD.replace('["/v1/", "/v2/"]', '["/2010/"]').replace('joins = ["/", "/v1", "/v1/"]', 'joins = ["/"]')
FILE = ROOT + HOSTS
ACME = read_vendor(FILE)


def settle(raw: str) -> Target | Refusal:
    """What a target means at this vendor."""
    arrived = read_target(raw, frozenset({"acme"}))
    return arrived if isinstance(arrived, Refusal) else ACME.settle(arrived)


@pytest.mark.parametrize(
    ("raw", "path", "label", "there"),
    [
        ("/acme/2010/a.json", "/2010/a.json", "api", "/2010/a.json"),
        ("/2010/a.json", "/2010/a.json", "api", "/2010/a.json"),
        ("/acme//2010/a.json", "/2010/a.json", "api", "/2010/a.json"),
        ("/acme/api/2010/a", "/2010/a", "api", "/2010/a"),
        ("/acme/api.acme.test/2010/a", "/2010/a", "api", "/2010/a"),
        ("/acme//api.acme.test/2010/a", "/2010/a", "api", "/2010/a"),
        ("/acme/verify/v2/s", "/verify/v2/s", "verify", "/v2/s"),
        ("/acme/verify.acme.test/v2/s?x=1", "/verify/v2/s", "verify", "/v2/s"),
        ("/acme/flex-api.acme.test/v1/", "/flex-api/v1/", "flex-api", "/v1/"),
        ("/acme/verify/2010/a", "/verify/2010/a", "verify", "/2010/a"),
    ],
)
def test_a_path_means_one_host_and_has_one_form(raw: str, path: str, label: str, there: str) -> None:
    """By its label, by its name, and without either the default one."""
    target = settle(raw)
    assert isinstance(target, Target)
    assert target.path == path
    assert target.segments == tuple(path.strip("/").split("/"))
    assert ACME.hosts is not None
    assert ACME.hosts.split(target.path) == (label, there)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        ("/acme/v1/s", Code.AMBIGUOUS_REQUEST),
        ("/acme/v2/s", Code.AMBIGUOUS_REQUEST),
        ("/v2/s", Code.AMBIGUOUS_REQUEST),
        ("/acme/evil/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/evil.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/evil.acme.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/verify.acme.test.evil.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/verify.evil.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/a.verify.acme.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/verify.acme.test.acme.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/Verify/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/.acme.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/acme.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/api/v1/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/api/verify/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/api.acme.test/verify.acme.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/2010", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme/verify.acme.test:443/v2/s", Code.AMBIGUOUS_REQUEST),
        ("/acme/u@verify.acme.test/v2/s", Code.AMBIGUOUS_REQUEST),
        ("/acme/verify.acme.test%2fv2/s", Code.AMBIGUOUS_REQUEST),
        ("/acme/verify/../api/2010/a", Code.AMBIGUOUS_REQUEST),
        ("/acme/verify//v2/s", Code.AMBIGUOUS_REQUEST),
        ("//verify.acme.test/v2/s", Code.ENDPOINT_NOT_ALLOWED),
        ("/acme///verify/v2/s", Code.AMBIGUOUS_REQUEST),
    ],
)
def test_law_6_and_11_no_other_host_can_be_asked_for(raw: str, code: Code) -> None:
    """A name, a part of one, a port, a user, an escape: none becomes a host."""
    refusal = settle(raw)
    assert isinstance(refusal, Refusal), refusal
    assert refusal.code is code, refusal.sentence


@given(st.text(alphabet="/.-2010vapicmetsrfy", max_size=40))
def test_law_6_every_host_is_one_of_the_list(text: str) -> None:
    """Whatever is sent."""
    target = settle("/acme/" + text)
    if isinstance(target, Target):
        assert ACME.hosts is not None
        label, there = ACME.hosts.split(target.path)
        assert ACME.hosts.origin(label) in {
            f"https://{each}.acme.test" for each in ("api", "verify", "flex-api")
        }
        assert there.startswith("/")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("https://{label}.acme.test", "http://{label}.acme.test", "`hosts.template`"),
        ("https://{label}.acme.test", "https://{label}", "`hosts.template`"),
        ("https://{label}.acme.test", "https://acme.test/{label}", "`hosts.template`"),
        ("https://{label}.acme.test", "https://{label}.acme.test:1", "`hosts.template`"),
        ("https://{label}.acme.test", "https://{label}.other.test", "`hosts.default`"),
        ('default = "api"', 'default = "verify"', "`hosts.default`"),
        ('default = "api"', 'default = "none"', "`hosts.default`"),
        ('"flex-api"', '"flex.api"', "`hosts.labels`"),
        ('"flex-api"', '"v2"', "`hosts.labels`"),
        (LABELS, "[]", "$.hosts.labels"),
        ('default = "api"', 'default = "api"\nport = 1', "unknown field `port`"),
    ],
)
def test_law_10_hosts_that_cannot_be_are_errors(old: str, new: str, says: str) -> None:
    """The template is https and a domain; the labels are words."""
    assert old in FILE
    with pytest.raises(VendorFileError) as raised:
        read_vendor(FILE.replace(old, new))
    assert says in str(raised.value)


def test_an_account_is_a_field_of_the_credential() -> None:
    """It takes scheme basic and the same field."""
    account = '\n[account]\nfield = "sid"\nafter = "A"\nalias = "AC00"\nprefix = "AC"\n'
    with pytest.raises(VendorFileError, match=r"account\.field"):
        read_vendor(FILE + account)
    basic = FILE.replace('{ scheme = "bearer" }', '{ scheme = "basic", user = "sid" }')
    assert read_vendor(basic + account).file.account == TABLE_SMALL


TABLE_SMALL = AccountTable(field="sid", after="A", alias="AC00", prefix="AC")
OWN, OTHER, ALIAS = (f"AC{digit * 32}" for digit in "570")
TABLE = AccountTable(field="account_sid", after="Accounts", alias=ALIAS, prefix="AC")


def find(path: str, query: str = "") -> Acting | Refusal:
    """Whose account a path is of."""
    from kbctld.core.form import read_form

    target = Target(path, tuple(path.strip("/").split("/")), query, read_form(query.encode()))
    return find_account(TABLE, target, OWN)


@pytest.mark.parametrize(
    ("path", "settled", "own", "other"),
    [
        (f"/2010/Accounts/{ALIAS}/M.json", f"/2010/Accounts/{OWN}/M.json", OWN, None),
        (f"/2010/Accounts/{OWN}/M.json", f"/2010/Accounts/{OWN}/M.json", OWN, None),
        (f"/2010/Accounts/{ALIAS}.json", f"/2010/Accounts/{OWN}.json", OWN, None),
        (f"/2010/Accounts/{ALIAS}/", f"/2010/Accounts/{OWN}/", OWN, None),
        (f"/2010/Accounts/{OTHER}/M.json", f"/2010/Accounts/{OTHER}/M.json", None, OTHER),
        (f"/2010/Accounts/{OTHER}.json", f"/2010/Accounts/{OTHER}.json", None, OTHER),
        ("/2010/Accounts/me/M.json", "/2010/Accounts/me/M.json", None, "me"),
        (f"/2010/Accounts/{OWN.lower()}/M", f"/2010/Accounts/{OWN.lower()}/M", None, OWN.lower()),
        (f"/verify/v2/{OTHER}", f"/verify/v2/{OTHER}", None, OTHER),
        (f"/2010/Accounts/{OWN}/To/{OTHER}", f"/2010/Accounts/{OWN}/To/{OTHER}", OWN, OTHER),
        ("/accounts/v1/x", "/accounts/v1/x", None, None),
        ("/2010/Accounts.json", "/2010/Accounts.json", None, None),
    ],
)
def test_law_11_an_account_is_its_own_or_another(
    path: str, settled: str, own: str | None, other: str | None
) -> None:
    """The alias becomes the credential's; what stands in an id's place is one."""
    acting = find(path)
    assert isinstance(acting, Acting)
    assert (acting.target.path, acting.own, acting.other) == (settled, own, other)
    assert acting.target.segments == tuple(settled.strip("/").split("/"))


def test_another_account_in_the_query_is_another_account() -> None:
    """Two of them are refused."""
    acting = find(f"/2010/Accounts/{OWN}/M.json", f"Sub={OTHER}")
    assert isinstance(acting, Acting)
    assert acting.other == OTHER
    two = find(f"/2010/Accounts/AC{'8' * 32}/M.json", f"Sub={OTHER}")
    assert isinstance(two, Refusal)
    assert two.code is Code.AMBIGUOUS_REQUEST


def test_a_table_says_what_is_wrong_with_it() -> None:
    """Or nothing."""
    table = HostTable(template="https://{label}.acme.test", default="api", labels=["api"])
    assert table.problem("https://api.acme.test") is None
    assert table.problem("https://www.acme.test") is not None
