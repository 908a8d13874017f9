"""What many tests share: small spaces, an evaluator that knows the best architecture, and a small task."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hypothesis import Phase, settings
from numpy.typing import NDArray
from torch import Tensor

from child.macro import MacroSpace
from child.space import Decision, Evaluation, Genotype, Improvement, Relaxation, Sampler, SearchSpace
from child.task import Task
from child.training import prepare_process
from conf.launch import compose as compose_config
from conf.launch import resolve
from conf.schema import RunConfig
from controller.policy import Distribution, LSTMPolicy
from controller.strategy import Strategy
from envs.arrays import array_task

# The same examples everywhere, however slow the machine. To explain a failure every line is traced, which takes hours
# where a test builds networks.
settings.register_profile("luban", deadline=None, derandomize=True, database=None, phases=set(Phase) - {Phase.explain})
settings.load_profile("luban")

# A whole run in seconds: a few steps of everything.
TINY = (
    "device=cpu",
    "threads=1",
    "space.channels=8",
    "space.num_layers=3",
    "space.min_layers=2",
    "search.rounds=2",
    "search.episodes=3",
    "search.warmup_batches=3",
    "search.batches_per_round=1",
    "derive.candidates=3",
    "ranking.finalists=2",
    "ranking.random=3",
    "retrain.training.epochs=1",
    "distill.training.epochs=1",
    "baseline.learning_rates=[0.05]",
    "export.formats=[]",
)

# Likewise of making a model smaller.
TINY_STEPS = (
    "device=cpu",
    "threads=1",
    "retrain.training.epochs=2",
    "prune.training.epochs=1",
    "prune.multiple=1",
    "sparsify.training.epochs=1",
    "sparsify.rounds=2",
    "share.training.epochs=1",
    "distill.training.epochs=1",
    "search.rounds=3",
    "search.fidelity=0.3",
    "export.formats=[]",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: long files at the end would leave a core without work."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    prepare_process()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded data of tests are kept apart from the user's; commands that tests run inherit this."""
    os.environ["LUBAN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


class FlatSpace(SearchSpace):
    """Decisions that do not depend on each other, all of one width: a NAS-Bench-201 without its table."""

    name = "flat"

    def __init__(self, num_decisions: int, num_choices: int):
        labels = tuple(f"op{choice}" for choice in range(num_choices))
        self.decisions = tuple(Decision(f"edge{i}", "operation", labels, i) for i in range(num_decisions))


class CellSpace(SearchSpace):
    """A space with every kind of decision that the policy knows: depth, operation, skip, input and width."""

    name = "cell"
    masks_depend_on_prefix = True

    def __init__(self) -> None:
        self.decisions = (
            Decision("nodes", "depth", ("2", "3")),
            Decision("n0.op", "operation", ("a", "b", "c"), 0),
            Decision("n1.op", "operation", ("a", "b", "c"), 1),
            Decision("n1.skip0", "skip", ("no", "yes"), 1, (0,)),
            Decision("n2.op", "operation", ("a", "b", "c"), 2),
            Decision("n2.skip0", "skip", ("no", "yes"), 2, (0,)),
            Decision("n2.skip1", "skip", ("no", "yes"), 2, (1,)),
            Decision("out.width", "width", ("8", "16"), 3),
            Decision("out.input", "input", ("n0", "n1"), 3, (0, 1)),
        )

    def mask(self, prefixes: NDArray[np.int64]) -> NDArray[np.int8]:
        masks = super().mask(prefixes)
        if self.decisions[prefixes.shape[1]].node == 2:
            masks = masks.copy()
            masks[prefixes[:, 0] == 0, 1:] = 0
        return masks


class TwoOperations(MacroSpace):
    """The macro space cut down to two operations, so that all its architectures can be counted."""

    operations = ("conv3", "maxpool3")


def tiny_macro(num_layers: int = 3, min_layers: int = 1, **arguments: Any) -> MacroSpace:
    return MacroSpace((1, 8, 8), 3, 4, num_layers, min_layers, min(1, num_layers - 1), 0.1, **arguments)


def two_operations(num_layers: int = 3) -> MacroSpace:
    return TwoOperations((1, 8, 8), 3, 4, num_layers, 1, 0, 0.1)


def every_genotype(space: SearchSpace) -> list[Genotype]:
    """All architectures of a space, by walking through its masks."""
    prefixes = np.zeros((1, 0), np.int64)
    for _ in space.decisions:
        rows, choices = np.nonzero(space.mask(prefixes))
        prefixes = np.concatenate([prefixes[rows], choices[:, None]], axis=1)
    return [Genotype(space.name, tuple(row)) for row in prefixes.tolist()]


class TargetEvaluator:
    """Knows the best architecture: quality is the share of decisions that agree with it, cost 1 plus all tokens.

    With a space, a decision agrees only where it is open in both or in neither. Without, the closed decisions of a
    shallow architecture would agree with a deep target by their zeros, and the space would lead astray.
    """

    def __init__(self, target: Genotype, space: SearchSpace | None = None):
        self.target, self.space = target, space
        self.calls: list[tuple[list[Genotype], float, int]] = []
        self.num_improved = 0

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        self.calls.append((list(genotypes), fidelity, seed))
        tokens = np.array([genotype.tokens for genotype in genotypes])
        agree = tokens == np.array(self.target.tokens)
        if self.space is not None:
            opened, wanted = (self.space.masks(t).sum(axis=2) > 1 for t in (tokens, np.array([self.target.tokens])))
            agree &= opened == wanted
        qualities = agree.mean(axis=1).tolist()
        costs = (1.0 + tokens.sum(axis=1)).tolist()
        return [
            Evaluation(genotype, quality, cost, fidelity, seed)
            for genotype, quality, cost in zip(genotypes, qualities, costs, strict=True)
        ]

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        self.num_improved += num_batches
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state


class SeededEvaluator(TargetEvaluator):
    """Its qualities depend on the seed too, as those of a noisy validation batch do."""

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        noise = np.random.default_rng(seed).random() / 10
        found = super().evaluate(genotypes, fidelity, seed)
        return [Evaluation(e.genotype, e.quality * 0.9 + noise, e.cost, fidelity, seed) for e in found]


class TargetRelaxation:
    """Knows the best architecture: the loss is the share of the choice weights that lies elsewhere.

    Every choice that agrees with it counts as a skip-connection.
    """

    def __init__(self, target: Genotype):
        self.target = torch.tensor(target.tokens)
        self.calls: list[tuple[int, bool]] = []

    def loss(self, choices: Tensor, step: int, unrolled: bool = False) -> Tensor:
        self.calls.append((step, unrolled))
        return 1 - choices.gather(1, self.target[:, None]).mean()

    def num_skips(self, genotype: Genotype) -> int:
        return int((torch.tensor(genotype.tokens) == self.target).sum())


def build_controller(name: str, space: SearchSpace, num_updates: int, relaxation: Relaxation | None = None) -> Strategy:
    """The strategy of a config file; one that learns by gradients is handed the relaxation, or one that knows."""
    known = relaxation or TargetRelaxation(space.sample(np.random.default_rng(0), 1)[0])
    given = {"space": space, "seed": 0, "num_updates": num_updates, "relaxation": known}
    return compose_config(f"controller={name}").controller.build((), **given)


def readme_files() -> dict[str, str]:
    """The files of a user's own folder, by their paths, as the README has them."""
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\w+\n((?:# @package.*?\n)?# (mine/\S+)\n.*?)```", text, re.DOTALL)
    files = {path: block for block, path in blocks}
    assert len(files) == len(blocks) > 0
    return files


class _ThroughPolicy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chosen: Distribution, weights: Tensor) -> tuple[Tensor, ...]:
        ctx.chosen = chosen
        return tuple(each.detach().clone() for each in (chosen.log_probability, chosen.entropy, chosen.skip_divergence))

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, torch.from_numpy(ctx.chosen.back(*(each.numpy() for each in by)))


def through(policy: LSTMPolicy, tokens: np.ndarray, masks: np.ndarray) -> Distribution:
    """What the policy thinks, with its way back as a node of autograd's, so that autograd and its checks can use it."""
    chosen = policy.evaluate(tokens, masks, 0.4)
    log_probability, entropy, divergence = _ThroughPolicy.apply(chosen, policy.weights)  # type: ignore[misc]
    return replace(chosen, log_probability=log_probability, entropy=entropy, skip_divergence=divergence)


class Known:
    """The helpers above by one name, so that a test file can ask for them all with one fixture."""

    TINY = TINY
    TINY_STEPS = TINY_STEPS
    readme_files = staticmethod(readme_files)
    FlatSpace = FlatSpace
    CellSpace = CellSpace
    TargetEvaluator = TargetEvaluator
    SeededEvaluator = SeededEvaluator
    TargetRelaxation = TargetRelaxation
    build_controller = staticmethod(build_controller)
    through = staticmethod(through)
    tiny_macro = staticmethod(tiny_macro)
    two_operations = staticmethod(two_operations)
    every_genotype = staticmethod(every_genotype)


@pytest.fixture(scope="session")
def known() -> type[Known]:
    return Known


@pytest.fixture(scope="session")
def small_task() -> Task:
    """Three classes of noisy 8x8 images: learnable, but not at once."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    patterns = rng.integers(60, 200, (3, 8, 8))
    images = np.clip(patterns[labels] + rng.normal(0, 60, (120, 8, 8)), 0, 255).astype(np.uint8)
    return array_task("small", images, labels, seed=0)


@pytest.fixture(scope="session")
def compose_text() -> Callable[..., tuple[RunConfig, str]]:
    """The typed config of some overrides and the text of its `config.yaml`, as `launch` hands them to `main`."""

    def compose(*overrides: str, kind: Any = RunConfig, name: str = "config") -> tuple[Any, str]:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            return resolve(hydra.compose(name, list(overrides)), list(overrides), kind)

    return compose


@pytest.fixture(scope="session")
def root() -> Path:
    """The clone."""
    return Path(__file__).resolve().parents[1]
