"""Sentences as a tokenizer spells them: their tokens, and the words that a person would call words."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glowmap.errors import TargetError
from glowmap.models.transformers.chat import PromptState, ids

# Letters and digits with their marks, and what may stand inside a word or number; in scripts without spaces each sign is a word.
_MARK = "\ue000"  # for any sign that only stands upon a letter
_LETTERS = rf"(?:[^\W_\u3040-\u30ff\u3400-\u9fff]{_MARK}*)+"
_WORD = re.compile(
    rf"[\u3040-\u30ff\u3400-\u9fff]{_MARK}*"
    rf"|{_LETTERS}(?:(?:['’\-_]|(?<=\d)[.,](?=\d)){_LETTERS})*(?:(?:\+\+|#)(?!\w))?"
)
_SIGNS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Sentence:
    """A sentence of the model's tokens; ``scored`` are the places of those that are no special ones, and so are the words'."""

    text: str
    tokens: tuple[int, ...]
    scored: tuple[int, ...]
    words: tuple[tuple[str, tuple[int, ...]], ...]


def continued(tokenizer: Any, begun: PromptState, text: str) -> list[int]:
    """Spell a text as it goes on from what stands before: many tokenizers spell a word otherwise behind another."""
    before = ids(tokenizer, begun.before)
    together = ids(tokenizer, begun.before + begun.gap + text)
    alike = bool(before) and together[: len(before)] == before
    return together[len(before) :] if alike else ids(tokenizer, text)


def spelled(tokenizer: Any, tokens: Sequence[int], text: str | None) -> Sentence:
    """Tell which tokens make which word; without a text, as the tokenizer reads them."""
    # of the others that it calls special some are answers: the places that Florence-2 gives
    special = {getattr(tokenizer, f"{kind}_token_id", None) for kind in _SIGNS}
    scored = tuple(at for at, token in enumerate(tokens) if token not in special)
    ends = [len(_read(tokenizer, [tokens[at] for at in scored[:count]])) for count in range(len(scored) + 1)]
    whole = _read(tokenizer, [tokens[at] for at in scored])
    # the last bytes of a letter make no text longer: they go with the first
    spans = [(start if end > start else end - 1, end) for start, end in pairwise(ends)]
    words: list[tuple[int, int, tuple[int, ...]]] = []
    for found in _WORD.finditer(_marked(whole)):
        first, last = found.span()
        own = tuple(at for at, span in zip(scored, spans, strict=True) if _reaches(whole, span, (first, last)))
        if words and own and own[0] in words[-1][2]:  # one token is part of two words
            first, _, before = words.pop()
            own = tuple(dict.fromkeys((*before, *own)))
        if own:
            words.append((first, last, own))
    named = tuple((whole[first:last], own) for first, last, own in words)
    return Sentence(whole.strip() if text is None else text, tuple(tokens), scored, named)


def refuse_unknown(tokenizer: Any, text: str, model: str) -> None:
    """Refuse words that a tokenizer does not know: it would put a token in their place that stands for any."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown not in ids(tokenizer, text):
        return
    own = [tokenizer.unk_token] * (tokenizer.unk_token in text)  # the token itself, written out
    found = own or [word for piece in text.split() for word in _parts(piece) if unknown in ids(tokenizer, word)]
    named = ", ".join(repr(word) for word in dict.fromkeys(found)) or repr(text)
    raise TargetError(
        f"the tokenizer of {model} does not know {named}, and the model would read any other word the same; give words that it "
        "knows"
    )


def refuse_special(tokenizer: Any, sentence: Sentence, model: str) -> None:
    """Refuse a sentence with special tokens among its words, as these are not scored."""
    special = [token for at, token in enumerate(sentence.tokens) if at not in sentence.scored]
    if special:
        raise TargetError(
            f"{sentence.text!r} has {_read(tokenizer, special[:1])!r} in it, which is a sign for {model} and no word; "
            "give words alone"
        )


def _parts(piece: str) -> list[str]:
    """Split what stands between spaces into words, and what stands between those."""
    spans = [found.span() for found in _WORD.finditer(_marked(piece))]
    ends = [0, *(end for span in spans for end in span), len(piece)]
    return [piece[start:end] for start, end in pairwise(ends) if start < end]


def _marked(text: str) -> str:
    """Exchange accents, vowel signs and the like for one mark each, by which they are known as parts of a word."""
    return "".join(_MARK if unicodedata.category(sign)[0] == "M" or sign in _JOINERS else sign for sign in text)


def _reaches(whole: str, token: tuple[int, int], word: tuple[int, int]) -> bool:
    """Tell whether letters of a token are among those of a word, given where each begins and ends in a text."""
    return bool(whole[max(token[0], word[0]) : min(token[1], word[1])].strip())


def _read(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))
