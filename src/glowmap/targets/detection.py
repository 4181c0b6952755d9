"""Questions about one detection of a detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glowmap.errors import TargetError
from glowmap.shapes import Scores
from glowmap.shelf import near_names
from glowmap.targets._answer import Answer
from glowmap.targets._candidate import overlaps
from glowmap.targets._marks import Mark, in_shares


@dataclass(frozen=True)
class Detection:
    """How like one detection the likest one found is: its overlap (IoU) times its score, if it is of the same class.

    ``box`` is left, top, right, bottom in the pixels of the detector's input; ``category`` the label as the model gives it, or
    its name. The detector answers as torchvision's do: for each image a dict of ``boxes``, ``labels`` and ``scores``. Petsiuk
    et al., CVPR 2021, arXiv:2006.03204, eq. 1: the largest product of IoU, likeness of the class probabilities and objectness;
    with one label and one score for each detection, the last two are that score, or nothing for another label.
    """

    category: Any
    box: Any

    def score(self, answer: Answer) -> Scores:
        found = _detections(answer)
        label, box = self._label(answer), self._box()
        return torch.stack([_likeness(one, label, box) for one in found])

    def wording(self, answer: Answer, image: int) -> str:
        corners = ", ".join(f"{corner:.0f}" for corner in self._box().tolist())
        label = self._label(answer)
        named = answer.class_names is not None and label < len(answer.class_names)
        return f"{answer.name(label) if named else f'class {label}'} at {corners}"

    def mark(self, answer: Answer, image: int) -> Mark:
        return Mark(box=in_shares(self._box().tolist(), answer.input_size))

    def _label(self, answer: Answer) -> int:
        if not isinstance(self.category, str):
            if isinstance(self.category, bool) or not isinstance(self.category, int | np.integer):
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


def _detections(answer: Answer) -> Sequence[Mapping[str, Tensor]]:
    raw: Any = answer.raw
    parts = {"boxes", "labels", "scores"}
    fits = isinstance(raw, list | tuple) and all(isinstance(one, Mapping) and parts <= set(one) for one in raw)
    if not fits or len(raw) != answer.batch:
        raise TargetError(
            f"{answer.model} does not answer with boxes, labels and scores for each of {answer.batch} images; "
            "pass target=a callable from its output to one score per image"
        )
    return list(raw)


def _likeness(found: Mapping[str, Tensor], label: int, box: Tensor) -> Tensor:
    boxes, scores = found["boxes"].float(), found["scores"].float()
    if not len(boxes):
        return scores.new_zeros(())
    likeness: Tensor = overlaps(boxes, box.to(boxes.device)) * scores * (found["labels"] == label)
    return likeness.amax()
