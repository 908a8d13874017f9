"""The LSTM policy of ENAS (Pham et al. 2018), for any search space and many episodes at once.

The state that decides a block of decisions comes from `controller/walk.py`. A head reads a choice from it; connections
attend to the anchors of the nodes that they may name by v . tanh(W1 anchor + W2 h). Logits are divided by a temperature
and squashed by a tanh.
Differences from the public code: the layer without skip tokens needs no LSTM call of its own.

Letters: B episodes, T decisions, C the largest number of choices, N blocks, A anchors, D decisions (or sources) of one
block, P pairs of a connecting block and a source, H hidden size.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from child.space import SearchSpace
from controller.walk import Cell, Route, Walk, blocks_of, given_nodes, states_and_anchors


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


@dataclass(frozen=True)
class Weights:
    """The parameters as a rollout reads them, made once for all of it.

    They are scaled so that every tanh(x) = 2 sigmoid(2x) - 1 is left with its sigmoid, which PyTorch computes three
    times faster on the processor; the temperature is divided out too.

    Args:
        cell: Those of the LSTM.
        heads: The output weights, (H, choices) each.
        attention: None in a space without connections.
        floor: The least that squashed logits can be, ().
    """

    cell: Cell
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
        """The score of keys plus queries (P, B, H), v . tanh of them, scaled: (P, B)."""
        return torch.add(self.offset, keys_and_queries.sigmoid() @ self.score)


@dataclass(frozen=True)
class Memory:
    """What B episodes carry from block to block: the walk so far, and the keys of its anchors, (A, B, H)."""

    weights: Weights
    walk: Walk
    keys: Tensor


class LSTMPolicy(nn.Module):
    """Embeddings, and unless told otherwise heads, are shared by the decisions of one kind and number of choices."""

    def __init__(self, space: SearchSpace, settings: PolicySettings):
        super().__init__()
        self.space, self.settings = space, settings
        self.blocks = blocks_of(space.decisions)
        hidden = settings.hidden
        self.start = nn.Parameter(torch.empty(1, hidden))
        self.gates = nn.Linear(2 * hidden, 4 * hidden)  # one fused map: input, forget and output gate, candidate
        connecting = [number for number, block in enumerate(self.blocks) if block.connects]
        self.attends = bool(connecting)
        tables: dict[str, list[int]] = {}
        for number, block in enumerate(self.blocks):
            if not block.connects:
                tables.setdefault(block.table, []).append(number)
        sizes = {name: space.decisions[self.blocks[numbers[0]].start].num_choices for name, numbers in tables.items()}
        self.embeddings = nn.ModuleDict({name: nn.Embedding(size, hidden) for name, size in sizes.items()})
        served = tables  # the blocks that a head decides
        if settings.own_heads:
            served = {f"{table}_{number}": [number] for table, numbers in tables.items() for number in numbers}
        self.head_of = {number: head for head, numbers in served.items() for number in numbers}
        outputs = {head: space.decisions[self.blocks[numbers[0]].start].num_choices for head, numbers in served.items()}
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
        self.route = Route(self.blocks, self.given, sizes)
        self._plan_logits(connecting, served)
        self.register_buffer("doubled", doubled, persistent=False)

    def _plan_logits(self, connecting: list[int], served: dict[str, list[int]]) -> None:
        """Number the pairs (block, source) whose scores all connections are made of.

        `evaluate` works on the choices head by head, then on the inputs, then on the skips; `choice_steps` and
        `skip_steps` say which decisions those are.
        """
        steps = [self.blocks[number].start for numbers in served.values() for number in numbers]
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
        anchors = torch.arange(self.route.num_anchors)
        for name, values in (
            ("connecting", connecting),
            ("pair_query", [place for place, number in enumerate(connecting) for _ in self.blocks[number].sources]),
            ("pair_key", [anchor for number in connecting for anchor in anchors[self.route.sources[number]].tolist()]),
            ("choice_steps", steps),
            ("skip_steps", skip_steps),
            ("skip_pairs", skip_pairs),
            *((f"served_{head}", numbers) for head, numbers in served.items()),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)

    def draw(self, num: int, seed: int) -> NDArray[np.int64]:
        """`num` architectures drawn by the seed, (num, T)."""
        return self.draw_and_walk(num, seed)[0]

    def draw_and_walk(self, num: int, seed: int) -> tuple[NDArray[np.int64], Walk]:
        """The same, with the walk in which they were drawn, for `evaluate`."""
        episodes = Episodes(self, num, seed)
        for step in range(len(self.space.decisions)):
            episodes.next(step, self.space.mask(episodes.tokens[:step].T))
        return episodes.tokens.T.copy(), episodes.memory.walk

    def begin(self, num: int) -> Memory:
        """What `num` episodes carry before their first decision."""
        weights = self._weights()
        walk = Walk(self.route, weights.cell, num)
        keys = torch.empty_like(walk.anchors)
        if weights.attention is not None:
            keys[: len(self.given)] = (weights.cell.given @ weights.attention.key)[:, None]
        return Memory(weights, walk, keys)

    def ask(self, memory: Memory, number: int, tokens: Tensor) -> Tensor:
        """Go on to block `number`, given the tokens so far (T, B), and give the logits that decide it.

        Those of a choice are (choices, B). A skip decision has the logits (-x, x), of which this gives x: (D, B).
        """
        weights, attention, route = memory.weights, memory.weights.attention, self.route
        state = memory.walk.step(number, tokens)
        if attention is None or not self.blocks[number].connects:
            scaled = weights.heads[self.head_of[number]].t() @ state.t()
        else:
            scaled = attention.scores(memory.keys[route.sources[number]] + state @ attention.query)
        if attention is not None and number in route.anchor_at:
            torch.mm(state, attention.key, out=memory.keys[route.anchor_at[number]])
        return self._squash(weights, scaled)

    def evaluate(self, tokens: Tensor, masks: Tensor, prior: float, walk: Walk | None = None) -> Distribution:
        """The distribution at given architectures, with gradient.

        Only the LSTM walks step by step; logits, log-probabilities and entropies of all decisions are computed at once.

        Args:
            tokens: (B, T).
            masks: Their legal choices, (B, T, C).
            prior: The density of skip connections from which the divergence is taken.
            walk: The walk in which they were drawn, if the weights are still the same; else it is walked again.
        """
        weights = self._weights()
        tokens, masks = tokens.t(), masks.transpose(0, 1)  # the decisions first, as the walk has them
        if walk is None:
            with torch.no_grad():
                walk = Walk(self.route, weights.cell, tokens.shape[1]).to_end(tokens)
        states, anchors = states_and_anchors(walk, weights.cell, tokens)
        logits, skips = self._all_logits(weights, states, anchors)
        choice_steps, skip_steps = self.get_buffer("choice_steps"), self.get_buffer("skip_steps")
        legal = masks.index_select(0, choice_steps)
        chosen, entropy, probabilities = categorical(logits, legal, tokens.index_select(0, choice_steps))
        log_probability, entropy = chosen.sum(dim=0), entropy.sum(dim=0)
        mean = logits.new_zeros(len(tokens), self.space.max_choices)
        mean[choice_steps] = mean_where_open(probabilities.detach(), legal)
        divergence = log_probability.new_zeros(())
        if len(skip_steps):
            legal = masks.index_select(0, skip_steps)[:, :, :2]
            chosen, skip_entropy, yes = bernoulli(skips, legal, tokens.index_select(0, skip_steps))
            log_probability, entropy = log_probability + chosen.sum(dim=0), entropy + skip_entropy.sum(dim=0)
            is_open = (legal.sum(dim=2) == 2).to(yes.dtype)
            # KL(p || prior) = -entropy(p) - p log(prior) - (1 - p) log(1 - prior)
            crossed = math.log((1 - prior) / prior) * yes - math.log(1 - prior)
            divergence = (crossed * is_open - skip_entropy).sum(dim=0) / is_open.sum(dim=0).clamp(min=1)
            both = torch.stack([1 - yes, yes], dim=2).detach()
            mean[skip_steps, :2] = mean_where_open(both, legal)
        return Distribution(log_probability, entropy, divergence.expand_as(entropy), mean)

    def _all_logits(self, weights: Weights, states: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of all decisions from the states that decide the blocks, (N, B, H), and the anchors, (A, B, H).

        Those of `choice_steps`, (choice steps, B, C), and the x of `skip_steps`, (skip steps, B).
        """
        attention = weights.attention
        choices = [
            self._squash(weights, states.index_select(0, self.get_buffer(f"served_{name}")) @ head)
            for name, head in weights.heads.items()
        ]
        skips = states.new_zeros(0, states.shape[1])
        if attention is not None:
            keys = anchors @ attention.key
            queries = states.index_select(0, self.get_buffer("connecting")) @ attention.query
            mixed = keys.index_select(0, self.get_buffer("pair_key"))
            mixed = mixed + queries.index_select(0, self.get_buffer("pair_query"))
            scores = self._squash(weights, attention.scores(mixed))  # (P, B)
            choices += [scores[first:stop].t()[None] for first, stop in self.input_pairs]
            skips = scores.index_select(0, self.get_buffer("skip_pairs"))
        padded = [functional.pad(logits, (0, self.space.max_choices - logits.shape[2])) for logits in choices]
        return torch.cat(padded), skips

    def _weights(self) -> Weights:
        hidden, constant = self.settings.hidden, self.settings.tanh_constant
        # `_squash` is constant * tanh(logits / temperature), or only the division.
        scale = (1 if constant is None else 2) / self.settings.temperature
        doubled = self.get_buffer("doubled")
        gates, bias = self.gates.weight.t().contiguous() * doubled, self.gates.bias * doubled
        embeddings: list[Any] = [table.weight for table in self.embeddings.values()]
        outputs: list[Any] = [head.weight for head in self.heads.values()]
        heads = (torch.cat(outputs) * scale).t().split([*map(len, outputs)], dim=1)
        attention = None
        if self.attends:
            score = 2 * scale * self.score.weight[0]
            attention = Attention(2 * self.key.weight.t(), 2 * self.query.weight.t(), score, -0.5 * score.sum())
        return Weights(
            cell=Cell(
                gates[:hidden],
                gates[hidden:],
                bias,
                torch.addmm(bias, torch.cat([self.start, *embeddings]), gates[:hidden]),
                self.given_anchors if self.given else self.start[:0],
            ),
            heads=dict(zip(self.heads, heads, strict=True)),
            attention=attention,
            floor=self.start.new_tensor(-(constant or 0.0)),
        )

    def _squash(self, weights: Weights, scaled: Tensor) -> Tensor:
        """What is constant * tanh(logits / temperature), of what `Weights` has scaled."""
        constant = self.settings.tanh_constant
        return scaled if constant is None else torch.add(weights.floor, scaled.sigmoid(), alpha=2 * constant)


def categorical(logits: Tensor, legal: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the tokens and entropy, (D, B) each, and all probabilities, (D, B, C)."""
    illegal = legal == 0
    log_probabilities = logits.masked_fill(illegal, -math.inf).log_softmax(dim=2)
    probabilities = log_probabilities.exp()
    entropy = -(probabilities * log_probabilities.masked_fill(illegal, 0.0)).sum(dim=2)
    return log_probabilities.gather(2, tokens[:, :, None])[:, :, 0], entropy, probabilities


def bernoulli(x: Tensor, legal: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of two choices with the logits (-x, x), and the probability of the second: (D, B) each."""
    twice = x + x
    is_open = (legal.sum(dim=2) == 2).to(x.dtype)
    rising = functional.softplus(twice)  # -log(1 - p)
    yes = twice.sigmoid()
    chosen = (tokens * twice - rising) * is_open
    return chosen, (rising - yes * twice) * is_open, yes * is_open + legal[:, :, 1] * (1 - is_open)


def mean_where_open(probabilities: Tensor, masks: Tensor) -> Tensor:
    """The mean over the episodes (D, B, C) that had more than one legal choice, (D, C); over all where none had."""
    choosing = (masks.sum(dim=2, keepdim=True) > 1).to(probabilities.dtype)
    weights = torch.where(choosing.sum(dim=1, keepdim=True) > 0, choosing, 1.0)
    return (probabilities * weights).sum(dim=1) / weights.sum(dim=1)


class Episodes:
    """B episodes in the drawing: asks the policy once per block, and hands out its tokens one by one.

    All noise is drawn up front, so that a draw follows from the seed alone; a token is the argmax of logits plus
    Gumbel noise over its legal choices, which is a draw from their softmax.
    """

    def __init__(self, policy: LSTMPolicy, num: int, seed: int):
        self.policy = policy
        with torch.no_grad():  # what follows from the weights that are made here needs no gradient either
            self.memory = policy.begin(num)
        # Minus the logarithm of an exponential variable is a Gumbel variable; a float32 draw can be exactly 0.
        drawn = np.random.default_rng(seed).standard_exponential(num * int(policy.space.full_masks.sum()), np.float32)
        self.noise = -np.log(np.maximum(drawn, np.finfo(np.float32).tiny))
        self.num_used = 0
        self.tokens = np.zeros((len(policy.space.decisions), num), np.int64)
        self._tokens = torch.from_numpy(self.tokens)  # the same memory
        self._unmasked = [row.tobytes() * num for row in policy.space.full_masks]
        self._number, self._first, self._stop = -1, 0, 0  # of the current block
        self._scores: NDArray[np.float32] | None = None  # (choices, B), but for skips
        self._drawn: NDArray[Any] = self.tokens  # its tokens where everything is legal, (D, B)

    def next(self, step: int, mask: NDArray[np.int8]) -> NDArray[np.int64]:
        """The tokens of this step, (B), legal under the mask (B, C)."""
        if step == self._stop:
            self._ask()
        tokens = self._drawn[step - self._first]
        if mask.tobytes() != self._unmasked[step]:
            if self._scores is None:  # of two choices, where one is legal it is taken
                tokens = np.where(mask[:, 0] == 1, tokens * mask[:, 1], 1)
            else:
                tokens = np.where(mask[:, : len(self._scores)].T == 1, self._scores, -np.inf).argmax(axis=0)
        drawn = self.tokens[step]
        drawn[:] = tokens
        return drawn

    def walk(self, tokens: NDArray[np.int64]) -> Walk | None:
        """The way in which all was drawn, if it gave the architectures (B, T), in this order."""
        finished = self._stop == len(self.tokens)
        return self.memory.walk if finished and np.array_equal(tokens.T, self.tokens) else None

    def _ask(self) -> None:
        """Draw the tokens of the next block's decisions."""
        self._number += 1
        block = self.policy.blocks[self._number]
        logits = self.policy.ask(self.memory, self._number, self._tokens).numpy()
        self._first, self._stop = block.start, block.stop
        if block.kind == "skip":
            no, yes = self._noise((2, *logits.shape))
            self._scores = None
            self._drawn = logits + yes > no - logits
        else:
            self._scores = logits + self._noise(logits.T.shape).T
            self._drawn = self._scores.argmax(axis=0)[None]

    def _noise(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next of the noise."""
        first, self.num_used = self.num_used, self.num_used + math.prod(shape)
        return self.noise[first : self.num_used].reshape(shape)
