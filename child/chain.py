"""Chains of layers with free skip connections, of any depth: what their spaces and supernets share.

Letters: B architectures, t decisions so far.
"""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from typing import TypeVar

from torch import Tensor

from child.space import Decision, Genotype, Graph, Mask, NetworkSpace, Tokens

State = TypeVar("State")
Step = TypeVar("Step", bound=Hashable)


class ChainSpace(NetworkSpace):
    """Per layer some decisions of its own and a binary skip token for every earlier layer; the depth may be one too.

    A subclass calls `chain` with the decisions of a layer, and reads and names its own tokens.
    """

    def chain(self, num_layers: int, min_layers: int, own: Callable[[int], Sequence[Decision]]) -> None:
        """Set the decisions.

        Args:
            num_layers: Layers, the most of them where `min_layers` is smaller.
            min_layers: The fewest layers; where smaller than `num_layers` the depth is the first decision.
            own: A layer's own decisions, which stand before its skips; as many for every layer.
        """
        self.num_layers, self.min_layers = num_layers, min_layers
        self.masks_depend_on_prefix = min_layers < num_layers
        depths = tuple(str(depth) for depth in range(min_layers, num_layers + 1))
        decisions = [Decision("layers", "depth", depths)] if min_layers < num_layers else []
        self._layer_start = []
        for layer in range(num_layers):
            self._layer_start.append(len(decisions))
            decisions += own(layer)
            self._num_own = len(decisions) - self._layer_start[layer]
            decisions += [
                Decision(f"layer{layer + 1}.skip{source + 1}", "skip", ("no", "yes"), layer, (source,))
                for source in range(layer)
            ]
        self.decisions = tuple(decisions)

    def mask(self, prefixes: Tokens) -> Mask:
        """Everything is legal in an active layer; beyond the chosen depth only the first choice."""
        masks = super().mask(prefixes)
        decision = self.decisions[prefixes.shape[1]]
        if self.masks_depend_on_prefix and decision.node >= self.min_layers:
            masks = masks.copy()
            masks[prefixes[:, 0] + self.min_layers <= decision.node, 1:] = 0
        return masks

    def active(self, genotype: Genotype) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Of each active layer its own tokens, and the earlier layers that are added (from 0)."""
        tokens = genotype.tokens
        depth = self.min_layers + (tokens[0] if self.masks_depend_on_prefix else 0)
        found = []
        for layer, start in enumerate(self._layer_start[:depth]):
            first = start + self._num_own
            added = tuple(source for source in range(layer) if tokens[first + source])
            found.append((tokens[start:first], added))
        return found

    def parse(self, text: str) -> Genotype:
        """Read what `text` wrote (else ValueError, naming the word)."""
        words = text.split()
        if not self.min_layers <= len(words) <= self.num_layers:
            expected = f"{self.min_layers} to {self.num_layers}" if self.masks_depend_on_prefix else self.num_layers
            raise ValueError(f"expected {expected} layers, got {len(words)} in {text!r:.200}")
        tokens = [0] * len(self.decisions)
        if self.masks_depend_on_prefix:
            tokens[0] = len(words) - self.min_layers
        for layer, word in enumerate(words):
            own, added = self.read_word(layer, word)
            start = self._layer_start[layer]
            tokens[start : start + self._num_own] = own
            sources = added.split(",") if added else []
            for source in sources:
                if not 1 <= int(source) <= layer or str(int(source)) != source or sources.count(source) > 1:
                    raise ValueError(f"layer {layer + 1} can add layers 1 to {layer}, each once, got {word!r:.200}")
                tokens[start + self._num_own + int(source) - 1] = 1
        return self.genotype(tokens)

    @abstractmethod
    def read_word(self, layer: int, word: str) -> tuple[Sequence[int], str | None]:
        """The own tokens of a layer in its word, and what stands in its brackets, such as `1,2` (else ValueError)."""

    def drawing(self, layers: Sequence[tuple[str, Sequence[int]]]) -> Graph:
        """Input, layers and output, each layer by its label and what it adds; the chain and the skips as edges."""
        names = ["input", *(f"layer{layer + 1}" for layer in range(len(layers))), "output"]
        labels = ["input", *(label for label, _ in layers), "output"]
        kinds = ["input", *("operation" for _ in layers), "output"]
        edges = list(pairwise(names))
        edges += [(names[s + 1], names[layer + 1]) for layer, (_, skips) in enumerate(layers) for s in skips]
        return Graph(tuple(zip(names, labels, kinds, strict=True)), tuple(edges))


def brackets(skips: Sequence[int]) -> str:
    """The earlier layers that are added, in the text form: `(1,2)`, or nothing."""
    return f"({','.join(str(source + 1) for source in skips)})" if skips else ""


def run_together(
    state: State, plans: Sequence[Sequence[Step]], run: Callable[[State, Step], State], end: Callable[[State], Tensor]
) -> list[Tensor]:
    """What each plan of steps gives; plans that begin alike share that work.

    Args:
        state: Before the first step; `run` must leave it as it is and return a new one.
        plans: The steps of each architecture.
        run: One step.
        end: From the last state to the outputs.
    """
    found: dict[int, Tensor] = {}

    def visit(state: State, members: Sequence[int], depth: int) -> None:
        finished = [member for member in members if len(plans[member]) == depth]
        if finished:
            found.update(dict.fromkeys(finished, end(state)))
        branches: dict[Step, list[int]] = {}
        for member in members:
            if len(plans[member]) > depth:
                branches.setdefault(plans[member][depth], []).append(member)
        for step, branch in branches.items():
            visit(run(state, step), branch, depth + 1)

    visit(state, range(len(plans)), 0)
    return [found[member] for member in range(len(plans))]
