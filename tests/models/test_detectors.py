"""Detections as the libraries themselves give them: transformers' queries, ultralytics' heads, and a YOLO of one's own."""

import math
import sys
import warnings

import pytest
import torch
from PIL import Image
from torch import nn

import glowmap
from glowmap.errors import MissingExtra, TargetError
from glowmap.models import as_model, yolo_boxes
from glowmap.targets import Detection
from tiny_models.convolutional import images

transformers = pytest.importorskip("transformers")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
NAMES = dict(enumerate(["sky", "car", "dog"]))
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
ENCODER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 7,
}
REAL_TIME = {
    "d_model": 16,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 12, 16],
    "encoder_ffn_dim": 16,
    "decoder_in_channels": [16] * 3,
    "decoder_layers": 2,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 7,
}
DAB = {name: value for name, value in ENCODER.items() if name != "d_model"} | {"hidden_size": 32}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 16}


def backbone(*stages, kind="ResNetConfig"):
    return getattr(transformers, kind)(**RESNET, out_features=list(stages))


def built(family, head="ForObjectDetection", **options):
    """Build a model from a seed, with its last layers' biases drawn too, so that its queries differ."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = getattr(transformers, f"{family}Config")(**{"id2label": NAMES, **options})
        module = getattr(transformers, family + head)(config).eval()
        for parameter in module.parameters():  # the library's own are so small that all queries say the same
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module


# how to build it, and the library's own reading of what it answers
DETECTORS = {
    "Detr": (lambda: built("Detr", backbone_config=backbone("stage4"), **ENCODER), "Detr"),
    "TableTransformer": (lambda: built("TableTransformer", backbone_config=backbone("stage4"), **ENCODER), "Detr"),
    "Yolos": (lambda: built("Yolos", **VIT, image_size=[64, 96], num_detection_tokens=7), "Yolos"),
    "ConditionalDetr": (
        lambda: built("ConditionalDetr", backbone_config=backbone("stage4"), **ENCODER),
        "ConditionalDetr",
    ),
    "DabDetr": (lambda: built("DabDetr", backbone_config=backbone("stage4"), **DAB), "ConditionalDetr"),
    "DeformableDetr": (
        lambda: built(
            "DeformableDetr",
            backbone_config=backbone(*STAGES[1:]),
            num_feature_levels=3,
            **ENCODER,
        ),
        "DeformableDetr",
    ),
    **{
        family: (
            lambda family=family: built(
                family,
                backbone_config=backbone(*STAGES[1:], kind="RTDetrResNetConfig"),
                **REAL_TIME,
            ),
            "RTDetr",
        )
        for family in ("RTDetr", "RTDetrV2", "DFine")
    },
}


def asked(module, pixels):
    """Run a model, and read what it answered as glowmap does."""
    model = as_model(module)
    output = module(pixels)
    return output, model.read_output(output, model.read(pixels))


def library_says(processor, output, size, **options):
    """List each query once, as its best class, from the library's own list of classes of queries: (score, label, box)."""
    reader = getattr(transformers, f"{processor}ImageProcessor")()
    most = {} if processor in ("Detr", "Yolos", "RTDetr") else {"top_k": 10**6}
    listed = reader.post_process_object_detection(output, 0.0, [size] * len(output.logits), **most, **options)
    found = []
    for one in listed:
        boxes = [tuple(round(corner, 3) for corner in box) for box in one["boxes"].tolist()]
        rows = sorted(zip(one["scores"].tolist(), one["labels"].tolist(), boxes, strict=True), reverse=True)
        first = {}
        for row in rows:
            first.setdefault(row[2], row)
        found.append(list(first.values()))
    return found


@pytest.mark.parametrize("size", [(64, 96), (96, 64), (128, 160)])
@pytest.mark.parametrize("family", list(DETECTORS))
def test_queries_are_found_with_the_library_s_own_scores_and_boxes(family, size):
    module, processor = DETECTORS[family][0](), DETECTORS[family][1]
    with torch.no_grad():
        output, answer = asked(module, images(2, *size))
    says = library_says(processor, output, size)
    assert sum(map(len, says)) >= 10
    for own, found in zip(says, answer.candidates.detections, strict=True):
        # the library's list of the best pairs of query and class may leave a query out
        assert len(found) == 7 >= len(own)
        for (score, label, box), one in zip(own, found, strict=False):
            assert one.score == pytest.approx(score, abs=1e-5)
            assert one.category == label
            assert one.corners == pytest.approx(box, abs=2e-3)
    assert answer.class_names == ("sky", "car", "dog")


def test_a_focal_loss_that_is_switched_off_leaves_the_last_label_for_no_object():
    module = DETECTORS["RTDetr"][0]()
    module.config.use_focal_loss = False
    with torch.no_grad():
        output, answer = asked(module, images(2, 64, 96))
    shares = output.logits.double().exp()
    shares = shares / shares.sum(
        2, keepdim=True
    )  # its processor takes these over the images of the batch, which is a slip
    for image, found in enumerate(answer.candidates.detections):
        assert [one.score for one in found] == pytest.approx(
            sorted(shares[image, :, :2].amax(1).tolist(), reverse=True)
        )
        assert all(one.category == int(shares[image, one.candidate, :2].argmax()) for one in found)
    assert answer.class_names == ("sky", "car")
    assert answer.logits.shape == (2, 2)


def test_boxes_and_class_scores_of_queries_have_the_gradient_of_the_output():
    module = DETECTORS["Detr"][0]()
    output, answer = asked(module, images(1, 64, 96))
    candidates = answer.candidates
    one = candidates.detections[0][2]
    x, y, width, height = output.pred_boxes[0, one.candidate]
    by_hand = torch.stack([(x - width / 2) * 96, (y - height / 2) * 64, (x + width / 2) * 96, (y + height / 2) * 64])
    weight = module.bbox_predictor.layers[0].weight
    for side in range(4):
        own, hand = candidates.boxes[0][one.candidate][side], by_hand[side]
        (slope,), (wanted,) = (torch.autograd.grad(each, [weight], retain_graph=True) for each in (own, hand))
        assert wanted.abs().max() > 0
        torch.testing.assert_close(slope, wanted)
    assert torch.equal(candidates.logits[0], output.logits[0, :, :-1])
    assert torch.equal(answer.logits, output.logits[:, :, :-1].amax(1))


@pytest.mark.parametrize("target", [None, "car", Detection(0)], ids=str)
def test_a_known_layer_of_queries_takes_one_pass(target):
    module, pixels = DETECTORS["Detr"][0](), images(1, 64, 96)
    model = glowmap.load(module, classes=list(NAMES.values()))
    runs = []
    module.register_forward_hook(lambda *_: runs.append(1))
    first = glowmap.explain(model, pixels, target=target)
    assert len(runs) == 2  # one to find the layer, one to explain it
    again = glowmap.explain(model, pixels, target=target)
    assert len(runs) == 3
    assert again.layer == first.layer


def test_labels_that_do_not_fit_the_logits_are_refused():
    module = DETECTORS["Detr"][0]()
    module.config.id2label = {0: "one"}
    with torch.no_grad(), pytest.raises(TargetError, match="gives each query 4 logits, but its config has 1 labels"):
        _ = asked(module, images(1, 64, 96))[1].candidates
    module.config.id2label = NAMES
    with torch.no_grad():
        output = module(images(1, 64, 96), return_dict=False)
    model = as_model(module)
    with pytest.raises(
        TargetError, match=r"no detections are found .* a tuple: it has no logits and pred_boxes for 1 images"
    ):
        _ = model.read_output(output, model.read(images(1, 64, 96))).candidates


def test_owl_finds_the_likeliest_text_in_each_box():
    text = {
        "vocab_size": 99,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**VIT, "image_size": 64}
    module = built(
        "OwlViT", text_config={**text, "max_position_embeddings": 8}, vision_config=vision, projection_dim=16
    )
    tokens = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2]])
    model, given = as_model(module), {"pixel_values": images(1, 64, 64), "input_ids": tokens}
    with torch.no_grad():
        output = module(**given)
    found = model.read_output(output, model.read(given)).candidates.detections[0]
    (says,) = transformers.OwlViTImageProcessor().post_process_object_detection(output, 0.0, [(64, 64)])
    assert len(found) == 16
    assert {(one.candidate, one.category) for one in found} == set(enumerate(says["labels"].tolist()))
    order = torch.tensor([one.candidate for one in found])
    assert (output.logits[0].amax(1)[order].diff() <= 0).all()
    torch.testing.assert_close(torch.tensor([one.score for one in found]), says["scores"][order])
    torch.testing.assert_close(torch.tensor([one.corners for one in found]), says["boxes"][order])


# --- transformers: queries with masks


def swin(kind="Swin"):
    return getattr(transformers, f"{kind}Config")(
        image_size=64, patch_size=4, embed_dim=8, depths=[1] * 4, num_heads=[2] * 4, window_size=4, out_features=STAGES
    )


def mask_former():
    decoder = transformers.DetrConfig(**{**ENCODER, "encoder_layers": 0, "num_queries": 6})
    return built(
        "MaskFormer",
        "ForInstanceSegmentation",
        backbone_config=swin(),
        fpn_feature_size=32,
        mask_feature_size=32,
        decoder_config=decoder,
    )


def mask2former():
    return built(
        "Mask2Former",
        "ForUniversalSegmentation",
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
    )


def eomt():
    return built(
        "Eomt",
        "ForUniversalSegmentation",
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=64,
        patch_size=16,
        num_blocks=1,
        num_queries=6,
        num_upscale_blocks=2,
    )


MASKED = {"MaskFormer": mask_former, "Mask2Former": mask2former, "Eomt": eomt}


@pytest.mark.parametrize("name", list(MASKED))
def test_a_query_with_a_mask_is_found_with_its_class_its_mask_s_likeness_and_the_box_around_it(name):
    with torch.no_grad():
        output, answer = asked(MASKED[name](), images(2, 64, 64))
    classes, masks = output.class_queries_logits.double(), output.masks_queries_logits.double()
    empty = 0
    for image in range(2):
        wanted = {}
        for query in range(6):
            inside = (masks[image, query] > 0).nonzero().tolist()
            empty += not inside
            if not inside:
                continue
            shares = classes[image, query].exp() / classes[image, query].exp().sum()
            category = int(shares[:-1].argmax())
            sure = sum(1 / (1 + (-masks[image, query, row, column]).exp()) for row, column in inside) / len(inside)
            cell = 64 / masks.shape[2]
            rows, columns = [row for row, _ in inside], [column for _, column in inside]
            box = (min(columns) * cell, min(rows) * cell, (max(columns) + 1) * cell, (max(rows) + 1) * cell)
            wanted[query] = (float(shares[category] * sure), category, box)
        found = answer.candidates.detections[image]
        assert {one.candidate for one in found} == set(wanted)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
        for one in found:
            score, category, box = wanted[one.candidate]
            assert (one.score, one.category) == (pytest.approx(score, abs=1e-5), category)
            assert one.corners == pytest.approx(box)
        assert torch.equal(answer.candidates.masks[image], output.masks_queries_logits[image])
        assert torch.equal(answer.candidates.logits[image], output.class_queries_logits[image, :, :-1])


def test_mask_former_s_own_instances_have_the_same_scores():
    with torch.no_grad():
        output, answer = asked(mask_former(), images(2, 64, 64))
    says = transformers.MaskFormerImageProcessor().post_process_instance_segmentation(output, threshold=0.0)
    for own, found in zip(says, answer.candidates.detections, strict=True):
        pairs = {(one["label_id"], round(one["score"], 4)) for one in own["segments_info"]}
        best = (found[0].category, round(found[0].score, 4))
        assert best == max(pairs, key=lambda pair: pair[1])


@pytest.mark.parametrize("name", list(MASKED))
def test_classes_of_a_model_of_masks_are_still_asked_of_places(name):
    module, pixels = MASKED[name](), images(1, 64, 64)
    output, answer = asked(module, pixels)
    assert not answer.readers.are_detections
    shares = output.class_queries_logits.softmax(-1)[0, :, :3]
    dense = torch.einsum("qc,qhw->chw", shares, output.masks_queries_logits[0].sigmoid())
    torch.testing.assert_close(answer.logits[0], dense)
    seen = answer.present(0)[0]
    explained = glowmap.explain(module, pixels, target=seen)
    torch.testing.assert_close(explained.scores[0], dense[seen][dense.argmax(0) == seen].sum().detach())


@pytest.mark.parametrize("of", ["class", "mask"])
@pytest.mark.parametrize("name", list(MASKED))
def test_a_query_is_followed_by_its_mask(name, of):
    module, pixels = MASKED[name](), images(1, 64, 64)
    alone = 0
    with torch.no_grad():
        output, answer = asked(module, pixels)
        for number, one in enumerate(answer.candidates.detections[0]):
            target = glowmap.targets.Detection(number, of=of)
            follow = target.pin(answer, 0)
            assert torch.equal(follow.score(answer), target.score(answer))
            assert follow.describe(answer, 0) == target.describe(answer, 0)
            changed = output.copy()  # where the query comes last, and says something else
            order = [query for query in range(6) if query != one.candidate] + [one.candidate]
            changed["masks_queries_logits"] = output.masks_queries_logits[:, order] * 2
            changed["class_queries_logits"] = output.class_queries_logits[:, order] + 1
            model = as_model(module)
            again = model.read_output(type(output)(**changed), model.read(pixels))
            masks = output.masks_queries_logits[0] > 0
            inside = masks[one.candidate]
            if sum(torch.equal(mask, inside) for mask in masks) > 1:
                continue
            alone += 1
            wanted = {
                "class": output.class_queries_logits[0, one.candidate, one.category] + 1,
                "mask": (2 * output.masks_queries_logits[0, one.candidate])[inside].sum(),
            }
            torch.testing.assert_close(follow.score(again)[0], wanted[of])
    assert alone


def test_boxes_are_not_followed_through_flips():
    module, pixels = mask2former(), images(1, 64, 64)
    with pytest.raises(TargetError, match="moves objects to other places"):
        glowmap.explain(module, pixels, target=glowmap.targets.Detection(0), smooth="flips")


def test_a_query_of_detr_for_segmentation_has_its_own_box_and_a_mask():
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    detr = transformers.DetrConfig(backbone_config=backbone(*STAGES), id2label=NAMES, **ENCODER | heads)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = transformers.DetrForSegmentation(detr).eval()
    pixels = images(1, 64, 96)
    with torch.no_grad():
        output, answer = asked(module, pixels)
    one = answer.candidates.detections[0][0]
    x, y, width, height = output.pred_boxes[0, one.candidate].tolist()
    box = ((x - width / 2) * 96, (y - height / 2) * 64, (x + width / 2) * 96, (y + height / 2) * 64)
    assert one.corners == pytest.approx(box, abs=1e-3)
    assert torch.equal(answer.candidates.masks[0], output.pred_masks[0])
    mask = output.pred_masks[0, one.candidate]
    target = glowmap.targets.Detection(0, of="mask")
    mask[:] = torch.linspace(-2, 3, mask.numel()).reshape(mask.shape)
    torch.testing.assert_close(target.score(asked_again(module, output, pixels))[0], mask[mask > 0].sum())
    output.pred_masks[:] = -1
    with pytest.raises(TargetError, match="the mask of .* is empty; give its class or a side of its box as target"):
        target.score(asked_again(module, output, pixels))
    assert torch.equal(answer.logits, output.logits[:, :, :-1].amax(1))


def asked_again(module, output, pixels):
    model = as_model(module)
    return model.read_output(output, model.read(pixels))


def test_padded_pictures_are_noted():
    module, mask = DETECTORS["Detr"][0](), torch.ones(1, 64, 96, dtype=torch.long)
    given = {"pixel_values": images(1, 64, 96), "pixel_mask": mask}
    layer = "model.input_projection"
    assert not any("padded" in caution for caution in glowmap.explain(module, given, layer=layer).cautions)
    mask[:, 40:] = 0
    explained = glowmap.explain(module, given, layer=layer)
    assert explained.cautions[0].startswith(
        "the pictures are padded (pixel_mask has zeros), and boxes are read as shares of"
    )


# --- ultralytics


def yolo(name, *, chooses=False):
    """Build a detector of ultralytics from a seed, with scores that differ."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as kept, torch.random.fork_rng():
        warnings.simplefilter("ignore")
        for home, function in (
            (Image, "open"),
            (torch, "save"),
            (torch, "load"),
        ):  # which it changes when it is imported
            kept.setattr(home, function, getattr(home, function))
        ultralytics = pytest.importorskip("ultralytics")
        torch.manual_seed(2)
        wrapper = ultralytics.RTDETR if name.endswith("rtdetr") else ultralytics.YOLO
        module = wrapper(f"{name}.yaml").model.eval()
        for kernels in (part for part in module.modules() if isinstance(part, nn.Conv2d)):
            if kernels.weight.requires_grad:  # what is fixed reads a box's sides
                nn.init.kaiming_normal_(kernels.weight)  # its own let hardly anything through
        for part in (part for part in module.modules() if type(part).__name__ == "DeformableTransformerDecoder"):
            for parameter in part.parameters():  # whose queries all say the same
                parameter.data += 0.1 * torch.randn_like(parameter)
    head = module.model[-1]
    if chooses:
        head.end2end = True
    scoring = [part for part in head.modules() if isinstance(part, nn.Conv2d | nn.Linear) and part.bias is not None]
    _made_to_tell(module, [part for part in scoring if len(part.bias) == head.nc])
    return module


def _made_to_tell(module, scoring):
    """Give the class scores weights to which what comes in is neither large nor small: untrained, all places look the same."""
    came = {}
    hooks = [part.register_forward_hook(lambda part, given, _: came.update({part: given[0]})) for part in scoring]
    with torch.no_grad():
        module(torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(5)))
    for part, given in came.items():
        own = given.transpose(0, 1).flatten(1) if isinstance(part, nn.Conv2d) else given.flatten(0, -2).T
        mean, spread = own.mean(1), own.std(1) + 1e-4
        weights = torch.randn(len(part.bias), len(mean), generator=torch.Generator().manual_seed(4)) / len(mean) ** 0.5
        part.weight.data = (weights / spread).reshape(part.weight.shape)
        part.bias.data = -(weights / spread * mean).sum(1) - 9
        part.bias.data[:3] += 7  # so that no place is found as each of its classes
    for hook in hooks:
        hook.remove()


def cells_of(levels):
    """Tell for each level of a head how many cells come before its own."""
    counts = [level.shape[2] * level.shape[3] for level in levels]
    return [sum(counts[:at]) for at in range(len(counts) + 1)]


@pytest.mark.parametrize("size", [(96, 128), (128, 96)])
@pytest.mark.parametrize(
    "name", ["yolov8n", "yolov5n", "yolo11n", "yolov10n", "yolo26n", "yolo11n-seg", "yolo11n-pose"]
)
def test_yolo_finds_what_its_library_leaves_of_its_boxes(name, size):
    module = yolo(name)
    with torch.no_grad():
        output, answer = asked(module, torch.rand(2, 3, *size))
    from ultralytics.utils.nms import non_max_suppression

    decoded = output[0][0] if isinstance(output[0], tuple) else output[0]
    says = non_max_suppression(decoded.clone(), 0.25, 0.7, nc=80, max_det=300)
    every = non_max_suppression(decoded.clone(), 0.25, 0.99, nc=80)
    assert sum(map(len, says)) >= 10
    assert (sum(map(len, says)) < sum(map(len, every))) is (
        name != "yolo26n"
    )  # whose boxes here are small and lie apart
    assert len({row[5].item() for rows in says for row in rows}) > 1
    for image, (rows, found) in enumerate(zip(says, answer.candidates.detections, strict=True)):
        assert len(found) >= len(rows)
        for row, one in zip(rows, found, strict=False):
            assert one.corners == pytest.approx(row[:4].tolist(), abs=1e-3)
            assert (one.score, one.category) == pytest.approx(row[4:6].tolist(), abs=1e-6)
            logits = answer.candidates.logits[image][one.candidate]
            assert logits[one.category].sigmoid() == pytest.approx(one.score, abs=1e-6)
            assert answer.candidates.boxes[image][one.candidate].tolist() == pytest.approx(one.corners)
            assert decoded[image, 4 + one.category, one.candidate] == pytest.approx(one.score)


@pytest.mark.parametrize("name", ["yolov10n", "yolo26n", "yolo26n-seg", "yolo26n-obb"])
def test_a_yolo_that_chooses_by_itself_found_what_it_chose(name):
    module = yolo(name, chooses=True)
    with torch.no_grad():
        output, answer = asked(module, torch.rand(2, 3, 96, 128))
    rows = output[0][0] if isinstance(output[0], tuple) else output[0]
    assert rows.shape[1] >= 100
    for image, found in enumerate(answer.candidates.detections):
        assert len(found) == rows.shape[1]
        assert [one.score for one in found] == rows[image, :, 4].tolist()
        assert [one.category for one in found] == rows[image, :, 5].tolist()
        for one, row in zip(found, rows[image], strict=True):
            logit = answer.candidates.logits[image][one.candidate, one.category]
            assert logit.sigmoid() == pytest.approx(one.score, abs=1e-6)
            if "obb" not in name:
                assert one.corners == pytest.approx(row[:4].tolist(), abs=1e-3)


@pytest.mark.parametrize("chooses", [False, True])
def test_a_turned_box_gets_the_upright_one_around_it(chooses):
    module = yolo("yolo26n-obb" if chooses else "yolo11n-obb", chooses=chooses)
    with torch.no_grad():
        output, answer = asked(module, torch.rand(1, 3, 96, 128))
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import xywhr2xyxyxyxy

    rows = (
        output[0][0] if chooses else non_max_suppression(output[0], 0.25, 0.7, nc=module.model[-1].nc, rotated=True)[0]
    )
    found = answer.candidates.detections[0]
    assert len(found) >= len(rows) > 5
    for row, one in zip(rows, found, strict=False):
        ends = xywhr2xyxyxyxy(torch.cat([row[:4], row[-1:]]))  # the four corners
        around = [*ends.amin(0).tolist(), *ends.amax(0).tolist()]
        assert one.corners == pytest.approx(around, abs=1e-3)
        assert one.score == pytest.approx(row[4].item(), abs=1e-6)


def test_a_callable_may_read_what_no_detections_can_be_read_from():
    module, pixels = yolo("yolov8n"), torch.rand(1, 3, 96, 128)
    module.model[-1].export = True

    def likeliest(output):
        return output[:, 4:].amax((1, 2))

    explained = glowmap.explain(module, pixels, target=likeliest, layer="model.9")
    torch.testing.assert_close(explained.scores, likeliest(module(pixels)).detach())
    with pytest.raises(TargetError, match="no raw class scores are found in this detector's output"):
        glowmap.explain(module, pixels, target=glowmap.targets.Detection(0), layer="model.9")


def test_ultralytics_rt_detr_finds_each_query_once():
    module = yolo("yolov8n-rtdetr")
    with torch.no_grad():
        output, answer = asked(module, torch.rand(1, 3, 96, 128))
    first = {}
    for *box, score, category in output[0][0].tolist():
        first.setdefault(tuple(box), (score, category))
    found = answer.candidates.detections[0]
    assert len(first) > 3
    for (box, (score, category)), one in zip(first.items(), found, strict=False):
        x, y, width, height = box
        assert one.score == pytest.approx(score, abs=1e-6)
        assert one.category == category
        corners = [(x - width / 2) * 128, (y - height / 2) * 96, (x + width / 2) * 128, (y + height / 2) * 96]
        assert one.corners == pytest.approx(corners, abs=1e-3)


# --- a YOLO of one's own


class OwnYolo(nn.Module):
    """One box a cell, of 8 pixels, of 3 classes: images x boxes x (4 + 1 + 3), or images x (4 + 3) x boxes."""

    def __init__(self, objectness=True, channels_first=False, probabilities=True):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Conv2d(8, 4 + objectness + 3, 1)
        self.head.weight.data *= 4
        self.channels_first, self.probabilities = channels_first, probabilities

    def forward(self, pictures):
        said = self.head(self.trunk(pictures))
        cells = torch.stack(torch.meshgrid(*map(torch.arange, said.shape[2:]), indexing="ij")[::-1]) * 8 + 4
        boxes = torch.cat([cells + 4 * said[:, :2].tanh(), 8 + 20 * said[:, 2:4].sigmoid()], 1)
        scores = said[:, 4:].sigmoid() if self.probabilities else said[:, 4:]
        columns = torch.cat([boxes, scores], 1).flatten(2)
        return (columns if self.channels_first else columns.transpose(1, 2), ["its levels"])


def left_by_hand(rows, objectness, probabilities, overlap):
    """Non-maximum suppression, box by box: (candidate, class, score, box)."""
    listed = []
    for at, (x, y, width, height, *scores) in enumerate(rows.double().tolist()):
        scores = scores if probabilities else [1 / (1 + math.exp(-score)) for score in scores]
        thing, classes = (scores[0], scores[1:]) if objectness else (1.0, scores)
        best = max(range(3), key=classes.__getitem__)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        listed.append((at, best, thing * classes[best], box))
    left = []
    for one in sorted(listed, key=lambda one: -one[2]):
        if all(one[1] != other[1] or overlap_of(one[3], other[3]) <= overlap for other in left):
            left.append(one)
    return left


def overlap_of(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - common)


@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.4])
@pytest.mark.parametrize(
    ("objectness", "channels_first", "probabilities"),
    [(True, False, True), (True, False, False), (False, True, True), (False, False, False), (True, True, True)],
)
def test_a_yolo_of_one_s_own_is_read_as_its_columns_are_said_to_be(objectness, channels_first, probabilities, overlap):
    pytest.importorskip("torchvision")
    module, pixels = OwnYolo(objectness, channels_first, probabilities), images(2, 64, 96)
    read = yolo_boxes(
        objectness=objectness, channels_first=channels_first, probabilities=probabilities, overlap=overlap
    )
    model = glowmap.load(module, classes=["sky", "car", "dog"]).with_readers(candidates=read)
    output = module(pixels)
    candidates = model.read_output(output, model.read(pixels)).candidates
    rows = output[0].transpose(1, 2) if channels_first else output[0]
    for image in range(2):
        wanted = left_by_hand(rows[image], objectness, probabilities, overlap)
        found = candidates.detections[image]
        assert [(one.candidate, one.category) for one in found] == [one[:2] for one in wanted]
        assert [one.score for one in found] == pytest.approx([one[2] for one in wanted], abs=1e-5)
        for one, by_hand_ in zip(found, wanted, strict=True):
            assert one.corners == pytest.approx(by_hand_[3], abs=1e-3)
        classes = rows[image, :, 4 + objectness :]
        torch.testing.assert_close(
            candidates.logits[image].sigmoid() if probabilities else candidates.logits[image], classes
        )
        if objectness:
            thing = candidates.objectness[image]
            torch.testing.assert_close(thing.sigmoid() if probabilities else thing, rows[image, :, 4])
    assert (candidates.objectness is not None) is objectness
    assert candidates.boxes[0].requires_grad
    assert 10 < len(candidates.detections[0]) < 96


def test_a_yolo_of_one_s_own_is_explained():
    pytest.importorskip("torchvision")
    module, pixels = OwnYolo(), images(1, 64, 96)
    model = glowmap.load(module).with_readers(candidates=yolo_boxes(objectness=True))
    one = model.read_output(module(pixels), model.read(pixels)).candidates.detections[0][0]
    explained = glowmap.explain(model, pixels, target=glowmap.targets.Detection(0))

    def score(output):
        return torch.logit(output[0][0, one.candidate, 5 + one.category])

    slope, activations = by_hand(module, explained.layer, pixels, score)
    assert explained.layer == "trunk.1"  # all after it looks at the one cell alone
    assert 4 <= (explained.raw != 0).sum() <= 9
    same_map(explained.raw, (slope * activations).sum(1))
    assert explained.scores[0] == pytest.approx(score(module(pixels)).item(), abs=1e-4)
    thing = glowmap.explain(model, pixels, target=glowmap.targets.Detection(0, of="objectness"))
    assert thing.scores[0] == pytest.approx(torch.logit(module(pixels)[0][0, one.candidate, 4]).item(), abs=1e-4)


def test_a_yolo_of_one_s_own_that_answers_otherwise_is_refused(monkeypatch):
    module, pixels = OwnYolo(objectness=False), images(1, 64, 96)
    model = glowmap.load(module, classes=["sky", "car", "dog"])
    batch, output = model.read(pixels), module(pixels)

    def read(model, output, **said):
        return model.with_readers(candidates=yolo_boxes(**said)).read_output(output, batch).candidates

    with pytest.raises(
        TargetError, match=r"returned a tensor of 1 x 96 x 7, where yolo_boxes expects 1 x \(4 \+ 3\) x"
    ):
        read(model, output)
    with pytest.raises(
        TargetError, match=r"yolo_boxes expects 1 x boxes x \(5 \+ 3\); set objectness=... and channels_first=..."
    ):
        read(model, output, objectness=True)
    with pytest.raises(TargetError, match="returned a dict"):
        read(model, {"out": output})
    with pytest.raises(TargetError, match="an overlap of 4.5 is not a share"):
        yolo_boxes(overlap=4.5)
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    with pytest.raises(MissingExtra, match="non-maximum suppression of a detector's boxes needs torchvision"):
        read(model, output, channels_first=False)


def test_a_probability_of_one_has_a_finite_logit():
    pytest.importorskip("torchvision")
    rows = torch.tensor([[[8.0, 8.0, 4.0, 4.0, 1.0, 0.0, 1.0]]])
    model = glowmap.load(nn.Identity()).with_readers(candidates=yolo_boxes(objectness=True))
    candidates = model.read_output(rows, model.read(images(1, 16, 16))).candidates
    assert candidates.logits[0].isfinite().all()
    assert candidates.objectness[0] > 10
    assert candidates.detections[0][0].corners == (6, 6, 10, 10)


# --- from a picture to a map


def by_hand(module, layer, pixels, score):
    """Gradient times activation at a layer, with hooks of our own: HiResCAM of one score of the raw output."""
    kept = []
    hook = module.get_submodule(layer).register_forward_hook(lambda _module, _arguments, output: kept.append(output))
    try:
        value = score(module(pixels.clone().requires_grad_()))
    finally:
        hook.remove()
    maps = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    (slope,) = torch.autograd.grad(value, [maps])
    return slope.detach(), maps.detach()


def on_grid(maps, grid, before=0):
    """Lay tokens, image x token x channel, out as channel x rows x columns; maps are so already."""
    if maps.ndim == 4:
        return maps[0]
    return maps[0, before : before + grid[0] * grid[1]].T.reshape(-1, *grid)


def same_map(raw, product):
    """Compare two maps by the larger's scale."""
    torch.testing.assert_close(raw, product, rtol=1e-3, atol=1e-3 * float(product.abs().max()))


@pytest.mark.parametrize("family", ["Detr", "ConditionalDetr", "DeformableDetr", "RTDetr", "Yolos"])
def test_a_query_s_map_is_its_gradient_times_the_activations_of_the_layer_found(family):
    module, pixels = DETECTORS[family][0]().double(), images(1, 64, 96).double()
    _, answer = asked(module, pixels)
    maps = []
    for number in (0, 1):
        target = glowmap.targets.Detection(number)
        explainer = glowmap.Explainer(module)
        explained, one = explainer(pixels, target=target), answer.candidates.detections[0][number]
        choice = explainer.layer
        assert (explained.layer, explained.method) == (choice.name, "hires_cam")
        assert explained.scores[0] == pytest.approx(
            answer.candidates.logits[0][one.candidate, one.category].item(), abs=1e-4
        )
        slope, activations = by_hand(
            module, choice.name, pixels, lambda output, one=one: output.logits[0, one.candidate, one.category]
        )
        product = on_grid(slope * activations, choice.grid, max(choice.layout.prefix_tokens, 0)).sum(0)
        assert product.abs().max() > 0
        same_map(explained.raw[0], product)
        maps.append(explained.raw[0])
    assert (maps[0] - maps[1]).abs().max() > 0.01 * maps[0].abs().max()
    sides = [glowmap.targets.Detection(0, of=of) for of in ("left", "height")]
    for side in glowmap.explain(module, pixels, target=sides, layer=choice.name):
        assert side.raw.abs().max() > 0


@pytest.mark.parametrize("name", list(MASKED))
def test_a_query_s_class_and_its_mask_have_maps_of_their_own(name):
    module, pixels = MASKED[name]().double(), images(1, 64, 64).double()
    output, answer = asked(module, pixels)
    one = answer.candidates.detections[0][0]
    logits = output.masks_queries_logits[0, one.candidate]
    of_class, of_mask = (
        glowmap.explain(module, pixels, target=glowmap.targets.Detection(0, of=of)) for of in ("class", "mask")
    )
    assert of_class.scores[0] == pytest.approx(
        output.class_queries_logits[0, one.candidate, one.category].item(), abs=1e-4
    )
    assert of_mask.scores[0] == pytest.approx(logits[logits > 0].sum().item(), rel=1e-4)
    assert min(of_class.raw.abs().max(), of_mask.raw.abs().max()) > 0
    choice = glowmap.Explainer(module).find(pixels, target=glowmap.targets.Detection(0, of="mask"))

    def score(output):
        own = output.masks_queries_logits[0, one.candidate]
        return own[own > 0].sum()

    slope, activations = by_hand(module, of_mask.layer, pixels, score)
    product = on_grid(slope * activations, choice.grid, max(choice.layout.prefix_tokens, 0)).sum(0)
    same_map(of_mask.raw[0], product)
    with pytest.raises(TargetError, match=r"the box of .* is drawn around its mask and has no gradient"):
        glowmap.explain(module, pixels, target=glowmap.targets.Detection(0, of="left"))


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_a_yolo_s_detection_is_explained_at_the_level_that_it_came_from(name):
    module, pixels = yolo(name, chooses=name == "yolo26n"), torch.rand(1, 3, 128, 160)
    output, answer = asked(module, pixels)
    raw = output[1]["one2one"] if "one2one" in output[1] else output[1]
    starts, levels = cells_of(raw["feats"]), {}
    for number, one in enumerate(answer.candidates.detections[0]):
        level = next(at for at in range(len(starts) - 1) if starts[at] <= one.candidate < starts[at + 1])
        levels.setdefault(level, (number, one))
    assert len(levels) >= 2
    for level, (number, one) in levels.items():
        explainer = glowmap.Explainer(module)
        explained = explainer(pixels, target=glowmap.targets.Detection(number))
        choice = explainer.layer
        came_from = f"model.{module.model[-1].f[level]}"
        assert explained.layer == choice.name
        assert (choice.name + ".").startswith(came_from + ".")
        assert tuple(choice.grid) == tuple(raw["feats"][level].shape[2:])

        def score(output, one=one):
            raw = output[1]["one2one"] if "one2one" in output[1] else output[1]
            return raw["scores"][0, one.category, one.candidate]

        slope, activations = by_hand(module, explained.layer, pixels, score)
        product = (slope * activations).sum(1)
        same_map(explained.raw, product)
        sides = [glowmap.targets.Detection(number, of=of) for of in ("left", "bottom")]
        for side in glowmap.explain(module, pixels, target=sides, layer=explained.layer):
            assert side.raw.abs().max() > 0
