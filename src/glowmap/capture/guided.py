"""Guided backpropagation: negative gradients are stopped at every ReLU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glowmap.capture.biases import _argument, _depends, _name
from glowmap.cautions import Caution, caution_kind
from glowmap.errors import MethodError

_PLAIN_ACTIVATIONS = caution_kind("plain-activations", "caution", "Use a method that fits all activation functions.")

_OTHER_ACTIVATIONS = {
    *("celu", "elu", "gelu", "hardswish", "leaky_relu", "mish", "prelu", "rrelu", "selu", "silu", "softplus"),
}


class GuidedReLU(TorchFunctionMode):
    """Lets only the positive part of the gradient back through every ReLU inside this context.

    A ReLU that is written as ``clamp`` or ``maximum`` is not recognised.
    """

    def __init__(self) -> None:
        super().__init__()
        self._guided = 0
        self._others: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = _name(func), kwargs or {}
        ceiling = _ceiling(name, args, kwargs)
        if ceiling is None:
            if name in _OTHER_ACTIVATIONS:
                self._others[name] = None
            return func(*args, **kwargs)
        maps = _argument(args, kwargs, 0, "input")
        if not _depends(maps):  # no gradient comes this way
            return func(*args, **kwargs)
        self._guided += 1
        in_place = func.__name__.endswith("_") or _argument(
            args, kwargs, 3 if name == "hardtanh" else 1, "inplace", False
        )
        return _GuidedReLU.apply(maps, ceiling, in_place)

    def cautions(self, model: str) -> list[Caution]:
        """Warn of activations that were not guided. Raises MethodError where no ReLU ran: the gradient is the plain one."""
        others = ", ".join(self._others)
        if not self._guided:
            instead = f" (it has {others})" if others else ""
            raise MethodError(
                f"no ReLU ran on the way from the input of {model}{instead}, so there is nothing to guide; use input_gradient"
            )
        if not others:
            return []
        return [_PLAIN_ACTIVATIONS(f"only ReLUs are guided; through {others} of {model} the gradient goes as it is")]


class _GuidedReLU(torch.autograd.Function):
    """A ReLU, clipped at a ceiling, whose backward passes only positive gradients; a function, as hooks miss in-place views."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, ceiling: float, in_place: bool) -> Tensor:
        if in_place:
            ctx.mark_dirty(maps)
        output = maps.clamp_(0, ceiling) if in_place else maps.clamp(0, ceiling)
        # not the output: the model may write into it
        ctx.save_for_backward((output > 0) & (output < ceiling))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (active,) = ctx.saved_tensors
        return gradient.clamp(min=0) * active, None, None


def _ceiling(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> float | None:
    """Return the largest output of a ReLU; None for other operations."""
    if name == "hardtanh" and _argument(args, kwargs, 1, "min_val") == 0:  # what ReLU6 calls
        return float(_argument(args, kwargs, 2, "max_val", 1.0))
    return {"relu": torch.inf, "relu6": 6.0}.get(name)
