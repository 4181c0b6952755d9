"""Tokenized sentences: their tokens, and which tokens form which word."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from glowmap.errors import TargetError
from glowmap.models.transformers.prompts import PromptState, token_ids

# A word is letters and digits with their marks, joined by apostrophes, hyphens or decimal signs; in scripts without spaces each
# character is a word.
_MARK = "\ue000"  # replaces characters that only modify a letter
_LETTERS = rf"(?:[^\W_\u3040-\u30ff\u3400-\u9fff]{_MARK}*)+"
_WORD = re.compile(
    rf"[\u3040-\u30ff\u3400-\u9fff]{_MARK}*"
    rf"|{_LETTERS}(?:(?:['’\-_]|(?<=\d)[.,](?=\d)){_LETTERS})*(?:(?:\+\+|#)(?!\w))?"
)
_SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Sentence:
    """A text and its ``tokens``. ``scored`` are the positions of all but special tokens.

    ``words`` pairs each word with the positions of its tokens.
    """

    text: str
    tokens: tuple[int, ...]
    scored: tuple[int, ...]
    words: tuple[tuple[str, tuple[int, ...]], ...]


def continued(tokenizer: Any, prompt: PromptState, text: str) -> list[int]:
    """Tokenize a text that follows a prompt: many tokenizers use other tokens for the start of a text."""
    before = token_ids(tokenizer, prompt.text)
    together = token_ids(tokenizer, prompt.text + prompt.gap + text)
    is_continuation = bool(before) and together[: len(before)] == before
    return together[len(before) :] if is_continuation else token_ids(tokenizer, text)


def as_sentence(tokenizer: Any, tokens: Sequence[int], text: str | None) -> Sentence:
    """Find the words of a tokenized text; without ``text``, the text is decoded from the tokens."""
    # only these are skipped: other special tokens can be answers, such as Florence-2's locations
    special = {getattr(tokenizer, f"{kind}_token_id", None) for kind in _SPECIAL_TOKENS}
    scored = tuple(at for at, token in enumerate(tokens) if token not in special)
    ends = [len(_decoded(tokenizer, [tokens[at] for at in scored[:count]])) for count in range(len(scored) + 1)]
    decoded = _decoded(tokenizer, [tokens[at] for at in scored])
    # the last bytes of a letter make the text no longer, and belong to it
    spans = [(start if end > start else end - 1, end) for start, end in pairwise(ends)]
    words: list[tuple[int, int, tuple[int, ...]]] = []
    for match in _WORD.finditer(_marked(decoded)):
        start, end = match.span()
        positions = tuple(at for at, span in zip(scored, spans, strict=True) if _overlap(decoded, span, (start, end)))
        if words and positions and positions[0] in words[-1][2]:  # one token belongs to two words, which are joined
            start, _, earlier = words.pop()
            positions = tuple(dict.fromkeys((*earlier, *positions)))
        if positions:
            words.append((start, end, positions))
    named = tuple((decoded[start:end], positions) for start, end, positions in words)
    return Sentence(decoded.strip() if text is None else text, tuple(tokens), scored, named)


def refuse_unknown(tokenizer: Any, text: str, model: str) -> None:
    """Raise TargetError for words that a tokenizer does not know and replaces by its unknown token."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown not in token_ids(tokenizer, text):
        return
    literal = [tokenizer.unk_token] * (tokenizer.unk_token in text)  # the unknown token, written out
    words = literal or [
        part for piece in text.split() for part in _parts(piece) if unknown in token_ids(tokenizer, part)
    ]
    named = ", ".join(repr(word) for word in dict.fromkeys(words)) or repr(text)
    raise TargetError(
        f"the tokenizer of {model} does not know {named}, and the model would read any other word the same; give words that it "
        "knows"
    )


def refuse_special(tokenizer: Any, sentence: Sentence, model: str) -> None:
    """Raise TargetError for a sentence with special tokens, which are not scored."""
    special = [token for at, token in enumerate(sentence.tokens) if at not in sentence.scored]
    if special:
        raise TargetError(
            f"{sentence.text!r} has {_decoded(tokenizer, special[:1])!r} in it, which is a sign for {model} and no word; "
            "give words alone"
        )


def _parts(piece: str) -> list[str]:
    """Split a text without spaces into words, and the characters between them."""
    spans = [match.span() for match in _WORD.finditer(_marked(piece))]
    ends = [0, *(end for span in spans for end in span), len(piece)]
    return [piece[start:end] for start, end in pairwise(ends) if start < end]


def _marked(text: str) -> str:
    """Replace accents, vowel signs and joiners by one mark each, which the pattern of a word contains."""
    return "".join(
        _MARK if unicodedata.category(character)[0] == "M" or character in _JOINERS else character for character in text
    )


def _overlap(text: str, token: tuple[int, int], word: tuple[int, int]) -> bool:
    """Return whether the spans of a token and a word share characters other than spaces."""
    return bool(text[max(token[0], word[0]) : min(token[1], word[1])].strip())


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))
