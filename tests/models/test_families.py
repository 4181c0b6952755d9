"""Each library's models: loaded by name or brought as modules, with their preprocessing, class names and scores."""

import itertools
import socket
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import glowmap
from glowmap.errors import GlowmapError, InputError, MissingExtra, ModelError, TargetError
from glowmap.models import FAMILIES, as_model
from glowmap.models.preprocessing import MeasuredCrop, crop_box
from tiny_models.convolutional import Classifier, images

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
smp = pytest.importorskip("segmentation_models_pytorch")
open_clip = pytest.importorskip("open_clip")

SIZES = [(300, 200), (200, 300), (97, 211), (224, 224)]
VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VISION |= {"image_size": 64, "patch_size": 16}
TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 99}
TEXT |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def picture(size=(300, 200)):
    """Blocks of random colours: no two parts of it are alike."""
    width, height = size
    blocks = np.random.default_rng(0).random((height // 9 + 1, width // 9 + 1, 3))
    return Image.fromarray((np.kron(blocks, np.ones((9, 9, 1)))[:height, :width] * 255).astype(np.uint8))


def vit(**settings):
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, **settings)).eval()


def measured(model):
    """What a preset keeps, as pictures of coordinates tell, which know nothing of how it was reckoned."""
    preset = model.preprocess
    mean, std = (torch.as_tensor(colours).reshape(-1, 1, 1) for colours in (preset.mean, preset.std))
    return MeasuredCrop(lambda one: preset.transform(one) * std + mean)


# --- timm


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "test_vit", "vit_base_patch16_siglip_gap_224"])
def test_timm_reads_a_picture_as_timm_does(name):
    model = glowmap.load(f"timm/{name}", weights="random")
    own = timm.data.create_transform(**timm.data.resolve_model_data_config(model.module), is_training=False)
    for size in SIZES:
        batch = model.read(picture(size))
        assert torch.equal(batch.images[0], own(picture(size)))
        np.testing.assert_allclose(batch.pictures[0].visible, measured(model)(picture(size)), atol=0.002 * max(size))


def test_timm_by_name_is_explained_with_its_class_names():
    model = glowmap.load("timm/test_resnet", weights="random")
    found = glowmap.explain(model, picture(), target="tabby", layer="layer4")
    assert found.target_names == ("tabby, tabby cat",)
    assert model.class_names[281] == "tabby, tabby cat"
    assert found.cautions[0].startswith("the weights are random")
    with torch.no_grad():
        score = model.module(model.read(picture()).images)[0, 281]
    torch.testing.assert_close(found.scores[0], score)


def test_timm_random_weights_come_from_the_seed_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (glowmap.load("timm/test_resnet", weights="random", seed=s).module for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.fc.weight, again.fc.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_timm_takes_a_checkpoint(tmp_path):
    trained = timm.create_model("test_resnet")
    save_file(trained.state_dict(), tmp_path / "own.safetensors")
    model = glowmap.load("timm/test_resnet", weights=tmp_path / "own.safetensors")
    assert torch.equal(model.module.fc.weight, trained.fc.weight)
    assert model.cautions == ()
    assert not model.module.training


def test_timm_takes_trained_weights_from_the_cache(tmp_path, monkeypatch):
    trained = timm.create_model("test_resnet")
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def in_the_cache(repository, name, **_):
        asked.append((repository, name))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", in_the_cache)
    model = glowmap.load("timm/test_resnet.r160_in1k")
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert torch.equal(model.module.fc.weight, trained.fc.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet81", "no model 'resnet81' in timm; near names: timm/resnet"),
        ("timm/resnet18.of_mine", "timm has no such weights as 'resnet18.of_mine'; near names: timm/resnet18."),
        ("timm/efficientnet_b8", "timm has no trained weights for efficientnet_b8"),
        ("smp/Unett-resnet34", "no model 'smp/Unett-resnet34' in segmentation_models_pytorch; near names: smp/Unet"),
        ("smp/Unet-resnet35", "near names: smp/Unet-resnet"),
        ("smp/Unet", "no model 'smp/Unet'"),
        ("open_clip/ViT-B-33", "no model 'ViT-B-33' in open_clip; near names: open_clip/ViT-B"),
        ("open_clip/RN50:laion", "no trained weights 'laion' of open_clip's RN50; "),
        ("open_clip/RN50", "open_clip has several trained weights of RN50 and none was chosen; there are openai, "),
        ("hf/./nowhere", "there is no folder ./nowhere; write hf/PATH for a folder"),
        ("hf/a/b/c", "there is no folder a/b/c"),
        ("google/vit-base", "no family of models 'google'; the families are .* as in hf/google/vit-base"),
        ("ultralytics/yolo11n", "no model 'ultralytics/yolo11n' is built by name; write a FILE.py:factory"),
    ],
)
def test_names_that_nobody_knows(name, message):
    with pytest.raises(ModelError, match=message):
        glowmap.load(name)


def test_a_timm_module_brings_its_preprocessing_but_no_names_that_are_guessed():
    module = timm.create_model("test_resnet", num_classes=5).eval()
    model = as_model(module)
    assert (model.name, model.class_names, model.cautions) == ("ResNet", None, ())
    by_name = glowmap.load("timm/test_resnet", weights="random").read(picture())
    assert torch.equal(model.read(picture()).images, by_name.images)
    assert glowmap.explain(module, picture(), target=3, layer="layer4").input_size == (160, 160)
    module.pretrained_cfg = {**module.pretrained_cfg, "label_names": list("abcde")}
    assert as_model(module).class_names == tuple("abcde")
    module.pretrained_cfg = {"mean": (0, 0, 0), "std": (1, 1, 1), "input_size": (3, 64, 64)}
    with pytest.raises(InputError, match="to give pictures, set their preprocessing"):
        as_model(module).read(picture())


def test_a_timm_model_without_a_head_has_features_and_no_classes():
    module = timm.create_model("test_resnet", num_classes=0).eval()
    with pytest.raises(TargetError, match="this timm model has no class head"):
        glowmap.explain(module, torch.randn(1, 3, 64, 64), target=1, layer="layer4")
    given = torch.randn(1, 3, 64, 64)
    found = glowmap.explain(module, given, target=lambda out: out.sum(1), layer="layer4")
    torch.testing.assert_close(found.scores, module(given).sum(1))


# --- transformers


def saved(folder, module, processor=None):
    module.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return f"hf/{folder}"


def processors():
    square, cropped = {"height": 64, "width": 64}, {"shortest_edge": 64}
    yield transformers.ViTImageProcessor(size=square)
    yield transformers.CLIPImageProcessor(size=cropped, crop_size=square)
    yield transformers.ConvNextImageProcessor(size=cropped)
    yield transformers.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 90})
    yield transformers.BeitImageProcessor(size={"height": 80, "width": 80}, crop_size=square, do_center_crop=True)
    yield transformers.ViTImageProcessor(size=square, do_normalize=False)
    yield transformers.SegformerImageProcessor(size={"height": 64, "width": 96})


@pytest.mark.parametrize("processor", list(processors()), ids=lambda one: type(one).__name__)
def test_a_folders_processor_reads_a_picture_as_it_would_alone(processor, tmp_path):
    model = glowmap.load(saved(tmp_path, vit(), processor))
    for size in SIZES:
        batch = model.read(picture(size))
        assert torch.equal(batch.images, processor(images=picture(size), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize(
    ("number", "seen"),
    [
        (0, (0, 0, 300, 200)),  # squashed
        (1, (50, 0, 250, 200)),  # the shorter side to 64, the centre of 96 columns
        (2, (60.6, 11, 236.7, 186.3)),  # to 64 / 0.875 = 73, then the centre, rounded down
        (3, (0, 0, 300, 200)),  # resized in proportion
        (4, (30, 20, 270, 180)),  # squashed to 80, the centre's 64 of it
        (6, (0, 0, 300, 200)),
    ],
)
def test_the_part_of_the_picture_that_a_processor_keeps(number, seen, tmp_path):
    processor = next(itertools.islice(processors(), number, None))
    model = glowmap.load(saved(tmp_path, vit(), processor))
    np.testing.assert_allclose(model.read(picture()).pictures[0].visible, seen, atol=1.2)
    across = model.read(picture((200, 300))).pictures[0].visible
    assert across[3] - across[1] >= across[2] - across[0] - 1


def test_padding_is_shown_as_the_model_saw_it(tmp_path):
    processor = transformers.DetrImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 64}, do_pad=True, pad_size={"height": 64, "width": 64}
    )
    model = glowmap.load(saved(tmp_path, vit(), processor))
    (seen,) = model.read(picture((300, 200))).pictures  # 64 x 43, and 21 rows of nothing below
    assert seen.visible_part().size == (300, 298)
    assert np.asarray(seen.visible_part())[210:].max() == 0
    assert np.array_equal(np.asarray(seen.image)[:200], np.asarray(picture()))


def test_tiles_are_no_picture(tmp_path):
    def tiled(one):
        return torch.ones(4, 3, 8, 8)

    with pytest.raises(InputError, match="turns a picture into something other than one rectangle"):
        MeasuredCrop(tiled)(picture())
    with pytest.raises(InputError, match="turns a picture into something other than one rectangle"):
        MeasuredCrop(lambda one: torch.from_numpy(np.array(one)[:, ::-1] / 255).permute(2, 0, 1))(picture())


def test_another_mean_and_std_replace_a_processors(tmp_path):
    name = saved(tmp_path, vit(), transformers.ViTImageProcessor(size={"height": 64, "width": 64}))
    own, other = glowmap.load(name).read(picture()), glowmap.load(name, mean=0.25, std=2.0).read(picture())
    torch.testing.assert_close(other.images, (own.images * 0.5 + 0.5 - 0.25) / 2)


def test_a_folder_gives_class_names_weights_and_seed(tmp_path):
    module = vit(id2label={0: "cat", 1: "dog", 2: "cow"})
    name = saved(tmp_path, module)
    model = glowmap.load(name)
    assert model.class_names == ("cat", "dog", "cow")
    assert model.cautions[0].startswith("no mean and std were given")
    tensors = images(2, 64, 64)
    found = glowmap.explain(model, tensors, target="dog", layer=model_layer(model))
    with torch.no_grad():
        torch.testing.assert_close(found.scores, module(tensors).logits[:, 1])
    before = torch.get_rng_state()
    first, again, other = (glowmap.load(name, weights="random", seed=s).module for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    loaded = glowmap.load(name, weights=tmp_path / "model.safetensors").module
    assert torch.equal(loaded.classifier.weight, module.classifier.weight)


def model_layer(model):
    """The norm before a ViT's last attention, by whatever name this release gives it."""
    return [name for name, _ in model.module.named_modules() if name.endswith("layernorm_before")][-1]


def test_folders_that_hold_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no config.json"):
        glowmap.load(f"hf/{tmp_path}/empty")
    module = vit()
    module.config.save_pretrained(tmp_path / "config")
    torch.save(module.state_dict(), tmp_path / "config" / "pytorch_model.bin")  # a pickle is not even looked at
    with pytest.raises(ModelError, match="holds no model.safetensors; .* or choose weights='random'"):
        glowmap.load(f"hf/{tmp_path}/config")
    own = tmp_path / "own"
    saved(own, module)
    config = (own / "config.json").read_text()
    (own / "config.json").write_text(config.replace("ViTForImageClassification", "ViTForImageClassificatoin"))
    with pytest.raises(ModelError, match="is a ViTForImageClassificatoin, .* near names: ViTForImageClassification"):
        glowmap.load(f"hf/{own}")
    (own / "config.json").write_text(config.replace('"model_type": "vit"', '"model_type": "strange"'))
    with pytest.raises(ModelError, match="cannot be loaded"):
        glowmap.load(f"hf/{own}")
    stranger = '"model_type": "strange", "auto_map": {"AutoConfig": "own.Config"}'
    (own / "config.json").write_text(config.replace('"model_type": "vit"', stranger))
    (own / "own.py").write_text("raise SystemExit('a stranger\\'s code ran')")
    with pytest.raises(ModelError, match="brings its own code, which is not run here"):
        glowmap.load(f"hf/{own}")


def test_what_a_weights_file_lacks_is_noted(tmp_path):
    module = vit(num_labels=3)
    saved(tmp_path, module)
    held = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("classifier")}
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    cautions = glowmap.load(f"hf/{tmp_path}", mean=0.5).cautions
    assert any(
        "2 tensors of hf/" in caution and "classifier.bias" in caution and "at random" in caution
        for caution in cautions
    )


def test_queries_with_a_class_and_a_mask_become_scores_of_every_pixel():
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        id2label=dict(enumerate(["road", "sky", "tree"])),
    )
    module = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    model, tensors = as_model(module), images(2, 64, 96)
    assert model.class_names == ("road", "sky", "tree")
    with torch.no_grad():
        output = module(tensors)
    dense = model.readers.logits(output)
    classes, masks = output.class_queries_logits.double(), output.masks_queries_logits.double()
    wanted = torch.zeros(2, 3, *masks.shape[2:], dtype=torch.float64)
    for image, query, category in itertools.product(range(2), range(6), range(3)):
        probability = classes[image, query, category].exp() / sum(score.exp() for score in classes[image, query])
        wanted[image, category] += probability / (1 + (-masks[image, query]).exp())
    torch.testing.assert_close(dense.double(), wanted, rtol=1e-4, atol=1e-5)
    layer = [name for name, part in module.named_modules() if name.endswith("stages.3")][-1]
    found = glowmap.explain(module, tensors, target=glowmap.targets.Pixels("sky", masks.new_ones(64, 96)), layer=layer)
    torch.testing.assert_close(found.scores, dense[:, 1].sum((1, 2)), rtol=1e-3, atol=1e-4)


def test_a_detector_by_queries_has_a_score_for_each_class():
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=7,
        id2label=dict(enumerate(["N/A", "person", "car"])),
    )
    module = transformers.DetrForObjectDetection(config).eval()
    tensors = images(2, 64, 64)
    with torch.no_grad():
        output = module(tensors)
    model = as_model(module)
    scores = model.readers.logits(output)
    assert output.logits.shape == (2, 7, 4)
    assert model.class_names == ("N/A", "person", "car")
    for image, category in itertools.product(range(2), range(3)):
        assert scores[image, category] == max(output.logits[image, query, category] for query in range(7))


def test_a_detector_asked_in_words_has_a_score_for_each_text():
    config = transformers.OwlViTConfig(text_config=TEXT, vision_config=VISION, projection_dim=32)
    module = transformers.OwlViTForObjectDetection(config).eval()
    with torch.no_grad():
        output = module(pixel_values=images(1, 64, 64), input_ids=torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2]]))
    assert torch.equal(as_model(module).readers.logits(output), output.logits.amax(1))
    assert output.logits.shape == (1, 16, 3)


def test_depth_is_one_class_at_every_pixel():
    config = transformers.DPTConfig(
        **{**VISION, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        is_hybrid=False,
        id2label={0: "wall", 1: "floor"},
    )
    module = transformers.DPTForDepthEstimation(config).eval()
    model = as_model(module)
    with torch.no_grad():
        output = module(images(2, 64, 64))
    assert model.class_names is None  # the config's are of another head
    assert torch.equal(model.readers.logits(output)[:, 0], output.predicted_depth)


def clip():
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    return transformers.CLIPModel(config).eval()


def test_a_picture_is_compared_with_texts_given_beside_it(tmp_path):
    square = {"height": 64, "width": 64}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=square)
    model = glowmap.load(saved(tmp_path, clip(), processor))
    tokens = torch.tensor([[1, 5, 6, 2], [1, 7, 8, 2], [1, 9, 3, 2]])
    for alone in (picture(), [picture()], images(1, 64, 64)):
        with pytest.raises(InputError, match=r"takes input_ids beside the images; pass a dict of its keywords"):
            model.read(alone)
    batch = model.read({"pixel_values": [picture(), picture((200, 200))], "input_ids": tokens})
    pixels = processor(images=[picture(), picture((200, 200))], return_tensors="pt")["pixel_values"]
    assert torch.equal(batch.keywords["pixel_values"], pixels)
    np.testing.assert_allclose(batch.pictures[0].visible, (50, 0, 250, 200), atol=1)
    with torch.no_grad():
        output = model.module(**batch.keywords)
    assert torch.equal(model.readers.logits(output), output.logits_per_image)
    assert model.readers.logits(output).shape == (2, 3)
    with pytest.raises(InputError, match="CLIPModel takes input_ids beside the images"):
        glowmap.explain(clip(), images(1, 64, 64), target=0, layer="visual_projection")


def blip(kind):
    config = transformers.BlipConfig(
        text_config={**TEXT, "encoder_hidden_size": 32, "sep_token_id": 2},
        vision_config=VISION,
        projection_dim=16,
        image_text_hidden_size=16,
    )
    return kind(config).eval()


def test_matching_and_the_next_word_are_read_as_classes():
    given = {"pixel_values": images(2, 64, 64), "input_ids": torch.tensor([[1, 5, 6], [1, 7, 8]])}
    matcher, writer = blip(transformers.BlipForImageTextRetrieval), blip(transformers.BlipForConditionalGeneration)
    with torch.no_grad():
        matched, written = matcher(**given), writer(**given)
    assert torch.equal(as_model(matcher).readers.logits(matched), matched.itm_score)
    assert torch.equal(as_model(writer).readers.logits(written), written.logits[:, -1])
    assert written.logits.shape == (2, 3, 99)


def test_a_transformers_model_without_a_head_has_no_classes():
    module = transformers.ViTModel(transformers.ViTConfig(**VISION)).eval()
    with pytest.raises(
        TargetError, match="with the keys last_hidden_state, pooler_output; .* load the model with a head"
    ):
        as_model(module).readers.logits(module(images(1, 64, 64)))


# --- segmentation_models_pytorch, open_clip, ultralytics


def test_a_segmentation_model_by_name_takes_pictures_of_any_size(street):
    model = glowmap.load("smp/FPN-resnet18", weights="random", mean=0.5)
    batch = model.read(street)  # of 60 x 40 pixels
    assert batch.images.shape == (1, 3, 64, 64)
    mask = np.zeros((40, 60))
    mask[18:30, 36:54] = 1
    found = glowmap.explain(model, street, target=glowmap.targets.Pixels(0, mask), layer="encoder.layer4")
    with torch.no_grad():
        logits = model.module(batch.images)
    assert logits.shape == (1, 1, 64, 64)
    assert found.raw.any()


def test_a_checkpoint_tells_how_many_classes_a_segmentation_model_has(tmp_path):
    trained = smp.FPN("resnet18", encoder_weights=None, classes=7)
    save_file(trained.state_dict(), tmp_path / "own.safetensors")
    model = glowmap.load("smp/fpn-resnet18", weights=tmp_path / "own.safetensors")
    assert model.module.segmentation_head[0].out_channels == 7
    assert torch.equal(model.module.segmentation_head[0].weight, trained.segmentation_head[0].weight)
    assert any("the mean and std of this encoder are not known here" in caution for caution in model.cautions)


def test_a_trained_encoder_brings_its_colours_and_a_note_of_the_rest(tmp_path, monkeypatch):
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_space": "RGB"}')
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda _, name, **__: str(tmp_path / name))
    model = glowmap.load("smp/Unet-resnet18")
    assert torch.equal(model.module.encoder.conv1.weight, encoder.conv1.weight)
    assert (model.preprocess.mean, model.preprocess.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert model.cautions == (
        "only the encoder is trained: the weights of decoder and head are random, and so are the class scores",
    )
    bare = as_model(smp.FPN("resnet18", encoder_weights=None))
    assert (bare.preprocess.mean, bare.preprocess.multiple, bare.cautions) == ([0.1, 0.2, 0.3], 32, ())


def test_open_clip_compares_a_picture_with_texts():
    model = glowmap.load("open_clip/RN50", weights="random")
    module, tokens = model.module, torch.randint(1, 400, (3, 77))
    own = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**module.visual.preprocess_cfg), is_train=False
    )
    batch = model.read({"image": picture(), "text": tokens})
    assert torch.equal(batch.images[0], own(picture()))
    np.testing.assert_allclose(batch.pictures[0].visible, (50, 0, 250, 200), atol=1)
    with torch.no_grad():
        output = module(batch.images, tokens)
        pictures, texts = module.encode_image(batch.images), module.encode_text(tokens)
    wanted = torch.tensor([[nn.functional.cosine_similarity(pictures[0], text, 0) for text in texts]])
    torch.testing.assert_close(
        model.readers.logits(output), wanted * module.logit_scale.exp().detach(), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(TargetError, match="the model was given no text to compare the picture with"):
        model.readers.logits((output[0], None, output[2]))
    bare = as_model(module)
    assert torch.equal(bare.read(picture()).images, batch.images)
    assert torch.equal(bare.readers.logits(output), model.readers.logits(output))
    biased = {"image_features": pictures, "text_features": texts, "logit_scale": 2.0, "logit_bias": -1.0}
    torch.testing.assert_close(model.readers.logits(biased), 2 * pictures @ texts.T - 1)


def yolo(name="yolo11n.yaml"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.MonkeyPatch.context() as kept:  # it changes them for good when it is imported
            for home, function in ((Image, "open"), (torch, "save"), (torch, "load")):
                kept.setattr(home, function, getattr(home, function))
            return pytest.importorskip("ultralytics").YOLO(name)


def test_yolo_answers_with_the_best_score_of_each_class():
    wrapper = yolo()
    wrapper.model.names = {index: f"thing {index}" for index in range(80)}
    model = as_model(wrapper)
    assert model.module is wrapper.model
    assert (model.name, len(model.class_names), model.class_names[3]) == ("DetectionModel", 80, "thing 3")
    module = model.module.eval()
    with torch.no_grad():
        output = module(torch.rand(2, 3, 64, 96))
    scores = model.readers.logits(output)
    assert scores.shape == (2, 80)
    torch.testing.assert_close(scores.sigmoid(), output[0][:, 4:84].amax(2))  # the decoded ones are probabilities
    assert model.read(picture((60, 40))).images.shape == (1, 3, 64, 64)
    assert model.read(picture()).images.max() <= 1


@pytest.mark.parametrize("chooses", [True, False])
def test_yolo_with_two_heads_is_read_at_the_one_it_uses(chooses):
    module = yolo("yolo26n.yaml").model.eval()
    module.model[-1].end2end = chooses
    with torch.no_grad():
        boxes, raw = module(torch.rand(1, 3, 96, 96))
    head = "one2one" if chooses else "one2many"
    assert (boxes.shape[2] == 6) is chooses
    assert torch.equal(as_model(module).readers.logits((boxes, raw)), raw[head]["scores"].amax(2))


def test_a_yolo_classifier_is_read_before_its_softmax():
    module = yolo("yolo11n-cls.yaml").model.eval()
    with torch.no_grad():
        probabilities, logits = module(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(logits.softmax(1), probabilities)
    assert torch.equal(as_model(module).readers.logits((probabilities, logits)), logits)
    assert as_model(module).class_names is None  # an untrained one counts them


# --- torchvision


def test_detectors_and_video_models_by_name(street):
    torchvision = pytest.importorskip("torchvision")
    detector = glowmap.load("ssdlite320_mobilenet_v3_large", weights="random")
    assert detector.class_names[3] == "car"
    batch = detector.read(street)
    with torch.no_grad():
        output = detector.module(batch.images)
    with pytest.raises(TargetError, match=r"returns detections, .* target=glowmap.targets.SimilarDetection"):
        detector.readers.logits(output)
    rcnn = glowmap.load("fasterrcnn_mobilenet_v3_large_320_fpn", weights="random")
    assert not any("the map covers the padded canvas" in caution for caution in rcnn.cautions)  # which is cut off

    video = glowmap.load("r3d_18", weights="random")
    assert video.class_names[0] == "abseiling"
    with pytest.raises(InputError, match="a video model takes clips, not a picture"):
        video.read(street)
    with pytest.raises(InputError, match="the size is for pictures"):
        glowmap.load("r3d_18", weights="random", size=112)
    frames = torch.randint(0, 256, (1, 4, 3, 140, 180), dtype=torch.uint8)
    own = torchvision.models.video.R3D_18_Weights.DEFAULT.transforms()
    clip = video.read(frames).images
    assert torch.equal(clip, own(frames))
    assert clip.shape == (1, 3, 4, 112, 112)
    assert torch.equal(video.read(clip).images, clip)
    torch.testing.assert_close(
        glowmap.load("r3d_18", weights="random", mean=0.0, std=1.0).read(frames).images,
        clip * torch.tensor(own.std).reshape(1, 3, 1, 1, 1) + torch.tensor(own.mean).reshape(1, 3, 1, 1, 1),
    )


def test_a_bare_torchvision_model_does_not_say_what_its_classes_are():
    torchvision = pytest.importorskip("torchvision")
    model = as_model(torchvision.models.resnet18(weights=None))
    assert (model.name, model.class_names, model.preprocess, model.cautions) == ("ResNet", None, None, ())


# --- wrappers


def test_wrappers_are_taken_off_and_noted():
    inner = Classifier().eval()
    for wrapper, word in ((torch.compile(inner), "torch.compile"), (nn.DataParallel(inner), "DataParallel")):
        model = as_model(wrapper)
        assert model.module is inner
        assert model.name == "Classifier"
        assert word in model.cautions[0]
        found = glowmap.explain(wrapper, images(), target=1, layer="features")
        assert torch.equal(found.raw, glowmap.explain(inner, images(), target=1, layer="features").raw)
        assert found.model == "Classifier"
    both = as_model(nn.DataParallel(torch.compile(timm.create_model("test_resnet"))))
    assert (both.name, len(both.cautions)) == ("ResNet", 2)
    assert both.preprocess is not None


def test_a_scripted_module_is_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still about
        scripted = torch.jit.script(Classifier().eval())
    model = as_model(scripted)
    assert model.module is scripted
    assert model.name == "Classifier (TorchScript)"


# --- the network, and libraries that are not there


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm/convnext_tiny",
            "model.safetensors of timm/convnext_tiny.* give weights='its path' with timm/convnext_tiny",
        ),
        ("hf/google/vit-base-patch16-224", r"model.safetensors of google/vit-.*save its folder .* and write hf/PATH"),
        ("smp/Unet-resnet34", "of smp-hub/resnet34.imagenet .* give a checkpoint of the whole model"),
        ("smp/Unet-tu-convnext_atto", "model.safetensors of timm/convnext_atto"),
        ("open_clip/ViT-B-32:laion2b_s34b_b79k", "of laion/CLIP-ViT-B-32-laion2B-s34B-b79K .* give weights='its path'"),
    ],
)
def test_no_network_is_told_early_with_what_to_do(name, message, no_network):
    import huggingface_hub

    start = time.monotonic()
    with pytest.raises(ModelError, match=message) as caught:
        glowmap.load(name)
    assert time.monotonic() - start < 3
    assert "the Hugging Face hub cannot be reached" in str(caught.value)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_random_weights_need_no_network(no_network):
    for name in ("timm/test_vit", "smp/Unet-tu-convnext_atto", "open_clip/RN50"):
        assert glowmap.load(name, weights="random", mean=0.5).cautions[0].startswith("the weights are random"), name


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("timm/resnet18", "timm", "timm"),
        ("hf/google/vit", "transformers", "transformers"),
        ("smp/Unet-resnet34", "segmentation_models_pytorch", "segmentation"),
        ("open_clip/RN50", "open_clip", "open_clip"),
    ],
)
def test_a_missing_library_names_its_extra(name, library, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=rf'needs {library}, .*pip install "glowmap\[{extra}\]"'):
        glowmap.load(name)


def test_no_library_is_imported_for_a_plain_module():
    program = """
import sys, torch, glowmap
glowmap.load, glowmap.METHODS
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
glowmap.explain(net, torch.rand(1, 3, 9, 9), target=1, layer="0")
libraries = {"torchvision", "timm", "transformers", "segmentation_models_pytorch", "open_clip", "ultralytics", "huggingface_hub"}
print(sorted(libraries & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_every_family_lists_what_it_builds():
    for name, family in FAMILIES.items():
        assert (family.names is None) == (name in ("hf", "ultralytics")), name
        listed = family.names() if family.names is not None else ()
        assert len(listed) > 2 or family.names is None, name
        assert all(name in ("torchvision", "demo") or listed_name.startswith(f"{name}/") for listed_name in listed)
        assert (family.recognise is None) == (name == "demo")
        assert family.recognise is None or family.recognise(Classifier()) is None


def test_a_narrow_strip_is_refused_before_it_fills_the_memory():
    with pytest.raises(GlowmapError, match="resized for this model, has"):
        glowmap.load("timm/test_resnet", weights="random").read(Image.new("RGB", (60000, 1)))


def test_a_picture_smaller_than_the_frame_is_padded_and_shown_so():
    class CenterCropOrPad:
        size = (20, 20)

    assert crop_box([CenterCropOrPad()], Image.new("RGB", (10, 41))) == (-5.0, 10.0, 15.0, 30.0)


def test_a_video_model_that_takes_frames_first_says_how_it_can_be_explained():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.VideoMAEConfig(**sizes, image_size=32, patch_size=8, num_frames=6, tubelet_size=2)
    model = transformers.VideoMAEForVideoClassification(config).eval()
    with pytest.raises(ModelError, match=r"takes frames before colours.*model\(clips.transpose\(1, 2\)\)"):
        glowmap.explain(model, torch.randn(1, 6, 3, 32, 32))

    class ColoursFirst(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, clips):
            return self.model(clips.transpose(1, 2))

    explained = glowmap.explain(ColoursFirst(), torch.randn(1, 3, 6, 32, 32))
    assert explained.grid == (3, 4, 4)
    assert explained.layer == "model.videomae.encoder.layer.1"
    assert not [caution for caution in explained.cautions if "proven" in caution]
