"""The residual opponent, as large as what it is compared with."""

import pytest
import torch
from torch.nn import functional

from child.resnet import ResidualBlock, ResNet


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 15, 9), (2, 4, 4)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_shapes_and_depth(input_shape: tuple[int, int, int], blocks: int) -> None:
    network = ResNet(input_shape, 7, 4, blocks)
    sizes = []
    for block in network.stages:
        block.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, *input_shape)).shape == (2, 7)
    _, height, width = input_shape
    halved = [(height, width), (-(-height // 2), -(-width // 2))]
    halved.append((-(-halved[1][0] // 2), -(-halved[1][1] // 2)))
    assert sizes == [(4 * 2**stage, *halved[stage]) for stage in range(3) for _ in range(blocks)]


def test_a_block_whose_body_gives_nothing_passes_its_input_on() -> None:
    block = ResidualBlock(4, 4, 1).eval()
    torch.nn.init.zeros_(block.body[3].weight)  # type: ignore[arg-type]
    inputs = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(inputs), inputs.clamp(min=0))


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 8, 2), (4, 8, 1), (8, 8, 2)])
@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_the_shortcut_is_a_strided_convolution(inputs: int, outputs: int, stride: int, size: tuple[int, int]) -> None:
    block = ResidualBlock(inputs, outputs, stride).eval()
    torch.nn.init.zeros_(block.body[3].weight)  # type: ignore[arg-type]
    images = torch.randn(2, inputs, *size)
    convolution, norm = block.shortcut.children()
    assert isinstance(convolution, torch.nn.Conv2d)
    expected = norm(functional.conv2d(images, convolution.weight, stride=stride)).clamp(min=0)
    torch.testing.assert_close(block(images), expected)


@pytest.mark.parametrize("shape", [(4,), (3, 20)])
def test_inputs_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ResNet takes images"):
        ResNet(shape, num_outputs=2, width=4)
