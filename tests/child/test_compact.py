"""Packed weights: what is read is what was written, bit by bit, and small where it can be."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from child.compact import pack, unpack


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)
values = st.sampled_from([0.0, -0.0, 1.5, -2.25, math.inf, math.nan, 1e-45, 3.4e38])


@given(
    st.lists(st.tuples(shapes, st.lists(values, min_size=1, max_size=6), st.integers(0, 2**32 - 1)), max_size=4),
    st.integers(1, 400),
)
@settings(max_examples=80)
def test_every_tensor_comes_back_bit_by_bit(drawn: list, times: int) -> None:
    state = {}
    for number, (shape, choices, seed) in enumerate(drawn):
        rng = np.random.default_rng(seed)
        shape = (*shape, times) if shape and math.prod(shape) < 50 else shape
        state[f"a.{number}"] = torch.from_numpy(rng.choice(np.array(choices, np.float32), shape))
        state[f"b.{number}"] = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
    state["steps"] = torch.tensor(7)
    again, _ = unpack(pack(state))
    assert again.keys() == state.keys()
    assert all(same_bits(again[name], value) for name, value in state.items())


@pytest.mark.parametrize(("num_values", "bits"), [(2, 1), (3, 2), (16, 4), (17, 5), (256, 8)])
def test_a_codebook_takes_as_many_bits_as_its_values_need(num_values: int, bits: int) -> None:
    table = torch.linspace(1, 2, num_values)
    weight = table[torch.arange(40_000) % num_values].view(200, 200)
    size = len(pack({"weight": weight}))
    assert 40_000 * bits / 8 + 4 * num_values <= size <= 40_000 * bits / 8 + 4 * num_values + 600
    assert same_bits(unpack(pack({"weight": weight}))[0]["weight"], weight)


def test_zeros_take_a_bit_and_live_values_their_own() -> None:
    torch.manual_seed(0)
    weight = torch.randn(100, 400)
    weight[torch.rand(100, 400) < 0.9] = 0
    live = int((weight != 0).sum())
    assert len(pack({"weight": weight})) <= 5000 + 4 * live + 600
    shared = torch.where(weight > 0, 0.5, -0.25).masked_fill(weight == 0, 0.0)
    assert len(pack({"weight": shared})) <= 5000 + live / 8 + 600
    assert same_bits(unpack(pack({"weight": shared}))[0]["weight"], shared)


def test_equal_weights_are_stored_once() -> None:
    weight = torch.randn(50, 50)
    size = len(pack({"a": weight}))
    state = {"a": weight, "b": weight.clone(), "norm": torch.ones(50), "other": torch.ones(50)}
    again, same = unpack(pack(state))
    assert len(pack(state)) < size + 1000 and not same
    assert all(same_bits(again[name], value) for name, value in state.items())


def test_layers_that_only_begin_alike_are_not_tied() -> None:
    """A fresh encoder has clones of one layer."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    state = {**encoder.state_dict(), "tied": encoder.layers[1].linear1.weight}  # type: ignore[union-attr]
    again, same = unpack(pack(state))
    assert same == {"tied": "layers.1.linear1.weight"}
    assert all(same_bits(again[name], value.detach()) for name, value in state.items())
    assert again["tied"].data_ptr() != again["layers.0.linear1.weight"].data_ptr()


def test_what_several_modules_have_is_stored_once_whatever_it_is() -> None:
    """Vectors and counters too, and views of one memory, which the format would refuse."""
    bias, steps, memory = torch.randn(9), torch.tensor(7), torch.randn(4, 6)
    state = {"a.bias": bias, "b.bias": bias, "a.steps": steps, "b.steps": steps, "top": memory[:2], "rest": memory[2:]}
    again, same = unpack(pack(state))
    assert same == {"b.bias": "a.bias", "b.steps": "a.steps"}
    assert all(same_bits(again[name], value) for name, value in state.items())


def test_a_file_in_which_nothing_is_packed_is_a_plain_one() -> None:
    state = {"weight": torch.randn(20, 20), "bias": torch.zeros(3)}
    assert pack(state) == save(state)
    assert unpack(save(state))[0].keys() == state.keys()
    assert load(pack(state)).keys() == state.keys()


@pytest.mark.parametrize("spoil", [
    lambda parts: parts.pop("w:values"),
    lambda parts: parts.pop("w:codes"),
    lambda parts: parts.update({"w:codes": parts["w:codes"][:5]}),
    lambda parts: parts.update({"w:values": parts["w:values"][:9]}),
])  # fmt: skip
def test_a_damaged_file_is_refused(spoil: Callable) -> None:
    weight = torch.linspace(-1, 1, 16)[torch.arange(4000) % 16].view(40, 100)
    parts = load(pack({"w": weight}))
    spoil(parts)
    with pytest.raises(ValueError, match="its packed weights cannot be read"):
        unpack(save(parts, {"packed": '{"w": {"shape": [40, 100]}}'}))
