"""How truly shared weights rank: the supernet of NAS-Bench-201 against the table of true accuracies.

    python benchmarks/ranking.py            # what is recorded; goes on where it was stopped
    python benchmarks/ranking.py NAME ...   # only these settings of SETTINGS

A small supernet learns CIFAR-10 (JPEG) at 16x16, then scores 1,000 random architectures on validation images; their
test accuracies after 200 epochs, from the table, are never seen by it. One run on each core, with one thread.
Beside it, on the same architectures: multiply-accumulates, parameters, two scores at initialization, and the mean of
the ranks by score and by MACs. Writes benchmarks/results/ranking.jsonl, a line per run, and ranking.md.
"""

from whole_runs import RESULTS, finish_lines, read_lines  # isort: skip

import os
import sys
import time
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata, spearmanr
from torch import nn

from child.cost import CostModel
from child.nasbench201 import NASBench201Space
from child.space import Genotype, derive_seed
from child.supernet import Score, Statistics, SupernetEvaluator
from child.task import Task
from child.training import TrainingSettings
from child.transforms import Augmentation
from conf.launch import compose
from controller.sampler import Base, TrainingSampler
from controller.strategy import RandomSearch
from envs.cifar10 import cifar10
from envs.table import TableEvaluator

DATA = os.environ["LUBAN_DATA"]
LINES = RESULTS / "ranking.jsonl"
CPU = torch.device("cpu")
NUM_ARCHITECTURES = 1_000
GOOD = 0.90  # the true accuracy above which the choice is made
RECIPE = TrainingSettings(batch_size=32, learning_rate=0.3, final_learning_rate=0.0, weight_decay=1e-3)
TOGETHER = 500
"""Images that are scored together: in batches as small as those of training the score is the same, and takes longer."""
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """How a supernet is made, trained and asked.

    Args:
        size: Height and width of the images.
        steps: Training steps.
        augmented: Whether images are shifted and mirrored in training.
        images: Validation images that an architecture is scored on.
        seeds: Runs.
    """

    size: int = 16
    steps: int = 8_000
    augmented: bool = False
    images: int = 2_000
    sampler: Base = "uniform"
    score: Score = "loss"
    statistics: Statistics = "batch"
    space: dict[str, Any] = field(
        default_factory=lambda: {
            "channels": 8, "cells_per_stage": 1, "reduction": "pooling", "share_edges": True,
        }
    )  # fmt: skip
    training: TrainingSettings = RECIPE
    seeds: int = 1


CHOSEN = Setting(seeds=3)
SETTINGS = {
    "chosen": CHOSEN,
    "accuracy, not loss": replace(CHOSEN, score="metric", seeds=1),
    "learning rate 0.05": replace(CHOSEN, training=replace(RECIPE, learning_rate=0.05), seeds=1),
    "learning rate 1": replace(CHOSEN, training=replace(RECIPE, learning_rate=1.0), seeds=1),
    "no weight decay": replace(CHOSEN, training=replace(RECIPE, weight_decay=0.0), seeds=1),
    "augmented": replace(CHOSEN, augmented=True, seeds=1),
    "edges with convolutions of their own": replace(CHOSEN, space={**CHOSEN.space, "share_edges": False}, seeds=1),
    "residual reductions": replace(CHOSEN, space={**CHOSEN.space, "reduction": "residual"}, seeds=1),
    "fair": replace(CHOSEN, sampler="fair", seeds=1),
    "a quarter of the steps": replace(CHOSEN, steps=CHOSEN.steps // 4, seeds=1),
    "label smoothing 0.1": replace(CHOSEN, training=replace(RECIPE, label_smoothing=0.1), seeds=1),
}


def main() -> None:
    names = sys.argv[1:] or list(SETTINGS)
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        sys.exit(f"there is no setting {unknown[0]!r}; there are: {', '.join(SETTINGS)}")
    known = {(line["setting"], line["seed"]) for line in read_lines(LINES)}
    wanted = [(name, seed) for name in names for seed in range(SETTINGS[name].seeds) if (name, seed) not in known]
    for line in finish_lines(LINES, run, wanted):
        print(f"{line['setting']}, seed {line['seed']}: tau {line['score']['tau'][0]:.3f}, above 90% "
              f"{line['score']['tau above 90%'][0]:.3f}, {line['seconds']:.0f} s", flush=True)  # fmt: skip
    text = table(read_lines(LINES))
    (RESULTS / "ranking.md").write_text(text)
    print(text)


@cache
def truth() -> TableEvaluator:
    """The table: its report is the accuracy after 200 epochs, its costs are the published MACs."""
    return compose("env=nasbench201").evaluator.build((), space=NASBench201Space())


def run(job: tuple[str, int]) -> dict[str, Any]:
    """Train one supernet, score architectures, and compare."""
    name, seed = job
    setting = SETTINGS[name]
    torch.set_num_threads(1)
    augmentation = Augmentation(shift=2, flip=True) if setting.augmented else None
    task = cifar10(f"{DATA}/cifar10_jpeg.tar.xz", 0, augmentation=augmentation, size=setting.size)
    space = NASBench201Space(task.input_shape, task.num_outputs, **setting.space)
    cost = CostModel(space, "macs", task.input_shape, CPU)
    evaluator = SupernetEvaluator(
        space, task, cost, setting.training, setting.steps, setting.statistics, 4, seed, CPU, setting.score
    )
    sampler = TrainingSampler(setting.sampler, RandomSearch(space, seed), seed)
    started = time.monotonic()
    evaluator.improve(sampler, setting.steps)
    trained = time.monotonic()
    evaluator.settings = replace(setting.training, batch_size=TOGETHER)
    draw = np.random.default_rng(derive_seed(seed, "architectures"))
    genotypes = list(dict.fromkeys(space.sample(draw, 2 * NUM_ARCHITECTURES)))[:NUM_ARCHITECTURES]
    fidelity = setting.images / len(task.validation)
    score = np.array([each.quality for each in evaluator.evaluate(genotypes, fidelity, seed)])
    finished = time.monotonic()
    true = np.array([truth().true_quality(genotype) for genotype in genotypes])
    macs = np.array([truth().cost(genotype) for genotype in genotypes])
    predictors = {
        "score": score,
        "MACs": macs,
        "score and MACs": rankdata(score) + rankdata(macs),
        "parameters": np.array([float(space.parameters(genotype)) for genotype in genotypes]),
    }
    if name == "chosen":
        predictors |= at_initialization(space, task, genotypes, seed)
    return {
        "setting": name,
        "seed": seed,
        "training seconds": trained - started,
        "scoring seconds": finished - trained,
        "seconds": finished - started,
        **{title: compare(values, true, macs, seed) for title, values in predictors.items()},
    }


def compare(values: Values, true: Values, macs: Values, seed: int) -> dict[str, list[float]]:
    """Each measure of agreement with its 95% bootstrap interval over the architectures."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    whole = measures(values, true, macs)
    draws = [measures(*(each[rows] for each in (values, true, macs)))
             for rows in rng.integers(len(true), size=(200, len(true)))]  # fmt: skip
    return {
        key: [value, *np.nanquantile([draw[key] for draw in draws], [0.025, 0.975]).tolist()]
        for key, value in whole.items()
    }


def measures(values: Values, true: Values, macs: Values) -> dict[str, float]:
    """Kendall's tau of all, of the good, and within MACs deciles; Spearman's rho; true accuracy of the best."""
    good = true > GOOD
    decile = np.searchsorted(np.quantile(macs, np.linspace(0.1, 0.9, 9)), macs, side="right")
    within = [tau(values[decile == number], true[decile == number]) for number in range(10)]
    num = max(1, len(true) // 20)
    best, really = np.argsort(-values, kind="stable")[:num], np.argsort(-true, kind="stable")[:num]
    return {
        "tau": tau(values, true),
        "tau above 90%": tau(values[good], true[good]),
        "tau within MACs deciles": float(np.nanmean(within)) if not np.isnan(within).all() else float("nan"),
        "rho": float(np.asarray(spearmanr(values, true))[0]),
        "precision of the top 5%": len(np.intersect1d(best, really)) / num,
        "true accuracy of the first": float(true[best[0]]),
    }


def tau(values: Values, true: Values) -> float:
    return float(np.asarray(kendalltau(values, true))[0]) if len(values) > 1 and np.ptp(values) > 0 else float("nan")


def at_initialization(space: NASBench201Space, task: Task, genotypes: list[Genotype], seed: int) -> dict[str, Values]:
    """What two scores of untrained networks say: naswot (Mellor et al. 2021) and synflow (Tanaka et al. 2020)."""
    images = task.preprocessing(task.train.inputs[:64])
    found: dict[str, list[float]] = {"naswot": [], "synflow": []}
    for genotype in genotypes:
        torch.manual_seed(derive_seed(seed, "initialization"))
        network = space.network(genotype)
        found["naswot"].append(naswot(network, images))
        found["synflow"].append(synflow(network, images.shape[1:]))
    return {name: np.array(values) for name, values in found.items()}


@torch.no_grad()
def naswot(network: nn.Module, images: torch.Tensor) -> float:
    """Log-determinant of how many rectified units two images have in the same state, summed over layers."""
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)

    def count(_module: nn.Module, _inputs: Any, outputs: torch.Tensor) -> None:
        active = (outputs.flatten(1) > 0).double()
        kernel.add_(active @ active.T + (1 - active) @ (1 - active).T)

    hooks = [part.register_forward_hook(count) for part in network.modules() if isinstance(part, nn.ReLU)]
    network.train()(images)
    for hook in hooks:
        hook.remove()
    return float(torch.linalg.slogdet(kernel).logabsdet) if hooks else float("-1e9")


def synflow(network: nn.Module, shape: torch.Size) -> float:
    """Sum over weights of weight times gradient, of the network with absolute weights, on an image of ones."""
    for parameter in network.parameters():
        parameter.data.abs_()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.forward = lambda x: x  # type: ignore[method-assign] (as in the published measurements)
    network.double().eval()
    network(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
    total = sum(float((p.detach() * p.grad).sum()) for p in network.parameters() if p.grad is not None)
    return float(np.log1p(total))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the chosen setting and what stands beside it, then what each change of it does."""
    chosen = [row for row in rows if row["setting"] == "chosen"]
    text = [
        "# How truly shared weights rank",
        "",
        "`python benchmarks/ranking.py`: 1,000 random architectures of NAS-Bench-201 for each seed, scored by a",
        "supernet that learned CIFAR-10 (JPEG), against their published test accuracies. Mean over the seeds; in",
        "brackets the lowest and highest end of the seeds' 95% bootstrap intervals over the architectures.",
        "",
        f"Seeds: {len(chosen)}. Training took {np.mean([row['training seconds'] for row in chosen]):.0f} s, scoring "
        f"{np.mean([row['scoring seconds'] for row in chosen]):.0f} s of one thread.",
        "",
    ]
    keys = list(chosen[0]["score"])
    titles = [title for title, value in chosen[0].items() if isinstance(value, dict)]
    text += [f"| ranked by | {' | '.join(keys)} |", f"|---|{'---|' * len(keys)}"]
    for title in titles:
        cells = []
        for key in keys:
            low, high = min(row[title][key][1] for row in chosen), max(row[title][key][2] for row in chosen)
            cells.append(f"{np.mean([row[title][key][0] for row in chosen]):.3f} ({low:.3f} to {high:.3f})")
        text.append(f"| {title} | {' | '.join(cells)} |")
    text += ["", "## What else was tried", "", "One run each, with the seed 0, against the chosen setting's same seed.",
             "", f"| setting | {' | '.join(keys)} | seconds |", f"|---|{'---|' * len(keys)}---|"]  # fmt: skip
    for row in [row for row in rows if row["seed"] == 0]:
        cells = [f"{row['score'][key][0]:.3f}" for key in keys]
        text.append(f"| {row['setting']} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    return "\n".join([*text, ""])


if __name__ == "__main__":
    main()
