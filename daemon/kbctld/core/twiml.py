"""What a phone call is told to do, and what that can cost: it may dial further calls, record, transcribe.

What must stay true: only a document that stands in the request, and holds nothing but what is known to be
free, adds nothing. Any other costs what the operator has said that it can cost at most, or is refused.
"""

import re
from xml.etree import ElementTree

from kbctld.core.document import Batch, Document
from kbctld.core.form import Form
from kbctld.core.operation import Instructions
from kbctld.core.tariff import Tariff, UntoldError

# Speaking, playing, waiting and hanging up. None of them asks for further instructions.
_FREE: dict[str, frozenset[str]] = {
    "Say": frozenset({"voice", "language", "loop"}),
    "Play": frozenset({"loop", "digits"}),
    "Pause": frozenset({"length"}),
    "Hangup": frozenset(),
}
# Any other voice may be one that costs by the character.
_VOICES = frozenset({"man", "woman", "alice"})
_PROLOGUE = re.compile(r"\s*<\?xml[^<>?]*\?>")
_LENGTH_MAX = 4000


def price_instructions(told: Instructions, body: Form | Document | Batch, query: Form, tariff: Tariff) -> int:
    """Nano-USD of what the call is told to do.

    Raises:
        UntoldError: nobody can tell, and the operator has set no price for that.
        AmbiguousFieldError: a field with two readings.
    """
    inline = body.one(told.inline)
    unseen = body.mentions(told.elsewhere) or query.mentions(told.elsewhere)
    if unseen is not None:
        why = f"{unseen} names instructions that the request does not hold; they may dial further calls"
    elif inline is None:
        return 0
    else:
        verb = _not_free(inline)
        if verb is None:
            return 0
        why = f"its {told.inline} holds {verb}"
    worst = tariff.call.get(told.price)
    if worst is None:
        free = ", ".join(_FREE)
        raise UntoldError(
            why,
            f"send {told.inline} with nothing but {free}, or say in config.toml what such instructions can "
            f'cost at most in a call: per_call_usd.{told.price} = "5" under the vendor in [vendor_prices]',
        )
    return worst


def _not_free(text: str) -> str | None:
    """What of a document may cost; None where nothing does."""
    text = _PROLOGUE.sub("", text, count=1)
    # Declarations and entities: a reader may be made to see another document in them.
    if len(text) > _LENGTH_MAX or "<!" in text or "<?" in text:
        return "more than plain instructions"
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - without declarations there is nothing to expand
    except ElementTree.ParseError:
        return "what is no XML"
    if root.tag != "Response" or root.attrib:
        return "no plain Response"
    for verb in root:
        if verb.tag not in _FREE:
            return f"{verb.tag[:40]}, which may cost more"
        if len(verb) or not verb.attrib.keys() <= _FREE[verb.tag]:
            return f"a {verb.tag} that may cost more"
        if verb.attrib.get("voice", "man") not in _VOICES:
            return f"a {verb.tag} with a voice that may cost more"
    return None
