"""What a detector found: its candidates before suppression, and questions about one of them."""

import threading
from collections import OrderedDict

import pytest
import torch
from torch import nn

import glowmap
from glowmap.errors import LayerError, TargetError
from glowmap.targets import AllDetections, Category, Detection, PerImage, SimilarDetection

torchvision = pytest.importorskip("torchvision")
from torchvision.models.detection import FCOS, FasterRCNN, KeypointRCNN, MaskRCNN, RetinaNet  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator  # noqa: E402
from torchvision.models.detection.ssd import SSD  # noqa: E402
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign  # noqa: E402

CLASSES = 5
SMALL = {"min_size": 64, "max_size": 120, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def block(inputs, outputs, stride):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Pyramid(nn.Module):
    """Three levels, 4, 8 and 16 pixels apart."""

    def __init__(self, out_channels=8):
        super().__init__()
        self.out_channels = out_channels
        self.layer1 = nn.Sequential(block(3, 8, 2), block(8, 8, 2))
        self.layer2, self.layer3 = block(8, 12, 2), block(12, 16, 2)
        self.fpn = FeaturePyramidNetwork([8, 12, 16], out_channels)

    def forward(self, images):
        first = self.layer1(images)
        second = self.layer2(first)
        return self.fpn(OrderedDict([("0", first), ("1", second), ("2", self.layer3(second))]))


class Ladder(nn.Module):
    """Two feature maps, 8 and 16 pixels apart, the second made of the first."""

    out_channels = (8, 12)

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(block(3, 8, 2), block(8, 8, 2), block(8, 8, 2))
        self.extra = block(8, 12, 2)

    def forward(self, images):
        first = self.features(images)
        return OrderedDict([("0", first), ("1", self.extra(first))])


def retina(**options):
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((0.5, 1.0, 2.0),) * 3)
    kept = {"score_thresh": 0.0, "detections_per_img": 40, "topk_candidates": 60, **SMALL, **options}
    return RetinaNet(Pyramid(), CLASSES, anchor_generator=anchors, **kept)


def fcos(**options):
    anchors = AnchorGenerator(((4,), (8,), (16,)), ((1.0,),) * 3)
    kept = {"score_thresh": 0.0, "detections_per_img": 40, "topk_candidates": 60, **SMALL, **options}
    return FCOS(Pyramid(32), CLASSES, anchor_generator=anchors, **kept)  # whose head normalises 32 groups


def ssd(**options):
    boxes = DefaultBoxGenerator([[2], [2, 3]], scales=[0.1, 0.3, 0.6])
    kept = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "score_thresh": 0.0, **options}
    return SSD(Ladder(), boxes, (64, 96), CLASSES, **kept)


def rcnn(kind=FasterRCNN, **options):
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((0.5, 1.0, 2.0),) * 3)
    pool = MultiScaleRoIAlign(["0", "1", "2"], 3, 2, canonical_scale=12, canonical_level=3)
    kept = {"box_score_thresh": 0.0, "box_detections_per_img": 40, "rpn_pre_nms_top_n_test": 60, **SMALL, **options}
    return kind(Pyramid(), CLASSES, rpn_anchor_generator=anchors, box_roi_pool=pool, **kept)


BUILDERS = {
    "RetinaNet": retina,
    "FCOS": fcos,
    "SSD": ssd,
    "FasterRCNN": rcnn,
    "MaskRCNN": lambda **options: rcnn(MaskRCNN, **options),
    "KeypointRCNN": lambda **options: rcnn(KeypointRCNN, keypoint_head=nn.Conv2d(8, 512, 1), **options),
}
STD = {"RetinaNet": 0.12}  # of random weights, where larger ones would saturate
ONE_STAGE = ("RetinaNet", "FCOS", "SSD")
MOST = dict.fromkeys(ONE_STAGE, "detections_per_img") | {"FasterRCNN": "box_detections_per_img"}
PYRAMIDS = ("RetinaNet", "FCOS", "FasterRCNN")


def made(name, seed=0, **options):
    """Build a detector whose random heads say something different of every place."""
    torch.manual_seed(seed)
    model = BUILDERS[name](**options).eval()
    heads = [model.rpn.head, model.roi_heads.box_predictor] if hasattr(model, "rpn") else [model.head]
    for head in heads:
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=STD.get(name, 0.3) if parameter.ndim == 4 else 0.2)
    return model


def images(count=1, rows=50, columns=90, seed=0):
    return torch.rand(count, 3, rows, columns, generator=torch.Generator().manual_seed(seed))


def read(module, batch):
    """Run a detector with its parts watched, and give what it says itself and how glowmap reads it."""
    model = glowmap.load(module)
    with torch.no_grad(), model.around_forward(module):
        answer = model.read_output(module(batch), model.read(batch))
    return answer.raw, answer.candidates


def judged(name, candidates, image):
    """Score every candidate for every class, as each detector's paper has it."""
    logits = candidates.logits[image]
    if name == "RetinaNet":
        return logits.sigmoid()
    if name == "FCOS":
        return (logits.sigmoid() * candidates.objectness[image].sigmoid()[:, None]).sqrt()
    return logits.softmax(1)


def box_of(candidates, image, found):
    box = candidates.boxes[image][found.candidate]
    return box[found.category] if box.ndim == 2 else box


# --- candidates: the library's own answer before suppression


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 50, 90), (2, 90, 50), (1, 64, 64), (2, 33, 41)])
def test_each_detection_is_matched_to_the_candidate_with_its_score_and_box(name, count, rows, columns):
    raw, candidates = read(made(name), images(count, rows, columns))
    edges = torch.tensor([columns, rows] * 2)
    for image, said in enumerate(raw):
        found = candidates.detections[image]
        assert len(found) == len(said["scores"]) >= 20
        scores = judged(name, candidates, image)
        assert scores.std() > 0.02  # they differ, or a wrong candidate would do
        for one, label, score, box in zip(found, said["labels"], said["scores"], said["boxes"], strict=True):
            assert (one.category, one.score) == (int(label), pytest.approx(float(score)))
            assert one.corners == pytest.approx(box.tolist())
            assert float(scores[one.candidate, one.category]) == pytest.approx(float(score), abs=1e-5)
            cut = box_of(candidates, image, one).clamp_min(0).minimum(edges)
            torch.testing.assert_close(cut, box, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_score_of_a_detection_is_the_logit_of_its_class(name):
    module, batch = made(name), images()
    raw, candidates = read(module, batch)
    found = candidates.detections[0][3]
    explanation = glowmap.explain(module, batch, target=Detection(3))
    assert float(explanation.scores) == pytest.approx(
        float(candidates.logits[0][found.candidate, found.category]), rel=1e-4
    )
    assert explanation.target_names == (f"class {found.category} {float(raw[0]['scores'][3]):.2f} (box 3)",)
    assert explanation.method == "hires_cam"


def origin_by_hand(module, batch, proposal):
    """Look through all anchors for the one that became a proposal, in the first stage's own words."""
    kept = {}
    hooks = [
        module.rpn.head.register_forward_hook(lambda _m, _a, out: kept.update(head=out)),
        module.rpn.anchor_generator.register_forward_hook(lambda _m, _a, out: kept.update(anchors=out)),
        module.rpn.register_forward_hook(lambda _m, _a, out: kept.update(proposals=out[0])),
        module.transform.register_forward_hook(lambda _m, _a, out: kept.update(sizes=out[0].image_sizes)),
    ]
    with torch.no_grad():
        module(batch)
    for hook in hooks:
        hook.remove()
    flatten = torchvision.models.detection.rpn.concat_box_prediction_layers
    logits, deltas = flatten(*kept["head"])
    boxes = module.rpn.box_coder.decode(deltas, kept["anchors"])[:, 0]
    boxes = torchvision.ops.clip_boxes_to_image(boxes, kept["sizes"][0])
    off = (boxes - kept["proposals"][0][proposal]).abs().amax(1)
    assert int((off < 1e-3).sum()) == 1  # there is one alone, so it is this one
    return float(logits[off.argmin()])


def test_the_objectness_of_a_proposal_is_that_of_the_anchor_that_it_came_from():
    module, batch = made("FasterRCNN"), images()
    _, candidates = read(module, batch)
    seen = set()
    for number in range(6):
        proposal = candidates.detections[0][number].candidate
        wanted = origin_by_hand(module, batch, proposal)
        explanation = glowmap.explain(module, batch, target=Detection(number, of="objectness"), method="input_gradient")
        assert float(explanation.scores) == pytest.approx(wanted, rel=1e-4)
        seen.add(round(wanted, 3))
    assert len(seen) > 2


def test_the_objectness_of_fcos_is_its_centerness():
    module, batch = made("FCOS"), images()
    kept = []
    hook = module.head.register_forward_hook(lambda _m, _a, out: kept.append(out["bbox_ctrness"]))
    _, candidates = read(module, batch)
    hook.remove()
    at = candidates.detections[0][2].candidate
    explanation = glowmap.explain(module, batch, target=Detection(2, of="objectness"))
    assert float(explanation.scores) == pytest.approx(float(kept[0][0, at, 0]), rel=1e-4)


# --- the layer that is found, and the map there


def levels_of(name, module, batch, detections):
    """List from which level of the pyramid each candidate comes: by its number, or by how its proposal is pooled."""
    sizes, kept = [], {}
    hooks = [
        module.backbone.register_forward_hook(lambda _m, _a, out: sizes.extend(maps.shape for maps in out.values()))
    ]
    if name == "FasterRCNN":
        hooks.append(module.rpn.register_forward_hook(lambda _m, _a, out: kept.update(proposals=out[0])))
    with torch.no_grad():
        module(batch)
    for hook in hooks:
        hook.remove()
    if name == "FasterRCNN":
        levels = module.roi_heads.box_roi_pool.map_levels(kept["proposals"])
        return [int(levels[detection.candidate]) for detection in detections]
    anchors = module.anchor_generator.num_anchors_per_location()
    counts = [rows * columns * each for (_, _, rows, columns), each in zip(sizes, anchors, strict=True)]
    ends = torch.tensor(counts).cumsum(0)
    return [int((detection.candidate >= ends).sum()) for detection in detections]


def first_of_each_level(name, module, batch):
    _, candidates = read(module, batch)
    levels = {}
    for number, level in enumerate(levels_of(name, module, batch, candidates.detections[0])):
        levels.setdefault(level, number)
    return levels


def by_hand(module, batch, layer, score):
    """Multiply a layer's output with the gradient of a score, with hooks and a backward pass of our own."""
    kept = []
    hook = module.get_submodule(layer).register_forward_hook(lambda _m, _a, out: kept.append(out))
    model = glowmap.load(module)
    with model.around_forward(module):
        answer = model.read_output(module(batch), model.read(batch))
    hook.remove()
    (gradient,) = torch.autograd.grad(score(answer.candidates), kept[0])
    return (kept[0] * gradient).sum(1)[0].detach()


@pytest.mark.parametrize("name", PYRAMIDS)
def test_the_layer_found_is_the_level_that_the_detection_came_from(name):
    module, batch = made(name, **{MOST[name]: 400}), images(rows=64, columns=96)
    levels = first_of_each_level(name, module, batch)
    _, candidates = read(module, batch)
    assert len(levels) >= 2
    for level, number in levels.items():
        explanation = glowmap.explain(module, batch, target=Detection(number), method="hires_cam")
        assert explanation.layer == f"backbone.fpn.layer_blocks.{level}"
        found = candidates.detections[0][number]

        def score(candidates, found=found):
            return candidates.logits[0][found.candidate, found.category]

        wanted = by_hand(module, batch, explanation.layer, score)
        torch.testing.assert_close(explanation.raw[0], wanted, rtol=1e-3, atol=1e-5)
        assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_level_is_looked_for_once(name):
    """The pass itself says from which level a detection comes; the layer of a level is known from then on."""
    module, batch = made(name, seed=1, **{MOST[name]: 400}), images(rows=64, columns=96)
    levels = first_of_each_level(name, module, batch)
    runs = []
    module.backbone.register_forward_hook(lambda *_: runs.append(1))
    # the first level is looked for, any other after a pass at the known ones
    passes = [2, *[3] * (len(levels) - 1)], [1] * len(levels)
    for counts in passes:
        for (level, number), count in zip(levels.items(), counts, strict=True):
            runs.clear()
            found = glowmap.explain(module, batch, target=Detection(number))
            assert found.layer == f"backbone.fpn.layer_blocks.{level}"
            assert len(runs) == count


@pytest.mark.parametrize("target", [None, 1, Detection(0)], ids=str)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_known_layer_takes_one_pass(name, target):
    module, batch = made(name), images(rows=64, columns=96)
    runs = []
    module.backbone.register_forward_hook(lambda *_: runs.append(1))
    first = glowmap.explain(module, batch, target=target)
    assert len(runs) == 2  # one to find the layer, one to explain it
    runs.clear()
    again = glowmap.explain(module, batch, target=target)
    assert len(runs) == 1
    assert again.layer == first.layer
    assert torch.equal(again.raw, first.raw)


def test_the_layer_found_for_an_ssd_is_the_feature_map_of_the_box():
    module, batch = made("SSD"), images(rows=64, columns=96)
    levels = first_of_each_level("SSD", module, batch)
    assert len(levels) == 2
    for level, number in levels.items():
        layer = glowmap.Explainer(module).find(batch, target=Detection(number)).name
        assert layer.startswith(("backbone.features", "backbone.extra")[level])


@pytest.mark.parametrize(
    ("name", "of"),
    [
        *(("RetinaNet", of) for of in ("left", "top", "right", "bottom", "width", "height")),
        *(("FCOS", "left"), ("FCOS", "bottom"), ("SSD", "height"), ("FasterRCNN", "top"), ("FasterRCNN", "width")),
    ],
)
def test_the_sides_of_a_box_are_explained_by_their_gradient(name, of):
    module, batch = made(name), images(rows=64, columns=96)
    raw, candidates = read(module, batch)
    inside = (raw[0]["boxes"][:, :2] > 1).all(1) & (raw[0]["boxes"][:, 2:] < torch.tensor([95.0, 63.0])).all(1)
    number = int(inside.nonzero()[0])
    found = candidates.detections[0][number]
    left, top, right, bottom = raw[0]["boxes"][number].tolist()
    sides = {"left": left, "top": top, "right": right, "bottom": bottom, "width": right - left, "height": bottom - top}
    explanation = glowmap.explain(module, batch, target=Detection(number, of=of), method="hires_cam")
    assert float(explanation.scores) == pytest.approx(sides[of], abs=2e-3)
    assert explanation.target_names[0].startswith(f"{of} of class {found.category} ")
    assert not any("beyond the picture's edge" in caution for caution in explanation.cautions)
    ends = {"left": [1, 0, 0, 0], "top": [0, 1, 0, 0], "right": [0, 0, 1, 0], "bottom": [0, 0, 0, 1]}
    weights = torch.tensor({**ends, "width": [-1, 0, 1, 0], "height": [0, -1, 0, 1]}[of])
    wanted = by_hand(module, batch, explanation.layer, lambda now: (box_of(now, 0, found) * weights).sum())
    torch.testing.assert_close(explanation.raw[0], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["RetinaNet", "FasterRCNN"])
def test_a_side_that_is_cut_off_keeps_its_gradient_and_says_so(name):
    module, batch = made(name, **{MOST[name]: 400}), images(rows=64, columns=96)
    _, candidates = read(module, batch)
    beyond = [
        (number, side, float(own))
        for number, one in enumerate(candidates.detections[0])
        for side, own, shown in zip(
            ("left", "top", "right", "bottom"), box_of(candidates, 0, one), one.corners, strict=True
        )
        if abs(float(own) - shown) > 1
    ]
    number, side, own = beyond[0]
    found = glowmap.explain(module, batch, target=Detection(number, of=side))
    assert float(found.scores) == pytest.approx(own, rel=1e-3)
    assert any(
        "reaches beyond the picture's edge" in caution and caution.code == "box-cut-off" for caution in found.cautions
    )
    assert found.raw.abs().max() > 0


# --- what is asked of a candidate


@pytest.mark.parametrize("name", ["RetinaNet", "SSD", "FasterRCNN"])
def test_another_class_is_asked_of_the_same_candidate(name):
    module, batch = made(name), images()
    _, candidates = read(module, batch)
    found = candidates.detections[0][1]
    logits = candidates.logits[0][found.candidate]
    car, bus, names = 1, 2, ("none", "car", "bus", "cat", "dog")
    model = glowmap.load(module, classes=names)
    asked = [
        Detection(1, category="car"),
        Detection(1, category=glowmap.targets.Contrast("car", "bus")),
        Detection(1, category=glowmap.targets.Probability("bus")),
        glowmap.targets.Not(Detection(1)),
    ]
    likely = logits.sigmoid() if candidates.uses_sigmoid else logits.softmax(0)
    assert candidates.uses_sigmoid == (name in ("RetinaNet", "FCOS"))
    wanted = [logits[car], logits[car] - logits[bus], likely[bus], -logits[found.category]]
    found_named = f"box 1 ({names[found.category]} {found.score:.2f})"
    explanations = glowmap.explain(model, batch, target=asked, method="hires_cam")
    for explanation, score in zip(explanations, wanted, strict=True):
        assert float(explanation.scores) == pytest.approx(float(score), rel=1e-3, abs=1e-5)
    assert [one.target_names[0] for one in explanations][:2] == [
        f"car in {found_named}",
        f"car rather than bus in {found_named}",
    ]


def test_all_detections_are_summed():
    module, batch = made("RetinaNet"), images()
    raw, candidates = read(module, batch)
    above = float(raw[0]["scores"][7])
    category = candidates.detections[0][0].category
    every = sum(float(candidates.logits[0][one.candidate, one.category]) for one in candidates.detections[0][:8])
    own = [one for one in candidates.detections[0][:8] if one.category == category]
    of_one = sum(float(candidates.logits[0][one.candidate, category]) for one in own)
    asked = [AllDetections(above), AllDetections(above, category=category), AllDetections(above, of="width")]
    summed, one, widths = glowmap.explain(module, batch, target=asked, method="hires_cam")
    assert float(summed.scores) == pytest.approx(every, rel=1e-4)
    assert float(one.scores) == pytest.approx(of_one, rel=1e-4)
    found = candidates.detections[0][:8]
    wide = sum(float(box[2] - box[0]) for box in (box_of(candidates, 0, each) for each in found))
    assert float(widths.scores) == pytest.approx(wide, rel=1e-4)
    assert summed.target_names[0].endswith(f"8 boxes of at least {above:g}")
    assert one.target_names[0].startswith(f"class {category}, {len(own)} box")


@pytest.mark.parametrize("name", BUILDERS)
def test_a_settled_question_gives_the_unchanged_image_the_same_score(name):
    module, batch = made(name), images(2)
    model = glowmap.load(module)
    with torch.no_grad(), model.around_forward(module):
        answer = model.read_output(module(batch), model.read(batch))
        for image in range(2):
            alone = model.read_output(module(batch[image : image + 1]), model.read(batch[image : image + 1]))
            for number in range(0, 20, 4):
                for question in (Detection(number), Detection(number, of="left"), Detection(number, category=2)):
                    fixed = glowmap.targets.as_target(question).pin(answer, image)
                    wanted = float(question.score(answer)[image])
                    assert float(fixed.score(alone)) == pytest.approx(wanted, rel=1e-4, abs=1e-3)
                    assert fixed.describe(alone, 0) == question.describe(answer, image)
            every = AllDetections(0.0)
            together = every.pin(answer, image).score(alone)
            assert float(together) == pytest.approx(float(every.score(answer)[image]), rel=1e-4)


def candidates_answer(boxes, logits, found=()):
    """Make up the answer of a detector whose candidates have no fixed places."""
    candidates = glowmap.targets.Candidates([boxes], [logits], [list(found)])
    return glowmap.targets.ModelOutput(
        None, 1, glowmap.targets.OutputReaders(candidates=lambda _: candidates), input_size=(60, 90)
    )


def test_a_candidate_without_a_fixed_place_is_followed_by_its_box():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20.0, 20, 40, 40], [22.0, 20, 42, 40]])
    logits = torch.tensor([[0.0, 1.0], [0.0, 5.0], [0.0, 9.0]])
    found = glowmap.targets.DetectedBox(1, 0.9, (20.0, 20.0, 40.0, 40.0), 1)
    fixed = Detection(0).pin(candidates_answer(boxes, logits, [found]), 0)
    moved = candidates_answer(boxes.flip(0), logits.flip(0))
    assert float(fixed.score(moved)) == 5.0  # and not 9, the surest, nor the one at number 1
    twice = candidates_answer(boxes[[1, 1, 0]], torch.tensor([[0.0, 2.0], [0.0, 3.0], [0.0, 7.0]]))
    assert float(fixed.score(twice)) == 3.0  # of two with the same box the likelier
    nearest = candidates_answer(torch.tensor([[25.0, 20, 45, 40], [0.0, 0, 60, 60]]), logits[:2])
    assert float(fixed.score(nearest)) == 1.0


def test_occlusion_asks_the_same_anchor_in_every_changed_image():
    module, batch = made("RetinaNet"), images(rows=64, columns=96)
    _, candidates = read(module, batch)
    found = candidates.detections[0][2]
    method = glowmap.METHODS["occlusion"].with_parameters(window=32, stride=32)
    explanation = glowmap.explain(module, batch, target=Detection(2), method=method)
    whole = float(candidates.logits[0][found.candidate, found.category])
    for row in range(0, 64, 32):
        for column in range(0, 96, 32):
            hidden = batch.clone()
            hidden[:, :, row : row + 32, column : column + 32] = 0
            left = float(read(module, hidden)[1].logits[0][found.candidate, found.category])
            assert float(explanation.raw[0, row + 5, column + 5]) == pytest.approx(whole - left, abs=1e-4)


def test_ablation_runs_on_from_the_level_alone():
    module, batch = made("RetinaNet"), images(rows=64, columns=96)
    _, candidates = read(module, batch)
    found = candidates.detections[0][0]
    explanation = glowmap.explain(module, batch, target=Detection(0), method="ablation_cam")
    layer = module.get_submodule(explanation.layer)
    kept = []
    hook = layer.register_forward_hook(lambda _m, _a, out: kept.append(out.detach()))
    read(module, batch)
    hook.remove()
    assert not any("the whole model is run" in caution for caution in explanation.cautions)
    whole = float(explanation.scores)
    wanted = torch.zeros_like(kept[0][0, 0])
    for channel in range(8):

        def without(_module, _arguments, out, channel=channel):
            return out.index_fill(1, torch.tensor([channel]), 0.0)

        hook = layer.register_forward_hook(without)
        left = float(read(module, batch)[1].logits[0][found.candidate, found.category])
        hook.remove()
        wanted += (whole - left) * kept[0][0, channel]
    scale = float((explanation.raw[0] * wanted).sum() / (wanted * wanted).sum())  # the score itself divides each weight
    assert scale == pytest.approx(1.0, rel=1e-3) or scale == pytest.approx(1 / whole, rel=1e-3)
    torch.testing.assert_close(explanation.raw[0], wanted * scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["RetinaNet", "SSD", "FasterRCNN"])
@pytest.mark.parametrize(
    "method", ["integrated_grad_cam", "smooth_grad_cam_pp", "layer_cam", "score_cam", "input_gradient"]
)
def test_methods_of_every_kind_explain_a_detection(name, method):
    found = glowmap.explain(made(name), images(rows=64, columns=96), target=Detection(1), method=method)
    assert found.raw.isfinite().all()
    assert found.raw.std() > 1e-4 * found.raw.abs().max() > 0


def test_boxes_are_smoothed_by_noise_and_not_by_moving_the_picture():
    module, batch = made("RetinaNet"), images()
    assert glowmap.explain(module, batch, target=Detection(0), smooth="noise").raw.abs().max() > 0
    with pytest.raises(TargetError, match="moves objects to other places"):
        glowmap.explain(module, batch, target=Detection(0), smooth="flips")


# --- batches


def test_a_batch_gives_what_its_images_give_one_by_one():
    module = made("RetinaNet")
    batch = images(2, rows=64, columns=96)
    together = glowmap.explain(module, batch, target=Detection(0), layer="backbone.fpn.layer_blocks.0")
    for image in range(2):
        alone = glowmap.explain(
            module, batch[image : image + 1], target=Detection(0), layer="backbone.fpn.layer_blocks.0"
        )
        assert together.target_names[image] == alone.target_names[0]
        torch.testing.assert_close(together.scores[image], alone.scores[0])
        torch.testing.assert_close(together.raw[image], alone.raw[0], rtol=1e-3, atol=1e-5)


def test_methods_that_run_on_from_a_layer_give_a_batch_what_they_give_its_images():
    module, batch = made("RetinaNet"), images(2, rows=64, columns=96)
    asked = {"target": Detection(0), "layer": "backbone.fpn.layer_blocks.0", "method": "ablation_cam"}
    together = glowmap.explain(module, batch, **asked)
    for image in range(2):
        alone = glowmap.explain(module, batch[image : image + 1], **asked)
        torch.testing.assert_close(together.raw[image], alone.raw[0], rtol=1e-3, atol=1e-5)
        assert alone.raw.abs().max() > 1e-3


def test_detections_from_different_layers_are_explained_one_by_one():
    module = made("RetinaNet", detections_per_img=400)
    one = images(rows=64, columns=96)
    levels = first_of_each_level("RetinaNet", module, one)
    (fine, other), batch = sorted(levels)[:2], torch.cat([one, one])
    apart = PerImage([Detection(levels[fine]), Detection(levels[other])])
    with pytest.raises(
        LayerError, match="come from different layers.*in image 1 .*explain the images one by one, or name"
    ):
        glowmap.explain(module, batch, target=apart)
    alike = glowmap.explain(module, batch, target=PerImage([Detection(levels[fine])] * 2))
    assert alike.layer == f"backbone.fpn.layer_blocks.{fine}"
    torch.testing.assert_close(alike.raw[0], alike.raw[1], rtol=1e-3, atol=1e-5)
    named = glowmap.explain(module, batch, target=apart, layer=f"backbone.fpn.layer_blocks.{fine}")
    assert named.raw[0].abs().max() > 0
    assert any("gradient is zero everywhere" in caution for caution in named.cautions)


def test_several_detections_are_each_explained_at_their_own_layer():
    module = made("RetinaNet", detections_per_img=400)
    batch = images(rows=64, columns=96)
    levels = first_of_each_level("RetinaNet", module, batch)
    asked = [Detection(number) for number in levels.values()]
    found = glowmap.explain(module, batch, target=asked)
    assert [one.layer for one in found] == [f"backbone.fpn.layer_blocks.{level}" for level in levels]


# --- where the map lies


class Brightness(nn.Module):
    """Known truth: cells of 8 x 8 pixels that hold how bright it is there, and nothing in the dark."""

    out_channels = 2

    def __init__(self):
        super().__init__()
        self.cells = nn.Conv2d(3, 2, 8, 8, bias=False)
        nn.init.constant_(self.cells.weight, 1 / 192)

    def forward(self, pictures):
        return self.cells(pictures)


@pytest.mark.parametrize(("rows", "columns"), [(100, 300), (300, 100), (90, 90)])
def test_the_map_lies_on_the_picture_and_not_on_the_padded_canvas(rows, columns):
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    sizes = {**SMALL, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    module = RetinaNet(Brightness(), 2, anchor_generator=anchors, score_thresh=0.0, **sizes).eval()
    for parameter in module.head.parameters():
        nn.init.constant_(parameter, 0.1)  # so that all that is bright speaks for it
    top, left = rows * 7 // 10, columns * 8 // 10
    batch = torch.zeros(1, 3, rows, columns)
    batch[:, :, top : top + 25, left : left + 25] = 1
    resized = module.transform([batch[0]])[0]
    shrunk, canvas = resized.image_sizes[0], resized.tensors.shape[-2:]
    if rows != columns:
        assert tuple(canvas) != tuple(shrunk)  # it is padded, or there would be nothing to see here
    for target in (Detection(0), Category(1), lambda output: output[0]["scores"].sum()[None]):
        found = glowmap.explain(module, batch, target=target, layer="backbone", method="hires_cam")
        assert found.canvas == tuple(round(a * b / c) for a, b, c in zip(canvas, (rows, columns), shrunk, strict=True))
        heat = found.heatmap[0]
        assert heat.shape == (rows, columns)
        across, down = torch.arange(columns) + 0.5, torch.arange(rows) + 0.5
        cell = 8 * rows / shrunk[0]
        assert float((heat.sum(1) * down).sum() / heat.sum()) == pytest.approx(top + 12.5, abs=cell)
        assert float((heat.sum(0) * across).sum() / heat.sum()) == pytest.approx(left + 12.5, abs=cell)
        assert not any("padded canvas" in caution for caution in found.cautions)


# --- the model is borrowed


@pytest.mark.parametrize("name", ["RetinaNet", "FasterRCNN"])
def test_the_detector_is_given_back_as_it_was(name):
    module, batch = made(name).train(), images()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    glowmap.explain(module, batch, target=Detection(0))
    with pytest.raises(TargetError):
        glowmap.explain(module, batch, target=Detection(1000))
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert isinstance(module.eval()(batch), list)


def test_runs_of_other_threads_are_not_kept():
    module = made("RetinaNet")
    mine, theirs = images(seed=1), images(seed=2)
    model, seen = glowmap.load(module), []

    def elsewhere():
        with torch.no_grad():
            seen.append(module(theirs))

    with torch.no_grad(), model.around_forward(module):
        hook = module.head.register_forward_hook(lambda *_: run_once())
        thread = threading.Thread(target=elsewhere)

        def run_once():
            if threading.current_thread() is threading.main_thread() and not seen:
                thread.start()
                thread.join()

        answer = model.read_output(module(mine), model.read(mine))
        hook.remove()
    assert isinstance(seen[0], list)  # the other thread gets the model's own answer
    assert [one.score for one in answer.candidates.detections[0]] == pytest.approx(
        read(module, mine)[0][0]["scores"].tolist()
    )


# --- which detectors are read


class Derived(RetinaNet):
    """A detector of one's own, derived of a known one."""


class Wrapped(nn.Module):
    """A model that holds a detector, and may give it the images at another size."""

    def __init__(self, detector, size=None):
        super().__init__()
        self.detector, self.size = detector, size

    def forward(self, batch):
        return self.detector(batch if self.size is None else nn.functional.interpolate(batch, self.size))


def test_derived_and_wrapped_detectors_are_read():
    module, batch = made("RetinaNet"), images()
    wanted = glowmap.explain(module, batch, target=Detection(2))
    derived = Derived(
        module.backbone, CLASSES, anchor_generator=module.anchor_generator, head=module.head, score_thresh=0.0,
        detections_per_img=40, topk_candidates=60, **SMALL,
    ).eval()  # fmt: skip
    assert float(glowmap.explain(derived, batch, target=Detection(2)).scores) == pytest.approx(float(wanted.scores))
    wrapped = glowmap.explain(Wrapped(module).eval(), batch, target=Detection(2))
    assert wrapped.layer == f"detector.{wanted.layer}"
    torch.testing.assert_close(wrapped.raw, wanted.raw, rtol=1e-3, atol=1e-5)
    with pytest.raises(TargetError, match=r"gets images of 40 x 40, not of 50 x 90 .*explain the detector itself"):
        glowmap.explain(Wrapped(module, (40, 40)).eval(), batch, target=Detection(2))


def test_a_detector_with_a_suppression_of_its_own_says_so():
    class Soft(RetinaNet):
        def postprocess_detections(self, *given):
            found = super().postprocess_detections(*given)
            return [{**one, "scores": one["scores"] * 0.5} for one in found]

    module = made("RetinaNet")
    module.__class__ = Soft
    with pytest.raises(TargetError, match="the candidate of class . 0.* is unknown, as the suppression of Soft"):
        glowmap.explain(module, images(), target=Detection(0))
    own = glowmap.explain(module, images(), target=lambda output: output[0]["scores"].sum()[None])
    assert own.raw.abs().max() > 0


# --- errors


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            lambda: Detection(40),
            r"there is no detection 40: RetinaNet found 40, 0: class . 0\.\d\d at \d+, .*; 4: .*; \.\.\.; give",
        ),
        (lambda: Detection(-1), "a detection has a number from 0, which has the highest score, not -1"),
        (lambda: Detection(0, of="lefft"), "a detection has no part 'lefft'; near names: left"),
        (lambda: Detection(0, of="left", category=1), "category is for of='class'"),
        (lambda: Detection(0, of="objectness"), "RetinaNet computes no objectness, a score of there being any object"),
        (lambda: Detection(0, category=9), "no class 9"),
        (
            lambda: AllDetections(1.0),
            r"found nothing with a score of at least 1: the highest is 0\.\d+; give a lower one",
        ),
        (lambda: AllDetections(2), "above is a score from 0 to 1, not 2"),
    ],
)
def test_bad_questions_say_what_to_ask(question, message):
    with pytest.raises(TargetError, match=message):
        glowmap.explain(made("RetinaNet"), images(), target=question())


def test_a_detector_that_finds_nothing_says_how_to_lower_its_threshold():
    with pytest.raises(
        TargetError, match=r"RetinaNet found nothing; .*lower the model's score threshold \(score_thresh"
    ):
        glowmap.explain(made("RetinaNet", score_thresh=1.0), images())


def test_a_class_is_asked_of_its_likeliest_candidate():
    module, batch = made("RetinaNet", score_thresh=1.0), images(rows=64, columns=96)
    _, candidates = read(module, batch)
    found = glowmap.explain(module, batch, target=2)
    assert float(found.scores) == pytest.approx(float(candidates.logits[0][:, 2].max()), rel=1e-4)


def test_what_is_no_detector_says_so():
    with pytest.raises(TargetError, match="Sequential is not a detector that glowmap can read"):
        glowmap.explain(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()), torch.ones(1, 3, 4, 4), target=Detection(0))


def test_without_a_question_it_is_the_surest_detection():
    module, batch = made("FasterRCNN"), images()
    silent, asked = glowmap.explain(module, batch), glowmap.explain(module, batch, target=Detection(0))
    assert silent.target_names == asked.target_names
    torch.testing.assert_close(silent.raw, asked.raw)


def test_a_detector_by_name_is_explained_with_nothing_said(street):
    model = glowmap.load("retinanet_resnet50_fpn", weights="random")
    model.module.transform.min_size, model.module.transform.max_size = (96,), 160
    with pytest.raises(TargetError, match="retinanet_resnet50_fpn found nothing; .*score_thresh"):
        glowmap.explain(model, street)
    model.module.score_thresh = 0.0
    found = glowmap.explain(model, street)
    assert found.layer.startswith("backbone.fpn.layer_blocks.")
    assert found.target_names[0].endswith("(box 0)")
    assert found.raw.abs().max() > 0


def test_d_rise_without_a_detection_says_so():
    method = glowmap.METHODS["d_rise"].with_parameters(masks=4, cells=2)
    module, batch = made("SSD"), images()
    assert any(
        "this target is none" in caution for caution in glowmap.explain(module, batch, target=1, method=method).cautions
    )
    boxes = read(module, batch)[0][0]
    for target in (Detection(0), SimilarDetection(int(boxes["labels"][0]), boxes["boxes"][0].tolist())):
        found = glowmap.explain(module, batch, target=target, method=method)
        assert not any("this target is none" in caution for caution in found.cautions)
