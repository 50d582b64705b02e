"""Phone calls are priced by the minute, for as long as they may last at most.

What must stay true: no call leaves without a bound on its length. Where the agent states none, the proxy
writes the vendor file's into the request (``bounds``), and that is what is priced.
"""

import re

from kbctld.core.document import Batch, Document
from kbctld.core.form import Form
from kbctld.core.operation import Minutes
from kbctld.core.sms import phone_number
from kbctld.core.tariff import Tariff, UntoldError

_SECONDS = re.compile(r"[0-9]{1,6}", re.ASCII)


def price_minutes(cost: Minutes, body: Form | Document | Batch, tariff: Tariff) -> int:
    """Nano-USD of every begun minute.

    Raises:
        UntoldError: no length, an odd one, or a destination that is no phone.
        AmbiguousFieldError: a field with two readings.
    """
    text = body.one(cost.seconds)
    if text is None and cost.default_seconds is not None:
        text = str(cost.default_seconds)
    if text is None:
        raise UntoldError(f"it states no {cost.seconds}", f"state {cost.seconds}, in seconds: 600")
    if not _SECONDS.fullmatch(text):
        raise UntoldError(f"its {cost.seconds} is not a plain count of seconds", f"send {cost.seconds}=600")
    # Zero is no length: a vendor may take it for its own default.
    if int(text) == 0:
        raise UntoldError(f"its {cost.seconds} is zero", f"send {cost.seconds}=600")
    if int(text) > cost.at_most:
        raise UntoldError(
            f"its {cost.seconds} is more than {cost.at_most} seconds",
            f"send {cost.seconds}={cost.at_most} or less",
        )
    minutes = -(-int(text) // 60)
    return minutes * tariff.at(tariff.minute, phone_number(body, cost.to))
