"""The default run on spoken digits, once for each held-out speaker: the found network beside a hand-designed one.

    python benchmarks/spoken_digits.py     # goes on where it was stopped

Two runs at a time, each with one thread, in outputs/benchmark-spoken-digits/<speaker>. Further arguments are overrides
for every run. Writes benchmarks/results/spoken_digits.md and spoken_digits.json.
"""

from whole_runs import ROOT, finish, read_results, with_error, write  # isort: skip

import numpy as np

FOLDER = ROOT / "outputs" / "benchmark-spoken-digits"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def main() -> None:
    finish(
        (speaker, FOLDER / speaker, ["env=spoken_digits", f"env.task.test_speaker={speaker}", f"seed={seed}"])
        for seed, speaker in enumerate(SPEAKERS)
    )
    rows = [summary(speaker) for speaker in SPEAKERS]
    write("spoken_digits", rows, table(rows))


def summary(speaker: str) -> dict:
    """The mean test accuracy and the MACs of each network of one run."""
    results = read_results(FOLDER / speaker)
    networks = {
        name: {"test": float(np.mean(row["test"])), "macs": row["macs"]} for name, row in results["rows"].items()
    }
    return {"speaker": speaker, "networks": networks, "seconds": sum(results["seconds"].values())}


def table(rows: list[dict]) -> str:
    """Markdown: test accuracy of every network on every held-out speaker, and what it costs."""
    names = list(rows[0]["networks"])
    tests = {name: 100 * np.array([row["networks"][name]["test"] for row in rows]) for name in names}
    macs = {name: np.array([row["networks"][name]["macs"] for row in rows]) / 1e3 for name in names}
    lines = [
        "# Spoken digits by speakers that were not heard",
        "",
        "`python benchmarks/spoken_digits.py`: the Free Spoken Digit Dataset; each of the six speakers is the test set",
        "of one run, another the validation set on which every choice is made, the hand-designed network's learning",
        "rate among them; test measured once per network.",
        "",
        f"| network | {' | '.join(row['speaker'] for row in rows)} | mean test accuracy | MACs |",
        f"|---|{'---|' * len(rows)}---|---|",
    ]
    for name in names:
        each = " | ".join(f"{value:.1f}%" for value in tests[name])
        lines.append(f"| {name} | {each} | {tests[name].mean():.2f}% | {macs[name].mean():.0f} k |")
    difference = tests["teacher"] - tests["hand_designed"]
    lines += [
        "",
        f"The found network is {with_error(difference, 2)} points (standard error over the speakers) from",
        f"the hand-designed one, above it for {(difference > 0).sum()} of {len(rows)}. "
        f"The runs took {sum(row['seconds'] for row in rows) / 60:.0f} minutes of one thread together.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
