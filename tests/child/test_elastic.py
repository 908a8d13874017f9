"""Elastic layers: every smaller size is a plain layer with its part of the weights."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from child.chain import run_together
from child.elastic import ElasticBatchNorm2d, ElasticConv2d, ElasticLinear, crop
from child.supernet import batch_statistics


def test_crop_takes_first_channels_and_the_center_of_a_kernel() -> None:
    weight = torch.arange(4 * 3 * 5 * 5).view(4, 3, 5, 5)
    assert crop(weight, (2, 3, 3, 3)).equal(weight[:2, :, 1:4, 1:4])
    assert crop(weight, (4, 1, 1, 1)).equal(weight[:, :1, 2:3, 2:3])
    assert crop(weight, weight.shape) is weight
    assert crop(torch.arange(6), (4,)).tolist() == [0, 1, 2, 3]
    assert crop(torch.tensor(7), ()).item() == 7
    crop(weight, (1, 1, 1, 1)).zero_()  # a view
    assert weight[0, 0, 2, 2] == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("inputs", "outputs", "kernel"), [(6, 8, 5), (4, 3, 3), (6, 5, 1), (1, 8, 5)])
def test_a_convolution_of_any_size(inputs: int, outputs: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    elastic = ElasticConv2d(6, 8, 5, stride)
    plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    middle = slice(2 - kernel // 2, 3 + kernel // 2)
    plain.weight.data = elastic.weight.data[:outputs, :inputs, middle, middle]
    images = torch.randn(2, inputs, 9, 8)
    torch.testing.assert_close(elastic(images, outputs, kernel), plain(images))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "kernel"), [(6, 5), (4, 3), (1, 5)])
def test_a_depthwise_convolution_of_any_size(channels: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    elastic = ElasticConv2d(6, 6, 5, stride, groups=6)
    plain = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    middle = slice(2 - kernel // 2, 3 + kernel // 2)
    plain.weight.data = elastic.weight.data[:channels, :, middle, middle]
    images = torch.randn(2, channels, 9, 8)
    torch.testing.assert_close(elastic(images, kernel=kernel), plain(images))


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_map_of_any_size(bias: bool) -> None:
    torch.manual_seed(0)
    elastic = ElasticLinear(6, 8, bias)
    plain = nn.Linear(4, 3, bias)
    plain.weight.data = elastic.weight.data[:3, :4]
    if bias:
        plain.bias.data = elastic.bias.data[:3]
    vectors = torch.randn(2, 4)
    torch.testing.assert_close(elastic(vectors, 3), plain(vectors))
    assert elastic(vectors).shape == (2, 8)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("channels", [2, 6])
def test_a_normalization_of_any_size(
    channels: int, momentum: float | None, unsettle: Callable[[nn.Module], None]
) -> None:
    elastic, plain = ElasticBatchNorm2d(6, momentum=momentum), nn.BatchNorm2d(channels, momentum=momentum)
    unsettle(elastic)
    plain.load_state_dict({name: crop(value, plain.state_dict()[name].shape) for name, value in
                           elastic.state_dict().items()})  # fmt: skip
    rest = {name: value[channels:].clone() for name, value in elastic.state_dict().items() if value.ndim}
    for step in range(6):
        images = torch.randn(4, channels, 3, 5, generator=torch.Generator().manual_seed(step)) * 2 + step
        elastic.train(step < 3)
        plain.train(step < 3)
        with batch_statistics(nn.Sequential(elastic, plain)) if step == 5 else nullcontext():
            torch.testing.assert_close(elastic(images), plain(images))
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(crop(elastic.state_dict()[name], value.shape), value)
    for name, value in rest.items():
        assert elastic.state_dict()[name][channels:].equal(value)


def test_plans_that_begin_alike_share_their_steps() -> None:
    ran: list[tuple[str, str]] = []

    def run(state: str, step: str) -> str:
        ran.append((state, step))
        return state + step

    ended: list[str] = []

    def end(state: str) -> Tensor:
        ended.append(state)
        return torch.tensor([float(len(state))])

    plans = ["ab", "abc", "b", "abd", "ab", ""]
    assert [outputs.item() for outputs in run_together("", plans, run, end)] == [2, 3, 1, 3, 2, 0]
    assert sorted(ran) == [("", "a"), ("", "b"), ("a", "b"), ("ab", "c"), ("ab", "d")]
    assert sorted(ended) == ["", "ab", "abc", "abd", "b"]
