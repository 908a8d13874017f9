"""Models made smaller: what pruning, shared weights, integers and distillation cost in accuracy, and what they save.

    python benchmarks/compression.py     # goes on where it was stopped; further arguments are overrides for every run

Residual networks on the digits (five seeds, each with a test split of its own) and on 10,000 images of Fashion-MNIST
(three seeds), two runs at a time, each with one thread, in outputs/benchmark-compression/<task>/seed<k>/<run>. Every
run of a seed begins with the same trained original. Test data are opened once by a run, for the original and the
result of its last step; what was chosen when figures had been seen, benchmarks/README.md says. Writes
benchmarks/results/compression.md and compression.json.
"""

from whole_runs import ROOT, Job, finish, read_results, with_error, write  # isort: skip

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

FOLDER = ROOT / "outputs" / "benchmark-compression"
SHARE = 0.4  # of the multiply-accumulates, that pruning leaves
SEEDS = {"digits": range(5), "fashion_mnist": range(3)}
# A network of at least 200,000 parameters on Fashion-MNIST, and a student of about a fifth of its MACs.
WIDTH = {"digits": 26, "fashion_mnist": 28}
STUDENT = {"digits": 12, "fashion_mnist": 12}
SETTINGS = {
    "digits": ("env=digits",),
    "fashion_mnist": (
        "env=fashion_mnist",
        "env.task.num_train=10000",  # 2,000 of them for validation
        # What an hour allows.
        "retrain.training.epochs=10",
        "prune.training.epochs=5",
        "share.training.epochs=3",
        "distill.training.epochs=8",
        "search.fidelity=0.25",
    ),
}
# A student learns alone exactly as it learns from a teacher.
ALIKE = tuple(
    f"retrain.training.{key}=${{distill.training.{key}}}"
    for key in ("epochs", "batch_size", "learning_rate", "final_learning_rate", "weight_decay", "label_smoothing")
)
TITLES = {
    "pruned": "pruned to 40% of the MACs (`steps=[prune]`)",
    "searched": "the same with ratios found by the controller (`prune.ratios=search`)",
    "uniform": "uniform ratios at the MACs of those (`prune.ratios=uniform`)",
    "codebook": "16 values a layer (`steps=[share]`)",
    "pipeline": "pruned, distilled, shared (`steps=[prune,distill,share]`)",
    "quantized": "8-bit integers (`steps=[quantize]`)",
    "student": "a student of width 12, distilled, beside itself alone",
}


def main() -> None:
    begun = [(task, seed) for task, seeds in SEEDS.items() for seed in seeds]
    finish(each(begun, "pruned", lambda task, folder: own(WIDTH[task]) + pruned()), "optimize.py")
    finish(each(begun, "searched", lambda task, folder: original(folder) + pruned("search")), "optimize.py")
    finish(each(begun, "uniform", lambda task, folder: original(folder) + pruned("uniform", macs(folder / "searched"))),
           "optimize.py")  # fmt: skip
    finish(each(begun, "codebook", lambda task, folder: [*original(folder), "steps=[share]"]), "optimize.py")
    finish(each(begun, "quantized", lambda task, folder: [*original(folder), "steps=[quantize]"]), "optimize.py")
    finish(each(begun, "pipeline", lambda task, folder: [
        *original(folder), "steps=[prune,distill,share]", f"prune.share={SHARE}",
    ]), "optimize.py")  # fmt: skip
    finish(each(begun, "student", lambda task, folder: [
        *own(STUDENT[task]), *ALIKE, "steps=[distill]", "distill.fresh=true",
        f"distill.teachers=[{folder / 'pruned' / 'networks' / 'original'}]",
    ]), "optimize.py")  # fmt: skip
    rows = [summary(task, seed) for task, seed in begun]
    write("compression", rows, table(rows))


def each(begun: list[tuple[str, int]], name: str, overrides: Callable[[str, Path], Iterable[str]]) -> Iterable[Job]:
    """A run of every task and seed."""
    for task, seed in begun:
        folder = FOLDER / task / f"seed{seed}"
        yield f"{task} {seed} {name}", folder / name, [*SETTINGS[task], f"seed={seed}", *overrides(task, folder)]


def own(width: int) -> list[str]:
    """A residual network, trained first."""
    return ["model._target_=child.resnet.ResNet", f"+model.width={width}"]


def original(folder: Path) -> list[str]:
    """The network that the first run of a seed has trained."""
    return [f"model.path={folder / 'pruned' / 'networks' / 'original'}"]


def pruned(ratios: str = "global", share: float = SHARE) -> list[str]:
    # Ratios are compared by single channels: in steps of several, equal costs would not be equal.
    steps = [] if ratios == "global" else ["prune.multiple=1"]
    return ["steps=[prune]", f"prune.ratios={ratios}", f"prune.share={share}", *steps]


def macs(folder: Path) -> float:
    """The share of the original's multiply-accumulates that a run has left."""
    rows = list(read_results(folder)["rows"].values())
    return rows[-1]["macs"] / rows[0]["macs"]


def summary(task: str, seed: int) -> dict:
    """Of each run of a seed: the last network beside the original."""
    found = {}
    for name in TITLES:
        rows = list(read_results(FOLDER / task / f"seed{seed}" / name)["rows"].values())
        first, last = rows[0], rows[-1]
        found[name] = {
            "test": last["test"][0],
            "original": first["test"][0],
            "seconds": sum(row["seconds"] for row in rows),
            **{key: last[key] / first[key] for key in ("macs", "parameters", "bytes", "latency_ms")},
        }
    rows = read_results(FOLDER / task / f"seed{seed}" / "pruned")["rows"]
    (tried,) = json.loads((FOLDER / task / f"seed{seed}" / "searched" / "ratios.json").read_text()).values()
    return {
        "task": task, "seed": seed, "parameters": rows["original"]["parameters"], "stayed_even": tried[0]["even"],
        "runs": found,
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Markdown: for each task what every run changed."""
    lines = [
        "# Models made smaller",
        "",
        "`python benchmarks/compression.py`: test accuracy of what is left minus that of the original, measured once",
        "by each run; mean over seeds ± standard error. All shares are of the original's; latency is of a batch of 64",
        "with one thread, both networks in turns in one run.",
    ]
    for task in SEEDS:
        mine = [row for row in rows if row["task"] == task]
        tests = 100 * np.array([row["runs"]["pruned"]["original"] for row in mine])
        lines += [
            "",
            f"## {task}: {len(mine)} seeds, an original of {mine[0]['parameters']:,} parameters, "
            f"{tests.mean():.2f}% ± {tests.std(ddof=1):.2f} (standard deviation)",
            "",
            "| what was done | points of test accuracy | lowest | MACs | parameters | bytes | latency |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, title in TITLES.items():
            runs = [row["runs"][name] for row in mine]
            gains = [100 * (run["test"] - run["original"]) for run in runs]
            shares = [
                f"{np.mean([run[key] for run in runs]):.3f}" for key in ("macs", "parameters", "bytes", "latency_ms")
            ]
            lines.append(f"| {title} | {with_error(gains, 2)} | {min(gains):+.2f} | {' | '.join(shares)} |")
        ahead = [100 * (row["runs"]["searched"]["test"] - row["runs"]["uniform"]["test"]) for row in mine]
        minutes = [run["seconds"] / 60 for row in mine for run in row["runs"].values()]
        lines += [
            "",
            f"What a search ends with is {with_error(ahead, 2)} points from uniform ratios at the same MACs; in "
            f"{sum(row['stayed_even'] for row in mine)} of {len(mine)} seeds",
            "none of the controller's ratios was beyond the noise better than uniform ones, which then stayed.",
            f"The longest run took {max(minutes):.0f} minutes of one thread, all together {sum(minutes):.0f}.",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
