"""The demo's trained models: their classes, and their weights, which come with the package."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glowmap.demo.networks import classifier, segmenter
from glowmap.demo.world.scenes import CLASSES, COLUMNS, EMPTY, ROWS
from glowmap.errors import ModelError
from glowmap.registry import Registry

__all__ = ["BUNDLED", "CLASSIFIER_CLASSES", "COLUMNS", "MEAN", "ROWS", "STD", "Bundled", "as_input"]
WEIGHTS = Path(__file__).parent / "weights"
# The classes of the classifiers. Without the first, "no car, no bus" would be evidence for a dog.
CLASSIFIER_CLASSES = (EMPTY, "car", "bus", "person", "dog", "bicycle")
MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class Bundled:
    """A model of the demo: its network, its classes in order, and its weights file."""

    name: str
    build: Callable[[int], nn.Module]
    classes: tuple[str, ...]

    @property
    def file(self) -> str:
        return f"{self.name.rpartition('/')[2]}.safetensors"

    def untrained(self) -> nn.Module:
        """Build the network with random weights."""
        return self.build(len(self.classes))

    def trained(self, folder: Path = WEIGHTS) -> nn.Module:
        """Build the network with its weights from a folder. Raises ModelError where the file is missing."""
        path = folder / self.file
        if not path.is_file():
            raise ModelError(
                f"the weights file {path} is missing; install Glowmap again, or run python -m glowmap.demo.train"
            )
        module = self.untrained()
        module.load_state_dict(load_file(path))
        return module.eval()

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write a module's weights in half precision, which halves their size and changes no number of the report."""
        state = module.state_dict()
        path = folder / self.file
        save_file({name: _halved(tensor.contiguous()) for name, tensor in state.items()}, path)
        path.chmod(0o644)  # readable by all, as the other files of the package


BUNDLED: Registry[Bundled] = Registry("demo model", ModelError)


for _model in (
    Bundled("demo", segmenter, CLASSES),
    Bundled("demo/honest", classifier, CLASSIFIER_CLASSES),
    Bundled("demo/shortcut", classifier, CLASSIFIER_CLASSES),
):
    BUNDLED.register(_model.name, _model)


def as_input(picture: Image.Image) -> Tensor:
    """Convert a picture of the models' input size to their input: colour x rows x columns, normalised."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (pixels - MEAN) / STD


def _halved(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
