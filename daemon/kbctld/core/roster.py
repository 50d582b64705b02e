"""The grants in memory, by all that they are asked for by.

What must stay true: whatever a revocation means is found without looking at any other key, however many
there are.
"""

from collections.abc import Iterator

from kbctld.core.grant import Grant, label_matches, label_segments


class Roster:
    """Grants by number, digest, parent, tenant and segment of their label."""

    def __init__(self) -> None:
        self._by_no: dict[int, Grant] = {}
        self._by_digest: dict[bytes, Grant] = {}
        self._by_id: dict[str, Grant] = {}
        # Dictionaries as ordered sets: what is made of them comes in the order of entry.
        self._groups: dict[tuple[str, int | str], dict[int, Grant]] = {}

    def __len__(self) -> int:
        return len(self._by_no)

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._by_no.values())

    def __contains__(self, number: int) -> bool:
        return number in self._by_no

    def get(self, number: int) -> Grant | None:
        return self._by_no.get(number)

    def find(self, digest: bytes) -> Grant | None:
        """The grant of the key with this digest."""
        return self._by_digest.get(digest)

    def named(self, key_id: str) -> Grant | None:
        """The grant with this very id."""
        return self._by_id.get(key_id)

    def add(self, grant: Grant) -> None:
        """Enter a grant; its ancestors are in already."""
        self._by_no[grant.no] = grant
        self._by_digest[grant.digest] = grant
        self._by_id[grant.key_id] = grant
        for group in _groups(grant):
            self._groups.setdefault(group, {})[grant.no] = grant

    def remove(self, grant: Grant) -> None:
        """Strike out a grant that was entered."""
        del self._by_no[grant.no], self._by_digest[grant.digest], self._by_id[grant.key_id]
        for group in _groups(grant):
            del self._groups[group][grant.no]
            if not self._groups[group]:
                del self._groups[group]

    def has_children(self, grant: Grant) -> bool:
        """Whether any that was derived from it is entered."""
        return ("parent", grant.no) in self._groups

    def of_tenant(self, tenant: str) -> list[Grant]:
        return list(self._groups.get(("tenant", tenant), {}).values())

    def of_label(self, wanted: str) -> list[Grant]:
        """Those whose label has all segments of this one."""
        groups = [self._groups.get(("segment", segment), {}) for segment in label_segments(wanted)]
        smallest = min(groups, key=len, default=dict[int, Grant]())
        return [grant for grant in smallest.values() if label_matches(grant.label, wanted)]

    def with_descendants(self, grants: list[Grant]) -> Iterator[Grant]:
        """These and all that come from them, each once."""
        seen = {grant.no for grant in grants}
        rest = list(reversed(grants))
        while rest:
            grant = rest.pop()
            yield grant
            for child in self._groups.get(("parent", grant.no), {}).values():
                if child.no not in seen:
                    seen.add(child.no)
                    rest.append(child)


def _groups(grant: Grant) -> Iterator[tuple[str, int | str]]:
    if grant.parent is not None:
        yield "parent", grant.parent.no
    if grant.tenant is not None:
        yield "tenant", grant.tenant
    for segment in label_segments(grant.label):
        yield "segment", segment
