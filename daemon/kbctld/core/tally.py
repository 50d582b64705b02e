"""Counts of what the proxy did since it started, for whoever watches it.

What must stay true: counting costs a call less than two microseconds and can't fail it; the names counted
under are a closed set (vendors, codes, outcomes), never what an agent sent.
"""

from bisect import bisect_left

BOUNDS_US = (250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 10_000_000)
"""Upper bounds of the histogram of our own time."""


class Tally:
    """What ended, and how.

    Attributes:
        calls: by vendor (empty where none was known), ``allowed`` or the refusal's code, and outcome.
        added: calls whose time of our own is up to the bound of the same place; the last is for the rest.
        added_us: the sum of it.
    """

    __slots__ = ("added", "added_us", "calls")

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str, str], int] = {}
        self.added = [0] * (len(BOUNDS_US) + 1)
        self.added_us = 0

    def ended(self, vendor: str | None, result: str, outcome: str) -> None:
        """One more attempt has ended so."""
        key = (vendor or "", result, outcome)
        self.calls[key] = self.calls.get(key, 0) + 1

    def took(self, own_us: int) -> None:
        """A forwarded call was with us, not with the vendor, for so long."""
        self.added[bisect_left(BOUNDS_US, own_us)] += 1
        self.added_us += own_us
