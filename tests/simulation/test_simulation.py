"""L14: the stories of many seeds, naive variants that each must be caught, and replay by number."""

import pytest

from tests.simulation.__main__ import CONTROLS, caught, tell_all
from tests.simulation.story import tell

SEEDS = 100
"""Of each part; ``python -m tests.simulation --seeds 10000`` tells more."""


@pytest.mark.parametrize("part", range(10))
def test_L14_every_law_holds_at_every_step_of_every_story(part: int) -> None:
    """Deaths at any moment, a disk that fails or forgets, clocks that jump: laws 1-3, 5, 7, 9 and 12 hold."""
    told = tell_all(range(part * SEEDS, (part + 1) * SEEDS))
    assert not told.broken
    assert told.calls > SEEDS * 5
    assert told.deaths > SEEDS / 4
    assert told.unknown > SEEDS / 4
    assert told.moved > 0


@pytest.mark.parametrize("how", CONTROLS)
def test_L14_control_a_naive_variant_is_caught_within_50_seeds(how: str) -> None:
    """What holds above is no accident: of each naive variant some law breaks."""
    assert caught(how, 50) is not None


@pytest.mark.parametrize("seed", [1, 54, 597])
def test_L14_a_seed_is_a_story(seed: int) -> None:
    """Told twice it is the same to the last step, so that a failure can be looked at by its number."""
    first, second = list[str](), list[str]()
    tell(seed, first.append)
    tell(seed, second.append)
    assert first == second
    assert len(first) > 5
