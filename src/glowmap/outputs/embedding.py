"""Read an embedding of each image from a model's output."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from glowmap.cautions import Caution, caution_kind
from glowmap.errors import Remedy, TargetError
from glowmap.outputs.model_output import ModelOutput
from glowmap.shapes import crossed

_DOUBTFUL = caution_kind("embedding-doubtful", "caution", "Remove the last layer, or choose a layer as the target.")
# Names of an embedding in the outputs of libraries, the most processed first; names of class token parameters.
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
_REMEDY = Remedy(
    "give the part that embeds pictures (its backbone, its vision tower, or the model without its last layer), or choose a "
    "layer: targets.Unit(index, layer), targets.Direction(vector, layer)"
)


def read_embedding(module: nn.Module, output: ModelOutput) -> Tensor:
    """Return an embedding of each image, batch x feature.

    The embedding is the output itself where it is a tensor, the first of a tuple, or else a field: ``image_embeds`` (CLIP),
    ``image_features`` (open_clip), ``pooler_output``, ``last_hidden_state``. Of batch x token x feature it is the class token
    where the module has one, else the mean over tokens; of maps the mean over positions. Raises TargetError where there is no
    such tensor, and where it holds the scores of named classes.
    """
    if output.readers.candidates is not None:
        raise TargetError(
            f"{output.model} returns detections, which are not an embedding of the picture", remedy=_REMEDY
        )
    tensor = _find(output)
    if not tensor.is_floating_point() or tensor.ndim < 2 or len(tensor) != output.batch:
        raise TargetError(
            f"the output of {output.model} ({crossed(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}) is not "
            f"{output.batch} images x features",
            remedy=_REMEDY,
        )
    if (
        output.class_names is not None
        and tensor.shape[1] == len(output.class_names)
        and tensor is _class_scores(output)
    ):
        raise TargetError(
            f"{output.model} returns the scores of {tensor.shape[1]} classes, not an embedding",
            remedy=_REMEDY,
        )
    if tensor.ndim == 2:
        return tensor
    spatial_axes = len(output.input_size) or 2
    if tensor.ndim == spatial_axes + 2:
        channels_last = tensor.shape[1] != tensor.shape[-1] == getattr(module, "num_features", None)  # timm's Swin
        return (tensor.movedim(-1, 1) if channels_last else tensor).flatten(2).mean(2)
    if tensor.ndim == 3:
        return tensor[:, 0] if _has_class_token(module) else tensor.mean(1)
    raise TargetError(f"the output of {output.model} ({crossed(tensor.shape)}) is not an embedding", remedy=_REMEDY)


def embedding_cautions(module: nn.Module, output: ModelOutput) -> tuple[Caution, ...]:
    """Warn where the embedding may be class scores: the module's last layer is linear, with one unit for each feature."""
    scores = _class_scores(output)
    if scores is None or not (scores is output.embedding or scores is output.raw):
        return ()
    last = next(
        (part for part in reversed([*module.modules()]) if next(part.parameters(recurse=False), None) is not None), None
    )
    if not isinstance(last, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or len(last.weight) != scores.shape[1]:
        return ()
    return (
        _DOUBTFUL(
            f"the {len(last.weight)} outputs of {output.model} are taken as its embedding; if they are class scores, remove "
            "the last layer first (model.fc = torch.nn.Identity()), or choose a layer: targets.Unit(index, layer)"
        ),
    )


def _find(output: ModelOutput) -> Tensor:
    raw: Any = output.raw
    if isinstance(raw, tuple | list) and raw:
        raw = raw[0]
    if isinstance(raw, Tensor):
        return raw
    fields = raw if isinstance(raw, Mapping) else {name: getattr(raw, name, None) for name in _NAMES}
    for name in _NAMES:
        tensor = fields.get(name)
        if isinstance(tensor, Tensor):
            return tensor
    keys = f" with the keys {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else ""
    raise TargetError(
        f"no embedding is found in the output of {output.model}, a {type(output.raw).__name__}{keys}",
        remedy=_REMEDY,
    )


def _class_scores(output: ModelOutput) -> Tensor | None:
    try:
        return output.readers.logits(output.raw)
    except TargetError:
        return None


def _has_class_token(module: nn.Module) -> bool:
    return any(name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in module.named_parameters())
