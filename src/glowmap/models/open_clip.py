"""open_clip's models of pictures and texts by name (``open_clip/ViT-B-32:laion2b_s34b_b79k``), and as modules."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor, nn

from glowmap.errors import ModelError, Remedy, TargetError, summarise
from glowmap.models._family import FAMILIES, RANDOM, Family, drawn_from, is_of, library
from glowmap.models.model import Model
from glowmap.models.preprocessing import Preset, cut
from glowmap.models.text import Contrastive, remembering
from glowmap.models.weights import cached, fetched, load_weights, offline, reach
from glowmap.outputs import OutputReaders
from glowmap.outputs import read_logits as read_plain
from glowmap.registry import near_names

_PREFIX = "open_clip/"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


def names() -> Sequence[str]:
    """List what open_clip can build; MissingExtra where it is not installed."""
    return [_PREFIX + name for name in _open_clip().list_models()]


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build a model by name, with the trained weights of a tag behind a colon, ``random`` ones, or those of a file.

    Raises ModelError for an unknown name or tag, and where weights can be neither found nor downloaded.
    """
    open_clip = _open_clip()
    short, _, tag = name.removeprefix(_PREFIX).partition(":")
    if short not in open_clip.list_models():
        raise ModelError(f"no model {short!r} in open_clip; {near_names(_PREFIX + short, names())}")
    with drawn_from(seed):
        module = _trained(open_clip, short, tag) if str(weights) == "default" else _made(open_clip, short, None)
    if str(weights) not in ("default", "random"):
        load_weights(module, Path(weights))
    cautions = (RANDOM,) if str(weights) == "random" else ()
    return Model(
        module.eval(),
        name,
        _preset(module.visual),
        cautions=cautions,
        readers=OutputReaders(read_logits),
        text_interface=_contrastive(module, lambda: _tokenizer(open_clip, short)),
    )


def recognise(module: nn.Module) -> Model | None:
    """Know a model of pictures and texts by its two towers, or its picture tower alone."""
    if not is_of(module, "open_clip"):
        return None
    tower = getattr(module, "visual", None)
    if not isinstance(tower, nn.Module):
        preprocess = _preset(module) if hasattr(module, "preprocess_cfg") else None
        return Model(module, type(module).__name__, preprocess)
    return Model(module, type(module).__name__, _preset(tower), readers=OutputReaders(read_logits))


def read_logits(output: Any) -> Tensor:
    """Read image x text: the likeness (cosine) of the two embeddings, times the model's scale, and its bias where it has one.

    Radford et al., ICML 2021, arXiv:2103.00020, figure 3; the bias is that of SigLIP, arXiv:2303.15343. Raises TargetError
    where the model was given no text.
    """
    keys = ("image_features", "text_features", "logit_scale", "logit_bias")
    if isinstance(output, Mapping) and "image_features" in output:
        parts = [output.get(key) for key in keys]
    elif isinstance(output, tuple | list) and len(output) >= 3:
        parts = [*output[:4], None][:4]
    else:
        return read_plain(output)
    pictures, texts, scale, bias = parts
    if not isinstance(pictures, Tensor) or not isinstance(texts, Tensor) or scale is None:
        raise TargetError(
            "the model was given no text to compare the picture with",
            remedy=Remedy(
                "load it by name, or with "
                "processor=open_clip.get_tokenizer(name), and ask target=targets.Text('a photo of a dog')",
                "ask --text 'a photo of a dog'",
            ),
        )
    likeness: Tensor = scale * pictures @ texts.T
    return likeness if bias is None else likeness + bias


def with_processor(model: Model, tokenizer: Any) -> Model:
    """Let a model of pictures and texts be asked by texts: ``tokenizer`` makes a tensor, text x token, of a list of them.

    Raises ModelError where it is no callable, and for a tower of pictures alone.
    """
    if not isinstance(getattr(model.module, "visual", None), nn.Module):
        raise ModelError(f"{model.name} is a tower of pictures alone and takes no texts; load the whole model")
    if not callable(tokenizer):
        raise ModelError(
            f"a processor of open_clip's models makes tokens of texts, and {type(tokenizer).__name__} cannot be called; "
            "give open_clip.get_tokenizer(name)"
        )
    return replace(model, text_interface=_contrastive(model.module, lambda: tokenizer))


def _contrastive(module: Any, tokenizer: Callable[[], Any]) -> Contrastive:
    tokens = TextTokens(tokenizer, type(module).__name__, int(module.context_length))
    # CoCa's texts are encoded under another name, for a decoder that reads them as well
    name = "_encode_text" if hasattr(module, "_encode_text") else "encode_text"
    return Contrastive(
        tokens,
        partial(remembering, name=name),
        exclusive=module.logit_bias is None,
        pictures="image",
        texts="text",
        alone=True,
    )


@dataclass(frozen=True)
class TextTokens:
    """A tokenizer of open_clip, which is made when it is first needed: texts as keywords of the module, never cut."""

    make: Callable[[], Any]
    model: str
    limit: int

    @cached_property
    def _tokenizer(self) -> Any:
        return self.make()

    def __call__(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        tokens = self._rows(texts, self.limit)
        for text, cut_off in zip(texts, self._cut_off(texts, tokens), strict=True):
            if cut_off:
                raise TargetError(
                    f"the text {text!r} is longer than the {self.limit} tokens that {self.model} takes; shorten it"
                )
        return {"text": tokens}

    def _rows(self, texts: Sequence[str], length: int) -> Tensor:
        try:
            tokens = self._tokenizer(list(texts), **({"context_length": length} if self._lengthens else {}))
        except ModelError:
            raise
        except Exception as error:  # a stranger's code
            raise TargetError(
                f"the tokenizer raised {summarise(error)} on {list(texts)[:3]}; give a callable from a list of texts to a tensor"
            ) from error
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or len(tokens) != len(texts):
            what = f"the shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TargetError(f"the tokenizer made {what} of {len(texts)} texts; let it return a tensor, text x token")
        return tokens

    @property
    def _lengthens(self) -> bool:
        try:
            return "context_length" in inspect.signature(self._tokenizer).parameters
        except (TypeError, ValueError):  # a callable that does not say what it takes
            return False

    def _cut_off(self, texts: Sequence[str], tokens: Tensor) -> list[bool]:
        """Tell which texts were cut, which such tokenizers do in silence: with room for one token more they are others."""
        if not self._lengthens:
            return [False] * len(texts)
        longer, padding = self._rows(texts, self.limit + 1), self._rows(["a"], self.limit + 1)[0, -1]
        return [
            not bool((more[:-1] == own).all() and more[-1] == padding) for own, more in zip(tokens, longer, strict=True)
        ]


def _tokenizer(open_clip: Any, short: str) -> Any:
    """Make the tokenizer of a model by name: the one that comes with open_clip, or another from the hub."""
    hub = (open_clip.get_model_config(short) or {}).get("text_cfg", {}).get("hf_tokenizer_name", "")
    local = not hub or cached(hub, _TOKENIZERS) is not None
    remedy = Remedy(
        f"save its folder on this machine and give a tokenizer made of it: glowmap.load('{_PREFIX}{short}', processor=...)"
    )
    if not local:
        reach(hub, "the tokenizer", remedy)
    try:
        with offline() if local else nullcontext():
            return open_clip.get_tokenizer(short)
    except Exception as error:  # a stranger's code, and the network's
        raise ModelError(
            f"the tokenizer of open_clip's {short} cannot be loaded ({summarise(error)})", remedy=remedy
        ) from error


def _open_clip() -> Any:
    return library("open_clip", "open_clip", "a model by an open_clip name")


def _preset(tower: Any) -> Preset | None:
    """Make open_clip's own transform for asking a model, with the part of the picture that it keeps."""
    settings: Any = getattr(tower, "preprocess_cfg", None)
    if settings is None:
        return None
    open_clip = _open_clip()
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**settings), is_train=False)
    return Preset(transform, partial(cut, transform.transforms), settings["mean"], settings["std"])


def _trained(open_clip: Any, short: str, tag: str) -> Any:
    tags = open_clip.list_pretrained_tags_by_model(short)
    if tag not in tags:
        known = near_names(tag, tags) if tag else f"there are {', '.join(tags) or 'none'}"
        raise ModelError(
            f"no trained weights {tag!r} of open_clip's {short}; {known}: write open_clip/{short}:TAG, or weights='random'"
            if tag
            else f"which trained weights of open_clip's {short} are meant is not said; {known}: write open_clip/{short}:TAG"
        )
    place = open_clip.get_pretrained_cfg(short, tag).get("hf_hub", "")
    if place:
        repository, _, file = place.rpartition("/")
        file = file or "open_clip_pytorch_model.bin"
        safe = "open_clip_model.safetensors" if file == "open_clip_pytorch_model.bin" else ""
        fetched(repository, [safe or str(PurePosixPath(file).with_suffix(".safetensors")), file], _remedy(short))
    return _made(open_clip, short, tag)


def _made(open_clip: Any, short: str, tag: str | None) -> Any:
    try:
        with offline():  # what is needed is in the cache by now
            return open_clip.create_model(short, pretrained=tag, pretrained_hf=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"open_clip's {short} cannot be built ({summarise(error)}); {_remedy(short)}") from error


def _remedy(short: str) -> str:
    return f"save that file on this machine and give weights='its path' with open_clip/{short}, or ask for weights='random'"


FAMILIES.register("open_clip", Family("open_clip", names, build, recognise))
