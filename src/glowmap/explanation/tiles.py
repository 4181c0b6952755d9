"""An explanation in pictures: the heat over what the model saw of one image, and the tiles of a figure about it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glowmap.errors import OutputError
from glowmap.explanation.maps import Explained
from glowmap.inputs import Picture, Shown, Signal, Volume
from glowmap.outputs import DetectedBox, Prediction, background_class
from glowmap.render import (
    COLUMN,
    COLUMNS_OF_WIDE,
    DIVERGING,
    MOST_CURVES,
    MOST_IN_A_STRIP,
    OPACITY,
    ColourBar,
    LabelledBox,
    Look,
    Shape,
    Tile,
    checked_places,
    clip,
    curves,
    enlarged,
    follow_edges,
    framed,
    hottest,
    label_legend,
    outlined,
    overlay,
    paint_boxes,
    paint_labels,
    ranking_tile,
    spread,
    strip,
    volume,
)

Frames: TypeAlias = Sequence[int] | None
MOST_BOXES = 20  # that are drawn, unless more are asked about
_MARGIN = 12  # pixels of white around frames, slices and curves
_LONG = 60  # letters of a question


def overlaid(
    one: Explained,
    index: int,
    *,
    colormap: str,
    opacity: float,
    edges: bool = False,
    places: Frames = None,
    annotations: bool = False,
) -> Image.Image:
    """Draw the heat of one image over its picture, over frames of its clip, slices of its volume, or its curves."""
    shown = shown_of(one, index)
    if not isinstance(shown, Picture):
        if edges:
            raise OutputError("edges=True brings heat to the edges of a picture, and this input is none; leave it out")
        heat, chosen = _heat(one, index, colormap), places_of([one], index, places)
        drawn = _drawn(shown, heat, chosen, Look(colormap, opacity))
        return framed(drawn, width=drawn.width + 2 * _MARGIN, left=_MARGIN, top=_MARGIN, bottom=_MARGIN)
    if places is not None:
        raise OutputError("places= chooses frames, slices or channels, and this input is a picture; leave it out")
    picture, heat = shown.as_seen(), _heat(one, index, colormap)
    if edges:
        coarse = min(a / b for a, b in zip(one.canvas or one.input_size, one.grid, strict=True))
        heat = follow_edges(heat, picture, max(1, round(coarse * picture.height / heat.shape[0] / 2)))
    drawn = overlay(picture, heat, colormap=colormap, opacity=opacity)
    return outlined(drawn, shapes_of(one, index)) if annotations else drawn


def picture_tile(
    explanation: Explained,
    index: int,
    heading: str,
    *,
    places: Frames = None,
    among: Sequence[Explained] = (),
) -> Tile:
    """Show one image as the model saw it, with the question, its score and what it points at.

    ``among`` are explanations of several questions about this image, none of which is written, and all that they point at drawn,
    unless they are boxes, which the prediction beside it names.
    """
    shown, asked = shown_of(explanation, index), () if among else _asked(explanation, index)
    if isinstance(shown, Picture):
        picture = shown.as_seen()
        cut = ("the part that the model saw",) if shown.is_cut else ()
        boxes_beside = bool(among) and explanation.prediction is not None and explanation.prediction.boxes is not None
        shapes = [] if boxes_beside else [shape for one in among or (explanation,) for shape in shapes_of(one, index)]
        return _outlined(picture, shapes, heading, (*asked, *cut))
    chosen = places_of([explanation], index, places)
    if isinstance(shown, Signal):
        return _wide(partial(curves, shown.values, None, chosen), heading, (*asked, *_left_out(shown, chosen)))
    return _wide(partial(strip, shown.values, chosen, word=_word(shown)), heading, asked)


def heat_tile(
    explanation: Explained,
    index: int,
    heading: str,
    *,
    colormap: str = "glow",
    opacity: float = OPACITY,
    places: Frames = None,
    told: tuple[str, ...] = (),
) -> Tile:
    """Show one image's overlay, with the layer's grid (after what else is ``told``) and what the colour bar's ends stand for."""
    low, high = explanation.scale(index)
    if colormap in DIVERGING:
        high = float(explanation.signed(index).abs().max())
        low = -high
    grid = ", ".join((*told, f"grid {' × '.join(map(str, explanation.grid))}"))
    blank = () if explanation.heatmap[index].any() else ("blank: see the notes below",)
    bar = ColourBar(colormap, spelled(low) if abs(low) > high / 1000 else "0", spelled(high))
    shown = shown_of(explanation, index)
    if isinstance(shown, Picture):
        drawn = overlaid(explanation, index, colormap=colormap, opacity=opacity, places=places)
        return _outlined(drawn, shapes_of(explanation, index), heading, (grid, *blank), bar)
    heat, chosen = _heat(explanation, index, colormap), places_of([explanation], index, places)
    asked = (*_asked(explanation, index), *_left_out(shown, chosen)) if isinstance(shown, Signal) else ()
    caption = (*asked, grid, *blank)
    return _wide(partial(_drawn, shown, heat, chosen), heading, caption, Look(colormap, opacity), bar=bar)


def prediction_tile(
    explanation: Explained,
    index: int,
    heading: str = "prediction",
    *,
    places: Frames = None,
    among: Sequence[Explained] = (),
) -> list[Tile]:
    """Show what the model said of one image, where its output could be read; ``among`` as in :func:`picture_tile`."""
    prediction, shown = explanation.prediction, shown_of(explanation, index)
    if prediction is None:
        return []
    if prediction.probabilities is not None:
        asked = {one.targets[index] for one in among or (explanation,)} & {*prediction.names}
        one_asked = prediction.names.index(next(iter(asked))) if len(asked) == 1 else None
        probabilities = prediction.probabilities[index].cpu().numpy()
        size = shown.as_seen().size if isinstance(shown, Picture) else (COLUMN, COLUMN * 3 // 4)
        return [ranking_tile(prediction.names, probabilities, size, heading, asked=one_asked)]
    if prediction.boxes is not None:
        boxes = prediction.boxes[index]
        return (
            [_boxes_tile(shown, boxes, among or (explanation,), index, heading)] if isinstance(shown, Picture) else []
        )
    return [] if prediction.labels is None else _labels_tile(explanation, prediction, index, heading, places)


def _labels_tile(
    explanation: Explained, prediction: Prediction, index: int, heading: str, places: Frames
) -> list[Tile]:
    """Show a class at every pixel, over the picture or over the places that are shown of a volume."""
    assert prediction.labels is not None
    shown, names = shown_of(explanation, index), prediction.names
    labels, background = prediction.labels[index].cpu().numpy(), background_class(names)
    paint = partial(paint_labels, names=names, background=background)
    if isinstance(shown, Picture) and labels.ndim == 2:
        legend = label_legend(labels, names, background=background)
        return [Tile(paint(shown.as_seen(), labels), heading, legend=legend)]
    if isinstance(shown, Volume) and labels.ndim == 3 and len(labels) == len(shown.values):
        chosen = places_of([explanation], index, places)
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
    number += 0.0  # no minus before a zero
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.3g}"


def shapes_of(one: Explained, index: int) -> list[Shape]:
    """List what the question points at in one image, as figures draw it."""
    annotations = one.annotations[one.only(index)] if one.annotations else ()
    given = [(mark.point, mark.box, mark.region) for several in annotations for mark in several]
    shapes = [shape for shape in chain.from_iterable(given) if shape is not None]
    return [shape.cpu().numpy() if isinstance(shape, Tensor) else shape for shape in shapes]


def _outlined(
    picture: Image.Image, shapes: Sequence[Shape], heading: str, caption: tuple[str, ...], bar: ColourBar | None = None
) -> Tile:
    """Make a tile of a picture and the shapes on it, whose lines are drawn at the size that is shown."""
    if not shapes:
        return Tile(picture, heading, caption, bar)

    def draw(size: tuple[int, int], scale: int) -> Image.Image:
        return outlined(enlarged(picture, size[0] / picture.width), shapes, scale)

    return Tile(outlined(picture, shapes, 1), heading, caption, bar, draw=draw)


def _boxes_tile(
    picture: Picture, found: Sequence[DetectedBox], group: Sequence[Explained], index: int, heading: str
) -> Tile:
    """Show what a detector found, the surest of it, with its number, class and score; what is asked about is drawn stronger."""
    marked = [mark.box for one in group if one.annotations for mark in one.annotations[index] if mark.box is not None]
    asked = [any(np.allclose(one.corners, box, atol=1e-5) for box in marked) for one in found]
    boxes = [
        LabelledBox(
            one.corners,
            f"{number} {short(one.name, (one.name,))} {one.score:.2f}",
            one.category,
            asked=asked[number] and not all(asked),
        )
        for number, one in enumerate(found)
    ]
    drawn = [box for number, box in enumerate(boxes) if number < MOST_BOXES or box.asked]
    caption = f"{len(drawn)} of the {len(boxes)} found" if len(drawn) < len(boxes) else f"{len(boxes)} found"
    seen = picture.as_seen()

    def draw(size: tuple[int, int], scale: int) -> Image.Image:
        return paint_boxes(enlarged(seen, size[0] / seen.width), drawn, scale)

    return Tile(paint_boxes(seen, drawn, 1), heading, (caption if boxes else "nothing found",), draw=draw)


def short(wording: str, names: Sequence[str]) -> str:
    """Keep the first of a class's synonyms, as lists of ImageNet's classes have them, wherever its name stands in a wording."""
    for name in sorted((name for name in names if "," in name and name in wording), key=len, reverse=True):
        wording = wording.replace(name, name.partition(",")[0])
    return wording


def _asked(one: Explained, index: int) -> tuple[str, ...]:
    """Write the question and its score, which a long question must not push out of the caption."""
    wording, score = one.targets[index], f"score {spelled(float(one.scores[index]))}"
    return (f"{wording}, {score}",) if len(wording) <= _LONG else (wording, score)


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


def places_of(group: Sequence[Explained], index: int, places: Frames) -> list[int]:
    """Check the places that were named, or choose: of several explanations the hottest place of them all."""
    shown = shown_of(group[0], index)
    count = len(shown.values) if not isinstance(shown, Picture) else 0
    if places is not None:
        return checked_places(places, count, _word(shown), kind_of(shown))
    if isinstance(shown, Signal):
        return list(range(min(count, MOST_CURVES)))
    heat = torch.stack([one.heatmap[index].float().cpu() for one in group]).mean(0)
    return spread(count, MOST_IN_A_STRIP, hottest(heat.amax((1, 2)).numpy()))


def _left_out(shown: Signal, places: Sequence[int]) -> tuple[str, ...]:
    count = len(shown.values)
    return () if len(places) == count else (f"{len(places)} of {count} channels",)


def kind_of(shown: Shown) -> str:
    """Say what a person would call it."""
    if isinstance(shown, Picture | Signal):
        return "picture" if isinstance(shown, Picture) else "signal"
    return "clip" if shown.values.shape[-1] == 3 else "volume"


def _word(shown: Shown) -> str:
    """Name one place of a clip, a volume or a signal."""
    return {"clip": "frame", "volume": "slice", "signal": "channel"}[kind_of(shown)]
