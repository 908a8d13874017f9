"""The plainest search space: named decisions that do not depend on each other, from a config."""

from collections.abc import Sequence

from child.space import Decision, SearchSpace


class FlatSpace(SearchSpace):
    """So many decisions with the same choices, such as the rows of a table of one's own."""

    def __init__(self, names: Sequence[str], labels: Sequence[str], name: str = "flat"):
        if not names or len(set(names)) < len(names):
            raise ValueError(f"names must be different and at least one, got {list(names)}")
        if len(labels) < 2 or len(set(labels)) < len(labels):
            raise ValueError(f"labels must be different and at least two, got {list(labels)}")
        self.name = name
        self.decisions = tuple(Decision(each, "operation", tuple(labels), i) for i, each in enumerate(names))
