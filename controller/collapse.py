"""Has a search with shared weights collapsed? What it proposed, and how open its policy stayed, in numbers.

Shared weights learn little operations first, and a policy that follows them too early never sees what the others
could have become: networks of skip connections and pools (Zela et al. 2020, "Understanding and robustifying
differentiable architecture search"; Liang et al. 2019, DARTS+), or one architecture from early on.

Letters: B architectures, T decisions, C choices.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from child.space import Genotype, SearchSpace, Tokens
from controller.search import SearchSettings

LEFT = 0.25
"""Of the operations with parameters that random drawing would choose, the share below which they count as lost: a cell
of NAS-Bench-201 is then left with 0.6 of 2.4 convolutions, and many cells with none."""

SETTLED = 0.02
"""Of the entropy of a uniform policy, the share below which it counts as settled: in a space of 13 nats (the digits')
that is 0.27, as of a policy that draws one architecture in more than nine of ten episodes."""


@dataclass(frozen=True)
class FreeShare:
    """How many of the operations that some architectures chose are without parameters, and how many random ones."""

    chosen: float
    expected: float
    counts: Mapping[str, int]

    @property
    def is_collapsed(self) -> bool:
        """Whether hardly an operation with parameters is left."""
        return 1 - self.chosen < LEFT * (1 - self.expected)

    def text(self) -> str:
        """In numbers, the most frequent operation first."""
        total = sum(self.counts.values())
        names = ", ".join(f"{name} {num / total:.0%}" for name, num in Counter(self.counts).most_common() if num)
        return f"{self.chosen:.0%} are without parameters ({names}), where random drawing gives {self.expected:.0%}"


def free_share(space: SearchSpace, tokens: Tokens) -> FreeShare:
    """Of architectures (B, T): counted are the open decisions on operations some of which are without parameters."""
    masks = space.masks(tokens)  # (B, T, C)
    counts: Counter[str] = Counter()
    num_free, expected, total = 0, 0.0, 0
    for step, decision in enumerate(space.decisions):
        free = np.array([label in space.parameter_free for label in decision.labels])
        if decision.kind != "operation" or not free.any():
            continue
        legal = masks[:, step, : decision.num_choices].astype(bool)
        is_open = legal.sum(axis=1) > 1
        chosen, legal = tokens[is_open, step], legal[is_open]
        total += len(chosen)
        num_free += int(free[chosen].sum())
        expected += float((legal & free).sum(axis=1) @ (1 / legal.sum(axis=1)))
        counts.update(decision.labels[token] for token in chosen.tolist() if free[token])
    return FreeShare(num_free / max(1, total), expected / max(1, total), counts)


def settled_from(space: SearchSpace, entropies: Sequence[float]) -> tuple[int, float] | None:
    """From which entry on a policy's entropy stays next to none, if before half of them; and a uniform policy's.

    Args:
        space: What is searched.
        entropies: Of the policy (nats per architecture), in the order of the rounds.
    """
    drawn = np.array([genotype.tokens for genotype in space.sample(np.random.default_rng(0), 256)])
    uniform = float(np.log(space.masks(drawn).sum(axis=2)).sum(axis=1).mean())
    above = [number for number, entropy in enumerate(entropies) if entropy >= SETTLED * uniform]
    first = above[-1] + 1 if above else 0
    return (first, uniform) if first < len(entropies) / 2 else None


def name_collapse(
    space: SearchSpace,
    history: Sequence[Mapping[str, Any]],
    updates: Sequence[Mapping[str, Any]],
    chosen: Sequence[Genotype],
    settings: SearchSettings,
    remedies: Sequence[str],
    goes_by_scores: bool,
) -> list[str]:
    """A sentence for each way in which the search collapsed, and what to do against it; none where it did not.

    Args:
        space: What was searched.
        history: The strategy's lines of `history.jsonl`.
        updates: The strategy's lines of `updates.jsonl`.
        chosen: The architectures that are to be trained.
        settings: How the search was made.
        remedies: What of the strategy's own settings helps.
        goes_by_scores: Whether it learns from scores and chooses by them, so that how they are taken matters.
    """
    warm_up = f"a longer warm-up of the shared weights (search.warmup_batches, now {settings.warmup_batches})"
    entropies = [line["entropy"] for line in updates if line["entropy"] is not None]
    found = []

    num_rounds = 1 + max(line["round"] for line in history)
    num_late = math.ceil(num_rounds / 5)
    late = [line["genotype"]["tokens"] for line in history if line["round"] >= num_rounds - num_late]
    groups = {
        f"of the operations proposed in the last {num_late} of {num_rounds} rounds": late,
        "of the operations chosen in the end": [genotype.tokens for genotype in chosen],
    }
    shares = {name: free_share(space, np.array(tokens, np.int64)) for name, tokens in groups.items()}
    seen = [f"{name} {share.text()}" for name, share in shares.items() if share.is_collapsed]
    if seen:
        tries = [warm_up, *remedies, *(["the other evaluator.statistics"] if goes_by_scores else [])]
        found.append(f"Collapse to operations without parameters: {'; '.join(seen)}. Try {_either(tries)}.")

    settled = settled_from(space, entropies) if entropies else None
    if settled:
        first, uniform = settled
        found.append(
            f"The policy settled early: from update {first + 1} of {len(entropies)} on its entropy stayed below "
            f"{SETTLED:.0%} of a uniform policy's (in the end {entropies[-1]:.2g} of {uniform:.1f} nats), so that "
            f"later rounds proposed nearly the same architecture. Try {_either([*remedies, warm_up])}."
        )
    return found


def _either(tries: Sequence[str]) -> str:
    *others, last = tries
    return f"{', '.join(others)} or {last}" if others else last
