"""What an explanation costs, in units that depend on no machine: FLOPs, forward passes, host synchronisations, tensors alive.

A forward pass is counted where it starts, at the first module of the trunk. FLOPs are those of torch's counter, which counts the
products of matrices and convolutions.
"""

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import glowmap
from glowmap.targets import Detection, Not, Text

torchvision = pytest.importorskip("torchvision")
transformers = pytest.importorskip("transformers")
from tiny_models import contrastive  # noqa: E402 - which needs transformers

# Operators that make the host wait for the device where the tensors are on one.
SYNCHRONISING = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::masked_select", "aten::nonzero"}


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what it is asked: its trunk's first module, its head, its input, two targets."""

    model: Any
    trunk: nn.Module
    head: tuple[nn.Module, ...]  # what follows the layer, of which each target pays the backward pass
    images: Any
    targets: tuple[Any, Any]
    products: int = 0  # FLOPs of the head outside its modules


@cache
def classifier() -> Subject:
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    return Subject(model, model.conv1, (model.fc,), torch.rand(1, 3, 64, 64), (3, 4))


@cache
def dense() -> Subject:
    torch.manual_seed(0)
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    first, second = (torch.rand(64, 64) > 0.5 for _ in range(2))
    targets = glowmap.targets.Pixels(3, first), glowmap.targets.Pixels(4, second)
    images = torch.rand(1, 3, 64, 64)
    return Subject(model, model.backbone["0"], (model.classifier,), images, targets)


@cache
def detector() -> Subject:
    torch.manual_seed(0)
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    images = torch.rand(1, 3, 320, 320)
    head = (model.backbone.features[1], *model.backbone.extra, model.head)
    return Subject(model, model.backbone.features[0], head, images, (Detection(0), Detection(0, of="left")))


@cache
def text_model() -> Subject:
    torch.manual_seed(0)
    module = contrastive.clip().eval()
    model = glowmap.load(module, processor=contrastive.processor())
    images = torch.rand(1, 3, 32, 32)
    head = (module.vision_model.encoder.layers[-1], module.visual_projection)
    targets = Text(contrastive.DOG), Not(Text(contrastive.DOG))
    similarity = 2 * 8  # the product of two embeddings of 8 numbers
    return Subject(model, module.vision_model.embeddings, head, images, targets, similarity)


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "classifier": classifier,
    "dense": dense,
    "detector": detector,
    "text": text_model,
}
every_subject = pytest.mark.parametrize("name", SUBJECTS)


class HostSynchronisations(TorchDispatchMode):
    """Count the operators that make the host wait."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator._schema.name in SYNCHRONISING
        return operator(*args, **(kwargs or {}))


def synchronisations(call):
    with HostSynchronisations() as counter:
        call()
    return counter.count


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def forward_passes(module, call):
    passes = []
    with module.register_forward_hook(lambda *_: passes.append(1)):
        call()
    return len(passes)


def tensors_alive():
    gc.collect()
    with warnings.catch_warnings():  # objects of libraries warn when they are looked at
        warnings.simplefilter("ignore")
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


@cache
def bare(subject):
    """The forward pass of the model alone, on the input that an explanation gives it."""
    model = glowmap.models.as_model(subject.model)
    calls = []
    with model.module.register_forward_pre_hook(lambda *given: calls.append(given[1:]), with_kwargs=True):
        glowmap.explain(subject.model, subject.images, target=subject.targets[0])
    arguments, keywords = calls[-1]

    def call():
        with torch.no_grad():
            model.module(*arguments, **keywords)

    return call


@cache
def bare_flops(subject):
    return flops(bare(subject))


@cache
def head_flops(subject):
    """The forward FLOPs of the head on what it gets in an explanation: a backward pass by its input alone costs as much."""
    calls = []
    handles = [
        module.register_forward_pre_hook(lambda *call: calls.append(call), with_kwargs=True) for module in subject.head
    ]
    with torch.no_grad():
        bare(subject)()
    for handle in handles:
        handle.remove()
    unique = {id(module): (module, arguments, keywords) for module, arguments, keywords in calls}.values()

    def call():
        with torch.no_grad():
            for module, arguments, keywords in unique:
                module(*arguments, **keywords)

    return flops(call)


@every_subject
def test_a_known_layer_takes_one_forward_pass_whatever_the_target(name):
    subject = SUBJECTS[name]()
    explainer = glowmap.Explainer(subject.model)
    first_target, second_target = subject.targets
    explainer(subject.images, target=first_target)  # finds the layer of the first target
    explainer(subject.images, target=second_target)
    known = [
        forward_passes(subject.trunk, lambda target=target: explainer(subject.images, target=target))
        for target in (first_target, second_target, list(subject.targets))
    ]
    assert known == [1, 1, 1]


@every_subject
def test_the_first_call_looks_for_the_layer_in_one_more_pass(name):
    build = SUBJECTS[name].__wrapped__  # a module that no layer is remembered for
    subject = build()
    assert (
        forward_passes(subject.trunk, lambda: glowmap.explain(subject.model, subject.images, target=subject.targets[0]))
        == 2
    )


@every_subject
def test_a_target_pays_the_forward_pass_and_the_backward_pass_of_the_head_by_its_input(name):
    """No gradient of a weight, and nothing below the layer: a full backward pass would cost two forward passes more."""
    subject = SUBJECTS[name]()
    explainer = glowmap.Explainer(subject.model)
    for target in subject.targets:
        explainer(subject.images, target=target)
    forward, head = bare_flops(subject), head_flops(subject) + subject.products
    costs = [
        flops(lambda target=target: explainer(subject.images, target=target))
        for target in (*subject.targets, list(subject.targets))
    ]
    for cost in costs[:2]:
        assert forward < cost <= forward + head
    assert costs[2] - forward == sum(cost - forward for cost in costs[:2])  # two targets share the forward pass


def test_a_classifier_pays_the_backward_pass_of_its_linear_head_exactly():
    subject = classifier()
    explainer = glowmap.Explainer(subject.model, layer="layer4")
    extra = flops(lambda: explainer(subject.images, target=3)) - bare_flops(subject)
    assert extra == 2 * 512 * 1000 == head_flops(subject)


# Forward passes and backward passes by the input, each as dear as a bare forward pass. Integrated gradients see first, on two
# copies of the image, that the model answers copies as it answered the image.
WHOLE_NETWORK = {"input_gradient": 2, "guided_backprop": 2, "full_grad": 2, "integrated_gradients": 1 + 2 + 2 * 32}


@pytest.mark.parametrize("method", WHOLE_NETWORK)
def test_methods_of_the_input_throw_no_forward_pass_away(method):
    subject = classifier()
    explainer = glowmap.Explainer(subject.model)
    equivalents = flops(lambda: explainer(subject.images, target=3, method=method)) / bare_flops(subject)
    assert equivalents <= WHOLE_NETWORK[method] + 0.01


# What Glowmap reads on the host beside the model: whether the input and the map are finite, the share of unused heat, masks.
WAITS = {"classifier": 3, "dense": 6, "detector": 5, "text": 3}


@every_subject
def test_the_host_waits_for_the_device_a_few_times_only(name):
    subject = SUBJECTS[name]()
    explainer = glowmap.Explainer(subject.model)
    explainer(subject.images, target=subject.targets[0])
    beside = synchronisations(lambda: explainer(subject.images, target=subject.targets[0])) - synchronisations(
        bare(subject)
    )
    assert beside <= WAITS[name]


@every_subject
def test_an_explanation_keeps_its_numbers_alone_and_a_call_keeps_nothing(name):
    subject = SUBJECTS[name]()
    explainer = glowmap.Explainer(subject.model)
    explainer(subject.images, target=subject.targets[0])
    before = tensors_alive()
    explanation = explainer(subject.images, target=subject.targets[0])
    kept = tensors_alive() - before
    assert not explanation.raw.requires_grad
    del explanation
    assert (kept <= 5, tensors_alive()) == (True, before)  # raw map, scores, and the prediction's classes
