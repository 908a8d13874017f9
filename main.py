"""One run of Luban, read top to bottom: search, derive, retrain, distill, test, export, report.

python main.py                                    # scikit-learn's digits, four minutes on two cores
python main.py env=arrays env.path=mine.npz       # your own images
python main.py resume=outputs/<run>               # go on with a run that stopped
"""

import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median, stdev
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn

import envs  # noqa: F401 (registers the environments)
from child.answers import ask, truth
from child.cost import (
    CostModel,
    cost_by_layer,
    count_macs,
    count_parameters,
    measure_latency,
    random_of_like_macs,
    width_of_like_cost,
)
from child.export import export_or_tell
from child.network import Blueprint, TrainedNetwork, check_rebuilt, check_storable, load_network, save_network
from child.retrain import retrain
from child.rungs import Rungs
from child.space import (
    CheckedEvaluator,
    CostUnit,
    Evaluation,
    Evaluator,
    Genotype,
    Graph,
    NetworkSpace,
    Relaxation,
    SearchSpace,
    check_space,
    derive_seed,
)
from child.standalone import StandaloneEvaluator
from child.supernet import SupernetEvaluator
from child.task import Classification, Task, check_task
from child.training import LossOf, TrainingError, TrainingSettings, check_fit, choose_device
from conf.launch import launch, under_way
from conf.schema import ConfigError, Part, RunConfig, read
from controller.collapse import name_collapse
from controller.derive import (
    Candidate,
    best_first,
    by_promise,
    choose,
    choose_student,
    derive,
    equal_to_best,
    within_target,
)
from controller.gradient import GradientStrategy
from controller.ledger import Ledger
from controller.neighborhood import weigh_changes
from controller.ranking import agreement, choose_to_rank
from controller.sampler import TrainingSampler
from controller.search import Player, search
from controller.strategy import RandomSearch, Strategy
from envs.reward import Reward
from envs.table import TableEvaluator
from logbook.analysis import front_of, hypervolume, worst_confusions
from logbook.board import describe_run, describe_search
from logbook.console import Console
from logbook.numbers import gap, results_table, score
from logbook.record import paid, shared_weights_learned
from logbook.report import write_report
from logbook.run import Run

Environments = gymnasium.vector.VectorEnv[Any, Any, Any]

BRIEF_MACS = 30_000_000_000
"""Multiply-accumulates that a brief analysis may spend on neighbors of the choice."""

MOST_NEIGHBORS, FEWEST_NEIGHBORS = 256, 8
"""That a brief analysis looks at; fewer than that would say little about a choice of dozens."""

EXAMPLE_PIXELS = 64
"""The most that an example image keeps in height and width: enough to see why it was confused."""


@dataclass(frozen=True)
class Parts:
    """What the config names, built: the task, what searches, and what is searched in.

    `join` gives a strategy environments to search in. Final networks are of `final_space`, which has the decisions of
    `space`. Where every training is already known, the evaluator is a table and there is no task.
    """

    device: torch.device
    task: Task | None
    space: SearchSpace
    final_space: SearchSpace
    reward: Reward
    evaluator: Evaluator | Rungs
    strategy: Strategy
    join: Callable[[Strategy], Player]

    @property
    def cheap(self) -> Evaluator:
        """The evaluator, or where there are rungs what scores below them, on whose scale all is told."""
        return self.evaluator.cheap if isinstance(self.evaluator, Rungs) else self.evaluator

    def standard_error(self, quality: float) -> float | None:
        """Of a quality that is told: the task's, but where shared weights are judged by another; None of a table's."""
        own = getattr(self.cheap, "standard_error", self.task and self.task.standard_error)
        return own and own(quality)


@dataclass(frozen=True)
class Setting:
    """What every stage needs: the config, where to compute, the task, the final networks' space, folder and console."""

    config: RunConfig
    device: torch.device
    task: Task
    space: NetworkSpace
    run: Run
    console: Console


@dataclass(frozen=True)
class Final:
    """A network to be trained for good."""

    name: str
    title: str
    blueprint: Blueprint
    text: str
    graph: Graph | None
    training: TrainingSettings
    loss_of: Callable[[nn.Module], LossOf] | None = None


def main(config: RunConfig, text: str) -> None:
    """Run every stage, or those that a resumed run has not finished."""
    started = time.monotonic()

    def build(run: Run | None) -> Parts:
        return build_parts(config, run.finished.get("target") if run else None)

    with under_way(config, text, "main.py", build) as (run, console, parts):
        remember_trainings(parts.evaluator, run)
        space = parts.space
        about = about_task(parts)
        console.say(
            f"Luban: {about['task']}, space {space.name}, seed {config.seed}, on {parts.device}. "
            f"Run folder: {run.folder}"
        )
        console.say(f"Reward: {reward_text(config, parts.reward)}")
        run.once("target", lambda: getattr(parts.reward, "target", None))
        run.write("space.json", space.to_json())
        run.write_task({**about, "data": data_of(parts).mark()})
        if isinstance(parts.evaluator, TableEvaluator):
            results = search_table(config, parts, parts.evaluator, run, console)
        else:
            assert parts.task is not None and isinstance(parts.final_space, NetworkSpace)
            at = Setting(config, parts.device, parts.task, parts.final_space, run, console)
            found = run.once("search", lambda: search_and_derive(at, parts))
            found = check_ranking(at, parts, found)
            trained = train_finals(at, found)
            results = run.once("test", lambda: test_finals(at, found, trained))
            results = export_student(config, run, results)
    console.table(results_table(results))
    for note in results["notes"]:
        console.say(note)
    report = write_report(run.folder)
    console.say(f"Report: {report}   TensorBoard: tensorboard --logdir {shlex.quote(str(run.folder))}")
    console.say(f"Finished in {time.monotonic() - started:.0f} s.")


def data_of(parts: Parts) -> Task | TableEvaluator:
    """What a run is about: data to learn, or a table of trainings."""
    if isinstance(parts.evaluator, TableEvaluator):
        return parts.evaluator
    assert parts.task is not None
    return parts.task


def about_task(parts: Parts) -> dict[str, Any]:
    """What the report must know of the task: its name, its metric, and the names of its classes, if it has some."""
    data = data_of(parts)
    if isinstance(data, TableEvaluator):
        metric = "accuracy" if data.scale == 100 else data.report_column
        return {"task": Path(data.path).name.partition(".")[0], "metric": metric, "higher_is_better": True}
    objective = data.objective
    return {**data.about(), **({"classes": list(objective.classes)} if isinstance(objective, Classification) else {})}


def build_parts(config: RunConfig, known_target: float | None = None) -> Parts:
    """Build everything that a search needs; nothing is written, so a mistake in the config costs nothing."""
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    task = check_task(config.env.task.build(config.plugins, seed=config.seed)) if config.env.task else None
    shapes = {"input_shape": task.input_shape, "num_outputs": task.num_outputs} if task else {}
    for part, name in ((config.space, "input_shape"), (config.evaluator, "task")):
        if task is None and part.needs(config.plugins, name):
            raise ConfigError(f"env.task: {part.target} is for networks that learn a task, and here it is null")
    space: SearchSpace = config.space.build(config.plugins, **shapes)
    check_space(space)
    final_space = build_resized(config, "retrain.space", config.retrain.space, space, shapes)
    rungs_space = build_resized(config, "rungs.space", config.rungs.space, space, shapes)
    if task is None:
        evaluator = config.evaluator.build(config.plugins, space=space)
        if not isinstance(evaluator, TableEvaluator):
            raise ConfigError(f"env.task: {config.evaluator.target} trains networks and so needs a task, got null")
        if config.rungs.fidelities:
            raise ConfigError("rungs.fidelities: nothing is trained where a table tells the qualities; set it to []")
        reward = build_reward(config, space, evaluator.cost, known_target, evaluator.has_costs)
    else:
        if not isinstance(space, NetworkSpace):
            raise ConfigError(f"space: {config.space.target} has no networks that could be trained on {task.name}")
        drawn = space.sample(np.random.default_rng(0), 1)[0]
        check_storable(Blueprint.of(space, drawn), task)
        check_fit("space", partial(space.network, drawn), task)
        assert isinstance(final_space, NetworkSpace)
        check_rebuilt(final_space, drawn, config.plugins)
        for key, other in (("retrain.space", final_space), ("rungs.space", rungs_space)):
            if other is not space:
                assert isinstance(other, NetworkSpace)
                check_fit(key, partial(other.network, drawn), task)
        if config.baseline.network is not None:
            usual = partial(config.baseline.network.blueprint, config.plugins, task)
            check_storable(usual(width=8), task)
            check_fit("baseline.network", partial(usual(width=8).build, config.plugins), task)
            check_width(lambda width: usual(width=width).build(config.plugins), baseline_cost(config, task))
        cost = CostModel(space, cost_unit(config), task.input_shape, device)
        if cost.unit == "latency_ms" and config.controller.needs(config.plugins, "relaxation"):
            config.build_strategy(space, config.seed, None)  # is refused, and now before anything is timed
        reward = build_reward(config, space, cost, known_target)
        evaluator = config.evaluator.build(
            config.plugins, space=space, task=task, cost=cost, seed=config.seed, device=device,
            num_steps=config.search.num_batches,
        )  # fmt: skip
    relaxation = relax(evaluator, reward)
    if isinstance(evaluator, SupernetEvaluator):
        evaluator.check_supernet()
    elif not isinstance(evaluator, StandaloneEvaluator | TableEvaluator):
        evaluator = CheckedEvaluator(evaluator)
    if task is not None and config.rungs.fidelities:
        assert isinstance(rungs_space, NetworkSpace)
        cost = CostModel(rungs_space, "macs", task.input_shape, device)  # what is told is that of the cheap score
        alone = StandaloneEvaluator(
            rungs_space, task, cost, config.retrain.training, 1, config.seed, device, config.rungs.score,
            config.rungs.max_seconds,
        )  # fmt: skip
        evaluator = Rungs(evaluator, alone, config.rungs)
    strategy = config.build_strategy(space, config.seed, relaxation)
    if isinstance(strategy, GradientStrategy):
        for key, least in (("rounds", 2), ("batches_per_round", 1)):
            if getattr(config.search, key) < least:
                raise ConfigError(
                    f"search.{key}: {strategy.name} learns before every training batch of the shared weights, but for "
                    f"those of the first round, so it must be at least {least}, got {getattr(config.search, key)}"
                )

    TrainingSampler(config.search.sampler, strategy, config.seed)  # now, so that one that does not fit costs nothing

    def join(strategy: Strategy) -> Player:
        ledger, own = None, evaluator_of(evaluator, strategy.name)
        if config.search.budget is not None:
            price = evaluator.price if isinstance(evaluator, TableEvaluator) else lambda genotype: 1.0
            key = space.key if config.env.isomorphic else lambda genotype: genotype
            ledger = Ledger(own, config.search.budget, price, key)
        environments = make_environments(
            config, space, ledger or own, reward, config.search.episodes, config.search.fidelity
        )
        return Player(strategy, environments, ledger)

    target = getattr(reward, "target", None)
    if config.derive.within_target and (target is None or (target == 1 and not counts_cost(reward, space))):
        raise ConfigError(
            "derive.within_target: this reward has no target to stay within, for cost does not count in it; set "
            "reward.target"
        )
    # Now, so that a mistake in env.id costs nothing.
    own = evaluator_of(evaluator, strategy.name)
    make_environments(config, space, own, reward, 1, config.search.fidelity).close()
    return Parts(device, task, space, final_space, reward, evaluator, strategy, join)


def evaluator_of(evaluator: Evaluator | Rungs, strategy: str) -> Evaluator:
    """What evaluates the architectures of a strategy: where there are rungs a climb of its own."""
    return evaluator.of(strategy) if isinstance(evaluator, Rungs) else evaluator


def remember_trainings(evaluator: Evaluator | Rungs, run: Run) -> None:
    """Let what is trained on its own be trained once, wherever the run is stopped."""
    rungs = isinstance(evaluator, Rungs)
    parts = {"trainings": evaluator.cheap, "rungs": evaluator.alone} if rungs else {"trainings": evaluator}
    for name, part in parts.items():
        if isinstance(part, StandaloneEvaluator):
            part.remember(run.folder / "checkpoints" / f"{name}.jsonl")


def build_resized(
    config: RunConfig, key: str, changes: Mapping[str, Any] | None, space: SearchSpace, shapes: dict[str, Any]
) -> SearchSpace:
    """The space of the search, but for the arguments that `key` changes, such as more channels."""
    if not changes:
        return space
    resized = Part(key, config.space.target, {**config.space.arguments, **changes}).build(config.plugins, **shapes)
    if resized.decisions != space.decisions:
        raise ConfigError(
            f"{key}: {dict(changes)} changes which decisions there are, so that what the search finds could not be "
            "built; set it for the search too, under space"
        )
    return resized


def baseline_cost(config: RunConfig, task: Task) -> Callable[[nn.Module], int]:
    """What the hand-designed network is to have as many of as the teacher."""
    return partial(count_macs, input_shape=task.input_shape) if config.baseline.match == "macs" else count_parameters


def check_width(build: Callable[[int], nn.Module], cost: Callable[[nn.Module], int]) -> None:
    """Prove that the hand-designed network costs more the wider it is, for its width is how it comes to a cost."""
    with torch.device("meta"):
        narrow, wide = (cost(build(width)) for width in (8, 16))
    if wide <= narrow:
        raise ConfigError(
            f"baseline.network: at width 16 it costs {wide:,}, no more than the {narrow:,} at width 8, so no width has "
            "the teacher's cost; its class must take `width`, and baseline.network.width must not be given"
        )


def cost_unit(config: RunConfig) -> CostUnit:
    """The unit that the reward counts costs in, whatever its target, which may hang on these costs."""
    part = config.reward
    target = {"target": 1.0} if part.arguments.get("target", 1.0) is None else {}
    reward = Part(part.key, part.target, {**part.arguments, **target}).build(config.plugins)
    return read(CostUnit, getattr(reward, "unit", "macs"), f"{part.key}.unit")


def build_reward(
    config: RunConfig,
    space: SearchSpace,
    cost: Callable[[Genotype], float],
    known_target: float | None,
    has_costs: bool = True,
) -> Reward:
    """The reward; a target of null becomes the upper quartile of the costs of 101 random architectures.

    A run that goes on keeps the one it had, since a latency measured again would not be the same. Where there are no
    costs, none may count.
    """
    part = config.reward
    lacking = (
        f"{part.key}: cost counts in it, and the table has none; set evaluator.cost to its column, or reward=quality"
    )
    if "target" in part.arguments and part.arguments["target"] is None:
        target = known_target
        if target is None:
            drawn = space.sample(np.random.default_rng(derive_seed(config.seed, "target")), 101)
            target = float(np.quantile([cost(genotype) for genotype in drawn], 0.75))
        if not target > 0:
            zero = f"{part.key}.target: costs are 0 here, so it must be given; set {part.key}.target=1"
            raise ConfigError(zero if has_costs else lacking)
        part = Part(part.key, part.target, {**part.arguments, "target": target})
    reward = part.build(config.plugins)
    missing = [name for name in ("unit", "formula") if not hasattr(reward, name)]
    if missing:
        raise ConfigError(f"{part.key}: {part.target} lacks {' and '.join(missing)}; see Reward in envs/reward.py")
    if not has_costs and counts_cost(reward, space):
        raise ConfigError(lacking)
    return reward


def counts_cost(reward: Reward, space: SearchSpace) -> bool:
    """Whether the reward of an architecture depends on its cost."""
    drawn, target = space.sample(np.random.default_rng(0), 1)[0], getattr(reward, "target", None) or 1.0
    cheap, dear = (Evaluation(drawn, 0.5, ratio * target, 1.0, 0) for ratio in (0.1, 10.0))
    return reward(cheap) != reward(dear)


def relax(evaluator: Evaluator, reward: Reward) -> Relaxation | None:
    """What gradient search learns from; None where the evaluator or a reward of the user's has no such thing."""
    relaxation, loss = getattr(evaluator, "relaxation", None), getattr(reward, "loss", None)
    return relaxation(loss) if relaxation and loss else None


def reward_text(config: RunConfig, reward: Reward) -> str:
    """The reward in one line; an environment of the user's may pay otherwise than by the one it is given."""
    return reward.formula() if config.env.id.startswith("luban/") else f"that of {config.env.id}"


def make_environments(
    config: RunConfig, space: SearchSpace, evaluator: Evaluator, reward: Reward, num: int, fidelity: float
) -> Environments:
    """`num` episodes of the environment that `env.id` names: its own vector version where it has one, else copies."""
    try:
        spec = gymnasium.spec(config.env.id)
    except gymnasium.error.Error as error:
        raise ValueError(f"env.id: {error}") from None
    native = spec.vector_entry_point is not None
    manual = {} if native else {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
    try:
        return gymnasium.make_vec(
            config.env.id,
            num_envs=num,
            vectorization_mode="vector_entry_point" if native else "sync",
            vector_kwargs=manual or None,
            space=space,
            evaluator=evaluator,
            reward=reward,
            fidelity=fidelity,
        )
    except (TypeError, gymnasium.error.Error) as error:
        raise ValueError(
            f"env.id: {config.env.id} cannot be made with space, evaluator, reward and fidelity: {error}"
        ) from None


def search_table(config: RunConfig, parts: Parts, table: TableEvaluator, run: Run, console: Console) -> dict[str, Any]:
    """Search architectures whose training is known, choose by what the search saw, and look up the truth once."""
    space, strategy, reward = parts.space, parts.strategy, parts.reward

    def search_and_choose() -> dict[str, Any]:
        search(parts.join, strategy, table, config.search, config.seed, run, console)
        history = run.read("history")
        trusted = {strategy.name: strategy.estimate} if table.is_noisy else {}
        chosen = {
            name: choose(space, history, name, table.cost, trusted.get(name))
            for name in dict.fromkeys([strategy.name, *(line["strategy"] for line in history)])
        }
        if config.derive.within_target:
            chosen = {name: within_target(group, reward.target) for name, group in chosen.items()}
        listed = [c for group in chosen.values() for c in group[: config.derive.candidates]]
        write_candidates(config, parts, run, chosen, listed, history)
        write_neighbors(config, parts, run, chosen[strategy.name][0].genotype)
        describe_search(run, space, [chosen[strategy.name][0].genotype])
        return {
            "chosen": {name: list(group[0].genotype.tokens) for name, group in chosen.items()},
            "seen": {name: group[0].evaluation.quality for name, group in chosen.items()},
            "evaluations": {name: sum(line["strategy"] == name for line in paid(history)) for name in chosen},
            "seconds": {"search": run.seconds},
        }

    found = run.once("search", search_and_choose)
    run.write("choices.json", found)
    rows, notes = [], []
    for name, tokens in found["chosen"].items():
        genotype = space.genotype(tokens)
        graph = space.graph(genotype)
        own = name == strategy.name
        rows.append({
            "name": "teacher" if own else "random_best",
            "title": f"Best of {name.replace('_', ' ')}",
            "text": space.text(genotype),
            "graph": {"nodes": graph.nodes, "edges": graph.edges},
            "folder": None,
            "validation": [found["seen"][name]],
            "quality": [found["seen"][name]],
            "test": [table.true_quality(genotype)],
            **dict.fromkeys(("macs", "parameters", "latency_ms")),
            **({reward.unit: table.cost(genotype)} if table.has_costs else {}),
            "note": None,
        })  # fmt: skip
        notes.append(
            f"{name}: {found['evaluations'][name]} evaluations; its choice is number {table.rank(genotype)} of "
            f"{len(table.rows)} by {table.report_column}."
        )
    notes += above_target(config, reward, table.cost(space.genotype(found["chosen"][strategy.name])))
    results = {
        **about_task(parts),
        "seed": config.seed,
        "looked_up": True,
        "teacher": "teacher",
        "rows": rows,
        "seconds": found["seconds"],
        "num_evaluations": found["evaluations"][strategy.name],
        "notes": notes,
    }
    run.write("results.json", results)
    describe_run(run, results, config_of_interest(config))
    return results


def above_target(config: RunConfig, reward: Reward, cost: float) -> list[str]:
    """A note where the choice costs more than `derive.within_target` allows."""
    if not config.derive.within_target or cost <= reward.target:
        return []
    return [
        f"Nothing that the search kept is within the target of {reward.target:.4g}; the choice, the cheapest of it, "
        f"costs {cost:.4g}."
    ]


def search_and_derive(at: Setting, parts: Parts) -> dict[str, Any]:
    """Search, score the candidates again, and write down which architectures will be trained."""
    config, run, space, strategy = at.config, at.run, at.space, parts.strategy
    search(parts.join, strategy, parts.evaluator, config.search, config.seed, run, at.console)
    searched = run.seconds
    history, updates = run.read("history"), run.read("updates")
    # What they learned before the first round is in every result alike.
    drifts = shared_weights_learned(line for line in updates if line["round"] > 0)
    names = list(dict.fromkeys([strategy.name, *(line["strategy"] for line in history)]))
    draw, choice = derive_seed(config.seed, "derive"), strategy.choice()

    def candidates_of(name: str) -> list[Candidate]:  # equally many of each, so that their fronts compare fairly
        own = evaluator_of(parts.evaluator, name)
        return derive(
            space, history, name,
            lambda num: make_environments(config, parts.space, own, parts.reward, num, 1.0), own,
            config.derive.candidates, draw, drifts, choice if name == strategy.name else None,
        )  # fmt: skip

    groups = {name: candidates_of(name) for name in names}
    candidates = best_first(each for group in groups.values() for each in group)
    if config.derive.within_target:
        groups = {name: within_target(group, parts.reward.target) for name, group in groups.items()}
    if not groups[strategy.name] or all(line["strategy"] != strategy.name for line in history):
        raise ValueError(
            f"{strategy.name} could evaluate no architecture; see 'failure' in {run.folder / 'history.jsonl'}, or "
            "search.budget"
        )
    best = groups[strategy.name][0].evaluation
    tolerance = parts.standard_error(best.quality) or 0.0
    if config.env.id.startswith("luban/"):  # else the environment's reward is the user's, of which nothing is known
        tolerance = parts.reward(best) - parts.reward(best._replace(quality=max(0.0, best.quality - tolerance)))
    promising = {
        name: by_promise(group, space.macs, config.distill.budget, tolerance) for name, group in groups.items()
    }
    own = sorted(promising.pop(strategy.name), key=lambda c: c.genotype != choice)  # which comes first
    others = promising.get(RandomSearch.name, [])
    chosen = [c.genotype for c in own[: config.retrain.top]]
    write_candidates(config, parts, run, groups, candidates, history)
    write_neighbors(config, parts, run, chosen[0])
    describe_search(run, space, chosen)
    to_rank, warnings = [], above_target(config, parts.reward, own[0].evaluation.cost)
    if choice is not None and own[0].genotype != choice:
        warnings.append(
            f"What {strategy.name} derived has failed or is above the target; "
            "the best of the others by score is chosen."
        )
    if isinstance(parts.evaluator, Rungs):
        warnings.append(parts.evaluator.sentence())
    shared = parts.cheap
    if isinstance(shared, SupernetEvaluator):
        to_rank = score_to_rank(config, shared, [c.genotype for c in own])
        mine, told = ([line for line in lines if line["strategy"] == strategy.name] for lines in (history, updates))
        collapse = name_collapse(space, mine, told, chosen, config.search, strategy.remedies, choice is None)
        for warning in collapse:
            at.console.say(warning)
        warnings += collapse
    return {
        "teachers": [list(genotype.tokens) for genotype in chosen],
        "random_best": list(others[0].genotype.tokens) if others else None,
        "cheaper": [[list(c.genotype.tokens), c.evaluation.quality] for c in own],
        "num_equal": len(equal_to_best(groups[strategy.name], tolerance)),
        "derived_by": strategy.name if own[0].genotype == choice else None,
        "tolerance": tolerance,
        "num_evaluations": sum(line["strategy"] == strategy.name for line in paid(history)),
        "to_rank": to_rank,
        "warnings": warnings,
        "seconds": {"search": searched, "derive": run.seconds - searched},
    }


def write_candidates(
    config: RunConfig,
    parts: Parts,
    run: Run,
    groups: Mapping[str, Sequence[Candidate]],
    listed: Sequence[Candidate],
    history: list[dict[str, Any]],
) -> None:
    """Write down the listed candidates, and the front and hypervolume of each strategy's group."""
    fronts = {
        name: front_of(group, key=lambda c: (c.evaluation.quality, c.evaluation.cost)) for name, group in groups.items()
    }
    costs = [line["cost"] for line in history if line["cost"] is not None] or [c.evaluation.cost for c in listed]
    worst = max(costs)
    volumes = {
        name: hypervolume(((c.evaluation.quality, c.evaluation.cost) for c in group), worst)
        for name, group in groups.items()
        if min(costs) < worst  # else all cost the same, or nothing
    }
    run.write("candidates.json", {
        "cost_unit": parts.reward.unit,
        "reward_formula": reward_text(config, parts.reward),
        "candidates": [c.to_json(parts.space, fronts[c.strategy]) for c in listed],
        "hypervolume": volumes,
        "hypervolume_reference": f"quality 0, cost {worst:.4g}",
    })  # fmt: skip
    run.log({f"pareto/hypervolume_{name}": volume for name, volume in volumes.items()})


def write_neighbors(config: RunConfig, parts: Parts, run: Run, center: Genotype) -> None:
    """Write down what every single change of the first choice would give, or why it is not known."""
    shared = parts.cheap
    affordable = num_affordable(parts, shared, center) if config.analysis == "brief" else None
    if affordable is not None and affordable < FEWEST_NEIGHBORS:
        missing = "What single changes of the choice would give was not looked at, because it takes more than seconds "
        run.write("neighbors.json", {"center": None, "num_all": None, "neighbors": [],
                                     "missing": f"{missing}here; a new run with analysis=full does it."})  # fmt: skip
        return

    def environments(num: int) -> Environments:
        return make_environments(config, parts.space, shared, parts.reward, num, 1.0)

    draw = derive_seed(config.seed, "neighbors")
    found = weigh_changes(parts.space, center, affordable, environments, shared, draw)
    quality = found["center"]["quality"]
    error = None if quality is None else parts.standard_error(quality)
    run.write("neighbors.json", {**found, "standard_error": error})


def num_affordable(parts: Parts, shared: Evaluator, center: Genotype) -> int:
    """How many architectures like this one can be evaluated in about a second, by a count and not by the clock.

    Any number from a table; of shared weights as many as the multiply-accumulates allow; none where each must be
    trained or timed, or where only the user knows what an evaluation takes.
    """
    if isinstance(shared, TableEvaluator):
        return MOST_NEIGHBORS
    if not isinstance(shared, SupernetEvaluator) or parts.reward.unit == "latency_ms":
        return 0
    return min(MOST_NEIGHBORS, BRIEF_MACS // (shared.num_samples_per_score() * max(1, shared.space.macs(center))))


def score_to_rank(config: RunConfig, shared: SupernetEvaluator, finalists: Sequence[Genotype]) -> list[dict[str, Any]]:
    """What shared weights say on all validation data of the architectures that are to be trained on their own."""
    settings, space, draw = config.ranking, shared.space, derive_seed(config.seed, "ranking")
    kinds = choose_to_rank(space, finalists, settings.finalists, settings.random, draw)
    scores = shared.evaluate(list(kinds), 1.0, draw) if kinds else []
    return [
        {
            "kind": kind,
            "genotype": scored.genotype.to_json(),
            "text": space.text(scored.genotype),
            "macs": space.macs(scored.genotype),
            "shared": None if scored.failure else scored.quality,
            "failure": scored.failure and f"with shared weights: {scored.failure}",
        }
        for kind, scored in zip(kinds.values(), scores, strict=True)
    ]


def check_ranking(at: Setting, parts: Parts, found: dict[str, Any]) -> dict[str, Any]:
    """Train some architectures on their own for a short time, and say how far shared weights rank them alike.

    Returns:
        What was found, with the time that this took.
    """
    config, run, to_rank, seed = at.config, at.run, found["to_rank"], derive_seed(at.config.seed, "ranking")
    if not to_rank:
        return found
    assert isinstance(parts.space, NetworkSpace)
    evaluator = StandaloneEvaluator(
        parts.space, at.task, CostModel(parts.space, "macs", at.task.input_shape, at.device),
        config.retrain.training, folds=1, seed=seed, device=at.device, score=config.ranking.score,
    )  # fmt: skip

    def train(line: dict[str, Any]) -> dict[str, Any]:
        if line["failure"]:
            return {"standalone": None, "failure": line["failure"], "seconds": 0.0}
        started = time.monotonic()
        trained = evaluator.evaluate([Genotype.from_json(line["genotype"])], config.ranking.fidelity, seed)[0]
        quality = None if trained.failure else trained.quality
        return {"standalone": quality, "failure": trained.failure, "seconds": time.monotonic() - started}

    def compare() -> float:
        trained: list[dict[str, Any]] = []
        stages = [f"ranking {number}" for number in range(1, len(to_rank) + 1)]
        with at.console.stage("ranking", len(stages), sum(stage in run.finished for stage in stages)) as progress:
            for stage, line in zip(stages, to_rank, strict=True):
                trained.append(run.once(stage, partial(train, line)))
                progress.advance(len(trained))
        lines = [
            {**line, "standalone": each["standalone"], "failure": each["failure"]}
            for line, each in zip(to_rank, trained, strict=True)
        ]
        result, epochs = agreement(lines, seed), evaluator.epochs(config.ranking.fidelity)
        sentence, taus = result.sentence(epochs, config.ranking.score), result.taus
        about = {"sentence": sentence, **taus, "epochs": epochs, "score": config.ranking.score}
        run.write("ranking.json", {**about, "architectures": lines})
        run.log({f"ranking/{name}": value for name, value in taus.items() if value is not None})
        at.console.say(sentence)
        return sum(each["seconds"] for each in trained)

    return {**found, "seconds": {**found["seconds"], "ranking": run.once("ranking", compare)}}


def train_finals(at: Setting, found: dict[str, Any]) -> dict[str, Any]:
    """Train every network of the final table; each choice is made on validation data and written down."""
    config, space = at.config, at.space
    learn, finals = config.retrain.training, []

    def architecture(name: str, title: str, genotype: Genotype, training: TrainingSettings = learn) -> Final:
        blueprint = Blueprint.of(space, genotype)
        return Final(name, title, blueprint, space.text(genotype), space.graph(genotype), training)

    notes: list[str] = []

    def attempt(train: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        """The network that this trains, in a list; nothing but a note where its training broke down."""
        try:
            return [train()]
        except TrainingError as error:
            notes.append(f"Left out: {error}.")
            return []

    tried = []
    for number, tokens in enumerate(found["teachers"], 1):
        name = "teacher" if number == 1 else f"teacher{number}"
        final = architecture(name, f"Teacher {number}", space.genotype(tokens))
        tried += [(tokens, row) for row in attempt(lambda final=final: train_final(at, final))]
    if not tried:
        raise TrainingError(notes[-1])
    best = best_of(at.task, [row["validation"] for _, row in tried])
    teachers = [row for _, row in tried]
    teachers[best]["title"] = "Teacher (best found)"
    teacher = space.genotype(tried[best][0])
    finals += teachers

    cheaper = [(space.genotype(tokens), quality) for tokens, quality in found["cheaper"]]
    student, within = choose_student(cheaper, space.macs, config.distill.budget * space.macs(teacher))
    teacher_network = load_network(at.run.folder / teachers[best]["folder"], config.plugins).module.to(at.device)
    listen = partial(
        config.distill.soft_targets.loss,
        teacher=teacher_network, task=at.task, label_smoothing=config.distill.training.label_smoothing,
    )  # fmt: skip
    alone = architecture("student_alone", "Student without teacher", student, config.distill.training)
    taught = replace(alone, name="student", title="Student (distilled)", loss_of=listen)
    finals.append(train_final(at, taught))
    finals += attempt(lambda: train_final(at, alone))
    if found["random_best"] is not None:
        beside = architecture("random_best", "Best of random search", space.genotype(found["random_best"]))
        finals += attempt(lambda: train_final(at, beside))
    usual = config.baseline.network
    if usual is not None:
        wanted = baseline_cost(config, at.task)(teacher_network)
        finals += attempt(lambda: train_hand_designed(at, usual, wanted))
    random = []
    if config.baseline.random:
        draw = derive_seed(config.seed, "random of like MACs")
        for number, genotype in enumerate(random_of_like_macs(space, teacher, config.baseline.random, draw), 1):
            other = architecture(f"random{number}", f"Random {number}, of like MACs", genotype)
            random += attempt(lambda other=other: train_final(at, other))
    finals += random
    notes += [f"Left out: {failure}." for row in finals for failure in row["failures"]]
    share = space.macs(student) / space.macs(teacher)
    note = f"The student has {share:.1%} of the teacher's MACs (budget {config.distill.budget:.0%})."
    if not within:
        note += " No candidate was within the budget; this is the cheapest."
    if found["derived_by"]:
        notes.append(f"First of the teachers is what {found['derived_by']} derived, whatever it scores.")
    elif found["num_equal"] > 1:
        notes.append(
            f"{found['num_equal']} candidates are as good as the best within a standard error "
            f"({found['tolerance']:.4f}); of those, teachers with the better student come first."
        )
    notes.append(note)
    choices = {"finals": finals, "notes": notes, "teacher": teachers[best]["name"],
               "random": [row["name"] for row in random]}  # fmt: skip
    at.run.write("choices.json", choices)
    return choices


def train_final(at: Setting, final: Final, apart: bool = False) -> dict[str, Any]:
    """Train a network once per seed; of several, the best on validation data is the one to use.

    Where the config joins these data to training, nothing is left to choose by, and the first is used.

    Args:
        at: The setting.
        final: The network.
        apart: Keep validation data apart all the same, since a choice hangs on them.

    Raises:
        TrainingError: No training came to its end.
    """
    config, task = at.config, at.task
    joined = config.retrain.join_validation and not apart
    if joined:
        task = task.with_splits(task.train.join(task.validation), task.validation)
    task = task.to(at.device)

    def train(stage: str, seed: int) -> dict[str, Any]:
        try:
            module, metric = retrain(
                lambda: final.blueprint.build(config.plugins), task, final.training, seed, stage, at.device, at.run,
                at.console, final.loss_of,
            )  # fmt: skip
            if not math.isfinite(metric):
                raise TrainingError(f"training of {stage} ended with outputs that are not finite; lower its rate")
        except TrainingError as error:
            return {"failure": str(error)}
        network = TrainedNetwork(module.cpu(), final.blueprint, task.input_shape, task.objective, task.preprocessing)
        save_network(network, at.run.folder / "networks" / stage)
        return {"validation": metric, "folder": f"networks/{stage}", "seconds": at.run.seconds}

    trained = []
    for number in range(config.retrain.seeds):
        stage = final.name if number == 0 else f"{final.name}-seed{number}"
        seed = derive_seed(config.seed, "final", number)
        trained.append(at.run.once(f"train {stage}", partial(train, stage, seed)))
    failures = [each["failure"] for each in trained if "failure" in each]
    trained = [each for each in trained if "failure" not in each]
    if not trained:
        raise TrainingError(failures[0])
    metrics = [] if joined else [each["validation"] for each in trained]
    return {
        "name": final.name,
        "title": final.title,
        "text": final.text,
        "graph": None if final.graph is None else {"nodes": final.graph.nodes, "edges": final.graph.edges},
        "validation": metrics,
        "folder": trained[best_of(task, [[metric] for metric in metrics])]["folder"],
        "folders": [each["folder"] for each in trained],
        "seconds": sum(each["seconds"] for each in trained),
        "failures": failures,
    }


def best_of(task: Task, metrics: Sequence[Sequence[float]]) -> int:
    """Which of several has the best mean metric; the first of equals, or where nothing was measured."""
    qualities = [task.objective.quality(float(np.mean(each))) if each else 0.0 for each in metrics]
    return int(np.argmax(qualities)) if qualities else 0


def train_hand_designed(at: Setting, network: Part, wanted: int) -> dict[str, Any]:
    """A usual network of that cost; its learning rate is the best of a few after a third of the epochs."""
    config, full = at.config, at.config.retrain.training
    rates = config.baseline.learning_rates

    def build(width: int) -> nn.Module:
        return network.blueprint(config.plugins, at.task, width=width).build(config.plugins)

    width = width_of_like_cost(build, baseline_cost(config, at.task), wanted)
    blueprint = network.blueprint(config.plugins, at.task, width=width)
    name = blueprint.target.rpartition(".")[2]

    def usual(stage: str, rate: float, epochs: int) -> Final:
        return Final(
            name=stage,
            title=f"Hand-designed ({name})",
            blueprint=blueprint,
            text=f"{name} of width {width}, learning rate {rate:g}",
            graph=None,
            training=replace(full, learning_rate=rate, epochs=epochs),
        )

    tried: dict[float, dict[str, Any]] = {}
    one = len(rates) == 1  # and nothing to choose
    for rate in () if one else rates:
        with suppress(TrainingError):  # a rate that is too high is not the best one
            short = usual(f"hand_designed_{rate:g}", rate, math.ceil(full.epochs / 3))
            tried[rate] = train_final(at, short, apart=True)
    best = list(tried)[best_of(at.task, [row["validation"] for row in tried.values()])] if tried else rates[0]
    chosen = train_final(at, usual("hand_designed", best, full.epochs))
    return {**chosen, "seconds": sum(row["seconds"] for row in (*tried.values(), chosen))}


def test_finals(at: Setting, found: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    """Open the test set, now that every choice is written down, and measure each network on it once."""
    task, config = at.task, at.config
    task.test.unseal()
    rows, seconds, answers, layers = [], dict(found["seconds"]), {}, {}
    for final in trained["finals"]:
        tested = []
        for folder in final["folders"]:
            module = load_network(at.run.folder / folder, config.plugins).module.to(at.device)
            test = task.test.read(folder)
            answered = ask(module, task, test, config.retrain.training.final_batch, at.device)
            tested.append(answered.metric)
            if folder == final["folder"] and answered.given is not None:
                answers |= {"test": truth(task.objective, test.targets), f"test {final['name']}": answered.given}
        network = load_network(at.run.folder / final["folder"], config.plugins).module
        latency = measure_latency(network, task.input_shape, at.device)
        if final["name"] in (trained["teacher"], "student"):
            layers[final["name"]] = cost_by_layer(network, task.input_shape)
            if answers and not config.retrain.join_validation:
                answers |= validation_answers(at, network, final["name"])
        rows.append({
            **{key: final[key] for key in ("name", "title", "text", "graph", "folder")},
            "validation": final["validation"],
            "quality": [task.objective.quality(metric) for metric in final["validation"]],
            "test": tested,
            "parameters": count_parameters(network),
            "macs": count_macs(network, task.input_shape),
            "latency_ms": latency.median_ms,
            "latency_spread_ms": latency.spread_ms,
            "note": None,
        })  # fmt: skip
        seconds[final["name"]] = final["seconds"]
    notes = [*found["warnings"], *trained["notes"]]
    if trained["random"]:
        notes.append(beside_random(rows, trained["random"], trained["teacher"], task.metric_name))
    samples = {"training": len(task.train), "validation": len(task.validation), "test": len(task.test)}
    if config.retrain.join_validation:
        samples |= {"training": samples["training"] + samples["validation"], "validation": 0}
    results = {
        **task.about(),
        "samples": samples,
        "seed": config.seed,
        "teacher": trained["teacher"],
        "rows": rows,
        "seconds": seconds,
        "num_evaluations": found["num_evaluations"],
        "notes": notes,
    }
    at.run.write("layers.json", layers)
    if answers:
        at.run.write_arrays("answers.npz", answers)
    at.run.write("results.json", results)
    describe_run(at.run, results, config_of_interest(config))
    return results


def validation_answers(at: Setting, network: nn.Module, name: str) -> dict[str, Any]:
    """The right answers of the validation split and the network's, and the images of its worst confusions."""
    task, split = at.task, at.task.validation
    right = truth(task.objective, split.targets)
    given = ask(network, task, split, at.config.retrain.training.final_batch, at.device).given
    assert right is not None and given is not None
    found = {"validation": right, f"validation {name}": given}
    if split.inputs.ndim == 4 and split.inputs.dtype == torch.uint8 and isinstance(task.objective, Classification):
        shown = np.array([place for each in worst_confusions(right, given) for place in each.places], np.int64)
        step = math.ceil(max(split.inputs.shape[2:]) / EXAMPLE_PIXELS)
        images = split.inputs[torch.from_numpy(shown), :, ::step, ::step].contiguous().numpy()
        found |= {f"places {name}": shown, f"images {name}": images}
    return found


def export_student(config: RunConfig, run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """Write the student in the formats that others read, with its model card; a network that has none is told of."""
    if not config.export.formats:
        return results
    student = next(row for row in results["rows"] if row["name"] == "student")
    export = partial(export_or_tell, run.folder / student["folder"], config.export.formats, config.plugins)
    result = run.once("export", export)
    rows = [{**row, "exported": result["exported"]} if row is student else row for row in results["rows"]]
    results = {
        **results,
        "rows": rows,
        "seconds": {**results["seconds"], "export": result["seconds"]},
        "notes": [*results["notes"], *result["notes"]],
    }
    run.write("results.json", results)
    return results


def beside_random(rows: Sequence[Mapping[str, Any]], random: Sequence[str], teacher: str, metric: str) -> str:
    """How the teacher's test metric stands among those of random architectures of like MACs, in a sentence."""
    tested = {row["name"]: float(np.mean(row["test"])) for row in rows}
    others = [tested[name] for name in random]
    spread = f", standard deviation {gap(stdev(others), metric)}" if len(others) > 1 else ""
    middle, least, most, own = (
        score(v, metric, 2) for v in (median(others), min(others), max(others), tested[teacher])
    )
    return (
        f"{len(others)} random architectures of like MACs, trained in the same way: median {metric} {middle}{spread}, "
        f"from {least} to {most}; teacher: {own}."
    )


def config_of_interest(config: RunConfig) -> dict[str, Any]:
    """The hyper-parameters that TensorBoard compares runs by."""
    return {
        "seed": config.seed,
        "env": config.env.task.target if config.env.task else config.env.id,
        "space": config.space.target,
        "controller": config.controller.target,
        "evaluator": config.evaluator.target,
        "reward": config.reward.target,
        "rounds": config.search.rounds,
        "episodes": config.search.episodes,
        "policy_share": config.search.policy_share,
    }


if __name__ == "__main__":
    launch(main)
