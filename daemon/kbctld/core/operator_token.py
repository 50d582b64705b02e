"""The text of an operator token: ``kbctl_tok_`` + 43 base62 digits (256 random bits) + 6 of CRC-32.

What must stay true: only the digest is ever stored; the checksum is for scanners and decides nothing; two
tokens are compared by digest, in constant time.

One regular expression finds them in logs and repositories: ``kbctl_tok_[0-9A-Za-z]{49}``.
"""

import zlib
from typing import Literal, TypeAlias

from kbctld.core.vault_key import base62

PREFIX = "kbctl_tok_"

Scope: TypeAlias = Literal["read", "issue", "admin"]

SCOPES: tuple[Scope, ...] = ("read", "issue", "admin")
"""Each may do all that those before it may."""


def mint(random: bytes) -> str:
    """The token of 32 random bytes."""
    if len(random) != 32:
        raise ValueError("an operator token takes 32 random bytes")
    body = base62(int.from_bytes(random, "big"), 43)
    return PREFIX + body + base62(zlib.crc32(f"{PREFIX}{body}".encode()), 6)


def covers(held: Scope, needed: Scope) -> bool:
    """Whether one scope may do what another one is needed for."""
    return SCOPES.index(held) >= SCOPES.index(needed)
