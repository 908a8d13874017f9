"""The recurrent space's own ways: its words, its cell against the paper's equations, and the windows of its model."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from child.recurrent import RecurrentNetwork, RecurrentSpace, loose_ends


def small(**changes: Any) -> RecurrentSpace:
    return RecurrentSpace(
        **{"input_shape": (7,), "num_outputs": 5, "num_nodes": 4, "width": 6, "context": 2, **changes}
    )


# Two activations, then pairs of the node that is read and an activation.
TOKENS = [0, 1, 0, 3, 1, 2]
TEXT = "1:tanh 2:relu(1) 3:sigmoid(1) 4:identity(2)"

# The cell that the authors found, as their scripts/ptb_final.sh writes it: an activation, then pairs of the node that
# is read (from 0) and an activation (0 tanh, 1 ReLU, 2 identity, 3 sigmoid).
FOUND_BY_ENAS = "0 0 0 1 1 2 1 2 0 2 0 5 1 1 0 6 1 8 1 8 1 8 1"


def test_the_text_form_is_the_documented_one() -> None:
    space = small()
    assert space.text(space.genotype(TOKENS)) == TEXT
    assert space.parse(TEXT).tokens == tuple(TOKENS)
    assert space.nodes(space.genotype(TOKENS)) == (("tanh", -1), ("relu", 0), ("sigmoid", 0), ("identity", 1))


def test_the_published_cell_is_read_but_for_its_second_node_that_has_no_choice() -> None:
    space = small(num_nodes=12)
    first, second_reads, *rest = map(int, FOUND_BY_ENAS.split())
    assert second_reads == 0
    assert space.text(space.genotype([first, *rest])) == (
        "1:tanh 2:tanh(1) 3:relu(2) 4:relu(3) 5:tanh(3) 6:tanh(3) 7:relu(6) 8:tanh(2) 9:relu(7) 10:relu(9) 11:relu(9) "
        "12:relu(9)"
    )


def test_decisions_say_which_nodes_they_join() -> None:
    decisions = {decision.name: decision for decision in small().decisions}
    assert list(decisions) == [
        "node1.operation",
        "node2.operation",
        "node3.input",
        "node3.operation",
        "node4.input",
        "node4.operation",
    ]
    read = decisions["node4.input"]
    assert (read.kind, read.labels, read.node, read.sources) == ("input", ("1", "2", "3"), 3, (0, 1, 2))
    assert decisions["node1.operation"].labels == ("tanh", "relu", "identity", "sigmoid")
    assert [decision.name for decision in small(num_nodes=1).decisions] == ["node1.operation"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1:tanh 2:rleu(1) 3:tanh(1) 4:tanh(1)", ["'2:rleu(1)'", "allowed: tanh, relu", "did you mean 'relu'?"]),
        ("1:tanh 2:relu(1) 3:tanh(1)", ["expected 4 nodes, got 3"]),
        ("1:tanh 3:relu(1) 2:tanh(1) 4:tanh(1)", ["expected '2:activation(1)'", "'3:relu(1)'"]),
        ("1:tanh(1) 2:relu(1) 3:tanh(1) 4:tanh(1)", ["expected '1:activation'", "'1:tanh(1)'"]),
        ("1:tanh 2:relu 3:tanh(1) 4:tanh(1)", ["expected '2:activation(1)'", "'2:relu'"]),
        ("1:tanh 2:relu(2) 3:tanh(1) 4:tanh(1)", ["node 2 can read nodes 1 to 1", "'2:relu(2)'"]),
        ("1:tanh 2:relu(1) 3:tanh(0) 4:tanh(1)", ["node 3 can read nodes 1 to 2", "'3:tanh(0)'"]),
        ("1:tanh 2:relu(1) 3:tanh(01) 4:tanh(1)", ["'3:tanh(01)'"]),
        ("1:tanh 2:relu(1) 3:tanh(1,2) 4:tanh(1)", ["'3:tanh(1,2)'"]),
        ("", ["expected 4 nodes, got 0"]),
    ],
)
def test_parse_errors_name_the_word(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        small().parse(text)
    for word in words:
        assert word in str(caught.value)


def test_the_graph_leads_from_token_and_state_to_the_loose_ends() -> None:
    space = small()
    graph = space.graph(space.parse(TEXT))
    assert [label for _, label, _ in graph.nodes] == [
        "token",
        "state",
        "tanh",
        "relu",
        "sigmoid",
        "identity",
        "next state",
    ]
    assert Counter(graph.edges) == Counter(
        [
            ("token", "node1"),
            ("state", "node1"),
            ("node1", "node2"),
            ("node1", "node3"),
            ("node2", "node4"),
            ("node3", "output"),
            ("node4", "output"),
        ]
    )


# The cell.


def by_hand(network: RecurrentNetwork, tokens: Tensor, seed: int) -> Tensor:
    """Logits by the equations of section 2.1, a position and a node at a time, with dropout drawn by the seed."""
    space = network.space
    assert network.fixed is not None
    torch.manual_seed(seed)
    rates = (network.dropout_input, space.dropout_state, network.dropout_output)
    ones = torch.ones(len(tokens), space.width)
    input_mask, state_mask, output_mask = (functional.dropout(ones, rate, network.training) for rate in rates)
    activations = {"tanh": torch.tanh, "relu": torch.relu, "identity": torch.clone, "sigmoid": torch.sigmoid}
    state, logits = torch.zeros_like(ones), []
    for position in range(space.length):
        if position == space.context:
            state = state.detach()
        x = network.embedding.weight[tokens[:, position]] * input_mask
        values: list[Tensor] = []
        for node, (activation, source) in enumerate(network.fixed):
            if node == 0:
                before = state
                products = x @ network.weights["input"] + (state * state_mask) @ network.weights["state"]
            else:
                before = values[source]
                products = before @ network.weights[f"{source + 1}to{node + 1}"]
            c = 1 / (1 + (-products[:, : space.width]).exp())
            values.append(c * activations[activation](products[:, space.width :]) + (1 - c) * before)
        unread = [node for node in range(len(values)) if node not in {source for _, source in network.fixed}]
        state = sum(values[node] for node in unread) / torch.tensor(len(unread))
        if position >= space.context:
            logits.append((state * output_mask) @ network.embedding.weight.T + network.bias)
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"dropout_input": 0.3, "dropout_state": 0.4, "dropout_output": 0.5},
        {"context": 0, "num_nodes": 6},
        {"context": 6},
        {"num_nodes": 1},
    ],
    ids=str,
)
def test_outputs_and_gradients_follow_the_equations_of_the_paper(changes: dict[str, Any], training: bool) -> None:
    space = small(**changes)
    tokens = torch.randint(5, (3, 7), generator=torch.Generator().manual_seed(0))
    for number, genotype in enumerate(space.sample(np.random.default_rng(0), 5)):
        network = space.network(genotype).train(training)
        assert isinstance(network, RecurrentNetwork)
        expected = by_hand(network, tokens, number)
        torch.manual_seed(number)
        outputs = network(tokens)
        torch.testing.assert_close(outputs, expected)
        assert outputs.shape == (3, 7 - space.context, 5)
        for found, wanted in zip(
            torch.autograd.grad(outputs.square().sum(), list(network.parameters())),
            torch.autograd.grad(expected.square().sum(), list(network.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_cells_that_differ_in_the_numbers_of_their_nodes_have_one_key_and_compute_the_same() -> None:
    space = small()
    one = space.parse("1:tanh 2:relu(1) 3:sigmoid(1) 4:identity(2)")
    other = space.parse("1:tanh 2:sigmoid(1) 3:relu(1) 4:identity(3)")
    assert space.key(one) == space.key(other)
    first, second = space.network(one), space.network(other)
    weights = first.state_dict()
    renamed = {"1to2": "1to3", "1to3": "1to2", "2to4": "3to4"}
    for old, new in renamed.items():
        weights[f"weights.{new}*"] = weights.pop(f"weights.{old}")
    second.load_state_dict({name.removesuffix("*"): value for name, value in weights.items()})
    tokens = torch.randint(5, (3, 7))
    torch.testing.assert_close(first.eval()(tokens), second.eval()(tokens))
    for different in ("1:tanh 2:relu(1) 3:sigmoid(1) 4:identity(3)", "1:tanh 2:relu(1) 3:sigmoid(2) 4:identity(2)"):
        assert space.key(space.parse(different)) != space.key(one)


def test_a_fixed_network_holds_only_what_it_uses() -> None:
    space = small()
    network, supernet = space.network(space.parse(TEXT)), space.network()
    assert isinstance(network, RecurrentNetwork) and isinstance(supernet, RecurrentNetwork)
    assert set(network.weights) == {"input", "state", "1to2", "1to3", "2to4"}
    assert set(supernet.weights) == {"input", "state", "1to2", "1to3", "2to3", "1to4", "2to4", "3to4"}
    assert network.fixed is not None and loose_ends(network.fixed) == [2, 3]


# The windows.


def test_a_position_sees_what_comes_before_it_and_nothing_after() -> None:
    space = small(context=3)
    network = space.network(space.parse(TEXT)).eval()
    tokens = torch.zeros(1, 7, dtype=torch.int64)
    before = network(tokens)
    for position in range(7):
        changed = tokens.clone()
        changed[0, position] = 1
        differs = (network(changed) != before).any(dim=2)[0].tolist()
        assert differs == [place >= position for place in range(3, 7)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_tokens_may_be_of_any_type(dtype: torch.dtype) -> None:
    space = small()
    network = space.network(space.parse(TEXT)).eval()
    tokens = torch.randint(5, (3, 7))
    assert network(tokens.to(dtype)).equal(network(tokens))


def test_it_learns_to_count() -> None:
    torch.manual_seed(0)
    space = small(num_nodes=4, width=16, dropout_input=0.0, dropout_state=0.0, dropout_output=0.0)
    network = space.network(space.parse(TEXT))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    tokens = (torch.arange(5)[:, None] + torch.arange(8)) % 5
    targets = tokens[:, 1 + space.context :]
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(network(tokens[:, :-1]).flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    assert (network(tokens[:, :-1]).argmax(dim=2) == targets).all()


def test_a_supernet_does_not_run_without_a_genotype() -> None:
    with pytest.raises(ValueError, match="a supernet needs a genotype"):
        small().network()(torch.zeros(1, 7))


def test_arguments_construct_an_equal_space() -> None:
    space = small(dropout_input=0.2, dropout_state=0.3, dropout_output=0.4)
    again = RecurrentSpace(**space.arguments)
    assert (again.decisions, again.arguments) == (space.decisions, space.arguments)
    network = again.network()
    assert isinstance(network, RecurrentNetwork)
    assert (network.dropout_input, network.space.dropout_state, network.dropout_output) == (0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nodes": 0}, "num_nodes from 1 to 1000, got 0"),
        ({"width": 0}, "width >= 1 and 2 outputs, got 0 and 5"),
        ({"num_outputs": 1}, "width >= 1 and 2 outputs, got 6 and 1"),
        ({"input_shape": (1, 8, 8)}, r"windows of tokens, \(length,\), got \(1, 8, 8\)"),
        ({"context": 7}, "a window of 7 tokens needs 0 <= context < 7, got 7"),
        ({"context": -1}, "a window of 7 tokens needs 0 <= context < 7, got -1"),
        ({"dropout_input": 1.0}, "0 <= dropout < 1, got 1.0"),
        ({"dropout_state": 1.0}, "0 <= dropout_state < 1, got 1.0"),
        ({"dropout_output": -0.1}, "0 <= dropout < 1, got -0.1"),
    ],
)
def test_sizes_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
