"""Strategies on NAS-Bench-201, where every architecture's true accuracy is known: does the controller add anything?

    python benchmarks/nasbench201.py                # everything, half an hour on two cores; goes on where it stopped
    python benchmarks/nasbench201.py random genetic # some rows alone
    python benchmarks/nasbench201.py table          # nothing new: the table of what there is

Each strategy is the one of its config file, played through the environment with a budget of its own; the search sees
`valid_acc_12ep`, the table reports `test_acc_200ep` of what it chose. Every finished search is a line of
benchmarks/results/nasbench201.jsonl, so that a run that was stopped loses nothing; delete the file to begin again.
"""

from whole_runs import RESULTS, finish_lines, names_given, read_lines  # isort: skip

import functools
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib.pyplot as plt
import numpy as np
import torch

import envs  # noqa: F401 (registers the environments)
from child.nasbench201 import NASBench201Space
from child.space import derive_seed
from conf.launch import compose
from conf.schema import RunConfig
from controller.derive import choose, within_target
from controller.ledger import Ledger
from controller.search import Player
from envs.table import TableEvaluator

SPACE = NASBench201Space()
LINES = RESULTS / "nasbench201.jsonl"
MARKS = np.arange(500, 12_001, 500)  # budgets at which regret is drawn
UNDER_50M = ("reward=hard", "reward.target=5e7", "derive.within_target=true")

# Row: overrides, number of seeds. Rows of one group stand together in the table.
ROWS: dict[str, tuple[tuple[str, ...], int]] = {
    "random": (("controller=random",), 500),
    "regularized evolution": (("controller=regularized_evolution",), 500),
    "local search": (("controller=local_search",), 500),
    "genetic": (("controller=genetic",), 100),
    "REINFORCE as in ENAS": (("controller=reinforce_enas",), 100),
    "PPO": (("controller=ppo", "search.episodes=4"), 100),
    "REINFORCE, small budget": (("controller=reinforce_small_budget",), 100),
    "model-based REINFORCE": (("controller=model_based",), 500),
    "model-based REINFORCE, 6,000 s": (("controller=model_based", "search.budget=6000"), 500),
    "same model, uniform samples": (("controller=model_based", "controller.proposer=uniform"), 100),
    "same model, mutants": (("controller=model_based", "controller.proposer=mutants"), 100),
    "same policy, first new sample": (("controller=model_based", "controller.chooser=first"), 100),
    "model-based, signal noise 0.3": (("controller=model_based", "evaluator.noise=0.3"), 100),
    "random, signal noise 0.3": (("controller=random", "evaluator.noise=0.3"), 100),
    "random, under 50 M MACs": (("controller=random", *UNDER_50M), 100),
    "regularized evolution, under 50 M MACs": (("controller=regularized_evolution", *UNDER_50M), 100),
    "local search, under 50 M MACs": (("controller=local_search", *UNDER_50M), 100),
    "model-based, under 50 M MACs": (("controller=model_based", *UNDER_50M), 100),
}


@functools.cache
def settings(row: str) -> RunConfig:
    """Of a row, composed once for all its seeds: that takes 0.14 s, longer than a whole random search."""
    return compose("env=nasbench201", *ROWS[row][0])


@functools.cache
def table(noise: float) -> TableEvaluator:
    config = compose("env=nasbench201", f"evaluator.noise={noise}")
    return config.evaluator.build((), space=SPACE)


def play(job: tuple[str, int]) -> dict[str, Any]:
    """One search, and what it chose."""
    row, seed = job
    torch.set_num_threads(1)
    config = settings(row)
    evaluator = table(config.evaluator.arguments["noise"])
    reward = config.reward.build(())
    strategy = config.controller.build((), space=SPACE, seed=seed, num_updates=config.search.rounds)
    started = time.perf_counter()
    assert config.search.budget is not None
    ledger = Ledger(evaluator, config.search.budget, evaluator.price)
    environments = gymnasium.make_vec(
        config.env.id, config.search.episodes, vectorization_mode="vector_entry_point",
        space=SPACE, evaluator=ledger, reward=reward,
    )  # fmt: skip
    player, round_number, history = Player(strategy, environments, ledger), 0, []
    while not player.finished:
        rollout, _ = player.play(round_number, derive_seed(seed, "search", round_number))
        for evaluation, value in zip(rollout.evaluations, rollout.rewards.tolist(), strict=True):
            history.append({
                "strategy": strategy.name, "genotype": evaluation.genotype.to_json(), "quality": evaluation.quality,
                "cost": evaluation.cost, "reward": value, "fidelity": 1.0, "seed": 0, "failure": None,
                "charge": evaluation.charge,
            })  # fmt: skip
        round_number += 1
    trusted = strategy.estimate if evaluator.is_noisy else None
    candidates = choose(SPACE, history, strategy.name, evaluator.cost, trusted)
    if config.derive.within_target:
        candidates = within_target(candidates, reward.target)
    chosen = candidates[0].genotype
    truth = [evaluator.true_quality(evaluation.genotype) for evaluation in ledger.known.values()]
    best_so_far, truly, spent, curve = -math.inf, math.nan, 0.0, []
    paid = [line for line in history if line["charge"] > 0]
    for mark in MARKS:
        while paid and spent + paid[0]["charge"] <= mark:
            line = paid.pop(0)
            spent += line["charge"]
            if line["reward"] > best_so_far:
                best_so_far = line["reward"]
                truly = 100 * evaluator.true_quality(SPACE.genotype(line["genotype"]["tokens"]))
        curve.append(truly)
    return {
        "row": row,
        "seed": seed,
        "test": 100 * evaluator.true_quality(chosen),
        "rank": evaluator.rank(chosen),
        "cost": evaluator.cost(chosen),
        "evaluations": len(ledger.known),
        "optimum": bool(max(truth) >= evaluator.truth.max() - 1e-12),
        "seconds": time.perf_counter() - started,
        "curve": [round(each, 4) for each in curve],
    }


def summary(row: str, lines: list[dict[str, Any]]) -> str:
    test = np.array([line["test"] for line in lines])
    error = test.std(ddof=1) / math.sqrt(len(test)) if len(test) > 1 else math.nan
    # Under a constraint that optimum may not be chosen.
    optimum = "-" if "50 M" in row else f"{np.mean([line['optimum'] for line in lines]):.1%}"
    rank, made = np.median([line["rank"] for line in lines]), np.mean([line["evaluations"] for line in lines])
    seconds = np.median([line["seconds"] for line in lines])
    return (
        f"| {row} | {test.mean():.3f} ± {1.96 * error:.3f} | {test.std(ddof=1):.3f} | {test.min():.2f} "
        f"| {optimum} | {rank:.0f} | {made:.0f} | {seconds:.2f} | {len(lines)} |"
    )


def record(found: dict[str, list[dict[str, Any]]]) -> None:
    """The table, printed and written with the published figures beside it, and the picture."""
    text = [
        "# NAS-Bench-201, CIFAR-10: what each strategy finds in 12,000 s",
        "",
        f"`python benchmarks/nasbench201.py`, one thread a search, {os.cpu_count()} at once (s depends on what else",
        "runs). The search sees `valid_acc_12ep`;",
        "`test_acc_200ep` (%, optimum 94.373) is looked up for its choice alone. ± is the 95%",
        "interval of the mean; the optimum counts as evaluated where a cell of 94.373 was among the evaluations.",
        "",
        "| strategy | test accuracy | std | lowest | optimum evaluated | median rank | evaluations | s | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    text += [summary(row, found[row]) for row in ROWS if len(found.get(row, [])) > 1]
    honored = [line["cost"] <= 5e7 for row in found if "50 M" in row for line in found[row]]
    if honored:
        text += ["", f"The constraint of 50 M MACs was honored in {sum(honored)} of {len(honored)} searches."]
    text += [
        "",
        "Published for 12,000 s (Dong and Yang 2020): random 93.70 ± 0.36, regularized evolution 93.92 ± 0.30,",
        "REINFORCE 93.85 ± 0.37, BOHB 93.61 ± 0.52 (standard deviations). All settings are those of the config files",
        "(of PPO with four episodes a round), chosen by the signal that the search sees on seeds from 1,000 on, never",
        "by the reported accuracy.",
        "",
    ]
    print("\n".join(text))
    (RESULTS / "nasbench201.md").write_text("\n".join(text))
    draw(found, RESULTS / "nasbench201.png")


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Regret against budget: the median with its quartiles."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for row in ("random", "REINFORCE as in ENAS", "regularized evolution", "local search", "model-based REINFORCE"):
        if row in found:
            regret = 94.3733 - np.array([line["curve"] for line in found[row]], float)
            low, middle, high = np.nanpercentile(regret, [25, 50, 75], axis=0)
            (line,) = axes.plot(MARKS, middle, label=row)
            axes.fill_between(MARKS, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("seconds of training charged")
    axes.set_ylabel("below the optimum (points of test accuracy)")
    axes.set_ylim(0, 2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    rows = [] if sys.argv[1:] == ["table"] else names_given("row", ROWS)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in read_lines(LINES):
        found.setdefault(line["row"], []).append(line)
    done = {(line["row"], line["seed"]) for lines in found.values() for line in lines}
    jobs = [(row, seed) for row in rows for seed in range(ROWS[row][1]) if (row, seed) not in done]
    jobs.sort(key=lambda job: job[1] // 50)  # fifty seeds of every row first, so that an early look shows all rows
    started = time.monotonic()
    for number, line in enumerate(finish_lines(LINES, play, jobs), 1):
        found.setdefault(line["row"], []).append(line)
        if number % 100 == 0:
            left = (time.monotonic() - started) / number * (len(jobs) - number) / 60
            print(f"{number}/{len(jobs)} searches, about {left:.0f} min left", file=sys.stderr, flush=True)
    record(found)


if __name__ == "__main__":
    main()
