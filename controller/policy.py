"""The LSTM policy of ENAS (Pham et al. 2018), for any search space and many episodes at once.

`controller/walk.py` has the arithmetic: a head reads a choice from the state that decides it; connections attend to the
anchors of the nodes that they may name by v . tanh(W1 anchor + W2 h). Logits are divided by a temperature and squashed
by a tanh.
Differences from the public code: the layer without skip tokens needs no LSTM call of its own.

Letters: B episodes, T decisions, C the largest number of choices, D decisions of one block, P pairs of a connecting
block and a source.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from child.space import Genotype, SearchSpace, derive_seed
from controller.walk import Parameters, Route, Walk, Weights, blocks_of, given_nodes


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

    A loss is computed from the three tensors. A `backward()` would end at them; `gradient` goes on to the policy.

    Args:
        log_probability: Of each architecture, (B).
        entropy: Sum over the decisions of the exact entropy of each conditional distribution, (B), in nats.
        skip_divergence: Mean over open skip decisions of KL(policy || prior density), (B).
        probabilities: Mean probability of each choice over the episodes in which the decision was open, (T, C); NaN
            where it was open in none.
        back: From the gradients by the three, (B) each, to that by all parameters of the policy.
    """

    log_probability: Tensor
    entropy: Tensor
    skip_divergence: Tensor
    probabilities: NDArray[Any]
    back: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]]

    def gradient(self, loss: Tensor) -> Tensor:
        """The gradient of a loss computed from the three, by all parameters of the policy.

        The way back through the policy is no part of autograd's graph: within its engine it takes a sixth longer.
        """
        three = (self.log_probability, self.entropy, self.skip_divergence)
        by = torch.autograd.grad(loss, three, materialize_grads=True)
        return torch.from_numpy(self.back(*(each.numpy() for each in by)))


class LSTMPolicy(nn.Module):
    """Embeddings, and unless told otherwise heads, are shared by the decisions of one kind and number of choices.

    All parameters lie in one vector, since what an optimizer does with many small ones takes longer than the gradient;
    `parts` gives each its name and shape.
    """

    def __init__(self, space: SearchSpace, settings: PolicySettings):
        super().__init__()
        self.space, self.settings = space, settings
        self.blocks = blocks_of(space.decisions)
        self.given = given_nodes(space.decisions)
        sizes: dict[str, int] = {}
        heads: dict[int, slice] = {}
        shared: dict[str, slice] = {}
        num_choices = 0
        for number, block in enumerate(self.blocks):
            if block.connects:
                continue
            size = sizes[block.table] = space.decisions[block.start].num_choices
            if settings.own_heads or block.table not in shared:
                shared[block.table] = slice(num_choices, num_choices + size)
                num_choices += size
            heads[number] = shared[block.table]
        self.route = Route(self.blocks, self.given, sizes, heads, space.max_choices, settings.hidden)
        self.weights = nn.Parameter(torch.empty(self.route.num_parameters))
        nn.init.uniform_(self.weights, -settings.init, settings.init)
        if settings.own_heads:
            nn.init.zeros_(self.parts().heads)
        # Which decisions the logits of a walk belong to: those of the heads and then of inputs, and those of skips.
        pairs = self.route.pairs
        self._inputs = {number: pairs[number] for number in pairs if self.blocks[number].kind == "input"}
        self._choice_steps = [self.blocks[number].start for number in (*heads, *self._inputs)]
        skips = [number for number in pairs if number not in self._inputs]
        self._skip_steps = [
            step for number in skips for step in range(self.blocks[number].start, self.blocks[number].stop)
        ]
        self._skip_pairs = [pair for number in skips for pair in range(pairs[number].start, pairs[number].stop)]

    def parts(self) -> Parameters:
        """The parameters by their names, as views of the vector."""
        return self.route.parts(self.weights)

    def draw(self, num: int, seed: int) -> NDArray[np.int64]:
        """`num` architectures drawn by the seed, (num, T)."""
        return self._drawn(Episodes(self, num, seed, keep=False))

    def sample(self, num: int, seed: int, step: int) -> list[Genotype]:
        """Architectures for the training batches from `step` on, which follow from the run's seed."""
        drawn = self.draw(num, derive_seed(seed, "policy", "sample", step))
        return [Genotype(self.space.name, tuple(row)) for row in drawn.tolist()]

    def draw_and_walk(self, num: int, seed: int) -> tuple[NDArray[np.int64], Walk]:
        """The same, with the walk in which they were drawn, for `evaluate`."""
        episodes = Episodes(self, num, seed)
        return self._drawn(episodes), episodes.walk

    def _drawn(self, episodes: "Episodes") -> NDArray[np.int64]:
        """The architectures, (num, T), of episodes that go their whole way without an environment."""
        for step in range(len(self.space.decisions)):
            episodes.next(step, self.space.mask(episodes.tokens[:step].T))
        return episodes.tokens.T.copy()

    def walk(self, tokens: NDArray[np.int64], keep: bool = True) -> Walk:
        """A walk that has not begun, of architectures that may not be chosen yet: tokens (T, B).

        With `keep` it can be evaluated with its gradient.
        """
        weights = Weights(self.route, self.weights.detach().numpy(), self.settings.temperature)
        return Walk(self.route, weights, tokens, self.settings.tanh_constant, keep)

    def evaluate(
        self, tokens: NDArray[np.int64], masks: NDArray[np.int8], prior: float, walk: Walk | None = None
    ) -> Distribution:
        """The distribution at given architectures.

        Args:
            tokens: (B, T).
            masks: Their legal choices, (B, T, C).
            prior: The density of skip connections from which the divergence is taken.
            walk: The walk in which they were drawn, if the weights are still the same; else it is walked again.
        """
        walk = walk or self.walk(tokens.T).to_end()
        choices = Categorical(
            self._choices(walk), masks[:, self._choice_steps].transpose(1, 2, 0), tokens.T[self._choice_steps]
        )
        skips = None
        if self._skip_steps:
            legal = masks[:, self._skip_steps, :2].transpose(1, 2, 0)
            skips = Bernoulli(walk.scores[self._skip_pairs], legal, tokens.T[self._skip_steps], prior)
        mean = np.zeros((tokens.shape[1], self.space.max_choices), walk.choices.dtype)
        mean[self._choice_steps] = mean_where_open(choices.probabilities, choices.legal)
        log_probability, entropy = choices.log_probability.sum(axis=0), choices.entropy.sum(axis=0)
        divergence = np.zeros_like(entropy)
        if skips is not None:
            log_probability += skips.log_probability.sum(axis=0)
            entropy += skips.entropy.sum(axis=0)
            divergence = skips.divergence
            mean[self._skip_steps, :2] = mean_where_open(skips.probabilities, skips.legal)
        back = partial(self._back, walk, choices, skips)
        return Distribution(_leaf(log_probability), _leaf(entropy), _leaf(divergence), mean, back)

    def _choices(self, walk: Walk) -> NDArray[Any]:
        """The logits of the choices, (choice steps, C, B)."""
        if not self._inputs:
            return walk.choices
        logits = np.zeros((len(self._choice_steps), *walk.choices.shape[1:]), walk.choices.dtype)
        logits[: len(walk.choices)] = walk.choices
        for place, pairs in enumerate(self._inputs.values(), len(walk.choices)):
            logits[place, : pairs.stop - pairs.start] = walk.scores[pairs]
        return logits

    def _back(
        self,
        walk: Walk,
        choices: "Categorical",
        skips: "Bernoulli | None",
        by_log_probability: NDArray[Any],
        by_entropy: NDArray[Any],
        by_divergence: NDArray[Any],
    ) -> NDArray[Any]:
        """The gradient by all parameters, from that by log-probability, entropy and divergence, (B) each."""
        by_choices = choices.back(by_log_probability, by_entropy)
        by_scores = np.empty_like(walk.scores)
        if skips is not None:
            by_scores[self._skip_pairs] = skips.back(by_log_probability, by_entropy, by_divergence)
        for place, pairs in enumerate(self._inputs.values(), len(walk.choices)):
            by_scores[pairs] = by_choices[place, : pairs.stop - pairs.start]
        return walk.back(by_choices[: len(walk.choices)], by_scores)


def _leaf(values: NDArray[Any]) -> Tensor:
    """Where autograd begins."""
    return torch.from_numpy(values).requires_grad_()


class Categorical:
    """Choices of logits (D, C, B) among the legal ones, (D, C, B), that took tokens (D, B).

    Attributes:
        log_probability, entropy: Of each choice, (D, B); the entropy exact, in nats.
        probabilities: (D, C, B).
    """

    def __init__(self, logits: NDArray[Any], legal: NDArray[np.int8], tokens: NDArray[np.int64]):
        self.legal, self.tokens = legal, tokens
        masked = np.where(legal == 1, logits, -np.inf)
        masked -= masked.max(axis=1, keepdims=True)
        self.probabilities = np.exp(masked)
        total = self.probabilities.sum(axis=1, keepdims=True)
        self.probabilities /= total
        masked -= np.log(total)
        self.log_probability = np.take_along_axis(masked, tokens[:, None], 1)[:, 0]
        self._logarithms = np.where(legal == 1, masked, 0)
        self.entropy = -(self.probabilities * self._logarithms).sum(axis=1)

    def back(self, by_log_probability: NDArray[Any], by_entropy: NDArray[Any]) -> NDArray[Any]:
        """The gradient by the logits, from that by the sums over D, (B): p moves by onehot - p, H by -p (log p + H)."""
        by = -self.probabilities * (by_log_probability + by_entropy * (self._logarithms + self.entropy[:, None]))
        taken = np.take_along_axis(by, self.tokens[:, None], 1) + by_log_probability
        np.put_along_axis(by, self.tokens[:, None], taken, 1)
        return by


class Bernoulli:
    """Choices between the logits (-x, x), of x (D, B), where both are legal, (D, 2, B), that took tokens (D, B).

    Attributes:
        log_probability, entropy: Of each choice, (D, B); the entropy exact, in nats.
        divergence: Mean over those that are open of KL(policy || prior), (B).
        probabilities: (D, 2, B).
    """

    def __init__(self, x: NDArray[Any], legal: NDArray[np.int8], tokens: NDArray[np.int64], prior: float):
        self.legal, twice = legal, x + x
        self.is_open = (legal[:, 0] & legal[:, 1]).astype(x.dtype)
        rising = np.logaddexp(0, twice)  # -log(1 - p)
        yes = np.exp(twice - rising)
        self.log_probability = (tokens * twice - rising) * self.is_open
        self.entropy = (rising - yes * twice) * self.is_open
        # KL(p || prior) = -entropy(p) - p log(prior) - (1 - p) log(1 - prior)
        slope = math.log((1 - prior) / prior)
        crossed = (slope * yes - math.log(1 - prior)) * self.is_open
        self._num_open = np.maximum(self.is_open.sum(axis=0), 1)
        self.divergence = (crossed - self.entropy).sum(axis=0) / self._num_open
        shown = yes * self.is_open + legal[:, 1] * (1 - self.is_open)
        self.probabilities = np.stack([1 - shown, shown], axis=1)
        # What x moves: log p, the entropy, and what is summed for the divergence.
        moved = 2 * yes * (1 - yes) * self.is_open
        self._moves = 2 * (tokens - yes) * self.is_open, -twice * moved, (slope + twice) * moved

    def back(self, *by: NDArray[Any]) -> NDArray[Any]:
        """The gradient by x, from that by the sums over D of log-probability and entropy and by the divergence, (B)."""
        by_log_probability, by_entropy, by_divergence = by
        chosen, entropy, divergence = self._moves
        return chosen * by_log_probability + entropy * by_entropy + divergence * (by_divergence / self._num_open)


def mean_where_open(probabilities: NDArray[Any], masks: NDArray[np.int8]) -> NDArray[Any]:
    """The mean over the episodes (D, C, B) that had more than one legal choice, (D, C); NaN where none had.

    A decision that was not open says nothing of what the policy prefers: its one legal choice has it all.
    """
    choosing = (masks.sum(axis=1, keepdims=True) > 1).astype(probabilities.dtype)
    with np.errstate(invalid="ignore"):
        return (probabilities * choosing).sum(axis=2) / choosing.sum(axis=2)


class Episodes:
    """B episodes in the drawing: asks the policy once per block, and hands out its tokens one by one.

    All noise is drawn up front, so that a draw follows from the seed alone; a token is the argmax of logits plus
    Gumbel noise over its legal choices, which is a draw from their softmax. `keep` says whether the gradient of the
    walk will be wanted.
    """

    def __init__(self, policy: LSTMPolicy, num: int, seed: int, keep: bool = True):
        self.policy = policy
        # Minus the logarithm of an exponential variable is a Gumbel variable; a float32 draw can be exactly 0.
        drawn = np.random.default_rng(seed).standard_exponential(num * int(policy.space.full_masks.sum()), np.float32)
        self.noise = -np.log(np.maximum(drawn, np.finfo(np.float32).tiny))
        self.num_used = 0
        self.tokens = np.zeros((len(policy.space.decisions), num), np.int64)
        self.walk = policy.walk(self.tokens, keep)
        self._num, self._unmasked = num, [row.tobytes() for row in policy.space.full_masks]
        self._number, self._first, self._stop = -1, 0, 0  # of the current block
        self._scores: NDArray[np.float32] | None = None  # (choices, B), but for skips
        self._drawn: NDArray[Any] = self.tokens  # its tokens where everything is legal, (D, B)

    def next(self, step: int, mask: NDArray[np.int8]) -> NDArray[np.int64]:
        """The tokens of this step, (B), legal under the mask (B, C)."""
        if step == self._stop:
            self._ask()
        tokens = self._drawn[step - self._first]
        if mask.tobytes() != self._unmasked[step] * self._num:
            if self._scores is None:  # of two choices, where one is legal it is taken
                tokens = np.where(mask[:, 0] == 1, tokens * mask[:, 1], 1)
            else:
                tokens = np.where(mask[:, : len(self._scores)].T == 1, self._scores, -np.inf).argmax(axis=0)
        drawn = self.tokens[step]
        drawn[:] = tokens
        return drawn

    def walk_of(self, tokens: NDArray[np.int64]) -> Walk | None:
        """The way in which all was drawn, if it gave the architectures (B, T), in this order."""
        finished = self._stop == len(self.tokens)
        return self.walk if finished and np.array_equal(tokens.T, self.tokens) else None

    def _ask(self) -> None:
        """Draw the tokens of the next block's decisions."""
        self._number += 1
        block = self.policy.blocks[self._number]
        logits = self.walk.step(self._number)
        self._first, self._stop = block.start, block.stop
        if block.kind == "skip":
            no, yes = self._noise((2, *logits.shape))
            self._scores = None
            self._drawn = logits + yes > no - logits
        else:
            self._scores = logits + self._noise(logits.shape)
            self._drawn = self._scores.argmax(axis=0)[None]

    def _noise(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next of the noise."""
        first, self.num_used = self.num_used, self.num_used + math.prod(shape)
        return self.noise[first : self.num_used].reshape(shape)
