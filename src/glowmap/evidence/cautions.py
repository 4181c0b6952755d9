"""Notes of caution: what a person must know before trusting a map."""

from collections.abc import Sequence
from dataclasses import dataclass

from glowmap import tree
from glowmap.capture import Activation
from glowmap.errors import TargetError
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.explanation.maps import is_flat
from glowmap.inputs import Batch
from glowmap.methods import Method
from glowmap.shapes import Flags, RawMaps, Scores, crossed
from glowmap.targets import Target

_CANCELLED = 0.5  # of the gradients' power, from which on an average of them says too little
_MUCH = 0.1  # of the heat on places that the score does not depend on, from which on a note says so


@dataclass(frozen=True)
class MethodMap:
    """A method's map, and for one that weighs gradients what they say of it, an image each."""

    raw: RawMaps
    dead: Flags | None = None  # the score's gradient is zero in every cell
    unused: Scores | None = None  # the share of the heat on cells where it is
    cautions: tuple[str, ...] = ()  # what came up while its evidence was made
    cancelled: Scores | None = None  # the share of the gradients' power that is lost by averaging them over places
    method: str = ""


def run_cautions(run: ForwardPass, was_training: bool) -> list[str]:
    """Say what was unusual about the run."""
    training = "the model is in training mode; it was explained in evaluation mode and given back as it was"
    recorded = run.activations
    cautions = [training] if was_training else []
    cautions += _which_input(run.batch)
    cautions += [caution for name, seen in recorded.items() for caution in _which_maps(name, seen)]
    cautions += [
        f"the output of layer {name!r} was read as {run.layout(name)}, which could not be proven by where its cells look"
        for name in recorded
        if name in run.layouts.unproven
    ]
    return cautions + [
        f"the model runs layer {name!r} under torch.no_grad(); what it computes from it there is missing in the gradients"
        for name, seen in recorded.items()
        if seen.in_no_grad
    ]


def _which_input(batch: Batch) -> list[str]:
    """Say which of several tensors is taken for the images."""
    given = {id(one): one for one in tree.leaves([batch.arguments, batch.keywords]) if one.is_floating_point()}
    alike = [one for one in given.values() if one.ndim == batch.images.ndim]
    if len(alike) < 2:
        return []
    shapes = ", ".join(crossed(one.shape) for one in alike)
    return [f"of {len(alike)} inputs with {batch.images.ndim} axes ({shapes}) the first is taken for the images"]


def _which_maps(name: str, seen: Activation) -> list[str]:
    """Say which run of a layer is explained, and which of the maps that it returns."""
    plain, cautions = name.partition("#")[0], []
    if seen.calls > 1:
        which = "its last run" if seen.run == seen.calls else f"run {seen.run}"
        cautions.append(
            f"layer {plain!r} ran {seen.calls} times; {which} is explained ({plain + '#1'!r} names the first)"
        )
    if len(seen.shapes) > 1:
        shapes = ", ".join(map(crossed, seen.shapes))
        cautions.append(
            f"layer {plain!r} returns {len(seen.shapes)} maps ({shapes}); number {seen.part + 1} of them is "
            "explained, on which alone the model's answer depends"
        )
    return cautions


def map_cautions(found: MethodMap, layer: str, targets: Sequence[str]) -> list[str]:
    """Say what came up, why a heatmap is blank, or what in it was never used, image by image."""
    cautions = [*found.cautions, *_averaged_away(found, layer, targets[0])]
    positive = found.raw.relu()
    blank, highest = is_flat(positive).tolist(), positive.flatten(1).amax(1).tolist()
    for image, (wording, nothing_shows, high) in enumerate(zip(targets, blank, highest, strict=True)):
        unused = 0.0 if found.unused is None else float(found.unused[image])
        if not nothing_shows and unused < _MUCH:
            continue
        if not nothing_shows:
            reason = (
                f"{unused:.0%} of this heat lies where the score does not depend on the layer at all; hires_cam and layer_cam "
                "show only what it depends on"
            )
        elif found.dead is not None and found.dead[image]:
            reason = "the score's gradient is zero everywhere there, so this layer cannot move it; try an earlier layer"
        elif high == 0:
            reason = "the raw map has no positive value, so its heatmap is blank: nothing there speaks for it; see .raw"
        else:
            reason = "the raw map has the same value everywhere, so its heatmap is blank"
        where = f"image {image}, " if len(targets) > 1 else ""
        cautions.append(f"{where}{wording} at {layer!r}: {reason}")
    return cautions


def _averaged_away(found: MethodMap, layer: str, wording: str) -> list[str]:
    """Say why a method that averages gradients says little of a question about a part of the places."""
    if found.cancelled is None or float(found.cancelled.mean()) < _CANCELLED:
        return []
    return [
        f"{found.method} weighs each channel of {layer!r} by its gradient averaged over all places, but {wording} is about a "
        f"part of them, whose gradients differ: {float(found.cancelled.mean()):.0%} of their power is averaged away; hires_cam, "
        "the default for such questions, weighs place by place"
    ]


def blind_cautions(method: Method, question: Target) -> list[str]:
    """Say that a method never reads the score, where a question was put, or is for detections, where none was asked about."""
    if method.for_detections and not (question.is_detection or question.reads_raw_output):
        return [
            f"{method.name} shows how well a detection survives, and this question is about none: the map is that of rise with "
            "finer masks; ask about a detection"
        ]
    if {*method.needs} - {"activations"} or question.is_prediction:
        return []
    return [
        f"{method.name} looks at what the layer put out and never at the score, so its map is the same whatever is asked; for "
        "this question take a method that reads the score, as grad_cam"
    ]


def changed_cautions(kinds: Sequence[str], questions: Sequence[Target], run: ForwardPass) -> list[str]:
    """Caution against callables that pick places: they get what the model says of the changed image as it is.

    Raises TargetError for boxes, which are found elsewhere in a flipped or resized image.
    """
    moving = {"flips", "scales"} & {*kinds}
    if not moving:
        return []
    leaves = [leaf for target in questions for leaf in target.leaves()]
    fixed = [leaf for leaf in leaves if run.output.is_detector or not leaf.moves_with_image(run.output)]
    if fixed:
        raise TargetError(
            f"smoothing by {' and '.join(sorted(moving))} moves objects to other places, where "
            f"{fixed[0].describe(run.output, 0)!r} does not read them; use noise or principal, or give a target that is not "
            "about a place"
        )
    picks = [leaf for leaf in leaves if leaf.reads_raw_output]
    if not picks or run.is_dense is False:
        return []
    return [
        f"{picks[0].describe(run.output, 0)} reads the model's output for flipped or resized images as it is: if it picks "
        "places, it asks about others there; targets.Pixels asks about the same"
    ]
