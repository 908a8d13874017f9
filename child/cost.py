"""What an architecture costs: exact multiply-accumulates and parameters, and measured latency."""

import copy
import math
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from child.space import CostUnit, Genotype, NetworkSpace


@dataclass(frozen=True)
class Latency:
    """Of one forward pass, in milliseconds: the median, and the distance between the quartiles."""

    median_ms: float
    spread_ms: float


def measure_latency(
    network: nn.Module,
    input_shape: Sequence[int],
    device: torch.device,
    batch_size: int = 1,
    num_warmup: int = 10,
    num_repeats: int = 50,
    num_threads: int = 1,
) -> Latency:
    """Time forward passes of a network in evaluation mode, with the number of threads pinned meanwhile."""
    inputs = torch.zeros(batch_size, *input_shape, device=device)
    if inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    network = network.to(device).eval()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    seconds = []
    try:
        with torch.inference_mode():
            for repeat in range(num_warmup + num_repeats):
                start = time.perf_counter()
                network(inputs)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repeat >= num_warmup:
                    seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads_before)
    low, median, high = statistics.quantiles(seconds, n=4)
    return Latency(1000 * median, 1000 * (high - low))


def _of_matrix(matrix: Sequence[int], *rest: Any, **named: Any) -> int:
    return 2 * math.prod(matrix)


def _of_bilinear(first: Sequence[int], weight: Sequence[int], *rest: Any, **named: Any) -> int:
    return 2 * first[0] * math.prod(weight)


UNCOUNTED: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _of_matrix,
    torch.ops.aten.dot: _of_matrix,
    torch.ops.aten.addmv: lambda bias, *factors, **named: _of_matrix(*factors),
    torch.ops.aten._trilinear: _of_bilinear,
}
"""Operations of shapes (two for each multiply-accumulate) by what PyTorch's counter passes over."""


def count_macs(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of any network on one sample, counted by PyTorch on the meta device.

    Raises:
        ValueError: The network needs the values of its tensors, which that device does not have.
    """
    return _counted(network, input_shape)[1].get_total_flops() // 2


def count_parameters(network: nn.Module) -> int:
    """Parameters of any network, one that several modules have counted once."""
    return sum(parameter.numel() for parameter in network.parameters())


def cost_by_layer(network: nn.Module, input_shape: Sequence[int]) -> list[dict[str, Any]]:
    """Name, multiply-accumulates and parameters of each part of a network; they add up to those of the whole.

    Parts are the modules right below the network, and in place of a list or dict of modules what it holds. What the
    network computes or holds outside of them is the last part, `(outside of its modules)`. A parameter that several
    parts share counts for the first.
    """
    shadow, counter = _counted(network, input_shape)
    counts = {name: sum(each.values()) // 2 for name, each in counter.get_flop_counts().items()}
    counted: set[int] = set()

    def parameters(module: nn.Module) -> int:
        own = [each for each in module.parameters() if id(each) not in counted]
        counted.update(map(id, own))
        return sum(each.numel() for each in own)

    rows = [
        {"name": name, "macs": counts.get(f"{type(shadow).__name__}.{name}", 0), "parameters": parameters(module)}
        for name, module in _parts(shadow)
    ]
    macs = counter.get_total_flops() // 2 - sum(row["macs"] for row in rows)
    rows.append({"name": "(outside of its modules)", "macs": macs, "parameters": parameters(shadow)})
    return [row for row in rows if row["macs"] or row["parameters"]]


def _counted(network: nn.Module, input_shape: Sequence[int]) -> tuple[nn.Module, FlopCounterMode]:
    """A network's shadow, without values, and what was counted as it answered."""
    shadow = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter, torch.no_grad():
        try:
            shadow(torch.zeros(1, *input_shape, device="meta"))
        except (RuntimeError, NotImplementedError) as error:
            raise ValueError(
                f"the multiply-accumulates of {type(network).__name__} cannot be counted: its forward reads values of "
                f"tensors, or has tensors that are neither parameters nor buffers ({str(error).splitlines()[0]})"
            ) from None
    return shadow, counter


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def width_of_like_cost(build: Callable[[int], nn.Module], cost: Callable[[nn.Module], int], wanted: int) -> int:
    """The width at which a network, whose cost grows with it, comes nearest to so much; the narrower of equals."""
    found: dict[int, int] = {}

    def cost_of(width: int) -> int:
        if width not in found:
            with torch.device("meta"):
                found[width] = cost(build(width))
        return found[width]

    above = 1
    while cost_of(above) <= wanted:
        above *= 2
    first = bisect_left(range(above + 1), wanted, lo=1, key=cost_of)  # the narrowest that costs as much
    return min((width for width in (first - 1, first) if width > 0), key=lambda width: abs(cost_of(width) - wanted))


def random_of_like_macs(space: NetworkSpace, like: Genotype, num: int, seed: int) -> list[Genotype]:
    """Different random architectures whose MACs are within a tenth of those of `like`, which is not among them.

    They are the first of 2,000 draws that are that near; where there are too few, the nearest of the others follow.
    """
    drawn = dict.fromkeys(space.sample(np.random.default_rng(seed), 2_000))
    drawn.pop(like, None)
    wanted = space.macs(like)
    apart = {genotype: abs(space.macs(genotype) - wanted) / max(1, wanted) for genotype in drawn}
    return sorted(apart, key=lambda genotype: max(0.1, apart[genotype]))[:num]


class CostModel:
    """The cost of genotypes in one unit. A latency is measured once per genotype, stored, and reused."""

    def __init__(self, space: NetworkSpace, unit: CostUnit, input_shape: Sequence[int], device: torch.device):
        self.space, self.input_shape, self.device = space, input_shape, device
        self.unit: CostUnit = unit
        self.latencies: dict[Genotype, float] = {}

    def __call__(self, genotype: Genotype) -> float:
        if self.unit == "macs":
            return float(self.space.macs(genotype))
        if self.unit == "parameters":
            return float(self.space.parameters(genotype))
        if genotype not in self.latencies:
            network = self.space.network(genotype)
            self.latencies[genotype] = measure_latency(network, self.input_shape, self.device).median_ms
        return self.latencies[genotype]

    def state_dict(self) -> dict[str, Any]:
        """The latencies measured so far."""
        return {"latencies": [[list(genotype.tokens), ms] for genotype, ms in self.latencies.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.latencies = {Genotype(self.space.name, tuple(tokens)): ms for tokens, ms in state["latencies"]}
