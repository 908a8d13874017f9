"""How truly the shared weights of a default run rank, in every space but that of the table, and what would rank better.

    python benchmarks/default_ranking.py            # all SPACES; goes on where it was stopped
    python benchmarks/default_ranking.py macro ...  # only these

Random architectures are trained on their own twice, as a run trains its finalists but for a shorter time, and judged by
the mean quality, from the validation loss; nothing is tested. Beside them stand the scores of shared weights that were
trained as in a default run, for as many steps, but never on the policy's architectures; and those of shared weights
with one setting changed. Images are CIFAR-10's, scaled down: on the digits two trainings of a network differ by more
than two networks do (their orders agree with tau 0.28, 0.21 and 0.13 in macro, micro and mobile), and hardly anything
can rank them. One run on each core, with one thread. Writes benchmarks/results/default_ranking.jsonl, a line per run,
and default_ranking.md.
"""

from whole_runs import RESULTS, finish_lines, names_given, read_lines, with_error  # isort: skip

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.ranking import architectures, tau
from child.cost import CostModel
from child.space import Evaluator, NetworkSpace, Sampler
from child.standalone import StandaloneEvaluator
from conf.launch import compose
from controller.sampler import TrainingSampler
from controller.strategy import RandomSearch
from main import build_parts

LINES = RESULTS / "default_ranking.jsonl"
CPU = torch.device("cpu")
SEEDS = range(3)
NUM_ARCHITECTURES = 30
IMAGES = ["env=cifar10", "env.task.size=16", "env.task.num_train=10000", "env.task.validation_share=0.2"]
SPACES = {
    "macro": (IMAGES, 0.04),
    "micro": ([*IMAGES, "space=micro"], 0.04),
    "mobile": ([*IMAGES, "space=mobile"], 0.04),
    "mlp": (["env=diabetes"], 1.0),
    "recurrent": (["env=tiny_shakespeare"], 0.1),
}
"""Overrides of the default run, and what share of the final training each architecture gets: two epochs of images."""


@dataclass(frozen=True)
class Change:
    """What differs from the shared weights of a default run.

    Args:
        training: Overrides of the config that change the weights.
        rate: Times the learning rate.
        score: Overrides that change what is asked of the weights.
        spaces: Where it can be.
    """

    training: tuple[str, ...] = ()
    rate: float = 1.0
    score: tuple[str, ...] = ()
    spaces: tuple[str, ...] = tuple(SPACES)


CHANGES = {
    "default": Change(),
    "accuracy": Change(score=("evaluator.score=metric",), spaces=("macro", "micro", "mobile")),
    "combined": Change(score=("evaluator.score=combined",), spaces=("macro", "micro")),
    "recalibrated": Change(score=("evaluator.statistics=recalibrated",)),
    # The cells of `recurrent` learn for too few steps.
    "three moments": Change(("evaluator.snapshots=3",), spaces=("macro", "micro", "mobile", "mlp")),
    "uniform": Change(("search.sampler=uniform",)),
    "sandwich": Change(("search.sampler=sandwich",), spaces=("mobile", "mlp")),
    "twice the rate": Change(rate=2.0),
    "half the rate": Change(rate=0.5),
}

EXPLORED = """## What else was tried

Shared weights of three seeds, each compared with the 90 architectures of all three seeds.

- Fair paths with every depth equally often, as they were before: macro 0.15 where it is 0.27 now (-0.118 ± 0.009),
  mobile 0.14 where it is 0.19 (-0.056 ± 0.023), mlp 0.10 where it is 0.05 (+0.05 ± 0.09). Equal depths trained the last
  layer of macro in one path of five. Uniform paths do so too: 0.10 in macro.
- How much is noise: with equal depths the shared weights of mobile had 0.27 on its own 30 architectures of each seed
  when they were trained on another machine, and 0.15 on the one of this record. What fair paths do not touch (trainings
  alone; mobile and mlp on uniform and sandwich paths) is of that earlier record.
- In macro with these equal depths, one seed, whose tau was 0.19 and whose loss 1.95: clipped at 5 0.19; at a quarter of
  the rate 0.19; at twice the rate with four times the weight decay 0.18; with twelve times the weight decay 0.13; three
  times as many batches 0.13, at a loss of 1.80; twice as many of half the size 0.06; four paths a batch, each on a
  quarter of it, 0.09; a normalization of each operation's own 0.02; a first convolution common to the operations of a
  layer -0.08, at a loss of 1.86; convolutions common to all layers 0.17; a linear classifier fitted to each
  architecture's features -0.04. What lowers the loss does not rank better for it.
- In macro every path trained at all its smaller depths too, in the same pass (half of the loss theirs): 0.17 where
  today's paths have 0.27, though the loss fell from 1.94 to 1.87; each depth weighted alike, two seeds, 0.05 at
  1.84.
- What today's depths cost: a shallow network is scored too low. On the digits (macro, two seeds, 40 random
  architectures, a third of a final training alone) those of two layers have a quality of 0.93 alone, as those of
  six have, but 0.70 against 0.90 by shared weights; with half of the paths at the largest depth 0.76 against 0.87,
  with equal depths 0.84 against 0.85, and trained at all smaller depths too 0.87 against 0.92. None of the four
  orders them there (tau -0.03 to 0.06). On CIFAR-10 deeper ones are truly better, and in good part it is this bias
  that ranks: among those of one depth today's paths have a tau of 0.09 (three seeds), and those trained at all
  smaller depths too 0.03.
"""


def main() -> None:
    names = names_given("space", SPACES)
    known = {(line["space"], line["seed"]) for line in read_lines(LINES)}
    wanted = [(name, seed) for name in names for seed in SEEDS if (name, seed) not in known]
    for line in finish_lines(LINES, run, wanted):
        taus = ", ".join(f"{change} {value:.2f}" for change, value in line["tau"].items())
        print(f"{line['space']}, seed {line['seed']}: {taus}; {line['seconds']:.0f} s", flush=True)
    text = table(read_lines(LINES))
    (RESULTS / "default_ranking.md").write_text(text)
    print(text)


def run(job: tuple[str, int]) -> dict[str, Any]:
    """Train architectures on their own, and shared weights in every way; compare."""
    name, seed = job
    torch.set_num_threads(1)
    started = time.monotonic()
    overrides, fidelity = SPACES[name]
    config = compose(*overrides, f"seed={seed}", "device=cpu")
    parts = build_parts(config)
    space, task = parts.space, parts.task
    assert task is not None and isinstance(space, NetworkSpace)
    genotypes = architectures(space, NUM_ARCHITECTURES, seed)
    cost = CostModel(space, "macs", task.input_shape, CPU)

    def trained_alone(seed: int) -> np.ndarray[Any, Any]:
        alone = StandaloneEvaluator(space, task, cost, config.retrain.training, 1, seed, CPU, score="loss")
        return np.array([each.quality for each in alone.evaluate(genotypes, fidelity, seed)])

    once, again = trained_alone(seed), trained_alone(seed + 1000)
    true = (once + again) / 2
    found = {"the other training": tau(once, again)}
    macs = np.array([cost(genotype) for genotype in genotypes])
    if np.ptp(macs):  # else all cost the same, which ranks nothing
        found["MACs"] = tau(macs, true)
    trained: dict[tuple[tuple[str, ...], float], dict[str, Any]] = {}
    for title, change in CHANGES.items():
        if name not in change.spaces:
            continue
        evaluator, sampler, num_batches = shared_weights([*overrides, f"seed={seed}"], change)
        key = change.training, change.rate
        if key in trained:
            evaluator.load_state_dict(trained[key])
        else:
            evaluator.improve(sampler, num_batches)
            trained[key] = evaluator.state_dict()
        score = np.array([each.quality for each in evaluator.evaluate(genotypes, 1.0, seed)])
        found[title] = tau(score, true)
    return {"space": name, "seed": seed, "tau": found, "true": true.tolist(), "seconds": time.monotonic() - started}


def shared_weights(overrides: Sequence[str], change: Change) -> tuple[Evaluator, Sampler, int]:
    """Untrained, what to train them on, and for how many batches: as many as in a whole run."""
    config = compose(*overrides, *change.training, *change.score, "device=cpu")
    config.evaluator.arguments["settings"]["learning_rate"] *= change.rate
    parts = build_parts(config)
    sampler = TrainingSampler(config.search.sampler, RandomSearch(parts.space, config.seed), config.seed)
    return parts.cheap, sampler, config.search.num_batches


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the mean tau of each space, a line for each change, and how much it gains or loses."""
    text = [
        "# How truly the shared weights of default runs rank",
        "",
        f"`python benchmarks/default_ranking.py`: {NUM_ARCHITECTURES} random architectures for each seed, trained on",
        "their own twice for a part of a final training and judged by the mean quality, from the loss; Kendall's",
        "tau of what shared weights say of them, mean of the seeds; in brackets by how much a change differs from the",
        "default, with the standard error of the paired differences. The other training is how far the two agree.",
        "Images are CIFAR-10's at 16x16, 8,000 of them for training.",
        "",
    ]
    names = [name for name in SPACES if any(row["space"] == name for row in rows)]
    counts = ", ".join(f"{name} {sum(row['space'] == name for row in rows)}" for name in names)
    text += [f"Seeds: {counts}.", "", f"| shared weights | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for title in ("the other training", "MACs", *CHANGES):
        cells = []
        for name in names:
            mine = [row["tau"] for row in rows if row["space"] == name and title in row["tau"]]
            if not mine:
                cells.append("")
                continue
            gains = [each[title] - each["default"] for each in mine]
            compared = f" ({with_error(gains, 2)})" if len(mine) > 1 and title != "default" else ""
            cells.append(f"{np.mean([each[title] for each in mine]):.2f}{compared}")
        text.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*text, "", EXPLORED])


if __name__ == "__main__":
    main()
