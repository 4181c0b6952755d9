"""The layers worth naming, with their grids."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from glowmap.capture import hooked
from glowmap.errors import LayerError
from glowmap.layers.layout import known_grids, layout_witness, read_layout


@dataclass(frozen=True)
class Surveyed:
    """A layer worth naming: what it is, its channels and its grid."""

    name: str
    kind: str
    channels: int
    grid: tuple[int, ...]


@contextmanager
def surveyed(model: nn.Module, images: Tensor, *, depth: int) -> Iterator[list[Surveyed]]:
    """List, while the model is run inside, the modules at most ``depth`` names deep whose output is a grid of several cells."""
    names = {module: name for name, module in model.named_modules() if name and name.count(".") < depth}
    rows: list[Surveyed] = []

    def survey(module: nn.Module, _arguments: Any, _keywords: Any, output: Any) -> None:
        name = names[module]
        with suppress(LayerError):  # an output without a grid is not listed
            if isinstance(output, Tensor):
                layout = read_layout(output.shape, name, layout_witness(model, name), images.shape, grids)
                rows.append(Surveyed(name, type(module).__name__, layout.maps(output).shape[1], layout.grid))

    with known_grids(model) as grids, hooked(names, after=survey):
        yield rows
