"""Idempotency keys of tenants that share one account of a vendor, kept apart.

A vendor keeps such keys by account: two tenants that both send ``order-1`` get each other's answer, or an
error. What must stay true: the same tenant and the same key give the same key at the vendor, after every
restart and on every machine; and no agent can choose a key that gives another tenant's.
"""

import hashlib


def namespaced(tenant: str | None, key: bytes) -> bytes:
    """The key to send in place of an agent's own: 70 characters, as Stripe (255) and Resend (256) take them.

    Keys without a tenant share a namespace of their own: sent as they are, one could be made to look like
    another tenant's.
    """
    name = b"-" if tenant is None else b"tenant:" + tenant.encode()
    digest = hashlib.blake2b(name + b"\0" + key, digest_size=32, person=b"kbctl-idem-key")
    return b"kbctl-" + digest.hexdigest().encode("ascii")
