"""The mobile space's own ways: its words, its masks, its shapes, and how sizes share weights."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from child.mobile import Block, InvertedResidual, MobileNetwork, MobileSpace, SqueezeExcitation


def small(**changes: Any) -> MobileSpace:
    return MobileSpace(**{
        "input_shape": (3, 16, 12), "num_outputs": 5, "channels": 8, "num_stages": 2, "max_depth": 3,
        "num_reductions": 1, **changes,
    })  # fmt: skip


TEXT = "12:k5e4s,k3e2 32:k7e6"
TOKENS = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0]


def test_the_text_form_is_the_documented_one() -> None:
    space = small()
    assert space.text(space.genotype(TOKENS)) == TEXT
    assert space.parse(TEXT).tokens == tuple(TOKENS)
    assert space.blocks(space.parse(TEXT)) == (
        Block(0, 0, inputs=8, hidden=32, outputs=12, kernel=5, squeeze=True),
        Block(0, 1, inputs=12, hidden=24, outputs=12, kernel=3, squeeze=False),
        Block(1, 0, inputs=12, hidden=72, outputs=32, kernel=7, squeeze=False),
    )


def test_decisions_name_their_choices() -> None:
    decisions = {decision.name: decision for decision in small().decisions}
    assert len(decisions) == 2 * (2 + 3 * 3)
    found = {name: (decisions[name].kind, decisions[name].labels, decisions[name].node) for name in (
        "stage1.depth", "stage2.width", "stage2.block1.kernel", "stage1.block3.expansion", "stage2.block3.squeeze",
    )}  # fmt: skip
    assert found == {
        "stage1.depth": ("depth", ("1", "2", "3"), -1),
        "stage2.width": ("width", ("16", "24", "32"), -1),
        "stage2.block1.kernel": ("kernel", ("3", "5", "7"), 3),
        "stage1.block3.expansion": ("expansion", ("2", "4", "6"), 2),
        "stage2.block3.squeeze": ("squeeze", ("no", "yes"), 5),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("12:k5e4s,k3e2", ["expected 2 stages, got 1"]),
        ("12:k5e4s 32", ["expected a stage such as '24:k5e4s,k3e2', got '32'"]),
        ("12:k5e4s 32:", ["got '32:'"]),
        ("12:k5e4s 32:k3e2,", ["got '32:k3e2,'"]),
        ("12:k5e4x 32:k3e2", ["got '12:k5e4x'"]),
        ("12:k3e2,k3e2,k3e2,k3e2 32:k3e2", ["1 to 3 blocks, got 4"]),
        ("13:k3e2 32:k3e2", ["unknown width '13'", "'13:k3e2'", "allowed: 8, 12, 16"]),
        ("12:k9e2 32:k3e2", ["unknown kernel '9'", "allowed: 3, 5, 7"]),
        ("12:k3e2 32:k3e02", ["unknown expansion '02'", "allowed: 2, 4, 6"]),
    ],
)
def test_parse_errors_name_the_word(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        small().parse(text)
    for word in words:
        assert word in str(caught.value)


def test_beyond_the_depth_of_its_stage_there_is_one_choice() -> None:
    space = small()
    tokens = np.zeros((2, len(space.decisions)), np.int64)
    tokens[0, 0], tokens[1, 11] = 1, 2  # depths 2 and 1; 1 and 3
    open_blocks = [
        {decision.name.rpartition(".")[0] for decision, mask in zip(space.decisions, masks, strict=True)
         if decision.kind == "kernel" and mask.sum() == 3}
        for masks in space.masks(tokens)
    ]  # fmt: skip
    assert open_blocks[0] == {"stage1.block1", "stage1.block2", "stage2.block1"}
    assert open_blocks[1] == {"stage1.block1", "stage2.block1", "stage2.block2", "stage2.block3"}


def test_the_last_stages_halve_the_size() -> None:
    space = small(input_shape=(3, 15, 9), num_stages=3, num_reductions=2)
    network = space.network(space.parse("8:k3e2,k3e2 16:k5e2,k3e2 32:k7e2"))
    sizes = []
    for block in network.blocks.values():
        block.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 3, 15, 9)).shape == (2, 5)
    assert sizes == [(8, 15, 9)] * 2 + [(16, 8, 5)] * 2 + [(32, 4, 3)]


def test_the_graph_says_what_each_block_is() -> None:
    space = small()
    graph = space.graph(space.parse(TEXT))
    assert [(name, label) for name, label, _ in graph.nodes] == [
        ("input", "input"),
        ("stem", "conv3 8"),
        ("stage1_block1", "k5 8-32-12 squeeze"),
        ("stage1_block2", "k3 12-24-12"),
        ("stage2_block1", "k7 12-72-32 /2"),
        ("output", "output"),
    ]


def test_a_fixed_network_has_its_own_smaller_weights() -> None:
    space = small()
    supernet, genotype = space.network(), space.parse(TEXT)
    shared = supernet.state_dict()
    own = space.weights(genotype, shared)
    assert own.keys() == space.network(genotype).state_dict().keys()
    name = "blocks.stage1_block1.depthwise.weight"
    assert shared[name].shape == (48, 1, 7, 7)
    assert own[name].equal(shared[name][:32, :, 1:6, 1:6])
    name = "blocks.stage2_block1.expand.weight"
    assert shared[name].shape == (96, 16, 1, 1)
    assert own[name].equal(shared[name][:72, :12])


def plain_block(block: Block, stride: int) -> nn.Sequential:
    """A block without squeeze-and-excitation, out of PyTorch's own layers."""
    return nn.Sequential(
        nn.Conv2d(block.inputs, block.hidden, 1, bias=False), nn.BatchNorm2d(block.hidden), nn.ReLU6(),
        nn.Conv2d(block.hidden, block.hidden, block.kernel, stride, block.kernel // 2, groups=block.hidden, bias=False),
        nn.BatchNorm2d(block.hidden), nn.ReLU6(),
        nn.Conv2d(block.hidden, block.outputs, 1, bias=False), nn.BatchNorm2d(block.outputs),
    )  # fmt: skip


@pytest.mark.parametrize(("outputs", "stride", "residual"), [(6, 1, True), (7, 1, False), (6, 2, False)])
def test_a_block_is_the_plain_one_with_a_residual_where_shapes_agree(outputs: int, stride: int, residual: bool) -> None:
    torch.manual_seed(0)
    block = Block(0, 0, 6, 12, outputs, 5, False)
    ours, plain = InvertedResidual(block, stride), plain_block(block, stride)
    plain.load_state_dict(dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(4, 6, 8, 8)
    torch.testing.assert_close(ours(images), plain(images) + images if residual else plain(images))


def test_squeeze_and_excitation_reweighs_channels_by_their_means() -> None:
    torch.manual_seed(0)
    module = SqueezeExcitation(8)
    assert module.reduce.weight.shape == (2, 8)
    images = torch.randn(3, 8, 4, 5)
    means = images.flatten(2).mean(dim=2)
    factors = nn.Hardsigmoid()(nn.ReLU()(means @ module.reduce.weight.T + module.reduce.bias) @ module.expand.weight.T
                               + module.expand.bias)  # fmt: skip
    torch.testing.assert_close(module(images), images * factors[:, :, None, None])


def test_architectures_that_begin_alike_share_the_beginning() -> None:
    space = small()
    supernet = space.network().eval()
    assert isinstance(supernet, MobileNetwork)
    calls = dict.fromkeys(supernet.blocks, 0)

    def count(name: str) -> Any:
        return lambda *_given: calls.update({name: calls[name] + 1})

    for name, block in supernet.blocks.items():
        block.register_forward_hook(count(name))
    texts = ("8:k3e2,k3e2 16:k3e2", "8:k3e2,k3e2 16:k3e4", "8:k3e2 16:k3e2", "12:k3e2 16:k3e2")
    supernet.forward_many(torch.zeros(2, 3, 16, 12), [space.parse(text) for text in texts])
    # The width is that of every block of a stage, so the last shares nothing.
    assert {name: number for name, number in calls.items() if number} == {
        "stage1_block1": 2, "stage1_block2": 1, "stage2_block1": 4,
    }  # fmt: skip


def test_a_supernet_does_not_run_without_a_genotype() -> None:
    with pytest.raises(ValueError, match="a supernet needs a genotype"):
        small().network()(torch.zeros(1, 3, 16, 12))


def test_arguments_construct_an_equal_space() -> None:
    space = small(widths=(0.5, 1), kernels=(3,), expansions=(1, 4), dropout=0.3)
    again = MobileSpace(**space.arguments)
    assert again.decisions == space.decisions
    assert again.arguments == space.arguments
    assert again.network().dropout.p == 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_shape": (3, 16)}, r"input_shape \(C, H, W\), got \(3, 16\)"),
        ({"num_outputs": 0}, "num_outputs >= 1, got 8 and 0"),
        ({"channels": 0}, "channels >= 1 and num_outputs >= 1, got 0 and 5"),
        ({"num_stages": 0}, "num_stages from 1 to 1000, got 0"),
        ({"max_depth": 0}, "max_depth from 1 to 1000, got 0"),
        ({"num_reductions": 3}, "0 <= num_reductions <= num_stages, got 3"),
        ({"num_reductions": -1}, "0 <= num_reductions <= num_stages, got -1"),
        ({"input_shape": (3, 3, 8), "num_reductions": 2}, "inputs of 3x8 cannot be halved 2 times; lower"),
        ({"widths": ()}, r"widths above 0 and ascending, got \[\]"),
        ({"widths": (1, 1.01)}, r"different numbers of channels, got \[8, 8\]"),
        ({"widths": (0.01, 1)}, r"different numbers of channels, got \[0, 8\]"),
        ({"kernels": (5, 3)}, r"kernels above 0 and ascending, got \[5, 3\]"),
        ({"kernels": (3, 4)}, r"odd kernels of at least 3, got \[3, 4\]"),
        ({"kernels": (1, 3)}, r"odd kernels of at least 3, got \[1, 3\]"),
        ({"expansions": (0, 2)}, r"expansions above 0 and ascending, got \[0, 2\]"),
        ({"dropout": 1.0}, "0 <= dropout < 1, got 1.0"),
    ],
)
def test_sizes_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)
