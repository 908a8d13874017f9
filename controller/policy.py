"""The LSTM policy of ENAS (Pham et al. 2018), for any search space and many episodes at once.

One LSTM call per block of decisions: a single decision, or all skip decisions of one layer, which are independent of
each other given the state. Its input is what the previous block chose: the embedding of a token, or the mean of the
anchors that were connected. The anchor of a node is the state after its operation token was read; connections attend
to anchors by v . tanh(W1 anchor + W2 h). Logits are divided by a temperature and squashed by a tanh.
Differences from the public code: the layer without skip tokens needs no LSTM call of its own.

Letters: B episodes, T decisions, C the largest number of choices, D decisions of one block, H hidden size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from child.space import Decision, SearchSpace

CONNECTIONS = ("skip", "input")


@dataclass(frozen=True)
class PolicySettings:
    """Size and squashing of the policy.

    Args:
        hidden: Units of the LSTM layer.
        temperature: Divides the logits; above 1 explores more.
        tanh_constant: Logits are constant * tanh(logits / temperature), which bounds how sure the policy can be;
            None for no squashing.
        init: Weights start uniform in [-init, init].
    """

    hidden: int = 64
    temperature: float = 5.0
    tanh_constant: float | None = 2.5
    init: float = 0.1

    def __post_init__(self) -> None:
        if self.hidden < 1 or not self.temperature > 0 or not self.init > 0:
            raise ValueError(
                f"the policy needs hidden >= 1, temperature > 0 and init > 0, got {self.hidden}, {self.temperature} "
                f"and {self.init}"
            )
        if self.tanh_constant is not None and not self.tanh_constant > 0:
            raise ValueError(f"the policy needs tanh_constant > 0 or null, got {self.tanh_constant}")


@dataclass(frozen=True)
class Block:
    """Consecutive decisions that one LSTM call serves: steps `start` to `stop`."""

    start: int
    stop: int
    kind: str
    table: str
    node: int
    sources: tuple[int, ...]


@dataclass
class Memory:
    """The recurrent state of B episodes, `hidden` and `cell` (B, H), and the anchors of the nodes so far."""

    hidden: Tensor
    cell: Tensor
    read: dict[str, Tensor]  # per table what each token adds to the gates (choices, 4H), once for all steps
    anchors: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Distribution:
    """What the policy thinks of given architectures.

    Args:
        log_probability: Of each architecture, (B).
        entropy: Sum over the decisions of the exact entropy of each conditional distribution, (B), in nats.
        skip_divergence: Mean over open skip decisions of KL(policy || prior density), (B).
        probabilities: Mean probability of each choice over the episodes in which the decision was open, (T, C).
    """

    log_probability: Tensor
    entropy: Tensor
    skip_divergence: Tensor
    probabilities: Tensor


def blocks_of(decisions: Sequence[Decision]) -> list[Block]:
    """Group decisions: the skips of one node together, everything else alone."""
    blocks: list[Block] = []
    for step, decision in enumerate(decisions):
        last = blocks[-1] if blocks else None
        if decision.kind == "skip" and last is not None and (last.kind, last.node) == ("skip", decision.node):
            blocks[-1] = Block(last.start, step + 1, "skip", last.table, last.node, last.sources + decision.sources)
        else:
            table = f"{decision.kind}{decision.num_choices}"
            blocks.append(Block(step, step + 1, decision.kind, table, decision.node, decision.sources))
    return blocks


class LSTMPolicy(nn.Module):
    """Embeddings and output weights are shared by the decisions of one kind and number of choices."""

    def __init__(self, space: SearchSpace, settings: PolicySettings):
        super().__init__()
        self.space, self.settings = space, settings
        self.blocks = blocks_of(space.decisions)
        hidden = settings.hidden
        self.start = nn.Parameter(torch.empty(1, hidden))
        self.gates = nn.Linear(2 * hidden, 4 * hidden)  # one fused map: input, forget and output gate, candidate
        connecting = [number for number, block in enumerate(self.blocks) if block.kind in CONNECTIONS]
        self.attends = bool(connecting)
        self.tables: dict[str, list[int]] = {}
        for number, block in enumerate(self.blocks):
            if block.kind not in CONNECTIONS:
                self.tables.setdefault(block.table, []).append(number)
        sizes = {
            name: space.decisions[self.blocks[numbers[0]].start].num_choices for name, numbers in self.tables.items()
        }
        self.embeddings = nn.ModuleDict({name: nn.Embedding(size, hidden) for name, size in sizes.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, size, bias=False) for name, size in sizes.items()})
        if self.attends:
            self.key = nn.Linear(hidden, hidden, bias=False)
            self.query = nn.Linear(hidden, hidden, bias=False)
            self.score = nn.Linear(hidden, 1, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -settings.init, settings.init)
        skips = torch.tensor([decision.kind == "skip" for decision in space.decisions])
        self.register_buffer("is_skip", skips, persistent=False)
        self._plan_attention(connecting)
        # `evaluate` works table by table; this brings its rows back into the order of the decisions.
        steps = [self.blocks[number].start for numbers in self.tables.values() for number in numbers]
        steps += [step for number in connecting for step in range(self.blocks[number].start, self.blocks[number].stop)]
        self.register_buffer("order", torch.tensor(steps).argsort(), persistent=False)

    def _plan_attention(self, connecting: list[int]) -> None:
        """Number the pairs (decision, source) whose scores all connections are made of.

        `columns` (decisions, C) says where each logit stands among [0, scores, -scores]: a skip decision has the
        logits (-score, score), an input decision the score of each source.
        """
        pairs = [(place, source) for place, number in enumerate(connecting) for source in self.blocks[number].sources]
        columns, first = [], 1
        for number in connecting:
            block = self.blocks[number]
            mine = list(range(first, first + len(block.sources)))
            first += len(mine)
            rows = [[place + len(pairs), place] for place in mine] if block.kind == "skip" else [mine]
            columns += [row + [0] * (self.space.max_choices - len(row)) for row in rows]
        self.nodes = sorted({source for _, source in pairs})
        for name, values in (
            ("connecting", connecting),
            ("pair_query", [place for place, _ in pairs]),
            ("pair_key", [self.nodes.index(source) for _, source in pairs]),
            ("columns", columns),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def begin(self, num: int) -> Memory:
        """The state before the first decision of `num` episodes."""
        zeros = self.start.new_zeros(num, self.settings.hidden)
        read = {table: self._input_gates(self.get_parameter(f"embeddings.{table}.weight")) for table in self.tables}
        return Memory(zeros, zeros, read)

    def advance(self, memory: Memory, number: int, previous: Tensor | None) -> Tensor:
        """Read what the block before `number` chose, (B, D'), and give the state that decides this one, (B, H)."""
        before = self.blocks[number - 1] if number else None
        if before is None or previous is None:
            read = self._input_gates(self.start)
        else:
            read = self._read(memory, before, previous)
        hidden = self.settings.hidden
        gates = torch.addmm(read, memory.hidden, self.gates.weight[:, hidden:].t())
        opening = torch.sigmoid(gates[:, : 3 * hidden])  # input, forget, output
        candidate = tanh(gates[:, 3 * hidden :])
        memory.cell = opening[:, hidden : 2 * hidden] * memory.cell + opening[:, :hidden] * candidate
        memory.hidden = opening[:, 2 * hidden :] * tanh(memory.cell)
        if self.attends and before is not None and before.kind not in CONNECTIONS and before.node >= 0:
            memory.anchors[before.node] = memory.hidden
        return memory.hidden

    def logits(self, memory: Memory, number: int) -> Tensor:
        """The logits of block `number` in the state after `advance`, (B, D, choices)."""
        block = self.blocks[number]
        if block.kind not in CONNECTIONS:
            return self._squash(self.heads[block.table](memory.hidden)[:, None])
        for source in block.sources:
            if source not in memory.keys:
                memory.keys[source] = self.key(memory.anchors[source])
        keys = torch.stack([memory.keys[source] for source in block.sources], dim=1)  # (B, D, H)
        scores = self.score(tanh(keys + self.query(memory.hidden)[:, None]))  # (B, D, 1)
        return self._squash(torch.cat([-scores, scores], dim=2) if block.kind == "skip" else scores.transpose(1, 2))

    def evaluate(self, tokens: Tensor, masks: Tensor, prior: float) -> Distribution:
        """The distribution at given architectures, with gradient: tokens (B, T), legal choices (B, T, C).

        Only the LSTM walks step by step; logits, log-probabilities and entropies of all decisions are computed at once.
        """
        memory = self.begin(len(tokens))
        states = []
        for number in range(len(self.blocks)):
            previous = tokens[:, self.blocks[number - 1].start : self.blocks[number - 1].stop] if number else None
            states.append(self.advance(memory, number, previous))
        logits = self._squash(self._all_logits(memory, torch.stack(states, dim=1)))
        illegal = masks == 0
        log_probabilities = logits.masked_fill(illegal, -math.inf).log_softmax(dim=2)  # (B, T, C)
        finite = log_probabilities.masked_fill(illegal, 0.0)
        probabilities = log_probabilities.exp()
        chosen = log_probabilities.gather(2, tokens[:, :, None])[:, :, 0]
        open_skips = (self.is_skip & (masks.sum(dim=2) == 2)).to(finite.dtype)  # type: ignore[operator]
        expected = finite.new_tensor([math.log(1 - prior), math.log(prior)])
        divergence = (probabilities[:, :, :2] * (finite[:, :, :2] - expected)).sum(dim=2) * open_skips
        return Distribution(
            log_probability=chosen.sum(dim=1),
            entropy=-(probabilities * finite).sum(dim=(1, 2)),
            skip_divergence=divergence.sum(dim=1) / open_skips.sum(dim=1).clamp(min=1),
            probabilities=mean_where_open(probabilities.detach(), masks),
        )

    def _all_logits(self, memory: Memory, states: Tensor) -> Tensor:
        """The logits of every decision, (B, T, C), from the states that decide the blocks, (B, blocks, H)."""
        parts = []
        for table, numbers in self.tables.items():
            logits = self.heads[table](states[:, numbers])
            parts.append(functional.pad(logits, (0, self.space.max_choices - logits.shape[2])))
        if self.attends:
            keys = self.key(torch.stack([memory.anchors[node] for node in self.nodes], dim=1))
            queries = self.query(states.index_select(1, self.get_buffer("connecting")))
            mixed = keys.index_select(1, self.get_buffer("pair_key"))
            mixed = mixed + queries.index_select(1, self.get_buffer("pair_query"))
            scores = self.score(tanh(mixed))[:, :, 0]  # (B, pairs)
            columns = self.get_buffer("columns")
            places = torch.cat([scores.new_zeros(len(scores), 1), scores, -scores], dim=1)
            parts.append(places.index_select(1, columns.flatten()).unflatten(1, columns.shape))
        return torch.cat(parts, dim=1).index_select(1, self.get_buffer("order"))

    def _input_gates(self, inputs: Tensor) -> Tensor:
        """What LSTM inputs (n, H) add to the gates, with their bias: (n, 4H)."""
        return functional.linear(inputs, self.gates.weight[:, : self.settings.hidden], self.gates.bias)

    def _read(self, memory: Memory, before: Block, previous: Tensor) -> Tensor:
        """What the last choice adds to the gates, (B, 4H): an embedding, or the mean of the connected anchors."""
        if before.kind not in CONNECTIONS:
            return functional.embedding(previous[:, 0], memory.read[before.table])
        anchors = torch.stack([memory.anchors[source] for source in before.sources], dim=1)  # (B, D, H)
        if before.kind == "input":
            return self._input_gates(anchors[torch.arange(len(previous), device=previous.device), previous[:, 0]])
        connected = previous.to(anchors.dtype)
        total = (connected[:, :, None] * anchors).sum(dim=1)  # several times faster than a batched product here
        return self._input_gates(total / (1 + connected.sum(dim=1, keepdim=True)))

    def _squash(self, logits: Tensor) -> Tensor:
        logits = logits / self.settings.temperature
        constant = self.settings.tanh_constant
        return logits if constant is None else constant * tanh(logits)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent by way of the sigmoid, which PyTorch computes three times faster on the processor."""
    return 2 * torch.sigmoid(2 * x) - 1


def mean_where_open(probabilities: Tensor, masks: Tensor) -> Tensor:
    """The mean over the episodes (B, T, C) that had more than one legal choice, (T, C); over all where none had."""
    choosing = (masks.sum(dim=2, keepdim=True) > 1).to(probabilities.dtype)
    weights = torch.where(choosing.sum(dim=0) > 0, choosing, 1.0)
    return (probabilities * weights).sum(dim=0) / weights.sum(dim=0)


class Episodes:
    """B episodes in the drawing: asks the policy once per block, and hands out its tokens one by one.

    All noise is drawn up front, so that a draw follows from the seed alone; a token is the argmax of logits plus
    Gumbel noise over its legal choices, which is a draw from their softmax.
    """

    def __init__(self, policy: LSTMPolicy, num: int, seed: int):
        space = policy.space
        self.policy = policy
        self.memory = policy.begin(num)
        self.block_of = {block.start: number for number, block in enumerate(policy.blocks)}
        shape = len(space.decisions), num, space.max_choices
        # Minus the logarithm of an exponential variable is a Gumbel variable; a float32 draw can be exactly 0.
        drawn = np.random.default_rng(seed).standard_exponential(shape, np.float32)
        self.noise = -np.log(np.maximum(drawn, np.finfo(np.float32).tiny))
        self.tokens = np.zeros((len(space.decisions), num), np.int64)
        self.unmasked = [row.tobytes() * num for row in space.full_masks]
        self.first = 0
        self.scores: NDArray[np.float32] = self.noise  # of the current block, (D, B, choices)
        self.drawn: NDArray[np.int64] = self.tokens  # their argmax where everything is legal, (D, B)

    def next(self, step: int, mask: NDArray[np.int8]) -> NDArray[np.int64]:
        """The tokens of this step, (B), legal under the mask (B, C)."""
        number = self.block_of.get(step)
        if number is not None:
            self._ask(number)
        tokens = self.drawn[step - self.first]
        if mask.tobytes() != self.unmasked[step]:
            scores = self.scores[step - self.first]
            tokens = np.where(mask[:, : scores.shape[1]] == 1, scores, -np.inf).argmax(axis=1)
        self.tokens[step] = tokens
        return tokens

    @torch.inference_mode()
    def _ask(self, number: int) -> None:
        """Score every choice of a block's decisions."""
        policy = self.policy
        block, before = policy.blocks[number], policy.blocks[number - 1]
        device = policy.start.device
        previous = torch.from_numpy(self.tokens[before.start : before.stop].T).to(device) if number else None
        policy.advance(self.memory, number, previous)
        logits = policy.logits(self.memory, number).transpose(0, 1).cpu().numpy()
        self.first = block.start
        self.scores = logits + self.noise[block.start : block.stop, :, : logits.shape[2]]
        self.drawn = self.scores.argmax(axis=2)


def check_connections(space: SearchSpace) -> None:
    """Prove that the policy can read a space: every connection comes after the operations of the nodes it names.

    Raises:
        ValueError: A skip or input decision names a node that has no decision of another kind before it.
    """
    seen: set[int] = set()
    blocks = blocks_of(space.decisions)
    for before, block in pairwise([None, *blocks]):
        if before is not None and before.kind not in CONNECTIONS:
            seen.add(before.node)
        missing = set(block.sources) - seen if block is not None and block.kind in CONNECTIONS else set()
        if missing:
            name = space.decisions[block.start].name if block is not None else ""
            raise ValueError(f"decision {name!r} connects to node {min(missing)}, which has no operation before it")
