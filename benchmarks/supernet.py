"""Shared weights of every space: a training step and the evaluation of a round, beside a plain version of each.

    python benchmarks/supernet.py          # 10 to 17 minutes, as many threads as PyTorch takes
    python benchmarks/supernet.py mlp      # the spaces whose names contain this, nothing recorded

The plain versions are in plain_supernets.py.
"""

from timing import interleaved, matmul_peak, record  # isort: skip

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_supernets import PLAIN
from torch import nn
from torch.nn import functional

from child.macro import MacroSpace
from child.micro import MicroSpace
from child.mlp import MLPSpace
from child.mobile import MobileSpace
from child.nasbench201 import NASBench201Space
from child.recurrent import RecurrentSpace
from child.space import Genotype, NetworkSpace
from child.supernet import batch_statistics

NUM_EVALUATED = 16
KEPT = 0.97  # how sure the concentrated policy is of each token


@dataclass(frozen=True)
class Case:
    """A space with the batch size of its task.

    `asked` is how many times faster than plain training, random and concentrated evaluation are meant to be, where
    that was said; `rounds` is how often the usual number of repeats is taken, more where a step is short.
    """

    make_space: Callable[[], NetworkSpace]
    batch_size: int
    asked: tuple[float, float, float] | None = None
    rounds: int = 1


# Images are CIFAR-10's; sequences, vectors and texts have the shapes of the spoken digits, of breast cancer and of
# tiny Shakespeare in the default config. Sizes are the spaces' defaults where no others are given.
CASES = {
    "macro, 32 channels": Case(lambda: MacroSpace((3, 32, 32), 10, 32, 12), 128, (1.8, 1.5, 4.0)),
    "macro, 36 channels": Case(lambda: MacroSpace((3, 32, 32), 10, 36, 12), 128, (1.8, 1.5, 4.0)),
    "macro, sequences": Case(lambda: MacroSpace((40, 63), 10, 32, 6, 4, num_reductions=3), 128, rounds=4),
    "micro": Case(lambda: MicroSpace((3, 32, 32), 10, num_nodes=4, num_cells=1), 128),
    "nasbench201": Case(lambda: NASBench201Space((3, 32, 32), 10, cells_per_stage=1, reduction="thin"), 128),
    "mobile": Case(lambda: MobileSpace((3, 32, 32), 10), 128),
    "mlp": Case(lambda: MLPSpace((30,), 2), 32, rounds=40),
    "recurrent": Case(lambda: RecurrentSpace((96,), 65), 32),
}


class Bench:
    """Our supernet or the plain one, with its optimizer and a batch."""

    def __init__(self, case: Case, plain: bool):
        torch.manual_seed(0)
        space: Any = case.make_space()
        self.plain = plain
        self.network = PLAIN[type(space)](space) if plain else space.network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.05, momentum=0.9, nesterov=True)
        shape = (case.batch_size, *space.arguments["input_shape"])
        if isinstance(space, RecurrentSpace):
            self.inputs = torch.randint(space.num_outputs, shape)
            self.targets = torch.randint(space.num_outputs, (case.batch_size, space.length - space.context))
            return
        self.inputs = torch.randn(shape)
        self.targets = torch.randint(space.arguments["num_outputs"], (case.batch_size,))
        if len(shape) == 4 and not plain:
            self.inputs = self.inputs.contiguous(memory_format=torch.channels_last)

    def train(self, genotype: Genotype) -> None:
        self.network.train()
        self.optimizer.zero_grad()
        outputs = self.network(self.inputs, genotype)
        functional.cross_entropy(outputs.flatten(0, -2), self.targets.flatten()).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, genotypes: Sequence[Genotype]) -> None:
        with batch_statistics(self.network):
            if self.plain:
                for genotype in genotypes:
                    self.network(self.inputs, genotype)
            else:
                self.network.forward_many(self.inputs, genotypes)  # type: ignore[operator]


def concentrated(space: NetworkSpace) -> list[Genotype]:
    """Draws of a policy that gives each token of one architecture a chance of KEPT."""
    rng = np.random.default_rng(1)
    mode = np.array(space.sample(rng, 1)[0].tokens)
    others = np.array([genotype.tokens for genotype in space.sample(rng, NUM_EVALUATED)])
    return [space.canonical(row) for row in np.where(rng.random(others.shape) < KEPT, mode, others)]


def training_macs(space: NetworkSpace, genotype: Genotype) -> int:
    """Three times those of a forward pass, but for the context of a text, through which no gradient flows."""
    macs = 3 * space.macs(genotype)
    if isinstance(space, RecurrentSpace):
        per_token = 2 * space.width**2 * (space.num_nodes + 1)
        macs -= 2 * space.context * per_token
    return macs


def measure(name: str, peak: float) -> list[dict[str, object]]:
    """The rows of a space."""
    case = CASES[name]
    space = case.make_space()
    random, near = space.sample(np.random.default_rng(0), NUM_EVALUATED), concentrated(space)
    benches = {"ours": Bench(case, plain=False), "plain": Bench(case, plain=True)}

    def training() -> dict[str, Callable[[], None]]:
        turns = {which: cycle(random) for which in benches}
        return {which: lambda w=which: benches[w].train(next(turns[w])) for which in benches}

    def evaluating(genotypes: list[Genotype]) -> dict[str, Callable[[], None]]:
        return {which: lambda w=which: benches[w].evaluate(genotypes) for which in benches}

    work = [
        ("training step", training(), NUM_EVALUATED, np.median([training_macs(space, each) for each in random])),
        (f"evaluating {NUM_EVALUATED} random", evaluating(random), 5, sum(map(space.macs, random))),
        (f"evaluating {NUM_EVALUATED} concentrated", evaluating(near), 5, sum(map(space.macs, near))),
    ]
    memory = {which: peak_memory_mib(name, which) for which in benches}
    rows = []
    for (title, alternatives, repeats, macs), asked in zip(work, case.asked or ("", "", ""), strict=True):
        if "concentrated" in title and case.asked is None:
            continue
        seconds = interleaved(alternatives, case.rounds * repeats)
        speed = {which: 2 * case.batch_size * macs / value / 1e9 for which, value in seconds.items()}
        rows.append({
            "space": name,
            "what": title,
            "ours, s": seconds["ours"],
            "plain, s": seconds["plain"],
            "times faster": seconds["plain"] / seconds["ours"],
            "asked": asked,
            "ours, GFLOP/s": speed["ours"],
            "of the peak": f"{speed['ours'] / peak:.0%}",
            "plain, GFLOP/s": speed["plain"],
            "ours, MiB": f"{memory['ours']:.0f}",
            "plain, MiB": f"{memory['plain']:.0f}",
        })  # fmt: skip
    return rows


def peak_memory_mib(name: str, which: str) -> float:
    """Of a process of its own that trains a few steps and evaluates a round."""
    command = [sys.executable, __file__, "--memory", name, which]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(name: str, which: str) -> None:
    space, bench = CASES[name].make_space(), Bench(CASES[name], which == "plain")
    genotypes = space.sample(np.random.default_rng(0), NUM_EVALUATED)
    for genotype in genotypes[:4]:
        bench.train(genotype)
    bench.evaluate(genotypes)
    # Of this process alone; what getrusage tells includes the parent that it was forked from.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        print_memory(*sys.argv[2:])
        return
    chosen = [name for name in CASES if not sys.argv[1:] or sys.argv[1] in name]
    peak = matmul_peak()
    rows = [row for name in chosen for row in measure(name, peak)]
    if len(chosen) < len(CASES):
        for row in rows:
            print(*(f"{value:.4g}" if isinstance(value, float) else value for value in row.values()), sep=" | ")
        return
    record("supernet", "Shared weights: training and evaluation, beside a plain version", rows, [
        f"Matrix product's peak in this run: {peak:.0f} GFLOP/s. GFLOP/s count the multiply-accumulates of the",
        "architectures as their space counts them, twice, and three times those for a training step; work that is",
        "shared between architectures counts for each, so that more than the peak is possible. MiB: the most that a",
        f"process held that trains and evaluates. Concentrated: each token is kept with {KEPT:.0%}. Batches of 128, of",
        "32 for mlp and recurrent.",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
