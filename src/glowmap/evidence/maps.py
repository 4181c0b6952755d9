"""Raw maps of targets, by methods, at layers; averaged over changed images where smoothing is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor

from glowmap import tree
from glowmap.errors import ModelError, TargetError
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import INPUT, map_places, pass_options
from glowmap.evidence.layer import gradient_summary
from glowmap.evidence.scored_pass import ScoredPass
from glowmap.evidence.session import Session
from glowmap.methods import Method, reduced_for
from glowmap.methods.smoothing import Variant, resize_like, variants
from glowmap.metrics import energy_share
from glowmap.outputs import ModelOutput
from glowmap.progress import tracked
from glowmap.shapes import Flags, RawMaps, Scores
from glowmap.targets import Target, pin_images


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
    cautions: tuple[str, ...] = ()  # from making the evidence
    has_no_gradient: Flags | None = None  # the score's gradient is zero in every cell
    unused_heat: Scores | None = None  # the share of the heat in cells where it is zero
    averaged_away: Scores | None = (
        None  # the share of the gradients' power that is lost by averaging them over the grid
    )


def score_target(target: Target, output: ModelOutput) -> Scores:
    """Score a target. Raises TargetError for one that writes into the output, which others read."""
    tensors = list(tree.leaves(output.raw))
    versions = [tensor._version for tensor in tensors]
    scores = target.checked_score(output)
    if [tensor._version for tensor in tensors] != versions:
        raise TargetError(
            f"the target {target.describe(output, 0)!r} writes into the model's output in place; write output * 2, not "
            "output *= 2"
        )
    return scores


def method_maps(forward_pass: ForwardPass, job: Job) -> list[MethodMap]:
    """Apply every method of a job at each of its layers, or once where it needs none."""
    scored = ScoredPass(forward_pass, job.target, job.scores, job.layers)
    return [_method_map(method, scored, layer) for method in job.methods for layer in map_places(method, job.layers)]


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
    options = pass_options([method for job in jobs for method in job.methods], reruns=True)
    sums: list[list[MethodMap]] = []
    for change in tracked(changes, len(changes), "smoothing"):
        changed = session.run(
            forward_pass.layers,
            options,
            batch=forward_pass.batch.changed(change.change),
            realign=partial(_realign, change, forward_pass),
        )
        changed.keep_layers(forward_pass.layers)
        for number, job in enumerate(jobs):
            changed_job = replace(job, scores=score_target(job.target, changed.output))
            maps = [_undo(change, method_map, grids) for method_map in method_maps(changed, changed_job)]
            sums[number:] = [list(map(_add, sums[number], maps))] if number < len(sums) else [maps]
    return [[replace(total, raw=total.raw / len(changes)) for total in maps] for maps in sums]


def _method_map(method: Method, scored: ScoredPass, layer: str) -> MethodMap:
    """Apply a method. Raises ModelError for a map that is not finite."""
    cautions = scored.forward_pass.cautions
    before = len(cautions)
    evidence = scored.evidence(method.needs, layer)
    with torch.autocast(
        scored.forward_pass.batch.images.device.type, enabled=False
    ):  # half precision is not enough for a method's arithmetic
        raw = torch.cat([method(**part) for part in evidence])
    own_cautions = tuple(cautions[before:])
    del cautions[before:]  # they are about this map alone
    if not raw.isfinite().all():  # a map is finite only if its evidence is: one cheap test for all
        _refuse_not_finite(method, evidence, raw, layer)
    if "gradients" not in method.needs:
        return MethodMap(raw, method, layer, own_cautions)
    zero, averaged_away = scored.once(gradient_summary, layer)
    return MethodMap(
        raw,
        method,
        layer,
        own_cautions,
        has_no_gradient=zero.flatten(1).all(1),
        unused_heat=energy_share(raw.relu(), zero) if raw.shape == zero.shape else None,
        averaged_away=averaged_away if method.pools else None,
    )


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
