"""How good a map is."""

from glowmap.metrics.localisation import energy_share as energy_share
