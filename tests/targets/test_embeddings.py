"""Questions about embeddings, units and directions: scores and gradients by hand, layers found, and what is refused."""

import math
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import glowmap
from glowmap.errors import GlowmapError, InputError, LayerError, TargetError
from glowmap.targets import Direction, PerImage, Prototype, Similar, Unit
from tiny_models.convolutional import Classifier, Segmenter, images
from tiny_models.transformer import Transformer, made, pictures


class Backbone(nn.Module):
    """Convolutions and the mean over all places: an embedding of 8 features, and no head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh())
        self.features = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.Tanh())

    def forward(self, images):
        return self.features(self.first(images)).mean((2, 3))


def backbone():
    return Backbone().double().eval()


def batch(count=2, seed=1):
    return images(count, seed=seed).double()


def parts(model, given):
    """The activations and the embedding, by hand."""
    maps = model.features(model.first(given)).detach()
    return maps, maps.mean((2, 3))


# -- scores ------------------------------------------------------------------------------------------------------------


def test_similar_is_the_cosine_of_two_embeddings_as_torch_has_it():
    model, other = backbone(), batch(1, seed=5)
    found = glowmap.explain(model, batch(3), target=Similar(other), layer="features")
    wanted = F.cosine_similarity(model(batch(3)), model(other)).detach()
    torch.testing.assert_close(found.scores, wanted)
    assert found.target_names == ("similar to the given picture",) * 3


@pytest.mark.parametrize("given", [torch.tensor, np.array, list])
def test_a_prototype_is_a_vector_or_the_mean_of_several(given):
    model = backbone()
    several = [[1.0, 2, 0, 0, 0, 0, 0, 3], [3.0, 0, 0, 1, 0, 0, 0, -1]]
    mean = torch.tensor([2.0, 1, 0, 0.5, 0, 0, 0, 1]).double()
    found = glowmap.explain(model, batch(), target=Prototype(given(several), "dogs"), layer="features")
    wanted = [(e @ mean / (e.norm() * mean.norm())).item() for e in model(batch()).detach()]
    torch.testing.assert_close(found.scores, torch.tensor(wanted).double())
    single = glowmap.explain(model, batch(), target=Prototype(given(mean.tolist())), layer="features")
    torch.testing.assert_close(single.raw, found.raw)
    assert found.target_names[0] == "similar to dogs"


def test_normalising_is_inside_the_graph():
    """d cos / d A[k, cell] = (v_k / |v| - cos e_k / |e|) / (|e| cells); HiResCAM is that times A, and so adds up to 0."""
    model, vector = backbone(), torch.randn(8).double()
    maps, embedding = parts(model, batch())
    found = glowmap.explain(model, batch(), target=Prototype(vector), layer="features", method="hires_cam")
    cells = maps[0, 0].numel()
    for image in range(2):
        e, v = embedding[image], vector / vector.norm()
        cosine = e @ v / e.norm()
        slope = (v - cosine * e / e.norm()) / e.norm() / cells
        torch.testing.assert_close(found.raw[image], torch.einsum("k,kij->ij", slope, maps[image]))
        assert abs(cosine) > 1e-3  # what it would add up to if the length were held fixed
        assert abs(float(found.raw[image].sum())) < 1e-9


def test_each_picture_may_be_likened_to_another():
    model, others = backbone(), [batch(1, seed=seed) for seed in (5, 6)]
    found = glowmap.explain(model, batch(), target=PerImage([Similar(one) for one in others]), layer="features")
    for image, other in enumerate(others):
        single = glowmap.explain(model, batch()[image : image + 1], target=Similar(other), layer="features")
        torch.testing.assert_close(found.raw[image], single.raw[0])
        torch.testing.assert_close(found.scores[image], single.scores[0])


def test_a_direction_is_the_part_of_the_embedding_along_it():
    model, vector = backbone(), 3 * torch.randn(8).double()
    maps, embedding = parts(model, batch())
    found = glowmap.explain(
        model, batch(), target=Direction(vector, name="stripes"), layer="features", method="hires_cam"
    )
    torch.testing.assert_close(found.scores, embedding @ vector / math.sqrt(float(vector.square().sum())))
    wanted = torch.einsum("k,bkij->bij", vector / vector.norm(), maps) / maps[0, 0].numel()
    torch.testing.assert_close(found.raw, wanted)
    assert found.target_names[0] == "stripes"


def test_a_direction_at_a_layer_is_along_its_pooled_or_its_whole_output():
    model = backbone()
    early = model.first(batch()).detach()
    for vector, features in (
        (torch.randn(6).double(), early.mean((2, 3))),
        (torch.randn(early[0].numel()).double(), early.flatten(1)),
    ):
        found = glowmap.explain(model, batch(), target=Direction(vector, "first"), layer="first", method="hires_cam")
        torch.testing.assert_close(found.scores, features @ vector / vector.norm())
        along = vector / vector.norm()
        slope = along.reshape(early[0].shape) if len(vector) > 6 else along[:, None, None] / early[0, 0].numel()
        torch.testing.assert_close(found.raw, (early * slope).sum(1))
        assert found.target_names[0] == "direction at first"


def test_a_unit_is_a_feature_or_the_mean_of_a_channel():
    model = backbone()
    _, embedding = parts(model, batch())
    early = model.first(batch()).detach()
    found = glowmap.explain(model, batch(), target=[Unit(5), Unit(2, "first")], layer="first", method="hires_cam")
    torch.testing.assert_close(found[0].scores, embedding[:, 5])
    torch.testing.assert_close(found[1].scores, early[:, 2].mean((1, 2)))
    torch.testing.assert_close(found[1].raw, early[:, 2] / early[0, 0].numel())
    assert [one.target_names[0] for one in found] == ["unit 5 of the embedding", "unit 2 of first"]


def test_a_unit_at_its_highest_place_or_at_a_given_one():
    model = backbone()
    channel = model.first(batch()).detach()[:, 4]
    found = glowmap.explain(model, batch(), target=Unit(4, "first", "max"), layer="first")
    torch.testing.assert_close(found.scores, channel.amax((1, 2)))
    assert found.method == "hires_cam"  # one place of many is meant
    torch.testing.assert_close(found.raw, torch.where(channel == channel.amax((1, 2), keepdim=True), channel, 0.0))
    placed = glowmap.explain(model, batch(), target=Unit(4, "first", (3, 7)), layer="first")
    torch.testing.assert_close(placed.scores, channel[:, 3, 7])
    assert found.target_names[0] == "unit 4 of first at its highest"
    assert placed.target_names[0] == "unit 4 of first at (3, 7)"


def test_the_highest_place_stays_that_of_the_unchanged_picture():
    model, given = backbone(), batch(1)
    channel = model.features(model.first(given)).detach()[0, 4]
    row, column = divmod(int(channel.argmax()), channel.shape[1])
    method = glowmap.METHODS["rise"].with_parameters(masks=30, cells=3)
    found = glowmap.explain(model, given, target=Unit(4, "features", "max"), method=method)
    fixed = glowmap.explain(model, given, target=Unit(4, "features", (row, column)), method=method)
    torch.testing.assert_close(found.raw, fixed.raw)


@pytest.mark.parametrize(
    "question", [Unit(3, "features"), Unit(3, "features", "max"), Direction([1.0] * 8, "features"), Unit(1)]
)
def test_methods_that_ask_again_read_the_changed_layer(question):
    """Ablation-CAM from its equation, with a channel set to zero by hand."""
    model, given = backbone(), batch(1)
    maps = model.features(model.first(given)).detach()
    found = glowmap.explain(model, given, target=question, layer="features", method="ablation_cam")

    def score(changed):
        place = int(maps[0, 3].argmax())
        if isinstance(question, Direction):
            return changed.mean((2, 3))[0].sum() / math.sqrt(8)
        channel = changed[0, question.index]
        return channel.flatten()[place] if question.place == "max" else channel.mean()

    before, wanted = score(maps), torch.zeros_like(maps[0, 0])
    for channel in range(8):
        without = maps.clone()
        without[:, channel] = 0
        wanted += (before - score(without)) * maps[0, channel]
    torch.testing.assert_close(found.raw[0], wanted, rtol=1e-5, atol=1e-8)


def test_each_image_has_its_own_unit():
    model = backbone()
    early = model.first(batch()).detach()
    found = glowmap.explain(model, batch(), target=PerImage([Unit(2, "first"), Unit(5, "first")]), layer="first")
    torch.testing.assert_close(found.scores, torch.stack([early[0, 2].mean(), early[1, 5].mean()]))


class Twice(nn.Module):
    """A layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.Tanh())

    def forward(self, images):
        return self.body(self.body(images)).mean((2, 3))


def test_a_run_of_a_layer_is_told_by_its_number():
    model, given = Twice().eval(), images()
    first = model.body(given).detach()
    found = glowmap.explain(model, given, target=[Unit(1, "body#1"), Unit(1, "body")], method="rise")
    torch.testing.assert_close(found[0].scores, first[:, 1].mean((1, 2)))
    torch.testing.assert_close(found[1].scores, model.body(first).detach()[:, 1].mean((1, 2)))


class Last(nn.Module):
    """Channels last, as many as there are columns."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 4, 4), nn.LayerNorm(5)

    def forward(self, images):
        return self.norm(self.conv(images).movedim(1, -1)).mean((1, 2))


def test_channels_are_found_where_they_come_last_and_in_tokens():
    model, given = Last().eval(), images()  # 4 x 5 cells of 5 channels
    found = glowmap.explain(model, given, target=Unit(3, "norm"), layer="conv")
    torch.testing.assert_close(found.scores, model.norm(model.conv(given).movedim(1, -1))[..., 3].mean((1, 2)).detach())
    transformer, given = made(Transformer, before=2), pictures()
    tokens = transformer.blocks[0](transformer.patches(given)).detach()
    found = glowmap.explain(transformer, given, target=Unit(3, "blocks.0"), layer="blocks.0", method="hires_cam")
    torch.testing.assert_close(found.scores, tokens[:, 2:, 3].mean(1))  # the places are the patches alone
    torch.testing.assert_close(found.raw.flatten(1), tokens[:, 2:, 3] / 12)
    whole = torch.randn(14 * 8).double()
    found = glowmap.explain(transformer, given, target=Direction(whole, "blocks.0"), layer="patches")
    torch.testing.assert_close(found.scores, tokens.flatten(1) @ whole / whole.norm())


# -- layers ------------------------------------------------------------------------------------------------------------


def headless():
    from torchvision.models import resnet18

    model = resnet18().eval()
    model.fc = nn.Identity()
    return model.eval()


def test_the_layer_is_found_without_a_head_and_no_note_doubts_the_embedding():
    model = headless()
    found = glowmap.explain(model, images(2, 64, 64), target=Similar(images(1, 64, 64, seed=7)))
    assert found.layer == "layer4"
    assert not [caution for caution in found.cautions if "embedding" in caution]


def test_a_class_token_is_read_before_the_last_block_mixes_it():
    """After the last block's attention the patches have no gradient: another layer must be found."""
    model, given = made(Transformer), pictures()
    model.head = nn.Identity()
    found = glowmap.explain(model, given, target=Unit(3))
    last = glowmap.explain(model, given, target=Unit(3), layer="blocks.2")
    assert found.layer in ("blocks.1", "blocks.2.norm1")
    assert float(found.raw.std()) > 0
    assert float(last.raw.abs().max()) == 0
    assert any("zero everywhere" in caution for caution in last.cautions)


def test_a_layer_is_found_that_the_unit_depends_on():
    model = headless()
    given = images(1, 64, 64)
    for name in ("layer2", "layer3", "layer2.0.conv1"):
        found = glowmap.explain(model, given, target=Unit(3, name))
        order = [one for one, _ in model.named_modules()]
        assert order.index(found.layer) <= order.index(name)
        assert not any("zero everywhere" in caution for caution in found.cautions)


def test_questions_about_other_things_keep_the_layer_of_their_own():
    classifier = Classifier().eval()
    unit, category, again = glowmap.explain(
        classifier, images(), target=[Unit(2, "features.0"), 1, Unit(2, "features.0")]
    )
    alone = glowmap.explain(Classifier().eval(), images(), target=1)
    assert category.layer == alone.layer != unit.layer == again.layer
    assert unit.layer == "features.0"


def test_the_layer_found_is_remembered(monkeypatch):
    model, runs = backbone(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    for question in (Unit(1), Unit(2, "first"), Prototype([1.0] * 8)):
        first = glowmap.explain(model, batch(1), target=question)
        before = len(runs)
        again = glowmap.explain(model, batch(1), target=question)
        assert len(runs) - before == 1 + bool(getattr(question, "layer", None))  # one to see how the unit's layer lies
        assert first.layer == again.layer


# -- embeddings of many kinds of output --------------------------------------------------------------------------------


class Answering(nn.Module):
    def __init__(self, made, **given):
        super().__init__()
        self.body, self.made = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh()), made
        for name, value in given.items():
            setattr(self, name, value)

    def forward(self, images):
        return self.made(self.body(images))


class Named:
    def __init__(self, **parts):
        vars(self).update(parts)


def tokens(maps):
    return maps.flatten(2).transpose(1, 2)


TOKEN = {"cls_token": nn.Parameter(torch.zeros(1))}
READINGS = {
    "vectors": (lambda maps: maps.amax((2, 3)), {}, lambda maps: maps.amax((2, 3))),
    "a tuple": (lambda maps: (maps.amax((2, 3)), maps), {}, lambda maps: maps.amax((2, 3))),
    "maps": (lambda maps: maps, {}, lambda maps: maps.mean((2, 3))),
    "maps with channels last": (lambda maps: maps.movedim(1, -1), {"num_features": 4}, lambda maps: maps.mean((2, 3))),
    "tokens": (tokens, {}, lambda maps: maps.mean((2, 3))),
    "tokens with a class token": (tokens, TOKEN, lambda maps: maps[:, :, 0, 0]),
    "image_embeds": (
        lambda maps: {"last_hidden_state": maps, "image_embeds": maps.amin((2, 3))},
        {},
        lambda maps: maps.amin((2, 3)),
    ),
    "image_features": (lambda maps: {"image_features": maps.amin((2, 3))}, {}, lambda maps: maps.amin((2, 3))),
    "pooler_output": (
        lambda maps: {"last_hidden_state": tokens(maps), "pooler_output": maps.amax((2, 3), keepdim=True)},
        {},
        lambda maps: maps.amax((2, 3)),
    ),
    "last_hidden_state": (lambda maps: {"last_hidden_state": tokens(maps)}, TOKEN, lambda maps: maps[:, :, 0, 0]),
    "attributes": (lambda maps: Named(embedding=maps.amax((2, 3))), {}, lambda maps: maps.amax((2, 3))),
}


@pytest.mark.parametrize("kind", READINGS)
def test_an_embedding_is_read_from(kind):
    made_of, given, by_hand = READINGS[kind]
    model = Answering(made_of, **given).double().eval()
    found = glowmap.explain(model, batch(), target=Direction([1.0, -2, 0.5, 3]), layer="body", method="hires_cam")
    leaf = model.body(batch()).detach().requires_grad_()
    wanted = by_hand(leaf) @ torch.tensor([1.0, -2, 0.5, 3]).double() / math.sqrt(14.25)
    (slope,) = torch.autograd.grad(wanted.sum(), leaf)
    torch.testing.assert_close(found.scores, wanted.detach())
    torch.testing.assert_close(found.raw, (leaf * slope).sum(1).detach())


def test_towers_of_transformers_are_read():
    from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel, ViTConfig, ViTModel

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    vit = ViTModel(ViTConfig(**small, intermediate_size=32), add_pooling_layer=False).eval()
    dino = Dinov2Model(Dinov2Config(**small)).eval()
    resnet = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")).eval()
    given, other = images(2, 32, 32), images(1, 32, 32, seed=7)
    for model, read in (
        (vit, lambda output: output.last_hidden_state[:, 0]),
        (dino, lambda output: output.pooler_output),
        (resnet, lambda output: output.pooler_output.flatten(1)),
    ):
        found = glowmap.explain(model, given, target=Similar(other))
        wanted = F.cosine_similarity(read(model(given)), read(model(other))).detach()
        torch.testing.assert_close(found.scores, wanted)
        assert float(found.raw.std()) > 0


def test_timms_models_without_a_head_are_read():
    import timm

    for name, size in (("vit_tiny_patch16_224", 224), ("resnet10t", 64)):
        model = timm.create_model(name, num_classes=0).eval()
        given, other = images(1, size, size), images(1, size, size, seed=7)
        found = glowmap.explain(model, given, target=Similar(other))
        torch.testing.assert_close(found.scores, F.cosine_similarity(model(given), model(other)).detach())
        assert float(found.raw.std()) > 0


def clip():
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = (
        {**small, "image_size": 32, "patch_size": 8},
        {**small, "vocab_size": 50, "max_position_embeddings": 8},
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()


def test_clip_is_asked_about_pictures_with_its_texts_beside_them():
    model, given, other = clip(), images(2, 32, 32), images(1, 32, 32, seed=7)
    beside = {"pixel_values": given, "input_ids": torch.randint(3, 49, (3, 6))}
    found = glowmap.explain(model, beside, target=Similar(other))
    embedded = [model.get_image_features(one).pooler_output for one in (given, other)]
    torch.testing.assert_close(found.scores, F.cosine_similarity(*embedded).detach())
    assert found.layer.startswith("vision_model.")


def test_open_clip_is_asked_about_pictures_alone():
    from open_clip.model import CLIP

    vision = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    model, given, other = CLIP(12, vision, text).eval(), images(2, 32, 32), images(1, 32, 32, seed=7)
    found = glowmap.explain(model, given, target=Similar(other))
    wanted = F.cosine_similarity(model.encode_image(given), model.encode_image(other)).detach()
    torch.testing.assert_close(found.scores, wanted)
    assert float(found.raw.std()) > 0


def test_pictures_are_read_as_the_model_reads_them(street):
    model = glowmap.load(Backbone().eval(), size=32, mean=0.5, std=0.5)
    found = glowmap.explain(model, street, target=Similar(np.asarray(np.zeros((20, 30, 3), np.uint8))))
    black = torch.full((1, 3, 32, 32), -1.0)
    seen = model.read(street).images
    torch.testing.assert_close(found.scores, F.cosine_similarity(model.module(seen), model.module(black)).detach())


# -- what is said beside, and refused ----------------------------------------------------------------------------------


def test_class_scores_are_no_embedding_where_they_are_known_as_such():
    named = glowmap.load(Classifier().eval(), classes=["a", "b", "c", "d"], mean=0.0, std=1.0)
    with pytest.raises(TargetError, match="returns the scores of 4 classes, not an embedding"):
        glowmap.explain(named, images(), target=Similar(images(1)))
    found = glowmap.explain(Classifier().eval(), images(), target=Similar(images(1, seed=7)))
    assert any("the 4 outputs of Classifier are taken as its embedding" in caution for caution in found.cautions)


def test_the_picture_itself_is_noted():
    found = glowmap.explain(backbone(), batch(), target=Similar(batch()[:1]), layer="features")
    (caution,) = [caution for caution in found.cautions if "in image 0 equals that of the given picture" in caution]
    assert caution.code == "embedding-identical"
    assert float(found.raw[0].abs().max()) < 1e-9 < float(found.raw[1].abs().max())


def test_a_picture_that_excites_nothing_is_similar_to_nothing():
    model = Answering(lambda maps: (maps - 2).relu().mean((2, 3))).eval()
    with pytest.raises(TargetError, match=r"the embedding in images 0, 1 is zero"):
        glowmap.explain(model, images(), target=Prototype([1.0] * 4), layer="body")


def test_a_changed_picture_that_excites_nothing_scores_0():
    """One channel alone speaks, so that without it the embedding is zero: Ablation-CAM is then cos (1, 0, 0, 0) times it."""
    model = Answering(lambda maps: maps.mean((2, 3))).eval()
    model.body[1] = nn.Sigmoid()
    gate = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).reshape(1, 4, 1, 1))
    model.body.append(Scaled(gate))
    found = glowmap.explain(model, images(), target=Prototype([1.0] * 4), layer="body", method="ablation_cam")
    torch.testing.assert_close(found.scores, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(found.raw, 0.5 * model.body(images()).detach()[:, 0])


class Scaled(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, maps):
        return maps * self.scale


def test_nothing_stays_in_the_model_also_after_an_error():
    model = Backbone().eval()
    for question in (Unit(1, "first"), Direction([1.0] * 6, "first"), Unit(99, "first")):
        with suppress(TargetError):
            glowmap.explain(model, images(), target=question)
        for part in model.modules():
            assert not part._forward_hooks
            assert not part._forward_pre_hooks


def forced(question, **fields):
    """Put in what the tests' own type checks would stop, and a user's interpreter does not."""
    for name, value in fields.items():
        object.__setattr__(question, name, value)
    return question


REFUSED = {
    "two pictures": (Similar(torch.zeros(2, 3, 16, 20)), "takes one picture, and 2 came"),
    "a vector too short": (Prototype([1.0, 2.0]), "has 2 numbers, but the embedding of Backbone has 8"),
    "a direction too short": (
        Direction([1.0, 2.0], name="red"),
        "red has 2 numbers, but the embedding of Backbone has 8",
    ),
    "at a layer": (Direction([1.0, 2.0], "first"), "has 6 channels and 480 numbers in all"),
    "zeros": (Prototype([0.0] * 8), "is zero and has no direction"),
    "NaN": (Direction([math.nan] * 8), "holds NaN or infinity"),
    "words": (Prototype(["a", "b"]), "is a vector with one number per feature"),
    "a square": (Direction(torch.ones(2, 8)), r"not the shape \(2, 8\)"),
    "no such unit": (Unit(8), "no unit 8 in the embedding of Backbone; give one from 0 to 7"),
    "no such channel": (Unit(-1, "first"), "no unit -1 in first; give one from 0 to 5"),
    "a unit by name": (forced(Unit(1), index="three"), "is given by its number"),
    "a place of the embedding": (Unit(1, place="max"), "the embedding has no grid"),
    "a place of three": (Unit(1, "first", (1, 2, 3)), "2 numbers from 0 in 8 x 10 cells"),
    "no such place": (Unit(1, "first", (8, 0)), r"no cell \(8, 0\)"),
    "a layer's module": (forced(Unit(1), layer=nn.Conv2d(1, 1, 1)), "its dotted name, not Conv2d"),
    "a kind": (Unit, "is a type, not an instance"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_clear_error_for(case):
    question, words = REFUSED[case]
    with pytest.raises(TargetError, match=words):
        glowmap.explain(Backbone().eval(), images(), target=question)


def test_an_unknown_layer_is_told_with_the_near_names():
    with pytest.raises(LayerError, match=r"no layer 'frist'.*first"):
        glowmap.explain(backbone(), batch(), target=Unit(1, "frist"))


def test_a_layer_that_does_not_run_cannot_be_asked_about():
    model = backbone()
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(TargetError, match="layer 'unused', whose output the target reads, did not run"):
        glowmap.explain(model, batch(), target=Unit(1, "unused"))


def test_a_layer_after_the_unit_does_not_move_it():
    with pytest.raises(GlowmapError, match="the score carries no gradient to layer 'features'"):
        glowmap.explain(backbone(), batch(), target=Unit(1, "first"), layer="features")


def test_flips_move_a_place_but_no_mean():
    model = backbone()
    assert glowmap.explain(model, batch(), target=Unit(1, "first"), smooth="flips").raw.isfinite().all()
    for question in (Unit(1, "first", "max"), Direction([1.0] * 480, "first")):
        with pytest.raises(TargetError, match="to other places, where .* does not read them; use noise"):
            glowmap.explain(model, batch(), target=question, smooth="flips")
        assert glowmap.explain(model, batch(), target=question, smooth="noise").raw.isfinite().all()


def test_an_output_without_an_embedding_is_refused():
    for model, words in (
        (Segmenter().eval(), "no embedding is found in the output of Segmenter, a dict with the keys out"),
        (Answering(lambda maps: maps.argmax(1)).eval(), "is not 2 images x features"),
    ):
        with pytest.raises(TargetError, match=words):
            glowmap.explain(model, images(), target=Unit(1), layer=next(name for name, _ in model.named_children()))


def test_a_path_needs_a_model_that_takes_pictures(street):
    with pytest.raises(InputError, match="without preprocessing"):
        glowmap.explain(backbone(), batch(), target=Similar(street))
