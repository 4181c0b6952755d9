"""Tiny random models that write words, with tokenizers and processors of a few words: nothing is downloaded."""

import functools

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import glowmap

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[DEC]", "<image>", "<s>", "</s>"]
_TEXT = "a dog cat on the red blue two sofa what colour is car grey does one . ? : describe this user bot ##s"
WORDS = _TEXT.split(" ")
PAD, CLS, SEP, DEC, IMAGE, BOS, EOS = 0, 1, 2, 4, 5, 6, 7
LAYERS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE = {**LAYERS, "image_size": 64, "patch_size": 8}
COUNT = len(SPECIAL) + len(WORDS)

transformers.logging.set_verbosity_error()


def tokenizer(template="", extra=(), **options):
    """Make a tokenizer that knows a few words, and splits an s off where the word is unknown."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, *extra])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        made.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(one, vocabulary[one]) for one in template.split() if one != "$A"]
        )
    made.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    known = {"pad_token": "[PAD]", "unk_token": "[UNK]", "additional_special_tokens": ["<image>", "[DEC]", *extra]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **known, **options)


def by_bytes(merges=()):
    """Make a tokenizer whose tokens are bytes, but for those that are merged."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate([*signs, *("".join(pair) for pair in merges)])}
    made = Tokenizer(models.BPE(vocabulary, list(merges)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def signs(tokenizer):
    """List the tokens that begin, end, part or fill a sentence, and are no part of what it says."""
    return {getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}


def bert():
    return tokenizer("[CLS] $A [SEP]", cls_token="[CLS]", sep_token="[SEP]")


def llama(**options):
    return tokenizer("<s> $A", bos_token="<s>", eos_token="</s>", **options)


def lively(module, seed=0):
    """Draw weights large enough for the picture to matter."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.25)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return module.eval()


def pictures(count=1, rows=64, columns=64):
    return torch.randn(count, 3, rows, columns, generator=torch.Generator().manual_seed(1))


def image_processor(rows=64, columns=64):
    size = {"height": rows, "width": columns}
    return transformers.BlipImageProcessor(size=size)


BLIP = {
    "vision_config": PICTURE,
    "text_config": {
        **LAYERS,
        "vocab_size": COUNT,
        "bos_token_id": DEC,
        "eos_token_id": SEP,
        "sep_token_id": SEP,
        "pad_token_id": PAD,
        "encoder_hidden_size": 32,
        "max_position_embeddings": 32,
    },
    "projection_dim": 16,
    "image_text_hidden_size": 16,
}


@functools.cache
def blip():
    return lively(transformers.BlipForConditionalGeneration(transformers.BlipConfig(**BLIP)))


@functools.cache
def blip_answers():
    return lively(transformers.BlipForQuestionAnswering(transformers.BlipConfig(**BLIP)))


@functools.cache
def git():
    config = transformers.GitConfig(
        vision_config={**PICTURE},
        **LAYERS,
        vocab_size=COUNT,
        bos_token_id=CLS,
        eos_token_id=SEP,
        pad_token_id=PAD,
        max_position_embeddings=128,
    )
    return lively(transformers.GitForCausalLM(config))


@functools.cache
def encoder_decoder():
    picture = transformers.ViTConfig(**{**PICTURE, "image_size": (64, 96)})
    text = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=COUNT, add_cross_attention=True, bos_token_id=BOS, eos_token_id=EOS
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(picture, text)
    config.decoder_start_token_id, config.pad_token_id = BOS, PAD
    return lively(transformers.VisionEncoderDecoderModel(config))


@functools.cache
def trocr():
    picture = transformers.ViTConfig(**PICTURE)
    text = transformers.TrOCRConfig(
        d_model=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        vocab_size=COUNT,
        max_position_embeddings=32,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        decoder_start_token_id=EOS,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(picture, text)
    config.decoder_start_token_id, config.pad_token_id = EOS, PAD
    return lively(transformers.VisionEncoderDecoderModel(config))


def _blip2(text):
    config = transformers.Blip2Config(
        vision_config={**PICTURE},
        qformer_config={**LAYERS, "encoder_hidden_size": 32, "vocab_size": COUNT},
        text_config=text,
        num_query_tokens=6,
        image_token_index=IMAGE,
    )
    return lively(transformers.Blip2ForConditionalGeneration(config))


@functools.cache
def blip2():
    return _blip2(
        transformers.OPTConfig(
            hidden_size=32,
            word_embed_proj_dim=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            ffn_dim=64,
            vocab_size=COUNT,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
            max_position_embeddings=64,
        )
    )


@functools.cache
def blip2_t5():
    return _blip2(
        transformers.T5Config(
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            vocab_size=COUNT,
            pad_token_id=PAD,
            eos_token_id=EOS,
            decoder_start_token_id=PAD,
        )
    )


@functools.cache
def vilt():
    config = transformers.ViltConfig(
        **{**PICTURE, "vocab_size": COUNT, "num_labels": 4},
        max_position_embeddings=16,
        id2label=dict(enumerate(["red", "blue", "two", "cat"])),
        label2id={"red": 0, "blue": 1, "two": 2, "cat": 3},
    )
    return lively(transformers.ViltForQuestionAnswering(config))


@functools.cache
def florence():
    text = transformers.BartConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=COUNT,
        max_position_embeddings=128,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        decoder_start_token_id=EOS,
    )
    vision = {
        "embed_dim": [16, 32],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "window_size": 4,
        "projection_dim": 32,
        "max_position_embeddings": 16,
        "max_temporal_embeddings": 4,
    }
    config = transformers.Florence2Config(vision_config=vision, text_config=text, image_token_id=IMAGE)
    module = lively(transformers.Florence2ForConditionalGeneration(config))
    module.generation_config.forced_bos_token_id, module.generation_config.forced_eos_token_id = BOS, None
    return module


def loaded(module, words):
    """Load a module with its tokenizer or processor, for ready-made tensors."""
    return glowmap.load(module, processor=words, mean=0.0, std=1.0)


# -- language models with a picture among their words ------------------------------------------------------------------

CHAT = (
    "{% for turn in messages %}{{ turn['role'] == 'user' and 'user : ' or 'bot : ' }}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}bot :{% endif %}"
)
LANGUAGE = {
    **LAYERS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": COUNT,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "max_position_embeddings": 256,
}


def chatting(**options):
    """Make a tokenizer with a chat's template."""
    made = llama(**options)
    made.chat_template = CHAT
    return made


@functools.cache
def llava():
    picture = transformers.CLIPVisionConfig(**{**PICTURE, "projection_dim": 16})
    config = transformers.LlavaConfig(
        vision_config=picture, text_config=transformers.LlamaConfig(**LANGUAGE), image_token_id=IMAGE
    )
    return lively(transformers.LlavaForConditionalGeneration(config))


@functools.cache
def paligemma():
    picture = transformers.SiglipVisionConfig(**{**PICTURE, "projection_dim": 32})
    config = transformers.PaliGemmaConfig(
        vision_config=picture,
        text_config=transformers.GemmaConfig(**LANGUAGE),
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return lively(transformers.PaliGemmaForConditionalGeneration(config))


@functools.cache
def gemma3():
    picture = transformers.SiglipVisionConfig(**PICTURE)
    config = transformers.Gemma3Config(
        vision_config=picture,
        text_config=transformers.Gemma3TextConfig(**LANGUAGE),
        image_token_id=IMAGE,
        mm_tokens_per_image=16,
    )
    return lively(transformers.Gemma3ForConditionalGeneration(config))


@functools.cache
def smolvlm():
    config = transformers.SmolVLMConfig(
        vision_config=PICTURE,
        text_config=transformers.LlamaConfig(**LANGUAGE),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return lively(transformers.SmolVLMForConditionalGeneration(config))


@functools.cache
def idefics3():
    config = transformers.Idefics3Config(
        vision_config=PICTURE,
        text_config=transformers.LlamaConfig(**LANGUAGE),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=PAD,
    )
    return lively(transformers.Idefics3ForConditionalGeneration(config))


@functools.cache
def internvl():
    picture = transformers.InternVLVisionConfig(**{**LAYERS, "image_size": [64, 64], "patch_size": [8, 8]})
    config = transformers.InternVLConfig(
        vision_config=picture, text_config=transformers.Qwen2Config(**LANGUAGE), image_token_id=IMAGE
    )
    return lively(transformers.InternVLForConditionalGeneration(config))


VIDEO, START, END = COUNT, COUNT + 1, COUNT + 2
ROPE = {"rope_type": "default", "rope_theta": 1000.0, "mrope_section": [2, 3, 3]}


def _qwen(kind, vision, text):
    text = {**LANGUAGE, "vocab_size": COUNT + 3, "rope_parameters": ROPE, **text}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return lively(getattr(transformers, f"{kind}ForConditionalGeneration")(config))


@functools.cache
def qwen2():
    vision = {"depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4, "hidden_size": 32}
    return _qwen("Qwen2VL", vision, {})


@functools.cache
def qwen25():
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "patch_size": 4,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return _qwen("Qwen2_5_VL", vision, {})


@functools.cache
def qwen3():
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return _qwen("Qwen3VL", vision, {})
