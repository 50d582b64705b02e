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


# --- keys: POST /vault/keys, GET /vault/keys, GET|DELETE /vault/keys/{key_id} -----------------------


class IssueRequest(Request):
    """What a new vault key may do. A cap left out is an error unless another cap is given; null is "none"."""

    vendor: str | None = None
    vendors: list[str] | None = None
    daily_usd_cap: Decimal | int | UnsetType | None = UNSET
    total_usd_cap: Decimal | int | None = None
    call_usd_cap: Decimal | int | None = None
    allowed_endpoints: list[str] | None = None
    denied_endpoints: list[str] | None = None
    expires_in: str | None = None
    """``30m``, ``2h``, ``7d`` or ``never``; 24h when left out."""
    agent_run_label: str | None = None
    tenant: str | None = None
    metadata: dict[str, str] | None = None
    credential: str | None = None


class Key(Reply):
    """One vault key, without the key itself."""

    key_id: str
    status: str
    """``active``, ``frozen``, ``revoked`` or ``expired``."""
    tenant: str | None
    vendors: list[str]
    daily_usd_cap: Decimal | None
    total_usd_cap: Decimal | None
    call_usd_cap: Decimal | None
    allowed_endpoints: list[str] | None
    """None: every operation whose cost is known, except privileged ones."""
    denied_endpoints: list[str]
    agent_run_label: str
    metadata: dict[str, str]
    credential: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    ending: str
    """The last four characters of the vault key."""
    spent_usd: Decimal
    """Posted today (UTC)."""
    held_usd: Decimal
    """Set aside today for calls without a final outcome."""
    total_spent_usd: Decimal
    """Posted over the key's life."""
    total_held_usd: Decimal


class IssuedKey(Key):
    """The only message that ever carries a vault key."""

    vault_key: str
    proxy_url: str


class KeyList(Reply):
    keys: list[Key]


class RevokeRequest(Request):
    """Exactly one of the four."""

    key_ids: list[str] | None = None
    tenant: str | None = None
    label: str | None = None
    all: bool | None = None


class RevokeReply(Reply):
    """Durable when this is sent: no later request of these keys is forwarded."""

    revoked: list[Key]
    already: list[str]
    """Key ids that had been revoked before."""
    in_flight: int
    """Calls of these keys that the vendor was still working on; they are not cut."""
    in_flight_usd: Decimal


# --- credentials: GET /credentials, PUT|DELETE /credentials/{name} ----------------------------------


class CredentialRequest(Request):
    secret: str
    vendor: str | None = None
    """Taken from the name (``stripe``, ``stripe:acme``) when left out."""

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


class ShutdownReply(Reply):
    pid: int
    in_flight: int


# --- start-up: what the daemon writes to the pipe of the `up` that started it --------------------------


class Started(Reply):
    """One line of JSON, once: either the status or the error."""

    status: Status | None = None
    error: ErrorBody | None = None
    exit_status: int = 0
