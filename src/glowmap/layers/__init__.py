"""Layers: found by name or by evidence, and their outputs laid out as maps."""

from glowmap.inputs import PatchPositions as PatchPositions
from glowmap.layers.check import check_layout as check_layout
from glowmap.layers.choice import Choice as Choice
from glowmap.layers.choice import LayerScore as LayerScore
from glowmap.layers.layout import Grid as Grid
from glowmap.layers.layout import Layout as Layout
from glowmap.layers.layout import is_made as is_made
from glowmap.layers.layout import known_grids as known_grids
from glowmap.layers.layout import read_layout as read_layout
from glowmap.layers.layout import witness as witness
from glowmap.layers.lookup import LayerName as LayerName
from glowmap.layers.lookup import find_layers as find_layers
from glowmap.layers.search import find_layer as find_layer
from glowmap.layers.survey import Surveyed as Surveyed
from glowmap.layers.survey import surveyed as surveyed
