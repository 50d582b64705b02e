"""Text messages are priced by segment, as phone networks cut them, and by the country they go to.

What must stay true: the count is never below the network's. A text in GSM-7 has 160 characters in one part
and 153 in each of several; any other has 70 and 67 units of UTF-16. Nothing that takes two places (an
extension character of GSM-7, a surrogate pair) is split between parts.
"""

from kbctld.core.document import Batch, Document
from kbctld.core.form import Form
from kbctld.core.operation import Sms
from kbctld.core.tariff import Tariff, UntoldError

# 3GPP TS 23.038, the default alphabet without its escape, and what stands behind an escape. A form feed is
# left to UCS-2, which never counts less.
_GSM = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_EXTENDED = frozenset("^{}\\[~]|€")


def segments(text: str) -> int:
    """The parts that a network sends a text in; an empty one takes one."""
    if all(character in _GSM or character in _GSM_EXTENDED for character in text):
        return _parts([2 if character in _GSM_EXTENDED else 1 for character in text], 160, 153)
    return _parts([2 if ord(character) > 0xFFFF else 1 for character in text], 70, 67)


def _parts(sizes: list[int], alone: int, each: int) -> int:
    if sum(sizes) <= alone:
        return 1
    parts, free = 1, each
    for size in sizes:
        if size > free:
            parts, free = parts + 1, each
        free -= size
    return parts


def phone_number(body: Form | Document | Batch, field: str) -> str:
    """A destination, as it was sent.

    Raises:
        UntoldError: there is none, or it is one of another channel.
        AmbiguousFieldError: it has two readings.
    """
    number = body.one(field)
    if number is None:
        raise UntoldError(f"it states no {field}", f"state {field}")
    if ":" in number:
        channel = number.partition(":")[0][:20]
        raise UntoldError(f"its {field} is an address of another channel, {channel!r}")
    return number


def fees_of_sms(cost: Sms, body: Form | Document | Batch, tariff: Tariff) -> int:
    """Nano-USD of what the vendor bills apart from the price that it tells; of a body that was priced."""
    text = body.one(cost.text)
    files = len(body.texts(cost.media)) if cost.media is not None else 0
    media = max(tariff.media_fee, tariff.segment_fee)
    return (segments(text) if text is not None else 0) * tariff.segment_fee + files * media


def price_sms(cost: Sms, body: Form | Document | Batch, tariff: Tariff) -> int:
    """Nano-USD of all segments, and of the files that go with them.

    Raises:
        UntoldError: no destination or no content, or another channel than the phone's.
        AmbiguousFieldError: a field with two readings.
    """
    number = phone_number(body, cost.to)
    if cost.sender is not None and body.one(cost.sender) is not None:
        phone_number(body, cost.sender)
    if cost.ceiling is not None:
        body.one(cost.ceiling)  # what it says never lowers the hold; two readings of it are refused
    text = body.one(cost.text)
    files = body.texts(cost.media) if cost.media is not None else ()
    if text is None and not files:
        raise UntoldError(f"it states no {cost.text}", f"state {cost.text}")
    segment = tariff.at(tariff.segment, number)
    # A phone that takes no files gets their addresses as text.
    media = max(tariff.media or 0, segment)
    return (segments(text) if text is not None else 0) * segment + len(files) * media
