"""Boxes in the one tensor that a YOLO of one's own answers with."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.models._boxes import corners, found_of
from glowmap.models._family import library
from glowmap.targets import Answer, Candidates, Found

_COMPARED = 1000  # boxes an image, the surest, that suppression compares
_KEPT = 300


def yolo_boxes(
    *,
    objectness: bool = False,
    channels_first: bool | None = None,
    probabilities: bool = True,
    overlap: float = 0.45,
) -> Callable[[Answer], Candidates]:
    """Tell how detections are read from a tensor of boxes: for a module of your own that answers as a YOLO does.

    ``glowmap.load(module).changed(read_candidates=yolo_boxes(objectness=True))`` reads images x boxes x (4 + 1 + classes), as
    YOLOv5 and YOLOX answer; without ``objectness``, images x (4 + classes) x boxes, as YOLOv8 is exported. ``channels_first``
    tells the order of the last two axes where it is another. The first four are x and y of the centre, width and height in the
    pixels of the input; objectness and classes are ``probabilities``, or else their logits. What is found is what suppression
    leaves: among boxes of one class that overlap (IoU) by more than ``overlap``, the surest, where the score is the class's
    probability times that of an object. The answer is the tensor, or the first of a tuple.

    Raises TargetError for an ``overlap`` outside 0 to 1, and where such an answer is another; MissingExtra without torchvision.
    """
    if not 0 <= overlap <= 1:
        raise TargetError(f"an overlap of {overlap} is no share; give one from 0 to 1, such as 0.45")
    first = not objectness if channels_first is None else channels_first
    return partial(_read, objectness, first, probabilities, overlap)


def _read(objectness: bool, channels_first: bool, probabilities: bool, overlap: float, answer: Answer) -> Candidates:
    rows = _rows(answer, 4 + objectness, channels_first)
    logits = torch.logit(rows[..., 4:], torch.finfo(rows.dtype).eps) if probabilities else rows[..., 4:]
    boxes, classes = corners(rows[..., :4]), logits[..., objectness:]
    sure = classes.detach().sigmoid() * (logits[..., :1].detach().sigmoid() if objectness else 1)
    return Candidates(
        list(boxes),
        list(classes),
        [_left(*one, overlap) for one in zip(boxes.detach(), sure, strict=True)],
        objectness=list(logits[..., 0]) if objectness else None,
        anchored=True,
        sigmoid=True,
    )


def _rows(answer: Answer, before: int, channels_first: bool) -> Tensor:
    """Take images x boxes x columns from the answer, with as many columns as there are class names, and ``before`` them."""
    raw: Any = answer.raw[0] if isinstance(answer.raw, tuple | list) and answer.raw else answer.raw
    fits = isinstance(raw, Tensor) and raw.ndim == 3 and len(raw) == answer.batch and raw.is_floating_point()
    rows: Tensor = raw.transpose(1, 2) if fits and channels_first else raw
    named = len(answer.class_names) if answer.class_names is not None else None
    if fits and rows.shape[2] > before and named in (None, rows.shape[2] - before):
        return rows
    came = f"a tensor of {' x '.join(map(str, raw.shape))}" if isinstance(raw, Tensor) else f"a {type(raw).__name__}"
    columns = f"({before} + {'classes' if named is None else named})"
    wanted = f"{answer.batch} x {columns} x boxes" if channels_first else f"{answer.batch} x boxes x {columns}"
    raise TargetError(
        f"{answer.model} answered with {came}, where yolo_boxes was to read {wanted}; say objectness=... and channels_first=... "
        "as the module has it, or give as many class names as there are classes"
    )


def _left(boxes: Tensor, scores: Tensor, overlap: float) -> list[Found]:
    """List what non-maximum suppression leaves of each class, the surest first; each box is of its best class."""
    ops = library("torchvision.ops", "torchvision", "what a detector found among its boxes")
    best, categories = scores.max(1)
    compared = best.argsort(descending=True, stable=True)[:_COMPARED]
    kept = compared[ops.batched_nms(boxes[compared], best[compared], categories[compared], overlap)[:_KEPT]]
    return found_of(kept, categories[kept], best[kept], boxes[kept])
