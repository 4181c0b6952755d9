"""Raw maps of targets, by methods, at layers; averaged over changed images where smoothing is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.errors import ModelError, TargetError
from glowmap.evidence.cautions import MethodMap
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import INPUT, map_places, pass_options
from glowmap.evidence.layer import averaged_away, cells_without_gradient
from glowmap.evidence.scored_pass import ScoredPass
from glowmap.evidence.session import Session
from glowmap.methods import Method
from glowmap.methods.smoothing import Variant, resize_like, variants
from glowmap.metrics import energy_share
from glowmap.outputs import ModelOutput
from glowmap.progress import tracked
from glowmap.shapes import RawMaps, Scores
from glowmap.targets import Target, pin_images


@dataclass(frozen=True)
class Job:
    """A question that was put: its number, its score, and by which methods and at which layers it is explained."""

    number: int
    question: Target
    scores: Scores
    methods: list[Method]
    layers: dict[str, nn.Module]


_Maps: TypeAlias = dict[tuple[int, str], MethodMap]  # by the method's number and the layer


def _averaged(visit: Session, run: ForwardPass, asked: Sequence[Job], kinds: list[str], seed: int) -> list[_Maps]:
    """Average the maps of changed images, laid back over each other; the questions are those of the unchanged ones."""
    sums: dict[tuple[int, int, str], RawMaps] = {}
    cautions: dict[tuple[int, int, str], dict[str, None]] = {}
    changes = variants(kinds, run.batch.images, seed)
    grids = {name: run.maps(name, run.recording[name].output.detach())[:, :1] for name in run.layers}
    grids[INPUT] = run.batch.images[:, :1]
    fixed = [pin_images(one.question, run.output) for one in asked]
    options = pass_options([method for one in asked for method in one.methods])
    for change in tracked(changes, len(changes), "smoothing"):
        again = visit.run(
            run.layers,
            replace(options, reruns=True),
            batch=run.batch.changed(change.change),
            realign=partial(_back, change, run),
        )
        for at, (one, question) in enumerate(zip(asked, fixed, strict=True)):
            scored = ScoredPass(again, question, _score(question, again.output), list(one.layers))
            for (method, layer), found in _maps(one.methods, scored, one.layers).items():
                key, back = (at, method, layer), change.undo(found.raw[:, None])
                back = resize_like(back, grids.setdefault(layer, back))[:, 0]
                sums[key] = sums[key] + back if key in sums else back
                cautions.setdefault(key, {}).update(dict.fromkeys(found.cautions))
    maps: list[_Maps] = [{} for _ in asked]
    for (at, method, layer), total in sums.items():
        maps[at][method, layer] = MethodMap(total / len(changes), cautions=tuple(cautions[at, method, layer]))
    return maps


def _score(question: Target, answer: ModelOutput) -> Scores:
    """Ask the target, hold it to its contract, and refuse one that wrote into the output, which the next would read."""
    outputs = list(tree.leaves(answer.raw))
    versions = [output._version for output in outputs]
    scores = question.checked_score(answer)
    if [output._version for output in outputs] != versions:
        raise TargetError(
            f"the target {question.describe(answer, 0)!r} writes into the model's output in place; write output * 2, not "
            "output *= 2"
        )
    return scores


def _maps(methods: Sequence[Method], scored: ScoredPass, layers: dict[str, nn.Module]) -> _Maps:
    """Apply every method at every layer, or once at the input, in the order in which they were asked for."""
    return {
        (number, layer): _map(method, scored, layer)
        for number, method in enumerate(methods)
        for layer in map_places(method, list(layers))
    }


def _map(method: Method, scored: ScoredPass, layer: str) -> MethodMap:
    """Apply a method. Raises ModelError for a map that is not finite."""
    noted = scored.forward_pass.cautions
    before = len(noted)
    parts = scored.evidence(method.needs, layer)
    with torch.autocast(scored.images.device.type, enabled=False):  # a method's arithmetic is done where it is safe
        raw = torch.cat([method(**part) for part in parts])
    cautions = tuple(noted[before:])
    del noted[before:]  # they are of this map alone
    if not raw.isfinite().all():  # what is not finite in the evidence shows in the map: one small test for all
        tensors = [kind for kind, value in parts[0].items() if isinstance(value, Tensor)]
        known = {kind: torch.cat([part[kind] for part in parts]) for kind in tensors}
        _refuse_not_finite({**known, f"{method.name} map": raw}, layer)
    if "gradients" not in method.needs:
        return MethodMap(raw, cautions=cautions)
    zero = scored.once(cells_without_gradient, layer)
    unused = energy_share(raw.relu(), zero) if raw.shape == zero.shape else None
    cancelled = scored.once(averaged_away, layer) if method.pools else None
    return MethodMap(raw, zero.flatten(1).all(1), unused, cautions, cancelled, method.name)


def _back(change: Variant, run: ForwardPass, logits: Tensor) -> Tensor:
    """Lay what a dense model says of a changed image over what it says of the image itself."""
    dense = logits.ndim > 2 and logits[0, 0].numel() > 1
    return resize_like(change.undo(logits), run.output.logits) if dense else logits


def _refuse_not_finite(evidence: dict[str, Tensor], layer: str) -> NoReturn:
    for kind, maps in evidence.items():
        wrong = [str(i) for i, image in enumerate(maps) if not image.isfinite().all()]
        if wrong:
            raise ModelError(
                f"NaN or infinity in the {kind} of layer {layer!r} for image {', '.join(wrong[:10])}; "
                "look for overflow (half precision?), division by zero or damaged weights in the model"
            )
    raise AssertionError("called for a map that is not finite")
