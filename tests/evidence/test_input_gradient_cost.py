"""What methods of the input cost: the pass that is scored carries the graph from the input on."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import glowmap
from tiny_models.convolutional import Classifier, images

COSTS = {  # in forward passes, of which a backward pass to the input is one, for one target and for two
    "input_gradient": (2, 3),
    "guided_backprop": (2, 3),
    "full_grad": (2, 3),
    "guided_grad_cam": (3, 5),
    "integrated_gradients": (1 + 2 + 8, 1 + 2 + 16),  # 2 copies are compared with the image, then 4 steps both ways
}


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", COSTS)
def test_no_forward_pass_is_thrown_away(name):
    model, batch = Classifier().eval(), images(1)
    method = glowmap.METHODS[name]
    method = method.with_parameters(steps=4) if "steps" in method.parameters else method
    with torch.no_grad():
        forward = flops(lambda: model(batch))
    for target, passes in zip((1, [1, 2]), COSTS[name], strict=True):
        cost = flops(
            lambda target=target: glowmap.explain(model, batch, target=target, method=method, layer="features.4")
        )
        assert cost <= (passes + 0.05) * forward


def test_gradients_of_one_target_leave_nothing_for_the_next():
    model, batch = Classifier().eval(), images(2)
    for name in ("input_gradient", "guided_backprop", "full_grad"):
        together = glowmap.explain(model, batch, target=[1, 2, 1], method=name)
        for explanation, target in zip(together, (1, 2, 1), strict=True):
            alone = glowmap.explain(model, batch, target=target, method=name)
            torch.testing.assert_close(explanation.raw, alone.raw)


def test_a_mode_of_one_method_does_not_change_another():
    model, batch = Classifier().eval(), images(2)
    names = ["grad_cam", "guided_backprop", "input_gradient", "full_grad", "guided_grad_cam"]
    together = glowmap.compare(model, batch, target=1, method=names, layer="features.2")
    for explanation, name in zip(together, names, strict=True):
        alone = glowmap.explain(model, batch, target=1, method=name, layer="features.2")
        torch.testing.assert_close(explanation.raw, alone.raw)
