"""Drawings of one image of an explanation: its heat over the picture, and the tiles of a figure about it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from glowmap.errors import OutputError
from glowmap.explanation.explanation import Explanation
from glowmap.inputs import Drawable, Picture, Signal, Volume
from glowmap.outputs import DetectedBox, background_class
from glowmap.render import (
    COLUMN,
    COLUMNS_OF_WIDE,
    DIVERGING,
    FIGURE_WIDTH,
    MOST_CURVES,
    MOST_IN_A_STRIP,
    ColourBar,
    LabelledBox,
    Shape,
    Style,
    Tile,
    checked_frames,
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

MOST_BOXES = 20  # detections drawn beside those of the target
_MARGIN = 12  # pixels of white around frames, slices and curves
_LONG = 60  # letters: a longer name of a target takes its own line of a caption


def overlaid(explanation: Explanation, index: int, style: Style) -> Image.Image:
    """Draw the heat of one image over its picture, over frames of its clip, slices of its volume, or its curves."""
    picture, heat = picture_of(explanation, index), _heat(explanation, index, style)
    if not isinstance(picture, Picture):
        if style.edges:
            raise OutputError(
                f"edges=True aligns heat with the edges of a picture, and this input is a {kind_of(picture)}; leave it out"
            )
        frames = frames_to_draw([explanation], index, style.frames)
        drawn, margin = _draw_heat(picture, heat, frames, style, FIGURE_WIDTH * style.scale), _MARGIN * style.scale
        return framed(drawn, width=drawn.width + 2 * margin, left=margin, top=margin, bottom=margin)
    if style.frames is not None:
        raise OutputError("frames= chooses frames, slices or channels, and this input is a picture; leave it out")
    visible = picture.visible_part()
    if style.edges:
        grid_size = explanation.canvas or explanation.input_size
        stride = min(pixels / cells for pixels, cells in zip(grid_size, explanation.grid, strict=True))
        heat = follow_edges(heat, visible, max(1, round(stride * visible.height / heat.shape[0] / 2)))
    drawn = overlay(visible, heat, colormap=style.colormap, opacity=style.opacity)
    if style.scale > 1:
        drawn = enlarged(drawn, style.scale)
    return outlined(drawn, annotated_shapes(explanation, index)) if style.show_annotations else drawn


def picture_tile(
    explanation: Explanation, index: int, heading: str, style: Style, *, group: Sequence[Explanation] = ()
) -> Tile:
    """Show one image as the model saw it, with the target's name, score and annotations.

    ``group`` holds explanations of several targets of this image. Then no target is named, and the annotations of all are drawn,
    unless the prediction beside the picture shows boxes.
    """
    picture, caption = picture_of(explanation, index), () if group else _target_caption(explanation, index)
    if isinstance(picture, Picture):
        cut = ("the part that the model saw",) if picture.is_cropped else ()
        has_boxes_beside = (
            bool(group) and explanation.prediction is not None and explanation.prediction.boxes is not None
        )
        shapes = [] if has_boxes_beside else _shapes(group or [explanation], index, style)
        return _outlined_tile(picture.visible_part(), shapes, heading, (*caption, *cut))
    frames = frames_to_draw([explanation], index, style.frames)
    if isinstance(picture, Signal):
        draw = partial(curves, picture.values, None, frames)
        return _wide_tile(draw, style, heading, (*caption, *_channel_caption(picture, frames)))
    return _wide_tile(partial(strip, picture.values, frames, word=_frame_word(picture)), style, heading, caption)


def heat_tile(
    explanation: Explanation, index: int, heading: str, style: Style, *, details: tuple[str, ...] = ()
) -> Tile:
    """Show one image's overlay, with ``details`` and the layer's grid below it, and the limits at the colour bar's ends."""
    low, high = explanation.limits(index)
    if style.colormap in DIVERGING:
        high = float(explanation.signed(index).abs().max())
        low = -high
    bar = ColourBar(style.colormap, format_number(low) if abs(low) > high / 1000 else "0", format_number(high))
    grid = ", ".join((*details, f"grid {' × '.join(map(str, explanation.grid))}"))
    blank = () if explanation.heatmap[index].any() else ("blank: see the cautions below",)
    picture = picture_of(explanation, index)
    if isinstance(picture, Picture):
        drawn = overlaid(explanation, index, replace(style, scale=1, show_annotations=False))
        return _outlined_tile(drawn, _shapes([explanation], index, style), heading, (grid, *blank), bar)
    if style.edges:
        overlaid(explanation, index, style)  # raises the error
    heat, frames = _heat(explanation, index, style), frames_to_draw([explanation], index, style.frames)
    caption = (grid, *blank)
    if isinstance(picture, Signal):
        caption = (*_target_caption(explanation, index), *_channel_caption(picture, frames), *caption)
    return _wide_tile(partial(_draw_heat, picture, heat, frames), style, heading, caption, bar=bar)


def prediction_tiles(
    explanation: Explanation,
    index: int,
    style: Style,
    *,
    heading: str = "prediction",
    group: Sequence[Explanation] = (),
) -> list[Tile]:
    """Show the prediction for one image in at most one tile, where it could be read; ``group`` as in :func:`picture_tile`."""
    prediction, picture, group = explanation.prediction, picture_of(explanation, index), group or [explanation]
    if prediction is None:
        return []
    if prediction.probabilities is not None:
        classes = {member.target_names[index] for member in group} & {*prediction.names}
        highlighted = prediction.names.index(next(iter(classes))) if len(classes) == 1 else None
        probabilities = prediction.probabilities[index].cpu().numpy()
        size = picture.visible_part().size if isinstance(picture, Picture) else (COLUMN, COLUMN * 3 // 4)
        return [ranking_tile(prediction.names, probabilities, size, heading, highlighted=highlighted)]
    if prediction.boxes is not None:
        if not isinstance(picture, Picture):
            return []
        return [_boxes_tile(picture, prediction.boxes[index], group, index, heading)]
    return [] if prediction.labels is None else _labels_tiles(explanation, index, style, heading)


def _labels_tiles(explanation: Explanation, index: int, style: Style, heading: str) -> list[Tile]:
    """Show the class of every pixel, over the picture or over the slices of a volume that are drawn."""
    prediction, picture = explanation.prediction, picture_of(explanation, index)
    assert prediction is not None
    assert prediction.labels is not None
    names, labels = prediction.names, prediction.labels[index].cpu().numpy()
    background = background_class(names)
    paint = partial(paint_labels, names=names, background=background)
    if isinstance(picture, Picture) and labels.ndim == 2:
        legend = label_legend(labels, names, background=background)
        return [Tile(paint(picture.visible_part(), labels), heading, legend=legend)]
    if isinstance(picture, Volume) and labels.ndim == 3 and len(labels) == len(picture.values):
        frames = frames_to_draw([explanation], index, style.frames)
        legend = label_legend(labels[frames].reshape(-1, labels.shape[-1]), names, background=background)

        def paint_frame(number: int, frame: Image.Image) -> Image.Image:
            return paint(frame, labels[number])

        draw = partial(strip, picture.values, frames, word=_frame_word(picture), paint=paint_frame)
        return [_wide_tile(draw, style, heading, legend=legend)]
    return []


def picture_of(explanation: Explanation, index: int) -> Drawable:
    """Return the picture, clip, volume or signal that heat is drawn on. Raises OutputError where there is none."""
    if not explanation.pictures:
        axes = len(explanation.input_size)
        raise OutputError(f"there is no picture of the input (of {axes} spatial axes) to draw on; use .heatmap or .raw")
    (picture,) = explanation.pictures[explanation.slice_of(index)]
    return picture


def format_number(number: float) -> str:
    """Write a number with three digits, and with an exponent only where it is very large or very small."""
    number += 0.0  # no minus before a zero
    return f"{number:,.0f}" if 1000 <= abs(number) < 1e7 else f"{number:.3g}"


def annotated_shapes(explanation: Explanation, index: int) -> list[Shape]:
    """List the points, boxes and regions of the target in one image."""
    annotations = explanation.annotations[explanation.slice_of(index)] if explanation.annotations else ()
    shapes = [(annotation.point, annotation.box, annotation.region) for annotation in chain.from_iterable(annotations)]
    return [
        shape.cpu().numpy() if isinstance(shape, Tensor) else shape
        for shape in chain.from_iterable(shapes)
        if shape is not None
    ]


def _shapes(group: Sequence[Explanation], index: int, style: Style) -> list[Shape]:
    if not style.show_annotations:
        return []
    return [shape for explanation in group for shape in annotated_shapes(explanation, index)]


def _outlined_tile(
    picture: Image.Image, shapes: Sequence[Shape], heading: str, caption: tuple[str, ...], bar: ColourBar | None = None
) -> Tile:
    """Make a tile of a picture and the outlines of shapes, whose lines are drawn at the size of the figure."""
    if not shapes:
        return Tile(picture, heading, caption, bar)

    def draw(size: tuple[int, int], scale: int) -> Image.Image:
        return outlined(enlarged(picture, size[0] / picture.width), shapes, scale)

    return Tile(outlined(picture, shapes, 1), heading, caption, bar, draw=draw)


def _boxes_tile(
    picture: Picture, detections: Sequence[DetectedBox], group: Sequence[Explanation], index: int, heading: str
) -> Tile:
    """Show the most certain detections with number, class and score. Those of the group's targets are drawn stronger."""
    targets = [
        annotation.box
        for explanation in group
        if explanation.annotations
        for annotation in explanation.annotations[index]
        if annotation.box is not None
    ]
    is_target = [any(np.allclose(box.corners, target, atol=1e-5) for target in targets) for box in detections]
    boxes = [
        LabelledBox(
            detection.corners,
            f"{number} {first_synonym(detection.name, (detection.name,))} {detection.score:.2f}",
            detection.category,
            is_strong=is_target[number] and not all(is_target),
        )
        for number, detection in enumerate(detections)
    ]
    drawn = [box for number, box in enumerate(boxes) if number < MOST_BOXES or box.is_strong]
    count = f"{len(boxes) or 'no'} detection{'s' * (len(boxes) != 1)}"
    caption = f"{len(drawn)} of {count}" if len(drawn) < len(boxes) else count
    visible = picture.visible_part()

    def draw(size: tuple[int, int], scale: int) -> Image.Image:
        return paint_boxes(enlarged(visible, size[0] / visible.width), drawn, scale)

    return Tile(paint_boxes(visible, drawn, 1), heading, (caption,), draw=draw)


def first_synonym(text: str, names: Sequence[str]) -> str:
    """Replace each class name that lists synonyms, as ImageNet's do, by the first of them: "lynx, catamount" by "lynx"."""
    for name in sorted((name for name in names if "," in name and name in text), key=len, reverse=True):
        text = text.replace(name, name.partition(",")[0])
    return text


def _target_caption(explanation: Explanation, index: int) -> tuple[str, ...]:
    """Write the target's name and its score, which a long name must not push out of the caption."""
    name, score = explanation.target_names[index], f"score {format_number(float(explanation.scores[index]))}"
    return (f"{name}, {score}",) if len(name) <= _LONG else (name, score)


def _heat(explanation: Explanation, index: int, style: Style) -> NDArray[np.floating[Any]]:
    """Return the heat of one image in [0, 1]. With a diverging colormap it is signed, and 0.5 stands for no evidence."""
    if style.colormap not in DIVERGING:
        return explanation.heatmap[index].cpu().numpy()
    signed = explanation.signed(index)
    return (0.5 + signed / (2 * signed.abs().max()).clamp_min(torch.finfo(signed.dtype).tiny)).cpu().numpy()


def _draw_heat(
    picture: Volume | Signal, heat: NDArray[np.floating[Any]], frames: Sequence[int], style: Style, width: int
) -> Image.Image:
    if isinstance(picture, Signal):
        return curves(picture.values, heat, frames, style, width)
    return (clip if picture.values.shape[-1] == 3 else volume)(picture.values, heat, frames, style, width)


def _wide_tile(
    draw: Callable[[Style, int], Image.Image], style: Style, heading: str, caption: tuple[str, ...] = (), **rest: Any
) -> Tile:
    """Make a tile from a function that draws at any scale and width."""

    def redraw(size: tuple[int, int], scale: int) -> Image.Image:
        return draw(replace(style, scale=scale), size[0])

    image = framed(draw(replace(style, scale=1), FIGURE_WIDTH), width=FIGURE_WIDTH)
    return Tile(image, heading, caption, draw=redraw, columns=COLUMNS_OF_WIDE, **rest)


def frames_to_draw(group: Sequence[Explanation], index: int, frames: Sequence[int] | None) -> list[int]:
    """Check the frames that the caller chose, or choose some, among them the hottest one of all explanations together."""
    picture = picture_of(group[0], index)
    count = len(picture.values) if not isinstance(picture, Picture) else 0
    if frames is not None:
        return checked_frames(frames, count, _frame_word(picture), kind_of(picture))
    if isinstance(picture, Signal):
        return list(range(min(count, MOST_CURVES)))
    heat = torch.stack([explanation.heatmap[index].float().cpu() for explanation in group]).mean(0)
    return spread(count, MOST_IN_A_STRIP, hottest(heat.amax((1, 2)).numpy()))


def _channel_caption(signal: Signal, channels: Sequence[int]) -> tuple[str, ...]:
    count = len(signal.values)
    return () if len(channels) == count else (f"{len(channels)} of {count} channels",)


def kind_of(picture: Drawable) -> str:
    """Return ``"picture"``, ``"clip"``, ``"volume"`` or ``"signal"``."""
    if isinstance(picture, Picture | Signal):
        return "picture" if isinstance(picture, Picture) else "signal"
    return "clip" if picture.values.shape[-1] == 3 else "volume"


def _frame_word(picture: Drawable) -> str:
    """Return the word for one frame of a clip, slice of a volume or channel of a signal."""
    return {"clip": "frame", "volume": "slice", "signal": "channel"}[kind_of(picture)]
