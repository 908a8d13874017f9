"""Searched cells against an LSTM of the same number of parameters, in bits per character of tiny Shakespeare.

    LUBAN_DATA=... python benchmarks/tiny_shakespeare.py   # about an hour on two cores; goes on where it was stopped

Three seeds, two runs at a time, each with one thread, in outputs/benchmark-tiny-shakespeare/seed<k>. All networks learn
for the same steps in the same way; the LSTM's learning rate is the best of three on validation data. Further arguments
are overrides for every run. Writes benchmarks/results/tiny_shakespeare.md and tiny_shakespeare.json.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "outputs" / "benchmark-tiny-shakespeare"
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = range(3)
SETTINGS = (
    "env=tiny_shakespeare",
    "threads=1",
    "search.fidelity=0.1",  # a validation of 5,600 characters each; candidates are scored again on all of it
    "retrain.training.epochs=5",
    "distill.training.epochs=1",  # all cells cost the same, so that a student is of no interest here
)


def main() -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, SEEDS))
    rows = [summary(seed) for seed in SEEDS]
    text = table(rows)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tiny_shakespeare.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "tiny_shakespeare.md").write_text(text)
    print(text)


def run(seed: int) -> None:
    folder = FOLDER / f"seed{seed}"
    if (folder / "results.json").exists():
        return
    begun = any(folder.glob("checkpoints/*.ckpt"))
    new = [*SETTINGS, f"seed={seed}", f"name=seed{seed}", f"output={FOLDER}", *sys.argv[1:]]
    arguments = [f"resume={folder}"] if begun else new
    done = subprocess.run([sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr
    print(f"seed {seed}: {last}", flush=True)


def summary(seed: int) -> dict:
    """Of one run: test bits per character, parameters and description of each network."""
    results = json.loads((FOLDER / f"seed{seed}" / "results.json").read_text())
    return {
        "seed": seed,
        "networks": {
            row["name"]: {"test": row["test"][0], "parameters": row["parameters"], "text": row["text"]}
            for row in results["rows"]
            if not row["name"].startswith("student")
        },
    }


def table(rows: list[dict]) -> str:
    """Markdown: a line per seed, and who won."""
    lines = [
        "# Tiny Shakespeare",
        "",
        "`python benchmarks/tiny_shakespeare.py`: bits per character of the last 5% of the text, measured once per",
        "network after every choice was made on the 5% before. Lower is better.",
        "",
        "| seed | found cell | best of random search | LSTM | parameters, cell | LSTM |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cell, other, lstm = (row["networks"][name] for name in ("teacher", "random_best", "hand_designed"))
        lines.append(
            f"| {row['seed']} | {cell['test']:.3f} | {other['test']:.3f} | {lstm['test']:.3f} | "
            f"{cell['parameters']:,} | {lstm['parameters']:,} |"
        )
    gains = [row["networks"]["hand_designed"]["test"] - row["networks"]["teacher"]["test"] for row in rows]
    lines += [
        "",
        f"The found cell is better than the LSTM in {sum(gain > 0 for gain in gains)} of {len(rows)} seeds, by",
        f"{np.mean(gains):+.3f} bits on average.",
        "",
        *(f"- seed {row['seed']}: `{row['networks']['teacher']['text']}`; {row['networks']['hand_designed']['text']}"
          for row in rows),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
