"""Environment steps: the native vector environment beside Gymnasium's SyncVectorEnv over the single one.

python benchmarks/environment.py       # half a minute, one thread
"""

from timing import Constant, interleaved, record  # isort: skip

import gymnasium
import numpy as np
import torch

import envs  # noqa: F401 (registers the environments)
from child.macro import MacroSpace
from envs.reward import Linear


def main() -> None:
    torch.set_num_threads(1)
    space = MacroSpace((3, 32, 32), 10, 32, 12)
    rows = []
    for num in (1, 8, 64, 256):
        parts = {"space": space, "evaluator": Constant(), "reward": Linear(target=1.0)}
        native = gymnasium.make_vec(
            "luban/Architecture-v0", num_envs=num, vectorization_mode="vector_entry_point", **parts
        )
        manual = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
        sync = gymnasium.make_vec(
            "luban/Architecture-v0", num_envs=num, vectorization_mode="sync", vector_kwargs=manual, **parts
        )
        tokens = np.random.default_rng(0).integers(0, 2, (len(space.decisions), num))

        def play(environment, tokens=tokens):
            environment.reset(seed=0)
            for actions in tokens:
                environment.step(actions)

        seconds = interleaved({"native": lambda: play(native), "sync": lambda: play(sync)}, 20 if num < 256 else 7)  # noqa: B023
        rate = {name: num * len(tokens) / value / 1e6 for name, value in seconds.items()}
        rows.append({
            "episodes at once": num,
            "native, million tokens/s": rate["native"],
            "SyncVectorEnv, million tokens/s": rate["sync"],
            "times faster": rate["native"] / rate["sync"],
        })  # fmt: skip
    record("environment", "Environment steps, native and SyncVectorEnv", rows, [
        "12-layer macro space, 78 tokens an episode; reset and terminal evaluation (of a constant) included.",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
