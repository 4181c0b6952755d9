"""Evidence from a backward pass to the input: gradients by it, plain and guided, and every bias times its gradient.

The forward pass that was scored carries the graph where it can; else the model runs again.
"""

from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

from glowmap import tree
from glowmap.capture import BiasGradients, GuidedReLU, call_model, completeness_gap
from glowmap.evidence.kinds import ScoredPass, evidence
from glowmap.evidence.rescoring import gradient_by
from glowmap.shapes import Images, Scores

AnyMode = TypeVar("AnyMode", bound=TorchFunctionMode)


@evidence(cost="1 backward", grid="input", graph="input")
def input_gradients(scored: ScoredPass) -> Images:
    """Return the score's gradient by the input."""
    leaf = scored.forward_pass.input_leaf
    assert leaf is not None
    return tree.full_precision(gradient_by(leaf, scored.scores, keep_graph=True))


@evidence(cost="1 backward", grid="input", graph="input", mode=GuidedReLU)
def guided_gradients(scored: ScoredPass) -> Images:
    """Return the score's gradient by the input, with only positive gradients passed back through every ReLU."""
    guided, leaf, scores = _in_mode(scored, GuidedReLU)
    for caution in guided.cautions(type(scored.forward_pass.module).__name__):
        scored.forward_pass.caution(caution)
    return tree.full_precision(gradient_by(leaf, scores, keep_graph=True))


@evidence(cost="1 backward", grid="input", graph="input", mode=BiasGradients)
def bias_gradients(scored: ScoredPass) -> list[Tensor]:
    """Return the input times its gradient, then for each operation what it adds to its input, times the gradient there."""
    biases, leaf, scores = _in_mode(scored, BiasGradients)
    terms = [tree.full_precision(leaf.detach()) * tree.full_precision(gradient_by(leaf, scores, keep_graph=True))]
    terms += biases.terms(len(leaf))
    for caution in completeness_gap(terms, scores, leaf.dtype):
        scored.forward_pass.caution(caution)
    return terms


def _in_mode(scored: ScoredPass, mode: type[AnyMode]) -> tuple[AnyMode, Images, Scores]:
    """Return a mode in which the model ran with its graph from the input on, the leaf of that graph, and the scores in it."""
    forward_pass = scored.forward_pass
    if isinstance(forward_pass.mode, mode) and forward_pass.input_leaf is not None:
        return forward_pass.mode, forward_pass.input_leaf, scored.scores
    entered = mode()
    leaf, output = run_again(scored, entered)
    return entered, leaf, scored.score_batch(output)


def run_again(scored: ScoredPass, mode: TorchFunctionMode) -> tuple[Images, Any]:
    """Run the model again on its batch, in a mode that sees its operations. Returns the leaf of the graph and the output."""
    leaf = scored.forward_pass.batch.images.detach().clone().requires_grad_()
    batch = scored.forward_pass.batch.changed(lambda _: leaf.clone())  # as the model may write into its input
    with mode:
        return leaf, call_model(scored.forward_pass.module, batch)
