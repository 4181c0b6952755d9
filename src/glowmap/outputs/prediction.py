"""The model's prediction for a batch, which an explanation keeps beside its map."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from glowmap.errors import TargetError
from glowmap.outputs.boxes import pixels_to_shares
from glowmap.outputs.candidates import DetectedBox
from glowmap.outputs.model_output import ModelOutput
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


def predicted_by(output: ModelOutput) -> Prediction | None:
    """Read the prediction from an output; None where the output has no class scores."""
    if output.readers.token_logits is not None:
        return None  # the most likely next token is not a class
    try:
        if output.readers.are_detections:
            return _detections(output)
        logits = output.logits.detach()
    except TargetError:
        return None
    names = output.names(logits.shape[1])
    if logits.ndim > 2:
        is_single = logits.shape[1] == 1
        names = (f"not {names[0]}", names[0]) if is_single else names
        return Prediction(names, labels=output.labels + 1 if is_single else output.labels)
    try:
        return Prediction(names, probabilities=output.probabilities.detach())
    except TargetError:  # one text, whose probability needs others
        return None


def _detections(output: ModelOutput) -> Prediction:
    """Read a detector's prediction. Its class scores are maxima over many candidates, which do not rank the classes."""
    candidates = output.candidates
    boxes = tuple(
        tuple(
            replace(
                box,
                corners=pixels_to_shares(box.corners, output.input_size),
                candidate=None,
                name=output.name(box.category),
            )
            for box in image
        )
        for image in candidates.detections
    )
    return Prediction(output.names(candidates.logits[0].shape[1]), boxes=boxes)
