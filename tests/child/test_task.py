"""Data, what is done to it, and who may see it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from child.task import Classification, Language, Regression, SealedSplit, Split, Task, check_task
from child.transforms import BLANK, Augmentation, Normalize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Splits.


@pytest.fixture
def split() -> Split:
    """Ten samples; the value of each is its place."""
    return Split(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 2, 3, 3), torch.arange(10) * 10)


@pytest.mark.parametrize("indices", [[3, 0, 3], range(2, 5), torch.tensor([9, 1]), []])
def test_take_gives_the_samples_at_these_places(split: Split, indices: Tensor | list[int]) -> None:
    taken = split.take(indices)
    places = [int(place) for place in indices]
    assert taken.inputs[:, 0, 0, 0].tolist() == places
    assert taken.targets.tolist() == [10 * place for place in places]
    assert len(taken) == len(places)
    assert taken.inputs.dtype == torch.uint8


def test_join_puts_end_to_end(split: Split) -> None:
    joined = split.take([1, 2]).join(split.take([7]))
    assert joined.inputs[:, 1, 2, 2].tolist() == [1, 2, 7]
    assert joined.targets.tolist() == [10, 20, 70]


def test_the_test_set_is_sealed_until_it_is_opened(split: Split) -> None:
    sealed = SealedSplit(split)
    assert len(sealed) == 10
    for _ in range(2):
        with pytest.raises(PermissionError, match="sealed until every choice is made; 'teacher' must wait"):
            sealed.read("teacher")
    sealed.unseal()
    assert sealed.read("teacher") is split  # the attempts before did not count


def test_each_network_reads_the_test_set_once(split: Split) -> None:
    sealed = SealedSplit(split)
    sealed.unseal()
    sealed.read("teacher")
    sealed.read("student")
    for name in ("teacher", "student"):
        with pytest.raises(PermissionError, match=f"'{name}' has already been measured"):
            sealed.read(name)


def test_a_copy_of_a_task_shares_the_seal(task: Task, split: Split, device: torch.device) -> None:
    copies = [task.with_splits(split, split), task.to(device)]
    task.test.unseal()
    copies[0].test.read("teacher")
    with pytest.raises(PermissionError, match="already"):
        copies[1].test.read("teacher")


# Normalize.


def test_preprocessing_equals_its_formula() -> None:
    stored = torch.randint(0, 256, (5, 2, 4, 3), generator=generator(), dtype=torch.uint8)
    given = stored.clone()
    values = Normalize(255.0, (0.3, 0.6), (0.2, 0.5))(stored)
    for channel, (mean, std) in enumerate(((0.3, 0.2), (0.6, 0.5))):
        torch.testing.assert_close(values[:, channel], (stored[:, channel] / 255.0 - mean) / std)
    assert values.dtype == torch.float32
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert stored.equal(given)


def test_preprocessing_does_not_write_into_floats_it_was_given() -> None:
    stored = torch.rand(2, 1, 3, 3).contiguous(memory_format=torch.channels_last)
    before = stored.clone()
    Normalize(1.0, (0.5,), (0.5,))(stored)
    assert stored.equal(before)


@pytest.mark.parametrize("shape", [(4, 1), (1, 1, 4)])
def test_values_far_from_0_keep_their_digits(shape: tuple[int, ...]) -> None:
    stored = torch.tensor([12e6, 12e6 + 1, 12e6 + 2, 12e6 + 3]).view(shape)  # each is a 32-bit float
    values = Normalize.fit(stored, 2.0)(stored).flatten()
    torch.testing.assert_close(values.diff(), torch.full((3,), 1 / torch.arange(4.0).std().item()))


def test_fitted_preprocessing_gives_mean_0_and_deviation_1() -> None:
    inputs = torch.randint(0, 17, (50, 2, 4, 4), generator=generator(), dtype=torch.uint8)
    inputs[:, 1] //= 2
    fitted = Normalize.fit(inputs, 16.0)
    values = fitted(inputs)
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(dim=(0, 2, 3)), torch.ones(2), atol=1e-4, rtol=0)
    assert fitted.mean[0] == pytest.approx(inputs[:, 0].double().mean().item() / 16)


@pytest.mark.parametrize("unit", [1e-7, 1e-15, 1e-30])
def test_small_units_are_standardized_too(unit: float) -> None:
    fitted = Normalize.fit(unit * torch.randn(40, 2, 30, generator=generator()), 1.0)
    values = fitted(unit * torch.randn(40, 2, 30, generator=generator()))
    assert values.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("wrong", [{"shift": -1}, {"rotate": -2.0}, {"cutout": -1}, {"zoom": 1.0}, {"zoom": -0.1}])
def test_augmentation_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="augmentation needs shift, rotate and cutout >= 0 and zoom in"):
        Augmentation(**wrong)


def test_other_data_have_another_mark(small_task: Task) -> None:
    def with_training(**changes: Tensor) -> Task:
        return small_task.with_splits(replace(small_task.train, **changes), small_task.validation)

    assert with_training().mark() == small_task.mark() == replace(small_task, name="other").mark()
    inputs, targets = small_task.train.inputs.clone(), small_task.train.targets.clone()
    inputs[3] += 1
    targets[[0, 1]] = targets[[1, 0]] + 1
    judged = replace(small_task.validation, targets=small_task.validation.targets + 1)
    marks = {with_training(inputs=inputs).mark(), with_training(targets=targets).mark(), small_task.mark(),
             small_task.with_splits(small_task.train.take(torch.arange(9)), small_task.validation).mark(),
             small_task.with_splits(small_task.train, judged).mark()}  # fmt: skip
    assert len(marks) == 5


def test_what_is_said_of_numbers_by_hand() -> None:
    numbers, targets = Regression("y", 0.0, 1.0), torch.tensor([1.0, 2.0, 3.0, 6.0])  # around 3: 4 + 1 + 0 + 9
    metric = numbers.metric(numbers.scores((targets + 1)[:, None], targets), targets)
    assert metric == pytest.approx(1 - 4 / 14) and numbers.quality(metric) == pytest.approx(14 / 18)
    assert numbers.standard_error(0.75, targets) == pytest.approx(0.75 * 0.25 * math.sqrt(2 / 4))
    splits = [Split(torch.zeros(num, 1), torch.zeros(num)) for num in (4, 2, 1)]
    task = Task("t", numbers, splits[0], splits[1], SealedSplit(splits[2]), lambda inputs: inputs)
    assert task.standard_error(0.5) == pytest.approx(0.25 * math.sqrt(2 / 2))  # of the validation samples


@pytest.mark.parametrize(("unit", "metric"), [("characters", 2.0), ("words", 4.0)])
def test_what_is_said_of_a_text_by_hand(unit: Any, metric: float) -> None:
    text, symbols = Language(tuple("abcd"), unit), torch.zeros(2, 3, dtype=torch.int64)
    guess = torch.zeros(2, 3, 4)
    assert text.metric(text.scores(guess, symbols), symbols) == pytest.approx(metric)  # a uniform guess among four
    assert text.quality(metric) == pytest.approx(0.5)
    assert text.standard_error(0.5, symbols) == pytest.approx(0.25 / math.sqrt(6))
    guess[..., 0] = math.log(5)  # 5/8, and 1/8 each
    right, wrong = -math.log(5 / 8), -math.log(1 / 8)
    smoothed = 0.8 * right + 0.2 * (right + 3 * wrong) / 4
    assert text.loss(guess, symbols, 0.2).item() == pytest.approx(smoothed)


def test_no_set_of_samples_is_sure_of_all() -> None:
    objective, targets = Classification(("a", "b")), torch.zeros(300)
    assert objective.standard_error(0.9, targets) == pytest.approx(math.sqrt(0.09 / 300))
    for sure in (0.0, 1.0):
        assert objective.standard_error(sure, targets) == pytest.approx(1 / 300, rel=0.01)


def test_a_channel_that_never_changes_is_left_out_whatever_it_holds_later() -> None:
    """Weights that nothing was learned of would else be asked about it."""
    fitted = Normalize.fit(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), 255.0)
    for value in (7, 200):
        assert fitted(torch.full((1, 1, 2, 2), value, dtype=torch.uint8)).abs().max() < 1e-20
    for constant in (0.1, 1e9 / 3, 0.0, 1e-42):
        alike = torch.full((30, 1), constant)
        fitted = Normalize.fit(alike, 1.0)
        assert fitted.std == (BLANK,) and fitted(alike + torch.tensor([[0.0], [5.0]] * 15)).abs().max() < 1e-20


# Augmentation. Images whose values tell where each pixel came from: row * 100 + column + 1, so that 0 is the padding.


def places(size: int, height: int, width: int, channels: int = 2) -> Tensor:
    image = torch.arange(height).view(-1, 1) * 100 + torch.arange(width) + 1
    return torch.stack([image + 10_000 * channel for channel in range(channels)]).repeat(size, 1, 1, 1)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 9)])
def test_every_pixel_of_a_crop_comes_from_the_right_place(shift: int, flip: bool, height: int, width: int) -> None:
    size = 200
    images = places(size, height, width)
    cropped = Augmentation(shift=shift, flip=flip).crop(images, generator())
    assert cropped.shape == images.shape
    assert cropped.dtype == images.dtype
    found = set()
    for before, after in zip(images.tolist(), cropped.tolist(), strict=True):
        matches = []
        for down in range(-shift, shift + 1):
            for right in range(-shift, shift + 1):
                for mirrored in (False, True):
                    expected = [
                        [
                            [
                                channel[row + down][column + right]
                                if 0 <= row + down < height and 0 <= column + right < width
                                else 0
                                for column in (reversed(range(width)) if mirrored else range(width))
                            ]
                            for row in range(height)
                        ]
                        for channel in before
                    ]
                    if expected == after:
                        matches.append((down, right, mirrored))
        assert len(matches) == 1
        found.add(matches[0])
    # All moves and both sides occur, and nothing else.
    steps = range(-shift, shift + 1)
    assert {(down, right) for down, right, _ in found} == {(down, right) for down in steps for right in steps}
    assert {mirrored for _, _, mirrored in found} == ({False, True} if flip else {False})


def test_half_of_the_images_are_mirrored() -> None:
    images = places(2000, 2, 3)
    mirrored = (Augmentation(flip=True).crop(images, generator()) == images.flip(3)).flatten(1).all(dim=1)
    assert 900 < mirrored.sum() < 1100


def test_no_augmentation_changes_nothing() -> None:
    images = places(4, 6, 5).float()
    same = Augmentation()
    assert same.crop(images, generator()) is images
    assert same.warp(images, generator()).equal(images)


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(shift=2, flip=True), Augmentation(rotate=20.0), Augmentation(zoom=0.2), Augmentation(cutout=3)],
)
def test_the_same_generator_gives_the_same_images(augmentation: Augmentation) -> None:
    images = torch.rand(16, 3, 8, 8, generator=generator())
    before = images.clone()

    def augment(seed: int) -> Tensor:
        draws = generator(seed)
        return augmentation.warp(augmentation.crop(images, draws), draws)

    assert augment(1).equal(augment(1))
    assert not augment(1).equal(augment(2))
    assert not augment(1).equal(images)
    assert images.equal(before)
    changed = augment(1)
    assert len({tuple((changed[row] - images[row]).flatten().tolist()) for row in range(16)}) > 8  # drawn for each


@pytest.mark.parametrize("augmentation", [Augmentation(rotate=1e-6), Augmentation(zoom=1e-7)])
@pytest.mark.parametrize("size", [(8, 8), (15, 9)])
def test_turning_by_nothing_is_the_identity(augmentation: Augmentation, size: tuple[int, int]) -> None:
    images = torch.rand(4, 2, *size, generator=generator())
    torch.testing.assert_close(augmentation.warp(images, generator()), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(21, 21), (31, 19)])
@pytest.mark.parametrize(("rotate", "zoom"), [(30.0, 0.0), (0.0, 0.3), (30.0, 0.3)])
def test_a_turn_keeps_angles_and_distances(size: tuple[int, int], rotate: float, zoom: float) -> None:
    # Two ramps that hold each pixel's own x and y: bilinear sampling reads off exactly where a pixel came from.
    height, width = size
    y = (torch.arange(height) - (height - 1) / 2).view(-1, 1).expand(size)
    x = (torch.arange(width) - (width - 1) / 2).expand(size)
    num = 64
    images = torch.stack([x, y]).repeat(num, 1, 1, 1)
    warped = Augmentation(rotate=rotate, zoom=zoom).warp(images, generator())
    row, column = height // 2, width // 2
    assert warped[:, :, row, column].abs().max() < 1e-4  # the center stays
    right = warped[:, :, row, column + 3] / 3  # where one step to the right came from
    down = warped[:, :, row + 3, column] / 3
    torch.testing.assert_close(right.norm(dim=1), down.norm(dim=1), atol=1e-4, rtol=0)
    torch.testing.assert_close((right * down).sum(dim=1), torch.zeros(num), atol=1e-4, rtol=0)
    factors = right.norm(dim=1)
    angles = torch.atan2(right[:, 1], right[:, 0]) * 180 / math.pi
    for drawn, limit in ((factors - 1, zoom), (angles, rotate)):
        assert drawn.abs().max() <= limit + 1e-3
        if limit:
            assert drawn.min() < -0.7 * limit
            assert drawn.max() > 0.7 * limit


def test_the_border_is_repeated() -> None:
    images = torch.full((8, 1, 6, 6), 3.0)
    torch.testing.assert_close(Augmentation(rotate=45.0, zoom=0.5).warp(images, generator()), images)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8])
def test_cutout_blanks_a_square_of_its_side(side: int) -> None:
    height, width = 12, 9
    cut = Augmentation(cutout=side).warp(torch.ones(500, 2, height, width), generator())
    blank = cut == 0
    assert blank[:, 0].equal(blank[:, 1])  # the same in every channel
    assert (blank | (cut == 1)).all()
    rows, columns = blank[:, 0].any(dim=2), blank[:, 0].any(dim=1)
    assert blank[:, 0].equal(rows[:, :, None] & columns[:, None, :])  # a rectangle
    for lines, length in ((rows, height), (columns, width)):
        for line in lines:
            first, last = int(line.nonzero().min()), int(line.nonzero().max())
            assert line[first : last + 1].all()
            # The whole side, unless the square hangs over an edge; its center never does.
            assert last - first + 1 == side or (
                (first == 0 or last == length - 1) and side // 2 <= last - first + 1 < side
            )
        assert lines.any(dim=0).all()  # every place is blanked in some image


# The task.


def test_a_task_knows_its_shapes(task: Task) -> None:
    assert task.input_shape == (3, 8, 8)
    assert task.num_outputs == 3


def test_a_training_batch_is_the_samples_asked_for(task: Task) -> None:
    indices = torch.tensor([5, 0, 17])
    inputs, targets = task.training_batch(indices, generator())
    torch.testing.assert_close(inputs, task.preprocessing(task.train.inputs[indices]))
    assert targets.tolist() == task.train.targets[indices].tolist() == [2, 0, 2]


def test_a_training_batch_is_augmented_after_padding_with_stored_zeros(make_task: Callable[..., Task]) -> None:
    task = make_task(augmentation=Augmentation(shift=8))
    task.train.inputs.clamp_(min=1)  # a 0 comes from the padding alone
    inputs, _ = task.training_batch(torch.arange(48), generator())
    black = task.preprocessing(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).flatten()
    moved_far = (inputs - black.view(1, 3, 1, 1)).abs().flatten(2).min(dim=2).values
    assert (moved_far < 1e-6).any()


def test_loss_and_metric_have_known_answers(task: Task) -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 0.0]])
    targets = torch.tensor([0, 1, 0, 2])
    scores = task.objective.scores(logits, targets)
    assert scores.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert task.objective.metric(scores, targets) == task.quality(scores, targets) == 0.5
    by_hand = sum(
        math.log(sum(math.exp(value) for value in row)) - row[target]
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    )
    assert task.loss(logits, targets).item() == pytest.approx(by_hand / 4)
    uniform = sum(math.log(sum(math.exp(v) for v in row)) - sum(row) / 3 for row in logits.tolist())
    assert task.loss(logits, targets, 0.3).item() == pytest.approx((0.7 * by_hand + 0.3 * uniform) / 4, rel=1e-5)


def test_samples_are_taken_by_indices_on_their_own_device_and_groups_on_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []

    def gather(stored: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        found.append(indices.device)
        return stored[indices]

    monkeypatch.setattr("child.task._gather", gather)
    split = Split(torch.zeros(3, 2), torch.zeros(3), torch.tensor([4, 5, 6])).to(torch.device("meta"))
    groups = split.take([0, 2]).groups
    assert found == [torch.device("meta")] and groups is not None and groups.tolist() == [4, 6]


# A task of the user's own making.


def changed(split: Split, what: str) -> Split:
    """A split with a mistake."""
    inputs, targets = split.inputs.float(), split.targets.clone()
    match what:
        case "no samples":
            return split.take([])
        case "answers missing":
            return Split(inputs, targets[:-1])
        case "another shape":
            return Split(inputs[..., :-1], targets)
        case "not finite":
            inputs[1] = math.nan
            return Split(inputs, targets)
        case "unknown class":
            targets[0] = 3
            return Split(inputs, targets)
        case "another type":
            return Split(inputs, targets.int())
    raise AssertionError(what)


@pytest.mark.parametrize("name", ["training", "validation"])
@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("no samples", "0 samples and 0 answers"), ("answers missing", "expected one for each"),
        ("another shape", "samples of shape"), ("not finite", "missing or not finite"),
        ("unknown class", r"answers from 0 to 3 .* from 0 to 2"), ("another type", "int32.*expected int64"),
    ],
)  # fmt: skip
def test_a_set_that_nothing_can_be_learned_from_or_judged_by_is_named(
    what: str, told: str, name: str, small_task: Task
) -> None:
    task = check_task(small_task)
    splits = {"training": task.train, "validation": task.validation}
    splits[name] = changed(splits[name], what)
    blamed = "validation" if what == "another shape" else name
    with pytest.raises(ValueError, match=rf"env\.task: the {blamed} set of small .*{told}"):
        check_task(task.with_splits(*splits.values()))


def test_what_is_no_task_is_named(small_task: Task) -> None:
    unsealed: Any = small_task.validation
    for made, told in (
        (None, "NoneType"),
        ((1, 2), "tuple"),
        (replace(small_task, test=unsealed), "whose test is a Spl"),
    ):
        with pytest.raises(ValueError, match=rf"env\.task: expected a Task .*, got .*{told}"):
            check_task(made)
    with pytest.raises(ValueError, match=r"env\.task: the test set of small has no samples"):
        check_task(replace(small_task, test=SealedSplit(small_task.validation.take([]))))


def test_numbers_to_predict_are_one_for_each_sample(small_task: Task) -> None:
    """A column of them would be compared with every answer of its batch."""

    columns = [Split(s.inputs, s.targets.float()[:, None]) for s in (small_task.train, small_task.validation)]
    task = replace(small_task.with_splits(*columns), objective=Regression("y", 0.0, 1.0))
    with pytest.raises(ValueError, match=r"training set of small has answers of shape \(\d+, 1\); expected 1 dim"):
        check_task(task)


def test_numbers_to_predict_differ_where_they_are_judged(small_task: Task) -> None:
    """Of one alone R squared is not defined."""

    train, validation = (
        Split(s.inputs, torch.arange(len(s)).float()) for s in (small_task.train, small_task.validation)
    )
    objective = Regression("y", 0.0, 1.0)
    task = replace(small_task.with_splits(train, validation), objective=objective, test=SealedSplit(validation))
    assert check_task(task) is task
    for few in (validation.take([0]), validation.take([1, 1])):
        with pytest.raises(ValueError, match="the validation set of small has no two different answers"):
            check_task(task.with_splits(train, few))
    with pytest.raises(ValueError, match="the test set of small has 1 samples; R squared needs two"):
        check_task(replace(task, test=SealedSplit(validation.take([0]))))
