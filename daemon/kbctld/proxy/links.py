"""Links to the next page that a vendor writes out as whole URLs, turned to go through the proxy again.

What must stay true: an SDK follows such a link with the key it has, so one to the vendor's own host would
take the vault key there, past every limit. Only links to the vendor's listed hosts are turned, in the members
where a vendor puts them; everything else of an answer stays as it is, to the byte.
"""

import json
import re
from collections.abc import Iterator

from kbctld.core.vendor import Vendor

LINKS_BYTES = 1024 * 1024
"""Up to this size an answer is read whole to turn its links; a page is far smaller."""

_STRING = rb'"(?:[^"\\]|\\.)*"'
_MEMBER = re.compile(rb'("(?:url|[a-z_]{1,40}_url)"\s*:\s*)(' + _STRING + rb")")


def turned(vendor: Vendor, authority: str, body: bytes) -> bytes:
    """An answer's JSON with its links through the proxy.

    Args:
        vendor: whose hosts count.
        authority: how the agent addresses the proxy.
        body: the whole answer.
    """
    if vendor.hosts is None or b"_url" not in body:
        return body
    try:
        links = set(_links(json.loads(body)))
    except (ValueError, RecursionError):
        return body
    through = {}
    for label in vendor.file.hosts.labels if vendor.file.hosts else ():
        origin = vendor.hosts.origin(label)
        host = origin.removeprefix("https://")
        for link in links:
            if link.startswith(f"{origin}/"):
                through[link] = f"http://{authority}/{vendor.name}/{host}{link.removeprefix(origin)}"

    def turn(member: re.Match[bytes]) -> bytes:
        link = through.get(json.loads(member[2]))
        return member[0] if link is None else member[1] + json.dumps(link).encode()

    return _MEMBER.sub(turn, body) if through else body


def _links(said: object) -> Iterator[str]:
    """The values of ``next_page_url`` and of ``meta``'s URLs."""
    if not isinstance(said, dict):
        return
    meta = said.get("meta")
    if isinstance(meta, dict):
        yield from (
            link
            for name, link in meta.items()
            if (name == "url" or name.endswith("_url")) and isinstance(link, str)
        )
    following = said.get("next_page_url")
    if isinstance(following, str):
        yield following
