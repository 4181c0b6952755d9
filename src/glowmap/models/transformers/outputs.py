"""Class scores in what transformers' models answer with: one reader for their many kinds of output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from glowmap.errors import Remedy, TargetError
from glowmap.outputs import read_logits as read_plain


@dataclass(frozen=True)
class ClassScoreReader:
    """Read image x class (x rows x columns) from an output, of whichever kind it is.

    ``logits`` are taken as they are, for classes and for pixels; at the last token where they are a language model's (pad on
    the left), and as the highest of all queries, without the class of no object, where they are a detector's. Further kinds:
    queries with a class and a mask each (:func:`dense_logits`), the likeness to texts (``logits_per_image``, ``itm_score``), and
    depth, as a single class. ``labels`` and ``vocabulary`` are the counts of the model's config: no labels where its classes
    are the texts that it is given.
    """

    labels: int = 0
    vocabulary: int = 0

    def __call__(self, output: Any) -> Tensor:
        if not isinstance(output, Mapping):
            return read_plain(output)
        for keys, read in _READERS:
            if all(isinstance(output.get(key), Tensor) for key in keys):
                return read(self, output)
        raise TargetError(
            f"no class scores are found in the model's output, a {type(output).__name__} with the keys "
            f"{', '.join(map(str, output))}",
            remedy=Remedy(
                "pass target=a callable from this output to one score per image, or load the model with a head"
            ),
        )

    def queries(self, output: Mapping[str, Any]) -> Tensor:
        """Image x class of a detector that asks by queries: the highest logit of each class."""
        logits: Tensor = output["logits"]
        return self.objects(logits).amax(1)

    def objects(self, logits: Tensor) -> Tensor:
        """Drop the class of no object, the last, which some detectors have and others lack."""
        return logits[..., :-1] if self.labels and logits.shape[-1] == self.labels + 1 else logits

    def plain(self, output: Mapping[str, Any]) -> Tensor:
        """Logits as they are, or those of the last token of a text."""
        logits: Tensor = output["logits"]
        return logits[:, -1] if logits.ndim == 3 and logits.shape[-1] == self.vocabulary else logits


def dense_logits(classes: Tensor, masks: Tensor) -> Tensor:
    """Combine queries' classes and masks into scores of every class at every place, as the published inference does.

    ``classes`` are logits, image x query x class, the last of which is no object; ``masks`` are logits, image x query x rows x
    columns. The sum over queries of the class's probability times the mask's: Cheng et al., NeurIPS 2021, arXiv:2107.06278,
    section 3.4 (semantic inference), which Mask2Former, OneFormer and EoMT keep.
    """
    probabilities = classes.softmax(-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", probabilities, masks.sigmoid())


def _masked(_: ClassScoreReader, output: Mapping[str, Any]) -> Tensor:
    return dense_logits(output["class_queries_logits"], output["masks_queries_logits"])


def _texts_of_masks(_: ClassScoreReader, output: Mapping[str, Any]) -> Tensor:
    logits: Tensor = output["logits"]  # one map for each pair of picture and text
    return logits.unsqueeze(1) if logits.ndim == 3 else logits


def _depth(_: ClassScoreReader, output: Mapping[str, Any]) -> Tensor:
    depth: Tensor = output["predicted_depth"]
    return depth.unsqueeze(1) if depth.ndim == 3 else depth


# The first whose keys are all there; logits stand for something else where boxes or embeddings of texts stand beside them.
_READERS: tuple[tuple[tuple[str, ...], Callable[[ClassScoreReader, Mapping[str, Any]], Tensor]], ...] = (
    (("class_queries_logits", "masks_queries_logits"), _masked),
    (("logits", "pred_boxes"), ClassScoreReader.queries),
    (("logits", "conditional_embeddings"), _texts_of_masks),
    (("logits",), ClassScoreReader.plain),
    (("logits_per_image",), lambda _, output: output["logits_per_image"]),
    (("itm_score",), lambda _, output: output["itm_score"]),
    (("predicted_depth",), _depth),
)
