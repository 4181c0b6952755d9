"""Texts for transformers' models that compare or match pictures with texts."""

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
from glowmap.models.transformers.generation import generation_interface
from glowmap.models.transformers.words import refuse_unknown

# How each pads texts as in training: to the longest text, with a mask, or to the full length, without one.
_CONTRASTIVE_PADDING = {
    "CLIPModel": "longest",
    "ChineseCLIPModel": "longest",
    "MetaClip2Model": "longest",
    "AltCLIPModel": "longest",
    "AlignModel": "longest",
    "SiglipModel": "max_length",
}
# The index of the output that means a match, and the number of outputs.
_MATCHING_OUTPUTS = {
    "BlipForImageTextRetrieval": (1, 2),
    "BridgeTowerForImageAndTextRetrieval": (1, 2),
    "ViltForImageAndTextRetrieval": (0, 1),
}
# Text models whose positions start after the index of the padding token.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "altclip_text_model", "bridgetower_text_model")


def text_interface(module: Any, processor: Any) -> TextInterface | None:
    """Return how texts become inputs of a transformers model; ``processor`` is its processor or its tokenizer.

    None for a model without texts, for an unknown one, and for a processor without a tokenizer.
    """
    if tokenizer_of(processor) is None:
        return None
    names = [kind.__name__ for kind in type(module).__mro__]
    if "Siglip2Model" in names:
        return UnsupportedTexts(
            f"{type(module).__name__} takes a picture as a row of patches, with the position of each"
        )
    padding = next((_CONTRASTIVE_PADDING[name] for name in names if name in _CONTRASTIVE_PADDING), None)
    if padding is not None:
        tokens = TextTokens.of(module, processor, padding)
        return Contrastive(tokens, _with_cached_texts, are_exclusive=padding == "longest")
    outputs = next((_MATCHING_OUTPUTS[name] for name in names if name in _MATCHING_OUTPUTS), None)
    if outputs is not None:
        return Matching(TextTokens.of(module, processor, "longest"), *outputs)
    return generation_interface(module, processor)


def _with_cached_texts(module: Any) -> AbstractContextManager[None]:
    return memoised(module.text_model, "forward")


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor, or the tokenizer itself; None where there is none."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return tokenizer if is_from(tokenizer, "transformers") and hasattr(tokenizer, "convert_ids_to_tokens") else None


@dataclass(frozen=True)
class TextTokens:
    """A transformers tokenizer: from texts to keywords of the module. Texts are never cut."""

    tokenizer: Any
    model: str
    limit: int
    padding: str
    keywords: tuple[str, ...]

    @classmethod
    def of(cls, module: Any, processor: Any, padding: str) -> "TextTokens":
        """Fit a processor's tokenizer to the keywords and the token limit of a module."""
        tokenizer = tokenizer_of(processor)
        wanted = ["input_ids", *["attention_mask"] * (padding == "longest"), "token_type_ids"]
        parameters = inspect.signature(module.forward).parameters
        limit = min(_positions(module.config), int(tokenizer.model_max_length))
        keywords = tuple(name for name in wanted if name in parameters)
        return cls(tokenizer, type(module).__name__, limit, padding, keywords)

    def __call__(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        try:
            lengths = [len(tokens) for tokens in self.tokenizer(list(texts))["input_ids"]]
        except Exception as error:  # the library's code
            raise TargetError(
                f"the tokenizer raised {summarise(error)} on {list(texts)[:3]}; check that it belongs to this model"
            ) from error
        for text, length in zip(texts, lengths, strict=True):
            if not 0 < length <= self.limit:
                raise TargetError(
                    f"the text {text!r} is {length} tokens long, and {self.model} takes 1 to {self.limit}; "
                    f"{'shorten it' if length else 'give one of words that its tokenizer knows'}"
                )
            refuse_unknown(self.tokenizer, text, self.model)
        tokens = self.tokenizer(
            list(texts), padding=self.padding, padding_side="right", max_length=self.limit, return_tensors="pt"
        )
        return {name: tokens[name] for name in self.keywords if name in tokens}


def _positions(config: Any) -> int:
    """Return how many tokens of a text have a position."""
    text_config = getattr(config, "text_config", config)
    offset = int(text_config.pad_token_id or 0) + 1 if text_config.model_type in _OFFSET_POSITIONS else 0
    return int(text_config.max_position_embeddings) - offset
