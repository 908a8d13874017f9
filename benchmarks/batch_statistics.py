"""Which batch-normalization statistics rank better: those of the batch, or recalibrated ones?

    python benchmarks/batch_statistics.py           # about 12 minutes on two cores

Trains the digits supernet with the default config (three seeds), scores random architectures with both kinds of
statistics, and compares with stand-alone training of the same architectures by Kendall's tau on validation data.
Stand-alone results are kept in outputs/batch_statistics.json, so that a run that was stopped goes on.
"""

from timing import ROOT, record  # isort: skip

import json
import sys
import time

import numpy as np
import torch
from scipy.stats import kendalltau

from child.cost import CostModel
from child.standalone import StandaloneEvaluator
from child.training import TrainingSettings
from conf.launch import compose
from controller.sampler import TrainingSampler
from controller.strategy import RandomSearch

NUM_ARCHITECTURES, NUM_SEEDS = 40, 3
CPU = torch.device("cpu")


def main() -> None:
    overrides = sys.argv[1:]
    config = compose(*overrides)
    rows = {"batch": [], "recalibrated": []}
    seconds = {"batch": [], "recalibrated": []}
    for seed in range(NUM_SEEDS):
        assert config.env.task is not None
        task = config.env.task.build((), seed=seed)
        space = config.space.build((), input_shape=task.input_shape, num_outputs=task.num_outputs)
        cost = CostModel(space, "macs", task.input_shape, CPU)
        genotypes = space.sample(np.random.default_rng(seed), NUM_ARCHITECTURES)
        truth = standalone(space, task, cost, genotypes, seed)
        num_steps = config.search.num_batches
        evaluator = config.evaluator.build(
            (), space=space, task=task, cost=cost, seed=seed, device=CPU, num_steps=num_steps
        )
        sampler = TrainingSampler(config.search.sampler, RandomSearch(space, seed), seed)
        loss = evaluator.improve(sampler, num_steps).loss
        for statistics in rows:
            evaluator.statistics = statistics
            started = time.perf_counter()
            scores = [e.quality for e in evaluator.evaluate(genotypes, 1.0, seed)]
            seconds[statistics].append((time.perf_counter() - started) / len(genotypes))
            tau = float(np.asarray(kendalltau(scores, truth))[0])
            rows[statistics].append(tau)
            print(f"seed {seed}  {statistics:12}  tau {tau:.3f}  mean score {np.mean(scores):.3f}  loss {loss:.3f}")
    taus = {name: f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}" for name, found in rows.items()}
    record("batch_statistics", "Which batch-normalization statistics rank better?", [
        {"statistics": name, "Kendall's tau": tau, "ms per architecture": 1000 * float(np.median(seconds[name]))}
        for name, tau in taus.items()
    ], [
        f"Default config, mean and standard deviation of {NUM_SEEDS} seeds: {NUM_ARCHITECTURES} random architectures",
        "of the digits supernet, scored on validation data and compared with their validation accuracy after 15 epochs",
        "of training on their own. The default is `batch`: where tau differs by less than its spread, time decides.",
    ], f"time is the median of {NUM_SEEDS} seeds")  # fmt: skip


def standalone(space, task, cost, genotypes, seed) -> list[float]:
    """Validation accuracy after 15 epochs of stand-alone training, kept on disk."""
    path = ROOT / "outputs" / "batch_statistics.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    settings = TrainingSettings(epochs=15, batch_size=64, learning_rate=0.1, final_learning_rate=0.0)
    evaluator = StandaloneEvaluator(space, task, cost, settings, 1, seed, CPU)
    for genotype in genotypes:
        key = f"{seed} {space.channels} {space.text(genotype)}"
        if key not in found:
            found[key] = evaluator.evaluate([genotype], 1.0, seed)[0].quality
            path.write_text(json.dumps(found, indent=1))
    return [found[f"{seed} {space.channels} {space.text(genotype)}"] for genotype in genotypes]


if __name__ == "__main__":
    main()
