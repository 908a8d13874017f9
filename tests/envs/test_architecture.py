"""The rules of the game, for every environment in the `luban/` namespace."""

import hashlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from child.cost import CostModel
from child.space import Evaluation, Genotype, SearchSpace
from child.supernet import SupernetEvaluator
from child.task import Task
from child.training import TrainingSettings
from conf.launch import compose
from controller.search import play
from controller.strategy import RandomSearch
from envs.reward import Linear
from main import make_environments

IDS = sorted(name for name in gymnasium.registry if name.startswith("luban/"))
REWARD: Any = Linear(target=5.0, alpha=1.0, beta=0.5)
Pieces = dict[str, Any]

pytestmark = pytest.mark.filterwarnings("ignore:.*action_masks.*:UserWarning")


@pytest.fixture(params=IDS)
def env_id(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["flat", "cell", "macro"])
def pieces(request: pytest.FixtureRequest, known: Any) -> Pieces:
    """The arguments of an environment, for spaces with and without masks that depend on the prefix."""
    space = {"flat": lambda: known.FlatSpace(4, 3), "cell": known.CellSpace, "macro": known.tiny_macro}[request.param]()
    target = space.sample(np.random.default_rng(7), 1)[0]
    return {"space": space, "evaluator": known.SeededEvaluator(target), "reward": REWARD}


def random_tokens(space: SearchSpace, num: int) -> np.ndarray:
    return np.array([g.tokens for g in space.sample(np.random.default_rng(0), num)])


def make_vector(env_id: str, num: int, pieces: Pieces) -> VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec(env_id, num, vectorization_mode="vector_entry_point", **pieces)


def begin(envs: VectorEnv[Any, Any, Any], seeds: Any) -> dict[str, np.ndarray]:
    """The first observation; Gymnasium takes a list of seeds too, which its annotation leaves out."""
    return envs.reset(seed=seeds)[0]


def trajectory(envs: VectorEnv[Any, Any, Any], tokens: np.ndarray, seeds: Any) -> list[Any]:
    """Everything that an episode shows, kept without copying."""
    seen = [envs.reset(seed=seeds)]
    seen += [envs.step(column) for column in tokens.T]
    return seen


def test_there_are_environments() -> None:
    assert "luban/Architecture-v0" in IDS


@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_it(env_id: str, known: Any) -> None:
    space = known.FlatSpace(3, 4)  # whose first decision takes every action, as the checker's random one must be legal
    env = gymnasium.make(
        env_id, space=space, evaluator=known.SeededEvaluator(Genotype("flat", (0, 1, 2))), reward=REWARD
    )
    check_env(env.unwrapped, skip_render_check=True)


def test_single_vector_and_sync_vector_agree(env_id: str, pieces: Pieces) -> None:
    num, seeds = 4, [11, 12, 11, 13]
    tokens = random_tokens(pieces["space"], num)
    singles = [gymnasium.make(env_id, disable_env_checker=True, **pieces) for _ in range(num)]
    native = make_vector(env_id, num, pieces)
    sync = SyncVectorEnv([lambda: gymnasium.make(env_id, **pieces)] * num, autoreset_mode=AutoresetMode.DISABLED)
    assert native.single_action_space == singles[0].action_space == sync.single_action_space
    assert native.single_observation_space == singles[0].observation_space == sync.single_observation_space

    ours, theirs = (trajectory(vector, tokens, seeds) for vector in (native, sync))
    assert len(ours) == len(pieces["space"].decisions) + 1
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        for row, single in enumerate(singles):
            shown = single.reset(seed=seeds[row]) if step == 0 else single.step(tokens[row, step - 1])
            for name in ("tokens", "step", "action_mask"):
                np.testing.assert_array_equal(mine[0][name][row], shown[0][name])
                np.testing.assert_array_equal(other[0][name][row], shown[0][name])
                assert mine[0][name].dtype == np.asarray(shown[0][name]).dtype
            np.testing.assert_array_equal(mine[-1]["action_mask"][row], shown[-1]["action_mask"])
            np.testing.assert_array_equal(single.get_wrapper_attr("action_masks")(), shown[0]["action_mask"] == 1)
            if step:
                assert [mine[i][row] for i in (1, 2, 3)] == [other[i][row] for i in (1, 2, 3)] == list(shown[1:4])
    last, theirs_last = ours[-1][-1]["evaluation"], theirs[-1][-1]["evaluation"]
    assert list(last) == list(theirs_last)
    assert [evaluation.genotype.tokens for evaluation in last] == [tuple(row) for row in tokens.tolist()]


def test_the_observation_tells_the_prefix_and_the_mask(env_id: str, pieces: Pieces) -> None:
    space, num = pieces["space"], 5
    tokens = random_tokens(space, num)
    envs = make_vector(env_id, num, pieces)
    for step, shown in enumerate(trajectory(envs, tokens, [0] * num)):
        observation, info = shown[0], shown[-1]
        assert observation in envs.observation_space
        np.testing.assert_array_equal(observation["tokens"][:, :step], tokens[:, :step])
        assert (observation["tokens"][:, step:] == -1).all()
        assert observation["step"].tolist() == [step] * num
        assert observation["action_mask"].dtype == np.int8
        assert (observation["action_mask"].sum(axis=1) > 0).all()
        np.testing.assert_array_equal(observation["action_mask"], info["action_mask"])
        if step < len(space.decisions):
            np.testing.assert_array_equal(observation["action_mask"], space.mask(tokens[:, :step]))


def test_only_the_end_is_rewarded(env_id: str, pieces: Pieces) -> None:
    num, tokens = 3, random_tokens(pieces["space"], 3)
    shown = trajectory(make_vector(env_id, num, pieces), tokens, [5, 6, 7])
    for _, rewards, terminated, truncated, info in shown[1:-1]:
        assert not rewards.any() and not terminated.any() and not truncated.any()
        assert "evaluation" not in info
    _, rewards, terminated, truncated, info = shown[-1]
    assert terminated.all() and not truncated.any()
    assert [e.seed for e in info["evaluation"]] == [5, 6, 7]
    np.testing.assert_allclose(rewards, [REWARD(e) for e in info["evaluation"]])
    assert all(isinstance(e, Evaluation) for e in info["evaluation"])


def test_observations_are_never_reused(env_id: str, pieces: Pieces) -> None:
    tokens = random_tokens(pieces["space"], 3)
    envs = make_vector(env_id, 3, pieces)
    seen = [begin(envs, [1, 2, 3])]
    copies = [{name: array.copy() for name, array in seen[0].items()}]
    for _ in range(2):
        for column in tokens.T:
            seen.append(envs.step(column)[0])
            copies.append({name: array.copy() for name, array in seen[-1].items()})
        seen.append(envs.reset()[0])
        copies.append({name: array.copy() for name, array in seen[-1].items()})
    for kept, copied in zip(seen, copies, strict=True):
        for name, array in kept.items():
            np.testing.assert_array_equal(array, copied[name])


def test_writing_into_an_observation_does_not_change_the_rules(env_id: str, pieces: Pieces) -> None:
    space = pieces["space"]
    envs = make_vector(env_id, 2, pieces)
    observation, info = envs.reset(seed=0)
    prefix = random_tokens(space, 1).repeat(2, axis=0)
    for step in range(len(space.decisions)):
        legal = space.mask(prefix[:, :step])
        if not legal.all():
            illegal = np.full(2, int(legal[0].argmin()))
            for array in (*observation.values(), info["action_mask"]):
                array[:] = 1
            with pytest.raises(ValueError, match="illegal action"):
                envs.step(illegal)
        observation, *_, info = envs.step(prefix[:, step])
    np.testing.assert_array_equal(observation["tokens"], prefix)


def test_gymnasiums_wrappers_may_clip_rewards_in_place(env_id: str, pieces: Pieces) -> None:
    envs, tokens = make_vector(env_id, 2, pieces), random_tokens(pieces["space"], 2)
    clean = [step[1] for step in trajectory(envs, tokens, 0)[1:]]
    clipped = gymnasium.wrappers.vector.ClipReward(envs, 0.125, 0.25)
    for step in trajectory(clipped, tokens, 0)[1:]:
        assert 0.125 <= step[1].min() <= step[1].max() <= 0.25
    for before, (_, after, *_) in zip(clean, trajectory(envs, tokens, 0)[1:], strict=True):
        np.testing.assert_array_equal(before, after)


def wrong_actions(num_choices: int) -> dict[str, Any]:
    return {
        "too large": np.array([0, num_choices]),
        "negative": np.array([-1, 0]),
        "far too large": np.array([0, 2**40]),
        "fractions": np.array([0.0, 1.0]),
        "truth values": np.array([True, False]),
        "too few": np.array([0]),
        "too many": np.array([0, 0, 0]),
        "a column": np.array([[0], [0]]),
        "one number": 0,
    }


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.uint16])
def test_any_integers_will_do_and_choices_may_be_many(env_id: str, known: Any, dtype: Any) -> None:
    space = known.FlatSpace(3, 300)
    tokens = np.array([[0, 255, 299], [256, 1, 257]])
    evaluator = known.SeededEvaluator(space.genotype([0, 0, 0]))
    envs = make_vector(env_id, 2, {"space": space, "evaluator": evaluator, "reward": REWARD})
    evaluations = trajectory(envs, tokens.astype(dtype), 0)[-1][-1]["evaluation"]
    assert [evaluation.genotype for evaluation in evaluations] == [space.genotype(row) for row in tokens]
    begin(envs, 0)
    with pytest.raises(ValueError, match="episode 1: illegal action 300"):
        envs.step(np.array([299, 300], dtype))


@pytest.mark.parametrize("wrong", wrong_actions(3))
def test_illegal_actions_are_refused_and_change_nothing(env_id: str, known: Any, wrong: str) -> None:
    target = Genotype("flat", (2, 2))
    pieces = {"space": known.FlatSpace(2, 3), "evaluator": known.TargetEvaluator(target), "reward": REWARD}
    envs = make_vector(env_id, 2, pieces)
    envs.reset(seed=0)
    envs.step(np.array([2, 2]))
    action = wrong_actions(3)[wrong]
    with pytest.raises(ValueError) as caught:
        envs.step(action)
    if np.shape(action) == (2,) and np.asarray(action).dtype.kind == "i":
        expected = r"decision 1 (edge1); legal choices: 0 (op0), 1 (op1), 2 (op2)"
        assert expected in str(caught.value)
    else:
        assert "expected 2 integer actions" in str(caught.value)
    evaluation = envs.step(np.array([2, 2]))[-1]["evaluation"][0]
    assert evaluation.genotype == target and evaluation.quality == 1


def test_a_masked_action_is_refused(env_id: str, known: Any) -> None:
    space = known.CellSpace()
    pieces = {"space": space, "evaluator": known.TargetEvaluator(space.canonical([0] * 9)), "reward": REWARD}
    envs = make_vector(env_id, 2, pieces)
    envs.reset(seed=0)
    for column in ([1, 0], [0, 0], [0, 0], [1, 1]):
        envs.step(np.array(column))
    with pytest.raises(ValueError, match=r"episode 1: illegal action 2 for decision 4 \(n2\.op\); legal .*: 0 \(a\)$"):
        envs.step(np.array([2, 2]))
    envs.step(np.array([2, 0]))
    with pytest.raises(ValueError, match=r"episode 0: illegal action 2 for decision 5 .*: 0 \(no\), 1 \(yes\)$"):
        envs.step(np.array([2, 0]))


def test_a_choice_closed_at_the_first_decision_is_refused(env_id: str, known: Any) -> None:
    class Closed(known.FlatSpace):
        masks_depend_on_prefix = True

        def mask(self, prefixes: np.ndarray) -> np.ndarray:
            masks = super().mask(prefixes).copy()
            masks[:, 2] = prefixes.shape[1] > 0
            return masks

    space = Closed(2, 3)
    pieces = {"space": space, "evaluator": known.TargetEvaluator(space.genotype([0, 2])), "reward": REWARD}
    envs = make_vector(env_id, 2, pieces)
    assert envs.reset(seed=0)[0]["action_mask"].tolist() == [[1, 1, 0]] * 2
    with pytest.raises(ValueError, match=r"episode 1: illegal action 2 for decision 0 .*: 0 \(op0\), 1 \(op1\)$"):
        envs.step(np.array([0, 2]))
    assert envs.step(np.array([0, 1]))[0]["action_mask"].tolist() == [[1, 1, 1]] * 2


def test_a_single_environment_refuses_too(env_id: str, pieces: Pieces) -> None:
    env = gymnasium.make(env_id, disable_env_checker=True, **pieces)
    env.reset(seed=0)
    for action in (-1, 99, 0.5, np.array([0])):
        with pytest.raises(ValueError, match=r"illegal action|expected 1 integer actions"):
            env.step(action)


def test_a_step_after_the_end_is_an_error(env_id: str, pieces: Pieces) -> None:
    tokens = random_tokens(pieces["space"], 2)
    envs = make_vector(env_id, 2, pieces)
    with pytest.raises(RuntimeError, match="reset"):
        envs.step(tokens[:, 0])
    trajectory(envs, tokens, [0, 0])
    with pytest.raises(RuntimeError, match=r"no episode is under way; call reset\(\)"):
        envs.step(tokens[:, 0])
    assert envs.metadata["autoreset_mode"] == AutoresetMode.DISABLED


@pytest.mark.parametrize("wrong", [1, 3])
def test_an_evaluator_that_tells_of_more_or_fewer_is_named(
    env_id: str, pieces: Pieces, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    envs = make_vector(env_id, 2, pieces)
    evaluate = pieces["evaluator"].evaluate
    monkeypatch.setattr(pieces["evaluator"], "evaluate", lambda *given: (evaluate(*given) * 2)[:wrong])
    with pytest.raises(ValueError, match=f"the evaluator gave {wrong} evaluations of 2 architectures"):
        trajectory(envs, random_tokens(pieces["space"], 2), 0)


def test_seeds(env_id: str, pieces: Pieces) -> None:
    tokens = random_tokens(pieces["space"], 3)
    envs = make_vector(env_id, 3, pieces)

    def evaluated(seed: Any) -> list[int]:
        return [e.seed for e in trajectory(envs, tokens, seed)[-1][-1]["evaluation"]]

    assert evaluated(5) == [5, 5, 5]
    assert evaluated([7, 8, 7]) == [7, 8, 7]
    calls = pieces["evaluator"].calls[-2:]  # equal seeds share a call, so that they share their data and work
    assert [(len(genotypes), seed) for genotypes, _, seed in calls] == [(2, 7), (1, 8)]
    mixed = evaluated([4, None, 6])
    assert (mixed[0], mixed[2]) == (4, 6)
    envs.reset(seed=1)
    drawn, drawn_later = evaluated(None), evaluated(None)
    assert len(set(drawn)) == 1 and drawn != drawn_later
    envs.reset(seed=1)
    assert evaluated(None) == drawn
    for seed in ([2, 3, 4], (2, 3, 4), np.array([2, 3, 4]), np.int64(2)):  # what comes later follows from the first
        envs.reset(seed=1)
        assert evaluated(seed)[0] == 2
        later = evaluated(None)
        envs.reset(seed=2)
        assert evaluated(None) == later
    with pytest.raises(ValueError, match="expected one seed or 3 of them, got 2"):
        begin(envs, [1, 2])
    for seed in (1.5, "5", [1, 2, 1.5], [-1, -1, -1], -1, [[1], [2], [3]]):
        with pytest.raises(ValueError, match="expected whole numbers of at least 0 as seeds, got "):
            begin(envs, seed)
    begin(envs, 1)
    envs.reset(options={"reset_mask": np.ones(3, bool)})
    with pytest.raises(ValueError, match=r"the episodes advance together, .*; leave reset_mask out"):
        envs.reset(options={"reset_mask": np.array([True, False, True])})


def test_fidelity_reaches_the_evaluator(env_id: str, pieces: Pieces) -> None:
    envs = make_vector(env_id, 2, {**pieces, "fidelity": 0.25})
    for seeds in ([0, 0], [1, 2]):
        trajectory(envs, random_tokens(pieces["space"], 2), seeds)
    assert {fidelity for _, fidelity, _ in pieces["evaluator"].calls} == {0.25}
    for fidelity in (0.0, 1.5):
        with pytest.raises(ValueError, match="fidelity is a share"):
            make_vector(env_id, 2, {**pieces, "fidelity": fidelity})


def hash_of(network: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("statistics", ["batch", "recalibrated"])
def test_a_step_trains_nothing(env_id: str, known: Any, small_task: Task, statistics: Any) -> None:
    space = known.tiny_macro()
    cost = CostModel(space, "macs", small_task.input_shape, torch.device("cpu"))
    settings = TrainingSettings(batch_size=16)
    evaluator = SupernetEvaluator(space, small_task, cost, settings, 10, statistics, 2, 0, torch.device("cpu"))
    evaluator.improve(lambda num, step: space.sample(np.random.default_rng(step), num), 3)
    before = hash_of(evaluator.network)
    envs = make_vector(env_id, 4, {"space": space, "evaluator": evaluator, "reward": REWARD})
    tokens = random_tokens(space, 4)
    first, second = (trajectory(envs, tokens, [3] * 4)[-1] for _ in range(2))
    assert hash_of(evaluator.network) == before
    np.testing.assert_array_equal(first[1], second[1])  # and so the same architectures earn the same again


class OnlyRewards(gymnasium.Env[Any, Any]):
    """A user's environment: single, with a reward of its own, and silent about evaluations."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, space: SearchSpace, **_: Any):
        inner = gymnasium.make("luban/Architecture-v0", space=space, **_).unwrapped
        self.inner: Any = inner
        self.observation_space, self.action_space = inner.observation_space, inner.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.inner.reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, _ = self.inner.step(action)
        return observation, float(observation["tokens"].sum()) if terminated else 0.0, terminated, truncated, {}


@pytest.fixture
def user_id() -> Any:
    gymnasium.register("mine/OnlyRewards-v0", entry_point=OnlyRewards)
    yield "mine/OnlyRewards-v0"
    del gymnasium.registry["mine/OnlyRewards-v0"]


def test_a_users_environment_plays(user_id: str, pieces: Pieces) -> None:
    space = pieces["space"]
    config = compose(f"env.id={user_id}")
    envs = make_environments(config, space, pieces["evaluator"], pieces["reward"], 5, 1.0)
    strategy = RandomSearch(space, seed=0)
    rollouts = [play(envs, strategy, number, seed=9) for number in range(2)]
    for number, rollout in enumerate(rollouts):
        drawn = [genotype.tokens for genotype in strategy.propose(5, number)]
        assert rollout.tokens.tolist() == [list(tokens) for tokens in drawn]
        assert rollout.rewards.tolist() == rollout.tokens.sum(axis=1).tolist()
        assert [e.genotype.tokens for e in rollout.evaluations] == drawn
        assert [e.quality for e in rollout.evaluations] == rollout.rewards.tolist()
        np.testing.assert_array_equal(rollout.masks, space.masks(rollout.tokens))


def test_every_environment_is_made_by_its_id(env_id: str, pieces: Pieces) -> None:
    config = compose(f"env.id={env_id}")
    envs = make_environments(config, pieces["space"], pieces["evaluator"], pieces["reward"], 3, 0.5)
    assert envs.num_envs == 3
    assert envs.metadata["autoreset_mode"] == AutoresetMode.DISABLED
    rollout = play(envs, RandomSearch(pieces["space"], 0), 0, seed=4)
    assert [e.seed for e in rollout.evaluations] == [4, 4, 4]
    assert [e.fidelity for e in rollout.evaluations] == [0.5] * 3
    np.testing.assert_allclose(rollout.rewards, [REWARD(e) for e in rollout.evaluations])


def test_an_unknown_id_is_named(pieces: Pieces) -> None:
    config = compose("env.id=luban/Architektur-v0")
    with pytest.raises(ValueError, match=r"env\.id: .*Architektur.*"):
        make_environments(config, pieces["space"], pieces["evaluator"], pieces["reward"], 2, 1.0)


@pytest.mark.parametrize(("over", "told"), [(True, "an episode after 1 of 4"), (False, "no episode after 4 of 4")])
def test_an_environment_that_ends_early_or_never_is_named(over: bool, told: str, known: Any) -> None:
    class EndsElsewhere(OnlyRewards):
        def step(self, action: Any) -> Any:
            observation, _, _, _, info = super().step(action)
            return observation, 1.0, over, False, info

    gymnasium.register("mine/EndsElsewhere-v0", entry_point=EndsElsewhere)
    try:
        space = known.FlatSpace(4, 3)
        evaluator = known.TargetEvaluator(Genotype("flat", (0, 0, 0, 0)))
        config = compose("env.id=mine/EndsElsewhere-v0")
        envs = make_environments(config, space, evaluator, REWARD, 2, 1.0)
        with pytest.raises(ValueError, match=f"the environment ended {told} tokens"):
            play(envs, RandomSearch(space, 0), 0, seed=0)
    finally:
        del gymnasium.registry["mine/EndsElsewhere-v0"]


@pytest.fixture
def play_masked() -> Callable[[gymnasium.Env[Any, Any], Callable[[Any], Any], int], float]:
    """The mean reward of a policy that is given observation and mask, over so many episodes."""

    def mean_reward(env: gymnasium.Env[Any, Any], act: Callable[[Any], Any], num: int) -> float:
        total = 0.0
        for episode in range(num):
            observation, over = env.reset(seed=episode)[0], False
            while not over:
                observation, reward, over, _, _ = env.step(act(observation))
                total += float(reward)
        return total / num

    return mean_reward


@pytest.mark.slow
def test_maskable_ppo_learns_here(known: Any, play_masked: Any) -> None:
    """sb3-contrib as it is, on the environment as it is: the masks are enough for it."""
    ppo = pytest.importorskip("sb3_contrib").MaskablePPO
    space = known.CellSpace()
    target = space.sample(np.random.default_rng(1), 1)[0]
    evaluator = known.TargetEvaluator(target)
    reward = Linear(target=1, beta=0)
    env = gymnasium.make("luban/Architecture-v0", space=space, evaluator=evaluator, reward=reward)
    rng = np.random.default_rng(0)
    random = play_masked(env, lambda seen: rng.choice(np.flatnonzero(seen["action_mask"])), 200)
    model = ppo("MultiInputPolicy", env, n_steps=256, batch_size=64, learning_rate=1e-3, gamma=1.0, seed=0)
    model.learn(12_000)

    def act(seen: Any) -> int:
        return int(model.predict(seen, action_masks=seen["action_mask"].astype(bool), deterministic=True)[0])

    trained = play_masked(env, act, 5)
    assert random < 0.7
    assert trained > 0.9


def test_ten_thousand_masked_episodes_and_a_thousand_illegal_actions(env_id: str, known: Any) -> None:
    """Whatever is drawn under the mask is a genotype of the space; whatever is not is refused, wherever it comes."""
    spaces = [known.tiny_macro(4, 1), known.CellSpace()]
    rng = np.random.default_rng(0)
    num_illegal = 0
    for space in spaces:
        evaluator = known.TargetEvaluator(space.sample(rng, 1)[0])
        envs = make_vector(env_id, 250, {"space": space, "evaluator": evaluator, "reward": REWARD})
        for _ in range(20):
            observation, over, evaluations = begin(envs, int(rng.integers(2**31))), np.zeros(250, bool), []
            while not over.any():
                mask = observation["action_mask"]
                assert (mask.sum(axis=1) > 0).all()
                legal = np.where(mask == 1, rng.random(mask.shape), -1.0).argmax(axis=1)
                for wild in rng.integers(-3, space.max_choices + 3, 6).tolist():
                    row = int(rng.integers(250))
                    if not 0 <= wild < space.max_choices or not mask[row, wild]:
                        wrong = legal.copy()
                        wrong[row] = wild
                        with pytest.raises(ValueError, match=f"episode {row}: illegal action {wild} for decision"):
                            envs.step(wrong)
                        num_illegal += 1
                observation, _, over, _, info = envs.step(legal)
                evaluations = info.get("evaluation", [])
            assert over.all()
            for evaluation, tokens in zip(evaluations, observation["tokens"].tolist(), strict=True):
                assert space.genotype(tokens) == evaluation.genotype
        assert sum(len(genotypes) for genotypes, _, _ in evaluator.calls) == 5000
    assert num_illegal >= 1000
