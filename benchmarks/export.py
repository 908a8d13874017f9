"""Random architectures of every space, exported and compared with the network they were made from.

python benchmarks/export.py             # 50 of each space; what was stopped goes on
python benchmarks/export.py 2           # 2 of each

Each is exported to ONNX and to an archive of torch.export, and answers as the network does for one sample and for seven
(1e-5 + 1e-4 |y|, or what rounding explains), or is counted as a failure. Spaces are as large as in their configs, but
for texts, whose windows are short. Normalizations have random weights and the statistics of a batch, so that all layers
show in the outputs.
"""

from timing import RESULTS  # isort: skip

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from whole_runs import finish_lines, read_lines, write

from child.export import FILES, Format, check, export, sample_inputs
from child.macro import MacroSpace
from child.micro import MicroSpace
from child.mlp import MLPSpace
from child.mobile import MobileSpace
from child.nasbench201 import NASBench201Space
from child.network import Blueprint, TrainedNetwork, save_network
from child.onnx_module import OnnxModule
from child.recurrent import RecurrentSpace
from child.space import NetworkSpace
from child.task import Classification, Language
from child.transforms import Normalize, Tokens

LINES = RESULTS / "export.jsonl"
SPACES: dict[str, Callable[[], NetworkSpace]] = {
    "macro": lambda: MacroSpace((1, 28, 28), 10),
    "macro, sequences": lambda: MacroSpace((32, 63), 10),
    "micro": lambda: MicroSpace((3, 32, 32), 10),
    "mobile": lambda: MobileSpace((3, 32, 32), 10),
    "nasbench201": lambda: NASBench201Space((3, 32, 32), 10),
    "mlp": lambda: MLPSpace((30,), 2),
    "recurrent": lambda: RecurrentSpace((40,), 65),
}


def run(job: tuple[str, int]) -> dict[str, Any]:
    """Export the architecture of this number."""
    name, number = job
    torch.set_num_threads(1)
    torch.manual_seed(number)
    space = SPACES[name]()
    genotype = space.sample(np.random.default_rng(number), 1)[0]
    shape, num_outputs = space.arguments["input_shape"], space.arguments["num_outputs"]
    names = tuple(map(str, range(num_outputs)))
    text = isinstance(space, RecurrentSpace)
    objective = Language(names, "characters") if text else Classification(names)
    preprocessing = Tokens() if text else Normalize(255.0, (0.5,) * shape[0], (0.25,) * shape[0])
    blueprint = Blueprint.of(space, genotype)
    network = TrainedNetwork(space.network(genotype), blueprint, shape, objective, preprocessing)
    normalize(network)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_network(network, folder)
        try:
            sizes = export(network, folder)
        except ValueError as error:
            return {"space": name, "number": number, "failure": str(error)}
        answers: dict[Format, Any] = {
            "onnx": OnnxModule((folder / FILES["onnx"]).read_bytes()),
            "torch": torch.export.load(folder / FILES["torch"]).module(),
        }
        weights = (folder / "weights.safetensors").stat().st_size
    deviations = {kind: check(answer, network, FILES[kind]) for kind, answer in answers.items()}
    outputs = network.module(sample_inputs(network, 7)).abs().max().item()
    return {
        "space": name, "number": number, "failure": None, "largest_output": outputs, "deviation": deviations,
        "bytes": {"weights": weights, **sizes},
    }  # fmt: skip


def normalize(network: TrainedNetwork) -> None:
    """Normalizations as after training: with fresh ones some networks answer 0 to everything, which proves nothing."""
    for module in network.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = None  # the mean of all batches: of one
    with torch.no_grad():
        network.module.train()(sample_inputs(network, 64))
    network.module.eval()


def row(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    good = [line for line in lines if line["failure"] is None]

    def kilobytes(key: str) -> str:
        return f"{np.median([line['bytes'][key] for line in good]) / 1000:.1f}"

    return {
        "space": name,
        "equal": f"{len(good)} of {len(lines)}",
        "largest output": f"{np.median([line['largest_output'] for line in good]):.2f}",
        "largest deviation, ONNX": f"{max(line['deviation']['onnx'] for line in good):.1e}",
        "torch.export": f"{max(line['deviation']['torch'] for line in good):.1e}",
        "weights, kB": kilobytes("weights"),
        "model.onnx, kB": kilobytes("model.onnx"),
        "model.pt2, kB": kilobytes("model.pt2"),
    }


def main() -> None:
    wanted = int(sys.argv[1]) if sys.argv[1:] else 50
    lines = read_lines(LINES)
    done = {(line["space"], line["number"]) for line in lines}
    jobs = [(name, number) for number in range(wanted) for name in SPACES if (name, number) not in done]
    for line in finish_lines(LINES, run, jobs):
        print(json.dumps(line), flush=True)
        lines.append(line)
    kept = {name: [line for line in lines if line["space"] == name] for name in SPACES}
    rows = [row(name, group) for name, group in kept.items() if any(line["failure"] is None for line in group)]
    text = ["# Random architectures exported", "", "`python benchmarks/export.py`: medians but for the deviations."]
    text += ["", "| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    text += ["| " + " | ".join(each.values()) + " |" for each in rows]
    text += ["", *(f"{line['space']} {line['number']}: {line['failure']}" for line in lines if line["failure"]), ""]
    write("export", rows, "\n".join(text))


if __name__ == "__main__":
    main()
