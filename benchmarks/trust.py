"""How far shared weights are to be trusted on real tasks, and whether what they choose beats its size.

    python benchmarks/trust.py             # goes on where it was stopped

The default run on scikit-learn's digits, and the run of `fashion_mnist.py` on 10,000 images: thirty architectures, half
of them finalists and half random, are trained on their own for a short time, and their order by validation loss is
compared with that of the shared weights. The retrained winner stands beside ten random architectures of like MACs that
are trained in the same way; on the digits, of which there are 450 for the test, each five times, and the mean counts.
Three seeds, two runs at a time, each with one thread, in outputs/benchmark-trust/<task><seed>. Further arguments are
overrides for every run. Writes benchmarks/results/trust.md and trust.json, of the runs that are finished.
"""

from whole_runs import finish, folder_of, is_finished, read_results, write  # isort: skip

import json
from functools import partial
from typing import Any

import numpy as np

from benchmarks.fashion_mnist import SETTINGS as FASHION_MNIST
from benchmarks.ranking import tau

folder = partial(folder_of, "trust")
SEEDS = range(3)
NUM_RANDOM = 10
COMPARED = ("ranking.finalists=15", "ranking.random=15", f"baseline.random={NUM_RANDOM}", "baseline.network=null")
RUNS = {"digits": (*COMPARED, "retrain.seeds=5"), "fashion_mnist": (*FASHION_MNIST, *COMPARED)}


def main() -> None:
    finish((f"{task}, seed {seed}", folder(task, seed), [*overrides, f"seed={seed}"])
           for task, overrides in RUNS.items() for seed in SEEDS)  # fmt: skip
    rows = [summary(task, seed) for task in RUNS for seed in SEEDS if is_finished(folder(task, seed))]
    write("trust", rows, table(rows))


def summary(task: str, seed: int) -> dict[str, Any]:
    """Of one run: the taus, and the test accuracies of the winner and of random architectures of like MACs."""
    ranking = json.loads((folder(task, seed) / "ranking.json").read_text())
    results = read_results(folder(task, seed))
    rows = results["rows"]
    beside = [rows[f"random{number}"] for number in range(1, NUM_RANDOM + 1)]
    random = [row["test"] for row in beside]
    return {
        "task": task,
        "seed": seed,
        **{key: ranking[key] for key in ("tau", "tau_low", "tau_high", "tau_macs", "epochs")},
        "compared": sum(each["failure"] is None for each in ranking["architectures"]),
        "found": rows[results["teacher"]]["test"],
        "found by random search": rows["random_best"]["test"],
        "random": random,
        "random_tau_parameters": tau(np.array([row["parameters"] for row in beside]), np.mean(random, axis=1)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line per run."""
    lines = [
        "# How far shared weights are to be trusted",
        "",
        "`python benchmarks/trust.py`: Kendall's tau, with its 95% interval, between the scores of shared weights and",
        "short trainings of finalists and random architectures, judged by their validation loss; test accuracy of the",
        "retrained winner, of what random search found with the same shared weights and as many evaluations, and of",
        f"{NUM_RANDOM} random architectures of the winner's MACs, trained in the same way (where there are several",
        "trainings of each, their mean): median + sample standard deviation, how far ahead of both together the winner",
        "is, and Kendall's tau of theirs with their parameters. The winner of Fashion-MNIST is the best of three on",
        "validation data.",
        "",
        "| task | seed | compared | epochs | tau | by MACs | trainings | winner | random search | random | ahead "
        "| parameters |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found, beside, random = (
            100 * np.mean(row[key], axis=-1) for key in ("found", "found by random search", "random")
        )
        middle, spread = np.median(random), random.std(ddof=1)
        lines.append(
            f"| {row['task']} | {row['seed']} | {row['compared']} | {row['epochs']:g} | {row['tau']:.2f} "
            f"({row['tau_low']:.2f} to {row['tau_high']:.2f}) | {row['tau_macs']:.2f} | {len(row['found'])} | "
            f"{found:.2f}% | {beside:.2f}% | {middle:.2f} + {spread:.2f}% | {found - middle - spread:+.2f} | "
            f"{row['random_tau_parameters']:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
