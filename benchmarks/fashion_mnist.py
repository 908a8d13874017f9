"""Searched networks on 10,000 images of Fashion-MNIST, three minutes of one thread for each: do they beat their size?

    python benchmarks/fashion_mnist.py     # goes on where it was stopped

Three seeds, two runs at a time, each with one thread, in outputs/benchmark-fashion-mnist/seed<k>. Beside the found
network, the best on validation data of the search's three best, stand five random architectures of like MACs and a
hand-designed network of like MACs, whose learning rate is the best of three on validation data; all are trained in the
same way, on 8,000 of the images. Further arguments are overrides for every run. Writes
benchmarks/results/fashion_mnist.md and fashion_mnist.json.
"""

from whole_runs import finish, folder_of, read_results, with_error, write  # isort: skip

from functools import partial

import numpy as np

folder = partial(folder_of, "fashion-mnist", "seed")
SEEDS = range(3)
NUM_RANDOM = 5
SETTINGS = (
    "env=fashion_mnist",
    "env.task.num_train=10000",  # 2,000 of them for validation
    "space.min_layers=4",
    "space.num_reductions=3",
    # What three minutes of one thread allow: 12 epochs of 8,000 images at no more than 8 M MACs.
    "reward.target=8e6",
    "derive.within_target=true",
    "retrain.top=3",  # the best of them on validation data is the found network
    "retrain.training.epochs=12",
    "distill.training.epochs=4",  # a student of which nothing is asked here
    "ranking.finalists=0",
    "ranking.random=0",
    # The shared weights are trained first; then the best eighth of what they score is trained for an epoch of its own.
    "controller=model_based",
    "search.warmup_batches=1500",
    "search.batches_per_round=0",
    "search.rounds=24",
    "rungs.fidelities=[0.0833]",  # of 12 epochs
    "rungs.keep=0.125",
    "derive.candidates=32",
    f"baseline.random={NUM_RANDOM}",
)


def main() -> None:
    finish((f"seed {seed}", folder(seed), [*SETTINGS, f"seed={seed}"]) for seed in SEEDS)
    rows = [summary(seed) for seed in SEEDS]
    write("fashion_mnist", rows, table(rows))


def summary(seed: int) -> dict:
    """Of one run: each network's test accuracy, MACs and text, and the seconds that its training took."""
    results = read_results(folder(seed))
    return {
        "seed": seed,
        "found": results["teacher"],
        "networks": {
            name: {"test": row["test"][0], "macs": row["macs"], "text": row["text"],
                   "seconds": results["seconds"][name]}
            for name, row in results["rows"].items()
        },
        "seconds": sum(results["seconds"].values()),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Markdown: a line per seed, and how far the found network is ahead."""
    lines = [
        "# Fashion-MNIST, 10,000 images",
        "",
        "`python benchmarks/fashion_mnist.py`: accuracy on the 10,000 test images, measured once per network after all",
        "choices were made on 2,000 validation images.",
        "",
        "| seed | found | random of like MACs: median | lowest to highest | best of random search | hand-designed "
        "| MACs, found | random, median | hand-designed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found, median, hand = [], [], []
    for row in rows:
        networks = row["networks"]
        others = [networks[f"random{number}"] for number in range(1, NUM_RANDOM + 1)]
        tests = [100 * other["test"] for other in others]
        found.append(100 * networks[row["found"]]["test"])
        median.append(float(np.median(tests)))
        hand.append(100 * networks["hand_designed"]["test"])
        macs = [networks[row["found"]]["macs"], np.median([each["macs"] for each in others]),
                networks["hand_designed"]["macs"]]  # fmt: skip
        lines.append(
            f"| {row['seed']} | {found[-1]:.2f}% | {median[-1]:.2f}% | {min(tests):.2f} to {max(tests):.2f}% | "
            f"{100 * networks['random_best']['test']:.2f}% | {hand[-1]:.2f}% | "
            f"{' | '.join(f'{each / 1e6:.2f} M' for each in macs)} |"
        )
    ahead = [with_error(np.subtract(found, others), 2) for others in (median, hand)]
    slowest = max(each["seconds"] for row in rows for name, each in row["networks"].items() if name != "hand_designed")
    lines += [
        "",
        f"The found network is {ahead[0]} points from the median random one and {ahead[1]} from",
        f"the hand-designed one (mean of {len(rows)} seeds ± standard error). The longest training took {slowest:.0f}",
        f"seconds of one thread, all runs together {sum(row['seconds'] for row in rows) / 60:.0f} minutes of it.",
        "",
        *(f"- seed {row['seed']}: `{row['networks'][row['found']]['text']}`; {row['networks']['hand_designed']['text']}"
          for row in rows),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
