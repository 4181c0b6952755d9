"""What was found out about a model, remembered by the shapes of its input."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch.nn.functional as F
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import repeat_image
from glowmap.capture.call import called
from glowmap.errors import GlowmapError, LayerError
from glowmap.inputs import Batch, PatchPositions
from glowmap.layers.check import check_layout
from glowmap.layers.choice import Choice
from glowmap.layers.layout import Grid, Layout, known_grids
from glowmap.outputs import ModelOutput


@dataclass(frozen=True)
class LayerHints:
    """What a family tells of a model's layers: grids of its tokens that no convolution makes, and its canvas.

    That is the rows and columns that the layers cover, in pixels of the input, where the model pads it inside. ``first`` is the
    model's answer in a pass without gradients, made when it is asked for. ``among`` says
    where the patches stand among words, where the input says it.
    """

    grids: Sequence[Grid] = ()
    canvas: Callable[[], Grid | None] = lambda: None
    first: Callable[[], ModelOutput] | None = None
    among: PatchPositions | None = None


NO_HINTS = LayerHints()


@dataclass
class _Known:
    """What was found out about a model, by the shapes of its input (and for a choice, by what was asked)."""

    choices: dict[Any, tuple[Choice, "ref[nn.Module]"]] = field(default_factory=dict)
    grids: dict[Any, tuple[Grid, ...]] = field(default_factory=dict)
    layouts: dict[Any, tuple[Layout | None, bool]] = field(default_factory=dict)


_KNOWN: "WeakKeyDictionary[nn.Module, _Known]" = WeakKeyDictionary()


def _may_move(layout: Layout) -> bool:
    """Tell whether the patches may stand elsewhere with other words beside them."""
    return layout.of_tokens and (layout.among or layout.before > 1)


def _refuse_unlike(module: nn.Module, batch: Batch, name: str, layout: Layout, told: LayerHints) -> None:
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
def gather_grids(module: nn.Module, batch: Batch) -> Iterator[None]:
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
    told: LayerHints = NO_HINTS,
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
        return own if tensor is batch.images else repeat_image(tensor, image, count, 1)

    arguments, keywords = tree.map([batch.arguments, batch.keywords], cut)
    return Batch(arguments, keywords, own, batch.pictures)


def _shapes(batch: Batch) -> tuple[Any, ...]:
    given = tree.leaves([batch.arguments, batch.keywords])
    said = [*enumerate(batch.arguments), *batch.keywords.items()]
    others = tuple((name, value) for name, value in said if isinstance(value, str | int | float | bool | None))
    return (tuple(batch.images.shape[1:]), batch.images.device, others, *(tuple(one.shape[1:]) for one in given))


def _words(batch: Batch) -> tuple[bytes, ...]:
    """Tell the tokens of texts apart, which are whole numbers."""
    given = [one for one in tree.leaves([batch.arguments, batch.keywords]) if not one.is_floating_point()]
    return tuple(sha256(one.detach().cpu().contiguous().numpy().tobytes()).digest() for one in given)
