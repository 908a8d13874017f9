"""The micro space's own ways: its words, its loose ends, its stack of cells, drop-path and the auxiliary head."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from child.cost import count_macs
from child.distill import SoftTargets
from child.micro import AuxiliaryHead, Cell, MicroNetwork, MicroSpace, loose_ends
from child.network import Blueprint, TrainedNetwork, load_network, save_network
from child.operations import DropPath
from child.task import Classification, Task, WithAuxiliary
from child.training import Training, TrainingSettings
from child.transforms import Normalize


def small(**changes: Any) -> MicroSpace:
    return MicroSpace(
        **{"input_shape": (3, 8, 8), "num_outputs": 3, "channels": 4, "num_nodes": 2, "num_cells": 1, **changes}
    )


# input 1, input 2, operation 1, operation 2 of each node
TOKENS = [0, 1, 0, 4, 2, 0, 3, 1, 1, 1, 2, 2, 1, 1, 4, 0]
TEXT = (
    "normal 1:sepconv3(older)+identity(newer) 2:maxpool3(1)+sepconv5(older) "
    "reduction 1:avgpool3(newer)+avgpool3(newer) 2:identity(newer)+sepconv3(newer)"
)


def test_the_text_form_is_the_documented_one() -> None:
    space = small()
    assert space.text(space.genotype(TOKENS)) == TEXT
    assert space.parse(TEXT).tokens == tuple(TOKENS)
    assert space.cells(space.genotype(TOKENS)) == (
        (((0, "sepconv3"), (1, "identity")), ((2, "maxpool3"), (0, "sepconv5"))),
        (((1, "avgpool3"), (1, "avgpool3")), ((1, "identity"), (1, "sepconv3"))),
    )


def test_decisions_say_what_they_read() -> None:
    decisions = {decision.name: decision for decision in small().decisions}
    assert len(decisions) == 2 * 2 * 4
    normal, reduction = decisions["normal.node2.input1"], decisions["reduction.node2.input2"]
    assert (normal.kind, normal.labels, normal.node, normal.sources) == ("input", ("older", "newer", "1"), 3, (0, 1, 2))
    assert (reduction.labels, reduction.node, reduction.sources) == (("older", "newer", "1"), 7, (4, 5, 6))
    assert decisions["reduction.node1.operation2"].labels == (
        "sepconv3",
        "sepconv5",
        "avgpool3",
        "maxpool3",
        "identity",
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sepconv5", "sepcnov5", ["unknown 'sepcnov5'", "'2:maxpool3(1)+sepcnov5(older)'", "did you mean 'sepconv5'"]),
        ("maxpool3(1)", "maxpool3(2)", ["unknown '2'", "allowed: older, newer, 1"]),
        ("1:sepconv3", "2:sepconv3", ["expected '1:operation(input)+operation(input)', got '2:sepconv3"]),
        ("+identity(newer)", "", ["expected '1:operation(input)+operation(input)', got '1:sepconv3(older)'"]),
        ("reduction", "reduce", ["expected 'normal' and 2 nodes, 'reduction' and 2 nodes"]),
        (" 2:maxpool3(1)+sepconv5(older)", "", ["expected 'normal' and 2 nodes"]),
    ],
)
def test_parse_errors_name_the_word(old: str, new: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        small().parse(TEXT.replace(old, new, 1))
    for word in words:
        assert word in str(caught.value)


def test_the_branches_of_a_node_have_no_order() -> None:
    space = small()
    swapped = TEXT.replace("sepconv3(older)+identity(newer)", "identity(newer)+sepconv3(older)")
    crossed = TEXT.replace("sepconv3(older)+identity(newer)", "identity(older)+sepconv3(newer)")
    keys = [space.key(space.parse(text)) for text in (TEXT, swapped, crossed)]
    assert keys[0] == keys[1] != keys[2]


def test_what_nothing_reads_is_a_loose_end() -> None:
    normal, reduction = small().cells(small().parse(TEXT))
    assert (loose_ends(normal), loose_ends(reduction)) == ((3,), (0, 2, 3))


def test_the_graph_has_the_branches_and_the_loose_ends() -> None:
    space = small()
    graph = space.graph(space.parse(TEXT))
    assert Counter(kind for _, _, kind in graph.nodes) == {"input": 4, "operation": 8, "sum": 4, "output": 2}
    assert len(graph.edges) == 2 * 8 + 1 + 3
    assert {source for source, target in graph.edges if target == "reduction.output"} == {
        "reduction.older", "reduction.1", "reduction.2"
    }  # fmt: skip
    assert {("normal.1", "normal.2.operation1"), ("normal.2.operation1", "normal.2")} <= set(graph.edges)


def test_cells_stand_in_three_stages() -> None:
    places = [(place.cell, place.stage, place.halved) for place in small(num_cells=2).places]
    assert places == [
        (0, 0, (False, False)), (0, 0, (False, False)),
        (1, 1, (True, True)), (0, 1, (True, False)), (0, 1, (False, False)),
        (1, 2, (True, True)), (0, 2, (True, False)), (0, 2, (False, False)),
    ]  # fmt: skip


def test_cells_have_the_sizes_of_their_stages() -> None:
    space = small(input_shape=(1, 15, 9))
    network, sizes = space.network(space.parse(TEXT)), []
    for cell in network.cells:
        cell.register_forward_hook(lambda _cell, _inputs, output: sizes.append(tuple(output.shape[1:])))
    assert network(torch.zeros(2, 1, 15, 9)).shape == (2, 3)
    assert sizes == [(4, 15, 9), (8, 7, 4), (8, 7, 4), (16, 3, 2), (16, 3, 2)]


def test_a_cell_reads_the_outputs_of_the_two_before_it() -> None:
    space = small()
    network, given, made = space.network(space.parse(TEXT)), [], []
    network.stem.register_forward_hook(lambda _module, _inputs, output: made.append(output))
    for cell in network.cells:
        cell.register_forward_pre_hook(lambda _cell, inputs: given.append(inputs[:2]))
        cell.register_forward_hook(lambda _cell, _inputs, output: made.append(output))
    network(torch.randn(2, 3, 8, 8))
    for number, (older, newer) in enumerate(given):
        assert older is made[max(0, number - 1)] and newer is made[number]


@torch.no_grad()
def test_a_cell_by_hand() -> None:
    space = small()
    torch.manual_seed(0)
    network = space.network().eval()
    nodes, _ = space.cells(space.parse(TEXT.replace("sepconv5(older)", "sepconv5(newer)").replace("newer", "older")))
    assert nodes == (((0, "sepconv3"), (0, "identity")), ((2, "maxpool3"), (0, "sepconv5")))
    cell, x, y = network.cells[0], torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert isinstance(cell, Cell)
    first = cell.branches["2a_0_sepconv3"](x) + x
    second = nn.functional.max_pool2d(first, 3, 1, 1) + cell.branches["3b_0_sepconv5"](x)
    # The newer input and the second node are the loose ends: both end to end through one projection.
    weight = torch.cat([cell.projections["1"].weight, cell.projections["3"].weight], dim=1)  # type: ignore[list-item]
    expected = cell.norm(nn.functional.conv2d(torch.cat([y, second], dim=1).relu(), weight))
    torch.testing.assert_close(cell(x, y, nodes), expected)


def test_a_fixed_network_holds_only_what_it_uses() -> None:
    space = small()
    network = space.network(space.parse(TEXT))
    normal, reduction = network.cells[0], network.cells[1]
    assert isinstance(normal, Cell) and isinstance(reduction, Cell)
    assert list(normal.branches) == ["2a_0_sepconv3", "2b_1_identity", "3a_2_maxpool3", "3b_0_sepconv5"]
    assert (list(normal.projections), list(reduction.projections)) == (["3"], ["0", "2", "3"])


def test_equal_normal_cells_share_all_before_the_first_reduction() -> None:
    space = small()
    network, calls = space.network().eval(), Counter()
    for number, cell in enumerate(network.cells):
        cell.register_forward_hook(lambda _cell, _inputs, _output, key=number: calls.update([key]))
    texts = [TEXT, TEXT.replace("2:identity(newer)", "2:identity(older)"), TEXT.replace("1:sepconv3", "1:sepconv5")]
    genotypes = [space.parse(text) for text in texts]
    network.forward_many(torch.zeros(2, 3, 8, 8), [*genotypes, genotypes[0]])
    assert calls == {0: 2, 1: 3, 2: 3, 3: 3, 4: 3}


# Training a fixed network.


def test_the_auxiliary_head_answers_in_training_alone() -> None:
    space, plain = small(auxiliary=0.4), small()
    genotype = space.parse(TEXT)
    network = space.network(genotype)
    outputs = network(torch.randn(4, 3, 8, 8))
    assert isinstance(outputs, WithAuxiliary)
    assert (outputs.outputs.shape, outputs.auxiliary.shape, outputs.weight) == ((4, 3), (4, 3), 0.4)
    assert not torch.allclose(outputs.outputs, outputs.auxiliary)
    assert isinstance(network.eval()(torch.randn(4, 3, 8, 8)), torch.Tensor)
    assert isinstance(space.network()(torch.randn(4, 3, 8, 8), genotype), torch.Tensor)
    # Multiply-accumulates are those of evaluation, parameters those that are trained.
    assert space.macs(genotype) == plain.macs(genotype) == count_macs(network, (3, 8, 8))
    assert space.parameters(genotype) == sum(value.numel() for value in network.parameters())
    head = sum(value.numel() for value in AuxiliaryHead(16, 3).parameters())
    assert space.parameters(genotype) == plain.parameters(genotype) + head


def test_a_head_takes_no_weights_out_of_the_supernet() -> None:
    space, plain = small(auxiliary=0.4), small()
    shared = space.network().state_dict()
    taken = space.weights(space.genotype(TOKENS), shared)
    assert taken.keys() == plain.network(plain.genotype(TOKENS)).state_dict().keys()


def test_the_auxiliary_head_stands_after_the_second_reduction() -> None:
    network = small(auxiliary=0.4, num_cells=2).network(small(num_cells=2).parse(TEXT))
    outputs = network(torch.randn(4, 3, 8, 8))
    assert isinstance(outputs, WithAuxiliary)
    outputs.auxiliary.square().sum().backward()
    learned = [any(value.grad is not None for value in cell.parameters()) for cell in network.cells]
    assert [place.cell for place in network.space.places] == [0, 0, 1, 0, 0, 1, 0, 0]
    assert learned == [True] * 6 + [False] * 2


def test_both_classifiers_learn(task: Task, device: torch.device) -> None:
    torch.manual_seed(0)
    network = small(auxiliary=0.4, drop_path=0.2).network(small().parse(TEXT))
    assert isinstance(network.auxiliary, AuxiliaryHead)
    before = network.auxiliary.classifier.weight.clone()
    training = Training(network, task, TrainingSettings(batch_size=16), 40, 0, "aux", device)
    losses = [training.step() for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])  # type: ignore[arg-type]
    assert not torch.allclose(before, network.auxiliary.classifier.weight)


def test_a_network_on_disk_has_no_head(tmp_path: Path) -> None:
    space = small(auxiliary=0.4, drop_path=0.2)
    genotype, images = space.parse(TEXT), np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)
    module = space.network(genotype).eval()
    preprocessing = Normalize(255.0, (0.5,) * 3, (0.5,) * 3)
    with torch.no_grad():
        expected = module(preprocessing(torch.from_numpy(images))).softmax(dim=1)  # type: ignore[union-attr]
    network = TrainedNetwork(
        module, Blueprint.of(space, genotype), (3, 8, 8), Classification(("a", "b", "c")), preprocessing
    )
    save_network(network, tmp_path)
    loaded = load_network(tmp_path)
    torch.testing.assert_close(loaded.predict(images), expected)
    assert loaded.blueprint == network.blueprint
    assert sum(value.numel() for value in loaded.module.parameters()) == small().parameters(genotype)


def test_the_loss_adds_that_of_the_auxiliary_head(task: Task) -> None:
    outputs, auxiliary, targets = torch.randn(6, 3), torch.randn(6, 3), torch.arange(6) % 3
    found = task.loss(WithAuxiliary(outputs, auxiliary, 0.4), targets, 0.1)
    torch.testing.assert_close(found, task.loss(outputs, targets, 0.1) + 0.4 * task.loss(auxiliary, targets, 0.1))


def test_a_student_may_have_an_auxiliary_head(task: Task) -> None:
    teacher, inputs, targets = (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
        torch.randn(6, 3, 8, 8),
        torch.arange(6) % 3,
    )
    outputs, auxiliary = torch.randn(6, 3), torch.randn(6, 3)

    class Student(nn.Module):
        def __init__(self, answer: Any):
            super().__init__()
            self.answer = answer

        def forward(self, x: torch.Tensor) -> Any:
            return self.answer

    soft = SoftTargets(weight=0.7)
    with_head, without = (
        soft.loss(Student(answer), teacher, task)(inputs, targets)
        for answer in (WithAuxiliary(outputs, auxiliary, 0.4), outputs)
    )
    torch.testing.assert_close(with_head, without + 0.3 * 0.4 * task.loss(auxiliary, targets))


def test_paths_are_dropped_in_fixed_networks_but_never_identities() -> None:
    space = small(drop_path=0.5, dropout=0.0)
    network, supernet = space.network(space.parse(TEXT)), space.network()

    def probabilities(network: MicroNetwork) -> set[float]:
        return {part.probability for part in network.modules() if isinstance(part, DropPath)}

    assert (probabilities(network), probabilities(supernet)) == ({0.5}, {0.0})
    for cell in network.cells:
        assert isinstance(cell, Cell)
        calls: list[int] = []
        cell.drop_path.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        network(torch.randn(2, 3, 8, 8))
        assert len(calls) == 3  # four branches, one of them an identity


def test_arguments_construct_an_equal_space() -> None:
    space = small(dropout=0.3, drop_path=0.2, auxiliary=0.4)
    again = MicroSpace(**space.arguments)
    assert (again.decisions, again.places, again.arguments) == (space.decisions, space.places, space.arguments)
    network = again.network(space.parse(TEXT))
    assert [part.p for part in network.modules() if isinstance(part, nn.Dropout)] == [0.3]


def test_a_supernet_does_not_run_without_a_genotype() -> None:
    with pytest.raises(ValueError, match="a supernet needs a genotype"):
        small().network()(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "num_outputs >= 1, got 0 and 3"),
        ({"num_outputs": 0}, "num_outputs >= 1, got 4 and 0"),
        ({"num_nodes": 0}, "num_nodes from 1 to 1000, got 0"),
        ({"num_cells": 0}, "num_cells from 1 to 1000, got 0"),
        ({"num_cells": 10**15}, "num_cells from 1 to 1000, got 1000000000000000"),
        ({"input_shape": (3, 3, 8)}, "images of 3x8 cannot be halved 2 times"),
        ({"dropout": 1.0}, "dropout, drop_path < 1, got 1.0 and 0.0"),
        ({"drop_path": -0.1}, "dropout, drop_path < 1, got 0.1 and -0.1"),
        ({"auxiliary": -1.0}, "auxiliary >= 0, got -1.0"),
    ],
)
def test_sizes_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize("shape", [(4,), (3, 20)])
def test_inputs_that_are_no_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="space micro needs input_shape"):
        MicroSpace(shape, num_outputs=2)
