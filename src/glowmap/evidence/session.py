"""A session: a borrowed model and one input, the layers that are explained, and the forward passes for some targets."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from glowmap import tree
from glowmap.capture import call_model, record, record_prefix
from glowmap.cautions import Caution, caution_kind
from glowmap.evidence.forward_pass import ForwardPass
from glowmap.evidence.kinds import INPUT, PassOptions
from glowmap.inputs import Batch
from glowmap.layers import Choice, LayerSelector, LayoutReader, find_layers
from glowmap.layers.select import needs_own_layer
from glowmap.methods import GRADIENT_FREE
from glowmap.models import Model
from glowmap.outputs import ModelOutput
from glowmap.targets import Target

TRAINING_MODE = caution_kind("training-mode", "info", "Nothing, or call model.eval() before.")
Realign = Callable[[Tensor], Tensor]


@dataclass
class Session:
    """A borrowed model and its input. ``named`` are the layers to explain, if given; ``choices`` those that were selected."""

    model: Model
    batch: Batch
    named: dict[str, nn.Module] | None = None
    choices: dict[str, Choice] = field(default_factory=dict)
    used_cache: bool = False  # a layer was found for an earlier input of this shape

    def forward(
        self, targets: Sequence[Target], options: PassOptions, *, ignore_cache: bool = False
    ) -> tuple[ForwardPass, list[dict[str, nn.Module]]]:
        """Run the model once and record the layers for some targets. Returns the pass, and the layers of each target.

        Only where a target's layer depends on the output, and is not among those that are known, the model runs again. Raises
        LayerError where a target has no layer.
        """
        if self.named is not None or not options.needs_layers:
            layers = self.named if self.named is not None and options.needs_layers else {}
            forward_pass = self.run(layers, options)
            forward_pass.keep_layers(layers)
            return forward_pass, [layers] * len(targets)
        selector = LayerSelector(self.layouts, without_gradient=not options.graph, ignore_cache=ignore_cache)
        shared = next((target for target in targets if not needs_own_layer(target)), None)
        targets = [target if shared is None or needs_own_layer(target) else shared for target in targets]
        candidates = [choice for target in targets for choice in selector.candidates(target)]
        self.used_cache = selector.used_cache
        forward_pass = self.run(self._layers(candidates), options)
        choices = [selector.select(target, lambda: forward_pass.output) for target in targets]
        self._keep(choices)
        if not {choice.name for choice in choices} <= {*forward_pass.layers}:
            forward_pass = self.run(self._layers(choices), options)
        forward_pass.keep_layers(dict.fromkeys(choice.name for choice in choices))
        return forward_pass, [self._layers([choice]) for choice in choices]

    def find(self, target: Target) -> Choice:
        """Select the layer for a target. Raises LayerError where there is none."""
        selector = LayerSelector(self.layouts)
        if not selector.needs_output(target):
            selector.candidates(target)
        choice = selector.select(target, lambda: self._output_without_gradient)
        self._keep([choice])
        return choice

    @cached_property
    def layouts(self) -> LayoutReader:
        """How the layers lay out their outputs for the session's input."""
        return LayoutReader(
            self.model.module,
            self.batch,
            lambda raw, images: self.model.read_output(raw, self.batch, images),
            tuple(self.model.token_grids(self.batch)),
            self.model.patch_positions(self.batch),
        )

    def run(
        self,
        layers: dict[str, nn.Module],
        options: PassOptions,
        *,
        batch: Batch | None = None,
        realign: Realign | None = None,
    ) -> ForwardPass:
        """Run the model once, with the graph, the copies and the prefixes that the options need.

        ``batch`` is a changed input in the place of the session's; ``realign`` lays its class scores per pixel over
        those of the unchanged input.
        """
        layouts = self.layouts if batch is None else Session(self.model, batch).layouts
        layouts.expected |= {name: choice.layout for name, choice in self.choices.items() if name in layers}
        batch = layouts.batch
        with ExitStack() as stack:
            stack.enter_context(layouts.gathering_grids())
            recording = stack.enter_context(
                record(layers, graph=options.graph, instead=GRADIENT_FREE, model=self.model.module)
            )
            forward_pass = ForwardPass(
                self.model.module,
                batch,
                layers,
                recording,
                layouts,
                read=lambda raw, images: self.model.read_output(raw, batch, images, realign),
            )
            device = batch.images.device.type
            if torch.is_autocast_enabled(device):
                forward_pass.autocast = (True, torch.get_autocast_dtype(device))
            if options.reruns:
                for name, layer in layers.items() or [(INPUT, None)]:
                    recorder = record_prefix(self.model.module, layer, outputs=options.resumes)
                    forward_pass.prefixes[name] = stack.enter_context(recorder)
            # the model may write into its input, which reruns change and read
            inputs = batch.copied() if options.reruns else batch
            if options.input_graph:
                leaf = forward_pass.input_leaf = batch.images.detach().clone().requires_grad_()
                inputs = inputs.changed(lambda _: leaf.clone())
            if options.mode is not None:
                forward_pass.mode = stack.enter_context(options.mode())
            forward_pass.raw_output = call_model(self.model.module, inputs)
            forward_pass.output = forward_pass.read(forward_pass.raw_output, len(batch.images))
            tensors = tree.leaves([inputs.arguments, inputs.keywords])
            forward_pass.overwrites_input = any(tensor._version for tensor in tensors)
        recording.settle(tree.leaves(forward_pass.raw_output))
        return forward_pass

    def common_fields(self, forward_pass: ForwardPass, was_training: bool) -> dict[str, Any]:
        """Return the fields that all explanations of one forward pass share, and add its cautions to it."""
        batch = forward_pass.batch
        cautions: list[Caution] = [*self.model.cautions, *self.model.input_cautions(batch)]
        if was_training:
            cautions.append(
                TRAINING_MODE(
                    "the model is in training mode; it was explained in evaluation mode and given back as it was"
                )
            )
        if batch.keywords or len(batch.arguments) != 1 or batch.arguments[0] is not batch.images:
            cautions += batch.cautions()
        forward_pass.cautions[:0] = cautions
        return {
            "model": self.model.name,
            "input_size": forward_pass.output.input_size,
            "pictures": batch.pictures,
            "prediction": forward_pass.output.prediction,
        }

    def cautions(self, layer: str) -> tuple[Caution, ...]:
        """Return what speaks against a layer that was selected."""
        return self.choices[layer].cautions if layer in self.choices else ()

    def _keep(self, choices: Sequence[Choice]) -> None:
        self.choices |= {choice.name: choice for choice in choices}
        self.layouts.expected |= {choice.name: choice.layout for choice in choices}

    def _layers(self, choices: Sequence[Choice]) -> dict[str, nn.Module]:
        return find_layers(self.model.module, list(dict.fromkeys(choice.name for choice in choices)))

    @cached_property
    def _output_without_gradient(self) -> ModelOutput:
        with torch.no_grad():
            raw = call_model(self.model.module, self.batch.copied())
        return self.model.read_output(raw, self.batch)
