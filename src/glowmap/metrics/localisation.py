"""Whether the heat lies where the object is."""

from glowmap.shapes import Heatmaps, PixelSets, Scores


def energy_share(heat: Heatmaps, inside: PixelSets) -> Scores:
    """Compute the share of each map's heat inside a mask, from 0 to 1; 0 for a blank map.

    ``heat`` is not negative and has the resolution of ``inside``. A constant map scores the mask's share of the picture, which is
    chance. Wang et al., CVPR Workshops 2020, arXiv:1910.01279, section 4.3: the energy-based pointing game, with a mask instead
    of a box.
    """
    total = heat.flatten(1).sum(1)
    heat_inside = (heat * inside).flatten(1).sum(1)
    return heat_inside / total.masked_fill(total == 0, 1.0)
