"""Raw maps of targets, by methods, at layers, averaged over changed images for smoothing; and the cautions about these maps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor

from glowmap.cautions import Caution, caution_kind
from glowmap.errors import ModelError, TargetError
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import INPUT, ScoredPass, map_places, pass_options
from glowmap.evidence.layer import NO_GRADIENTS, GradientSummary, gradient_summary
from glowmap.evidence.session import Session
from glowmap.methods import Method, is_flat, reduced_for
from glowmap.methods.smoothing import MOVING, Variant, resize_like, variants
from glowmap.metrics import energy_share
from glowmap.progress import tracked
from glowmap.shapes import RawMaps, Scores
from glowmap.targets import Target, pin_images

_MUCH_AVERAGED_AWAY = 0.5  # of the gradients' power
_MUCH_UNUSED = 0.1  # of the heat

BLANK_MAP = caution_kind(
    "blank-map", "caution", "Look at the raw map; it may be negative. Try another layer or target."
)
ZERO_GRADIENT = caution_kind("zero-gradient", "caution", "Try an earlier layer.")
UNUSED_HEAT = caution_kind("unused-heat", "caution", "Use hires_cam or layer_cam.")
AVERAGED_GRADIENTS = caution_kind("averaged-gradients", "caution", "Use hires_cam.")
IGNORED_TARGET = caution_kind("ignored-target", "caution", "Use a method that reads the score, such as grad_cam.")
NO_DETECTION = caution_kind("no-detection", "caution", "Give a target that is a detection, or use rise.")
MOVED_OUTPUT = caution_kind(
    "moved-output", "caution", "Give a target that is a mask (targets.Pixels) instead of a callable."
)


@dataclass(frozen=True)
class Job:
    """A target to explain: its place in the call, its scores, and the methods and layers to explain it by."""

    number: int
    target: Target
    scores: Scores
    methods: Sequence[Method]
    layers: Sequence[str]


@dataclass(frozen=True)
class MethodMap:
    """The raw maps of a method at a layer, one an image, and for a method that needs gradients what these say of the maps."""

    raw: RawMaps
    method: Method
    layer: str  # or the names of all layers that are joined, or what else the maps lie on
    cautions: tuple[Caution, ...] = ()  # from making the evidence
    gradients: GradientSummary = NO_GRADIENTS  # what the gradients at the layer say of the maps


def method_maps(forward_pass: ForwardPass, job: Job) -> list[MethodMap]:
    """Apply every method of a job at each of its layers, or once where it needs none. Raises ModelError for NaN or infinity."""
    scored = ScoredPass(forward_pass, job.target, job.scores, job.layers)
    device, cautions = forward_pass.batch.images.device.type, forward_pass.cautions
    maps = []
    for method in job.methods:
        for layer in map_places(method.needs, tuple(job.layers)):
            before = len(cautions)
            evidence = scored.evidence(method.needs, layer)
            with torch.autocast(device, enabled=False):  # half precision is not enough for a method's arithmetic
                raw = torch.cat([method(**part) for part in evidence])
            own_cautions = tuple(cautions[before:])
            del cautions[before:]  # they are about this map alone
            if not raw.isfinite().all():  # a map is finite only if its evidence is: one cheap test for all
                _refuse_not_finite(method, evidence, raw, layer)
            summary = scored.once(gradient_summary, layer) if "gradients" in method.needs else NO_GRADIENTS
            maps.append(MethodMap(raw, method, layer, own_cautions, summary))
    return maps


def smoothed_maps(
    session: Session, forward_pass: ForwardPass, jobs: Sequence[Job], smoothing: Sequence[str], seed: int
) -> list[list[MethodMap]]:
    """Average the maps of changed images after undoing the changes. The targets are those of the unchanged images."""
    changes = variants(smoothing, forward_pass.batch.images, seed)
    grids = {
        layer: forward_pass.maps(layer, forward_pass.recording[layer].output.detach()) for layer in forward_pass.layers
    }
    grids[INPUT] = forward_pass.batch.images
    jobs = [
        replace(job, target=pin_images(job.target, forward_pass.output), methods=reduced_for(job.methods, smoothing))
        for job in jobs
    ]
    options = pass_options(tuple(method.needs for job in jobs for method in job.methods), reruns=True)
    sums: dict[int, list[MethodMap]] = {}  # by the job's number
    for change in tracked(changes, len(changes), "smoothing"):
        changed = session.run(
            forward_pass.layers,
            options,
            batch=forward_pass.batch.changed(change.change),
            realign=partial(_realign, change, forward_pass),
        )
        changed.keep_layers(forward_pass.layers)
        for number, job in enumerate(jobs):
            changed_job = replace(job, scores=job.target.checked_score(changed.output))
            maps = [_undo(change, method_map, grids) for method_map in method_maps(changed, changed_job)]
            sums[number] = list(map(_add, sums[number], maps)) if number in sums else maps
    return [[replace(total, raw=total.raw / len(changes)) for total in sums[number]] for number in range(len(jobs))]


def _refuse_not_finite(method: Method, evidence: Sequence[dict[str, object]], raw: RawMaps, layer: str) -> NoReturn:
    kinds = [kind for kind, value in evidence[0].items() if isinstance(value, Tensor)]
    tensors = {kind: torch.cat([part[kind] for part in evidence]) for kind in kinds}  # type: ignore[misc] # tensors all
    for name, tensor in {**tensors, f"{method.name} map": raw}.items():
        images = [str(number) for number, image in enumerate(tensor) if not image.isfinite().all()]
        if images:
            raise ModelError(
                f"NaN or infinity in the {name} of layer {layer!r} for image {', '.join(images[:10])}; "
                "look for overflow (half precision?), division by zero or damaged weights in the model"
            )
    raise AssertionError("called for a map that is not finite")


def _realign(change: Variant, forward_pass: ForwardPass, logits: Tensor) -> Tensor:
    """Undo the change in the logits of a dense model, and resize them to those of the unchanged image."""
    is_dense = logits.ndim > 2 and logits[0, 0].numel() > 1
    return resize_like(change.undo(logits), forward_pass.output.logits) if is_dense else logits


def _undo(change: Variant, method_map: MethodMap, grids: dict[str, Tensor]) -> MethodMap:
    """Undo the change in a map, and resize it to the grid for the unchanged image, or to that of the first variant."""
    raw = change.undo(method_map.raw[:, None])
    raw = resize_like(raw, grids.setdefault(method_map.layer, raw))[:, 0]
    return MethodMap(raw, method_map.method, method_map.layer, method_map.cautions)


def _add(total: MethodMap, method_map: MethodMap) -> MethodMap:
    cautions = tuple(dict.fromkeys((*total.cautions, *method_map.cautions)))
    return replace(total, raw=total.raw + method_map.raw, cautions=cautions)


def map_cautions(method_map: MethodMap, target: Target, names: Sequence[str]) -> list[Caution]:
    """Return the cautions about the maps of one method at one layer. ``names`` are those of the target, one an image."""
    cautions, zero = list(method_map.cautions), method_map.gradients.zero
    if method_map.method.pools and method_map.gradients.averaged_away is not None:
        cautions += _averaged_gradients(method_map, names[0])
    positive = method_map.raw.relu()
    are_blank, highest = is_flat(positive).tolist(), positive.flatten(1).amax(1).tolist()
    unused_heat = [0.0] * len(names)
    if zero is not None and zero.shape == positive.shape and bool(zero.any()):
        unused_heat = energy_share(positive, zero).tolist()
    for image, (name, unused) in enumerate(zip(names, unused_heat, strict=True)):
        where = f"image {image}, " * (len(names) > 1) + f"{name} at {method_map.layer!r}"
        if are_blank[image]:
            cautions.append(_blank_map(method_map, image, where, has_heat=highest[image] != 0))
        elif unused >= _MUCH_UNUSED:
            cautions.append(
                UNUSED_HEAT(
                    f"{where}: {unused:.0%} of this heat lies where the score does not depend on the layer at all; hires_cam and "
                    "layer_cam show only what it depends on"
                )
            )
    method = method_map.method
    if method.for_detections or {*method.needs} <= {"activations"}:
        cautions += _unfit_method(method, target)
    return cautions


def _blank_map(method_map: MethodMap, image: int, where: str, *, has_heat: bool) -> Caution:
    zero = method_map.gradients.zero
    if zero is not None and bool(zero[image].all()):
        return ZERO_GRADIENT(
            f"{where}: the score's gradient is zero everywhere there, so this layer cannot move it; try an earlier layer"
        )
    if has_heat:
        return BLANK_MAP(f"{where}: the raw map has the same value everywhere, so its heatmap is blank")
    return BLANK_MAP(
        f"{where}: the raw map has no positive value, so its heatmap is blank: nothing there speaks for it; see .raw"
    )


def _averaged_gradients(method_map: MethodMap, name: str) -> Iterator[Caution]:
    """Warn of a method that averages gradients, for a target about a part of the picture."""
    averaged_away = method_map.gradients.averaged_away
    share = 0.0 if averaged_away is None else float(averaged_away.mean())
    if share >= _MUCH_AVERAGED_AWAY:
        yield AVERAGED_GRADIENTS(
            f"{method_map.method.name} weighs each channel of {method_map.layer!r} by its gradient averaged over all places, but "
            f"{name} is about a part of them, whose gradients differ: {share:.0%} of their power is averaged away; hires_cam, "
            "the default for such targets, weighs place by place"
        )


def _unfit_method(method: Method, target: Target) -> Iterator[Caution]:
    """Warn of a method that ignores the target, or that is for detections where the target is none."""
    if method.for_detections and not (target.is_detection or target.reads_raw_output):
        yield NO_DETECTION(
            f"{method.name} shows how well a detection survives, and this target is none: the map is that of rise with finer "
            "masks; give a target that is a detection"
        )
    elif not method.for_detections and not target.is_prediction:
        yield IGNORED_TARGET(
            f"{method.name} reads the layer's output and never the score, so its map is the same for every target; for this one "
            "use a method that reads the score, such as grad_cam"
        )


def smoothing_cautions(smoothing: Sequence[str], targets: Sequence[Target], forward_pass: ForwardPass) -> list[Caution]:
    """Warn of callables that get the output for flipped or resized images, which they may read at fixed places.

    Raises TargetError for targets at a place that a flipped or resized image has elsewhere.
    """
    moving = sorted(MOVING & {*smoothing})
    if not moving:
        return []
    output = forward_pass.output
    leaves = [leaf for target in targets for leaf in target.leaves()]
    fixed = [leaf for leaf in leaves if output.readers.are_detections or not leaf.moves_with_image(output)]
    if fixed:
        raise TargetError(
            f"smoothing by {' and '.join(moving)} moves objects to other places, where {fixed[0].describe(output, 0)!r} does not "
            "read them; use noise or principal, or give a target that is not about a place"
        )
    callables = [leaf for leaf in leaves if leaf.reads_raw_output]
    if not callables or forward_pass.is_dense is False:
        return []
    return [
        MOVED_OUTPUT(
            f"{callables[0].describe(output, 0)} reads the model's output for flipped or resized images as it is: if it reads "
            "fixed places, these show something else there; targets.Pixels follows the change"
        )
    ]
