"""Augmented training images per second, on one core.

python benchmarks/data.py              # half a minute, one thread

Crop, flip, cutout and normalization of whole batches as tensor operations, beside a plain version that treats one
image at a time, as a data set with per-image transforms does (without its workers and their overhead).
"""

from timing import interleaved, record  # isort: skip

import torch
from torch.nn import functional

from child.task import Classification, SealedSplit, Split, Task
from child.transforms import Augmentation, Normalize

BATCH = 128


def main() -> None:
    torch.set_num_threads(1)
    data = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8)
    split = Split(data.contiguous(memory_format=torch.channels_last), torch.zeros(len(data), dtype=torch.int64))
    augmentation = Augmentation(shift=4, flip=True, cutout=16)
    preprocessing = Normalize.fit(data, 255.0)
    task = Task("random", Classification(("a", "b")), split, split, SealedSplit(split), preprocessing, augmentation)
    indices = torch.randperm(len(data))[:BATCH]
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor(preprocessing.mean).view(3, 1, 1), torch.tensor(preprocessing.std).view(3, 1, 1)

    def plain():
        images = []
        for index in indices.tolist():
            image = (data[index].float() / 255 - mean) / std
            image = functional.pad(image, [4] * 4)
            y, x = torch.randint(9, (2,)).tolist()
            image = image[:, y : y + 32, x : x + 32]
            if torch.rand(()) < 0.5:
                image = image.flip(2)
            y, x = torch.randint(32, (2,)).tolist()
            image = image.clone()
            image[:, max(0, y - 8) : y + 8, max(0, x - 8) : x + 8] = 0
            images.append(image)
        return torch.stack(images)

    seconds = interleaved({"batch": lambda: task.training_batch(indices, generator), "plain": plain}, 50)
    rate = {name: BATCH / value for name, value in seconds.items()}
    record("data", "Augmented images per second on one core", [{
        "batch": BATCH,
        "whole batches, images/s": rate["batch"],
        "one at a time, images/s": rate["plain"],
        "times faster": rate["batch"] / rate["plain"],
    }], ["32x32x3 images: shift by up to 4 pixels, mirror, cut out 16x16, normalize."])  # fmt: skip


if __name__ == "__main__":
    main()
