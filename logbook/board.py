"""What TensorBoard shows beside scalars: a layout, the chosen architectures, hyper-parameters with final metrics."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard.summary import hparams

from child.space import Genotype, SearchSpace
from logbook import plots
from logbook.run import Run

LAYOUT = {
    "Search": {
        "reward against random": ["Multiline", ["search/reward_mean", "search/random_reward_mean"]],
        "best reward of each round": ["Multiline", ["search/reward_best"]],
        "policy": ["Multiline", ["search/entropy", "search/gradient_norm"]],
        "operations": ["Multiline", ["operations/.*"]],
        "speed": ["Multiline", ["perf/architectures_per_s"]],
    },
    "Training": {
        "shared weights": ["Multiline", ["supernet/loss"]],
        "final networks, loss": ["Multiline", ["(?!search/|supernet/).*/loss"]],
        "final networks, validation": ["Multiline", [".*/validation_.*"]],
    },
    "Cost": {
        "mean cost of proposals": ["Multiline", ["cost/mean"]],
        "hypervolume of quality and cost": ["Multiline", ["pareto/.*"]],
    },
    "Ranking": {"shared weights against training alone": ["Multiline", ["ranking/.*"]]},
}


def describe_search(run: Run, space: SearchSpace, chosen: Sequence[Genotype]) -> None:
    """The layout of the custom-scalars page, and the chosen architectures as text and drawing."""
    board, step = run.board, run.next_step()
    board.add_custom_scalars(LAYOUT)
    for number, genotype in enumerate(chosen, 1):
        graph = space.graph(genotype)
        drawing = plots.network_drawing(graph.nodes, graph.edges)
        picture = np.asarray(Image.open(io.BytesIO(plots.png(drawing))).convert("RGB"))
        board.add_image(f"architecture/{number}", picture, step, dataformats="HWC")
        board.add_text(f"architecture/{number}", space.text(genotype), step)


def describe_run(run: Run, results: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """The hyper-parameters with the final metrics, in the run's own event file.

    `SummaryWriter.add_hparams` would open a second run beside it.
    """
    metrics = {f"final/{row['name']}_test": float(np.mean(row["test"])) for row in results["rows"]}
    for summary in hparams(dict(config), metrics):
        run.board._get_file_writer().add_summary(summary)
    run.log(metrics)
