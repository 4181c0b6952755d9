"""Glowmap shows where a PyTorch vision model found the evidence for what it said.

``explain(model, images, target=..., layer=..., method=...)`` answers one question; ``Explainer`` binds a model and its layers
for many. ``load`` makes a model that takes pictures; ``targets`` are what may be asked, ``METHODS`` how.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glowmap import errors as errors
    from glowmap import targets as targets
    from glowmap.explanation import Explanation as Explanation
    from glowmap.explanation import Explanations as Explanations
    from glowmap.factoring import concepts as concepts
    from glowmap.methods import METHODS as METHODS
    from glowmap.models import Model as Model
    from glowmap.models import load as load
    from glowmap.road import Explainer as Explainer
    from glowmap.road import compare as compare
    from glowmap.road import explain as explain

# Where each name lives. They are imported when first asked for, so that the command line's help need not wait for torch.
_HOMES = {
    "Explainer": "glowmap.road",
    "Explanation": "glowmap.explanation",
    "Explanations": "glowmap.explanation",
    "METHODS": "glowmap.methods",
    "Model": "glowmap.models",
    "compare": "glowmap.road",
    "concepts": "glowmap.factoring",
    "errors": "glowmap.errors",
    "explain": "glowmap.road",
    "load": "glowmap.models",
    "targets": "glowmap.targets",
}

__all__ = [
    "METHODS",
    "Explainer",
    "Explanation",
    "Explanations",
    "Model",
    "compare",
    "concepts",
    "errors",
    "explain",
    "load",
    "targets",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("glowmap")
    if name not in _HOMES:
        raise AttributeError(f"module 'glowmap' has no attribute {name!r}; it has {', '.join(__all__)}")
    home = import_module(_HOMES[name])
    value = home if home.__name__ == f"glowmap.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
