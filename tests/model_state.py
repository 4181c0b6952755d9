"""All that a call must leave as it was: what a model and the process hold, before and after."""

import copy

import torch


def state_of(model):
    """Copy the modes, flags, gradients, weights, identities and hooks of a model, the random state and the grad mode."""
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "state": copy.deepcopy(model.state_dict()),
        "identities": {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())},
        "hooks": {name: hooks_of(module) for name, module in model.named_modules()},
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }


def hooks_of(module):
    """Count the hooks of a module, by kind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {kind: len(getattr(module, kind)) for kind in kinds}


def assert_unchanged(before, after):
    """Compare two states bit for bit: nothing was computed between them that may stay."""
    for part in before:
        torch.testing.assert_close(after[part], before[part], rtol=0, atol=0, msg=f"{part} changed")
