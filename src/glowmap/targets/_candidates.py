"""All that a detector might have found, before suppression, and what it kept of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Found:
    """One detection: which candidate it was, of which class, how sure, and its box (left, top, right, bottom) in input pixels."""

    candidate: int
    category: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Candidates:
    """The candidates of each image, in the graph of the forward pass, and those that the detector kept, the surest first.

    ``boxes`` are candidate x 4 (or candidate x class x 4, where each class has a box of its own): left, top, right, bottom in
    the pixels of the detector's input. ``logits`` are candidate x class, with the classes counted as the class names are, and
    before any softmax, sigmoid or suppression; ``objectness`` is a logit a candidate, where the detector has one; ``masks`` are
    logits, candidate x rows x columns. ``canvas`` are the rows and columns that the detector's layers cover, in pixels of its
    input, where it pads its input inside; its top left corner is the picture's.
    """

    boxes: Sequence[Tensor]
    logits: Sequence[Tensor]
    found: Sequence[Sequence[Found]]
    objectness: Sequence[Tensor] | None = None
    masks: Sequence[Tensor] | None = None
    canvas: tuple[int, int] | None = None

    def only(self, image: int) -> "Candidates":
        """Cut down to one image."""
        one = slice(image, image + 1)
        objectness, masks = (part and part[one] for part in (self.objectness, self.masks))
        return Candidates(self.boxes[one], self.logits[one], self.found[one], objectness, masks, self.canvas)
