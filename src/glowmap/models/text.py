"""Models that judge pictures by texts: how texts are put beside the pictures, and embedded once for many questions."""

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
_ANY = "a photo"  # stands where a module takes no picture without a text, and nothing asks about the text
# Texts as keywords of the module, a row of tokens a text; TargetError for a text that the model cannot take whole.
Tokens: TypeAlias = Callable[[Sequence[str]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Contrastive:
    """How texts are put to a model of two towers: all in one pass, each as a class whose logit is its likeness to the picture.

    The model's class names become prompts ("a photo of a dog"), in a pass of their own for what is asked of classes alone; they
    stand before other texts too, and a text that is one of them is that class. ``pictures`` and ``texts`` are the
    keywords under which the module takes either, ``once`` keeps what it makes of the texts from one pass to the next,
    ``exclusive`` says whether the likenesses were trained as a softmax over the texts (CLIP) or each by itself (SigLIP), and
    ``alone`` whether the module takes pictures without texts.
    """

    tokens: Tokens
    once: AroundForward
    exclusive: bool
    pictures: str = "pixel_values"
    texts: str = "input_ids"
    alone: bool = False

    generates: ClassVar[bool] = False  # it judges

    def passes(self, model: Model, batch: Batch, texts: Sequence[Text]) -> Sequence[TextPass]:
        """Put class names and texts beside the pictures, as :meth:`TextInterface.passes` says."""
        if _given(model, batch, self.texts, texts):
            return []
        prompts = [PROMPT.format(name) for name in model.class_names or ()]
        asked = {text: _sentences(model, text) for text in texts}
        others = list(dict.fromkeys(one for own in asked.values() for one in own if one not in prompts))
        # a class is likely among classes: what else is asked in the same call is no matter of theirs
        self._refuse_alike(model, list(dict.fromkeys([*prompts, *others])))
        groups: list[list[str]] = [[], others] if prompts and others else [others]
        return [self._pass(model, batch, prompts, group, asked) for group in groups]

    def _refuse_alike(self, model: Model, sentences: Sequence[str]) -> None:
        """Refuse texts that are one to the model, as "a dog" and "A dog" are to many: a map of their difference is rounding."""
        if len(sentences) < 2:
            return
        rows = [tuple(row.flatten().tolist()) for row in self.tokens(sentences)[self.texts]]
        known = dict(zip(rows, sentences, strict=True))
        for row, sentence in zip(rows, sentences, strict=True):
            if known[row] != sentence:
                raise TargetError(
                    f"{sentence!r} and {known[row]!r} are the same tokens to {model.name}; ask about one of them"
                )

    def _pass(
        self,
        model: Model,
        batch: Batch,
        prompts: Sequence[str],
        others: Sequence[str],
        asked: Mapping[Text, Sequence[str]],
    ) -> TextPass:
        """Put the prompts of classes and other sentences in one pass, for those of the texts that are made of them."""
        sentences = [*prompts, *others] or [_ANY] * (not self.alone)
        with_texts = _beside(batch, self.pictures, self.tokens(sentences)) if sentences else batch
        classes = {sentence: Category(sentences.index(sentence)) for sentence in (*prompts, *others)}
        targets = {text: (_likeness(text, classes),) for text, own in asked.items() if set(own) <= set(classes)}
        names = (*(model.class_names or ()), *map(repr, others))
        scoring = replace(
            model,
            class_names=names,
            readers=replace(model.readers, are_exclusive=self.exclusive),
            around_forward=nested(model.around_forward, self.once),
        )
        return TextPass(with_texts, targets, scoring)


@dataclass(frozen=True)
class Matching:
    """How texts are put to a model that reads a text with the picture: a pass each, whose score is the logit of a match.

    ``match`` is the place of that logit among so many ``outputs``; the other, if there is one, speaks for no match.
    """

    tokens: Tokens
    match: int
    outputs: int
    pictures: str = "pixel_values"
    texts: str = "input_ids"

    generates: ClassVar[bool] = False  # it judges

    def passes(self, model: Model, batch: Batch, texts: Sequence[Text]) -> Sequence[TextPass]:
        """Put one text beside all pictures in each pass, as :meth:`TextInterface.passes` says."""
        if _given(model, batch, self.texts, texts):
            return []
        if model.class_names is not None:
            raise TargetError(
                f"{model.name} reads each text together with the picture and has no classes",
                remedy=Remedy(
                    "leave classes=... out and ask about each by itself: target=[targets.Text(...), targets.Text(...)]",
                    "ask about each by itself: a --text for each",
                ),
            )
        if not texts:
            return [TextPass(self._beside(batch, _ANY), {}, replace(model, class_names=()))]
        return [self._one(model, batch, text) for text in texts]

    def _one(self, model: Model, batch: Batch, text: Text) -> TextPass:
        sentence, *others = _sentences(model, text)
        if others:
            raise TargetError(
                f"{model.name} reads each text in a pass of its own, so {text.text!r} cannot be set against "
                f"{' and '.join(map(repr, others))}",
                remedy=Remedy(
                    "ask about each by itself: target=[targets.Text(...), targets.Text(...)]",
                    "ask about each by itself: a --text for each",
                ),
            )
        names = tuple(repr(sentence) if at == self.match else f"not {sentence!r}" for at in range(self.outputs))
        # one output ranks texts; the softmax of two is the probability of a match
        scoring = replace(model, class_names=names, readers=replace(model.readers, are_exclusive=True))
        return TextPass(self._beside(batch, sentence), {text: (Category(self.match),)}, scoring)

    def _beside(self, batch: Batch, text: str) -> Batch:
        """Give each picture a row of the same tokens."""
        rows = {name: one.repeat(len(batch.images), 1) for name, one in self.tokens([text]).items()}
        return _beside(batch, self.pictures, rows)


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
def remembering(owner: Any, name: str) -> Iterator[None]:
    """Let a function of an object compute once for each input, without a graph, and hand that back when it is called again.

    In this thread alone, and only while the context lasts. For what turns texts into embeddings: they are the same in every
    further pass. An input that is one row of an earlier one, however often, counts as the same: texts that happen to be as many
    as the pictures are cut with them when one picture is asked about, and are classes all the same.
    """
    known: list[tuple[Any, list[Tensor], Any]] = []

    def remembered(original: Any, *arguments: Any, **keywords: Any) -> Any:
        given, apart = list(tree.leaves([arguments, keywords])), tree.map([arguments, keywords], _left_out)
        for others, tensors, output in known:
            if others == apart and len(tensors) == len(given) and _same_or_one_row(tensors, given):
                return tree.map(output, _itself)
        tensors = [one.clone() for one in given]  # the model may write into what it is given
        with torch.no_grad():
            output = original(*arguments, **keywords)
        known.append((apart, tensors, tree.map(output, _itself)))
        return output

    with method_patched(owner, name, remembered):
        yield


def _same_or_one_row(known: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    if all(map(torch.equal, known, given)):
        return True
    if any(one.ndim == 0 or one.shape[1:] != own.shape[1:] for one, own in zip(given, known, strict=True)):
        return False
    rows = min((len(own) for own in known), default=0)
    return any(all(bool((one == own[row]).all()) for one, own in zip(given, known, strict=True)) for row in range(rows))


def _left_out(_: Tensor) -> Any:
    return None


def _itself(tensor: Tensor) -> Tensor:
    return tensor  # mapped copies the structure around it, into which a model may write


def _given(model: Model, batch: Batch, keyword: str, texts: Sequence[Text]) -> bool:
    """Tell whether the texts came with the pictures; then no others can be put, as their answers would not be told apart."""
    if keyword not in batch.keywords and len(batch.arguments) < 2:
        return False
    if texts:
        raise TargetError(
            f"{model.name} was given texts of its own beside the pictures, which are its classes",
            remedy=Remedy(
                f"ask about them by index, target=0, or give the pictures alone and ask target=targets.Text({texts[0].text!r})"
            ),
        )
    return True


def _sentences(model: Model, text: Text) -> tuple[str, ...]:
    """List the sentences of a text question, its own first. TargetError for what a model that writes nothing cannot be asked."""
    for noun, is_given in (
        (f"the prompt {text.prompt!r}", text.prompt is not None),
        (f"the word {text.word!r}", text.word is not None),
        ("each_word", text.each_word),
    ):
        if is_given:
            raise TargetError(
                f"{noun} is for models that write, and {model.name} judges a sentence as a whole",
                remedy=Remedy(
                    "give the sentence alone: targets.Text(sentence)", "give the sentence alone: --text SENTENCE"
                ),
            )
    if text.text is None:
        raise TargetError(
            f"{model.name} writes nothing of its own",
            remedy=Remedy(
                "say which sentence: targets.Text('a photo of a dog')", "say which sentence: --text 'a photo of a dog'"
            ),
        )
    return (text.text, *text.against)


def _likeness(text: Text, classes: Mapping[str, Category]) -> Target:
    assert text.text is not None
    this = classes[text.text]
    if not text.against:
        return this
    return Contrast(this, [classes[other] for other in text.against])


def _beside(batch: Batch, pictures: str, texts: Mapping[str, Tensor]) -> Batch:
    """Give the module its pictures and texts by keyword: which of them stands first differs from model to model."""
    own = {pictures: batch.images} if batch.arguments else {}
    put = {name: tensor.to(batch.images.device) for name, tensor in texts.items()}
    return Batch((), {**batch.keywords, **own, **put}, batch.images, batch.pictures)
