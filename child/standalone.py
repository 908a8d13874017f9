"""The evaluator without shared weights: every architecture is trained from scratch on its own."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

from child.cost import CostModel
from child.space import Evaluation, Genotype, Improvement, NetworkSpace, Sampler, derive_seed, is_out_of_memory
from child.task import Classification, Language, Task
from child.training import Training, TrainingError, TrainingSettings, grade, quality_or_failure

StandaloneScore = Literal["metric", "loss"]


def folds_of(task: Task, num_folds: int, seed: int) -> list[Task]:
    """The task itself for one fold (hold-out, or an independent validation set); else k folds.

    The folds divide training and validation data together; each is the validation split of one task. Classes are
    spread evenly; groups stay together; a text is cut into stretches. The split is drawn by the seed alone and is the
    same on every machine. Preprocessing and the scale of a regression's targets stay those of the training data.

    Raises:
        ValueError: There are fewer samples, or groups, than folds.
    """
    if num_folds == 1:
        return [task]
    together = task.train.join(task.validation)
    if not 1 <= num_folds <= len(together):
        raise ValueError(f"folds must be from 1 to the number of samples, {len(together):,}, got {num_folds:,}")
    draw = derive_seed(seed, "folds") % 2**32
    groups = None if together.groups is None else together.groups.numpy()
    labels = np.zeros(len(together), np.int64)
    if groups is not None:
        dealer = GroupKFold(num_folds, shuffle=True, random_state=draw)
    elif isinstance(task.objective, Classification):
        dealer, labels = StratifiedKFold(num_folds, shuffle=True, random_state=draw), together.targets.cpu().numpy()
    elif isinstance(task.objective, Language):
        dealer = KFold(num_folds)
    else:
        dealer = KFold(num_folds, shuffle=True, random_state=draw)
    return [
        task.with_splits(together.take(torch.from_numpy(rest)), together.take(torch.from_numpy(held_out)))
        for rest, held_out in dealer.split(labels, labels, groups)
    ]


class StandaloneEvaluator:
    """Quality of an architecture trained from scratch, the mean over the folds.

    A genotype is trained once: its weights and data order follow from the run's seed and the genotype alone, and a
    repeat gives the stored value.

    Args:
        space: Builds the networks.
        task: What they learn.
        cost: The cost of a genotype.
        settings: How they are trained; fidelity is the share of its epochs.
        folds: 1 for the task's own validation split, k for k-fold cross-validation.
        seed: The run's seed.
        device: Where to compute.
        score: What the quality is taken from: `metric`, the task's own; or `loss`, which tells apart what answers
            equally many right.
        max_seconds: Give an architecture up that takes longer; None for never. Where a limit strikes depends on the
            machine, and so then does the result of a run.
    """

    def __init__(
        self,
        space: NetworkSpace,
        task: Task,
        cost: CostModel,
        settings: TrainingSettings,
        folds: int,
        seed: int,
        device: torch.device,
        score: StandaloneScore = "metric",
        max_seconds: float | None = None,
    ):
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"max_seconds must be above 0 or null, got {max_seconds}")
        self.max_seconds = max_seconds
        self.space, self.cost, self.settings, self.seed, self.device = space, cost, settings, seed, device
        self.score = score
        judged = task if score == "metric" else task.by_loss()
        self.folds = [fold.to(device) for fold in folds_of(judged, folds, seed)]
        self.outcomes: dict[tuple[Genotype, float], float | str] = {}  # by fidelity: a quality, or why there is none
        self._file: Path | None = None

    def remember(self, file: Path) -> None:
        """Write every outcome to a file as soon as it is known, and repeat no training whose outcome is there.

        Outcomes follow from the evaluator's arguments and the genotype alone, so that a run which was stopped goes on
        as it would have, without the trainings that it had made since its last checkpoint.
        """
        lines = file.read_text().splitlines() if file.is_file() else []
        for line in lines:
            try:
                tokens, fidelity, outcome = json.loads(line)
            except ValueError:  # the last, where the run was killed in the middle of it
                continue
            self.outcomes[Genotype(self.space.name, tuple(tokens)), fidelity] = outcome
        self._file = file

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """Train what has not been trained before; `seed` is not used, since the value must not change."""
        for genotype in genotypes:
            if (genotype, fidelity) not in self.outcomes:
                outcome = self.outcomes[genotype, fidelity] = self._train(genotype, fidelity)
                self._write(genotype, fidelity, outcome)
        return [self._evaluation(genotype, fidelity) for genotype in genotypes]

    def has_failed(self, genotype: Genotype, fidelity: float) -> bool:
        """Whether a training was made that gave no quality."""
        return isinstance(self.outcomes.get((genotype, fidelity)), str)

    def epochs(self, fidelity: float) -> float:
        """How long an architecture is trained at that fidelity; a part of an epoch where there are few."""
        return fidelity * self.settings.epochs

    def standard_error(self, quality: float) -> float:
        """Of a quality, which all folds together were judged for."""
        targets = torch.cat([fold.validation.targets for fold in self.folds])
        return self.folds[0].objective.standard_error(quality, targets)

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        """Nothing is shared, so there is nothing to train."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Every outcome so far."""
        outcomes = [[list(genotype.tokens), fidelity, each] for (genotype, fidelity), each in self.outcomes.items()]
        return {"outcomes": outcomes, "cost": self.cost.state_dict(), "score": self.score}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave, beside what a file may have told already.

        Raises:
            ValueError: The qualities are taken from something else.
        """
        if state["score"] != self.score:
            raise ValueError(f"it has qualities by {state['score']}, and they are to be by {self.score}")
        self.cost.load_state_dict(state["cost"])
        for tokens, fidelity, outcome in state["outcomes"]:
            self.outcomes[Genotype(self.space.name, tuple(tokens)), fidelity] = outcome

    def _evaluation(self, genotype: Genotype, fidelity: float) -> Evaluation:
        outcome = self.outcomes[genotype, fidelity]
        quality, failure = (0.0, outcome) if isinstance(outcome, str) else (outcome, None)
        return Evaluation(genotype, quality, self.cost(genotype), fidelity, self.seed, failure)

    def _write(self, genotype: Genotype, fidelity: float, outcome: float | str) -> None:
        if self._file is not None:
            self._file.parent.mkdir(exist_ok=True)
            with self._file.open("a") as file:
                # A line break first, since a line that was cut off has none.
                file.write(f"\n{json.dumps([genotype.tokens, fidelity, outcome])}")

    def _train(self, genotype: Genotype, fidelity: float) -> float | str:
        """The mean quality over the folds, or why there is none."""
        qualities = []
        started = time.monotonic()
        try:
            for number, task in enumerate(self.folds):
                stage = f"standalone {genotype.tokens} fold {number}"
                torch.manual_seed(derive_seed(self.seed, stage, "weights"))
                network = self.space.network(genotype).to(self.device)
                num_steps = self.settings.num_steps(len(task.train), fidelity)
                training = Training(network, task, self.settings, num_steps, self.seed, stage, self.device)
                network.train()
                while not training.finished:
                    training.step()
                    if self.max_seconds is not None and time.monotonic() - started > self.max_seconds:
                        return f"out of time: more than {self.max_seconds:g} s"
                scores = grade(network, task, task.validation, self.settings.batch_size, self.device)
                quality = quality_or_failure(task, scores, task.validation)
                if isinstance(quality, str):
                    return quality
                qualities.append(quality)
        except TrainingError:
            return "training was not finite"
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return "out of memory"
        return sum(qualities) / len(qualities)
