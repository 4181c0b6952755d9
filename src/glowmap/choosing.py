"""Choose the layer that nobody named, once for a model and the shape of its input; and list those worth naming."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowmap.capture import borrowed, copies, record
from glowmap.errors import GlowmapError, LayerError, ModelError, TargetError
from glowmap.forward import called
from glowmap.images import Batch
from glowmap.layers import (
    Among,
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
from glowmap.structure import mapped, tensors_in
from glowmap.targets import Answer, Custom, Each, Target, leaves

Reading = Callable[[Any, int], Answer]


@dataclass(frozen=True)
class Told:
    """What a family tells of a model's layers: grids of its tokens that no convolution makes, and its canvas.

    That is the rows and columns that the layers cover, in pixels of the input, where the model pads it inside. ``first`` is the
    model's answer in a pass without gradients, made when it is asked for. ``among`` says
    where the patches stand among words, where the input says it.
    """

    grids: Sequence[Grid] = ()
    canvas: Callable[[], Grid | None] = lambda: None
    first: Callable[[], Answer] | None = None
    among: Among | None = None


@dataclass
class _Known:
    """What was found out about a model, by the shapes of its input (and for a choice, by what was asked)."""

    choices: dict[Any, tuple[Choice, "ref[nn.Module]"]] = field(default_factory=dict)
    grids: dict[Any, tuple[Grid, ...]] = field(default_factory=dict)
    layouts: dict[Any, tuple[Layout | None, bool]] = field(default_factory=dict)


_KNOWN: "WeakKeyDictionary[nn.Module, _Known]" = WeakKeyDictionary()


def choose(
    module: nn.Module,
    batch: Batch,
    read: Reading,
    question: Target,
    *,
    blindly: bool = False,
    anew: bool = False,
    told: Told = Told(),
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


def _may_move(layout: Layout) -> bool:
    """Tell whether the patches may stand elsewhere with other words beside them."""
    return layout.of_tokens and (layout.among or layout.before > 1)


def _refuse_unlike(module: nn.Module, batch: Batch, name: str, layout: Layout, told: Told) -> None:
    """Refuse a batch in whose images the patches do not stand at the same place among the words."""
    for image in range(1, len(batch.images)):
        one = _one_image(batch, image)
        call = partial(_called, module, one)
        found, proven = check_layout(module, one.images, call, name, layout, grids=told.grids, among_words=told.among)
        if found is None or not proven or replace(found, among=layout.among) != layout:
            raise LayerError(
                f"the patches of image {image} stand elsewhere among the tokens of layer {name!r} than those of image 0 (padding "
                "on the left?); explain the images one by one"
            )


@contextmanager
def gathering(module: nn.Module, batch: Batch) -> Iterator[None]:
    """Remember which grids the model's convolutions make of such an input, while it is run inside."""
    known, key = _KNOWN.setdefault(module, _Known()), _shapes(batch)
    if key in known.grids:
        yield
        return
    with known_grids(module) as grids:
        yield
    known.grids[key] = tuple(dict.fromkeys(grids))


def grids_of(module: nn.Module, batch: Batch) -> tuple[Grid, ...]:
    """List the grids that a model's convolutions make of such an input, which was run before."""
    return _KNOWN.setdefault(module, _Known()).grids.get(_shapes(batch), ())


def checked_layout(
    module: nn.Module,
    batch: Batch,
    name: str,
    layout: Layout | None,
    *,
    told: Told = Told(),
) -> tuple[Layout | None, bool]:
    """Prove how a layer that was named lies, or find out; remembered. False where it can be neither.

    Raises LayerError where the patches of a batch's images stand at different places among words.
    """
    known, key = _KNOWN.setdefault(module, _Known()), (_shapes(batch), _words(batch), name, layout)
    if key not in known.layouts:
        one = _one_image(batch)
        try:
            found, proven = check_layout(
                module, *_on_canvas(module, one, told.canvas()), name, layout, grids=told.grids, among_words=told.among
            )
        except GlowmapError:  # it does not run on one image alone
            found, proven = layout, False
        if proven and found is not None and _words(batch) and _may_move(found):
            _refuse_unlike(module, batch, name, found, told)
        known.layouts[key] = found, proven
    return known.layouts[key]


def survey(model: nn.Module | Model, images: Any, *, depth: int = 2) -> list[Surveyed]:
    """Run the model once and list the layers worth naming, at most ``depth`` names deep, in the order in which they ran."""
    asked = as_model(model)
    batch = asked.read(images)
    with borrowed(asked.module), torch.no_grad():
        heard = asked.speaker.heard(asked, batch, []) if asked.speaker is not None else ()
        opened = heard[0].opened(asked.module) if heard else nullcontext()
        with asked.opened(asked.module), opened, surveyed(asked.module, batch.images, depth=depth) as rows:
            called(asked.module, heard[0].batch if heard else batch)
    return rows


def _found(find: Callable[[Batch], Choice], batch: Batch) -> Choice:
    one = _one_image(batch)
    try:
        return find(one)
    except (ModelError, TargetError, LayerError):
        if one is batch:
            raise
    return find(batch)  # it knows the batch by position, or its first image is blank


def _find(module: nn.Module, batch: Batch, *, read: Reading, question: Target, blindly: bool, told: Told) -> Choice:
    def ask(output: Any) -> Asked:
        return _asked(read(output, len(batch.images)), question)

    images, call = _on_canvas(module, batch, told.canvas())
    return find_layer(module, images, call, ask, blindly=blindly, grids=told.grids)


def _on_canvas(module: nn.Module, batch: Batch, canvas: Grid | None) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Give the images on the canvas that the model's layers cover, and what calls the model on the part that it is given.

    Where a cell looks is told by the gradient there, which must reach as far as the cells do.
    """
    call, size = partial(_called, module, batch), batch.images.shape[2:]
    if canvas in (None, tuple(size)):
        return batch.images, call
    (rows, columns), (high, wide) = size, canvas
    padded = F.pad(batch.images, (0, wide - columns, 0, high - rows))
    return padded, lambda images: call(images[..., :rows, :columns])


def _called(module: nn.Module, batch: Batch, images: Tensor) -> Any:
    return called(module, batch.changed(lambda _: images))


def _one_image(batch: Batch, image: int = 0) -> Batch:
    """Cut the input down to one image: what every image goes through is seen on the first."""
    count = len(batch.images)
    if count == 1:
        return batch
    own = batch.images[image : image + 1]

    def cut(tensor: Tensor) -> Tensor:
        return own if tensor is batch.images else copies(tensor, image, count, 1)

    arguments, keywords = mapped([batch.arguments, batch.keywords], cut)
    return Batch(arguments, keywords, own, batch.pictures)


def _asked(answer: Answer, question: Target) -> Asked:
    """Ask for all that the model says, as far as it can be read; a callable of the user's own for what it asks itself.

    All classes at once, each with a sign of its own: where evidence can be is the same for all of them, and a score of one
    class, or of a few pixels, would miss places that it happens not to use.
    """
    said_of_it = _said(answer, question)
    if said_of_it is not None:
        parts = tuple(said_of_it) if len(said_of_it) > 1 else ()
        boxes = answer.read_candidates is not None
        return Asked(said_of_it.sum(), None, False, boxes, own=True, parts=parts)
    logits: Tensor | None = None
    with suppress(TargetError):
        # all that a model can say after a text's last word; classes in the number that it gives: the two of one output cancel
        logits = answer.words[:, -1] if answer.read_words else answer.outputs
    places = _for_places(answer.raw, maps=logits is None) or (logits is not None and logits.ndim > 2)
    boxes = any("box" in str(key) for key in answer.raw) if isinstance(answer.raw, Mapping) else False
    classes = None if logits is None else logits.shape[1]
    if _callable(question) is not None:
        return Asked(question.score(answer).sum(), classes, places, boxes, own=True)
    if answer.detects and logits is not None:
        of_all = _signed_of_all(answer)
        return Asked(of_all.sum(), classes, places, True, parts=tuple(of_all))
    said = [one for one in ([logits] if logits is not None else tensors_in(answer.raw)) if one.is_floating_point()]
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
    return Asked(torch.stack([_signed(one) for one in said]).sum(), classes, places, boxes)


def _signed_of_all(answer: Answer) -> Tensor:
    """Ask for all that a detector says: the classes of all candidates, and their boxes in units of their own size.

    Not of the likeliest alone, which may all come from one level of a pyramid; and what a layer is to be found by goes through
    the tower of its head for classes and the one for boxes alike.
    """
    classes, boxes = (torch.cat(list(part)) for part in (answer.candidates.logits, answer.candidates.boxes))
    sizes = (boxes[..., 2:] - boxes[..., :2]).detach().abs().clamp_min(1)
    return torch.stack([_signed(classes), _signed(boxes / torch.cat([sizes, sizes], -1))])


def _said(answer: Answer, question: Target) -> Tensor | None:
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


def _shapes(batch: Batch) -> tuple[Any, ...]:
    given = tensors_in([batch.arguments, batch.keywords])
    said = [*enumerate(batch.arguments), *batch.keywords.items()]
    others = tuple((name, value) for name, value in said if isinstance(value, str | int | float | bool | None))
    return (tuple(batch.images.shape[1:]), batch.images.device, others, *(tuple(one.shape[1:]) for one in given))


def _words(batch: Batch) -> tuple[bytes, ...]:
    """Tell the tokens of texts apart, which are whole numbers."""
    given = [one for one in tensors_in([batch.arguments, batch.keywords]) if not one.is_floating_point()]
    return tuple(sha256(one.detach().cpu().contiguous().numpy().tobytes()).digest() for one in given)


def _asking(question: Target, told: Told) -> Any:
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


def _callable(question: Target) -> Custom | None:
    """Give the callable of the user's own that a question is, or is made of."""
    parts = leaves(question)
    return parts[0] if len(parts) == 1 and isinstance(parts[0], Custom) else None
