"""What torchvision's detectors might have found: their boxes and class logits before suppression, in the graph of the pass.

Read are Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite, with any backbone, and what is derived of them. Their
parts are watched while they run, and boxes are decoded by the detector's own coder.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Generic, TypeAlias, TypeVar, overload

import torch
from torch import Tensor, nn

from glowmap.capture import keep_intermediates
from glowmap.capture.intermediates import KeepOutput
from glowmap.errors import Remedy, TargetError
from glowmap.outputs import Candidates, DetectedBox, ModelOutput
from glowmap.shapes import crossed

_PIXELS, _SCORE = 0.5, 1e-3  # how far a box and a score may lie off those of the candidate that they came from
_OF = "torchvision "  # before the names under which parts are kept, which no layer has
Size: TypeAlias = tuple[int, int]
Judge: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]  # (class logits, objectness) -> the scores that it shows
T = TypeVar("T")
_JUDGES: dict[str, Judge] = {  # of one-stage detectors
    "RetinaNet": lambda logits, _: logits.sigmoid(),
    "FCOS": lambda logits, objectness: (logits.sigmoid() * _given(objectness).sigmoid()[:, None]).sqrt(),
    "SSD": lambda logits, _: logits.softmax(1),
}


def lays_out_anew(module: nn.Module) -> bool:
    """Tell whether a part of a model normalises, resizes and pads its input as torchvision's detectors do."""
    return any(_is_a(part, "GeneralizedRCNNTransform") for part in module.modules())


def detector_in(module: nn.Module) -> nn.Module | None:
    """Find the one detector in a model whose candidates can be read, which may be the model itself."""
    readable = [part for part in module.modules() if _is_read(part)]
    return readable[0] if len(readable) == 1 else None


def watched(detector: nn.Module) -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Make what keeps the outputs of a detector's parts while the model is run that it is in."""
    parts: dict[str, tuple[Any, KeepOutput]] = {
        "output": (detector, _output),
        "transform": (detector.transform, _sizes),
    }
    if _is_two_staged(detector):
        rpn: Any = detector.rpn
        parts |= {"proposals": (rpn, _output), "rpn_head": (rpn.head, _output)}
        parts |= {"anchors": (rpn.anchor_generator, _output), "boxes": (_heads(detector).box_predictor, _output)}
    else:
        parts |= {"anchors": (detector.anchor_generator, _output), "head": (detector.head, _output)}
        parts |= {"grids": (detector.anchor_generator, _grids)}
    return lambda model: keep_intermediates(model, {f"{_OF}{name}": part for name, part in parts.items()})


def candidates_of(detector: nn.Module) -> Callable[[ModelOutput], Candidates]:
    """Make what reads a detector's candidates from the outputs of its parts."""
    read = _of_two_stages if _is_two_staged(detector) else _of_one_stage
    return lambda answer: read(detector, answer)


def _of_one_stage(detector: nn.Module, answer: ModelOutput) -> Candidates:
    kept, sizes = _kept(answer, "head"), _kept(answer, "transform")
    coder: Any = detector.box_coder
    decode = getattr(coder, "decode_single", None) or coder.decode
    logits = list(kept["cls_logits"])
    objectness = list(kept["bbox_ctrness"][..., 0]) if "bbox_ctrness" in kept else None
    anchors = _for_each(_kept(answer, "anchors"), answer)
    boxes = [decode(regression, own) for regression, own in zip(kept["bbox_regression"], anchors, strict=True)]
    here: Any = detector.anchor_generator
    counts = [
        math.prod(grid) * each
        for grid, each in zip(_kept(answer, "grids"), here.num_anchors_per_location(), strict=True)
    ]
    levels = [torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))] * answer.batch
    judge = _given(_judge(detector))
    read = _candidates(answer, sizes, boxes, logits, objectness, judge, is_anchored=True)
    softmax = _is_a(detector, "SSD")
    return replace(read, levels=levels, uses_sigmoid=not softmax, background=0 if softmax else None)


def _of_two_stages(detector: nn.Module, answer: ModelOutput) -> Candidates:
    logits, regression = _kept(answer, "boxes")
    sizes, (proposals, _) = _kept(answer, "transform"), _kept(answer, "proposals")
    _refuse_others(proposals, answer)
    counts = [len(one) for one in proposals]
    boxes = _heads(detector).box_coder.decode(regression, proposals).reshape(len(logits), -1, 4)
    if boxes.shape[1] == 1:  # one box for all classes
        boxes = boxes[:, 0]
    objectness = _Lazy(answer.batch, lambda image: _proposed(detector, answer, image))

    def judge(logits: Tensor, _: Tensor | None) -> Tensor:
        return logits.softmax(1)

    read = _candidates(answer, sizes, boxes.split(counts), logits.split(counts), objectness, judge, is_anchored=False)
    to_levels = getattr(_heads(detector).box_roi_pool, "map_levels", None)  # which pooling chooses by a proposal's size
    levels = None if to_levels is None else to_levels(proposals).split(counts)
    return replace(read, levels=levels, background=0)


def _candidates(
    answer: ModelOutput,
    sizes: Mapping[str, Any],
    boxes: Sequence[Tensor],
    logits: Sequence[Tensor],
    objectness: Sequence[Tensor] | None,
    judge: Judge,
    *,
    is_anchored: bool,
) -> Candidates:
    """Bring boxes to the pixels of the input, and find the candidates of what the detector kept."""
    given, seen, canvas = _for_each(sizes["given"], answer), _for_each(sizes["seen"], answer), sizes["canvas"]
    if any(one != answer.input_size for one in given):
        raise TargetError(
            f"the detector inside {answer.model} gets images of {crossed(given[0])}, and not of {crossed(answer.input_size)} as "
            "they were given, so its boxes cannot be placed on them; explain the detector itself"
        )
    placed = [
        own * own.new_tensor([columns / wide, rows / high] * 2)
        for own, (rows, columns), (high, wide) in zip(boxes, given, seen, strict=True)
    ]
    output = _kept(answer, "output")

    def kept(image: int) -> list[DetectedBox]:
        with torch.no_grad():
            scores = judge(logits[image], objectness[image] if is_anchored and objectness is not None else None)
            return _matched(output[image], placed[image].detach(), scores, given[image])

    (rows, columns), (high, wide) = given[0], seen[0]
    covered = round(canvas[0] * rows / high), round(canvas[1] * columns / wide)
    found = _Lazy(len(output), kept)
    return Candidates(placed, logits, found, objectness, canvas=covered, is_anchored=is_anchored)


def _matched(output: Mapping[str, Tensor], boxes: Tensor, scores: Tensor, size: Size) -> list[DetectedBox]:
    """Find the candidate of each detection: of its class's boxes with its score the nearest, cut off as the detector cuts."""
    edges = boxes.new_tensor([size[1], size[0]] * 2)
    cut = boxes.clamp_min(0).minimum(edges)
    found = []
    for box, category, score in zip(output["boxes"], output["labels"].tolist(), output["scores"].tolist(), strict=True):
        near = torch.nonzero((scores[:, category] - score).abs() <= _SCORE)[:, 0]
        own = cut[near, category] if cut.ndim == 3 else cut[near]
        off = (own - box).abs().amax(1)
        # boxes that are cut to the same one differ by their score
        far = off + (scores[near, category] - score).abs()
        at = int(far.argmin()) if len(near) else None
        candidate = int(near[at]) if at is not None and float(off[at]) <= _PIXELS else None
        found.append(DetectedBox(category, score, tuple(box.tolist()), candidate))
    return found


def _proposed(detector: nn.Module, answer: ModelOutput, image: int) -> Tensor:
    """Find each proposal's logit of being an object: that of the anchor from which the first stage made it."""
    rpn: Any = detector.rpn
    maps, deltas = _kept(answer, "rpn_head")
    size, anchors = _kept(answer, "transform")["seen"][image], _kept(answer, "anchors")[image]
    proposals, _ = _kept(answer, "proposals")
    logits = [one[image].permute(1, 2, 0).flatten() for one in maps]
    moved = [one[image].reshape(-1, 4, *one.shape[2:]).permute(2, 3, 0, 1).reshape(-1, 4) for one in deltas]
    boxes = rpn.box_coder.decode_single(torch.cat(moved).detach(), anchors)
    # it is the first stage's own suppression that says how sure it was of each
    (again,), (scores,) = rpn.filter_proposals(
        boxes[None], torch.cat(logits)[None], [size], [len(one) for one in logits]
    )
    if again.shape != proposals[image].shape or not torch.allclose(again, proposals[image], atol=1e-2):
        raise TargetError(
            f"the proposals of {answer.model} are not what its first stage proposes when it is asked again, so their objectness "
            'is unknown; ask for another part of the detection: of="class", "left", ...'
        )
    edges = boxes.new_tensor([size[1], size[0]] * 2)
    cut, sure = boxes.clamp_min(0).minimum(edges), torch.cat(logits)
    origin = [_origin(cut, sure.detach().sigmoid(), box, score) for box, score in zip(again, scores, strict=True)]
    return sure[torch.tensor(origin, dtype=torch.long, device=sure.device)]


def _origin(boxes: Tensor, scores: Tensor, box: Tensor, score: Tensor) -> int:
    alike = torch.nonzero((scores - score).abs() <= 1e-6)[:, 0]
    return int(alike[(boxes[alike] - box).abs().amax(1).argmin()])


def _kept(answer: ModelOutput, name: str) -> Any:
    """Give what a part put out, which ran once."""
    several = answer.intermediates.get(f"{_OF}{name}", ())
    if len(several) != 1:
        raise TargetError(
            f"the {name.replace('_', ' ')} of {answer.model} ran {len(several)} times and not once, so its detections cannot be "
            "read",
            remedy=Remedy("pass target=a callable from the output to one score per image"),
        )
    return several[0]


def _for_each(several: Sequence[Any], answer: ModelOutput) -> Sequence[Any]:
    """Give what is there for each image; what is there once, for images of one size, is the same for all of them."""
    if len(several) == 1:
        return list(several) * answer.batch
    _refuse_others(several, answer)
    return several


def _refuse_others(several: Sequence[Any], answer: ModelOutput) -> None:
    """Refuse what is of other images: the parts that were not run again may still speak of those before."""
    if len(several) != answer.batch:
        raise TargetError(
            f"the parts of {answer.model} speak of {len(several)} and of {answer.batch} images, so its detections cannot be "
            "read",
            remedy=Remedy("pass target=a callable from the output to one score per image"),
        )


def _output(_arguments: tuple[Any, ...], _keywords: dict[str, Any], output: Any) -> Any:
    return output


def _grids(arguments: tuple[Any, ...], keywords: dict[str, Any], _output: Any) -> list[Size]:
    """Keep the rows and columns of the maps that anchors are laid on, level by level."""
    maps = keywords.get("feature_maps") or arguments[1]
    return [tuple(one.shape[-2:]) for one in maps]


def _sizes(arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> dict[str, Any]:
    """Keep the sizes of the images as they came, as they were resized, and of the canvas that they were laid on."""
    images, laid = (*arguments, *keywords.values())[0], output[0]
    return {
        "given": [tuple(one.shape[-2:]) for one in images],
        "seen": [tuple(map(int, one)) for one in laid.image_sizes],
        "canvas": tuple(laid.tensors.shape[-2:]),
    }


def _is_read(module: nn.Module) -> bool:
    own = _is_a(getattr(module, "transform", None), "GeneralizedRCNNTransform")
    return own and (_is_two_staged(module) or _judge(module) is not None)


def _is_two_staged(detector: nn.Module) -> bool:
    rpn, heads = getattr(detector, "rpn", None), getattr(detector, "roi_heads", None)
    return all(hasattr(rpn, part) for part in ("head", "anchor_generator", "box_coder", "filter_proposals")) and all(
        hasattr(heads, part) for part in ("box_predictor", "box_coder")
    )


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


def _heads(detector: nn.Module) -> Any:
    return detector.roi_heads


def _judge(detector: nn.Module) -> Judge | None:
    if not all(hasattr(detector, part) for part in ("head", "anchor_generator", "box_coder")):
        return None
    return next((judge for name, judge in _JUDGES.items() if _is_a(detector, name)), None)


def _is_a(part: object, name: str) -> bool:
    """Tell whether a class of torchvision's of this name is among those that an object is made of."""
    return any(cls.__name__ == name and cls.__module__.startswith("torchvision.") for cls in type(part).__mro__)


def _given(value: Any) -> Any:
    assert value is not None
    return value
