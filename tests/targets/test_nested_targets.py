"""Questions in questions: each gets what belongs to it, also one by one, asked again, and on models of other kinds."""

from contextlib import suppress

import pytest
import torch
from torch import nn

import glowmap
from glowmap.errors import TargetError
from glowmap.targets import (
    Category,
    Contrast,
    Detection,
    Finer,
    LogProbability,
    Not,
    Object,
    OutputValue,
    PerImage,
    Pixels,
    Predicted,
    Probability,
    Prototype,
    Ranked,
    Similar,
    SimilarDetection,
    Text,
    Unit,
)
from tiny_models.convolutional import Classifier, Segmenter, images

NAMES = ["a", "b", "c", "d"]


def classifier():
    return glowmap.load(Classifier().eval(), mean=0.5, classes=NAMES)


class Halves(nn.Module):
    """Known truth: class 0 on the left, and right of it class 1 in bright pictures and 2 in dark ones."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        nn.init.normal_(self.layer.weight, std=0.1)

    def forward(self, images):
        left = (torch.arange(images.shape[3]) < images.shape[3] // 2).expand(images[:, 0].shape)
        bright = (images.mean((1, 2, 3)) > 0)[:, None, None]
        own = torch.stack([left, bright & ~left, ~bright & ~left, bright & ~left & False], 1).float()
        return self.layer(images) * 0.1 + 10 * own


def halves():
    picture = torch.rand(1, 3, 8, 12)
    return glowmap.load(Halves().eval(), mean=0.5, classes=NAMES), torch.cat([picture, -picture])


@pytest.mark.parametrize(
    "question", [Probability("a"), LogProbability("a"), OutputValue(0), Contrast("a", "b"), Finer("a")]
)
def test_only_a_class_has_nearest_rivals(question):
    with pytest.raises(TargetError, match="a class has rivals, and .* is none"):
        glowmap.explain(classifier(), images(), target=Finer(question), layer="features.4")


def test_a_finer_class_may_stand_in_a_contrast_that_is_asked_again():
    found = glowmap.explain(
        classifier(), images(), target=Contrast(Finer("a"), "a"), layer="features.4", method="ablation_cam"
    )
    assert found.raw.isfinite().all()


@pytest.mark.parametrize("method", ["occlusion", "ablation_cam"])
@pytest.mark.parametrize(
    "questions",
    [["b", "c"], [Pixels("b", Object(0)), Pixels("c", Object(0))], [Not("b"), Contrast("c", "a")]],
    ids=["classes", "objects", "nested"],
)
def test_an_image_is_asked_again_about_its_own_question_alone(questions, method):
    model, batch = halves()
    method = glowmap.METHODS[method]
    method = method.with_parameters(window=4, stride=4) if method.name == "occlusion" else method
    found = glowmap.explain(model, batch, target=PerImage(questions), layer="layer", method=method)
    for number, question in enumerate(questions):
        alone = glowmap.explain(model, batch[number : number + 1], target=question, layer="layer", method=method)
        torch.testing.assert_close(found.raw[number], alone.raw[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("other", [Unit(1, layer="features.2"), Not(Prototype([1.0, 2.0, 3.0, 4.0]))])
def test_a_question_with_a_layer_of_its_own_may_stand_behind_one_without(other):
    model = nn.Sequential()
    model.features, model.head = (
        Classifier().features,
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    found = glowmap.explain(model.eval(), images(), target=PerImage([1, other]), layer="features.1")
    alone = glowmap.explain(model, images()[1:], target=other, layer="features.1")
    torch.testing.assert_close(found.raw[1], alone.raw[0])
    with suppress(glowmap.errors.GlowmapError):  # the layer of the first image's question may not serve the other's
        glowmap.explain(model, images(), target=PerImage([1, other]))


def test_notes_speak_of_the_places_that_are_asked_about():
    model, batch = halves()
    mask = torch.zeros(8, 12)
    mask[:, 8:] = 1
    at_mask = glowmap.explain(model, batch[:1], target=Pixels(Probability("d"), mask), layer="layer")
    (caution,) = [caution for caution in at_mask.cautions if "probability of d" in caution]
    with torch.no_grad():
        wanted = (model.module(batch[:1]).softmax(1)[0, 3] * mask).sum() / mask.sum()
    assert f"is {float(wanted):.5f}" in caution
    against = glowmap.explain(model, batch[:1], target=Contrast(Probability("a"), Probability("d")), layer="layer")
    assert any("probability of d" in caution for caution in against.cautions)


def detector(**options):
    pytest.importorskip("torchvision")
    from targets.test_detections import made

    return made("RetinaNet", **options)


def test_the_probability_of_a_class_is_the_detectors_own():
    module, batch = detector(detections_per_img=20), images(1, 64, 96)
    with torch.no_grad():
        said = module(batch)[0]
    label, score = int(said["labels"][0]), float(said["scores"][0])
    question = Detection(0, category=Probability(label))
    assert float(glowmap.explain(module, batch, target=question).scores) == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize(
    "make", [lambda q: Finer(q), lambda q: Contrast(q, Ranked(2)), lambda q: Not(Contrast(q, Ranked(2)))]
)
def test_a_detectors_own_answer_is_the_class_of_its_surest_box(make):
    module, batch = detector(detections_per_img=20), images(1, 64, 96)
    with torch.no_grad():
        label = int(module(batch)[0]["labels"][0])
    found = glowmap.explain(module, batch, target=make(Predicted()))
    named = make(Category(label))
    named = Not(Detection(0, category=named.target)) if isinstance(named, Not) else Detection(0, category=named)
    wanted = glowmap.explain(module, batch, target=named)
    assert found.scores.tolist() == wanted.scores.tolist()
    torch.testing.assert_close(found.raw, wanted.raw)


@pytest.mark.parametrize(
    ("category", "box", "message"),
    [
        (None, [1, 2, 3, 4], "a label or a name, not None"),
        (3.7, [1, 2, 3, 4], "a label or a name, not 3.7"),
        (1, "abc", "is not left, top, right, bottom"),
        (1, None, "is not left, top, right, bottom"),
    ],
)
def test_odd_detections_are_refused(category, box, message):
    with pytest.raises(TargetError, match=message):
        glowmap.explain(detector(), images(1, 64, 96), target=SimilarDetection(category, box), method="occlusion")


def test_each_image_has_a_detection_of_its_own():
    module, batch = detector(detections_per_img=20), images(2, 64, 96)
    with torch.no_grad():
        said = list(module(batch))
    questions = [SimilarDetection(int(one["labels"][0]), one["boxes"][0].tolist()) for one in said]
    method = glowmap.METHODS["occlusion"].with_parameters(window=48, stride=48)
    found = glowmap.explain(module, batch, target=PerImage(questions), method=method)
    assert found.scores.tolist() == pytest.approx([float(one["scores"][0]) for one in said], rel=1e-4)


def test_a_layer_called_embedding_is_not_the_embedding():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.late = nn.Conv2d(3, 8, 3, 2), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 6, 3, 2))

        def forward(self, images):
            return self.late(self.embedding(images)).mean((2, 3))

    model = Named().eval()
    glowmap.explain(model, images(1, 32, 32), target=Unit(1, layer="embedding"))
    assert glowmap.explain(model, images(1, 32, 32), target=Unit(1)).layer.startswith("late")


def test_a_segmenter_takes_nested_questions_as_a_classifier_does():
    segmenter, mask = Segmenter().eval(), torch.ones(16, 20)
    one = glowmap.explain(segmenter, images(), target=Not(Pixels(Contrast(1, [2, 3]), mask)), layer="encoder.2")
    with torch.no_grad():
        logits = segmenter(images())["out"]
    wanted = -(logits[:, 1] - (logits[:, 2] + logits[:, 3]) / 2).sum((1, 2))
    torch.testing.assert_close(one.scores, wanted)


def test_too_few_names_for_a_detector_are_refused():
    model = glowmap.load(detector(detections_per_img=20), classes=["nothing", "car"])
    with pytest.raises(TargetError, match=r"there are 2 class names for the 5 classes of RetinaNet"):
        glowmap.explain(model, images(1, 64, 96), target=Detection(0))


def test_texts_that_are_one_to_the_model_are_refused():
    pytest.importorskip("transformers")
    from tiny_models.contrastive import built, clip, processor

    model = glowmap.load(built(clip), processor=processor())
    texts = [Text("a photo of a dog"), Text(" a  photo of a dog")]
    with pytest.raises(TargetError, match="are the same tokens to CLIPModel; give one of them"):
        glowmap.explain(model, torch.rand(1, 3, 32, 32), target=texts)


def test_an_answer_says_what_it_answers():
    pytest.importorskip("transformers")
    from tiny_models import generative as writers

    model = glowmap.load(writers.vilt(), processor=writers.bert())
    asked = Text("red", prompt="what colour is the car ?")
    assert glowmap.explain(model, writers.pictures(), target=asked).target_names[0].startswith("red")
    blip = writers.loaded(writers.blip(), writers.bert())
    found = glowmap.explain(blip, writers.pictures(), target=Text("dog", prompt="a red"))
    assert found.target_names == ("'dog' to 'a red'",)


def test_a_model_that_writes_embeds_no_picture():
    pytest.importorskip("transformers")
    from tiny_models import generative as writers

    model = writers.loaded(writers.blip(), writers.bert())
    with pytest.raises(
        TargetError, match="writes words and embeds no picture by itself; choose the likeness to a picture"
    ):
        glowmap.explain(model, writers.pictures(), target=Similar(writers.pictures()))
