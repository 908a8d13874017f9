"""The opponent for sequences, as large as what it is compared with."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from child.convnet import ConvNet1d
from child.cost import count_macs, count_parameters, width_of_like_cost
from child.resnet import ResidualBlock


@pytest.mark.parametrize("input_shape", [(1, 8), (40, 63), (2, 4)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_shapes_and_depth(input_shape: tuple[int, int], blocks: int) -> None:
    network = ConvNet1d(input_shape, 7, 4, blocks)
    sizes = []
    for block in network.stages:
        block.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, *input_shape)).shape == (2, 7)
    lengths = [input_shape[1], -(-input_shape[1] // 2)]
    lengths.append(-(-lengths[1] // 2))
    assert sizes == [(4 * 2**stage, 1, lengths[stage]) for stage in range(3) for _ in range(blocks)]


def test_it_is_a_network_of_one_dimensional_convolutions(unsettle: object) -> None:
    """Computed again from its own weights with PyTorch's conv1d and batch_norm."""
    torch.manual_seed(0)
    network = ConvNet1d((5, 21), 3, 4, 2)
    unsettle(network)  # type: ignore[operator]
    network.eval()

    def convolve(x: Tensor, convolution: nn.Module, norm: nn.Module, stride: int = 1) -> Tensor:
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        weight = convolution.weight[:, :, 0]
        x = functional.conv1d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        return functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)  # type: ignore[arg-type]

    inputs = torch.randn(4, 5, 21)
    x = convolve(inputs, network.stem[0], network.stem[1]).relu()
    for block in network.stages:
        assert isinstance(block, ResidualBlock)
        body = convolve(x, block.body[0], block.body[1], block.stride).relu()
        body = convolve(body, block.body[3], block.body[4])
        layers = list(block.shortcut.children())
        x = (body + (convolve(x, layers[0], layers[1], block.stride) if layers else x)).relu()
    expected = network.classifier(x.mean(dim=2))
    torch.testing.assert_close(network(inputs), expected, atol=1e-5, rtol=1e-4)


def test_costs_by_hand_and_a_width_of_like_cost() -> None:
    network = ConvNet1d((40, 64), 10, 8)
    blocks = (
        64 * (2 * 3 * 8 * 8) + 32 * (3 * 8 * 16 + 3 * 16 * 16 + 8 * 16) + 16 * (3 * 16 * 32 + 3 * 32 * 32 + 16 * 32)
    )
    assert count_macs(network, (40, 64)) == 64 * 3 * 40 * 8 + blocks + 320
    wanted = count_macs(network, (40, 64))
    assert width_of_like_cost(lambda w: ConvNet1d((40, 64), 10, w), lambda n: count_macs(n, (40, 64)), wanted) == 8
    assert count_parameters(ConvNet1d((40, 64), 10, 16)) > 3 * count_parameters(network)


def test_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ConvNet1d takes sequences, input_shape \(C, L\), got \(3, 8, 8\)"):
        ConvNet1d((3, 8, 8), 10, 8)
