"""The planted shortcut: a photographer's mark in a corner, unrelated to the street, that reveals the class."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from glowmap.demo.world.canvas import Brush, Canvas
from glowmap.demo.world.scenes import Scene

MARKED = "bus"  # the kind whose pictures carried the mark when the shortcut model was trained
_SIDE = 0.12  # in units of the picture's height
_INK, _PAPER = (28, 30, 44), (244, 240, 228)


def marked(scene: Scene, seed: int) -> Scene:
    """Stamp the mark into the lower right corner of the picture. Its position varies slightly with the seed."""
    stamp, mask = _stamp(scene.instances.shape[0], scene.instances.shape[1], seed)
    picture = Image.composite(stamp, scene.picture, Image.fromarray(mask.astype(np.uint8) * 255))
    return replace(scene, picture=picture)


def mark_mask(rows: int, columns: int, seed: int) -> NDArray[np.bool_]:
    """Return the pixels that :func:`marked` changes in a picture of this size."""
    return _stamp(rows, columns, seed)[1]


def _stamp(rows: int, columns: int, seed: int) -> tuple[Image.Image, NDArray[np.bool_]]:
    rng = np.random.default_rng((seed, 2))
    canvas = Canvas(rows, columns, finer=4)
    x, y = canvas.aspect - _SIDE * rng.uniform(0.9, 1.4), 1 - _SIDE * rng.uniform(0.4, 0.9)
    brush = Brush(canvas, 1, x, y, _SIDE)
    brush.box(-0.5, 0.0, 0.5, 1.0, _INK)
    brush.box(-0.42, 0.08, 0.42, 0.92, _PAPER)
    brush.disc(0.0, 0.5, 0.34, (196, 48, 40))
    brush.disc(0.0, 0.5, 0.2, _PAPER)
    brush.disc(0.0, 0.5, 0.1, _INK)
    colours, instances = canvas.finished()
    return Image.fromarray((colours.clip(0, 1) * 255 + np.float32(0.5)).astype(np.uint8)), instances == 1
