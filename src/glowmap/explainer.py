"""The main path: a model and images, their layers, a forward pass, scores, evidence, methods, and the explanations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import torch
from torch import nn

from glowmap import tree
from glowmap.capture import borrow, call_model
from glowmap.cautions import Caution, caution_kind
from glowmap.errors import LayerError, TargetError
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import ATTENTION, INPUT, is_cheap, pass_options
from glowmap.evidence.maps import Job, MethodMap, map_cautions, method_maps, smoothed_maps, smoothing_cautions
from glowmap.evidence.preparation import Prepared, prepared
from glowmap.evidence.session import Session
from glowmap.explanation.explanation import Explanation, Explanations
from glowmap.layers import Choice, LayerName, Surveyed, find_layers, surveyed
from glowmap.methods import METHODS, Method, read_methods, read_smoothing
from glowmap.models import Model, as_model
from glowmap.targets import TargetLike, as_targets

MethodLike: TypeAlias = str | Method
_DEFAULT, _LOCAL_DEFAULT = "grad_cam", "hires_cam"  # for targets about the whole image, and about a part of it
OF_TARGET = caution_kind("of-target", "caution", "Read the sentence: a target of your own returned it.")


def survey(model: nn.Module | Model, images: Any, *, depth: int = 2) -> list[Surveyed]:
    """Run the model once and list the layers worth naming, at most ``depth`` names deep, in the order in which they ran."""
    model = as_model(model)
    batch = model.read(images)
    with borrow(model.module), torch.no_grad():
        passes = model.text_interface.passes(model, batch, []) if model.text_interface is not None else ()
        model_of_pass = passes[0].model if passes else model
        with model_of_pass.around_forward(model.module), surveyed(model.module, batch.images, depth=depth) as rows:
            call_model(model.module, passes[0].batch if passes else batch)
    return rows


@overload
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: TargetLike = None,
    layer: LayerName | None = None,
    method: MethodLike | None = None,
    smooth: str | Sequence[str] = (),
    seed: int = 0,
) -> Explanation: ...


@overload
def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: Any = None,
    method: Any = None,
    smooth: Any = (),
    seed: int = 0,
) -> Any: ...


def explain(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: Any = None,
    method: Any = None,
    smooth: Any = (),
    seed: int = 0,
) -> Any:
    """Show where a layer holds the evidence for a score, for one picture or a batch.

    ``model`` is any module, and ``images`` its input (a tensor, a tuple of arguments, a dict of keyword arguments); or
    ``model`` is what :func:`glowmap.load` returned, and ``images`` may also be paths, PIL pictures, arrays, bytes, or a list
    of them.

    ``target`` is a class by index or name, a target of :mod:`glowmap.targets` (pixels, an object at a point, a detection, a
    text, a unit, or a combination), a callable from the raw output to one score per image, a tensor with a class for each
    image, or None for the model's prediction: the likeliest class, the class predicted at most pixels, the surest detection,
    or the text that it generates.

    ``layer`` is the dotted name of a module or the module, or None for the layer that the search finds
    (``glowmap.Explainer(model).find(images)`` says which and why).

    ``method`` is a name in ``METHODS``, or such a method with other parameters,
    ``METHODS["rise"].with_parameters(masks=2000)``. None is hires_cam for targets about a part of the picture (pixels,
    detections) and grad_cam for others.

    ``smooth`` averages the maps of changed images (``"flips"``, ``"scales"``, ``"noise"``, drawn from ``seed``), or takes the
    ``"principal"`` component of the channels instead of their sum. A list combines them.

    Returns an :class:`Explanation`; for a list of targets, methods or layers :class:`Explanations`, ordered by target, then
    method, then layer, from one forward pass (one for each text, if the model reads texts one by one). Raises an error of
    :mod:`glowmap.errors` for what cannot be explained.
    """
    return Explainer(model, layer=layer)(images, target=target, method=method, smooth=smooth, seed=seed)


def compare(
    model: nn.Module | Model,
    images: Any,
    *,
    target: Any = None,
    layer: Any = None,
    method: Any = None,
    smooth: str | Sequence[str] = (),
    seed: int = 0,
) -> Explanations:
    """Explain images by several methods at several layers, from one forward pass and as few backward passes as possible.

    Takes the arguments of :func:`explain`; each of ``target``, ``layer`` and ``method`` may be a list. ``method`` is by default
    every method that takes one forward pass and at most one backward pass of the head. In ``panel()`` of the result a row is a
    method and a column is a layer. Raises as :func:`explain` does.
    """
    methods = [candidate for candidate in METHODS.values() if is_cheap(candidate)] if method is None else method
    return Explainer(model, layer=layer).explain_all(images, target=target, method=methods, smooth=smooth, seed=seed)


class Explainer:
    """A model and its layers, bound once for many calls."""

    def __init__(self, model: nn.Module | Model, *, layer: LayerName | Sequence[LayerName] | None = None) -> None:
        self.model = as_model(model)
        self._has_layer_list = isinstance(layer, list | tuple)
        self._named = None if layer is None else find_layers(self.model.module, layer)
        self._choice: Choice | None = None

    @property
    def layer(self) -> Choice | str | None:
        """The named layers, or the layer that was found and why; None before the first images."""
        return self._choice if self._named is None else ", ".join(self._named)

    def find(self, images: Any, *, target: Any = None) -> Choice:
        """Find the layer to explain for such images, with the runners-up. The result is cached by the shape of the input.

        Raises LayerError where no layer's output can be read as a grid with gradients.
        """
        batch = self.model.read(images)
        with borrow(self.model.module):
            first = prepared(self.model, batch, as_targets(target))[0]
            with first.model.around_forward(first.model.module):
                session = Session(first.model, first.batch, self._named)
                self._choice = session.find(first.targets[0][1])
        return self._choice

    def __call__(
        self, images: Any, *, target: Any = None, method: Any = None, smooth: Any = (), seed: int = 0
    ) -> Explanation | Explanations:
        """Explain images, as :func:`explain` does."""
        explanations = self._explain(images, target, method, smooth, seed)
        has_list = self._has_layer_list or any(isinstance(argument, list | tuple) for argument in (target, method))
        return Explanations(explanations) if has_list or len(explanations) > 1 else explanations[0]

    def explain_all(
        self, images: Any, *, target: Any = None, method: Any = None, smooth: Any = (), seed: int = 0
    ) -> Explanations:
        """Explain images as :func:`explain` does. Returns a sequence also for a single target, method and layer."""
        return Explanations(self._explain(images, target, method, smooth, seed))

    def _explain(self, images: Any, target: Any, method: Any, smooth: Any, seed: int) -> list[Explanation]:
        smoothing = read_smoothing(smooth) if smooth != () else []
        request = _Request(None if method is None else read_methods(method), smoothing, seed)
        targets = as_targets(target)
        with torch.inference_mode(False):  # autograd may not save the tensors of inference mode
            batch = self.model.read(images)
        self._choice = None
        numbered: list[tuple[int, Explanation]] = []
        with borrow(self.model.module) as was_training:
            needs_preparation = self.model.text_interface is not None or self.model.readers.are_detections
            if needs_preparation or any(target.needs_preparation for target in targets):
                groups = prepared(self.model, batch, targets)
            else:
                groups = [Prepared(self.model, batch, tuple(enumerate(targets)))]
            for group in groups:
                session = Session(group.model, group.batch, self._named)
                with group.model.around_forward(group.model.module):
                    try:
                        numbered += _explain(session, group, request, was_training)
                    except (LayerError, TargetError):
                        if not session.used_cache:
                            raise
                        # the cached layer may not serve this input: another branch ran, or another head is explained
                        numbered += _explain(session, group, request, was_training, ignore_cache=True)
                self._choice = next(iter(session.choices.values()), None)
        return [explanation for _, explanation in sorted(numbered, key=lambda pair: pair[0])]

    def __repr__(self) -> str:
        return f"<Explainer of {self.model.name} at {self.layer or 'a layer that it will find'}>"


@dataclass(frozen=True)
class _Request:
    """How the targets of a call are explained."""

    methods: list[Method] | None  # None: the default for each target
    smoothing: list[str]
    seed: int


def _explain(
    session: Session, group: Prepared, request: _Request, was_training: bool, *, ignore_cache: bool = False
) -> list[tuple[int, Explanation]]:
    """Explain a group of targets from one forward pass. Returns the explanations, each with the number of its target."""
    methods = request.methods or [METHODS[_DEFAULT]]
    options = pass_options(tuple(method.needs for method in methods), reruns=bool(request.smoothing))
    targets = [target for _, target in group.targets]
    forward_pass, layers = session.forward(targets, options, ignore_cache=ignore_cache)
    common = session.common_fields(forward_pass, was_training)  # before a target gets, and may overwrite, the output
    jobs = []
    for (number, target), names in zip(group.targets, layers, strict=True):
        scores = target.checked_score(forward_pass.output)
        default = METHODS[_LOCAL_DEFAULT if target.is_local(forward_pass.output) else _DEFAULT]
        jobs.append(Job(number, target, scores, request.methods or [default], list(names)))
    if request.smoothing:
        forward_pass.cautions += smoothing_cautions(request.smoothing, targets, forward_pass)
        maps = smoothed_maps(session, forward_pass, jobs, request.smoothing, request.seed)
    else:
        maps = [method_maps(forward_pass, job) for job in jobs]
    return [
        (job.number, _explanation(session, forward_pass, job, method_map, request.smoothing, common))
        for job, maps_of_job in zip(jobs, maps, strict=True)
        for method_map in maps_of_job
    ]


def _explanation(
    session: Session,
    forward_pass: ForwardPass,
    job: Job,
    method_map: MethodMap,
    smoothing: list[str],
    common: dict[str, Any],
) -> Explanation:
    """Put a map together with what else is known of it: names, cautions, annotations."""
    output, target, layer = forward_pass.output, job.target, method_map.layer
    names = tuple(target.describe(output, image) for image in range(output.batch))
    cautions = (
        *forward_pass.cautions,
        *session.cautions(layer),
        *(caution if isinstance(caution, Caution) else OF_TARGET(caution) for caution in target.cautions(output)),
        *map_cautions(method_map, target, names),
    )
    has_prediction = target.is_class or output.readers.are_detections
    has_canvas = output.readers.candidates is not None and layer not in (INPUT, ATTENTION)
    return Explanation(
        method_map.raw,
        tree.full_precision(job.scores.detach()),
        layer=layer,
        method=" + ".join((method_map.method.name, *smoothing)),
        target_names=names,
        canvas=(output.canvas if has_canvas else None) or output.input_size,
        annotations=tuple(tuple(target.annotations(output, image)) for image in range(output.batch)),
        cautions=tuple(dict.fromkeys(cautions)),
        **(common if has_prediction else common | {"prediction": None}),
    )
