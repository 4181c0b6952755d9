"""Choose the layer that nobody named, once for a model and the shape of its input; and list those worth naming."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from glowmap.capture import borrowed, copies
from glowmap.errors import GlowmapError, LayerError, ModelError, TargetError
from glowmap.forward import called
from glowmap.images import Batch
from glowmap.layers import (
    Asked,
    Choice,
    Grid,
    Layout,
    Surveyed,
    check_layout,
    find_layer,
    find_layers,
    known_grids,
    surveyed,
)
from glowmap.models import Model, as_model
from glowmap.structure import tensors_in
from glowmap.targets import Answer, Custom, Target

Reading = Callable[[Any, int], Answer]


@dataclass
class _Known:
    """What was found out about a model, by the shapes of its input (and for a choice, by what was asked)."""

    choices: dict[Any, Choice] = field(default_factory=dict)
    grids: dict[Any, tuple[Grid, ...]] = field(default_factory=dict)
    layouts: dict[Any, tuple[Layout | None, bool]] = field(default_factory=dict)


_KNOWN: "WeakKeyDictionary[nn.Module, _Known]" = WeakKeyDictionary()


def choose(module: nn.Module, batch: Batch, read: Reading, question: Target, *, blindly: bool = False) -> Choice:
    """Choose the layer worth looking at for this (borrowed) model, input and question; remembered for the next input alike.

    ``blindly`` makes do with the last layer that has a grid where the score has no gradient. Raises LayerError where there is
    none.
    """
    known = _KNOWN.setdefault(module, _Known())
    # a callable by its code, as a new one is often made for each call, and holding it would hold what it holds
    asked = getattr(question.function, "__code__", type(question.function)) if isinstance(question, Custom) else None
    key = (_shapes(batch), asked, blindly)
    choice = known.choices.get(key)
    if choice is not None:
        with suppress(LayerError):  # unless the model was built anew since
            find_layers(module, choice.name)
            return choice
    known.choices[key] = _found(module, batch, read, question, blindly=blindly)
    return known.choices[key]


def grids_of(module: nn.Module, batch: Batch) -> tuple[Grid, ...]:
    """List the grids that a (borrowed) model's convolutions make of such an input; remembered for the next one alike."""
    known, key = _KNOWN.setdefault(module, _Known()), _shapes(batch)
    if key not in known.grids:
        with torch.no_grad(), known_grids(module) as grids:
            called(module, batch.copied())
        known.grids[key] = tuple(dict.fromkeys(grids))
    return known.grids[key]


def checked_layout(module: nn.Module, batch: Batch, name: str, layout: Layout | None) -> tuple[Layout | None, bool]:
    """Prove how the tokens of a layer that was named lie, or find out; remembered. False where it can be neither."""
    known, key = _KNOWN.setdefault(module, _Known()), (_shapes(batch), name, layout)
    if key not in known.layouts:
        one = _one_image(batch)
        try:
            known.layouts[key] = check_layout(module, one.images, partial(_called, module, one), name, layout)
        except GlowmapError:  # it does not run on one image alone
            known.layouts[key] = (layout, False)
    return known.layouts[key]


def survey(model: nn.Module | Model, images: Any, *, depth: int = 2) -> list[Surveyed]:
    """Run the model once and list the layers worth naming, at most ``depth`` names deep, in the order in which they ran."""
    asked = as_model(model)
    batch = asked.read(images)
    with borrowed(asked.module), torch.no_grad(), surveyed(asked.module, batch.images, depth=depth) as rows:
        called(asked.module, batch)
    return rows


def _found(module: nn.Module, batch: Batch, read: Reading, question: Target, *, blindly: bool) -> Choice:
    one = _one_image(batch)
    try:
        return _find(module, one, read, question, blindly=blindly)
    except (ModelError, TargetError):
        if one is batch:
            raise
        return _find(module, batch, read, question, blindly=blindly)  # it knows the batch by position


def _find(module: nn.Module, batch: Batch, read: Reading, question: Target, *, blindly: bool) -> Choice:
    def ask(output: Any) -> Asked:
        return _asked(read(output, len(batch.images)), question)

    return find_layer(module, batch.images, partial(_called, module, batch), ask, blindly=blindly)


def _called(module: nn.Module, batch: Batch, images: Tensor) -> Any:
    return called(module, batch.changed(lambda _: images))


def _one_image(batch: Batch) -> Batch:
    """Cut the input down to its first image: what every image goes through is seen on one."""
    count = len(batch.images)
    if count == 1:
        return batch
    cut = replace(batch, images=batch.images[:1])
    arguments = [cut.images if value is batch.images else copies(value, 0, count, 1) for value in batch.arguments]
    keywords = {
        name: cut.images if value is batch.images else copies(value, 0, count, 1)
        for name, value in batch.keywords.items()
    }
    return replace(cut, arguments=tuple(arguments), keywords=keywords)


def _asked(answer: Answer, question: Target) -> Asked:
    """Ask for all that the model says, as far as it can be read; a callable of the user's own for what it asks itself.

    All classes at once, each with a sign of its own: where evidence can be is the same for all of them, and a score of one
    class, or of a few pixels, would miss places that it happens not to use.
    """
    logits: Tensor | None = None
    with suppress(TargetError):
        logits = answer.logits
    places = _for_places(answer.raw, maps=logits is None) or (logits is not None and logits.ndim > 2)
    boxes = any("box" in str(key) for key in answer.raw) if isinstance(answer.raw, Mapping) else False
    classes = None if logits is None else logits.shape[1]
    if isinstance(question, Custom):
        return Asked(question.score(answer).sum(), classes, places, boxes)
    said = [logits] if logits is not None else [one for one in tensors_in(answer.raw) if one.is_floating_point()]
    if not said:
        raise TargetError(f"{answer.model} answers without any floating tensor, by which a layer could be found")
    return Asked(torch.stack([_signed(one) for one in said]).sum(), classes, places, boxes)


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


def _shapes(batch: Batch) -> tuple[Any, ...]:
    given = tensors_in([batch.arguments, batch.keywords])
    return (tuple(batch.images.shape[1:]), batch.images.device, *(tuple(one.shape[1:]) for one in given))
