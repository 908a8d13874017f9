"""What every search strategy is: it proposes architectures token by token and learns from their rewards.

Letters: B episodes, T decisions, C the largest number of choices.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from child.space import Evaluation, Genotype, Mask, Sampler, SearchSpace, Tokens, derive_seed


@dataclass(frozen=True)
class Rollout:
    """B finished episodes: tokens (B, T), the masks they were drawn under (B, T, C), rewards (B), evaluations (B)."""

    tokens: Tokens
    masks: Mask
    rewards: NDArray[np.float64]
    evaluations: list[Evaluation]


@dataclass(frozen=True)
class Update:
    """What learning from a rollout did; None where a strategy has no such thing.

    Args:
        loss: Of the update.
        entropy: Of the policy, in nats per architecture.
        gradient_norm: Before clipping.
        baseline: Subtracted from the rewards, in the mean.
        num_skipped: Episodes or updates left out because a number was not finite.
        probabilities: The mean probability of each choice, one list per decision; NaN where it was not open.
        note: A sentence for a person, where something happened that the numbers do not tell.
    """

    loss: float | None = None
    entropy: float | None = None
    gradient_norm: float | None = None
    baseline: float | None = None
    num_skipped: int = 0
    probabilities: list[list[float]] | None = None
    note: str | None = None


class Strategy(ABC):
    """Proposes B architectures at once, one token a step, and learns from the finished ones."""

    name: str
    remedies: tuple[str, ...] = ()
    """What of its own settings helps against a collapse."""

    def __init__(self, space: SearchSpace, seed: int):
        self.space, self.seed = space, seed

    @abstractmethod
    def begin(self, num: int, round_number: int) -> None:
        """Begin `num` episodes; every draw follows from (seed, round number)."""

    @abstractmethod
    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        """The next token of each episode, (B,), legal under the observation's `action_mask`."""

    @abstractmethod
    def learn(self, rollout: Rollout) -> Update:
        """Learn from finished episodes, whose rewards may hold values that are not finite."""

    def sample(self, num: int, step: int) -> list[Genotype] | None:
        """Architectures for training shared weights, from what has been learned; None where nothing has."""
        return None

    def estimate(self, genotypes: list[Genotype]) -> NDArray[np.float64] | None:
        """What the strategy thinks evaluated architectures are worth, noise taken off, in a scale of its own.

        None where it has no opinion but the rewards.
        """
        return None

    def training_sampler(self, mixed: Sampler) -> Sampler:
        """What the shared weights are trained on: `mixed`, unless the strategy learns in step with them."""
        return mixed

    def choice(self) -> Genotype | None:
        """The one architecture that the strategy stands for, whatever the scores; None where the scores decide."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that changes as the strategy learns: dictionaries, lists, tuples, numbers, texts and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` gave."""
        assert not state, f"{self.name} keeps no state, yet some was saved"


class WholeStrategy(Strategy):
    """A strategy that thinks in whole architectures: it draws them in `begin` and replays them token by token."""

    @abstractmethod
    def propose(self, num: int, round_number: int) -> list[Genotype]:
        """The architectures of this round, `num` of them."""

    def begin(self, num: int, round_number: int) -> None:
        """As for every strategy.

        Raises:
            ValueError: There are not as many proposals, or they are no architectures of the space.
        """
        proposed, space, num_steps = self.propose(num, round_number), self.space.name, len(self.space.decisions)
        told = f"controller: propose of {type(self).__name__} gave"
        if not isinstance(proposed, list | tuple) or len(proposed) != num:
            got = f"{len(proposed)}" if isinstance(proposed, list | tuple) else f"{proposed!r:.100} and not {num}"
            raise ValueError(f"{told} {got} of {num} architectures")
        for each in proposed:
            if not isinstance(each, Genotype) or each.space != space or len(each.tokens) != num_steps:
                raise ValueError(f"{told} {each!r:.100}; expected a Genotype of space {space} with {num_steps} tokens")
        tokens = np.array([genotype.tokens for genotype in proposed])
        if tokens.dtype.kind not in "iu":
            raise ValueError(f"{told} tokens such as {tokens[0].tolist()!r:.100}; expected whole numbers")
        self._tokens = tokens.astype(np.int64)

    def act(self, observation: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
        return self._tokens[:, int(observation["step"][0])]

    def learn(self, rollout: Rollout) -> Update:
        """Nothing, unless a strategy says otherwise."""
        return Update()


class RandomSearch(WholeStrategy):
    """Every decision uniform over what is legal: the opponent that every strategy must beat at equal evaluations."""

    name = "random"

    def propose(self, num: int, round_number: int) -> list[Genotype]:
        return self.space.sample(np.random.default_rng(derive_seed(self.seed, self.name, "propose", round_number)), num)


def check_strategy(made: Any) -> Strategy:
    """Prove that a strategy, which may be of the user's own making, can play beside random search.

    Raises:
        ValueError: It is none, has no name of its own, keeps a state that it does not load, or its `__init__` leaves
            out that of Strategy.
    """
    kind = type(made).__name__
    if not isinstance(made, Strategy):
        raise ValueError(f"controller: expected a Strategy of controller.strategy, got a {kind}")
    name = getattr(made, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"controller: {kind} has no name; set name to a text in it, under which its lines are written")
    if name == RandomSearch.name and not isinstance(made, RandomSearch):
        raise ValueError(
            f"controller: {kind} is called {name!r}, as the search that plays beside it; give it another name"
        )
    if type(made).state_dict is not Strategy.state_dict and type(made).load_state_dict is Strategy.load_state_dict:
        raise ValueError(f"controller: {kind} has a state_dict, but no load_state_dict that goes back to what it gave")
    if not hasattr(made, "space"):
        raise ValueError(f"controller: {kind} has no space; call super().__init__(space, seed) in its __init__")
    return made


def check_update(told: Any, strategy: Strategy) -> None:
    """Prove that what learning told can be written down.

    Raises:
        ValueError: It is no Update, or its probabilities are not those of the decisions.
    """
    kind = type(strategy).__name__
    if not isinstance(told, Update):
        raise ValueError(
            f"controller: learn of {kind} gave {told!r:.100}; an Update is needed, and Update() says that there is "
            "nothing to tell"
        )
    rows = told.probabilities
    if rows is None:
        return
    widths = [decision.num_choices for decision in strategy.space.decisions]
    if not isinstance(rows, list) or [len(row) for row in rows if isinstance(row, list)] != widths:
        raise ValueError(
            f"controller: learn of {kind} told probabilities {rows!r:.100}; expected a list for each of "
            f"{len(widths)} decisions, of a number for each of its choices"
        )
