"""Rungs of fidelity: who goes on, what it costs, and the scale on which results are told."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from child.cost import CostModel
from child.macro import MacroSpace
from child.rungs import Climb, Rungs, RungsSettings, on_lower_scale
from child.space import Evaluation, Genotype
from child.standalone import StandaloneEvaluator
from child.task import Task
from child.training import TrainingSettings

EPOCHS = TrainingSettings(epochs=4, batch_size=16)


class Cheap:
    """Gives qualities from a list, in the order of the architectures' first tokens."""

    def __init__(self, quality_of: Callable[[Genotype], float]):
        self.quality_of = quality_of

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        return [Evaluation(genotype, self.quality_of(genotype), 1.0, fidelity, seed) for genotype in genotypes]

    def improve(self, sampler: Any, num_batches: int) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        assert state == {}


@pytest.fixture
def make_rungs(
    macro: MacroSpace, task: Task, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Rungs, list[tuple[Genotype, float]]]]:
    """Rungs over known cheap qualities and known qualities of trainings; and the list of trainings made."""

    def build(
        cheap: Callable[[Genotype], float], trained: Callable[[Genotype, float], float | str], **settings: Any
    ) -> tuple[Rungs, list[tuple[Genotype, float]]]:
        made: list[tuple[Genotype, float]] = []

        def quality(self: StandaloneEvaluator, genotype: Genotype, fidelity: float) -> float | str:
            made.append((genotype, self.epochs(fidelity)))
            return trained(genotype, fidelity)

        monkeypatch.setattr(StandaloneEvaluator, "_train", quality)
        alone = StandaloneEvaluator(
            macro, task, CostModel(macro, "macs", task.input_shape, device), EPOCHS, 1, 0, device
        )
        return Rungs(Cheap(cheap), alone, RungsSettings(**settings)), made

    return build


@pytest.fixture
def make(make_rungs: Any) -> Callable[..., tuple[Climb, list[tuple[Genotype, float]]]]:
    """The climb of one strategy, and the list of trainings made."""

    def build(*args: Any, **settings: Any) -> tuple[Climb, list[tuple[Genotype, float]]]:
        rungs, made = make_rungs(*args, **settings)
        return rungs.of("mine"), made

    return build


@pytest.fixture
def ordered(macro: MacroSpace) -> list[Genotype]:
    """Sixteen different architectures."""
    return list(dict.fromkeys(macro.sample(np.random.default_rng(0), 40)))[:16]


def test_the_best_share_goes_on_rung_by_rung(make: Any, ordered: list[Genotype]) -> None:
    place = {genotype: number for number, genotype in enumerate(ordered)}
    rungs, made = make(lambda g: place[g] / 100, lambda g, _: 0.5 - place[g] / 100, fidelities=(0.5, 1.0), keep=0.25)
    rungs.evaluate(ordered, 1.0, 0)
    # Of sixteen the four with the best scores are trained for two epochs; of those the best, for four.
    assert made == [(ordered[15 - number], 2) for number in range(4)] + [(ordered[12], 4)]


def test_one_at_a_time_goes_on_if_it_is_among_the_best_lately(make: Any, ordered: list[Genotype]) -> None:
    place = {genotype: number for number, genotype in enumerate(ordered)}
    rungs, made = make(lambda g: place[g] / 100, lambda g, _: 0.5, fidelities=(1.0,), keep=0.25)
    for genotype in [ordered[number] for number in (5, 1, 3, 2, 9, 4, 8)]:
        rungs.evaluate([genotype], 1.0, 0)
    # The first three have too little company; 2 is the worst of four, 9 the best of five, 8 the second of seven.
    assert made == [(ordered[9], 4)]
    rungs.evaluate([ordered[7]], 1.0, 0)  # the third of eight
    rungs.evaluate([ordered[10]], 1.0, 0)
    assert made == [(ordered[9], 4), (ordered[10], 4)]
    rungs.evaluate([ordered[10]], 1.0, 1)
    assert len(made) == 2  # never twice


def test_scores_that_tell_none_apart_send_no_more_on(make: Any, ordered: list[Genotype]) -> None:
    rungs, made = make(lambda g: 0.5, lambda g, _: 0.5, fidelities=(1.0,), keep=0.25)
    rungs.evaluate(ordered, 1.0, 0)
    assert made == [(genotype, 4) for genotype in ordered[:4]]
    for genotype in ordered[4:]:
        rungs.evaluate([genotype], 1.0, 0)
    assert len(made) == 4


def test_results_are_told_on_the_scale_of_the_cheap_score(make: Any, ordered: list[Genotype]) -> None:
    place = {genotype: number for number, genotype in enumerate(ordered)}
    cheap = lambda g: 0.1 + place[g] / 100  # noqa: E731
    rungs, _ = make(cheap, lambda g, _: cheap(g) + 0.5, fidelities=(1.0,), keep=0.5)
    found = rungs.evaluate(ordered, 1.0, 0)
    # Half were trained, and were 0.5 better than scored.
    assert [each.quality for each in found[:8]] == [cheap(genotype) for genotype in ordered[:8]]
    assert [each.quality for each in found[8:]] == pytest.approx(
        [cheap(genotype) for genotype in ordered[8:]], abs=0.01
    )
    assert [each.genotype for each in found] == ordered and {each.failure for each in found} == {None}


def test_results_of_the_last_rung_go_down_through_the_one_below(make: Any, ordered: list[Genotype]) -> None:
    """Each rung says the same in log-odds of its own, by more pairs than the two that hold a slope back."""
    place = {genotype: number for number, genotype in enumerate(ordered)}
    odds = lambda g: (place[g] - 8) / 4  # noqa: E731
    trained = {0.5: lambda g: 0.5 * odds(g) + 3, 1.0: lambda g: -(0.6 * odds(g) - 2)}  # the last turns the order
    rungs, made = make(
        lambda g: expit(odds(g)), lambda g, f: expit(trained[f](g)), fidelities=(0.5, 1.0), keep=1.0
    )  # fmt: skip
    found = rungs.evaluate(ordered, 1.0, 0)
    assert len(made) == 32
    told = logit([each.quality for each in found])
    # Shifted from either scale to that of the scores, and turned by what training longer says.
    assert told.mean() == pytest.approx(np.mean([odds(g) for g in ordered]), abs=0.02)
    assert (np.diff(told) < 0).all() and told.std() == pytest.approx(np.std([odds(g) for g in ordered]), rel=0.1)


def test_results_compare_with_the_last_64(make_rungs: Any, macro: MacroSpace) -> None:
    """Shared weights that have learned score all higher: what was best before keeps nobody back, and shifts nothing."""
    many = list(dict.fromkeys(macro.sample(np.random.default_rng(0), 400)))[:128]
    early, late = many[:64], many[64:]
    place = {genotype: number for number, genotype in enumerate(many)}
    drop = lambda g: 0.3 if place[g] >= 64 else 0.0  # noqa: E731
    rungs, made = make_rungs(
        lambda g: 0.5 + place[g] / 1000 - drop(g), lambda g, _: 0.5 + place[g] / 1000, fidelities=(1.0,), keep=1.0
    )
    climb = rungs.of("mine")
    climb.evaluate(early, 1.0, 0)
    found = climb.evaluate(late, 1.0, 0)
    assert len(made) == 128
    assert [each.quality for each in found] == pytest.approx([0.2 + place[g] / 1000 for g in late], abs=0.005)
    climb.evaluate(early[:1], 1.0, 1)
    assert list(climb.reached[0])[-1] == early[0]  # what was asked for again is among the last
    few, made = make_rungs(
        lambda g: 0.5 + place[g] / 1000 - drop(g), lambda g, _: 0.5, fidelities=(1.0,), keep=0.25
    )  # fmt: skip
    few.of("mine").evaluate(early, 1.0, 0)
    few.of("mine").evaluate(late, 1.0, 0)
    assert [genotype for genotype, _ in made] == [*early[:-17:-1], *late[:-17:-1]]


def test_to_be_asked_again_is_no_further_evidence(make: Any, ordered: list[Genotype]) -> None:
    """A policy that has settled asks for one architecture over and over, whose cheap score is noisy."""
    place = {genotype: number for number, genotype in enumerate(ordered)}
    noise = np.random.default_rng(0)
    rungs, made = make(
        lambda g: place[g] / 100 + 0.002 * noise.random(),
        lambda g, _: 0.3 + place[g] / 100,
        fidelities=(1.0,),
        keep=0.5,
    )
    rungs.evaluate(ordered[:15], 1.0, 0)
    for seed in range(100):
        rungs.evaluate([ordered[8]], 1.0, seed)
    found = rungs.evaluate([ordered[2], ordered[15]], 1.0, 0)
    assert found[1].quality == pytest.approx(0.15, abs=0.02)  # by the line through all that were trained
    assert made[-1][0] == ordered[15] and len(made) == len(set(made))  # the best of the recent is not 8 alone


def test_the_budget_counts_three_forward_passes_for_each_sample(
    make: Any, ordered: list[Genotype], macro: MacroSpace, task: Task
) -> None:
    place = {genotype: number for number, genotype in enumerate(ordered)}
    prices = [3 * macro.macs(genotype) * len(task.train) * 4 for genotype in ordered]
    limits = {"fidelities": (1.0,), "keep": 1.0, "budget": sum(prices[-3:]) + 1}
    rungs, made = make(lambda g: place[g] / 100, lambda g, _: 0.5, **limits)
    rungs.evaluate(ordered, 1.0, 0)
    assert [genotype for genotype, _ in made[:3]] == ordered[:-4:-1]
    assert rungs.spent == sum(prices[place[genotype]] for genotype, _ in made)
    assert rungs.spent <= limits["budget"] < rungs.spent + min(prices[place[g]] for g in ordered if (g, 4) not in made)


def test_a_training_that_fails_is_a_failure(make: Any, ordered: list[Genotype]) -> None:
    place = {genotype: number for number, genotype in enumerate(ordered)}
    rungs, _ = make(
        lambda g: place[g] / 100, lambda g, _: "out of memory" if place[g] == 15 else 0.5, fidelities=(1.0,), keep=0.5
    )
    found = rungs.evaluate(ordered, 1.0, 0)
    assert [each.failure for each in found] == [None] * 15 + ["out of memory"] and found[-1].quality == 0


def test_what_fails_keeps_no_place_from_what_can_be_trained(make_rungs: Any, ordered: list[Genotype]) -> None:
    """The best by their scores are the slowest, and take too long."""
    place = {genotype: number for number, genotype in enumerate(ordered)}
    rungs, made = make_rungs(
        lambda g: place[g] / 100, lambda g, _: "out of time" if place[g] >= 12 else 0.5, fidelities=(1.0,), keep=0.25
    )
    climb = rungs.of("mine")
    climb.evaluate([*ordered[:4], *ordered[8:]], 1.0, 0)
    assert made == [(ordered[number], 4) for number in (15, 14, 13)]  # a quarter of twelve
    climb.evaluate(ordered[4:8], 1.0, 1)
    assert made[3:] == []  # 10, 11 and 12 are better, and are not asked for
    climb.evaluate(ordered[10:12], 1.0, 2)
    assert made[3:] == [(ordered[11], 4), (ordered[10], 4)]
    assert rungs.sentence().endswith("how many epochs: mine 5 for 4 (3 failed).")
    restored = make_rungs(lambda g: 0.5, lambda g, _: 0.5, fidelities=(1.0,), keep=0.25)[0]
    restored.load_state_dict(json.loads(json.dumps(rungs.state_dict())))
    assert restored.sentence() == rungs.sentence()
    (again,) = climb.evaluate(ordered[15:], 1.0, 3)
    assert again.failure == "out of time" and len(made) == 5 and ordered[15] not in climb.reached[0]


def test_what_was_trained_is_told_as_it_was_whatever_its_cheap_score_is_by_then(
    make: Any, ordered: list[Genotype]
) -> None:
    scores = {genotype: number / 100 for number, genotype in enumerate(ordered)}
    rungs, made = make(lambda g: scores[g], lambda g, _: 0.9, fidelities=(1.0,), keep=0.25)
    rungs.evaluate(ordered, 1.0, 0)
    best = ordered[15]
    assert (best, 4) in made
    scores[best] = 0.0
    number = len(made)
    found = {each.genotype: each.quality for each in rungs.evaluate([best, ordered[14]], 1.0, 1)}
    assert found[best] == found[ordered[14]] > 0 and len(made) == number  # which training found alike


def test_it_goes_on_from_its_state(make_rungs: Any, ordered: list[Genotype]) -> None:
    def build() -> Rungs:
        # Of a training that is not repeated, the quality need not be told again.
        return make_rungs(lambda g: sum(g.tokens) / 100, lambda g, f: f * sum(g.tokens) / 50, fidelities=(0.5, 1.0))[0]

    straight, stopped, restored = build(), build(), build()
    for rungs in (straight, stopped):
        rungs.of("mine").evaluate(ordered[:8], 1.0, 0)
        rungs.of("random").evaluate(ordered[4:12], 1.0, 0)
    restored.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for strategy in ("mine", "random"):
        went_on, straight_on = (rungs.of(strategy).evaluate(ordered[8:], 1.0, 1) for rungs in (restored, straight))
        assert went_on == straight_on and straight.of(strategy).spent > 0
    assert restored.state_dict() == straight.state_dict()


def test_strategies_do_not_compete(make_rungs: Any, ordered: list[Genotype]) -> None:
    """However much better one scores, the other's best are trained, and none learns of who plays beside it."""
    place = {genotype: number for number, genotype in enumerate(ordered)}
    known = (lambda g: place[g] / 100, lambda g, _: 0.5 - place[g] / 100)
    settings = {"fidelities": (1.0,), "keep": 0.25, "budget": 1e12}
    together, made = make_rungs(*known, **settings)
    better, worse = ordered[4:], ordered[:12]
    found = [together.of("policy").evaluate(better, 1.0, 0), together.of("random").evaluate(worse, 1.0, 0)]
    trained = [genotype for genotype, _ in made]
    assert trained == [*ordered[:-4:-1], *ordered[11:8:-1]]  # three of twelve, the best first
    for name, mine, its in zip(("policy", "random"), (better, worse), found, strict=True):
        alone = make_rungs(*known, **settings)[0].of(name)
        assert alone.evaluate(mine, 1.0, 0) == its and alone.spent == together.of(name).spent > 0
    # What the other has trained is told by its score, unless it is wanted too: then it is paid for, not trained again.
    (told,) = together.of("policy").evaluate([ordered[9]], 1.0, 1)
    assert told.quality == 0.09
    assert together.sentence() == (
        "Architectures trained on the rungs, and for how many epochs: policy 3 for 4, random 3 for 4."
    )
    spent = together.of("random").spent
    together.of("random").evaluate([ordered[15]], 1.0, 1)
    assert len(made) == 6 and together.of("random").spent > spent


def test_early_and_late_results_compare(make: Any, ordered: list[Genotype]) -> None:
    """Before the first training and after it, what is not trained is told as it was scored."""
    place = {genotype: number for number, genotype in enumerate(ordered)}
    rungs, made = make(lambda g: 0.5 + place[g] / 100, lambda g, f: f / 10, fidelities=(0.5, 1.0), keep=0.25)
    (early,) = rungs.evaluate(ordered[:1], 1.0, 0)
    rungs.evaluate(ordered, 1.0, 0)
    assert made
    (late,) = rungs.evaluate(ordered[:1], 1.0, 1)
    assert early.quality == late.quality == 0.5


pairs_of_rungs = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20).map(np.array)


@given(pairs_of_rungs, st.lists(st.floats(0, 1), min_size=2, max_size=5).map(sorted))
def test_what_training_tells_apart_stays_apart(pairs: np.ndarray[Any, Any], trained: list[float]) -> None:
    told = [on_lower_scale(pairs, quality) for quality in trained]
    assert told == sorted(told) and all(0 <= quality <= 1 for quality in told)
    # However little the scores of the two have to do with each other.
    mixed = np.stack([pairs[::-1, 0], pairs[:, 1]], axis=1)
    assert [on_lower_scale(mixed, quality) for quality in trained] == pytest.approx(told)


def test_one_pair_shifts_and_many_set_the_spread() -> None:
    assert on_lower_scale(np.zeros((0, 2)), 0.3) == 0.3
    assert on_lower_scale(np.array([[0.2, 0.5]]), 0.5) == pytest.approx(0.2)
    odds = np.random.default_rng(0).normal(size=(500, 2)) * (0.2, 1.0) + (2.0, -1.0)
    told = np.array([on_lower_scale(1 / (1 + np.exp(-odds)), x) for x in 1 / (1 + np.exp(-odds[:, 1]))])
    told = np.log(told / (1 - told))
    assert (told.mean(), told.std()) == pytest.approx((2.0, 0.2), abs=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fidelities": (0.5, 0.2)}, r"rungs.fidelities must rise within \(0, 1\], got \[0.5, 0.2\]"),
        ({"fidelities": (0.5, 1.5)}, r"rungs.fidelities must rise"),
        ({"fidelities": (0.0,)}, r"rungs.fidelities must rise"),
        ({"keep": 0.0}, r"rungs.keep is a share in \(0, 1\], got 0.0"),
        ({"budget": 0.0}, r"rungs.budget must be above 0 or null, got 0.0"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RungsSettings(**settings)
