"""The cells of NAS-Bench-201: their text, which of them compute the same function, their networks and costs."""

import csv
import gzip
import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from child.nasbench201 import EDGES, OPERATIONS, Cell, NASBench201Space
from child.operations import NASBENCH201_OPERATIONS
from child.space import Genotype

DATA = Path(os.environ.get("LUBAN_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
SPACE = NASBench201Space()
NONE, SKIP, CONV1, CONV3, POOL = range(5)

cells = st.tuples(*[st.integers(0, 4)] * 6).map(lambda tokens: Genotype("nasbench201", tokens))


def test_the_standard_text_form() -> None:
    # The best cell on CIFAR-10, as the benchmark's own tools print it.
    text = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
    genotype = SPACE.parse(text)
    assert genotype.tokens == (CONV3, CONV3, CONV3, SKIP, CONV3, CONV1)
    assert SPACE.text(genotype) == text


@given(cells)
def test_text_is_read_back(genotype: Genotype) -> None:
    assert SPACE.parse(SPACE.text(genotype)) == genotype


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|", "unknown operation 'conv'"),
        ("|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "the edge from '1' to node 1 does not exist"),
        ("|none~0|+|none~0|none~0|+|none~0|none~1|none~2|", "is given twice"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|", "the edge from 2 to node 3 is missing"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~x|", "the edge from 'x' to node 3 does not exist"),
        ("", "unknown operation ''"),
    ],
)
def test_wrong_text_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        SPACE.parse(text)


@given(st.text(alphabet="|+~0123 nonesk", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        genotype = SPACE.parse(text)
    except ValueError:
        return
    assert SPACE.check(genotype)


def interpret(genotype: Genotype, x: np.ndarray) -> np.ndarray:
    """The cell with fixed operations that no two share, and of which none gives something for nothing."""
    operations = {
        NONE: lambda v: 0 * v,
        SKIP: lambda v: v,
        CONV1: lambda v: np.tanh(2 * v),
        CONV3: lambda v: v**3 + 0.3 * v,
        POOL: lambda v: np.sin(v),
    }
    nodes = [x, 0 * x, 0 * x, 0 * x]
    for (source, node), token in zip(EDGES, genotype.tokens, strict=True):
        nodes[node] = nodes[node] + operations[token](nodes[source])
    return nodes[3]


def test_a_key_is_a_function() -> None:
    """Over all 15,625 cells: equal keys if and only if equal outputs."""
    x = np.array([0.37, -1.21, 0.83])
    output_of: dict[object, tuple[float, ...]] = {}
    for tokens in itertools.product(range(5), repeat=6):
        genotype = Genotype("nasbench201", tokens)
        output = tuple(np.round(interpret(genotype, x), 9).tolist())
        assert output_of.setdefault(SPACE.key(genotype), output) == output
    assert len(set(output_of.values())) == len(output_of)
    assert len(output_of) < 6467  # the benchmark's own count, which keeps sums of sums apart


def test_the_features_of_a_cell_are_its_paths() -> None:
    """Those of one function are the same; by hand, a cell with a path of each length and one that leads nowhere."""
    everything = [Genotype("nasbench201", tokens) for tokens in itertools.product(range(5), repeat=6)]
    features = SPACE.features(np.array([genotype.tokens for genotype in everything]))
    assert features.shape == (15_625, 40)
    first: dict[object, np.ndarray] = {}
    for genotype, own in zip(everything, features, strict=True):
        assert (first.setdefault(SPACE.key(genotype), own) == own).all()
    assert len(np.unique(features, axis=0)) > 0.8 * len(first)  # few functions share their paths with another
    (cell,) = SPACE.features(np.array([[CONV3, NONE, SKIP, SKIP, POOL, CONV1]]))
    digit = {CONV1: 1, CONV3: 2, POOL: 3}
    paths = [[], [CONV3, POOL], [CONV3, CONV1]]  # 0-3, 0-1-3, 0-1-2-3; nothing on 0-2
    places = [sum(digit[operation] * 3**i for i, operation in enumerate(reversed(path))) for path in paths]
    assert np.flatnonzero(cell).tolist() == sorted(places) and cell.sum() == 3
    (twice,) = SPACE.features(np.array([[SKIP, SKIP, NONE, NONE, CONV1, CONV1]]))
    assert twice.tolist() == [0, 2] + 38 * [0]


def test_the_drawing_leaves_out_what_is_not_there() -> None:
    graph = SPACE.graph(Genotype("nasbench201", (CONV3, NONE, SKIP, NONE, NONE, POOL)))
    assert [label for _, label, kind in graph.nodes if kind == "operation"] == [
        OPERATIONS[CONV3], OPERATIONS[SKIP], OPERATIONS[POOL]
    ]  # fmt: skip
    assert ("edge01", "node1") in graph.edges and len(graph.edges) == 6


# The networks.


def small(**changes: Any) -> NASBench201Space:
    return NASBench201Space(
        **{"input_shape": (3, 8, 8), "num_outputs": 3, "channels": 4, "cells_per_stage": 1, **changes}
    )


@pytest.mark.data
def test_costs_are_the_published_ones() -> None:
    """Of all cells: the published counts hold dead edges too, and of MACs the 10 biases of the classifier."""
    if not (DATA / "nasbench201_cifar10.csv.gz").is_file():
        pytest.skip(f"there is no nasbench201_cifar10.csv.gz in {DATA}; LUBAN_DATA may name another folder")
    space = NASBench201Space((3, 32, 32), 10)
    sizes = [space.stage_size(stage) for stage in range(3)]
    num_alive = 0
    with gzip.open(DATA / "nasbench201_cifar10.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            genotype = space.genotype(int(row[f"e{i}{j}"]) for i, j in EDGES)
            present = Counter(OPERATIONS[token] for token in genotype.tokens if token != NONE)
            dead = present - Counter(name for *_, name in space.edges(genotype))
            operations = [NASBENCH201_OPERATIONS[name] for name in dead.elements()]
            macs = sum(5 * operation.macs(*size) for operation in operations for size in sizes)
            parameters = sum(5 * operation.parameters(size[0]) for operation in operations for size in sizes)
            assert round(1e6 * float(row["macs_m"])) == space.macs(genotype) + macs + 10
            assert round(1e6 * float(row["params_m"])) == space.parameters(genotype) + parameters
            num_alive += not dead
    assert num_alive > 5000


def test_the_size_of_the_published_network() -> None:
    """The best cell on CIFAR-10: 4 of 3x3 and 1 of 1x1 on 15 places, and the skeleton that all cells share."""
    space = NASBench201Space((3, 32, 32), 10)
    genotype = space.genotype((CONV3, CONV3, CONV3, SKIP, CONV3, CONV1))
    assert (space.macs(genotype), space.parameters(genotype)) == (153_272_970 - 10, 1_073_466)


def every_cell() -> list[Genotype]:
    return [Genotype("nasbench201", tokens) for tokens in itertools.product(range(5), repeat=6)]


def test_an_edge_matters_if_a_path_from_input_to_output_leads_over_it() -> None:
    paths = [((0, 3),), ((0, 1), (1, 3)), ((0, 2), (2, 3)), ((0, 1), (1, 2), (2, 3))]
    for genotype in every_cell():
        present = {edge for edge, token in zip(EDGES, genotype.tokens, strict=True) if token != NONE}
        expected = {edge for path in paths if set(path) <= present for edge in path}
        edges = SPACE.edges(genotype)
        assert {(source, node) for source, node, _ in edges} == expected
        assert all(OPERATIONS.index(name) == genotype.tokens[EDGES.index((i, j))] for i, j, name in edges)


@torch.no_grad()
def test_a_cell_sums_over_its_paths(unsettle: Callable[[nn.Module], None]) -> None:
    """Against the published rule, node by node over all six edges, where zero stays zero."""
    torch.manual_seed(0)
    cell = Cell(4, None).eval()
    unsettle(cell)
    x = torch.randn(2, 4, 5, 5)
    for genotype in SPACE.sample(np.random.default_rng(0), 60):
        nodes = [x] + [torch.zeros_like(x)] * 3
        for (source, node), token in zip(EDGES, genotype.tokens, strict=True):
            if token != NONE and nodes[source].any():
                nodes[node] = nodes[node] + cell.operations[f"edge{source}{node}_{OPERATIONS[token]}"](nodes[source])
        torch.testing.assert_close(cell(x, SPACE.edges(genotype)), nodes[3])


def test_a_fixed_network_holds_only_what_it_uses() -> None:
    network = small().network(Genotype("nasbench201", (CONV3, NONE, CONV1, SKIP, NONE, NONE)))
    cells = [part for part in network.modules() if isinstance(part, Cell)]
    assert [list(cell.operations) for cell in cells] == [["edge03_skip_connect"]] * 3


@pytest.mark.parametrize("reduction", ["residual", "thin"])
def test_stages_have_their_sizes(reduction: Any) -> None:
    space = small(input_shape=(1, 15, 9), reduction=reduction, cells_per_stage=2)
    network = space.network()
    sizes = []
    for cell in (part for part in network.modules() if isinstance(part, Cell)):
        cell.register_forward_hook(lambda _cell, _inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 1, 15, 9), space.sample(np.random.default_rng(0), 1)[0]).shape == (2, 3)
    assert sizes == [(4, 15, 9)] * 2 + [(8, 8, 5)] * 2 + [(16, 4, 3)] * 2
    assert [space.stage_size(stage) for stage in range(3)] == sizes[::2]


def test_all_architectures_share_the_stem() -> None:
    space = small()
    network, calls = space.network().eval(), []
    network.stem.register_forward_hook(lambda *_: calls.append(1))
    network.forward_many(torch.zeros(2, 3, 8, 8), space.sample(np.random.default_rng(0), 5))
    assert len(calls) == 1


@pytest.mark.parametrize("ask", ["network", "macs", "parameters"])
def test_the_space_of_the_table_has_no_networks(ask: str) -> None:
    with pytest.raises(ValueError, match="has no networks; give input_shape and num_outputs"):
        getattr(SPACE, ask)(Genotype("nasbench201", (0,) * 6))


def test_a_supernet_does_not_run_without_a_genotype() -> None:
    with pytest.raises(ValueError, match="a supernet needs a genotype"):
        small().network()(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_outputs": None}, r"input_shape and num_outputs, or neither, got \(3, 8, 8\) and None"),
        ({"channels": 0}, "num_outputs >= 1, got 0 and 3"),
        ({"num_outputs": 0}, "num_outputs >= 1, got 4 and 0"),
        ({"cells_per_stage": 0}, "cells_per_stage from 1 to 1000, got 0"),
        ({"num_stages": 0}, "num_stages from 1 to 1000, got 0"),
        ({"reduction": "residal"}, "unknown reduction 'residal'; allowed: residual, thin; did you mean 'residual'"),
    ],
)
def test_sizes_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize("shape", [(4,), (3, 20)])
def test_inputs_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="space nasbench201 needs input_shape"):
        NASBench201Space(shape, num_outputs=2)
