"""Layers: looked up by name or searched by evidence, and the layouts of their outputs."""

from glowmap.inputs import PatchPositions as PatchPositions
from glowmap.layers.choice import Choice as Choice
from glowmap.layers.layout import Grid as Grid
from glowmap.layers.layout import Layout as Layout
from glowmap.layers.lookup import LayerName as LayerName
from glowmap.layers.lookup import find_layers as find_layers
from glowmap.layers.reader import LayoutReader as LayoutReader
from glowmap.layers.select import LayerSelector as LayerSelector
from glowmap.layers.survey import Surveyed as Surveyed
from glowmap.layers.survey import surveyed as surveyed
