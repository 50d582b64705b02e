"""P17: the needle is found at every split; nothing that could begin it leaves early."""

import base64
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbctld.proxy.scrub import Scrubber

SECRET = "sk_live_51H/4eC39+HqLyjWDarjtT1zdp7dc"
RAW = SECRET.encode()

DISGUISES = [
    RAW,
    RAW.upper(),
    RAW.lower(),
    RAW.hex().encode(),
    RAW.hex().upper().encode(),
    quote(SECRET, safe="").encode(),
    "".join(f"%{byte:02X}" for byte in RAW).encode(),
    "".join(f"%{byte:02x}" for byte in RAW).encode(),
    base64.b64encode(RAW),
    *(base64.b64encode(lead + RAW + tail) for lead in (b"a", b"ab", b"user:") for tail in (b"", b":", b"xy")),
    *(base64.urlsafe_b64encode(lead + RAW) for lead in (b"", b"a", b"ab")),
]


@pytest.mark.parametrize("needle", DISGUISES)
def test_every_disguise_is_found_at_every_split(needle: bytes) -> None:
    scrubber = Scrubber(SECRET)
    text = b'{"message": "you sent ' + needle + b'"}'
    assert scrubber.finds(text)
    for cut in range(len(text) + 1):
        stream = scrubber.stream()
        passed = stream.feed(text[:cut]) + stream.feed(text[cut:]) + stream.rest()
        assert stream.found
        assert needle[:12] not in passed, "no more than what stands before the secret itself"


@pytest.mark.parametrize("needle", DISGUISES)
def test_every_disguise_is_found_byte_by_byte(needle: bytes) -> None:
    stream = Scrubber(SECRET).stream()
    passed = b"".join(stream.feed(bytes([byte])) for byte in b"before " + needle + b" after")
    assert stream.found
    assert passed.startswith(b"before ")
    assert len(passed) < len(b"before ") + 12
    assert stream.rest() == b""
    assert stream.feed(b"anything") == b"", "once found, nothing more passes"


def test_text_without_the_secret_passes_whole_and_at_once() -> None:
    stream = Scrubber(SECRET).stream()
    assert stream.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert stream.feed(b"") == b""
    assert stream.rest() == b""


def test_what_could_be_its_beginning_waits_until_it_is_not() -> None:
    stream = Scrubber(SECRET).stream()
    assert stream.feed(b"key sk_li") == b"key "
    assert stream.feed(b"ve_51H") == b""
    assert stream.feed(b"!") == b"sk_live_51H!"
    assert stream.feed(b"sk_live_sk_li") == b"sk_live_"
    assert stream.rest() == b"sk_li"


def test_a_secret_that_repeats_itself_is_found() -> None:
    """Where a naive search gives up too much after a false start."""
    secret = "abababac" * 2
    for false_start in range(1, 16):
        stream = Scrubber(secret).stream()
        for letter in secret[:false_start] + secret:
            stream.feed(letter.encode())
        assert stream.found


texts = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([RAW, RAW[:10], RAW[:-1], RAW[-5:], b"s", base64.b64encode(RAW)[:20]]),
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=400, deadline=None, database=None)
@given(text=texts, cuts=st.lists(st.integers(0, 400), max_size=8))
def test_however_it_is_cut_it_passes_all_or_finds_it(text: bytes, cuts: list[int]) -> None:
    scrubber = Scrubber(SECRET)
    edges = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    stream = scrubber.stream()
    passed = b""
    for start, end in pairwise(edges):
        passed += stream.feed(text[start:end])
        assert not scrubber.finds(passed)
    passed += stream.rest()
    assert stream.found is scrubber.finds(text)
    assert text.startswith(passed) if stream.found else passed == text


@pytest.mark.parametrize("secret", ["12345678", 'a b/c+d=e&f"g\\h', "x" * 4096])
def test_any_secret_that_can_be_set_can_be_looked_for(secret: str) -> None:
    scrubber = Scrubber(secret)
    assert scrubber.finds(b"<" + secret.encode() + b">")
    assert not scrubber.finds(b"nothing of the kind" * 100)
