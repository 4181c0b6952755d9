"""Questions about what a detector found: the score of one detection before suppression, or where its box ends."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glowmap.errors import Remedy, TargetError, is_number, is_whole_number
from glowmap.outputs import DetectedBox, ModelOutput, pixels_to_shares
from glowmap.registry import near_names
from glowmap.shapes import Scores
from glowmap.targets._candidate import (
    SIDES,
    box_of,
    category_of,
    classes_of,
    in_image,
    is_cut,
    levels_of,
    mask_of,
    masks_overlaps,
    objectness_of,
    overlaps,
    said_of,
    spelled,
    sum_inside,
)
from glowmap.targets._target import Annotation, Target
from glowmap.targets.classes import as_class

_PARTS = ("class", "objectness", "mask", *SIDES)
_SHOWN = 5  # of the detections, where an error says what was found


@dataclass(frozen=True)
class Detection:
    """One detection of those that a detector kept (the surest is 0): its score before suppression, or where its box ends.

    ``of`` is what of it is asked about: "class", the logit of its class; "objectness", the logit of there being an object at
    all (of a detector of two stages, that of its proposal; of FCOS, its centerness); "mask", the sum of its mask's logits where
    they are positive, of a model whose candidates have masks of their own; or "left", "top", "right", "bottom",
    "width" or "height" of its box, in pixels of the input, before the box is cut off at the picture's edges. ``category`` asks
    how much the same candidate speaks for another class, an index or a name, or puts any question about classes to it:
    ``Contrast("car", "bus")``. In changed images the candidate is followed: by its number where that is an anchor or a cell, else
    by its mask or its box (the largest overlap, IoU; of equal ones itself, else the likelier).

    The layer found for it is the last through which all passes that is said of this candidate, class and box alike: the level of
    the pyramid that it came from. ``hires_cam`` there is ODAM (Zhao and Chan, ICLR 2023, arXiv:2304.06354) without its
    smoothing.

    Raises TargetError for a number beyond what was found, with the first of these, and for a model that is no detector.
    """

    number: int = 0
    of: str = "class"
    category: Any = None

    def __post_init__(self) -> None:
        if not is_whole_number(self.number, 0):
            raise TargetError(
                f"a detection has a number, 0 for the surest, and not {self.number!r}; give such a number"
            )
        _refuse_odd(self.of, self.category)

    def score(self, answer: ModelOutput) -> Scores:
        several = [self._found(answer, image) for image in range(answer.batch)]
        return torch.stack([_value(answer, image, found, self) for image, found in enumerate(several)])

    def describe(self, answer: ModelOutput, image: int) -> str:
        found = self._found(answer, image)
        named = f"{answer.name(found.category)} {found.score:.2f}"
        if self.category is not None:
            asked = category_of(self.category, found).describe(classes_of(answer, image, found.candidate), 0)
            return f"{asked} in box {self.number} ({named})"
        part = "" if self.of == "class" else f"{self.of} of "
        return f"{part}{named} (box {self.number})"

    def pin(self, answer: ModelOutput, image: int) -> Target:
        return _followed(answer, image, self._found(answer, image), self, self.describe(answer, image))

    def said(self, answer: ModelOutput) -> Tensor:
        several = [self._found(answer, image) for image in range(answer.batch)]
        return torch.stack([said_of(answer, image, found, self.of) for image, found in enumerate(several)]).sum(0)

    def found_as(self, first: Callable[[], ModelOutput]) -> Hashable:
        answer = first()
        return levels_of(answer, [self._found(answer, image) for image in range(answer.batch)], self.of)

    def of_places(self, answer: ModelOutput) -> bool:
        return True

    def annotations(self, answer: ModelOutput, image: int) -> Annotation:
        return Annotation(box=pixels_to_shares(self._found(answer, image).corners, answer.input_size))

    def cautions(self, answer: ModelOutput) -> list[str]:
        several = [self._found(answer, image) for image in range(answer.batch)]
        cut = [image for image, found in enumerate(several) if is_cut(answer, image, found, self.of)]
        return [
            f"{self.describe(answer, image)}: the detector's own box reaches beyond the picture's edge, where it is cut off; the "
            "score and the map are of the box before that"
            for image in cut
        ]

    def _found(self, answer: ModelOutput, image: int) -> DetectedBox:
        several = answer.candidates.detections[image]
        if self.number < len(several):
            return _known(answer, several[self.number])
        if not several:
            raise TargetError(_nothing(answer, image))
        raise TargetError(
            f"there is no detection {self.number}{in_image(answer, image)}: {answer.model} found {len(several)}, "
            f"{_listed(answer, image)}; give a number from 0 to {len(several) - 1}"
        )


@dataclass(frozen=True)
class AllDetections:
    """All detections that were found with at least the score ``above``, of one class where ``category`` names it: their sum.

    ``of`` is what of them is summed, as in :class:`Detection`. Raises TargetError where there is none, with the highest score.
    """

    above: int | float = 0.5
    of: str = "class"
    category: int | str | None = None

    def __post_init__(self) -> None:
        if not is_number(self.above) or not 0 <= self.above <= 1:
            raise TargetError(
                f"detections are asked about above a score from 0 to 1, not {self.above!r}; give such a score"
            )
        _refuse_odd(self.of, None)

    def score(self, answer: ModelOutput) -> Scores:
        return torch.stack(
            [
                torch.stack([_value(answer, image, found, self) for found in self._found(answer, image)]).sum()
                for image in range(answer.batch)
            ]
        )

    def describe(self, answer: ModelOutput, image: int) -> str:
        count = len(self._found(answer, image))
        part = "" if self.of == "class" else f"{self.of} of "
        named = "" if self.category is None else f"{answer.name(answer.index(self.category))}, "
        return f"{part}{named}{count} box{'es' * (count > 1)} of at least {self.above:g}"

    def pin(self, answer: ModelOutput, image: int) -> Target:
        wording = self.describe(answer, image)
        return _Together(
            tuple(_followed(answer, image, found, self, wording) for found in self._found(answer, image)), wording
        )

    def said(self, answer: ModelOutput) -> Tensor:
        return torch.stack(
            [
                said_of(answer, image, found, self.of)
                for image in range(answer.batch)
                for found in self._found(answer, image)
            ]
        ).sum(0)

    def found_as(self, first: Callable[[], ModelOutput]) -> Hashable:
        answer = first()
        levels = [levels_of(answer, [found], self.of) for found in self._found(answer, 0)]
        return levels[0] if answer.batch == 1 and len(set(levels)) == 1 else None

    def annotations(self, answer: ModelOutput, image: int) -> list[Annotation]:
        return [
            Annotation(box=pixels_to_shares(found.corners, answer.input_size)) for found in self._found(answer, image)
        ]

    def of_places(self, answer: ModelOutput) -> bool:
        return True

    def _found(self, answer: ModelOutput, image: int) -> list[DetectedBox]:
        several = answer.candidates.detections[image]
        if not several:
            raise TargetError(_nothing(answer, image))
        wanted = None if self.category is None else answer.index(self.category)
        fitting = [found for found in several if wanted in (None, found.category)]
        if not fitting:
            named = answer.name(answer.index(self.category or 0))
            raise TargetError(
                f"{answer.model} found no {named}{in_image(answer, image)}, but {_listed(answer, image)}; ask for a class that "
                "is there"
            )
        sure = [_known(answer, found) for found in fitting if found.score >= self.above]
        if not sure:
            raise TargetError(
                f"{answer.model} found nothing with a score of at least {self.above:g}{in_image(answer, image)}: the highest is "
                f"{max(found.score for found in fitting):.2g}",
                remedy=Remedy(
                    "ask above a lower one: AllDetections(above=...)", "ask above a lower one: --above SCORE"
                ),
            )
        return sure


@dataclass(frozen=True)
class _Followed:
    """One candidate in changed images: the same anchor, or the mask, else the box, that overlaps the remembered one most."""

    candidate: int | None
    found: DetectedBox
    box: Tensor  # before it was cut off
    of: str
    category: Any
    called: str
    inside: Tensor | None = None  # where its mask was

    def score(self, answer: ModelOutput) -> Scores:
        return torch.stack([_value(answer, image, self._now(answer, image), self) for image in range(answer.batch)])

    def describe(self, answer: ModelOutput, image: int) -> str:
        return self.called

    def of_places(self, answer: ModelOutput) -> bool:
        return True

    def _now(self, answer: ModelOutput, image: int) -> DetectedBox:
        candidates = answer.candidates
        if self.candidate is not None:
            return self.found
        boxes, sure = candidates.boxes[image].detach(), candidates.logits[image][:, self.found.category].detach()
        if not len(boxes):
            raise TargetError(
                f"{answer.model} has no candidates left in a changed image in which {self.called} is looked for"
            )
        if candidates.masks is not None and self.inside is not None and self.inside.any():
            common = masks_overlaps(candidates.masks[image].detach() > 0, self.inside)
        else:
            common = overlaps(boxes[:, self.found.category] if boxes.ndim == 3 else boxes, self.box)
        nearest = torch.nonzero(common == common.max())[:, 0]
        if self.found.candidate in nearest.tolist():  # as in the unchanged image, whatever else has the same box
            return self.found
        return replace(self.found, candidate=int(nearest[sure[nearest].argmax()]))


@dataclass(frozen=True)
class _Together:
    """The sum of several questions to one image."""

    parts: tuple[Target, ...]
    called: str

    def score(self, answer: ModelOutput) -> Scores:
        return torch.stack([part.score(answer) for part in self.parts]).sum(0)

    def describe(self, answer: ModelOutput, image: int) -> str:
        return self.called

    def of_places(self, answer: ModelOutput) -> bool:
        return True


def _value(answer: ModelOutput, image: int, found: DetectedBox, asked: Any) -> Tensor:
    """Give what is asked ``of`` a candidate, or how it answers a question about classes."""
    candidates, candidate = answer.candidates, found.candidate
    if isinstance(asked, Detection | _Followed) and asked.category is not None:
        return category_of(asked.category, found).score(classes_of(answer, image, candidate))[0]
    if asked.of == "class":
        return candidates.logits[image][candidate, found.category]
    if asked.of == "objectness":
        return objectness_of(answer, image)[candidate]
    if asked.of == "mask":
        mask = mask_of(answer, image, found)
        inside = asked.inside if isinstance(asked, _Followed) and asked.inside is not None else mask > 0
        if not inside.any():
            raise TargetError(f"the mask of {spelled(answer, found)} covers nothing; ask of its class or its box")
        return sum_inside(mask, inside)
    box = box_of(answer, image, found)
    if candidates.logits[image].requires_grad and not box.requires_grad:
        raise TargetError(
            f"the box of {spelled(answer, found)} is drawn around its mask, so no evidence leads to its sides; ask of='mask'"
        )
    return SIDES[asked.of](box)


def _followed(answer: ModelOutput, image: int, found: DetectedBox, asked: Any, wording: str) -> _Followed:
    kept = found.candidate if answer.candidates.is_anchored else None
    category = asked.category if isinstance(asked, Detection) else None
    if category is not None:
        category = category_of(category, found).fixed(classes_of(answer, image, found.candidate), 0)
    inside = None if answer.candidates.masks is None else mask_of(answer, image, found).detach() > 0
    return _Followed(kept, found, box_of(answer, image, found).detach(), asked.of, category, wording, inside)


def _known(answer: ModelOutput, found: DetectedBox) -> DetectedBox:
    if found.candidate is None:
        raise TargetError(
            f"which candidate became {spelled(answer, found)} cannot be told, as the suppression of {answer.model} changes boxes "
            "or scores",
            remedy=Remedy(
                "use targets.SimilarDetection with d_rise, or target=a callable from the output to one score per image"
            ),
        )
    return found


def _refuse_odd(of: Any, category: Any) -> None:
    if of not in _PARTS:
        near = near_names(of, _PARTS) if isinstance(of, str) else f"there are {', '.join(_PARTS)}"
        raise TargetError(f"nothing {of!r} can be asked of a detection; {near}")
    if category is not None and of != "class":
        raise TargetError(f"a category is for of='class', and {of!r} is of the box as it is; leave one of the two out")
    if category is not None:
        as_class(category)  # which refuses what is none


def _nothing(answer: ModelOutput, image: int) -> str:
    return (
        f"{answer.model} found nothing{in_image(answer, image)}; give another picture, lower the model's score threshold "
        "(score_thresh, of R-CNNs roi_heads.score_thresh), or ask about a class: its score is that of the likeliest candidate"
    )


def _listed(answer: ModelOutput, image: int) -> str:
    several = answer.candidates.detections[image]
    first = "; ".join(f"{number}: {spelled(answer, found)}" for number, found in enumerate(several[:_SHOWN]))
    return first + ("; ..." if len(several) > _SHOWN else "")


@dataclass(frozen=True)
class SimilarDetection:
    """How like one detection the likest one found is: its overlap (IoU) times its score, if it is of the same class.

    ``box`` is left, top, right, bottom in the pixels of the detector's input; ``category`` the label as the model gives it, or
    its name. The detector answers as torchvision's do: for each image a dict of ``boxes``, ``labels`` and ``scores``. Petsiuk
    et al., CVPR 2021, arXiv:2006.03204, eq. 1: the largest product of IoU, likeness of the class probabilities and objectness;
    with one label and one score for each detection, the last two are that score, or nothing for another label.
    """

    category: Any
    box: Any

    def score(self, answer: ModelOutput) -> Scores:
        found = _detections(answer)
        label, box = self._label(answer), self._box()
        return torch.stack([_likeness(one, label, box) for one in found])

    def describe(self, answer: ModelOutput, image: int) -> str:
        corners = ", ".join(f"{corner:.0f}" for corner in self._box().tolist())
        label = self._label(answer)
        named = answer.class_names is not None and label < len(answer.class_names)
        return f"{answer.name(label) if named else f'class {label}'} at {corners}"

    def annotations(self, answer: ModelOutput, image: int) -> Annotation:
        return Annotation(box=pixels_to_shares(self._box().tolist(), answer.input_size))

    def _label(self, answer: ModelOutput) -> int:
        if not isinstance(self.category, str):
            if not is_whole_number(self.category):
                raise TargetError(
                    f"the class of a detection is a label or a name, not {self.category!r}; give one of these"
                )
            return int(self.category)
        names = answer.class_names or ()
        if self.category not in names:
            raise TargetError(f"no class {self.category!r} in {answer.model}; {near_names(self.category, names)}")
        return list(names).index(self.category)

    def _box(self) -> Tensor:
        try:
            box = torch.as_tensor(self.box, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            box = torch.empty(0)
        if box.shape != (4,) or not bool((box[2:] > box[:2]).all()):
            raise TargetError(f"the box {self.box} is not left, top, right, bottom with some area; give such a box")
        return box


def _detections(answer: ModelOutput) -> Sequence[Mapping[str, Tensor]]:
    raw: Any = answer.raw
    parts = {"boxes", "labels", "scores"}
    fits = isinstance(raw, list | tuple) and all(isinstance(one, Mapping) and parts <= set(one) for one in raw)
    if not fits or len(raw) != answer.batch:
        raise TargetError(
            f"{answer.model} does not answer with boxes, labels and scores for each of {answer.batch} images",
            remedy=Remedy("pass target=a callable from its output to one score per image"),
        )
    return list(raw)


def _likeness(found: Mapping[str, Tensor], label: int, box: Tensor) -> Tensor:
    boxes, scores = found["boxes"].float(), found["scores"].float()
    if not len(boxes):
        return scores.new_zeros(())
    likeness: Tensor = overlaps(boxes, box.to(boxes.device)) * scores * (found["labels"] == label)
    return likeness.amax()
