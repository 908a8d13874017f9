"""The space of multilayer perceptrons: its words, its depth, its skips, and what it computes."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from child.mlp import MLP, MLPSpace


def small(**changes: Any) -> MLPSpace:
    return MLPSpace(**{"input_shape": (5,), "num_outputs": 2, "num_layers": 3, "widths": (4, 8), **changes})


TEXT = "8relu 4tanh 8silu(1,2)"
TOKENS = [2, 1, 0, 0, 1, 0, 1, 2, 1, 1]


def test_the_text_form_is_the_documented_one() -> None:
    space = small()
    assert space.text(space.genotype(TOKENS)) == TEXT
    assert space.parse(TEXT).tokens == tuple(TOKENS)
    assert space.parse(TEXT.replace("(1,2)", "(2,1)")) == space.parse(TEXT)
    assert space.layers(space.parse(TEXT)) == ((8, "relu", ()), (4, "tanh", ()), (8, "silu", (0, 1)))


def test_decisions_say_which_layers_they_join() -> None:
    decisions = {decision.name: decision for decision in small().decisions}
    assert len(decisions) == 1 + 3 * 2 + 3
    assert (decisions["layers"].kind, decisions["layers"].labels) == ("depth", ("1", "2", "3"))
    assert (decisions["layer2.width"].kind, decisions["layer2.width"].labels) == ("width", ("4", "8"))
    assert decisions["layer1.activation"].labels == ("relu", "tanh", "silu", "identity")
    skip = decisions["layer3.skip2"]
    assert (skip.kind, skip.labels, skip.node, skip.sources) == ("skip", ("no", "yes"), 2, (1,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["expected 1 to 3 layers, got 0"]),
        ("8relu 8relu 8relu 8relu", ["expected 1 to 3 layers, got 4"]),
        ("relu", ["expected a layer such as '64relu'", "got 'relu'"]),
        ("8relu()", ["got '8relu()'"]),
        ("5relu", ["unknown width in '5relu'; allowed: 4, 8"]),
        ("8reul", ["unknown activation in '8reul'", "did you mean 'relu'?"]),
        ("8relu(1)", ["layer 1 can add layers 1 to 0", "'8relu(1)'"]),
        ("8relu 8relu(2)", ["layer 2 can add layers 1 to 1", "'8relu(2)'"]),
        ("8relu 8relu(1,1)", ["each once", "'8relu(1,1)'"]),
        ("8relu 8relu(01)", ["'8relu(01)'"]),
    ],
)
def test_parse_errors_name_the_word(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        small().parse(text)
    for word in words:
        assert word in str(caught.value)


def test_text_of_a_fixed_depth_names_it() -> None:
    with pytest.raises(ValueError, match="expected 3 layers, got 1"):
        small(min_layers=3).parse("8relu")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_beyond_the_depth_there_is_one_choice(depth: int) -> None:
    space = small()
    tokens = np.zeros((1, len(space.decisions)), np.int64)
    tokens[0, 0] = depth - 1
    for decision, mask in zip(space.decisions, space.masks(tokens)[0], strict=True):
        assert mask.sum() == (1 if decision.node >= depth else decision.num_choices)


def test_the_graph_has_the_chain_and_the_skips() -> None:
    space = small()
    graph = space.graph(space.parse(TEXT))
    assert [label for _, label, _ in graph.nodes] == ["input", "8 relu", "4 tanh", "8 silu", "output"]
    names = ["input", "layer1", "layer2", "layer3", "output"]
    skips = [("layer1", "layer3"), ("layer2", "layer3")]
    assert Counter(graph.edges) == Counter([*pairwise(names), *skips])


def test_it_computes_what_it_says() -> None:
    torch.manual_seed(0)
    space = small()
    network = space.network(space.parse(TEXT)).eval()
    vectors = torch.randn(6, 5)
    first, second, third = (lambda x, layer=layer: x @ layer.weight.T + layer.bias for layer in network.hidden)
    one = torch.relu(first(vectors))
    two = torch.tanh(second(one))
    three = functional.silu(third(two)) + one + torch.cat([two, torch.zeros(6, 4)], dim=1)
    torch.testing.assert_close(network(vectors), network.outputs["3"](three))


def test_a_narrow_layer_adds_the_first_features_of_a_wide_one() -> None:
    torch.manual_seed(0)
    space = small()
    with_skip, without = (space.network(space.parse(text)).eval() for text in ("8relu 4relu(1)", "8relu 4relu"))
    without.load_state_dict(with_skip.state_dict())
    before: list[torch.Tensor] = []
    for network in (with_skip, without):
        network.outputs["2"].register_forward_pre_hook(lambda _module, inputs: before.append(inputs[0]))
    hidden: list[torch.Tensor] = []
    with_skip.hidden[0].register_forward_hook(lambda _module, _inputs, output: hidden.append(output.relu()))
    vectors = torch.randn(6, 5)
    with_skip(vectors)
    without(vectors)
    torch.testing.assert_close(before[0], before[1] + hidden[0][:, :4])


def test_known_costs() -> None:
    space = small()
    genotype = space.parse(TEXT)
    assert space.macs(genotype) == 5 * 8 + 8 * 4 + 4 * 8 + 8 * 2
    assert space.parameters(genotype) == space.macs(genotype) + 8 + 4 + 8 + 2


def test_a_fixed_network_has_the_first_of_the_widest_weights() -> None:
    space = small()
    supernet = space.network()
    shared = supernet.state_dict()
    own = space.weights(space.parse("8relu 4relu"), shared)
    assert own.keys() == {f"{layer}.{part}" for layer in ("hidden.0", "hidden.1", "outputs.2") for part in
                          ("weight", "bias")}  # fmt: skip
    assert own["hidden.1.weight"].equal(shared["hidden.1.weight"][:4])
    assert own["outputs.2.weight"].equal(shared["outputs.2.weight"][:, :4])


def test_architectures_that_begin_alike_share_the_beginning() -> None:
    space = small()
    supernet = space.network().eval()
    assert isinstance(supernet, MLP)
    calls: Counter[str] = Counter()
    for name, module in supernet.named_modules():
        if name.startswith(("hidden.", "outputs.")):
            module.register_forward_hook(lambda *_given, name=name: calls.update([name]))
    texts = ("8relu", "8relu 4relu", "8relu 4relu 4relu", "8relu 4relu 4relu(1)", "4relu 4relu")
    supernet.forward_many(torch.zeros(2, 5), [space.parse(text) for text in texts])
    assert calls == {"hidden.0": 2, "hidden.1": 2, "hidden.2": 2, "outputs.1": 1, "outputs.2": 2, "outputs.3": 2}


def test_a_supernet_does_not_run_without_a_genotype() -> None:
    with pytest.raises(ValueError, match="a supernet needs a genotype"):
        small().network()(torch.zeros(1, 5))


def test_arguments_construct_an_equal_space() -> None:
    space = small(min_layers=2, dropout=0.3)
    again = MLPSpace(**space.arguments)
    assert again.decisions == space.decisions
    assert again.arguments == space.arguments
    assert again.network().dropout.p == 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (3, 8)}, r"input_shape \(features,\), got \(3, 8\)"),
        ({"input_shape": (0,)}, "inputs and outputs, got 0 and 2"),
        ({"num_outputs": 0}, "inputs and outputs, got 5 and 0"),
        ({"min_layers": 0}, "1 <= min_layers <= num_layers, got 0 and 3"),
        ({"min_layers": 4}, "1 <= min_layers <= num_layers, got 4 and 3"),
        ({"widths": ()}, r"widths above 0 and ascending, got \[\]"),
        ({"widths": (8, 4)}, r"widths above 0 and ascending, got \[8, 4\]"),
        ({"dropout": 1.0}, "0 <= dropout < 1, got 1.0"),
    ],
)
def test_sizes_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
