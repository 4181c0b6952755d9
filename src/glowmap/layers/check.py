"""Check, for a layer that somebody named, that its tokens lie as they are read."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from glowmap.inputs import PatchPositions
from glowmap.layers.align import gradients, offset, stands
from glowmap.layers.layout import Grid, Layout, interleaved_layout, patches_among, token_layouts
from glowmap.layers.trace import Trace, TracedOutput, traced


def check_layout(
    model: nn.Module,
    images: Tensor,
    call: Callable[[Tensor], Any],
    name: str,
    layout: Layout | None,
    *,
    grids: Sequence[Grid] = (),
    among_words: PatchPositions | None = None,
) -> tuple[Layout | None, bool]:
    """Prove by where its cells look that a layer's tokens lie as they are read, or find how they do; False where neither can be.

    Without a layout it is only found, or None.

    ``call`` runs the (borrowed) model on images that need a gradient: one pass forward, and a few backward to the images.
    ``grids`` are those that its tokens are known to have, and ``among_words`` says where they stand in the part that has words.
    """
    leaf = images.detach().clone().requires_grad_()
    with traced(model) as trace:
        call(leaf.clone())  # as the model may write into its input
    trace.grids += grids
    put = _named(trace, name)
    if put is None or gradients(put.tensor.sum(), [leaf])[0] is None:
        return layout, False
    if among_words is not None:
        known = [grid for grid in (*grids, *trace.grids) if len(grid) == leaf.ndim - 2]
        told = interleaved_layout(among_words, name, put.tensor.shape, known)
        if told is not None:
            return told, True
    among = patches_among(put.tensor.shape, leaf, trace.grids)
    other = token_layouts(put.tensor.shape, len(leaf), tuple(leaf.shape[2:]), trace.grids)
    shifted = None if among is None else offset(put.tensor, among, leaf)
    for one in (layout, shifted, *other):
        if one is not None and stands(put.tensor, one, leaf):
            return one, True
    return layout, False


def _named(trace: Trace, name: str) -> TracedOutput | None:
    plain, marked, _ = name.partition("#")
    found = [
        put
        for put in trace.outputs
        for each in (*put.names, *put.passed_by)
        if each == name or (not marked and each.partition("#")[0] == plain)
    ]
    return found[-1] if found else None
