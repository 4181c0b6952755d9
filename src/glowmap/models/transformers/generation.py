"""Texts for transformers' models that write (captions, answers, chats), and for those that choose an answer.

A text is scored as in training (teacher forcing): the logits of each token are those at the position before it, with the tokens
before it as input. One forward pass scores all tokens of a text.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from glowmap.errors import Remedy, TargetError, summarise
from glowmap.inputs import Batch
from glowmap.models.model import Model, TextInterface, TextPass
from glowmap.models.text import UnsupportedTexts, nested
from glowmap.models.transformers import images as image_layout
from glowmap.models.transformers.prompts import CHAT, QUESTION, Generator, PromptState, generator_of
from glowmap.models.transformers.words import Sentence, as_sentence, continued, refuse_special, refuse_unknown
from glowmap.outputs import ModelOutput
from glowmap.registry import near_names
from glowmap.targets import Category, Predicted, Target, Text, TokenLogProbability, TokenSpan

_MOST_TOKENS = 64  # of a text that the model writes itself
_TEXT_KEYWORDS = ("input_ids", "decoder_input_ids", "inputs_embeds")
_GIVE_A_TEXT = Remedy("give a text: target=targets.Text('...')", "give a text: --text WORDS")
_EACH_TEXT = Remedy("give each text as a target: target=[..., ...]", "give each text as a target: a --text for each")


@dataclass(frozen=True)
class Generative:
    """Texts for a model that writes: a text is a sentence that the model would write, or a word of it."""

    tokenizer: Any
    processor: Any
    generator: Generator
    generates: ClassVar[bool] = True

    def passes(self, model: Model, batch: Batch, texts: Sequence[Text]) -> list[TextPass]:
        """Return one pass for each prompt and sentence, which the words share; without texts, one that the model writes."""
        if _has_texts(model, batch, texts):
            return []
        by_sentence: dict[tuple[str | None, str | None], list[Text]] = {}
        for text in texts or [Text()]:
            if text.against:
                raise TargetError(
                    f"{model.name} writes one text at a time; the texts of 'against' are for models that compare texts",
                    remedy=_EACH_TEXT,
                )
            by_sentence.setdefault((text.prompt, text.text), []).append(text)
        return [self._pass(model, batch, prompt, same) for (prompt, _), same in by_sentence.items()]

    def _pass(self, model: Model, batch: Batch, prompt: str | None, texts: Sequence[Text]) -> TextPass:
        """Return the pass for texts with one prompt and one sentence."""
        if self.generator.without_prompt is not None and prompt is None:
            raise TargetError(
                f"{model.name} answers questions, and none was given", remedy=self.generator.without_prompt
            )
        images, module, sentence = batch.images, model.module, texts[0].text
        for words in filter(None, (prompt, sentence)):
            refuse_unknown(self.tokenizer, words, model.name)
        state = self.generator.start(self.tokenizer, self.processor, module, images, prompt)
        text_rows = [] if sentence is None else [continued(self.tokenizer, state, sentence)]
        rows = text_rows or self._written(model, images, state)
        sentences = [as_sentence(self.tokenizer, row, sentence) for row in rows]
        self._refuse_unscorable(model, sentences, sentence)
        length = max(map(len, rows))
        self._refuse_too_long(model, state, length)
        tokens = torch.tensor([[*row, *[self._padding_token()] * (length - len(row))] for row in rows])
        keywords = _per_image(images, state.with_answer(self.generator.answer_keyword, tokens))
        scoring = replace(
            model,
            readers=replace(model.readers, token_logits=read_token_logits),
            around_forward=nested(model.around_forward, self.generator.around_forward),
            token_grids=lambda batch: image_layout.token_grids(module, batch.images),
        )
        return TextPass(
            Batch((), {**batch.keywords, **keywords, "pixel_values": images}, images, batch.pictures),
            {text: _targets(model, text, sentences, length) for text in texts},
            scoring,
        )

    def _written(self, model: Model, images: Tensor, state: PromptState) -> list[list[int]]:
        """Let the model write (greedily, so always the same), and cut each row before its end token."""
        module: Any = model.module
        tokens = _per_image(images, state.tokens)
        start = state.tokens[self.generator.answer_keyword]
        try:
            with torch.no_grad(), model.around_forward(module):
                written = module.generate(
                    **image_layout.image_inputs(module, images),
                    **self.generator.to_generate(module, tokens),
                    max_new_tokens=min(_MOST_TOKENS, max(_positions(module.config) - start.shape[1] - 1, 1)),
                    do_sample=False,
                    num_beams=1,
                    return_dict_in_generate=False,
                )
        except Exception as error:  # the library's code
            raise TargetError(
                f"{model.name} cannot write a text, because its generate(...) raised {summarise(error)}",
                remedy=_GIVE_A_TEXT,
            ) from error
        start = start.to(written.device)
        if written.shape[1] >= start.shape[1] and bool((written[:, : start.shape[1]] == start).all()):
            written = written[:, start.shape[1] :]
        ends = _end_tokens(module, self.tokenizer)
        rows = [row.tolist() for row in written]
        return [row[: next((at for at, token in enumerate(row) if token in ends), len(row))] for row in rows]

    def _refuse_unscorable(self, model: Model, sentences: Sequence[Sentence], text: str | None) -> None:
        """Raise TargetError for a sentence without tokens to score, and for special tokens within it."""
        for image, sentence in enumerate(sentences):
            if image_layout.image_token(model.module) in sentence.tokens:
                raise TargetError(f"{sentence.text!r} has a place for a picture in it; give words alone")
            if not sentence.scored and text is None:
                raise TargetError(f"{model.name} writes an empty text for image {image}", remedy=_GIVE_A_TEXT)
            if not sentence.scored:
                raise TargetError(f"{model.name} has no words for {text!r}; give a text of words that it knows")
            if text is not None:
                refuse_special(self.tokenizer, sentence, model.name)

    def _refuse_too_long(self, model: Model, state: PromptState, answer_length: int) -> None:
        limit = _positions(model.module.config)
        for name, tokens in state.tokens.items():
            total = tokens.shape[1] + (answer_length if name == self.generator.answer_keyword else 0)
            if total > limit:
                raise TargetError(
                    f"the text is too long for {model.name}: {total} tokens of {name}, including prompt and image, and it has "
                    f"{limit} positions; give a shorter one"
                )

    def _padding_token(self) -> int:
        tokens = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return int(next((token for token in tokens if token is not None), 0))


@dataclass(frozen=True)
class AnswerChoice:
    """Texts for a model that answers a question with one of its classes: the text is a class name."""

    tokenizer: Any
    generates: ClassVar[bool] = False

    def passes(self, model: Model, batch: Batch, texts: Sequence[Text]) -> list[TextPass]:
        """Return one pass for each prompt, which all answers to it share."""
        if _has_texts(model, batch, texts):
            return []
        by_prompt: dict[str, list[Text]] = {}
        for text in texts or [Text()]:
            if text.prompt is None:
                raise TargetError(f"{model.name} answers questions, and none was given", remedy=QUESTION)
            if text.each_word or text.word is not None or text.against:
                remedy = Remedy("leave out word=, each_word= and against=", "leave out --word, --words and --against")
                raise TargetError(f"{model.name} answers with one of its classes and writes no words", remedy=remedy)
            by_prompt.setdefault(text.prompt, []).append(text)
        return [self._pass(model, batch, prompt, same) for prompt, same in by_prompt.items()]

    def _pass(self, model: Model, batch: Batch, prompt: str, texts: Sequence[Text]) -> TextPass:
        refuse_unknown(self.tokenizer, prompt, model.name)
        tokens = self.tokenizer(prompt, return_tensors="pt")
        count, limit = tokens["input_ids"].shape[1], _positions(model.module.config)
        if count > limit:
            raise TargetError(
                f"the prompt is {count} tokens long, and {model.name} has {limit} positions; give a shorter one"
            )
        parameters = inspect.signature(model.module.forward).parameters
        accepted = {name: values for name, values in tokens.items() if name in parameters}
        keywords = {**batch.keywords, **_per_image(batch.images, accepted), "pixel_values": batch.images}
        targets: dict[Text, list[Target]] = {
            text: [Predicted() if text.text is None else Category(text.text)] for text in texts
        }
        return TextPass(Batch((), keywords, batch.images, batch.pictures), targets, model)


def generation_interface(module: Any, processor: Any) -> TextInterface | None:
    """Return how texts become inputs of a transformers model that writes or chooses an answer; None for any other.

    ``processor`` is its processor, or its tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return None
    if image_layout.has_class(module, ("ViltForQuestionAnswering",)):
        return AnswerChoice(tokenizer)
    generator = generator_of(module)
    if generator is None and image_layout.has_images_in_text(module):
        reason = image_layout.why_unsupported(module)
        if reason:
            return UnsupportedTexts(f"{type(module).__name__} {reason}")
        generator = CHAT
    return None if generator is None else Generative(tokenizer, processor, generator)


def read_token_logits(output: ModelOutput) -> Tensor:
    """Return the logits of the next token, batch x position x vocabulary: the model's own, or those of its decoder."""
    if "token logits" in output.intermediates:
        recorded: Tensor = output.intermediates["token logits"][-1]
        return recorded
    logits = output.raw.get("logits") if isinstance(output.raw, Mapping) else None
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        remedy = Remedy("pass target=a callable")
        raise TargetError(f"no logits of tokens are found in the output of {output.model}", remedy=remedy)
    return logits


def _targets(model: Model, text: Text, sentences: Sequence[Sentence], length: int) -> list[Target]:
    """Return the targets of a text: the sentence, one word of it, or the sentence and each of its words."""
    whole = TokenLogProbability(tuple(_span(sentence, sentence.scored, length, None) for sentence in sentences))
    if text.word is None and not text.each_word:  # for single words the prompt would fill the title
        return [replace(whole, prompt=text.prompt)]
    if len(sentences) > 1:
        raise TargetError(
            f"{model.name} writes a different sentence for each of {len(sentences)} images; explain the images one by one, or "
            "give the text"
        )
    sentence = sentences[0]
    if text.word is None:
        return [whole, *(_word_target(sentence, number, length) for number in range(len(sentence.words)))]
    return [_word_target(sentence, _word_number(sentence, text.word), length)]


def _word_target(sentence: Sentence, number: int, length: int) -> TokenLogProbability:
    word, positions = sentence.words[number]
    return TokenLogProbability((_span(sentence, positions, length, word),))


def _word_number(sentence: Sentence, word: int | str) -> int:
    """Find a word by its number, from 0, or as it is written."""
    names = [name for name, _ in sentence.words]
    if not isinstance(word, str):
        if not 0 <= word < len(names):
            raise TargetError(f"there is no word {word} in {sentence.text!r}, which has {len(names)}, from 0 on")
        return word
    for fits in (word.__eq__, lambda name: name.casefold() == word.casefold()):
        matches = [number for number, name in enumerate(names) if fits(name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            numbers = " or ".join(map(str, matches))
            raise TargetError(f"{word!r} occurs {len(matches)} times in {sentence.text!r}; give its number: {numbers}")
    raise TargetError(f"there is no word {word!r} in {sentence.text!r}; {near_names(word, names)}")


def _span(sentence: Sentence, positions: Sequence[int], length: int, word: str | None) -> TokenSpan:
    """Return tokens with the positions of their logits: one before each, counted from the end of a text of this length."""
    logit_positions = tuple(at - length - 1 for at in positions)
    return TokenSpan(sentence.text, tuple(sentence.tokens[at] for at in positions), logit_positions, word)


def _has_texts(model: Model, batch: Batch, texts: Sequence[Text]) -> bool:
    """Return whether the batch brings tokens. Raises TargetError where texts are to be added to these."""
    has_texts = len(batch.arguments) > 1 or any(name in batch.keywords for name in _TEXT_KEYWORDS)
    if has_texts and texts:
        raise TargetError(
            f"the input of {model.name} contains a text already, so no other can be added",
            remedy=Remedy("leave it out, or choose what follows it: target=a token's number, or a callable"),
        )
    return has_texts


def _per_image(images: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Repeat rows of tokens for all images, on their device."""
    return {name: rows.expand(len(images), -1).to(images.device) for name, rows in tokens.items()}


def _end_tokens(module: Any, tokenizer: Any) -> set[int]:
    """Return the tokens that end a sentence, the image token among them."""
    text_config = getattr(module.config, "text_config", module.config)
    owners = (module.generation_config, text_config, tokenizer)
    names = ("eos_token_id", "sep_token_id", "pad_token_id")
    values = [image_layout.image_token(module), *(getattr(owner, name, None) for owner in owners for name in names)]
    lists = [value if isinstance(value, list) else [value] for value in values if value is not None]
    return {int(token) for tokens in lists for token in tokens}


def _positions(config: Any) -> int:
    """Return how many token positions the decoder of a model has."""
    decoder = getattr(config, "decoder", None) or getattr(config, "text_config", None) or config
    return int(getattr(decoder, "max_position_embeddings", None) or 10**9)
