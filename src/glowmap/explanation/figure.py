"""Which tiles stand where in the figure of several explanations, and what it is called."""

from collections.abc import Sequence

from glowmap.explanation.maps import CONCEPTS, Explained
from glowmap.explanation.tiles import (
    Frames,
    heat_tile,
    kind_of,
    picture_tile,
    places_of,
    prediction_tile,
    short,
    shown_of,
    spelled,
)
from glowmap.inputs import Picture, Signal
from glowmap.render import Look, Tile

_MOST_NAMED, _LONGEST = 3, 120  # questions in a title, and its letters
Group = Sequence[Explained]  # one question by one method, at several layers


def laid_out(groups: Sequence[Group], look: Look, places: Frames) -> list[list[Tile]]:
    """Lay out the tiles of explanations that are grouped by question and method.

    About one picture: where each question (or method) has one layer, the picture and what the model said stand once and all the
    heat after them; where one question is put by several methods at several layers, they stand above a row a method. Otherwise
    there is a row for each question, method and image.
    """
    differing = _differing(groups)
    if len(groups) == 1 or not _about_the_same(groups):
        return _rows(groups, differing, look, places)
    single = all(len(group) == 1 for group in groups)
    if not single and differing["target"]:
        return _rows(groups, differing, look, places)
    return [line for index in range(len(groups[0][0])) for line in _once(groups, index, differing, look)]


def title_of(groups: Sequence[Group]) -> str:
    """Name the questions, or count them where they are many, then the methods, the one layer of a row of them, and the model."""
    every = [one for group in groups for one in group]
    methods, layers = _each([one.method for one in every]), _each([one.layer for one in every])
    asked = _each([short(wording, _names(one)) for one in every for wording in one.targets])
    sentence = _sentence(asked)
    if sentence is not None:
        title = f"{sentence}, word by word"
    elif methods == [CONCEPTS]:
        title = _counted(len(every) // len(layers), "concept")
    elif len(asked) <= _MOST_NAMED and len(", ".join(asked)) <= max(_LONGEST, len(asked[0])):
        title = ", ".join(asked)
    else:
        title = _counted(len(asked), "question")
    how = ", ".join(methods) if len(methods) <= _MOST_NAMED else _counted(len(methods), "method")
    at = f" at {layers[0]}" if len(groups) > 1 and len(layers) == 1 and _about_the_same(groups) else ""
    return f"{title} · {how}{at} · {every[0].model}"


def _rows(groups: Sequence[Group], differing: dict[str, bool], look: Look, places: Frames) -> list[list[Tile]]:
    """Lay out a row for each group and image: what was seen and said, and each layer's heat.

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
        chosen = places_of(alike, index, places) if wide else places
        heat = [_layer_tile(one, index, differing, look, chosen) for one in group]
        seen = [] if wide and (id(shown), target) in told else _seen_tiles(group[0], index, differing, chosen)
        told.add((id(shown), target))
        # the curves of a signal are seen under their heat as well as without it
        laid.append([*heat[:1], *seen, *heat[1:]] if isinstance(shown, Signal) else [*seen, *heat])
    return laid


def _layer_tile(one: Explained, index: int, differing: dict[str, bool], look: Look, places: Frames) -> Tile:
    heading = one.layer + (f" · {one.method}" if differing["method"] else "")
    return heat_tile(one, index, heading, colormap=look.colormap, opacity=look.opacity, places=places)


def _seen_tiles(one: Explained, index: int, differing: dict[str, bool], places: Frames) -> list[Tile]:
    shown = shown_of(one, index)
    heading = short(one.targets[index], _names(one)) if differing["target"] else kind_of(shown)
    picture = [] if isinstance(shown, Signal) else [picture_tile(one, index, heading, places=places)]
    return [*picture, *prediction_tile(one, index, places=places)]


def _once(groups: Sequence[Group], index: int, differing: dict[str, bool], look: Look) -> list[list[Tile]]:
    """Show one picture and what was said of it once, and the heat of every question, method and layer after them."""
    every = [one for group in groups for one in group]
    among = every if differing["target"] else ()
    said = next((one for one in every if one.prediction is not None), every[0])
    seen = [picture_tile(every[0], index, "picture", among=among), *prediction_tile(said, index, among=among)]
    if any(len(group) > 1 for group in groups):
        return [seen, *([_layer_tile(one, index, differing, look, None) for one in group] for group in groups)]
    words = {one.targets[index]: _words(one, every, index) for one in every}
    heat = [[_question_tile(one, index, words, differing, look) for one in group] for group in groups]
    if not (differing["target"] and differing["method"]):
        return [[*seen, *(tile for line in heat for tile in line)]]
    lines: dict[str, list[Tile]] = {}
    for group, line in zip(groups, heat, strict=True):
        lines.setdefault(group[0].targets[index], []).extend(line)
    return [seen, *lines.values()]


def _question_tile(one: Explained, index: int, words: dict[str, str], differing: dict[str, bool], look: Look) -> Tile:
    """Head the heat with all in which it differs from the others, as far as there is room; the rest is told below it."""
    headed = {"target": words[one.targets[index]], "method": one.method}
    heading = [text for kind, text in headed.items() if differing[kind]] or [one.layer]
    told = [f"score {spelled(float(one.scores[index]))}"] if differing["target"] else []
    told += [one.layer] if differing["layer"] and one.layer not in heading else []
    return heat_tile(one, index, " · ".join(heading), colormap=look.colormap, opacity=look.opacity, told=tuple(told))


def _differing(groups: Sequence[Group]) -> dict[str, bool]:
    """Say in what explanations differ, which must stand with each."""
    every = [one for group in groups for one in group]
    return {
        "target": len({one.targets for one in every}) > 1,
        "method": len({one.method for one in every}) > 1,
        "layer": len({one.layer for one in every}) > 1,
    }


def _about_the_same(groups: Sequence[Group]) -> bool:
    """Tell whether all are about the same pictures, of which one model said the same."""
    every = [one for group in groups for one in group]
    first = every[0]
    said = [one.prediction for one in every if one.prediction is not None]
    return (
        isinstance(shown_of(first, 0), Picture)
        and all((one.pictures, one.model) == (first.pictures, first.model) for one in every)
        and all(one is said[0] or one.same_as(said[0]) for one in said)
    )


def _words(one: Explained, every: Sequence[Explained], index: int) -> str:
    """Word a question, and a part of a sentence without the sentence, which stands in the title."""
    wording = short(one.targets[index], _names(one))
    sentence = _sentence(_each([other.targets[index] for other in every]))
    return wording.removesuffix(f" in {sentence}") if sentence is not None else wording


def _sentence(asked: Sequence[str]) -> str | None:
    """Find the sentence of which all other questions are words: 'dog' in 'a photo of a dog'."""
    whole = [one for one in asked if all(other == one or other.endswith(f" in {one}") for other in asked)]
    return whole[0] if whole and len(asked) > 1 else None


def _names(one: Explained) -> tuple[str, ...]:
    return one.prediction.names if one.prediction is not None else ()


def _each(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"
