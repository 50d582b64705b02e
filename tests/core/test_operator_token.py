"""The text of an operator token, and which scope may do what."""

import re

import pytest

from kbctld.core.operator_token import SCOPES, Scope, covers, mint
from kbctld.core.vault_key import is_well_formed


@pytest.mark.parametrize("random", [bytes(32), b"\xff" * 32, bytes(range(32))])
def test_a_token_is_found_by_one_expression_and_is_no_vault_key(random: bytes) -> None:
    """Prefix, 43 digits for 256 bits, 6 for the checksum."""
    assert re.fullmatch(r"kbctl_tok_[0-9A-Za-z]{49}", mint(random))
    assert not is_well_formed(mint(random))


def test_known_texts() -> None:
    """They never change: scanners know them."""
    assert mint(bytes(32)).startswith("kbctl_tok_" + "0" * 43)
    assert len({mint(bytes([n]) + bytes(31)) for n in range(256)}) == 256


@pytest.mark.parametrize("length", [0, 31, 33])
def test_fewer_bits_are_refused(length: int) -> None:
    """Never a weak token by mistake."""
    with pytest.raises(ValueError, match="32"):
        mint(bytes(length))


@pytest.mark.parametrize("held", SCOPES)
@pytest.mark.parametrize("needed", SCOPES)
def test_scopes_are_a_ladder(held: Scope, needed: Scope) -> None:
    """read < issue < admin."""
    assert covers(held, needed) == (SCOPES.index(held) >= SCOPES.index(needed))
