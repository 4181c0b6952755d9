"""Tiny models of pictures and texts, with random weights, and tokenizers that know a dozen words."""

from functools import cache

import numpy as np
import open_clip
import tokenizers
import torch
import transformers as tr
from PIL import Image

# CLIP looks for the end of a text by its number, the highest.
WORDS = ["[PAD]", "[BOS]", "[UNK]", "a", "photo", "of", "dog", "cat", "car", "red", "small", "the", "[EOS]"]
TEXT = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 1,
    "eos_token_id": 12,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
DOG, CAT, CAR = "a photo of a dog", "a photo of a cat", "the small red car"


def tokenizer():
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 12)]
    )
    special = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return tr.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def processor(kind=None):
    images = tr.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return (kind or tr.CLIPProcessor)(images, tokenizer())


def clip():
    return tr.CLIPModel(tr.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))


def siglip():
    return tr.SiglipModel(tr.SiglipConfig(text_config=TEXT, vision_config=VISION))


def chinese_clip():
    return tr.ChineseCLIPModel(tr.ChineseCLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))


def metaclip():
    return tr.MetaClip2Model(tr.MetaClip2Config(text_config=TEXT, vision_config=VISION, projection_dim=8))


def altclip():
    text = {**TEXT, "project_dim": 16, "pad_token_id": 0, "max_position_embeddings": 17}
    return tr.AltCLIPModel(tr.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=8))


def align():
    vision = {
        "image_size": 32,
        "hidden_dim": 16,
        "in_channels": [32, 16],
        "out_channels": [16, 16],
        "kernel_sizes": [3, 3],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 2],
        "depthwise_padding": [],
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    }
    return tr.AlignModel(tr.AlignConfig(text_config=TEXT, vision_config=vision, projection_dim=16))


TWO_TOWERS = {one.__name__: one for one in (clip, siglip, chinese_clip, metaclip, altclip, align)}


@cache
def built(make):
    """One model of a kind; its texts and pictures lie far enough apart that maps differ."""
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return module


def blip():
    text = {**TEXT, "encoder_hidden_size": 16, "sep_token_id": 2}
    config = tr.BlipConfig(text_config=text, vision_config=VISION, projection_dim=8, image_text_hidden_size=8)
    return tr.BlipForImageTextRetrieval(config)


def vilt():
    return tr.ViltForImageAndTextRetrieval(tr.ViltConfig(**{**VISION, **TEXT, "max_position_embeddings": 16}))


def bridgetower():
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    text = {**TEXT, "hidden_size": 64, "max_position_embeddings": 20}
    config = tr.BridgeTowerConfig(
        text_config=text,
        vision_config=vision,
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=2,
        contrastive_hidden_size=8,
    )
    return tr.BridgeTowerForImageAndTextRetrieval(config)


MATCHERS = {one.__name__: one for one in (blip, vilt, bridgetower)}


def open_vit():
    vision = open_clip.CLIPVisionCfg(layers=3, width=16, head_width=8, patch_size=8, image_size=32)
    return open_clip.model.CLIP(8, vision, open_text())


def open_resnet():
    vision = open_clip.CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=8, image_size=64)
    return open_clip.model.CLIP(8, vision, open_text())


def open_siglip():
    vision = open_clip.CLIPVisionCfg(layers=3, width=16, head_width=8, patch_size=8, image_size=32)
    return open_clip.model.CustomTextCLIP(8, vision, open_text(), init_logit_bias=-3.0)


def open_text():
    return open_clip.CLIPTextCfg(context_length=16, width=16, heads=2, layers=2)


OPEN = {one.__name__: one for one in (open_vit, open_resnet, open_siglip)}


def words():
    """open_clip's tokenizer, which comes with it."""
    return open_clip.get_tokenizer("ViT-B-32")


def picture(seed=0, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def pictures(module, count=1):
    size = 64 if module is built(open_resnet) else 32
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
