"""The default run on ten seeds: how good are its networks, and does the policy beat random search?

    python benchmarks/digits.py            # about 15 minutes on two cores; goes on where it was stopped

Two runs at a time, each with one thread, in outputs/benchmark-digits/seed<k>. Further arguments are overrides for
every run. Writes benchmarks/results/digits.md and digits.json.
"""

from whole_runs import finish, folder_of, read_results, with_error, write  # isort: skip

import json
from functools import partial

import numpy as np

folder = partial(folder_of, "digits", "seed")
SEEDS = range(10)


def main() -> None:
    finish((f"seed {seed}", folder(seed), [f"seed={seed}"]) for seed in SEEDS)
    rows = [summary(seed) for seed in SEEDS]
    write("digits", rows, table(rows))


def summary(seed: int) -> dict:
    """The figures of one run: test accuracies, MACs, mean reward of the last fifth, hypervolume."""
    rows = read_results(folder(seed))["rows"]
    history = [json.loads(line) for line in (folder(seed) / "history.jsonl").read_text().splitlines()]
    rounds = 1 + max(line["round"] for line in history)
    late = [line for line in history if line["round"] >= 0.8 * rounds]
    rewards = {
        name: float(np.mean([line["reward"] for line in late if line["strategy"] == name]))
        for name in ("reinforce", "random")
    }
    networks = {name: {"test": row["test"][0], "macs": row["macs"]} for name, row in rows.items()}
    return {
        "seed": seed,
        "networks": networks,
        "late_reward": rewards,
        "hypervolume": json.loads((folder(seed) / "candidates.json").read_text())["hypervolume"],
    }


def table(rows: list[dict]) -> str:
    """Markdown: the networks, then the policy against random search."""
    lines = [
        "# The default run on ten seeds",
        "",
        "`python benchmarks/digits.py`: scikit-learn's digits, a stratified 25% test split drawn by each seed, every",
        "choice made on validation data, test measured once per network. Mean ± sample standard deviation of 10 seeds.",
        "",
        "| network | test accuracy | lowest | MACs |",
        "|---|---|---|---|",
    ]
    for name in rows[0]["networks"]:
        test = 100 * np.array([row["networks"][name]["test"] for row in rows])
        macs = np.array([row["networks"][name]["macs"] for row in rows]) / 1e3
        spread = f"{test.mean():.2f}% ± {test.std(ddof=1):.2f}"
        lines.append(f"| {name} | {spread} | {test.min():.2f}% | {macs.mean():.0f} k ± {macs.std(ddof=1):.0f} |")
    share = np.array([row["networks"]["student"]["macs"] / row["networks"]["teacher"]["macs"] for row in rows])
    gap = 100 * np.array([r["networks"]["teacher"]["test"] - r["networks"]["student"]["test"] for r in rows])
    lines += [
        "",
        f"The student has {100 * share.mean():.1f}% of its teacher's MACs, at most {100 * share.max():.0f}%,",
        f"and is {gap.mean():.2f} ± {gap.std(ddof=1):.2f} points below it.",
        "",
        "| seed | policy, mean reward in the last fifth | random, same weights | hypervolume, policy | random |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        late, volume = row["late_reward"], row["hypervolume"]
        lines.append(
            f"| {row['seed']} | {late['reinforce']:.4f} | {late['random']:.4f} | {volume['reinforce']:.4f} | "
            f"{volume['random']:.4f} |"
        )
    wins = sum(row["late_reward"]["reinforce"] > row["late_reward"]["random"] for row in rows)
    difference = np.array([row["hypervolume"]["reinforce"] - row["hypervolume"]["random"] for row in rows])
    lines += [
        "",
        f"The policy's mean reward is the higher in {wins} of {len(rows)} seeds. Its front's hypervolume is",
        f"{with_error(difference, 4)} (standard error) that of random search.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
