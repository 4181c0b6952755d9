"""Choose the layer that nobody named, once for a model and the shape of its input; and list those worth naming."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import record
from glowmap.capture.call import called
from glowmap.errors import LayerError, ModelError, TargetError
from glowmap.inputs import Batch
from glowmap.layers.cache import (
    _KNOWN,
    NO_HINTS,
    LayerHints,
    _Known,
    _may_move,
    _on_canvas,
    _one_image,
    _refuse_unlike,
    _shapes,
    _words,
)
from glowmap.layers.choice import Choice, LayerScore
from glowmap.layers.lookup import find_layers
from glowmap.layers.search import find_layer
from glowmap.outputs import ModelOutput
from glowmap.targets import Each, FunctionTarget, Target, leaves

Reading = Callable[[Any, int], ModelOutput]


def choose(
    module: nn.Module,
    batch: Batch,
    read: Reading,
    question: Target,
    *,
    blindly: bool = False,
    anew: bool = False,
    told: LayerHints = NO_HINTS,
) -> tuple[Choice, bool]:
    """Choose the layer worth looking at for this (borrowed) model, input and question, and say whether it was remembered.

    ``blindly`` makes do with the last layer that has a grid where the score has no gradient; ``anew`` trusts no memory. Raises
    LayerError where there is none.
    """
    known = _KNOWN.setdefault(module, _Known())
    asking = _asking(question, told)
    own = _has_said(question) and asking is None  # nothing tells for which other question its layer would serve
    anew = anew or own
    key = (_shapes(batch), asking, blindly)
    words = _words(batch)  # where words stand among the patches, it is for these words alone
    for alike in () if anew else (key, (*key, words)):
        choice, layer = known.choices.get(alike, (None, None))
        if choice is not None and layer is not None and _named(module, choice.name) is layer():
            return choice, True
    choice = _found(partial(_find, module, read=read, question=question, blindly=blindly, told=told), batch)
    if _has_said(question) and len(batch.images) > 1 and not blindly:
        _refuse_apart(module, batch, read, question, choice)
    moving = bool(words) and _may_move(choice.layout)
    if moving:
        _refuse_unlike(module, batch, choice.name, choice.layout, told)
    if not own:
        chosen = module.get_submodule(choice.name.partition("#")[0])
        known.choices[(*key, words) if moving else key] = choice, ref(chosen)
    return choice, False


def asks_for_its_own(question: Target) -> bool:
    """Tell whether a question needs a layer of its own, which another about the same picture may not share."""
    return _has_said(question) or _callable(question) is not None


def _has_said(question: Target) -> bool:
    """Tell whether it says itself by what its layer is found."""
    return any(hasattr(one, "said") for one in leaves(question))


def _named(module: nn.Module, name: str) -> nn.Module | None:
    with suppress(LayerError):  # the model was built anew since
        (layer,) = find_layers(module, name).values()
        return layer
    return None


def _found(find: Callable[[Batch], Choice], batch: Batch) -> Choice:
    one = _one_image(batch)
    try:
        return find(one)
    except (ModelError, TargetError, LayerError):
        if one is batch:
            raise
    return find(batch)  # it knows the batch by position, or its first image is blank


def _find(
    module: nn.Module, batch: Batch, *, read: Reading, question: Target, blindly: bool, told: LayerHints
) -> Choice:
    def ask(output: Any) -> LayerScore:
        return _asked(read(output, len(batch.images)), question)

    images, call = _on_canvas(module, batch, told.canvas())
    return find_layer(module, images, call, ask, blindly=blindly, grids=told.grids)


def _asked(answer: ModelOutput, question: Target) -> LayerScore:
    """Ask for all that the model says, as far as it can be read; a callable of the user's own for what it asks itself.

    All classes at once, each with a sign of its own: where evidence can be is the same for all of them, and a score of one
    class, or of a few pixels, would miss places that it happens not to use.
    """
    said_of_it = _said(answer, question)
    if said_of_it is not None:
        parts = tuple(said_of_it) if len(said_of_it) > 1 else ()
        boxes = answer.readers.candidates is not None
        return LayerScore(said_of_it.sum(), None, False, boxes, own=True, parts=parts)
    logits: Tensor | None = None
    with suppress(TargetError):
        # all that a model can say after a text's last word; classes in the number that it gives: the two of one output cancel
        logits = answer.token_logits[:, -1] if answer.readers.token_logits else answer.outputs
    places = _for_places(answer.raw, maps=logits is None) or (logits is not None and logits.ndim > 2)
    boxes = any("box" in str(key) for key in answer.raw) if isinstance(answer.raw, Mapping) else False
    classes = None if logits is None else logits.shape[1]
    if _callable(question) is not None:
        return LayerScore(question.score(answer).sum(), classes, places, boxes, own=True)
    if answer.is_detector and logits is not None:
        of_all = _signed_of_all(answer)
        return LayerScore(of_all.sum(), classes, places, True, parts=tuple(of_all))
    said = [one for one in ([logits] if logits is not None else tree.leaves(answer.raw)) if one.is_floating_point()]
    if said and not any(one.numel() for one in said):
        raise TargetError(
            f"{answer.model} found nothing in the picture, so there is nothing to explain and no layer to find by it; give "
            "another picture, lower the model's score threshold, or name a layer and ask about something else"
        )
    if not said:
        raise TargetError(
            f"{answer.model} answers without any floating tensor, by which a layer could be found; name one, and let the model "
            "return its scores for a target to read"
        )
    return LayerScore(torch.stack([_signed(one) for one in said]).sum(), classes, places, boxes)


def _signed_of_all(answer: ModelOutput) -> Tensor:
    """Ask for all that a detector says: the classes of all candidates, and their boxes in units of their own size.

    Not of the likeliest alone, which may all come from one level of a pyramid; and what a layer is to be found by goes through
    the tower of its head for classes and the one for boxes alike.
    """
    classes, boxes = (torch.cat(list(part)) for part in (answer.candidates.logits, answer.candidates.boxes))
    sizes = (boxes[..., 2:] - boxes[..., :2]).detach().abs().clamp_min(1)
    return torch.stack([_signed(classes), _signed(boxes / torch.cat([sizes, sizes], -1))])


def _said(answer: ModelOutput, question: Target) -> Tensor | None:
    """List what the model says of the things in question; of one for each image, in the images that are there. None of none."""
    if isinstance(question, Each):
        several = [(one, answer.only(image)) for image, one in enumerate(question.all()[: answer.batch])]
    else:
        several = [(question, answer)]
    said = [leaf.said(own).reshape(-1) for one, own in several for leaf in leaves(one) if hasattr(leaf, "said")]
    return torch.cat(said) if said else None


def _refuse_apart(module: nn.Module, batch: Batch, read: Reading, question: Target, choice: Choice) -> None:
    """Refuse a layer that was found for the first image's detection, where another image's does not come through it."""
    with record(find_layers(module, choice.name)) as recording:
        output = called(module, batch.copied())
    said = _said(read(output, len(batch.images)), question)
    assert said is not None
    slopes = choice.layout.maps(recording.gradients(said.sum()[None])[choice.name])
    own = question.all() if isinstance(question, Each) else [question] * len(slopes)
    apart = [
        image
        for image, untouched in enumerate((slopes == 0).flatten(1).all(1).tolist())
        if untouched and _has_said(own[image])
    ]
    if apart:
        raise LayerError(
            f"the detections of these images come from different layers: nothing that is said of it in image {apart[0]} goes "
            f"through {choice.name!r}, as in image 0; explain the images one by one, or name a layer"
        )


def _signed(values: Tensor) -> Tensor:
    signs = torch.randint(0, 2, values.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (values.float() * signs.to(values.device)).sum()


def _for_places(output: Any, *, maps: bool) -> bool:
    """Tell whether an output speaks of places: boxes of a grid, or, where its class scores cannot be read, ``maps``."""
    if isinstance(output, Mapping):
        return "boxes" in output or any(_for_places(one, maps=maps) for one in output.values())
    if isinstance(output, list | tuple):
        return any(_for_places(one, maps=maps) for one in output)
    return maps and isinstance(output, Tensor) and output.ndim >= 4


def _asking(question: Target, told: LayerHints) -> Any:
    """Tell questions apart that may need another layer: a callable by its code and the plain values that it holds.

    A new one is often made for each call, and holding it would hold what it holds. None where that cannot be told.
    """
    custom = _callable(question)
    if custom is None:
        own = [one for one in leaves(question) if hasattr(one, "said")]
        with suppress(TargetError):  # which is raised again where the question is put
            known = tuple(one.found_as(told.first) for one in own if hasattr(one, "found_as"))
            return known if known and len(known) == len(own) and None not in known else None
        return None
    function = custom.function
    code = getattr(function, "__code__", None)
    if code is None:
        return id(function)
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    return code, tuple(one for one in held if isinstance(one, str | int | float | bool))


def _callable(question: Target) -> FunctionTarget | None:
    """Give the callable of the user's own that a question is, or is made of."""
    parts = leaves(question)
    return parts[0] if len(parts) == 1 and isinstance(parts[0], FunctionTarget) else None
