"""What exchanges share: the ways to vendors, their credentials, the bounds on calls, and who is under way.

What must stay true: nothing in here decides about a call; it says what is there at the moment it is asked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec import structs

from kbctld.core.grant import Grant
from kbctld.core.idempotency import namespaced
from kbctld.core.operation import READS
from kbctld.core.pace import Rate
from kbctld.core.policy import Access
from kbctld.core.refusal import Code, Refusal
from kbctld.core.tally import Tally
from kbctld.core.vendor import Vendor
from kbctld.core.vendor_file import RateClass
from kbctld.credentials import Credential, Credentials
from kbctld.http1.gate import BadHead
from kbctld.http1.server import Fields, Request
from kbctld.proxy.asking import find_credential
from kbctld.proxy.call import Call, Refused, allowed
from kbctld.proxy.flight import Flight
from kbctld.proxy.scrub import Scrubber
from kbctld.proxy.shares import Places, Shares, Turn
from kbctld.proxy.upstream import Failure, Pool
from kbctld.vault import Vault


@dataclass(slots=True)
class Plane:
    """What exchanges share.

    Attributes:
        own_hosts: the Host values that name this listener.
        pools: the way out, by vendor; to each host of one that has several, by ``vendor/label``.
        overridden: vendors whose origin the operator replaced, and by what; shown in every row.
        aloft: the calls that vendors are working on, by the number of their key.
        tally: counts how calls end.
        rates: what vendors take of one account, by vendor.
        apart: the vendors at whom every tenant has idempotency keys of its own.
        busy_per_key: calls of one key under way at once.
        turn_s: how long a further one waits for its turn.
        draining: whether new calls are turned away.
    """

    vault: Vault
    credentials: Credentials
    vendors: Mapping[str, Vendor]
    pools: Mapping[str, Pool]
    own_hosts: frozenset[bytes]
    overridden: Mapping[str, str]
    rates: Mapping[str, Mapping[RateClass, Rate]] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    busy_per_key: int = 256
    turn_s: float = 10.0
    draining: bool = False
    aloft: dict[int, set[Flight]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    prefixes: frozenset[str] = field(init=False)
    """The names of vendors, as a path may begin with one."""
    key_headers: frozenset[bytes] = field(init=False)
    """In which vendors take a key beside the usual ones."""
    _places: Places = field(init=False)
    _shares: dict[tuple[str, str], Shares] = field(default_factory=dict)
    _scrubbers: dict[str, tuple[int, Scrubber]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prefixes = frozenset(self.vendors)
        self.key_headers = frozenset(filter(None, (vendor.key_header for vendor in self.vendors.values())))
        self._places = Places(self.busy_per_key, turn_s=self.turn_s)

    async def reject(self, request: Request, bad: BadHead) -> None:
        """Record and answer one whose head did not."""
        await Call(self.vault, request, self.vendors, self.overridden, self.tally).reject(bad)

    def cut(self, grants: Iterable[Grant]) -> int:
        """End the calls of these keys that vendors are working on; gives how many. Their holds stay."""
        flights = [flight for grant in grants for flight in self.aloft.get(grant.no, ())]
        for flight in flights:
            flight.cut(Failure.REVOKED, "an operator cut it when its key was revoked")
        return len(flights)

    def stop(self) -> None:
        """End every call that a vendor is working on: the daemon waits no longer. Their holds stay."""
        for flight in [flight for flights in self.aloft.values() for flight in flights]:
            flight.cut(Failure.STOPPING, "the daemon stopped before its answer had come")

    def forget(self, credential_name: str) -> None:
        """Drop what was kept of a secret that was rotated or removed."""
        self._scrubbers.pop(credential_name, None)

    def usable_credential(self, grant: Grant, vendor: Vendor, name: str | None = None) -> Credential:
        """The credential of a call that may leave now.

        Args:
            grant: whose call it is.
            vendor: where to.
            name: the only one that will do; None for whichever the grant has.

        Raises:
            Refused: there is none, or we are stopping.
        """
        if self.draining:
            raise Refused(Refusal(Code.SHUTTING_DOWN, "the daemon is stopping", retry_after_s=5))
        credential = allowed(find_credential(self.credentials, grant, vendor))
        if name is not None and credential.name != name:
            raise Refused(Refusal(Code.CREDENTIAL_UNAVAILABLE, f"there is no credential {name} any more"))
        return credential

    def way(self, access: Access) -> tuple[Pool, Access]:
        """The way to the host that is meant, and what is asked there; a mock has all hosts under its own."""
        vendor, target = access.vendor, access.target
        if vendor.hosts is not None:
            label, path = vendor.hosts.split(target.path)
            pool = self.pools.get(f"{vendor.name}/{label}")
            if pool is not None:
                return pool, structs.replace(access, target=structs.replace(target, path=path))
        return self.pools[vendor.name], access

    def kept_apart(self, grant: Grant, vendor: Vendor, fields: Fields) -> Fields:
        """The agent's fields as they leave: where tenants share an account, each with keys of its own."""
        if vendor.name not in self.apart:
            return fields
        name = vendor.retry_header
        return [
            (each, self.key_there(vendor, grant.tenant, value) if each == name and value else value)
            for each, value in fields
        ]

    def key_there(self, vendor: Vendor, tenant: str | None, key: bytes) -> bytes:
        """An agent's idempotency key as the vendor gets it."""
        return namespaced(tenant, key) if vendor.name in self.apart else key

    def scrubber(self, credential: Credential) -> Scrubber:
        """What to look for in this credential's answers; nothing of one that was rotated is kept."""
        kept = self._scrubbers.get(credential.name)
        if kept is None or kept[0] != credential.version:
            kept = credential.version, Scrubber(credential.revealed().reveal())
            if self.credentials.get(credential.name) is credential:
                self._scrubbers[credential.name] = kept
        return kept[1]

    def turn(self, grant: Grant, access: Access, credential: Credential) -> Turn:
        """A call's way past the bounds on calls under way and on their rate."""
        kind: RateClass = "read" if access.method in READS else "write"
        # The flow is the key's root: where a key was derived, that of the first one up.
        return self._shares_of(credential).turn(grant, kind, flow=grant.root.no)

    @property
    def idle(self) -> bool:
        """Whether no call is under way or in line."""
        return self._places.idle and all(shares.idle for shares in self._shares.values())

    def overload(self, request: Request, grant: Grant) -> Refusal | None:
        """Turn a call away when too many are under way, and its key has its share of them already."""
        server = request.connection.server
        if not server.overloaded or self._places.fair(grant, server.limits.connections):
            return None
        sentence = f"{server.limits.connections:,} requests are under way; nothing was sent"
        return Refusal(Code.OVERLOADED, sentence, "try again in a moment", retry_after_s=1)

    def busy(self, grant: Grant) -> bool:
        """Whether calls of this key are under way or in line."""
        return self._places.busy(grant)

    def _shares_of(self, credential: Credential) -> Shares:
        """Rates belong to an account, and so to a credential; a new secret of it changes nothing."""
        key = credential.vendor, credential.name
        shares = self._shares.get(key)
        if shares is None:
            shares = self._shares[key] = Shares(
                credential.vendor,
                self._places,
                slots=self.pools[credential.vendor].limits.connections,
                rates=self.rates.get(credential.vendor, {}),
                turn_s=self.turn_s,
            )
        return shares
