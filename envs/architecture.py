"""The MDP of architecture search: one token a step, a reward at the end.

Observation: `tokens` (-1 where not yet chosen), `step`, and `action_mask` (the legal next tokens, int8). Action: the
next token; one that the mask closes is refused, so draw with `action_space.sample(mask=observation["action_mask"])`.
On the last token the evaluator is asked for all architectures at once, on the same data; every other reward is 0.
`step` never trains shared weights: a reward is a function of (genotype, shared weights, seed).

Letters: B episodes side by side, T decisions, C the largest number of choices.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from child.space import Evaluation, Evaluator, Genotype, Mask, SearchSpace
from envs.reward import Reward

Observation = dict[str, NDArray[Any]]

# Found once, since a step takes a few microseconds.
_SEEDS = {int, type(None)} | {np.dtype(kind).type for kind in "bBhHiIlLqQ"}  # NumPy's whole numbers
_INT64, _UINT64, _less = np.dtype(np.int64), np.dtype(np.uint64), np.less


def _observation_space(space: SearchSpace) -> Dict:
    num_steps = len(space.decisions)
    return Dict(
        {
            "tokens": Box(-1, space.max_choices - 1, (num_steps,), np.int16),
            "step": Discrete(num_steps + 1),
            "action_mask": MultiBinary(space.max_choices),
        }
    )


class VectorArchitectureEnv(VectorEnv[Any, Any, Any]):
    """B episodes that advance together as arrays; `gymnasium.make_vec("luban/Architecture-v0", num_envs=B, ...)`.

    There is no autoreset: after the last token call `reset`. Terminal `info["evaluation"]` holds an `Evaluation` for
    each episode.

    Args:
        num_envs: B.
        space: What is searched.
        evaluator: Gives finished architectures their quality and cost.
        reward: Blends them.
        fidelity: The share of a full evaluation that is spent on each architecture, in (0, 1].
    """

    def __init__(self, num_envs: int, space: SearchSpace, evaluator: Evaluator, reward: Reward, fidelity: float = 1.0):
        if not 0 < fidelity <= 1:
            raise ValueError(f"fidelity is a share of a full evaluation in (0, 1], got {fidelity}")
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}
        self.num_envs = num_envs
        self.search_space, self.evaluator, self.reward, self.fidelity = space, evaluator, reward, fidelity
        self.single_observation_space = _observation_space(space)
        self.single_action_space = Discrete(space.max_choices)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._num_steps = len(space.decisions)
        self._num_choices = [decision.num_choices for decision in space.decisions]
        self._free = not space.masks_depend_on_prefix
        self._narrow = space.max_choices <= 256
        self._all = np.ones(num_envs, bool).tobytes()
        self._shape = (num_envs,)
        # What no episode changes is made once, read-only; observations get copies, as Gymnasium's checker asks, and
        # rewards, which its wrappers change in place.
        limits = np.array(self._num_choices, np.uint64)[:, None].repeat(num_envs, axis=1)
        closing = np.zeros((1, space.max_choices), np.int8)
        closing[0, 0] = 1  # after the last token: never all zero, which Gymnasium would read as "anything"
        masks = np.concatenate([space.full_masks, closing])[:, None].repeat(num_envs, axis=1)
        masks[0] = space.mask(np.zeros((num_envs, 0), np.int64))
        steps = np.arange(self._num_steps + 1)[:, None].repeat(num_envs, axis=1)
        self._live, self._over, self._unpaid = np.zeros(num_envs, bool), np.ones(num_envs, bool), np.zeros(num_envs)
        for array in (limits, masks, steps, self._live, self._over, self._unpaid):
            array.flags.writeable = False
        self._first = steps[0], masks[0]
        self._after = list(zip(limits, steps[1:], masks[1:], strict=True))  # by step: what bounds it, and what follows
        self._step = self._num_steps
        self._tokens = np.full((self._num_steps, num_envs), -1, np.int16)  # so that a step writes one piece of memory
        self._mask: Mask = masks[-1]
        self._seeds: list[int] = []
        self._draw_by: int | None = None  # what has yet to seed what is drawn

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin B episodes; each is evaluated with its seed (one for all, one for each, or drawn).

        What is drawn, here and in a later reset without seeds, follows from the first seed.

        Raises:
            ValueError: There are more or fewer seeds, one is no whole number, or only some episodes are to begin.
        """
        seeds: Any = seed
        several = isinstance(seeds, list | tuple) or (isinstance(seeds, np.ndarray) and seeds.ndim > 0)
        given: list[Any] = list(seeds) if several else [seeds] * self.num_envs
        if len(given) != self.num_envs:
            raise ValueError(f"expected one seed or {self.num_envs} of them, got {len(given)}")
        if not _SEEDS.issuperset(map(type, given)) or any(each is not None and each < 0 for each in given):
            raise ValueError(f"expected whole numbers of at least 0 as seeds, got {seed!r:.100}")
        if options and not np.all(options.get("reset_mask", True)):
            raise ValueError("the episodes advance together, so that all begin at once; leave reset_mask out")
        if given[0] is not None:
            self._draw_by = int(given[0])
        if self._draw_by is not None and (None in given or not several):  # not where nothing is drawn: it takes long
            super().reset(seed=self._draw_by)
            self._draw_by = None
        if None in given:
            drawn = int(self.np_random.integers(2**62))
            given = [drawn if each is None else each for each in given]
        self._seeds = [int(each) for each in given]
        self._step = 0
        self._tokens = np.full((self._num_steps, self.num_envs), -1, np.int16)
        steps, self._mask = self._first
        observation = {"tokens": self._tokens.copy().T, "step": steps.copy(), "action_mask": self._mask.copy()}
        return observation, {"action_mask": observation["action_mask"]}

    def step(
        self, actions: NDArray[np.integer[Any]]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Append one token to every architecture.

        Raises:
            ValueError: An action is illegal; the message names the decision and the legal choices.
            RuntimeError: The episodes are over, or have not begun.
        """
        step = self._step
        if step == self._num_steps:
            raise RuntimeError("no episode is under way; call reset() before step()")
        limits, steps, mask = self._after[step]
        actions = np.asarray(actions)
        # The usual case in one pass: read as unsigned, a negative number is a huge one.
        usual = self._free and actions.dtype is _INT64 and actions.shape == self._shape
        if not usual or _less(actions.view(_UINT64), limits).tobytes() != self._all:
            self._check(step, actions)
        tokens = self._tokens
        tokens[step] = actions
        self._step = step = step + 1
        if not self._free and step < self._num_steps:
            mask = self.search_space.mask(tokens[:step].T.astype(np.int64))
        self._mask = mask
        observation: Observation = {"tokens": tokens.copy().T, "step": steps.copy(), "action_mask": mask.copy()}
        info: dict[str, Any] = {"action_mask": observation["action_mask"]}
        if step < self._num_steps:
            return observation, self._unpaid.copy(), self._live, self._live, info
        evaluations = self._evaluate()
        if len(evaluations) != self.num_envs:
            raise ValueError(f"the evaluator gave {len(evaluations)} evaluations of {self.num_envs} architectures")
        info["evaluation"] = np.fromiter(evaluations, object, self.num_envs)
        rewards = np.fromiter(map(self.reward, evaluations), np.float64, self.num_envs)
        return observation, rewards, self._over, self._live, info

    def action_masks(self) -> NDArray[np.bool_]:
        """The legal next tokens, (B, C), as sb3-contrib asks for them."""
        return self._mask.astype(bool)

    def _check(self, step: int, actions: NDArray[np.integer[Any]]) -> None:
        if actions.shape != self._shape or actions.dtype.kind not in "iu":
            raise ValueError(f"expected {self.num_envs} integer actions, got {actions!r:.200}")
        if not self._free:
            known = (actions >= 0) & (actions < self._mask.shape[1])
            legal = known & (self._mask[np.arange(self.num_envs), np.where(known, actions, 0)] == 1)
        else:
            legal = (actions >= 0) & (actions < self._num_choices[step])
        if not legal.all():
            row = int(legal.argmin())
            raise ValueError(f"episode {row}: {self.search_space.illegal(step, actions[row], self._mask[row])}")

    def _evaluate(self) -> list[Evaluation]:
        name = self.search_space.name
        # Every token has been checked. Those that fit into bytes become tuples of Python's numbers twice as fast.
        tokens = self._tokens.T
        flat = tokens.astype(np.uint8).tobytes() if self._narrow else tokens.ravel().tolist()
        genotypes = [Genotype(name, tokens) for tokens in zip(*[iter(flat)] * self._num_steps, strict=True)]
        seeds = dict.fromkeys(self._seeds)
        if len(seeds) == 1:  # as in every search
            return self.evaluator.evaluate(genotypes, self.fidelity, *seeds)
        evaluations: dict[int, Evaluation] = {}
        for seed in seeds:
            rows = [row for row, each in enumerate(self._seeds) if each == seed]
            found = self.evaluator.evaluate([genotypes[row] for row in rows], self.fidelity, seed)
            evaluations.update(zip(rows, found, strict=True))
        return [evaluations[row] for row in range(self.num_envs)]


class ArchitectureEnv(gymnasium.Env[Any, Any]):
    """One episode at a time; `gymnasium.make("luban/Architecture-v0", space=..., evaluator=..., reward=...)`.

    The same as the vector environment with one episode, whose arguments it takes.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, space: SearchSpace, evaluator: Evaluator, reward: Reward, fidelity: float = 1.0):
        self._vector = VectorArchitectureEnv(1, space, evaluator, reward, fidelity)
        self.search_space = space
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; the architecture is evaluated with this seed, or a drawn one."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**62)) if seed is None else seed
        observation, info = self._vector.reset(seed=drawn)
        return _first(observation), _first(info)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token (errors as in the vector environment)."""
        observation, rewards, terminated, _, info = self._vector.step(np.asarray(action)[None])
        return _first(observation), float(rewards[0]), bool(terminated[0]), False, _first(info)

    def action_masks(self) -> NDArray[np.bool_]:
        """The legal next tokens, (C,), as sb3-contrib asks for them."""
        return self._vector.action_masks()[0]


def _first(batched: dict[str, Any]) -> dict[str, Any]:
    return {name: array[0] for name, array in batched.items()}
