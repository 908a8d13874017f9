"""The cells of NAS-Bench-201: their text, and which of them compute the same function."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from child.nasbench201 import EDGES, OPERATIONS, NASBench201Space
from child.space import Genotype, read_genotype

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
    assert read_genotype(SPACE.text(genotype), SPACE) == genotype


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


def test_the_drawing_leaves_out_what_is_not_there() -> None:
    graph = SPACE.graph(Genotype("nasbench201", (CONV3, NONE, SKIP, NONE, NONE, POOL)))
    assert [label for _, label, kind in graph.nodes if kind == "operation"] == [
        OPERATIONS[CONV3], OPERATIONS[SKIP], OPERATIONS[POOL]
    ]  # fmt: skip
    assert ("edge01", "node1") in graph.edges and len(graph.edges) == 6
