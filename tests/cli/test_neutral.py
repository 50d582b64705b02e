"""No text of somebody else's is a control."""

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from kbctl.neutral import neutral, neutral_json


def test_what_is_left_alone() -> None:
    """Words of any script, and what is drawn."""
    for text in ("plain ascii ~!", "Grüße, 世界", "█▒░ → é", "👍"):
        assert neutral(text) == text


def test_what_is_spelled_out() -> None:
    """Escapes, one-character controls, breaks, direction marks, what is invisible."""
    for text, shown in (
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b2J", "\\x9b2J"),
        ("a\nb\rc\td\x00", "a\\x0ab\\x0dc\\x09d\\x00"),
        ("\u202e\u2066\u200b\ufeff\u2028", "\\u202e\\u2066\\u200b\\ufeff\\u2028"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
    ):
        assert neutral(text) == shown


@given(st.text())
def test_nothing_gets_through(text: str) -> None:
    """Whatever it is, no control, format or break remains, and it is one line."""
    shown = neutral(text)

    assert not any(unicodedata.category(character)[0] == "C" for character in shown)
    assert len(shown.splitlines()) <= 1


@given(st.text())
def test_json_keeps_its_values(text: str) -> None:
    """Escaped, never changed."""
    document = neutral_json(json.dumps({text: [text]}, ensure_ascii=False))

    assert json.loads(document) == {text: [text]}
    assert not any(unicodedata.category(character)[0] == "C" for character in document)
