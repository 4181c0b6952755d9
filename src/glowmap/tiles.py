"""An explanation in pictures: the heat over what the model saw of one image, and the tiles of a figure about it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from glowmap.errors import OutputError
from glowmap.explained import Explained
from glowmap.images import Picture, Shown, Signal, Volume
from glowmap.render import (
    COLUMN,
    COLUMNS_OF_WIDE,
    DIVERGING,
    MOST_CURVES,
    MOST_IN_A_STRIP,
    OPACITY,
    ColourBar,
    Look,
    Tile,
    checked_places,
    clip,
    curves,
    follow_edges,
    framed,
    hottest,
    label_legend,
    overlay,
    paint_labels,
    ranking_tile,
    spread,
    strip,
    volume,
)
from glowmap.targets import background_class

Places: TypeAlias = Sequence[int] | None
_MARGIN = 12  # pixels of white around frames, slices and curves


def overlaid(
    one: Explained, index: int, *, colormap: str, opacity: float, edges: bool = False, places: Places = None
) -> Image.Image:
    """Draw the heat of one image over its picture, over frames of its clip, slices of its volume, or its curves."""
    shown = shown_of(one, index)
    if not isinstance(shown, Picture):
        if edges:
            raise OutputError("edges=True brings heat to the edges of a picture, and this input is none; leave it out")
        heat, chosen = _heat(one, index, colormap), _places([one], index, places)
        drawn = _drawn(shown, heat, chosen, Look(colormap, opacity))
        return framed(drawn, width=drawn.width + 2 * _MARGIN, left=_MARGIN, top=_MARGIN, bottom=_MARGIN)
    if places is not None:
        raise OutputError("places= chooses frames, slices or channels, and this input is a picture; leave it out")
    picture, heat = shown.as_seen(), _heat(one, index, colormap)
    if edges:
        coarse = min(a / b for a, b in zip(heat.shape, one.grid, strict=True))
        heat = follow_edges(heat, picture, max(1, round(coarse * picture.height / heat.shape[0] / 2)))
    return overlay(picture, heat, colormap=colormap, opacity=opacity)


def rows(
    groups: Sequence[Sequence[Explained]], differing: dict[str, bool], look: Look, places: Places
) -> list[list[Tile]]:
    """Lay out a row for each group (one question at several layers) and image: what was seen and said, and each layer's heat.

    Frames, slices and curves take a line each; all lines about one image show the same places, and what was seen only once.
    """
    each = [(group, index) for group in groups for index in range(len(group[0]))]
    wide = not isinstance(shown_of(groups[0][0], 0), Picture)
    if wide:
        each.sort(key=lambda one: one[1])
    laid: list[list[Tile]] = []
    told: set[tuple[int, str]] = set()
    for group, index in each:
        shown, target = shown_of(group[0], index), group[0].targets[index]
        alike = [one for several, at in each if at == index and shown_of(several[0], at) is shown for one in several]
        chosen = _places(alike, index, places) if wide else places
        heat = [_layer_tile(one, index, differing, look, chosen) for one in group]
        seen = [] if wide and (id(shown), target) in told else _seen_tiles(group[0], index, differing, chosen)
        told.add((id(shown), target))
        # the curves of a signal are seen under their heat as well as without it
        laid.append([*heat[:1], *seen, *heat[1:]] if isinstance(shown, Signal) else [*seen, *heat])
    return laid


def _layer_tile(one: Explained, index: int, differing: dict[str, bool], look: Look, places: Places) -> Tile:
    heading = one.layer + (f" · {one.method}" if differing["method"] else "")
    return heat_tile(one, index, heading, colormap=look.colormap, opacity=look.opacity, places=places)


def _seen_tiles(one: Explained, index: int, differing: dict[str, bool], places: Places) -> list[Tile]:
    shown = shown_of(one, index)
    heading = short(one.targets[index]) if differing["target"] else _kind(shown)
    picture = [] if isinstance(shown, Signal) else [picture_tile(one, index, heading, places=places)]
    return [*picture, *prediction_tile(one, index, places=places)]


def picture_tile(explanation: Explained, index: int, heading: str, *, places: Places = None) -> Tile:
    """Show one image as the model saw it, with the question and its score."""
    shown, asked = shown_of(explanation, index), _asked(explanation, index)
    if isinstance(shown, Picture):
        picture = shown.as_seen()
        cut = () if picture is shown.image else ("the part that the model saw",)
        return Tile(picture, heading, (asked, *cut))
    chosen = _places([explanation], index, places)
    if isinstance(shown, Signal):
        return _wide(partial(curves, shown.values, None, chosen), heading, (asked, *_left_out(shown, chosen)))
    return _wide(partial(strip, shown.values, chosen, word=_word(shown)), heading, (asked,))


def heat_tile(
    explanation: Explained,
    index: int,
    heading: str,
    *,
    colormap: str = "glow",
    opacity: float = OPACITY,
    places: Places = None,
) -> Tile:
    """Show one image's overlay, with the layer's grid and what the ends of the colour bar stand for."""
    low, high = explanation.scale(index)
    if colormap in DIVERGING:
        high = float(explanation.signed(index).abs().max())
        low = -high
    grid = f"grid {' × '.join(map(str, explanation.grid))}"
    blank = () if explanation.heatmap[index].any() else ("blank: see the notes below",)
    bar = ColourBar(colormap, spelled(low) if abs(low) > high / 1000 else "0", spelled(high))
    shown = shown_of(explanation, index)
    if isinstance(shown, Picture):
        drawn = overlaid(explanation, index, colormap=colormap, opacity=opacity, places=places)
        return Tile(drawn, heading, (grid, *blank), bar)
    heat, chosen = _heat(explanation, index, colormap), _places([explanation], index, places)
    told = (_asked(explanation, index), *_left_out(shown, chosen)) if isinstance(shown, Signal) else ()
    caption = (*told, grid, *blank)
    return _wide(partial(_drawn, shown, heat, chosen), heading, caption, Look(colormap, opacity), bar=bar)


def prediction_tile(
    explanation: Explained, index: int, heading: str = "prediction", *, places: Places = None
) -> list[Tile]:
    """Show what the model said of one image, where its output could be read."""
    prediction, shown = explanation.prediction, shown_of(explanation, index)
    if prediction is None:
        return []
    names = prediction.names
    if prediction.probabilities is not None:
        asked = names.index(explanation.targets[index]) if explanation.targets[index] in names else None
        probabilities = prediction.probabilities[index].cpu().numpy()
        size = shown.as_seen().size if isinstance(shown, Picture) else (COLUMN, COLUMN * 3 // 4)
        return [ranking_tile(names, probabilities, size, heading, asked=asked)]
    if prediction.labels is None:
        return []
    labels, background = prediction.labels[index].cpu().numpy(), background_class(names)
    paint = partial(paint_labels, names=names, background=background)
    if isinstance(shown, Picture) and labels.ndim == 2:
        legend = label_legend(labels, names, background=background)
        return [Tile(paint(shown.as_seen(), labels), heading, legend=legend)]
    if isinstance(shown, Volume) and labels.ndim == 3 and len(labels) == len(shown.values):
        chosen = _places([explanation], index, places)
        legend = label_legend(labels[chosen].reshape(-1, labels.shape[-1]), names, background=background)
        draw = partial(
            strip, shown.values, chosen, word=_word(shown), paint=lambda place, frame: paint(frame, labels[place])
        )
        return [_wide(draw, heading, legend=legend)]
    return []


def shown_of(one: Explained, index: int) -> Shown:
    """Give what heat is drawn over; OutputError where there is nothing."""
    if not one.pictures:
        raise OutputError(
            f"there is no picture of the input (of {len(one.input_size)} spatial axes) to draw on; use .heatmap or .raw"
        )
    (shown,) = one.pictures[one.only(index)]
    return shown


def spelled(number: float) -> str:
    """Write a number as people read it: three digits, and an exponent only where it is very large or very small."""
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.3g}"


def short(name: str) -> str:
    """Keep the first of a class's synonyms, as lists of ImageNet's classes have them; numbers after a comma are none."""
    first, _, others = name.partition(",")
    return name if any(letter.isdecimal() for letter in others) else first


def _asked(one: Explained, index: int) -> str:
    return f"{one.targets[index]}, score {spelled(float(one.scores[index]))}"


def _heat(one: Explained, index: int, colormap: str) -> NDArray[np.floating[Any]]:
    """Give the heat of one image; with a diverging colormap also what speaks against, 0.5 standing for nothing."""
    if colormap not in DIVERGING:
        return one.heatmap[index].cpu().numpy()
    signed = one.signed(index)
    return (0.5 + signed / (2 * signed.abs().max()).clamp_min(torch.finfo(signed.dtype).tiny)).cpu().numpy()


def _drawn(shown: Volume | Signal, heat: NDArray[np.floating[Any]], places: Sequence[int], look: Look) -> Image.Image:
    if isinstance(shown, Signal):
        return curves(shown.values, heat, places, look)
    return (clip if shown.values.shape[-1] == 3 else volume)(shown.values, heat, places, look)


def _wide(
    draw: Callable[[Look], Image.Image],
    heading: str,
    caption: tuple[str, ...] = (),
    look: Look | None = None,
    **rest: Any,
) -> Tile:
    """Make a tile of what is drawn anew at any width."""
    once = look or Look()

    def drawn(size: tuple[int, int], scale: int) -> Image.Image:
        return draw(replace(once, width=size[0], scale=scale))

    image = framed(draw(once), width=once.width)
    return Tile(image, heading, caption, draw=drawn, columns=COLUMNS_OF_WIDE, **rest)


def _places(group: Sequence[Explained], index: int, places: Places) -> list[int]:
    """Check the places that were named, or choose: of several explanations the hottest place of them all."""
    shown = shown_of(group[0], index)
    count = len(shown.values) if not isinstance(shown, Picture) else 0
    if places is not None:
        return checked_places(places, count, _word(shown), _kind(shown))
    if isinstance(shown, Signal):
        return list(range(min(count, MOST_CURVES)))
    heat = torch.stack([one.heatmap[index].float().cpu() for one in group]).mean(0)
    return spread(count, MOST_IN_A_STRIP, hottest(heat.amax((1, 2)).numpy()))


def _left_out(shown: Signal, places: Sequence[int]) -> tuple[str, ...]:
    count = len(shown.values)
    return () if len(places) == count else (f"{len(places)} of {count} channels",)


def _kind(shown: Shown) -> str:
    if isinstance(shown, Picture | Signal):
        return "picture" if isinstance(shown, Picture) else "signal"
    return "clip" if shown.values.shape[-1] == 3 else "volume"


def _word(shown: Shown) -> str:
    """Name one place of a clip, a volume or a signal."""
    return {"clip": "frame", "volume": "slice", "signal": "channel"}[_kind(shown)]
