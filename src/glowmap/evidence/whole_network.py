"""Evidence from a backward pass through the whole network: guided gradients, and every bias times its gradient."""

from typing import Any

from torch import Tensor

from glowmap import tree
from glowmap.capture import BiasGradients, GuidedReLU, completeness_gap
from glowmap.capture.attention import AttentionRecorder
from glowmap.capture.call import called
from glowmap.evidence.kinds import evidence
from glowmap.evidence.rescoring import gradient_by
from glowmap.evidence.scored_pass import ScoredPass
from glowmap.shapes import Images


@evidence(cost="1 backward", grid="input", reruns="model")
def guided_gradients(scored: ScoredPass) -> Images:
    """Return the score's gradient by the input, with only positive gradients passed back through every ReLU."""
    guiding = GuidedReLU()
    leaf, output = run_again(scored, guiding)
    for caution in guiding.cautions(type(scored.forward_pass.module).__name__):
        scored.forward_pass.caution(caution)
    return tree.full_precision(gradient_by(leaf, scored.score_batch(output)))


@evidence(cost="1 backward", grid="input", reruns="model")
def bias_gradients(scored: ScoredPass) -> list[Tensor]:
    """Return the input times its gradient, then for each operation what it adds to its input, times the gradient there."""
    biases = BiasGradients()
    leaf, output = run_again(scored, biases)
    scores = scored.score_batch(output)
    terms = [tree.full_precision(leaf.detach()) * tree.full_precision(gradient_by(leaf, scores))]
    terms += biases.terms(len(leaf))
    for caution in completeness_gap(terms, scores, leaf.dtype):
        scored.forward_pass.caution(caution)
    return terms


def run_again(scored: ScoredPass, mode: GuidedReLU | BiasGradients | AttentionRecorder) -> tuple[Images, Any]:
    """Run the model again on its batch, in a mode that sees its operations. Returns the leaf of the graph and the output."""
    leaf = scored.images.detach().clone().requires_grad_()
    batch = scored.forward_pass.batch.changed(lambda _: leaf.clone())  # as the model may write into its input
    with mode:
        return leaf, called(scored.forward_pass.module, batch)
