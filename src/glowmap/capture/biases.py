"""Record every bias times its gradient, over one whole forward and backward pass.

Operations are recorded and not modules, so that functional layers, shared modules and fused layers count like any other. Only the
backward pass of that forward pass is affected; no module is changed.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glowmap.cautions import Caution, caution_kind
from glowmap.shapes import Scores

_INCOMPLETE = caution_kind(
    "incomplete-terms", "caution", "Use a method that does not rest on a piecewise linear network."
)

_ADDITIONS = {
    **dict.fromkeys(("add", "__radd__"), "add"),
    **dict.fromkeys(("sub", "subtract"), "sub"),
    **dict.fromkeys(("rsub", "__rsub__"), "rsub"),
}
_CONVOLUTIONS = {f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)}
_NORMS = {"batch_norm", "group_norm", "instance_norm", "layer_norm"}
_BATCH_NORM = inspect.signature(F.batch_norm)
_SHORT = 0.01  # of the score, from which on a note says what the terms lack


class BiasGradients(TorchFunctionMode):
    """Records what every operation inside this context adds to its input, times the gradient with respect to its output.

    That is the bias of convolutions and linear layers, and constants; of batch norms ``beta - mean gamma / sqrt(var + eps)``; of
    norms that take mean and variance from the input, what remains beside their linear part: ``f(x) - f'(x) x``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._terms: dict[int, Tensor] = {}  # by the number of the operation
        self._count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = _name(func), kwargs or {}
        # before it runs: in place, it would change what it adds to
        added, channel = _added(name, func, args, kwargs)
        result = func(*args, **kwargs)
        if added is not None and _depends(result):
            _ShowGradient.apply(result, self._keep_term(self._count, added, channel))
            self._count += 1
        return result

    def _keep_term(self, number: int, added: Tensor, channel: int) -> Callable[[Tensor], None]:
        def keep(gradient: Tensor) -> None:
            term = added * gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
            self._terms[number] = term.movedim(channel, 1) if term.ndim > 1 else term

        return keep

    def terms(self, batch: int) -> list[Tensor]:
        """List the terms in the order of the forward pass, each batch x channel x grid, once the backward pass has run."""
        found, self._terms = self._terms, {}  # the next backward pass may not reach all operations
        return [term for _, term in sorted(found.items()) if term.ndim > 1 and len(term) == batch]


class _ShowGradient(torch.autograd.Function):
    """In-place identity; its backward hands the gradient to a callback."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, show: Callable[[Tensor], None]) -> Tensor:
        ctx.mark_dirty(maps)
        ctx.show = show
        return maps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.show(gradient)
        return gradient, None


def completeness_gap(terms: Sequence[Tensor], scores: Scores, precision: torch.dtype) -> list[Caution]:
    """Compare the terms' sum with the score, image by image: they are equal where the network is piecewise linear."""
    sums = torch.stack([term.flatten(1).sum(1) for term in terms]).sum(0)
    # each term is known to the rounding of the model's own precision
    rounding = torch.finfo(precision).eps * torch.stack([term.flatten(1).abs().sum(1) for term in terms]).sum(0)
    scores = scores.detach().to(sums.dtype)
    off = (sums - scores).abs() > _SHORT * scores.abs() + rounding
    return [
        _INCOMPLETE(
            f"image {image}: the terms of full_grad add up to {float(sums[image]):.4g}, and the score is "
            f"{float(scores[image]):.4g}; the network is not piecewise linear for this score, or adds something that was not "
            "found, which its map lacks"
        )
        for image in off.nonzero().flatten().tolist()
    ]


def _added(name: str, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor | None, int]:
    """Return what an operation adds, in a shape to be multiplied with its output's gradient, and the axis of the channels."""
    changed = _argument(args, kwargs, 0, "input")
    if name in _CONVOLUTIONS:
        return _per_channel(_argument(args, kwargs, 2, "bias"), changed.ndim), 1
    if name == "linear":
        bias = _argument(args, kwargs, 2, "bias")
        return None if bias is None else bias.detach(), -1
    if name in _ADDITIONS:
        return _constant(name, changed, _argument(args, kwargs, 1, "other"), kwargs.get("alpha", 1))
    if func is F.batch_norm and (shift := _shift(**_BATCH_NORM.bind(*args, **kwargs).arguments)) is not None:
        return _per_channel(shift, changed.ndim), 1
    if name in _NORMS and _depends(changed):
        last = name == "layer_norm" and len(_argument(args, kwargs, 1, "normalized_shape")) == 1
        return _beside_linear(func, changed, args[1:], kwargs), -1 if last else 1
    return None, 1


def _argument(args: Sequence[Any], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _per_channel(values: Tensor | None, axes: int) -> Tensor | None:
    return None if values is None else values.detach().reshape(-1, *[1] * (axes - 2))


def _constant(name: str, left: Any, right: Any, alpha: float | int) -> tuple[Tensor | None, int]:
    """Return the side of a sum that does not depend on the image; the model is frozen, so its parameters do not."""
    if _depends(left) == _depends(right):
        return None, 1
    left_factor, right_factor = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[_ADDITIONS[name]]
    value, factor, image = (right, right_factor, left) if _depends(left) else (left, left_factor, right)
    dtype = value.dtype if isinstance(value, Tensor) else torch.promote_types(image.dtype, torch.float32)
    # a copy, as what is added may be changed in place before the gradient comes
    constant = factor * torch.as_tensor(value, dtype=dtype, device=image.device).detach().clone()
    along_last_axis = constant.ndim > 0 and constant.numel() == constant.shape[-1] > 1
    return constant, -1 if along_last_axis else 1


def _depends(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and value.is_floating_point()


def _shift(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor | None:
    """``beta - mean gamma / sqrt(var + eps)``; None for a batch norm that takes its statistics from the input."""
    if training or running_mean is None or running_var is None:
        return None
    scale = (running_var + eps).rsqrt() * (1 if weight is None else weight)
    return (0 if bias is None else bias) - running_mean * scale


def _beside_linear(func: Any, at: Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return ``f(x) - f'(x) x``; the linear part by two backward passes, as ``f'(x)^T u`` is linear in u with slope ``f'(x)``."""
    others = {name: value for name, value in kwargs.items() if name != "input"}
    with torch.enable_grad():
        start = at.detach().requires_grad_()
        value: Tensor = func(start, *args, **others)
        direction = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, start, direction, create_graph=True)
    (linear,) = torch.autograd.grad(pulled, direction, start.detach())
    return value.detach() - linear


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "")
    return name if name.startswith("__") else name.rstrip("_")
