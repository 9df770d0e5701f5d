"""Generated scenes of handwritten digits with their boxes, to try detection in minutes and to test it."""

import numpy as np
import torch

from cyclofocal.lab.data.dataset import Boxes, DataSet, Samples
from cyclofocal.lab.data.digits import DIGIT_CLASSES, all_digits
from cyclofocal.lab.longtail import exponential_counts

SIDE, GLYPH = 64, 16
"""Pixels of a scene and of a digit on it, which is twice as large as in its source."""

SIZES = {"train": 400, "val": 100, "test": 200}
"""Scenes per split."""

MOST_DIGITS = 4

SCENE_SEED = 11
"""Random seed of the scenes, which are the same in every run."""


def read_digit_scenes() -> DataSet:
    """Scenes of 64 x 64 grey pixels with one to four digits that do not overlap, 0 ten times as frequent as 9.

    No digit of the source is in two splits.
    """
    rng = np.random.default_rng(SCENE_SEED)
    digits = all_digits()
    order = rng.permutation(len(digits))
    shares = np.cumsum([count / sum(SIZES.values()) for count in SIZES.values()])[:-1]
    parts = np.split(order, (shares * len(order)).astype(int))
    splits = {
        name: _scenes(digits.select(part), count, f"digit-scenes {name}", rng)
        for part, (name, count) in zip(parts, SIZES.items(), strict=True)
    }
    return DataSet("digit-scenes", DIGIT_CLASSES, splits["train"], splits["val"], splits["test"])


def _scenes(digits: Samples, count: int, title: str, rng: np.random.Generator) -> Samples:
    assert digits.inputs is not None
    weights = np.array(exponential_counts(1000, 10, len(DIGIT_CLASSES)), dtype=np.float64)
    glyphs = digits.inputs.repeat_interleave(2, 2).repeat_interleave(2, 3)
    pixels = torch.zeros(count, 1, SIDE, SIDE, dtype=torch.uint8)
    boxes = []
    for scene in range(count):
        cells = rng.permutation((SIDE // (GLYPH + 4)) ** 2)[: rng.integers(1, MOST_DIGITS + 1)]
        classes = rng.choice(len(DIGIT_CLASSES), len(cells), p=weights / weights.sum())
        corners = []
        for cell, c in zip(cells, classes, strict=True):
            row, column = divmod(int(cell), SIDE // (GLYPH + 4))
            top, left = (int(place * (GLYPH + 4) + rng.integers(0, 5)) for place in (row, column))
            glyph = glyphs[int(rng.choice(np.flatnonzero(digits.labels == c)))]
            pixels[scene, :, top : top + GLYPH, left : left + GLYPH] = glyph
            corners.append((left, top, left + GLYPH, top + GLYPH))
        boxes.append(
            Boxes(np.array(corners, dtype=np.float64), classes, np.zeros(len(cells), bool), (SIDE, SIDE), scene + 1)
        )
    labels = np.array([found.classes.max() for found in boxes])  # the rarest, for frequencies fall with the digit
    return Samples(labels, np.arange(count), title, pixels, max_pixel=16, boxes=tuple(boxes))
