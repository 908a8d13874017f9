"""The search loop: what it writes down, that its players are treated alike, and that it goes on where it stopped."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from child.cost import CostModel
from child.nasbench201 import NASBench201Space
from child.space import CheckedEvaluator, Evaluation, Genotype, Improvement, SearchSpace, derive_seed
from child.supernet import SupernetEvaluator
from child.task import Task
from child.training import TrainingSettings
from conf.launch import compose
from controller.ledger import Ledger
from controller.policy import PolicySettings
from controller.reinforce import Reinforce
from controller.search import MAX_IDLE, Player, SearchSettings, Trained, operation_shares, play, search
from controller.strategy import RandomSearch, Rollout, Strategy, Update
from envs.architecture import VectorArchitectureEnv
from envs.reward import Linear
from logbook.checkpoint import read_checkpoint
from logbook.console import Console
from logbook.run import Run

CPU = torch.device("cpu")
SETTINGS = SearchSettings(rounds=4, episodes=3, warmup_batches=4, batches_per_round=2, fidelity=0.5)


class StoppedError(Exception):
    """Stands for a power cut."""


def make_run(folder: Path) -> Run:
    return Run.create(folder.parent, folder.name, "seed: 0\n", checkpoint_every_s=0)


def reinforce(space: SearchSpace, rounds: int = 4) -> Reinforce:
    return Reinforce(space, 0, rounds, PolicySettings(hidden=8), learning_rate=0.05)


CONTROLLERS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "controller").glob("*.yaml"))
REWARD: Any = Linear(target=20_000, beta=0.1)


def environments(space: SearchSpace, evaluator: Any, settings: SearchSettings) -> Any:
    return gymnasium.make_vec(
        "luban/Architecture-v0", settings.episodes, vectorization_mode="vector_entry_point",
        space=space, evaluator=evaluator, reward=REWARD, fidelity=settings.fidelity,
    )  # fmt: skip


def play_search(strategy: Strategy, evaluator: Any, run: Run, settings: SearchSettings = SETTINGS) -> None:
    def join(player: Strategy) -> Player:
        ledger = Ledger(evaluator, settings.budget) if settings.budget else None
        return Player(player, environments(player.space, ledger or evaluator, settings), ledger)

    search(join, strategy, evaluator, settings, 0, run, Console())


@pytest.fixture
def supernet(known: Any, small_task: Task) -> Callable[[SearchSpace], SupernetEvaluator]:
    def make(space: Any) -> SupernetEvaluator:
        cost = CostModel(space, "macs", small_task.input_shape, CPU)
        training = TrainingSettings(batch_size=16, learning_rate=0.05)
        return SupernetEvaluator(space, small_task, cost, training, SETTINGS.num_batches, "batch", 1, 0, CPU)

    return make


def test_the_history_is_complete_and_fair(known: Any, tmp_path: Path) -> None:
    space = known.tiny_macro()
    evaluator = known.SeededEvaluator(space.sample(np.random.default_rng(0), 1)[0])
    run = make_run(tmp_path / "run")
    play_search(reinforce(space), evaluator, run)
    history = run.read("history")
    run.close()
    mine, random = ([line for line in history if line["strategy"] == name] for name in ("reinforce", "random"))
    assert len(mine) == len(random) == 4 * 3  # as many evaluations for the opponent
    for lines in (mine, random):
        assert [line["round"] for line in lines] == [number // 3 for number in range(12)]
        assert [line["step"] for line in lines] == list(range(1, 13))
    for line in history:
        genotype = space.check(Genotype.from_json(line["genotype"]))
        assert line["text"] == space.text(genotype)
        assert line["seed"] == derive_seed(0, "search", line["round"])  # both players on the same data
        assert line["fidelity"] == 0.5 and line["failure"] is None
        (again,) = evaluator.evaluate([genotype], 0.5, line["seed"])
        assert (line["quality"], line["cost"]) == (again.quality, again.cost)
        assert line["reward"] == REWARD(again)
    assert evaluator.num_improved == 4 + 3 * 2
    assert [line["genotype"]["tokens"] for line in random[:3]] == [
        list(g.tokens) for g in RandomSearch(space, 0).propose(3, 0)
    ]


def test_a_round_that_the_budget_cut_short_is_numbered_on(known: Any, tmp_path: Path) -> None:
    space = known.FlatSpace(3, 4)
    run = make_run(tmp_path / "run")
    settings = SearchSettings(rounds=9, episodes=5, warmup_batches=0, batches_per_round=0, budget=13)
    play_search(RandomSearch(space, 0), known.TargetEvaluator(Genotype("flat", (1, 2, 3))), run, settings)
    steps = [line["step"] for line in run.read("history")]
    run.close()
    assert steps == sorted(set(steps)) and len(steps) >= 13


def test_the_updates_tell_what_was_learned(known: Any, tmp_path: Path) -> None:
    space = known.FlatSpace(3, 4)
    run = make_run(tmp_path / "run")
    play_search(reinforce(space), known.SeededEvaluator(Genotype("flat", (1, 2, 3))), run)
    updates, history = run.read("updates"), run.read("history")
    run.close()
    assert [line["round"] for line in updates] == [0, 1, 2, 3]
    for line in updates:
        mine, random = (
            [e["reward"] for e in history if e["strategy"] == name and e["round"] == line["round"]]
            for name in ("reinforce", "random")
        )
        assert line["reward_mean"] == pytest.approx(np.mean(mine)) == pytest.approx(line["baseline"])
        assert line["reward_best"] == max(mine)
        assert line["random_reward_mean"] == pytest.approx(np.mean(random))
        assert 0 < line["entropy"] <= 3 * math.log(4) + 1e-5
        assert len(line["probabilities"]) == 3
        for row in line["probabilities"]:
            assert len(row) == 4 and sum(row) == pytest.approx(1, abs=1e-5)


def test_the_loss_of_a_round_is_the_mean_of_the_batches_that_count() -> None:
    trained = Trained()
    for improvement, num_batches in ((Improvement(2.0, 1), 4), (Improvement(math.nan, 2), 2), (Improvement(5.0), 1)):
        trained = trained.after(improvement, num_batches)
    assert trained.num_batches == 7 and trained.loss == (3 * 2.0 + 5.0) / 4


def test_random_search_has_no_opponent(known: Any, tmp_path: Path) -> None:
    space = known.FlatSpace(3, 4)
    evaluator = known.TargetEvaluator(Genotype("flat", (1, 2, 3)))
    alone, without = make_run(tmp_path / "alone"), make_run(tmp_path / "without")
    play_search(RandomSearch(space, 0), evaluator, alone)
    settings = SearchSettings(rounds=4, episodes=3, warmup_batches=0, batches_per_round=0, compare_random=False)
    play_search(reinforce(space), evaluator, without, settings)
    assert {line["strategy"] for line in alone.read("history")} == {"random"}
    assert {line["strategy"] for line in without.read("history")} == {"reinforce"}
    assert len(alone.read("history")) == len(without.read("history")) == 12
    alone.close()
    without.close()


def test_the_policys_share_of_training_rises_linearly(known: Any, tmp_path: Path) -> None:
    shares = []

    class Watches(known.TargetEvaluator):
        def improve(self, sampler: Any, num_batches: int) -> None:
            shares.append((sampler.policy_share, num_batches))

    run = make_run(tmp_path / "run")
    settings = SearchSettings(rounds=5, episodes=2, warmup_batches=7, batches_per_round=2, policy_share=0.8)
    play_search(reinforce(known.FlatSpace(2, 2)), Watches(Genotype("flat", (0, 0))), run, settings)
    run.close()
    assert [share for share, _ in shares] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert [num for _, num in shares] == [7, 2, 2, 2, 2]
    assert settings.num_batches == 7 + 4 * 2


@pytest.mark.parametrize("make", ["cell", "flat"])
def test_whatever_a_space_says_is_a_line_of_history(known: Any, tmp_path: Path, make: str) -> None:
    space = known.CellSpace() if make == "cell" else known.FlatSpace(3, 4)
    space.text = lambda genotype: f'{genotype.tokens} "é\\n%s", "\n'  # whatever a space may say
    evaluator = known.TargetEvaluator(space.sample(np.random.default_rng(0), 1)[0])
    run = make_run(tmp_path / "run")
    play_search(reinforce(space), evaluator, run)
    lines = run.read("history")
    run.close()
    assert all(line["text"] == space.text(Genotype.from_json(line["genotype"])) for line in lines)
    assert ("open" in lines[0]) == space.masks_depend_on_prefix
    assert len(lines) == (tmp_path / "run" / "history.jsonl").read_bytes().count(b"\n") > 0
    own = [line["step"] for line in lines if line["strategy"] == "reinforce"]
    assert own == list(range(1, len(own) + 1))


def test_failures_are_written_down(known: Any, tmp_path: Path) -> None:
    class Fails(known.TargetEvaluator):
        def evaluate(self, genotypes: Any, fidelity: float, seed: int) -> list[Evaluation]:
            first, second, *rest = super().evaluate(genotypes, fidelity, seed)
            broken = Evaluation(second.genotype, math.nan, second.cost, fidelity, seed)
            return [Evaluation(first.genotype, 0.0, 1.0, fidelity, seed, "out of memory"), broken, *rest]

    run = make_run(tmp_path / "run")
    play_search(reinforce(known.FlatSpace(2, 3)), Fails(Genotype("flat", (0, 0))), run)
    for first, second, third in zip(*[iter(run.read("history"))] * 3, strict=True):
        assert first["failure"] == "out of memory" and first["reward"] <= 0
        assert second["failure"] == "reward nan is not finite" and second["reward"] is second["quality"] is None
        assert third["failure"] is None
    assert [line["num_skipped"] for line in run.read("updates")] == [1] * 4
    run.close()


@pytest.mark.parametrize("budget", [None, 20.0])
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda made: made[:-1], "gave 2 evaluations of 3"),
        (lambda made: made[::-1], "expected the Evaluation of"),
        (lambda made: [each._replace(quality=50.0) for each in made], r"quality in \[0, 1\], .* got quality 50\.0"),
    ],
)
def test_evaluations_of_something_else_end_the_search_at_once(
    spoil: Any, told: str, budget: float | None, known: Any, tmp_path: Path
) -> None:
    class Spoiled(known.TargetEvaluator):
        def evaluate(self, genotypes: Any, fidelity: float, seed: int) -> list[Evaluation]:
            return spoil(super().evaluate(genotypes, fidelity, seed))

    run = make_run(tmp_path / "run")
    with pytest.raises(ValueError, match=told):
        play_search(
            reinforce(known.FlatSpace(4, 4)), CheckedEvaluator(Spoiled(Genotype("flat", (0, 0, 0, 0)))), run,
            SearchSettings(episodes=3, budget=budget),
        )  # fmt: skip
    assert run.read("history") == []
    run.close()


def test_a_failure_of_unknown_cost_is_charged_as_any_other(known: Any, tmp_path: Path) -> None:
    class Fails(known.TargetEvaluator):
        def evaluate(self, genotypes: Any, fidelity: float, seed: int) -> list[Evaluation]:
            first, *rest = super().evaluate(genotypes, fidelity, seed)
            return [first._replace(quality=math.nan, cost=math.nan, failure="it broke"), *rest]

    run = make_run(tmp_path / "run")
    settings = SearchSettings(rounds=4, episodes=3, warmup_batches=0, budget=9)
    play_search(reinforce(known.FlatSpace(4, 4)), Fails(Genotype("flat", (0, 0, 0, 0))), run, settings)
    assert sum(line["charge"] for line in run.read("history") if line["strategy"] == "reinforce") == 9
    run.close()


def test_what_a_strategy_does_to_its_rollout_is_not_written_down(known: Any, tmp_path: Path) -> None:
    """To take the mean off in place is a usual line of REINFORCE."""

    class InPlace(RandomSearch):
        name = "in place"

        def learn(self, rollout: Rollout) -> Update:
            rollout.rewards[:] -= rollout.rewards.mean()
            rollout.evaluations.clear()
            return Update()

    run, evaluator = make_run(tmp_path / "run"), known.TargetEvaluator(Genotype("flat", (1, 2, 3)))
    play_search(InPlace(known.FlatSpace(3, 4), 0), evaluator, run)
    for line in run.read("history"):
        (again,) = evaluator.evaluate([Genotype.from_json(line["genotype"])], 0.5, line["seed"])
        assert line["reward"] == REWARD(again)
    run.close()


def test_who_proposes_nothing_new_ends_the_search_and_is_told(
    known: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Settled(RandomSearch):
        name = "settled"

        def propose(self, num: int, round_number: int) -> list[Genotype]:
            return [Genotype("flat", (0, 1))] * num

    run = make_run(tmp_path / "run")
    settings = SearchSettings(rounds=1000, episodes=1, warmup_batches=0, batches_per_round=0, budget=9)
    settings = replace(settings, compare_random=False)
    play_search(Settled(known.FlatSpace(2, 2), 0), known.TargetEvaluator(Genotype("flat", (0, 0))), run, settings)
    told = "settled proposed nothing new for 300 rounds: its search ends with 1 of 9 spent."
    assert " ".join(capsys.readouterr().out.split()).count(told) == 1
    assert len(run.read("history")) == 1 + MAX_IDLE
    run.close()


def test_the_best_is_known_again_after_a_stop(known: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space, evaluator = known.FlatSpace(3, 4), known.TargetEvaluator(Genotype("flat", (1, 2, 3)))
    told = []
    for rounds in (2, 3):
        run = make_run(tmp_path / "run") if rounds == 2 else Run.resume(tmp_path / "run", 0)
        play_search(RandomSearch(space, 0), evaluator, run, replace(SETTINGS, rounds=rounds))
        told.append(re.findall(r"best: reward ([\d.]+)", capsys.readouterr().out)[-1])
        best = max(line["reward"] for line in run.read("history"))
        run.close()
        assert told[-1] == f"{best:.4f}"
    assert told[0] == told[1]  # no better one comes, so that it is that of before the stop


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda step: ({"tokens": step[0]["tokens"]}, *step[1:]), "observations need action_mask, step, tokens"),
        (lambda step: (step[0]["tokens"], *step[1:]), "observations need action_mask, step, tokens, got ndarray"),
        (lambda step: (*step[:-1], {"evaluation": np.array([None, None, 1])}), "missing for some episodes"),
    ],
)
def test_environments_that_break_the_rules_are_named(spoil: Any, told: str, known: Any) -> None:
    class Spoiled(VectorArchitectureEnv):
        def reset(self, **given: Any) -> Any:
            return spoil(super().reset(**given))

        def step(self, actions: Any) -> Any:
            return spoil(super().step(actions))

    space = known.FlatSpace(2, 2)
    envs = Spoiled(3, space, known.TargetEvaluator(Genotype("flat", (0, 0))), REWARD)
    with pytest.raises(ValueError, match=f"env.id: .*{told}"):
        play(envs, RandomSearch(space, 0), 0, 0)


def test_an_episode_is_paid_what_all_its_steps_pay(known: Any) -> None:
    class Shaped(VectorArchitectureEnv):
        def step(self, actions: Any) -> Any:
            observation, rewards, *rest = super().step(actions)
            return observation, rewards + 0.125 * (actions == 1), *rest

    space, evaluator = known.FlatSpace(3, 2), known.TargetEvaluator(Genotype("flat", (0, 0, 0)))
    plain, shaped = (
        play(kind(4, space, evaluator, REWARD), RandomSearch(space, 0), 0, 0)
        for kind in (VectorArchitectureEnv, Shaped)
    )
    assert plain.tokens.any()
    np.testing.assert_array_equal(shaped.rewards, plain.rewards + 0.125 * plain.tokens.sum(axis=1))


def assert_same(mine: Any, other: Any) -> None:
    """Equal to the last bit."""
    assert type(mine) is type(other)
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, other)
    elif isinstance(mine, dict):
        assert mine.keys() == other.keys()
        for key in mine:
            assert_same(mine[key], other[key])
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(other)
        for a, b in zip(mine, other, strict=True):
            assert_same(a, b)
    else:
        assert mine == other


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("stop_in", [1, 3])
@pytest.mark.parametrize("kept", [True, False], ids=["every round saved", "later rounds not saved"])
def test_a_search_that_stopped_goes_on_bit_by_bit(
    controller: str,
    stop_in: int,
    kept: bool,
    known: Any,
    supernet: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learns_by_gradients = "controller.gradient" in compose(f"controller={controller}").controller.target
    space = NASBench201Space((1, 8, 8), 3, 4, 1) if learns_by_gradients else known.tiny_macro()

    def begin() -> tuple[Strategy, SupernetEvaluator]:
        evaluator = supernet(space)
        return known.build_controller(controller, space, 4, evaluator.relaxation(REWARD.loss)), evaluator

    whole = make_run(tmp_path / "whole")
    play_search(*begin(), whole)
    whole.close()

    run = make_run(tmp_path / "stopped")
    strategy, evaluator = begin()
    learn, rounds = strategy.learn, iter(range(99))

    def stops(rollout: Rollout) -> Any:
        if next(rounds) == stop_in:
            raise StoppedError
        if not kept and run.stage_state:
            run.checkpoint_every_s = math.inf
        return learn(rollout)

    monkeypatch.setattr(strategy, "learn", stops)
    with pytest.raises(StoppedError):
        play_search(strategy, evaluator, run)
    run.append("history", {"half": "a round that no checkpoint knows"})
    run.close()

    resumed = Run.resume(run.folder, 0)
    assert resumed.stage_state["round"] == (stop_in if kept else 0)  # saved within the first round, too
    play_search(*begin(), resumed)
    resumed.close()
    for name in ("history.jsonl", "updates.jsonl"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    states = [read_checkpoint(max((r.folder / "checkpoints").glob("*.ckpt"))) for r in (whole, resumed)]
    assert states[0]["stage_state"]["round"] == 4
    assert_same(*({**state, "seconds": None} for state in states))


def test_the_checkpoint_of_another_version_is_refused_in_a_line(known: Any, supernet: Any, tmp_path: Path) -> None:
    space, run = known.tiny_macro(), make_run(tmp_path)
    play_search(known.build_controller("reinforce", space, 4, None), supernet(space), run)
    del run.stage_state["evaluator"]["cost"]
    with pytest.raises(
        ValueError, match=r"cannot resume .*: its checkpoint is of another version .*KeyError\('cost'\)"
    ):
        play_search(known.build_controller("reinforce", space, 4, None), supernet(space), run)
    run.close()


def test_operation_shares_by_hand(known: Any) -> None:
    space = known.CellSpace()
    tokens = np.array([[0, 0, 1, 0, 0, 0, 0, 0, 0], [1, 0, 2, 1, 1, 0, 0, 0, 1]])
    rollout = Rollout(tokens, np.array(space.masks(tokens)), np.zeros(2), [])
    # Five open operation decisions: a, b; a, c, b. The closed one of the shallow architecture does not count.
    assert operation_shares(space, rollout) == {"a": 2 / 5, "b": 2 / 5, "c": 1 / 5}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0}, {"episodes": 0}, {"budget": 0.0}, {"warmup_batches": -1}, {"batches_per_round": -1},
        {"policy_share": 1.1}, {"policy_share": -0.1}, {"fidelity": 0.0}, {"fidelity": 1.1},
    ],
)  # fmt: skip
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"search\.{next(iter(wrong))} (must be |in )"):
        SearchSettings(**wrong)
