"""How a layer's output is laid out as batch x channel x grid: channels first or last, or tokens of a known grid."""

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
_SAME_STRIDE = 1.6  # how unequal the strides of two axes may be that are both spatial
MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens that may stand before those of the patches
_HALVINGS = 4  # how often a grid of tokens may have been merged two by two since a convolution made it


@dataclass(frozen=True)
class Layout:
    """How an output holds batch, channels, grid and prefix tokens.

    ``kind`` orders batch (B), channels (C) and space: "channels first" B x C x rows x columns, "channels last" B x rows x
    columns x C, "tokens" B x N x C, "tokens first" N x B x C, "channel tokens" B x C x N. ``grid`` is the rows and columns (or
    any number of axes), in tokens row by row. ``prefix_tokens`` stand before those of the grid; any number may stand after.
    ``interleaved`` tokens have others around them that may be more or fewer for another input, such as those of a text.
    """

    kind: Kind
    grid: Grid
    prefix_tokens: int = 0
    interleaved: bool = False

    @property
    def is_of_tokens(self) -> bool:
        """Whether the grid is one axis of tokens."""
        return "tokens" in self.kind

    @property
    def depends_on_text(self) -> bool:
        """Whether the number of prefix tokens may be another one for another text in the same sequence."""
        return self.is_of_tokens and (self.interleaved or self.prefix_tokens > 1)

    @property
    def batch_axis(self) -> int:
        """The axis of the images."""
        return 1 if self.kind == "tokens first" else 0

    @property
    def token_axis(self) -> int | None:
        """The axis of the tokens; None for maps."""
        return {"tokens": 1, "tokens first": 0, "channel tokens": 2}.get(self.kind)

    def maps(self, output: Tensor) -> Maps:
        """Return an output of this layout as batch x channel x grid."""
        if self.kind == "channels first":
            return output
        if self.kind == "channels last":
            return output.movedim(-1, 1)
        patches = self._tokens(output)[:, self._patches]
        return patches.transpose(1, 2).reshape(len(patches), patches.shape[2], *self.grid)

    def output(self, maps: Maps, original: Tensor) -> Tensor:
        """Return maps in the layout of the layer's output: the inverse of :meth:`maps`.

        ``original`` is the layer's output for the one image of which the maps are; it supplies the tokens around the grid.
        """
        if not self.is_of_tokens:
            return (maps.movedim(1, -1) if self.kind == "channels last" else maps).to(original.dtype)
        tokens = self._tokens(original).expand(len(maps), -1, -1).clone()
        patches = maps.flatten(2).transpose(1, 2).to(original.dtype)
        whole = torch.cat([tokens[:, : self.prefix_tokens], patches, tokens[:, self._patches.stop :]], 1)
        return {"tokens": whole, "tokens first": whole.transpose(0, 1), "channel tokens": whole.transpose(1, 2)}[
            self.kind
        ]

    def fits(self, shape: Sequence[int], batch: int) -> bool:
        """Return whether an output of this shape, for ``batch`` images, can have this layout."""
        if shape[self.batch_axis] != batch:
            return False
        if self.token_axis is None:
            return tuple(shape[2:] if self.kind == "channels first" else shape[1:-1]) == self.grid
        return len(shape) == 3 and shape[self.token_axis] >= self.prefix_tokens + math.prod(self.grid)

    @property
    def _patches(self) -> slice:
        return slice(self.prefix_tokens, self.prefix_tokens + math.prod(self.grid))

    def _tokens(self, output: Tensor) -> Tensor:
        """Return tokens as batch x tokens x channel."""
        axes = {"tokens": (0, 1, 2), "tokens first": (1, 0, 2), "channel tokens": (0, 2, 1)}
        return output.permute(axes[self.kind])

    def __str__(self) -> str:
        words = {"tokens first": "tokens, the batch second", "channel tokens": "tokens, channels first"}
        text = f"{words.get(self.kind, self.kind)}, {crossed(self.grid)}"
        others = f"{self.prefix_tokens} other{'s' * (self.prefix_tokens > 1)}"
        return f"{text} after {others}" if self.prefix_tokens else text


def read_layout(
    shape: Sequence[int], name: str, witness: nn.Module, images: Sequence[int], grids: Sequence[Grid] | None = ()
) -> Layout:
    """Return the likeliest layout of a layer's output of this ``shape``, for images of the shape ``images``.

    Channels last is recognised by the strides of the axes, or by what the ``witness`` (see :func:`layout_witness`) is made of
    where both readings fit. Tokens are laid out where there are as many of them, but for a few prefix tokens, as a convolution
    made cells (``grids``) or the image has square patches. Raises LayerError where the output has no grid: another batch axis,
    tokens of no grid, a single cell.
    """
    batch, pixels, crossed_shape = images[0], tuple(images[2:]), crossed(shape)
    tokens = token_layouts(shape, batch, pixels, grids or ())
    if _channel_positions(witness)[1]:  # linear layers and their norms have the channels last
        tokens = [layout for layout in tokens if layout.kind != "channel tokens"]
    if shape[0] != batch and not tokens:
        raise LayerError(
            f"the output of layer {name!r} ({crossed_shape}) has {shape[0]} rows for {batch} images; "
            "name a layer that keeps one row an image"
        )
    # a signal's class token stands in the axis of its samples; a convolution's channels may look like that
    signal_with_token = (
        len(pixels) == 1 and tokens and tokens[0].prefix_tokens and _channel_positions(witness) == (False, True)
    )
    if len(shape) == len(images) and not signal_with_token:
        last = _is_channels_last(shape, pixels, witness)
        layout = Layout("channels last", tuple(shape[1:-1])) if last else Layout("channels first", tuple(shape[2:]))
    elif tokens:
        layout = tokens[0]
    else:
        raise LayerError(
            f"the output of layer {name!r} ({crossed_shape}) does not have the {len(pixels)} spatial axes of the input "
            f"({crossed(images)}), nor as many tokens as it has square patches; name a layer whose output is "
            "batch x channel x rows x columns"
        )
    if math.prod(layout.grid) < 2:
        raise LayerError(
            f"the output of layer {name!r} ({crossed_shape}) has no spatial axes left, only one cell; "
            "name a layer before the pooling"
        )
    return layout


def interleaved_layout(
    positions: PatchPositions, name: str, shape: Sequence[int], grids: Sequence[Grid]
) -> Layout | None:
    """Return the layout of an output in the part of the model that reads patches among words; None for other outputs.

    The grid is the known one, or one merged from it, that has as many cells as there are patches.
    """
    inside = f"{name.partition('#')[0]}.".startswith(f"{positions.part}.")
    if not inside or len(shape) != 3 or shape[1] != positions.tokens or positions.patches < 2:
        return None
    fits = [merged for grid in grids for merged in (grid, *halvings(grid)) if math.prod(merged) == positions.patches]
    return Layout("tokens", fits[0], positions.first, interleaved=True) if fits else None


def token_layouts(shape: Sequence[int], batch: int, pixels: Grid, grids: Sequence[Grid]) -> list[Layout]:
    """List the layouts of tokens that an output of three axes may have, the likeliest first.

    First come the grids that convolutions made, with as few prefix tokens as possible; then square patches that fill the image
    exactly; then the first ones after merging.
    """
    if len(shape) != 3:
        return []
    known = [grid for grid in dict.fromkeys(grids) if len(grid) == len(pixels) and math.prod(grid) > 1]
    sides = [side for side in range(1, min(pixels) + 1) if not any(pixel % side for pixel in pixels)]
    squares = [tuple(pixel // side for pixel in pixels) for side in sides] if len(pixels) > 1 else []
    merged = [halved for grid in known for halved in halvings(grid)]
    layouts: dict[Layout, None] = {}
    for source in (known, squares, merged):
        fits = [layout for grid in source for layout in _fitting_layouts(shape, batch, grid)]
        if source is not known:  # only their number speaks for these, and a few words may be as many
            fits = [layout for layout in fits if 2 * layout.prefix_tokens < math.prod(layout.grid)]
        if source is merged:
            fits = [layout for layout in fits if layout.prefix_tokens <= 1]
        # channels-first tokens are rare, and any channel count may look like a grid
        fits.sort(key=lambda layout: (layout.kind == "channel tokens", layout.prefix_tokens))
        layouts.update(dict.fromkeys(fits))
    return list(layouts)


def halvings(grid: Grid) -> list[Grid]:
    """List the grids after patches are merged or pooled two by two up to four times; a last odd one is kept or left out.

    The frames of a clip are merged with their rows and columns, or stay as they are.
    """
    unmerged_axes = [0] if len(grid) < 3 else [0, len(grid) - 2]
    halved = [
        (*grid[:first], *((cells + odd * (2**n - 1)) // 2**n for cells in grid[first:]))
        for first in unmerged_axes
        for odd in (True, False)
        for n in range(1, _HALVINGS + 1)
    ]
    return list(dict.fromkeys(halved))


def is_made(grid: Grid, grids: Sequence[Grid]) -> bool:
    """Return whether convolutions made this grid, or one of which it is merged or pooled. True where none are known."""
    same = [known for known in grids if len(known) == len(grid)]
    return not same or grid in same or any(grid in halvings(known) for known in dict.fromkeys(same))


def interleaved_candidate(shape: Sequence[int], images: Sequence[int], grids: Sequence[Grid]) -> Layout | None:
    """Return a layout of patches of the finest known grid at an unknown place among tokens: ``prefix_tokens`` is -1."""
    if len(shape) != 3 or len(images) == 3 or shape[0] != images[0]:
        return None
    fits = [grid for grid in grids if len(grid) == len(images) - 2 and 1 < math.prod(grid) < shape[1]]
    return Layout("tokens", max(fits, key=math.prod), -1) if fits else None


def _fitting_layouts(shape: Sequence[int], batch: int, grid: Grid) -> Iterator[Layout]:
    cells = math.prod(grid)
    if cells < 2:
        return
    axes: list[tuple[Kind, int, int]] = [("tokens", 0, 1), ("tokens first", 1, 0), ("channel tokens", 0, 2)]
    for kind, rows, tokens in axes:
        prefix = shape[tokens] - cells
        if shape[rows] == batch and 0 <= prefix <= (0 if kind == "channel tokens" else MAX_PREFIX_TOKENS):
            yield Layout(kind, grid, prefix)


@contextmanager
def known_grids(model: nn.Module) -> Iterator[list[Grid]]:
    """List the grids that convolutions make while the model is run inside: patch embeddings, stems, mergings."""
    grids: list[Grid] = []

    def add_grid(_module: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim >= 3:
            grids.append(tuple(output.shape[2:]))

    with hooked((module for module in model.modules() if isinstance(module, _ConvNd)), after=add_grid):
        yield grids


def _is_channels_last(shape: Sequence[int], pixels: Sequence[int], witness: nn.Module) -> bool:
    first, last = _unevenness(shape[2:], pixels), _unevenness(shape[1:-1], pixels)
    if first > _SAME_STRIDE or last > _SAME_STRIDE:
        return last <= _SAME_STRIDE  # one reading fits; where none does, channels come first as nearly everywhere
    works_on_first, works_on_last = _channel_positions(witness)
    return works_on_last if works_on_last != works_on_first else last < first


def is_plain(layout: Layout, shape: Sequence[int], pixels: Grid) -> bool:
    """Return whether the strides leave no doubt that channels come first."""
    if layout.kind != "channels first" or len(pixels) == 1:
        return False
    return _unevenness(shape[2:], pixels) <= _SAME_STRIDE < _unevenness(shape[1:-1], pixels)


def _channel_positions(module: nn.Module) -> tuple[bool, bool]:
    """Return whether parts of a module work on channels that come first, and on channels that come last."""
    # Subclasses are left out: a LayerNorm2d keeps its channels first.
    kinds = {type(part) for part in module.modules()}
    on_first = any(word in kind.__name__ for kind in kinds for word in ("Conv", "Pool", "BatchNorm", "GroupNorm"))
    return on_first, bool(kinds & {nn.LayerNorm, nn.Linear})


def layout_witness(model: nn.Module, name: str) -> nn.Module:
    """Return the module that shows where a layer has its channels: itself, or the nearest around it made of one kind.

    An activation shows nothing; the linear layers or convolutions beside it do. The whole model does not: a linear head shows
    nothing of the layers before it.
    """
    parts = name.partition("#")[0].split(".")
    around = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), 0, -1)]
    return next((module for module in around if len({*_channel_positions(module)}) == 2), around[0])


def _unevenness(grid: Sequence[int], pixels: Sequence[int]) -> float:
    """Return the ratio of the strides of rows and columns: 1 where both shrank by the same factor."""
    # the frames of a clip, or the slices of a volume, have a stride of their own
    strides = [pixel / cell for pixel, cell in zip(pixels[-2:], grid[-2:], strict=True)]
    return max(strides) / min(strides)
