"""The account of a search: what it has evaluated, and what it has spent."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from child.space import OVER_BUDGET, Evaluation, Evaluator, Genotype, Improvement, Sampler


class Ledger:
    """An evaluator with a budget: a first visit is charged, a repeat costs nothing and gives the stored value.

    An evaluation that no longer fits is not made, and none is made after it: it fails with `OVER_BUDGET`, which no
    strategy ever sees.

    Args:
        evaluator: Makes the evaluations.
        budget: What may be spent.
        price: What evaluating an architecture is charged.
        key: Equal for architectures that count as the same, whose first evaluation serves all.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        budget: float,
        price: Callable[[Genotype], float] = lambda genotype: 1.0,
        key: Callable[[Genotype], Hashable] = lambda genotype: genotype,
    ):
        if not budget > 0:
            raise ValueError(f"search.budget must be above 0, got {budget}")
        self.evaluator, self.budget, self.price, self.key = evaluator, budget, price, key
        self.spent, self.closed = 0.0, False
        self.known: dict[Hashable, Evaluation] = {}

    def evaluate(self, genotypes: Sequence[Genotype], fidelity: float, seed: int) -> list[Evaluation]:
        """Those that are new and fit, in their order; the rest from the account."""
        ordered: dict[Hashable, tuple[Genotype, float]] = {}
        for genotype in genotypes:
            key = self.key(genotype)
            if self.closed or key in self.known or key in ordered:
                continue
            price = self.price(genotype)
            if self.spent + price > self.budget * (1 + 1e-9):  # three of 0.1 are 0.3, but for rounding
                self.closed = True
                continue
            self.spent += price
            ordered[key] = genotype, price
        if ordered:
            made = self.evaluator.evaluate([genotype for genotype, _ in ordered.values()], fidelity, seed)
            for (key, (_, price)), evaluation in zip(ordered.items(), made, strict=True):
                self.known[key] = evaluation._replace(charge=price)
        return [self._entry(genotype, ordered, fidelity, seed) for genotype in genotypes]

    def _entry(self, genotype: Genotype, new: dict[Hashable, Any], fidelity: float, seed: int) -> Evaluation:
        key = self.key(genotype)
        known = self.known.get(key)
        if known is None:
            return Evaluation(genotype, 0.0, 0.0, fidelity, seed, OVER_BUDGET, charge=0.0)
        if new.pop(key, None) is not None:
            return known
        return known._replace(genotype=genotype, charge=0.0)

    def improve(self, sampler: Sampler, num_batches: int) -> Improvement | None:
        return self.evaluator.improve(sampler, num_batches)

    def state_dict(self) -> dict[str, Any]:
        """The account alone; the evaluator keeps its own state."""
        rows = [[*vars(each.genotype).values(), *each[1:]] for each in self.known.values()]
        return {"spent": self.spent, "closed": self.closed, "known": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.spent, self.closed = state["spent"], state["closed"]
        evaluations = [Evaluation(Genotype(name, tuple(tokens)), *rest) for name, tokens, *rest in state["known"]]
        self.known = {self.key(evaluation.genotype): evaluation for evaluation in evaluations}
