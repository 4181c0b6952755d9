"""Cautions about a map: a blank one, heat without effect, gradients that cancel, a method that does not fit the target."""

from collections.abc import Iterator, Sequence

from glowmap.cautions import Caution, caution_kind
from glowmap.errors import TargetError
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.maps import MethodMap
from glowmap.explanation.maps import is_flat
from glowmap.methods import Method
from glowmap.methods.smoothing import MOVING
from glowmap.targets import Target

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


def map_cautions(method_map: MethodMap, target: Target, names: Sequence[str]) -> list[str]:
    """Return the cautions about the maps of one method at one layer. ``names`` are those of the target, one an image."""
    cautions = list(method_map.cautions)
    if method_map.averaged_away is not None:
        cautions += _averaged_gradients(method_map, names[0])
    positive = method_map.raw.relu()
    are_blank, highest = is_flat(positive).tolist(), positive.flatten(1).amax(1).tolist()
    for image, name in enumerate(names):
        unused = 0.0 if method_map.unused_heat is None else float(method_map.unused_heat[image])
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
    if method_map.has_no_gradient is not None and method_map.has_no_gradient[image]:
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
    share = 0.0 if method_map.averaged_away is None else float(method_map.averaged_away.mean())
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
