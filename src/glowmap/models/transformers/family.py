"""transformers' models by name (``hf/google/vit-base-patch16-224``), from a folder (``hf/PATH``), and as modules."""

import inspect
import re
from collections.abc import Sequence
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
from glowmap.models.transformers.detectors import candidates_of, prefers_dense
from glowmap.models.transformers.images import processed_picture
from glowmap.models.transformers.outputs import ClassScoreReader
from glowmap.models.transformers.patches import among_of, lending_of
from glowmap.models.transformers.text import text_interface, tokenizer_of
from glowmap.models.weights import cached, load_weights, reach, read_weights
from glowmap.outputs import OutputReaders
from glowmap.registry import near_names

_PREFIX = "hf/"
_PADDED_BOXES = caution_kind("boxes-on-padded-input", "caution", "Give pictures of one size, without padding.")
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
# What is asked beside a picture, by the names of a forward's parameters; heads whose answer has a score for each label.
_TEXTS = ("input_ids", "decoder_input_ids")
_LABELLED = re.compile(r"For(Image|Video)Classification|Segmentation|ObjectDetection|ForQuestionAnswering|ForMasked")


def build(name: str, weights: str | Path, seed: int) -> Model:
    """Build the model that a hub's name or a folder's ``config.json`` says, with its processor where there is one.

    ``default`` weights are those beside the config, in safetensors alone; ``random`` ones are drawn from the seed. No code that
    comes with a model is run. Raises ModelError for what is not there, cannot be reached, or is no model of transformers.
    """
    transformers = import_library("transformers", "transformers", "a model by the name of one on the Hugging Face hub")
    place, local = _place(name.removeprefix(_PREFIX), needs_weights=str(weights) == "default")
    config = _kept(lambda: transformers.AutoConfig.from_pretrained(place, local_files_only=local), name)
    kind = _kind(transformers, config, name)
    cautions: tuple[str, ...] = ()
    with seeded(seed):
        if str(weights) == "default":
            module, cautions = _trained(kind, place, local, name)
        elif str(weights) == "random":
            module, cautions = _kept(lambda: kind(config), name), (RANDOM,)
        else:
            module = _filled(kind, config, Path(weights), name)
    known = replace(
        _described(module.eval(), name), preprocess=_transform(transformers, place, local), cautions=cautions
    )
    processor = _processor(transformers, place, local) if known.extra_inputs else None
    return known if processor is None else replace(known, text_interface=text_interface(module, processor))


def recognise(module: nn.Module) -> Model | None:
    """Know a model by its base class, its classes by its config, and how its output is read; it does not hold its processor."""
    return (
        _described(module, type(module).__name__)
        if is_from(module, "transformers") and hasattr(module, "config")
        else None
    )


def with_processor(model: Model, processor: Any) -> Model:
    """Give a model its processor, whose tokenizer puts texts beside the pictures; its image part serves where none is known.

    Raises ModelError for what is neither a processor nor a tokenizer of transformers, and for a tokenizer without use.
    """
    images = getattr(processor, "image_processor", processor if hasattr(processor, "image_mean") else None)
    tokenizer = tokenizer_of(processor)
    if tokenizer is None and images is None:
        raise ModelError(
            f"a processor is one of transformers', or a tokenizer, not {type(processor).__name__}; give what "
            "transformers.AutoProcessor.from_pretrained(...) returns"
        )
    interface = text_interface(model.module, processor)
    if interface is None and images is None:
        raise ModelError(
            f"no texts can be put to a {type(model.module).__name__} here, so a tokenizer is of no use to it",
            remedy=Remedy("leave processor=... out, and pass what it takes as a dict of its keywords"),
        )
    own = preset_of(images) if images is not None else None
    return replace(model, text_interface=interface, preprocess=model.preprocess or own)


def _described(module: Any, name: str) -> Model:
    config = module.config
    if getattr(config, "num_frames", None) is not None and module.main_input_name == "pixel_values":
        raise ModelError(
            f"{name} takes frames before colours, and a clip is read as colours x frames x rows x columns here; wrap it in a "
            "module whose forward(clips) returns model(clips.transpose(1, 2)), and give that clips of this order"
        )
    labels = int(getattr(config, "num_labels", 0) or 0)
    names = ordered_names(getattr(config, "id2label", None), labels)
    if getattr(config, "use_focal_loss", None) is False:  # as RT-DETR's processor has it: the last label is no object
        labels, names = labels - 1, names and names[:-1]
    labelled = _LABELLED.search(type(module).__name__)
    takes = list(inspect.signature(module.forward).parameters)
    extra_inputs = tuple(name for name in _TEXTS if name in takes)
    reader = ClassScoreReader(0 if extra_inputs else labels, _vocabulary(config))
    read_candidates = candidates_of(module, reader)
    return Model(
        module,
        name,
        class_names=names if labelled else None,
        readers=OutputReaders(reader, read_candidates, prefers_dense=prefers_dense(module)),
        extra_inputs=extra_inputs,
        around_forward=lending_of(module),
        patch_positions=among_of(module),
        input_cautions=_padding_cautions if read_candidates is not None else lambda _: (),
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
        text = config.get_text_config(decoder=True)  # its own, where it has no other
    except (AttributeError, ValueError):  # several, of which none is the one
        text = config
    return int(getattr(text, "vocab_size", 0) or 0)


def _place(name: str, *, needs_weights: bool) -> tuple[str, bool]:
    """Tell where to load from, and whether all that is needed is on this machine."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"the folder {folder} holds no config.json; give one that save_pretrained(...) wrote")
        if needs_weights and not any((folder / file).is_file() for file in _WEIGHTS):
            raise ModelError(
                f"the folder {folder} holds no model.safetensors; save the model there with save_pretrained(...), "
                "give a checkpoint's path as weights, or ask for weights='random'"
            )
        return str(folder), True
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "/")):
        raise ModelError(
            f"there is no folder {name}; write hf/PATH for a folder, or hf/OWNER/NAME for a model of the hub"
        )
    local = cached(name, ["config.json"]) is not None and (not needs_weights or cached(name, _WEIGHTS) is not None)
    if not local:
        reach(name, _WEIGHTS[0] if needs_weights else "config.json", _REMEDY)
    return name, local


def _kept(load: Any, name: str) -> Any:
    """Load something of a stranger's; whatever transformers makes of it is told in one line."""
    try:
        return load()
    except Exception as error:  # a config may ask for anything that there is not
        code = "trust_remote_code" in str(error) or "custom code" in str(error)
        raise ModelError(
            f"{name} brings its own code, which is not run here; build it yourself and give the module, or FILE.py:factory"
            if code
            else f"{name} cannot be loaded ({summarise(error)}); {_REMEDY}"
        ) from error


def _kind(transformers: Any, config: Any, name: str) -> Any:
    """Choose the class that the config names, or else the one that classifies with such a config."""
    wanted = (getattr(config, "architectures", None) or [""])[0]
    kind = getattr(transformers, wanted, None) if wanted.isidentifier() else None
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind
    if wanted:
        heads = [known for known in dir(transformers) if known.startswith(wanted[:4]) and "For" in known]
        raise ModelError(f"{name} is a {wanted}, which transformers does not have; {near_names(wanted, heads)}")
    mapping = transformers.AutoModelForImageClassification._model_mapping
    if type(config) not in mapping:
        raise ModelError(
            f"the config of {name} does not say of which class the model is; write it into its 'architectures'"
        )
    return mapping[type(config)]


def _trained(kind: Any, place: str, local: bool, name: str) -> tuple[Any, tuple[str, ...]]:
    """Load a model's weights, and note what the file does not hold of it."""

    def load() -> Any:
        return kind.from_pretrained(
            place, local_files_only=local, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )

    module, found = _kept(load, name)
    drawn = sorted({*found["missing_keys"], *(key[0] for key in found.get("mismatched_keys", ()))})
    if not drawn:
        return module, ()
    return module, (
        PARTLY_RANDOM(
            f"{len(drawn)} tensors of {name} are not in its weights ({', '.join(drawn[:2])}{', ...' if drawn[2:] else ''}) and "
            "were drawn at random: what they compute means nothing"
        ),
    )


def _filled(kind: Any, config: Any, path: Path, name: str) -> Any:
    """Build a model with a checkpoint's weights, under the module's own names or under those that files of it have."""
    module = _kept(lambda: kind(config), name)
    try:
        load_weights(module, path)
        return module
    except ModelError:
        state = read_weights(path)
        renamed, found = _kept(
            lambda: kind.from_pretrained(None, config=config, state_dict=state, output_loading_info=True), name
        )
        if any(found[kinds] for kinds in ("missing_keys", "unexpected_keys", "mismatched_keys")):
            raise
        return renamed


def _transform(transformers: Any, place: str, local: bool) -> Transform | None:
    """Load the processor that stands beside a config, where one does."""
    folder = Path(place)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in _PROCESSORS):
            return None
    elif local and cached(place, _PROCESSORS) is None:
        return None
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(place, local_files_only=local)
    except (OSError, ValueError, ImportError, KeyError):  # none, or of another kind
        return None
    return preset_of(processor)


def _stands(place: str, names: Sequence[str]) -> bool:
    folder = Path(place)
    return any((folder / name).is_file() for name in names) if folder.is_dir() else cached(place, names) is not None


def _processor(transformers: Any, place: str, local: bool) -> Any:
    """Load what turns texts into tokens, where it stands beside a config: the whole processor, or the tokenizer alone."""
    for kind in (transformers.AutoProcessor, transformers.AutoTokenizer):
        try:
            found = kind.from_pretrained(place, local_files_only=local, trust_remote_code=False)
        except Exception:  # none, or one of another kind: each library that it is made of raises its own
            continue
        if tokenizer_of(found) is not None and _stands(
            place, _TOKENIZERS
        ):  # else one without a word, made of the config
            return found
    return None


def preset_of(processor: Any) -> Transform:
    """Make an image processor a preprocessing step, with its mean and std, and the part of the picture that it keeps."""
    normalises = getattr(processor, "do_normalize", False) and processor.image_mean is not None
    mean, std = (processor.image_mean, processor.image_std) if normalises else (0.0, 1.0)
    transform = partial(processed_picture, processor)
    return Transform(transform, MeasuredCrop(transform), mean, std)


FAMILIES.register("hf", Family("transformers", recognise, build, with_processor=with_processor))
