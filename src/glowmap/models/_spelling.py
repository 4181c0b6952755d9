"""Sentences as a tokenizer spells them: their tokens, and the words that a person would call words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glowmap.models._vision_language import Begun, ids

# Letters and digits, with what may stand inside a word; in scripts without spaces each sign is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:['’\-_][^\W_]+)*")


@dataclass(frozen=True)
class Sentence:
    """A sentence of the model's tokens; ``scored`` are the places of those that are no special ones, and so are the words'."""

    text: str
    tokens: tuple[int, ...]
    scored: tuple[int, ...]
    words: tuple[tuple[str, tuple[int, ...]], ...]


def continued(tokenizer: Any, begun: Begun, text: str) -> list[int]:
    """Spell a text as it goes on from what stands before: many tokenizers spell a word otherwise behind another."""
    before = ids(tokenizer, begun.before)
    together = ids(tokenizer, begun.before + begun.gap + text)
    alike = bool(before) and together[: len(before)] == before
    return together[len(before) :] if alike else ids(tokenizer, text)


def spelled(tokenizer: Any, tokens: Sequence[int], text: str | None) -> Sentence:
    """Tell which tokens make which word; without a text, as the tokenizer reads them."""
    special = set(tokenizer.all_special_ids)
    scored = tuple(at for at, token in enumerate(tokens) if token not in special)
    ends = [len(_read(tokenizer, [tokens[at] for at in scored[:count]])) for count in range(len(scored) + 1)]
    whole = _read(tokenizer, [tokens[at] for at in scored])
    # the last bytes of a letter make no text longer: they go with the first
    spans = [(start if end > start else end - 1, end) for start, end in pairwise(ends)]
    words: list[tuple[int, int, tuple[int, ...]]] = []
    for found in _WORD.finditer(whole):
        first, last = found.span()
        own = tuple(at for at, span in zip(scored, spans, strict=True) if _reaches(whole, span, (first, last)))
        if words and own and own[0] in words[-1][2]:  # one token is part of two words
            first, _, before = words.pop()
            own = tuple(dict.fromkeys((*before, *own)))
        if own:
            words.append((first, last, own))
    named = tuple((whole[first:last], own) for first, last, own in words)
    return Sentence(whole.strip() if text is None else text, tuple(tokens), scored, named)


def _reaches(whole: str, token: tuple[int, int], word: tuple[int, int]) -> bool:
    """Tell whether letters of a token are among those of a word, given where each begins and ends in a text."""
    return bool(whole[max(token[0], word[0]) : min(token[1], word[1])].strip())


def _read(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))
