"""The default run on ten seeds: how good are its networks, and does the policy beat random search?

    python benchmarks/digits.py            # about 15 minutes on two cores; goes on where it was stopped

Two runs at a time, each with one thread, in outputs/benchmark-digits/seed<k>. Further arguments are overrides for
every run. Writes benchmarks/results/digits.md and digits.json.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "outputs" / "benchmark-digits"
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = range(10)


def main() -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, SEEDS))
    rows = [summary(seed) for seed in SEEDS]
    text = table(rows)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "digits.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "digits.md").write_text(text)
    print(text)


def run(seed: int) -> None:
    folder = FOLDER / f"seed{seed}"
    if (folder / "results.json").exists():
        return
    begun = any(folder.glob("checkpoints/*.ckpt"))
    new = [f"seed={seed}", f"name=seed{seed}", f"output={FOLDER}", "threads=1", *sys.argv[1:]]
    arguments = [f"resume={folder}"] if begun else new
    done = subprocess.run([sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    print(
        f"seed {seed}: " + (done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr), flush=True
    )


def summary(seed: int) -> dict:
    """The figures of one run: test accuracies, MACs, mean reward of the last fifth, hypervolume."""
    folder = FOLDER / f"seed{seed}"
    results = json.loads((folder / "results.json").read_text())
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    rounds = 1 + max(line["round"] for line in history)
    late = [line for line in history if line["round"] >= 0.8 * rounds]
    rewards = {
        name: float(np.mean([line["reward"] for line in late if line["strategy"] == name]))
        for name in ("reinforce", "random")
    }
    networks = {row["name"]: {"test": row["test"][0], "macs": row["macs"]} for row in results["rows"]}
    return {
        "seed": seed,
        "networks": networks,
        "late_reward": rewards,
        "hypervolume": json.loads((folder / "candidates.json").read_text())["hypervolume"],
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
    error = difference.std(ddof=1) / np.sqrt(len(rows))
    lines += [
        "",
        f"The policy's mean reward is the higher in {wins} of {len(rows)} seeds. Its front's hypervolume is",
        f"{difference.mean():+.4f} ± {error:.4f} (standard error) that of random search.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
