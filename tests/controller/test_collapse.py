"""A collapse of the search is named where there is one, and nowhere else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from child.micro import MicroSpace
from child.mlp import MLPSpace
from child.nasbench201 import NASBench201Space
from child.recurrent import RecurrentSpace
from child.space import Genotype, SearchSpace
from controller.collapse import FreeShare, free_share, name_collapse, settled_from
from controller.search import SearchSettings
from tests.conftest import CellSpace, tiny_macro

ROUNDS, EPISODES = 20, 8
SETTINGS = SearchSettings(rounds=ROUNDS, episodes=EPISODES, warmup_batches=123)
REMEDIES = ("a higher weight", "a smaller share")
SPACES: dict[str, Callable[[], SearchSpace]] = {
    "nasbench201": NASBench201Space,
    "micro": lambda: MicroSpace((3, 8, 8), 3, channels=4, num_nodes=3, num_cells=1),
    "macro": tiny_macro,
    "mlp": lambda: MLPSpace((7,), 3, num_layers=3, widths=(4, 6, 8)),
    "recurrent": lambda: RecurrentSpace((9,), 7, num_nodes=7, width=8, context=3),
    "cell": CellSpace,
}


def drawn(space: SearchSpace, rng: np.random.Generator, num: int, pull: float = 0.0) -> list[Genotype]:
    """Random architectures in which a share `pull` of the operations became one of those without parameters."""
    found = []
    for genotype in space.sample(rng, num):
        tokens = list(genotype.tokens)
        for step, decision in enumerate(space.decisions):
            free = [place for place, label in enumerate(decision.labels) if label in space.parameter_free]
            if free and rng.random() < pull:
                tokens[step] = int(rng.choice(free))
        found.append(space.canonical(tokens))
    return found


def history_of(space: SearchSpace, pull: Callable[[int], float]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"round": number, "genotype": genotype.to_json()}
        for number in range(ROUNDS)
        for genotype in drawn(space, rng, EPISODES, pull(number))
    ]


def updates_of(entropy: Callable[[int], float | None]) -> list[dict[str, Any]]:
    return [{"entropy": entropy(number)} for number in range(ROUNDS)]


@pytest.fixture(params=SPACES.values(), ids=list(SPACES))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    return request.param()


@pytest.fixture(params=["nasbench201", "micro"])
def free_space(request: pytest.FixtureRequest) -> SearchSpace:
    """Those that have operations without parameters."""
    return SPACES[request.param]()


def test_a_search_that_learned_is_not_called_collapsed(space: SearchSpace) -> None:
    """Entropy that falls to a tenth, at last to nothing, and a taste for cheap operations are learning."""
    chosen = drawn(space, np.random.default_rng(1), 1)
    slow = updates_of(lambda number: 10 * (1 - number / ROUNDS) if number < 15 else 0.0)
    for pull in (0.0, 0.3):
        assert (
            name_collapse(space, history_of(space, lambda _, p=pull: p), slow, chosen, SETTINGS, REMEDIES, True) == []
        )
    # It may have been there and have come out of it again.
    assert (
        name_collapse(space, history_of(space, lambda n: 0.95 * (n < 10)), slow, chosen, SETTINGS, REMEDIES, True) == []
    )


def test_without_a_policy_there_is_no_entropy_to_fall(space: SearchSpace) -> None:
    chosen = drawn(space, np.random.default_rng(1), 1)
    assert (
        name_collapse(
            space, history_of(space, lambda _: 0.0), updates_of(lambda _: None), chosen, SETTINGS, REMEDIES, True
        )
        == []
    )


def test_proposals_without_parameters_are_named(free_space: SearchSpace) -> None:
    history = history_of(free_space, lambda number: 0.95 if number >= 14 else 0.0)
    healthy = drawn(free_space, np.random.default_rng(1), 1)
    (found,) = name_collapse(free_space, history, updates_of(lambda _: 5.0), healthy, SETTINGS, REMEDIES, True)
    assert "of the operations proposed in the last 4 of 20 rounds 97% are without parameters" in found
    assert "where random drawing gives 60%" in found
    for advice in ("search.warmup_batches, now 123", *REMEDIES, "evaluator.statistics"):
        assert advice in found
    assert "chosen in the end" not in found
    (found,) = name_collapse(free_space, history, updates_of(lambda _: None), healthy, SETTINGS, (), True)
    warm_up = "a longer warm-up of the shared weights (search.warmup_batches, now 123)"
    assert found.endswith(f"Try {warm_up} or the other evaluator.statistics.")  # evolution has none of its own
    (found,) = name_collapse(free_space, history, updates_of(lambda _: None), healthy, SETTINGS, REMEDIES, False)
    assert found.endswith(f"Try {warm_up}, {REMEDIES[0]} or {REMEDIES[1]}.")


@pytest.mark.parametrize(("first", "named"), [(16, True), (17, False)])
def test_the_last_fifth_of_the_rounds_counts(first: int, named: bool) -> None:
    """Rounds 16 to 19: where the first of them has its convolutions, a quarter of the operations is left."""
    cells = [Genotype("nasbench201", (1 if number >= first else 3,) * 6) for number in range(ROUNDS)]
    history = [{"round": number, "genotype": cell.to_json()} for number, cell in enumerate(cells)]
    found = name_collapse(NASBench201Space(), history, updates_of(lambda _: 5.0), cells[:1], SETTINGS, REMEDIES, True)
    assert len(found) == named and all("the last 4 of 20 rounds 100% are" in each for each in found)


def test_a_choice_without_parameters_is_named(free_space: SearchSpace) -> None:
    chosen = drawn(free_space, np.random.default_rng(1), 1, pull=1.0)
    (found,) = name_collapse(
        free_space, history_of(free_space, lambda _: 0.0), updates_of(lambda _: 5.0), chosen, SETTINGS, REMEDIES, True
    )
    assert "of the operations chosen in the end 100% are without parameters" in found and "proposed" not in found


@pytest.mark.parametrize(("last_open", "first"), [(-1, 1), (2, 4), (8, 10), (9, None), (19, None)])
def test_a_policy_that_settled_early_is_named(space: SearchSpace, last_open: int, first: int | None) -> None:
    updates = updates_of(lambda number: 3.0 if number <= last_open else 0.01)
    chosen = drawn(space, np.random.default_rng(1), 1)
    found = name_collapse(space, history_of(space, lambda _: 0.0), updates, chosen, SETTINGS, REMEDIES, True)
    assert len(found) == (first is not None)
    assert first is None or f"from update {first} of 20 on its entropy stayed below 2%" in found[0]


@pytest.mark.parametrize(("chosen", "collapsed"), [(0.0, False), (0.89, False), (0.91, True), (1.0, True)])
def test_a_quarter_of_what_random_drawing_has_is_left(chosen: float, collapsed: bool) -> None:
    """Random drawing has 40% with parameters, so 10% are the fewest."""
    assert FreeShare(chosen, 0.6, {}).is_collapsed == collapsed


@pytest.mark.parametrize(("share", "settled"), [(0.019, True), (0.021, False)])
def test_settled_is_below_two_hundredths_of_the_entropy_of_a_uniform_policy(
    share: float, settled: bool, known: Any
) -> None:
    entropies = [share * 4 * np.log(3)] * 3
    assert (settled_from(known.FlatSpace(4, 3), entropies) is not None) == settled


def test_shares_by_hand() -> None:
    space = NASBench201Space()
    tokens = np.array([[0, 1, 2, 3, 4, 1], [2, 2, 3, 3, 2, 1]])  # none, skip, 1x1, 3x3, pool
    share = free_share(space, tokens)
    assert share.chosen == pytest.approx(5 / 12) and share.expected == pytest.approx(0.6)
    assert share.counts == {"none": 1, "skip_connect": 3, "avg_pool_3x3": 1}
    assert share.text() == (
        "42% are without parameters (skip_connect 60%, none 20%, avg_pool_3x3 20%), where random drawing gives 60%"
    )


def test_random_drawing_gives_what_is_expected(free_space: SearchSpace) -> None:
    tokens = np.array([genotype.tokens for genotype in free_space.sample(np.random.default_rng(0), 400)])
    share = free_share(free_space, tokens)
    assert share.chosen == pytest.approx(share.expected, abs=0.04) and not share.is_collapsed


def test_the_entropy_of_a_uniform_policy_is_known(known: Any) -> None:
    settled = settled_from(known.FlatSpace(4, 3), [0.0, 0.0])
    assert settled is not None and settled[1] == pytest.approx(4 * np.log(3))
    open_to_the_end = [1.0, 1.0, 1.0]
    assert settled_from(known.FlatSpace(4, 3), open_to_the_end) is None
