"""The perceptron that searched ones are compared with."""

import pytest
import torch
from torch import nn

from child.cost import count_macs, count_parameters
from child.plain_mlp import PlainMLP


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_it_is_what_the_formula_says(num_layers: int) -> None:
    network = PlainMLP((5,), 3, width=4, num_layers=num_layers).eval()
    x = y = torch.randn(7, 5)
    maps = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer in maps[:-1]:
        y = (y @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(network(x), y @ maps[-1].weight.T + maps[-1].bias)
    assert count_macs(network, (5,)) == 5 * 4 + (num_layers - 1) * 4 * 4 + 4 * 3
    assert count_parameters(network) == count_macs(network, (5,)) + 4 * num_layers + 3


def test_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reads vectors, \(features,\), got \(1, 8, 8\)"):
        PlainMLP((1, 8, 8), 3, 4)
