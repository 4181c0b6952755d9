"""The models that come with the package, trained on drawn streets: ``demo``, ``demo/honest`` and ``demo/shortcut``."""

from collections.abc import Sequence
from pathlib import Path

from glowmap.cautions import caution_kind
from glowmap.demo.bundled import BUNDLED, MEAN, STD
from glowmap.demo.world.scenes import COLUMNS, ROWS
from glowmap.models._family import FAMILIES, RANDOM, Family, seeded
from glowmap.models.model import Model
from glowmap.models.preprocessing import ResizedAndNormalised
from glowmap.models.weights import load_weights

_DEMO_MODEL = caution_kind("demo-model", "info", "Explain streets that glowmap draws, or load another model.")


def names() -> Sequence[str]:
    """List the demo's models."""
    return list(BUNDLED)


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build one of the demo's models with the weights of the package (``default``), ``random`` ones, or those of a file.

    Raises ModelError for an unknown name, MissingExtra where torchvision is not installed.
    """
    bundled = BUNDLED[name]
    caution = _DEMO_MODEL(
        "the demo's models were trained on drawn streets; their output for a photograph means nothing"
    )
    if str(weights) == "default":
        module = bundled.trained()
    else:
        with seeded(seed):
            module = bundled.untrained().eval()
        if str(weights) == "random":
            caution = RANDOM
        else:
            load_weights(module, Path(weights))
    preprocess = ResizedAndNormalised((ROWS, COLUMNS), MEAN, STD)
    return Model(module, name, preprocess, bundled.classes, (caution,))


FAMILIES.register("demo", Family("glowmap", build=build, names=names))
