"""Groups of options that several commands share. A group is a dataclass whose fields are options."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from glowmap.cli import options
from glowmap.cli.parsing import parse_colours, parse_methods, parse_size

if TYPE_CHECKING:
    from glowmap.methods import Method
    from glowmap.models import Model
    from glowmap.render import StyleOptions


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how a picture becomes its input."""

    model: options.Model
    weights: options.Weights = None
    size: options.Size = None
    mean: options.Mean = None
    std: options.Std = None
    classes: options.Classes = None
    device: options.Device = None

    def load(self, *, default_weights: str = "default") -> "Model":
        """Load the model, with ``default_weights`` where no weights are named."""
        size = None if self.size is None else parse_size(self.size)
        mean = None if self.mean is None else parse_colours(self.mean, "--mean")
        std = None if self.std is None else parse_colours(self.std, "--std")
        import torch

        from glowmap.models import load

        device = self.device or ("cuda" if torch.cuda.is_available() else None)
        weights = self.weights or default_weights
        return load(self.model, weights=weights, size=size, mean=mean, std=std, classes=self.classes, device=device)


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """At which layers, and by which methods."""

    layer: options.Layer = None
    method: options.Method = None
    setting: options.Setting = None
    smooth: options.Smooth = None
    fuse: options.Fuse = None

    def methods(self) -> "list[Method] | None":
        """Return the methods with their parameters; None leaves the choice to the library."""
        return parse_methods(self.method or [], self.setting or [])


@dataclass(frozen=True, kw_only=True)
class StyleFields:
    """How the figure is drawn."""

    colormap: options.Colormap = "glow"
    opacity: options.Opacity = 0.65
    scale: options.Scale = None

    def style(self) -> "StyleOptions":
        """Return the keywords of the drawing. Raises OutputError for a colour map that does not exist."""
        from glowmap.render import COLORMAPS, StyleOptions

        COLORMAPS[self.colormap]
        style = StyleOptions(colormap=self.colormap, opacity=self.opacity)
        if self.scale is not None:
            style["scale"] = self.scale
        return style


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of its dataclass parameters. It is called with the dataclasses."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }

    @wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += _field_parameters(groups[name]) if name in groups else [parameter]
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    run.__annotations__ = {}  # typer reads the signature
    return run


def _field_parameters(group: Any) -> list[inspect.Parameter]:
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field.type,
        )
        for field in fields(group)
    ]
