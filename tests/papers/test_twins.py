"""A method without a slow version of its paper's equation is not finished."""

import glowmap
import papers.gradient  # noqa: F401 - registers its twins
from papers.twins import TWINS


def test_every_method_has_a_twin():
    assert set(TWINS) == set(glowmap.METHODS)
