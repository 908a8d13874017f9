"""The default run on spoken digits, twice for each held-out speaker: the found network beside a hand-designed one.

    python benchmarks/spoken_digits.py     # goes on where it was stopped

Two runs at a time, each with one thread, in outputs/benchmark-spoken-digits/<speaker><seed>. Further arguments are
overrides for every run. Writes benchmarks/results/spoken_digits.md and spoken_digits.json.
"""

from whole_runs import finish, folder_of, read_results, with_error, write  # isort: skip

from functools import partial

import numpy as np

folder = partial(folder_of, "spoken-digits")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RUNS = list(enumerate(SPEAKERS * 2))
"""The seed of each run, which draws the speaker of the validation set too, and the speaker of the test set."""


def main() -> None:
    finish((f"{speaker}, seed {seed}", folder(speaker, seed),
            ["env=spoken_digits", f"env.task.test_speaker={speaker}", f"seed={seed}"])
           for seed, speaker in RUNS)  # fmt: skip
    rows = [summary(speaker, seed) for seed, speaker in RUNS]
    write("spoken_digits", rows, table(rows))


def summary(speaker: str, seed: int) -> dict:
    """The mean test accuracy and the MACs of each network of one run."""
    results = read_results(folder(speaker, seed))
    networks = {
        name: {"test": float(np.mean(row["test"])), "macs": row["macs"]} for name, row in results["rows"].items()
    }
    return {"speaker": speaker, "seed": seed, "networks": networks, "seconds": sum(results["seconds"].values())}


def table(rows: list[dict]) -> str:
    """Markdown: test accuracy of every network on every held-out speaker, and what it costs."""
    names = list(rows[0]["networks"])
    tests, macs = (
        {name: np.array([row["networks"][name][key] for row in rows]).reshape(-1, len(SPEAKERS)) for name in names}
        for key in ("test", "macs")
    )  # each by (repeat, speaker)
    lines = [
        "# Spoken digits by speakers that were not heard",
        "",
        "`python benchmarks/spoken_digits.py`: the Free Spoken Digit Dataset; each of the six speakers is the test set",
        "of two runs, another the validation set on which every choice is made, the hand-designed network's learning",
        "rate among them; test measured once per network; mean of the two, and the lowest of all runs.",
        "",
        f"| network | {' | '.join(SPEAKERS)} | mean test accuracy | lowest | MACs |",
        f"|---|{'---|' * len(SPEAKERS)}---|---|---|",
    ]
    for name, found in tests.items():
        each = " | ".join(f"{value:.1%}" for value in found.mean(axis=0))
        lines.append(f"| {name} | {each} | {found.mean():.2%} | {found.min():.1%} | {macs[name].mean() / 1e3:.0f} k |")
    difference = 100 * (tests["teacher"] - tests["hand_designed"]).mean(axis=0)
    lines += [
        "",
        f"The found network is {with_error(difference, 2)} points (standard error over the speakers) from",
        f"the hand-designed one, above it for {(difference > 0).sum()} of {len(SPEAKERS)}. "
        f"The runs took {sum(row['seconds'] for row in rows) / 60:.0f} minutes of one thread together.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
