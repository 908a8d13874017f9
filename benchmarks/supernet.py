"""Shared weights: a training step and the evaluation of a round, beside a plain version of the same supernet.

    python benchmarks/supernet.py          # about five minutes, as many threads as PyTorch takes

12-layer macro space, batches of 128 images of 32x32x3. The plain version is written as the public ENAS code is:
contiguous layout, reductions by two sliced and concatenated convolutions of every earlier output, one architecture at
a time. Both use the same operations.
"""

from timing import interleaved, matmul_peak, record  # isort: skip

import subprocess
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from child.macro import MacroSpace
from child.operations import MACRO_OPERATIONS
from child.space import Genotype
from child.supernet import batch_statistics

BATCH, NUM_EVALUATED = 128, 16
KEPT = 0.97  # how sure the concentrated policy is of each token


class PlainReduction(nn.Module):
    """ENAS's factorized reduction: two 1x1 convolutions of stride 2, one of them shifted by a pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.even = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels, channels - channels // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        shifted = functional.pad(x, [0, 1, 0, 1])[:, :, 1:, 1:]
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


class PlainSupernet(nn.Module):
    """The macro supernet for one architecture at a time; where sizes halve, every earlier output is reduced."""

    def __init__(self, space: MacroSpace):
        super().__init__()
        self.space, channels = space, space.channels
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.operations = nn.ModuleList(
            nn.ModuleDict({name: MACRO_OPERATIONS[name].build(channels) for name in space.operations})
            for _ in range(space.num_layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(space.num_layers))
        self.reductions = nn.ModuleDict({
            str(layer): nn.ModuleList(PlainReduction(channels) for _ in range(layer + 1))
            for layer in range(1, space.num_layers) if space.levels[layer] > space.levels[layer - 1]
        })  # fmt: skip
        self.classifier = nn.Linear(channels, space.num_outputs)

    def forward(self, x: Tensor, genotype: Genotype) -> Tensor:
        outputs = [self.stem(x)]
        for layer, (operation, skips) in enumerate(self.space.layers(genotype)):
            if str(layer) in self.reductions:
                reductions: nn.ModuleList = self.reductions[str(layer)]  # type: ignore[assignment]
                outputs = [reduce(output) for reduce, output in zip(reductions, outputs, strict=True)]
            total = self.operations[layer][operation](outputs[-1])  # type: ignore[index]
            for source in skips:
                total = total + outputs[source + 1]
            outputs.append(self.norms[layer](total))
        return self.classifier(outputs[-1].mean(dim=(2, 3)))


def concentrated(space: MacroSpace, num: int) -> list[Genotype]:
    """Draws of a policy that gives each token of one architecture a chance of KEPT."""
    rng = np.random.default_rng(1)
    mode = np.array(space.sample(rng, 1)[0].tokens)
    others = np.array([genotype.tokens for genotype in space.sample(rng, num)])
    return [space.canonical(row) for row in np.where(rng.random(others.shape) < KEPT, mode, others)]


class Bench:
    """Our supernet or the plain one, with its optimizer and a batch."""

    def __init__(self, space: MacroSpace, plain: bool):
        torch.manual_seed(0)
        self.plain = plain
        self.network = PlainSupernet(space) if plain else space.network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.05, momentum=0.9, nesterov=True)
        inputs = torch.randn(BATCH, 3, 32, 32)
        self.inputs = inputs if plain else inputs.contiguous(memory_format=torch.channels_last)
        self.targets = torch.arange(BATCH) % 10

    def train(self, genotype: Genotype) -> None:
        self.network.train()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.network(self.inputs, genotype), self.targets).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self, genotypes: list[Genotype]) -> None:
        with batch_statistics(self.network):
            if self.plain:
                for genotype in genotypes:
                    self.network(self.inputs, genotype)
            else:
                self.network.forward_many(self.inputs, genotypes)  # type: ignore[operator]


def make_space(channels: int) -> MacroSpace:
    return MacroSpace((3, 32, 32), 10, channels, 12)


def peak_memory_mib(channels: int, plain: bool) -> float:
    """Of a process that trains a few steps and evaluates a round."""
    command = [sys.executable, __file__, "memory", str(channels), str(int(plain))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        space = make_space(int(sys.argv[2]))
        bench = Bench(space, bool(int(sys.argv[3])))
        genotypes = space.sample(np.random.default_rng(0), NUM_EVALUATED)
        for genotype in genotypes[:4]:
            bench.train(genotype)
        bench.evaluate(genotypes)
        # Of this process alone; what getrusage tells includes the parent that it was forked from.
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        return
    peak = matmul_peak()
    rows = []
    for channels in (32, 36):
        space = make_space(channels)
        ours, plain = Bench(space, plain=False), Bench(space, plain=True)
        genotypes = space.sample(np.random.default_rng(0), NUM_EVALUATED)
        memory = [peak_memory_mib(channels, plain=which) for which in (False, True)]
        turns = [cycle(genotypes), cycle(genotypes)]
        train = {"ours": lambda: ours.train(next(turns[0])), "plain": lambda: plain.train(next(turns[1]))}  # noqa: B023
        near = concentrated(space, NUM_EVALUATED)
        macs = [space.macs(genotype) for genotype in genotypes]
        work = [
            ("training step", train, NUM_EVALUATED - 1, 3 * np.median(macs)),
            (f"evaluating {NUM_EVALUATED} random", both(ours, plain, genotypes), 5, sum(macs)),
            (f"evaluating {NUM_EVALUATED} concentrated", both(ours, plain, near), 5, sum(map(space.macs, near))),
        ]
        for title, alternatives, repeats, num_macs in work:
            seconds = interleaved(alternatives, repeats)
            speed = {name: 2 * BATCH * num_macs / value / 1e9 for name, value in seconds.items()}
            rows.append({
                "channels": channels,
                "what": title,
                "ours, s": seconds["ours"],
                "plain, s": seconds["plain"],
                "times faster": seconds["plain"] / seconds["ours"],
                "ours, GFLOP/s": speed["ours"],
                "of the peak": f"{speed['ours'] / peak:.0%}",
                "plain, GFLOP/s": speed["plain"],
                "peak memory, MiB": f"{memory[0]:.0f} (plain {memory[1]:.0f})",
            })  # fmt: skip
    record("supernet", "Shared weights: training and evaluation, beside a plain version", rows, [
        f"Matrix product's peak in this run: {peak:.0f} GFLOP/s. GFLOP/s count the multiply-accumulates of the",
        "architectures twice, three times those for a training step; work that is shared between architectures counts",
        f"for each, so that more than the peak is possible. Concentrated: each of 78 tokens is kept with {KEPT:.0%}.",
    ])  # fmt: skip


def both(ours: Bench, plain: Bench, genotypes: list[Genotype]) -> dict:
    return {"ours": lambda: ours.evaluate(genotypes), "plain": lambda: plain.evaluate(genotypes)}


if __name__ == "__main__":
    main()
