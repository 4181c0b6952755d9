"""Targets about what a detector found: the score of a detection before suppression, or where its box ends."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glowmap.cautions import Caution, caution_kind
from glowmap.errors import Remedy, TargetError, is_number, is_whole_number
from glowmap.outputs import DetectedBox, ModelOutput, pixels_to_shares
from glowmap.registry import near_names
from glowmap.shapes import Scores
from glowmap.targets._candidate import (
    PARTS,
    DetectionTarget,
    PinnedDetection,
    PinnedDetections,
    box_overlaps,
    candidate_scores,
    class_of,
    class_output,
    describe_found,
    in_image,
    is_cut_off,
    part_score,
    pin_detection,
    pyramid_levels,
)
from glowmap.targets._target import Annotation, Target, distinct
from glowmap.targets.classes import as_class

_LISTED = 5  # detections that an error message lists
_BOX_CUT_OFF = caution_kind("box-cut-off", "info", "Nothing: the score and the map are of the whole box.")


@dataclass(frozen=True)
class Detection(DetectionTarget):
    """One of the detections that a detector returned (0 has the highest score): its score before suppression, or its box.

    ``of`` is the part of it that is scored:

    - "class": the logit of its class;
    - "objectness": the logit of there being any object (of a detector of two stages, that of its proposal; of FCOS, its
      centerness);
    - "mask": the sum of its mask's logits where they are positive, of a model whose candidates have masks;
    - "left", "top", "right", "bottom", "width" or "height" of its box, in pixels of the input, before the box is cut off at the
      picture's edges.

    ``category`` scores another class of the same candidate: an index, a name or a target about classes,
    ``Contrast("car", "bus")``. In changed images the candidate is followed: by its number where that is an anchor or a cell, else
    by its mask or its box (the largest IoU; of equal ones the same number, else the likelier).

    The layer found for it is the last layer that its class and its box both depend on: the level of the pyramid that it comes
    from. ``hires_cam`` there is ODAM (Zhao and Chan, ICLR 2023, arXiv:2304.06354) without its smoothing.

    Raises TargetError for a number beyond the detections, and lists the first of these; and for a model that is no detector.
    """

    number: int = 0
    of: str = "class"
    category: Any = None

    def __post_init__(self) -> None:
        if not is_whole_number(self.number, 0):
            raise TargetError(
                f"a detection has a number from 0, which has the highest score, not {self.number!r}; give such a number"
            )
        _check_part(self.of, self.category)

    def score(self, output: ModelOutput) -> Scores:
        detections = enumerate(self._all_found(output))
        return torch.stack(
            [part_score(output, image, detection, self.of, category=self.category) for image, detection in detections]
        )

    def describe(self, output: ModelOutput, image: int) -> str:
        detection = self._found(output, image)
        box = f"{output.name(detection.category)} {detection.score:.2f}"
        if self.category is not None:
            target = class_of(self.category, detection)
            return (
                f"{target.describe(class_output(output, image, detection.candidate), 0)} in box {self.number} ({box})"
            )
        part = "" if self.of == "class" else f"{self.of} of "
        return f"{part}{box} (box {self.number})"

    def pin(self, output: ModelOutput, image: int) -> "PinnedDetection":
        detection = self._found(output, image)
        return pin_detection(
            output, image, detection, self.of, description=self.describe(output, image), category=self.category
        )

    def layer_score(self, output: ModelOutput) -> Tensor:
        detections = enumerate(self._all_found(output))
        return torch.stack(
            [candidate_scores(output, image, detection, self.of) for image, detection in detections]
        ).sum(0)

    def layer_key(self, read_output: Callable[[], ModelOutput]) -> Hashable | None:
        output = read_output()
        return pyramid_levels(output, self._all_found(output), self.of)

    def annotations(self, output: ModelOutput, image: int) -> list[Annotation]:
        return [Annotation(box=pixels_to_shares(self._found(output, image).corners, output.input_size))]

    def cautions(self, output: ModelOutput) -> list[Caution]:
        return [
            _BOX_CUT_OFF(
                f"{self.describe(output, image)}: the candidate's box reaches beyond the picture's edge, where the detector cuts "
                "it off; the score and the map are of the box before that"
            )
            for image, detection in enumerate(self._all_found(output))
            if is_cut_off(output, image, detection, self.of)
        ]

    def _all_found(self, output: ModelOutput) -> list[DetectedBox]:
        return [self._found(output, image) for image in range(output.batch)]

    def _found(self, output: ModelOutput, image: int) -> DetectedBox:
        detections = output.candidates.detections[image]
        if self.number < len(detections):
            return _with_candidate(output, detections[self.number])
        if not detections:
            raise TargetError(_nothing_found(output, image))
        raise TargetError(
            f"there is no detection {self.number}{in_image(output, image)}: {output.model} found {len(detections)}, "
            f"{_list_found(output, image)}; give a number from 0 to {len(detections) - 1}"
        )


def for_detector(target: Target) -> Target:
    """Replace the model's own prediction in a target by the detection with the highest score."""
    return target.replace_prediction(lambda category: Detection(category=category))


@dataclass(frozen=True)
class AllDetections(DetectionTarget):
    """The sum over all detections with at least the score ``above``, of one class if ``category`` names it.

    ``of`` is the part of each that is summed, as in :class:`Detection`. Raises TargetError where there is none, and says what the
    highest score is.
    """

    above: int | float = 0.5
    of: str = "class"
    category: int | str | None = None

    def __post_init__(self) -> None:
        if not is_number(self.above) or not 0 <= self.above <= 1:
            raise TargetError(f"above is a score from 0 to 1, not {self.above!r}; give such a score")
        _check_part(self.of, None)

    def score(self, output: ModelOutput) -> Scores:
        return torch.stack([self._sum(output, image, part_score) for image in range(output.batch)])

    def describe(self, output: ModelOutput, image: int) -> str:
        count = len(self._found(output, image))
        part = "" if self.of == "class" else f"{self.of} of "
        name = "" if self.category is None else f"{output.name(output.index(self.category))}, "
        return f"{part}{name}{count} box{'es' * (count > 1)} of at least {self.above:g}"

    def pin(self, output: ModelOutput, image: int) -> "PinnedDetections":
        description = self.describe(output, image)
        detections = self._found(output, image)
        pinned = [pin_detection(output, image, detection, self.of, description=description) for detection in detections]
        return PinnedDetections(tuple(pinned), description)

    def layer_score(self, output: ModelOutput) -> Tensor:
        return torch.stack([self._sum(output, image, candidate_scores) for image in range(output.batch)]).sum(0)

    def layer_key(self, read_output: Callable[[], ModelOutput]) -> Hashable | None:
        output = read_output()
        levels = [pyramid_levels(output, [detection], self.of) for detection in self._found(output, 0)]
        return levels[0] if output.batch == 1 and len(set(levels)) == 1 else None

    def annotations(self, output: ModelOutput, image: int) -> list[Annotation]:
        detections = self._found(output, image)
        return distinct(
            [Annotation(box=pixels_to_shares(detection.corners, output.input_size)) for detection in detections]
        )

    def _sum(
        self, output: ModelOutput, image: int, score: Callable[[ModelOutput, int, DetectedBox, str], Tensor]
    ) -> Tensor:
        detections = self._found(output, image)
        return torch.stack([score(output, image, detection, self.of) for detection in detections]).sum(0)

    def _found(self, output: ModelOutput, image: int) -> list[DetectedBox]:
        detections = output.candidates.detections[image]
        if not detections:
            raise TargetError(_nothing_found(output, image))
        category = None if self.category is None else output.index(self.category)
        of_class = [detection for detection in detections if category in (None, detection.category)]
        if not of_class:
            name = output.name(output.index(self.category or 0))
            raise TargetError(
                f"{output.model} found no {name}{in_image(output, image)}, but {_list_found(output, image)}; give a class that "
                "was found"
            )
        above = [_with_candidate(output, detection) for detection in of_class if detection.score >= self.above]
        if not above:
            raise TargetError(
                f"{output.model} found nothing with a score of at least {self.above:g}{in_image(output, image)}: the highest is "
                f"{max(detection.score for detection in of_class):.2g}",
                remedy=Remedy("give a lower one: AllDetections(above=...)", "give a lower one: --above SCORE"),
            )
        return above


def _with_candidate(output: ModelOutput, detection: DetectedBox) -> DetectedBox:
    """Return a detection whose candidate is known. Raises TargetError for one whose candidate is unknown."""
    if detection.candidate is None:
        raise TargetError(
            f"the candidate of {describe_found(output, detection)} is unknown, as the suppression of {output.model} changes "
            "boxes or scores",
            remedy=Remedy(
                "give targets.SimilarDetection with d_rise, or target=a callable from the output to one score per image"
            ),
        )
    return detection


def _check_part(part: Any, category: Any) -> None:
    if part not in PARTS:
        near = near_names(part, PARTS) if isinstance(part, str) else f"there are {', '.join(PARTS)}"
        raise TargetError(f"a detection has no part {part!r}; {near}")
    if category is not None and part != "class":
        raise TargetError(
            f"category is for of='class', and {part!r} does not depend on a class; leave one of the two out"
        )
    if category is not None:
        as_class(category)  # raises for what is no class


def _nothing_found(output: ModelOutput, image: int) -> str:
    return (
        f"{output.model} found nothing{in_image(output, image)}; give another picture, lower the model's score threshold "
        "(score_thresh, of R-CNNs roi_heads.score_thresh), or give a class as target: its score is that of the likeliest "
        "candidate"
    )


def _list_found(output: ModelOutput, image: int) -> str:
    detections = output.candidates.detections[image]
    listed = enumerate(detections[:_LISTED])
    descriptions = "; ".join(f"{number}: {describe_found(output, detection)}" for number, detection in listed)
    return descriptions + ("; ..." if len(detections) > _LISTED else "")


@dataclass(frozen=True)
class SimilarDetection(Target):
    """The largest similarity of any detection to a given one: IoU times score, for detections of the same class.

    ``box`` is left, top, right, bottom in pixels of the detector's input; ``category`` the label as the model returns it, or its
    name. The detector returns what torchvision's do: for each image a dict of ``boxes``, ``labels`` and ``scores``. Petsiuk et
    al., CVPR 2021, arXiv:2006.03204, eq. 1: the largest product of IoU, similarity of the class probabilities, and objectness. As
    each detection has one label and one score, the last two factors are this score, and zero for another label.
    """

    category: Any
    box: Any
    is_detection = True

    def score(self, output: ModelOutput) -> Scores:
        detections = _raw_detections(output)
        label, box = self._label(output), self._box()
        return torch.stack([_largest_similarity(of_image, label, box) for of_image in detections])

    def describe(self, output: ModelOutput, image: int) -> str:
        corners = ", ".join(f"{corner:.0f}" for corner in self._box().tolist())
        label = self._label(output)
        has_name = output.class_names is not None and label < len(output.class_names)
        return f"{output.name(label) if has_name else f'class {label}'} at {corners}"

    def annotations(self, output: ModelOutput, image: int) -> list[Annotation]:
        return [Annotation(box=pixels_to_shares(self._box().tolist(), output.input_size))]

    def moves_with_image(self, output: ModelOutput) -> bool:
        return False

    def _label(self, output: ModelOutput) -> int:
        if not isinstance(self.category, str):
            if not is_whole_number(self.category):
                raise TargetError(
                    f"the class of a detection is a label or a name, not {self.category!r}; give one of these"
                )
            return int(self.category)
        names = output.class_names or ()
        if self.category not in names:
            raise TargetError(f"no class {self.category!r} in {output.model}; {near_names(self.category, names)}")
        return list(names).index(self.category)

    def _box(self) -> Tensor:
        try:
            box = torch.as_tensor(self.box, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            box = torch.empty(0)
        if box.shape != (4,) or not bool((box[2:] > box[:2]).all()):
            raise TargetError(f"the box {self.box} is not left, top, right, bottom with some area; give such a box")
        return box


def _raw_detections(output: ModelOutput) -> Sequence[Mapping[str, Tensor]]:
    raw: Any = output.raw
    keys = {"boxes", "labels", "scores"}
    fits = isinstance(raw, list | tuple) and all(isinstance(item, Mapping) and keys <= set(item) for item in raw)
    if not fits or len(raw) != output.batch:
        raise TargetError(
            f"{output.model} does not return boxes, labels and scores for each of {output.batch} images",
            remedy=Remedy("pass target=a callable from its output to one score per image"),
        )
    return list(raw)


def _largest_similarity(detections: Mapping[str, Tensor], label: int, box: Tensor) -> Tensor:
    boxes, scores = detections["boxes"].float(), detections["scores"].float()
    if not len(boxes):
        return scores.new_zeros(())
    similarities: Tensor = box_overlaps(boxes, box.to(boxes.device)) * scores * (detections["labels"] == label)
    return similarities.amax()
