"""How a layer's output is read as batch x channel x space: channels first or last, or tokens of a known grid."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from glowmap.capture import hooked
from glowmap.errors import LayerError
from glowmap.inputs import PatchPositions
from glowmap.shapes import Maps, crossed

Kind: TypeAlias = Literal["channels first", "channels last", "tokens", "tokens first", "channel tokens"]
Grid: TypeAlias = tuple[int, ...]
# How far the strides of two axes may lie apart before an axis is taken for something other than space.
_SAME_STRIDE = 1.6
TOKENS_BEFORE = 8  # class, distillation and register tokens that may stand before those of the patches
_HALVINGS = 4  # a grid that no convolution made may come of one by merging patches


@dataclass(frozen=True)
class Layout:
    """How an output is read as maps.

    ``kind`` says where batch (B), channels (C) and space are: "channels first" B x C x rows x columns, "channels last" B x rows x
    columns x C, "tokens" B x N x C, "tokens first" N x B x C, "channel tokens" B x C x N. ``grid`` is the rows and columns (or
    any number of axes), row by row in tokens, of which ``before`` stand before those of the grid and any number after.
    """

    kind: Kind
    grid: Grid
    before: int = 0
    among: bool = False  # tokens of another kind, which may stand elsewhere another time (a text)

    @property
    def of_tokens(self) -> bool:
        """Whether it reads tokens."""
        return "tokens" in self.kind

    def maps(self, output: Tensor) -> Maps:
        """Lay an output out as batch x channel x space."""
        if self.kind == "channels first":
            return output
        if self.kind == "channels last":
            return output.movedim(-1, 1)
        patches = self._tokens(output)[:, self._patches]
        return patches.transpose(1, 2).reshape(len(patches), patches.shape[2], *self.grid)

    def back(self, maps: Maps, one: Tensor) -> Tensor:
        """Lay maps out as the layer's own output is, given that output for their image: the way back from :meth:`maps`."""
        if not self.of_tokens:
            return (maps.movedim(1, -1) if self.kind == "channels last" else maps).to(one.dtype)
        tokens = self._tokens(one).expand(len(maps), -1, -1).clone()
        patches = maps.flatten(2).transpose(1, 2).to(one.dtype)
        whole = torch.cat([tokens[:, : self.before], patches, tokens[:, self._patches.stop :]], 1)
        return {"tokens": whole, "tokens first": whole.transpose(0, 1), "channel tokens": whole.transpose(1, 2)}[
            self.kind
        ]

    def reads(self, shape: Sequence[int], batch: int) -> bool:
        """Tell whether an output of this shape, for so many images, can be read like this."""
        rows = shape[1] if self.kind == "tokens first" else shape[0]
        if rows != batch:
            return False
        if not self.of_tokens:
            return tuple(shape[2:] if self.kind == "channels first" else shape[1:-1]) == self.grid
        tokens = shape[{"tokens": 1, "tokens first": 0, "channel tokens": 2}[self.kind]]
        return len(shape) == 3 and tokens >= self.before + math.prod(self.grid)

    @property
    def _patches(self) -> slice:
        return slice(self.before, self.before + math.prod(self.grid))

    def _tokens(self, output: Tensor) -> Tensor:
        """Turn tokens to batch x tokens x channel."""
        axes = {"tokens": (0, 1, 2), "tokens first": (1, 0, 2), "channel tokens": (0, 2, 1)}
        return output.permute(axes[self.kind])

    def __str__(self) -> str:
        words = {"tokens first": "tokens, the batch second", "channel tokens": "tokens, channels first"}
        text = f"{words.get(self.kind, self.kind)}, {crossed(self.grid)}"
        return f"{text} after {self.before} other{'s' * (self.before > 1)}" if self.before else text


def read_layout(
    shape: Sequence[int], name: str, judge: nn.Module, images: Tensor, grids: Sequence[Grid] | None = ()
) -> Layout:
    """Read how a layer's output is laid out, where space has the axes of the images.

    Channels-last output is recognised by its strides, or by what the layer is made of (``judge``) where both readings fit.
    Tokens are laid out where a convolution made such a grid (``grids``), or square patches of the picture are as many, but for a
    few tokens before them. Raises LayerError where there is nothing to lay out: another batch axis, tokens of no grid, one cell.
    """
    pixels, spelled = tuple(images.shape[2:]), crossed(shape)
    tokens = token_layouts(shape, len(images), pixels, grids or ())
    if _works_on(judge)[1]:  # a linear layer or its norm has the channels last, however much they look like a grid
        tokens = [layout for layout in tokens if layout.kind != "channel tokens"]
    if shape[0] != len(images) and not tokens:
        raise LayerError(
            f"the output of layer {name!r} ({spelled}) has {shape[0]} rows for {len(images)} images; "
            "name a layer that keeps one row an image"
        )
    # a signal's class token stands in the axis of its samples; a convolution's channels may look like that
    signal_with_token = len(pixels) == 1 and tokens and tokens[0].before and _works_on(judge) == (False, True)
    if len(shape) == images.ndim and not signal_with_token:
        last = _channels_last(shape, pixels, judge)
        layout = Layout("channels last", tuple(shape[1:-1])) if last else Layout("channels first", tuple(shape[2:]))
    elif tokens:
        layout = tokens[0]
    else:
        raise LayerError(
            f"the output of layer {name!r} ({spelled}) does not have the {len(pixels)} spatial axes of the input "
            f"({crossed(images.shape)}), nor as many tokens as it has square patches; name a layer whose output is "
            "batch x channel x rows x columns"
        )
    if math.prod(layout.grid) < 2:
        raise LayerError(
            f"the output of layer {name!r} ({spelled}) has no spatial axes left, only one cell; "
            "name a layer before the pooling"
        )
    return layout


def interleaved_layout(among: PatchPositions, name: str, shape: Sequence[int], grids: Sequence[Grid]) -> Layout | None:
    """Read an output of the part by the grid that has so many cells, known or merged of a known one; None for others."""
    inside = f"{name.partition('#')[0]}.".startswith(f"{among.part}.")
    if not inside or len(shape) != 3 or shape[1] != among.tokens or among.cells < 2:
        return None
    fits = [one for grid in grids for one in (grid, *halvings(grid)) if math.prod(one) == among.cells]
    return Layout("tokens", fits[0], among.before, among=True) if fits else None


def token_layouts(shape: Sequence[int], batch: int, pixels: Grid, grids: Sequence[Grid]) -> list[Layout]:
    """List how an output of three axes may be read as tokens, the likeliest first.

    First come the grids that convolutions made, with as few tokens before them as possible; then square patches that fill the
    picture exactly, then merged patches of the former.
    """
    if len(shape) != 3:
        return []
    known = [grid for grid in dict.fromkeys(grids) if len(grid) == len(pixels) and math.prod(grid) > 1]
    sides = [side for side in range(1, min(pixels) + 1) if not any(pixel % side for pixel in pixels)]
    squares = [tuple(pixel // side for pixel in pixels) for side in sides] if len(pixels) > 1 else []
    merged = [halved for grid in known for halved in halvings(grid)]
    found: dict[Layout, None] = {}
    for source in (known, squares, merged):
        fits = [layout for grid in source for layout in _readings(shape, batch, grid)]
        if source is not known:  # nothing but their number speaks for these: a few words may be as many
            fits = [layout for layout in fits if 2 * layout.before < math.prod(layout.grid)]
        if source is merged:
            fits = [layout for layout in fits if layout.before <= 1]
        # channels-first tokens are rare, and any channel count may look like a grid
        found.update(dict.fromkeys(sorted(fits, key=lambda layout: (layout.kind == "channel tokens", layout.before))))
    return list(found)


def halvings(grid: Grid) -> list[Grid]:
    """List what a grid becomes when patches are merged or pooled two by two, again and again, a last odd one kept or left out.

    The frames of a clip are merged with their rows and columns, or stay.
    """
    kept = [0] if len(grid) < 3 else [0, len(grid) - 2]  # how many axes in front stay as they are
    found = [
        (*grid[:first], *((cells + odd * (2**n - 1)) // 2**n for cells in grid[first:]))
        for first in kept
        for odd in (True, False)
        for n in range(1, _HALVINGS + 1)
    ]
    return list(dict.fromkeys(found))


def is_made(grid: Grid, grids: Sequence[Grid]) -> bool:
    """Tell whether a grid is one that convolutions made, or merging or pooling of those; without any, every grid is."""
    same = [known for known in grids if len(known) == len(grid)]
    return not same or grid in same or any(grid in halvings(known) for known in dict.fromkeys(same))


def patches_among(shape: Sequence[int], images: Tensor, grids: Sequence[Grid]) -> Layout | None:
    """Expect the patches of the finest known grid somewhere among other tokens: where, ``before`` = -1 leaves open."""
    if len(shape) != 3 or images.ndim == 3 or shape[0] != len(images):
        return None
    fits = [grid for grid in grids if len(grid) == images.ndim - 2 and 1 < math.prod(grid) < shape[1]]
    return Layout("tokens", max(fits, key=math.prod), -1) if fits else None


def _readings(shape: Sequence[int], batch: int, grid: Grid) -> Iterator[Layout]:
    cells = math.prod(grid)
    if cells < 2:
        return
    axes: list[tuple[Kind, int, int]] = [("tokens", 0, 1), ("tokens first", 1, 0), ("channel tokens", 0, 2)]
    for kind, rows, tokens in axes:
        before = shape[tokens] - cells
        if shape[rows] == batch and 0 <= before <= (0 if kind == "channel tokens" else TOKENS_BEFORE):
            yield Layout(kind, grid, before)


@contextmanager
def known_grids(model: nn.Module) -> Iterator[list[Grid]]:
    """List the grids that convolutions make while the model is run inside: patch embeddings, stems, mergings."""
    grids: list[Grid] = []

    def add_grid(_module: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim >= 3:
            grids.append(tuple(output.shape[2:]))

    with hooked((module for module in model.modules() if isinstance(module, _ConvNd)), after=add_grid):
        yield grids


def _channels_last(shape: Sequence[int], pixels: Sequence[int], module: nn.Module) -> bool:
    first, last = _unevenness(shape[2:], pixels), _unevenness(shape[1:-1], pixels)
    if first > _SAME_STRIDE or last > _SAME_STRIDE:
        return last <= _SAME_STRIDE  # one reading fits; where none does, channels come first as nearly everywhere
    works_on_first, works_on_last = _works_on(module)
    return works_on_last if works_on_last != works_on_first else last < first


def is_plain(layout: Layout, shape: Sequence[int], pixels: Grid) -> bool:
    """Tell whether the strides leave no doubt that channels come first."""
    if layout.kind != "channels first" or len(pixels) == 1:
        return False
    return _unevenness(shape[2:], pixels) <= _SAME_STRIDE < _unevenness(shape[1:-1], pixels)


def _works_on(module: nn.Module) -> tuple[bool, bool]:
    """Tell whether what a module is made of works on channels that come first, and whether on channels that come last."""
    # Subclasses are left out: a LayerNorm2d keeps its channels first.
    kinds = {type(part) for part in module.modules()}
    on_first = any(word in kind.__name__ for kind in kinds for word in ("Conv", "Pool", "BatchNorm", "GroupNorm"))
    return on_first, bool(kinds & {nn.LayerNorm, nn.Linear})


def witness(model: nn.Module, name: str) -> nn.Module:
    """Find the module that tells where a layer's channels are: itself, or the nearest around it that is made of one kind.

    An activation says nothing of its input; the linear layers or convolutions beside it do. The model as a whole does not: a
    linear head says nothing of the layers before it.
    """
    parts = name.partition("#")[0].split(".")
    around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), 0, -1)]
    return next((one for one in around if len({*_works_on(one)}) == 2), around[0])


def _unevenness(grid: Sequence[int], pixels: Sequence[int]) -> float:
    """Compare the strides of rows and columns: 1 where both shrank by the same factor, as they do in a network."""
    # the frames of a clip, or the slices of a volume, have a stride of their own
    strides = [pixel / cell for pixel, cell in zip(pixels[-2:], grid[-2:], strict=True)]
    return max(strides) / min(strides)
