"""Layers by dotted name, by name and run ("body#2"), by module, or as they were found."""

from typing import Any

from torch import nn

from glowmap.errors import LayerError
from glowmap.layers.choice import Choice
from glowmap.registry import near_names

LayerName = str | nn.Module | Choice


def find_layers(model: nn.Module, wanted: Any) -> dict[str, nn.Module]:
    """Look up layers by dotted name or by identity; the answer keeps the order and drops repetitions.

    A name may say which run of a layer is meant that runs more than once: ``"body#2"`` is its second. Raises LayerError for a
    name or module that the model does not have, with the near names.
    """
    several = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    if not several:
        raise LayerError("an empty list of layers; give at least one, or None for the one that is found")
    return dict(_find(model, layer) for layer in several)


def _find(model: nn.Module, layer: Any) -> tuple[str, nn.Module]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer and name:
                return name, module
        if layer is model:
            raise LayerError(f"the layer given is the whole {type(model).__name__}; name a module inside it")
        raise LayerError(
            f"the given {type(layer).__name__} is no part of this {type(model).__name__}; "
            "take the layer from the model that is explained"
        )
    if isinstance(layer, Choice):
        layer = layer.name
    if not isinstance(layer, str):
        raise LayerError(f"a layer is a dotted name or a module, not {layer!r} ({type(layer).__name__})")
    name, marked, run = layer.partition("#")
    if name not in modules:  # the name as it was inside a wrapper that has been taken off
        name = name.removeprefix("_orig_mod.").removeprefix("module.")
        layer = f"{name}{marked}{run}"
    if marked and not (run.isdecimal() and int(run) > 0):
        raise LayerError(
            f"{layer!r} names no run of a layer; write {name}#1 for its first run, {name}#2 for its second"
        )
    if name not in modules or not name:
        raise LayerError(f"no layer {name!r} in {type(model).__name__}; {near_names(name, filter(None, modules))}")
    return layer, modules[name]
