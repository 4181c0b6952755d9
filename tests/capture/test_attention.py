"""Attention on every family that has it: seen as the library itself computes it, laid out where the patches are, given back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("torchvision")
pytest.importorskip("timm")
pytest.importorskip("transformers")
pytest.importorskip("open_clip")

import open_clip
import timm
import timm.models as tm
import torchvision.models as tv
import transformers as tr

import glowmap
import papers.attention
from closeness import assert_equal_up_to_rounding
from glowmap.capture.attention import AttentionRecorder
from glowmap.errors import MethodError, TargetError
from glowmap.evidence import ATTENTION, map_places
from model_state import assert_unchanged, state_of
from papers.twins import TWINS
from tiny_models.convolutional import Classifier, images
from tiny_models.transformer import Attend, Transformer, made, pictures

METHODS = [name for name, method in glowmap.METHODS.items() if map_places(method.needs, ("layer",)) == (ATTENTION,)]
TIMM = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5}
HF = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
    "image_size": 32,
    "num_labels": 5,
}
WIDE = HF | {"image_size": (32, 48)}
TEXT = {key: HF[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")}
TEXT |= {"num_hidden_layers": 2, "vocab_size": 60, "max_position_embeddings": 40}


def words(*ids):
    ids = torch.tensor([ids, ids[::-1]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def torchvision_vit():
    return tv.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


def vit(**keywords):
    return tm.vision_transformer.VisionTransformer(**TIMM, **keywords)


def hf_vit(how):
    return tr.ViTForImageClassification(tr.ViTConfig(attn_implementation=how, **WIDE))


def siglip():
    return tr.SiglipForImageClassification(tr.SiglipConfig(vision_config=HF, num_labels=5))


def detr():
    backbone = tr.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    sizes = {
        f"{side}_{what}": size for side in ("encoder", "decoder") for what, size in (("layers", 2), ("ffn_dim", 32))
    }
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 6, "num_labels": 5}
    return tr.DetrForObjectDetection(
        tr.DetrConfig(
            use_timm_backbone=False,
            use_pretrained_backbone=False,
            backbone=None,
            backbone_config=backbone,
            d_model=16,
            **sizes,
            **heads,
        )
    )


def blip(kind):
    text = TEXT | {"encoder_hidden_size": 16, "is_decoder": True}
    return kind(tr.BlipConfig(text_config=text, vision_config=HF | {"initializer_range": 0.3}, projection_dim=8))


def llava():
    language = tr.LlamaConfig(
        **TEXT | {"num_attention_heads": 4}, num_key_value_heads=2, pad_token_id=0
    )  # grouped queries
    vision = tr.CLIPVisionConfig(**HF)
    return tr.LlavaForConditionalGeneration(
        tr.LlavaConfig(
            vision_config=vision,
            text_config=language,
            image_token_index=50,
            image_seq_length=16,
            vision_feature_layer=-2,
        )
    )


def clip():
    return tr.CLIPModel(tr.CLIPConfig(text_config=TEXT, vision_config=HF, projection_dim=8))


def open_clip_vit(**keywords):
    return open_clip.model.VisionTransformer(
        image_size=32, patch_size=8, width=16, layers=3, heads=2, mlp_ratio=2.0, output_dim=8, **keywords
    )


def column(outputs):
    return outputs.pooler_output[:, 1]


# model, sides of the picture, target, other input, grid, tokens before the patches, blocks that are seen
FAMILIES = {
    "torchvision": (torchvision_vit, (32, 32), 1, {}, (4, 4), 1, 3),
    "timm": (vit, (32, 48), 1, {}, (4, 6), 1, 3),
    "timm averaged": (lambda: vit(global_pool="avg", class_token=False), (32, 48), 1, {}, (4, 6), 0, 3),
    "timm registers": (lambda: vit(reg_tokens=4), (32, 48), 1, {}, (4, 6), 5, 3),
    "timm pooler": (lambda: vit(global_pool="map", class_token=False), (32, 48), 1, {}, (4, 6), 0, 4),
    "timm distilled": (lambda: tm.deit.VisionTransformerDistilled(**TIMM), (32, 48), 1, {}, (4, 6), 2, 3),
    "timm eva": (lambda: tm.eva.Eva(use_rot_pos_emb=True, **TIMM), (32, 48), 1, {}, (4, 6), 1, 3),
    "timm beit": (lambda: tm.beit.Beit(use_rel_pos_bias=True, init_values=0.1, **TIMM), (32, 48), 1, {}, (4, 6), 1, 3),
    "vit eager": (lambda: hf_vit("eager"), (32, 48), 1, {}, (4, 6), 1, 3),
    "vit sdpa": (lambda: hf_vit("sdpa"), (32, 48), 1, {}, (4, 6), 1, 3),
    "deit": (lambda: tr.DeiTForImageClassification(tr.DeiTConfig(**WIDE)), (32, 48), 1, {}, (4, 6), 2, 3),
    "beit": (
        lambda: tr.BeitForImageClassification(tr.BeitConfig(**HF, use_relative_position_bias=True)),
        *((32, 32), 1, {}, (4, 4), 1, 3),
    ),
    "dinov2": (lambda: tr.Dinov2ForImageClassification(tr.Dinov2Config(**HF)), (32, 32), 1, {}, (4, 4), 1, 3),
    "dinov2 registers": (
        lambda: tr.Dinov2WithRegistersForImageClassification(tr.Dinov2WithRegistersConfig(**HF)),
        *((32, 32), 1, {}, (4, 4), 5, 3),
    ),
    "dinov3": (
        lambda: tr.DINOv3ViTModel(tr.DINOv3ViTConfig(num_register_tokens=4, **HF)),
        (32, 48),
        column,
        {},
        (4, 6),
        5,
        3,
    ),
    "clip vision": (
        lambda: tr.CLIPVisionModelWithProjection(tr.CLIPVisionConfig(**HF, projection_dim=8)),
        *((32, 32), lambda o: o.image_embeds[:, 1], {}, (4, 4), 1, 3),
    ),
    "clip": (clip, (32, 32), lambda o: o.logits_per_image.diagonal(), words(3, 9, 4, 2), (4, 4), 1, 3),
    "siglip": (siglip, (32, 32), 1, {}, (4, 4), 0, 4),
    "siglip vision": (lambda: tr.SiglipVisionModel(tr.SiglipVisionConfig(**HF)), (32, 32), column, {}, (4, 4), 0, 4),
    "yolos": (
        lambda: tr.YolosForObjectDetection(tr.YolosConfig(num_detection_tokens=5, **WIDE)),
        *((32, 48), lambda o: o.logits[:, 0, 1], {}, (4, 6), 1, 3),  # 5 tokens after the patches
    ),
    "detr": (detr, (96, 128), lambda o: o.logits[:, 2, 1], {}, (3, 4), 0, 6),
    "blip matching": (
        lambda: blip(tr.BlipForImageTextRetrieval),
        *((32, 32), lambda o: o.itm_score[:, 1], words(3, 9, 4), (4, 4), 1, 7),
    ),
    "blip caption": (
        lambda: blip(tr.BlipForConditionalGeneration),
        *((32, 32), lambda o: o.logits[:, -1, 5], words(3, 9, 4), (4, 4), 1, 7),
    ),
    "llava": (llava, (32, 32), lambda o: o.logits[:, -1, 5], words(3, *[50] * 16, 4, 5), (4, 4), 1, 5),
    "open_clip": (open_clip_vit, (32, 32), 1, {}, (4, 4), 1, 3),
    "open_clip pooler": (
        lambda: open_clip_vit(attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=4),
        *((32, 32), lambda o: o[:, 1], {}, (4, 4), 1, 4),
    ),
}
# A language model joins the picture's tokens with words, where Chefer's rules do not lead.
REFUSED = {("llava", "gae")}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize("method", METHODS)


def built(family):
    make, sides, target, others, *_ = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double().eval()
        for parameter in model.parameters():  # heads and norms that begin at 0 or 1 tell nothing
            parameter.data += 0.2 * torch.randn_like(parameter)
    batch = pictures(*sides)
    return model, ({"pixel_values": batch, **others} if others else batch), target


@pytest.fixture
def seen(monkeypatch):
    """What is made out of a run's attention."""
    import glowmap.evidence.recorded_attention

    made_out = glowmap.evidence.recorded_attention.attended
    kept = []

    def keeping(*arguments):
        kept.append(made_out(*arguments))
        return kept[-1]

    monkeypatch.setattr("glowmap.evidence.recorded_attention.attended", keeping)
    return kept


def called(model, batch):
    return model(**batch) if isinstance(batch, dict) else model(batch)


@every_family
def test_every_family(family, seen):
    model, batch, target = built(family)
    *_, grid, before, blocks = FAMILIES[family]
    with torch.no_grad():
        wanted = called(model, batch)  # before a look at its hooks: transformers puts some there in its first run
    wanted = target(wanted) if callable(target) else getattr(wanted, "logits", wanted)[:, target]
    stand = state_of(model)
    for method in METHODS:
        if (family, method) in REFUSED:
            with pytest.raises(MethodError, match="no chain of attentions leads from the patches to what Llava"):
                glowmap.explain(model, batch, target=target, method=method)
            continue
        found = glowmap.explain(model, batch, target=target, method=method)
        assert found.raw.shape == (2, *grid)
        assert found.layer == "attention"
        assert (found.raw.flatten(1).std(1) > 0).all(), method
        assert not torch.equal(found.raw[0], found.raw[1])
        torch.testing.assert_close(found.scores, wanted, rtol=1e-9, atol=1e-12)
    assert_unchanged(stand, state_of(model))
    attention = seen[0].attention
    assert (attention.patches.start, attention.grid, len(attention.blocks)) == (before, grid, blocks)
    for block in attention.blocks:
        torch.testing.assert_close(block.weights.sum(3), torch.ones_like(block.weights[..., 0]))


# but for DETR, whose backbone spreads every pixel
@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if not row[3] and name != "detr"])
def test_the_patch_that_alone_was_changed_is_where_attention_changed(family, seen):
    """The first block's values change at the tokens of the patch that changed, and nowhere else."""
    model, batch, target = built(family)
    *_, grid, _, _ = FAMILIES[family]
    other = batch.clone()
    other[:, :, 8:16, 16:24] += 1.0  # row 1, column 2
    for one in (batch, other):
        glowmap.explain(model, one, target=target, method="rollout")
    values = [one.attention.blocks[0].values for one in seen]
    changed = (values[0] - values[1]).abs().sum((1, 3))
    place = seen[0].attention.maps(changed)
    assert (place[:, 1, 2] > 1e-6).all()
    assert int((place > 1e-9).sum()) == 2
    assert place.shape[1:] == grid


@every_family
def test_a_batch_is_its_images_one_by_one(family):
    model, batch, target = built(family)
    methods = [method for method in METHODS if (family, method) not in REFUSED]
    together = glowmap.explain(model, batch, target=target, method=methods)
    for number in (0, 1):
        image = slice(number, number + 1)
        single = {name: value[image] for name, value in batch.items()} if isinstance(batch, dict) else batch[image]
        for method, expected, found in zip(
            methods, together, glowmap.explain(model, single, target=target, method=methods), strict=True
        ):
            assert expected.method == found.method == method
            scale = float(expected.raw.abs().max())
            torch.testing.assert_close(found.raw[0], expected.raw[number], rtol=1e-8, atol=1e-10 * scale)


# -- as the library itself computes it -----------------------------------------------------------------------------------


def hugging_face(name):
    """Take a model of transformers as it is, and one with the same weights that gives its attention back."""
    model, batch, _ = built(name)
    config = type(model.config).from_dict(model.config.to_dict())
    for part in (config, getattr(config, "vision_config", None), getattr(config, "text_config", None)):
        if part is not None:
            part._attn_implementation = "eager"
    eager = type(model)(config).double().eval()
    eager.load_state_dict(model.state_dict())
    return model, eager, batch


@pytest.mark.parametrize("name", ["vit sdpa", "vit eager", "deit", "dinov2", "dinov2 registers", "clip vision", "beit"])
def test_hugging_face_gives_the_same_attention_and_gradients(name, seen):
    model, eager, batch = hugging_face(name)
    target = FAMILIES[name][2]
    score = target if callable(target) else lambda output: output.logits[:, target]
    found = {method: glowmap.explain(model, batch, target=target, method=method).raw for method in METHODS}
    output = eager(batch, output_attentions=True)
    assert len(output.attentions) == 3
    gradients = torch.autograd.grad(score(output).sum(), output.attentions)
    evidence = next(one for one in seen)
    for ours, theirs, gradient, slope in zip(
        evidence.attention.blocks, output.attentions, gradients, evidence.weight_gradients, strict=True
    ):
        # eager attention takes its softmax in single precision, also of double
        torch.testing.assert_close(ours.weights, theirs.detach(), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(slope, gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))
    if name in ("beit", "dinov2", "dinov2 registers", "deit"):
        return  # which read more than the class token
    before, grid = evidence.attention.patches.start, evidence.attention.grid
    read = np.eye(theirs.shape[-1])[0]
    for image in (0, 1):
        P, G = ([one[image].detach().numpy() for one in several] for several in (output.attentions, gradients))
        places = slice(before, before + grid[0] * grid[1])
        for method, wanted in (("rollout", TWINS["rollout"](P, read)), ("gae", TWINS["gae"](P, G, read))):
            np.testing.assert_allclose(
                found[method][image].flatten(), wanted[places], rtol=1e-5, atol=1e-6 * wanted[places].max()
            )


@pytest.mark.parametrize("name", ["timm", "timm averaged", "timm registers", "timm distilled", "timm eva", "timm beit"])
def test_timm_gives_the_same_attention(name, seen):
    model, batch, target = built(name)
    fused = {method: glowmap.explain(model, batch, target=target, method=method).raw for method in METHODS}
    theirs = []
    for block in model.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _module, _inputs, output: theirs.append(output.detach()))
    with torch.no_grad():
        model(batch)
    for ours, own_weights in zip(seen[0].attention.blocks, theirs, strict=True):
        torch.testing.assert_close(ours.weights, own_weights, rtol=1e-9, atol=1e-12)
    for method in METHODS:
        eager = glowmap.explain(model, batch, target=target, method=method).raw
        torch.testing.assert_close(eager, fused[method], rtol=1e-7, atol=1e-9 * float(eager.abs().max()))


@pytest.mark.parametrize("name", ["torchvision", "open_clip"])
def test_multi_head_attention_gives_the_same_attention(name, seen):
    model, batch, target = built(name)
    glowmap.explain(model, batch, target=target, method="rollout")
    theirs, handles = [], []
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):

            def asking(_module, arguments, keywords):
                return arguments, keywords | {"need_weights": True, "average_attn_weights": False}

            handles.append(module.register_forward_pre_hook(asking, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda _m, _i, output: theirs.append(output[1].detach())))
    with torch.no_grad():
        model(batch)
    assert len(theirs) == 3
    for ours, own_weights in zip(seen[0].attention.blocks, theirs, strict=True):
        torch.testing.assert_close(ours.weights, own_weights, rtol=1e-9, atol=1e-12)


def test_detr_gives_the_same_attention(seen):
    model, eager, batch = hugging_face("detr")
    score = FAMILIES["detr"][2]
    found = glowmap.explain(model, batch, target=score, method="gae").raw
    output = eager(batch, output_attentions=True)
    kinds = [output.encoder_attentions, output.decoder_attentions, output.cross_attentions]
    theirs = [weights for kind in kinds for weights in kind]
    gradients = dict(
        zip(map(id, theirs), torch.autograd.grad(score(output).sum(), theirs, retain_graph=True), strict=True)
    )
    for image in (0, 1):

        def pair(weights, image=image):
            return weights[image].detach().numpy(), gradients[id(weights)][image].numpy()

        encoder = [pair(weights) for weights in kinds[0]]
        decoder = [
            (kind, *pair(weights))
            for both in zip(kinds[1], kinds[2], strict=True)
            for kind, weights in zip(("self", "cross"), both, strict=True)
        ]
        wanted = papers.attention.chefer_encoder_and_decoder(encoder, decoder, np.eye(6)[2])
        np.testing.assert_allclose(found[image].flatten(), wanted, rtol=1e-7, atol=1e-10 * wanted.max())


# -- the operations that are watched -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case", ["plain", "causal", "allowed", "added", "nowhere", "scaled", "grouped", "flat", "longer keys"]
)
def test_scaled_dot_product_attention_is_what_it_was(case, dtype):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    heads, keys = (2 if case == "grouped" else 4), (9 if case == "longer keys" else 6)
    q, k, v = drawn(2, 4, 6, 8), drawn(2, heads, keys, 8), drawn(2, heads, keys, 8)
    if case == "flat":
        q, k, v = (one[0] for one in (q, k, v))
    options = {
        "causal": {"is_causal": True},
        "allowed": {"attn_mask": torch.rand(6, 6, generator=generator) < 0.7},
        "added": {"attn_mask": drawn(2, 1, 6, 6)},
        "nowhere": {"attn_mask": torch.arange(6)[:, None].expand(6, 6) > 0},  # the first may look at nothing
        "scaled": {"scale": 0.9},
        "grouped": {"enable_gqa": True},
    }.get(case, {})
    wanted = F.scaled_dot_product_attention(q, k, v, **options)
    with AttentionRecorder() as watcher:
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, **options)
    assert found.dtype == dtype
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(found, wanted, rtol=close, atol=close)
    (one,) = watcher.calls
    assert one.weights.dtype == torch.promote_types(dtype, torch.float32)
    assert not one.weights.isnan().any()
    sums = one.weights.sum(-1)
    if case == "nowhere":
        assert not sums[..., 0].any()
        sums = sums[..., 1:]
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("options", [{}, {"need_weights": False}, {"average_attn_weights": False}])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_multi_head_attention_is_what_it_was(options, batch_first, masked):
    layer = made(nn.MultiheadAttention, 8, 2, batch_first=batch_first, kdim=6, vdim=6)
    query, key = torch.randn(2, 5, 8).double(), torch.randn(2, 7, 6).double()
    if not batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    if masked:
        options = options | {"key_padding_mask": torch.arange(7).expand(2, 7) > torch.tensor([[4], [6]])}
    wanted = layer(query, key, key, **options)
    with AttentionRecorder() as watcher:
        found = layer(query, key, key, **options)
    torch.testing.assert_close(found[0], wanted[0])
    assert (found[1] is None) == (wanted[1] is None)
    if wanted[1] is not None:
        torch.testing.assert_close(found[1], wanted[1])
    assert watcher.calls[0].weights.shape == (2, 2, 5, 7)


def test_multi_head_attention_without_a_batch():
    layer, tokens = made(nn.MultiheadAttention, 8, 2), torch.randn(5, 8).double()
    wanted = layer(tokens, tokens, tokens)
    with AttentionRecorder():
        found = layer(tokens, tokens, tokens)
    torch.testing.assert_close(found, wanted)


class Encoder(nn.Module):
    """torch's own encoder, which has a native path that computes whole layers at once."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        return self.head(self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


def test_the_native_path_is_not_taken(monkeypatch):
    model, batch, taken = Encoder().eval(), images(2, 12, 16), []
    native = torch._transformer_encoder_layer_fwd

    def noted(*arguments):
        taken.append(1)
        return native(*arguments)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", noted)
    with torch.no_grad():
        wanted = model(batch)
    assert len(taken) == 2  # else this test would prove nothing
    taken.clear()
    for method in METHODS:
        found = glowmap.explain(model.requires_grad_(False), batch, target=1, method=method)
        assert float(found.raw.std()) > 0
        torch.testing.assert_close(found.scores, wanted[:, 1], rtol=1e-4, atol=1e-5)


class Mixing(Transformer):
    """Heads that talk to each other after the softmax, and weights that are cut and cast before they meet the values."""

    def forward(self, images):
        tokens = self.patches(images)
        for block in self.blocks:
            attend, normed = block.attend, block.norm1(tokens)
            q, k, v = (attend.split(part(normed)) for part in (attend.q, attend.k, attend.v))
            scores = (q @ k.transpose(-1, -2)).mul_(0.5).masked_fill(torch.zeros(1, 1, 1, 1, dtype=torch.bool), -1e9)
            weights = self.talk(nn.Softmax(dim=-1)(scores + 0.1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
            self.used.append(weights.detach())
            tokens = tokens + attend.out((weights @ v).transpose(1, 2).flatten(2))
            tokens = tokens + block.mlp(block.norm2(tokens))
        return self.head(self.norm(tokens)[:, 0])


def test_heads_that_talk_to_each_other(seen):
    model = made(Mixing)
    model.talk, model.used = nn.Linear(2, 2).double(), []
    batch = pictures()
    for method in ("rollout", "gae", "grad_eclip"):
        assert float(glowmap.explain(model, batch, target=1, method=method).raw.std()) > 0
    for block, used in zip(seen[0].attention.blocks, model.used[:3], strict=True):
        torch.testing.assert_close(block.weights, used)
        assert block.queries is not None
    with pytest.raises(MethodError, match="the modules of Mixing do not return the tokens of each block"):
        glowmap.explain(model, batch, target=1, method="legrad")


class Apart(Transformer):
    """Attention as a module, the residual around it outside: no module returns the tokens of a block."""

    def forward(self, images):
        tokens = self.patches(images)
        for block in self.blocks:
            tokens = tokens + block.attend(block.norm1(tokens))
            tokens = tokens + block.mlp(block.norm2(tokens))
        return self.head(self.norm(tokens)[:, 0])


def test_legrad_refuses_modules_that_are_not_the_blocks():
    whole, apart, batch = made(Transformer), made(Apart), pictures()
    for method in ("rollout", "gae", "grad_eclip"):
        wanted = glowmap.explain(whole, batch, target=1, method=method).raw
        torch.testing.assert_close(glowmap.explain(apart, batch, target=1, method=method).raw, wanted)
    with pytest.raises(MethodError, match=r"do not return the tokens of each block.*use gae or rollout"):
        glowmap.explain(apart, batch, target=1, method="legrad")


# -- what is refused -------------------------------------------------------------------------------------------------------


def small(name, **keywords):
    return timm.create_model(name, num_classes=5, **keywords).eval()


@pytest.mark.parametrize(
    ("make", "side", "told"),
    [
        (Classifier, 16, "no attention was seen in Classifier: it has none"),
        (lambda: small("efficientvit_b0"), 64, "no attention was seen in EfficientVit"),
        (
            lambda: tv.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=5),
            64,
            r"the attention of SwinTransformer \(32 x 2 x 16 x 16\) does not have one row an image: it goes within windows",
        ),
        (
            lambda: tm.hiera.Hiera(
                img_size=(64, 64), embed_dim=8, num_heads=1, stages=(1, 1, 1), q_pool=2, mask_unit_size=(4, 4)
            ),
            64,
            "the attention of Hiera .* within windows or along axes",
        ),
        (lambda: small("pit_ti_224"), 224, r"PoolingVisionTransformer attend over several grids .* \(730, 197, 50\)"),
        (lambda: small("levit_128s"), 224, r"LevitDistilled attend over several grids .* \(196, 49, 16\)"),
        (lambda: small("pvt_v2_b0"), 64, "PyramidVisionTransformerV2 attend over several grids or joined sequences"),
        (
            lambda: tm.xcit.Xcit(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5),
            32,
            r"the tokens that attend in Xcit \(8, 1, 17\) are no grid",
        ),
    ],
)
@pytest.mark.parametrize("method", ["rollout", "legrad"])
def test_attention_that_cannot_be_followed_is_refused(make, side, told, method):
    with pytest.raises(MethodError, match=rf"{told}.*use grad_cam or layer_cam"):
        glowmap.explain(make().eval(), images(2, side, side), target=1, method=method)


def test_class_attention_is_read_out_and_joins_tokens():
    """CaiT: the class token comes in late, and looks at itself and the patches together."""
    model = tm.cait.Cait(**TIMM).double().eval()
    batch = pictures(32, 48)
    for method in ("rollout", "legrad", "grad_eclip"):
        raw = glowmap.explain(model, batch, target=1, method=method).raw
        assert raw.shape == (2, 4, 6)
        assert float(raw.std()) > 0
    with pytest.raises(MethodError, match="no chain of attentions leads from the patches to what Cait reads out"):
        glowmap.explain(model, batch, target=1, method="gae")


class Blind(Transformer):
    def forward(self, images):
        with torch.no_grad():
            return super().forward(images)


class Random(Transformer):
    def forward(self, images):
        return super().forward(images) + torch.rand(4)


@every_method
def test_a_score_without_a_gradient_is_refused(method):
    with pytest.raises(MethodError, match=r"knows nothing of the picture.*torch.no_grad\(\)"):
        glowmap.explain(made(Blind), pictures(), target=1, method=method)
    with pytest.raises(TargetError, match="the score carries no gradient to the attention"):
        glowmap.explain(made(Transformer), pictures(), target=lambda logits: logits[:, 1].detach(), method=method)


@every_method
def test_a_head_of_zeros_is_refused(method):
    model = made(Transformer)
    model.head.weight.data.zero_()
    with pytest.raises(MethodError, match="the score depends on no attention over the patches in Transformer"):
        glowmap.explain(model, pictures(), target=1, method=method)


@pytest.mark.parametrize("method", ["rollout", "gae"])
def test_an_image_whose_score_reads_no_token_is_named(method):
    def score(logits):
        return logits[:, 1] * torch.tensor([1.0, 0.0])

    with pytest.raises(MethodError, match="the score of image 1 depends on no token of the last block of Transformer"):
        glowmap.explain(made(Transformer), pictures(), target=score, method=method)


@every_method
def test_a_model_that_depends_on_chance_is_refused(method):
    with pytest.raises(MethodError, match="Random answers otherwise when it is run again with its attention watched"):
        glowmap.explain(made(Random), pictures(), target=1, method=method)


def test_grad_eclip_refuses_scores_that_are_no_product(monkeypatch):
    def additive(self, asking, asked=None):
        q, k, v = (self.split(part(asking)) for part in (self.q, self.k, self.v))
        weights = torch.tanh(q[:, :, :, None] + k[:, :, None]).sum(-1).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))

    monkeypatch.setattr(Attend, "forward", additive)
    model = made(Transformer)
    assert float(glowmap.explain(model, pictures(), target=1, method="gae").raw.std()) > 0
    with pytest.raises(MethodError, match="no plain product of queries and keys, which grad_eclip compares"):
        glowmap.explain(model, pictures(), target=1, method="grad_eclip")


# -- promises ----------------------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("training", [False, True])
def test_all_is_given_back(method, training):
    model = made(Transformer).train(training)
    model(pictures()).sum().backward()
    batch = pictures().requires_grad_()
    before, kept = state_of(model), batch.detach().clone()
    wanted = glowmap.explain(made(Transformer), pictures(), target=1, method=method)
    found = glowmap.explain(model, batch, target=1, method=method)
    assert_equal_up_to_rounding(found.raw, wanted.raw)
    assert_unchanged(before, state_of(model))
    assert torch.equal(batch, kept)
    assert batch.grad is None


@every_method
def test_all_is_given_back_after_an_exception(method):
    model = made(Transformer)
    before = state_of(model)

    def fail(*_):
        raise RuntimeError("in the middle")

    handle = model.blocks[2].register_forward_hook(fail)
    with pytest.raises(glowmap.errors.GlowmapError, match="in the middle"):
        glowmap.explain(model, pictures(), target=1, method=method)
    handle.remove()
    assert_unchanged(before, state_of(model))
    assert all("forward" not in module.__dict__ for module in model.modules())


@every_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_under_no_grad_get_the_same_map(method, mode):
    model = made(Transformer)
    wanted = glowmap.explain(model, pictures(), target=1, method=method).raw
    with mode():
        assert torch.equal(glowmap.explain(model, pictures(), target=1, method=method).raw, wanted)


@every_method
@pytest.mark.parametrize("how", ["eager", "fused"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_where_it_is_safe(method, how, dtype):
    model, batch = made(Transformer, how), pictures()
    wanted = glowmap.explain(model, batch, target=1, method=method).raw
    found = glowmap.explain(model.to(dtype), batch.to(dtype), target=1, method=method).raw
    assert found.dtype == torch.float32
    assert float(torch.corrcoef(torch.stack([found.flatten(), wanted.flatten().float()]))[0, 1]) > 0.98


@every_method
def test_autocast(method):
    model, batch = made(Transformer, "fused").float(), pictures().float()
    wanted = glowmap.explain(model, batch, target=1, method=method).raw
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = glowmap.explain(model, batch, target=1, method=method).raw
    assert float(torch.corrcoef(torch.stack([found.flatten(), wanted.flatten()]))[0, 1]) > 0.98


def test_several_methods_and_questions_beside_a_layer():
    model, batch = made(Transformer), pictures()
    found = glowmap.explain(
        model, batch, target=[0, 1], method=["legrad", "hires_cam", "input_gradient"], layer="blocks.1"
    )
    assert [(one.method, one.layer) for one in found] == [
        ("legrad", "attention"),
        ("hires_cam", "blocks.1"),
        ("input_gradient", "input"),
    ] * 2
    for number, target in ((0, 0), (3, 1)):
        alone = glowmap.explain(model, batch, target=target, method="legrad").raw
        assert_equal_up_to_rounding(found[number].raw, alone)


@every_method
def test_flips_are_laid_back(method):
    model, batch = made(Transformer), pictures()
    smooth = glowmap.explain(model, batch, target=1, method=method, smooth="flips").raw
    plain = glowmap.explain(model, batch, target=1, method=method).raw
    flipped = glowmap.explain(model, batch.flip(3), target=1, method=method).raw.flip(2)
    torch.testing.assert_close(smooth, (plain + flipped) / 2)


def test_the_models_own_answer_is_the_question_of_every_block():
    """None asks for the likeliest class; a block's own score must be of that class, and not of its own likeliest."""
    model, batch = made(Transformer), pictures()
    labels = model(batch).argmax(1)
    wanted = glowmap.explain(model, batch, target=labels, method="legrad").raw
    assert torch.equal(glowmap.explain(model, batch, method="legrad").raw, wanted)


@pytest.mark.parametrize("words", [8, 64])  # 64 are as many as the patches
def test_legrad_reads_the_pooler_of_the_picture_and_not_the_text_tower(words):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.SiglipConfig(
        vision_config={**sizes, "image_size": 64, "patch_size": 8},
        text_config={**sizes, "vocab_size": 99, "max_position_embeddings": 64},
    )
    model, pictures = transformers.SiglipModel(config).eval(), images(1, 64, 64)
    ids = torch.randint(3, 90, (2, words))
    with torch.no_grad():
        texts = nn.functional.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=1)

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.vision = model.vision_model

        def forward(self, pixel_values):
            picture = nn.functional.normalize(self.vision(pixel_values).pooler_output, dim=1)
            return picture @ texts.T * model.logit_scale.exp()

    both = glowmap.explain(model, {"pixel_values": pictures, "input_ids": ids}, target=1, method="legrad")
    tower = glowmap.explain(Tower().eval(), pictures, target=1, method="legrad")
    torch.testing.assert_close(both.raw, tower.raw, rtol=1e-4, atol=1e-6)
