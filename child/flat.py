"""The plainest search space: named decisions that do not depend on each other, from a config."""

from collections.abc import Sequence
from typing import Any

from child.space import Decision, SearchSpace


class FlatSpace(SearchSpace):
    """So many decisions, such as those of a table of one's own.

    Args:
        names: Of the decisions.
        labels: Of their choices, texts or numbers, the same for all; or a list of them for each decision.
        name: Of the space.
    """

    def __init__(self, names: Sequence[str], labels: Sequence[Any], name: str = "flat"):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"names must be different and at least one, got {list(names)}")
        alike = all(isinstance(label, str | int | float) for label in labels)
        lists = [labels] * len(names) if alike else labels
        if len(lists) != len(names) or not all(isinstance(each, list | tuple) for each in lists):
            raise ValueError(f"labels must be a list for all of {list(names)}, or a list for each, got {labels}")
        choices = [[str(label) for label in each] for each in lists]
        for each in choices:
            if len(each) < 2 or len(set(each)) < len(each):
                raise ValueError(f"labels must be different and at least two, got {each}")
        self.name = name
        # What strategies learn of a choice they share among decisions of one kind.
        self.decisions = tuple(
            Decision(own, "operation" if alike else " or ".join(each), tuple(each), number)
            for number, (own, each) in enumerate(zip(names, choices, strict=True))
        )
