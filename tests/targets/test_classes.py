"""Questions about classes: numbers, probabilities, ranks, contrasts and negations, each against its formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import glowmap
from glowmap.errors import TargetError
from glowmap.targets import (
    At,
    Category,
    Contrast,
    Finer,
    LogProbability,
    Not,
    OutputValue,
    PerImage,
    Pixels,
    Predicted,
    Probability,
    Ranked,
    top,
)
from tiny_models.convolutional import Classifier, ColourSegmenter, OneOutput, Segmenter, images

NAMES = ["cat", "dog", "car", "bus"]


def explain(model, batch, target, method="grad_cam", layer="features", **loading):
    return glowmap.explain(glowmap.load(model, **loading), batch, target=target, layer=layer, method=method)


@pytest.fixture
def classifier():
    return Classifier().eval()


def by_hand(model, batch, score, layer="features"):
    """Grad-CAM before its ReLU, eq. 1 and 2, by two hooks and plain loops: one map an image."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    scores = score(model(batch))
    handle.remove()
    (maps,) = kept
    (slopes,) = torch.autograd.grad(scores.sum(), maps)
    wanted = torch.zeros(len(batch), *maps.shape[2:])
    for image in range(len(batch)):
        for channel in range(maps.shape[1]):
            wanted[image] += slopes[image, channel].mean() * maps[image, channel].detach()
    return scores.detach(), wanted


def softmax(logits):
    return torch.stack([torch.stack([one.exp() / sum(other.exp() for other in row) for one in row]) for row in logits])


def finer(logits, c, rivals=3, weight=1.0):
    """The score of Finer-CAM from its equation, with plain loops; the probabilities that weigh are plain numbers."""
    scores = []
    for row in logits:
        known = row.tolist()
        total = sum(math.exp(one) for one in known)
        near = sorted((r for r in range(len(row)) if r != c), key=lambda r: abs(known[r] - known[c]))[:rivals]
        p = {r: math.exp(known[r]) / total for r in near}
        scores.append(sum(p[r] * (row[c] - weight * row[r]) for r in near) / sum(p.values()))
    return torch.stack(scores)


SCORES = [
    (OutputValue(2), lambda y: y[:, 2]),
    (Probability("dog"), lambda y: softmax(y)[:, 1]),
    (LogProbability("dog"), lambda y: softmax(y)[:, 1].log()),
    (Probability("dog", independent=True), lambda y: 1 / (1 + (-y[:, 1]).exp())),
    (LogProbability(1, independent=True), lambda y: -(1 + (-y[:, 1]).exp()).log()),
    (Probability(Predicted()), lambda y: softmax(y).amax(1)),
    (Ranked(0), lambda y: y.sort(1).values[:, 3]),
    (Ranked(3), lambda y: y.sort(1).values[:, 0]),
    (LogProbability(Ranked(1)), lambda y: softmax(y).sort(1).values[:, 2].log()),
    (Contrast("car", "bus"), lambda y: y[:, 2] - y[:, 3]),
    (Contrast("car", ["bus", 0]), lambda y: y[:, 2] - (y[:, 3] + y[:, 0]) / 2),
    (Contrast(LogProbability("car"), LogProbability("bus")), lambda y: softmax(y)[:, 2].log() - softmax(y)[:, 3].log()),
    (Finer("car"), lambda y: finer(y, 2)),
    (Finer("car", rivals=2, weight=0.6), lambda y: finer(y, 2, 2, 0.6)),
    (Finer("car", rivals=9), lambda y: finer(y, 2, 3)),
    (Not("car"), lambda y: -y[:, 2]),
    (Not(Contrast("car", "bus")), lambda y: y[:, 3] - y[:, 2]),
    (Not(lambda y: y[:, 0] * y[:, 1]), lambda y: -(y[:, 0] * y[:, 1])),
    (Not(), lambda y: -y.amax(1)),
]


@pytest.mark.parametrize(("target", "formula"), SCORES)
def test_the_score_and_its_grad_cam_are_those_of_the_formula(classifier, target, formula):
    batch = images(3) * 3
    scores, wanted = by_hand(classifier, batch, formula)
    found = explain(classifier, batch, target, classes=NAMES)
    torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.raw, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
    assert wanted.abs().max() > 0


@pytest.mark.parametrize(("target", "formula"), SCORES)
@pytest.mark.parametrize("method", ["ablation_cam", "smooth_grad_cam_pp"])
def test_asked_again_it_is_the_same_question(classifier, target, formula, method):
    """The class, the rivals and their weights stay those of the unchanged image, in a batch as in single images."""
    batch = images(2) * 3
    asked = glowmap.METHODS[method].with_parameters(**({"samples": 2} if "smooth" in method else {}))
    together = explain(classifier, batch, target, asked, classes=NAMES)
    for image in range(2):
        alone = explain(classifier, batch[image : image + 1], target, asked, classes=NAMES)
        torch.testing.assert_close(together.raw[image : image + 1], alone.raw, rtol=1e-3, atol=1e-5)


def test_rivals_and_weights_are_fixed_when_images_are_changed(classifier):
    """Ablation-CAM by hand, with the rivals and weights of the unchanged image."""
    batch = images(1) * 3
    found = explain(classifier, batch, Finer(None, rivals=2), "ablation_cam", classes=NAMES)
    with torch.no_grad():
        maps = classifier.features(batch)
        logits = classifier.head(maps.mean((2, 3)))[0]
        c = int(logits.argmax())
        near = sorted((r for r in range(4) if r != c), key=lambda r: abs(float(logits[r] - logits[c])))[:2]
        p = [float(softmax(logits[None])[0, r]) for r in near]

        def score(maps):
            y = classifier.head(maps.mean((2, 3)))[0]
            return sum(w * (y[c] - y[r]) for w, r in zip(p, near, strict=True)) / sum(p)

        wanted = 0
        for channel in range(maps.shape[1]):
            without = maps.clone()
            without[:, channel] = 0
            wanted = wanted + (score(maps) - score(without)) * maps[0, channel]
    torch.testing.assert_close(found.raw[0], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "wording"),
    [
        (OutputValue(), "output 0"),
        (Probability("dog"), "probability of dog"),
        (LogProbability("dog", independent=True), "log-probability of dog"),
        (Contrast("car", "bus"), "car rather than bus"),
        (Contrast(2, [3, "cat", "dog"]), "car rather than bus, cat or dog"),
        (Finer("car"), "car rather than dog, bus or cat"),
        (Not("car"), "not car"),
        (Not(Not("car")), "car"),
        (Not(Contrast("car", "bus")), "not (car rather than bus)"),
        (Contrast(Probability("car"), Probability("bus")), "probability of car rather than probability of bus"),
        (PerImage([Not("car"), Contrast("car", "bus")]), ("not car", "car rather than bus")),
    ],
)
def test_the_wording(classifier, target, wording):
    found = explain(classifier, images(2), target, classes=NAMES)
    assert found.target_names == ((wording,) * 2 if isinstance(wording, str) else wording)


def test_the_likeliest_classes_one_by_one(classifier):
    found = explain(classifier, images(2), top(4), classes=NAMES)
    order = classifier(images(2)).detach().argsort(1, descending=True)
    assert [one.target_names for one in found] == [tuple(NAMES[i] for i in order[:, rank]) for rank in range(4)]
    torch.testing.assert_close(found[0].raw, explain(classifier, images(2), None, classes=NAMES).raw)


def test_the_counterfactual_of_the_grad_cam_paper(classifier):
    """alpha_k = mean_ij(-G_k), and the ReLU after the sum: the heat of "not car" by the paper's formula."""
    batch = images(2)
    maps = classifier.features(batch)
    (slopes,) = torch.autograd.grad(classifier.head(maps.mean((2, 3)))[:, 2].sum(), maps)
    wanted = torch.relu(((-slopes).mean((2, 3), keepdim=True) * maps.detach()).sum(1))
    found = explain(classifier, batch, Not("car"), classes=NAMES)
    torch.testing.assert_close(found.raw.relu(), wanted)
    assert wanted.any() or (-wanted).any()
    for_it = explain(classifier, batch, "car", classes=NAMES)
    torch.testing.assert_close(found.raw, -for_it.raw)


def test_a_callable_negated_in_a_batch_reads_the_image_it_is_put_to(classifier):
    """A callable gets the output of the whole batch, also where it is part of a question for one image."""
    found = explain(classifier, images(3), PerImage([0, Not(lambda y: y[:, 1]), Not(lambda y: y[:, 2])]))
    y = classifier(images(3)).detach()
    torch.testing.assert_close(found.scores, torch.stack([y[0, 0], -y[1, 1], -y[2, 2]]))


def test_a_negated_callable_finds_the_layer_by_its_own_score():
    class TwoHeads(Classifier):
        def __init__(self):
            super().__init__()
            self.other = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1))

        def forward(self, images):
            return {"logits": super().forward(images), "other": self.other(images).mean((2, 3))}

    model = TwoHeads().eval()
    plain, negated = (
        glowmap.explain(model, images(1, 32, 32), target=target)
        for target in (lambda out: out["other"][:, 1], Not(lambda out: out["other"][:, 1]))
    )
    assert plain.layer == negated.layer
    assert negated.layer.startswith("other")
    torch.testing.assert_close(negated.raw, -plain.raw)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    pair=st.permutations(range(4)),
    question=st.sampled_from([Category, Probability, LogProbability, Finer]),
)
def test_negations_and_contrasts_turn_round(seed, pair, question):
    model, batch = Classifier().eval(), images(2, seed=seed)
    a, b = pair[:2]
    plain, twice = (explain(model, batch, one) for one in (question(a), Not(Not(question(a)))))
    assert torch.equal(plain.raw, twice.raw)
    assert torch.equal(plain.scores, twice.scores)
    forth, back = (explain(model, batch, Contrast(*one)) for one in ((a, b), (b, a)))
    torch.testing.assert_close(forth.raw, -back.raw)
    torch.testing.assert_close(forth.scores, -back.scores)
    both = explain(model, batch, PerImage([Contrast(a, b), question(b)]))
    for image, one in enumerate((Contrast(a, b), question(b))):
        alone = explain(model, batch[image : image + 1], one)
        torch.testing.assert_close(both.raw[image : image + 1], alone.raw, rtol=1e-4, atol=1e-7)


# dense models


@pytest.fixture
def three_colours():
    """Left half red (2), right half green (3) but for one blue row (5) at the bottom: 4 x 6."""
    picture = torch.zeros(1, 3, 4, 6)
    picture[:, 0, :, :3], picture[:, 1, :, 3:] = 2.0, 3.0
    picture[:, :, 3, :] = torch.tensor([0.0, 0.0, 5.0])[:, None]
    return picture


COLOURS = {"classes": ["blue", "green", "red"], "layer": "layer"}


@pytest.mark.parametrize(
    ("target", "score", "wording"),
    [
        (Contrast("red", "green"), 9 * 2.0, "red rather than green"),  # at the 9 red pixels, where green is 0
        (Contrast("blue", ["red", "green"]), 6 * 5.0, "blue rather than red or green"),
        (Not("green"), -9 * 3.0, "not green"),
        (Ranked(0), 9 * 3.0, "green"),  # 9 pixels of green and of red; the first of equals
        (Ranked(2), 6 * 5.0, "blue"),
        (Probability("red"), 9 * math.exp(2) / (math.exp(2) + 2), "probability of red"),
        (LogProbability("red"), 9 * (2 - math.log(math.exp(2) + 2)), "log-probability of red"),
        (OutputValue(1), 9 * 3.0, "output 1"),  # over all pixels
        (Finer("red"), 9 * 2.0, "red rather than its rivals"),
        (Finer("blue", rivals=1, weight=0.5), 6 * 5.0, "blue rather than its rivals"),
        (Pixels(Contrast("red", "green"), torch.ones(4, 6)), 9 * 2.0 - 9 * 3.0, "red rather than green (mask)"),
        (Pixels(Finer("red", rivals=2), torch.eye(6)[:4]), None, "red rather than its rivals (mask)"),
        (Not(Pixels("red", torch.ones(4, 6))), -9 * 2.0, "not red (mask)"),
    ],
)
def test_what_a_dense_model_is_asked(three_colours, target, score, wording):
    found = explain(ColourSegmenter(), three_colours, target, **COLOURS)
    assert found.target_names == (wording,)
    if (
        score is None
    ):  # the diagonal: three red pixels of 2 (rivals 0), then a blue one, whose rivals are green (0) and blue (5)
        p = [math.exp(0), math.exp(5)]
        score = 3 * 2.0 + (p[0] * (0 - 0) + p[1] * (0 - 5)) / sum(p)
    torch.testing.assert_close(found.scores, torch.tensor([score]))


@pytest.mark.parametrize(
    "target", [Contrast(1, 2), Finer(1, rivals=2), Probability(1), Ranked(1), Not(Predicted()), OutputValue(0), None]
)
def test_a_dense_question_asked_again_is_asked_at_the_same_pixels(target):
    torch.manual_seed(3)
    model, batch = Segmenter().eval(), images(2)
    again = glowmap.METHODS["integrated_grad_cam"].with_parameters(steps=2)
    together = glowmap.explain(model, batch, target=target, layer="encoder.2", method=again)
    for image in range(2):
        alone = glowmap.explain(model, batch[image : image + 1], target=target, layer="encoder.2", method=again)
        torch.testing.assert_close(together.raw[image : image + 1], alone.raw, rtol=1e-3, atol=1e-4)
    assert together.raw.abs().max() > 0


def test_finer_keeps_each_pixels_rivals_when_it_is_asked_again():
    """Settled on an image, the question scores that image as before, and gets other scores only by other logits."""

    torch.manual_seed(3)
    model = glowmap.load(Segmenter().eval())
    with torch.no_grad():
        batch = model.read(images(2))
        answer = model.read_output(model.module(batch.images), batch)
        for target in (Finer(1, rivals=2), Pixels(Finer(None), torch.ones(16, 20))):
            score = target.score(answer)
            for image in range(2):
                repeat_image = model.read_output({"out": answer.raw["out"][image].expand(3, -1, -1, -1)}, batch, 3)
                again = target.pin(answer, image).score(repeat_image)
                torch.testing.assert_close(again, score[image].expand(3))
                more = model.read_output({"out": answer.raw["out"][image].expand(1, -1, -1, -1) * 2}, batch, 1)
                torch.testing.assert_close(target.pin(answer, image).score(more), 2 * score[image : image + 1])


# one output for two classes


class Judge(Classifier):
    """One output: its sign says which of two."""

    def __init__(self):
        super().__init__(classes=1)
        self.head.bias.data -= 0.12


def test_one_output_with_two_names_speaks_for_the_second_and_against_the_first():
    model, batch = Judge().eval(), images(4) * 3
    z = model(batch).detach()[:, 0]
    assert (z > 0).any()
    assert (z < 0).any()
    names = {"classes": ["benign", "malignant"]}
    for_it = explain(model, batch, "malignant", **names)
    against = explain(model, batch, "benign", **names)
    torch.testing.assert_close(for_it.scores, z)
    torch.testing.assert_close(against.scores, -z)
    torch.testing.assert_close(against.raw, -for_it.raw)
    torch.testing.assert_close(explain(model, batch, Probability("malignant"), **names).scores, z.sigmoid())
    torch.testing.assert_close(explain(model, batch, Probability(0), **names).scores, 1 - z.sigmoid())
    torch.testing.assert_close(explain(model, batch, OutputValue(0), **names).scores, z)
    own = explain(model, batch, None, **names)
    assert own.target_names == tuple("malignant" if one > 0 else "benign" for one in z)
    torch.testing.assert_close(own.scores, z.abs())
    torch.testing.assert_close(own.prediction.probabilities, torch.stack([1 - z.sigmoid(), z.sigmoid()], 1))
    assert own.prediction.names == ("benign", "malignant")
    torch.testing.assert_close(
        explain(model, batch, "malignant", "cam", **names).raw.sum((1, 2)).sign().abs(), torch.ones(4)
    )


def test_one_output_finds_its_layer_and_goes_into_each_and_pixels():
    model, batch = Judge().eval(), images(2, 32, 32) * 3
    z = model(batch).detach()[:, 0]
    loaded = glowmap.load(model, classes=["benign", "malignant"])
    unnamed = glowmap.explain(model, batch, target=0)
    named = glowmap.explain(loaded, batch, target=PerImage([1, Probability(0)]))
    assert named.layer == unnamed.layer
    torch.testing.assert_close(named.scores, torch.stack([z[0], (-z[1]).sigmoid()]))


def test_one_output_without_names_or_with_one_is_a_class_of_its_own():
    model, batch = Judge().eval(), images(2)
    z = model(batch).detach()[:, 0]
    for names in (None, ["tumour"]):
        found = explain(model, batch, 0, **({} if names is None else {"classes": names}))
        torch.testing.assert_close(found.scores, z)
        torch.testing.assert_close(found.prediction.probabilities, z.sigmoid()[:, None])
        torch.testing.assert_close(explain(model, batch, Probability(0)).scores, z.sigmoid())
    with pytest.raises(TargetError, match="there are 3 class names for the 1 classes"):
        explain(model, batch, 0, classes=["a", "b", "c"])


def test_a_dense_model_with_one_output_and_two_names():
    picture = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])[None, None]
    named = {"classes": ["background", "polyp"], "layer": "layer"}
    assert explain(OneOutput(), picture, "polyp", **named).scores.tolist() == [5.0]
    assert explain(OneOutput(), picture, "background", **named).scores.tolist() == [5.0]  # 1 + 4 at its own pixels
    own = explain(OneOutput(), picture, None, **named)
    assert own.target_names == ("polyp",)
    assert own.prediction.labels.tolist() == [[[0, 1], [1, 0]]]
    assert own.prediction.names == ("background", "polyp")
    found = explain(OneOutput(), picture, Pixels(OutputValue(0), torch.ones(2, 2)), layer="layer")
    assert found.scores.tolist() == [0.0]
    with pytest.raises(TargetError, match="no pixel is predicted as anything; give a mask"):
        explain(OneOutput(), -picture.abs(), None, layer="layer")


# saturation


class Sure(Classifier):
    """Says what it says a thousand times louder."""

    def forward(self, images):
        return super().forward(images) * 1000


def test_a_saturated_probability_says_so():
    model, batch = Sure().eval(), images(2)
    likeliest = [int(i) for i in model(batch).argmax(1)]
    p = model(batch).softmax(1).amax(1)
    assert p.min() > 0.999
    found = explain(model, batch, Probability(Predicted()), classes=NAMES)
    told = [caution for caution in found.cautions if "gradient of a probability nearly vanishes there" in caution]
    assert [caution.split(" is ")[0] for caution in told] == [f"the probability of {NAMES[i]}" for i in likeliest]
    assert "in image 0" in told[0]
    assert "depends on the rivals as much as on the class" in told[0]
    assert told[0].code == "probability-saturated"
    assert "explain the class's logit, which is the class alone as target" in told[0]
    low = explain(model, batch, PerImage([Probability((i + 1) % 4) for i in likeliest]), classes=NAMES)
    assert [caution[-9:] for caution in low.cautions if "is 0.00000: " in caution] == ["(image 0)", "(image 1)"]
    of_logarithm = explain(model, batch, LogProbability(Ranked(3)), classes=NAMES)
    assert not any("nearly vanishes" in caution for caution in of_logarithm.cautions)
    assert any(
        "nearly vanishes" in n for n in explain(model, batch, LogProbability(Predicted()), classes=NAMES).cautions
    )
    alone = explain(model, batch, Not(Probability(likeliest[0], independent=True)), classes=NAMES).cautions
    assert any("nearly vanishes there; explain the class's logit" in caution for caution in alone)


def test_an_unsaturated_probability_says_nothing(classifier):
    for target in (Probability(1), LogProbability(1), Not(Probability(1))):
        assert not any("nearly vanishes" in caution for caution in explain(classifier, images(2), target).cautions)


# what cannot be asked


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            Contrast("car", "car"),
            "'car' is contrasted with itself in images 0, 1, which gives zero; give two classes",
        ),
        (Contrast("car", ["bus", 2]), "'car' is contrasted with itself"),
        (Contrast("car", []), r"Contrast needs a class to contrast with; give at least one"),
        (Contrast("car", "buss"), "no class 'buss' in Classifier; near names: bus"),
        (Contrast("car", Not("bus")), "Not is not about a class"),
        (Ranked(4), "there is no class of rank 4: Classifier has 4 classes; give a rank from 0, the likeliest, to 3"),
        (Ranked(-1), "no class of rank -1"),
        (Probability(OutputValue(0)), "a probability is that of a class, and OutputValue is none"),
        (Probability(Contrast(0, 1)), "a probability is that of a class, and Contrast is none"),
        (LogProbability(Probability(0)), "a probability is that of a class, and Probability is none"),
        (OutputValue(4), "no output 4: Classifier has 4, from 0 to 3"),
        (OutputValue(-1), "no output -1"),
        (Finer("car", rivals=0), "the number of rivals is at least 1, not 0"),
        (Finer(Contrast("car", "bus")), "a class has rivals, and Contrast is none"),
        (Not([1, 2]), "Not takes one target; negate each in a list: target=\\[targets.Not\\("),
        (Not(1.5), "not float"),
        (Pixels(Contrast("car", "bus")), "returns one score per class and image"),
        (At(3, 4), "returns one score per class and image"),
        (PerImage([Contrast("car", "car"), 0]), "'car' is contrasted with itself, which"),
    ],
)
def test_what_cannot_be_asked_of_a_classifier(classifier, target, message):
    with pytest.raises(TargetError, match=message):
        explain(classifier, images(2), target, classes=NAMES)


def test_what_cannot_be_asked_elsewhere(three_colours):
    with pytest.raises(TargetError, match="the model has one class, which has no rivals"):
        explain(Judge().eval(), images(1), Finer(0))
    with pytest.raises(
        TargetError,
        match=r"no class of rank 3: ColourSegmenter predicts 3 classes \(green 37.5%, red 37.5%, blue 25.0%\)",
    ):
        explain(ColourSegmenter(), three_colours, Ranked(3), **COLOURS)
    with pytest.raises(TargetError, match=r"no pixel is predicted as 'red'; give a class that is predicted"):
        explain(ColourSegmenter(), three_colours[..., 3:], Contrast("red", "blue"), **COLOURS)
    for count in (0, -1, True):
        with pytest.raises(TargetError, match="the number of likeliest classes is at least 1"):
            top(count)


def test_a_class_by_a_number_of_numpys_is_a_number(classifier):
    found = explain(classifier, images(2), PerImage([np.int64(1), np.int64(2)]), classes=NAMES)
    assert found.target_names == ("dog", "car")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (lambda y: y, "a class is an index or a name, not function"),
        (At(1, 2), "a class is an index or a name, not At"),
        (torch.ones(2, 2), "a class is an index or a name, not Tensor"),
        (True, "not bool"),
        (None, "not NoneType"),
        (PerImage([1]), "PerImage is not about a class"),
    ],
)
def test_what_is_no_class(question, message):
    with pytest.raises(TargetError, match=message):
        glowmap.targets.classes.as_class(question)
