"""What a detector says of one candidate: its class, where its box ends, its mask, and whether there is anything."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import TargetError
from glowmap.outputs import DetectedBox, ModelOutput, OutputReaders
from glowmap.targets._class import ClassQuestion
from glowmap.targets._target import changed
from glowmap.targets.classes import Category, Predicted, as_class

SIDES: dict[str, Callable[[Tensor], Tensor]] = {  # of left, top, right, bottom
    "left": lambda box: box[0],
    "top": lambda box: box[1],
    "right": lambda box: box[2],
    "bottom": lambda box: box[3],
    "width": lambda box: box[2] - box[0],
    "height": lambda box: box[3] - box[1],
}
_CUT = 0.5  # pixels from which on a side counts as cut off at the picture's edge


def said_of(answer: ModelOutput, image: int, found: DetectedBox, of: str) -> Tensor:
    """List what is said of a candidate at one stage: its class, its box in units of its own size, its objectness."""
    candidates = answer.candidates
    parts: list[Tensor] = []
    if candidates.is_anchored or of != "objectness":
        box = box_of(answer, image, found)
        sizes = torch.stack([SIDES["width"](box), SIDES["height"](box)] * 2).detach().clamp_min(1)
        parts += [candidates.logits[image][found.candidate, found.category], (box / sizes).sum()]
    if of == "objectness" or (candidates.is_anchored and candidates.objectness is not None):
        parts.append(objectness_of(answer, image)[found.candidate])
    if candidates.masks is not None:
        mask = mask_of(answer, image, found)
        parts.append(sum_inside(mask, mask > 0) / (mask > 0).sum().clamp_min(1))
    return torch.stack(parts)


def levels_of(answer: ModelOutput, found: Sequence[DetectedBox], of: str) -> Hashable:
    """Tell from which levels of a pyramid detections come, one an image, which decides their layer; None where it is unknown."""
    candidates = answer.candidates
    if candidates.levels is None or (of == "objectness" and not candidates.is_anchored):
        return None
    return (of == "objectness", *(int(candidates.levels[image][one.candidate]) for image, one in enumerate(found)))


def category_of(category: Any, found: DetectedBox) -> ClassQuestion:
    """Read a question about the classes of a detection, whose own is the predicted one."""
    own = Category(found.category)
    return as_class(changed(as_class(category), lambda part: own if isinstance(part, Predicted) else part))


def classes_of(answer: ModelOutput, image: int, candidate: int | None) -> ModelOutput:
    """Read one candidate's class logits as a classifier's answer; there being no object is a class there."""
    several, names = answer.candidates, answer.class_names
    logits = several.logits[image][candidate][None]
    nothing = several.background
    if several.no_object is not None:
        logits, nothing = torch.cat([logits, several.no_object[image][candidate].reshape(1, 1)], 1), logits.shape[1]
        names = names and (*names, "no object")
    return replace(
        answer.only(image),
        readers=OutputReaders(lambda _: logits, are_exclusive=not several.uses_sigmoid),
        class_names=names,
        background_index=nothing,
    )


def box_of(answer: ModelOutput, image: int, found: DetectedBox) -> Tensor:
    """Give the box of a detection's candidate: left, top, right, bottom, in the graph of the pass."""
    box = answer.candidates.boxes[image][found.candidate]
    return box[found.category] if box.ndim == 2 else box


def mask_of(answer: ModelOutput, image: int, found: DetectedBox) -> Tensor:
    """Give the mask of a detection's candidate, in logits. TargetError where the detector has none."""
    masks = answer.candidates.masks
    if masks is None:
        raise TargetError(
            f"{answer.model} gives its candidates no masks of their own; ask of its class, or of a side of its box: "
            f"{', '.join(SIDES)}"
        )
    return masks[image][found.candidate]


def objectness_of(answer: ModelOutput, image: int) -> Tensor:
    """Give the logit of there being an object, for each candidate. TargetError where the detector has none."""
    objectness = answer.candidates.objectness
    if objectness is None:
        raise TargetError(
            f"{answer.model} has no score of there being an object at all; ask of its class, or of a side of its box: "
            f"{', '.join(SIDES)}"
        )
    return objectness[image]


def is_cut(answer: ModelOutput, image: int, found: DetectedBox, of: str) -> bool:
    """Tell whether the side in question reaches beyond the picture, where the detector cuts it off."""
    if of not in SIDES:
        return False
    own, shown = box_of(answer, image, found).detach(), torch.tensor(found.corners)
    return abs(float(SIDES[of](own)) - float(SIDES[of](shown))) > _CUT


def overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Measure the overlap (IoU) of boxes with one."""
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    common = (high - low).clamp_min(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return common / (areas - common).clamp_min(torch.finfo(boxes.dtype).tiny)


def sum_inside(mask: Tensor, inside: Tensor) -> Tensor:
    """Sum a mask's logits at a set of its cells; in half precision such sums overflow."""
    return (tree.full_precision(mask) * inside).sum()


def masks_overlaps(masks: Tensor, mask: Tensor) -> Tensor:
    """Measure the overlap (IoU) of masks with one."""
    return (masks & mask).flatten(1).sum(1) / (masks | mask).flatten(1).sum(1)


def spelled(answer: ModelOutput, found: DetectedBox) -> str:
    """Spell a detection: its class, score and box."""
    return f"{answer.name(found.category)} {found.score:.2f} at {', '.join(f'{side:.0f}' for side in found.corners)}"


def in_image(answer: ModelOutput, image: int) -> str:
    """Say in which image, where there are several."""
    return f" in image {image}" if answer.batch > 1 else ""
