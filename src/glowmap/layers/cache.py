"""What is known of a model's layers, remembered by the shapes of its input for as long as the model lives."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import nn

from glowmap import tree
from glowmap.inputs import Batch
from glowmap.layers.choice import Choice
from glowmap.layers.layout import Grid, Layout


@dataclass
class LayerMemory:
    """Layers that were found, grids that convolutions made and layouts that were proven, each by the key of an input."""

    # by input, and then by target; the layer's module tells whether the model was rebuilt since
    choices: dict[Any, dict[Hashable, tuple[Choice, "ref[nn.Module]"]]] = field(default_factory=dict)
    grids: dict[Any, tuple[Grid, ...]] = field(default_factory=dict)
    layouts: dict[Any, tuple[Layout | None, bool]] = field(default_factory=dict)  # and whether it is proven


_MEMORIES: "WeakKeyDictionary[nn.Module, LayerMemory]" = WeakKeyDictionary()


def memory_of(module: nn.Module) -> LayerMemory:
    """Return what is remembered of a model."""
    return _MEMORIES.setdefault(module, LayerMemory())


def input_key(batch: Batch) -> tuple[Any, ...]:
    """Return a key that inputs share for which a model runs alike: shapes but for the batch, device, and plain arguments."""
    arguments = [*enumerate(batch.arguments), *batch.keywords.items()]
    plain = tuple((name, value) for name, value in arguments if isinstance(value, str | int | float | bool | None))
    tensors = tree.leaves([batch.arguments, batch.keywords])
    shapes = (tuple(tensor.shape[1:]) for tensor in tensors)
    return (tuple(batch.images.shape[1:]), batch.images.device, plain, *shapes)


def text_key(batch: Batch) -> tuple[bytes, ...]:
    """Return a key of the tokens of texts, which are whole numbers; empty without any."""
    tensors = tree.leaves([batch.arguments, batch.keywords])
    tokens = [tensor for tensor in tensors if not tensor.is_floating_point()]
    return tuple(sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).digest() for tensor in tokens)
