"""Class scores of transformers' models: one reader for their many output types."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glowmap.errors import Remedy, TargetError
from glowmap.outputs import read_logits as read_class_scores


@dataclass(frozen=True)
class ClassScoreReader:
    """Returns image x class (x rows x columns) from an output of any type.

    ``logits`` are returned as they are for classes and pixels; for a language model those of the last token (pad on the left),
    for a detector the maximum over queries, without the class that means no object. Further types are queries with a class and a
    mask each (:func:`dense_logits`), similarity to texts (``logits_per_image``, ``itm_score``), and depth, as a single class.

    ``labels`` and ``vocabulary`` are the counts of the model's config; no labels where its classes are the texts in its input.
    """

    labels: int = 0
    vocabulary: int = 0

    def __call__(self, raw: Any) -> Tensor:
        if not isinstance(raw, Mapping):
            return read_class_scores(raw)
        for keys, read in _READERS:
            if all(isinstance(raw.get(key), Tensor) for key in keys):
                return read(self, raw)
        raise TargetError(
            f"no class scores are found in the model's output, a {type(raw).__name__} with the keys "
            f"{', '.join(map(str, raw))}",
            remedy=Remedy(
                "pass target=a callable from this output to one score per image, or load the model with a head"
            ),
        )

    def query_maxima(self, raw: Mapping[str, Any]) -> Tensor:
        """Return image x class of a detector with queries: the maximum of each class logit."""
        logits: Tensor = raw["logits"]
        return self.objects(logits).amax(1)

    def objects(self, logits: Tensor) -> Tensor:
        """Remove the last class where it means no object; only some detectors have it."""
        return logits[..., :-1] if self.labels and logits.shape[-1] == self.labels + 1 else logits

    def plain(self, raw: Mapping[str, Any]) -> Tensor:
        """Return the logits as they are, or those of the last token of a text."""
        logits: Tensor = raw["logits"]
        return logits[:, -1] if logits.ndim == 3 and logits.shape[-1] == self.vocabulary else logits


def dense_logits(classes: Tensor, masks: Tensor) -> Tensor:
    """Combine the classes and masks of queries into class scores per pixel, as in published inference.

    ``classes`` are logits, image x query x class, the last class meaning no object; ``masks`` are logits, image x query x rows x
    columns. The result is the sum over queries of class probability times mask probability: Cheng et al., NeurIPS 2021,
    arXiv:2107.06278, section 3.4 (semantic inference), also used by Mask2Former, OneFormer and EoMT.
    """
    probabilities = classes.softmax(-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", probabilities, masks.sigmoid())


def _mask_classes(_: ClassScoreReader, raw: Mapping[str, Any]) -> Tensor:
    return dense_logits(raw["class_queries_logits"], raw["masks_queries_logits"])


def _text_masks(_: ClassScoreReader, raw: Mapping[str, Any]) -> Tensor:
    logits: Tensor = raw["logits"]  # one map for each pair of image and text
    return logits.unsqueeze(1) if logits.ndim == 3 else logits


def _depth(_: ClassScoreReader, raw: Mapping[str, Any]) -> Tensor:
    depth: Tensor = raw["predicted_depth"]
    return depth.unsqueeze(1) if depth.ndim == 3 else depth


# The first whose keys are all present. Logits mean something else where boxes or text embeddings come with them.
_READERS: tuple[tuple[tuple[str, ...], Callable[[ClassScoreReader, Mapping[str, Any]], Tensor]], ...] = (
    (("class_queries_logits", "masks_queries_logits"), _mask_classes),
    (("logits", "pred_boxes"), ClassScoreReader.query_maxima),
    (("logits", "conditional_embeddings"), _text_masks),
    (("logits",), ClassScoreReader.plain),
    (("logits_per_image",), lambda _, raw: raw["logits_per_image"]),
    (("itm_score",), lambda _, raw: raw["itm_score"]),
    (("predicted_depth",), _depth),
)
