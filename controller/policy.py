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
    """The recurrent state of B episodes: `input`, `hidden`, `cell` (B, H), and the anchors of the nodes so far."""

    input: Tensor
    hidden: Tensor
    cell: Tensor
    anchors: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Distribution:
    """What the policy thinks of given architectures.

    Args:
        log_probability: Of each architecture, (B).
        entropy: Sum over the decisions of the exact entropy of each conditional distribution, (B), in nats.
        skip_divergence: Mean over open skip decisions of KL(policy || prior density), (B).
        probabilities: Mean probability of each choice over the batch, (T, C).
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
        self.attends = any(block.kind in CONNECTIONS for block in self.blocks)
        hidden = settings.hidden
        self.start = nn.Parameter(torch.empty(1, hidden))
        self.gates = nn.Linear(2 * hidden, 4 * hidden)  # one fused map: input, forget and output gate, candidate
        tables = {
            block.table: space.decisions[block.start].num_choices
            for block in self.blocks
            if block.kind not in CONNECTIONS
        }
        self.embeddings = nn.ModuleDict({name: nn.Embedding(size, hidden) for name, size in tables.items()})
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, size, bias=False) for name, size in tables.items()})
        if self.attends:
            self.key = nn.Linear(hidden, hidden, bias=False)
            self.query = nn.Linear(hidden, hidden, bias=False)
            self.score = nn.Linear(hidden, 1, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -settings.init, settings.init)
        skips = torch.tensor([decision.kind == "skip" for decision in space.decisions])
        self.register_buffer("is_skip", skips, persistent=False)

    def begin(self, num: int) -> Memory:
        """The state before the first decision of `num` episodes."""
        zeros = self.start.new_zeros(num, self.settings.hidden)
        return Memory(self.start.expand(num, -1), zeros, zeros)

    def advance(self, memory: Memory, number: int, previous: Tensor | None) -> Tensor:
        """Read what the previous block chose, (B, D'), and give the logits of block `number`, (B, D, choices)."""
        block = self.blocks[number]
        before = self.blocks[number - 1] if number else None
        if before is not None and previous is not None:
            memory.input = self._read(memory, before, previous)
        gates = self.gates(torch.cat([memory.input, memory.hidden], dim=1))
        hidden = self.settings.hidden
        opening = torch.sigmoid(gates[:, : 3 * hidden])  # input, forget, output
        candidate = torch.tanh(gates[:, 3 * hidden :])
        memory.cell = opening[:, hidden : 2 * hidden] * memory.cell + opening[:, :hidden] * candidate
        memory.hidden = opening[:, 2 * hidden :] * torch.tanh(memory.cell)
        if self.attends and before is not None and before.kind not in CONNECTIONS and before.node >= 0:
            memory.anchors[before.node] = memory.hidden
            memory.keys[before.node] = self.key(memory.hidden)
        return self._squash(self._logits(memory, block))

    def evaluate(self, tokens: Tensor, masks: Tensor, prior: float) -> Distribution:
        """The distribution at given architectures, with gradient: tokens (B, T), legal choices (B, T, C).

        Everything is put end to end first, so that log-probabilities and entropies are computed once.
        """
        memory = self.begin(len(tokens))
        num_choices = masks.shape[2]
        padded = []
        for number in range(len(self.blocks)):
            previous = tokens[:, self.blocks[number - 1].start : self.blocks[number - 1].stop] if number else None
            logits = self.advance(memory, number, previous)
            padded.append(functional.pad(logits, (0, num_choices - logits.shape[2])))
        illegal = masks == 0
        log_probabilities = torch.cat(padded, dim=1).masked_fill(illegal, -math.inf).log_softmax(dim=2)  # (B, T, C)
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
            probabilities=probabilities.detach().mean(dim=0),
        )

    def _read(self, memory: Memory, before: Block, previous: Tensor) -> Tensor:
        """The next LSTM input: the embedding of a token, or the mean of the connected anchors."""
        if before.kind == "skip":
            anchors = torch.stack([memory.anchors[source] for source in before.sources], dim=1)  # (B, D, H)
            connected = previous.to(anchors.dtype)
            return torch.einsum("bd,bdh->bh", connected, anchors) / (1 + connected.sum(dim=1, keepdim=True))
        if before.kind == "input":
            anchors = torch.stack([memory.anchors[source] for source in before.sources], dim=1)
            return anchors[torch.arange(len(previous), device=previous.device), previous[:, 0]]
        return self.embeddings[before.table](previous[:, 0])

    def _logits(self, memory: Memory, block: Block) -> Tensor:
        if block.kind not in CONNECTIONS:
            return self.heads[block.table](memory.hidden)[:, None]
        keys = torch.stack([memory.keys[source] for source in block.sources], dim=1)  # (B, D, H)
        scores = self.score(torch.tanh(keys + self.query(memory.hidden)[:, None]))  # (B, D, 1)
        return torch.cat([-scores, scores], dim=2) if block.kind == "skip" else scores.transpose(1, 2)

    def _squash(self, logits: Tensor) -> Tensor:
        logits = logits / self.settings.temperature
        constant = self.settings.tanh_constant
        return logits if constant is None else constant * torch.tanh(logits)


class Episodes:
    """B episodes in the drawing: asks the policy once per block, and hands out its tokens one by one.

    All noise is drawn up front, so that a draw follows from the seed alone; a token is the argmax of logits plus
    Gumbel noise over its legal choices, which is a draw from their softmax.
    """

    def __init__(self, policy: LSTMPolicy, num: int, seed: int):
        self.policy = policy
        self.memory = policy.begin(num)
        self.block_of = {block.start: number for number, block in enumerate(policy.blocks)}
        uniform = np.random.default_rng(seed).random((len(policy.space.decisions), num, policy.space.max_choices))
        self.noise = -np.log(-np.log(np.clip(uniform, 1e-12, 1 - 1e-12)))
        self.tokens = np.zeros((num, len(policy.space.decisions)), np.int64)
        self.scores: list[NDArray[np.float64]] = []

    @torch.no_grad()
    def next(self, step: int, mask: NDArray[np.int8]) -> NDArray[np.int64]:
        """The tokens of this step, (B), legal under the mask (B, C)."""
        number = self.block_of.get(step)
        if number is not None:
            before = self.policy.blocks[number - 1] if number else None
            previous = None if before is None else torch.from_numpy(self.tokens[:, before.start : before.stop])
            device = self.policy.start.device
            logits = self.policy.advance(self.memory, number, None if previous is None else previous.to(device))
            block = self.policy.blocks[number]
            noise = self.noise[block.start : block.stop, :, : logits.shape[2]]
            self.scores = list(logits.transpose(0, 1).cpu().numpy() + noise)
            self.first = step
        scores = self.scores[step - self.first]
        legal = mask[:, : scores.shape[1]].view(bool)
        tokens = np.where(legal, scores, -np.inf).argmax(axis=1)
        self.tokens[:, step] = tokens
        return tokens


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
