"""REINFORCE that learns mostly in imagination, for budgets of about a hundred evaluations."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from child.space import Genotype, SearchSpace, derive_seed
from controller.cost_model import Demand
from controller.policy import PolicySettings
from controller.ranks import normal_scores
from controller.reinforce import ControllerError, descend, learning_policy
from controller.reward_model import RewardModel, SteadyModel, expected_improvement
from controller.strategy import Rollout, Update, WholeStrategy


class ModelBased(WholeStrategy):
    """An LSTM policy on the rewards of a model, whose pick of the policy's samples is evaluated.

    After every round the reward model is fitted to all evaluations, and the policy takes a few REINFORCE steps on
    imagined rewards: the model's mean plus some of its deviation, so that what it does not know is worth a look, less
    a penalty where the truth is known already (without it the policy collapses on the best it knows). Of a number of
    fresh samples the ones of largest expected improvement are evaluated: half of them the policy's, half uniform, for
    what a policy that has settled in a region of its own never draws, the model cannot choose. Every second round the
    choice is that of a model which has learned no likeness of its own: from a few unlucky evaluations one is learned,
    now and then, in which all that was never tried looks bad, and which nothing else would shake. Where the space
    knows more of what makes architectures alike (`SearchSpace.features`), that model goes by it, and the policy learns
    from what the two imagine in the mean.
    Learning in a model is Dyna's idea (Sutton 1991), the acquisition Bayesian optimization's; the space is never
    enumerated.

    Where the cost counts, quality and cost are modeled apart: a reward bends at its target, which no smooth model sees
    in a hundred evaluations, while neither of the two does. The reward model then learns the quality from every
    evaluation, also of what is too costly, and what an architecture is worth is how far it lies above the quality that
    its cost demands.

    Args:
        space: What is searched.
        seed: The run's seed.
        policy: Size and squashing of the policy.
        num_random: Architectures drawn uniformly at first (or a few more, to fill a round).
        updates: Policy updates after every round, of `imagined` samples each.
        imagined: Samples of an update.
        candidates: Samples that the model chooses from, for every architecture evaluated; 1,000 a round at most.
        optimism: Deviations added to the mean in an imagined reward.
        known_penalty: Taken off the imagined reward of an architecture that was evaluated, in normal scores.
        entropy_weight: Of the policy's entropy (nats per architecture) in the loss.
        learning_rate: Of the policy's Adam.
        clip: Largest norm of the gradient.
        proposer: Where candidates come from: half from the `policy`, or all from `uniform` draws or `mutants` of the
            best few; these two are there to see what the policy adds.
        chooser: `model`, or `first` for the policy's first new sample, whatever the model thinks.
    """

    name = "model_based"
    remedies = ("a higher controller.entropy_weight", "a smaller search.policy_share")

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        policy: PolicySettings,
        num_random: int = 10,
        updates: int = 3,
        imagined: int = 128,
        candidates: int = 1000,
        optimism: float = 1.0,
        known_penalty: float = 1.0,
        entropy_weight: float = 0.6,
        learning_rate: float = 0.02,
        clip: float = 5.0,
        proposer: Literal["policy", "uniform", "mutants"] = "policy",
        chooser: Literal["model", "first"] = "model",
    ):
        super().__init__(space, seed)
        if num_random < 2 or updates < 0 or imagined < 2 or not 1 <= candidates <= 1000:
            raise ValueError(
                f"model-based search needs num_random >= 2, updates >= 0, imagined >= 2 and candidates from 1 to 1000, "
                f"got {num_random}, {updates}, {imagined} and {candidates}"
            )
        self.policy, self.optimizer = learning_policy(space, seed, policy, learning_rate, clip)
        self.num_random, self.updates, self.imagined, self.candidates = num_random, updates, imagined, candidates
        self.optimism, self.known_penalty, self.entropy_weight = optimism, known_penalty, entropy_weight
        self.clip, self.proposer, self.chooser = clip, proposer, chooser
        self.model, self.steady = RewardModel(space), SteadyModel(space)
        # In whose imagination the policy learns. One that knows no more than the learned one began with adds nothing.
        self.teachers = [self.model, self.steady] if self.steady.knows_more else [self.model]
        self.demand = Demand(space)
        self.seen: dict[Genotype, tuple[float, float, float]] = {}  # reward, quality, cost
        self.lost: set[Genotype] = set()  # which gave no finite reward; once is enough
        self.num_learned = 0

    def propose(self, num: int, round_number: int) -> list[Genotype]:
        rng = np.random.default_rng(derive_seed(self.seed, self.name, "propose", round_number))
        if len(self.seen) < self.num_random:
            return self.space.sample(rng, num)
        tokens = self._candidates(min(1000, self.candidates * num), rng)
        tokens = tokens[np.sort(np.unique(tokens, axis=0, return_index=True)[1])]  # each once, in the order drawn
        tokens = tokens[~self._is_known(tokens)]
        if self.chooser == "model" and len(tokens):
            model = self.model if round_number % 2 else self.steady
            best = self._worth(self._tokens_seen(), model)[0].max()
            tokens = tokens[np.argsort(-expected_improvement(*self._worth(tokens, model), best), kind="stable")]
        found = [Genotype(self.space.name, tuple(row)) for row in tokens[:num].tolist()]
        return found + self.space.sample(rng, num - len(found))

    def sample(self, num: int, step: int) -> list[Genotype] | None:
        return self.policy.sample(num, self.seed, step) if self.num_learned else None

    def _candidates(self, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
        if self.proposer == "mutants":
            parents = sorted(self.seen, key=lambda genotype: -self.seen[genotype][0])[:10]
            return np.array([self.space.mutate(parents[i], rng).tokens for i in rng.integers(len(parents), size=num)])
        num_own = (num + 1) // 2 if self.proposer == "policy" else 0
        own = self.policy.draw(num_own, derive_seed(self.seed, self.name, "candidates", int(rng.integers(2**62))))
        uniform = np.array([genotype.tokens for genotype in self.space.sample(rng, num - num_own)], np.int64)
        return np.concatenate([own, uniform.reshape(-1, own.shape[1])])  # candidates: 1 leaves none for the uniform

    def learn(self, rollout: Rollout) -> Update:
        """Fit the model to all that was seen, and teach the policy what it imagines."""
        finite = np.isfinite(rollout.rewards)
        for evaluation, reward in zip(rollout.evaluations, rollout.rewards.tolist(), strict=True):
            if np.isfinite(reward):
                self.seen.setdefault(evaluation.genotype, (reward, evaluation.quality, evaluation.cost))
            else:
                self.lost.add(evaluation.genotype)
        update, num_lost = Update(), int((~finite).sum())
        if len(self.seen) < self.num_random:
            return replace(update, num_skipped=num_lost)
        learned_from = self._learned_from()
        for model in (self.model, self.steady):
            model.fit(list(self.seen), learned_from)
        if self.proposer == "policy":
            for _ in range(self.updates):
                update = self._imagine()
                self.num_learned += 1
        return replace(update, num_skipped=num_lost)

    def _is_known(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the architectures (M, T) were evaluated, (M)."""
        seen = {genotype.tokens for genotype in (*self.seen, *self.lost)}
        return np.array([tuple(row) in seen for row in tokens.tolist()], np.bool_)

    def _tokens_seen(self) -> NDArray[np.int64]:
        return np.array([genotype.tokens for genotype in self.seen])

    def _learned_from(self) -> NDArray[np.float64]:
        """What the reward model learns, with the demand brought up to date: rewards, or where cost counts qualities."""
        rewards, qualities, costs = np.array(list(self.seen.values())).T
        self.demand.fit(self._tokens_seen(), qualities, costs, rewards, normal_scores(qualities))
        return qualities if self.demand.matters else rewards

    def _worth(self, tokens: NDArray[np.int64], model: RewardModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation of how far architectures (M, T) lie above what is demanded of them, in normal scores."""
        mean, deviation = model.predict(tokens)
        return mean - self.demand(tokens), deviation

    def _imagine(self) -> Update:
        """One REINFORCE step on imagined rewards, their normal scores taken as advantages."""
        seed = derive_seed(self.seed, self.name, "imagine", self.num_learned)
        tokens, walk = self.policy.draw_and_walk(self.imagined, seed)
        worths = [self._worth(tokens, model) for model in self.teachers]
        hopes = np.mean([mean + self.optimism * deviation for mean, deviation in worths], axis=0)
        rewards = hopes - self.known_penalty * self._is_known(tokens)
        advantage = torch.from_numpy(normal_scores(rewards)).float()
        chosen = self.policy.evaluate(tokens, self.space.masks(tokens), 0.5, walk)
        loss = -(advantage * chosen.log_probability).mean() - self.entropy_weight * chosen.entropy.mean()
        norm = descend(self.policy, chosen, loss, self.optimizer, self.clip)
        if norm is None:
            raise ControllerError(
                "the search stopped: loss or gradient of imagined rewards was not finite; lower "
                "controller.learning_rate"
            )
        return Update(loss.item(), chosen.entropy.mean().item(), norm)

    def estimate(self, genotypes: list[Genotype]) -> NDArray[np.float64] | None:
        """What the model thinks of architectures that were evaluated, noise taken off."""
        if len(self.seen) < self.num_random:
            return None
        return self._worth(np.array([genotype.tokens for genotype in genotypes]), self.model)[0]

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "model": self.model.save(),
            "seen": [(genotype.tokens, *outcome) for genotype, outcome in self.seen.items()],
            "lost": sorted(genotype.tokens for genotype in self.lost),
            "num_learned": self.num_learned,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen = {Genotype(self.space.name, tuple(tokens)): tuple(outcome) for tokens, *outcome in state["seen"]}
        self.lost = {Genotype(self.space.name, tuple(tokens)) for tokens in state["lost"]}
        learned_from = self._learned_from() if self.seen else np.zeros(0)
        self.model.restore(state["model"], list(self.seen), learned_from)
        if self.seen:
            self.steady.fit(list(self.seen), learned_from)
        self.num_learned = state["num_learned"]
