"""A forward pass with the scores of one target: what all evidence for that target is made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from glowmap.capture import repeat_image, same_output
from glowmap.errors import Remedy, TargetError
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import EVIDENCE
from glowmap.shapes import Scores
from glowmap.targets import Target

Made = TypeVar("Made")


@dataclass(eq=False)
class ScoredPass:
    """A forward pass and one target's scores in it, one an image. Evidence is made when it is first needed, and kept."""

    forward_pass: ForwardPass
    target: Target
    scores: Scores
    layers: Sequence[str]  # at which the target is explained
    _made: dict[tuple[Any, ...], tuple[Any, list[str]]] = field(default_factory=dict)
    _pinned: dict[int, Target] = field(default_factory=dict)
    _checked: set[tuple[int, int]] = field(default_factory=set)

    def evidence(self, needs: Sequence[str], layer: str) -> list[dict[str, Any]]:
        """Make what a method needs: one set for the batch, or one an image if the method runs the model again itself."""
        made, queries = {}, {}
        for name in needs:
            kind = EVIDENCE[name]
            arguments = [layer] if kind.grid == "layer" else []
            if kind.per_image:
                queries[name] = partial(kind.make, self, *arguments)
            else:
                made[name] = self.once(kind.make, *arguments)
        if not queries:
            return [made]
        return [
            {name: partial(queries[name], image) if name in queries else _of_image(made[name], image) for name in needs}
            for image in range(len(self.forward_pass.batch.images))
        ]

    def once(self, make: Callable[..., Made], *arguments: Any) -> Made:
        """Call ``make(self, *arguments)`` the first time, and give the same result, with its cautions, from then on."""
        key = (make, *arguments)
        if key not in self._made:
            before = len(self.forward_pass.cautions)
            self._made[key] = make(self, *arguments), self.forward_pass.cautions[before:]
        made, cautions = self._made[key]
        for caution in cautions:
            self.forward_pass.caution(caution)
        result: Made = made
        return result

    def score_batch(self, output: Any, target: Target | None = None) -> Scores:
        """Score another output of the model for the same batch, by this target or by another."""
        target, count = target or self.target, len(self.forward_pass.batch.images)
        read = self.forward_pass.read(output, count)
        return target.checked_score(read)

    def score_copies(self, image: int, output: Any, count: int) -> Scores:
        """Score what the model returned for ``count`` changed copies of an image, by this target as it is for that image."""
        target, read = self.pinned(image), self.forward_pass.read(output, count)
        if target.reads_raw_output:
            self._check_copies(target, image, count)
        return target.checked_score(read)

    def pinned(self, image: int) -> Target:
        """Return the target as it is for one image, where it reads the same classes and places in changed copies of it."""
        if image not in self._pinned:
            self._pinned[image] = self.target.pin(self.forward_pass.output, image)
        return self._pinned[image]

    def _check_copies(self, target: Target, image: int, count: int) -> None:
        """Refuse a callable that scores copies of an image unlike the image: it reads the batch by position."""
        if (image, count) in self._checked:
            return
        self._checked.add((image, count))
        copies = repeat_image(self.forward_pass.raw_output, image, len(self.forward_pass.batch.images), count)
        read = self.forward_pass.read(copies, count)
        scores, score = target.checked_score(read), self.scores[image]
        if not same_output(scores.detach(), score.detach().expand(count)):
            raise TargetError(
                f"the target {target.describe(read, 0)!r} scores {count} copies of image {image} otherwise than the image "
                "itself",
                remedy=Remedy(
                    "a method that asks again needs a target that treats all images alike: for classes give a tensor of "
                    "labels, for others targets.PerImage([...])"
                ),
            )


def _of_image(evidence: Any, image: int) -> Any:
    row = slice(image, image + 1)
    return [tensor[row] for tensor in evidence] if isinstance(evidence, list) else evidence[row]
