"""Call a model, and say on what input it failed."""

from typing import Any

from torch import nn

from glowmap import tree
from glowmap.errors import GlowmapError, ModelError, summarise
from glowmap.inputs import Batch
from glowmap.shapes import crossed


def called(module: nn.Module, batch: Batch, *, took: int | None = None) -> Any:
    """Call a model; what it raises becomes a ModelError that says on what input, and how many images it ``took`` before."""
    try:
        output = module(*batch.arguments, **batch.keywords)
    except GlowmapError:
        raise
    except Exception as error:
        images = batch.images
        alone = "give one picture a batch axis, images[None], or " if images.ndim == 3 else ""
        number = "" if took in (None, len(images)) else f", and any number of images, not {took} alone"
        raise ModelError(
            f"{type(module).__name__} raised {summarise(error)}; {alone}check that it takes an input of {crossed(images.shape)} "
            f"({str(images.dtype).removeprefix('torch.')} on {images.device}){number}"
        ) from error
    # inference tensors do not tell when they are written to, and a model on several devices answers on its last
    device = batch.images.device
    if any(tensor.is_inference() or tensor.device != device for tensor in tree.leaves(output)):
        return tree.map(output, lambda tensor: (tensor.clone() if tensor.is_inference() else tensor).to(device))
    return output
