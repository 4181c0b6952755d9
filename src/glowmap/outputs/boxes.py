"""Boxes as detectors write them, and what was found among them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from glowmap.outputs.candidates import Found


def corners(boxes: Tensor) -> Tensor:
    """Turn centre and size (x, y, width, height along the last axis) into left, top, right, bottom."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def in_pixels(shares: Tensor, size: tuple[int, ...]) -> Tensor:
    """Turn left, top, right, bottom in shares of a picture of so many rows and columns into its pixels."""
    rows, columns = size
    return shares * shares.new_tensor([columns, rows, columns, rows])


def found_of(candidates: Tensor, categories: Tensor, scores: Tensor, boxes: Tensor) -> list[Found]:
    """List detections: of each the candidate it was, its class, its score and its box (detection x 4)."""
    columns = (candidates.tolist(), categories.tolist(), scores.tolist(), boxes.detach().tolist())
    return [Found(int(at), int(kind), score, tuple(box)) for at, kind, score, box in zip(*columns, strict=True)]


def surest_first(scores: Tensor, boxes: Tensor) -> list[Found]:
    """List every candidate as its best class (``scores`` are candidate x class), the surest first."""
    best, categories = scores.detach().max(1)
    order = best.argsort(descending=True, stable=True)
    return found_of(order, categories[order], best[order], boxes[order])


def surest_first_by_sigmoid(logits: Tensor, boxes: Tensor) -> list[Found]:
    """List every candidate as its best class by its logit, which still tells apart what a sigmoid rounds to 1."""
    by_logit = surest_first(logits, boxes)
    scores = logits.new_tensor([one.score for one in by_logit]).sigmoid().tolist()
    return [replace(one, score=score) for one, score in zip(by_logit, scores, strict=True)]


Corners = tuple[float, float, float, float]


def in_shares(box: Sequence[float], input_size: tuple[int, ...]) -> Corners:
    """Turn left, top, right, bottom in pixels of the input (rows x columns) into shares of it."""
    left, top, right, bottom = map(float, box)
    rows, columns = input_size
    return left / columns, top / rows, right / columns, bottom / rows
