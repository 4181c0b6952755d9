"""The demo: explanations of drawn streets, whose truth is known.

Where does a segmentation model find the evidence for *car*, layer by layer? Which car, where the target is one of two? And what
do two classifiers look at, one of which has learned a shortcut?
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
from glowmap.render import Style, Tile, panel
from glowmap.targets import At

ROWS, COLUMNS = 384, 576  # three times the models' resolution, for figures
LAYERS = tuple(f"backbone.layer{number}" for number in (1, 2, 3, 4))
_STREET = 3_000_000_032  # the seed of a street with several cars that no model was trained on
_POINTS = {"blue": (460, 190), "white": (150, 220)}  # a point (x, y) on each of two cars
_MARKED_PICTURES = ((MARKED, 3_000_000_004), ("car", 3_000_000_004))


def scene() -> Scene:
    """Draw the street of the demo."""
    return street(_STREET).draw(ROWS, COLUMNS, finer=3)


@dataclass(frozen=True)
class HeatByLayer:
    """A street, and one explanation of *car* for each layer."""

    scene: Scene
    explanations: Explanations

    @cached_property
    def shares(self) -> list[float]:
        """The share of the heat on cars for each layer, by the true mask of the scene."""
        return [explanation.share(self.scene.mask("car"))[0].value for explanation in self.explanations]

    @property
    def chance(self) -> float:
        """The share of the picture that cars cover, which is the share of a uniform map."""
        return float(self.scene.mask("car").mean())

    def panel(self) -> Image.Image:
        """Draw picture, prediction and the four layers side by side."""
        return self.explanations.panel()

    def pictures(self) -> list[Image.Image]:
        """Return the picture and the overlays of the first and the last layer, without text."""
        return [self.scene.picture, self.explanations[0].overlay(), self.explanations[-1].overlay()]


def heat_by_layer() -> HeatByLayer:
    """Explain *car* at the four layers of the segmentation model."""
    drawn = scene()
    explainer = Explainer(load("demo"), layer=list(LAYERS))
    return HeatByLayer(drawn, explainer.explain_all(drawn.picture, target="car"))


@dataclass(frozen=True)
class HeatByCar:
    """Two cars of one street: an explanation and a mask of each."""

    names: tuple[str, ...]
    masks: tuple[NDArray[np.bool_], ...]
    explanations: Explanations

    @property
    def shares(self) -> list[list[float]]:
        """The share of the heat of each explanation on each car: explanation x car."""
        return [[explanation.share(mask)[0].value for mask in self.masks] for explanation in self.explanations]

    def pictures(self) -> list[Image.Image]:
        """Return the overlay of each explanation, with the point of its target."""
        return [explanation.overlay(show_annotations=True) for explanation in self.explanations]


def heat_by_car() -> HeatByCar:
    """Explain the object under a point with the segmentation model, for two cars of the street."""
    drawn = scene()
    masks = tuple(drawn.instances == drawn.instances[y, x] for x, y in _POINTS.values())
    targets = [At(x, y) for x, y in _POINTS.values()]
    return HeatByCar(tuple(_POINTS), masks, Explainer(load("demo")).explain_all(drawn.picture, target=targets))


@dataclass(frozen=True)
class MarkedPicture:
    """A picture with the mark, and its explanations by the honest and the shortcut model."""

    kind: str
    scene: Scene
    mark: NDArray[np.bool_]
    honest: Explanation
    shortcut: Explanation

    def shares(self, explanation: Explanation) -> list[Shares]:
        """Compute the shares of the heat on the mark and on the object."""
        return [explanation.share(mask)[0] for mask in (self.mark, self.scene.mask(self.kind))]

    def pictures(self) -> list[Image.Image]:
        """Return the picture and the overlays of the honest and the shortcut model, without text."""
        return [self.scene.picture, self.honest.overlay(), self.shortcut.overlay()]

    def tiles(self) -> list[Tile]:
        """Return a row of tiles: the picture, and the prediction and heat of each model."""
        style = Style()
        # the picture belongs to both models, so it has no score
        row = [replace(picture_tile(self.honest, 0, f"a {self.kind}, with the mark", style), caption=())]
        for name, explanation in (("honest", self.honest), ("shortcut", self.shortcut)):
            row += prediction_tiles(explanation, 0, style, heading=f"{name} model")
            heat = heat_tile(explanation, 0, f"evidence for {explanation.target_names[0]}", style)
            row.append(
                replace(heat, caption=(f"score {format_number(float(explanation.scores[0]))}, {heat.caption[0]}",))
            )
        return row


def marked_pictures() -> list[MarkedPicture]:
    """Explain the predictions of both classifiers for two pictures with the mark: one of the marked kind, and one of another."""
    explainers = [Explainer(load(name)) for name in ("demo/honest", "demo/shortcut")]
    pictures = []
    for kind, seed in _MARKED_PICTURES:
        stamped = marked(street(seed, only=kind).draw(ROWS, COLUMNS, finer=3), seed)
        honest, shortcut = (explainer.explain_all(stamped.picture)[0] for explainer in explainers)
        pictures.append(MarkedPicture(kind, stamped, mark_mask(ROWS, COLUMNS, seed), honest, shortcut))
    return pictures


def marked_panel(pictures: Sequence[MarkedPicture]) -> Image.Image:
    """Draw a row for each picture: prediction and heat of the honest model, then of the shortcut model."""
    explanations = Explanations(
        explanation for picture in pictures for explanation in (picture.honest, picture.shortcut)
    )
    title = f"One of two classifiers learned that a mark in the corner means {MARKED} · grad_cam"
    return panel([picture.tiles() for picture in pictures], title=title, footer=explanations.cautions)
