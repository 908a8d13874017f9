"""Batch normalization for any number of channels is PyTorch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import child.norm
from child.norm import BatchNorm2d, batch_norms, statistics_anew

SIZES = [(4, 36, 4, 8), (2, 5, 8, 4), (16, 24, 2, 2), (3, 16, 4, 4), (3, 7, 3, 5), (2, 12, 1, 16)]


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.norm, "SMALL", 0)


def pair(channels: int, momentum: float | None = 0.1) -> tuple[nn.BatchNorm2d, BatchNorm2d]:
    torch.manual_seed(0)
    theirs, ours = (
        nn.BatchNorm2d(channels, momentum=momentum).double(),
        BatchNorm2d(channels, momentum=momentum).double(),
    )
    nn.init.uniform_(theirs.weight, 0.5, 2.0)
    nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def batch(size: tuple[int, ...], seed: int) -> Tensor:
    torch.manual_seed(seed)
    return (3 * torch.randn(size).double() + 2).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_it_is_that_of_pytorch(size: tuple[int, ...], momentum: float | None) -> None:
    theirs, ours = pair(size[1], momentum)
    for seed in range(3):
        x, by_y = batch(size, seed), batch(size, seed + 10)
        found = []
        for norm in (theirs, ours):
            given = x.clone().requires_grad_()
            y = nn.functional.relu(norm(given), inplace=True)
            found.append((y, *torch.autograd.grad(y, (given, norm.weight, norm.bias), by_y)))
            assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    torch.testing.assert_close(ours.eval()(batch(size, 5)), theirs.eval()(batch(size, 5)))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d])
def test_statistics_are_the_mean_of_what_was_seen(kind: type[nn.Module]) -> None:
    network = nn.Sequential(kind(3), nn.Dropout()).train()  # pyright: ignore[reportCallIssue]
    norm: Any = network[0]
    norm.running_mean.fill_(7.0)
    shape = (8, 3) if kind is nn.BatchNorm1d else (8, 3, 2, 2)
    seen = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    with statistics_anew(network):
        assert not network[1].training
        for x in seen:
            network(x)
    means = [x.transpose(0, 1).flatten(1).mean(dim=1) for x in seen]
    torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0))
    assert norm.momentum == 0.1 and not norm.training and batch_norms(network) == [norm]


def test_odd_channels_are_folded_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = []
    apply = child.norm._Folded.apply
    monkeypatch.setattr(child.norm._Folded, "apply", lambda *given: (folded.append(given[-1]), apply(*given))[1])
    for size in SIZES:
        pair(size[1])[1](batch(size, 0))
    # 16 / gcd(channels, 16) pixels are read as one; 16 channels need none of it, and 45 pixels do not go into 16.
    assert folded == [4, 16, 2, 4]


def test_what_is_small_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    theirs, ours = (norm.float() for norm in pair(36))
    assert torch.equal(ours(batch(SIZES[0], 0).float()), theirs(batch(SIZES[0], 0).float()))


def test_the_gradient_of_the_gradient() -> None:
    """As second-order search by gradients takes it."""
    _, ours = pair(5)
    x = batch((2, 5, 8, 2), 0).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, weight: _with(ours, x, weight), (x, ours.weight))


def _with(norm: BatchNorm2d, x: Tensor, weight: Tensor) -> Tensor:
    given = {"weight": weight}
    return torch.func.functional_call(norm, given, (x.contiguous(memory_format=torch.channels_last),))


def test_statistics_that_are_not_tracked_stay() -> None:
    _, ours = pair(36)
    before = {name: value.clone() for name, value in ours.named_buffers()}
    ours.track_running_stats = False
    ours(batch(SIZES[0], 0))
    torch.testing.assert_close(dict(ours.named_buffers()), before)
