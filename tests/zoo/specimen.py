"""What an exhibit of the zoo is: an architecture, what it takes, and the layers that one who knows it would explain."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Specimen:
    """An architecture with random weights, and its right layers by somebody's judgement before anything was run.

    ``right`` is from patterns of layer names to the grid there; ``usable`` is a pattern of layers whose map says something true,
    but less than a right one's. ``why`` says what the judgement leans on. ``refused`` is part of the error that is right where
    a model shows nothing of how it comes to its answer. ``settled`` is the reason why a usable layer will do.
    """

    name: str
    library: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    right: dict[str, Grid]
    usable: str = ""
    why: str = ""
    refused: str = ""
    settled: str = ""

    def made(self) -> nn.Module:
        """Build it with the same weights each time, none of them all zero: those of a trained model are not.

        Heads and the last normalisation of a residual branch often start at zero, which would cut them off.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.build().eval()
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1 and not parameter.any():
                    nn.init.normal_(parameter, std=0.02)
                elif name.endswith("weight") and not parameter.any():
                    nn.init.ones_(parameter)
        return module

    def judge(self, layer: str, grid: Grid) -> Literal["right", "usable", "wrong"]:
        """Judge a layer's name and the grid that was read from its output."""
        if any(re.fullmatch(pattern, layer) and grid == known for pattern, known in self.right.items()):
            return "right"
        return "usable" if re.fullmatch(self.usable, layer) else "wrong"


def warmed(build: Callable[[], nn.Module], *shape: int) -> Callable[[], nn.Module]:
    """Let batch normalisation see some noise first: unused, it passes signals on as faint as random weights make them."""

    def warm() -> nn.Module:
        module = build()
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.momentum = None  # the statistics of what it sees, and of nothing before
        with torch.no_grad():
            module.train()(noise(*shape)())
        return module

    return warm


def noise(*shape: int) -> Callable[[], Tensor]:
    """Give what makes the same noise each time."""
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1))


def colours(*shape: int) -> Callable[[], Tensor]:
    """Give what makes the same colours in [0, 1] each time."""
    return lambda: torch.rand(shape, generator=torch.Generator().manual_seed(1))


def words(*shape: int, vocabulary: int) -> Tensor:
    """Make the same words each time, none of them special."""
    return torch.randint(4, vocabulary, shape, generator=torch.Generator().manual_seed(2))
