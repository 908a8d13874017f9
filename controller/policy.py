"""The LSTM policy of ENAS (Pham et al. 2018), for any search space and many episodes at once.

One LSTM call per block of decisions: a single decision, or all skip decisions of one layer, which are independent of
each other given the state. Its input is what the previous block chose: the embedding of a token, or the mean of the
anchors that were connected. The anchor of a node is the state after its last operation token was read, or learned
where no decision shapes it (an input of a cell); connections attend to anchors by v . tanh(W1 anchor + W2 h). Logits
are divided by a temperature and squashed by a tanh.
Differences from the public code: the layer without skip tokens needs no LSTM call of its own.

Letters: B episodes, T decisions, C the largest number of choices, D decisions of one block, H hidden size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

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
        own_heads: A head for every decision, starting at 0, so that the policy starts uniform and learns each
            decision by itself; otherwise decisions of one kind and number of choices share theirs.
    """

    hidden: int = 64
    temperature: float = 5.0
    tanh_constant: float | None = 2.5
    init: float = 0.1
    own_heads: bool = False

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


@dataclass(frozen=True)
class Weights:
    """The parameters as the steps of one rollout read them, made once for all of them.

    They are transposed to (inputs, outputs), and scaled so that every tanh(x) = 2 sigmoid(2x) - 1 is left with its
    sigmoid, which PyTorch computes three times faster on the processor; the temperature is divided out too.

    Args:
        inputs, recurrent: What the LSTM's input and state add to its gates, (H, 4H) each.
        bias: Of the gates, (4H).
        start: What the first input adds to the gates, (1, 4H).
        tables: Per table what each token adds to the gates, (choices, 4H).
        heads: The output weights, (H, choices) each.
        attention: None in a space without connections.
        floor: The least that squashed logits can be, ().
    """

    inputs: Tensor
    recurrent: Tensor
    bias: Tensor
    start: Tensor
    tables: dict[str, Tensor]
    heads: dict[str, Tensor]
    attention: "Attention | None"
    floor: Tensor


@dataclass(frozen=True)
class Attention:
    """Likewise of the attention: `key` and `query` (H, H), `score` (H), and what its tanh leaves over, `offset` ()."""

    key: Tensor
    query: Tensor
    score: Tensor
    offset: Tensor

    def scores(self, keys_and_queries: Tensor) -> Tensor:
        """The score of keys plus queries (B, D, H), v . tanh of them, scaled: (B, D)."""
        scores = torch.addmv(self.offset, keys_and_queries.sigmoid().flatten(0, 1), self.score)
        return scores.unflatten(0, keys_and_queries.shape[:2])


@dataclass
class Memory:
    """The recurrent state of B episodes, (B, H) each, and the anchors of the nodes so far.

    The LSTM's cell is kept doubled, as its tanh reads it.
    """

    weights: Weights
    hidden: Tensor
    twice_cell: Tensor
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


def given_nodes(decisions: Sequence[Decision]) -> list[int]:
    """The nodes that may be connected to and that no decision shapes, such as the inputs of a cell."""
    shaped = {decision.node for decision in decisions if decision.kind not in CONNECTIONS}
    read = {source for decision in decisions if decision.kind in CONNECTIONS for source in decision.sources}
    return sorted(read - shaped)


class LSTMPolicy(nn.Module):
    """Embeddings, and unless told otherwise heads, are shared by the decisions of one kind and number of choices."""

    def __init__(self, space: SearchSpace, settings: PolicySettings):
        super().__init__()
        self.space, self.settings = space, settings
        self.blocks = blocks_of(space.decisions)
        hidden = settings.hidden
        self.start = nn.Parameter(torch.empty(1, hidden))
        self.gates = nn.Linear(2 * hidden, 4 * hidden)  # one fused map: input, forget and output gate, candidate
        doubled = torch.ones(4 * hidden)
        doubled[3 * hidden :] = 2  # the candidate is a tanh
        self.register_buffer("doubled", doubled, persistent=False)
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
        self.served = self.tables  # the blocks that a head decides
        if settings.own_heads:
            self.served = {
                f"{table}_{number}": [number] for table, numbers in self.tables.items() for number in numbers
            }
        self.head_of = {number: head for head, numbers in self.served.items() for number in numbers}
        outputs = {
            head: space.decisions[self.blocks[numbers[0]].start].num_choices for head, numbers in self.served.items()
        }
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, size, bias=False) for name, size in outputs.items()})
        if self.attends:
            self.key = nn.Linear(hidden, hidden, bias=False)
            self.query = nn.Linear(hidden, hidden, bias=False)
            self.score = nn.Linear(hidden, 1, bias=False)
        self.given = given_nodes(space.decisions)
        if self.given:
            self.given_anchors = nn.Parameter(torch.empty(len(self.given), hidden))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -settings.init, settings.init)
        if settings.own_heads:
            for parameter in self.heads.parameters():
                nn.init.zeros_(parameter)
        doubled = torch.ones(4 * hidden)
        doubled[3 * hidden :] = 2  # the candidate is a tanh
        self.register_buffer("doubled", doubled, persistent=False)
        self._plan_attention(connecting)

    def _plan_attention(self, connecting: list[int]) -> None:
        """Number the pairs (decision, source) whose scores all connections are made of.

        `evaluate` works on the choices table by table, then on the inputs, then on the skips; `choice_steps` and
        `skip_steps` say which decisions those are.
        """
        pairs = [(place, source) for place, number in enumerate(connecting) for source in self.blocks[number].sources]
        steps = [self.blocks[number].start for numbers in self.tables.values() for number in numbers]
        skip_steps, skip_pairs, first = [], [], 0
        self.input_pairs: list[tuple[int, int]] = []
        for number in connecting:
            block = self.blocks[number]
            stop = first + len(block.sources)
            if block.kind == "skip":
                skip_steps += range(block.start, block.stop)
                skip_pairs += range(first, stop)
            else:
                steps.append(block.start)
                self.input_pairs.append((first, stop))
            first = stop
        self.nodes = sorted({source for _, source in pairs})
        for name, values in (
            ("connecting", connecting),
            ("pair_query", [place for place, _ in pairs]),
            ("pair_key", [self.nodes.index(source) for _, source in pairs]),
            ("choice_steps", steps),
            ("skip_steps", skip_steps),
            ("skip_pairs", skip_pairs),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def draw(self, num: int, seed: int) -> NDArray[np.int64]:
        """`num` architectures drawn by the seed, (num, T)."""
        episodes = Episodes(self, num, seed)
        for step in range(len(self.space.decisions)):
            episodes.next(step, self.space.mask(episodes.tokens[:step].T))
        return episodes.tokens.T.copy()

    def begin(self, num: int) -> Memory:
        """The state before the first decision of `num` episodes."""
        zeros = self.start.new_zeros(num, self.settings.hidden)
        anchors = {node: self.given_anchors[place].expand(num, -1) for place, node in enumerate(self.given)}
        return Memory(self._weights(), zeros, zeros, anchors)

    def advance(self, memory: Memory, number: int, previous: Tensor | None) -> Tensor:
        """Read what the block before `number` chose, (B, D'), and give the state that decides this one, (B, H)."""
        before = self.blocks[number - 1] if number else None
        weights = memory.weights
        read = weights.start if before is None or previous is None else self._read(memory, before, previous)
        gates = torch.addmm(read, memory.hidden, weights.recurrent).sigmoid()
        opening, keeping, showing, candidate = gates.chunk(4, dim=1)  # the last still as a sigmoid: tanh = 2 s - 1
        kept = torch.sub(keeping * memory.twice_cell, opening, alpha=2)
        memory.twice_cell = torch.addcmul(kept, opening, candidate, value=4)
        memory.hidden = torch.addcmul(-showing, showing, memory.twice_cell.sigmoid(), value=2)
        if self.attends and before is not None and before.kind not in CONNECTIONS and before.node >= 0:
            memory.anchors[before.node] = memory.hidden
        return memory.hidden

    def logits(self, memory: Memory, number: int) -> Tensor:
        """The logits of block `number` in the state after `advance`: (B, choices), or of each skip (B, D).

        A skip decision has the logits (-x, x), of which this gives x.
        """
        block, weights = self.blocks[number], memory.weights
        attention = weights.attention
        if block.kind not in CONNECTIONS or attention is None:
            return self._squash(weights, memory.hidden @ weights.heads[self.head_of[number]])
        for source in block.sources:
            if source not in memory.keys:
                memory.keys[source] = memory.anchors[source] @ attention.key
        keys = torch.stack([memory.keys[source] for source in block.sources], dim=1)  # (B, D, H)
        query = memory.hidden @ attention.query
        return self._squash(weights, attention.scores(keys + query[:, None]))

    def evaluate(self, tokens: Tensor, masks: Tensor, prior: float) -> Distribution:
        """The distribution at given architectures, with gradient: tokens (B, T), legal choices (B, T, C).

        Only the LSTM walks step by step; logits, log-probabilities and entropies of all decisions are computed at once.
        """
        memory = self.begin(len(tokens))
        states = []
        for number in range(len(self.blocks)):
            previous = tokens[:, self.blocks[number - 1].start : self.blocks[number - 1].stop] if number else None
            states.append(self.advance(memory, number, previous))
        logits, skips = self._all_logits(memory, torch.stack(states, dim=1))
        choice_steps, skip_steps = self.get_buffer("choice_steps"), self.get_buffer("skip_steps")
        legal = masks.index_select(1, choice_steps)
        chosen, entropy, probabilities = categorical(logits, legal, tokens.index_select(1, choice_steps))
        log_probability, entropy = chosen.sum(dim=1), entropy.sum(dim=1)
        mean = tokens.new_zeros(masks.shape[1:], dtype=logits.dtype)
        mean[choice_steps] = mean_where_open(probabilities.detach(), legal)
        divergence = log_probability.new_zeros(())
        if len(skip_steps):
            legal = masks.index_select(1, skip_steps)[:, :, :2]
            chosen, skip_entropy, yes = bernoulli(skips, legal, tokens.index_select(1, skip_steps))
            log_probability, entropy = log_probability + chosen.sum(dim=1), entropy + skip_entropy.sum(dim=1)
            is_open = (legal.sum(dim=2) == 2).to(yes.dtype)
            # KL(p || prior) = -entropy(p) - p log(prior) - (1 - p) log(1 - prior)
            crossed = math.log((1 - prior) / prior) * yes - math.log(1 - prior)
            divergence = (crossed * is_open - skip_entropy).sum(dim=1) / is_open.sum(dim=1).clamp(min=1)
            both = torch.stack([1 - yes, yes], dim=2).detach()
            mean[skip_steps, :2] = mean_where_open(both, legal)
        return Distribution(log_probability, entropy, divergence.expand(len(tokens)), mean)

    def _all_logits(self, memory: Memory, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of all decisions from the states that decide the blocks, (B, blocks, H).

        Those of `choice_steps`, (B, choice steps, C), and the x of `skip_steps`, (B, skip steps).
        """
        weights, attention = memory.weights, memory.weights.attention
        choices = [self._squash(weights, states[:, at] @ weights.heads[head]) for head, at in self.served.items()]
        skips = states.new_zeros(len(states), 0)
        if attention is not None:
            keys = torch.stack([memory.anchors[node] for node in self.nodes], dim=1) @ attention.key
            queries = states.index_select(1, self.get_buffer("connecting")) @ attention.query
            mixed = keys.index_select(1, self.get_buffer("pair_key"))
            mixed = mixed + queries.index_select(1, self.get_buffer("pair_query"))
            scores = self._squash(weights, attention.scores(mixed))  # (B, pairs)
            choices += [scores[:, None, first:stop] for first, stop in self.input_pairs]
            skips = scores.index_select(1, self.get_buffer("skip_pairs"))
        padded = [functional.pad(logits, (0, self.space.max_choices - logits.shape[2])) for logits in choices]
        return torch.cat(padded, dim=1), skips

    def _weights(self) -> Weights:
        hidden, constant = self.settings.hidden, self.settings.tanh_constant
        # `_squash` is constant * tanh(logits / temperature), or only the division.
        scale = (1 if constant is None else 2) / self.settings.temperature
        doubled = self.get_buffer("doubled")
        gates, bias = self.gates.weight.t().contiguous() * doubled, self.gates.bias * doubled
        embeddings: list[Any] = [table.weight for table in self.embeddings.values()]
        read = torch.addmm(bias, torch.cat([self.start, *embeddings]), gates[:hidden])
        start, *tables = read.split([1, *map(len, embeddings)])
        outputs: list[Any] = [head.weight for head in self.heads.values()]
        heads = (torch.cat(outputs).t().contiguous() * scale).split([*map(len, outputs)], dim=1)
        attention = None
        if self.attends:
            key, query, score = (linear.weight.t().contiguous() for linear in (self.key, self.query, self.score))
            score = scale * score[:, 0]
            attention = Attention(2 * key, 2 * query, 2 * score, -score.sum())
        return Weights(
            inputs=gates[:hidden],
            recurrent=gates[hidden:],
            bias=bias,
            start=start,
            tables=dict(zip(self.embeddings, tables, strict=True)),
            heads=dict(zip(self.heads, heads, strict=True)),
            attention=attention,
            floor=bias.new_tensor(-(constant or 0.0)),
        )

    def _read(self, memory: Memory, before: Block, previous: Tensor) -> Tensor:
        """What the last choice adds to the gates, (B, 4H): an embedding, or the mean of the connected anchors."""
        weights = memory.weights
        if before.kind not in CONNECTIONS:
            return functional.embedding(previous[:, 0], weights.tables[before.table])
        anchors = torch.stack([memory.anchors[source] for source in before.sources], dim=1)  # (B, D, H)
        if before.kind == "input":
            chosen = anchors[torch.arange(len(previous), device=previous.device), previous[:, 0]]
            return torch.addmm(weights.bias, chosen, weights.inputs)
        connected = previous.to(anchors.dtype)
        shares = connected / (1 + connected.sum(dim=1, keepdim=True))
        mean = (shares[:, :, None] * anchors).sum(dim=1)  # several times faster than a batched product here
        return torch.addmm(weights.bias, mean, weights.inputs)

    def _squash(self, weights: Weights, scaled: Tensor) -> Tensor:
        """What is constant * tanh(logits / temperature), of what `Weights` has scaled."""
        constant = self.settings.tanh_constant
        return scaled if constant is None else torch.add(weights.floor, scaled.sigmoid(), alpha=2 * constant)


def categorical(logits: Tensor, legal: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the tokens and entropy, (B, D) each, and all probabilities, (B, D, C)."""
    illegal = legal == 0
    log_probabilities = logits.masked_fill(illegal, -math.inf).log_softmax(dim=2)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities.masked_fill(illegal, 0.0)).sum(dim=2)
    return log_probabilities.gather(2, tokens[:, :, None])[:, :, 0], entropy, probabilities


def bernoulli(x: Tensor, legal: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of two choices with the logits (-x, x), and the probability of the second: (B, D) each."""
    twice = x + x
    is_open = (legal.sum(dim=2) == 2).to(x.dtype)
    rising = functional.softplus(twice)  # -log(1 - p)
    yes = twice.sigmoid()
    chosen = (tokens * twice - rising) * is_open
    return chosen, (rising - yes * twice) * is_open, yes * is_open + legal[:, :, 1] * (1 - is_open)


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
        decisions = policy.space.decisions
        self.policy = policy
        with torch.inference_mode():
            self.memory = policy.begin(num)
        self.block_of = {block.start: number for number, block in enumerate(policy.blocks)}
        # Minus the logarithm of an exponential variable is a Gumbel variable; a float32 draw can be exactly 0.
        total = num * sum(decision.num_choices for decision in decisions)
        drawn = np.random.default_rng(seed).standard_exponential(total, np.float32)
        self.noise = -np.log(np.maximum(drawn, np.finfo(np.float32).tiny))
        self.num_used = 0
        self.tokens = np.zeros((len(decisions), num), np.int64)
        self.unmasked = [row.tobytes() * num for row in policy.space.full_masks]
        self.first = 0
        self.scores: NDArray[np.float32] | None = None  # of the current block, (B, choices), but for skips
        self.drawn: NDArray[np.int64] = self.tokens  # the current block's tokens where everything is legal, (D, B)

    def next(self, step: int, mask: NDArray[np.int8]) -> NDArray[np.int64]:
        """The tokens of this step, (B), legal under the mask (B, C)."""
        number = self.block_of.get(step)
        if number is not None:
            self._ask(number)
        tokens = self.drawn[step - self.first]
        if mask.tobytes() != self.unmasked[step]:
            if self.scores is None:  # of two choices, where one is legal it is taken
                tokens = np.where(mask[:, 0] == 1, tokens * mask[:, 1], 1)
            else:
                tokens = np.where(mask[:, : self.scores.shape[1]] == 1, self.scores, -np.inf).argmax(axis=1)
        self.tokens[step] = tokens
        return tokens

    @torch.inference_mode()
    def _ask(self, number: int) -> None:
        """Draw the tokens of a block's decisions."""
        policy = self.policy
        block, before = policy.blocks[number], policy.blocks[number - 1]
        device = policy.start.device
        previous = torch.from_numpy(self.tokens[before.start : before.stop].T).to(device) if number else None
        policy.advance(self.memory, number, previous)
        logits = policy.logits(self.memory, number).cpu().numpy()
        self.first = block.start
        if block.kind == "skip":
            no, yes = self._noise((2, *logits.T.shape))
            self.scores = None
            self.drawn = (logits.T + yes > no - logits.T).astype(np.int64)
        else:
            self.scores = logits + self._noise(logits.shape)
            self.drawn = self.scores.argmax(axis=1)[None]

    def _noise(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next of the noise."""
        first, self.num_used = self.num_used, self.num_used + math.prod(shape)
        return self.noise[first : self.num_used].reshape(shape)


def check_connections(space: SearchSpace) -> None:
    """Prove that the policy can read a space: every connection comes after the operations of the nodes it names.

    Raises:
        ValueError: A skip or input decision names a node whose decisions of another kind all come later.
    """
    seen = set(given_nodes(space.decisions))
    blocks = blocks_of(space.decisions)
    for before, block in pairwise([None, *blocks]):
        if before is not None and before.kind not in CONNECTIONS:
            seen.add(before.node)
        missing = set(block.sources) - seen if block is not None and block.kind in CONNECTIONS else set()
        if missing:
            name = space.decisions[block.start].name if block is not None else ""
            raise ValueError(f"decision {name!r} connects to node {min(missing)}, which has no operation before it")
