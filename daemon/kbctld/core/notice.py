"""What an answer tells an agent that has little left: which cap, how much of it, and until when.

What must stay true: it tells nothing that ``GET /vault/self`` does not tell the same key: what is left of the
caps that bind it.
"""

from kbctld.core.grant import Grant
from kbctld.core.ledger import Scope, day_of
from kbctld.core.money import say_usd

_LITTLE = 20
"""Per cent of a cap."""


def notice(grant: Grant, now_ns: int) -> str | None:
    """One sentence on the cap with the least left, of those of which four fifths are spent or held.

    In ASCII, whatever a tenant is called; None while no cap is that far.
    """
    day = day_of(now_ns)
    near: list[tuple[int, str]] = []
    for scope in grant.scopes:
        cap = scope.daily_cap_nano
        if cap is not None:
            left = cap - scope.account.used(day)
            if left * 100 <= cap * _LITTLE:
                near.append(_said(left, cap, "daily", scope, "; it resets at 00:00 UTC"))
        cap = scope.total_cap_nano
        if cap is not None:
            left = cap - scope.account.used_total()
            if left * 100 <= cap * _LITTLE:
                near.append(_said(left, cap, "total", scope, ", which does not reset"))
    if not near:
        return None
    return f"kbctl: {min(near)[1]}".encode("ascii", "backslashreplace").decode("ascii")


def _said(left: int, cap: int, name: str, scope: Scope, until: str) -> tuple[int, str]:
    left = max(left, 0)
    return left, f"{say_usd(left)} is left of the {say_usd(cap)} {name} cap of {scope.owner}{until}"
