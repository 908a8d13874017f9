"""Neighbors of the choice are all that differ in one decision, judged as the choice is."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import envs  # noqa: F401 (registers the environments)
from controller.neighborhood import changes, weigh_changes
from envs.reward import Linear


def test_every_single_change_is_there_and_nothing_else(known: Any) -> None:
    space = known.CellSpace()
    for center in space.sample(np.random.default_rng(0), 5):
        expected = set()
        for step, mask in enumerate(space.masks(np.array([center.tokens]))[0]):
            for choice in np.flatnonzero(mask).tolist():
                tokens = [*center.tokens[:step], choice, *center.tokens[step + 1 :]]
                expected.add((step, space.canonical(tokens)))
        expected = {(step, genotype) for step, genotype in expected if genotype != center}
        found = [(change.step, change.genotype) for change in changes(space, center)]
        assert len(found) == len({genotype for _, genotype in found}) and set(found) == expected


@pytest.mark.parametrize("num", [100, 5, None])
def test_changes_are_weighed_like_the_choice(known: Any, num: int | None) -> None:
    space = known.FlatSpace(3, 4)
    evaluator = known.TargetEvaluator(space.genotype((0, 1, 2)))
    reward = Linear(target=4.0)

    def environments(count: int) -> Any:
        return gymnasium.make_vec(
            "luban/Architecture-v0", num_envs=count, vectorization_mode="vector_entry_point", space=space,
            evaluator=evaluator, reward=reward, fidelity=1.0,
        )  # fmt: skip

    found = weigh_changes(space, space.genotype((0, 1, 0)), num, environments, evaluator, 0)
    assert found["num_all"] == 9 and len(found["neighbors"]) == min(num or 9, 9)
    for line in [found["center"], *found["neighbors"]]:
        tokens = line["genotype"]["tokens"]
        assert line["quality"] == pytest.approx(sum(a == b for a, b in zip(tokens, (0, 1, 2), strict=True)) / 3)
        assert line["failure"] is None
    for line in found["neighbors"]:
        place = [decision.name for decision in space.decisions].index(line["decision"])
        assert line["from"] == f"op{(0, 1, 0)[place]}" and line["to"] == f"op{line['genotype']['tokens'][place]}"
