"""What whole searches with shared weights find, looked up in the table of NAS-Bench-201.

    python benchmarks/shared_search.py     # goes on where it was stopped

The supernet of `ranking.py` learns CIFAR-10 (JPEG) at 16x16 and scores what each strategy proposes. Nothing counts but
quality. What a run would retrain is looked up: its test accuracy after 200 epochs, in full size, which no run reads.
Random search stands beside each run, with the same shared weights and as many evaluations. Where there are rungs, the
best of both are trained on their own too, with three cells a stage: half an epoch, and the best of those four. DARTS
and GDAS learn with one supernet for as many steps, on blends and on single paths; in the first half of them only the
shared weights learn. Three seeds, two runs at a time, each with one thread, in
outputs/benchmark-shared-search/<strategy><seed>. Further arguments are overrides for every run. Writes
benchmarks/results/shared_search.md and shared_search.json, of the runs that are finished.
"""

from whole_runs import finish, folder_of, is_finished, read_results, write  # isort: skip

from functools import partial
from typing import Any

import numpy as np

from benchmarks.ranking import truth
from child.nasbench201 import NASBench201Space

folder = partial(folder_of, "shared-search")
UNTRAINED = (
    "ranking.finalists=0",
    "ranking.random=0",
    "retrain.training.epochs=1",
    "distill.training.epochs=1",
    "distill.budget=1.0",
    "baseline.network=null",
    "export.formats=[]",
)
"""For what is looked at and not trained: all that comes after the search is as short as can be."""
SETTINGS = (
    "env=cifar10",
    "env.task.size=16",
    "env.task.augmentation=null",
    "space=nasbench201",
    "space.channels=8",
    "reward=quality",
    "evaluator.settings.batch_size=32",
    "evaluator.settings.learning_rate=0.3",
    "evaluator.settings.final_learning_rate=0.0",
    "evaluator.settings.weight_decay=0.001",
    "evaluator.settings.clip=5.0",
    "search.sampler=uniform",
    "derive.candidates=16",
    *UNTRAINED,
)
RANKED = (
    "evaluator.score=combined",
    "evaluator.snapshots=3",
    "evaluator.snapshot_every=1000",
    "search.warmup_batches=3000",
    "search.batches_per_round=0",
    "search.rounds=24",
    "search.fidelity=0.2",
)
RUNGS = (
    "rungs.fidelities=[0.125,1.0]",
    "rungs.keep=0.08",
    "rungs.space={cells_per_stage: 3, reduction: residual}",
    "rungs.score=metric",
    "retrain.training.epochs=4",  # of which the rungs train a part, and all; the networks after the search as well
    "retrain.training.label_smoothing=0.0",
)
GRADIENT = (
    "search.warmup_batches=1500",
    "search.batches_per_round=10",
    "search.rounds=150",
    "search.episodes=2",
    "search.fidelity=0.05",
    "controller.learning_rate=0.01",
)
RUNS = {
    "model-based": (range(3), ["controller=model_based", *RANKED]),
    "model-based with rungs": (range(3, 6), ["controller=model_based", *RANKED, *RUNGS]),
    "DARTS": (range(3), ["controller=darts", *GRADIENT]),
    "second-order DARTS": (range(3), ["controller=darts", "controller.order=2", *GRADIENT]),
    "GDAS": (range(3), ["controller=gdas", *GRADIENT]),
}
"""Seeds and overrides. What rungs train was chosen when what they found with seeds 0 to 2 had been looked up."""
JOBS = [(name, seed) for name, (seeds, _) in RUNS.items() for seed in seeds]


def main() -> None:
    finish((f"{name}, seed {seed}", folder(name, seed), [*SETTINGS, *RUNS[name][1], f"seed={seed}"])
           for name, seed in JOBS)  # fmt: skip
    rows = [summary(name, seed) for name, seed in JOBS if is_finished(folder(name, seed))]
    write("shared_search", rows, table(rows))


def summary(name: str, seed: int) -> dict[str, Any]:
    """What a run found, and random search beside it, with their true accuracies."""
    space = NASBench201Space()
    results = read_results(folder(name, seed))
    found = {side: results["rows"][row]["text"] for side, row in (("found", "teacher"), ("random", "random_best"))
             if row in results["rows"]}  # fmt: skip
    true = {f"true {side}": truth().true_quality(space.parse(text)) for side, text in found.items()}
    minutes = (results["seconds"]["search"] + results["seconds"]["derive"]) / 60
    return {"run": name, "seed": seed, **found, **true, "minutes": minutes}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: true accuracies of what each strategy found, and of what random search found beside it."""
    lines = [
        "# What searches with shared weights find",
        "",
        "`python benchmarks/shared_search.py`: published test accuracy after 200 epochs of the architecture that a run",
        "would retrain, mean of the seeds ± sample standard deviation; minutes of one thread for the search.",
        "",
        "| strategy | found | lowest | random search beside it | minutes | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        found = 100 * np.array([row["true found"] for row in mine])
        beside = 100 * np.array([row.get("true random", np.nan) for row in mine])
        minutes = np.mean([row["minutes"] for row in mine])
        lines.append(
            f"| {name} | {found.mean():.2f} ± {found.std(ddof=1):.2f} | {found.min():.2f} | "
            f"{beside.mean():.2f} ± {beside.std(ddof=1):.2f} | {minutes:.0f} | {len(mine)} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
