"""Glowmap shows where a PyTorch vision model finds the evidence for its answer.

``explain(model, images, target=..., layer=..., method=...)`` returns an :class:`Explanation`; ``Explainer`` binds a model and its
layers for many calls. ``load`` returns a model that takes pictures. ``targets`` are what can be explained, ``METHODS`` how.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glowmap.decomposition import concepts as concepts
    from glowmap.explainer import Explainer as Explainer
    from glowmap.explainer import compare as compare
    from glowmap.explainer import explain as explain
    from glowmap.explanation.explanation import Explanation as Explanation
    from glowmap.explanation.explanation import Explanations as Explanations
    from glowmap.methods import METHODS as METHODS
    from glowmap.models import Model as Model
    from glowmap.models import load as load
# The module of each name. It is imported on first use, so that the command line's help does not import torch.
_HOMES = {
    "Explainer": "glowmap.explainer",
    "Explanation": "glowmap.explanation",
    "Explanations": "glowmap.explanation",
    "METHODS": "glowmap.methods",
    "Model": "glowmap.models",
    "compare": "glowmap.explainer",
    "concepts": "glowmap.decomposition",
    "errors": "glowmap.errors",
    "explain": "glowmap.explainer",
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
