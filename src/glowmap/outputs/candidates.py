"""A detector's boxes: all candidates before suppression, and the detections that it kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

Corners: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class DetectedBox:
    """One detection: its class index, score and corners.

    In :class:`Candidates` the corners are pixels of the input; in a :class:`Prediction` they are shares of its width and height,
    and ``name`` is the class name. ``candidate`` is the index of the candidate that became this detection; None in a prediction,
    and where the detector changes boxes or scores after suppression.
    """

    category: int
    score: float
    corners: Corners
    candidate: int | None = None
    name: str = ""


@dataclass(frozen=True)
class Candidates:
    """The candidates of each image, in the autograd graph of the forward pass, and the detections by falling score.

    Each sequence has one entry for each image. ``boxes`` are candidate x 4 (or candidate x class x 4, where each class has its
    own box): left, top, right, bottom in pixels of the detector's input, not clipped to the image (clipping has no gradient).
    ``logits`` are candidate x class before softmax, sigmoid or suppression, in the order of the class names. ``objectness`` has
    one logit a candidate, ``masks`` are logits, candidate x rows x columns.

    ``canvas`` is the input size (rows, columns) after the detector's own padding at the right and the bottom. ``is_anchored``
    means that a candidate is a fixed position of one layer (an anchor, a cell) in every image. ``levels`` give the pyramid level
    of each candidate. ``uses_sigmoid`` means one sigmoid for each class; otherwise the classes share a softmax, with
    ``no_object`` (one logit a candidate) or the class ``background`` for empty boxes.
    """

    boxes: Sequence[Tensor]
    logits: Sequence[Tensor]
    detections: Sequence[Sequence[DetectedBox]]
    objectness: Sequence[Tensor] | None = None
    masks: Sequence[Tensor] | None = None
    canvas: tuple[int, int] | None = None
    is_anchored: bool = False
    levels: Sequence[Tensor] | None = None
    uses_sigmoid: bool = False
    no_object: Sequence[Tensor] | None = None
    background: int | None = None

    def only(self, image: int) -> "Candidates":
        """Cut down to one image."""
        per_image = ("boxes", "logits", "detections", "objectness", "masks", "levels", "no_object")
        sequences = {name: getattr(self, name) for name in per_image}
        return replace(self, **{name: values and values[image : image + 1] for name, values in sequences.items()})
