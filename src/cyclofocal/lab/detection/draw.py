"""Draw boxes on images, and match them with the true ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cyclofocal.lab.data.dataset import Boxes

CORRECT, WRONG, MISSED = "#1a9850", "#d73027", "#ffbf00"
"""Colours of boxes that match a true one, of others, and of true ones that nothing matches."""

CLASS_COLOURS = ("#d73027", "#1f78b4", "#1a9850", "#984ea3", "#ff7f00", "#a65628", "#f781bf", "#00bcd4")
"""Colours of the classes where it is not known which boxes are right; further classes repeat them."""

OVERLAP = 0.5
"""Intersection over union from which a box matches a true one of its class."""


class DrawnBox(NamedTuple):
    """A box with its text and colour, corners in pixels of the image."""

    corners: tuple[float, float, float, float]
    text: str
    colour: str


def draw_boxes(image: Image.Image, boxes: Sequence[DrawnBox], width: int) -> Image.Image:
    """A copy of an image, ``width`` pixels wide, with boxes and their texts."""
    factor = width / image.width
    drawn = image.convert("RGB").resize((width, max(1, round(image.height * factor))), Image.Resampling.BILINEAR)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=max(10, width // 40))
    for box in boxes:
        left, top, right, bottom = (edge * factor for edge in box.corners)
        pen.rectangle((left, top, max(right, left), max(bottom, top)), outline=box.colour, width=max(1, width // 200))
        if box.text:
            place = pen.textbbox((left + 2, max(0, top)), box.text, font=font)
            pen.rectangle(place, fill=box.colour)
            pen.text((left + 2, max(0, top)), box.text, fill="white", font=font)
    return drawn


def matched(found: dict[str, Any], truth: Boxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the found boxes match a true one, by falling score, and which of the true ones are matched.

    Each true box matches one; of ignored ones nothing is said, so they count as matched.
    """
    import torch
    from torchvision.ops import box_iou

    boxes, corners = (torch.as_tensor(corners, dtype=torch.float64) for corners in (found["boxes"], truth.corners))
    overlaps = box_iou(boxes, corners).numpy()
    right, taken = np.zeros(len(found["boxes"]), bool), truth.ignored.copy()
    for k in np.argsort(-found["scores"], kind="stable"):
        fits = (truth.classes == found["labels"][k]) & ~taken & (overlaps[k] >= OVERLAP)
        if fits.any():
            best = int(np.where(fits, overlaps[k], -1).argmax())
            right[k] = taken[best] = True
    return right, taken
