"""Texts for transformers' models that compare or match pictures and texts; those that write words have a room of their own."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from glowmap.errors import TargetError, summarise
from glowmap.models._family import is_from
from glowmap.models.model import TextInterface
from glowmap.models.text import Contrastive, Matching, UnsupportedTexts, memoised
from glowmap.models.transformers.generation import writer
from glowmap.models.transformers.words import refuse_unknown

# How the texts were padded when each was trained: to the longest, with a mask, or to the full length and read without one.
_COMPARING = {
    "CLIPModel": "longest",
    "ChineseCLIPModel": "longest",
    "MetaClip2Model": "longest",
    "AltCLIPModel": "longest",
    "AlignModel": "longest",
    "SiglipModel": "max_length",
}
# Which output speaks for a match, of how many.
_MATCHING = {
    "BlipForImageTextRetrieval": (1, 2),
    "BridgeTowerForImageAndTextRetrieval": (1, 2),
    "ViltForImageAndTextRetrieval": (0, 1),
}
# Their positions begin behind the padding's.
_OFFSET = ("roberta", "xlm-roberta", "altclip_text_model", "bridgetower_text_model")


def text_interface(module: Any, processor: Any) -> TextInterface | None:
    """Say how texts are put to a transformers model; ``processor`` is its processor or its tokenizer.

    None for a model that takes none, or none that is known here, and for a processor without a tokenizer.
    """
    if tokenizer_of(processor) is None:
        return None
    kinds = [kind.__name__ for kind in type(module).__mro__]
    if "Siglip2Model" in kinds:
        return UnsupportedTexts(f"{type(module).__name__} takes a picture as a row of patches, with the places of each")
    comparing = next((_COMPARING[kind] for kind in kinds if kind in _COMPARING), None)
    if comparing is not None:
        tokens = HubTokens.of(module, processor, comparing)
        return Contrastive(tokens, _texts_once, are_exclusive=comparing == "longest")
    matching = next((_MATCHING[kind] for kind in kinds if kind in _MATCHING), None)
    if matching is not None:
        return Matching(HubTokens.of(module, processor, "longest"), *matching)
    return writer(module, processor)


def _texts_once(module: Any) -> AbstractContextManager[None]:
    return memoised(module.text_model, "forward")


def tokenizer_of(processor: Any) -> Any:
    """Give the tokenizer of a processor, or the tokenizer itself; None where there is none."""
    found = getattr(processor, "tokenizer", processor)
    return found if is_from(found, "transformers") and hasattr(found, "convert_ids_to_tokens") else None


@dataclass(frozen=True)
class HubTokens:
    """A tokenizer of transformers: texts as keywords of the module's forward, never cut."""

    tokenizer: Any
    model: str
    limit: int
    padding: str
    keywords: tuple[str, ...]

    @classmethod
    def of(cls, module: Any, processor: Any, padding: str) -> "HubTokens":
        """Fit a processor's tokenizer to a module: how many tokens it takes, and under which keywords."""
        tokenizer = tokenizer_of(processor)
        wanted = ["input_ids", *["attention_mask"] * (padding == "longest"), "token_type_ids"]
        takes = inspect.signature(module.forward).parameters
        limit = min(_positions(module.config), int(tokenizer.model_max_length))
        return cls(tokenizer, type(module).__name__, limit, padding, tuple(name for name in wanted if name in takes))

    def __call__(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        try:
            lengths = [len(tokens) for tokens in self.tokenizer(list(texts))["input_ids"]]
        except Exception as error:  # a stranger's code
            raise TargetError(
                f"the tokenizer raised {summarise(error)} on {list(texts)[:3]}; check that it is this model's own"
            ) from error
        for text, length in zip(texts, lengths, strict=True):
            if not 0 < length <= self.limit:
                raise TargetError(
                    f"the text {text!r} is {length} tokens long, and {self.model} takes 1 to {self.limit}; "
                    f"{'shorten it' if length else 'give one that its tokenizer knows words of'}"
                )
            refuse_unknown(self.tokenizer, text, self.model)
        put = self.tokenizer(
            list(texts), padding=self.padding, padding_side="right", max_length=self.limit, return_tensors="pt"
        )
        return {name: put[name] for name in self.keywords if name in put}


def _positions(config: Any) -> int:
    """Tell how many tokens of a text have a position."""
    text = getattr(config, "text_config", config)
    offset = int(text.pad_token_id or 0) + 1 if text.model_type in _OFFSET else 0
    return int(text.max_position_embeddings) - offset
