"""The text of a vault key: its shape, its checksum, and that only a digest is kept."""

import hashlib
import hmac
import re
import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kbctld.core import vault_key
from kbctld.core.vault_key import PREFIX, base62, digest, is_well_formed, mint, same

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM = st.binary(min_size=32, max_size=32)
KEY = mint(bytes(range(32)))


@given(RANDOM)
def test_K_a_minted_key_has_the_shape_that_scanners_look_for(random: bytes) -> None:
    """Every key is vault_key_ and 49 letters and digits, and is well-formed."""
    key = mint(random)
    assert re.fullmatch(r"vault_key_[0-9A-Za-z]{49}", key)
    assert is_well_formed(key)


@given(RANDOM)
def test_K_a_key_holds_all_256_bits(random: bytes) -> None:
    """The random bytes can be read back from the text, so none of them was lost."""
    number = 0
    for letter in mint(random)[len(PREFIX) : -6]:
        number = number * 62 + ALPHABET.index(letter)
    assert number.to_bytes(32, "big") == random


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_K_a_key_takes_exactly_256_bits(length: int) -> None:
    """Fewer random bytes are an error, never a weaker key."""
    with pytest.raises(ValueError, match="32 random bytes"):
        mint(bytes(length))


@given(RANDOM, st.integers(0, 58), st.sampled_from(ALPHABET))
def test_K_the_checksum_catches_any_single_changed_character(random: bytes, at: int, letter: str) -> None:
    """One wrong character anywhere, prefix included, and the key is not well-formed."""
    key = mint(random)
    assume(key[at] != letter)
    assert not is_well_formed(key[:at] + letter + key[at + 1 :])


@given(RANDOM, st.integers(0, 57))
def test_K_the_checksum_catches_two_swapped_neighbours(random: bytes, at: int) -> None:
    """Two neighbours in the wrong order, and the key is not well-formed."""
    key = mint(random)
    assume(key[at] != key[at + 1])
    assert not is_well_formed(key[:at] + key[at + 1] + key[at] + key[at + 2 :])


def test_K_every_single_change_and_swap_of_one_key_is_caught() -> None:
    """For one key, all of them: 59 places by 62 characters, and 58 swaps."""
    changed = [KEY[:n] + letter + KEY[n + 1 :] for n in range(len(KEY)) for letter in ALPHABET + "_"]
    swapped = [KEY[:n] + KEY[n + 1] + KEY[n] + KEY[n + 2 :] for n in range(len(KEY) - 1)]
    assert {text for text in changed + swapped if is_well_formed(text)} == {KEY}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param(KEY[:-1], id="one short"),
        pytest.param(KEY + "0", id="one long"),
        pytest.param(" " + KEY, id="a blank in front"),
        pytest.param(KEY + "\n", id="a newline behind"),
        pytest.param(KEY.upper(), id="capitals"),
        pytest.param(KEY.replace("vault_key_", "sk_test_xx"), id="another prefix"),
        pytest.param(KEY[:-1] + "-", id="not a letter"),
        pytest.param(KEY[:20] + "\uff11" + KEY[21:], id="a full-width digit"),
    ],
)
def test_K_other_texts_are_not_well_formed(text: str) -> None:
    """Length, alphabet and prefix count to the letter."""
    assert not is_well_formed(text)


@pytest.mark.parametrize(
    ("number", "width", "text"),
    [(0, 3, "000"), (61, 1, "z"), (62, 2, "10"), (62, 4, "0010"), (62**3 - 1, 3, "zzz"), (62, 1, "10")],
)
def test_base62_counts_in_digits_capitals_and_small_letters(number: int, width: int, text: str) -> None:
    """Numbers are padded on the left and never cut."""
    assert base62(number, width) == text


def test_K_the_digest_is_sha256_of_the_whole_text() -> None:
    """What is stored doesn't hold any part of the key."""
    assert digest(KEY) == hashlib.sha256(KEY.encode()).digest()
    assert KEY.encode() not in digest(KEY)


def test_K_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equality of digests, and of checksums, is asked of compare_digest and of nothing else."""
    asked: list[tuple[object, object]] = []

    def watched(left: bytes, right: bytes) -> bool:
        asked.append((left, right))
        return hmac.compare_digest(left, right)

    class Watched:
        compare_digest = staticmethod(watched)

    monkeypatch.setattr(vault_key, "hmac", Watched)
    assert same(b"a" * 32, b"a" * 32)
    assert not same(b"a" * 32, b"b" * 32)
    assert is_well_formed(KEY)
    assert asked == [(b"a" * 32, b"a" * 32), (b"a" * 32, b"b" * 32), (KEY[-6:], KEY[-6:])]
