"""How an embedding of the picture is read from what a model answers with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from glowmap.errors import TargetError
from glowmap.outputs.model_output import ModelOutput
from glowmap.shapes import crossed

# What libraries call an embedding of the picture, the most finished first, and parameters that are a class token.
_NAMES = (
    "image_embeds",
    "image_features",
    "pooler_output",
    "x_norm_clstoken",
    "embedding",
    "embeddings",
    "last_hidden_state",
)
_CLASS_TOKENS = ("cls_token", "class_token", "cls", "class_embedding")
_REMEDY = (
    "give the part that embeds pictures (its backbone, its vision tower, or the model without its last layer), or ask about "
    "a layer: targets.Unit(index, layer), targets.Direction(vector, layer)"
)


def read_embedding(module: nn.Module, answer: ModelOutput) -> Tensor:
    """Read images x feature from an output: a tensor of that shape as it is, or what libraries call an embedding.

    Those are ``image_embeds`` (CLIP), ``image_features`` (open_clip), ``pooler_output``, ``last_hidden_state`` and the first of
    a tuple. Of images x token x feature the class token is taken, where the model has one, else the mean of all tokens; maps
    are averaged over their places. Raises TargetError where there is none, and where it is the scores of named classes.
    """
    if answer.read_candidates is not None:
        raise TargetError(f"{answer.model} answers with detections, which are no embedding of the picture; {_REMEDY}")
    found = _found(answer)
    if not found.is_floating_point() or found.ndim < 2 or len(found) != answer.batch:
        raise TargetError(
            f"the output of {answer.model} ({crossed(found.shape)}, {str(found.dtype).removeprefix('torch.')}) is not "
            f"{answer.batch} images x features; {_REMEDY}"
        )
    if answer.class_names is not None and found.shape[1] == len(answer.class_names) and found is _scores(answer):
        raise TargetError(
            f"{answer.model} answers with the scores of {found.shape[1]} classes, not with an embedding; {_REMEDY}"
        )
    if found.ndim == 2:
        return found
    axes = len(answer.input_size) or 2
    if found.ndim == axes + 2:
        last = found.shape[1] != found.shape[-1] == getattr(module, "num_features", None)  # as timm's Swin has them
        return (found.movedim(-1, 1) if last else found).flatten(2).mean(2)
    if found.ndim == 3:
        return found[:, 0] if _has_class_token(module) else found.mean(1)
    raise TargetError(f"the output of {answer.model} ({crossed(found.shape)}) is no embedding of pictures; {_REMEDY}")


def doubt_embedding(module: nn.Module, answer: ModelOutput) -> tuple[str, ...]:
    """Say so where what is taken for the embedding may well be class scores: the module's last layer is a linear one."""
    scores = _scores(answer)
    if scores is None or not (scores is answer.embedding or scores is answer.raw):
        return ()
    last = next(
        (part for part in reversed([*module.modules()]) if next(part.parameters(recurse=False), None) is not None), None
    )
    if not isinstance(last, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or len(last.weight) != scores.shape[1]:
        return ()
    return (
        f"the {len(last.weight)} outputs of {answer.model} are taken for its embedding as they are; if they are class scores, "
        "take the last layer off first (model.fc = torch.nn.Identity()), or ask about a layer: targets.Unit(index, layer)",
    )


def _found(answer: ModelOutput) -> Tensor:
    raw: Any = answer.raw
    if isinstance(raw, tuple | list) and raw:
        raw = raw[0]
    if isinstance(raw, Tensor):
        return raw
    parts = raw if isinstance(raw, Mapping) else {name: getattr(raw, name, None) for name in _NAMES}
    for name in _NAMES:
        part = parts.get(name)
        if isinstance(part, Tensor):
            return part
    keys = f" with the keys {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else ""
    raise TargetError(
        f"no embedding is found in the output of {answer.model}, a {type(answer.raw).__name__}{keys}; {_REMEDY}"
    )


def _scores(answer: ModelOutput) -> Tensor | None:
    try:
        return answer.read_logits(answer.raw)
    except TargetError:
        return None


def _has_class_token(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in module.named_parameters())
