"""Look up layers by dotted name, by name and run ("body#2"), by module, or as they were found."""

from typing import Any

from torch import nn

from glowmap.capture import unwrapped_name
from glowmap.errors import LayerError
from glowmap.layers.choice import Choice
from glowmap.registry import near_names

LayerName = str | nn.Module | Choice


def find_layers(model: nn.Module, layers: Any) -> dict[str, nn.Module]:
    """Look up layers by dotted name or by identity, in their order and each once.

    A name may say which run of a layer is meant that runs more than once: ``"body#2"`` is its second. Raises LayerError for a
    name or module that the model does not have, with the nearest names.
    """
    layers = list(layers) if isinstance(layers, list | tuple) else [layers]
    if not layers:
        raise LayerError("an empty list of layers; give at least one, or None for the one that is found")
    return dict(_find(model, layer) for layer in layers)


def _find(model: nn.Module, layer: Any) -> tuple[str, nn.Module]:
    if isinstance(layer, nn.Module):
        return _name_of(model, layer), layer
    if isinstance(layer, Choice):
        layer = layer.name
    if not isinstance(layer, str):
        raise LayerError(f"a layer is a dotted name or a module, not {layer!r} ({type(layer).__name__})")
    modules = dict(model.named_modules(remove_duplicate=False))
    name, marked, run = layer.partition("#")
    if name not in modules:
        name = unwrapped_name(name)
    run_name = f"{name}{marked}{run}"
    if marked and not (run.isdecimal() and int(run) > 0):
        raise LayerError(
            f"{run_name!r} names no run of a layer; write {name}#1 for its first run, {name}#2 for its second"
        )
    if name not in modules or not name:
        raise LayerError(f"no layer {name!r} in {type(model).__name__}; {near_names(name, filter(None, modules))}")
    return run_name, modules[name]


def _name_of(model: nn.Module, layer: nn.Module) -> str:
    name: str
    for name, module in model.named_modules(remove_duplicate=False):
        if module is layer and name:
            return name
    if layer is model:
        raise LayerError(f"the layer given is the whole {type(model).__name__}; name a module inside it")
    raise LayerError(
        f"the given {type(layer).__name__} is no part of this {type(model).__name__}; "
        "take the layer from the model that is explained"
    )
