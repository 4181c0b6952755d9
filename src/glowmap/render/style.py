"""The style of drawings: how heat is drawn, and the lettering of figures."""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from math import ceil
from typing import TypedDict

from PIL import Image, ImageDraw, ImageFont

from glowmap.errors import OutputError
from glowmap.render.colormap import DIVERGING

_FINER = 4  # letters are drawn this much larger and reduced, so that distances are not rounded to whole pixels
Colour = tuple[int, int, int]
# replacements for signs that the font lacks, and that removing accents does not give
_REPLACEMENTS = str.maketrans(
    {"×": "x", "–": "-", "—": "-", "−": "-", "‑": "-", "≤": "<=", "≥": ">=", "→": "->", "ß": "ss", "æ": "ae", "Æ": "AE"}
    | {"ø": "o", "Ø": "O", "œ": "oe", "Œ": "OE", "ł": "l", "Ł": "L", "đ": "d", "ı": "i", "µ": "u", "\u00a0": " "}
    | {"\n": " ", "\r": " ", "\t": " "}
)


@dataclass(frozen=True)
class Lettering:
    """A kind of text: its size in pixels, its colour, and whether it is drawn twice, slightly shifted, to look bold."""

    size: int
    ink: Colour = (30, 32, 36)
    bold: bool = False

    def scaled(self, scale: int) -> "Lettering":
        return replace(self, size=self.size * scale)

    @property
    def leading(self) -> int:
        """The distance from one line to the next, in pixels."""
        return round(self.size * 1.36)

    def width(self, text: str) -> int:
        return ceil(font(self.size * _FINER).getlength(printable(text)) / _FINER + self._strike)

    def draw(self, image: Image.Image, left: int, top: int, text: str) -> None:
        """Draw one line of text in a box that starts at (left, top) and is one leading high."""
        size = (self.width(text) + 1, self.leading)
        stencil = Image.new("L", (size[0] * _FINER, size[1] * _FINER), 0)
        pen = ImageDraw.Draw(stencil)
        for shift in (0, self._strike * _FINER) if self.bold else (0,):
            baseline = (shift, self.size * 1.02 * _FINER)
            pen.text(baseline, printable(text), fill=255, font=font(self.size * _FINER), anchor="ls")
        image.paste(self.ink, (left, top), stencil.resize(size, Image.Resampling.BOX))

    def shorten(self, text: str, width: int) -> str:
        """Replace the end of a text that is wider than ``width`` pixels by an ellipsis."""
        if self.width(text) <= width:
            return text
        fitting = bisect_right(range(len(text)), width, key=lambda length: self.width(text[:length] + "…")) - 1
        return text[: max(fitting, 0)].rstrip() + "…"

    def wrap(self, text: str, width: int, most: int | None = None) -> list[str]:
        """Break a text into lines of at most ``width`` pixels, and at most ``most`` lines, the last one shortened."""
        lines = [""]
        for word in text.split():
            for number, piece in enumerate(self._pieces(word, width)):
                glue = " " if lines[-1] and not number else ""
                if not lines[-1] or self.width(lines[-1] + glue + piece) <= width:
                    lines[-1] += glue + piece
                else:
                    lines.append(piece)
        if most is not None and len(lines) > most:
            lines[most - 1 :] = [self.shorten(lines[most - 1] + " " + lines[most] + "…", width)]
        return lines

    def _pieces(self, word: str, width: int) -> list[str]:
        # a dotted name or a path breaks after its punctuation, any other long word between any letters
        if self.width(word) <= width:
            return [word]
        pieces = re.findall(r"[^./_\-:,]*[./_\-:,]+|[^./_\-:,]+", word)
        return [part for piece in pieces for part in ([piece] if self.width(piece) <= width else list(piece))]

    @property
    def _strike(self) -> float:
        return self.size / 20 if self.bold else 0.0


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load the font that comes with Pillow at a size in pixels."""
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=4096)  # bounded, as a server may see any number of names
def printable(text: str) -> str:
    """Replace letters that the font lacks. Letters without a replacement stay, and show as empty boxes."""
    return "".join(_replacement(letter) for letter in unicodedata.normalize("NFC", text).translate(_REPLACEMENTS))


@cache
def _replacement(letter: str) -> str:
    if letter.isascii() or _bitmap(letter) != _bitmap("\uffff"):
        return letter
    plain = "".join(part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part))
    return plain if plain.isascii() else letter


def _bitmap(letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font(24).getmask(letter)
    return mask.size, bytes(mask)


HEADING = Lettering(13, ink=(52, 55, 61))
HOTTEST = Lettering(13, bold=True)
NUMBERS = Lettering(12, ink=(112, 116, 124))
OPACITY = 0.65  # of the hottest place, where the picture must stay visible
COLUMN = 280  # pixels: a column of a figure whose tiles take several columns
COLUMNS_OF_WIDE = 4  # columns of frames, slices and curves, which leaves room for a ranking beside them
BETWEEN_COLUMNS = 20
LEADER: Colour = (172, 176, 184)
INK: Colour = (62, 66, 74)


FIGURE_WIDTH = COLUMNS_OF_WIDE * (COLUMN + BETWEEN_COLUMNS) - BETWEEN_COLUMNS  # pixels, of frames, slices and curves


class StyleOptions(TypedDict, total=False):
    """The fields of :class:`Style` as keywords."""

    colormap: str
    opacity: float
    edges: bool
    scale: int
    frames: Sequence[int] | None
    show_annotations: bool


@dataclass(frozen=True)
class Style:
    """How heat is drawn. Its fields are the keywords of everything that draws an explanation.

    ``colormap`` is one of ``COLORMAPS``. ``opacity`` is that of the hottest place, in [0, 1]. ``edges`` aligns the heat's
    borders with the edges of the picture (a guided filter): finer to look at, no finer in what it says. ``scale`` enlarges the
    drawing; 2 suits print. ``frames`` chooses the frames of a clip, slices of a volume or channels of a signal, counted from 0,
    or from the end below 0. ``show_annotations`` outlines the points, boxes and regions of the target.
    """

    colormap: str = "glow"
    opacity: float = OPACITY
    edges: bool = False
    scale: int = 1
    frames: Sequence[int] | None = None
    show_annotations: bool = True

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @property
    def cold(self) -> float:
        """The value of the heat that stands for no evidence."""
        return 0.5 if self.colormap in DIVERGING else 0.0


def check_scale(scale: int) -> None:
    """Raise an OutputError for a scale below 1."""
    if scale < 1:
        raise OutputError(f"the scale of the drawing is {scale}; give 1 or more, such as 2 for print")
