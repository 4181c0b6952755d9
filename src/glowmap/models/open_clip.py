"""open_clip's models of pictures and texts, by name (``open_clip/ViT-B-32:laion2b_s34b_b79k``) and as modules."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor, nn

from glowmap.errors import ModelError, Remedy, TargetError, summarise
from glowmap.models._family import FAMILIES, RANDOM, Family, import_library, is_from, seeded
from glowmap.models.model import Model
from glowmap.models.preprocessing import Transform, crop_box
from glowmap.models.text import Contrastive, memoised
from glowmap.models.weights import cached, fetched, load_weights, offline, reach
from glowmap.outputs import OutputReaders
from glowmap.outputs import read_logits as read_class_scores
from glowmap.registry import near_names

_PREFIX = "open_clip/"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def names() -> Sequence[str]:
    """List the models that open_clip can build. Raises MissingExtra where it is not installed."""
    return [_PREFIX + name for name in _open_clip().list_models()]


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build a model by name, with the trained weights of a tag after a colon, ``random`` ones, or those of a file.

    Raises ModelError for an unknown name or tag, and where weights can be neither found nor downloaded.
    """
    open_clip = _open_clip()
    short, _, tag = name.removeprefix(_PREFIX).partition(":")
    if short not in open_clip.list_models():
        raise ModelError(f"no model {short!r} in open_clip; {near_names(_PREFIX + short, names())}")
    with seeded(seed):
        module = _trained(open_clip, short, tag) if str(weights) == "default" else _made(open_clip, short, None)
    if str(weights) not in ("default", "random"):
        load_weights(module, Path(weights))
    return Model(
        module.eval(),
        name,
        _transform(module.visual),
        cautions=(RANDOM,) if str(weights) == "random" else (),
        readers=OutputReaders(read_logits),
        text_interface=_contrastive(module, lambda: _tokenizer(open_clip, short)),
    )


def recognise(module: nn.Module) -> Model | None:
    """Recognise a model of pictures and texts by its image tower, and an image tower without the rest."""
    if not is_from(module, "open_clip"):
        return None
    tower = getattr(module, "visual", None)
    if not isinstance(tower, nn.Module):
        return Model(module, type(module).__name__, _transform(module) if hasattr(module, "preprocess_cfg") else None)
    return Model(module, type(module).__name__, _transform(tower), readers=OutputReaders(read_logits))


def read_logits(raw: Any) -> Tensor:
    """Return image x text: the cosine of both embeddings times the model's scale, plus its bias where it has one.

    Radford et al., ICML 2021, arXiv:2103.00020, figure 3; the bias is that of SigLIP, arXiv:2303.15343. Raises TargetError
    where the model was given no text.
    """
    keys = ("image_features", "text_features", "logit_scale", "logit_bias")
    if isinstance(raw, Mapping) and "image_features" in raw:
        parts = [raw.get(key) for key in keys]
    elif isinstance(raw, tuple | list) and len(raw) >= 3:
        parts = [*raw[:4], None][:4]
    else:
        return read_class_scores(raw)
    images, texts, scale, bias = parts
    if not isinstance(images, Tensor) or not isinstance(texts, Tensor) or scale is None:
        raise TargetError(
            "the model was given no text to compare the picture with",
            remedy=Remedy(
                "load it by name, or with "
                "processor=open_clip.get_tokenizer(name), and give target=targets.Text('a photo of a dog')",
                "give --text 'a photo of a dog'",
            ),
        )
    similarity: Tensor = scale * images @ texts.T
    return similarity if bias is None else similarity + bias


def with_processor(model: Model, tokenizer: Any) -> Model:
    """Add a ``tokenizer``, a callable from a list of texts to a tensor (text x token), with which texts can be targets.

    Raises ModelError where it is not callable, and for an image tower, which takes no texts.
    """
    if not isinstance(getattr(model.module, "visual", None), nn.Module):
        raise ModelError(f"{model.name} is an image tower alone and takes no texts; load the whole model")
    if not callable(tokenizer):
        raise ModelError(
            f"a processor of open_clip's models makes tokens from texts, and {type(tokenizer).__name__} cannot be called; "
            "give open_clip.get_tokenizer(name)"
        )
    return replace(model, text_interface=_contrastive(model.module, lambda: tokenizer))


def _contrastive(module: Any, tokenizer: Callable[[], Any]) -> Contrastive:
    tokens = TextTokens(tokenizer, type(module).__name__, int(module.context_length))
    # CoCa encodes texts in _encode_text, whose result its decoder reads too
    method = "_encode_text" if hasattr(module, "_encode_text") else "encode_text"
    return Contrastive(
        tokens,
        partial(memoised, name=method),
        are_exclusive=module.logit_bias is None,
        images_keyword="image",
        texts_keyword="text",
        needs_text=False,
    )


@dataclass(frozen=True)
class TextTokens:
    """An open_clip tokenizer, made by ``make`` at first use: from texts to a keyword of the module. Texts are never cut."""

    make: Callable[[], Any]
    model: str
    limit: int

    @cached_property
    def _tokenizer(self) -> Any:
        return self.make()

    def __call__(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        tokens = self._rows(texts, self.limit)
        for text, is_cut in zip(texts, self._are_cut(texts, tokens), strict=True):
            if is_cut:
                raise TargetError(
                    f"the text {text!r} is longer than the {self.limit} tokens that {self.model} takes; shorten it"
                )
        return {"text": tokens}

    def _rows(self, texts: Sequence[str], length: int) -> Tensor:
        try:
            tokens = self._tokenizer(list(texts), **({"context_length": length} if self._takes_length else {}))
        except ModelError:
            raise
        except Exception as error:  # the library's code, or the user's
            raise TargetError(
                f"the tokenizer raised {summarise(error)} on {list(texts)[:3]}; give a callable from a list of texts to a tensor"
            ) from error
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != len(texts):
            what = f"the shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TargetError(f"the tokenizer made {what} of {len(texts)} texts; let it return a tensor, text x token")
        return tokens

    @property
    def _takes_length(self) -> bool:
        try:
            return "context_length" in inspect.signature(self._tokenizer).parameters
        except (TypeError, ValueError):  # a callable without a signature
            return False

    def _are_cut(self, texts: Sequence[str], tokens: Tensor) -> list[bool]:
        """Find the texts that the tokenizer cut without a warning: with room for one more token they change."""
        if not self._takes_length:
            return [False] * len(texts)
        longer, padding = self._rows(texts, self.limit + 1), self._rows(["a"], self.limit + 1)[0, -1]
        return [
            not bool((long_row[:-1] == row).all() and long_row[-1] == padding)
            for row, long_row in zip(tokens, longer, strict=True)
        ]


def _tokenizer(open_clip: Any, short: str) -> Any:
    """Make the tokenizer of a model by name: one that comes with open_clip, or one from the hub."""
    hub = (open_clip.get_model_config(short) or {}).get("text_cfg", {}).get("hf_tokenizer_name", "")
    is_local = not hub or cached(hub, _TOKENIZERS) is not None
    remedy = Remedy(
        f"save its folder on this machine and give a tokenizer made of it: glowmap.load('{_PREFIX}{short}', processor=...)"
    )
    if not is_local:
        reach(hub, "the tokenizer", remedy)
    try:
        with offline() if is_local else nullcontext():
            return open_clip.get_tokenizer(short)
    except Exception as error:  # the library's code, or the network
        raise ModelError(
            f"the tokenizer of open_clip's {short} cannot be loaded ({summarise(error)})", remedy=remedy
        ) from error


def _open_clip() -> Any:
    return import_library("open_clip", "open_clip", "a model by an open_clip name")


def _transform(tower: Any) -> Transform | None:
    """Return open_clip's own transform for inference."""
    settings: Any = getattr(tower, "preprocess_cfg", None)
    if settings is None:
        return None
    open_clip = _open_clip()
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**settings), is_train=False)
    return Transform(transform, partial(crop_box, transform.transforms), settings["mean"], settings["std"])


def _trained(open_clip: Any, short: str, tag: str) -> Any:
    tags = open_clip.list_pretrained_tags_by_model(short)
    if tag not in tags:
        near = near_names(tag, tags) if tag else f"there are {', '.join(tags) or 'none'}"
        raise ModelError(
            f"no trained weights {tag!r} of open_clip's {short}; {near}: write open_clip/{short}:TAG, or weights='random'"
            if tag
            else f"open_clip has several trained weights of {short} and none was chosen; {near}: write open_clip/{short}:TAG"
        )
    source = open_clip.get_pretrained_cfg(short, tag).get("hf_hub", "")
    if source:
        repository, _, file = source.rpartition("/")
        file = file or "open_clip_pytorch_model.bin"
        safe = "open_clip_model.safetensors" if file == "open_clip_pytorch_model.bin" else ""
        fetched(repository, [safe or str(PurePosixPath(file).with_suffix(".safetensors")), file], _remedy(short))
    return _made(open_clip, short, tag)


def _made(open_clip: Any, short: str, tag: str | None) -> Any:
    try:
        with offline():  # the files are in the cache by now
            return open_clip.create_model(short, pretrained=tag, pretrained_hf=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"open_clip's {short} cannot be built ({summarise(error)}); {_remedy(short)}") from error


def _remedy(short: str) -> str:
    return (
        f"save that file on this machine and give weights='its path' with open_clip/{short}, or choose weights='random'"
    )


FAMILIES.register("open_clip", Family("open_clip", recognise, build, names, with_processor=with_processor))
