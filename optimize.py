"""A model made smaller, read top to bottom: the original, each step, the choice, test, report.

python optimize.py model.path=outputs/<run> goal.macs=0.4           # a run's student, on the digits
python optimize.py model._target_=mymodule.Net plugins=[mymodule]   # your own module, trained first
python optimize.py resume=outputs/<run>                             # go on with one that stopped
"""

import copy
import math
import shlex
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from child.card import describe_preprocessing
from child.compact import pack, unpack
from child.cost import cost_by_layer, count_macs, count_parameters, measure_latency
from child.distill import Ensemble, Pupil
from child.export import export, export_or_tell
from child.network import (
    WEIGHTS,
    Blueprint,
    TrainedNetwork,
    check_state,
    check_storable,
    chosen_networks,
    find_network,
    load_network,
    read_checked,
    resize,
    run_around,
    save_network,
)
from child.onnx_module import QUANTIZED, OnnxModule, require
from child.prune import (
    Group,
    Kept,
    across,
    find_groups,
    fit,
    gather_statistics,
    keep_shares,
    remove_units,
    score_units,
    uniform,
)
from child.ratios import PruningEvaluator, RatioSpace
from child.retrain import retrain
from child.share import hold, release, share_values, tie_alike
from child.space import derive_seed, nearest
from child.sparsify import cut_connections
from child.task import Regression, Task, check_task
from child.training import (
    FineTuning,
    LossOf,
    TrainingError,
    TrainingSettings,
    check_fit,
    choose_device,
    grade,
    measure,
)
from conf.launch import launch, override, under_way
from conf.schema import ConfigError, Goal, OptimizeConfig
from controller.search import Player, search
from controller.strategy import Strategy
from envs.architecture import VectorArchitectureEnv
from logbook.console import Console
from logbook.optimization import row_line, steps_table, write_optimization
from logbook.record import read_object
from logbook.run import Run

LATENCY_BATCH = 64
"""Samples of a forward pass that is timed."""
LATENCY_ROUNDS = 3
STATISTICS_BATCHES = 8
"""Training batches that normalizations take statistics from after channels were removed, and `taylor` its gradients."""
FINALISTS = 5
"""Ratios of a search that are tried, beside even ones: more would be judged by the noise of the validation data."""
TRIAL = 0.1
"""Of the epochs of fine-tuning, the share that a trial takes."""

Row = dict[str, Any]
"""A network of the table: its name, title and folder, validation metric, costs, and later its test metric."""
Units = tuple[list[Group], dict[str, Tensor]]
"""Of a network: the groups of its channels, and how important each unit of them is."""


@dataclass(frozen=True)
class Setting:
    """What every step needs: the config, where to compute, the task, folder and console."""

    config: OptimizeConfig
    device: torch.device
    task: Task
    run: Run
    console: Console

    @cached_property
    def original_groups(self) -> list[Group]:
        """The groups of the original's channels, as it was trained: what begins at zero shows little before."""
        return find_groups(self.load("original").module, self.task.input_shape)

    @property
    def training(self) -> TrainingSettings:
        """The task's own."""
        return self.config.retrain.training

    def folder(self, stage: str) -> Path:
        """Of a network."""
        return self.run.folder / "networks" / stage

    def load(self, stage: str) -> TrainedNetwork:
        """A network, on the device."""
        network = load_network(self.folder(stage), self.config.plugins)
        network.module.to(self.device)
        return network

    def answering(self, stage: str) -> nn.Module:
        """What answers in the end: the network, or where it was quantized the model in 8-bit integers."""
        file = self.folder(stage) / QUANTIZED
        return OnnxModule(read_checked(file)) if file.is_file() else self.load(stage).module

    def save(self, stage: str, module: nn.Module, blueprint: Blueprint) -> None:
        """A network of this task."""
        task = self.task
        network = TrainedNetwork(module.cpu(), blueprint, task.input_shape, task.objective, task.preprocessing)
        save_network(network, self.folder(stage))

    def tuning(self, how: FineTuning) -> TrainingSettings:
        """The task's training, gentler."""
        own = self.training
        return replace(
            own, epochs=max(1, how.epochs), learning_rate=how.rate * own.learning_rate,
            final_learning_rate=how.rate * own.final_learning_rate,
        )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One of the steps.

    Args:
        stage: Its name in the run, such as `2-prune`.
        before: The stage whose network it changes.
        number: Which of the steps of its kind it is, from 1.
        total: How many there are of its kind.
        original: The row of the original.
    """

    stage: str
    before: str
    number: int
    total: int
    original: Row


def main(config: OptimizeConfig, text: str) -> None:
    """Run every stage, or those that a resumed run has not finished."""
    started = time.monotonic()
    with under_way(config, text, "optimize.py", lambda _: build(config)) as (run, console, built):
        device, task, blueprint, original = built
        at = Setting(config, device, task.to(device), run, console)
        console.say(f"Luban: a smaller {blueprint.target} for {task.name}, on {device}. Run folder: {run.folder}")
        joined = notes_on(config)
        notes = [*joined, *([] if config.model.weights is None else [given_weights(task)])]
        run.write_task({**task.about(), "data": task.mark(), "joined_validation": bool(joined)})
        rows = optimize(at, blueprint, original)
        rows = run.once("time", lambda: time_networks(at, rows))
        choice = run.once("choice", lambda: choose(at, rows))
        results = run.once("test", lambda: test(at, rows, choice, notes))
        results = export_chosen(at, results)
    console.table(steps_table(results))
    console.say(results["verdict"])
    for note in results["notes"]:
        console.say(note)
    report = write_optimization(run.folder)
    console.say(f"Report: {report}   TensorBoard: tensorboard --logdir {shlex.quote(str(run.folder))}")
    console.say(f"Finished in {time.monotonic() - started:.0f} s.")


def build(config: OptimizeConfig) -> tuple[torch.device, Task, Blueprint, nn.Module | None]:
    """Device, task, and the original: how to build it, and it itself where it need not be trained first.

    Nothing is written, so a mistake in the config costs nothing.

    Raises:
        ValueError: The model cannot be read, is for another task, or cannot be brought to the goals by these steps.
    """
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.env.task is None:
        raise ConfigError(f"env: {config.env.id} has no task that a model could be measured on")
    for number, name in enumerate(config.steps):
        if name not in STEPS:
            raise ConfigError(f"steps[{number}]: there is no step {name!r}; {nearest(name, STEPS)}")
    if "quantize" in config.steps[:-1]:
        raise ConfigError(
            f"steps: what is quantized can no longer be trained, so quantize comes last, got {list(config.steps)}"
        )
    if "quantize" in config.steps:
        require("onnx", "onnxscript", "onnxruntime")
    if not config.steps:
        raise ConfigError(f"steps: expected a list of one or more of {', '.join(STEPS)}, got none")
    task = check_task(config.env.task.build(config.plugins, seed=config.seed))
    model = config.model
    if model.path is not None:
        network = network_for("model.path", find_network(model.path), task, config.plugins)
        blueprint, original, module = network.blueprint, network.module, network.module
    else:
        assert model.part is not None
        blueprint = model.part.blueprint(config.plugins, task)
        module = blueprint.build(config.plugins)
        check_state(blueprint, module)
        original = None if model.weights is None else with_weights(module, Path(model.weights))
    check_storable(blueprint, task)
    for name, value in module.named_parameters():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ConfigError(
                f"model: {name} is of {str(value.dtype).removeprefix('torch.')}, and samples and what is stored are of "
                "float32; let its __init__ end with self.float()"
            )
    check_fit("model", lambda: module, task)
    untrained = copy.deepcopy(module)
    try:
        count_macs(untrained, task.input_shape)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None
    groups = find_groups(untrained, task.input_shape) if "prune" in config.steps else []
    check_goals(config, module, groups, task)
    network = TrainedNetwork(untrained, blueprint, task.input_shape, task.objective, task.preprocessing)
    check_steps(config, network, groups, task)
    return device, task, blueprint, original


def check_steps(config: OptimizeConfig, network: TrainedNetwork, groups: Sequence[Group], task: Task) -> None:
    """Prove on the untrained network that the later steps can be taken."""
    if "prune" in config.steps and config.prune.ratios == "search":
        if config.search.budget is not None:
            raise ConfigError(
                "search.budget: a search for ratios is as long as search.rounds says, and costs nothing that could be "
                f"charged; set search.budget=null, got {config.search.budget:g}"
            )
        try:
            config.build_strategy(RatioSpace(groups, config.prune.choices), 0, None)
        except ValueError as error:
            raise ConfigError(f"prune.ratios=search: {error}") from None
    two = task.preprocessing(task.train.inputs[:2])
    if "distill" in config.steps:
        teacher = find_teachers(config, task, lambda name: network.module)[0]
        if config.distill.features is not None:
            Pupil(copy.deepcopy(network.module), copy.deepcopy(teacher), config.distill.features, two)
    if "quantize" in config.steps:
        from child.quantize import check_quantizable  # needs an extra

        check_quantizable(network, two, config.plugins)


def network_for(key: str, folder: Path, task: Task, plugins: Sequence[str]) -> TrainedNetwork:
    """A network from disk that was trained for this task, on this very split of its data (else ConfigError)."""
    network, its_run = load_network(folder, plugins), run_around(folder)
    known = None if its_run is None else read_object(its_run / "task.json", ())
    our_data = task.mark()
    its_data = (known or {}).get("data", our_data)
    for what, its, ours in (
        (f"inputs of shape {network.input_shape}, not {task.input_shape} as", network.input_shape, task.input_shape),
        ("another objective than", network.objective, task.objective),
        ("data prepared otherwise than", network.preprocessing, task.preprocessing),
        ("other data, or another split of them, than", its_data, our_data),
    ):
        if its != ours:
            raise ConfigError(
                f"{key}: {folder} was trained for {what} in the task {task.name}; give the env and the seed that it "
                f"was trained with{seed_and_data_of(its_run)}"
            )
    return network


def seed_and_data_of(run: Path | None) -> str:
    """The seed and the data of a run, as the overrides that name them; nothing where there is none."""
    path = None if run is None else run / "config.yaml"
    if path is None or not path.is_file():
        return ""
    saved = OmegaConf.load(path)
    where = OmegaConf.select(saved, "env.path")
    its_path = "" if where is None else f" {override('env.path', where)}"
    return f": seed={OmegaConf.select(saved, 'seed')}{its_path}, and what else of env stands in {path}"


def with_weights(module: nn.Module, file: Path) -> nn.Module:
    """A module with the weights of a safetensors file; such files keep what several names share under one of them."""
    own = module.state_dict()
    try:
        state = unpack(file.read_bytes())[0]
    except OSError as error:
        raise ConfigError(f"model.weights: cannot read {file}: {error.strerror}") from None
    except (SafetensorError, ValueError) as error:
        raise ConfigError(
            f"model.weights: {file} is not a whole safetensors file ({error}); of a state dict safetensors.torch."
            "save_file makes one"
        ) from None
    places = {name: (value.data_ptr(), value.shape, value.stride()) for name, value in own.items()}
    kept = {place: state[name] for name, place in places.items() if name in state}
    given = {name: kept[place] for name, place in places.items() if place in kept} | state
    try:
        module.load_state_dict(given)  # which reads what earlier versions of PyTorch have written, too
    except (RuntimeError, ValueError):
        raise ConfigError(f"model.weights: {file} does not fit {type(module).__name__}: {unlike(own, given)}") from None
    for name, value in module.named_parameters():
        if not value.isfinite().all():
            raise ConfigError(f"model.weights: {name} of {file} has values that are not finite")
    return module


def unlike(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """How the weights given are not those of a network: the first few differences, and what to do."""
    found = [
        *(f"it lacks {name}" for name in own if name not in given),
        *(f"it has {name}" for name in given if name not in own),
        *(
            f"{name} is of shape {tuple(given[name].shape)} where {tuple(value.shape)} is needed"
            for name, value in own.items()
            if name in given and given[name].shape != value.shape
        ),
    ]
    more = f", and so on: {len(found)} in all" if len(found) > 3 else ""
    front = next(iter(given), "").partition(".")[0]
    prefixed = all(name.startswith(f"{front}.") and name.partition(".")[2] in own for name in given)
    advice = f"; all its names begin with {front}., so take that off" if given and prefixed else ""
    return f"{', '.join(found[:3])}{more}{advice}"


def check_goals(config: OptimizeConfig, module: nn.Module, groups: Sequence[Group], task: Task) -> None:
    """Prove that the steps can lead to the goals, as far as can be told before."""
    goal, steps, prune_settings = config.goal, config.steps, config.prune
    tied = config.share.tie and "share" in steps
    taken = {*steps, TYING} if tied else set(steps)
    for name, helpful in HELPFUL.items():
        share = getattr(goal, name)
        if share is not None and share < 1 and not taken & set(helpful):
            raise ConfigError(f"goal.{name}: none of steps={list(steps)} lowers it; add one of {', '.join(helpful)}")
    if tied and "prune" in steps[steps.index("share") :]:
        raise ConfigError(
            f"steps: pruning would part the layers that share.tie=true has tied, so prune comes before share, got "
            f"{list(steps)}"
        )
    undone = {early for place, name in enumerate(steps) if name == "distill" for early in steps[:place]}
    undone &= {"share", "sparsify"}
    if config.distill.fresh and undone:
        raise ConfigError(
            f"steps: distill.fresh=true begins with fresh weights, which undoes {' and '.join(sorted(undone))}, so "
            f"distill comes before, got {list(steps)}"
        )
    smallest = module
    if "prune" in steps:
        targets = prune_targets(config)
        for unit, share in targets.items():
            limit = getattr(goal, unit)
            if limit is not None and share > limit:
                raise ConfigError(
                    f"prune.share: {share:g} of the {unit} contradicts goal.{unit}={limit:g}; leave it out"
                )
        smallest, costs = smallest_of(config, module, groups, task), costs_of(config, task)
        for unit, share in targets.items():
            if unit == "bytes":  # of all steps together, below
                continue
            whole = count_parameters(module) if unit == "parameters" else costs[unit](module)
            lowest = costs[unit](smallest) / whole
            if share < lowest:
                key = f"goal.{unit}" if share == getattr(goal, unit) else "prune.share"
                raise ConfigError(
                    f"{key}: {share:.3g} of the {unit} cannot be reached, since pruning leaves {lowest:.3g} of "
                    f"them with prune.least={prune_settings.least:g} and prune.multiple={prune_settings.multiple}"
                )
    if goal.bytes is not None:
        least = bytes_ahead(config, smallest) / len(pack(module.state_dict()))
        if goal.bytes < least:
            raise ConfigError(
                f"goal.bytes: {goal.bytes:.3g} of the bytes cannot be reached by these steps, whose weights alone take "
                f"{least:.3g} at least"
            )


def optimize(at: Setting, blueprint: Blueprint, original: nn.Module | None) -> list[Row]:
    """The original, and what each step makes of what came before, each measured."""

    def begin() -> float:
        module = original
        if module is None:
            module = train(at, "original", lambda: blueprint.build(at.config.plugins), at.training)
        at.save("original", module, blueprint)
        return at.run.seconds

    rows: list[Row] = []

    def add(stage: str, title: str, seconds: float) -> None:
        rows.append(at.run.once(f"measure {stage}", lambda: describe(at, stage, title, seconds)))
        at.run.write("steps.json", {"rows": rows})

    add("original", "Original", at.run.once("train original", begin))
    for warning in chance(rows[0], at.task):
        at.console.say(warning)
    steps = at.config.steps
    for place, name in enumerate(steps):
        stage = f"{place + 1}-{name}"
        step = Step(stage, rows[-1]["name"], steps[: place + 1].count(name), steps.count(name), rows[0])
        add(stage, f"{place + 1}. {name}", STEPS[name](at, step))
    return rows


def describe(at: Setting, stage: str, title: str, seconds: float) -> Row:
    """A row of the table: the network's validation metric with its standard error, and what it costs."""
    task, folder = at.task, at.folder(stage)
    module, file = at.load(stage).module, folder / QUANTIZED
    scores = grade(at.answering(stage), task, task.validation, at.training.final_batch, at.device)
    metric = task.objective.metric(scores, task.validation.targets.cpu())
    if not math.isfinite(metric):
        raise TrainingError(
            f"{title}: its outputs on validation data are not finite; train it at a lower rate, or mend model.weights"
        )
    row = {
        "name": stage,
        "title": title,
        "folder": f"networks/{stage}",
        "validation": [metric],
        "standard_error": bootstrap_error(task, scores),
        "quality": [task.objective.quality(metric)],
        "test": [],
        "macs": count_macs(module, task.input_shape),
        "parameters": count_parameters(module),
        "bytes": sum(each.stat().st_size for each in ([file] if file.is_file() else folder.iterdir())),
        "seconds": seconds,
        "note": None,
    }
    at.run.log({f"optimize/{key}": row[key] for key in ("macs", "parameters", "bytes")})
    at.run.log({f"optimize/validation_{task.metric_name}": metric})
    at.console.say(row_line(row, task.metric_name))
    return row


def bootstrap_error(task: Task, scores: Tensor) -> float:
    """The standard error of a metric on the validation data: the standard deviation over 200 bootstrap samples."""
    generator, targets = torch.Generator().manual_seed(0), task.validation.targets.cpu()
    draws = (torch.randint(len(scores), (len(scores),), generator=generator) for _ in range(200))
    return float(np.std([task.objective.metric(scores[draw], targets[draw]) for draw in draws], ddof=1))


# The steps: each changes the network of `step.before`, saves that of `step.stage`, and tells how long it took.


def prune(at: Setting, step: Step) -> float:
    """Remove channels, in rounds, until so much is left of the original."""
    settings, seconds, whole = at.config.prune, 0.0, step.original
    targets, before = prune_targets(at.config), step.before
    if ahead := [unit for unit in targets if unit != "macs"]:
        # As the steps to come would leave them if there were no pruning: tied, if they will be, and the weights packed.
        module, costs = at.load("original").module, costs_of(at.config, at.task)
        unpruned = {unit: costs[unit](module) for unit in ahead}
        if "parameters" in ahead:
            targets["parameters"] *= whole["parameters"] / unpruned["parameters"]
        if "bytes" in ahead:
            beside = whole["bytes"] - (at.folder("original") / WEIGHTS).stat().st_size
            fewest = costs["bytes"](smallest_of(at.config, module, at.original_groups, at.task))
            targets["bytes"] = max(fewest, targets["bytes"] * whole["bytes"] - beside) / unpruned["bytes"]
        whole = {**whole, **unpruned}
    ratios = (read_object(at.run.folder / "ratios.json", ()) or {}) if settings.ratios == "search" else {}
    for number in range(1, settings.rounds + 1):
        last = number == settings.rounds
        stage = step.stage if last else f"{step.stage}-round{number}"
        # Each round of each such step takes the same share of what is left.
        way = (step.number - 1 + number / settings.rounds) / step.total
        cost, wanted = joint_cost(at, {unit: whole[unit] * share**way for unit, share in targets.items()})
        found, units = None, cache(partial(units_of, at, stage, before))
        if settings.ratios == "search":
            found = at.run.once(f"search {stage}", partial(search_ratios, at, stage, before, units, cost, wanted))
            trials = [
                try_ratios(at, f"{stage}-trial{place}", before, units, finalist, cost, wanted)
                for place, finalist in enumerate(found["finalists"], 1)
            ]
            seconds += found["seconds"] + sum(trial["seconds"] for trial in trials)
            best = max(trial["quality"] for trial in trials)
            # What the validation data cannot tell from even ratios is not preferred to them.
            tolerance = at.task.standard_error(best)
            equal = [trial for trial in trials if trial["quality"] >= best - tolerance]
            trials.sort(key=lambda trial: (trial not in equal, not trial["even"], -trial["quality"]))
            found = trials[0]
            ratios[stage] = [{key: trial[key] for key in ("removed", "quality", "even")} for trial in trials]
            at.run.write("ratios.json", ratios)
            why = f"even ones, since none is better by more than {tolerance:.2g}" if found["even"] else found["text"]
            at.console.say(f"Ratios, removed of each layer: {why}")

        change = partial(cut, at, units, None if found is None else found["tokens"], cost, wanted)
        seconds += fine_tune(at, stage, before, change, settings.training, resized=True)
        before = stage
    return seconds


def sparsify(at: Setting, step: Step) -> float:
    """Cut connections, in rounds, until that share of the weights is zero."""
    settings, seconds, before = at.config.sparsify, 0.0, step.before
    whole = replace(settings, rounds=settings.rounds * step.total)
    for number in range(1, settings.rounds + 1):
        stage = step.stage if number == settings.rounds else f"{step.stage}-round{number}"
        sparsity = whole.after((step.number - 1) * settings.rounds + number)

        def change(module: nn.Module, sparsity: float = sparsity) -> nn.Module:
            cut_connections(module, sparsity, settings.scope)
            return module

        seconds += fine_tune(at, stage, before, change, settings.training)
        before = stage
    return seconds


def share(at: Setting, step: Step) -> float:
    """Let the weights of each layer share a few values."""
    settings = at.config.share

    def change(module: nn.Module) -> nn.Module:
        if settings.tie:
            tie_alike(module)
        share_values(module, settings.values)
        return module

    return fine_tune(at, step.stage, step.before, change, settings.training)


def distill(at: Setting, step: Step) -> float:
    """Learn from teachers, by outputs and, where the config says so, by features."""
    settings = at.config.distill

    def compute() -> float:
        stages = {"original": "original", "self": step.before}
        teachers = find_teachers(at.config, at.task, lambda name: at.load(stages[name]).module)
        teacher = (teachers[0] if len(teachers) == 1 else Ensemble(teachers)).to(at.device)
        network = at.load(step.before)
        inputs = at.task.preprocessing(at.task.train.inputs[:2])

        def begin() -> nn.Module:
            module = fresh(at, network).to(at.device) if settings.fresh else held(at, network.module, settings.training)
            if settings.features is None:
                return module
            return Pupil(module, teachers[0], settings.features, inputs)

        def loss_of(module: nn.Module) -> LossOf:
            return settings.soft_targets.loss(module, teacher, at.task, settings.training.label_smoothing)

        module = train(at, step.stage, begin, settings.training, loss_of)
        at.save(step.stage, release(module.student if isinstance(module, Pupil) else module), network.blueprint)
        return at.run.seconds

    return at.run.once(f"train {step.stage}", compute)


def quantize(at: Setting, step: Step) -> float:
    """Export the network, and round its weights and activations to 8-bit integers."""
    from child.quantize import quantize as quantize_exported  # needs an extra

    def compute() -> float:
        network, folder = at.load(step.before), at.folder(step.stage)
        at.save(step.stage, network.module, network.blueprint)
        export(load_network(folder, at.config.plugins), folder, ("onnx",), at.task.name, at.config.plugins)
        drawn = at.task.train.draw(at.config.quantize.samples, derive_seed(at.config.seed, step.stage))
        quantize_exported(folder, at.task.preprocessing(drawn.inputs).cpu())
        return at.run.seconds

    return at.run.once(f"train {step.stage}", compute)


STEPS: dict[str, Callable[[Setting, Step], float]] = {
    "prune": prune,
    "sparsify": sparsify,
    "share": share,
    "distill": distill,
    "quantize": quantize,
}

CALLED = {"macs": "multiply-accumulates", "parameters": "parameters", "bytes": "bytes"}
KNOWN_TEACHERS = ("original", "self")
TYING = "share with share.tie=true"
HELPFUL = {"macs": ("prune",), "parameters": ("prune", TYING), "bytes": ("prune", "sparsify", "share", "quantize")}
"""The steps that bring a cost down; a codebook has as many parameters as were there before."""


def fine_tune(
    at: Setting,
    stage: str,
    before: str,
    change: Callable[[nn.Module], nn.Module],
    how: FineTuning,
    resized: bool = False,
) -> float:
    """Change a network and train it on, with what it was given held; the seconds that this took."""

    def compute() -> float:
        network = at.load(before)
        module = tuned(at, stage, lambda: change(network.module), how)
        at.save(stage, module, replace(network.blueprint, resized=network.blueprint.resized or resized))
        return at.run.seconds

    return at.run.once(f"train {stage}", compute)


def tuned(at: Setting, stage: str, begin: Callable[[], nn.Module], how: FineTuning) -> nn.Module:
    """A network trained on, with what it was given held."""
    settings = at.tuning(how)
    return release(train(at, stage, lambda: held(at, begin(), settings), settings)) if how.epochs else begin()


def held(at: Setting, module: nn.Module, settings: TrainingSettings) -> nn.Module:
    """A network that keeps what it was given in training, with codebooks that learn no faster than `share` tunes them.

    Args:
        at: Where it is trained.
        module: Is changed in place.
        settings: Of the training.
    """
    own = at.tuning(at.config.share.training)
    return hold(module, min(1.0, own.learning_rate / settings.learning_rate))


def train(
    at: Setting,
    stage: str,
    begin: Callable[[], nn.Module],
    settings: TrainingSettings,
    loss_of: Callable[[nn.Module], LossOf] | None = None,
) -> nn.Module:
    """Train a network on the task, or go on where the run's last checkpoint stands."""
    seed = derive_seed(at.config.seed, "optimize")
    return retrain(begin, at.task, settings, seed, stage, at.device, at.run, at.console, loss_of)[0]


def prune_targets(config: OptimizeConfig) -> dict[str, float]:
    """What pruning brings down, each to which share of the original's: every goal that counts, and what is asked."""
    goals = {unit: share for unit in CALLED if (share := getattr(config.goal, unit)) is not None}
    settings = config.prune
    if goals and settings.unit is None and settings.share is None:
        return goals
    unit = settings.unit or next((unit for unit in goals if unit != "bytes"), "macs")
    asked = settings.share if settings.share is not None else goals.get(unit, 0.5)
    return {unit: asked, **{other: share for other, share in goals.items() if other != unit}}


def joint_cost(at: Setting, wanted: Mapping[str, float]) -> tuple[Callable[[nn.Module], float], float]:
    """One cost for several, in units of the first, and the most that it may be: what is furthest from its limit counts.

    Args:
        at: Where the networks are.
        wanted: The most of each unit.
    """
    counts, most = costs_of(at.config, at.task), next(iter(wanted.values()))
    return lambda module: max(counts[unit](module) * (most / limit) for unit, limit in wanted.items()), most


def costs_of(config: OptimizeConfig, task: Task) -> dict[str, Callable[[nn.Module], int]]:
    """What can be told of a pruned network of this task before it is trained."""
    return {
        "macs": partial(count_macs, input_shape=task.input_shape),
        "parameters": partial(parameters_ahead, config),
        "bytes": partial(bytes_ahead, config),
    }


def parameters_ahead(config: OptimizeConfig, module: nn.Module) -> int:
    """How many parameters a network will have once every step but pruning was taken: `share` may tie layers."""
    if "share" in config.steps and config.share.tie:
        module = copy.deepcopy(module)
        tie_alike(module)
    return count_parameters(module)


def bytes_ahead(config: OptimizeConfig, module: nn.Module) -> int:
    """What the weights of a network will take on disk once every step but pruning was taken: as if none trained it."""
    module = copy.deepcopy(module)
    if "sparsify" in config.steps:
        cut_connections(module, config.sparsify.sparsity, config.sparsify.scope)
    if "share" in config.steps:
        if config.share.tie:
            tie_alike(module)
        share_values(module, config.share.values)
    state = module.state_dict()
    if "quantize" not in config.steps:
        return len(pack(state))
    from child.quantize import read_in_loops  # needs an extra

    left = read_in_loops(module)
    state = {
        name: value.to(torch.int8) if value.ndim > 1 and name not in left else value.clone()
        for name, value in state.items()
    }
    return len(save({name: value.contiguous() for name, value in state.items()}))  # such a file packs nothing


def units_of(at: Setting, stage: str, before: str) -> Units:
    """Those of the network before a stage."""
    module, shape, seed = at.load(before).module, at.task.input_shape, derive_seed(at.config.seed, stage)
    groups = at.original_groups if before == "original" else find_groups(module, shape)
    return groups, score_units(
        module, shape, groups, at.config.prune.importance, at.task, STATISTICS_BATCHES, at.training.batch_size, seed
    )


def least_of(at: Setting, groups: Sequence[Group]) -> dict[str, float]:
    """The share of each group that stays in any case: `prune.least` of what the original has."""
    whole = {group.name: group.num_channels for group in at.original_groups}
    fewest = {group.name: at.config.prune.least * whole.get(group.name, group.num_channels) for group in groups}
    return {group.name: min(1.0, fewest[group.name] / group.num_channels) for group in groups}


def smallest_of(config: OptimizeConfig, module: nn.Module, groups: Sequence[Group], task: Task) -> nn.Module:
    """What is left of a network at the least if its channels are pruned."""
    scores = score_units(module, task.input_shape, groups, "magnitude")
    kept = keep_shares(groups, uniform(groups, scores, 0.0), config.prune.least, config.prune.multiple)
    return remove_units(module, task.input_shape, groups, scores, kept)


def plan_of_shares(
    at: Setting, groups: Sequence[Group], scores: Mapping[str, Tensor], least: Mapping[str, float]
) -> Callable[[float], Kept]:
    """The family of networks that keep a share of all channels, of each group or of all together."""
    family = uniform if at.config.prune.ratios == "uniform" else across
    return lambda share: keep_shares(groups, family(groups, scores, share), least, at.config.prune.multiple)


def plan_of_ratios(
    at: Setting, groups: Sequence[Group], tokens: Sequence[int], least: Mapping[str, float]
) -> Callable[[float], Kept]:
    """The family of networks with these ratios to each other: as found at 1/2, whole at 1."""
    settings = at.config.prune
    space = RatioSpace(groups, settings.choices)
    genotype = space.genotype(tokens)
    return lambda position: keep_shares(
        groups, space.shares(genotype, (1 - position) / max(position, 1e-6)), least, settings.multiple
    )


def cut(
    at: Setting,
    units: Callable[[], Units],
    tokens: Sequence[int] | None,
    cost: Callable[[nn.Module], float],
    wanted: float,
    module: nn.Module,
) -> nn.Module:
    """The largest network of the wanted cost, with ratios that were found or those of the config, ready to learn."""
    groups, scores = units()
    least = least_of(at, groups)
    plan = plan_of_shares(at, groups, scores, least) if tokens is None else plan_of_ratios(at, groups, tokens, least)
    smaller = fit(module, at.task.input_shape, groups, scores, plan, cost, wanted)
    gather_statistics(smaller, at.task, STATISTICS_BATCHES, at.training.batch_size, at.config.seed)
    return smaller


def search_ratios(
    at: Setting,
    stage: str,
    before: str,
    units: Callable[[], Units],
    cost: Callable[[nn.Module], float],
    wanted: float,
) -> dict[str, Any]:
    """The few best ratios that the controller finds, and even ones."""
    config, settings, task = at.config, at.config.prune, at.task
    module = at.load(before).module
    groups, scores = units()
    space, seed = RatioSpace(groups, settings.choices), derive_seed(config.seed, stage)
    evaluator = PruningEvaluator(
        module, space, scores, task, cost, least_of(at, groups), settings.multiple, at.training.final_batch,
        STATISTICS_BATCHES, seed, at.device,
    )  # fmt: skip
    unit = next(iter(prune_targets(config)))
    unit = "parameters" if unit == "bytes" else unit  # no reward knows bytes, and it reads the target alone
    fixed = {"target": wanted, "unit": unit} if "target" in config.reward.arguments else {}
    reward = replace(config.reward, arguments={**config.reward.arguments, **fixed}).build(config.plugins)
    how, strategy = config.search, config.build_strategy(space, seed, None)
    if config.steps.count("prune") * settings.rounds == 1:  # the decisions of others would be of other groups
        at.run.write("space.json", space.to_json())

    def join(strategy: Strategy) -> Player:
        return Player(strategy, VectorArchitectureEnv(how.episodes, space, evaluator, reward, how.fidelity))

    search(join, strategy, evaluator, how, seed, at.run, at.console)
    played = [line for line in at.run.read("history") if line["strategy"] == strategy.name]
    lines = played[-how.rounds * how.episodes :]  # of this search
    own = sorted((line for line in lines if line["failure"] is None), key=lambda line: -line["reward"])
    best = list(dict.fromkeys(tuple(line["genotype"]["tokens"]) for line in own))[:FINALISTS]
    even = (len(settings.choices) // 2,) * len(groups)
    finalists = []
    for tokens in dict.fromkeys([*best, even]):
        genotype = space.genotype(tokens)
        removed = {group.name: settings.choices[token] for group, token in zip(groups, tokens, strict=True)}
        finalists.append({
            "tokens": list(tokens), "text": space.text(genotype), "removed": removed, "even": tokens == even,
        })  # fmt: skip
    return {"finalists": finalists, "seconds": at.run.seconds}


def try_ratios(
    at: Setting,
    trial: str,
    before: str,
    units: Callable[[], Units],
    ratios: Mapping[str, Any],
    cost: Callable[[nn.Module], float],
    wanted: float,
) -> dict[str, Any]:
    """How good a network with these ratios is at the wanted cost, after a short fine-tuning; cut only, it says less."""
    settings, task = at.config.prune, at.task
    how = replace(settings.training, epochs=math.ceil(TRIAL * settings.training.epochs))

    def compute() -> dict[str, Any]:
        try:
            smaller = cut(at, units, ratios["tokens"], cost, wanted, at.load(before).module)
        except ValueError:  # too much of it is not pruned at all
            return {**ratios, "quality": -1.0, "seconds": at.run.seconds}
        module = tuned(at, trial, lambda: smaller, how)
        graded = grade(module, task, task.validation, at.training.final_batch, at.device)
        quality = task.quality(graded, task.validation.targets.cpu())
        quality = quality if math.isfinite(quality) else -1.0
        return {**ratios, "quality": quality, "seconds": at.run.seconds}

    return at.run.once(f"train {trial}", compute)


def find_teachers(config: OptimizeConfig, task: Task, known: Callable[[str], nn.Module]) -> list[nn.Module]:
    """Those of `distill.teachers` in their order: `known` ones, of a run folder all of its teachers, or a network."""
    found = []
    for name in config.distill.teachers:
        if name in KNOWN_TEACHERS:
            found.append(known(name))
            continue
        trained = [each for each in Path(name).glob("networks/teacher*") if "-seed" not in each.name]
        chosen = [each for row, each in chosen_networks(Path(name)).items() if row.startswith("teacher")]
        folders = chosen or sorted(trained) or [find_network(name)]  # of a run under way, those trained so far
        found += [network_for("distill.teachers", folder, task, config.plugins).module for folder in folders]
    return found


def fresh(at: Setting, network: TrainedNetwork) -> nn.Module:
    """The same network with fresh weights, in the sizes that pruning has left: built anew, and its tensors cut to them.

    Layers that draw their weights themselves do so again for their sizes, since how large weights are to be goes by the
    number of inputs.
    """
    module = network.blueprint.build(at.config.plugins)
    if not network.blueprint.resized:
        return module
    whole = module.state_dict()
    state = {
        name: whole[name][tuple(slice(size) for size in value.shape)]
        for name, value in network.module.state_dict().items()
    }
    resize(module, state)
    module.load_state_dict(state)
    for layer in module.modules():
        draw = getattr(layer, "reset_parameters", None)
        if callable(draw):
            draw()
    return module


# The end


def time_networks(at: Setting, rows: Sequence[Row]) -> list[Row]:
    """The rows with latencies: of a few rounds, in which the networks take turns, each one's least disturbed."""
    networks = [at.answering(row["name"]) for row in rows]
    rounds = [
        [
            measure_latency(network, at.task.input_shape, at.device, LATENCY_BATCH, num_repeats=20)
            for network in networks
        ]
        for _ in range(LATENCY_ROUNDS)
    ]
    best = [min(found, key=lambda latency: latency.median_ms) for found in zip(*rounds, strict=True)]
    at.run.log({f"optimize/latency_ms_{row['name']}": each.median_ms for row, each in zip(rows, best, strict=True)})
    return [
        {**row, "latency_ms": each.median_ms, "latency_spread_ms": each.spread_ms}
        for row, each in zip(rows, best, strict=True)
    ]


def choose(at: Setting, rows: Sequence[Row]) -> dict[str, Any]:
    """The best network that honors all goals, or the one that comes nearest, written down before the test."""
    goal, original = at.config.goal, rows[0]
    misses = {row["name"]: missed(goal, row, original, at.task) for row in rows}
    honoring = [row for row in rows if not misses[row["name"]]]
    sizes = any(getattr(goal, name) is not None for name in ("macs", "parameters", "bytes", "latency_ms"))
    if not honoring:  # of what the steps have made
        chosen = min(rows[1:], key=lambda row: max(excess for excess, _ in misses[row["name"]]))
    elif sizes:
        chosen = max(honoring, key=lambda row: (row["quality"][0], -row["bytes"], -row["macs"]))
    elif goal.max_loss is not None:
        chosen = min(honoring, key=lambda row: (row["bytes"], row["macs"]))
    else:
        chosen = rows[-1]
    title = chosen["title"]
    if not honoring:
        told = "; ".join(words for _, words in misses[chosen["name"]])
        verdict = f"No network honors the goal. {title} comes nearest: {told}."
    elif goal == Goal():
        verdict = f"There was no goal; the result is that of the last step, {title}."
    else:
        verdict = f"{title} is the {'best' if sizes else 'smallest'} network that honors the goal."
    shutil.copytree(at.folder(chosen["name"]), at.folder("student"), dirs_exist_ok=True)
    notes = {name: "; ".join(words for _, words in found) for name, found in misses.items() if found}
    remarks = remarks_on(rows, chosen, honoring if sizes else (), at.task)
    choice = {
        "chosen": chosen["name"], "honored": bool(honoring), "verdict": verdict, "notes": notes, "remarks": remarks
    }  # fmt: skip
    at.run.write("choices.json", choice)
    return choice


def remarks_on(rows: Sequence[Row], chosen: Row, honoring: Sequence[Row], task: Task) -> list[str]:
    """What the table does not say by itself: steps that brought nothing, and a smaller network that is as good.

    Args:
        rows: Of the table.
        chosen: The one that was chosen.
        honoring: Those of which the best was chosen.
        task: What they learned.
    """
    remarks, packed = chance(rows[0], task), ""
    for before, row in pairwise(rows):
        if before["name"].endswith(("-share", "-sparsify")):
            packed = ", which keeps what share and sparsify pack"
        alike = all(row[cost] == before[cost] for cost in ("macs", "parameters"))
        if alike and row["name"].endswith("-prune"):
            remarks.append(f"{row['title']} removed nothing, for the goal is reached without.")
        elif row["bytes"] > 1.01 * before["bytes"]:
            remarks.append(f"{row['title']} takes more bytes than {before['title']}{packed}.")
    sign = 1 if task.objective.higher_is_better else -1
    equal = [
        row
        for row in honoring
        if row["bytes"] < 0.99 * chosen["bytes"]
        and sign * (chosen["validation"][0] - row["validation"][0]) <= chosen["standard_error"]
    ]
    if equal:
        row = min(equal, key=lambda row: row["bytes"])
        remarks.append(
            f"{row['title']} honors the goal too, has {row['bytes'] / chosen['bytes']:.0%} of the bytes of "
            f"{chosen['title']}, and is within a standard error of it on validation data: {row['folder']}."
        )
    return remarks


def chance(original: Row, task: Task) -> list[str]:
    """A warning where the original has learned nothing."""
    (metric,), targets = original["validation"], task.validation.targets
    if task.metric_name == "accuracy" and metric <= targets.bincount().max().item() / len(targets):
        return ["The original answers no better than by the commonest class, so that little can be judged by it."]
    if isinstance(task.objective, Regression) and metric <= 0:
        return ["The original answers no better than by the mean, so that little can be judged by it."]
    return []


def missed(goal: Goal, row: Row, original: Row, task: Task) -> list[tuple[float, str]]:
    """The goals that a network does not honor: by how much in relation to the limit, and in words."""
    found = []
    for name in ("macs", "parameters", "bytes"):
        limit, share = getattr(goal, name), row[name] / max(1, original[name])
        if limit is not None and share > limit:
            found.append((share / limit - 1, f"{share:.1%} of the {CALLED[name]} where {limit:.1%} are wanted"))
    if goal.latency_ms is not None and row["latency_ms"] > goal.latency_ms:
        words = f"{row['latency_ms']:.3g} ms for {LATENCY_BATCH} samples where {goal.latency_ms:.3g} are wanted"
        found.append((row["latency_ms"] / goal.latency_ms - 1, words))
    lost = points(original["validation"][0] - row["validation"][0], task)
    if goal.max_loss is not None and lost > goal.max_loss + 1e-9:
        # A limit of 0 has no share of it; a point is what people count in.
        words = f"{lost:.3g} points lost on validation data where {goal.max_loss:.3g} are allowed"
        found.append(((lost - goal.max_loss) / max(1.0, goal.max_loss), words))
    return found


def points(lost: float, task: Task) -> float:
    """What a metric loses, so that more is worse: in hundredths of accuracy, in units of any other."""
    lost = lost if task.objective.higher_is_better else -lost
    return 100 * lost if task.metric_name == "accuracy" else lost


def test(at: Setting, rows: Sequence[Row], choice: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Open the test set, now that the choice is written down, and measure the original and the chosen network once."""
    task = at.task
    task.test.unseal()
    tested = []
    for row in rows:
        test = []
        if row["name"] in ("original", choice["chosen"]):
            split = task.test.read(row["name"])
            test = [measure(at.answering(row["name"]), task, split, at.training.final_batch, at.device)]
        tested.append({**row, "test": test, "note": choice["notes"].get(row["name"])})
    results = {
        **task.about(),
        "seed": at.config.seed,
        "steps": list(at.config.steps),
        "goal": {name: limit for name, limit in vars(at.config.goal).items() if limit is not None},
        **{key: choice[key] for key in ("chosen", "honored", "verdict")},
        "rows": tested,
        "notes": [*notes, *choice.get("remarks", ())],
        "seconds": {row["name"]: row["seconds"] for row in rows},
    }
    networks = {name: at.load(name).module for name in ("original", choice["chosen"])}
    at.run.write("layers.json", {name: cost_by_layer(each, task.input_shape) for name, each in networks.items()})
    at.run.write("results.json", results)
    return results


def given_weights(task: Task) -> str:
    """What a reader must know of an original whose weights were given."""
    return (
        "The original's weights were given, and are judged on samples as this task prepares them, with its order of "
        f"answers. {describe_preprocessing(task.preprocessing)}. Where they were trained on others, let forward undo "
        "that first. What they were trained on may be among the validation and test data here, and is then answered "
        "too well."
    )


def notes_on(config: OptimizeConfig) -> list[str]:
    """What a reader must know of the original and of the teachers that have seen validation data."""
    notes = []
    if config.model.path is not None and joined_validation(Path(config.model.path)):
        notes.append(
            "The original was trained on the validation data too: what it has on them is too good, and what steps lose "
            "against it is less than it seems. The test column is fair."
        )
    teachers = [] if "distill" not in config.steps else config.distill.teachers
    if any(joined_validation(Path(name)) for name in teachers if name not in KNOWN_TEACHERS):
        notes.append(
            "A teacher was trained on the validation data too: what its students have on them is too good. The test "
            "column is fair."
        )
    return notes


def joined_validation(folder: Path) -> bool:
    """Whether the run of a network, or one that this run began from, trained on the validation data too.

    Args:
        folder: The run's, or that of one of its networks.
    """
    run = folder if (folder / "config.yaml").is_file() else run_around(folder)
    if run is None:
        return False
    config, about = run / "config.yaml", read_object(run / "task.json", ()) or {}
    own = config.is_file() and OmegaConf.select(OmegaConf.load(config), "retrain.join_validation")
    return bool(own or about.get("joined_validation"))


def export_chosen(at: Setting, results: dict[str, Any]) -> dict[str, Any]:
    """Write the chosen network in the formats that others read, with its model card."""
    if not at.config.export.formats:
        return results
    student, config = at.folder("student"), at.config
    result = at.run.once("export", lambda: export_or_tell(student, config.export.formats, config.plugins))
    seconds = {**results["seconds"], "export": result["seconds"]}
    notes = [*results["notes"], *result["notes"]]
    results = {**results, "exported": result["exported"], "notes": notes, "seconds": seconds}
    at.run.write("results.json", results)
    return results


if __name__ == "__main__":
    launch(main, OptimizeConfig, "optimize")
