"""The demo's tour: what Glowmap shows of questions whose answers are known.

Where does a segmentation model find the evidence for *car*, layer by layer? Which car, if one alone is asked about? And what do
two classifiers lean on that answer alike, when one of them has learned a shortcut?
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.demo.world.mark import MARKED, mark_mask, marked
from glowmap.demo.world.scenes import Scene, street
from glowmap.explainer import Explainer
from glowmap.explanation.explanation import Explanation, Explanations
from glowmap.explanation.maps import Shares
from glowmap.explanation.tiles import format_number, heat_tile, picture_tile, prediction_tiles
from glowmap.models import load
from glowmap.render import Style, panel
from glowmap.targets import At

ROWS, COLUMNS = 384, 576  # three times as fine as the models see it: people look at these pictures too
LAYERS = tuple(f"backbone.layer{number}" for number in (1, 2, 3, 4))
_STREET = 3_000_000_032  # cars, and what may be taken for evidence of them, in one picture that no model was trained on
_ASKED = {"blue": (460, 190), "white": (150, 220)}  # a point on each of two cars in it
_MARKED = ((MARKED, 3_000_000_004), ("car", 3_000_000_004))


def scene() -> Scene:
    """Draw the street of the tour."""
    return street(_STREET).draw(ROWS, COLUMNS, finer=3)


@dataclass(frozen=True)
class HeatByLayer:
    """The first question: one explanation of *car* a layer, and the street that they explain."""

    scene: Scene
    explanations: Explanations

    @cached_property
    def shares(self) -> list[float]:
        """The share of the heat on cars, layer by layer, by the truth of the scene and not by the model's prediction."""
        return [explanation.share(self.scene.mask("car"))[0].value for explanation in self.explanations]

    @property
    def chance(self) -> float:
        """The share of the picture that cars cover: what heat without knowledge would score."""
        return float(self.scene.mask("car").mean())

    def panel(self, scale: int = 1) -> Image.Image:
        """Draw picture, prediction and the four layers side by side."""
        return self.explanations.panel(scale=scale)

    def pictures(self) -> list[Image.Image]:
        """Give the picture and the heat of the first and the last layer, with nothing written on them."""
        return [self.scene.picture, self.explanations[0].overlay(), self.explanations[-1].overlay()]


def heat_by_layer() -> HeatByLayer:
    """Ask the segmentation model for *car* at its four layers."""
    drawn = scene()
    explainer = Explainer(load("demo"), layer=list(LAYERS))
    return HeatByLayer(drawn, explainer.explain_all(drawn.picture, target="car"))


@dataclass(frozen=True)
class HeatByCar:
    """The second question, put to two cars of one street: an explanation each, and where each of them is."""

    names: tuple[str, ...]
    masks: tuple[NDArray[np.bool_], ...]
    explanations: Explanations

    @property
    def shares(self) -> list[list[float]]:
        """The share of each question's heat on each of the cars: question x car."""
        return [[one.share(mask)[0].value for mask in self.masks] for one in self.explanations]

    def pictures(self) -> list[Image.Image]:
        """Give the heat of both questions, with the marks of what was asked."""
        return [one.overlay(show_annotations=True) for one in self.explanations]


def heat_by_car() -> HeatByCar:
    """Ask the segmentation model about the object under a point, for two cars of the street."""
    drawn = scene()
    masks = tuple(drawn.instances == drawn.instances[y, x] for x, y in _ASKED.values())
    asked = [At(x, y) for x, y in _ASKED.values()]
    return HeatByCar(tuple(_ASKED), masks, Explainer(load("demo")).explain_all(drawn.picture, target=asked))


@dataclass(frozen=True)
class MarkedPicture:
    """One marked picture of the third question, and what the honest and the shortcut model say of it and why."""

    kind: str
    scene: Scene
    mark: NDArray[np.bool_]
    honest: Explanation
    shortcut: Explanation

    def shares(self, explanation: Explanation) -> list[Shares]:
        """Compute the shares of the heat on the mark and on the object."""
        return [explanation.share(mask)[0] for mask in (self.mark, self.scene.mask(self.kind))]

    def pictures(self) -> list[Image.Image]:
        """Give the picture and the heat of the honest and of the shortcut model, with nothing written on them."""
        return [self.scene.picture, self.honest.overlay(), self.shortcut.overlay()]

    def tiles(self) -> list[Any]:
        """Lay the picture and what either model says of it out in a row."""
        style = Style()
        # the picture is both models' own, and so has no score
        row = [replace(picture_tile(self.honest, 0, f"a {self.kind}, with the mark", style), caption=())]
        for name, explanation in (("honest", self.honest), ("shortcut", self.shortcut)):
            row += prediction_tiles(explanation, 0, style, heading=f"{name} model")
            heat = heat_tile(explanation, 0, f"evidence for {explanation.target_names[0]}", style)
            row.append(
                replace(heat, caption=(f"score {format_number(float(explanation.scores[0]))}, {heat.caption[0]}",))
            )
        return row


def marked_pictures() -> list[MarkedPicture]:
    """Ask both classifiers for their own answers to marked pictures: one of the marked kind, and one of another."""
    explainers = [Explainer(load(name)) for name in ("demo/honest", "demo/shortcut")]
    found = []
    for kind, seed in _MARKED:
        stamped = marked(street(seed, only=kind).draw(ROWS, COLUMNS, finer=3), seed)
        honest, shortcut = (explainer.explain_all(stamped.picture)[0] for explainer in explainers)
        found.append(MarkedPicture(kind, stamped, mark_mask(ROWS, COLUMNS, seed), honest, shortcut))
    return found


def marked_panel(found: Sequence[MarkedPicture]) -> Image.Image:
    """Draw a row for each picture: the honest model's answer and evidence, then the shortcut model's."""
    cautions = tuple(dict.fromkeys(caution for one in found for caution in one.honest.cautions + one.shortcut.cautions))
    title = f"One of two classifiers learned that a mark in the corner means {MARKED} · grad_cam"
    return panel([one.tiles() for one in found], title=title, footer=cautions)
