"""Pretend vendors: somewhere for `kbctl up --sandbox`, `kbctl demo` and the tests to send money.

The pretend Stripe is an independent accountant. It counts every cent it moved by rules of its own, and
a test that compares its book with our ledger means something only while the two share no code: nothing
here imports any other part of kbctld, and nothing but the composition root imports this.

    errors      a refusal in Stripe's words
    form        Stripe's form encoding, read strictly
    book        what was authorised and what moved, and the file that survives `kill -9`
    state       objects and idempotency results; one transaction per request
    operations  what each call does
    stripe      one request to one answer: key, route, idempotency, faults
    server      HTTP/1.1 on loopback
"""

from kbctld.sandbox.book import BookDamagedError, BookInUseError, Entry
from kbctld.sandbox.server import RunningSandbox, start
from kbctld.sandbox.stripe import Sandbox

__all__ = ["BookDamagedError", "BookInUseError", "Entry", "RunningSandbox", "Sandbox", "start"]
