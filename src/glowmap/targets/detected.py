"""Questions about what a detector found: the score of one detection before suppression, or where its box ends."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.shapes import Scores
from glowmap.shelf import near_names
from glowmap.targets._answer import Answer
from glowmap.targets._candidates import Found
from glowmap.targets._marks import Mark, in_shares
from glowmap.targets._target import Target
from glowmap.targets.classes import as_class

_SIDES: dict[str, Callable[[Tensor], Tensor]] = {  # of left, top, right, bottom
    "left": lambda box: box[0],
    "top": lambda box: box[1],
    "right": lambda box: box[2],
    "bottom": lambda box: box[3],
    "width": lambda box: box[2] - box[0],
    "height": lambda box: box[3] - box[1],
}
_PARTS = ("class", "objectness", "mask", *_SIDES)
_SHOWN = 5  # of the detections, where an error says what was found
_CUT = 0.5  # pixels from which on a side counts as cut off at the picture's edge


@dataclass(frozen=True)
class Detected:
    """One detection of those that a detector kept (the surest is 0): its score before suppression, or where its box ends.

    ``of`` is what of it is asked about: "class", the logit of its class; "objectness", the logit of there being an object at
    all (of a detector of two stages, that of its proposal; of FCOS, its centerness); "mask", the sum of its mask's logits where
    they are positive, of a model whose candidates have masks of their own; or "left", "top", "right", "bottom",
    "width" or "height" of its box, in pixels of the input, before the box is cut off at the picture's edges. ``category`` asks
    how much the same candidate speaks for another class, an index or a name, or puts any question about classes to it:
    ``Rather("car", "bus")``. In changed images the candidate is followed: by its number where that is an anchor or a cell, else
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
        if isinstance(self.number, bool) or not isinstance(self.number, int) or self.number < 0:
            raise TargetError(
                f"a detection has a number, 0 for the surest, and not {self.number!r}; give such a number"
            )
        _refuse_odd(self.of, self.category)

    def score(self, answer: Answer) -> Scores:
        several = [self._found(answer, image) for image in range(answer.batch)]
        return torch.stack([_value(answer, image, found, self) for image, found in enumerate(several)])

    def wording(self, answer: Answer, image: int) -> str:
        found = self._found(answer, image)
        named = f"{answer.name(found.category)} {found.score:.2f}"
        if self.category is not None:
            asked = as_class(self.category).wording(_classes_of(answer, image, found.candidate), 0)
            return f"{asked} in box {self.number} ({named})"
        part = "" if self.of == "class" else f"{self.of} of "
        return f"{part}{named} (box {self.number})"

    def settled(self, answer: Answer, image: int) -> Target:
        return _followed(answer, image, self._found(answer, image), self, self.wording(answer, image))

    def said(self, answer: Answer) -> Tensor:
        several = [self._found(answer, image) for image in range(answer.batch)]
        return torch.stack([_said(answer, image, found, self.of) for image, found in enumerate(several)]).sum(0)

    def found_as(self, first: Callable[[], Answer]) -> Hashable:
        answer = first()
        return _levels(answer, [self._found(answer, image) for image in range(answer.batch)], self.of)

    def of_places(self, answer: Answer) -> bool:
        return True

    def mark(self, answer: Answer, image: int) -> Mark:
        return Mark(box=in_shares(self._found(answer, image).box, answer.input_size))

    def notes(self, answer: Answer) -> list[str]:
        several = [self._found(answer, image) for image in range(answer.batch)]
        cut = [image for image, found in enumerate(several) if _is_cut(answer, image, found, self.of)]
        return [
            f"{self.wording(answer, image)}: the detector's own box reaches beyond the picture's edge, where it is cut off; the "
            "score and the map are of the box before that"
            for image in cut
        ]

    def _found(self, answer: Answer, image: int) -> Found:
        several = answer.candidates.found[image]
        if self.number < len(several):
            return _known(answer, several[self.number])
        if not several:
            raise TargetError(_nothing(answer, image))
        raise TargetError(
            f"there is no detection {self.number}{_where(answer, image)}: {answer.model} found {len(several)}, "
            f"{_listed(answer, image)}; give a number from 0 to {len(several) - 1}"
        )


@dataclass(frozen=True)
class AllDetected:
    """All detections that were found with at least the score ``above``, of one class where ``category`` names it: their sum.

    ``of`` is what of them is summed, as in :class:`Detected`. Raises TargetError where there is none, with the highest score.
    """

    above: int | float = 0.5
    of: str = "class"
    category: int | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.above, bool) or not isinstance(self.above, int | float) or not 0 <= self.above <= 1:
            raise TargetError(
                f"detections are asked about above a score from 0 to 1, not {self.above!r}; give such a score"
            )
        _refuse_odd(self.of, None)

    def score(self, answer: Answer) -> Scores:
        return torch.stack(
            [
                torch.stack([_value(answer, image, found, self) for found in self._found(answer, image)]).sum()
                for image in range(answer.batch)
            ]
        )

    def wording(self, answer: Answer, image: int) -> str:
        count = len(self._found(answer, image))
        part = "" if self.of == "class" else f"{self.of} of "
        named = "" if self.category is None else f"{answer.name(answer.index(self.category))}, "
        return f"{part}{named}{count} box{'es' * (count > 1)} of at least {self.above:g}"

    def settled(self, answer: Answer, image: int) -> Target:
        wording = self.wording(answer, image)
        return _Together(
            tuple(_followed(answer, image, found, self, wording) for found in self._found(answer, image)), wording
        )

    def said(self, answer: Answer) -> Tensor:
        return torch.stack(
            [
                _said(answer, image, found, self.of)
                for image in range(answer.batch)
                for found in self._found(answer, image)
            ]
        ).sum(0)

    def found_as(self, first: Callable[[], Answer]) -> Hashable:
        answer = first()
        levels = [_levels(answer, [found], self.of) for found in self._found(answer, 0)]
        return levels[0] if answer.batch == 1 and len(set(levels)) == 1 else None

    def mark(self, answer: Answer, image: int) -> list[Mark]:
        return [Mark(box=in_shares(found.box, answer.input_size)) for found in self._found(answer, image)]

    def of_places(self, answer: Answer) -> bool:
        return True

    def _found(self, answer: Answer, image: int) -> list[Found]:
        several = answer.candidates.found[image]
        if not several:
            raise TargetError(_nothing(answer, image))
        wanted = None if self.category is None else answer.index(self.category)
        fitting = [found for found in several if wanted in (None, found.category)]
        if not fitting:
            named = answer.name(answer.index(self.category or 0))
            raise TargetError(
                f"{answer.model} found no {named}{_where(answer, image)}, but {_listed(answer, image)}; ask for a class that is "
                "there"
            )
        sure = [_known(answer, found) for found in fitting if found.score >= self.above]
        if not sure:
            raise TargetError(
                f"{answer.model} found nothing with a score of at least {self.above:g}{_where(answer, image)}: the highest is "
                f"{max(found.score for found in fitting):.2g}; ask above a lower one: AllDetected(above=...)"
            )
        return sure


@dataclass(frozen=True)
class _Followed:
    """One candidate in changed images: the same anchor, or the mask, else the box, that overlaps the remembered one most."""

    candidate: int | None
    found: Found
    box: Tensor  # before it was cut off
    of: str
    category: Any
    called: str
    inside: Tensor | None = None  # where its mask was

    def score(self, answer: Answer) -> Scores:
        return torch.stack([_value(answer, image, self._now(answer, image), self) for image in range(answer.batch)])

    def wording(self, answer: Answer, image: int) -> str:
        return self.called

    def of_places(self, answer: Answer) -> bool:
        return True

    def _now(self, answer: Answer, image: int) -> Found:
        candidates = answer.candidates
        if self.candidate is not None:
            return self.found
        boxes, sure = candidates.boxes[image].detach(), candidates.logits[image][:, self.found.category].detach()
        if not len(boxes):
            raise TargetError(
                f"{answer.model} has no candidates left in a changed image in which {self.called} is looked for"
            )
        if candidates.masks is not None and self.inside is not None and self.inside.any():
            overlaps = _masks_overlaps(candidates.masks[image].detach() > 0, self.inside)
        else:
            overlaps = _overlaps(boxes[:, self.found.category] if boxes.ndim == 3 else boxes, self.box)
        nearest = torch.nonzero(overlaps == overlaps.max())[:, 0]
        if self.found.candidate in nearest.tolist():  # as in the unchanged image, whatever else has the same box
            return self.found
        return replace(self.found, candidate=int(nearest[sure[nearest].argmax()]))


@dataclass(frozen=True)
class _Together:
    """The sum of several questions to one image."""

    parts: tuple[Target, ...]
    called: str

    def score(self, answer: Answer) -> Scores:
        return torch.stack([part.score(answer) for part in self.parts]).sum(0)

    def wording(self, answer: Answer, image: int) -> str:
        return self.called

    def of_places(self, answer: Answer) -> bool:
        return True


def _value(answer: Answer, image: int, found: Found, asked: Any) -> Tensor:
    """Give what is asked ``of`` a candidate, or how it answers a question about classes."""
    candidates, candidate = answer.candidates, found.candidate
    if isinstance(asked, Detected | _Followed) and asked.category is not None:
        return as_class(asked.category).score(_classes_of(answer, image, candidate))[0]
    if asked.of == "class":
        return candidates.logits[image][candidate, found.category]
    if asked.of == "objectness":
        return _objectness(answer, image)[candidate]
    if asked.of == "mask":
        mask = _mask(answer, image, found)
        inside = asked.inside if isinstance(asked, _Followed) and asked.inside is not None else mask > 0
        if not inside.any():
            raise TargetError(f"the mask of {_shown(answer, found)} covers nothing; ask of its class or its box")
        return _summed(mask, inside)
    box = _box(answer, image, found)
    if candidates.logits[image].requires_grad and not box.requires_grad:
        raise TargetError(
            f"the box of {_shown(answer, found)} is drawn around its mask, so no evidence leads to its sides; ask of='mask'"
        )
    return _SIDES[asked.of](box)


def _said(answer: Answer, image: int, found: Found, of: str) -> Tensor:
    """List what is said of a candidate at one stage: its class, its box in units of its own size, its objectness."""
    candidates = answer.candidates
    parts: list[Tensor] = []
    if candidates.anchored or of != "objectness":
        box = _box(answer, image, found)
        sizes = torch.stack([_SIDES["width"](box), _SIDES["height"](box)] * 2).detach().clamp_min(1)
        parts += [candidates.logits[image][found.candidate, found.category], (box / sizes).sum()]
    if of == "objectness" or (candidates.anchored and candidates.objectness is not None):
        parts.append(_objectness(answer, image)[found.candidate])
    if candidates.masks is not None:
        mask = _mask(answer, image, found)
        parts.append(_summed(mask, mask > 0) / (mask > 0).sum().clamp_min(1))
    return torch.stack(parts)


def _levels(answer: Answer, found: Sequence[Found], of: str) -> Hashable:
    """Tell from which levels of a pyramid detections come, one an image, which decides their layer; None where it is unknown."""
    candidates = answer.candidates
    if candidates.levels is None or (of == "objectness" and not candidates.anchored):
        return None
    return (of == "objectness", *(int(candidates.levels[image][one.candidate]) for image, one in enumerate(found)))


def _followed(answer: Answer, image: int, found: Found, asked: Any, wording: str) -> _Followed:
    kept = found.candidate if answer.candidates.anchored else None
    category = asked.category if isinstance(asked, Detected) else None
    if category is not None:
        category = as_class(category).fixed(_classes_of(answer, image, found.candidate), 0)
    inside = None if answer.candidates.masks is None else _mask(answer, image, found).detach() > 0
    return _Followed(kept, found, _box(answer, image, found).detach(), asked.of, category, wording, inside)


def _classes_of(answer: Answer, image: int, candidate: int | None) -> Answer:
    """Read one candidate's class logits as a classifier's answer."""
    logits = answer.candidates.logits[image][candidate]
    return replace(answer.only(image), read_candidates=None, read_logits=lambda _: logits[None])


def _box(answer: Answer, image: int, found: Found) -> Tensor:
    box = answer.candidates.boxes[image][found.candidate]
    return box[found.category] if box.ndim == 2 else box


def _mask(answer: Answer, image: int, found: Found) -> Tensor:
    masks = answer.candidates.masks
    if masks is None:
        raise TargetError(
            f"{answer.model} gives its candidates no masks of their own; ask of its class, or of a side of its box: "
            f"{', '.join(_SIDES)}"
        )
    return masks[image][found.candidate]


def _objectness(answer: Answer, image: int) -> Tensor:
    objectness = answer.candidates.objectness
    if objectness is None:
        raise TargetError(
            f"{answer.model} has no score of there being an object at all; ask of its class, or of a side of its box: "
            f"{', '.join(_SIDES)}"
        )
    return objectness[image]


def _is_cut(answer: Answer, image: int, found: Found, of: str) -> bool:
    if of not in _SIDES:
        return False
    own, shown = _box(answer, image, found).detach(), torch.tensor(found.box)
    return abs(float(_SIDES[of](own)) - float(_SIDES[of](shown))) > _CUT


def _overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """Measure the overlap (IoU) of boxes with one."""
    low, high = torch.maximum(boxes[:, :2], box[:2]), torch.minimum(boxes[:, 2:], box[2:])
    common = (high - low).clamp_min(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return common / (areas - common).clamp_min(torch.finfo(boxes.dtype).tiny)


def _summed(mask: Tensor, inside: Tensor) -> Tensor:
    """Sum a mask's logits at a set of its cells; in half precision such sums overflow."""
    return ((mask if mask.dtype == torch.float64 else mask.float()) * inside).sum()


def _masks_overlaps(masks: Tensor, mask: Tensor) -> Tensor:
    """Measure the overlap (IoU) of masks with one."""
    return (masks & mask).flatten(1).sum(1) / (masks | mask).flatten(1).sum(1)


def _known(answer: Answer, found: Found) -> Found:
    if found.candidate is None:
        raise TargetError(
            f"which candidate became {_shown(answer, found)} cannot be told, as the suppression of {answer.model} changes boxes "
            "or scores; use targets.Detection with d_rise, or target=a callable from the output to one score per image"
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


def _nothing(answer: Answer, image: int) -> str:
    return (
        f"{answer.model} found nothing{_where(answer, image)}; give another picture, lower the model's score threshold "
        "(score_thresh, of R-CNNs roi_heads.score_thresh), or ask about a class: its score is that of the likeliest candidate"
    )


def _listed(answer: Answer, image: int) -> str:
    several = answer.candidates.found[image]
    first = "; ".join(f"{number}: {_shown(answer, found)}" for number, found in enumerate(several[:_SHOWN]))
    return first + ("; ..." if len(several) > _SHOWN else "")


def _shown(answer: Answer, found: Found) -> str:
    return f"{answer.name(found.category)} {found.score:.2f} at {', '.join(f'{side:.0f}' for side in found.box)}"


def _where(answer: Answer, image: int) -> str:
    return f" in image {image}" if answer.batch > 1 else ""
