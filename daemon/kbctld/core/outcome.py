"""What an answer, or the lack of one, proves about money. Silence is not a refund."""

from kbctld.core.ledger import Verdict


def verdict_of(status: int) -> Verdict:
    """What a complete answer with this HTTP status proves.

    2xx: done. 4xx: definitely not done, 429 too; but 409 may speak of another attempt that is still
    running. 3xx and 5xx: nothing is proved; Stripe stores even 500s as the result of work that began.
    """
    if 200 <= status < 300:
        return Verdict.POSTED
    if 400 <= status < 500 and status != 409:
        return Verdict.REFUSED
    return Verdict.SILENT
