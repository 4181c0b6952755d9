"""The model's prediction for a batch, which an explanation keeps beside its map."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from glowmap.outputs.candidates import DetectedBox
from glowmap.shapes import Labels, Probabilities


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's prediction, in one of three forms.

    ``labels``: the class of every pixel. ``probabilities``: of every class, one row an image. ``boxes``: the detections of each
    image by falling score, with corners in shares of the input, in the order of ``targets.SimilarDetection``.
    """

    names: tuple[str, ...]
    labels: Labels | None = None
    probabilities: Probabilities | None = None
    boxes: tuple[tuple[DetectedBox, ...], ...] | None = None

    def __repr__(self) -> str:
        if self.boxes is not None:
            counts = ", ".join(str(len(boxes)) for boxes in self.boxes)
            return f"<Prediction of {len(self.names)} classes in boxes: {counts} detected>"
        return (
            f"<Prediction of {len(self.names)} classes {'at every pixel' if self.labels is not None else 'an image'}>"
        )

    @staticmethod
    def read(fields: Mapping[str, Any]) -> "Prediction":
        """Restore a prediction from its stored fields, in which boxes are mappings."""
        boxes = fields.get("boxes")
        if boxes is None:
            return Prediction(**fields)
        restored = [[DetectedBox(**{**box, "corners": tuple(box["corners"])}) for box in image] for image in boxes]
        return Prediction(**{**fields, "boxes": tuple(map(tuple, restored))})

    def of(self, images: slice) -> "Prediction":
        """Select some images."""
        return Prediction(
            self.names,
            labels=None if self.labels is None else self.labels[images],
            probabilities=None if self.probabilities is None else self.probabilities[images],
            boxes=None if self.boxes is None else self.boxes[images],
        )

    def same_as(self, other: "Prediction") -> bool:
        """Return whether both predictions have equal names and values."""
        pairs = [(self.labels, other.labels), (self.probabilities, other.probabilities)]
        return (self.names, self.boxes) == (other.names, other.boxes) and all(
            left is right or (left is not None and right is not None and torch.equal(left, right))
            for left, right in pairs
        )
