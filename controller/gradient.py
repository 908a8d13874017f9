"""Search by gradients: the choices are relaxed to weights, and the architecture learns as the shared weights do.

DARTS (Liu, Simonyan and Yang 2019) blends all choices; GDAS (Dong and Yang 2019) samples one and lets the gradient
through. Before every training batch of the shared weights the architecture takes a step on a validation batch; while
the shared weights are warmed up it rests. The strategies then play what they have learned in the same environment as
all others: what they derive, and samples of their distribution beside it. Rewards teach them nothing; what they
minimize is the reward's `loss`, on the same validation data. What they derive in the end is their choice.

Letters: T decisions, C the largest number of choices.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from child.space import Genotype, Relaxation, Sampler, SearchSpace, derive_seed, is_out_of_memory
from controller.reinforce import MAX_SKIPPED, ControllerError
from controller.strategy import Rollout, Update, WholeStrategy


class GradientStrategy(WholeStrategy):
    """One logit for every choice of every decision, learned by Adam.

    Args:
        space: What is searched.
        seed: The run's seed.
        num_updates: How many rounds are to come, for schedules.
        relaxation: What the logits learn from; None where there is no such thing.
        learning_rate: Adam's, of the logits.
        weight_decay: L2 penalty on the logits.
        max_skips: The logits stop learning before what is derived has more skip-connections than this (in the normal
            cell, where there are two): the early stopping of DARTS+ (Liang et al. 2019, criterion 1), which stops at
            two, against the collapse to skip-connections. None for never.

    Raises:
        ValueError: There is nothing to learn from.
    """

    remedies = ("fewer skip-connections (controller.max_skips)", "a lower controller.learning_rate")

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        num_updates: int,
        relaxation: Relaxation | None,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-3,
        max_skips: int | None = None,
    ):
        super().__init__(space, seed)
        if relaxation is None:
            raise ValueError(
                f"{self.name} learns by gradients, which takes evaluator=supernet with evaluator.copies=1, a space "
                "whose supernet blends all choices (micro, nasbench201), and a reward whose cost has a gradient (macs "
                "or parameters)"
            )
        if not learning_rate > 0 or not weight_decay >= 0 or (max_skips is not None and max_skips < 0):
            raise ValueError(
                f"{self.name} needs learning_rate > 0, weight_decay >= 0 and max_skips >= 0 or null, got "
                f"{learning_rate}, {weight_decay} and {max_skips}"
            )
        self.num_updates, self.relaxation, self.max_skips = num_updates, relaxation, max_skips
        self.exists = torch.from_numpy(space.full_masks).bool()
        generator = torch.Generator().manual_seed(derive_seed(seed, self.name, "logits"))
        self.logits = 1e-3 * torch.randn(self.exists.shape, generator=generator)  # as in DARTS's public code
        self.logits.requires_grad_()
        self.optimizer = torch.optim.Adam([self.logits], learning_rate, (0.5, 0.999), weight_decay=weight_decay)
        self.num_rounds = 0
        self.stopped_in: int | None = None
        self.num_skipped_in_a_row = 0
        self.steps: list[tuple[float, float]] = []  # loss and gradient norm of each since the last round
        self.num_skipped = 0

    @abstractmethod
    def relaxed(self, step: int) -> Tensor:
        """The choice weights (T, C) of an architecture step, which the logits' gradient flows through."""

    @abstractmethod
    def path(self, step: int) -> Genotype | Tensor:
        """What the shared weights are trained on in batch number `step`."""

    def loss(self, choices: Tensor, step: int) -> Tensor:
        """The loss of an architecture step."""
        return self.relaxation.loss(choices, step)

    def training_sampler(self, mixed: Sampler) -> Sampler:
        return self.alternate

    def alternate(self, num: int, step: int) -> Iterator[Genotype | Tensor]:
        """For each of `num` training batches from number `step` on, an architecture step, then what to train on."""
        for number in range(step, step + num):
            if self.num_rounds > 0 and self.stopped_in is None:
                self._improve(number)
            yield self.path(number)

    def _improve(self, step: int) -> None:
        try:
            loss = self.loss(self.relaxed(step), step)
            (gradient,) = torch.autograd.grad(loss, [self.logits], allow_unused=True, materialize_grads=True)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._skip("memory ran out", "batch_size")
            return
        if not bool(loss.isfinite()) or not bool(gradient.isfinite().all()):
            self._skip("loss or gradient of the architecture was not finite", "learning_rate")
            return
        self.num_skipped_in_a_row = 0
        self.steps.append((loss.item(), gradient.norm().item()))
        before = self.logits.detach().clone()
        num_skips = self._num_skips()
        self.logits.grad = gradient
        self.optimizer.step()
        # Not where there were more from the start, when nothing has been learned.
        if self.max_skips is not None and self._num_skips() > max(self.max_skips, num_skips):
            self.stopped_in = self.num_rounds
            with torch.no_grad():
                self.logits.copy_(before)

    def _skip(self, why: str, lower: str) -> None:
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1
        if self.num_skipped_in_a_row >= MAX_SKIPPED:
            raise ControllerError(
                f"the search stopped: {why} in {MAX_SKIPPED} steps in a row; lower evaluator.settings.{lower}"
            )

    def _num_skips(self) -> int:
        return 0 if self.max_skips is None else self.relaxation.num_skips(self.derived())

    def probabilities(self) -> Tensor:
        """Of each choice of each decision, (T, C)."""
        return self._log_probabilities().exp()

    def _log_probabilities(self) -> Tensor:
        return self.logits.masked_fill(~self.exists, -torch.inf).log_softmax(dim=1)

    def derived(self) -> Genotype:
        """The most probable choice of every decision."""
        return self.space.canonical(self.probabilities().argmax(dim=1).tolist())

    def choice(self) -> Genotype:
        """What it derives: weights that learned under blends score single paths badly, so scores do not decide."""
        return self.derived()

    def propose(self, num: int, round_number: int) -> list[Genotype]:
        drawn = self._draw(num - 1, derive_seed(self.seed, self.name, "propose", round_number))
        return [self.derived(), *drawn]

    def sample(self, num: int, step: int) -> list[Genotype]:
        return self._draw(num, derive_seed(self.seed, self.name, "sample", step))

    def _draw(self, num: int, seed: int) -> list[Genotype]:
        noise = np.random.default_rng(seed).gumbel(size=(num, *self.logits.shape))
        tokens = (self._log_probabilities().detach().numpy() + noise).argmax(axis=2)
        return [self.space.canonical(row) for row in tokens.tolist()]

    def learn(self, rollout: Rollout) -> Update:
        """Nothing from the rewards; this tells what was learned since the last round, and begins the next."""
        probabilities = self.probabilities().detach()
        entropy = -torch.xlogy(probabilities, probabilities).sum().item()
        loss, norm = np.mean(self.steps, axis=0).tolist() if self.steps else (None, None)
        note = None
        if self.stopped_in == self.num_rounds:
            note = f"{self.name} stopped learning in round {self.num_rounds}: the next step would derive more than " \
                f"{self.max_skips} skip-connections"  # fmt: skip
        rows = zip(probabilities.tolist(), self.space.decisions, strict=True)
        shares = [row[: decision.num_choices] for row, decision in rows]
        update = Update(loss, entropy, norm, num_skipped=self.num_skipped, probabilities=shares, note=note)
        self.num_rounds, self.steps, self.num_skipped = self.num_rounds + 1, [], 0
        return update

    def state_dict(self) -> dict[str, Any]:
        return {
            "logits": self.logits.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "num_rounds": self.num_rounds,
            "stopped_in": self.stopped_in,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
            "steps": list(self.steps),
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_rounds = state["num_rounds"]
        self.stopped_in = state["stopped_in"]
        self.num_skipped_in_a_row = state["num_skipped_in_a_row"]
        self.steps = list(state["steps"])
        self.num_skipped = state["num_skipped"]


class DARTS(GradientStrategy):
    """All choices at once, weighted by their probabilities, for the architecture and for the shared weights.

    Args:
        order: 2 differentiates through the next training step of the shared weights, as in the paper's results; 1
            takes the shared weights as they are, at less than half of the time.
        space, seed, num_updates, relaxation, learning_rate, weight_decay, max_skips: As for `GradientStrategy`; with
            the published defaults.
    """

    name = "darts"

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        num_updates: int,
        relaxation: Relaxation | None,
        order: Literal[1, 2] = 1,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-3,
        max_skips: int | None = None,
    ):
        super().__init__(space, seed, num_updates, relaxation, learning_rate, weight_decay, max_skips)
        self.order = order

    def relaxed(self, step: int) -> Tensor:
        return self.probabilities()

    def loss(self, choices: Tensor, step: int) -> Tensor:
        return self.relaxation.loss(choices, step, unrolled=self.order == 2)

    def path(self, step: int) -> Tensor:
        return self.probabilities().detach()


class GDAS(GradientStrategy):
    """One sampled choice of each decision, for the architecture and for the shared weights.

    A sample is the largest of the logits with Gumbel noise; the gradient is that of their softmax at a temperature
    (Dong and Yang 2019, eq. 3 to 5). It reaches the softmax through the weights of what was sampled, as in the paper;
    the public code adds 1 for each weight that was not. Every batch has a sample of its own.

    Args:
        temperature: Of the softmax in the first round.
        final_temperature: In the last; linear in between.
        space, seed, num_updates, relaxation, learning_rate, weight_decay, max_skips: As for `GradientStrategy`; with
            the published defaults.
    """

    name = "gdas"

    def __init__(
        self,
        space: SearchSpace,
        seed: int,
        num_updates: int,
        relaxation: Relaxation | None,
        temperature: float = 10.0,
        final_temperature: float = 0.1,
        learning_rate: float = 3e-4,
        weight_decay: float = 1e-3,
        max_skips: int | None = None,
    ):
        super().__init__(space, seed, num_updates, relaxation, learning_rate, weight_decay, max_skips)
        if not temperature > 0 or not final_temperature > 0:
            raise ValueError(f"gdas needs temperatures above 0, got {temperature} and {final_temperature}")
        self.first, self.last = temperature, final_temperature

    def temperature(self) -> float:
        """Of the softmax, in this round."""
        progress = min(1.0, self.num_rounds / max(1, self.num_updates - 1))
        return self.first + progress * (self.last - self.first)

    def relaxed(self, step: int) -> Tensor:
        noise = np.random.default_rng(derive_seed(self.seed, self.name, "noise", step)).gumbel(size=self.logits.shape)
        noisy = self._log_probabilities() + torch.from_numpy(noise).float()
        soft = (noisy / self.temperature()).softmax(dim=1)
        hard = one_hot(soft.argmax(dim=1), soft.shape[1])
        return hard + (soft - soft.detach())  # exactly one-hot, with the gradient of the softmax

    def path(self, step: int) -> Genotype:
        (genotype,) = self.sample(1, step)
        return genotype
