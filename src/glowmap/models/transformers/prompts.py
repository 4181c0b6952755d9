"""The input of a model that writes, up to the first word of its answer: prompt, image tokens, start tokens."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from glowmap.capture import keep_intermediates
from glowmap.errors import Remedy, TargetError, summarise
from glowmap.models.model import AroundForward
from glowmap.models.text import needs_prompt
from glowmap.models.transformers import images as image_layout

QUESTION = needs_prompt("red", "what colour is the car?")


@dataclass(frozen=True)
class PromptState:
    """The input before the first word of an answer: ``tokens`` by keyword, one row each.

    ``text`` is the prompt that was tokenized, and ``gap`` the characters between it and the answer. ``token_types`` maps keywords
    that have an entry for each token to the entry of an answer's token.
    """

    tokens: Mapping[str, Tensor]
    text: str = ""
    gap: str = ""
    token_types: Mapping[str, int] | None = None

    def with_answer(self, keyword: str, answer: Tensor) -> dict[str, Tensor]:
        """Append tokens of an answer (image x token, or one row for all) under a keyword, and extend the token types."""
        token_types = self.token_types or {}
        extended = {keyword: torch.cat([self.tokens[keyword].expand(len(answer), -1), answer], 1)}
        for name, value in token_types.items():
            entries = torch.full_like(answer, value)
            extended[name] = torch.cat([self.tokens[name].expand(len(answer), -1), entries], 1)
        return {**self.tokens, **extended}


@dataclass(frozen=True)
class Generator:
    """How one class of models that write takes its tokens.

    ``start`` returns the input before the first word of the answer, from (tokenizer, processor, module, images, prompt). The
    answer follows under ``answer_keyword``. ``to_generate`` turns that input into the keywords of the module's ``generate``.
    ``without_prompt`` is the remedy where there is no prompt, for models whose answer makes no sense without one.
    """

    start: Callable[[Any, Any, Any, Tensor, str | None], PromptState]
    answer_keyword: str = "input_ids"
    to_generate: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]] = lambda _module, tokens: tokens
    without_prompt: Remedy | None = None
    around_forward: AroundForward = lambda _: nullcontext()


def token_ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """Tokenize a text; ``special`` adds the special tokens. Raises TargetError where the tokenizer fails."""
    try:
        return [int(token) for token in tokenizer(text, add_special_tokens=special)["input_ids"]]
    except Exception as error:  # the library's code
        raise TargetError(
            f"the tokenizer raised {summarise(error)} on {text!r}; check that it belongs to this model"
        ) from error


def generator_of(module: Any) -> Generator | None:
    """Return how a module that writes takes its tokens; None for other modules, and for chats, which use ``CHAT``."""
    names = [kind.__name__ for kind in type(module).__mro__]
    if "Blip2ForConditionalGeneration" in names:
        if module.config.use_decoder_only_language_model:
            return Generator(_start_blip2)
        return Generator(_start_blip2, "decoder_input_ids", _without_decoder_tokens)
    return next((_GENERATORS[name] for name in names if name in _GENERATORS), None)


def _start_blip(tokenizer: Any, _processor: Any, module: Any, _images: Tensor, prompt: str | None) -> PromptState:
    """Start as BLIP's generate does, with the decoder's start token in place of the tokenizer's."""
    return _with_prompt(tokenizer, [module.config.text_config.bos_token_id], prompt, "input_ids")


def _start_git(tokenizer: Any, _processor: Any, module: Any, _images: Tensor, prompt: str | None) -> PromptState:
    return _with_prompt(tokenizer, [module.config.bos_token_id], prompt, "input_ids")


def _start_blip_answer(
    tokenizer: Any, _processor: Any, module: Any, _images: Tensor, prompt: str | None
) -> PromptState:
    question = token_ids(tokenizer, prompt or "", special=True)
    start = [module.config.text_config.bos_token_id]
    return PromptState({"input_ids": torch.tensor([question]), "decoder_input_ids": torch.tensor([start])})


def _start_decoder(tokenizer: Any, _processor: Any, module: Any, _images: Tensor, prompt: str | None) -> PromptState:
    # Donut's prompt replaces the start token of the decoder
    has_start = prompt is not None and "donut" in str(module.config.encoder.model_type)
    return _with_prompt(tokenizer, [] if has_start else _start_tokens(module), prompt, "decoder_input_ids")


def _start_florence(tokenizer: Any, processor: Any, module: Any, images: Tensor, prompt: str | None) -> PromptState:
    question = chat_prompt(tokenizer, processor, module, images, prompt or "")
    return PromptState({**question.tokens, "decoder_input_ids": torch.tensor([_start_tokens(module)])})


def _start_blip2(tokenizer: Any, _processor: Any, module: Any, _images: Tensor, prompt: str | None) -> PromptState:
    """Start with an image token for each output of the querying transformer, then the language model's start token."""
    config = module.config
    image_tokens = [config.image_token_id] * config.num_query_tokens
    question = token_ids(tokenizer, prompt or "", special=True)
    if not config.use_decoder_only_language_model:
        start = torch.tensor([_start_tokens(module)])
        return PromptState({"input_ids": torch.tensor([image_tokens + question]), "decoder_input_ids": start})
    return _with_prompt(tokenizer, [*image_tokens, config.text_config.bos_token_id], prompt, "input_ids")


def _with_prompt(tokenizer: Any, start: list[int], prompt: str | None, keyword: str) -> PromptState:
    tokens = [*start, *(token_ids(tokenizer, prompt) if prompt else [])]
    return PromptState({keyword: torch.tensor([tokens])}, text=prompt or "", gap=" " if prompt else "")


def _start_tokens(module: Any) -> list[int]:
    """Return the tokens with which the decoder of an encoder-decoder starts when it generates."""
    configs = [
        module.generation_config,
        module.config,
        getattr(module.config, "text_config", None),
        getattr(module.config, "decoder", None),
    ]

    def first(name: str) -> int | None:
        values = (getattr(config, name, None) for config in configs)
        return next((int(value) for value in values if value is not None), None)

    candidates = (first("decoder_start_token_id"), first("bos_token_id"))
    start = next((token for token in candidates if token is not None), None)
    if start is None:
        raise TargetError(
            f"the config of {type(module).__name__} does not say with which token it begins to write; "
            "set model.config.decoder_start_token_id"
        )
    forced = first("forced_bos_token_id")
    return [start] if forced is None else [start, forced]


def _with_end_token(module: Any, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    """Append an end token to the prompt, because BLIP's generate removes the last token."""
    end = torch.full_like(tokens["input_ids"][:, :1], int(module.config.text_config.sep_token_id))
    return {"input_ids": torch.cat([tokens["input_ids"], end], 1)}


def _without_decoder_tokens(_module: Any, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values for name, values in tokens.items() if name != "decoder_input_ids"}


def _with_decoder_logits(module: nn.Module) -> AbstractContextManager[None]:
    """Record the logits of BLIP's decoder, which its output for a question lacks."""
    decoder = module.get_submodule("text_decoder")
    return keep_intermediates(module, {"token logits": (decoder, lambda _arguments, _keywords, output: output.logits)})


_GENERATORS: dict[str, Generator] = {
    "BlipForConditionalGeneration": Generator(_start_blip, to_generate=_with_end_token),
    "BlipForQuestionAnswering": Generator(
        _start_blip_answer,
        "decoder_input_ids",
        _without_decoder_tokens,
        without_prompt=QUESTION,
        around_forward=_with_decoder_logits,
    ),
    "GitForCausalLM": Generator(_start_git),
    "VisionEncoderDecoderModel": Generator(_start_decoder, "decoder_input_ids"),
    "Florence2ForConditionalGeneration": Generator(
        _start_florence, "decoder_input_ids", without_prompt=needs_prompt("...", "<CAPTION>")
    ),
}


def chat_prompt(tokenizer: Any, processor: Any, module: Any, images: Tensor, prompt: str | None) -> PromptState:
    """Tokenize a prompt with the image before it, by the model's chat template, its processor, or its tokenizer.

    Raises TargetError where the result has no place for an image, or several.
    """
    text, gap = _templated(tokenizer, processor, prompt)
    image_token = image_layout.image_token(module) or 0  # a model without such a token is refused below
    tokens = _tokenized(tokenizer, processor, text, images)
    starts = [
        at for at, token in enumerate(tokens) if token == image_token and (at == 0 or tokens[at - 1] != image_token)
    ]
    if len(starts) != 1:
        raise TargetError(
            f"the prompt of {type(module).__name__} has {len(starts)} places for pictures, where one is given",
            remedy=Remedy(
                "write a prompt without placeholders, and give the model's own processor: glowmap.load(module, processor=...)"
            ),
        )
    start = starts[0]
    end = next((at for at in range(start, len(tokens)) if tokens[at] != image_token), len(tokens))
    image_tokens = [image_token] * image_layout.token_count(module, images)
    row = torch.tensor([[*tokens[:start], *image_tokens, *tokens[end:]]])
    types, answer_types = _token_types(module, row.eq(image_token))
    return PromptState({"input_ids": row, **types}, text, gap, answer_types)


CHAT = Generator(chat_prompt, around_forward=image_layout.as_rows_and_columns)  # a language model with image tokens


def _token_types(module: Any, is_image: Tensor) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the token types of a prompt and of an answer, for models that take them: 1 for image tokens."""
    parameters = inspect.signature(module.forward).parameters
    types: dict[str, Tensor] = {}
    answer_types: dict[str, int] = {}
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in parameters:
            # PaliGemma attends in both directions within the prompt (0), and only backwards within the answer (1)
            marks_answer = name == "token_type_ids" and image_layout.has_class(
                module, ("PaliGemmaForConditionalGeneration",)
            )
            types[name] = torch.zeros_like(is_image, dtype=torch.long) if marks_answer else is_image.long()
            answer_types[name] = int(marks_answer)
    return types, answer_types


def _templated(tokenizer: Any, processor: Any, prompt: str | None) -> tuple[str, str]:
    """Return the prompt as a text with a placeholder for the image, and the characters between it and the answer."""
    content: list[dict[str, Any]] = [{"type": "image"}, *([{"type": "text", "text": prompt}] if prompt else [])]
    question = {"role": "user", "content": content}
    owner = next((owner for owner in (processor, tokenizer) if getattr(owner, "chat_template", None)), None)
    if owner is None:
        placeholder = _placeholder(tokenizer, processor)
        text = prompt or ""
        return text if placeholder in text else placeholder + text, ""
    answer = {"role": "assistant", "content": [{"type": "text", "text": "x"}]}
    try:
        text = str(owner.apply_chat_template([question], tokenize=False, add_generation_prompt=True))
        with_answer = str(owner.apply_chat_template([question, answer], tokenize=False, continue_final_message=True))
    except Exception as error:  # a template may raise anything
        raise TargetError(
            f"the chat template raised {summarise(error)}; check that the processor belongs to this model"
        ) from error
    gap = with_answer[len(text) : -1] if with_answer.startswith(text) and with_answer.endswith("x") else ""
    return text, gap


def _placeholder(tokenizer: Any, processor: Any) -> str:
    tokens = (getattr(owner, "image_token", None) for owner in (processor, tokenizer))
    return str(next((token for token in tokens if token is not None), "<image>"))


def _tokenized(tokenizer: Any, processor: Any, text: str, images: Tensor) -> list[int]:
    """Tokenize the prompt with the processor, which may add tokens around the image, or with the tokenizer alone."""
    start = getattr(tokenizer, "bos_token", None)
    special = not (start and text.startswith(start))  # a template may have written the start token
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is None:
        return token_ids(tokenizer, text, special=special)
    grey = Image.new("RGB", (images.shape[-1], images.shape[-2]), (127, 127, 127))
    accepted = {
        *getattr(processor, "images_kwargs", {}),
        *getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {}),
    }
    try:
        inputs = processor(
            images=grey, text=text, add_special_tokens=special, **image_layout.one_tile_options(accepted)
        )
    except Exception as error:  # the library's code
        raise TargetError(
            f"the processor raised {summarise(error)} on the prompt {text!r}; check that it belongs to this model"
        ) from error
    tokens = inputs["input_ids"]
    return [int(token) for token in (tokens[0] if len(tokens) == 1 and not isinstance(tokens[0], int) else tokens)]
