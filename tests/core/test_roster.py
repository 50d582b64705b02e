"""The grants in memory: found by all that they are asked for by, and nothing else is looked at."""

from dataclasses import replace

import pytest

from kbctld.core.grant import Grant
from kbctld.core.roster import Roster
from tests.core.support import grant


def key(no: int, label: str = "", tenant: str | None = None, parent: Grant | None = None) -> Grant:
    """A grant with a number and a digest of its own."""
    made = grant(label=label, parent=parent)
    return replace(made, no=no, digest=b"%d" % no, tenant=tenant)


@pytest.fixture
def roster() -> Roster:
    """Two of acme and one of acme2, the second of acme derived from its first, and one of nobody."""
    made = Roster()
    first = key(1, "a/tenant:acme", "acme")
    for each in (
        first,
        key(2, "b/tenant:acme", "acme", first),
        key(3, "a/tenant:acme2", "acme2"),
        key(4),
    ):
        made.add(each)
    return made


def numbers(grants: object) -> list[int]:
    return [each.no for each in grants]  # type: ignore[attr-defined]


def test_a_grant_is_found_by_number_and_by_digest(roster: Roster) -> None:
    assert len(roster) == 4
    assert numbers(roster) == [1, 2, 3, 4]
    assert 3 in roster
    assert 5 not in roster
    assert roster.get(3) is roster.find(b"3")
    assert roster.get(5) is roster.find(b"5") is None


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("a", [1, 3]),
        ("tenant:acme", [1, 2]),
        ("a/tenant:acme2", [3]),
        ("tenant:ac", []),
        ("", []),
        ("a/x", []),
    ],
)
def test_law_8_labels_and_tenants_are_whole(roster: Roster, label: str, found: list[int]) -> None:
    """An empty label finds nobody."""
    assert numbers(roster.of_label(label)) == found
    assert numbers(roster.of_tenant("acme")) == [1, 2]
    assert numbers(roster.of_tenant("ac")) == []


def test_law_9_descendants_come_with_their_ancestors_each_once(roster: Roster) -> None:
    first, second = roster.get(1), roster.get(2)
    assert first is not None
    assert second is not None
    third = key(5, parent=second)
    roster.add(third)
    assert roster.has_children(second)
    assert not roster.has_children(third)
    assert numbers(roster.with_descendants([first])) == [1, 2, 5]
    assert sorted(numbers(roster.with_descendants([first, second]))) == [1, 2, 5]
    assert numbers(roster.with_descendants([])) == []


def test_what_was_removed_is_found_by_nothing(roster: Roster) -> None:
    gone = roster.get(2)
    assert gone is not None
    roster.remove(gone)
    first = roster.get(1)
    assert first is not None
    assert numbers(roster) == [1, 3, 4]
    assert roster.find(b"2") is None
    assert numbers(roster.of_tenant("acme")) == numbers(roster.of_label("tenant:acme")) == [1]
    assert numbers(roster.of_label("b")) == []
    assert numbers(roster.with_descendants([first])) == [1]


def test_a_grant_is_found_by_its_very_id(roster: Roster) -> None:
    """All of the fixture have one id, the last one's."""
    assert roster.named("vk_test") is roster.get(4)
    assert roster.named("vk_tes") is None
