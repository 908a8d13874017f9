"""The words of the house: decisions, search spaces, genotypes, evaluations, evaluators.

Everything here is plain data or an interface. This module imports nothing of ours, so that every floor may use it.
Letters: B architectures, T decisions (tokens) per architecture, C the largest number of choices of any decision.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Tokens = NDArray[np.int64]
Mask = NDArray[np.int8]
CostUnit = Literal["macs", "parameters", "latency_ms"]
Plan = TypeVar("Plan")
"""What of a network an architecture runs, such as the layers of a chain."""


def derive_seed(seed: int, *key: int | str) -> int:
    """A 63-bit seed for one purpose, from the run's seed and a key such as (stage, step).

    Every random draw of a run is keyed this way, so that no generator state has to be saved to resume it.
    """
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def nearest(name: object, allowed: Iterable[object]) -> str:
    """The end of an error message: what is allowed, and the nearest of it to what was given."""
    names = [str(option) for option in allowed]
    close = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"allowed: {', '.join(names)}{hint}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch has an error of its own for devices, but on the processor a plain one."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


MOST_PARTS = 1000
"""Layers, cells or nodes of a network; the spaces that users search have some tens."""


def check_counts(whole: str, **counts: int) -> None:
    """Refuse none at all, and so many that to build them would not end, of what a network or a space consists of.

    Raises:
        ValueError: A count is not within 1 and `MOST_PARTS`.
    """
    for name, count in counts.items():
        if not 1 <= count <= MOST_PARTS:
            raise ValueError(f"{whole} needs {name} from 1 to {MOST_PARTS}, got {count}")


@dataclass(frozen=True)
class Decision:
    """One token of an architecture.

    Args:
        name: Unique within the space, such as `layer3.operation`.
        kind: What is chosen: `operation`, `skip`, `input`, `depth`, `width`, ... Decisions of one kind and number
            of choices share their embedding and their output weights in the policy.
        labels: The choices, in the order of their tokens.
        node: The node (layer) that the decision shapes, counted from 0; -1 for the whole network.
        sources: For `skip`: the one earlier node that may be connected. For `input`: the node behind each choice.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    node: int = -1
    sources: tuple[int, ...] = ()

    @property
    def num_choices(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Genotype:
    """A finished architecture as plain data: the name of its space and its canonical tokens."""

    space: str
    tokens: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"space": self.space, "tokens": list(self.tokens)}

    @classmethod
    def from_json(cls, data: object) -> "Genotype":
        """Read what `to_json` gave.

        Raises:
            ValueError: The data are not a mapping with a space name and a list of integers.
        """
        match data:
            case {"space": str(space), "tokens": [*tokens]} if all(type(token) is int for token in tokens):
                return cls(space, tuple(tokens))
        raise ValueError(f"a genotype is an object with 'space' (text) and 'tokens' (integers), not {data!r:.200}")


class Evaluation(NamedTuple):
    """What evaluating one architecture gave.

    A tuple, since a frozen dataclass takes three times as long to make, and a table gives many: `_replace` changes a
    field, and `np.fromiter(evaluations, object)` makes an array of them.

    Args:
        genotype: What was evaluated.
        quality: The task's bounded quality in [0, 1], higher is better; 0 where the evaluation failed.
        cost: In the unit that the evaluator was given (multiply-accumulates, parameters or milliseconds).
        fidelity: The share of a full evaluation that was spent, in (0, 1].
        seed: The seed that the evaluation was drawn with.
        failure: Why there is no quality, or None.
        charge: What the search's account charged for it, which fills it in: 1, or what a table says; an evaluator
            leaves it at 1.
    """

    genotype: Genotype
    quality: float
    cost: float
    fidelity: float
    seed: int
    failure: str | None = None
    charge: float = 1.0


OVER_BUDGET = "it no longer fits the budget"
"""The failure of an evaluation that was not made because the budget of the search is spent."""


@dataclass(frozen=True)
class Graph:
    """An architecture for drawing: `nodes` are (name, label, kind), `edges` are (from name, to name)."""

    nodes: tuple[tuple[str, str, str], ...]
    edges: tuple[tuple[str, str], ...]


class SearchSpace(ABC):
    """An ordered list of decisions, and what is legal after which prefix.

    A subclass sets `name` and `decisions`; where legal choices depend on earlier ones it also overrides `mask` and
    sets `masks_depend_on_prefix`. A decision without influence (a layer beyond the chosen depth) has one legal
    choice, so that every legal token sequence is canonical: two sequences are the same genotype only if equal.
    `parameter_free` names the operations that have no weights of their own, such as identity and pools, where others
    have: a search with shared weights that has collapsed chooses them alone.
    """

    name: str
    decisions: tuple[Decision, ...]
    masks_depend_on_prefix: bool = False
    parameter_free: frozenset[str] = frozenset()

    @cached_property
    def max_choices(self) -> int:
        return max(decision.num_choices for decision in self.decisions)

    def to_json(self) -> dict[str, Any]:
        """Its decisions as plain data: `space.json`."""
        decisions = [{"name": d.name, "kind": d.kind, "labels": list(d.labels)} for d in self.decisions]
        return {"name": self.name, "decisions": decisions}

    @cached_property
    def full_masks(self) -> Mask:
        """Which choices exist for each decision: (T, C)."""
        masks = np.zeros((len(self.decisions), self.max_choices), np.int8)
        for step, decision in enumerate(self.decisions):
            masks[step, : decision.num_choices] = 1
        return masks

    def mask(self, prefixes: Tokens) -> Mask:
        """The legal choices of the next decision, (B, C), for the tokens so far, (B, t). Never all zero."""
        num_episodes, step = prefixes.shape
        return np.broadcast_to(self.full_masks[step], (num_episodes, self.max_choices))

    def masks(self, tokens: Tokens) -> Mask:
        """The legal choices at every step of whole architectures: (B, T, C) for tokens (B, T)."""
        if not self.masks_depend_on_prefix:
            return np.broadcast_to(self.full_masks, (len(tokens), *self.full_masks.shape))
        return np.stack([self.mask(tokens[:, :step]) for step in range(len(self.decisions))], axis=1)

    def genotype(self, tokens: Iterable[int]) -> Genotype:
        """The genotype of these tokens.

        Raises:
            ValueError: The number of tokens is wrong, or one is illegal; the message names the decision.
        """
        given = [int(token) for token in tokens]
        if len(given) != len(self.decisions):
            raise ValueError(f"space {self.name!r} expects {len(self.decisions)} tokens, got {len(given)}")
        prefix = np.zeros((1, len(given)), np.int64)
        for step, token in enumerate(given):
            mask = self.mask(prefix[:, :step])[0]
            if not 0 <= token < len(mask) or not mask[token]:
                raise ValueError(self.illegal(step, token, mask))
            prefix[0, step] = token
        return Genotype(self.name, tuple(given))

    def check(self, genotype: Genotype) -> Genotype:
        """The same genotype, proven to belong to this space and to be legal (else ValueError)."""
        if genotype.space != self.name:
            raise ValueError(f"expected a genotype of space {self.name!r}, got one of {genotype.space!r}")
        return self.genotype(genotype.tokens)

    def illegal(self, step: int, token: object, mask: NDArray[Any]) -> str:
        """The message for an illegal token: the decision, what came, and the legal choices."""
        decision = self.decisions[step]
        legal = ", ".join(f"{choice} ({decision.labels[choice]})" for choice in np.flatnonzero(mask))
        return f"illegal action {token} for decision {step} ({decision.name}); legal choices: {legal}"

    def canonical(self, tokens: Iterable[int]) -> Genotype:
        """The legal genotype nearest to these tokens in reading order: an illegal token becomes the first legal one."""
        repaired = np.array([list(tokens)], np.int64)
        for step in range(len(self.decisions)):
            mask = self.mask(repaired[:, :step])[0]
            if not 0 <= repaired[0, step] < len(mask) or not mask[repaired[0, step]]:
                repaired[0, step] = int(np.flatnonzero(mask)[0])
        return Genotype(self.name, tuple(repaired[0].tolist()))

    def sample(self, rng: np.random.Generator, num: int) -> list[Genotype]:
        """Draw architectures, each decision uniform over its legal choices."""
        tokens = np.zeros((num, len(self.decisions)), np.int64)
        noise = rng.random((len(self.decisions), num, self.max_choices))
        for step in range(len(self.decisions)):
            tokens[:, step] = np.where(self.mask(tokens[:, :step]), noise[step], -1.0).argmax(axis=1)
        return [Genotype(self.name, tuple(row)) for row in tokens.tolist()]

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """Change one decision that has another legal choice, drawn uniformly, and repair what depended on it."""
        masks = self.masks(np.array([genotype.tokens]))[0]
        open_steps = np.flatnonzero(masks.sum(axis=1) > 1)
        if len(open_steps) == 0:
            return genotype
        step = int(rng.choice(open_steps))
        others = [int(choice) for choice in np.flatnonzero(masks[step]) if choice != genotype.tokens[step]]
        tokens = list(genotype.tokens)
        tokens[step] = int(rng.choice(others))
        return self.canonical(tokens)

    def neighbors(self, genotype: Genotype) -> list[Genotype]:
        """Every architecture one decision away, without repetition, in the order of the decisions."""
        masks = self.masks(np.array([genotype.tokens]))[0]
        found: dict[Genotype, None] = {}
        for step, mask in enumerate(masks):
            for choice in np.flatnonzero(mask).tolist():
                tokens = list(genotype.tokens)
                tokens[step] = choice
                repaired = self.canonical(tokens) if self.masks_depend_on_prefix else Genotype(self.name, tuple(tokens))
                found[repaired] = None
        found.pop(genotype, None)
        return list(found)

    def cross_over(self, first: Genotype, second: Genotype, rng: np.random.Generator) -> Genotype:
        """A child that takes each decision from one of its parents, with even chances, repaired."""
        from_first = rng.random(len(self.decisions)) < 0.5
        return self.canonical(np.where(from_first, first.tokens, second.tokens))

    def text(self, genotype: Genotype) -> str:
        """One line that reads well; `parse` reads it back."""
        pairs = zip(self.decisions, genotype.tokens, strict=True)
        return " ".join(f"{decision.name}={decision.labels[token]}" for decision, token in pairs)

    def parse(self, text: str) -> Genotype:
        """Read what `text` wrote.

        Raises:
            ValueError: A decision or label is unknown, missing or repeated.
        """
        names = [decision.name for decision in self.decisions]
        chosen: dict[str, str] = {}
        for word in text.split():
            name, _, label = word.partition("=")
            if name not in names:
                raise ValueError(f"unknown decision {name!r} in space {self.name!r}; {nearest(name, names)}")
            if name in chosen:
                raise ValueError(f"decision {name!r} is given twice")
            chosen[name] = label
        tokens = []
        for decision in self.decisions:
            label = chosen.get(decision.name)
            if label not in decision.labels:
                given = "is missing" if label is None else f"is {label!r}"
                raise ValueError(f"decision {decision.name!r} {given}; {nearest(label, decision.labels)}")
            tokens.append(decision.labels.index(label))
        return self.genotype(tokens)

    def key(self, genotype: Genotype) -> Hashable:
        """Equal for architectures that compute the same function, as far as the space knows."""
        return genotype.tokens

    def features(self, tokens: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """What makes architectures (M, T) alike, as numbers (M, F), where a space knows more of it than decisions do.

        By default it does not. The nearer their features, the more alike a reward model takes two architectures to be.
        No column is scaled by itself, so they belong on like scales.
        """
        return None

    def graph(self, genotype: Genotype) -> Graph:
        """Nodes and edges for drawing; by default the decisions in a row."""
        pairs = zip(self.decisions, genotype.tokens, strict=True)
        nodes = tuple((d.name, f"{d.name}: {d.labels[token]}", d.kind) for d, token in pairs)
        edges = tuple((a[0], b[0]) for a, b in pairwise(nodes))
        return Graph(nodes, edges)


def features_of(space: SearchSpace, tokens: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """What a space, which may be of the user's own making, knows of architectures (M, T), (M, F), or None.

    Raises:
        ValueError: It gives something other than finite numbers, F for each architecture.
    """
    given = space.features(tokens)
    if given is None:
        return None
    try:
        features = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        features = np.zeros(0)
    if features.ndim != 2 or len(features) != len(tokens) or not np.isfinite(features).all():
        what = f"{type(given).__name__} of shape {features.shape}" if features.ndim and len(features) else repr(given)
        raise ValueError(
            f"space: {type(space).__name__}.features must give finite numbers (M, F) for tokens (M, T), or None; for "
            f"{len(tokens)} architectures it gave {what:.200}"
        )
    return features


def check_space(space: SearchSpace) -> None:
    """Prove on random architectures that a space, which may be of the user's own making, keeps what it promises.

    Else a search would draw what is not legal, or write down what cannot be read or built again, and only what follows
    it would notice.

    Raises:
        ValueError: It has no decision to make or no arguments, masks said to be the same for every prefix are not, its
            features are no numbers, or its text does not lead back to the architecture.
    """
    kind = type(space).__name__
    if not space.decisions:
        raise ValueError(f"space: {kind} has no decisions, and so nothing to search")
    if isinstance(space, NetworkSpace) and not isinstance(getattr(space, "arguments", None), dict):
        raise ValueError(
            f"space: {kind} keeps no arguments, with which its networks are built again from disk; set self.arguments "
            "to the keyword arguments that it was made with"
        )
    drawn = space.sample(np.random.default_rng(0), 64)
    tokens = np.array([genotype.tokens for genotype in drawn])
    if not (space.masks(tokens).sum(axis=2) > 1).any():
        raise ValueError(f"space: {kind} has a single architecture, and so nothing to search")
    for step, decision in enumerate(space.decisions if not space.masks_depend_on_prefix else ()):
        if not (space.mask(tokens[:, :step]) == space.full_masks[step]).all():
            raise ValueError(
                f"space: which choices of {decision.name!r} are legal depends by its mask on the decisions before; set "
                f"masks_depend_on_prefix = True in {kind}"
            )
    features_of(space, tokens)
    for genotype in drawn:
        text = space.text(genotype)
        try:
            again = space.parse(text)
        except ValueError as error:
            raise ValueError(f"space: {kind} cannot read its own text {text!r:.200}: {error}") from None
        if again != genotype:
            raise ValueError(
                f"space: {kind} writes {genotype.tokens} as {text!r:.200}, but reads {again.tokens} there; give the "
                "choices of a decision names that differ"
            )


def plan(fixed: Plan | None, read: Callable[[Genotype], Plan], genotype: Genotype | None) -> Plan:
    """What a network runs: all that a fixed one has, or what a supernet reads from a genotype.

    Raises:
        ValueError: A supernet was given no genotype.
    """
    if fixed is not None:
        return fixed
    if genotype is None:
        raise ValueError("a supernet needs a genotype to run: forward(x, genotype)")
    return read(genotype)


class NetworkSpace(SearchSpace):
    """A search space whose architectures are networks that can be built.

    `arguments` are the keyword arguments that construct an equal space again; they are written into `network.json`.
    """

    arguments: dict[str, Any]

    @abstractmethod
    def network(self, genotype: Genotype | None = None) -> nn.Module:
        """The fixed network of a genotype, `forward(x)`; without one the supernet, `forward(x, genotype)`.

        Both name their parameters alike, so that a fixed network takes its weights out of the supernet's.
        """

    def weights(self, genotype: Genotype, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of the fixed network out of a supernet's state, as views of it; by default name by name."""
        with torch.device("meta"):  # its names are all that is asked for
            names = self.network(genotype).state_dict()
        return {name: shared[name] for name in names}

    @abstractmethod
    def macs(self, genotype: Genotype) -> int:
        """Multiply-accumulates of one forward pass of one sample, exact."""

    @abstractmethod
    def parameters(self, genotype: Genotype) -> int:
        """Trainable parameters of the fixed network, exact."""


class RelaxedSpace(NetworkSpace):
    """A space of networks whose supernet also runs a blend of all choices, each by its weight (Liu et al. 2019, eq. 2).

    The supernet's `forward(x, path)` then takes choice weights in place of a genotype: (T, C), whose rows each sum to
    1, with 0 where a decision has no such choice. It runs the modules of the paths, but none of weight 0, so that
    one-hot rows give the output of the path itself, and a hard sample costs no more than one. Decisions must not
    depend on each other.
    """

    @abstractmethod
    def expected_cost(self, choices: Tensor, unit: CostUnit) -> Tensor:
        """The mean cost, a scalar, of architectures whose decisions are drawn by these weights (T, C), independently.

        It can be differentiated, and is the exact cost where rows are one-hot.

        Args:
            choices: The weights, (T, C).
            unit: `macs` or `parameters`; a latency has no gradient.
        """

    @abstractmethod
    def num_skips(self, genotype: Genotype) -> int:
        """How many operations of its cell (the normal one of two) hand their input on as it is."""


Sampler = Callable[[int, int], Iterable[Genotype | Tensor]]
"""`sampler(num, step)`: what the `num` training batches from number `step` on are trained on, one after the other:
architectures, or choice weights (T, C) of a `RelaxedSpace`."""


@dataclass(frozen=True)
class Improvement:
    """What training the shared weights for some batches gave: the mean loss, and batches skipped as not finite."""

    loss: float
    num_skipped: int = 0


class Trainable(Protocol):
    """What a search trains and takes up again: shared weights, if there are any, and all else that changes."""

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        """Train shared weights on architectures that the sampler draws; None where there are none to train."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that changes as the search goes on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        ...


class Evaluator(Trainable, Protocol):
    """Gives architectures their quality and cost."""

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """Evaluate each on the same data, drawn by `seed`; all else that counts is in `state_dict`."""
        ...


class CheckedEvaluator:
    """An evaluator of the user's own, whose evaluations are proven to be of what was asked for before they are used.

    Raises:
        ValueError: It lacks a method.
    """

    def __init__(self, own: Evaluator):
        needed = ("evaluate", "improve", "state_dict", "load_state_dict")
        missing = [name for name in needed if not callable(getattr(own, name, None))]
        if missing:
            raise ValueError(f"evaluator: {type(own).__name__} lacks {', '.join(missing)}; an Evaluator has all four")
        self.own = own

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """What the evaluator gives; one whose quality is not a number has failed, and what has failed has quality 0.

        Raises:
            ValueError: There are more or fewer, one is of another architecture, or it says what cannot be.
        """
        given = self.own.evaluate(genotypes, fidelity, seed)
        if not isinstance(given, Sequence) or len(given) != len(genotypes):
            got = f"{len(given)} evaluations" if isinstance(given, Sequence) else f"{given!r:.100}, no list of them,"
            raise ValueError(f"the evaluator gave {got} of {len(genotypes)} architectures")
        return [self._checked(each, genotype) for each, genotype in zip(given, genotypes, strict=True)]

    def _checked(self, given: Any, genotype: Genotype) -> Evaluation:
        if not isinstance(given, Evaluation) or given.genotype != genotype:
            got = f"that of {given.genotype}" if isinstance(given, Evaluation) else f"{given!r:.100}"
            raise ValueError(
                f"expected the Evaluation of {genotype}, got {got}; they come in the order of the architectures"
            )
        quality, cost, failure = given.quality, given.cost, given.failure
        try:
            unknown = math.isnan(quality)
            sound = (0 <= quality <= 1 or unknown) and (0 <= cost < math.inf or (failure and math.isnan(cost)))
            sound = sound and given.charge == 1 and isinstance(failure, str | None)
        except (TypeError, ValueError):  # what cannot be compared is no number
            unknown = sound = False
        if not sound:
            told = f"quality {quality!r}, cost {cost!r}, charge {given.charge!r} and failure {failure!r}"
            raise ValueError(
                "expected an Evaluation with a quality in [0, 1], a finite cost of at least 0, the charge left at 1 (a "
                f"search's account fills it in), and as its failure None or a text, got {told}"
            )
        if unknown or failure:
            return given._replace(quality=0.0, failure=failure or f"quality {quality} is not a number")
        return given

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        """Train what the evaluator shares, if anything."""
        return self.own.improve(sampler, num_batches)

    def state_dict(self) -> dict[str, Any]:
        """All that changes in it."""
        return self.own.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        self.own.load_state_dict(state)


class Relaxation(Protocol):
    """What strategies learn from that follow gradients: shared weights that run blends of all architectures."""

    def loss(self, choices: Tensor, step: int, unrolled: bool = False) -> Tensor:
        """The loss of a validation batch under choice weights (T, C), with the reward's trade-off of cost: a scalar.

        It can be differentiated by the choice weights, and leaves no trace in the shared weights.

        Args:
            choices: The weights, (T, C), each row summing to 1.
            step: Which batch; the number of the training batch that comes next.
            unrolled: Take the loss where the shared weights would be after that batch, and through it its gradient.
        """
        ...

    def num_skips(self, genotype: Genotype) -> int:
        """As of the space."""
        ...
