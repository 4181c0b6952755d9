"""The layers worth naming, with their grids."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from glowmap.errors import LayerError
from glowmap.layers.layout import known_grids, read_layout, witness


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
    rows: list[Surveyed] = []
    with ExitStack() as hooked:
        grids = hooked.enter_context(known_grids(model))
        for name, module in model.named_modules():
            if name and name.count(".") < depth:
                caution = _noting(rows, name, witness(model, name), images, grids)
                hooked.callback(module.register_forward_hook(caution).remove)
        yield rows


def _noting(
    rows: list[Surveyed], name: str, judge: nn.Module, images: Tensor, grids: list[tuple[int, ...]]
) -> Callable[[nn.Module, Any, Any], None]:
    def caution(module: nn.Module, _inputs: Any, output: Any) -> None:
        with suppress(LayerError):  # what has no grid is what the list leaves out
            if isinstance(output, Tensor):
                layout = read_layout(output.shape, name, judge, images, grids)
                rows.append(Surveyed(name, type(module).__name__, layout.maps(output).shape[1], layout.grid))

    return caution
