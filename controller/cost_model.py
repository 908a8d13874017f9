"""What an architecture would cost, and how good it must then be: learned from evaluations alone, for any reward.

Letters: N architectures seen, M asked about, T decisions, F features: the tokens one-hot, and a constant 1.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from child.space import SearchSpace

Array = NDArray[np.float64]

RIDGE = 1e-3
"""Of the regression, in architectures: costs have no noise, but at first there are fewer of them than features."""

WIDTH = 0.02
"""How far costs count as alike, in the logarithm, or as far as the nearest that was seen: 2%.

Wider, what lies just within a target is judged by what lies beyond it, and never looked at.
"""


class CostRegression:
    """A ridge regression of the cost, or of its logarithm, on the decisions.

    The multiply-accumulates of operations add up; widths and depths multiply. Which of the two is nearer to a sum over
    the decisions is told by the errors of leaving one out (Rasmussen and Williams 2006, section 5.4.2).
    """

    def __init__(self, space: SearchSpace):
        self.num_choices = space.max_choices

    def fit(self, tokens: NDArray[np.int64], costs: Array) -> None:
        """Learn from tokens (N, T) and their costs above 0 (N)."""
        features = self._features(tokens)
        inverse = np.linalg.inv(features.T @ features + RIDGE * np.eye(features.shape[1]))
        beyond_others = 1 - ((features @ inverse) * features).sum(axis=1)
        self.lowest = costs.min()
        least = np.inf
        for is_log, targets in ((False, costs), (True, np.log(costs))):
            weights = inverse @ (features.T @ targets)
            errors = np.abs(targets - features @ weights) / beyond_others
            error = np.median(errors if is_log else errors / costs)  # both relative to the cost
            if error < least:
                least, self.is_log, self.weights = error, is_log, weights

    def predict(self, tokens: NDArray[np.int64]) -> Array:
        """The logarithms of the costs (M) of tokens (M, T)."""
        predicted = self._features(tokens) @ self.weights
        return predicted if self.is_log else np.log(np.maximum(predicted, self.lowest / 2))

    def _features(self, tokens: NDArray[np.int64]) -> Array:
        one_hot = np.eye(self.num_choices)[tokens].reshape(len(tokens), -1)
        return np.concatenate([one_hot, np.ones((len(tokens), 1))], axis=1)


class Demand:
    """How good an architecture must be, at what it would cost, to earn as much as the best so far.

    Nothing is known of the reward but what it gave. At one cost every reward of ours is a straight line in the quality,
    so the lines are fitted, each to the evaluations of about that cost. Where rewards and qualities rank alike, or no
    two costs differ, the cost plays no part; nor where the better half of all are equally good, beyond which no quality
    can be told from another.
    """

    def __init__(self, space: SearchSpace):
        self.regression = CostRegression(space)
        self.matters = False

    def fit(self, tokens: NDArray[np.int64], qualities: Array, costs: Array, rewards: Array, scores: Array) -> None:
        """Learn from tokens (N, T) and what they gave, (N) each; `scores` are those of the qualities."""
        told = np.isfinite(costs)  # of what failed it may not be known
        tokens, costs = tokens[told], costs[told]
        qualities, rewards, scores = (each[told] for each in (qualities, rewards, scores))
        differ = told.any() and np.isfinite(qualities).all() and costs.min() < costs.max()
        order = np.argsort(qualities, kind="stable")
        differ = differ and qualities[order[len(order) // 2]] < qualities[order[-1]]
        self.matters = bool(differ and (rankdata(qualities) != rankdata(rewards)).any())
        if self.matters:
            costs = np.maximum(costs, 1e-6 * costs.max())  # an architecture that passes its input on costs 0
            self.regression.fit(tokens, costs)
            self.log_costs, self.qualities, self.rewards = np.log(costs), qualities, rewards
            self.sorted_qualities, self.sorted_scores = qualities[order], scores[order]

    def __call__(self, tokens: NDArray[np.int64]) -> Array:
        """The demand on architectures (M, T) as a normal score of the quality (M); 0 where cost plays no part."""
        if not self.matters:
            return np.zeros(len(tokens))
        return self._score(self._needed(self.regression.predict(tokens)))

    def _needed(self, log_costs: Array) -> Array:
        """The qualities that would earn the best reward at these costs, (M) each."""
        distances = np.abs(log_costs[:, None] - self.log_costs)  # (M, N)
        widths = np.maximum(WIDTH, distances.min(axis=1, keepdims=True))
        weights = np.exp(-0.5 * (distances / widths) ** 2)
        # reward - quality = a + b * quality, with a and b pulled to 0 just enough that one evaluation will do.
        pull, beyond = 1e-6, self.rewards - self.qualities
        n, q, qq = weights.sum(axis=1) + pull, weights @ self.qualities, weights @ self.qualities**2 + pull
        y, qy = weights @ beyond, weights @ (self.qualities * beyond)
        determinant = n * qq - q * q
        a, b = (qq * y - q * qy) / determinant, (n * qy - q * y) / determinant
        return (self.rewards.max() - a) / np.maximum(1 + b, 1e-3)

    def _score(self, qualities: Array) -> Array:
        """As the normal scores go among the qualities seen; beyond them, as steeply as in their upper half."""
        known, scores = self.sorted_qualities, self.sorted_scores
        middle = len(known) // 2
        slope = (scores[-1] - scores[middle]) / max(known[-1] - known[middle], 1e-9)
        beyond = np.maximum(qualities - known[-1], 0) + np.minimum(qualities - known[0], 0)
        return np.interp(qualities, known, scores) + slope * beyond
