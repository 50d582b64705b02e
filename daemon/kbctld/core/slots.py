"""Where a vault key stands in a request. Pure.

SDKs put their key into ``Authorization: Bearer``, ``Authorization: Basic`` (as user or password),
``x-api-key`` or a header of the vendor's own. All of these are read; exactly one distinct vault key must be
among them. Whatever else stands there is dropped, never forwarded and never repeated in an answer: it may be
a real secret.
"""

import base64
import binascii
from collections.abc import Iterable

from msgspec import Struct

from kbctld.core.refusal import Code, Refusal
from kbctld.core.vault_key import PREFIX, is_well_formed
from kbctld.core.vendor_file import AuthScheme


class Shown(Struct, frozen=True):
    """A vault key, and where it stood."""

    key: str
    slot: AuthScheme


def find_vault_key(
    authorization: bytes | None, api_key: bytes | None, own: Iterable[bytes] = ()
) -> Shown | Refusal:
    """The one vault key of a request.

    Args:
        authorization: the value of ``Authorization``.
        api_key: the value of ``x-api-key``.
        own: the values of the headers that vendors have of their own.
    """
    texts: list[tuple[str, AuthScheme]] = []
    if authorization is not None:
        scheme, _, value = authorization.decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            texts.append((value.strip(" "), "bearer"))
        elif scheme.lower() == "basic":
            texts.extend((text, "basic") for text in _basic(value.strip(" ")))
    if api_key is not None:
        texts.append((api_key.decode("latin-1"), "x-api-key"))
    texts.extend((value.decode("latin-1"), "header") for value in own)
    keys = {text: slot for text, slot in reversed(texts) if text.startswith(PREFIX)}
    if len(keys) > 1:
        return Refusal(Code.AMBIGUOUS_REQUEST, "the request carries two different vault keys", "send one")
    if not keys:
        remedy = "use a key from `kbctl issue` as the SDK's API key"
        if any(text for text, _ in texts):
            return Refusal(Code.KEY_MISSING, "the request carries a credential that is no vault key", remedy)
        return Refusal(Code.KEY_MISSING, "the request carries no vault key", remedy)
    ((key, slot),) = keys.items()
    if not is_well_formed(key):
        return Refusal(
            Code.KEY_UNKNOWN,
            "the vault key is incomplete or mistyped: its checksum is wrong",
            "copy the whole key: vault_key_ and 49 letters and digits",
        )
    return Shown(key, slot)


def _basic(value: str) -> list[str]:
    try:
        user, _, password = base64.b64decode(value, validate=True).decode("latin-1").partition(":")
    except (binascii.Error, ValueError):
        return []
    return [user, password]
