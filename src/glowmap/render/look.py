"""How heat is drawn in figures of frames, slices and curves."""

from dataclasses import dataclass

from glowmap.render.colormap import DIVERGING
from glowmap.render.text import Colour, Lettering

HEADING = Lettering(13, ink=(52, 55, 61))
HOTTEST = Lettering(13, bold=True)
NUMBERS = Lettering(12, ink=(112, 116, 124))
OPACITY = 0.65  # of the hottest place: what lies there must still be seen
COLUMN = 280  # pixels, of a figure with tiles that take several columns
COLUMNS_OF_WIDE = 4  # that frames, slices and curves take, so that a ranking stands beside them
BETWEEN_COLUMNS = 20
LEADER: Colour = (172, 176, 184)
INK: Colour = (62, 66, 74)


@dataclass(frozen=True)
class Look:
    """The colours of the heat, the opacity of the hottest place, the figure's width in pixels, and its lettering's scale."""

    colormap: str = "glow"
    opacity: float = OPACITY
    width: int = COLUMNS_OF_WIDE * (COLUMN + BETWEEN_COLUMNS) - BETWEEN_COLUMNS
    scale: int = 1

    @property
    def cold(self) -> float:
        """The value that stands for no evidence."""
        return 0.5 if self.colormap in DIVERGING else 0.0
