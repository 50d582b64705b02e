"""What is asked: from a head and a body to an ``Access`` and the ``Request`` that the decision takes.

What must stay true: headers that Connection names are gone before anything reads them; the vendor comes
from the path's prefix or from the key, never from a header; the body is read, within its bounds, only once
key, vendor, endpoint and credential are good.
"""

import hashlib
import json
import re
from collections.abc import Mapping

from kbctld.core.cost import Remembered, objects_needed
from kbctld.core.form import Form, FormError, read_form
from kbctld.core.grant import Grant
from kbctld.core.policy import Access
from kbctld.core.policy import Request as Asked
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import Arrived, settle_target
from kbctld.core.vendor import Amount, Increase, Vendor
from kbctld.credentials import Credential, Credentials
from kbctld.http1.gate import Head
from kbctld.http1.server import BadBody, Fields
from kbctld.http1.server import Request as HttpRequest
from kbctld.proxy.call import Call, Refused, allowed

# Up to this size a body is read even where nothing in it decides: it then leaves with its head in one write.
_WHOLE_BYTES = 64 * 1024
_IDEMPOTENCY_KEY_MAX = 255
_VAULT_KEY = re.compile(r"vault_key_[0-9A-Za-z]{49}", re.ASCII)
_FORM = b"application/x-www-form-urlencoded"
_NO_FORM = Form((), has_semicolon=False)


def stranger(head: Head, own_hosts: frozenset[bytes]) -> Refusal | None:
    """Turn away web pages and rebound names: they may reach the port, not the keys (DNS rebinding, CSRF)."""
    if (head.get(b"host") or b"").lower() not in own_hosts:
        return Refusal(
            Code.ORIGIN_NOT_ALLOWED,
            "the Host header does not name this proxy",
            "use the proxy address that `kbctl status` shows",
        )
    site = head.get(b"sec-fetch-site")
    if head.get(b"origin") is not None or site not in (None, b"none") or head.method == "OPTIONS":
        return Refusal(
            Code.ORIGIN_NOT_ALLOWED, "the request comes from a web page; agents call from programs"
        )
    return None


def plain_fields(head: Head) -> Fields:
    """The fields without those that Connection names: they are for the next hop only (RFC 9110 7.6.1)."""
    named = {name.strip(b" \t").lower() for name in (head.get(b"connection") or b"").split(b",")}
    return [(name, value) for name, value in head.fields if name not in named]


def find_access(
    call: Call,
    vendors: Mapping[str, Vendor],
    grant: Grant,
    arrived: Arrived,
    method: str,
    fields: Fields,
) -> Access | Refusal:
    """The vendor, the canonical target and the operation."""
    vendor = _find_vendor(vendors, grant, arrived)
    if isinstance(vendor, Refusal):
        return vendor
    call.name_vendor(vendor.name)
    if vendor.name not in grant.vendors:
        return Refusal(
            Code.VENDOR_NOT_ALLOWED,
            f"key {grant.key_id} does not reach {vendor.name}; it reaches {' and '.join(grant.vendors)}",
            f"ask for a key issued with --vendor {vendor.name}",
        )
    target = settle_target(arrived, vendor.joins, vendor.roots)
    if isinstance(target, Refusal):
        return target
    if target.form.mentions(("_method", "api_key")) is not None:
        return Refusal(Code.AMBIGUOUS_REQUEST, "the query overrides the method or carries a credential")
    listed_as = "GET" if method == "HEAD" else method
    operation, parameters = vendor.match(listed_as, target.path, target.segments)
    call.row.endpoint = target.path
    call.row.operation = operation.name if operation else None
    seen = set()
    for name, _ in fields:
        if name in seen and name.decode("latin-1") in vendor.forward_headers:
            return Refusal(Code.AMBIGUOUS_REQUEST, f"the header {name.decode('latin-1')} stands twice")
        seen.add(name)
    leaves = [
        value.decode("latin-1") for name, value in fields if name.decode("latin-1") in vendor.forward_headers
    ]
    leaves += [target.path, *(text for pair in target.form.pairs for text in pair)]
    if any(_VAULT_KEY.search(text) for text in leaves):
        return Refusal(
            Code.AMBIGUOUS_REQUEST,
            "a vault key stands where the vendor would see it",
            "send it only as the SDK's API key",
        )
    names_account = any(name.decode("latin-1") in vendor.account_headers for name in seen)
    return Access(vendor, method, target, operation, parameters, names_account)


def find_credential(credentials: Credentials, grant: Grant, vendor: Vendor) -> Credential | Refusal:
    """The real secret's place; a refusal where it can't be used now."""
    name = grant.credential or vendor.name
    credential = credentials.get(name)
    if credential is None or credential.vendor != vendor.name:
        return Refusal(
            Code.CREDENTIAL_UNAVAILABLE, f"there is no credential {name}", f"kbctl credential set {name}"
        )
    if credential.secret is None:
        return Refusal(
            Code.CREDENTIAL_UNAVAILABLE,
            f"the credential {name} can't be read from its store now",
            "kbctl status",
        )
    return credential


async def read_request(
    call: Call,
    request: HttpRequest,
    head: Head,
    grant: Grant,
    access: Access,
    credential: Credential,
    fields: Fields,
) -> tuple[bytes | None, Asked]:
    """The body and what it says; None for a body that streams by because nothing in it decides.

    Raises:
        Refused: a body that is too large, too slow, encoded, or can't be read.
        ClientGone: the agent broke off.
    """
    slots = dict(fields)
    if slots.get(b"content-encoding", b"identity") != b"identity":
        raise Refused(
            Refusal(
                Code.UNSUPPORTED_BODY, "an encoded body can't be read", "send it without Content-Encoding"
            )
        )
    kind, _, kind_rest = slots.get(b"content-type", b"").lower().partition(b";")
    may_be_form = kind.strip() in (_FORM, b"")
    streams = not (access.needs_body or may_be_form) and (head.length or 0) > _WHOLE_BYTES
    body: bytes | None = None
    try:
        request.check_length()
        if head.has_body and not streams:
            body = await request.body()
    except BadBody as bad:
        raise Refused(Refusal(Code(bad.code), bad.sentence, status=bad.status)) from None
    form = allowed(_read_form(access, kind.strip(), kind_rest.strip(), body or b""))
    call.row.metadata = _metadata(grant, access.vendor, form, slots)
    known: dict[str, Remembered] = {}
    if access.operation is not None:
        wanted = objects_needed(access.operation, form, access.parameters)
        known = await call.vault.recall(access.vendor.name, credential.name, wanted)
    digest = hashlib.blake2b(digest_size=16)
    for part in (access.method.encode(), access.target.text.encode(), slots.get(b"content-type", b"")):
        digest.update(part + b"\0")
    digest.update(body or b"")
    replay = None if streams else allowed(_replay_digest(call, grant, access, credential, slots))
    return body, Asked(form, known, digest.digest(), replay or None)


def _find_vendor(vendors: Mapping[str, Vendor], grant: Grant, arrived: Arrived) -> Vendor | Refusal:
    if arrived.prefix is not None:
        return vendors[arrived.prefix]
    fitting = [
        vendors[name]
        for name in grant.vendors
        if name in vendors and (len(grant.vendors) == 1 or arrived.path.startswith(vendors[name].roots))
    ]
    if len(fitting) == 1:
        return fitting[0]
    return Refusal(
        Code.AMBIGUOUS_REQUEST,
        f"key {grant.key_id} reaches {' and '.join(grant.vendors)} and the path does not say which",
        f"put the vendor in front of the path, as in /{grant.vendors[0]}{arrived.path}",
    )


def _read_form(access: Access, kind: bytes, kind_rest: bytes, body: bytes) -> Form | Refusal:
    """The body as a form, if any reader could take it for one: by its media type, or for want of one."""
    operation = access.operation
    decides = operation is not None and isinstance(operation.cost, Amount | Increase)
    if not body or (kind not in (_FORM, b"") and not decides):
        return _NO_FORM
    plain = kind_rest.replace(b'"', b"") in (b"", b"charset=utf-8")
    if (kind == _FORM and not plain) or (kind != _FORM and decides):
        return Refusal(
            Code.UNSUPPORTED_BODY,
            f"{access.title} takes a body of type {_FORM.decode()}, in UTF-8",
            "send its fields as a form",
        )
    try:
        form = read_form(body)
    except FormError as error:
        return Refusal(Code.MALFORMED_REQUEST, f"the body can't be read: {error}")
    if form.mentions(("_method",)) is not None:
        return Refusal(Code.AMBIGUOUS_REQUEST, "the body overrides the method")
    return form


def _replay_digest(
    call: Call, grant: Grant, access: Access, credential: Credential, slots: Mapping[bytes, bytes]
) -> bytes | Refusal:
    """Under what a retry of this request is found; empty where the vendor would not know it as one."""
    idempotency = access.vendor.file.idempotency
    if idempotency is None or access.method not in idempotency.methods:
        return b""
    key = slots.get(idempotency.header.lower().encode())
    if not key:
        return b""
    if len(key) > _IDEMPOTENCY_KEY_MAX:
        return Refusal(
            Code.MALFORMED_REQUEST,
            f"an idempotency key has at most {_IDEMPOTENCY_KEY_MAX} characters",
        )
    call.row.idempotency_key = key.decode("latin-1")
    # The vendor knows a retry per account: another credential, or another secret, is another account.
    whose = f"{grant.no}\0{access.vendor.name}\0{credential.name}\0{credential.version}\0".encode()
    return hashlib.blake2b(whose + key, digest_size=16).digest()


def _metadata(grant: Grant, vendor: Vendor, form: Form, slots: Mapping[bytes, bytes]) -> str | None:
    """What the request says of its run, overlaid by the key's own: an agent can add but not forge."""
    said: dict[str, str] = {}
    if vendor.file.metadata_field is not None:
        said.update(list(form.object(vendor.file.metadata_field).items())[:50])
    run_id = slots.get(b"x-agent-run-id")
    if run_id:
        said["agent_run_id"] = run_id.decode("latin-1")
    if not said:
        return None
    said = {name[:100]: value[:500] for name, value in said.items()}
    return json.dumps({**said, **grant.metadata})
