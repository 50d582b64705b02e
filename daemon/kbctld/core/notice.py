"""What an answer tells an agent that has little left: which cap, how much of it, and until when.

What must stay true: it tells nothing that ``GET /vault/self`` does not tell the same key: what is left of the
caps that bind it.
"""

from kbctld.core.grant import Grant
from kbctld.core.ledger import day_of
from kbctld.core.money import say_usd

_PERCENT = 80


def notice(grant: Grant, now_ns: int) -> str | None:
    """One sentence on the cap with the least left, of those of which four fifths are spent or held.

    In ASCII, whatever a tenant is called; None while no cap is that far.
    """
    day = day_of(now_ns)
    near = list[tuple[int, str]]()
    for scope in grant.scopes:
        for cap, left, name, until in (
            (scope.daily_cap_nano, scope.daily_room(day), "daily", "; it resets at 00:00 UTC"),
            (scope.total_cap_nano, scope.total_room(), "total", ", which does not reset"),
        ):
            if cap is None or left is None or left * 100 > cap * (100 - _PERCENT):
                continue
            left = max(left, 0)
            near.append(
                (left, f"{say_usd(left)} is left of the {say_usd(cap)} {name} cap of {scope.owner}{until}")
            )
    if not near:
        return None
    return f"kbctl: {min(near)[1]}".encode("ascii", "backslashreplace").decode("ascii")
