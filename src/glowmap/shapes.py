"""The axes of the tensors that are passed between packages.

``*space`` is one, two or three spatial axes of a layer's grid (of a signal, a picture, a volume); ``*pixels`` are those of the
model's input. Tests check these names at run time; elsewhere they cost nothing.
"""

from collections.abc import Iterable

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images = Float[Tensor, "batch colour *pixels"]
Maps = Float[Tensor, "batch channel *space"]  # a layer's activations, or a score's gradients with respect to them
RawMaps = Float[Tensor, "batch *space"]  # signed, unnormalised, at the layer's resolution
Heatmaps = Float[Tensor, "batch *pixels"]  # in [0, 1], at the input's resolution
Scores = Float[Tensor, "batch"]
Labels = Int[Tensor, "batch *pixels"]  # a class index for every pixel
Logits = Float[Tensor, "batch category *pixels"]  # no pixels for a classifier
Probabilities = Float[Tensor, "batch category"]
PixelSets = Bool[Tensor, "batch *pixels"]
Flags = Bool[Tensor, "batch"]


def crossed(sizes: Iterable[int]) -> str:
    """Format a shape for a message: ``1 x 2048 x 7 x 7``."""
    return " x ".join(map(str, sizes)) or "a single number"
