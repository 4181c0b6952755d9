"""transformers: networks of pictures and words, from tiny configurations."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.specimen import Grid, Specimen, noise, words

CLASS = "the picture's class token alone is read: after its last block's attention the patches have no gradient"
READ = "the picture's encoder's end, to which the words attend"
LAYERS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE = {**LAYERS, "image_size": 64, "patch_size": 8}
TEXT = {**LAYERS, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IMAGE_TOKEN = 95


def _built(model: str, config: str, **options: Any) -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    return getattr(transformers, model)(getattr(transformers, config)(**options))


def _captioner() -> nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    picture = transformers.ViTConfig(**{**PICTURE, "image_size": (64, 96)})
    text = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=99, add_cross_attention=True, bos_token_id=1, eos_token_id=2
    )
    join = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs
    return transformers.VisionEncoderDecoderModel(join(picture, text))


def _llava() -> nn.Module:
    import transformers

    picture = transformers.CLIPVisionConfig(**PICTURE)
    text = transformers.LlamaConfig(**TEXT, num_key_value_heads=2)
    return _built(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        vision_config=picture,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
    )


def _asked(
    texts: int = 1, tokens: int = 7, columns: int = 64, called: str = "input_ids"
) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {
        "pixel_values": noise(1, 3, 64, columns)(),
        called: words(texts, tokens, vocabulary=IMAGE_TOKEN),
    }


def _asked_with_places() -> dict[str, torch.Tensor]:
    """Give LLaVA's words, among them a place for each of the picture's tokens."""
    said = words(1, 30, vocabulary=IMAGE_TOKEN)
    places = torch.full((1, 64), IMAGE_TOKEN)
    return {"pixel_values": noise(1, 3, 64, 64)(), "input_ids": torch.cat([said[:, :2], places, said[:, 2:]], 1)}


def _one(
    model: str,
    build: Callable[[], nn.Module],
    inputs: Callable[[], Any],
    right: dict[str, Grid],
    usable: str,
    why: str,
    refused: str = "",
    settled: str = "",
) -> Specimen:
    return Specimen(model, "transformers", build, inputs, right, usable, why, refused, settled)


def _plain(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return functools.partial(_built, model, config, **options)


BLIP = {
    "vision_config": PICTURE,
    "text_config": {**TEXT, "encoder_hidden_size": 32, "max_position_embeddings": 32},
    "projection_dim": 16,
    "image_text_hidden_size": 16,
}
CLIP = {"vision_config": {**PICTURE, "projection_dim": 16}, "text_config": TEXT, "projection_dim": 16}
CLIPSEG = {
    "projection_dim": 32,
    "reduce_dim": 16,
    "extract_layers": [1, 2, 3],
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}

SPECIMENS = [
    _one(
        "CLIPModel",
        _plain("CLIPModel", "CLIPConfig", **CLIP),
        _asked(texts=2),
        {r"vision_model\.encoder\.layers\.(2|3\.layer_norm1)": (8, 8)},
        r"vision_model\.encoder\.layers\..*",
        CLASS,
    ),
    _one(
        "SiglipModel",
        _plain("SiglipModel", "SiglipConfig", vision_config=PICTURE, text_config=TEXT),
        _asked(texts=2),
        {r"vision_model\.(post_layernorm|encoder(\.layers\.3)?)": (8, 8)},
        r"vision_model\.encoder\.layers\.(2|3\..*)",
        "one learned question attends to the picture's last patches",
    ),
    _one(
        "BlipForImageTextRetrieval",
        _plain("BlipForImageTextRetrieval", "BlipConfig", **BLIP),
        _asked(tokens=9),
        {r"vision_model\.(post_layernorm#1|encoder(\.layers\.3)?)": (8, 8)},
        r"vision_model\.encoder\.layers\..*",
        READ + "; nine words are no grid of three by three",
    ),
    _one(
        "BlipForConditionalGeneration",
        _plain("BlipForConditionalGeneration", "BlipConfig", **BLIP),
        _asked(tokens=9),
        {r"vision_model\.(post_layernorm#1|encoder(\.layers\.3)?)": (8, 8)},
        r"vision_model\.encoder\.layers\..*",
        READ + "; nine words are no grid of three by three",
    ),
    _one(
        "ViltForQuestionAnswering",
        _plain(
            "ViltForQuestionAnswering",
            "ViltConfig",
            **{**PICTURE, "image_size": 64, "vocab_size": 99, "num_labels": 7},
        ),
        _asked(columns=96),
        {r"vilt\.encoder\.layer\.3\.layernorm_before": (8, 12)},
        r"vilt\.e.*",
        "the first word's token is read; the patches, which it draws in another order at each call, are put row by row here",
    ),
    _one(
        "VisionEncoderDecoderModel",
        _captioner,
        _asked(columns=96, called="decoder_input_ids"),
        {r"encoder\.(layernorm|layers\.3)": (8, 12)},
        r"encoder\.layers\..*",
        READ,
    ),
    _one(
        "LlavaForConditionalGeneration",
        _llava,
        _asked_with_places,
        {
            r"model\.multi_modal_projector(\.linear_2)?": (8, 8),
            r"model\.vision_tower\.encoder\.layers\.2": (8, 8),
        },
        r"model\.vision_tower\.encoder\.layers\..*|model\.multi_modal_projector\..*",
        "the last that is the picture's alone: what the projector hands to the words, or the block it reads",
    ),
    _one(
        "CLIPSegForImageSegmentation",
        _plain(
            "CLIPSegForImageSegmentation",
            "CLIPSegConfig",
            vision_config=PICTURE,
            text_config=TEXT,
            **CLIPSEG,
        ),
        _asked(),
        {},
        "",
        "the library runs the picture's encoder without gradients: nothing can be found by them",
        refused="carries no gradient back to its images",
    ),
    _one(
        "OwlViTForObjectDetection",
        _plain("OwlViTForObjectDetection", "OwlViTConfig", vision_config=PICTURE, text_config=TEXT, projection_dim=32),
        _asked(),
        {
            r"layer_norm|owlvit\.vision_model\.post_layernorm": (8, 8),
            r"owlvit\.vision_model\.encoder(\.layers\.3)?": (8, 8),
        },
        r"owlvit\.vision_model\.encoder\.layers\..*|(class|box)_head\..*",
        "every patch is a detection: the last that both heads read, or the encoder's end",
        settled="behind it the class token is multiplied into every patch, so that no cell looks at one place alone",
    ),
]
