"""The ENAS space of recurrent cells (Pham et al. 2018, section 2.1), with the language model around the cell.

Every node applies one of four activations to what one earlier node gives, through a highway connection:
node 1 reads the token x and the state h: c = sigmoid(x Wxc + h Whc), h1 = c * f(x Wxh + h Whh) + (1 - c) * h;
node j reads node l: c = sigmoid(hl Wc), hj = c * f(hl Wh) + (1 - c) * hl, with weights of its own for every l.
The state that comes out is the mean of the loose ends, the nodes that no other node reads.
Differences from the public code: weights are shared among the activations, as in the paper; nothing is batch
normalized in the search either, as in the authors' later code (google-research/enas_lm), so that a path is exactly the
fixed network and its state does not depend on the batch.

Letters: B samples, L tokens of a window, W width, V symbols of the vocabulary, N nodes.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from child.language import LanguageModel
from child.space import Decision, Genotype, Graph, NetworkSpace, check_counts, nearest, plan

Node = tuple[str, int]
"""One node of a cell: the activation, and the node that it reads (from 0); -1, of the first, is the state."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda x: x,
    "sigmoid": torch.sigmoid,
}


class RecurrentSpace(NetworkSpace):
    """ENAS's recurrent cell: per node one of four activations and, from the third on, the earlier node that it reads.

    All architectures of a space have the same multiply-accumulates and the same parameters.

    Args:
        input_shape: (length,) of a window of tokens.
        num_outputs: Symbols of the vocabulary.
        num_nodes: Nodes of the cell; 12 in the paper.
        width: Of the embedding, of every node and of the state.
        context: Tokens at the beginning of a window that only warm the state up, without gradient.
        dropout_input: Share of embedded features dropped in training.
        dropout_state: Share of the features dropped of the state as the first node reads it.
        dropout_output: Share of output features dropped before decoding.

    Raises:
        ValueError: A size is out of range.
    """

    name = "recurrent"
    operations = tuple(ACTIVATIONS)

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        num_nodes: int = 6,
        width: int = 128,
        context: int = 32,
        dropout_input: float = 0.1,
        dropout_state: float = 0.1,
        dropout_output: float = 0.1,
    ):
        check_counts("space recurrent", num_nodes=num_nodes)
        if not 0 <= dropout_state < 1:
            raise ValueError(f"space recurrent needs 0 <= dropout_state < 1, got {dropout_state}")
        self.arguments = {
            "input_shape": list(input_shape),
            "num_outputs": num_outputs,
            "num_nodes": num_nodes,
            "width": width,
            "context": context,
            "dropout_input": dropout_input,
            "dropout_state": dropout_state,
            "dropout_output": dropout_output,
        }
        self.num_outputs, self.num_nodes, self.width = num_outputs, num_nodes, width
        self.dropout_state = dropout_state
        self.model_arguments = (input_shape, num_outputs, width, context, dropout_input, dropout_output)
        with torch.device("meta"):
            LanguageModel(*self.model_arguments)  # says what is wrong with them
        self.length, self.context = input_shape[0], context

        decisions = []
        for node in range(num_nodes):
            if node > 1:  # the second can read the first alone
                labels = tuple(str(source + 1) for source in range(node))
                decisions.append(Decision(f"node{node + 1}.input", "input", labels, node, tuple(range(node))))
            decisions.append(Decision(f"node{node + 1}.operation", "operation", self.operations, node))
        self.decisions = tuple(decisions)

    def nodes(self, genotype: Genotype) -> tuple[Node, ...]:
        """The nodes, each with its activation and the node that it reads."""
        first, *rest = genotype.tokens
        pairs = (-1, first, 0, *rest)
        return tuple((self.operations[token], source) for source, token in zip(pairs[::2], pairs[1::2], strict=False))

    def text(self, genotype: Genotype) -> str:
        """Such as `1:tanh 2:relu(1) 3:tanh(1)`: nodes 2 and 3 read node 1, and are the loose ends."""
        words = []
        for number, (activation, source) in enumerate(self.nodes(genotype), 1):
            words.append(f"{number}:{activation}({source + 1})" if number > 1 else f"{number}:{activation}")
        return " ".join(words)

    def parse(self, text: str) -> Genotype:
        """Read what `text` wrote (else ValueError, naming the word)."""
        words = text.split()
        if len(words) != self.num_nodes:
            raise ValueError(f"expected {self.num_nodes} nodes, got {len(words)} in {text!r:.200}")
        tokens = []
        for node, word in enumerate(words):
            match = re.fullmatch(r"(\d+):(\w+)(?:\((\d+)\))?", word, re.ASCII)
            if match is None or match[1] != str(node + 1) or (match[3] is None) != (node == 0):
                expected = "'1:activation'" if node == 0 else f"'{node + 1}:activation(1)'"
                raise ValueError(f"expected {expected}, got {word!r:.200}")
            if match[2] not in self.operations:
                raise ValueError(f"unknown activation in {word!r:.200}; {nearest(match[2], self.operations)}")
            if node > 0 and match[3] not in map(str, range(1, node + 1)):
                raise ValueError(f"node {node + 1} can read nodes 1 to {node}, got {word!r:.200}")
            if node > 1:
                tokens.append(int(match[3]) - 1)
            tokens.append(self.operations.index(match[2]))
        return self.genotype(tokens)

    def key(self, genotype: Genotype) -> Hashable:
        """The tree of activations below the first node: cells that differ in the numbers of their nodes are equal."""
        nodes = self.nodes(genotype)

        def tree(node: int) -> tuple[str, tuple[Any, ...]]:
            readers = (tree(reader) for reader, (_, source) in enumerate(nodes) if source == node)
            return nodes[node][0], tuple(sorted(readers))

        return tree(0)

    def graph(self, genotype: Genotype) -> Graph:
        """The cell: the token and the state, its nodes, and the next state."""
        nodes = self.nodes(genotype)
        names = [f"node{node + 1}" for node in range(len(nodes))]
        drawn = [("token", "token", "input"), ("state", "state", "input")]
        drawn += [(name, activation, "operation") for name, (activation, _) in zip(names, nodes, strict=True)]
        drawn.append(("output", "next state", "output"))
        edges = [("token", names[0]), ("state", names[0])]
        edges += [(names[source], name) for name, (_, source) in zip(names[1:], nodes[1:], strict=True)]
        edges += [(names[node], "output") for node in loose_ends(nodes)]
        return Graph(tuple(drawn), tuple(edges))

    def network(self, genotype: Genotype | None = None) -> "RecurrentNetwork":
        """The fixed network of a genotype, or the supernet of all."""
        return RecurrentNetwork(self, genotype)

    def macs(self, genotype: Genotype) -> int:
        """Of the cell for every token, and of decoding those after the context."""
        cell = 2 * self.width**2 * (self.num_nodes + 1)  # a gate and a value per node; the first reads two inputs
        return self.length * cell + (self.length - self.context) * self.width * self.num_outputs

    def parameters(self, genotype: Genotype) -> int:
        """Of the cell, the embedding, which decodes too, and the bias of the logits."""
        return 2 * self.width**2 * (self.num_nodes + 1) + (self.width + 1) * self.num_outputs


def loose_ends(nodes: Sequence[Node]) -> list[int]:
    """The nodes that no other node reads."""
    read = {source for _, source in nodes}
    return [node for node in range(len(nodes)) if node not in read]


class RecurrentNetwork(LanguageModel):
    """Both the supernet (no genotype: weights for every pair of nodes) and the fixed network (only what it uses)."""

    def __init__(self, space: RecurrentSpace, genotype: Genotype | None = None):
        super().__init__(*space.model_arguments)
        self.space = space
        self.fixed = None if genotype is None else space.nodes(space.check(genotype))
        width = space.width
        pairs = [(source, node) for node in range(space.num_nodes) for source in range(node)]
        if self.fixed is not None:
            pairs = [(source, node) for node, (_, source) in enumerate(self.fixed) if node > 0]
        names = ["input", "state", *(f"{source + 1}to{node + 1}" for source, node in pairs)]
        # Each holds the weights of the gate and of the value, side by side: one product gives both.
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.empty(width, 2 * width)) for name in names})
        for parameter in self.weights.values():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor, genotype: Genotype | None = None) -> Tensor:
        """Logits (B, L - context, V) of tokens (B, L)."""
        return self._run(plan(self.fixed, self.space.nodes, genotype), *self._inputs(x))

    def forward_many(self, x: Tensor, genotypes: Sequence[Genotype]) -> list[Tensor]:
        """Logits of each architecture for the same tokens, which are embedded once."""
        inputs = self._inputs(x)
        found = {
            genotype: self._run(plan(self.fixed, self.space.nodes, genotype), *inputs)
            for genotype in dict.fromkeys(genotypes)
        }
        return [found[genotype] for genotype in genotypes]

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the tokens add to the first node, (context, B, 2W) and (L - context, B, 2W), and the state's mask."""
        features = self.embed(x)
        with torch.no_grad():
            context = features[: self.context] @ self.weights["input"]
        return (
            context,
            features[self.context :] @ self.weights["input"],
            self.mask(features[0], self.space.dropout_state),
        )

    def _run(self, nodes: Sequence[Node], context: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        state = torch.zeros_like(mask)
        if len(context):
            with torch.no_grad():
                state = self._unroll(nodes, context, state, mask)[-1]
        return self.decode(self._unroll(nodes, inputs, state, mask))

    def _unroll(self, nodes: Sequence[Node], inputs: Tensor, state: Tensor, mask: Tensor) -> Tensor:
        """The cell's outputs (L, B, W), in full precision, since a state's rounding errors would add up.

        Everything that a step needs is bound before the first, for steps are short.
        """
        width, loose = self.space.width, loose_ends(nodes)
        (first, _), *others = [(ACTIVATIONS[activation], source) for activation, source in nodes]
        weight = self.weights["state"]
        bound = [(f, source, self.weights[f"{source + 1}to{node}"]) for node, (f, source) in enumerate(others, 2)]

        def step(state: Tensor, x: Tensor) -> Tensor:
            gate, value = torch.addmm(x, state * mask, weight).split(width, dim=1)
            values = [torch.lerp(state, first(value), gate.sigmoid())]
            for activation, source, between in bound:
                gate, value = torch.mm(values[source], between).split(width, dim=1)
                values.append(torch.lerp(values[source], activation(value), gate.sigmoid()))
            ends = [values[node] for node in loose]
            return ends[0] if len(ends) == 1 else torch.stack(ends).mean(dim=0)

        inputs = inputs.to(state.dtype)
        if torch.compiler.is_exporting():

            def carry(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
                state = step(state, x)
                return state, state.clone()

            # A loop over one step: as many copies of it as a window has tokens would take minutes to export.
            return scan(carry, state, inputs)[1]
        outputs = []
        with torch.autocast("cuda", enabled=False):
            for x in inputs.unbind():
                state = step(state, x)
                outputs.append(state)
        return torch.stack(outputs)
