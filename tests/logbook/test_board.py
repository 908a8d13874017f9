"""What TensorBoard shows, read back with TensorBoard's own reader."""

from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,  # pyright: ignore[reportAttributeAccessIssue]
)

from logbook.board import LAYOUT, describe_run, describe_search
from logbook.run import Run


@pytest.fixture(scope="module")
def events(known: Any, tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    space = known.tiny_macro()
    run = Run.create(tmp_path_factory.mktemp("board"), "run", "", 0.0)
    describe_search(run, space, [space.genotype([2, 0, 1, 1, 2, 0, 1]), space.canonical([0] * 7)])
    results = {"rows": [{"name": "teacher", "test": [0.9, 0.7]}, {"name": "student", "test": [0.5]}]}
    describe_run(run, results, {"seed": 3, "controller": "x.Y", "policy_share": 0.5})
    run.close()
    folder = run.folder / "tensorboard"
    assert [path.is_file() for path in folder.iterdir()] == [True]  # no second run beside it
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_architectures_as_drawing_and_text(events: EventAccumulator) -> None:
    assert events.Tags()["images"] == ["architecture/1", "architecture/2"]
    (image,) = events.Images("architecture/1")
    assert image.width > 100 and image.height > 20
    (text,) = events.Tensors("architecture/1/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "1:conv3 2:sepconv3(1) 3:conv5(2)"


def test_the_layout_is_ours(events: EventAccumulator) -> None:
    (layout,) = events.Tensors("custom_scalars__config__")
    page = Layout()
    page.ParseFromString(layout.tensor_proto.string_val[0])
    assert [category.title for category in page.category] == list(LAYOUT)
    charts = {chart.title: list(chart.multiline.tag) for chart in page.category[0].chart}
    assert charts["reward against random"] == ["search/reward_mean", "search/random_reward_mean"]


def test_hyper_parameters_stand_beside_final_metrics(events: EventAccumulator) -> None:
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["seed"].number_value == 3
    assert start.hparams["controller"].string_value == "x.Y"
    content = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    experiment = HParamsPluginData.FromString(content).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["final/teacher_test", "final/student_test"]
    assert events.Scalars("final/teacher_test")[0].value == pytest.approx(0.8)
