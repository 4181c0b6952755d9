"""Explanations: raw maps, heatmaps, figures and the file format. Nothing here knows a model."""

from glowmap.explanation.explanation import Explanation as Explanation
from glowmap.explanation.explanation import Explanations as Explanations
from glowmap.explanation.maps import Shares as Shares
