"""The models that come with the package, trained on drawn streets: ``demo``, ``demo/honest`` and ``demo/shortcut``."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from glowmap.demo.bundled import BUNDLED, MEAN, STD
from glowmap.demo.world.scenes import COLUMNS, ROWS
from glowmap.models._family import FAMILIES, RANDOM, Family, drawn_from
from glowmap.models.model import Model
from glowmap.models.preprocessing import ResizedAndNormalised
from glowmap.models.weights import load_weights


def names() -> Sequence[str]:
    """List the models of the demo."""
    return list(BUNDLED)


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build a model of the demo with the weights of the package (``default``), ``random`` ones, or those of a file.

    Raises ModelError for an unknown name, MissingExtra where torchvision is not installed.
    """
    bundled = BUNDLED[name]
    cautions: tuple[str, ...] = ("the demo's models know drawn streets; of a photograph their answers mean nothing",)
    if str(weights) == "default":
        module = bundled.trained()
    else:
        with drawn_from(seed):
            module = bundled.untrained().eval()
        if str(weights) == "random":
            cautions = (RANDOM,)
        else:
            load_weights(module, Path(weights))
    preprocess = ResizedAndNormalised((ROWS, COLUMNS), MEAN, STD)
    return Model(module, name, preprocess, bundled.classes, cautions)


def recognise(module: nn.Module) -> Model | None:
    """Know none: a network of the demo is loaded by its name."""
    return None


FAMILIES.register("demo", Family("glowmap", names, build, recognise))
