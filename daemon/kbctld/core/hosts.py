"""A vendor on many hosts: which one a path means, out of a fixed list.

What must stay true: a host is a label of the vendor file, put into its template; nothing that an agent sends
becomes part of a host name. Behind this a path has one form: the default host's as it is at the vendor, any
other host's with its label in front (``/verify/v2/Services``). It is matched, ruled and recorded so.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta, Struct, structs

from kbctld.core.refusal import Code, Refusal
from kbctld.core.target import Arrived

_LABEL = re.compile(r"[a-z][a-z0-9-]*", re.ASCII)
_VERSION = re.compile(r"v[0-9]", re.ASCII)
_TEMPLATE = re.compile(r"https://\{label\}\.[a-z0-9][a-z0-9.-]*[a-z0-9]", re.ASCII)
_LINK = "https://{label}."

Text = Annotated[str, Meta(min_length=1)]


class HostTable(Struct, forbid_unknown_fields=True, kw_only=True):
    """The hosts of a vendor.

    Attributes:
        template: an origin with ``{label}`` as the first part of its host.
        default: the label whose paths need none in front.
        labels: all of them.
    """

    template: Text
    default: Text
    labels: Annotated[list[Text], Meta(min_length=1)]

    def problem(self, origin: str) -> str | None:
        """What is wrong with it; None for nothing."""
        if not _TEMPLATE.fullmatch(self.template):
            return "`hosts.template` takes https://{label}.domain"
        for label in self.labels:
            if not _LABEL.fullmatch(label) or _VERSION.match(label):
                return f"`hosts.labels` takes lower-case words, not {label!r}"
        if self.default not in self.labels or self.template.replace("{label}", self.default) != origin:
            return "`hosts.default` takes the label of `origin`"
        return None


@dataclass(frozen=True, slots=True)
class Hosts:
    """A table of hosts, made quick to ask.

    Attributes:
        roots: what a path of the default host starts with.
    """

    table: HostTable
    roots: tuple[str, ...]

    @property
    def all_roots(self) -> tuple[str, ...]:
        """What the one form of a path starts with."""
        return (*self.roots, *(f"/{label}/" for label in self.table.labels if label != self.table.default))

    def origin(self, label: str) -> str:
        """Where a host is."""
        return self.table.template.replace("{label}", label)

    def settle(self, arrived: Arrived) -> Arrived | Refusal:
        """Bring ``/verify.twilio.com/v2``, ``/verify/v2`` or ``/2010-04-01`` into the one form of paths."""
        path = arrived.path
        if arrived.prefix is not None and path.startswith("//"):
            path = path[1:]  # a base URL that ended with a slash
        if path.startswith(self.roots):
            return structs.replace(arrived, path=path)
        first, _, rest = path[1:].partition("/")
        domain = self.table.template.partition("{label}")[2]
        label = first.removesuffix(domain)
        if label in self.table.labels:
            if label != self.table.default:
                return structs.replace(arrived, path=f"/{label}/{rest}")
            if f"/{rest}".startswith(self.roots):
                return structs.replace(arrived, path=f"/{rest}")
            starts = " or ".join(self.roots)
            return Refusal(Code.ENDPOINT_NOT_ALLOWED, f"paths of the host {label} start with {starts}")
        if _VERSION.match(first):
            return Refusal(
                Code.AMBIGUOUS_REQUEST,
                f"the path /{first} exists on several hosts of this vendor and does not say which it means",
                f"put the host in front, as in /{self.table.labels[-1]}{domain}{path}",
            )
        return Refusal(
            Code.ENDPOINT_NOT_ALLOWED,
            f"the path starts with no host of this vendor, nor with {' or '.join(self.roots)}",
        )

    def split(self, path: str) -> tuple[str, str]:
        """The host's label of a path in its one form, and the path there."""
        if path.startswith(self.roots):
            return self.table.default, path
        label, _, rest = path[1:].partition("/")
        return label, f"/{rest}"
