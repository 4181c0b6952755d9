"""Any question by any method: one table of all kinds of targets, crossed with all kinds of evidence.

Each cell gives a map of the score that is worked out by hand, or an error that says why the two do not go together.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import glowmap
from evidence_kinds import representatives
from glowmap import targets
from glowmap.errors import GlowmapError
from glowmap.evidence import map_places
from glowmap.methods import Method
from glowmap.models import as_model
from glowmap.targets import (
    AllDetections,
    At,
    Category,
    Contrast,
    Detection,
    Direction,
    Finer,
    FunctionTarget,
    LogProbability,
    Not,
    Object,
    OutputValue,
    PerImage,
    Pixels,
    Point,
    Predicted,
    Probability,
    Prototype,
    Ranked,
    Similar,
    SimilarDetection,
    Text,
    TokenLogProbability,
    TokenSpan,
    Unit,
)
from tiny_models.convolutional import Classifier, images, with_parameters
from tiny_models.transformer import Transformer, made

transformers = pytest.importorskip("transformers")
from tiny_models import generative as ours  # noqa: E402 - which needs transformers

# -- the models: what is explained, the module itself, what it is called with, and the layer ---------------------------


@dataclass(frozen=True)
class Asked:
    """A model, and how it is run by hand: ``laid`` lays the layer's output out as images x channel x rows x columns."""

    model: Any
    given: Any
    layer: str
    module: nn.Module
    call: Callable[[], Any]
    laid: Callable[[torch.Tensor], torch.Tensor] = lambda maps: maps


class Segmenter(nn.Module):
    """Answers at a quarter of the input's size, under "out"; of five classes three or more are predicted somewhere."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 7, 3, 2, 1), nn.Tanh())
        self.head = nn.Conv2d(7, 5, 1)

    def forward(self, images):
        return {"out": 3 * self.head(self.encoder(images))}


class Backbone(nn.Module):
    """The mean over the places of a layer, and no head."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())

    def forward(self, images):
        return self.features(images).mean((2, 3)) + 0.01


class Boxes(nn.Module):
    """Answers as torchvision's detectors do: one box of class 1, as sure as it is bright there."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.Sigmoid())

    def forward(self, images):
        scores = self.features(images)[:, :, 2:6, 3:7].mean((2, 3))[:, :1]
        return [
            {"boxes": torch.tensor([[6.0, 4, 14, 12]]), "labels": torch.tensor([1]), "scores": one} for one in scores
        ]


def drawn(kind, *arguments, **keywords):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*arguments, **keywords).eval()


@cache
def classifier():
    module, given = drawn(Classifier), images()
    model = glowmap.load(module, classes=["cat", "dog", "car", "bus"], mean=0.0, std=1.0)
    return Asked(model, given, "features.4", module, lambda: module(given))


@cache
def transformer():
    module, given = made(Transformer), images(2, 12, 16).double()
    return Asked(module, given, "blocks.1", module, lambda: module(given), grid(1, 3, 4))


@cache
def segmenter():
    module, given = drawn(Segmenter), 3 * images()
    model = glowmap.load(module, classes=["void", "sky", "road", "car", "bus"], mean=0.0, std=1.0)
    return Asked(model, given, "encoder.3", module, lambda: module(given))


@cache
def backbone():
    module, given = drawn(Backbone), images()
    return Asked(module, given, "features.3", module, lambda: module(given))


@cache
def boxes():
    module, given = drawn(Boxes), images()
    return Asked(module, given, "features.1", module, lambda: module(given))


@cache
def detector():
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    small = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "num_queries": 5,
    }
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(**stages, out_features=["stage2"]),
        id2label=dict(enumerate(["sky", "car", "dog"])),
        **small,
    )
    module, given = ours.lively(transformers.DetrForObjectDetection(config)), images(1, 32, 48)
    layer = "model.backbone.model.encoder.stages.1"
    return Asked(module, given, layer, module, lambda: module(given))


@cache
def clip():
    small = {**ours.LAYERS, "num_hidden_layers": 2}
    text = {**small, "vocab_size": ours.COUNT, "eos_token_id": ours.SEP, "max_position_embeddings": 16}
    vision = {**small, "image_size": 32, "patch_size": 8}
    module = ours.lively(
        transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    ).double()  # so little of the picture gets through that rounding would show
    tokens, given = ours.bert()(["a dog", "a cat"], return_tensors="pt"), images(1, 32, 32).double()
    model = glowmap.load(module, processor=ours.bert(), mean=0.0, std=1.0)
    layer = "vision_model.encoder.layers.0"
    return Asked(model, given, layer, module, lambda: module(pixel_values=given, **_clips(tokens)), grid(1, 4, 4))


def _clips(tokens):
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


SENTENCE = "a dog on the sofa"


@cache
def writer():
    module, words = ours.encoder_decoder(), ours.tokenizer(bos_token="<s>", eos_token="</s>")
    given, tokens = ours.pictures(1, 64, 96), words(SENTENCE, add_special_tokens=False)["input_ids"]
    before = torch.tensor([[ours.BOS, *tokens[:-1]]])
    call = lambda: module(pixel_values=given, decoder_input_ids=before)  # noqa: E731
    layer = "encoder.layers.1"
    return Asked(ours.loaded(module, words), given, layer, module, call, grid(1, 8, 12))


@cache
def told():
    """The same with its words given beside the picture, and its logits read as those of the next word."""
    asked, words = writer(), ours.tokenizer(bos_token="<s>", eos_token="</s>")
    tokens = words(SENTENCE, add_special_tokens=False)["input_ids"]
    given = {"pixel_values": asked.given, "decoder_input_ids": torch.tensor([[ours.BOS, *tokens[:-1]]])}
    model = as_model(asked.module).with_readers(token_logits=lambda answer: answer.raw.logits)
    return Asked(model, given, asked.layer, asked.module, asked.call, asked.laid)


def grid(before, *cells):
    return lambda tokens: tokens[:, before : before + math.prod(cells)].transpose(1, 2).unflatten(2, cells)


# -- the questions: each with its score by hand, from the output and the layer's output --------------------------------


@dataclass(frozen=True)
class Question:
    on: Callable[[], Asked]
    target: Any
    score: Callable[[Any, torch.Tensor], torch.Tensor]  # (the output, the layer's output laid out) -> one an image


def mask(rows=16, columns=20):
    inside = torch.zeros(rows, columns)
    inside[4:12, 5:15] = 1
    return inside


def second(output):
    return output[:, 1]


def of_segments(read):
    """Read the pixels predicted as the class that most are predicted as, but for the first class."""

    def score(output, _):
        logits = output["out"]
        labels = logits.argmax(1)
        counts = F.one_hot(labels, 5).sum((1, 2))
        counts[:, 0] = -1
        return torch.stack(
            [read(one, label, int(count.argmax())) for one, label, count in zip(logits, labels, counts, strict=True)]
        )

    return score


def flooded(labels, row, column):
    """Find the object at a cell, cell by cell: neighbours of the same class, also across corners."""
    found, waiting = set(), [(row, column)]
    while waiting:
        cell = waiting.pop()
        if cell in found:
            continue
        found.add(cell)
        near = [(cell[0] + down, cell[1] + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        inside = [(r, c) for r, c in near if 0 <= r < labels.shape[0] and 0 <= c < labels.shape[1]]
        waiting += [one for one in inside if labels[one] == labels[row, column]]
    inside = torch.zeros(labels.shape)
    for cell in found:
        inside[cell] = 1
    return inside


def at(row, column):
    def score(output, _):
        logits = output["out"]
        labels = logits.argmax(1)
        return torch.stack(
            [
                (one[int(label[row, column])] * flooded(label, row, column)).sum()
                for one, label in zip(logits, labels, strict=True)
            ]
        )

    return score


def largest(logits, labels, category):
    cells = torch.nonzero(labels == category).tolist()
    objects = [flooded(labels, *cell) for cell in cells]
    return (logits[category] * max(objects, key=lambda one: float(one.sum()))).sum()


def surest(output):
    """The query and class of DETR's surest detection."""
    probabilities = output.logits[0].softmax(-1)[:, :-1]
    return divmod(int(probabilities.argmax()), probabilities.shape[1])


def of_detections(output, _):
    query, category = surest(output)
    return output.logits[:, query, category]


def all_detections(output, _):
    probabilities = output.logits[0].softmax(-1)[:, :-1]
    best = probabilities.max(-1)
    sure = [query for query in range(5) if best.values[query] >= 0.38]
    assert 1 < len(sure) < 5
    return torch.stack([output.logits[0, query, int(best.indices[query])] for query in sure]).sum()[None]


def spoken(output, _):
    tokens = ours.tokenizer()(SENTENCE, add_special_tokens=False)["input_ids"]
    chances = output.logits[0].log_softmax(-1)
    return torch.stack([chances[place, token] for place, token in enumerate(tokens)]).sum()[None]


def as_spoken():
    tokens = ours.tokenizer()(SENTENCE, add_special_tokens=False)["input_ids"]
    return TokenLogProbability((TokenSpan(SENTENCE, tuple(tokens), tuple(range(-len(tokens), 0))),))


VECTOR = torch.tensor([1.0, -2, 0.5, 3, 0.1, -0.7, 0.2, 1.5])
OTHER = images(1, seed=9)


def cosine(one, other):
    return F.cosine_similarity(one, other.to(one))


def embedded(output, _):
    return cosine(output, backbone().module(OTHER).detach())


QUESTIONS = {
    "Category": Question(classifier, Category("car"), lambda output, _: output[:, 2]),
    "Category of a transformer": Question(transformer, Category(2), lambda output, _: output[:, 2]),
    "Category of pixels": Question(
        segmenter, Category("sky"), lambda output, _: (output["out"][:, 1] * (output["out"].argmax(1) == 1)).sum((1, 2))
    ),
    "Predicted": Question(classifier, Predicted(), lambda output, _: output.amax(1)),
    "Predicted in pixels": Question(
        segmenter, Predicted(), of_segments(lambda logits, labels, most: (logits[most] * (labels == most)).sum())
    ),
    "Ranked": Question(classifier, Ranked(1), lambda output, _: output.sort(1).values[:, -2]),
    "OutputValue": Question(transformer, OutputValue(3), lambda output, _: output[:, 3]),
    "Probability": Question(classifier, Probability("dog"), lambda output, _: output.softmax(1)[:, 1]),
    "LogProbability": Question(transformer, LogProbability(1), lambda output, _: output.log_softmax(1)[:, 1]),
    "Contrast": Question(
        classifier, Contrast("cat", ["dog", "bus"]), lambda output, _: output[:, 0] - output[:, [1, 3]].mean(1)
    ),
    "Finer": Question(
        transformer,
        Finer(0, rivals=3),
        lambda output, _: output[:, 0] - (output[:, 1:].detach().softmax(1) * output[:, 1:]).sum(1),
    ),
    "Not": Question(transformer, Not(2), lambda output, _: -output[:, 2]),
    "PerImage": Question(
        classifier, PerImage(["dog", Not(0)]), lambda output, _: torch.stack([output[0, 1], -output[1, 0]])
    ),
    "FunctionTarget": Question(transformer, FunctionTarget(second), lambda output, _: output[:, 1]),
    "FunctionTarget of pixels": Question(
        segmenter,
        FunctionTarget(lambda output: output["out"][:, 1].sum((1, 2))),
        lambda output, _: output["out"][:, 1].sum((1, 2)),
    ),
    "Pixels": Question(
        segmenter, Pixels("car", mask()), lambda output, _: (output["out"][:, 3] * _quarter()).sum((1, 2))
    ),
    "At": Question(segmenter, Pixels(where=At(10, 9)), at(2, 2)),
    "Point": Question(segmenter, Pixels("bus", Point(10, 9)), lambda output, _: output["out"][:, 4, 2, 2]),
    "Object": Question(segmenter, Pixels(where=Object(0)), of_segments(largest)),
    "SimilarDetection": Question(
        boxes,
        SimilarDetection(1, (6.0, 4.0, 14.0, 12.0)),
        lambda output, _: torch.stack([one["scores"][0] for one in output]),
    ),
    "Detection": Question(detector, Detection(0), of_detections),
    "AllDetections": Question(detector, AllDetections(0.38), all_detections),
    "Text": Question(clip, Text("a dog"), lambda output, _: output.logits_per_image[:, 0]),
    "Text rather": Question(
        clip,
        Contrast(Text("a dog"), Text("a cat")),
        lambda output, _: output.logits_per_image @ torch.tensor([1.0, -1.0]).double(),
    ),
    "Text written": Question(writer, Text(SENTENCE), spoken),
    "TokenLogProbability": Question(told, as_spoken(), spoken),
    "Similar": Question(backbone, Similar(OTHER), embedded),
    "Prototype": Question(backbone, Prototype(VECTOR), lambda output, _: cosine(output, VECTOR[None])),
    "Prototype of a transformer": Question(
        transformer, Prototype([1.0, -1, 2, 0.5]), lambda output, _: cosine(output, torch.tensor([[1.0, -1, 2, 0.5]]))
    ),
    "Direction": Question(backbone, Direction(VECTOR), lambda output, _: output @ VECTOR / VECTOR.norm()),
    "Direction at a layer": Question(
        transformer,
        Direction(VECTOR, "blocks.1"),
        lambda _, maps: maps.mean((2, 3)) @ VECTOR.to(maps) / VECTOR.norm(),
    ),
    "Unit": Question(backbone, Unit(5), lambda output, _: output[:, 5]),
    "Unit of a classifier": Question(classifier, Unit(3, "features.4"), lambda _, maps: maps[:, 3].mean((1, 2))),
    "Unit of a layer": Question(transformer, Unit(6, "blocks.1"), lambda _, maps: maps[:, 6].mean((1, 2))),
    "Unit at its highest": Question(backbone, Unit(5, "features.3", "max"), lambda _, maps: maps[:, 5].amax((1, 2))),
}


def _quarter():
    """What is left of the mask at a quarter of the size, by nearest neighbour: the middle of each cell."""
    return mask()[2::4, 2::4]


# -- the methods: one for each kind of evidence, read from the shelf ---------------------------------------------------


# Where there is a choice, a method whose map can be worked out by hand.
KINDS = representatives(glowmap.METHODS, preferred=("hires_cam", "score_cam"))


ATTENTION = ("rollout", "gae", "legrad")

# Which methods refuse which models (or one question), and part of the reason that they give.
REFUSED = [
    (("cam",), ("Unit of a classifier",), "cam needs a score of the class scores that glowmap reads"),
    (ATTENTION, (classifier, segmenter, backbone, boxes), "no attention was seen in"),
    (
        ("cam",),
        (transformer, segmenter, backbone, boxes, detector, clip, writer, told),
        "cam needs a model that averages",
    ),
    (
        ("guided_backprop", "guided_grad_cam"),
        (transformer, segmenter, boxes, clip, writer, told),
        "no ReLU ran on the way",
    ),
    (("shapley_cam",), (detector, clip, writer, told), "the second derivative at layer"),
]

# Maps that are the same everywhere, and say so in a note: no masked picture scores more than the empty one.
FLAT = {
    (name, "poly_cam")
    for name in (
        "LogProbability",
        "Not",
        "FunctionTarget",
        "SimilarDetection",
        "Text written",
        "TokenLogProbability",
        "Unit of a layer",
    )
}


def reason(name, method):
    on = QUESTIONS[name].on
    return next((words for methods, of, words in REFUSED if method in methods and (on in of or name in of)), None)


@cache
def by_hand(name):
    """The score, and the layer's output times the score's gradient by it, from a hook and the module alone."""
    question = QUESTIONS[name]
    asked, kept = question.on(), []

    def keep(_module, _given, output):
        kept[:] = [output[0] if isinstance(output, tuple) else output]
        if not kept[0].requires_grad:  # a frozen backbone
            kept[0].requires_grad_()

    handle = asked.module.get_submodule(asked.layer).register_forward_hook(keep)
    with torch.enable_grad():
        output = asked.call()
        handle.remove()
        maps = asked.laid(kept[0])
        score = question.score(output, maps)
        (slope,) = torch.autograd.grad(score.sum(), kept[0])
    return score.detach(), (maps * asked.laid(slope)).sum(1).detach()


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_by_every_kind_of_evidence(name, method):
    question = QUESTIONS[name]
    asked, why = question.on(), reason(name, method)
    own = glowmap.METHODS[method]
    layer = None if map_places(own.needs, ("layer",)) != ("layer",) else asked.layer
    if why is not None:
        with pytest.raises(GlowmapError, match=why):
            glowmap.explain(
                asked.model, asked.given, target=question.target, layer=layer, method=with_parameters(method)
            )
        return
    found = glowmap.explain(
        asked.model, asked.given, target=question.target, layer=layer, method=with_parameters(method)
    )
    score, product = by_hand(name)
    torch.testing.assert_close(found.scores.to(score), score, rtol=1e-4, atol=1e-5)
    assert found.raw.isfinite().all()
    blind = {*own.needs} == {"activations"} and not isinstance(question.target, Predicted)
    assert blind == any("the same for every target" in caution for caution in found.cautions)
    flat = not (found.raw.flatten(1).std(1) > 0).all()
    assert flat == ((name, method) in FLAT)
    assert not flat or any("the raw map has" in caution for caution in found.cautions)
    if method == "hires_cam":
        torch.testing.assert_close(found.raw.to(product), product, rtol=1e-3, atol=1e-4 * float(product.abs().max()))


def test_the_table_asks_every_kind_of_question():
    public = {
        name
        for name, one in vars(targets).items()
        if inspect.isclass(one) and (hasattr(one, "score") or hasattr(one, "pixels")) and not inspect.isabstract(one)
    }
    assert public - {"Target"} == {name.split()[0] for name in QUESTIONS}


def test_the_table_has_a_method_of_every_kind_of_evidence():
    used = {kind for name in KINDS for kind in glowmap.METHODS[name].needs}
    assert used == {kind for _, method in glowmap.METHODS.items() for kind in method.needs}


def _asked_again(images, rescore_images):
    """Ask about the unchanged image again, as methods that change it do, and give that score everywhere."""
    scores = rescore_images(2, lambda part: images.expand(part.stop - part.start, *images.shape[1:]))
    assert torch.allclose(scores[0], scores[1])
    return scores[0].expand(1, *images.shape[2:])


AGAIN = Method("asked_again", _asked_again, ("images", "rescore_images"), {}, "a test", "none")


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_that_is_put_again_has_the_same_score(name):
    question = QUESTIONS[name]
    asked = question.on()
    found = glowmap.explain(asked.model, asked.given, target=question.target, method=AGAIN)
    wanted = found.scores.reshape(-1, *[1] * (found.raw.ndim - 1)).expand_as(found.raw)
    torch.testing.assert_close(found.raw.to(wanted), wanted, rtol=1e-4, atol=1e-5)
    assert found.scores.abs().max() > 1e-4
