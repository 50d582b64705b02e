"""What operators can ask of the daemon itself: credentials and status.

What must stay true: a change is durable when its handler returns; a field that is not understood is an
error that names it; the real secret goes in and never comes out.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kbctl import wire
from kbctl.errors import KbctlError
from kbctld.control.routes import Ask, Reply, Route
from kbctld.control.terms import usage
from kbctld.core.clock import rfc3339
from kbctld.credentials import Credential, Credentials
from kbctld.vault import Vault


@dataclass(slots=True)
class Handlers:
    """The handlers and what they work on.

    Attributes:
        status: makes the status report.
        stop: begins the shutdown; gives the calls in flight.
        rotated: told of each credential that was set.
        removed: told of the name of each that was removed.
    """

    vault: Vault
    credentials: Credentials
    status: Callable[[], Awaitable[wire.Status]]
    stop: Callable[[], int]
    rotated: Callable[[Credential], None]
    removed: Callable[[str], None]

    def routes(self) -> list[Route]:
        """Their part of the table."""
        return [
            Route(
                *("GET", "/credentials", self.list_credentials, "read", "Credentials, without the secrets"),
                gives=wire.CredentialList,
            ),
            Route(
                *("DELETE", "/credentials/{name}", self.remove_credential, "admin", "Forget a credential"),
                status=204,
                errors=(404, 503),
            ),
            Route(
                *("PUT", "/credentials/{name}", self.set_credential, "admin", "Set or rotate a credential"),
                takes=wire.CredentialRequest,
                gives=wire.Credential,
                errors=(409, 503),
            ),
            Route(
                *("GET", "/healthz", self.health, None, "Whether calls can be recorded"),
                gives=wire.Health,
                errors=(503,),
            ),
            Route(
                *("POST", "/shutdown", self.shut_down, "admin", "Drain and end the daemon"),
                gives=wire.ShutdownReply,
            ),
            Route(*("GET", "/status", self.show_status, "read", "How the daemon is"), gives=wire.Status),
        ]

    # --- credentials ----------------------------------------------------------------------------

    async def list_credentials(self, ask: Ask) -> Reply:
        return Reply(wire.CredentialList(credentials=[credential_view(c) for c in self.credentials]))

    async def set_credential(self, ask: Ask) -> Reply:
        name = ask.parameters[0]
        request = wire.decode(ask.body, wire.CredentialRequest)
        vendor_name = request.vendor or name.partition(":")[0]
        vendor = self.vault.vendors.get(vendor_name)
        if vendor is None:
            known = ", ".join(sorted(self.vault.vendors))
            raise usage(
                "vendor_unknown",
                f"there is no vendor {vendor_name[:100]!r}; there is {known}",
                "kbctl credential set stripe",
            )
        credential = await self.credentials.set(
            name, vendor, request.secret, self.vault.now_ns(), ask.actor, request.fields
        )
        self.rotated(credential)
        return Reply(credential_view(credential))

    async def remove_credential(self, ask: Ask) -> Reply:
        await self.credentials.remove(ask.parameters[0], self.vault.now_ns(), ask.actor)
        self.removed(ask.parameters[0])
        return Reply(None)

    # --- status -----------------------------------------------------------------------

    async def show_status(self, ask: Ask) -> Reply:
        return Reply(await self.status())

    async def health(self, ask: Ask) -> Reply:
        if self.vault.journal.stopped is not None:
            raise KbctlError("audit_unavailable", self.vault.journal.stopped, "kbctl down && kbctl up")
        return Reply(wire.Health(ok=True))

    async def shut_down(self, ask: Ask) -> Reply:
        return Reply(wire.ShutdownReply(pid=os.getpid(), in_flight=self.stop()))


def credential_view(credential: Credential) -> wire.Credential:
    """A credential without its secret."""
    return wire.Credential(
        name=credential.name,
        vendor=credential.vendor,
        version=credential.version,
        set_at=rfc3339(credential.set_ns),
        available=credential.secret is not None,
        problem=credential.problem,
        fields=dict(credential.fields),
    )
