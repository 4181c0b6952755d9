"""Texts for transformers' models that write words: captions, answers to questions, chats; and for those that choose an answer.

The words are put to the model as it was trained on them: each word's logits are those at the place before it, with the words
before it given (teacher forcing), so that one forward pass speaks of all of them.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from glowmap.capture import keep_intermediates
from glowmap.errors import Remedy, TargetError, summarise
from glowmap.inputs import Batch
from glowmap.models.model import AroundForward, Model, TextInterface, TextPass
from glowmap.models.text import UnsupportedTexts, needs_prompt, nested
from glowmap.models.transformers import chat as chats
from glowmap.models.transformers.chat import ids
from glowmap.models.transformers.words import Sentence, continued, refuse_special, refuse_unknown, spelled
from glowmap.outputs import ModelOutput
from glowmap.registry import near_names
from glowmap.targets import Category, Predicted, Target, Text, TokenLogProbability, TokenSpan

_AT_MOST = 64  # tokens that a model says by itself
_BROUGHT = ("input_ids", "decoder_input_ids", "inputs_embeds")
_QUESTION = needs_prompt("red", "what colour is the car?")
_GIVE_A_TEXT = Remedy("give a text: target=targets.Text('...')", "give a text: --text WORDS")
_EACH_TEXT = Remedy("ask for each by itself: target=[..., ...]", "ask for each by itself: a --text for each")


@dataclass(frozen=True)
class Kind:
    """How one kind of model takes its words.

    ``begins`` gives what stands before the first word of the answer, from (writer, module, images, prompt); the words go on from
    there under the keyword ``grows``. ``generating`` makes of it what ``generate`` takes, and ``needs`` is the prompt without
    which the model says nothing of sense.
    """

    begins: Callable[["Generative", Any, Tensor, str | None], "chats.PromptState"]
    grows: str = "input_ids"
    generating: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]] = lambda _module, given: given
    needs: Remedy | None = None
    around_forward: AroundForward = lambda _: nullcontext()


@dataclass(frozen=True)
class Generative:
    """A speaker for models that write: a text is a sentence, or a word of it, that the model would have to write."""

    tokenizer: Any
    processor: Any
    kind: Kind
    generates: ClassVar[bool] = True

    def passes(self, model: Model, batch: Batch, texts: Sequence[Text]) -> list[TextPass]:
        """Give each prompt and sentence a forward pass, which its words share; without any, what the model says itself."""
        if _brought(batch):
            _refuse_beside(model, texts)
            return []
        sentences: dict[tuple[str | None, str | None], list[Text]] = {}
        for text in texts or [Text()]:
            if text.against:
                raise TargetError(
                    f"{model.name} writes one text at a time; the texts of 'against' are for models that compare texts",
                    remedy=_EACH_TEXT,
                )
            sentences.setdefault((text.prompt, text.text), []).append(text)
        return [self._pass(model, batch, prompt, alike) for (prompt, _), alike in sentences.items()]

    def _pass(self, model: Model, batch: Batch, prompt: str | None, texts: Sequence[Text]) -> TextPass:
        if self.kind.needs and prompt is None:
            raise TargetError(f"{model.name} answers what it is asked", remedy=self.kind.needs)
        images, module, text = batch.images, model.module, texts[0].text
        for given_words in filter(None, (prompt, text)):
            refuse_unknown(self.tokenizer, given_words, model.name)
        begun = self.kind.begins(self, module, images, prompt)
        rows = [continued(self.tokenizer, begun, text)] if text is not None else self._own(model, images, begun)
        said = [spelled(self.tokenizer, tokens, text) for tokens in rows]
        for number, sentence in enumerate(said):
            if chats.image_token(module) in sentence.tokens:
                raise TargetError(f"{sentence.text!r} has a place for a picture in it; give words alone")
            if not sentence.scored:
                if text is None:
                    raise TargetError(f"{model.name} says nothing of image {number} by itself", remedy=_GIVE_A_TEXT)
                raise TargetError(f"{model.name} has no words for {text!r}; give a text of words that it knows")
            if text is not None:
                refuse_special(self.tokenizer, sentence, model.name)
        length = max(map(len, rows))
        self._refuse_longer(model, {**begun.given}, length)
        pad = int(
            next((one for one in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if one is not None), 0)
        )
        tokens = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
        given = _on(images, begun.grown(self.kind.grows, tokens), len(images))
        return TextPass(
            Batch((), {**batch.keywords, **given, "pixel_values": images}, images, batch.pictures),
            {text: _targets(model, text, said, length) for text in texts},
            replace(
                model,
                readers=replace(model.readers, token_logits=read_words),
                around_forward=nested(model.around_forward, self.kind.around_forward),
                token_grids=lambda batch: chats.grids(module, batch.images),
            ),
        )

    def _own(self, model: Model, images: Tensor, begun: "chats.PromptState") -> list[list[int]]:
        """Let the model speak: greedily, so that it says the same each time, and up to the token that ends a sentence."""
        module: Any = model.module
        given = _on(images, dict(begun.given), len(images))
        try:
            with torch.no_grad(), model.around_forward(module):
                said = module.generate(
                    **chats.pictures(module, images),
                    **self.kind.generating(module, given),
                    max_new_tokens=min(_AT_MOST, self._room(module, begun)),
                    do_sample=False,
                    num_beams=1,
                    return_dict_in_generate=False,
                )
        except Exception as error:  # a stranger's code
            raise TargetError(
                f"{model.name} cannot be let speak by itself, as its generate(...) raised {summarise(error)}",
                remedy=_GIVE_A_TEXT,
            ) from error
        before = begun.given[self.kind.grows].to(said.device)
        if said.shape[1] >= before.shape[1] and bool((said[:, : before.shape[1]] == before).all()):
            said = said[:, before.shape[1] :]
        ends = _ends(module, self.tokenizer)
        rows = [row.tolist() for row in said]
        return [row[: next((at for at, token in enumerate(row) if token in ends), len(row))] for row in rows]

    def _room(self, module: Any, begun: "chats.PromptState") -> int:
        return max(_positions(module.config) - begun.given[self.kind.grows].shape[1] - 1, 1)

    def _refuse_longer(self, model: Model, given: Mapping[str, Tensor], length: int) -> None:
        limit = _positions(model.module.config)
        for name, tokens in given.items():
            total = tokens.shape[1] + (length if name == self.kind.grows else 0)
            if total > limit:
                raise TargetError(
                    f"the text is too long for {model.name}: {total} tokens of {name}, prompt and pictures among them, and it "
                    f"has {limit} places; give a shorter one"
                )


@dataclass(frozen=True)
class AnswerChoice:
    """A speaker for models that answer a question with one of their classes: the text is the class's name."""

    tokenizer: Any
    generates: ClassVar[bool] = False

    def passes(self, model: Model, batch: Batch, texts: Sequence[Text]) -> list[TextPass]:
        """Give each prompt a forward pass, which all answers to it share."""
        if _brought(batch):
            _refuse_beside(model, texts)
            return []
        prompts: dict[str, list[Text]] = {}
        for text in texts or [Text()]:
            if text.prompt is None:
                raise TargetError(f"{model.name} answers what it is asked", remedy=_QUESTION)
            if text.each_word or text.word is not None or text.against:
                remedy = Remedy("leave out word=, each_word= and against=", "leave out --word, --words and --against")
                raise TargetError(f"{model.name} answers with one of its classes and writes no words", remedy=remedy)
            prompts.setdefault(text.prompt, []).append(text)
        return [self._pass(model, batch, prompt, alike) for prompt, alike in prompts.items()]

    def _pass(self, model: Model, batch: Batch, prompt: str, texts: Sequence[Text]) -> TextPass:
        refuse_unknown(self.tokenizer, prompt, model.name)
        takes = inspect.signature(model.module.forward).parameters
        read = self.tokenizer(prompt, return_tensors="pt")
        given = {name: tokens for name, tokens in read.items() if name in takes}
        limit = _positions(model.module.config)
        if read["input_ids"].shape[1] > limit:
            raise TargetError(
                f"the prompt is {read['input_ids'].shape[1]} tokens long, and {model.name} has {limit} places; give a shorter one"
            )
        images = batch.images
        keywords = {**batch.keywords, **_on(images, given, len(images)), "pixel_values": images}
        targets: dict[Text, list[Target]] = {
            text: [Predicted() if text.text is None else Category(text.text)] for text in texts
        }
        return TextPass(Batch((), keywords, images, batch.pictures), targets, model)


def writer(module: Any, processor: Any) -> TextInterface | None:
    """Say how words are put to a transformers model that writes them, or chooses an answer; None for any other.

    ``processor`` is its processor, or its tokenizer alone.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        return None
    names = [kind.__name__ for kind in type(module).__mro__]
    if "ViltForQuestionAnswering" in names:
        return AnswerChoice(tokenizer)
    kind = next((_KINDS[name] for name in names if name in _KINDS), None)
    if "Blip2ForConditionalGeneration" in names:
        decoder_alone = module.config.use_decoder_only_language_model
        kind = Kind(_blip2) if decoder_alone else Kind(_blip2, "decoder_input_ids", _question_alone)
    if kind is None and chats.reads_pictures(module):
        reason = chats.refusal(module)
        if reason:
            return UnsupportedTexts(f"{type(module).__name__} {reason}")
        kind = Kind(_chat, around_forward=chats.as_rows_and_columns)
    return None if kind is None else Generative(tokenizer, processor, kind)


def read_words(answer: ModelOutput) -> Tensor:
    """Read the logits of the next word at every place, batch x place x vocabulary: the model's own, or those kept inside it."""
    if "words" in answer.intermediates:
        kept: Tensor = answer.intermediates["words"][-1]
        return kept
    logits = answer.raw.get("logits") if isinstance(answer.raw, Mapping) else None
    if not isinstance(logits, Tensor) or logits.ndim != 3:
        remedy = Remedy("pass target=a callable")
        raise TargetError(f"no logits of words are found in the output of {answer.model}", remedy=remedy)
    return logits


def _blip(writer: Generative, module: Any, _images: Tensor, prompt: str | None) -> "chats.PromptState":
    """Begin as BLIP's generate does: with the decoder's own first token in the place of the tokenizer's."""
    return _prompted(writer.tokenizer, [module.config.text_config.bos_token_id], prompt, "input_ids")


def _git(writer: Generative, module: Any, _images: Tensor, prompt: str | None) -> "chats.PromptState":
    return _prompted(writer.tokenizer, [module.config.bos_token_id], prompt, "input_ids")


def _blip_answer(writer: Generative, module: Any, _images: Tensor, prompt: str | None) -> "chats.PromptState":
    question = ids(writer.tokenizer, prompt or "", special=True)
    start = [module.config.text_config.bos_token_id]
    return chats.PromptState({"input_ids": torch.tensor([question]), "decoder_input_ids": torch.tensor([start])})


def _decoder(writer: Generative, module: Any, _images: Tensor, prompt: str | None) -> "chats.PromptState":
    # Donut's prompt is the decoder's first token itself
    own = prompt is not None and "donut" in str(module.config.encoder.model_type)
    return _prompted(writer.tokenizer, [] if own else _starts(module), prompt, "decoder_input_ids")


def _florence(writer: Generative, module: Any, images: Tensor, prompt: str | None) -> "chats.PromptState":
    question = chats.read_prompt(writer.tokenizer, writer.processor, module, images, prompt or "")
    return chats.PromptState({**question.given, "decoder_input_ids": torch.tensor([_starts(module)])})


def _blip2(writer: Generative, module: Any, _images: Tensor, prompt: str | None) -> "chats.PromptState":
    """Begin with a place for each of the querying transformer's outputs, before the language model's own first token."""
    config = module.config
    pictures = [config.image_token_id] * config.num_query_tokens
    read = ids(writer.tokenizer, prompt or "", special=True)
    if not config.use_decoder_only_language_model:
        given = {"input_ids": torch.tensor([pictures + read]), "decoder_input_ids": torch.tensor([_starts(module)])}
        return chats.PromptState(given)
    return _prompted(writer.tokenizer, [*pictures, config.text_config.bos_token_id], prompt, "input_ids")


def _chat(writer: Generative, module: Any, images: Tensor, prompt: str | None) -> "chats.PromptState":
    return chats.read_prompt(writer.tokenizer, writer.processor, module, images, prompt)


def _prompted(tokenizer: Any, start: list[int], prompt: str | None, name: str) -> "chats.PromptState":
    tokens = [*start, *(ids(tokenizer, prompt) if prompt else [])]
    return chats.PromptState({name: torch.tensor([tokens])}, before=prompt or "", gap=" " if prompt else "")


def _starts(module: Any) -> list[int]:
    """Tell with which tokens a decoder begins that has an encoder: those with which it is made to begin when it generates."""
    configs = [
        module.generation_config,
        module.config,
        getattr(module.config, "text_config", None),
        getattr(module.config, "decoder", None),
    ]

    def first(name: str) -> int | None:
        found = (getattr(config, name, None) for config in configs)
        return next((int(one) for one in found if one is not None), None)

    start = next((one for one in (first("decoder_start_token_id"), first("bos_token_id")) if one is not None), None)
    if start is None:
        raise TargetError(
            f"the config of {type(module).__name__} does not say with which token it begins to write; "
            "set model.config.decoder_start_token_id"
        )
    forced = first("forced_bos_token_id")
    return [start] if forced is None else [start, forced]


def _with_end(module: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """End the prompt, as BLIP's generate takes the last token off."""
    end = torch.full_like(given["input_ids"][:, :1], int(module.config.text_config.sep_token_id))
    return {"input_ids": torch.cat([given["input_ids"], end], 1)}


def _question_alone(_module: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tokens for name, tokens in given.items() if name != "decoder_input_ids"}


def _decoder_opened(module: nn.Module) -> AbstractContextManager[None]:
    """Keep the logits of the words, which BLIP leaves out of what it answers to a question."""
    return keep_intermediates(
        module, {"words": (module.get_submodule("text_decoder"), lambda _arguments, _keywords, output: output.logits)}
    )


_KINDS: dict[str, Kind] = {
    "BlipForConditionalGeneration": Kind(_blip, generating=_with_end),
    "BlipForQuestionAnswering": Kind(
        _blip_answer, "decoder_input_ids", _question_alone, needs=_QUESTION, around_forward=_decoder_opened
    ),
    "GitForCausalLM": Kind(_git),
    "VisionEncoderDecoderModel": Kind(_decoder, "decoder_input_ids"),
    "Florence2ForConditionalGeneration": Kind(_florence, "decoder_input_ids", needs=needs_prompt("...", "<CAPTION>")),
}


def _targets(model: Model, text: Text, said: Sequence[Sentence], length: int) -> list[Target]:
    """Make questions of a text: the sentence, a word of it, or the sentence and each of its words."""
    whole = TokenLogProbability(tuple(_spoken(one, one.scored, length, None) for one in said))
    if text.word is None and not text.each_word:  # word by word a title would be lost among prompts
        return [replace(whole, prompt=text.prompt)]
    if len(said) > 1:
        raise TargetError(
            f"{model.name} says a sentence of its own of each of {len(said)} images, whose words differ; explain the images one "
            "by one, or give the text"
        )
    one = said[0]
    if text.word is None:
        return [whole, *(_word(one, number, length) for number in range(len(one.words)))]
    return [_word(one, _number(one, text.word), length)]


def _word(sentence: Sentence, number: int, length: int) -> TokenLogProbability:
    written, tokens = sentence.words[number]
    return TokenLogProbability((_spoken(sentence, tokens, length, written),))


def _number(sentence: Sentence, word: int | str) -> int:
    """Find a word by its place from 0 or as it is written."""
    names = [name for name, _ in sentence.words]
    if not isinstance(word, str):
        if not 0 <= word < len(names):
            raise TargetError(f"there is no word {word} in {sentence.text!r}, which has {len(names)}, from 0 on")
        return word
    for fits in (word.__eq__, lambda name: name.casefold() == word.casefold()):
        found = [number for number, name in enumerate(names) if fits(name)]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = " or ".join(map(str, found))
            raise TargetError(f"{word!r} stands {len(found)} times in {sentence.text!r}; give its number: {numbers}")
    raise TargetError(f"there is no word {word!r} in {sentence.text!r}; {near_names(word, names)}")


def _spoken(sentence: Sentence, tokens: Sequence[int], length: int, word: str | None) -> TokenSpan:
    """Say where the logits of some tokens are found: at the place before each, counted from the end of a text so long."""
    places = tuple(at - length - 1 for at in tokens)
    return TokenSpan(sentence.text, tuple(sentence.tokens[at] for at in tokens), places, word)


def _brought(batch: Batch) -> bool:
    return len(batch.arguments) > 1 or any(name in batch.keywords for name in _BROUGHT)


def _refuse_beside(model: Model, texts: Sequence[Text]) -> None:
    if texts:
        raise TargetError(
            f"the input of {model.name} brings words of its own beside the pictures, so no text can be put there",
            remedy=Remedy("leave them out, or ask about what they lead to: target=a token's number, or a callable"),
        )


def _on(images: Tensor, given: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Give each image its row of tokens, on the images' device."""
    return {name: tokens.expand(count, -1).to(images.device) for name, tokens in given.items()}


def _ends(module: Any, tokenizer: Any) -> set[int]:
    """List the tokens that end a sentence; one that stands for a picture cannot be part of it."""
    texts = getattr(module.config, "text_config", module.config)
    places = (module.generation_config, texts, tokenizer)
    names = ("eos_token_id", "sep_token_id", "pad_token_id")
    found = [chats.image_token(module), *(getattr(place, name, None) for place in places for name in names)]
    return {int(one) for ends in found if ends is not None for one in (ends if isinstance(ends, list) else [ends])}


def _positions(config: Any) -> int:
    """Tell how many tokens the part of a model that writes has places for."""
    own = getattr(config, "decoder", None) or getattr(config, "text_config", None) or config
    return int(getattr(own, "max_position_embeddings", None) or 10**9)
