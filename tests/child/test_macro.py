"""The macro space's own ways: its words, its depth, its edges, and where sizes are halved."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from child.macro import MacroNetwork, MacroSpace


def deep(**changes: Any) -> MacroSpace:
    return MacroSpace(**{"input_shape": (3, 8, 8), "num_outputs": 3, "channels": 8, "num_layers": 4, **changes})


# operation, then a skip token for each earlier layer
TOKENS = [0, 3, 1, 4, 1, 1, 1, 0, 0, 1]
TEXT = "1:conv3 2:sepconv5(1) 3:avgpool3(1,2) 4:sepconv3(3)"


def test_the_text_form_is_the_documented_one() -> None:
    space = deep()
    assert space.text(space.genotype(TOKENS)) == TEXT
    assert space.parse(TEXT).tokens == tuple(TOKENS)
    assert space.layers(space.genotype(TOKENS)) == (
        ("conv3", ()),
        ("sepconv5", (0,)),
        ("avgpool3", (0, 1)),
        ("sepconv3", (2,)),
    )


def test_decisions_say_which_layers_they_join() -> None:
    decisions = {decision.name: decision for decision in deep().decisions}
    assert len(decisions) == 4 + 3 + 2 + 1
    skip = decisions["layer4.skip2"]
    assert (skip.kind, skip.labels, skip.node, skip.sources) == ("skip", ("no", "yes"), 3, (1,))
    assert decisions["layer1.operation"].labels == ("conv3", "sepconv3", "conv5", "sepconv5", "avgpool3", "maxpool3")


def test_the_order_of_skips_does_not_matter() -> None:
    space = deep()
    assert space.parse(TEXT.replace("(1,2)", "(2,1)")) == space.parse(TEXT)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1:conv3 2:conv3 3:conv3 4:cnov3", ["'4:cnov3'", "allowed: conv3, sepconv3", "did you mean 'conv3'?"]),
        ("1:conv3 2:conv3 3:conv3", ["expected 4 layers, got 3"]),
        ("1:conv3 3:conv3 2:conv3 4:conv3", ["expected '2:operation'", "'3:conv3'"]),
        ("1:conv3 2:conv3(2) 3:conv3 4:conv3", ["layer 2 can add layers 1 to 1", "'2:conv3(2)'"]),
        ("1:conv3 2:conv3(0) 3:conv3 4:conv3", ["'2:conv3(0)'"]),
        ("1:conv3 2:conv3 3:conv3(1,1) 4:conv3", ["each once", "'3:conv3(1,1)'"]),
        ("1:conv3 2:conv3 3:conv3(01) 4:conv3", ["'3:conv3(01)'"]),
        ("1:conv3 2:conv3 3:conv3() 4:conv3", ["'3:conv3()'"]),
        ("1:conv3 2:conv3 3:conv3(1 4:conv3", ["'3:conv3(1'"]),
        ("conv3 conv3 conv3 conv3", ["'conv3'", "expected '1:operation'"]),
        ("", ["expected 4 layers, got 0"]),
    ],
)
def test_parse_errors_name_the_word(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        deep().parse(text)
    for word in words:
        assert word in str(caught.value)


def test_text_of_the_wrong_depth_names_the_range() -> None:
    space = deep(min_layers=2)
    with pytest.raises(ValueError, match="expected 2 to 4 layers, got 1"):
        space.parse("1:conv3")
    with pytest.raises(ValueError, match="expected 2 to 4 layers, got 5"):
        space.parse(" ".join(f"{number}:conv3" for number in range(1, 6)))


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_beyond_the_depth_there_is_one_choice(depth: int) -> None:
    space = deep(min_layers=2)
    assert (space.decisions[0].kind, space.decisions[0].labels) == ("depth", ("2", "3", "4"))
    tokens = np.zeros((1, len(space.decisions)), np.int64)
    tokens[0, 0] = depth - 2
    masks = space.masks(tokens)[0]
    for decision, mask in zip(space.decisions, masks, strict=True):
        assert mask.sum() == (1 if decision.node >= depth else decision.num_choices)
        assert mask[0] == 1
    genotype = space.canonical([depth - 2] + [1] * (len(space.decisions) - 1))
    assert len(space.layers(genotype)) == depth == len(space.text(genotype).split())


def test_episodes_of_one_batch_may_differ_in_depth() -> None:
    space = deep(min_layers=2)
    step = next(i for i, decision in enumerate(space.decisions) if decision.name == "layer4.operation")
    prefixes = np.zeros((3, step), np.int64)
    prefixes[:, 0] = [0, 1, 2]
    assert space.mask(prefixes).sum(axis=1).tolist() == [1, 1, 6]


def test_the_graph_has_the_chain_and_the_skips() -> None:
    space = deep()
    graph = space.graph(space.parse(TEXT))
    assert [label for _, label, _ in graph.nodes] == [
        "input",
        "conv3",
        "sepconv5",
        "avgpool3",
        "sepconv3",
        "output",
    ]
    names = ["input", "layer1", "layer2", "layer3", "layer4", "output"]
    assert [name for name, _, _ in graph.nodes] == names
    chain = list(pairwise(names))
    skips = [("layer1", "layer2"), ("layer1", "layer3"), ("layer2", "layer3"), ("layer3", "layer4")]
    assert Counter(graph.edges) == Counter(chain + skips)


def test_the_graph_of_a_shallow_architecture_leaves_the_rest_out() -> None:
    space = deep(min_layers=2)
    graph = space.graph(space.parse("1:conv3 2:conv3"))
    assert [name for name, _, _ in graph.nodes] == ["input", "layer1", "layer2", "output"]
    assert graph.edges == (("input", "layer1"), ("layer1", "layer2"), ("layer2", "output"))


def test_sizes_are_halved_evenly_over_the_layers() -> None:
    assert deep(num_layers=12).levels == (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)
    assert deep(num_layers=4, num_reductions=1).levels == (0, 0, 1, 1)
    assert deep(num_layers=3, num_reductions=0).levels == (0, 0, 0)


def test_layers_have_the_sizes_of_their_levels() -> None:
    space = deep(input_shape=(3, 15, 9), num_layers=6)
    network = space.network(space.sample(np.random.default_rng(0), 1)[0])
    assert isinstance(network, MacroNetwork)
    sizes = []
    for norm in network.norms:
        norm.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 3, 15, 9)).shape == (2, 3)
    assert sizes == [(8, 15, 9)] * 2 + [(8, 7, 4)] * 2 + [(8, 3, 2)] * 2


def test_a_sequence_is_halved_in_length_alone() -> None:
    space = deep(input_shape=(40, 101), num_layers=4, num_reductions=3)
    network = space.network(space.parse("1:conv5 2:sepconv5 3:avgpool3 4:maxpool3"))
    assert isinstance(network, MacroNetwork)
    sizes = []
    for norm in network.norms:
        norm.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 40, 101)).shape == (2, 3)
    assert sizes == [(8, 1, 101), (8, 1, 50), (8, 1, 25), (8, 1, 12)]


def test_a_sequence_is_the_middle_of_an_image() -> None:
    # In an image whose other rows are empty and whose kernels have only their middle row, that row is the sequence.
    genotype = deep().parse("1:conv5 2:sepconv3(1) 3:conv3(1,2) 4:sepconv5")
    line = deep(input_shape=(3, 9), num_reductions=0).network(genotype).eval()
    image = deep(input_shape=(3, 9, 9), num_reductions=0).network(genotype).eval()
    thin = line.state_dict()
    wide = image.state_dict()
    for name, value in thin.items():
        if wide[name].shape != value.shape:
            middle = wide[name].shape[2] // 2
            wide[name].zero_()[:, :, middle] = value[:, :, 0]
        else:
            wide[name].copy_(value)
    inputs = torch.randn(2, 3, 9)
    rows: list[torch.Tensor] = []
    for network in (line, image):
        network.norms[3].register_forward_hook(lambda _module, _inputs, output: rows.append(output))  # type: ignore[index]
    line(inputs)
    image(torch.zeros(2, 3, 9, 9).index_copy(2, torch.tensor([4]), inputs[:, :, None]))
    torch.testing.assert_close(rows[0][:, :, 0], rows[1][:, :, 4])


def test_a_layer_adds_what_it_says() -> None:
    # With operations that give nothing, a layer is its skips alone: layer 3 adds the outputs of 1 and 2.
    space = deep(num_layers=3, num_reductions=0)
    network = space.network()
    assert isinstance(network, MacroNetwork)
    before: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.append(output)

    for norm in network.norms:
        norm.register_forward_pre_hook(lambda _module, inputs: before.append(inputs[0]))
        norm.register_forward_hook(keep)
    network.operations[2]["conv3"].register_forward_hook(  # type: ignore[index]
        lambda _module, _inputs, output: torch.zeros_like(output)
    )
    network(torch.randn(4, 3, 8, 8), space.parse("1:conv3 2:conv5 3:conv3(1,2)"))
    torch.testing.assert_close(before[2], seen[0] + seen[1])


def test_a_fixed_network_holds_only_what_it_uses() -> None:
    space = deep()
    network = space.network(space.parse("1:conv3 2:maxpool3 3:avgpool3 4:conv3(1)"))
    assert isinstance(network, MacroNetwork)
    assert [list(layer.keys()) for layer in network.operations] == [["conv3"], ["maxpool3"], ["avgpool3"], ["conv3"]]  # type: ignore[union-attr]
    # Layer 1 is halved for layer 2, and again for the skip to 4; layer 2 for 3.
    assert space.levels == (0, 1, 2, 2)
    assert set(network.reductions.keys()) == {"1at1", "1at2", "2at2"}


def test_a_supernet_does_not_run_without_a_genotype() -> None:
    with pytest.raises(ValueError, match="a supernet needs a genotype"):
        deep().network()(torch.zeros(1, 3, 8, 8))


def test_a_fixed_network_is_checked_when_it_is_built() -> None:
    space = deep()
    other = deep(min_layers=2).sample(np.random.default_rng(0), 1)[0]
    with pytest.raises(ValueError, match="expects 10 tokens, got 11"):
        space.network(other)


def test_arguments_construct_an_equal_space() -> None:
    space = deep(min_layers=2, num_reductions=1, dropout=0.3)
    again = MacroSpace(**space.arguments)
    assert again.decisions == space.decisions
    assert again.levels == space.levels
    assert again.arguments == space.arguments
    dropouts = [module.p for module in again.network().modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels >= 1 and num_outputs >= 1, got 0 and 3"),
        ({"num_outputs": 0}, "channels >= 1 and num_outputs >= 1, got 8 and 0"),
        ({"num_layers": 10**15}, "num_layers from 1 to 1000, got 1000000000000000"),
        ({"min_layers": 5}, "1 <= min_layers <= num_layers, got 5 and 4"),
        ({"min_layers": 0}, "1 <= min_layers <= num_layers, got 0 and 4"),
        ({"num_reductions": 4}, "num_reductions < num_layers, got 4"),
        ({"num_reductions": -1}, "num_reductions < num_layers, got -1"),
        ({"input_shape": (3, 3, 8)}, "inputs of 3x8 cannot be halved 2 times; lower num_reductions"),
        ({"input_shape": (3, 7), "num_reductions": 3}, "inputs of 7 cannot be halved 3 times"),
        ({"input_shape": (3, 8, 8, 8)}, r"input_shape \(C, H, W\) or \(C, L\), got \(3, 8, 8, 8\)"),
        ({"dropout": 1.0}, "0 <= dropout < 1, got 1.0"),
    ],
)
def test_sizes_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deep(**changes)
