"""Pixels from maps: heat in colour, heat over its picture, classes over their picture, and figures for a paper.

Pictures are PIL images and maps are numpy arrays; nothing here knows a model or a tensor, and nothing writes a file.
"""

from glowmap.render.colormap import COLORMAPS, DIVERGING, colorize
from glowmap.render.guided import follow_edges
from glowmap.render.labels import label_colour, label_legend, paint_labels
from glowmap.render.overlay import overlay, resize_heat
from glowmap.render.panel import panel
from glowmap.render.ranking import ranking_tile
from glowmap.render.tile import ColourBar, Tile

__all__ = [
    "COLORMAPS",
    "DIVERGING",
    "ColourBar",
    "Tile",
    "colorize",
    "follow_edges",
    "label_colour",
    "label_legend",
    "overlay",
    "paint_labels",
    "panel",
    "ranking_tile",
    "resize_heat",
]
