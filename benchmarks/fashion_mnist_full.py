"""One search on all of Fashion-MNIST: how good a network of fewer than a million parameters gets in two hours.

    python benchmarks/fashion_mnist_full.py     # goes on where it was stopped

One run with two threads, in outputs/benchmark-fashion-mnist-full/seed0: shared weights of nasbench201 cells with 16
channels are searched, and the found cell is trained with 32 on all 60,000 training images. No opponent is trained here,
which would take as long again for each; fashion_mnist.py has them. Further arguments are overrides. Writes
benchmarks/results/fashion_mnist_full.md and fashion_mnist_full.json.
"""

from whole_runs import finish, folder_of, read_results, write  # isort: skip

FOLDER = folder_of("fashion-mnist-full", "seed", 0)
SETTINGS = (
    "env=fashion_mnist",
    "+env.task.augmentation.cutout=6",
    "space=nasbench201",
    "reward=hard",
    "reward.target=19.2e6",  # 77 M with 32 channels
    # A search of a few minutes, half of it for the shared weights.
    "evaluator.score=combined",
    "evaluator.snapshots=3",
    "evaluator.snapshot_every=700",
    "evaluator.settings.learning_rate=0.3",
    "evaluator.settings.final_learning_rate=0.0",
    "evaluator.settings.weight_decay=0.001",
    "search.rounds=30",
    "search.sampler=uniform",
    "search.warmup_batches=2100",
    "search.batches_per_round=0",
    "search.fidelity=0.1",
    "search.compare_random=false",
    "derive.candidates=16",
    "derive.within_target=true",
    "ranking.finalists=0",
    "ranking.random=0",
    # Under two hours of training.
    "retrain.join_validation=true",
    "retrain.space={channels: 32}",
    "retrain.training.batch_size=128",
    "retrain.training.epochs=36",
    "distill.training.epochs=1",  # a student of which nothing is asked here
    "baseline.network=null",
    "threads=2",
)


def main() -> None:
    finish([("all of Fashion-MNIST", FOLDER, SETTINGS)])
    results = read_results(FOLDER)
    teacher = results["rows"][results["teacher"]]
    keys = ("text", "parameters", "macs", "test")
    row = {"network": {key: teacher[key] for key in keys}, "seconds": results["seconds"]}
    write("fashion_mnist_full", [row], table(row))


def table(row: dict) -> str:
    """Markdown: the found network, and what it took."""
    network, seconds = row["network"], row["seconds"]
    search, training = seconds["search"] + seconds["derive"], seconds["teacher"]
    return "\n".join([
        "# All of Fashion-MNIST",
        "",
        "`python benchmarks/fashion_mnist_full.py`: one run, two threads; accuracy on the 10,000 test images, measured",
        "once, after all choices were made on 12,000 of the 60,000 training images.",
        "",
        "| test accuracy | parameters | MACs | search | training on all 60,000 images |",
        "|---|---|---|---|---|",
        f"| {100 * network['test'][0]:.2f}% | {network['parameters']:,} | {network['macs'] / 1e6:.1f} M "
        f"| {search / 60:.0f} min | {training / 60:.0f} min |",
        "",
        f"`{network['text']}`",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
