"""Idempotency keys of tenants that share an account: apart, and always the same."""

import re

from kbctld.core.idempotency import namespaced

EXPECTED = b"kbctl-027ab672ddf18647d61a41e7540c5714fec08643eb6894e6d1f4d094fd73d41b"


def test_two_tenants_with_one_key_have_two_at_the_vendor() -> None:
    """Nor does a key without a tenant have a third one's, whatever it sends."""
    names = [None, "acme", "acme2", "-", "tenant:acme", "a\u00fc"]
    sent = {
        namespaced(name, key) for name in names for key in (b"order-1", b"acme\0order-1", b"tenant:acme\0x")
    }
    assert len(sent) == 3 * len(names)


def test_what_is_sent_is_the_same_for_ever_and_short_plain_text() -> None:
    """A change here would make every retry that is under way a second charge."""
    assert namespaced("acme", b"order-1") == EXPECTED
    for key in (b"", b"k" * 255, bytes(range(32, 127)), b"\xff" * 300):
        assert re.fullmatch(rb"kbctl-[0-9a-f]{64}", namespaced("acme", key))
