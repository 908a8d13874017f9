"""What the tests of child/ share: every search space, small tasks, and a processor that is treated gently."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from child.macro import MacroSpace
from child.micro import MicroSpace
from child.mlp import MLPSpace
from child.mobile import MobileSpace
from child.nasbench201 import NASBench201Space
from child.recurrent import RecurrentSpace
from child.space import Decision, Mask, NetworkSpace, RelaxedSpace, SearchSpace, Tokens
from child.task import Classification, SealedSplit, Split, Task
from child.transforms import Augmentation, Normalize

torch.set_num_threads(1)


class PickySpace(SearchSpace):
    """Seven architectures, small enough to be listed by hand; the first legal choice is not always 0.

    An `a` is small; a `b` is small or medium; a `c` is medium or large. Small ones come in both colors, medium ones
    in red, large ones in blue.
    """

    name = "picky"
    decisions = (
        Decision("kind", "operation", ("a", "b", "c")),
        Decision("size", "width", ("small", "medium", "large"), 0),
        Decision("color", "operation", ("red", "blue"), 1),
    )
    masks_depend_on_prefix = True

    SIZES = ((1, 0, 0), (1, 1, 0), (0, 1, 1))
    COLORS = ((1, 1, 0), (1, 0, 0), (0, 1, 0))

    def mask(self, prefixes: Tokens) -> Mask:
        match prefixes.shape[1]:
            case 0:
                return super().mask(prefixes)
            case 1:
                return np.array(self.SIZES, np.int8)[prefixes[:, 0]]
            case _:
                return np.array(self.COLORS, np.int8)[prefixes[:, 1]]


# A space that is added to child/ belongs here: small, of different input sizes, one entry for each way that it differs.
# test_space.py says so if it is forgotten.
NETWORK_SPACES: dict[str, Callable[[], NetworkSpace]] = {
    "macro": lambda: MacroSpace((3, 8, 8), 3, channels=8, num_layers=4),
    "macro of any depth, odd size": lambda: MacroSpace((3, 15, 9), 5, channels=8, num_layers=4, min_layers=2),
    "macro of any depth, no reduction": lambda: MacroSpace(
        (1, 7, 8), 3, channels=4, num_layers=3, min_layers=1, num_reductions=0
    ),
    "mobile": lambda: MobileSpace(
        (3, 8, 8), 3, channels=4, num_stages=2, max_depth=2, num_reductions=2, widths=(1, 2), expansions=(1, 3)
    ),
    "mobile, odd size, one block a stage": lambda: MobileSpace(
        (1, 15, 9), 5, channels=3, max_depth=1, num_reductions=2, widths=(1.0, 2.0), kernels=(3, 7), expansions=(1, 2)
    ),
    "mlp": lambda: MLPSpace((7,), 3, num_layers=3, widths=(4, 6, 8)),
    "mlp of a fixed depth, one output": lambda: MLPSpace((3,), 1, num_layers=3, min_layers=3, widths=(3, 5, 16)),
    "macro of a sequence": lambda: MacroSpace((5, 23), 4, channels=8, num_layers=4, min_layers=3, num_reductions=3),
    "recurrent": lambda: RecurrentSpace((9,), 7, num_nodes=7, width=8, context=3),
    "recurrent without context or dropout": lambda: RecurrentSpace((6,), 5, 4, 6, 0, 0.0, 0.0, 0.0),
    "micro": lambda: MicroSpace((3, 8, 8), 3, channels=4, num_nodes=2, num_cells=1),
    "micro of more cells, odd size": lambda: MicroSpace((1, 15, 9), 4, channels=2, num_nodes=1, num_cells=2),
    "nasbench201": lambda: NASBench201Space((3, 8, 8), 3, channels=4, cells_per_stage=2),
    "nasbench201, thin, odd size": lambda: NASBench201Space(
        (1, 15, 9), 4, channels=2, cells_per_stage=1, reduction="thin"
    ),
    "nasbench201, shared edges": lambda: NASBench201Space(
        (3, 8, 8), 3, channels=4, cells_per_stage=1, reduction="thin", share_edges=True
    ),
}
IMAGE_SPACES = {name: make for name, make in NETWORK_SPACES.items() if len(make().arguments["input_shape"]) == 3}
RELAXED_SPACES = {name: make for name, make in NETWORK_SPACES.items() if isinstance(make(), RelaxedSpace)}
SPACES: dict[str, Callable[[], SearchSpace]] = {"picky": PickySpace, **NETWORK_SPACES}


@pytest.fixture(scope="session", params=SPACES.values(), ids=list(SPACES))
def space(request: pytest.FixtureRequest) -> SearchSpace:
    """Every search space."""
    return request.param()


@pytest.fixture(scope="session", params=NETWORK_SPACES.values(), ids=list(NETWORK_SPACES))
def network_space(request: pytest.FixtureRequest) -> NetworkSpace:
    """Every search space whose architectures are networks."""
    return request.param()


@pytest.fixture(scope="session")
def inputs_of() -> Callable[..., Tensor]:
    """Draws inputs of a space: tokens for a language model, else images as a task preprocesses them."""

    def draw(space: NetworkSpace, num: int = 6) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        shape = (num, *space.arguments["input_shape"])
        if isinstance(space, RecurrentSpace):
            return torch.randint(space.num_outputs, shape, generator=generator)
        return torch.rand(shape, generator=generator) * 2 - 0.5

    return draw


@pytest.fixture(scope="session")
def picky() -> SearchSpace:
    """The space that is listed by hand."""
    return PickySpace()


@pytest.fixture(scope="session", params=IMAGE_SPACES.values(), ids=list(IMAGE_SPACES))
def image_space(request: pytest.FixtureRequest) -> NetworkSpace:
    """Every one of them whose networks look at images."""
    return request.param()


@pytest.fixture(scope="session", params=RELAXED_SPACES.values(), ids=list(RELAXED_SPACES))
def relaxed_space(request: pytest.FixtureRequest) -> NetworkSpace:
    """Every one of them whose supernet runs blends."""
    return request.param()


@pytest.fixture(scope="session")
def all_network_spaces() -> list[NetworkSpace]:
    """All of them at once."""
    return [make() for make in NETWORK_SPACES.values()]


@pytest.fixture
def macro() -> MacroSpace:
    """The macro space of the small task, of a fixed depth."""
    return MacroSpace((3, 8, 8), 3, channels=8, num_layers=3, num_reductions=1)


@pytest.fixture
def device() -> torch.device:
    """The processor."""
    return torch.device("cpu")


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """Builds easy tasks: class k of three lights up channel k, under noise."""

    def split(num: int, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.arange(num) % 3
        inputs = torch.randint(0, 100, (num, 3, 8, 8), generator=generator)
        inputs[torch.arange(num), targets] += 100
        return Split(inputs.to(torch.uint8), targets)

    def make(num_train: int = 48, num_validation: int = 24, augmentation: Augmentation | None = None) -> Task:
        train = split(num_train, 1)
        return Task(
            name="lights",
            objective=Classification(("red", "green", "blue")),
            train=train,
            validation=split(num_validation, 2),
            test=SealedSplit(split(12, 3)),
            preprocessing=Normalize.fit(train.inputs, 255.0),
            augmentation=augmentation or Augmentation(),
        )

    return make


@pytest.fixture
def task(make_task: Callable[..., Task]) -> Task:
    """An easy task without augmentation."""
    return make_task()


@pytest.fixture
def fingerprint() -> Callable[[nn.Module], str]:
    """A digest of every weight and every buffer of a network, bit by bit."""

    def digest(network: nn.Module) -> str:
        hasher = hashlib.sha256()
        for name, value in network.state_dict().items():
            hasher.update(name.encode())
            hasher.update(value.contiguous().numpy().tobytes())
        return hasher.hexdigest()

    return digest


@pytest.fixture
def unsettle() -> Callable[[nn.Module], None]:
    """Gives normalizations weights and running statistics that a fresh network does not have, so that they matter."""

    def change(network: nn.Module) -> None:
        generator = torch.Generator().manual_seed(5)

        def draw(value: Tensor | None) -> None:
            assert value is not None
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)

        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    for value in (module.weight, module.bias, module.running_mean, module.running_var):
                        draw(value)

    return change
