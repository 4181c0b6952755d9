"""Models that compare or match pictures with texts: how texts become inputs, each embedded once for all passes of a call."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import method_patched
from glowmap.errors import Remedy, TargetError
from glowmap.inputs import Batch
from glowmap.models.model import AroundForward, Model, TextPass
from glowmap.targets import Category, Contrast, Target, Text

PROMPT = "a photo of a {}"  # Radford et al., ICML 2021, arXiv:2103.00020, section 3.1.4
_PLACEHOLDER = "a photo"  # for a module that needs a text, where no target reads its score
# From texts to keywords of the module, one row of tokens a text. Raises TargetError for a text that would be cut.
Tokens: TypeAlias = Callable[[Sequence[str]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Contrastive:
    """Texts for a model with an image and a text encoder: all in one pass, each a class whose logit is its similarity.

    The model's class names become prompts ("a photo of a dog"). Targets without texts get a pass with these alone. A pass with
    further texts has the prompts first, and a text equal to a prompt is that class.

    ``images_keyword`` and ``texts_keyword`` are the keywords of the module. ``cached_texts`` is a context in which each text is
    encoded once. ``are_exclusive`` is True where the similarities were trained with a softmax over texts (CLIP), False where
    with a sigmoid each (SigLIP). ``needs_text`` is False where the module takes images alone.
    """

    tokens: Tokens
    cached_texts: AroundForward
    are_exclusive: bool
    images_keyword: str = "pixel_values"
    texts_keyword: str = "input_ids"
    needs_text: bool = True

    generates: ClassVar[bool] = False

    def passes(self, model: Model, batch: Batch, texts: Sequence[Text]) -> Sequence[TextPass]:
        """Return one pass for class names, where there are some, and one for all texts."""
        if _has_texts(model, batch, self.texts_keyword, texts):
            return []
        prompts = [PROMPT.format(name) for name in model.class_names or ()]
        sentences = {text: _sentences(model, text) for text in texts}
        further = list(
            dict.fromkeys(sentence for row in sentences.values() for sentence in row if sentence not in prompts)
        )
        self._refuse_equal_tokens(model, list(dict.fromkeys([*prompts, *further])))
        # the probability of a class must not depend on the texts of the same call
        groups: list[list[str]] = [[], further] if prompts and further else [further]
        return [self._pass(model, batch, prompts, group, sentences) for group in groups]

    def _refuse_equal_tokens(self, model: Model, sentences: Sequence[str]) -> None:
        """Refuse different texts with the same tokens ("a dog", "A dog"): a map of their difference would be rounding noise."""
        if len(sentences) < 2:
            return
        rows = [tuple(row.flatten().tolist()) for row in self.tokens(sentences)[self.texts_keyword]]
        sentence_of = dict(zip(rows, sentences, strict=True))
        for row, sentence in zip(rows, sentences, strict=True):
            if sentence_of[row] != sentence:
                raise TargetError(
                    f"{sentence!r} and {sentence_of[row]!r} are the same tokens to {model.name}; give one of them"
                )

    def _pass(
        self,
        model: Model,
        batch: Batch,
        prompts: Sequence[str],
        further: Sequence[str],
        sentences: Mapping[Text, Sequence[str]],
    ) -> TextPass:
        """Put prompts and further sentences in one pass, with targets for the texts that consist of these."""
        rows = [*prompts, *further] or [_PLACEHOLDER] * self.needs_text
        with_texts = _with_texts(batch, self.images_keyword, self.tokens(rows)) if rows else batch
        classes = {sentence: Category(rows.index(sentence)) for sentence in (*prompts, *further)}
        targets = {text: (_similarity(text, classes),) for text, row in sentences.items() if set(row) <= set(classes)}
        scoring = replace(
            model,
            class_names=(*(model.class_names or ()), *map(repr, further)),
            readers=replace(model.readers, are_exclusive=self.are_exclusive),
            around_forward=nested(model.around_forward, self.cached_texts),
        )
        return TextPass(with_texts, targets, scoring)


@dataclass(frozen=True)
class Matching:
    """Texts for a model that reads picture and text together: one pass for each text, whose score is the logit of a match.

    That logit is number ``match`` of ``outputs``; where there are two, the other means no match.
    """

    tokens: Tokens
    match: int
    outputs: int
    images_keyword: str = "pixel_values"
    texts_keyword: str = "input_ids"

    generates: ClassVar[bool] = False

    def passes(self, model: Model, batch: Batch, texts: Sequence[Text]) -> Sequence[TextPass]:
        """Return one pass for each text, which is repeated for all images."""
        if _has_texts(model, batch, self.texts_keyword, texts):
            return []
        if model.class_names is not None:
            raise TargetError(
                f"{model.name} reads each text together with the picture and has no classes",
                remedy=Remedy(
                    "leave classes=... out and give each text as a target: target=[targets.Text(...), targets.Text(...)]",
                    "give each text as a target: a --text for each",
                ),
            )
        if not texts:
            return [TextPass(self._with_text(batch, _PLACEHOLDER), {}, replace(model, class_names=()))]
        return [self._pass(model, batch, text) for text in texts]

    def _pass(self, model: Model, batch: Batch, text: Text) -> TextPass:
        sentence, *against = _sentences(model, text)
        if against:
            raise TargetError(
                f"{model.name} reads each text in a separate pass, so {text.text!r} cannot be contrasted with "
                f"{' and '.join(map(repr, against))}",
                remedy=Remedy(
                    "give each text as a target: target=[targets.Text(...), targets.Text(...)]",
                    "give each text as a target: a --text for each",
                ),
            )
        names = tuple(repr(sentence) if index == self.match else f"not {sentence!r}" for index in range(self.outputs))
        # one output ranks texts; the softmax of two is the probability of a match
        scoring = replace(model, class_names=names, readers=replace(model.readers, are_exclusive=True))
        return TextPass(self._with_text(batch, sentence), {text: (Category(self.match),)}, scoring)

    def _with_text(self, batch: Batch, text: str) -> Batch:
        """Add the same row of tokens for each image."""
        rows = {name: row.repeat(len(batch.images), 1) for name, row in self.tokens([text]).items()}
        return _with_texts(batch, self.images_keyword, rows)


@dataclass(frozen=True)
class UnsupportedTexts:
    """A model that takes texts in a form that Glowmap cannot make: every text is refused with the ``reason``."""

    reason: str

    generates: ClassVar[bool] = False

    def passes(self, _model: Model, batch: Batch, texts: Sequence[Text]) -> Sequence[TextPass]:
        """Refuse texts, and a batch that brings no tokens itself."""
        if texts or not (len(batch.arguments) > 1 or "input_ids" in batch.keywords):
            raise TargetError(
                f"{self.reason}, so no text can be added to the picture",
                remedy=Remedy(
                    "give all that the model takes as a dict of keywords, and target=a token's number, or a callable"
                ),
            )
        return []


def needs_prompt(text: str, prompt: str) -> Remedy:
    """Return the remedy for a text without a prompt, where the model needs one."""
    return Remedy(
        f"give a prompt: targets.Text({text!r}, prompt={prompt!r})",
        f"give a prompt: --text {text!r} --prompt {prompt!r}",
    )


def nested(outer: AroundForward, inner: AroundForward) -> AroundForward:
    """Enter two contexts around each forward pass."""

    @contextmanager
    def entered(module: nn.Module) -> Iterator[None]:
        with outer(module), inner(module):
            yield

    return entered


@contextmanager
def memoised(owner: Any, name: str) -> Iterator[None]:
    """Compute a method of an object once for each input, without a graph, while the context lasts and in this thread only.

    For methods that encode texts: the embeddings are the same in every pass. An input that repeats one row of an earlier input
    counts as the same. When a batch is cut down to one image, texts that happen to be as many as the images are cut with it, to
    one text, although they are classes.
    """
    calls: list[tuple[Any, list[Tensor], Any]] = []  # (arguments without tensors, their tensors, output)

    def cached(original: Any, *arguments: Any, **keywords: Any) -> Any:
        tensors, rest = list(tree.leaves([arguments, keywords])), tree.map([arguments, keywords], _left_out)
        for earlier_rest, earlier, output in calls:
            if earlier_rest == rest and len(earlier) == len(tensors) and _are_equal_or_one_row(earlier, tensors):
                return tree.map(output, _same)
        copies = [tensor.clone() for tensor in tensors]  # the model may write into its input
        with torch.no_grad():
            output = original(*arguments, **keywords)
        calls.append((rest, copies, tree.map(output, _same)))
        return output

    with method_patched(owner, name, cached):
        yield


def _are_equal_or_one_row(earlier: Sequence[Tensor], tensors: Sequence[Tensor]) -> bool:
    """Return whether tensors equal earlier ones, or all of their rows equal one row of these."""
    if all(map(torch.equal, earlier, tensors)):
        return True
    pairs = list(zip(tensors, earlier, strict=True))
    if any(tensor.ndim == 0 or tensor.shape[1:] != before.shape[1:] for tensor, before in pairs):
        return False
    rows = min((len(before) for before in earlier), default=0)
    return any(all(bool((tensor == before[row]).all()) for tensor, before in pairs) for row in range(rows))


def _left_out(_: Tensor) -> Any:
    return None


def _same(tensor: Tensor) -> Tensor:
    return tensor  # tree.map copies the structure around it, into which a model may write


def _has_texts(model: Model, batch: Batch, keyword: str, texts: Sequence[Text]) -> bool:
    """Return whether the batch brings texts. Raises TargetError where more are to be added: their scores would be mixed up."""
    if keyword not in batch.keywords and len(batch.arguments) < 2:
        return False
    if texts:
        raise TargetError(
            f"{model.name} was given texts together with the pictures, which are its classes",
            remedy=Remedy(
                f"choose one by index, target=0, or give the pictures alone and target=targets.Text({texts[0].text!r})"
            ),
        )
    return True


def _sentences(model: Model, text: Text) -> tuple[str, ...]:
    """Return the sentence of a text and those that it is contrasted with. Raises TargetError for options of writing models."""
    for noun, is_given in (
        (f"the prompt {text.prompt!r}", text.prompt is not None),
        (f"the word {text.word!r}", text.word is not None),
        ("each_word", text.each_word),
    ):
        if is_given:
            raise TargetError(
                f"{noun} is for models that write, and {model.name} scores a sentence as a whole",
                remedy=Remedy(
                    "give the sentence alone: targets.Text(sentence)", "give the sentence alone: --text SENTENCE"
                ),
            )
    if text.text is None:
        raise TargetError(
            f"{model.name} writes no text",
            remedy=Remedy(
                "give a sentence: targets.Text('a photo of a dog')", "give a sentence: --text 'a photo of a dog'"
            ),
        )
    return (text.text, *text.against)


def _similarity(text: Text, classes: Mapping[str, Category]) -> Target:
    assert text.text is not None
    category = classes[text.text]
    return Contrast(category, [classes[sentence] for sentence in text.against]) if text.against else category


def _with_texts(batch: Batch, images_keyword: str, texts: Mapping[str, Tensor]) -> Batch:
    """Give the module images and texts by keyword, because the order of its arguments differs from model to model."""
    images = {images_keyword: batch.images} if batch.arguments else {}
    tokens = {name: tensor.to(batch.images.device) for name, tensor in texts.items()}
    return Batch((), {**batch.keywords, **images, **tokens}, batch.images, batch.pictures)
