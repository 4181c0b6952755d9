"""A method without a slow version of its paper's equation is not finished."""

import glowmap
import papers.activation
import papers.attention
import papers.gradient
import papers.perturbation
import papers.whole_network  # noqa: F401 - they register their twins
from papers.twins import TWINS


def test_every_method_has_a_twin():
    assert set(TWINS) == set(glowmap.METHODS)
