"""Searched cells against an LSTM of the same number of parameters, in bits per character of tiny Shakespeare.

    python benchmarks/tiny_shakespeare.py   # goes on where it was stopped

Three seeds, two runs at a time, each with one thread, in outputs/benchmark-tiny-shakespeare/seed<k>. All networks learn
for the same steps in the same way; the LSTM's learning rate is the best of three on validation data. Further arguments
are overrides for every run. Writes benchmarks/results/tiny_shakespeare.md and tiny_shakespeare.json.
"""

from whole_runs import ROOT, finish, read_results, with_error, write  # isort: skip

FOLDER = ROOT / "outputs" / "benchmark-tiny-shakespeare"
SEEDS = range(3)
SETTINGS = (
    "env=tiny_shakespeare",
    # With as many parameters, three wide nodes learn more in so short a training than six narrow ones.
    "space.num_nodes=3",
    "space.width=168",
    # Three passes over the text leave nothing to learn by heart. Neither does the LSTM drop anything.
    "space.dropout_input=0.0",
    "space.dropout_state=0.0",
    "space.dropout_output=0.0",
    "+baseline.network.dropout_input=0.0",
    "+baseline.network.dropout_output=0.0",
    "search.rounds=20",  # 128 cells are soon known
    "search.fidelity=0.1",  # a validation of 5,600 characters each; candidates are scored again on all of it
    "retrain.training.epochs=3",
    "distill.training.epochs=1",  # all cells cost the same, so that a student is of no interest here
)


def main() -> None:
    finish((f"seed {seed}", FOLDER / f"seed{seed}", [*SETTINGS, f"seed={seed}"]) for seed in SEEDS)
    rows = [summary(seed) for seed in SEEDS]
    write("tiny_shakespeare", rows, table(rows))


def summary(seed: int) -> dict:
    """Of one run: test bits per character, parameters and description of each network."""
    rows = read_results(FOLDER / f"seed{seed}")["rows"]
    return {
        "seed": seed,
        "networks": {
            name: {"test": row["test"][0], "parameters": row["parameters"], "text": row["text"]}
            for name, row in rows.items()
            if not name.startswith("student")
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
        f"{with_error(gains, 3)} bits (mean ± standard error).",
        "",
        *(f"- seed {row['seed']}: `{row['networks']['teacher']['text']}`; {row['networks']['hand_designed']['text']}"
          for row in rows),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
