"""A detector's candidate: the scores of its parts, and targets that follow it through changed images."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import Remedy, TargetError
from glowmap.outputs import DetectedBox, ModelOutput, OutputReaders
from glowmap.shapes import Scores
from glowmap.targets._class import Category, ClassTarget
from glowmap.targets._target import Target
from glowmap.targets.classes import as_class

SIDES: dict[str, Callable[[Tensor], Tensor]] = {  # of a box: left, top, right, bottom
    "left": lambda box: box[0],
    "top": lambda box: box[1],
    "right": lambda box: box[2],
    "bottom": lambda box: box[3],
    "width": lambda box: box[2] - box[0],
    "height": lambda box: box[3] - box[1],
}
PARTS = ("class", "objectness", "mask", *SIDES)  # what may be scored of a candidate
_CUT = 0.5  # pixels: a box that reaches so far beyond the picture's edge counts as cut off


def part_score(
    output: ModelOutput,
    image: int,
    detection: DetectedBox,
    part: str,
    *,
    category: Any = None,
    inside: Tensor | None = None,
) -> Tensor:
    """Return the score of a part of a detection's candidate, one of ``PARTS``, in the graph of the pass.

    With a ``category``, the score of this target about a class, read off the candidate's class scores. Mask logits are summed
    over the mask ``inside``, or else where they are positive.
    """
    candidates, candidate = output.candidates, detection.candidate
    if category is not None:
        return class_of(category, detection).score(class_output(output, image, candidate))[0]
    if part == "class":
        return candidates.logits[image][candidate, detection.category]
    if part == "objectness":
        return objectness(output, image)[candidate]
    if part == "mask":
        mask = candidate_mask(output, image, detection)
        inside = mask > 0 if inside is None else inside
        if not inside.any():
            raise TargetError(
                f"the mask of {describe_found(output, detection)} is empty; give its class or a side of its box as target"
            )
        return sum_inside(mask, inside)
    box = candidate_box(output, image, detection)
    if candidates.logits[image].requires_grad and not box.requires_grad:
        raise TargetError(
            f"the box of {describe_found(output, detection)} is drawn around its mask and has no gradient",
            remedy=Remedy("give of='mask'", "give --of mask"),
        )
    return SIDES[part](box)


def candidate_scores(output: ModelOutput, image: int, detection: DetectedBox, part: str) -> Tensor:
    """Return the scores of a candidate that its layer must all lead to: class logit, box / its size, objectness, mask.

    Of a detector of two stages, only those of the stage that computes ``part``: the proposal's objectness, or the rest.
    """
    candidates = output.candidates
    scores: list[Tensor] = []
    if candidates.is_anchored or part != "objectness":
        box = candidate_box(output, image, detection)
        sizes = torch.stack([SIDES["width"](box), SIDES["height"](box)] * 2).detach().clamp_min(1)
        scores += [candidates.logits[image][detection.candidate, detection.category], (box / sizes).sum()]
    if part == "objectness" or (candidates.is_anchored and candidates.objectness is not None):
        scores.append(objectness(output, image)[detection.candidate])
    if candidates.masks is not None:
        mask = candidate_mask(output, image, detection)
        scores.append(sum_inside(mask, mask > 0) / (mask > 0).sum().clamp_min(1))
    return torch.stack(scores)


def pyramid_levels(output: ModelOutput, detections: Sequence[DetectedBox], part: str) -> Hashable | None:
    """Return the pyramid levels that detections, one per image, are read from; None where they are unknown.

    They decide which layer is found for the detections.
    """
    candidates = output.candidates
    if candidates.levels is None or (part == "objectness" and not candidates.is_anchored):
        return None
    levels = [int(candidates.levels[image][detection.candidate]) for image, detection in enumerate(detections)]
    return (part == "objectness", *levels)


def class_of(category: Any, detection: DetectedBox) -> ClassTarget:
    """Return a target about a class of a detection; the predicted class is the detection's."""
    detected = Category(detection.category)
    return as_class(as_class(category).map_leaves(lambda leaf: detected if leaf.is_prediction else leaf))


def class_output(output: ModelOutput, image: int, candidate: int | None) -> ModelOutput:
    """Return one candidate's class scores as the output of a classifier; "no object" is a class there."""
    candidates, names = output.candidates, output.class_names
    logits = candidates.logits[image][candidate][None]
    background = candidates.background
    if candidates.no_object is not None:
        no_object = candidates.no_object[image][candidate].reshape(1, 1)
        logits, background = torch.cat([logits, no_object], 1), logits.shape[1]
        names = names and (*names, "no object")
    return replace(
        output.only(image),
        readers=OutputReaders(lambda _: logits, are_exclusive=not candidates.uses_sigmoid),
        class_names=names,
        background_index=background,
    )


def candidate_box(output: ModelOutput, image: int, detection: DetectedBox) -> Tensor:
    """Return the box of a detection's candidate in the graph of the pass: left, top, right, bottom."""
    box = output.candidates.boxes[image][detection.candidate]
    return box[detection.category] if box.ndim == 2 else box


def candidate_mask(output: ModelOutput, image: int, detection: DetectedBox) -> Tensor:
    """Return the mask logits of a detection's candidate. Raises TargetError for a detector without masks."""
    masks = output.candidates.masks
    if masks is None:
        raise TargetError(
            f"the candidates of {output.model} have no masks; give the class as target, or a side of the box: "
            f"{', '.join(SIDES)}"
        )
    return masks[image][detection.candidate]


def objectness(output: ModelOutput, image: int) -> Tensor:
    """Return the logit of there being an object, for each candidate. Raises TargetError for a detector without it."""
    logits = output.candidates.objectness
    if logits is None:
        raise TargetError(
            f"{output.model} computes no objectness, a score of there being any object; give the class as target, or a side of "
            f"the box: {', '.join(SIDES)}"
        )
    return logits[image]


def is_cut_off(output: ModelOutput, image: int, detection: DetectedBox, part: str) -> bool:
    """Return whether the side that is scored reaches beyond the picture's edge, where the detector cuts the box off."""
    if part not in SIDES:
        return False
    before, after = candidate_box(output, image, detection).detach(), torch.tensor(detection.corners)
    return abs(float(SIDES[part](before)) - float(SIDES[part](after))) > _CUT


def box_overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Return the intersection over union (IoU) of each of some boxes with a box."""
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    intersections = (high - low).clamp_min(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return intersections / (areas - intersections).clamp_min(torch.finfo(boxes.dtype).tiny)


def mask_overlaps(masks: Tensor, mask: Tensor) -> Tensor:
    """Return the intersection over union (IoU) of each of some masks with a mask."""
    return (masks & mask).flatten(1).sum(1) / (masks | mask).flatten(1).sum(1)


def sum_inside(mask: Tensor, inside: Tensor) -> Tensor:
    """Sum a mask's logits over a set of its cells, in full precision: in half precision such sums overflow."""
    return (tree.full_precision(mask) * inside).sum()


def describe_found(output: ModelOutput, detection: DetectedBox) -> str:
    """Return a detection's class, score and box, for messages: "car 0.98 at 10, 20, 50, 40"."""
    corners = ", ".join(f"{side:.0f}" for side in detection.corners)
    return f"{output.name(detection.category)} {detection.score:.2f} at {corners}"


def in_image(output: ModelOutput, image: int) -> str:
    """Return " in image 1" for a message; nothing for a batch of one."""
    return f" in image {image}" if output.batch > 1 else ""


class DetectionTarget(Target):
    """A target about boxes that the detector found."""

    is_detection = True

    def is_local(self, output: ModelOutput) -> bool:
        return True

    def moves_with_image(self, output: ModelOutput) -> bool:
        return False


@dataclass(frozen=True)
class PinnedDetection(DetectionTarget):
    """One candidate, followed in changed images: the same anchor, or the candidate with the largest IoU with the first one.

    The IoU is that of the masks where the detector has them (``inside``), else of the boxes.
    """

    detection: DetectedBox
    is_anchored: bool
    box: Tensor  # before it is cut off at the picture's edge
    of: str
    category: Any
    description: str
    inside: Tensor | None = None  # the mask in the unchanged image

    def score(self, output: ModelOutput) -> Scores:
        return torch.stack([self._part_score(output, image) for image in range(output.batch)])

    def describe(self, output: ModelOutput, image: int) -> str:
        return self.description

    def _part_score(self, output: ModelOutput, image: int) -> Tensor:
        detection = self._follow(output, image)
        return part_score(output, image, detection, self.of, category=self.category, inside=self.inside)

    def _follow(self, output: ModelOutput, image: int) -> DetectedBox:
        """Return the detection with the number that its candidate has in a changed image."""
        candidates = output.candidates
        if self.is_anchored:
            return self.detection
        boxes, logits = candidates.boxes[image].detach(), candidates.logits[image][:, self.detection.category].detach()
        if not len(boxes):
            raise TargetError(
                f"{output.model} has no candidates in a changed image, so {self.description} has no score there"
            )
        if candidates.masks is not None and self.inside is not None and self.inside.any():
            overlaps = mask_overlaps(candidates.masks[image].detach() > 0, self.inside)
        else:
            overlaps = box_overlaps(boxes[:, self.detection.category] if boxes.ndim == 3 else boxes, self.box)
        nearest = torch.nonzero(overlaps == overlaps.max())[:, 0]
        if self.detection.candidate in nearest.tolist():  # as in the unchanged image, even if others have the same box
            return self.detection
        return replace(self.detection, candidate=int(nearest[logits[nearest].argmax()]))


@dataclass(frozen=True)
class PinnedDetections(DetectionTarget):
    """The sum of several pinned detections of one image."""

    detections: tuple[PinnedDetection, ...]
    description: str

    def score(self, output: ModelOutput) -> Scores:
        return torch.stack([detection.score(output) for detection in self.detections]).sum(0)

    def describe(self, output: ModelOutput, image: int) -> str:
        return self.description


def pin_detection(
    output: ModelOutput, image: int, detection: DetectedBox, part: str, *, description: str, category: Any = None
) -> PinnedDetection:
    """Return the target that follows the candidate of a detection of one image."""
    candidates = output.candidates
    if category is not None:
        category = class_of(category, detection).pin_class(class_output(output, image, detection.candidate), 0)
    inside = None if candidates.masks is None else candidate_mask(output, image, detection).detach() > 0
    box = candidate_box(output, image, detection).detach()
    return PinnedDetection(detection, candidates.is_anchored, box, part, category, description, inside)
