"""The text of a vault key: ``vault_key_`` + 43 base62 digits (256 random bits) + 6 base62 digits of CRC-32.

What must stay true: only the digest is ever stored; the checksum is for typing errors and scanners and
decides nothing; two keys are compared by digest, in constant time.

One regular expression finds them in logs and repositories: ``vault_key_[0-9A-Za-z]{49}``.
"""

import hashlib
import hmac
import re
import zlib

PREFIX = "vault_key_"
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_DIGITS = 43  # 62**43 > 2**256
_CHECK_DIGITS = 6  # 62**6 > 2**32
_SHAPE = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{_RANDOM_DIGITS}}})([0-9A-Za-z]{{{_CHECK_DIGITS}}})", re.ASCII)


def base62(number: int, width: int) -> str:
    """``number`` in base 62, left-padded with zeros to ``width`` digits."""
    digits = []
    while number:
        number, rest = divmod(number, 62)
        digits.append(ALPHABET[rest])
    return "".join(reversed(digits)).rjust(width, "0")


def mint(random: bytes) -> str:
    """The vault key of 32 random bytes."""
    if len(random) != 32:
        raise ValueError("a vault key takes 32 random bytes")
    body = base62(int.from_bytes(random, "big"), _RANDOM_DIGITS)
    return PREFIX + body + _checksum(body)


def is_well_formed(text: str) -> bool:
    """Whether prefix, length, alphabet and checksum are right."""
    match = _SHAPE.fullmatch(text)
    return match is not None and hmac.compare_digest(_checksum(match[1]), match[2])


def digest(text: str) -> bytes:
    """What is stored and looked up instead of the key. 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(text.encode()).digest()


def same(left: bytes, right: bytes) -> bool:
    """Compare two digests in constant time."""
    return hmac.compare_digest(left, right)


def _checksum(body: str) -> str:
    return base62(zlib.crc32(f"{PREFIX}{body}".encode()), _CHECK_DIGITS)
