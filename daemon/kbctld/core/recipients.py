"""Mails are priced by recipient: every one in to, cc and bcc, of every mail of a batch.

What must stay true: a text is one recipient or the request is refused; a list hidden in one text (two
addresses with a comma) would otherwise count once and be billed twice. The same address twice counts twice.
"""

import re

from kbctld.core.document import Batch, Document
from kbctld.core.form import Form
from kbctld.core.operation import Recipients
from kbctld.core.tariff import Tariff, UntoldError

# Each of them is an @ to a reader that normalises.
_AT = re.compile("[@\uff20\ufe6b]")
_SEPARATOR = re.compile(r"[;\x00-\x1f\x7f]")


def price_recipients(cost: Recipients, body: Form | Document | Batch, tariff: Tariff) -> int:
    """Nano-USD of all recipients.

    Raises:
        UntoldError: there is none in a mail, too many, or a text that may be several.
        AmbiguousFieldError: a field with two readings.
    """
    mails = body.documents if isinstance(body, Batch) else (body,)
    if not mails:
        raise UntoldError("it holds no mail")
    return sum(_count(cost, mail) for mail in mails) * (tariff.mail or 0)


def _count(cost: Recipients, mail: Form | Document) -> int:
    count = 0
    for field in cost.fields:
        recipients = mail.texts(field)
        if len(recipients) > cost.at_most:
            raise UntoldError(f"its {field} has more than {cost.at_most} recipients", "send several mails")
        for recipient in recipients:
            if len(_AT.findall(recipient)) != 1 or _SEPARATOR.search(recipient):
                raise UntoldError(
                    f"a text in its {field} is not one address", f"send {field} as a list, one address each"
                )
        count += len(recipients)
    if count == 0:
        raise UntoldError(f"it states no {cost.fields[0]}", f"state {cost.fields[0]}")
    return count
