"""What a vendor file says of one operation: its name, its path, and how its cost is told.

What must stay true: a kind of cost picks fields and prices by name; it cannot compute. What a kind does is
one pure function beside this file.
"""

import re
from typing import Annotated

from msgspec import Meta, Struct

from kbctld.core.tokens import TokenApi

READS = frozenset({"GET", "HEAD"})
WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
METHODS = READS | WRITES

PLACEHOLDER = re.compile(r"\{([a-z_]+)\}", re.ASCII)
"""A parameter of a path."""

Text = Annotated[str, Meta(min_length=1)]


class _Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class Free(_Strict, tag_field="kind", tag="free"):
    """Moves no money.

    Attributes:
        unbounded: fields of body or query that make it cost what the request does not tell.
    """

    unbounded: list[Text] = []


class Amount(_Strict, tag_field="kind", tag="amount"):
    """A field of the body is the amount, in minor units; a field may be a path, ``amount.value``.

    Attributes:
        amount: the field.
        currency: the field; left out where the currency follows from an object (``currency_of``).
        currency_of: fields or path parameters naming an object whose currency applies. Where we
            don't know that object, the dearest minor unit is held and the answer's own figure is spent.
        object: the answer's field with the id to remember the amount under, if later operations build on it.
        signed: the amount goes either way; what counts is how much.
        unbounded: fields of body or query beside which the amount is not all.
        lookup: where the amount is left out, what to read of the object instead: the one of these look-ups
            whose object the request names.
        answers_amount: the answer's ``amount`` is what was moved, and not what it was moved of.
    """

    amount: Text
    currency: Text | None = None
    currency_of: list[Text] = []
    object: Text | None = None
    signed: bool = False
    unbounded: list[Text] = []
    lookup: list[Text] = []
    answers_amount: bool = True


class Increase(_Strict, tag_field="kind", tag="increase"):
    """Sets the amount of an object that was counted when it was made; only the excess counts.

    Attributes:
        of: the path parameter that names the object.
        amount: the form field with the new total; where absent, nothing is added.
        currency: the form field; where absent, the object's own.
        only_stated: without amount and currency it does nothing, whatever the object is.
        lookup: what to read of an object that nobody counted yet, which then counts in full.
    """

    of: Text
    amount: Text | None = None
    currency: Text | None = None
    only_stated: bool = False
    lookup: list[Text] = []


class LookUp(_Strict, tag_field="kind", tag="lookup"):
    """Moves what an object comes to, each time.

    Attributes:
        lookup: what to read of it: the one of these look-ups whose object the request names.
    """

    lookup: Annotated[list[Text], Meta(min_length=1)]


class Tokens(_Strict, tag_field="kind", tag="tokens"):
    """Costs what a language model reads and writes: held by the body's bounds, spent by the answer's usage.

    Attributes:
        api: how bodies ask and answers count.
    """

    api: TokenApi


class Items(_Strict, tag_field="kind", tag="items"):
    """A list in the form holds what is to be paid: the sum of amount times quantity, in one currency.

    What may stand beside is listed, because anything else may change the sum: taxes, shipping, a quantity
    that the payer may raise.

    Attributes:
        of: the list: ``line_items`` for ``line_items[0][quantity]``.
        amount: of one item's unit: a path within the item.
        quantity: within the item.
        currency: within the item.
        item_beside: what else an item may hold, with all that stands below.
        beside: what else the form may hold, with all that stands below.
    """

    of: Text
    amount: Text
    quantity: Text
    currency: Text
    item_beside: list[Text] = []
    beside: list[Text] = []


class Unpriceable(_Strict, tag_field="kind", tag="unpriceable"):
    """Costs money that the request does not tell."""

    why: Text


class Recipients(_Strict, tag_field="kind", tag="recipients"):
    """A mail: ``price.per_mail_usd`` for each recipient.

    Attributes:
        fields: the fields with recipients, the one that no mail lacks first.
        at_most: recipients of one field.
        batch: whether the body is an array of such mails.
    """

    fields: Annotated[list[Text], Meta(min_length=1)]
    at_most: Annotated[int, Meta(ge=1, le=10_000)] = 50
    batch: bool = False


class Sms(_Strict, tag_field="kind", tag="sms"):
    """A text message: ``price.per_segment_usd`` for each segment, ``price.per_media_usd`` for each file.

    Attributes:
        to: the field with the destination, a phone number.
        sender: the field with the sender, whose channel (``whatsapp:``) must be none either.
        text: the field with the text.
        media: the field with the files' addresses.
        ceiling: the field in which the vendor takes the most that it may charge, in US dollars; the proxy
            writes what is held into it.
        unbounded: fields that make it cost what the request does not tell.
    """

    to: Text
    text: Text
    sender: Text | None = None
    media: Text | None = None
    ceiling: Text | None = None
    unbounded: list[Text] = []


class Instructions(_Strict):
    """What a phone call is told to do, which may dial further calls.

    Attributes:
        inline: the field with a document of instructions, of which a few that cost nothing are known.
        elsewhere: fields that name a document which the request does not hold.
        price: the name in ``price.per_call_usd`` of the most that such a document can cost; without that
            price, a call that names one is refused.
    """

    inline: Text
    elsewhere: Annotated[list[Text], Meta(min_length=1)]
    price: Text


class Minutes(_Strict, tag_field="kind", tag="minutes"):
    """A phone call: ``price.per_minute_usd`` for each begun minute that it may last.

    Attributes:
        to: the field with the destination, a phone number.
        seconds: the field with how long it may last.
        default_seconds: what the proxy writes there where the request states nothing; without it, such a
            call is refused.
        at_most: the longest that may be stated.
        instructions: what it is told to do.
        unbounded: fields that make it cost what the request does not tell.
    """

    to: Text
    seconds: Text
    default_seconds: Annotated[int, Meta(ge=1, le=86_400)] | None = None
    at_most: Annotated[int, Meta(ge=1, le=999_999)] = 999_999
    instructions: Instructions | None = None
    unbounded: list[Text] = []


class Flat(_Strict, tag_field="kind", tag="flat"):
    """The same for every call: ``price.per_call_usd`` of this name.

    Attributes:
        price: its name.
        to: the field with a destination that gets a message of one segment on top.
        instructions: what a phone call is told to do by it.
        unbounded: fields of body or query that make it cost what the request does not tell.
    """

    price: Text
    to: Text | None = None
    instructions: Instructions | None = None
    unbounded: list[Text] = []


Counted = Recipients | Sms | Minutes | Flat
"""Costs a count of things times their price in the file's ``[price]``."""
Cost = Free | Amount | Increase | LookUp | Items | Recipients | Sms | Minutes | Flat | Tokens | Unpriceable


class Later(_Strict):
    """Where the vendor tells the true price of a call, some time after it.

    Attributes:
        get: the path, with parameters of ``match`` and ``{id}``.
        object: the field of the call's answer with that id.
        price: the field of the later answer with the price, a text; null until it is known.
        unit: the field with its currency.
        after_s: seconds until it is first asked for.
    """

    get: Text
    object: Text
    price: Text
    unit: Text
    after_s: Annotated[int, Meta(ge=1, le=86_400)] = 60


class Operation(_Strict):
    """One thing that the vendor can do."""

    name: Text
    match: Text
    cost: Cost
    privileged: bool = False
    """Mints credentials or moves payout destinations: allowed by exact name only."""
    stamps: bool = False
    """Takes the vendor's own metadata, so that a key may stamp it."""
    repeats: bool = False
    """Asking for it again soon is normal, as for a code that did not come: no duplicate is suspected."""
    later: Later | None = None
    """Where its true price is told, for what is counted by a table of prices."""
    record: Text | None = None
    """What the vendor's own list calls the thing that it makes: one of ``record.kinds``, or a ``listing``."""
    state: Text | None = None
    """Where the object that it acts on tells whether it was done: one of the file's ``state``."""

    @property
    def body_decides(self) -> bool:
        """Whether its cost depends on what the body says."""
        cost = self.cost
        return bool(cost.unbounded) if isinstance(cost, Free) else not isinstance(cost, Unpriceable)


class Operations(_Strict):
    """Several things that the vendor can do, alike in all but name and match."""

    cost: Cost
    matches: Annotated[dict[Text, Text], Meta(min_length=1)]
    """``METHOD /path`` by name."""
    privileged: bool = False
    stamps: bool = False
