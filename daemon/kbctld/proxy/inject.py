"""The head that leaves: built by us, from one target and an allowlist; the only place that reveals a secret.

What must stay true: nothing of the agent's head is copied but named fields; there is one Host, from the
vendor's origin, one credential, from the keyring, and one length, from the body.
"""

import base64
from collections.abc import Iterable

from kbctld.core.policy import Access
from kbctld.core.vendor_file import AuthScheme
from kbctld.credentials import Credential


def outbound_head(
    access: Access,
    authority: str,
    credential: Credential,
    slot: AuthScheme,
    fields: Iterable[tuple[bytes, bytes]],
    length: int | None,
) -> bytes:
    """The bytes of the head, from the request line to the empty line.

    Args:
        access: method and target.
        authority: the origin's host, and port where it is not the scheme's own.
        credential: the real key, and what goes with it.
        slot: where the agent sent its vault key; the real one goes there too if the vendor takes it.
        fields: the agent's fields, already without those that Connection names.
        length: bytes of the body; None for no body at all.
    """
    out = bytearray(f"{access.method} {access.target.text} HTTP/1.1\r\nHost: {authority}\r\n".encode("ascii"))
    out += _authorization(access, credential, slot)
    # Encoded answers would have to be decoded to be searched for the secret and for amounts.
    out += b"Accept-Encoding: identity\r\n"
    forwarded, accounts = access.vendor.forwarded, access.accounts
    for name, value in fields:
        if name in forwarded or (accounts and name.decode("latin-1") in accounts):
            out += name + b": " + value + b"\r\n"
    if length is not None:
        out += b"Content-Length: %d\r\n" % length
    elif access.method not in ("GET", "HEAD"):
        out += b"Content-Length: 0\r\n"
    out += b"\r\n"
    return bytes(out)


def _authorization(access: Access, credential: Credential, slot: AuthScheme) -> bytes:
    auth = access.vendor.file.auth
    secret = credential.revealed().reveal().encode("ascii")
    match slot if slot in auth.also else auth.scheme:
        case "bearer":
            return b"Authorization: Bearer " + secret + b"\r\n"
        case "x-api-key":
            return b"x-api-key: " + secret + b"\r\n"
        case "header":
            return (auth.header or "").encode("ascii") + b": " + secret + b"\r\n"
        case "basic":
            user = credential.fields[auth.user or ""].encode("ascii")
            return b"Authorization: Basic " + base64.b64encode(user + b":" + secret) + b"\r\n"
