"""How truly the shared weights of a default run rank, in every space but that of the table, and what would rank better.

    python benchmarks/default_ranking.py            # all SPACES; goes on where it was stopped
    python benchmarks/default_ranking.py macro ...  # only these

Random architectures are trained on their own, as a run trains its finalists but for a shorter time, and judged on
validation data; nothing is tested. Beside them stand the scores of shared weights that were trained as in a default
run, for as many steps, but never on the policy's architectures; and those of shared weights with one setting changed.
One run on each core, with one thread. Writes benchmarks/results/default_ranking.jsonl, a line per run, and
default_ranking.md.
"""

from whole_runs import RESULTS, finish_lines, names_given, read_lines, with_error  # isort: skip

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.ranking import Values, architectures, tau
from child.cost import CostModel
from child.space import Genotype, NetworkSpace
from child.standalone import StandaloneEvaluator
from conf.launch import compose
from controller.sampler import TrainingSampler
from controller.strategy import RandomSearch
from main import build_parts

LINES = RESULTS / "default_ranking.jsonl"
CPU = torch.device("cpu")
SEEDS = range(3)
NUM_ARCHITECTURES = 40
SPACES = {
    "macro": (["env=digits"], 0.4),
    "micro": (["env=digits", "space=micro"], 0.4),
    "mobile": (["env=digits", "space=mobile", "space.num_reductions=2"], 0.4),
    "mlp": (["env=diabetes"], 1.0),
    "recurrent": (["env=tiny_shakespeare"], 0.1),
}
"""Overrides of the default run, and the share of the final training that each architecture gets."""


@dataclass(frozen=True)
class Change:
    """What differs from the shared weights of a default run.

    Args:
        overrides: Of the config.
        rate: Times the learning rate.
        spaces: Where it can be.
    """

    overrides: tuple[str, ...] = ("evaluator.score=loss",)
    rate: float = 1.0
    spaces: tuple[str, ...] = tuple(SPACES)


LOSS = Change()
CHANGES = {
    "default": Change(()),
    "loss": LOSS,
    "combined": Change(("evaluator.score=combined",), spaces=("macro", "micro")),
    "recalibrated": replace(LOSS, overrides=(*LOSS.overrides, "evaluator.statistics=recalibrated")),
    "three moments": replace(LOSS, overrides=(*LOSS.overrides, "evaluator.snapshots=3")),
    "uniform": replace(LOSS, overrides=(*LOSS.overrides, "search.sampler=uniform")),
    "sandwich": Change((*LOSS.overrides, "search.sampler=sandwich"), spaces=("mobile", "mlp")),
    "twice the rate": replace(LOSS, rate=2.0),
    "half the rate": replace(LOSS, rate=0.5),
}


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
    assert parts.task is not None and isinstance(parts.space, NetworkSpace)
    genotypes = architectures(parts.space, NUM_ARCHITECTURES, seed)
    cost = CostModel(parts.space, "macs", parts.task.input_shape, CPU)
    alone = StandaloneEvaluator(parts.space, parts.task, cost, config.retrain.training, 1, seed, CPU)
    true = np.array([each.quality for each in alone.evaluate(genotypes, fidelity, seed)])
    found = {"MACs": tau(np.array([cost(genotype) for genotype in genotypes]), true)}
    found |= {
        title: tau(scores(genotypes, [*overrides, *change.overrides], change.rate, seed), true)
        for title, change in CHANGES.items() if name in change.spaces
    }  # fmt: skip
    return {"space": name, "seed": seed, "tau": found, "true": true.tolist(), "seconds": time.monotonic() - started}


def scores(genotypes: Sequence[Genotype], overrides: Sequence[str], rate: float, seed: int) -> Values:
    """What shared weights say of architectures after as many steps as a whole run trains them."""
    config = compose(*overrides, f"seed={seed}", "device=cpu")
    settings = config.evaluator.arguments["settings"]
    settings["learning_rate"] *= rate
    parts = build_parts(config)
    sampler = TrainingSampler(config.search.sampler, RandomSearch(parts.space, seed), seed)
    parts.evaluator.improve(sampler, config.search.num_batches)
    return np.array([each.quality for each in parts.evaluator.evaluate(genotypes, 1.0, seed)])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the mean tau of each space, a line for each change, and how much it gains or loses."""
    text = [
        "# How truly the shared weights of default runs rank",
        "",
        f"`python benchmarks/default_ranking.py`: {NUM_ARCHITECTURES} random architectures for each seed, trained on",
        "their own for a part of a final training and judged on validation data; Kendall's tau of what shared weights",
        "say of them, mean of the seeds. All but the default are scored by their loss; in brackets by how much each",
        "differs from that, with the standard error of the paired differences.",
        "",
    ]
    names = [name for name in SPACES if any(row["space"] == name for row in rows)]
    counts = ", ".join(f"{name} {sum(row['space'] == name for row in rows)}" for name in names)
    text += [f"Seeds: {counts}.", "", f"| shared weights | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for title in ("MACs", *CHANGES):
        cells = []
        for name in names:
            mine = [row["tau"] for row in rows if row["space"] == name and title in row["tau"]]
            if not mine:
                cells.append("")
                continue
            gains = [each[title] - each["loss"] for each in mine]
            compared = f" ({with_error(gains, 2)})" if len(mine) > 1 and title != "loss" else ""
            cells.append(f"{np.mean([each[title] for each in mine]):.2f}{compared}")
        text.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*text, ""])


if __name__ == "__main__":
    main()
