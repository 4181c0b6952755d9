"""Boxes in the coordinates that detectors use, and lists of detections."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from glowmap.outputs.candidates import Corners, DetectedBox


def centre_to_corners(boxes: Tensor) -> Tensor:
    """Convert x, y, width, height (of the centre, along the last axis) to left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def shares_to_pixels(boxes: Tensor, size: tuple[int, ...]) -> Tensor:
    """Convert left, top, right, bottom from shares of an image of this size (rows, columns) to its pixels."""
    rows, columns = size
    return boxes * boxes.new_tensor([columns, rows, columns, rows])


def pixels_to_shares(corners: Sequence[float], size: tuple[int, ...]) -> Corners:
    """Convert left, top, right, bottom from pixels of an image of this size (rows, columns) to shares of it."""
    left, top, right, bottom = map(float, corners)
    rows, columns = size
    return left / columns, top / rows, right / columns, bottom / rows


def detected_boxes(candidates: Tensor, categories: Tensor, scores: Tensor, boxes: Tensor) -> list[DetectedBox]:
    """List detections from one-dimensional tensors of candidate indices, classes and scores, and boxes (detection x 4)."""
    columns = (categories.tolist(), scores.tolist(), boxes.detach().tolist(), candidates.tolist())
    return [
        DetectedBox(int(category), score, tuple(corners), int(candidate))
        for category, score, corners, candidate in zip(*columns, strict=True)
    ]


def boxes_by_score(scores: Tensor, boxes: Tensor) -> list[DetectedBox]:
    """List every candidate as its best class by falling score; ``scores`` are candidate x class."""
    best, categories = scores.detach().max(1)
    order = best.argsort(descending=True, stable=True)
    return detected_boxes(order, categories[order], best[order], boxes[order])


def boxes_by_logit(logits: Tensor, boxes: Tensor) -> list[DetectedBox]:
    """List every candidate as its best class by falling logit, with the sigmoid as score.

    The order is that of the logits, because a sigmoid rounds large ones to the same 1.
    """
    ordered = boxes_by_score(logits, boxes)
    scores = logits.new_tensor([box.score for box in ordered]).sigmoid().tolist()
    return [replace(box, score=score) for box, score in zip(ordered, scores, strict=True)]


def names_boxes(raw: Any) -> bool:
    """Return whether a raw output is a mapping with boxes in it."""
    return isinstance(raw, Mapping) and any("box" in str(key) for key in raw)


def is_spatial(raw: Any, *, has_class_scores: bool) -> bool:
    """Return whether a raw output has values for places: boxes, or maps where they are not class scores that can be read."""
    if isinstance(raw, Mapping):
        return "boxes" in raw or any(is_spatial(part, has_class_scores=has_class_scores) for part in raw.values())
    if isinstance(raw, list | tuple):
        return any(is_spatial(part, has_class_scores=has_class_scores) for part in raw)
    return not has_class_scores and isinstance(raw, Tensor) and raw.ndim >= 4
