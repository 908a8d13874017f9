"""Drawing architectures with the LSTM policy: batched, beside a plain version that draws one at a time.

    python benchmarks/controller.py        # about a minute, one thread

12-layer macro space, LSTM of 64 units, 78 tokens. The plain version is written as the public ENAS code is: an
`LSTMCell` step per token group, a `Categorical` per decision, log-probabilities and entropies added up on the way.
"""

from timing import Constant, interleaved, record  # isort: skip

from dataclasses import replace

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import envs  # noqa: F401 (registers the environments)
from child.macro import MacroSpace
from controller.policy import Episodes, PolicySettings
from controller.reinforce import Reinforce
from controller.search import play
from envs.reward import Linear


class PlainController(nn.Module):
    """ENAS's macro controller for one architecture at a time."""

    def __init__(self, num_layers: int = 12, hidden: int = 64):
        super().__init__()
        self.num_layers = num_layers
        self.cell = nn.LSTMCell(hidden, hidden)
        self.start = nn.Parameter(torch.empty(1, hidden).uniform_(-0.1, 0.1))
        self.embedding, self.head = nn.Embedding(6, hidden), nn.Linear(hidden, 6, bias=False)
        self.key, self.query = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self):
        inputs, state, anchors, keys = self.start, None, [], []
        log_probability, entropy = torch.zeros(()), torch.zeros(())
        for layer in range(self.num_layers):
            state = self.cell(inputs, state)
            distribution = Categorical(logits=2.5 * torch.tanh(self.head(state[0]) / 5))
            operation = distribution.sample()
            log_probability = log_probability + distribution.log_prob(operation).sum()
            entropy = entropy + distribution.entropy().sum()
            state = self.cell(self.embedding(operation), state)
            inputs = self.start
            if layer:
                scores = self.score(torch.tanh(torch.cat(keys) + self.query(state[0])))
                distribution = Categorical(logits=2.5 * torch.tanh(torch.cat([-scores, scores], 1) / 5))
                skips = distribution.sample()
                log_probability = log_probability + distribution.log_prob(skips).sum()
                entropy = entropy + distribution.entropy().sum()
                inputs = (skips[:, None] * torch.cat(anchors)).sum(0, keepdim=True) / (1 + skips.sum())
            anchors.append(state[0])
            keys.append(self.key(state[0]))
        return log_probability, entropy


def main() -> None:
    torch.set_num_threads(1)
    space = MacroSpace((3, 32, 32), 10, 32, 12)
    plain = PlainController()

    def draw_plain():
        with torch.no_grad():
            plain()

    def learn_plain():
        log_probability, entropy = plain()
        plain.zero_grad()
        (-log_probability - 1e-4 * entropy).backward()

    rows = []
    for num in (1, 8, 64, 256):
        environment = gymnasium.make_vec(
            "luban/Architecture-v0", num_envs=num, vectorization_mode="vector_entry_point",
            space=space, evaluator=Constant(), reward=Linear(target=1.0),
        )  # fmt: skip
        strategy = Reinforce(space, 0, 100, PolicySettings())
        tokens = np.random.default_rng(0).integers(0, 2, (len(space.decisions), num))
        rewards = np.random.default_rng(0).random(num)

        def step_only(environment=environment, tokens=tokens):
            environment.reset(seed=0)
            for actions in tokens:
                environment.step(actions)

        def draw(environment=environment, strategy=strategy, num=num):
            episodes = Episodes(strategy.policy, num, 0, keep=False)
            observation, _ = environment.reset(seed=0)
            for step in range(len(space.decisions)):
                observation, *_ = environment.step(episodes.next(step, observation["action_mask"]))

        def learn(strategy=strategy, rewards=rewards, environment=environment):
            strategy.learn(replace(play(environment, strategy, 1, 0), rewards=rewards))

        alternatives = {"plain": draw_plain, "plain+": learn_plain, "env": step_only, "draw": draw, "learn": learn}
        seconds = interleaved(alternatives, 30 if num < 256 else 12)
        ms = {name: 1000 * value / (1 if name.startswith("plain") else num) for name, value in seconds.items()}
        rows.append({
            "architectures at once": num,
            "drawing, ms each": ms["draw"],
            "of which environment": ms["env"],
            "with backward and update, ms each": ms["learn"],
            "plain drawing": ms["plain"],
            "plain with backward": ms["plain+"],
            "times faster, drawing": ms["plain"] / ms["draw"],
            "with backward": ms["plain+"] / ms["learn"],
        })  # fmt: skip
    record("controller", "Drawing architectures, batched and one at a time", rows, [
        "12-layer macro space, 78 tokens, LSTM of 64 units. Drawing includes every environment step and keeps",
        "nothing for a gradient; with the backward pass goes the whole update, with Adam, entropy and clipping, which",
        "the plain version leaves out.",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
