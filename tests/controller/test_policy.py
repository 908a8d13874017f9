"""The LSTM policy: what it draws is what it says it draws."""

import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from child.micro import MicroSpace
from child.mlp import MLPSpace
from child.mobile import MobileSpace
from child.recurrent import RecurrentSpace
from child.space import Decision, SearchSpace
from controller.policy import (
    Distribution,
    Episodes,
    LSTMPolicy,
    PolicySettings,
    mean_where_open,
)
from controller.walk import Walk, blocks_of, check_connections

SPREAD = PolicySettings(hidden=12, temperature=1.0, tanh_constant=None, init=1.0)  # far from uniform


@pytest.fixture(params=["flat", "cell", "macro", "two operations", "mobile", "mlp", "micro"])
def space(request: pytest.FixtureRequest, known: Any) -> SearchSpace:
    makers = {
        "flat": lambda: known.FlatSpace(3, 4),
        "cell": known.CellSpace,
        "macro": lambda: known.tiny_macro(3, 2),
        "two operations": lambda: known.two_operations(3),
        "mobile": lambda: MobileSpace((1, 8, 8), 3, 4, 1, 2, 1, widths=(1, 2), kernels=(3, 5), expansions=(1, 2)),
        "mlp": lambda: MLPSpace((5,), 1, num_layers=2, widths=(4, 8)),
        "micro": lambda: MicroSpace((1, 8, 8), 3, channels=2, num_nodes=1, num_cells=1),
    }
    return makers[request.param]()


def policy_of(space: SearchSpace, settings: PolicySettings = SPREAD, seed: int = 0) -> LSTMPolicy:
    torch.manual_seed(seed)
    return LSTMPolicy(space, settings).double()


def batch_of(space: SearchSpace, genotypes: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.array([genotype.tokens for genotype in genotypes])
    return tokens, np.array(space.masks(tokens))


def draw(policy: LSTMPolicy, num: int, seed: int) -> np.ndarray:
    episodes = Episodes(policy, num, seed)
    for step in range(len(policy.space.decisions)):
        episodes.next(step, policy.space.mask(episodes.tokens[:step].T))
    return episodes.tokens.T


def test_one_block_per_lstm_call(known: Any) -> None:
    blocks = blocks_of(known.tiny_macro(4, 2).decisions)
    assert [(b.start, b.stop, b.kind, b.node, b.sources) for b in blocks] == [
        (0, 1, "depth", -1, ()),
        (1, 2, "operation", 0, ()),
        (2, 3, "operation", 1, ()),
        (3, 4, "skip", 1, (0,)),
        (4, 5, "operation", 2, ()),
        (5, 7, "skip", 2, (0, 1)),
        (7, 8, "operation", 3, ()),
        (8, 11, "skip", 3, (0, 1, 2)),
    ]
    # Decisions of one kind and size share a table, others do not.
    assert [b.table for b in blocks_of(known.CellSpace().decisions) if b.kind not in ("skip", "input")] == [
        "depth2", "operation3", "operation3", "operation3", "width2"
    ]  # fmt: skip


def test_a_block_costs_one_call(space: SearchSpace, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of(space)
    calls = []
    step = Walk.step
    monkeypatch.setattr(Walk, "step", lambda *given: (calls.append(given[1]), step(*given))[1])
    draw(policy, 5, 0)
    assert calls == list(range(len(policy.blocks)))


@torch.no_grad()
def test_the_cell_is_an_lstm(known: Any) -> None:
    """The same numbers as PyTorch's own cell, whose gates come in the order input, forget, candidate, output."""
    policy = policy_of(known.FlatSpace(4, 3))
    hidden, parts = policy.settings.hidden, policy.parts()
    cell = torch.nn.LSTMCell(hidden, hidden).double()
    order = torch.cat([torch.arange(hidden) + part * hidden for part in (0, 1, 3, 2)])
    cell.weight_ih.copy_(parts.gates[order, :hidden])
    cell.weight_hh.copy_(parts.gates[order, hidden:])
    cell.bias_ih.copy_(parts.bias[order])
    cell.bias_hh.zero_()
    start, *embeddings = parts.rows
    tokens = np.array([[0, 2, 1, 1], [1, 1, 0, 2]])
    walk = policy.walk(tokens.T)
    inputs: Tensor = start.expand(2, -1)
    state = (torch.zeros(2, hidden).double(), torch.zeros(2, hidden).double())
    for number in range(4):
        logits = walk.step(number)
        state = cell(inputs, state)
        torch.testing.assert_close(walk.states[number].T, state[0].numpy())
        torch.testing.assert_close(walk.cells[number + 1].T, state[1].numpy())
        torch.testing.assert_close(logits.T, (state[0] @ parts.heads.t()).numpy())
        inputs = torch.stack([embeddings[token] for token in tokens[:, number]])


@torch.no_grad()
def test_attention_by_hand(known: Any) -> None:
    """Anchor: the state after a node's operation was read. Logit: v . tanh(W1 anchor + W2 h)."""
    policy = policy_of(known.two_operations(3))
    parts = policy.parts()
    tokens = np.array([[2, 0, 1, 1, 0, 1, 0]])  # three layers; layer 2 adds layer 1; layer 3 adds layer 1
    walk = policy.walk(tokens.T)
    logits = [walk.step(number) for number in range(len(policy.blocks))]
    assert [b.kind for b in policy.blocks] == ["depth", "operation", "operation", "skip", "operation", "skip"]
    states = torch.from_numpy(walk.states[:, :, 0])
    anchors = [states[2], states[3]]  # after the operations of layers 1 and 2
    # Layer 2's one connection was read: the sum of its anchors over one more than their number.
    torch.testing.assert_close(walk.reads[4, : policy.settings.hidden, 0], (anchors[0] / 2).numpy())
    for source in range(2):
        score = parts.score[0] @ torch.tanh(parts.key @ anchors[source] + parts.query @ states[5])
        assert logits[5][source, 0] == pytest.approx(float(score), rel=1e-9)


@torch.no_grad()
def test_inputs_choose_among_anchors(known: Any) -> None:
    policy = policy_of(known.CellSpace())
    parts = policy.parts()
    walk = policy.walk(draw(policy, 4, 0).T)
    logits = [walk.step(number) for number in range(len(policy.blocks))]
    state = torch.from_numpy(walk.states[-1])
    for source, anchor in enumerate(torch.from_numpy(walk.anchors[:2])):
        score = parts.score[0] @ torch.tanh(parts.key @ anchor + parts.query @ state)
        torch.testing.assert_close(logits[-1][source], score.numpy())


@torch.no_grad()
def test_probabilities_of_all_architectures_sum_to_one(space: SearchSpace, known: Any) -> None:
    genotypes = known.every_genotype(space)
    assert len(set(genotypes)) == len(genotypes) > 50
    chosen = policy_of(space, seed=2).evaluate(*batch_of(space, genotypes), 0.4)
    assert float(chosen.log_probability.exp().sum()) == pytest.approx(1, abs=1e-10)
    assert float(chosen.log_probability.std()) > 0.5  # and they are not all alike


@torch.no_grad()
def test_draws_have_the_stated_probabilities(space: SearchSpace, known: Any) -> None:
    policy, num = policy_of(space), 20_000
    genotypes = known.every_genotype(space)
    expected = policy.evaluate(*batch_of(space, genotypes), 0.4).log_probability.exp().numpy() * num
    tokens, counts = np.unique(draw(policy, num, 0), axis=0, return_counts=True)
    place = {genotype.tokens: number for number, genotype in enumerate(genotypes)}
    observed = np.zeros(len(genotypes))
    observed[[place[tuple(row)] for row in tokens.tolist()]] = counts  # a KeyError would be an illegal draw
    common = expected >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    statistic = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    freedom = len(expected) - 1
    assert freedom > 10
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)  # five standard deviations of chi squared


@torch.no_grad()
def test_entropy_is_that_of_the_whole_distribution(space: SearchSpace, known: Any) -> None:
    """Chain rule: the mean of the summed conditional entropies is the entropy over all architectures."""
    chosen = policy_of(space).evaluate(*batch_of(space, known.every_genotype(space)), 0.4)
    weights = chosen.log_probability.exp()
    whole = -(weights * chosen.log_probability).sum()
    torch.testing.assert_close((weights * chosen.entropy).sum(), whole)


@torch.no_grad()
def test_entropy_by_hand(known: Any) -> None:
    policy = policy_of(known.FlatSpace(2, 4))
    policy.parts().heads.zero_()
    tokens, masks = np.array([[0, 0], [1, 3]]), np.ones((2, 2, 4), np.int8)
    masks[1, 1] = [0, 1, 0, 1]
    chosen = policy.evaluate(tokens, masks, 0.4)
    torch.testing.assert_close(chosen.entropy.tolist(), [2 * math.log(4), math.log(4) + math.log(2)])
    torch.testing.assert_close(chosen.log_probability.tolist(), [-2 * math.log(4), -math.log(4) - math.log(2)])


@torch.no_grad()
def test_masks_are_respected(known: Any) -> None:
    space = known.CellSpace()
    policy = policy_of(space)
    tokens = draw(policy, 500, 1)
    for row in tokens.tolist():
        space.genotype(row)
    closed = tokens[:, 0] == 0
    assert closed.any() and not closed.all()
    assert not tokens[closed, 4:7].any() and tokens[~closed, 4:7].any()
    forbidden = np.array(space.masks(tokens))
    forbidden[:, 1, 2] = 0
    some = torch.from_numpy(tokens[:, 1] == 2)
    assert torch.isneginf(policy.evaluate(tokens, forbidden, 0.4).log_probability[some]).all()


@torch.no_grad()
def test_closed_decisions_do_not_count_in_the_mean_probabilities(known: Any) -> None:
    space = known.CellSpace()
    policy = policy_of(space)
    tokens = draw(policy, 60, 1)
    closed = tokens[:, 0] == 0
    everything, opened = (
        policy.evaluate(rows, space.masks(rows), 0.4).probabilities for rows in (tokens, tokens[~closed])
    )
    torch.testing.assert_close(everything[4:7], opened[4:7])
    assert not np.allclose(everything[7], opened[7])
    torch.testing.assert_close(everything.sum(axis=1), np.ones(9))
    rows = tokens[closed]
    shown = policy.evaluate(rows, space.masks(rows), 0.4).probabilities
    assert np.isnan(shown[4]).all()  # it was open in none
    assert np.isfinite(shown[0]).all()


def test_mean_where_open_by_hand() -> None:
    probabilities = np.array([[[0.2, 0.6, 1.0], [0.8, 0.4, 0.0]]])
    masks = np.array([[[1, 1, 1], [1, 1, 0]]], np.int8)
    torch.testing.assert_close(mean_where_open(probabilities, masks), np.array([[0.4, 0.6]]))
    assert np.isnan(mean_where_open(probabilities[:, :, 2:], masks[:, :, 2:])).all()


@torch.no_grad()
@pytest.mark.parametrize("constant", [0.5, 2.5])
def test_squashing_bounds_the_logits(space: SearchSpace, constant: float) -> None:
    wild = PolicySettings(hidden=12, temperature=0.01, tanh_constant=constant, init=5.0)
    policy = policy_of(space, wild)
    walk = policy.walk(draw(policy, 8, 0).T)
    largest = max(float(np.abs(walk.step(number)).max()) for number in range(len(policy.blocks)))
    assert 0.9 * constant < largest <= constant + 1e-12


@torch.no_grad()
def test_temperature_divides_and_tanh_squashes(known: Any) -> None:
    space = known.FlatSpace(1, 3)
    plain, cool, squashed = (
        policy_of(space, PolicySettings(8, temperature, constant, 1.0)) for temperature, constant in
        ((1.0, None), (5.0, None), (5.0, 2.5))
    )  # fmt: skip
    nothing = np.zeros((1, 1), np.int64)
    logits, cooled, bent = (policy.walk(nothing).step(0) for policy in (plain, cool, squashed))
    torch.testing.assert_close(cooled, logits / 5)
    torch.testing.assert_close(bent, 2.5 * np.tanh(logits / 5))


@torch.no_grad()
def test_skip_divergence_by_hand(known: Any) -> None:
    policy = policy_of(known.two_operations(3))
    policy.parts().score.zero_()  # every connection has probability one half
    prior = 0.4
    expected = 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6)
    space = policy.space
    genotypes = [space.canonical([depth, *[0] * 6]) for depth in range(3)]
    chosen = policy.evaluate(*batch_of(space, genotypes), prior)
    # One layer has no open connection, and the mean over the open ones does not depend on their number.
    torch.testing.assert_close(chosen.skip_divergence.tolist(), [0.0, expected, expected])
    certain = policy_of(known.two_operations(3))
    genotype = [space.canonical([1, 0, 0, 1, 0, 0, 0])]
    walk = certain.walk(np.array([genotype[0].tokens]).T)
    logits = [walk.step(number) for number in range(4)][-1]
    yes = 1 / (1 + math.exp(-2 * logits[0, 0]))  # of the logits (-x, x)
    no = 1 - yes
    by_hand = no * math.log(no / (1 - prior)) + yes * math.log(yes / prior)
    shown = certain.evaluate(*batch_of(space, genotype), prior).skip_divergence
    assert float(shown[0]) == pytest.approx(by_hand, rel=1e-9)


def test_draws_follow_from_the_seed(space: SearchSpace) -> None:
    policy = policy_of(space)
    np.testing.assert_array_equal(draw(policy, 16, 5), draw(policy, 16, 5))
    assert (draw(policy, 16, 5) != draw(policy, 16, 6)).any()
    torch.manual_seed(99)  # the global generator has no say
    np.testing.assert_array_equal(draw(policy, 16, 5), draw(policy, 16, 5))


@torch.no_grad()
def test_a_batch_is_many_single_ones(space: SearchSpace) -> None:
    policy = policy_of(space)
    genotypes = space.sample(np.random.default_rng(0), 12)
    together = policy.evaluate(*batch_of(space, genotypes), 0.4)
    alone = [policy.evaluate(*batch_of(space, [genotype]), 0.4) for genotype in genotypes]
    for name in ("log_probability", "entropy", "skip_divergence"):
        torch.testing.assert_close(getattr(together, name), torch.cat([getattr(one, name) for one in alone]))


def test_start_weights_are_within_bounds(space: SearchSpace) -> None:
    policy = policy_of(space, PolicySettings(hidden=16, init=0.1))
    values = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])
    assert float(values.abs().max()) <= 0.1 and float(values.std()) == pytest.approx(0.2 / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize(
    "wrong", [{"hidden": 0}, {"temperature": 0.0}, {"init": 0.0}, {"tanh_constant": 0.0}, {"temperature": math.nan}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the policy needs"):
        PolicySettings(**wrong)


def test_a_connection_to_what_comes_later_is_refused(known: Any) -> None:
    check_connections(known.CellSpace())

    class Backwards(SearchSpace):
        name = "backwards"
        decisions = (
            Decision("a", "operation", ("x", "y"), 0),
            Decision("b", "skip", ("no", "yes"), 1, (1,)),
            Decision("c", "operation", ("x", "y"), 1),
        )

    with pytest.raises(ValueError, match="decision 'b' connects to node 1, which has no operation before it"):
        check_connections(Backwards())


def test_it_draws_recurrent_cells() -> None:
    space = RecurrentSpace((4,), 3, num_nodes=5, width=2, context=0)
    check_connections(space)
    policy = LSTMPolicy(space, PolicySettings(hidden=8))
    drawn = policy.draw(300, seed=0)
    assert all(space.genotype(tokens).tokens == tuple(tokens) for tokens in drawn)
    for step, decision in enumerate(space.decisions):
        assert set(drawn[:, step]) == set(range(decision.num_choices))


def test_what_no_decision_shapes_has_an_anchor_that_learns() -> None:
    space = MicroSpace((1, 8, 8), 3, channels=2, num_nodes=2, num_cells=1)
    check_connections(space)
    policy = policy_of(space)
    assert policy.given == [0, 1, 4, 5]  # the two inputs of both cells
    chosen = policy.evaluate(*batch_of(space, space.sample(np.random.default_rng(0), 20)), 0.4)
    by_given = policy.route.parts(chosen.gradient(chosen.log_probability.sum())).given
    assert len(by_given) == 4 and (by_given.abs().sum(dim=1) > 0).all()


def test_the_gradient_is_that_of_small_differences(space: SearchSpace, known: Any) -> None:
    """The way back through the LSTM is written by hand; every parameter is moved a little, one number at a time."""
    policy = policy_of(space, PolicySettings(hidden=3, temperature=1.0, tanh_constant=2.5, init=0.7))
    genotypes = space.sample(np.random.default_rng(0), 3)
    batch = batch_of(space, genotypes)
    weights = torch.tensor([0.7, -1.3, 0.4]).double()

    def value(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        return loss_of(torch.func.functional_call(_Evaluate(policy, known.through), given, batch))

    def loss_of(chosen: Distribution) -> Tensor:
        return (weights * (chosen.log_probability + 0.3 * chosen.entropy + 0.2 * chosen.skip_divergence)).sum()

    names = [f"policy.{name}" for name, _ in policy.named_parameters()]
    assert torch.autograd.gradcheck(value, tuple(policy.parameters()))
    (by_autograd,) = torch.autograd.grad(value(*policy.parameters()), policy.weights)
    chosen = policy.evaluate(*batch, 0.4)
    assert torch.equal(chosen.gradient(loss_of(chosen)), by_autograd)
    alone = known.through(policy, *batch).log_probability.sum()  # the loss need not depend on all three
    (by_autograd,) = torch.autograd.grad(alone, policy.weights)
    assert torch.equal(chosen.gradient(chosen.log_probability.sum()), by_autograd)


class _Evaluate(torch.nn.Module):
    def __init__(self, policy: LSTMPolicy, through: Any):
        super().__init__()
        self.policy, self.through = policy, through

    def forward(self, tokens: np.ndarray, masks: np.ndarray) -> Distribution:
        return self.through(self.policy, tokens, masks)


def test_the_walk_of_a_draw_is_learned_from_as_it_is(space: SearchSpace) -> None:
    policy = policy_of(space)
    episodes = Episodes(policy, 5, 0)
    for step in range(len(space.decisions)):
        assert step > policy.blocks[-1].start or episodes.walk_of(episodes.tokens.T) is None  # unfinished
        episodes.next(step, space.mask(episodes.tokens[:step].T))
    tokens = episodes.tokens.T.copy()
    walk = episodes.walk_of(tokens)
    assert walk is not None and episodes.walk_of(tokens[:4]) is None and episodes.walk_of(tokens[::-1].copy()) is None
    found = []
    for known in (walk, None):
        chosen = policy.evaluate(tokens, space.masks(tokens), 0.4, known)
        gradient = chosen.gradient(chosen.log_probability.sum() + chosen.entropy.sum())
        found.append([chosen.log_probability, gradient])
    for drawn, walked in zip(*found, strict=True):
        assert torch.equal(drawn, walked)


def test_a_draw_that_keeps_nothing_for_a_gradient_is_the_same_draw(space: SearchSpace) -> None:
    policy = policy_of(space)
    tokens, walk = policy.draw_and_walk(9, seed=3)
    assert np.array_equal(policy.draw(9, seed=3), tokens)
    passing = policy.walk(tokens.T, keep=False).to_end()
    assert np.array_equal(passing.choices, walk.choices) and np.array_equal(passing.scores, walk.scores)
    with pytest.raises(ValueError, match="keep=True"):
        chosen = policy.evaluate(tokens, space.masks(tokens), 0.4, passing)
        chosen.gradient(chosen.log_probability.sum())


def test_a_walk_does_not_keep_itself_alive(known: Any) -> None:
    policy = policy_of(known.tiny_macro(3, 2))
    tokens, walk = policy.draw_and_walk(4, 0)
    kept = weakref.ref(walk)
    chosen = policy.evaluate(tokens, policy.space.masks(tokens), 0.4, walk)
    chosen.gradient(chosen.log_probability.sum())
    assert kept() is walk
    del walk, chosen
    assert kept() is None


def test_an_anchor_that_is_named_twice_is_credited_twice(known: Any) -> None:
    class Twice(SearchSpace):
        name = "twice"
        decisions = (
            Decision("a", "operation", ("x", "y"), 0),
            Decision("b", "input", ("a", "a again"), 1, (0, 0)),
            Decision("c", "operation", ("x", "y"), 1),
        )

    space = Twice()
    policy = policy_of(space, PolicySettings(hidden=3, temperature=1.0, tanh_constant=None, init=0.7))
    genotypes = [space.genotype(tokens) for tokens in ((0, 0, 1), (1, 1, 0))]
    names = [f"policy.{name}" for name, _ in policy.named_parameters()]

    def value(*parameters: Tensor) -> Tensor:
        given = dict(zip(names, parameters, strict=True))
        evaluate, batch = _Evaluate(policy, known.through), batch_of(space, genotypes)
        return torch.func.functional_call(evaluate, given, batch).log_probability.sum()

    assert torch.autograd.gradcheck(value, tuple(policy.parameters()))
