"""The candidates of torchvision's detectors: boxes and class logits before suppression, in the autograd graph.

For Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite with any backbone, and classes derived from them. The
outputs of the detector's parts are recorded during the forward pass, and its own coder decodes the boxes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeAlias, TypeVar, overload

import numpy as np
import torch
from torch import Tensor, nn

from glowmap.capture import keep_intermediates
from glowmap.capture.intermediates import KeepOutput
from glowmap.errors import Remedy, TargetError
from glowmap.models.model import AroundForward
from glowmap.outputs import Candidates, DetectedBox, ModelOutput
from glowmap.shapes import crossed

# How far the box (pixels) and the score of a detection may differ from those of its candidate.
_BOX_TOLERANCE, _SCORE_TOLERANCE = 0.5, 1e-3
_PREFIX = "torchvision "  # of the names of recorded parts; no layer has such a name
Size: TypeAlias = tuple[int, int]  # rows, columns
Scores: TypeAlias = Callable[
    [Tensor, Tensor | None], Tensor
]  # (class logits, objectness logits) -> the detector's scores
T = TypeVar("T")


def _fcos_scores(logits: Tensor, objectness: Tensor | None) -> Tensor:
    assert objectness is not None
    return (logits.sigmoid() * objectness.sigmoid()[:, None]).sqrt()


_ONE_STAGE: dict[str, Scores] = {
    "RetinaNet": lambda logits, _: logits.sigmoid(),
    "FCOS": _fcos_scores,
    "SSD": lambda logits, _: logits.softmax(1),
}


def has_detector_transform(module: nn.Module) -> bool:
    """Return whether a part of a module normalises, resizes and pads images as torchvision's detectors do."""
    return any(_is_torchvision(part, "GeneralizedRCNNTransform") for part in module.modules())


def detector_in(module: nn.Module) -> nn.Module | None:
    """Return the one known detector among a module and its parts; None for none or several."""
    detectors = [part for part in module.modules() if _is_known(part)]
    return detectors[0] if len(detectors) == 1 else None


def recorded(detector: nn.Module) -> AroundForward:
    """Return a context that records the outputs of a detector's parts."""
    parts: dict[str, tuple[Any, KeepOutput]] = {
        "output": (detector, _output),
        "transform": (detector.transform, _sizes),
    }
    if _is_two_stage(detector):
        rpn: Any = detector.rpn
        parts |= {"proposals": (rpn, _output), "rpn_head": (rpn.head, _output)}
        parts |= {"anchors": (rpn.anchor_generator, _output), "boxes": (_heads(detector).box_predictor, _output)}
    else:
        parts |= {"anchors": (detector.anchor_generator, _output), "head": (detector.head, _output)}
        parts |= {"grids": (detector.anchor_generator, _grids)}
    return lambda model: keep_intermediates(model, {f"{_PREFIX}{name}": part for name, part in parts.items()})


def candidates_reader(detector: nn.Module) -> Callable[[ModelOutput], Candidates]:
    """Return the function that reads a detector's candidates from the recorded outputs of its parts."""
    read = _two_stage_candidates if _is_two_stage(detector) else _one_stage_candidates
    return lambda output: read(detector, output)


def _one_stage_candidates(detector: nn.Module, output: ModelOutput) -> Candidates:
    head = _recorded(output, "head")
    coder: Any = detector.box_coder
    decode = getattr(coder, "decode_single", None) or coder.decode
    objectness = list(head["bbox_ctrness"][..., 0]) if "bbox_ctrness" in head else None
    anchors = _per_image(_recorded(output, "anchors"), output)
    boxes = [decode(deltas, boxes) for deltas, boxes in zip(head["bbox_regression"], anchors, strict=True)]
    generator: Any = detector.anchor_generator
    grids = zip(_recorded(output, "grids"), generator.num_anchors_per_location(), strict=True)
    counts = [math.prod(grid) * anchors_per_cell for grid, anchors_per_cell in grids]
    levels = [torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))] * output.batch
    scores = next(scores for name, scores in _ONE_STAGE.items() if _is_torchvision(detector, name))
    has_softmax = _is_torchvision(detector, "SSD")
    return replace(
        _candidates(output, boxes, list(head["cls_logits"]), objectness, scores),
        is_anchored=True,
        levels=levels,
        uses_sigmoid=not has_softmax,
        background=0 if has_softmax else None,
    )


def _two_stage_candidates(detector: nn.Module, output: ModelOutput) -> Candidates:
    logits, deltas = _recorded(output, "boxes")
    proposals, _ = _recorded(output, "proposals")
    _refuse_other_batch(proposals, output)
    counts = [len(boxes) for boxes in proposals]
    boxes = _heads(detector).box_coder.decode(deltas, proposals).reshape(len(logits), -1, 4)
    if boxes.shape[1] == 1:  # one box for all classes
        boxes = boxes[:, 0]
    objectness = _Lazy(output.batch, lambda image: _proposal_objectness(detector, output, image))
    map_levels = getattr(_heads(detector).box_roi_pool, "map_levels", None)  # by the size of a proposal
    return replace(
        _candidates(output, boxes.split(counts), logits.split(counts), None, lambda logits, _: logits.softmax(1)),
        objectness=objectness,
        levels=None if map_levels is None else map_levels(proposals).split(counts),
        background=0,
    )


def _candidates(
    output: ModelOutput,
    boxes: Sequence[Tensor],
    logits: Sequence[Tensor],
    objectness: Sequence[Tensor] | None,
    to_scores: Scores,
) -> Candidates:
    """Scale boxes to pixels of the input, and match detections to candidates."""
    sizes = _recorded(output, "transform")
    original, resized = _per_image(sizes["original"], output), _per_image(sizes["resized"], output)
    if any(size != output.input_size for size in original):
        raise TargetError(
            f"the detector inside {output.model} gets images of {crossed(original[0])}, not of {crossed(output.input_size)} as "
            "in the input, so its boxes cannot be placed on the input; explain the detector itself"
        )
    scaled = [
        image_boxes * image_boxes.new_tensor([columns / wide, rows / high] * 2)
        for image_boxes, (rows, columns), (high, wide) in zip(boxes, original, resized, strict=True)
    ]
    detections = _recorded(output, "output")

    def matched(image: int) -> list[DetectedBox]:
        with torch.no_grad():
            scores = to_scores(logits[image], None if objectness is None else objectness[image])
            return _matched(detections[image], scaled[image].detach(), scores, original[image])

    (rows, columns), (high, wide) = original[0], resized[0]
    canvas = round(sizes["padded"][0] * rows / high), round(sizes["padded"][1] * columns / wide)
    return Candidates(scaled, logits, _Lazy(len(detections), matched), objectness, canvas=canvas)


def _matched(detections: Mapping[str, Tensor], boxes: Tensor, scores: Tensor, size: Size) -> list[DetectedBox]:
    """Find the candidate of each detection: the nearest box of its class with its score, clipped to the image."""
    clipped = boxes.clamp_min(0).minimum(boxes.new_tensor([size[1], size[0]] * 2))
    # on the host, which a loop over detections would otherwise wait for several times each
    candidate_boxes, candidate_scores = clipped.float().cpu().numpy(), scores.float().cpu().numpy()
    columns = (detections[column].float().cpu().numpy() for column in ("boxes", "labels", "scores"))
    matched = []
    for corners, label, score in zip(*columns, strict=True):
        category = int(label)
        class_scores = candidate_scores[:, category]
        class_boxes = candidate_boxes[:, category] if candidate_boxes.ndim == 3 else candidate_boxes
        same_score = np.flatnonzero(np.abs(class_scores - score) <= _SCORE_TOLERANCE)
        distance = np.abs(class_boxes[same_score] - corners).max(1)
        # boxes that are clipped to the same one differ by their score
        total = distance + np.abs(class_scores[same_score] - score)
        best = int(total.argmin()) if len(same_score) else None
        is_matched = best is not None and distance[best] <= _BOX_TOLERANCE
        candidate = int(same_score[best]) if is_matched else None
        left, top, right, bottom = corners.tolist()
        matched.append(DetectedBox(category, float(score), (left, top, right, bottom), candidate))
    return matched


def _proposal_objectness(detector: nn.Module, output: ModelOutput, image: int) -> Tensor:
    """Return the objectness logit of each proposal: that of the anchor from which the first stage made it."""
    rpn: Any = detector.rpn
    maps, deltas = _recorded(output, "rpn_head")
    size, anchors = _recorded(output, "transform")["resized"][image], _recorded(output, "anchors")[image]
    proposals, _ = _recorded(output, "proposals")
    logits = [level[image].permute(1, 2, 0).flatten() for level in maps]
    moved = [level[image].reshape(-1, 4, *level.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4) for level in deltas]
    boxes = rpn.box_coder.decode_single(torch.cat(moved).detach(), anchors)
    # the first stage's own suppression is run again, for the score of each proposal
    (again,), (scores,) = rpn.filter_proposals(
        boxes[None], torch.cat(logits)[None], [size], [len(level) for level in logits]
    )
    if again.shape != proposals[image].shape or not torch.allclose(again, proposals[image], atol=1e-2):
        raise TargetError(
            f"the first stage of {output.model} makes other proposals when it is run again, so their objectness is unknown; "
            'choose another part of the detection: of="class", "left", ...'
        )
    clipped = boxes.clamp_min(0).minimum(boxes.new_tensor([size[1], size[0]] * 2))
    objectness = torch.cat(logits)
    probabilities = objectness.detach().sigmoid()
    anchors_used = [_origin(clipped, probabilities, box, score) for box, score in zip(again, scores, strict=True)]
    return objectness[torch.tensor(anchors_used, dtype=torch.long, device=objectness.device)]


def _origin(boxes: Tensor, scores: Tensor, box: Tensor, score: Tensor) -> int:
    """Return the index of the nearest box with this score."""
    same_score = torch.nonzero((scores - score).abs() <= 1e-6)[:, 0]
    return int(same_score[(boxes[same_score] - box).abs().amax(1).argmin()])


def _recorded(output: ModelOutput, name: str) -> Any:
    """Return the recorded output of a part, which must have run once."""
    runs = output.intermediates.get(f"{_PREFIX}{name}", ())
    if len(runs) != 1:
        raise TargetError(
            f"the {name.replace('_', ' ')} of {output.model} ran {len(runs)} times, not once, so its detections cannot be "
            "read",
            remedy=Remedy("pass target=a callable from the output to one score per image"),
        )
    return runs[0]


def _per_image(values: Sequence[Any], output: ModelOutput) -> Sequence[Any]:
    """Return one value for each image; a single value holds for all images, which then have one size."""
    if len(values) == 1:
        return list(values) * output.batch
    _refuse_other_batch(values, output)
    return values


def _refuse_other_batch(values: Sequence[Any], output: ModelOutput) -> None:
    """Refuse values of another batch, recorded before parts of the detector were left out of a later pass."""
    if len(values) != output.batch:
        raise TargetError(
            f"the parts of {output.model} ran on {len(values)} images and the model on {output.batch}, so its detections cannot "
            "be read",
            remedy=Remedy("pass target=a callable from the output to one score per image"),
        )


def _output(_arguments: tuple[Any, ...], _keywords: dict[str, Any], output: Any) -> Any:
    return output


def _grids(arguments: tuple[Any, ...], keywords: dict[str, Any], _output: Any) -> list[Size]:
    """Record the rows and columns of the maps on which anchors are laid, one level after another."""
    maps = keywords.get("feature_maps") or arguments[1]
    return [tuple(level.shape[-2:]) for level in maps]


def _sizes(arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> dict[str, Any]:
    """Record the sizes of the images before and after resizing, and of the padded batch."""
    images, transformed = (*arguments, *keywords.values())[0], output[0]
    return {
        "original": [tuple(image.shape[-2:]) for image in images],
        "resized": [tuple(map(int, size)) for size in transformed.image_sizes],
        "padded": tuple(transformed.tensors.shape[-2:]),
    }


def _is_known(module: nn.Module) -> bool:
    if not _is_torchvision(getattr(module, "transform", None), "GeneralizedRCNNTransform"):
        return False
    return _is_two_stage(module) or _is_one_stage(module)


def _is_two_stage(detector: nn.Module) -> bool:
    rpn, heads = getattr(detector, "rpn", None), getattr(detector, "roi_heads", None)
    return all(hasattr(rpn, part) for part in ("head", "anchor_generator", "box_coder", "filter_proposals")) and all(
        hasattr(heads, part) for part in ("box_predictor", "box_coder")
    )


def _is_one_stage(detector: nn.Module) -> bool:
    has_parts = all(hasattr(detector, part) for part in ("head", "anchor_generator", "box_coder"))
    return has_parts and any(_is_torchvision(detector, name) for name in _ONE_STAGE)


def _heads(detector: nn.Module) -> Any:
    return detector.roi_heads


def _is_torchvision(part: object, name: str) -> bool:
    """Return whether an object's class, or one of its base classes, is torchvision's class of this name."""
    return any(cls.__name__ == name and cls.__module__.startswith("torchvision.") for cls in type(part).__mro__)


class _Lazy(Sequence[T], Generic[T]):
    """A sequence whose members are computed at first use: matching detections to candidates costs time."""

    def __init__(self, count: int, compute: Callable[[int], T]) -> None:
        self._count, self._compute = count, compute
        self._members: dict[int, T] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "_Lazy[T]": ...
    def __getitem__(self, index: int | slice) -> "T | _Lazy[T]":
        at = range(self._count)[index]
        if isinstance(at, range):
            return _Lazy(len(at), lambda number: self[at[number]])
        if at not in self._members:
            self._members[at] = self._compute(at)
        return self._members[at]
