"""What is asked: from a head and a body to an ``Access`` and the ``Request`` that the decision takes.

What must stay true: headers that Connection names are gone before anything reads them; the vendor comes
from the path's prefix or from the key, never from a header; the body is read, within its bounds, only once
key, vendor, endpoint and credential are good.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import islice
from urllib.parse import urlencode

import msgspec
from msgspec import Struct

from kbctld.core import body as bodies
from kbctld.core.account import Acting, find_account
from kbctld.core.body import Body
from kbctld.core.bounds import bounded, bounds
from kbctld.core.cost import Remembered, objects_needed
from kbctld.core.document import Batch, Document, DocumentError
from kbctld.core.duplicates import fingerprint, is_watched
from kbctld.core.form import EMPTY, AmbiguousFieldError, Form, FormError, read_form
from kbctld.core.grant import Grant
from kbctld.core.operation import READS, Tokens
from kbctld.core.policy import Access, Permit
from kbctld.core.policy import Request as Asked
from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import Arrived, Target
from kbctld.core.tokens import ask_for_usage, wants_usage
from kbctld.core.vault_key import PREFIX
from kbctld.core.vendor import Vendor
from kbctld.credentials import Credential, Credentials
from kbctld.http1.gate import Head
from kbctld.http1.server import BadBody, Fields
from kbctld.http1.server import Request as HttpRequest
from kbctld.proxy.call import Call, Refused, allowed

# Up to this size a body is read even where nothing in it decides: it then leaves with its head in one write.
_WHOLE_BYTES = 64 * 1024
_IDEMPOTENCY_KEY_MAX = 255
_VAULT_KEY = re.compile(r"vault_key_[0-9A-Za-z]{49}", re.ASCII)
_METADATA_MAX = 50
_FORM = b"application/x-www-form-urlencoded"
_JSON = b"application/json"


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
    options = head.get(b"connection")
    if options is None:
        return list(head.fields)
    named = {name.strip(b" \t").lower() for name in options.split(b",")}
    return [(name, value) for name, value in head.fields if name not in named]


def find_access(
    call: Call,
    vendors: Mapping[str, Vendor],
    credentials: Credentials,
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
    target = vendor.settle(arrived)
    if isinstance(target, Refusal):
        return target
    if target.form.mentions(("_method", "api_key")) is not None:
        return Refusal(Code.AMBIGUOUS_REQUEST, "the query overrides the method or carries a credential")
    acting = _acting(vendor, credentials, grant, target)
    if isinstance(acting, Refusal):
        return acting
    if acting is not None:
        target = acting.target
    listed_as = "GET" if method == "HEAD" else method
    operation, parameters = vendor.match(listed_as, target.path, target.segments)
    if operation is None and target.path.endswith("/"):
        bare = target.path.rstrip("/")
        if vendor.match(listed_as, bare, target.segments)[0] is not None:
            return Refusal(Code.AMBIGUOUS_REQUEST, "the path ends with a slash", f"send {bare}, without it")
    call.row.endpoint = target.path
    call.row.operation = operation.name if operation else None
    leaving: dict[str, str] = {}
    for raw_name, value in fields:
        if raw_name in vendor.leaving:
            name = raw_name.decode("ascii")
            if name in leaving:
                return Refusal(Code.AMBIGUOUS_REQUEST, f"the header {name} stands twice")
            leaving[name] = value.decode("latin-1")
    query = [text for pair in target.form.pairs for text in pair] if target.query else ()
    for text in (*leaving.values(), target.path, *query):
        if PREFIX in text and _VAULT_KEY.search(text):
            return Refusal(
                Code.AMBIGUOUS_REQUEST,
                "a vault key stands where the vendor would see it",
                "send it only as the SDK's API key",
            )
    accounts = {name: value for name, value in leaving.items() if name in vendor.account_headers}
    table = vendor.file.account
    if acting is not None and table is not None:
        # Its own account is a parameter, which rules may bind; another is refused unless a rule lists it.
        if acting.other is not None:
            accounts[table.field] = acting.other
        elif acting.own is not None:
            parameters = {**parameters, table.field: acting.own}
    return Access(vendor, method, target, operation, parameters, accounts)


def _acting(
    vendor: Vendor, credentials: Credentials, grant: Grant, target: Target
) -> Acting | Refusal | None:
    """Whose account the path names; None where paths of this vendor name none, or there is no credential."""
    table = vendor.file.account
    credential = find_credential(credentials, grant, vendor) if table is not None else None
    if table is None or credential is None or isinstance(credential, Refusal):
        return None  # without a credential nothing will leave
    return find_account(table, target, credential.fields[table.field])


def find_credential(credentials: Credentials, grant: Grant, vendor: Vendor) -> Credential | Refusal:
    """The real secret's place; a refusal where it can't be used now."""
    name = grant.credential or vendor.name
    credential = credentials.get(name)
    if credential is not None and credential.vendor != vendor.name:
        # The key's own credential is for another of its vendors; this one has the usual.
        name = vendor.name
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


async def read_body(
    request: HttpRequest, head: Head, grant: Grant, access: Access, slots: Mapping[bytes, bytes]
) -> bytes | None:
    """The body; None where there is none, or where it streams by because nothing in it decides.

    Raises:
        Refused: a body that is too large, too slow or encoded.
        ClientGone: the agent broke off.
    """
    if slots.get(b"content-encoding", b"identity") != b"identity":
        raise Refused(
            Refusal(
                Code.UNSUPPORTED_BODY, "an encoded body can't be read", "send it without Content-Encoding"
            )
        )
    matters = access.needs_body(grant) or MediaType.of(slots).may_be_form
    streams = not matters and (head.length or 0) > _WHOLE_BYTES
    try:
        request.check_length()
        return await request.body() if head.has_body and not streams else None
    except BadBody as bad:
        raise Refused(Refusal(Code(bad.code), bad.sentence, status=bad.status)) from None


async def read_request(
    call: Call,
    head: Head,
    grant: Grant,
    access: Access,
    credential: Credential,
    slots: Mapping[bytes, bytes],
    body: bytes | None,
    *,
    apart: bool,
) -> tuple[bytes | None, Asked, bool]:
    """The body as it leaves, what head and body say and what is known now of the objects they name.

    The last is whether the answer will tell its usage only because we asked for it; ``apart`` is whether the
    vendor sees another idempotency key than the agent's.

    Raises:
        Refused: it can't be read.
    """
    media = MediaType.of(slots)
    form = _read_form(access, grant, media, body or b"")
    if isinstance(form, Refusal):
        raise Refused(form)
    call.row.metadata = _metadata(grant, access.vendor, form, slots)
    known: dict[str, Remembered] = {}
    if access.operation is not None:
        wanted = objects_needed(access.operation, form, access.parameters)
        if wanted:
            known = await call.vault.recall(access.vendor.name, credential.name, wanted)
    stamped = guarded = watched = False
    for holder in grant.lineage:
        if holder.stamp:
            stamped = True
        if holder.scope.guard is not None:
            guarded = True
        if holder.duplicates is not None:
            watched = True
    if stamped and access.operation is not None and access.operation.stamps:
        body = allowed(_stamped(grant, access, media, form, slots, body or b""))
    asks = False
    if access.operation is not None and isinstance(access.operation.cost, Tokens):
        await call.vault.prices.ready(access.vendor)
        if isinstance(form, Document) and body is not None:
            asks = wants_usage(access.operation.cost.api, form)
            body = ask_for_usage(body) if asks else body
    streams = body is None and head.has_body  # what has streamed by can't be compared with a retry
    replay = None if streams else allowed(_replay_digest(call, grant, access, credential, slots, apart))
    watched = watched and is_watched(access.operation, access.method)
    asked = Asked(
        form,
        known,
        request_digest(access, slots, body or b""),
        request_digest(access, slots, form.canonical() if form is not EMPTY else body or b"")
        if guarded
        else b"",
        replay or None,
        _fingerprint(grant, access, credential, form) if watched else None,
        call.row.idempotency_key,
    )
    return body, asked, asks


def write_bounds(
    call: Call, access: Access, permit: Permit, asked: Asked, body: bytes | None
) -> bytes | None:
    """The body with what keeps the vendor to the hold; the row tells what was written.

    A retry is known by the bytes that the agent sent, and what is written follows from them and the prices.
    """
    if access.operation is None or body is None or not permit.price.readable:
        return body
    fields = bounds(access.operation.cost, asked.form, permit.price.nano)
    if not fields:
        return body
    added = f"{' and '.join(f'{name}={value}' for name, value in fields.items())} was added"
    call.row.reason = added if call.row.reason is None else f"{call.row.reason}; {added}"
    return bounded(body, fields)


def request_digest(access: Access, slots: Mapping[bytes, bytes], body: bytes) -> bytes:
    """Of method, target, type, account and body: equal for a retry."""
    kind = slots.get(b"content-type", b"")
    said = f"{access.method}\0{access.target.text}\0".encode() + kind + b"\0"
    for header, account in access.accounts.items():
        said += f"{header}\0{account}\0".encode()
    return hashlib.blake2b(said + body, digest_size=16).digest()


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


class MediaType(Struct, frozen=True):
    """What ``Content-Type`` says of a body."""

    kind: bytes
    rest: bytes

    @classmethod
    def of(cls, slots: Mapping[bytes, bytes]) -> "MediaType":
        kind, _, rest = slots.get(b"content-type", b"").lower().partition(b";")
        return cls(kind.strip(), rest.strip().replace(b'"', b""))

    @property
    def may_be_form(self) -> bool:
        """Whether any reader could take the body for a form: by its type, or for want of one."""
        return self.kind in (_FORM, b"")

    @property
    def is_utf8(self) -> bool:
        return self.rest in (b"", b"charset=utf-8")


def _read_form(access: Access, grant: Grant, media: MediaType, body: bytes) -> Body | Refusal:
    """The body as its vendor reads it, if anything in it decides or any reader could take it for a form."""
    if not body:
        return EMPTY
    operation = access.operation
    decides = operation is not None and operation.body_decides
    if not decides and access.method not in READS:
        decides = any(holder.rules for holder in grant.lineage)
    as_json = access.vendor.takes_json(access.target.path)
    expected = _JSON if as_json else _FORM
    if media.kind != expected or not media.is_utf8:
        if decides or media.kind == expected:
            return Refusal(
                Code.UNSUPPORTED_BODY,
                f"{access.title} takes a body of type {expected.decode()}, in UTF-8",
                f"send its fields as {'JSON' if as_json else 'a form'}",
            )
        if not media.may_be_form:
            return EMPTY
    try:
        form = (
            read_form(body)
            if as_json and media.kind != _JSON
            else bodies.read_body(access.vendor, access.target.path, operation, body)
        )
    except (FormError, DocumentError) as error:
        return Refusal(Code.MALFORMED_REQUEST, f"the body can't be read: {error}")
    if isinstance(form, Form) and form.mentions(("_method",)) is not None:
        return Refusal(Code.AMBIGUOUS_REQUEST, "the body overrides the method")
    return form


def _stamped(
    grant: Grant, access: Access, media: MediaType, form: Body, slots: Mapping[bytes, bytes], body: bytes
) -> bytes | Refusal:
    """The body with the key's id and the run's in the vendor's own metadata, whoever wrote the agent."""
    if media.kind != _FORM:  # an empty body may come without a type; ours must be read
        return Refusal(
            Code.UNSUPPORTED_BODY,
            f"{access.title} is stamped by the proxy, and so takes a body of type {_FORM.decode()}",
            "send that Content-Type, even with an empty body",
        )
    field = access.vendor.file.metadata_field
    run_id = grant.metadata.get("agent_run_id")
    marks = {"kbctl_key_id": grant.key_id, **({"agent_run_id": run_id} if run_id else {})}
    pairs = []
    for name, value in marks.items():
        try:
            said = form.values(f"{field}.{name}")
            stray = access.target.form.values(f"{field}.{name}")
        except AmbiguousFieldError:
            said = stray = ("in more than one reading",)
        if stray is not None or (said is not None and (name == "kbctl_key_id" or said != (value,))):
            return Refusal(Code.AMBIGUOUS_REQUEST, f"{field}[{name}] is written by the proxy", "leave it out")
        if said is None:
            pairs.append((f"{field}[{name}]", value))
    told = slots.get(b"x-agent-run-id", b"").decode("latin-1")
    if told and not run_id and "agent_run_id" not in form.object(field or ""):
        pairs.append((f"{field}[agent_run_id]", told[:500]))
    return b"&".join([*([body] if body else []), urlencode(pairs).encode()])


def _replay_digest(
    call: Call,
    grant: Grant,
    access: Access,
    credential: Credential,
    slots: Mapping[bytes, bytes],
    apart: bool,
) -> bytes | Refusal:
    """Under what a retry of this request is found; empty where the vendor would not know it as one."""
    idempotency = access.vendor.retries(access.method, access.operation)
    if idempotency is None:
        return b""
    key = slots.get(access.vendor.retry_header)
    if not key:
        return b""
    if len(key) > _IDEMPOTENCY_KEY_MAX:
        return Refusal(
            Code.MALFORMED_REQUEST,
            f"an idempotency key has at most {_IDEMPOTENCY_KEY_MAX} characters",
        )
    call.row.idempotency_key = key.decode("latin-1")
    # The vendor knows a retry per account: another credential, or another secret, is another account.
    accounts = "\0".join(f"{header}={account}" for header, account in access.accounts.items())
    whose = (
        f"{grant.no}\0{access.vendor.name}\0{credential.name}\0{credential.version}\0{accounts}\0".encode()
    )
    # And per key as it sees it: once that is another one, it does the same request again.
    seen = b"apart\0" if apart else b""
    return hashlib.blake2b(whose + seen + key, digest_size=16).digest()


def _fingerprint(grant: Grant, access: Access, credential: Credential, form: Body) -> bytes:
    """Under what another call that asks for the same is found."""
    return fingerprint(
        grant.family,
        f"{access.vendor.name}/{credential.name}",
        access.method,
        access.target,
        access.accounts,
        form,
        access.vendor.file.metadata_field,
    )


def _metadata(grant: Grant, vendor: Vendor, form: Body, slots: Mapping[bytes, bytes]) -> str | None:
    """What the request says of its run, overlaid by the key's own: an agent can add but not forge."""
    said: dict[str, str] = {}
    if vendor.file.metadata_field is not None:
        said = form.object(vendor.file.metadata_field)
        if len(said) > _METADATA_MAX:
            said = dict(islice(said.items(), _METADATA_MAX))
    if vendor.file.metadata_list is not None and isinstance(form, Document | Batch):
        said.update(list(form.pairs(vendor.file.metadata_list).items())[:_METADATA_MAX])
    run_id = slots.get(b"x-agent-run-id")
    if run_id:
        said["agent_run_id"] = run_id.decode("latin-1")
    if not said:
        return None
    said = {name[:100]: value[:500] for name, value in said.items()}
    said.update(grant.metadata)
    return msgspec.json.encode(said).decode()
