"""The search loop: shared weights for so many batches, then the controller for one update, again and again.

It owns `env.step`; the environment is any Gymnasium vector environment that plays by the rules of
`luban/Architecture-v0`, a user's own included. Random search plays beside the strategy, in the same environment, on
the same shared weights and validation batches, with as many evaluations.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from child.space import OVER_BUDGET, Evaluation, Genotype, Improvement, SearchSpace, Trainable, derive_seed
from controller.ledger import Ledger
from controller.sampler import Base, TrainingSampler
from controller.strategy import RandomSearch, Rollout, Strategy, Update, check_update
from logbook.checkpoint import check_state
from logbook.console import Console
from logbook.run import Run

MAX_IDLE = 300
"""Rounds in a row without an evaluation that had to be paid, after which a strategy with a budget has settled."""

OBSERVED = {"tokens", "step", "action_mask"}

PIECE = 50
"""Training batches of shared weights between two chances of a checkpoint."""


@dataclass(frozen=True)
class SearchSettings:
    """How long the search is.

    Args:
        rounds: Controller updates.
        episodes: Architectures per update, B.
        warmup_batches: Training batches of the shared weights before the first update.
        batches_per_round: Training batches of the shared weights before each further update.
        sampler: What the shared weights are trained on at first: `uniform`, `fair` or `sandwich`.
        policy_share: The share of training batches that the policy draws by the last round, rising linearly; of no
            consequence for a strategy that has no policy. Gradient search, which trains what it blends or samples,
            asks for neither of the two.
        fidelity: The share of a full evaluation per architecture (of the validation data, or of the epochs).
        compare_random: Whether random search plays beside the strategy.
        budget: What each strategy may spend, in evaluations, or in what a table says that they are charged: then a
            repeat costs nothing and gives the stored value, and the search ends when the budget is spent, `rounds`
            are played, or nothing new was proposed for 300 rounds. None for no such account.
    """

    rounds: int = 60
    episodes: int = 16
    warmup_batches: int = 600
    batches_per_round: int = 15
    sampler: Base = "fair"
    policy_share: float = 1.0
    fidelity: float = 0.5
    compare_random: bool = True
    budget: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("rounds", 1), ("episodes", 1), ("warmup_batches", 0), ("batches_per_round", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"search.{name} must be at least {low}, got {getattr(self, name)}")
        if not 0 <= self.policy_share <= 1 or not 0 < self.fidelity <= 1:
            raise ValueError(
                f"search.policy_share must be in [0, 1] and search.fidelity in (0, 1], got {self.policy_share} and "
                f"{self.fidelity}"
            )
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ValueError(f"search.budget must be above 0 or null, got {self.budget}")

    @property
    def num_batches(self) -> int:
        """Training batches of the shared weights in all."""
        return self.warmup_batches + (self.rounds - 1) * self.batches_per_round


@dataclass(frozen=True)
class Trained:
    """How far the shared weights have come in this round: batches, and the mean loss of those that count."""

    num_batches: int = 0
    total_loss: float = 0.0
    num_finite: int = 0

    def after(self, improvement: Improvement | None, num_batches: int) -> "Trained":
        """One piece further; of a piece without shared weights only the batches count."""
        if improvement is None or not math.isfinite(improvement.loss):
            return replace(self, num_batches=self.num_batches + num_batches)
        num_finite = num_batches - improvement.num_skipped
        total = self.total_loss + num_finite * improvement.loss
        return Trained(self.num_batches + num_batches, total, self.num_finite + num_finite)

    @property
    def loss(self) -> float | None:
        return self.total_loss / self.num_finite if self.num_finite else None


def play(envs: VectorEnv[Any, Any, Any], strategy: Strategy, round_number: int, seed: int) -> Rollout:
    """One episode in each environment, all evaluated with the same seed, and so on the same data.

    Raises:
        ValueError: The environment does not play by the rules, or what the strategy chose is not legal.
    """
    strategy.begin(envs.num_envs, round_number)
    seeds: Any = [seed] * envs.num_envs  # Gymnasium takes a list too, which its annotation leaves out
    observation, _ = envs.reset(seed=seeds)
    if not isinstance(observation, dict) or not observation.keys() >= OBSERVED:
        got = list(observation) if isinstance(observation, dict) else type(observation).__name__
        raise ValueError(f"env.id: observations need {', '.join(sorted(OBSERVED))}, got {got}")
    masks, num_steps, returns = [], len(strategy.space.decisions), np.zeros(envs.num_envs)
    while True:
        masks.append(observation["action_mask"])
        observation, rewards, terminated, truncated, info = envs.step(strategy.act(observation))
        returns += rewards
        ended = b"\1" in terminated.tobytes() or b"\1" in truncated.tobytes()  # ten times faster than any()
        if ended or len(masks) == num_steps:
            break
    if not (terminated | truncated).all() or len(masks) != num_steps:
        raise ValueError(
            f"the environment ended {'an' if ended else 'no'} episode after {len(masks)} of {num_steps} tokens; every "
            "episode must end with the last decision"
        )
    tokens = np.asarray(observation["tokens"], np.int64)
    evaluations = info.get("evaluation")
    if evaluations is None:  # an environment that only speaks in rewards
        genotypes = [Genotype(strategy.space.name, tuple(row)) for row in tokens.tolist()]
        pairs = zip(genotypes, returns.tolist(), strict=True)
        evaluations = [Evaluation(genotype, reward, math.nan, 1.0, seed) for genotype, reward in pairs]
    elif None in evaluations:
        raise ValueError("env.id: info['evaluation'] is missing for some episodes; it is there for all, or for none")
    by_step = np.concatenate(masks).reshape(len(masks), *masks[0].shape)  # several times faster than stack
    return Rollout(tokens, by_step.transpose(1, 0, 2), returns, list(evaluations))


@dataclass
class Player:
    """A strategy, the environments it plays in, and the account it pays from, if its budget is limited."""

    strategy: Strategy
    envs: VectorEnv[Any, Any, Any]
    ledger: Ledger | None = None
    idle: int = 0

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or the strategy proposes nothing new any more."""
        return self.ledger is not None and (self.ledger.closed or self.idle >= MAX_IDLE)

    def play(self, round_number: int, seed: int) -> tuple[Rollout, Update]:
        """Play and learn; what no longer fitted the budget is left out, as if it had not been proposed."""
        spent = self.ledger.spent if self.ledger else 0.0
        rollout = play(self.envs, self.strategy, round_number, seed)
        if self.ledger is not None:
            if any(math.isnan(each.cost) and not each.failure for each in rollout.evaluations):
                raise ValueError(
                    "search.budget: this environment tells rewards but no evaluations (info['evaluation']), so that "
                    "what a budget pays for is not known; set search.budget=null"
                )
            self.idle = 0 if self.ledger.spent > spent else self.idle + 1
            made = np.array([evaluation.failure != OVER_BUDGET for evaluation in rollout.evaluations])
            rollout = Rollout(
                rollout.tokens[made],
                rollout.masks[made],
                rollout.rewards[made],
                [evaluation for evaluation in rollout.evaluations if evaluation.failure != OVER_BUDGET],
            )
        # Of what is written down later it gets a copy: to take a mean off its rewards in place is quickly done.
        own = replace(rollout, rewards=rollout.rewards.copy(), evaluations=list(rollout.evaluations))
        update = self.strategy.learn(own) if len(rollout.rewards) else Update()
        check_update(update, self.strategy)
        return rollout, update

    def state_dict(self) -> dict[str, Any]:
        return {
            "strategy": self.strategy.state_dict(),
            "ledger": self.ledger.state_dict() if self.ledger else None,
            "idle": self.idle,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.strategy.load_state_dict(state["strategy"])
        if self.ledger:
            self.ledger.load_state_dict(state["ledger"])
        self.idle = state["idle"]


def search(
    join: Callable[[Strategy], Player],
    strategy: Strategy,
    evaluator: Trainable,
    settings: SearchSettings,
    seed: int,
    run: Run,
    console: Console,
) -> None:
    """Search, or go on where the run's last checkpoint stands; every evaluation goes into `history.jsonl`.

    Args:
        join: Gives a strategy its environments, and an account of its own where there is a budget.
        strategy: Searches; random search plays beside it where the settings say so.
        evaluator: What is trained while the search goes on, if it has shared weights, and saved with it.
        settings: How long.
        seed: The run's.
        run: Writes down what happens.
        console: Shows it.
    """
    players = [join(strategy)]
    if settings.compare_random and not isinstance(strategy, RandomSearch):
        players.append(join(RandomSearch(strategy.space, seed)))
    mixed = TrainingSampler(settings.sampler, strategy, seed)
    sampler = strategy.training_sampler(mixed)
    round_number, trained = 0, Trained()

    def load(state: Mapping[str, Any]) -> None:
        nonlocal round_number, trained
        round_number, trained = state["round"], Trained(**state["trained"])
        evaluator.load_state_dict(state["evaluator"])
        for player in players:
            player.load_state_dict(state["players"][player.strategy.name])

    for player in players:
        check_state(player.strategy.state_dict(), f"controller: state_dict of {type(player.strategy).__name__}")
    run.take_up(load)

    def state() -> dict[str, Any]:
        return {
            "round": round_number,
            "trained": asdict(trained),
            "evaluator": evaluator.state_dict(),
            "players": {player.strategy.name: player.state_dict() for player in players},
        }

    def status() -> str:
        if best is None:
            return ""
        is_known = best["cost"] is not None and math.isfinite(best["cost"])
        cost = f", cost {best['cost']:.4g}" if is_known else ""
        return f"best: reward {best['reward']:.4f}, quality {best['quality']:.4f}{cost}"

    best = _best(line for line in run.read("history") if line["strategy"] == strategy.name)
    ledger = players[0].ledger

    def done() -> int:
        if ledger is None:
            return round_number
        return total if all(player.finished for player in players) else min(int(ledger.spent), total - 1)

    total = settings.rounds if ledger is None else math.ceil(ledger.budget)
    with console.stage("search", total=total, initial=done()) as progress:
        while round_number < settings.rounds and not all(player.finished for player in players):
            began = time.perf_counter()
            mixed.policy_share = settings.policy_share * round_number / max(1, settings.rounds - 1)
            num_batches = settings.warmup_batches if round_number == 0 else settings.batches_per_round
            while trained.num_batches < num_batches:
                # In pieces, so that a checkpoint, and a wish to stop, never wait long.
                piece = min(PIECE, num_batches - trained.num_batches)
                trained = trained.after(evaluator.improve(sampler, piece), piece)
                run.save_if_due(state)
            data_seed = derive_seed(seed, "search", round_number)
            played = [(player, *player.play(round_number, data_seed)) for player in players if not player.finished]
            for player, rollout, update in played:
                lines = _lines(player, rollout, round_number)
                run.append("history", *lines)
                if player is players[0]:
                    best = _best([best, *lines] if best else lines)
                if update.note:
                    console.say(update.note)
                if player.idle == MAX_IDLE and player.ledger is not None:
                    console.say(
                        f"{player.strategy.name} proposed nothing new for {MAX_IDLE} rounds: its search ends with "
                        f"{player.ledger.spent:g} of {player.ledger.budget:g} spent."
                    )
            if played[0][0] is players[0]:  # else its budget is spent, and random search alone plays on
                _log(run, round_number, played, trained.loss, time.perf_counter() - began)
            round_number, trained = round_number + 1, Trained()
            progress.advance(done=done(), status=status())
            run.save_if_due(state)
    run.save(state())


def _best(lines: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The line of the highest reward, if one has a reward."""
    paid = [line for line in lines if line["reward"] is not None and math.isfinite(line["reward"])]
    return max(paid, key=lambda line: line["reward"], default=None)


def _lines(player: Player, rollout: Rollout, round_number: int) -> list[dict[str, Any]]:
    """What `history.jsonl` says of a rollout."""
    strategy, evaluations, rewards = player.strategy, rollout.evaluations, rollout.rewards.tolist()
    first = round_number * player.envs.num_envs + 1  # a round that the budget cut short has fewer
    opened: list[dict[str, Any]] = [{}] * len(evaluations)
    if strategy.space.masks_depend_on_prefix:
        # Where one decision may close another, an analysis has to know which were there to be made.
        opened = [{"open": np.flatnonzero(row).tolist()} for row in rollout.masks.sum(axis=2) > 1]
    return [
        {
            "strategy": strategy.name,
            "round": round_number,
            "step": step,
            "genotype": evaluation.genotype.to_json(),
            "text": strategy.space.text(evaluation.genotype),
            "quality": evaluation.quality,
            "cost": evaluation.cost,
            "reward": reward,
            "fidelity": evaluation.fidelity,
            "seed": evaluation.seed,
            "failure": evaluation.failure or (None if math.isfinite(reward) else f"reward {reward} is not finite"),
            "charge": evaluation.charge,
            **more,
        }
        for step, (evaluation, reward, more) in enumerate(zip(evaluations, rewards, opened, strict=True), first)
    ]


def _log(
    run: Run,
    round_number: int,
    played: list[tuple[Player, Rollout, Update]],
    supernet_loss: float | None,
    seconds: float,
) -> None:
    (player, own, update), space = played[0], played[0][0].strategy.space
    if len(own.rewards) == 0:
        return
    line: dict[str, Any] = {"round": round_number, "strategy": player.strategy.name}
    finite = own.rewards[np.isfinite(own.rewards)]
    line |= {"reward_mean": _mean(own.rewards), "reward_best": float(finite.max()) if len(finite) else None}
    if len(played) > 1:
        line["random_reward_mean"] = _mean(played[1][1].rewards)
    line |= vars(update)
    line["supernet_loss"] = supernet_loss
    run.append("updates", line)

    scalars = {
        "search/reward_mean": line["reward_mean"],
        "search/reward_best": line["reward_best"],
        "search/random_reward_mean": line.get("random_reward_mean"),
        "search/quality_mean": _mean(np.array([e.quality for e in own.evaluations])),
        "search/entropy": update.entropy,
        "search/loss": update.loss,
        "search/gradient_norm": update.gradient_norm,
        "search/baseline": update.baseline,
        "search/skipped": float(update.num_skipped),
        "supernet/loss": line["supernet_loss"],
        "search/spent": player.ledger.spent if player.ledger else None,
        "cost/mean": _mean(np.array([e.cost for e in own.evaluations])),
        "perf/architectures_per_s": sum(len(rollout.evaluations) for _, rollout, _ in played) / seconds,
    }
    scalars |= {f"operations/{name}": share for name, share in operation_shares(space, own).items()}
    run.log({name: value for name, value in scalars.items() if value is not None})


def operation_shares(space: SearchSpace, rollout: Rollout) -> Mapping[str, float]:
    """How often each operation was chosen among the open operation decisions of a rollout."""
    num_steps, num_choices = len(space.decisions), space.max_choices
    is_open = rollout.masks.sum(axis=2, dtype=np.int16) > 1
    places = (rollout.tokens + num_choices * np.arange(num_steps))[is_open]  # one number for a step and its choice
    chosen = np.bincount(places, minlength=num_steps * num_choices).reshape(num_steps, num_choices).tolist()
    counts: dict[str, int] = {}
    for decision, found in zip(space.decisions, chosen, strict=True):
        if decision.kind == "operation":
            for label, count in zip(decision.labels, found, strict=False):  # narrow decisions have fewer choices
                counts[label] = counts.get(label, 0) + count
    total = max(1, sum(counts.values()))
    return {label: count / total for label, count in counts.items()}


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
