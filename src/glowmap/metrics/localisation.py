"""Whether the heat lies where the object is."""

from glowmap.shapes import Heatmaps, PixelSets, Scores


def energy_share(heat: Heatmaps, inside: PixelSets) -> Scores:
    """Tell which share of a map's heat lies inside a set of pixels: 0 to 1, an image each; 0 for a blank map.

    ``heat`` is not negative, at any resolution that ``inside`` has too. A map that is everywhere the same scores the set's
    share of the picture: chance. Wang et al., CVPR Workshops 2020, arXiv:1910.01279, section 4.3: the energy-based pointing
    game, with a set of pixels for its box.
    """
    total = heat.flatten(1).sum(1)
    found = (heat * inside).flatten(1).sum(1)
    return found / total.masked_fill(total == 0, 1.0)
