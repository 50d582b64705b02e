"""Where a vault key stands in a request: every slot is read, and exactly one key must be there."""

import base64

import pytest

from kbctld.core.refusal import Code, Refusal
from kbctld.core.slots import Shown, find_vault_key
from kbctld.core.vault_key import mint

KEY = mint(bytes(range(32)))
OTHER = mint(bytes(32))


def basic(user: str, password: str = "") -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


def bearer(text: str) -> bytes:
    return f"Bearer {text}".encode()


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        pytest.param(bearer(KEY), None, id="bearer"),
        pytest.param(b"bEARER   " + KEY.encode() + b" ", None, id="another case and blanks"),
        pytest.param(basic(KEY), None, id="user"),
        pytest.param(basic("AC1", KEY), None, id="password"),
        pytest.param(None, KEY.encode(), id="x-api-key"),
        pytest.param(bearer(KEY), KEY.encode(), id="the same twice"),
        pytest.param(bearer("sk_live_1"), KEY.encode(), id="beside something else"),
        pytest.param(b"Digest x", KEY.encode(), id="beside another scheme"),
    ],
)
def test_a_key_is_found_wherever_an_sdk_puts_it(authorization: bytes | None, api_key: bytes | None) -> None:
    """Whatever else stands there is dropped."""
    shown = find_vault_key(authorization, api_key)
    assert isinstance(shown, Shown)
    assert shown.key == KEY


@pytest.mark.parametrize(
    ("authorization", "api_key", "code", "says"),
    [
        pytest.param(None, None, Code.KEY_MISSING, "carries no vault key", id="nothing"),
        pytest.param(b"Bearer", None, Code.KEY_MISSING, "carries no vault key", id="an empty bearer"),
        pytest.param(b"Digest x", None, Code.KEY_MISSING, "carries no vault key", id="another scheme"),
        pytest.param(b"Basic ====", None, Code.KEY_MISSING, "carries no vault key", id="no base64"),
        pytest.param(bearer("sk_live_1"), None, Code.KEY_MISSING, "no vault key", id="a real secret"),
        pytest.param(bearer(KEY[:-1]), None, Code.KEY_UNKNOWN, "mistyped", id="a part of a key"),
        pytest.param(bearer(KEY), OTHER.encode(), Code.AMBIGUOUS_REQUEST, "two", id="two keys"),
        pytest.param(basic(KEY, OTHER), None, Code.AMBIGUOUS_REQUEST, "two", id="two in one header"),
    ],
)
def test_law_6_what_is_no_one_key_is_refused_and_not_repeated(
    authorization: bytes | None, api_key: bytes | None, code: Code, says: str
) -> None:
    """It may be somebody's real secret."""
    verdict = find_vault_key(authorization, api_key)
    assert isinstance(verdict, Refusal)
    assert verdict.code is code
    assert says in verdict.sentence
    assert not any(text in verdict.sentence + verdict.remedy for text in ("sk_live_1", KEY[:-1]))


def test_a_key_is_found_in_a_header_of_the_vendor_s_own() -> None:
    """Alone or beside others; two of them are one too many there as well."""
    assert find_vault_key(None, None, [KEY.encode()]) == Shown(KEY, "header")
    assert find_vault_key(bearer("sk_live_1"), None, [KEY.encode()]) == Shown(KEY, "header")
    for others in ([KEY.encode(), OTHER.encode()], [OTHER.encode(), KEY.encode()]):
        verdict = find_vault_key(None, None, others)
        assert isinstance(verdict, Refusal)
        assert verdict.code is Code.AMBIGUOUS_REQUEST
    verdict = find_vault_key(bearer(KEY), None, [OTHER.encode()])
    assert isinstance(verdict, Refusal)
    assert verdict.code is Code.AMBIGUOUS_REQUEST
