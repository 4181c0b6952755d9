"""Sentences put to models that compare pictures with texts, or match the one with the other."""

import re
import threading
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("transformers")
pytest.importorskip("open_clip")
pytest.importorskip("tokenizers")

import open_clip
import transformers as tr

import glowmap
from closeness import assert_equal_up_to_rounding
from glowmap.errors import GlowmapError, InputError, ModelError, TargetError
from glowmap.targets import Contrast, Not, PerImage, Probability, Similar, Text, top
from tiny_models.contrastive import (
    CAR,
    CAT,
    DOG,
    MATCHERS,
    OPEN,
    TEXT,
    TWO_TOWERS,
    VISION,
    blip,
    built,
    clip,
    open_resnet,
    open_vit,
    picture,
    pictures,
    processor,
    siglip,
    tokenizer,
    vilt,
    words,
)


def loaded(name, **options):
    """A model by its row's name, with its tokenizer."""
    if name in OPEN:
        return glowmap.load(built(OPEN[name]), processor=words(), mean=0.0, **options)
    return glowmap.load(built({**TWO_TOWERS, **MATCHERS}[name]), processor=processor(), **options)


def beside(model, images, texts):
    """What a user would put together by hand: the pictures, and what the library's own tokenizer makes of the texts."""
    if type(model.module).__module__.startswith("open_clip"):
        return {"image": images, "text": words()(texts, context_length=16)}
    if isinstance(model.module, tr.SiglipModel):
        tokens = tokenizer()(texts, padding="max_length", max_length=16, return_tensors="pt")
        return {"pixel_values": images, "input_ids": tokens["input_ids"]}
    tokens = tokenizer()(texts, padding=True, return_tensors="pt")
    return {"pixel_values": images, "input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


def logits(model, images, texts):
    """Image x text, by the library itself."""
    module, given = model.module, beside(model, images, texts)
    with torch.no_grad():
        if "image" in given:
            scale, bias = module.logit_scale.exp(), module.logit_bias
            likeness = scale * F.cosine_similarity(
                module.encode_image(images)[:, None], module.encode_text(given["text"])[None], dim=-1
            )
            return likeness if bias is None else likeness + bias
        return module(**given).logits_per_image


BOTH = [*TWO_TOWERS, *OPEN]


# --- the score


@pytest.mark.parametrize("name", BOTH)
def test_the_score_is_the_logit_that_the_library_computes(name):
    model = loaded(name)
    images = pictures(model.module, 2)
    wanted = logits(model, images, [DOG, CAR])
    found = glowmap.explain(model, images, target=[Text(DOG), Text(CAR)])
    for explanation, own in zip(found, wanted.T, strict=True):
        torch.testing.assert_close(explanation.scores, own, rtol=1e-4, atol=1e-4)
        assert (explanation.raw.abs().amax((1, 2)) > 0).all()
    assert found[0].target_names == (repr(DOG), repr(DOG))
    assert found[1].target_names == (repr(CAR), repr(CAR))
    assert not torch.allclose(wanted[:, 0], wanted[:, 1], atol=1e-3)


def test_siglip_reads_its_texts_padded_to_the_length_that_it_was_trained_on():
    model, images = loaded("siglip"), pictures(built(siglip))
    short = tokenizer()([DOG], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        unpadded = model.module(input_ids=short, pixel_values=images).logits_per_image
    score = glowmap.explain(model, images, target=Text(DOG)).scores
    assert abs(float(score - unpadded)) > 1e-2
    masked = model.text_interface.passes(model, model.read(images), [Text(DOG)])[0].batch.keywords
    assert set(masked) == {"pixel_values", "input_ids"}
    assert masked["input_ids"].shape == (1, 16)


def test_pictures_go_through_the_processor_that_came_with_the_tokenizer():
    model = loaded("clip")
    own = processor()(images=picture(), text=[DOG], return_tensors="pt")
    with torch.no_grad():
        wanted = model.module(**own).logits_per_image[0]
    found = glowmap.explain(model, picture(), target=Text(DOG))
    torch.testing.assert_close(found.scores, wanted)
    np.testing.assert_allclose(found.pictures[0].visible, (10, 0, 50, 40), atol=1)
    assert not any("mean and std" in caution for caution in found.cautions)


@pytest.mark.parametrize("make", [clip, siglip])
def test_a_model_in_a_folder_is_asked_by_texts(tmp_path, make):
    built(make).save_pretrained(tmp_path, safe_serialization=True)
    processor().save_pretrained(tmp_path)
    model = glowmap.load(f"hf/{tmp_path}")
    found, wanted = (glowmap.explain(one, picture(), target=Text(DOG)) for one in (model, loaded(make.__name__)))
    torch.testing.assert_close(found.scores, wanted.scores)
    assert_equal_up_to_rounding(found.raw, wanted.raw)
    assert found.raw.abs().max() > 0


# --- gradients, by hand


def by_hand(module, layer, images, score):
    """A layer's output and the gradient of a score by it, with hooks of our own and the whole graph."""
    kept = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.append(out))
    try:
        value = score(images.clone().requires_grad_())
    finally:
        handle.remove()
    output = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return output.detach(), torch.autograd.grad(value.sum(), output)[0]


def on_grid(tokens):
    """Image x patch x channel, behind a class token, as image x channel x rows x columns."""
    side = int((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def hf_likeness(module, images, *, normalised=True):
    tokens = tokenizer()([DOG], return_tensors="pt")
    text = module.get_text_features(**tokens).pooler_output.detach()
    image = module.get_image_features(pixel_values=images).pooler_output
    return module.logit_scale.exp().detach() * ((F.normalize(image) if normalised else image) @ F.normalize(text).T)


def test_maps_of_clip_are_those_of_the_gradient_through_the_librarys_own_functions():
    model = loaded("clip")
    module, layer = model.module, "vision_model.encoder.layers.2.layer_norm1"
    images = pictures(module, 2)
    activations, slopes = by_hand(module, layer, images, lambda given: hf_likeness(module, given))
    hires = glowmap.explain(model, images, target=Text(DOG), layer=layer, method="hires_cam")
    grad = glowmap.explain(model, images, target=Text(DOG), layer=layer, method="grad_cam")
    maps, slopes_on_grid = on_grid(activations), on_grid(slopes)
    torch.testing.assert_close(hires.raw, (maps * slopes_on_grid).sum(1))
    torch.testing.assert_close(grad.raw, (maps * slopes_on_grid.mean((2, 3), keepdim=True)).sum(1))
    assert glowmap.explain(model, images, target=Text(DOG)).layer == layer


def test_the_pictures_embedding_is_normalised_inside_the_graph():
    module, layer = built(clip), "vision_model.encoder.layers.2.layer_norm1"
    images = pictures(module)
    found = glowmap.explain(loaded("clip"), images, target=Text(DOG), layer=layer, method="hires_cam").raw

    def map_of(score):
        activations, slopes = by_hand(module, layer, images, score)
        return (on_grid(activations) * on_grid(slopes)).sum(1)

    def like(one, other):
        return float(F.cosine_similarity(one.flatten(), other.flatten(), 0))

    assert like(found, map_of(lambda given: hf_likeness(module, given))) > 0.9999
    assert like(found, map_of(lambda given: hf_likeness(module, given, normalised=False))) < 0.99


@pytest.mark.parametrize(
    ("make", "layer"), [(open_vit, "visual.transformer.resblocks.2.ln_1"), (open_resnet, "visual.layer4")]
)
def test_maps_of_open_clip_are_those_of_the_gradient_through_its_own_functions(make, layer):
    model = loaded(make.__name__)
    module, images = model.module, pictures(built(make), 2)
    text = F.normalize(module.encode_text(words()([DOG], context_length=16))).detach()

    def score(given):
        return module.logit_scale.exp().detach() * F.normalize(module.encode_image(given)) @ text.T

    activations, slopes = by_hand(module, layer, images, score)
    maps, slopes = (activations, slopes) if activations.ndim == 4 else (on_grid(activations), on_grid(slopes))
    found = glowmap.explain(model, images, target=Text(DOG), layer=layer, method="hires_cam")
    torch.testing.assert_close(found.raw, (maps * slopes).sum(1), rtol=1e-4, atol=1e-5)
    assert found.raw.abs().max() > 1e-4


METHODS = ["grad_cam", "legrad", "grad_eclip", "gae", "ablation_cam", "full_grad", "rise"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["clip", "siglip", "open_vit", "open_resnet"])
def test_every_kind_of_method_says_the_same_of_a_sentence_as_of_its_tokens_given_by_hand(name, method):
    model = loaded(name)
    images = pictures(model.module)
    how = glowmap.METHODS["rise"].with_parameters(masks=40) if method == "rise" else method
    if name == "open_resnet" and method == "legrad":  # which needs the tokens of several blocks
        with pytest.raises(GlowmapError) as refused:
            glowmap.explain(model, beside(model, images, [CAT, DOG]), target=1, method=how)
        with pytest.raises(type(refused.value), match=re.escape(str(refused.value))):
            glowmap.explain(model, images, target=[Text(CAT), Text(DOG)], method=how)
        return
    wanted = glowmap.explain(model, beside(model, images, [CAT, DOG]), target=1, method=how)
    found = glowmap.explain(model, images, target=[Text(CAT), Text(DOG)], method=how)[1]
    torch.testing.assert_close(found.scores, wanted.scores)
    torch.testing.assert_close(found.raw, wanted.raw, rtol=1e-3, atol=1e-5)
    assert found.raw.std() > 0


# --- several sentences


def test_against_other_sentences_is_the_likeness_less_the_mean_of_theirs():
    model = loaded("clip")
    images = pictures(model.module, 2)
    dog, cat, car = logits(model, images, [DOG, CAT, CAR]).T
    sugar, spelled, one = glowmap.explain(
        model,
        images,
        target=[Text(DOG, against=[CAT, CAR]), Contrast(Text(DOG), [Text(CAT), Text(CAR)]), Text(DOG, against=CAT)],
    )
    torch.testing.assert_close(sugar.scores, dog - (cat + car) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.scores, dog - cat, rtol=1e-4, atol=1e-4)
    assert torch.equal(sugar.raw, spelled.raw)
    assert torch.equal(sugar.scores, spelled.scores)
    assert sugar.target_names[0] == spelled.target_names[0] == f"{DOG!r} rather than {CAT!r} or {CAR!r}"


def test_not_a_sentence_is_what_speaks_against_it():
    model, images = loaded("clip"), pictures(built(clip))
    own, other = glowmap.explain(model, images, target=[Text(DOG), Not(Text(DOG))], method="hires_cam")
    torch.testing.assert_close(other.raw, -own.raw)
    assert other.target_names == (f"not {DOG!r}",)


def test_the_probability_of_a_sentence_is_among_those_of_the_call():
    model, images = loaded("clip"), pictures(built(clip))
    found = glowmap.explain(model, images, target=[Probability(Text(CAT)), Text(DOG), Text(CAR)])[0]
    wanted = logits(model, images, [CAT, DOG, CAR]).softmax(1)[:, 0]
    torch.testing.assert_close(found.scores, wanted)
    assert found.target_names == (f"probability of {CAT!r}",)


def test_each_picture_of_a_batch_may_have_a_sentence_of_its_own():
    model = loaded("clip")
    images = pictures(model.module, 2)
    both = glowmap.explain(model, images, target=PerImage([Text(DOG), Text(CAR)]))
    for image, sentence in enumerate([DOG, CAR]):
        one = glowmap.explain(model, images[image : image + 1], target=Text(sentence))
        torch.testing.assert_close(both.raw[image : image + 1], one.raw)
        torch.testing.assert_close(both.scores[image : image + 1], one.scores)
        assert both.target_names[image] == repr(sentence)


@pytest.mark.parametrize("method", ["grad_cam", "ablation_cam", "rise"])
@pytest.mark.parametrize("name", ["clip", "altclip", "open_vit"])
def test_as_many_sentences_as_pictures_are_no_trouble(name, method):
    model = loaded(name)
    images = pictures(model.module, 3)
    how = glowmap.METHODS["rise"].with_parameters(masks=20) if method == "rise" else method
    layer = "visual.transformer.resblocks.1" if name == "open_vit" else "vision_model.encoder.layers.1"
    together = glowmap.explain(model, images, target=[Text(DOG), Text(CAT), Text(CAR)], method=how, layer=layer)
    for question, sentence in zip(together, [DOG, CAT, CAR], strict=True):
        assert not any("copies" in caution or "slow" in caution for caution in question.cautions)
        for image in range(3):
            one = glowmap.explain(model, images[image : image + 1], target=Text(sentence), method=how, layer=layer)
            assert not any("copies" in caution or "slow" in caution for caution in one.cautions)
            torch.testing.assert_close(question.raw[image : image + 1], one.raw, rtol=1e-3, atol=1e-4)


def test_what_the_model_predicts_is_told_as_it_was_trained():
    for name, alone, several in (
        ("clip", None, "softmax"),
        ("siglip", "sigmoid", "sigmoid"),
        ("open_siglip", "sigmoid", "sigmoid"),
    ):
        model = loaded(name)
        images = pictures(model.module)
        one = glowmap.explain(model, images, target=Text(DOG)).prediction
        two = glowmap.explain(model, images, target=[Text(DOG), Text(CAT)])[0].prediction
        wanted = logits(model, images, [DOG, CAT])
        assert (one is None) == (alone is None)  # a text is likely to CLIP only among others
        if one is not None:
            torch.testing.assert_close(one.probabilities, wanted[:, :1].sigmoid(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            two.probabilities, wanted.softmax(1) if several == "softmax" else wanted.sigmoid(), rtol=1e-4, atol=1e-5
        )
        assert two.names == (repr(DOG), repr(CAT))
    with pytest.raises(
        TargetError,
        match="CLIPModel computes a softmax over all texts of a call, so 'a photo of a dog' alone has no probability",
    ):
        glowmap.explain(loaded("clip"), pictures(built(clip)), target=Probability(Text(DOG)))
    found = glowmap.explain(loaded("siglip"), pictures(built(siglip)), target=Probability(Text(DOG)))
    torch.testing.assert_close(found.scores, logits(loaded("siglip"), pictures(built(siglip)), [DOG])[0].sigmoid())


# --- texts are embedded once


def runs_of(part):
    count = []
    return count, part.register_forward_hook(lambda *_: count.append(1))


@pytest.mark.parametrize(
    "asked",
    [
        {"method": glowmap.METHODS["rise"].with_parameters(masks=200)},
        {"smooth": ["flips", "noise"]},
        {"method": "ablation_cam"},
        {"method": ["grad_cam", "gae"], "target": [Text(DOG), Text(CAT), Text(CAR)]},
    ],
    ids=["rise", "smooth", "ablation", "several"],
)
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("clip", "text_model.encoder.layers.0"),
        ("siglip", "text_model.encoder.layers.0"),
        ("open_vit", "transformer"),
        ("open_siglip", "text"),
    ],
)
def test_texts_are_embedded_once_a_call(name, part, asked):
    model = loaded(name)
    pixels, trunk = runs_of(
        model.module.get_submodule({"clip": "vision_model", "siglip": "vision_model"}.get(name, "visual"))
    )
    texts, tower = runs_of(model.module.get_submodule(part))
    try:
        for calls in (1, 2):
            glowmap.explain(model, pictures(model.module), **{"target": Text(DOG), **asked})
            assert len(texts) == calls
    finally:
        trunk.remove(), tower.remove()
    assert len(pixels) > 4


def test_a_decoder_of_captions_beside_the_towers_changes_nothing():
    torch.manual_seed(0)
    vision = open_clip.CLIPVisionCfg(
        layers=2, width=16, head_width=8, patch_size=8, image_size=32, attentional_pool=True, attn_pooler_heads=2,
        attn_pooler_queries=4, output_tokens=True,
    )  # fmt: skip
    text = open_clip.CLIPTextCfg(context_length=16, width=16, heads=2, layers=2, embed_cls=True, output_tokens=True)
    decoder = open_clip.coca_model.MultimodalCfg(context_length=16, width=16, heads=2, layers=1)
    module = open_clip.coca_model.CoCa(16, decoder, text, vision).eval()
    model, images = glowmap.load(module, processor=words(), mean=0.0), torch.rand(1, 3, 32, 32)
    texts, tower = runs_of(module.text)
    found = glowmap.explain(model, images, target=Text(DOG))
    tower.remove()
    assert len(texts) == 1
    assert "_encode_text" not in vars(module)
    with torch.no_grad():
        image, text = module.encode_image(images), module.encode_text(words()([DOG], context_length=16))
    torch.testing.assert_close(found.scores, (module.logit_scale.exp() * image @ text.T)[:, 0])


@pytest.mark.parametrize("name", ["clip", "open_vit", "open_siglip"])
def test_the_model_is_given_back_as_it_was_also_after_an_exception(name):
    model = loaded(name)
    module = model.module
    before = {part: dict(vars(part)) for part in module.modules()}

    class Failing:
        def score(self, answer):
            raise TargetError("no")

        def describe(self, answer, image):
            return "no"

    glowmap.explain(model, pictures(module), target=Text(DOG), method="ablation_cam")
    with pytest.raises(TargetError, match=r"^no$"):
        glowmap.explain(model, pictures(module), target=[Text(DOG), Failing()])
    after = {part: dict(vars(part)) for part in module.modules()}
    assert {name for part in before for name in set(before[part]) ^ set(after[part])} == set()
    assert all(after[part].get("forward") is before[part].get("forward") for part in before)


def test_another_thread_gets_its_own_texts_read():
    model = loaded("clip")
    module, texts = model.module, tokenizer()([DOG], return_tensors="pt")
    with torch.no_grad():
        wanted = module.text_model(**texts).pooler_output
    runs, handle = runs_of(module.text_model.encoder.layers[0])
    seen = []

    def read():
        seen.append(module.text_model(**texts).pooler_output)

    class Asking:
        """Has the text tower asked in a thread of its own, while a sentence is explained."""

        def score(self, answer):
            before = len(runs)
            for _ in range(2):
                other = threading.Thread(target=read)
                other.start(), other.join()
            assert len(runs) == before + 2
            return answer.logits[:, 0]

        def describe(self, answer, image):
            return "asking"

    glowmap.explain(model, pictures(module), target=[Text(DOG), Asking()])
    handle.remove()
    assert len(seen) >= 2
    assert all(torch.allclose(one, wanted) for one in seen)


# --- classes by their names


@pytest.mark.parametrize("name", ["clip", "siglip", "open_vit"])
def test_class_names_become_prompts(name):
    model = loaded(name, classes=["dog", "cat", "red car"])
    images = pictures(model.module, 2)
    prompts = ["a photo of a dog", "a photo of a cat", "a photo of a red car"]
    wanted = logits(model, images, prompts)
    cat, best, text = glowmap.explain(model, images, target=["cat", None, Text("the car")])
    torch.testing.assert_close(cat.scores, wanted[:, 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(best.scores, wanted.amax(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(text.scores, logits(model, images, ["the car"])[:, 0], rtol=1e-4, atol=1e-4)
    assert cat.target_names == ("cat", "cat")
    assert text.target_names == ("'the car'", "'the car'")
    assert best.target_names == tuple(["dog", "cat", "red car"][i] for i in wanted.argmax(1).tolist())
    assert cat.prediction.names == ("dog", "cat", "red car")
    assert text.prediction.names == ("dog", "cat", "red car", "'the car'")
    alone = glowmap.explain(model, images)
    assert alone.prediction.names == ("dog", "cat", "red car")
    likely = wanted.sigmoid() if name == "siglip" else wanted.softmax(1)
    torch.testing.assert_close(alone.prediction.probabilities, likely, rtol=1e-4, atol=1e-4)


def test_a_sentence_that_is_a_class_name_too_is_not_confused_with_it():
    model = loaded("clip", classes=["dog", "cat"])
    images = pictures(model.module)
    by_name, by_text = glowmap.explain(model, images, target=["dog", Text("dog")])
    torch.testing.assert_close(by_name.scores, logits(model, images, ["a photo of a dog"])[0])
    torch.testing.assert_close(by_text.scores, logits(model, images, ["dog"])[0])
    with pytest.raises(TargetError, match=r"no class 'dogs' in CLIPModel"):
        glowmap.explain(model, images, target=["dogs"])


@pytest.mark.parametrize("name", ["clip", "open_vit"])
def test_a_question_about_classes_does_not_hang_on_the_texts_beside_it(name):
    model = loaded(name, classes=["dog", "cat"])
    images = pictures(model.module)
    likeliest = max((CAR, "the car", "small", "red", "a red car"), key=lambda one: logits(model, images, [one]).item())
    wanted = logits(model, images, [DOG, CAT])
    assert logits(model, images, [likeliest]) > wanted.amax() - 8  # or it would change nothing
    asked = [None, *top(2), Probability("cat")]
    alone, beside = (glowmap.explain(model, images, target=[*asked, *more]) for more in ([], [Text(likeliest)]))
    for one, other in zip(alone, beside[: len(asked)], strict=True):
        assert one.target_names == other.target_names
        assert_equal_up_to_rounding(one.scores, other.scores)
        assert_equal_up_to_rounding(one.raw, other.raw)
    torch.testing.assert_close(alone[3].scores, wanted.softmax(1)[:, 1])
    mixed = glowmap.explain(model, images, target=[Contrast(Text(likeliest), "cat"), Probability(Text(likeliest))])
    text = logits(model, images, [likeliest])
    torch.testing.assert_close(mixed[0].scores, (text - wanted)[:, 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[1].scores, torch.cat([wanted, text], 1).softmax(1)[:, 2], rtol=1e-3, atol=1e-5)


def test_a_text_that_is_the_prompt_of_a_class_is_that_class():
    model = loaded("clip", classes=["dog", "cat"])
    images = pictures(model.module)
    questions = [Probability("cat"), Probability(Text(CAT)), Text(CAT), Contrast(Text(CAR), Text(CAT))]
    name, text, likeness, other = glowmap.explain(model, images, target=questions)
    wanted = logits(model, images, [DOG, CAT, CAR])
    for one in (name, text):
        torch.testing.assert_close(one.scores, wanted[:, :2].softmax(1)[:, 1])
    torch.testing.assert_close(likeness.scores, wanted[:, 1])
    torch.testing.assert_close(other.scores, wanted[:, 2] - wanted[:, 1], rtol=1e-4, atol=1e-4)
    with pytest.raises(TargetError, match="contrasted with itself"):
        glowmap.explain(model, images, target=Contrast(Text(CAT), "cat"))


def test_a_tokenizer_that_pads_on_the_left_reads_a_text_the_same_beside_a_longer_one():
    model, images = loaded("clip"), pictures(built(clip))
    model.text_interface.tokens.tokenizer.padding_side = "left"
    found = glowmap.explain(model, images, target=[Text("dog"), Text(CAR)])
    torch.testing.assert_close(found[0].scores, logits(model, images, ["dog"])[0], rtol=1e-4, atol=1e-4)


def test_concepts_are_told_by_the_class_names_and_need_no_text():
    images = pictures(built(clip))
    named = glowmap.concepts(loaded("clip", classes=["dog", "cat"]), images, count=2)
    plain = glowmap.concepts(loaded("clip"), images, count=2)
    by_hand = glowmap.concepts(loaded("clip"), beside(loaded("clip"), images, [DOG]), count=2)
    assert all("dog" in one.target_names[0] and "cat" in one.target_names[0] for one in named)
    assert [one.target_names[0] for one in plain] == ["concept 1", "concept 2"]
    assert len(by_hand) == 2
    assert all(one.raw.abs().max() > 0 for one in by_hand)


@pytest.mark.parametrize("name", ["clip", "open_vit"])
def test_likeness_to_another_picture_needs_no_text(name):
    model = loaded(name)
    module, images = model.module, pictures(built({**TWO_TOWERS, **OPEN}[name]), 2)
    found = glowmap.explain(model, images[:1], target=Similar(images[1:]))
    with torch.no_grad():
        if name == "clip":
            one, other = module.get_image_features(pixel_values=images).pooler_output
        else:
            one, other = module.encode_image(images)
    torch.testing.assert_close(found.scores[0], F.cosine_similarity(one, other, 0))
    assert found.raw.abs().max() > 0


# --- models that match a text with a picture


def matched(name, images, text):
    """The logit of a match, by the library itself, picture by picture."""
    module, tokens = built(MATCHERS[name]), tokenizer()([text], return_tensors="pt")
    with torch.no_grad():
        answers = [
            module(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=image[None])
            for image in images
        ]
    return torch.stack([one.itm_score[0, 1] if name == "blip" else one.logits[0, -1] for one in answers])


@pytest.mark.parametrize("name", MATCHERS)
def test_the_score_of_a_matcher_is_the_logit_of_a_match(name):
    model, images = loaded(name), pictures(built(MATCHERS[name]), 2)
    dog, car, neither = glowmap.explain(
        model, images, target=[Text(DOG), Text(CAR), Not(Text(CAR))], method="hires_cam"
    )
    torch.testing.assert_close(dog.scores, matched(name, images, DOG), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(car.scores, matched(name, images, CAR), rtol=1e-4, atol=1e-4)
    assert ((dog.scores - car.scores).abs() > 1e-3 * dog.scores.abs()).all()
    torch.testing.assert_close(neither.raw, -car.raw)
    assert (dog.target_names[0], neither.target_names[0]) == (repr(DOG), f"not {CAR!r}")
    one = glowmap.explain(model, images[1:], target=Text(DOG), method="hires_cam", layer=dog.layer)
    torch.testing.assert_close(dog.raw[1:], one.raw, rtol=1e-4, atol=1e-5)
    assert dog.raw.abs().max() > 0


def test_maps_of_a_matcher_are_those_of_the_gradient_by_hand():
    model, layer = loaded("blip"), "vision_model.encoder.layers.2"
    images, tokens = pictures(model.module), tokenizer()([DOG], return_tensors="pt")
    given = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}

    def score(pixels):
        return model.module(**given, pixel_values=pixels).itm_score[:, 1]

    activations, slopes = by_hand(model.module, layer, images, score)
    found = glowmap.explain(model, images, target=Text(DOG), layer=layer, method="hires_cam")
    torch.testing.assert_close(found.raw, (on_grid(activations) * on_grid(slopes)).sum(1))
    asked = glowmap.explain(model, images, target=Text(DOG), method=glowmap.METHODS["rise"].with_parameters(masks=30))
    torch.testing.assert_close(asked.scores, found.scores)


def vilt_by_hand(images, layer):
    """Gradient times activation at ViLT's patches, wherever it drew them to, laid out by the places that it tells."""
    module, given, drawn = built(vilt), tokenizer()([DOG], return_tensors="pt"), []
    own = module.vilt.embeddings.visual_embed

    def noting(*arguments, **keywords):
        drawn.append(own(*arguments, **keywords))
        return drawn[-1]

    with mock.patch.object(module.vilt.embeddings, "visual_embed", noting):
        activations, slopes = by_hand(module, layer, images, lambda pixels: module(**given, pixel_values=pixels).logits)
    rows, columns = drawn[0][2][0][0].T
    assert (rows * 4 + columns).tolist() != list(range(16))  # in an order of chance
    return torch.zeros(4, 4).index_put((rows, columns), (activations * slopes).sum(-1)[0, -16:])


@pytest.mark.parametrize("layer", ["vilt.encoder.layer.0.layernorm_before", "vilt.encoder.layer.0.intermediate"])
def test_vilts_patches_lie_where_they_are_in_the_picture_though_it_draws_their_order(layer):
    model, images = loaded("vilt"), pictures(built(vilt), 2)
    torch.manual_seed(3)
    found = glowmap.explain(model, images, target=Text(DOG), layer=layer, method="hires_cam")
    assert not any("proven" in caution for caution in found.cautions)
    for image in range(2):
        wanted = vilt_by_hand(images[image : image + 1], layer)
        torch.testing.assert_close(found.raw[image], wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert "visual_embed" not in vars(built(vilt).vilt.embeddings)


def test_vilt_is_asked_again_about_each_of_two_pictures():
    model, images = loaded("vilt"), pictures(built(vilt), 2)
    for layer in ("vilt.encoder.layer.1.layernorm_before", "vilt.embeddings.patch_embeddings"):
        asked = {"target": Text(DOG), "method": "ablation_cam", "layer": layer}
        both = glowmap.explain(model, images, **asked)
        for image in range(2):
            one = glowmap.explain(model, images[image : image + 1], **asked)
            torch.testing.assert_close(both.raw[image : image + 1], one.raw, rtol=1e-2, atol=1e-5)


def test_a_callable_beside_two_texts_does_not_say_whose_answer_it_reads():
    model, images = loaded("blip"), pictures(built(blip))
    one, other = glowmap.explain(model, images, target=[Text(DOG), lambda output: output.itm_score[:, 1]])
    assert torch.equal(one.scores, other.scores)
    with pytest.raises(TargetError, match="a callable does not say which pass is meant"):
        glowmap.explain(model, images, target=[Text(DOG), Text(CAT), lambda output: output.itm_score[:, 1]])


def test_a_matcher_answers_each_text_in_a_pass_of_its_own():
    model, images = loaded("blip"), pictures(built(blip))
    read = []
    handle = model.module.register_forward_pre_hook(
        lambda _module, _given, keywords: read.append(tokenizer().batch_decode(keywords["input_ids"])), with_kwargs=True
    )
    glowmap.explain(model, images, target=[Text(DOG), Text(CAT)], method="input_gradient")
    handle.remove()
    assert [texts for at, texts in enumerate(read) if texts not in read[:at]] == [
        [f"[BOS] {sentence} [EOS]"] for sentence in (DOG, CAT)
    ]
    with pytest.raises(TargetError, match="reads each text in a separate pass, so .* give each text as a target"):
        glowmap.explain(model, images, target=Text(DOG, against=CAT))
    with pytest.raises(TargetError, match="reads each text in a separate pass, so .* give each as a target"):
        glowmap.explain(model, images, target=Contrast(Text(DOG), Text(CAT)))
    with pytest.raises(TargetError, match="reads each text together with the picture and has no classes"):
        glowmap.explain(loaded("blip", classes=["dog", "cat"]), images, target="dog")


# --- what cannot be asked


def plain():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def test_a_text_is_no_question_to_a_classifier_or_to_a_module_without_its_processor():
    with pytest.raises(
        TargetError, match=r"no way to give Sequential a text; .* glowmap\.load\(module, processor=\.\.\.\)"
    ):
        glowmap.explain(plain(), torch.rand(1, 3, 16, 16), target=Text(DOG))
    with pytest.raises(InputError, match=r"CLIPModel takes input_ids .* processor=\.\.\.\), and target=targets\.Text"):
        glowmap.explain(built(clip), pictures(built(clip)), target=Text(DOG))
    with pytest.raises(TargetError, match=r"glowmap knows no way to give CLIP a text; .* processor=\.\.\."):
        glowmap.explain(built(open_vit), pictures(built(open_vit)), target=Text(DOG), layer="visual.conv1")


@pytest.mark.parametrize("name", ["clip", "open_vit", "blip"])
def test_pictures_alone_are_no_question(name):
    for target in (None, 0, "dog"):
        with pytest.raises(TargetError, match=r"compares pictures with texts, and no text was given; .*targets\.Text"):
            glowmap.explain(loaded(name), pictures(built(clip)), target=target)


def test_a_callable_does_not_get_the_answer_to_a_text_that_nobody_asked_about():
    with pytest.raises(TargetError, match="a callable would read its output for a text that was not given"):
        glowmap.explain(loaded("clip"), pictures(built(clip)), target=lambda output: output.logits_per_image[:, 0])
    beside_a_text = [Text(DOG), lambda output: output.logits_per_image[:, 0]]
    one, other = glowmap.explain(loaded("clip"), pictures(built(clip)), target=beside_a_text)
    assert torch.equal(one.scores, other.scores)
    features = glowmap.explain(loaded("open_vit"), pictures(built(open_vit)), target=lambda output: output[0][:, 3])
    with torch.no_grad():
        wanted = F.normalize(built(open_vit).encode_image(pictures(built(open_vit))))[:, 3]
    torch.testing.assert_close(features.scores, wanted)


@pytest.mark.parametrize("name", ["clip", "open_vit", "blip"])
def test_texts_given_as_tokens_are_the_classes_and_take_no_further_text(name):
    model = loaded(name)
    given = beside(model, pictures(model.module), [CAT])
    found = glowmap.explain(model, given, target=0)
    assert found.target_names == ("class 0",)
    with pytest.raises(
        TargetError, match=r"was given texts together with the pictures, .* by index, .*'a photo of a dog'"
    ):
        glowmap.explain(model, given, target=Text(DOG))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({}, "writes no text; give a sentence"),
        (
            {"text": DOG, "prompt": "what is this?"},
            r"prompt 'what is this\?' is for models that write, and CLIPModel scores",
        ),
        ({"text": DOG, "word": "dog"}, "the word 'dog' is for models that write"),
        ({"text": DOG, "word": 0}, "the word 0 is for models that write"),
        ({"text": DOG, "each_word": True}, "each_word is for models that write"),
        ({"text": "a zebra, a dog"}, r"the tokenizer of CLIPModel does not know 'zebra', ','"),
        ({"text": "[UNK] dog"}, r"does not know '\[UNK\]'"),
        ({"text": DOG, "against": ["a giraffe"]}, "does not know 'giraffe'"),
        ({"text": " ".join(["dog"] * 15)}, "is 17 tokens long, and CLIPModel takes 1 to 16; shorten it"),
    ],
)
def test_what_a_model_that_judges_cannot_be_asked(text, message):
    with pytest.raises(TargetError, match=message) as caught:
        glowmap.explain(loaded("clip"), pictures(built(clip)), target=Text(**text))
    assert "targets." not in caught.value.on_command_line
    if "is for models that write" in message:
        assert str(caught.value).endswith("; give the sentence alone: targets.Text(sentence)")
        assert caught.value.on_command_line.endswith("; give the sentence alone: --text SENTENCE")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"text": " "}, "text is an empty sentence; give words"),
        ({"text": DOG, "prompt": ""}, "prompt is an empty sentence"),
        ({"text": DOG, "against": [CAT, ""]}, "against is an empty sentence"),
        ({"text": DOG, "against": [DOG]}, "'a photo of a dog' is set against itself"),
        ({"against": [DOG]}, r"no sentence is set against 'a photo of a dog'; give one"),
    ],
)
def test_a_text_that_is_no_sentence(text, message):
    with pytest.raises(TargetError, match=message):
        Text(**text)


@pytest.mark.parametrize(("text", "kind"), [(3, "int"), ([DOG, CAT], "list; for several give a list of targets")])
def test_a_text_that_is_no_words(text, kind):
    made = Text(DOG)
    object.__setattr__(made, "text", text)  # past the tests' own check of types, which users do not have
    with pytest.raises(TargetError, match=f"text is a sentence, not {kind}"):
        made.__post_init__()


@pytest.mark.parametrize("name", ["altclip", "bridgetower"])
def test_the_longest_text_that_is_let_in_is_one_that_the_model_takes(name):
    model, images = loaded(name), pictures(built(clip))
    most = {"altclip": 16, "bridgetower": 19}[name]
    glowmap.explain(model, images, target=Text(" ".join(["dog"] * (most - 2))))
    with pytest.raises(TargetError, match=rf"is {most + 1} tokens long, and \w+ takes 1 to {most}"):
        glowmap.explain(model, images, target=Text(" ".join(["dog"] * (most - 1))))


def test_open_clips_tokenizer_does_not_cut_texts_in_silence():
    model, images = loaded("open_vit"), pictures(built(open_vit))
    fits = " ".join(["dog"] * 14)
    score = glowmap.explain(model, images, target=Text(fits)).scores
    torch.testing.assert_close(score, logits(model, images, [fits])[0])
    with pytest.raises(TargetError, match=r"longer than the 16 tokens that CLIP takes; shorten it"):
        glowmap.explain(model, images, target=[Text(DOG), Text(f"{fits} dog")])


def test_any_callable_from_texts_to_tokens_serves_an_open_clip_model():
    module, tokens = built(open_vit), words()([DOG], context_length=16)
    model = glowmap.load(module, processor=lambda texts: tokens.expand(len(texts), -1), mean=0.0)
    found = glowmap.explain(model, pictures(module), target=Text("whatever"))
    torch.testing.assert_close(found.scores, logits(model, pictures(module), [DOG])[0])
    for wrong, message in (
        (lambda texts: texts, r"the tokenizer made list of 1 texts; let it return a tensor"),
        (lambda texts: tokens[0], r"the tokenizer made the shape \(16,\) of 1 texts"),
        (lambda texts: 1 / 0, "the tokenizer raised ZeroDivisionError"),
    ):
        with pytest.raises(TargetError, match=message):
            glowmap.explain(glowmap.load(module, processor=wrong), pictures(module), target=Text(DOG))


def test_a_processor_that_is_none_or_of_no_use():
    for module, given, message in (
        (built(clip), 3, "a processor is one of transformers', or a tokenizer, not int"),
        (built(open_vit), 3, "int cannot be called; give open_clip.get_tokenizer"),
        (built(open_vit).visual, words(), "takes no texts; load the whole model"),
        (
            plain(),
            tokenizer(),
            "a processor is for models of transformers and open_clip, and Sequential is none of them",
        ),
        (tr.ViTForImageClassification(tr.ViTConfig(**VISION)), tokenizer(), "a tokenizer is of no use to it"),
    ):
        with pytest.raises(ModelError, match=message):
            glowmap.load(module, processor=given)


def test_a_model_that_takes_rows_of_patches_says_why_it_cannot_be_asked():
    module = tr.Siglip2Model(tr.Siglip2Config(text_config=TEXT, vision_config={**VISION, "num_patches": 16}))
    with pytest.raises(TargetError, match="takes a picture as a row of patches, .* so no text can be added"):
        glowmap.explain(glowmap.load(module.eval(), processor=processor()), pictures(module), target=Text(DOG))


def test_an_image_processor_alone_reads_pictures():
    module = tr.ViTForImageClassification(tr.ViTConfig(**VISION)).eval()
    images = processor().image_processor
    model = glowmap.load(module, processor=images)
    wanted = images(images=picture(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.read(picture()).images, wanted)


def test_a_tokenizer_that_is_not_on_this_machine_is_told_with_the_remedy():
    from glowmap.models.open_clip import _tokenizer

    with pytest.raises(ModelError, match=r"the tokenizer of .* processor=\.\.\."):
        _tokenizer(open_clip, "ViT-B-16-SigLIP")
    assert torch.equal(_tokenizer(open_clip, "ViT-B-32")([DOG]), words()([DOG]))
