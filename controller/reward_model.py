"""A model of the reward with uncertainty, for any search space, from its decisions alone or what more it knows.

A Gaussian process (Rasmussen and Williams 2006, chapter 2) on the normal scores of the rewards' ranks, which makes it
indifferent to their scale and to outliers. Each choice of a decision is a learned vector, shared by the decisions of
one kind and number of choices, times a learned weight of the decision; architectures are as alike as these vectors,
end to end, are near (squared-exponential), and in part as they make each choice equally often, wherever. A few dozen
evaluations tell much of how many convolutions are good before they tell where.

Letters: N architectures seen, M asked about, T decisions, K entries of a choice's vector, R choices of all kinds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import Tensor, nn

from child.space import Genotype, SearchSpace, features_of
from controller.ranks import normal_scores

Array = NDArray[np.float64]


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """By how much each is expected to exceed `best` (Jones et al. 1998), (M)."""
    z = (mean - best) / deviation
    return (mean - best) * ndtr(z) + deviation * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def near(first: Array, second: Array) -> Array:
    """How near vectors (M, K) and (N, K) are, from 0 to 1, (M, N): the squared-exponential kernel."""
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    return np.exp(-0.5 * np.maximum(squares, 0))


class RewardModel(nn.Module):
    """Learns from (architecture, reward) pairs; speaks in normal scores.

    Args:
        space: Whose architectures they are.
        steps: Adam steps of the hyper-parameters for each fit, from where the last left them.
        learning_rate: Of these.
        pull: How strongly the hyper-parameters are held to their start.
        noise: The variance of a score that the architecture does not explain, at the start.
        counted: The part of the likeness that goes by how often each choice is made.
    """

    def __init__(
        self,
        space: SearchSpace,
        steps: int = 5,
        learning_rate: float = 0.05,
        pull: float = 0.5,
        noise: float = 0.1,
        counted: float = 0.3,
    ):
        super().__init__()
        self.steps, self.pull, self.counted = steps, pull, counted
        kinds = [(decision.kind, decision.num_choices) for decision in space.decisions]
        tables = list(dict.fromkeys(kinds))
        width = space.max_choices
        self.first = np.array([width * tables.index(kind) for kind in kinds])  # of each decision's rows in `choices`
        # Two random architectures are then about as far apart in every space: 1 / 1.8 each where there are 6 decisions.
        start = torch.full((len(kinds),), math.sqrt(6 / len(kinds)) / 1.8, dtype=torch.float64)
        self.count_weight = math.sqrt(1.8 / len(kinds))  # and about as far in their counts as in their vectors
        self.log_weights = nn.Parameter(start.log())
        self.choices = nn.Parameter(torch.eye(width, dtype=torch.float64).repeat(len(tables), 1))
        self.log_noise = nn.Parameter(torch.tensor(math.log(noise), dtype=torch.float64))
        self.start = [parameter.detach().clone() for parameter in self.parameters()]
        self.optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)
        self.places = np.zeros((0, len(kinds)), np.int64)
        self.scores = np.zeros(0)

    def fit(self, genotypes: Sequence[Genotype], rewards: Array) -> None:
        """Take in all that was seen, (N) each, and improve the hyper-parameters a little."""
        self._take_in(genotypes, rewards)
        places, scores = torch.from_numpy(self.places), torch.from_numpy(self.scores)
        for _ in range(self.steps):
            kernel = self._kernel(places)
            # The gradient of half of score K^-1 score + log |K| with respect to K.
            with torch.no_grad():
                inverse = torch.linalg.inv(kernel)
                explained = inverse @ scores
                gradient = 0.5 * (inverse - explained[:, None] * explained)
            self.optimizer.zero_grad()
            kernel.backward(gradient)
            for parameter, start in zip(self.parameters(), self.start, strict=True):
                assert parameter.grad is not None
                parameter.grad += self.pull * (parameter.detach() - start)
            self.optimizer.step()
        self._prepare()

    @torch.no_grad()
    def _prepare(self) -> None:
        """What predictions need, once for many."""
        self.seen = self._vectors(torch.from_numpy(self.places)).numpy()
        self.inverse = torch.linalg.inv(self._kernel(torch.from_numpy(self.places))).numpy()
        self.explained = self.inverse @ self.scores

    @torch.no_grad()
    def predict(self, tokens: NDArray[np.int64]) -> tuple[Array, Array]:
        """Mean and standard deviation of the scores of architectures, (M) each, for tokens (M, T)."""
        places = tokens + self.first
        likeness = (1 - self.counted) * near(self._vectors(torch.from_numpy(places)).numpy(), self.seen)
        likeness += self.counted * near(self._counts(places), self.seen_counts)
        variance = 1 - ((likeness @ self.inverse) * likeness).sum(axis=1)
        return likeness @ self.explained, np.sqrt(np.maximum(variance, 1e-9))

    def _take_in(self, genotypes: Sequence[Genotype], rewards: Array) -> None:
        self.places = np.array([genotype.tokens for genotype in genotypes], np.int64) + self.first
        self.scores = normal_scores(np.asarray(rewards, np.float64))
        self.seen_counts = self._counts(self.places)
        self.likeness_of_counts = torch.from_numpy(self.counted * near(self.seen_counts, self.seen_counts))

    def _counts(self, places: NDArray[np.int64]) -> Array:
        """How often each choice of each kind is made, (N, R) for places (N, T), times its weight."""
        num_choices = len(self.choices)
        rows = (places + num_choices * np.arange(len(places))[:, None]).ravel()
        counts = np.bincount(rows, minlength=num_choices * len(places)).astype(np.float64)
        return self.count_weight * counts.reshape(len(places), num_choices)

    def _vectors(self, places: Tensor) -> Tensor:
        """What the likeness goes by, (N, T * K) for places (N, T)."""
        return (self.choices[places] * self.log_weights.exp()[:, None]).flatten(1)

    def _kernel(self, places: Tensor) -> Tensor:
        """How alike those taken in are, (N, N), with the noise."""
        vectors = self._vectors(places)
        squares = (vectors**2).sum(dim=1)
        distances = (squares[:, None] + squares - 2 * vectors @ vectors.t()).clamp(min=0)
        noise = self.log_noise.exp() + 1e-6
        likeness = (1 - self.counted) * (-0.5 * distances).exp() + self.likeness_of_counts
        return likeness + noise * torch.eye(len(places), dtype=torch.float64)

    def save(self) -> dict[str, Any]:
        """The hyper-parameters and how they were learning; what was seen is the caller's."""
        return {"parameters": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: Mapping[str, Any], genotypes: Sequence[Genotype], rewards: Array) -> None:
        """Go back to what `save` gave, with what had been seen by then."""
        self.load_state_dict(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        if len(genotypes):
            self._take_in(genotypes, rewards)
            self._prepare()


class SteadyModel(RewardModel):
    """The same, but it learns no likeness of its own.

    What the space knows of architectures (`SearchSpace.features`) takes the place of their choices' vectors, scaled so
    that two random ones are as far apart as by those; counts of choices keep their part. Where it knows nothing, they
    are as alike as a learned model takes them to be at the start.
    """

    def __init__(self, space: SearchSpace):
        super().__init__(space, steps=0)
        self.space = space
        tokens = np.array([genotype.tokens for genotype in space.sample(np.random.default_rng(0), 1000)])
        features = features_of(space, tokens)
        self.knows_more = features is not None
        if features is not None:
            with torch.no_grad():
                vectors = super()._vectors(torch.from_numpy(tokens + self.first)).numpy()
            spread = features.var(axis=0).sum()
            self.scale = math.sqrt(vectors.var(axis=0).sum() / spread) if spread > 0 else 1.0

    def _vectors(self, places: Tensor) -> Tensor:
        """(N, F) for places (N, T), or (N, T * K) where the space knows nothing."""
        features = features_of(self.space, places.numpy() - self.first)
        return super()._vectors(places) if features is None else torch.from_numpy(self.scale * features)
