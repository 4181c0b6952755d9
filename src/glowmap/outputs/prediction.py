"""What the model said of a picture, kept beside the map."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glowmap.errors import TargetError
from glowmap.outputs.boxes import in_shares
from glowmap.outputs.model_output import ModelOutput
from glowmap.shapes import Labels, Probabilities


@dataclass(frozen=True)
class Box:
    """One detection: its class by name and index, how sure, and its left, top, right, bottom in shares of what the model saw."""

    name: str
    category: int
    score: float
    corners: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model said, in one of three ways.

    A class at every pixel (``labels``), the probability of every class (softmax of the logits), or what was found in each image
    (``boxes``), the surest first, in the order in which ``targets.SimilarDetection`` counts.
    """

    names: tuple[str, ...]
    labels: Labels | None = None
    probabilities: Probabilities | None = None
    boxes: tuple[tuple[Box, ...], ...] | None = None

    def __repr__(self) -> str:
        if self.boxes is not None:
            counts = ", ".join(str(len(found)) for found in self.boxes)
            return f"<Prediction of {len(self.names)} classes in boxes: {counts} found>"
        return (
            f"<Prediction of {len(self.names)} classes {'at every pixel' if self.labels is not None else 'an image'}>"
        )

    @staticmethod
    def read(fields: Mapping[str, Any]) -> "Prediction":
        """Take back what was stored of a prediction, its boxes as mappings."""
        boxes = fields.get("boxes")
        if boxes is None:
            return Prediction(**fields)
        each = [[Box(**{**box, "corners": tuple(box["corners"])}) for box in found] for found in boxes]
        return Prediction(**{**fields, "boxes": tuple(map(tuple, each))})

    def of(self, images: slice) -> "Prediction":
        """Take some images out."""
        return Prediction(
            self.names,
            labels=None if self.labels is None else self.labels[images],
            probabilities=None if self.probabilities is None else self.probabilities[images],
            boxes=None if self.boxes is None else self.boxes[images],
        )

    def same_as(self, other: "Prediction") -> bool:
        """Tell whether another prediction says the same."""
        pairs = [(self.labels, other.labels), (self.probabilities, other.probabilities)]
        return (self.names, self.boxes) == (other.names, other.boxes) and all(
            one is two or (one is not None and two is not None and torch.equal(one, two)) for one, two in pairs
        )


def predicted_by(answer: ModelOutput) -> Prediction | None:
    """Keep what the model said for the picture beside the map; an output that cannot be read is no error here."""
    if answer.readers.token_logits is not None:
        return None  # the likeliest next word is no class
    try:
        if answer.is_detector:
            return _boxes(answer)
        logits = answer.logits.detach()
    except TargetError:
        return None
    names = answer.names(logits.shape[1])
    if logits.ndim > 2:
        one = logits.shape[1] == 1
        names = (f"not {names[0]}", names[0]) if one else names
        return Prediction(names, labels=answer.labels + 1 if one else answer.labels)
    try:
        return Prediction(names, probabilities=answer.probabilities.detach())
    except TargetError:  # a text alone is likely or unlikely only among others
        return None


def _boxes(answer: ModelOutput) -> Prediction:
    """Keep what a detector found; its class scores are those of many candidates, and no ranking of the picture's classes."""
    candidates = answer.candidates
    names = answer.names(candidates.logits[0].shape[1])
    boxes = tuple(
        tuple(
            Box(answer.name(one.category), one.category, one.score, in_shares(one.box, answer.input_size))
            for one in found
        )
        for found in candidates.found
    )
    return Prediction(names, boxes=boxes)
