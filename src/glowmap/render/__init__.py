"""Pixels from maps: colormaps, overlays, label maps, boxes, and figures of tiles.

Pictures are PIL images and maps are numpy arrays. Nothing here knows a model or a tensor, and nothing writes a file.
"""

from glowmap.render.axis import checked_frames, hottest, spread
from glowmap.render.blocks import enlarged, framed
from glowmap.render.colormap import COLORMAPS, DIVERGING, colorize
from glowmap.render.curve_plots import MOST_CURVES, curves
from glowmap.render.labels import label_colour, label_legend, paint_labels
from glowmap.render.outlines import LabelledBox, Shape, outlined, paint_boxes
from glowmap.render.overlays import follow_edges, overlay, resize_heat
from glowmap.render.panels import ColourBar, Tile, panel
from glowmap.render.ranking import ranking_tile
from glowmap.render.strips import MOST_IN_A_STRIP, clip, strip, volume
from glowmap.render.style import COLUMN, COLUMNS_OF_WIDE, FIGURE_WIDTH, OPACITY, Style, StyleOptions

__all__ = [
    "COLORMAPS",
    "COLUMN",
    "COLUMNS_OF_WIDE",
    "DIVERGING",
    "FIGURE_WIDTH",
    "MOST_CURVES",
    "MOST_IN_A_STRIP",
    "OPACITY",
    "ColourBar",
    "LabelledBox",
    "Shape",
    "Style",
    "StyleOptions",
    "Tile",
    "checked_frames",
    "clip",
    "colorize",
    "curves",
    "enlarged",
    "follow_edges",
    "framed",
    "hottest",
    "label_colour",
    "label_legend",
    "outlined",
    "overlay",
    "paint_boxes",
    "paint_labels",
    "panel",
    "ranking_tile",
    "resize_heat",
    "spread",
    "strip",
    "volume",
]
