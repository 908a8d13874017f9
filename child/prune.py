"""Structured pruning: whole channels are removed, so that what is left is a smaller network of plain layers.

Channels that a sum, a concatenation or a depthwise convolution ties together form a group and go together; groups are
found by torch-pruning's dependency graph (Fang et al. 2023, "DepGraph"). What it finds is not taken on trust: a group
is used only if, on two trials, the network without some of its channels answers as the network whose next layers have
weights of zero for them, and as the network built whole that takes its weights. A group that fails (a slice of fixed
width, channels in another order, attention, a layer that keeps the sizes it was built with) is left as it is.

A unit is what can be removed of a group: one channel, or of grouped convolutions one channel of each of their groups.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_map_only

from child.network import order_channels_last, resize
from child.norm import batch_norms, statistics_anew
from child.space import derive_seed
from child.task import Task
from child.training import FineTuning

Importance = Literal["magnitude", "bn_scale", "taylor"]

Kept = Mapping[str, int]
"""How many units of each group stay."""


@dataclass(frozen=True)
class PruneSettings:
    """How channels are removed.

    Args:
        training: After every round.
        unit: What is brought down, `macs` or `parameters`; None for that of the goal, else macs.
        share: To this share of the original's; None for that of the goal, or half where there is none.
        ratios: `global` compares channels across groups, `uniform` keeps the same share of every group, and with
            `search` the controller finds a ratio for each.
        importance: As of `score_units`.
        rounds: In so many steps, each the same share of what is left.
        least: The share of a group that stays in any case, of what the original has, to the nearest `multiple`.
        multiple: Of how many channels the rest should be.
        choices: The shares removed that `search` chooses from.
    """

    training: FineTuning
    unit: Literal["macs", "parameters"] | None = None
    share: float | None = None
    ratios: Literal["global", "uniform", "search"] = "global"
    importance: Importance = "magnitude"
    rounds: int = 1
    least: float = 0.1
    multiple: int = 4
    choices: tuple[float, ...] = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75)

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"prune.share is a share of the original's in (0, 1), got {self.share:g}")
        if self.rounds < 1 or self.multiple < 1 or not 0 <= self.least < 1:
            raise ValueError(
                "prune needs rounds >= 1, multiple >= 1 and least in [0, 1), got "
                f"{self.rounds}, {self.multiple} and {self.least:g}"
            )
        choices = list(self.choices)
        if len(choices) < 2 or choices != sorted(set(choices)) or not 0 <= choices[0] <= choices[-1] < 1:
            raise ValueError(f"prune.choices are two or more ascending shares in [0, 1), got {choices}")


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together.

    Args:
        name: The layer that the group was found from.
        num_channels: Of that layer.
        num_parts: 1, or how many parts grouped convolutions divide the channels into; each part loses equally many.
    """

    name: str
    num_channels: int
    num_parts: int

    @property
    def num_units(self) -> int:
        return self.num_channels // self.num_parts

    def channels(self, units: Sequence[int]) -> list[int]:
        """The channels of these units."""
        return [part * self.num_units + unit for part in range(self.num_parts) for unit in units]


def find_groups(module: nn.Module, input_shape: Sequence[int]) -> list[Group]:
    """The groups that can be pruned, in the order of their layers.

    Raises:
        ValueError: The network cannot be traced, or has no such group.
    """
    module = copy.deepcopy(module).cpu()  # elsewhere products of other sizes may round otherwise than the trial allows
    groups = [group for group in trace(module, input_shape)[1] if group.num_units > 1]
    if not _are_sound(module, input_shape, groups):
        groups = [group for group in groups if _are_sound(module, input_shape, [group])]
    if not groups:
        raise ValueError(
            f"{type(module).__name__} has no channels that can be pruned: none of its convolutions and linear layers "
            "has weights of its own and leads to others in a way that could be traced and built again; leave the step "
            "prune out"
        )
    places = {name: place for place, (name, _) in enumerate(module.named_modules())}
    return sorted(groups, key=lambda group: places[group.name])


def trace(module: nn.Module, input_shape: Sequence[int]) -> tuple[Any, list[Group]]:
    """Torch-pruning's dependency graph of a network, and the groups in it that might be pruned.

    Raises:
        ValueError: The network cannot be traced, or torch-pruning is not installed.
    """
    graph = _dependency_graph()
    module.eval()
    device = next(module.parameters()).device
    parameters = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    recurrent = [layer for layer in module.modules() if isinstance(layer, nn.RNNBase)]
    ends = [layer.register_forward_hook(_end_of_graph) for layer in recurrent]  # inside of some it would lose its way
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # it prints what it assumes; what it found is tried out in any case
            for parameter in parameters:  # or the path through its layer is not seen
                parameter.requires_grad_(True)
            inputs = torch.zeros(2, *input_shape, device=device)
            graph.build_dependency(module, inputs, verbose=False)
            found = list(graph.get_all_groups(root_module_types=[_ConvNd, nn.Linear]))
            with torch.no_grad():  # what a forward pass leaves in a module, such as a normalized weight, can be copied
                module(inputs)
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot be traced for pruning: {' '.join(str(error).split()) or repr(error)}"
        ) from None
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for end in ends:
            end.remove()
    names = {layer: name for name, layer in module.named_modules()}
    holders = Counter(parameter for layer in module.modules() for parameter in layer.parameters(recurse=False))
    groups = []
    for each in found:
        if _may_go(graph, each, holders):
            layer = each[0].dep.target.module
            groups.append(Group(names[layer], len(each[0].idxs), _num_parts(item.dep.target.module for item in each)))
    return graph, groups


def _may_go(graph: Any, found: Any, holders: Counter[nn.Parameter]) -> bool:
    """Whether channels are none of the network's outputs, and nothing else would change with them.

    Args:
        graph: Torch-pruning's.
        found: Its group of all these channels.
        holders: How many modules have each parameter.
    """
    for dep, channels in found:
        layer = dep.target.module
        if not dep.target.outputs and graph.is_out_channel_pruning_fn(dep.handler):
            return False
        if any(holders[own] > 1 for own in (layer.parameters() if isinstance(layer, nn.Module) else [layer])):
            return False
        # Of a concatenation the groups of a normalization would take in channels of another part.
        if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1 and len(channels) < layer.num_channels:
            return False
    return True


def _end_of_graph(layer: nn.Module, inputs: Any, outputs: Any) -> Any:
    """What a layer gives, as if it came from nowhere."""
    return tree_map_only(Tensor, lambda y: y.detach().requires_grad_(y.is_floating_point()), outputs)


def score_units(
    module: nn.Module,
    input_shape: Sequence[int],
    groups: Sequence[Group],
    importance: Importance,
    task: Task | None = None,
    num_batches: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The importance of every unit of every group, with mean 1 in each group, so that groups can be compared.

    Args:
        module: Is not changed.
        input_shape: Of one sample.
        groups: Those of `find_groups`.
        importance: `magnitude`, the squared norm of all weights of a channel in convolutions, linear layers and
            normalizations, coming and going, depthwise ones among them (Fang et al. 2023); `bn_scale`, the scale of
            batch normalization (Liu et al. 2017), magnitude where there is none; `taylor`, how far the loss of a batch
            would move to first order without these weights and biases, in the mean (Molchanov et al. 2019, who take its
            square).
        task: For `taylor`, whose gradients are those of training batches.
        num_batches: For `taylor`.
        batch_size: For `taylor`.
        seed: Draws those batches.
    """
    module = copy.deepcopy(module)
    graph, _ = trace(module, input_shape)
    found = {group: _select(graph, module, group, range(group.num_units)) for group in groups}
    scores = {group: torch.zeros(group.num_units) for group in groups}
    if importance == "taylor":
        assert task is not None
        for inputs, targets in _training_batches(task, num_batches, batch_size, seed):
            _find_gradient(module, task, inputs, targets)
            for group in groups:
                scores[group] += _total(found[group], group, lambda weight: weight * weight.grad, biases=True).abs()
    if importance == "bn_scale":
        for group in groups:
            scales = [item for item in found[group] if isinstance(item.dep.target.module, _BatchNorm)]
            scores[group] = _total(scales, group, Tensor.abs)
    for group in groups:
        if not scores[group].any():
            scores[group] = _total(found[group], group, Tensor.square)
    return {group.name: score / score.mean().clamp(min=1e-12) for group, score in scores.items()}


@torch.no_grad()
def _total(found: Any, group: Group, of: Callable[[Any], Tensor], biases: bool = False) -> Tensor:
    """For each unit of a group the sum, over all layers that have weights of it, of what `of` makes of these.

    Args:
        found: Torch-pruning's group of all these channels.
        group: Ours.
        of: Of a parameter, in its shape.
        biases: Whether those of the layers that make the channels count too.
    """
    prune, total = _torch_pruning().pruner.function, torch.zeros(group.num_channels)
    for item in found:
        layer, handler = item.dep.target.module, item.dep.handler
        reads = handler in (prune.prune_linear_in_channels, prune.prune_conv_in_channels)
        if None in item.root_idxs:  # it lost track of what these channels are
            continue
        if isinstance(layer, nn.Linear | _ConvNd):
            parts = [_by_channel(layer, of(layer.weight), reads).flatten(0, 1)]
        elif isinstance(layer, _BatchNorm | _InstanceNorm | nn.GroupNorm | nn.LayerNorm) and layer.weight is not None:
            parts = [of(layer.weight).movedim(-1, 0)]
        else:
            continue
        if biases and not reads and layer.bias is not None:
            parts.append(of(layer.bias).movedim(-1, 0))
        for values in parts:
            each = values[item.idxs].reshape(len(item.idxs), -1).sum(dim=1)
            total.index_add_(0, torch.tensor(item.root_idxs), each.cpu())
    return total.view(group.num_parts, -1).sum(dim=0)


def _by_channel(layer: Any, values: Tensor, reads: bool) -> Tensor:
    """Values of a layer's weight by the channels that it reads, or makes, as a view (groups, channels of each, ...)."""
    parts = values.unflatten(0, (getattr(layer, "groups", 1), -1))
    return parts if reads == getattr(layer, "transposed", False) else parts.transpose(1, 2)


def remove_units(
    module: nn.Module, input_shape: Sequence[int], groups: Sequence[Group], scores: Mapping[str, Tensor], kept: Kept
) -> nn.Module:
    """A copy of a network that keeps so many units of each group, the most important of them."""
    module = copy.deepcopy(module)
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    graph, _ = trace(module, input_shape)
    for group in groups:
        order = scores[group.name].argsort(stable=True).tolist()
        _remove(graph, module, group, order[: group.num_units - kept[group.name]])
    for name, parameter in module.named_parameters():
        parameter.grad = None
        parameter.requires_grad_(name not in frozen)
    order_channels_last(module)  # what was cut out of a tensor lies in another order in memory
    return module


def keep_shares(
    groups: Sequence[Group], shares: Mapping[str, float], least: Mapping[str, float] | float = 0.0, multiple: int = 1
) -> dict[str, int]:
    """How many units stay where each group keeps a share of them.

    Args:
        groups: The groups.
        shares: Of each group.
        least: The share that stays in any case, of each group or of all, rounded likewise; one unit always does.
        multiple: Of how many channels the rest should be, if the group has as many; a vector of the processor holds 16.
    """
    kept = {}
    for group in groups:
        step = max(1, multiple // group.num_parts)
        fewest = least[group.name] if isinstance(least, Mapping) else least
        wanted = max(fewest, shares[group.name]) * group.num_units
        rounded = max(step, step * round(wanted / step))
        kept[group.name] = group.num_units if round(wanted) == group.num_units else min(group.num_units, rounded)
    return kept


def uniform(groups: Sequence[Group], scores: Mapping[str, Tensor], share: float) -> dict[str, float]:
    """Every group keeps the same share."""
    return {group.name: share for group in groups}


def across(groups: Sequence[Group], scores: Mapping[str, Tensor], share: float) -> dict[str, float]:
    """Of all units of all groups that share stays, the most important of them, wherever they are."""
    every = torch.cat([scores[group.name] for group in groups]).sort(descending=True).values
    num = math.floor(share * len(every))
    bar = every[num] if num < len(every) else -math.inf
    return {group.name: (scores[group.name] > bar).float().mean().item() for group in groups}


def fit(
    module: nn.Module,
    input_shape: Sequence[int],
    groups: Sequence[Group],
    scores: Mapping[str, Tensor],
    plan: Callable[[float], Kept],
    cost: Callable[[nn.Module], float],
    wanted: float,
) -> nn.Module:
    """The largest network of a family that costs no more than wanted.

    Args:
        module: What is pruned; is not changed.
        input_shape: Of one sample.
        groups: Its groups.
        scores: The importance of their units.
        plan: The family: what each group keeps, growing with a number from 0 to 1, at which everything stays.
        cost: Of a network.
        wanted: The most that it may cost.

    Raises:
        ValueError: The smallest of the family costs more.
    """
    found: dict[tuple[int, ...], tuple[nn.Module, float]] = {}

    def at(position: float) -> tuple[nn.Module, float]:
        kept = plan(position)
        key = tuple(kept[group.name] for group in groups)
        if key not in found:
            smaller = remove_units(module, input_shape, groups, scores, kept)
            found[key] = smaller, cost(smaller)
        return found[key]

    low, high = 0.0, 1.0
    best, least = at(low)
    if least > wanted:
        raise ValueError(f"pruning cannot go below {least:.0f}, and {wanted:.0f} is wanted")
    if at(high)[1] <= wanted:
        return at(high)[0]
    for _ in range(10):  # to a thousandth
        middle = (low + high) / 2
        smaller, value = at(middle)
        if value <= wanted:
            low, best = middle, smaller
        else:
            high = middle
    return best


def gather_statistics(module: nn.Module, task: Task, num_batches: int, batch_size: int, seed: int) -> None:
    """Running statistics of the normalizations anew, from training batches: those of the whole network do not hold."""
    if not batch_norms(module):
        return
    device = next(module.parameters()).device
    with torch.no_grad(), statistics_anew(module):
        for inputs, _ in _training_batches(task, num_batches, batch_size, seed):
            module(inputs.to(device))


def _training_batches(task: Task, num_batches: int, batch_size: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    batches, size = [], min(batch_size, len(task.train))
    for number in range(num_batches):
        generator = torch.Generator().manual_seed(derive_seed(seed, "prune", number))
        indices = torch.randperm(len(task.train), generator=generator)[:size]
        batches.append(task.training_batch(indices, generator))
    return batches


def _find_gradient(module: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> None:
    """The gradient of a batch's loss, in `grad`, of a network in evaluation mode: dropout would only add noise."""
    device = next(module.parameters()).device
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with torch.backends.cudnn.flags(enabled=False):  # whose recurrent layers have no gradient in evaluation mode
        task.loss(module.eval()(inputs.to(device)), targets.to(device)).backward()


def _are_sound(module: nn.Module, input_shape: Sequence[int], groups: Sequence[Group]) -> bool:
    """Whether a network does without units of these groups: on two trials, with one of each and with a third."""
    generator = torch.Generator().manual_seed(0)
    # Up to 2, so that a network that reads symbols gets two of them.
    inputs = 2 * torch.rand(3, *input_shape, generator=generator)
    for share in (0, 1 / 3):
        # Drawn for each group, or nobody would notice that channels are reversed between one and the next.
        units = {
            group: torch.randperm(group.num_units, generator=generator)[: max(1, int(share * group.num_units))].tolist()
            for group in groups
        }
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                if not _does_without(module, inputs, units):
                    return False
        except Exception:  # whatever goes wrong in a network of the user's, the group is left alone
            return False
    return True


def _does_without(module: nn.Module, inputs: Tensor, units: Mapping[Group, Sequence[int]]) -> bool:
    """Whether a network without these units answers as one whose next layers do not look at them.

    It also has to answer as the network that is loaded in its place, or nobody could after it was trained; and that one
    must run as it is trained, where it may have parts that the dependency graph has not seen.
    """
    whole, blind, smaller, loaded = (copy.deepcopy(module) for _ in range(4))
    graph, _ = trace(smaller, inputs.shape[1:])
    twins = dict(zip(smaller.modules(), blind.modules(), strict=True))
    for group, gone in units.items():
        _blind(_select(graph, smaller, group, gone), twins)
    for group, gone in units.items():
        _remove(graph, smaller, group, gone)
        root = smaller.get_submodule(group.name)
        left = graph.get_pruner_of_module(root).get_out_channels(root)
        if left != group.num_channels - len(group.channels(gone)):  # those that are tied to them went too
            return False
    resize(loaded, smaller.state_dict())
    loaded.load_state_dict(smaller.state_dict())
    given, again = smaller(inputs), loaded(inputs)
    loaded.train()(inputs)
    statistics: dict[str, tuple[Tensor, Tensor]] = {}
    for each in (whole, blind, smaller):
        _hold_statistics(each, statistics)
    before, wanted, found = whole(inputs), blind(inputs), smaller(inputs)
    # Rounding was seen to take answers 2e-6 of their size apart, and 6e-6 of what changed where several groups did.
    tolerance = max(1e-5 * wanted.abs().max().item(), 1e-4 * _distance(wanted, before))
    return _distance(given, again) <= 1e-5 * given.abs().max().item() and _distance(found, wanted) <= tolerance


def _distance(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item() if first.shape == second.shape else math.inf


def _select(graph: Any, module: nn.Module, group: Group, units: Sequence[int]) -> Any:
    """Torch-pruning's group of these units: what is done to which layer, and to which channels of it."""
    layer = module.get_submodule(group.name)
    return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, group.channels(units))


def _remove(graph: Any, module: nn.Module, group: Group, units: Sequence[int]) -> None:
    if units:
        _select(graph, module, group, units).prune()


def _blind(found: Any, twins: Mapping[nn.Module, Any]) -> None:
    """Weights of zero for these channels in the twins of the layers that read them."""
    prune = _torch_pruning().pruner.function
    for dep, idxs in found:
        if dep.handler not in (prune.prune_linear_in_channels, prune.prune_conv_in_channels):
            continue
        reader = twins[dep.target.module]
        weight, places = _by_channel(reader, reader.weight, reads=True), torch.tensor(idxs)
        weight[places // weight.shape[1], places % weight.shape[1]] = 0


def _hold_statistics(module: nn.Module, known: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Let normalizations over channels use known statistics, or find those of the first network that runs.

    Else a channel that is gone, and one that nobody looks at, are not the same to them.
    """

    def normalize(name: str, layer: Any, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
        (x,) = inputs
        mean, std = known.setdefault(name, (x.mean(), x.std()))
        y = (x - mean) / (std + layer.eps)
        shape = (-1, *(1,) * (x.ndim - 2)) if isinstance(layer, nn.GroupNorm) else layer.normalized_shape
        for how, values in ((torch.mul, layer.weight), (torch.add, layer.bias)):
            y = y if values is None else how(y, values.view(shape))
        return y

    for name, layer in module.named_modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            layer.register_forward_hook(partial(normalize, name))


def _num_parts(layers: Any) -> int:
    """The parts that grouped convolutions and group normalizations divide the channels of a group into."""
    parts = 1
    for layer in layers:
        if isinstance(layer, nn.GroupNorm):
            parts = math.lcm(parts, layer.num_groups)
        elif _is_grouped(layer):
            parts = math.lcm(parts, layer.groups)
    return parts


def _is_grouped(layer: nn.Module) -> bool:
    """Whether this is a convolution of several groups, and not a depthwise one."""
    if not isinstance(layer, _ConvNd):
        return False
    return layer.groups > 1 and not layer.groups == layer.in_channels == layer.out_channels


def _dependency_graph() -> Any:
    """Torch-pruning's, which would take a convolution for depthwise that gives one channel per group but reads more."""
    tp = _torch_pruning()

    class Graph(tp.DependencyGraph):
        def get_pruner_of_module(self, module: nn.Module) -> Any:
            grouped = self.REGISTERED_PRUNERS[tp.ops.OPTYPE.CONV]
            return grouped if _is_grouped(module) else super().get_pruner_of_module(module)

    return Graph()


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise ValueError("pruning needs torch-pruning; install it with: pip install '.[prune]'") from None
    return torch_pruning
