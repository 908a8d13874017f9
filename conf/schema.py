"""The config as typed dataclasses, and how a composed config becomes them: every mistake is one line.

A node with `_target_` is a `Part`: it stays open, so that a user's own config can replace it, and is checked against
the signature of its target. Only classes and functions of this project, or of modules named in `plugins`, are built.
"""

import dataclasses
import importlib
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from child.distill import FeatureTransfer, SoftTargets
from child.export import FORMATS, Format
from child.network import Blueprint
from child.prune import PruneSettings
from child.rungs import RungsSettings
from child.share import ShareSettings
from child.space import Relaxation, SearchSpace, nearest
from child.sparsify import SparsifySettings
from child.standalone import StandaloneScore
from child.task import Task
from child.training import TrainingSettings
from controller.search import SearchSettings
from controller.strategy import Strategy, check_strategy

OURS = ("child", "controller", "envs")
NOT_TAKEN = "takes no such argument"


class ConfigError(ValueError):
    """A mistake in the config: one line that names the key, what was given, and what is allowed."""


@dataclass(frozen=True)
class Part:
    """A swappable part: what to build, and with which arguments."""

    key: str
    target: str
    arguments: dict[str, Any]

    def build(self, plugins: Sequence[str], **given: Any) -> Any:
        """Import the target and call it with the config's arguments and the given ones, both checked first.

        Raises:
            ConfigError: The target may not be built, or an argument is unknown, missing or of the wrong type.
        """
        arguments = self.complete(plugins, **given)
        try:
            return self._find(plugins)(**arguments)
        except ValueError as error:
            raise ConfigError(f"{self.key}: {error}") from None

    def complete(self, plugins: Sequence[str], **given: Any) -> dict[str, Any]:
        """The arguments that the target is called with: the config's and the given ones, checked.

        Given arguments that the target does not take are left out: a random search, say, needs no number of updates.

        Raises:
            ConfigError: The target may not be built, or an argument is unknown, missing or of the wrong type.
        """
        target = self._find(plugins)
        parameters = inspect.signature(target).parameters
        of_fields = dataclasses.is_dataclass(target) or not inspect.isclass(target)
        try:
            hints = typing.get_type_hints(target if of_fields else target.__init__)
        except NameError as error:
            raise ConfigError(
                f"{self.key}: the annotations of {self.target} cannot be read ({error}); import what they name "
                "outright, not for type checkers alone"
            ) from None
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        arguments = {name: value for name, value in given.items() if takes_any or name in parameters}
        for name, value in self.arguments.items():
            if name not in parameters and not takes_any:
                allowed = [known for known in parameters if known not in given]
                known = nearest(name, allowed) if allowed else "it takes none"
                raise ConfigError(f"{self.key}.{name}: {self.target} {NOT_TAKEN}; {known}")
            arguments[name] = read(hints.get(name, Any), value, f"{self.key}.{name}")
        for name, parameter in parameters.items():
            named = (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            required = parameter.default is parameter.empty and parameter.kind in named
            if required and name not in arguments:
                # A nested group of settings that is not given has all its defaults.
                if dataclasses.is_dataclass(hints.get(name)):
                    arguments[name] = read(hints[name], {}, f"{self.key}.{name}")
                else:
                    raise ConfigError(
                        f"{self.key}.{name}: {self.target} needs this argument; set {self.key}.{name}=..."
                    )
        return arguments

    def blueprint(self, plugins: Sequence[str], task: Task, **given: Any) -> Blueprint:
        """How to build the network of this class for a task, with plain arguments; else ConfigError, as `complete`."""
        shapes = {"input_shape": list(task.input_shape), "num_outputs": task.num_outputs}
        return Blueprint(self.target, self.complete(plugins, **shapes, **given))

    def needs(self, plugins: Sequence[str], name: str) -> bool:
        """Whether the target takes an argument of this name, for which neither it nor the config has a value."""
        parameter = inspect.signature(self._find(plugins)).parameters.get(name)
        return name not in self.arguments and parameter is not None and parameter.default is parameter.empty

    def _find(self, plugins: Sequence[str]) -> Any:
        module_name, _, name = self.target.rpartition(".")
        if module_name.partition(".")[0] not in OURS and module_name not in plugins:
            raise ConfigError(
                f"{self.key}._target_: refused to call {self.target!r}; allowed: classes of {', '.join(OURS)} and of "
                f"the modules named in plugins={list(plugins)}"
            )
        try:
            found = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{self.key}._target_: cannot find {self.target!r}: {error}") from None
        if not callable(found):
            raise ConfigError(f"{self.key}._target_: {self.target!r} is a {type(found).__name__}, not a class")
        owner = getattr(found, "__module__", None) or type(found).__module__
        if module_name not in plugins and owner.partition(".")[0] not in OURS:  # but imported there
            raise ConfigError(f"{self.key}._target_: {self.target!r} is none of ours, but of {owner}")
        return found


@dataclass(frozen=True)
class EnvConfig:
    """The environment.

    Args:
        id: Gymnasium's.
        task: What its children are trained on; None where every training is already known.
        path: Where its data are.
        isomorphic: With a budget, architectures that compute the same function count as one, whose first evaluation
            serves all.
    """

    id: str
    task: Part | None
    path: str | None = None
    isomorphic: bool = False


@dataclass(frozen=True)
class DeriveSettings:
    """What is chosen of all that was evaluated.

    Args:
        candidates: Of each strategy, scored again on all validation data (or listed, where nothing is trained).
        within_target: Choose among architectures that cost no more than `reward.target`, if there are any.
    """

    candidates: int = 96
    within_target: bool = False

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"derive.candidates must be at least 1, got {self.candidates}")


@dataclass(frozen=True)
class RankingSettings:
    """How the ranking by shared weights is checked: some architectures are trained on their own for a short time.

    They are as large as in the search, whatever `retrain.space` makes of the final networks.

    Args:
        finalists: The most promising of the strategy.
        random: Random architectures; 0 of both for no check.
        fidelity: The share of the final training's epochs. At 0.1 eight architectures cost 0.8 final trainings, of the
            eight that the epochs of a default run amount to.
        score: What their quality is taken from, `metric` or `loss`; see `StandaloneEvaluator`.
    """

    finalists: int = 4
    random: int = 4
    fidelity: float = 0.1
    score: StandaloneScore = "loss"

    def __post_init__(self) -> None:
        if self.finalists < 0 or not 0 <= self.random <= 1000 or not 0 < self.fidelity <= 1:
            raise ValueError(
                "ranking.finalists must be at least 0, ranking.random from 0 to 1000 and ranking.fidelity in "
                f"(0, 1], got {self.finalists}, {self.random} and {self.fidelity}"
            )


@dataclass(frozen=True)
class RetrainSettings:
    """Final training from scratch.

    Args:
        top: How many of the best candidates are trained; the best of them on validation data is the teacher.
        seeds: How often every final network is trained, with different seeds; the best on validation data is used.
        join_validation: Train on validation data too; then only the test column says how good a network is, and the
            first of several seeds is used.
        space: Arguments of the space in which final networks differ from those of the search, such as more channels.
        training: How.
    """

    training: TrainingSettings
    space: Mapping[str, Any] | None = None
    top: int = 1
    seeds: int = 1
    join_validation: bool = False

    def __post_init__(self) -> None:
        if self.top < 1 or self.seeds < 1:
            raise ValueError(f"retrain.top and retrain.seeds must be at least 1, got {self.top} and {self.seeds}")
        if self.join_validation and self.top > 1:
            raise ValueError(
                f"retrain.join_validation leaves no data to choose one of retrain.top={self.top} networks by; set one "
                "of the two back"
            )


@dataclass(frozen=True)
class DistillSettings:
    """The student.

    Args:
        budget: Its largest share of the teacher's multiply-accumulates.
        soft_targets: How it listens to the teacher.
        training: How it learns.
    """

    training: TrainingSettings
    soft_targets: SoftTargets
    budget: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.budget <= 1:
            raise ValueError(f"distill.budget is a share of the teacher's MACs in (0, 1], got {self.budget}")


@dataclass(frozen=True)
class BaselineSettings:
    """What stands beside the searched networks.

    Args:
        network: The hand-designed network's class, which takes `input_shape`, `num_outputs` and `width`; None for none.
        match: Its width is the one of like cost as the teacher: `macs` or `parameters`.
        learning_rates: The one to train it with is chosen on validation data.
        random: How many random architectures of like MACs as the teacher are trained in the same way.
    """

    network: Part | None
    match: Literal["macs", "parameters"] = "macs"
    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.1)
    random: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.random <= 1000:
            raise ValueError(f"baseline.random must be from 0 to 1000, got {self.random}")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"baseline.learning_rates needs rates above 0, got {list(self.learning_rates)}")


@dataclass(frozen=True)
class ExportSettings:
    """What the student is exported to.

    Args:
        formats: `onnx` needs the extra of that name, `torch` nothing; empty for neither.
    """

    formats: tuple[Format, ...] = FORMATS


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `seed` follows every random draw; `device` is `auto`, `cpu` or `cuda`.

    `analysis` is how much the report looks into beyond what the run computes anyway: `brief` for what takes a second or
    two, `full` for all of it.
    """

    UNREAD: ClassVar[tuple[str, ...]] = ()
    """Keys that this kind of run composes but does not read: an override of one is refused."""

    env: EnvConfig
    space: Part
    controller: Part
    evaluator: Part
    reward: Part
    search: SearchSettings
    rungs: RungsSettings
    derive: DeriveSettings
    ranking: RankingSettings
    retrain: RetrainSettings
    distill: DistillSettings
    baseline: BaselineSettings
    export: ExportSettings
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    analysis: Literal["brief", "full"] = "brief"
    name: str = ""
    output: str = "outputs"
    checkpoint_every_s: float = 30.0
    plugins: tuple[str, ...] = ()
    resume: str | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ValueError(f"threads must be from 1 to 1024 or null, got {self.threads}")
        if self.name in (".", "..") or "/" in self.name:
            raise ValueError(f"name is that of a folder in output, got {self.name!r}; for another place set output")
        if self.env.isomorphic and self.search.budget is None:
            raise ValueError(
                "env.isomorphic: which architectures count as one is a matter of the account, which is kept where "
                "there is a budget; set search.budget"
            )

    def build_strategy(self, space: SearchSpace, seed: int, relaxation: Relaxation | None) -> Strategy:
        """What searches a space (else ValueError)."""
        return check_strategy(self.controller.build(
            self.plugins, space=space, seed=seed, num_updates=self.search.rounds, relaxation=relaxation
        ))  # fmt: skip


@dataclass(frozen=True)
class ModelConfig:
    """What is made smaller: a network on disk, or a class of the user's.

    Args:
        path: A run folder, whose student is taken, or a network's own folder.
        part: Or the class.
        weights: A safetensors file of its weights; None to train it first.
    """

    path: str | None
    part: Part | None
    weights: str | None


@dataclass(frozen=True)
class Goal:
    """What the result must honor; None for what is free.

    Args:
        macs: The largest share of the original's multiply-accumulates.
        parameters: Of its parameters.
        bytes: Of its bytes on disk.
        latency_ms: The longest time of a batch of 64, in milliseconds.
        max_loss: What may be lost on validation data, in points: hundredths of accuracy, units of any other metric.
    """

    macs: float | None = None
    parameters: float | None = None
    bytes: float | None = None
    latency_ms: float | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        for name in ("macs", "parameters", "bytes"):
            share = getattr(self, name)
            if share is not None and share > 1:
                raise ValueError(f"goal.{name} is a share of the original's, and {share:g} is more than it has")
            if share is not None and not share > 0:
                raise ValueError(f"goal.{name} is a share of the original's in (0, 1], got {share:g}")
        if self.latency_ms is not None and not self.latency_ms > 0:
            raise ValueError(f"goal.latency_ms is a time above 0, got {self.latency_ms:g}")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise ValueError(f"goal.max_loss is a number of points of at least 0, got {self.max_loss:g}")


@dataclass(frozen=True, kw_only=True)
class DistillStep(DistillSettings):
    """A step in which the network learns from teachers; `budget` does not concern it.

    Args:
        teachers: `original`, `self` (the network as it stands), run folders (all of their teachers) or networks.
        features: What is taken from inside the first of them; None for nothing.
        fresh: Begin with fresh weights, not with those that the network has.
    """

    teachers: tuple[str, ...] = ("original",)
    features: FeatureTransfer | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teachers:
            raise ValueError("distill.teachers must name at least one, such as [original]")


@dataclass(frozen=True)
class QuantizeStep:
    """The step to 8-bit integers.

    Args:
        samples: Of the training data, from which the range of every value is taken.
    """

    samples: int = 512

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"quantize.samples must be at least 1, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig(RunConfig):
    """A model made smaller, step by step."""

    UNREAD = (
        "space", "evaluator", "rungs", "derive", "ranking", "baseline", "analysis", "retrain.top", "retrain.seeds",
        "retrain.space", "distill.budget", "search.sampler", "search.policy_share",
        "reward.target", "reward.unit",  # the goal's
    )  # fmt: skip

    model: ModelConfig
    goal: Goal
    steps: tuple[str, ...]
    prune: PruneSettings
    sparsify: SparsifySettings
    share: ShareSettings
    distill: DistillStep
    quantize: QuantizeStep

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.retrain.join_validation:
            raise ValueError("retrain.join_validation: steps are chosen by validation data, which must stay apart")


def read(kind: Any, value: Any, key: str) -> Any:
    """Turn plain data into an annotated type, checking it on the way.

    Raises:
        ConfigError: The value is not of that type, or a key is unknown or missing.
    """
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or isinstance(kind, typing.TypeVar):
        return value
    if kind is Part:
        return _read_part(value, key)
    if kind is ModelConfig:
        return _read_model(value, key)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, key)
    if origin in (typing.Union, types.UnionType):
        return _read_union(parameters, value, key)
    if origin is Literal:
        if value not in parameters or isinstance(value, bool):
            raise ConfigError(f"{key}: got {value!r}; {nearest(value, parameters)}")
        return value
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key}: expected a list such as [1,2], got {value!r}")
        item = parameters[0] if parameters else Any
        return (list if origin is list else tuple)(read(item, each, f"{key}[{i}]") for i, each in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key}: expected a group of keys such as {{channels: 64}}, got {value!r:.200}")
        return dict(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ConfigError(f"{key}: expected a number, got {value!r}")
        return float(value)
    names = {int: "an integer", bool: "true or false", str: "text"}
    if kind in names and type(value) is not kind:
        raise ConfigError(f"{key}: expected {names[kind]}, got {value!r}")
    return value


def _read_part(value: Any, key: str) -> Part:
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        raise ConfigError(f"{key}: expected a config with _target_, what is to be built, got {value!r:.200}")
    return Part(key, value["_target_"], {name: each for name, each in value.items() if name != "_target_"})


def _read_model(value: Any, key: str) -> ModelConfig:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: expected a group of keys, got {value!r:.200}")
    path, target, weights = (
        read(str | None, value.get(name), f"{key}.{name}") for name in ("path", "_target_", "weights")
    )
    rest = {name: each for name, each in value.items() if name not in ("path", "_target_", "weights")}
    if (path is None) == (target is None):
        given = "neither" if path is None else "both"
        raise ConfigError(f"{key}: give {key}.path=outputs/<run> or {key}._target_=mymodule.Net, got {given}")
    if path is not None and (rest or weights is not None):
        raise ConfigError(f"{key}.{next(iter(rest), 'weights')}: a network on disk has its own; leave it out")
    return ModelConfig(path, None if target is None else Part(key, target, rest), weights)


def _read_union(parameters: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in parameters:
        return None
    others = [kind for kind in parameters if kind is not type(None)]
    errors = []
    for kind in others:
        try:
            return read(kind, value, key)
        except ConfigError as error:
            errors.append(error)
    suffix = " (or null)" if type(None) in parameters else ""
    raise ConfigError(f"{errors[0]}{suffix}")


def _read_dataclass(kind: type, value: Any, key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key or 'config'}: expected a group of keys, got {value!r:.200}")
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}
    arguments = {}
    for name, each in value.items():
        inner = f"{key}.{name}" if key else str(name)
        if name not in fields:
            raise ConfigError(f"{inner}: unknown key; {nearest(name, fields)}")
        arguments[name] = read(hints[name], each, inner)
    for name, each in fields.items():
        if name not in arguments and each.default is each.default_factory is dataclasses.MISSING:
            inner = f"{key}.{name}" if key else name
            if dataclasses.is_dataclass(hints[name]):
                arguments[name] = read(hints[name], {}, inner)
            else:
                raise ConfigError(f"{inner}: this key is missing")
    try:
        return kind(**arguments)
    except ValueError as error:
        where = "" if str(error).startswith(key) else f"{key}: "  # settings that stand in several places lack it
        raise ConfigError(f"{where}{error}") from None
