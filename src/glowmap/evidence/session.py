"""One visit to a borrowed model: its input, the layers that are looked at, and how it is run and read."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import record, record_prefix
from glowmap.capture.call import called
from glowmap.evidence.cautions import run_cautions
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import INPUT
from glowmap.inputs import Batch
from glowmap.layers import Choice, find_layers
from glowmap.layers.cache import LayerHints, checked_layout, gather_grids, grids_of
from glowmap.layers.select import choose
from glowmap.methods import GRADIENT_FREE
from glowmap.models import Model
from glowmap.outputs import ModelOutput
from glowmap.outputs.prediction import predicted_by
from glowmap.targets import Target, as_questions


@dataclass
class Session:
    """A model on loan and its input, with the layers that were named, if any were; ``choices`` are those that were found."""

    model: Model
    batch: Batch
    named: dict[str, nn.Module] | None = None
    choices: dict[str, Choice] = field(default_factory=dict)
    remembered: bool = False  # a layer is taken from an earlier input of this shape

    def layers(
        self, question: Target | None = None, *, blindly: bool = False, anew: bool = False
    ) -> dict[str, nn.Module]:
        """Give the layers to explain, by name: those named, or the one found for this question."""
        if self.named is not None:
            return self.named
        choice = self.find(question or as_questions(None)[0], blindly=blindly, anew=anew)
        return find_layers(self.model.module, choice.name)

    def find(self, question: Target, *, blindly: bool = False, anew: bool = False) -> Choice:
        """Find the layer worth looking at for a question."""
        choice, remembered = choose(
            self.model.module, self.batch, self.read, question, blindly=blindly, anew=anew, told=self._told(self.batch)
        )
        self.choices[choice.name], self.remembered = choice, self.remembered or remembered
        return choice

    def read(self, output: Any, images: int) -> ModelOutput:
        """Say how to read what the model said of so many images."""
        return self.model.read_output(output, self.batch, images)

    def run(
        self,
        layers: dict[str, nn.Module],
        *,
        asks: bool,
        resuming: bool,
        graph: bool = False,
        batch: Batch | None = None,
        laid_back: Callable[[Tensor], Tensor] | None = None,
    ) -> ForwardPass:
        """Run the model once: ``graph`` for gradients, ``asks`` for more questions, ``resuming`` to keep its trunk.

        ``batch`` is a changed input in the place of the own one, and ``laid_back`` lays the class scores of such an input over
        those of the own one.
        """
        batch = batch or self.batch
        with ExitStack() as stack:
            stack.enter_context(gather_grids(self.model.module, batch))
            recording = stack.enter_context(record(layers, graph=graph, instead=GRADIENT_FREE))
            run = ForwardPass(self.model.module, batch, layers, recording, partial(self._read, batch, laid_back))
            run.grids = partial(self._grids, batch)
            run.check = partial(checked_layout, self.model.module, batch, told=self._told(batch))
            run.layouts |= {name: choice.layout for name, choice in self.choices.items() if name in layers}
            kind = batch.images.device.type
            if torch.is_autocast_enabled(kind):
                run.autocast = (True, torch.get_autocast_dtype(kind))
            if asks:
                for name, layer in layers.items() or [(INPUT, None)]:
                    run.trunks[name] = stack.enter_context(record_prefix(self.model.module, layer, outputs=resuming))
            # the model may write into its input, which further questions change and ask about
            own = batch.copied() if asks else batch
            run.output = called(self.model.module, own)
            run.overwrites = any(given._version for given in tree.leaves([own.arguments, own.keywords]))
        return run

    def _told(self, batch: Batch) -> LayerHints:
        return LayerHints(
            tuple(self.model.token_grids(batch)), self._canvas, lambda: self._first, self.model.patch_positions(batch)
        )

    @cached_property
    def _first(self) -> ModelOutput:
        """The model's answer in a first pass without gradients."""
        with torch.no_grad():
            return self.read(called(self.model.module, self.batch.copied()), len(self.batch.images))

    def _canvas(self) -> tuple[int, int] | None:
        """Tell what a detector's layers cover of its input and of what it pads that with: known once it has run."""
        return self._first.canvas if self.model.readers.candidates is not None else None

    def _grids(self, batch: Batch) -> tuple[tuple[int, ...], ...]:
        return (*self.model.token_grids(batch), *grids_of(self.model.module, batch))

    def _read(
        self, batch: Batch, laid_back: Callable[[Tensor], Tensor] | None, output: Any, images: int
    ) -> ModelOutput:
        return self.model.read_output(output, batch, images, laid_back)

    def shared(self, run: ForwardPass, was_training: bool) -> dict[str, Any]:
        """Gather what all explanations of one run have in common."""
        model_cautions = [*self.model.cautions, *self.model.input_cautions(run.batch)]
        run.cautions[:0] = [*model_cautions, *run_cautions(run, was_training)]
        return {
            "model": self.model.name,
            "input_size": run.answer.input_size,
            "pictures": run.batch.pictures,
            "prediction": predicted_by(run.answer),
        }

    def doubts(self, layer: str) -> tuple[str, ...]:
        """Tell what speaks against a layer that was found."""
        return self.choices[layer].doubts if layer in self.choices else ()


@contextmanager
def visited(model: Model, batch: Batch, named: dict[str, nn.Module] | None = None) -> Iterator[Session]:
    """Visit the (borrowed) model with some input, and with whatever it needs around every call of it."""
    visit = Session(model, batch, named)
    with model.around_forward(model.module):
        yield visit
