"""Registers the environments with Gymnasium: `import envs`, then `gymnasium.make("luban/Architecture-v0", ...)`."""

import gymnasium

gymnasium.register(
    id="luban/Architecture-v0",
    entry_point="envs.architecture:ArchitectureEnv",
    vector_entry_point="envs.architecture:VectorArchitectureEnv",
)
