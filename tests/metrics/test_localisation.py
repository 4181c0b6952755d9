"""The share of a map's heat inside a mask, against numbers worked out by hand."""

import pytest
import torch

from glowmap.metrics import energy_share


def test_the_share_is_the_heat_inside_over_all_heat():
    heat = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 5.0], [0.0, 0.0]]])
    mask = torch.tensor([[[True, False], [False, True]], [[True, True], [False, False]]])
    assert energy_share(heat, mask).tolist() == pytest.approx([5 / 10, 1.0])


def test_a_map_without_heat_has_no_share_inside():
    assert energy_share(torch.zeros(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)).tolist() == [0.0]
