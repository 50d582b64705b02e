"""The contract between the command line and the daemon: one typed struct per request and reply.

Both sides decode strictly: an unknown field, a wrong type or a number where a text belongs is an error
that names the field. Dollars are JSON numbers on the wire and exact decimals in Python; they never pass
through a float. Times are RFC 3339 in UTC with a final ``Z``. Durations are texts such as ``30m``.

This module imports nothing of kbctl, so that the daemon may import it.
"""

from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

API = "1"
"""Sent in every answer as ``Kbctl-Api``; a client of another number says which side to upgrade."""

T = TypeVar("T")


class WireError(ValueError):
    """A message that does not follow this contract; the text names the field and what it takes."""


def decode(body: bytes, kind: type[T]) -> T:
    """Read one message.

    Raises:
        WireError: not JSON, or not a message of this kind.
    """
    try:
        if isinstance(kind, type) and issubclass(kind, Request):
            # By way of plain values: a typed decoder would take "500" for a number of dollars.
            return convert(_json.decode(body), kind)
        # Typed: 500 is read as the Decimal, and 12.5 as the float, that a reply declares.
        return msgspec.json.Decoder(kind, float_hook=Decimal).decode(body)
    except msgspec.ValidationError as error:
        raise WireError(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from None


def convert(plain: Any, kind: type[T]) -> T:
    """Read one message from plain values; numbers must already be int or Decimal."""
    try:
        return msgspec.convert(plain, kind, builtin_types=(Decimal,))
    except msgspec.ValidationError as error:
        raise WireError(str(error)) from None


def encode(message: Any) -> bytes:
    """Write one message as JSON, decimals as numbers."""
    return _encoder.encode(message)


_json = msgspec.json.Decoder(float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")


class Request(Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """What the person's side sends."""


class Reply(Struct, kw_only=True):
    """What the daemon answers; a newer daemon may add fields."""


# --- errors ---------------------------------------------------------------------------------------


class ErrorBody(Struct, kw_only=True):
    code: str
    message: str
    remedy: str = ""


class ErrorReply(Struct, kw_only=True):
    error: ErrorBody


# --- limits: what a key, a policy or a tenant may set ------------------------------------------------

Cap = Decimal | int | UnsetType | None
"""US dollars above zero; null is "none", left out is "not said here"."""


class Limits(Request):
    """Left out: what the policy or the parent says, else no limit. Null: none, said explicitly."""

    vendors: list[str] | None = None
    daily_usd_cap: Cap = UNSET
    """Per UTC day."""
    total_usd_cap: Cap = UNSET
    """Over the key's life."""
    call_usd_cap: Cap = UNSET
    allowed_endpoints: list[str] | None = None
    denied_endpoints: list[str] | None = None
    param_rules: list[str] | None = None
    """``customer in cus_1,cus_2``, ``refunds.create: amount <= 20000``."""
    daily_requests: int | UnsetType | None = UNSET
    rate: str | UnsetType | None = UNSET
    """``5/s``, ``100/m``, ``1000/h``: a bucket of so many, refilled steadily."""
    loop: str | UnsetType | None = UNSET
    """``20/1m``: the same request at most so often in so long."""
    on_loop: str | None = None
    """``deny`` that request, or ``pause`` the key until an operator resumes it; deny when left out."""
    duplicates: str | UnsetType | None = UNSET
    """``flag/10m`` or ``refuse/10m``: what is done with a call that spends money just as another of the same
    tenant, or of the same family of keys, did within so long; ``flag/10m`` when nothing says."""
    expires_in: str | None = None
    """``30m``, ``2h``, ``7d`` or ``never``; 24h when nothing says."""
    stamp: bool | None = None
    """Write key id and run id into the vendor's own metadata."""


# --- keys: POST /vault/keys, GET /vault/keys, GET|DELETE /vault/keys/{key_id} -----------------------


class IssueRequest(Limits):
    """What a new vault key may do. Without policy and parent, a daily or a total cap must be said."""

    vendor: str | None = None
    agent_run_label: str | None = None
    tenant: str | None = None
    metadata: dict[str, str] | None = None
    credential: str | None = None
    policy: str | None = None
    """Its limits are copied; what else is given here may only tighten them, unless ``override``."""
    override: bool | None = None
    parent_vault_key: str | None = None
    """The parent: its vault key, or from an operator also its key id."""

    def __repr__(self) -> str:
        return f"IssueRequest(tenant={self.tenant!r}, policy={self.policy!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("tenant", self.tenant), ("policy", self.policy)]


class Key(Reply, kw_only=True):
    """One vault key, without the key itself."""

    key_id: str
    status: str
    """``active``, ``paused``, ``frozen``, ``revoked`` or ``expired``."""
    stopped_because: str | None = None
    """Why it is paused or frozen."""
    parent_key_id: str | None = None
    policy: str | None = None
    tenant: str | None
    vendors: list[str]
    daily_usd_cap: Decimal | None
    total_usd_cap: Decimal | None
    call_usd_cap: Decimal | None
    allowed_endpoints: list[str] | None
    """None: every operation whose cost is known, except privileged ones."""
    denied_endpoints: list[str]
    param_rules: list[str] = []
    daily_requests: int | None = None
    rate: str | None = None
    loop: str | None = None
    on_loop: str | None = None
    duplicates: str | None = None
    stamp: bool = False
    agent_run_label: str
    metadata: dict[str, str]
    credential: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    ending: str
    """The last four characters of the vault key."""
    spent_usd: Decimal
    """Posted today (UTC), by this key and all derived from it."""
    held_usd: Decimal
    """Set aside today for calls without a final outcome."""
    total_spent_usd: Decimal
    """Posted over the key's life."""
    total_held_usd: Decimal
    requests_today: int = 0


class IssuedKey(Key, kw_only=True):
    """The only message that ever carries a vault key."""

    vault_key: str
    proxy_url: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}(key_id={self.key_id!r}, status={self.status!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("key_id", self.key_id), ("status", self.status)]


class KeyList(Reply):
    """A page: issued keys before derived ones, each newest first; ``Link: rel="next"`` leads on."""

    keys: list[Key]


class KeyTree(Reply):
    """A key and everything derived from it."""

    key: Key
    children: "list[KeyTree]"


class KeySelf(Reply):
    """What the key that asks may still do: GET /vault/self on the proxy port."""

    key_id: str
    status: str
    vendors: list[str]
    allowed_endpoints: list[str] | None
    denied_endpoints: list[str]
    param_rules: list[str]
    daily_usd_cap: Decimal | None
    daily_usd_left: Decimal | None
    """Until 00:00 UTC, whatever limits it: the key, a parent or the tenant. None: no such cap."""
    total_usd_cap: Decimal | None
    total_usd_left: Decimal | None
    call_usd_cap: Decimal | None
    """The lowest that applies."""
    daily_requests: int | None
    daily_requests_left: int | None
    rate: str | None
    rate_left: int | None
    """Requests that may leave at once now."""
    loop: str | None
    expires_at: str | None
    agent_run_label: str
    metadata: dict[str, str]
    duplicates: str | None = None
    """The strictest that applies."""


class RevokeRequest(Request):
    """Exactly one of the first four."""

    key_ids: list[str] | None = None
    tenant: str | None = None
    label: str | None = None
    all: bool | None = None
    abort: bool | None = None
    """Cut the connections of calls under way; what they hold stays held."""


class RevokeReply(Reply, kw_only=True):
    """Durable when this is sent: no later request of these keys is forwarded."""

    revoked: list[Key]
    """What it stopped, derived keys too; the first hundred."""
    revoked_count: int = 0
    already: list[str]
    """Key ids that had been revoked before."""
    in_flight: int
    """Calls of these keys that the vendor was still working on."""
    in_flight_usd: Decimal
    aborted: int = 0
    """How many of those were cut."""


# --- policies: GET /policies, PUT /policies, GET|PUT|DELETE /policies/{name} ------------------------


class Policy(Limits, omit_defaults=False, kw_only=True):
    """A named set of limits: a plan tier. The same form in lists and in what ``policy apply`` takes."""

    name: str


class PolicyList(Reply):
    policies: list[Policy]


class PolicyApply(Request):
    """All of them or none."""

    policies: list[Policy]
    live: bool | None = None
    """Push what changed to the live keys of these policies."""
    dry_run: bool | None = None


class PolicyChange(Reply):
    """One policy, and what differs."""

    name: str
    action: str
    """``add``, ``change``, ``none`` or ``remove``."""
    fields: dict[str, list[Any]]
    """Field name to [before, after]."""
    live_keys: int
    """Keys of this policy that are not revoked or expired."""


class PolicyChanges(Reply):
    changes: list[PolicyChange]
    applied: bool
    keys_changed: list[str]
    """Key ids whose limits were changed with it."""


# --- tenants: GET /tenants, GET|PUT /tenants/{tenant} -----------------------------------------------


class TenantRequest(Request):
    """Limits of all keys of a tenant together. Left out: as it was. Null: none."""

    daily_usd_cap: Cap = UNSET
    total_usd_cap: Cap = UNSET
    call_usd_cap: Cap = UNSET
    daily_requests: int | UnsetType | None = UNSET
    rate: str | UnsetType | None = UNSET


class Tenant(Reply):
    tenant: str
    daily_usd_cap: Decimal | None
    total_usd_cap: Decimal | None
    call_usd_cap: Decimal | None
    daily_requests: int | None
    rate: str | None
    spent_usd: Decimal
    held_usd: Decimal
    total_spent_usd: Decimal
    total_held_usd: Decimal
    requests_today: int
    keys_active: int


class TenantList(Reply):
    tenants: list[Tenant]


# --- operator tokens: GET|POST /tokens, DELETE /tokens/{token_id} -----------------------------------


class TokenRequest(Request):
    scope: str = "admin"
    """``read``; ``issue``: also issue, pause, resume and revoke keys; ``admin``: everything."""
    expires_in: str | None = None
    """``30d`` when left out; ``never``."""
    note: str | None = None


class Token(Reply):
    """An operator token, without the token itself."""

    token_id: str
    scope: str
    note: str
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class CreatedToken(Token, kw_only=True):
    """The only message that ever carries it."""

    token: str

    def __repr__(self) -> str:
        return f"CreatedToken(token_id={self.token_id!r}, scope={self.scope!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("token_id", self.token_id), ("scope", self.scope)]


class TokenList(Reply):
    tokens: list[Token]


# --- changes: GET /changes --------------------------------------------------------------------------


class Change(Reply):
    """What an operator, or an agent with its own key, changed."""

    timestamp: str
    actor: str
    """``uid 1000``, a token's id, or the key id of the agent that derived a child."""
    action: str
    """``key.issue``, ``key.revoke``, ``policy.apply``, ``tenant.set``, ``token.create`` and so on."""
    subject: str
    details: dict[str, Any]


# --- spend: GET /spend; SQL: POST /sql; vendors: GET /vendors ---------------------------------------


class Spend(Reply, kw_only=True):
    """One line of a spend report, named by what it is of; the empty name is nobody's."""

    key: str | UnsetType = UNSET
    tenant: str | UnsetType = UNSET
    vendor: str | UnsetType = UNSET
    label: str | UnsetType = UNSET
    agent: str | UnsetType = UNSET
    run: str | UnsetType = UNSET
    day: str | UnsetType = UNSET
    calls: int
    refused: int
    spent_usd: Decimal
    held_usd: Decimal
    cap_usd: Decimal | None

    @property
    def name(self) -> str:
        """Whatever it is of."""
        names = (self.key, self.tenant, self.vendor, self.label, self.agent, self.run, self.day)
        return next((name for name in names if isinstance(name, str)), "")


class Difference(Reply):
    """One thing of which a vendor's list and our rows tell different stories."""

    what: str
    """``elsewhere``: at the vendor, by no call of ours; ``absent``: here alone; ``differs``: in amount."""
    timestamp: str
    kind: str
    """The vendor's word for what was made."""
    call_id: str | None
    outcome: str | None
    object_id: str | None
    request_id: str | None
    here_usd: Decimal | None
    vendor_usd: Decimal | None
    """None where nothing is there, or where its currency has no rate."""
    currency: str | None
    here_minor: int | None
    vendor_minor: int | None


class Reconciliation(Reply):
    """POST /vendors/{name}/reconcile."""

    vendor: str
    credential: str
    start: str
    end: str
    agree: int
    """Calls that both tell alike."""
    elsewhere_usd: Decimal
    absent_usd: Decimal
    differences: list[Difference]


class SqlRequest(Request):
    query: str


class SqlReply(Reply):
    columns: list[str]
    rows: list[list[Any]]


class Vendor(Reply):
    name: str
    title: str
    origin: str
    docs: str
    operations: int
    credentials: list[str]


class VendorList(Reply):
    vendors: list[Vendor]


class VendorOperation(Reply):
    name: str
    match: str
    cost: str
    """How its cost is told before it is sent, in words."""
    privileged: bool
    """Mints credentials or moves payout destinations: allowed by exact name only."""
    stamps: bool
    """Takes metadata, so that a key may stamp it."""


class VendorDetail(Reply):
    """One vendor, with everything that its file lists: GET /vendors/{name}."""

    name: str
    title: str
    origin: str
    docs: str
    roots: list[str]
    account_headers: list[str]
    operations: list[VendorOperation]
    credentials: list[str]


class VendorPrice(Reply):
    """One price that is in force."""

    of: str
    """``a segment to US``, ``gpt-4o-mini: input``."""
    usd: Decimal
    per: str
    """What it buys: ``segment``, ``begun minute``, ``million tokens``."""
    source: str
    dated: str
    """The day that it was read; empty where config.toml says none."""
    yours: bool
    """From config.toml, in place of what is shipped."""
    stale: bool
    """Older than ``stale_days``: look whether it still holds."""


class VendorPrices(Reply):
    """GET /vendors/{name}/prices."""

    vendor: str
    prices: list[VendorPrice]
    stale_days: int


class CurrencyRate(Reply):
    """What one unit of a currency is counted at."""

    currency: str
    usd: Decimal
    minor_digits: int
    """Digits after the point of an amount in minor units: 0 for JPY."""
    source: str
    dated: str
    yours: bool
    stale: bool


class CurrencyRates(Reply):
    """GET /rates."""

    rates: list[CurrencyRate]
    stale_days: int


class VendorText(Request):
    """A vendor file, before it is put into the home: POST /vendors/check."""

    text: str


class VendorFinding(Reply):
    """One thing that is wrong."""

    line: int | None
    """From 1; None where it is of the whole file."""
    key: str
    message: str


class VendorFindings(Reply):
    """None at all: the daemon takes this file, and all its examples came true."""

    name: str | None
    operations: int
    examples: int
    findings: list[VendorFinding]


class Health(Reply):
    ok: bool


# --- credentials: GET /credentials, PUT|DELETE /credentials/{name} ----------------------------------


class CredentialRequest(Request):
    secret: str
    vendor: str | None = None
    """Taken from the name (``stripe``, ``stripe:acme``) when left out."""
    fields: dict[str, str] | None = None
    """What goes with the secret and is none: ``account_sid``. Left out: as it was."""

    def __repr__(self) -> str:
        return f"CredentialRequest(vendor={self.vendor!r})"


class Credential(Reply):
    """A real secret that we hold, without the secret."""

    name: str
    vendor: str
    version: int
    """Counts rotations from 1."""
    set_at: str
    available: bool
    problem: str | None
    """Why it can't be used now, with a remedy; None when available."""
    fields: dict[str, str] = {}


class CredentialList(Reply):
    credentials: list[Credential]


# --- audit: GET /audit ------------------------------------------------------------------------------


class Call(Reply):
    """One attempt: the audit row."""

    timestamp: str
    call_id: str
    vault_key_id: str | None
    parent_key_id: str | None
    tenant: str | None
    vendor: str | None
    operation: str | None
    method: str | None
    endpoint: str | None
    amount_usd: Decimal
    """What counts against the cap: posted or held, else 0."""
    requested_usd: Decimal | None
    """What the call asked for; None where unreadable."""
    currency: str | None
    amount_minor: int | None
    status: int | None
    """The HTTP status that the agent was answered; None while pending."""
    outcome: str
    """``pending``, ``posted``, ``voided``, ``unknown`` or ``refused``."""
    replay_of: str | None
    """The first call, where this is a retry of it."""
    policy_check_result: str
    """``allowed`` or the refusal's code."""
    reason: str | None
    vendor_request_id: str | None
    stripe_request_id: str | None
    idempotency_key: str | None
    agent_run_label: str | None
    metadata: dict[str, Any]
    cap_usage_after_usd: Decimal | None
    latency_ms: float | None
    upstream_ms: float | None
    upstream: str | None
    """Set only where the vendor's own origin was overridden: ``INSECURE http://127.0.0.1:9000``."""
    folded: int
    """Further refusals of the same kind that this row stands for."""
    duplicate_of: str | None = None
    """The earlier call that spent money just so, where this one is a suspected duplicate."""


class ResolveRequest(Request):
    """What the vendor's own record says of a call: null where it took nothing."""

    spent_usd: Decimal | int | None
    note: str | None = None
    """How it was found out; kept with the change."""


# --- the chain of the audit: GET /audit/verify, /audit/checkpoint, /audit/export, POST /audit/prune ------


class Finding(Reply):
    """What is wrong, and where that begins."""

    what: str
    """``edited``, ``missing``, ``inserted``, ``out_of_order``, ``cut``, ``replaced``, ``signature`` or
    ``unreadable``."""
    sentence: str
    row: str
    """``call 17``, ``change 3``; empty where it is not about one row."""
    call_id: str | None
    event: int | None


class Verdict(Reply):
    """How a verification ended; good where nothing was found."""

    finding: Finding | None
    events: int
    """Looked at. Each call has one when it is recorded and one for each outcome."""
    calls: int
    pruned_events: int
    since_event: int
    seconds: float
    agrees_with: list[str]
    """The times of the checkpoints that the chain was held against."""
    checkpoint: str | None
    """How far it was found good, signed; None where it was not, or where there is no key to sign with."""
    public_key: str | None


class VerifyStep(Reply):
    """One line of the answer; the last one has the verdict."""

    events: int
    of: int
    verdict: Verdict | None = None


class AuditCheckpoint(Reply):
    """How far the audit has come: keep the line where this machine can't reach it."""

    checkpoint: str
    public_key: str
    events: int
    calls: int


class PruneRequest(Request):
    before: str
    """Calls of the UTC days before this time."""
    dry_run: bool | None = None


class Pruned(Reply):
    """What was taken away, or with ``dry_run`` would be."""

    before: str
    calls: int
    kept: int
    """As old, but still needed: open holds, and what was settled since."""
    first: str | None
    """The time of the oldest that goes."""
    dry_run: bool


class PruneStep(Reply):
    """One line of the answer; the last one says what was done, or what is in the way."""

    stage: str
    """``verify``, ``prune`` or ``shrink``."""
    done: int
    of: int
    pruned: Pruned | None = None
    error: ErrorBody | None = None


# --- status: GET /status, POST /shutdown ------------------------------------------------------------


class Upstream(Reply):
    vendor: str
    origin: str
    insecure: bool


class Status(Reply):
    version: str
    pid: int
    home: str
    socket: str
    proxy_url: str
    database: str
    sandbox: bool
    keyring: str
    """Where real secrets are kept: ``OS keyring (Secret Service)``, ``encrypted file (key file)``."""
    upstreams: list[Upstream]
    state: str
    """``serving``, ``draining`` or ``stopped spending: <why>``."""
    started_at: str
    keys_active: int
    credentials: list[Credential]
    in_flight: int
    unknown_calls: int
    unknown_usd: Decimal
    """Held for calls whose outcome nobody knows yet."""
    notices: list[str]
    """What the person should know: first-use choices, insecure upstreams, stale rates."""
    audit_key: str | None = None
    """The public half of the key that signs checkpoints of the audit; None until it could be read."""


class ShutdownReply(Reply):
    pid: int
    in_flight: int


# --- backups: GET|POST /backup, and what a restore says ------------------------------------------------


class DatabaseContents(Reply):
    schema: int
    last_call: int
    """The number of its newest call."""
    changes: int
    calls: int
    keys: int
    keys_live: int
    newest: str | None
    """When its newest call began."""


class BackupRequest(Request):
    path: str
    """Absolute, on the daemon's machine."""
    force: bool = False
    """Replace a file that is there."""


class BackupState(Reply):
    state: str
    """``none``, ``copying``, ``checking``, ``done`` or ``failed``."""
    path: str = ""
    pages_done: int = 0
    pages: int = 0
    bytes: int = 0
    holds: DatabaseContents | None = None
    error: ErrorBody | None = None


class Restored(Reply):
    """What ``kbctl restore`` did, or why it did nothing."""

    file: str = ""
    database: str = ""
    bytes: int = 0
    sha256: str = ""
    """Of the file, and of what is in place now."""
    holds: DatabaseContents | None = None
    kept: str | None = None
    """Where the database that was here is now."""
    calls_behind: int = 0
    """Calls that had been recorded here and are not in it."""
    changes_behind: int = 0
    must_accept: bool = False
    """Whether ``kbctl up`` will ask for ``--accept-rollback``, which freezes every live key."""
    error: ErrorBody | None = None
    exit_status: int = 0


# --- start-up: what the daemon writes to the pipe of the `up` that started it --------------------------


class Started(Reply):
    """One line of JSON, once: either the status or the error."""

    status: Status | None = None
    error: ErrorBody | None = None
    exit_status: int = 0
