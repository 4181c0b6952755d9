"""transformers' models, by name (``hf/google/vit-base-patch16-224``), from a folder (``hf/PATH``), and as modules."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from glowmap.cautions import Caution, caution_kind
from glowmap.errors import ModelError, Remedy, summarise
from glowmap.inputs import Batch
from glowmap.models._family import (
    FAMILIES,
    PARTLY_RANDOM,
    RANDOM,
    Family,
    import_library,
    is_from,
    ordered_names,
    seeded,
)
from glowmap.models.model import Model
from glowmap.models.preprocessing import MeasuredCrop, Transform
from glowmap.models.transformers.detectors import candidates_reader, prefers_dense
from glowmap.models.transformers.images import processed_picture
from glowmap.models.transformers.outputs import ClassScoreReader
from glowmap.models.transformers.patches import ordered_patches, patch_positions_of
from glowmap.models.transformers.text import text_interface, tokenizer_of
from glowmap.models.weights import cached, load_weights, reach, read_weights
from glowmap.outputs import OutputReaders
from glowmap.registry import near_names

_PREFIX = "hf/"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
_REMEDY = (
    "save its folder (config.json, model.safetensors, preprocessor_config.json) on this machine and write hf/PATH, "
    "where weights='random' needs config.json alone"
)
_TEXT_KEYWORDS = ("input_ids", "decoder_input_ids")
# The heads that have one score for each label of the config.
_LABELLED = re.compile(r"For(Image|Video)Classification|Segmentation|ObjectDetection|ForQuestionAnswering|ForMasked")
_PADDED_BOXES = caution_kind("boxes-on-padded-input", "caution", "Give pictures of one size, without padding.")


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build the model of a hub name, or of a folder with a ``config.json``, with its processor where there is one.

    ``default`` weights are those of the repository or folder, in safetensors alone; ``random`` ones are drawn from the seed. No
    code that comes with a model is run. Raises ModelError for what is missing, unreachable, or not a model of transformers.
    """
    transformers = import_library("transformers", "transformers", "a model by the name of one on the Hugging Face hub")
    source, is_local = _source(name.removeprefix(_PREFIX), needs_weights=str(weights) == "default")
    config = _loaded(lambda: transformers.AutoConfig.from_pretrained(source, local_files_only=is_local), name)
    kind = _model_class(transformers, config, name)
    cautions: tuple[Caution, ...] = ()
    with seeded(seed):
        if str(weights) == "default":
            module, cautions = _trained(kind, source, is_local, name)
        elif str(weights) == "random":
            module, cautions = _loaded(lambda: kind(config), name), (RANDOM,)
        else:
            module = _with_checkpoint(kind, config, Path(weights), name)
    preprocess = _transform(transformers, source, is_local)
    model = replace(_described(module.eval(), name), preprocess=preprocess, cautions=cautions)
    processor = _text_processor(transformers, source, is_local) if model.extra_inputs else None
    return model if processor is None else replace(model, text_interface=text_interface(module, processor))


def recognise(module: nn.Module) -> Model | None:
    """Recognise a model by its config, which has class names but no processor."""
    if not is_from(module, "transformers") or not hasattr(module, "config"):
        return None
    return _described(module, type(module).__name__)


def with_processor(model: Model, processor: Any) -> Model:
    """Add a processor: its tokenizer makes inputs from texts, and its image part is the preprocessing where there is none.

    Raises ModelError for what is neither a processor nor a tokenizer of transformers, and for a tokenizer without use.
    """
    images = getattr(processor, "image_processor", processor if hasattr(processor, "image_mean") else None)
    if tokenizer_of(processor) is None and images is None:
        raise ModelError(
            f"a processor is one of transformers', or a tokenizer, not {type(processor).__name__}; give what "
            "transformers.AutoProcessor.from_pretrained(...) returns"
        )
    interface = text_interface(model.module, processor)
    if interface is None and images is None:
        raise ModelError(
            f"no inputs can be made from texts for a {type(model.module).__name__}, so a tokenizer is of no use to it",
            remedy=Remedy("leave processor=... out, and pass what the model takes as a dict of its keywords"),
        )
    preprocess = model.preprocess or (None if images is None else processor_transform(images))
    return replace(model, text_interface=interface, preprocess=preprocess)


def _described(module: Any, name: str) -> Model:
    """Return a module as a model, without preprocessing."""
    config = module.config
    if getattr(config, "num_frames", None) is not None and module.main_input_name == "pixel_values":
        raise ModelError(
            f"{name} takes frames before colours, where clips are colours x frames x rows x columns here; wrap it in a module "
            "whose forward(clips) returns model(clips.transpose(1, 2)), and give that clips of this order"
        )
    labels = int(getattr(config, "num_labels", 0) or 0)
    names = ordered_names(getattr(config, "id2label", None), labels)
    if getattr(config, "use_focal_loss", None) is False:  # the last label means no object, as in RT-DETR's processor
        labels, names = labels - 1, names and names[:-1]
    parameters = inspect.signature(module.forward).parameters
    extra_inputs = tuple(name for name in _TEXT_KEYWORDS if name in parameters)
    reader = ClassScoreReader(0 if extra_inputs else labels, _vocabulary(config))
    read_candidates = candidates_reader(module, reader)
    return Model(
        module,
        name,
        class_names=names if _LABELLED.search(type(module).__name__) else None,
        readers=OutputReaders(reader, read_candidates, prefers_dense=prefers_dense(module)),
        extra_inputs=extra_inputs,
        around_forward=ordered_patches(module),
        patch_positions=patch_positions_of(module),
        input_cautions=lambda batch: () if read_candidates is None else _padding_cautions(batch),
    )


def _padding_cautions(batch: Batch) -> tuple[Caution, ...]:
    mask = batch.keywords.get("pixel_mask")
    if not isinstance(mask, Tensor) or bool(mask.bool().all()):
        return ()
    return (
        _PADDED_BOXES(
            "the pictures are padded (pixel_mask has zeros), and boxes are read as shares of the padded input: where the model "
            "means shares of the picture alone, they lie too far to the right and down; the map is not affected"
        ),
    )


def _vocabulary(config: Any) -> int:
    try:
        text_config = config.get_text_config(decoder=True)  # the config itself, where it has no other
    except (AttributeError, ValueError):  # several text configs, none of which is the decoder's
        text_config = config
    return int(getattr(text_config, "vocab_size", 0) or 0)


def _source(name: str, *, needs_weights: bool) -> tuple[str, bool]:
    """Return the folder or hub name to load from, and whether all files are on this machine."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"the folder {folder} holds no config.json; give one that save_pretrained(...) wrote")
        if needs_weights and not any((folder / file).is_file() for file in _WEIGHTS):
            raise ModelError(
                f"the folder {folder} holds no model.safetensors; save the model there with save_pretrained(...), "
                "give a checkpoint's path as weights, or choose weights='random'"
            )
        return str(folder), True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "/")):
        raise ModelError(
            f"there is no folder {name}; write hf/PATH for a folder, or hf/OWNER/NAME for a model of the hub"
        )
    is_local = cached(name, ["config.json"]) is not None and (not needs_weights or cached(name, _WEIGHTS) is not None)
    if not is_local:
        reach(name, _WEIGHTS[0] if needs_weights else "config.json", _REMEDY)
    return name, is_local


def _loaded(load: Callable[[], Any], name: str) -> Any:
    """Call a function of transformers; turn any error into a ModelError."""
    try:
        return load()
    except Exception as error:  # a config can cause errors of many types
        needs_code = "trust_remote_code" in str(error) or "custom code" in str(error)
        raise ModelError(
            f"{name} brings its own code, which is not run here; build it yourself and give the module, or FILE.py:factory"
            if needs_code
            else f"{name} cannot be loaded ({summarise(error)}); {_REMEDY}"
        ) from error


def _model_class(transformers: Any, config: Any, name: str) -> Any:
    """Return the class that a config names, or else the image classifier for such a config."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    kind = getattr(transformers, architecture, None) if architecture.isidentifier() else None
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind
    if architecture:
        heads = [known for known in dir(transformers) if known.startswith(architecture[:4]) and "For" in known]
        raise ModelError(
            f"{name} is a {architecture}, which transformers does not have; {near_names(architecture, heads)}"
        )
    mapping = transformers.AutoModelForImageClassification._model_mapping
    if type(config) not in mapping:
        raise ModelError(f"the config of {name} does not name the model's class; write it into its 'architectures'")
    return mapping[type(config)]


def _trained(kind: Any, source: str, is_local: bool, name: str) -> tuple[Any, tuple[Caution, ...]]:
    """Load a model with its weights; return it with a caution where some tensors are missing in them."""

    def load() -> Any:
        return kind.from_pretrained(
            source, local_files_only=is_local, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )

    module, info = _loaded(load, name)
    random = sorted({*info["missing_keys"], *(key[0] for key in info.get("mismatched_keys", ()))})
    if not random:
        return module, ()
    caution = PARTLY_RANDOM(
        f"{len(random)} tensors of {name} are not in its weights ({', '.join(random[:2])}{', ...' if random[2:] else ''}) and "
        "were drawn at random: what they compute means nothing"
    )
    return module, (caution,)


def _with_checkpoint(kind: Any, config: Any, path: Path, name: str) -> Any:
    """Build a model with a checkpoint's weights, under the module's names or the older names that transformers converts."""
    module = _loaded(lambda: kind(config), name)
    try:
        load_weights(module, path)
        return module
    except ModelError:
        state = read_weights(path)
        converted, info = _loaded(
            lambda: kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True), name
        )
        if any(info[keys] for keys in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            raise
        return converted


def _transform(transformers: Any, source: str, is_local: bool) -> Transform | None:
    """Load the image processor that belongs to a config; None without one."""
    if is_local and not _has_files(source, _PROCESSORS):
        return None
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, local_files_only=is_local)
    except (OSError, ValueError, ImportError, KeyError):  # none, or of another kind
        return None
    return processor_transform(processor)


def _has_files(source: str, names: Sequence[str]) -> bool:
    """Return whether a folder, or the cache of a hub repository, holds one of these files."""
    folder = Path(source)
    return any((folder / name).is_file() for name in names) if folder.is_dir() else cached(source, names) is not None


def _text_processor(transformers: Any, source: str, is_local: bool) -> Any:
    """Load what turns texts into tokens: the whole processor, or the tokenizer alone; None without either."""
    for kind in (transformers.AutoProcessor, transformers.AutoTokenizer):
        try:
            processor = kind.from_pretrained(source, local_files_only=is_local, trust_remote_code=False)
        except Exception:  # none, or another kind: the libraries behind it raise errors of many types
            continue
        # without a file, transformers makes an empty tokenizer from the config
        if tokenizer_of(processor) is not None and _has_files(source, _TOKENIZERS):
            return processor
    return None


def processor_transform(processor: Any) -> Transform:
    """Turn an image processor into a preprocessing step, with its mean and std."""
    normalises = getattr(processor, "do_normalize", False) and processor.image_mean is not None
    mean, std = (processor.image_mean, processor.image_std) if normalises else (0.0, 1.0)
    transform = partial(processed_picture, processor)
    return Transform(transform, MeasuredCrop(transform), mean, std)


FAMILIES.register("hf", Family("transformers", recognise, build, with_processor=with_processor))
