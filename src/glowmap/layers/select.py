"""Select the layer for a target: one that is remembered for the model and the shape of its input, or one that is searched."""

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, NoReturn
from weakref import ref

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import call_model, record
from glowmap.errors import LayerError, ModelError, TargetError
from glowmap.inputs import Batch
from glowmap.layers.choice import Choice, LayerScore
from glowmap.layers.lookup import find_layers
from glowmap.layers.reader import LayoutReader, single_image
from glowmap.layers.search import find_layer
from glowmap.outputs import ModelOutput, is_spatial, names_boxes
from glowmap.targets import Target


class _OutputNeededError(Exception):
    """The layer for a target depends on the model's output, which is not known yet."""


class LayerSelector:
    """Selects layers for the targets of one forward pass.

    The layer for a detection depends on the pyramid level that it comes from, which the model's output tells. So
    :meth:`candidates` lists the layers to record in the forward pass, and :meth:`select` takes one of these, given the output.
    ``without_gradient`` takes the last layer with a grid where the score has no gradient; ``ignore_cache`` searches anew.
    """

    def __init__(self, reader: LayoutReader, *, without_gradient: bool = False, ignore_cache: bool = False) -> None:
        self.reader = reader
        self.without_gradient, self.ignore_cache = without_gradient, ignore_cache
        self.used_cache = False
        self._searched: dict[int, Choice] = {}  # by the id of the target

    def candidates(self, target: Target) -> list[Choice]:
        """List the layers of which one will be selected: those that are remembered, or else the one that a search finds.

        Raises LayerError where a search finds none.
        """
        if id(target) in self._searched:
            return [self._searched[id(target)]]
        remembered = self._remembered()
        try:
            key = _static_key(target)
            known = [remembered[key]] if key in remembered else []
        except _OutputNeededError:
            known = [choice for key, choice in remembered.items() if key[0] == "output"]
        self.used_cache = self.used_cache or bool(known)
        return known or [self._search(target)]

    def needs_output(self, target: Target) -> bool:
        """Return whether the layer for a target depends on the model's output."""
        try:
            _static_key(target)
        except _OutputNeededError:
            return True
        return False

    def select(self, target: Target, read_output: Callable[[], ModelOutput]) -> Choice:
        """Return the layer for a target, and remember it if it was searched. Raises as :meth:`candidates` does.

        ``read_output()`` returns the output of a forward pass without changes; it is called where the layer depends on it.
        """
        try:
            key = _static_key(target)
        except _OutputNeededError:
            levels = _leaf_keys(target, read_output)
            key = None if levels is None else ("output", levels)
        choice = self._searched.get(id(target)) or (self._remembered().get(key) if key is not None else None)
        if choice is not None and id(target) not in self._searched:
            return choice
        choice = choice or self._search(target)
        if key is not None:
            layer = self.reader.module.get_submodule(choice.name.partition("#")[0])
            text_key = self.reader.text_key if choice.layout.depends_on_text else ()
            self.reader.memory.choices.setdefault(self._input_key(text_key), {})[key] = choice, ref(layer)
        return choice

    def _remembered(self) -> dict[Any, Choice]:
        """Return the layers that are remembered for this input, by the key of the target."""
        if self.ignore_cache:
            return {}
        choices = self.reader.memory.choices
        by_key = {**choices.get(self._input_key(()), {}), **choices.get(self._input_key(self.reader.text_key), {})}
        return {key: choice for key, (choice, layer) in by_key.items() if self._is_layer(choice.name, layer())}

    def _input_key(self, text_key: tuple[bytes, ...]) -> Hashable:
        return self.reader.input_key, self.without_gradient, text_key

    def _is_layer(self, name: str, layer: nn.Module | None) -> bool:
        with suppress(LayerError):  # the model was rebuilt since
            (module,) = find_layers(self.reader.module, name).values()
            return module is layer
        return False

    def _search(self, target: Target) -> Choice:
        """Search for the layer of a target on the first image alone, or on the batch where that fails."""
        batch, first = self.reader.batch, single_image(self.reader.batch)
        try:
            choice = self._find(first, target)
        except (ModelError, TargetError, LayerError):
            if first is batch:
                raise
            choice = self._find(batch, target)  # the target knows the batch by position, or the first image is blank
        if target.has_layer_score and len(batch.images) > 1 and not self.without_gradient:
            _refuse_other_layers(self.reader, target, choice)
        self.reader.refuse_moving_patches(choice.name, choice.layout)
        self._searched[id(target)] = choice
        return choice

    def _find(self, batch: Batch, target: Target) -> Choice:
        reader = self.reader

        def call(images: Tensor) -> Any:
            return call_model(reader.module, batch.changed(lambda _: images))

        def score(raw: Any) -> LayerScore:
            return _layer_score(reader.read(raw, len(batch.images)), target)

        return find_layer(
            reader.module,
            batch.images,
            call,
            score,
            without_gradient=self.without_gradient,
            grids=reader.token_grids,
        )


def needs_own_layer(target: Target) -> bool:
    """Return whether a target needs a layer of its own, which another target about the same image may not share."""
    return target.has_layer_score or _function_of(target) is not None


def _static_key(target: Target) -> Hashable | None:
    """Return the key of the targets for which a layer is remembered; None where it serves no other target.

    Raises _OutputNeededError where it depends on the model's output.
    """
    function = _function_of(target)
    if function is not None:
        return "function", function.layer_key(_raise_output_needed)
    if not target.has_layer_score:
        return ("shared",)
    keys = _leaf_keys(target, _raise_output_needed)
    return None if keys is None else ("leaves", keys)


def _leaf_keys(target: Target, read_output: Callable[[], ModelOutput]) -> Hashable | None:
    with suppress(TargetError):  # it is raised again where the target is scored
        keys = tuple(leaf.layer_key(read_output) for leaf in target.leaves() if leaf.has_layer_score)
        return keys if keys and None not in keys else None
    return None


def _raise_output_needed() -> NoReturn:
    raise _OutputNeededError


def _function_of(target: Target) -> Target | None:
    """Return the callable of the user's that a target is, or is made of."""
    leaves = target.leaves()
    return leaves[0] if len(leaves) == 1 and leaves[0].reads_raw_output else None


def _layer_score(output: ModelOutput, target: Target) -> LayerScore:
    """Build the scalar that the layer search differentiates: the target's own score, or all outputs with random signs.

    All classes at once, each with a random sign: where evidence can be is the same for all of them, while the score of one class
    or of a few pixels would miss cells that it happens not to use. A detector's is that of all its candidates.
    """
    canvas, has_boxes = output.canvas, names_boxes(output.raw)
    target_scores = target.layer_score(output)
    if target_scores is not None:
        parts = tuple(target_scores) if len(target_scores) > 1 else ()
        is_detector = output.readers.candidates is not None
        return LayerScore(target_scores.sum(), has_boxes=is_detector, is_of_target=True, parts=parts, canvas=canvas)
    logits: Tensor | None = None
    with suppress(TargetError):
        # of a text the logits after its last token; classes as many as outputs: the two of one output cancel each other
        logits = output.token_logits[:, -1] if output.readers.token_logits else output.outputs
    is_dense = is_spatial(output.raw, has_class_scores=logits is not None) or (logits is not None and logits.ndim > 2)
    classes = None if logits is None else logits.shape[1]
    if _function_of(target) is not None:
        score = target.checked_score(output).sum()
        return LayerScore(score, classes, is_dense, has_boxes, is_of_target=True, canvas=canvas)
    if output.readers.are_detections and logits is not None:
        detections = _detection_scores(output)
        return LayerScore(detections.sum(), classes, is_dense, True, parts=tuple(detections), canvas=canvas)
    values = [logits] if logits is not None else list(tree.leaves(output.raw))
    values = [tensor for tensor in values if tensor.is_floating_point()]
    if values and not any(tensor.numel() for tensor in values):
        raise TargetError(
            f"{output.model} found nothing in the picture, so there is nothing to explain and no layer to find by it; give "
            "another picture, lower the model's score threshold, or name a layer and ask about something else"
        )
    if not values:
        raise TargetError(
            f"{output.model} returns no floating tensor, with which a layer could be searched; name one, and let the model "
            "return its scores for a target to read"
        )
    score = torch.stack([_signed_sum(tensor) for tensor in values]).sum()
    return LayerScore(score, classes, is_dense, has_boxes, canvas=canvas)


def _detection_scores(output: ModelOutput) -> Tensor:
    """Return the class logits of all candidates, and their boxes in units of their size, each summed with random signs.

    Of all candidates, as the likeliest ones may all come from one level of a pyramid; and of both parts, as a layer before the
    head must lead to the tower for classes and to the one for boxes.
    """
    classes, boxes = (torch.cat(list(part)) for part in (output.candidates.logits, output.candidates.boxes))
    sizes = (boxes[..., 2:] - boxes[..., :2]).detach().abs().clamp_min(1)
    return torch.stack([_signed_sum(classes), _signed_sum(boxes / torch.cat([sizes, sizes], -1))])


def _signed_sum(values: Tensor) -> Tensor:
    return (values.float() * tree.random_signs(values)).sum()


def _refuse_other_layers(reader: LayoutReader, target: Target, choice: Choice) -> None:
    """Raise LayerError where the layer found for the first image's detection does not lead to that of another image."""
    with record(find_layers(reader.module, choice.name)) as recording:
        raw = call_model(reader.module, reader.batch.copied())
    scores = target.layer_score(reader.read(raw, len(reader.batch.images)))
    assert scores is not None
    gradient = choice.layout.maps(recording.gradients(scores.sum()[None])[choice.name])
    apart = [
        image
        for image, is_zero in enumerate((gradient == 0).flatten(1).all(1).tolist())
        if is_zero and target.for_image(image).has_layer_score
    ]
    if apart:
        raise LayerError(
            f"the detections of these images come from different layers: the detection in image {apart[0]} does not depend on "
            f"{choice.name!r}, as that in image 0 does; explain the images one by one, or name a layer"
        )
