"""The figure of several explanations: which tiles stand where, and its title."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from glowmap.explanation.explanation import Explanation
from glowmap.explanation.maps import CONCEPTS
from glowmap.explanation.tiles import (
    first_synonym,
    format_number,
    frames_to_draw,
    heat_tile,
    kind_of,
    picture_of,
    picture_tile,
    prediction_tiles,
)
from glowmap.inputs import Picture, Signal
from glowmap.outputs import Prediction
from glowmap.render import Style, Tile, panel

_MOST_NAMED, _LONGEST = 3, 120  # targets in a title, and its letters
Group = Sequence[Explanation]  # one target by one method, at several layers


def draw_figure(groups: Sequence[Group], style: Style, cautions: Sequence[str]) -> Image.Image:
    """Draw explanations that are grouped by target and method."""
    return panel(lay_out(groups, style), title=title_of(groups), footer=cautions, scale=style.scale)


def lay_out(groups: Sequence[Group], style: Style) -> list[list[Tile]]:
    """Arrange the tiles of a figure in rows.

    About one picture: where each target (or method) has one layer, the picture and its prediction are shown once, and all heat
    after them. Where several methods explain one target at several layers, they stand above a row for each method. Otherwise
    there is a row for each target, method and image.
    """
    varies = _varying(groups)
    if len(groups) == 1 or not _share_pictures(groups):
        return _separate_rows(groups, varies, style)
    if varies["target"] and any(len(group) > 1 for group in groups):
        return _separate_rows(groups, varies, style)
    return [row for index in range(len(groups[0][0])) for row in _shared_rows(groups, index, varies, style)]


def title_of(groups: Sequence[Group]) -> str:
    """Return the figure's title: the targets (or their number), the methods, the layer if it is one for all, and the model."""
    explanations = _flat(groups)
    methods = _unique([explanation.method for explanation in explanations])
    layers = _unique([explanation.layer for explanation in explanations])
    names = _unique(
        [
            first_synonym(name, _class_names(explanation))
            for explanation in explanations
            for name in explanation.target_names
        ]
    )
    sentence = _sentence(names)
    if sentence is not None:
        title = f"{sentence}, word by word"
    elif methods == [CONCEPTS]:
        title = _counted(len(explanations) // len(layers), "concept")
    elif len(names) <= _MOST_NAMED and len(", ".join(names)) <= max(_LONGEST, len(names[0])):
        title = ", ".join(names)
    else:
        title = _counted(len(names), "target")
    by = ", ".join(methods) if len(methods) <= _MOST_NAMED else _counted(len(methods), "method")
    at = f" at {layers[0]}" if len(groups) > 1 and len(layers) == 1 and _share_pictures(groups) else ""
    return f"{title} · {by}{at} · {explanations[0].model}"


def _separate_rows(groups: Sequence[Group], varies: dict[str, bool], style: Style) -> list[list[Tile]]:
    """Arrange a row for each group and image: the picture, its prediction, and the heat of each layer.

    Frames, slices and curves take a row each. All rows about one image show the same frames, and its picture once.
    """
    cells = [(group, index) for group in groups for index in range(len(group[0]))]
    is_wide = not isinstance(picture_of(groups[0][0], 0), Picture)
    if is_wide:
        cells.sort(key=lambda cell: cell[1])
    rows: list[list[Tile]] = []
    drawn: set[tuple[int, str]] = set()
    for group, index in cells:
        picture, name = picture_of(group[0], index), group[0].target_names[index]
        if is_wide:
            same_picture = [other for other, at in cells if at == index and picture_of(other[0], at) is picture]
            frames = frames_to_draw(_flat(same_picture), index, style.frames)
            row_style = replace(style, frames=frames)
        else:
            row_style = style
        heat = [_layer_tile(explanation, index, varies, row_style) for explanation in group]
        is_drawn = is_wide and (id(picture), name) in drawn
        before = [] if is_drawn else _picture_tiles(group[0], index, varies, row_style)
        drawn.add((id(picture), name))
        # heat over a signal shows its curves too, so it comes first
        rows.append([*heat[:1], *before, *heat[1:]] if isinstance(picture, Signal) else [*before, *heat])
    return rows


def _layer_tile(explanation: Explanation, index: int, varies: dict[str, bool], style: Style) -> Tile:
    heading = explanation.layer + (f" · {explanation.method}" if varies["method"] else "")
    return heat_tile(explanation, index, heading, style)


def _picture_tiles(explanation: Explanation, index: int, varies: dict[str, bool], style: Style) -> list[Tile]:
    """Show the picture and its prediction; of a signal the prediction only."""
    picture = picture_of(explanation, index)
    name = first_synonym(explanation.target_names[index], _class_names(explanation))
    heading = name if varies["target"] else kind_of(picture)
    tiles = [] if isinstance(picture, Signal) else [picture_tile(explanation, index, heading, style)]
    return [*tiles, *prediction_tiles(explanation, index, style)]


def _shared_rows(groups: Sequence[Group], index: int, varies: dict[str, bool], style: Style) -> list[list[Tile]]:
    """Show one picture and its prediction once, and the heat of every target, method and layer after them."""
    explanations = _flat(groups)
    first = explanations[0]
    with_prediction = next((explanation for explanation in explanations if explanation.prediction is not None), first)
    compared = explanations if varies["target"] else ()
    before = [
        picture_tile(first, index, "picture", style, group=compared),
        *prediction_tiles(with_prediction, index, style, group=compared),
    ]
    if any(len(group) > 1 for group in groups):
        return [before, *([_layer_tile(each, index, varies, style) for each in group] for group in groups)]
    names = _short_names(explanations, index)
    heat = [[_target_tile(explanation, index, names, varies, style) for explanation in group] for group in groups]
    if not (varies["target"] and varies["method"]):
        return [[*before, *(tile for row in heat for tile in row)]]
    rows: dict[str, list[Tile]] = {}
    for group, row in zip(groups, heat, strict=True):
        rows.setdefault(group[0].target_names[index], []).extend(row)
    return [before, *rows.values()]


def _target_tile(
    explanation: Explanation, index: int, names: dict[str, str], varies: dict[str, bool], style: Style
) -> Tile:
    """Head the heat with the target and the method where these vary; the score and the layer stand below it."""
    candidates = {"target": names[explanation.target_names[index]], "method": explanation.method}
    heading = [text for kind, text in candidates.items() if varies[kind]] or [explanation.layer]
    details = [f"score {format_number(float(explanation.scores[index]))}"] if varies["target"] else []
    details += [explanation.layer] if varies["layer"] and explanation.layer not in heading else []
    return heat_tile(explanation, index, " · ".join(heading), style, details=tuple(details))


def _varying(groups: Sequence[Group]) -> dict[str, bool]:
    """Tell which of target, method and layer differ between explanations, so that each tile must name its own."""
    explanations = _flat(groups)
    return {
        "target": len({explanation.target_names for explanation in explanations}) > 1,
        "method": len({explanation.method for explanation in explanations}) > 1,
        "layer": len({explanation.layer for explanation in explanations}) > 1,
    }


def _share_pictures(groups: Sequence[Group]) -> bool:
    """Tell whether all explanations are of the same pictures (not clips or signals), model and prediction."""
    explanations = _flat(groups)
    first = explanations[0]
    predictions = [explanation.prediction for explanation in explanations if explanation.prediction is not None]
    return (
        isinstance(picture_of(first, 0), Picture)
        and all((other.pictures, other.model) == (first.pictures, first.model) for other in explanations)
        and all(_are_equal(predictions[0], prediction) for prediction in predictions)
    )


def _are_equal(first: Prediction, second: Prediction) -> bool:
    return second is first or second.same_as(first)


def _short_names(explanations: Sequence[Explanation], index: int) -> dict[str, str]:
    """Map each target's name to a short one: first synonyms only, and a word without its sentence, which is the title."""
    sentence = _sentence(_unique([explanation.target_names[index] for explanation in explanations]))
    end = f" in {sentence}" if sentence is not None else ""
    names = {explanation.target_names[index]: _class_names(explanation) for explanation in explanations}
    return {name: first_synonym(name, class_names).removesuffix(end) for name, class_names in names.items()}


def _sentence(names: Sequence[str]) -> str | None:
    """Return the sentence of which all other targets are words: 'a photo of a dog', beside 'dog' in 'a photo of a dog'."""
    sentences = [name for name in names if all(word == name or word.endswith(f" in {name}") for word in names)]
    return sentences[0] if sentences and len(names) > 1 else None


def _class_names(explanation: Explanation) -> tuple[str, ...]:
    return explanation.prediction.names if explanation.prediction is not None else ()


def _flat(groups: Sequence[Group]) -> list[Explanation]:
    return [explanation for group in groups for explanation in group]


def _unique(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
