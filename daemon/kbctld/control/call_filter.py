"""Which calls an operator asks for: the same words for pages of the audit and for a file of it."""

from collections.abc import Mapping
from typing import Final

from kbctld.control.keys import KeyHandlers
from kbctld.control.parameters import Flag, Moment, Parameter, Text
from kbctld.control.routes import Ask
from kbctld.store import queries
from kbctld.vault import Vault

CALL_QUERY: Final[Mapping[str, Parameter]] = {
    "label_contains": Text("Whole segments of the key's label.", many=True),
    "tenant": Text("Calls of this tenant's keys."),
    "key": Text("Calls of this key: its id, or a unique beginning of it."),
    "vendor": Text("Calls to this vendor."),
    "denied": Flag("Only calls that were refused."),
    "unknown": Flag("Only calls whose outcome nobody knows yet."),
    "duplicates": Flag("Only suspected duplicates, let through or refused."),
    "from": Moment("Calls at or after this time."),
    "to": Moment("Calls before this time."),
}


async def wanted_calls(ask: Ask, vault: Vault, keys: KeyHandlers) -> queries.CallFilter:
    """The calls that a query in these words means.

    Raises:
        KbctlError: it names a key that there is not.
    """
    tenant, labels = ask.text("tenant"), tuple(ask.query.get("label_contains", ()))
    reference = ask.text("key")
    return queries.CallFilter(
        key_no=None if reference is None else (await keys.named(reference)).no,
        keys=queries.KeyFilter(tenant=tenant, labels=labels) if tenant is not None or labels else None,
        vendor=ask.text("vendor"),
        denied=ask.text("denied") == "true",
        unknown=ask.text("unknown") == "true",
        duplicates=ask.text("duplicates") == "true",
        from_ns=ask.moment("from"),
        to_ns=ask.moment("to"),
    )
