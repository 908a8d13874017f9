"""Fronts of quality and cost under a budget: those of a search beside those of random search, by hypervolume.

    python benchmarks/fronts.py            # goes on where it was stopped

Two spaces, three seeds, the reward of the default run and shared weights; random search has the same shared weights and
as many evaluations, and as many of its architectures are scored again on all validation data. Cells of nasbench201
learn CIFAR-10 (JPEG) at 16x16, so that their true accuracy can be looked up afterwards; networks of mobile learn 10,000
images of Fashion-MNIST. The hypervolume is the share of the box from no quality to all, from no cost to the target,
that a front dominates; as a front that begins at a lower cost has more of it, however good the other is, beside it
stands the share of the box that begins where both fronts have begun. Two runs at a time, each with one thread, in
outputs/benchmark-fronts/<space><seed>. Further arguments are overrides for every run. Writes
benchmarks/results/fronts.md and fronts.json, of the runs that are finished.
"""

from whole_runs import finish, folder_of, is_finished, with_error, write  # isort: skip

import json
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np

from benchmarks.ranking import truth
from benchmarks.shared_search import RANKED, SETTINGS, UNTRAINED
from child.nasbench201 import NASBench201Space
from logbook.analysis import hypervolume

folder = partial(folder_of, "fronts")
SEEDS = range(3)
TARGETS = {"nasbench201": 1e6, "mobile": 7e6}
"""Four fifths of random architectures, and half, cost less."""
RUNS = {
    "nasbench201": [*SETTINGS, *RANKED, "controller=model_based", "reward=linear"],
    "mobile": ["env=fashion_mnist", "env.task.num_train=10000", "space=mobile", *UNTRAINED],
}


def main() -> None:
    finish((f"{space}, seed {seed}", folder(space, seed),
            [*overrides, f"reward.target={TARGETS[space]}", "derive.candidates=48", f"seed={seed}"])
           for space, overrides in RUNS.items() for seed in SEEDS)  # fmt: skip
    rows = [summary(space, seed) for space in RUNS for seed in SEEDS if is_finished(folder(space, seed))]
    write("fronts", rows, table(rows))


def summary(space: str, seed: int) -> dict[str, Any]:
    """The hypervolumes of one run: by the scores of shared weights, and of nasbench201 by the truth about the front."""
    candidates = json.loads((folder(space, seed) / "candidates.json").read_text())["candidates"]
    fronts: dict[str, list[dict[str, Any]]] = {"search": [], "random": []}
    for each in candidates:
        if each["on_front"]:
            fronts["random" if each["strategy"] == "random" else "search"].append(each)
    target, begin = TARGETS[space], max(min(each["cost"] for each in front) for front in fronts.values())

    def volumes(quality: Callable[[dict[str, Any]], float], begin: float = 0.0) -> dict[str, float]:
        return {
            side: hypervolume([(quality(each), max(each["cost"] - begin, 0.0)) for each in front], target - begin)
            for side, front in fronts.items()
        }

    scored = itemgetter("quality")
    row = {"space": space, "seed": seed, "scored": volumes(scored), "common": volumes(scored, begin), "begin": begin}
    if space == "nasbench201":
        table = NASBench201Space()
        row["true"] = volumes(lambda each: truth().true_quality(table.parse(each["text"])))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: hypervolumes of every seed, and by how much the search's are larger."""
    lines = [
        "# Fronts under a budget",
        "",
        "`python benchmarks/fronts.py`: share of the box of quality and cost, up to a target, that a front dominates;",
        "and of the box that begins at the cost where both fronts have begun.",
        "",
        "| space | judged by | search, each seed | random search | difference, ± standard error |",
        "|---|---|---|---|---|",
    ]
    for space in dict.fromkeys(row["space"] for row in rows):
        mine = [row for row in rows if row["space"] == space]
        for key, words in (
            ("scored", "shared weights"),
            ("common", "the same, from where both fronts have begun"),
            ("true", "true accuracy of the same architectures"),
        ):
            if key not in mine[0]:
                continue
            search, random = (np.array([row[key][side] for row in mine]) for side in ("search", "random"))
            each, beside = (", ".join(f"{value:.4f}" for value in values) for values in (search, random))
            lines.append(f"| {space} | {words} | {each} | {beside} | {with_error(search - random, 4)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
