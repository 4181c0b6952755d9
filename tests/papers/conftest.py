"""Slow twins: each method of the shelf again, from its paper's equation, with plain loops in float64."""
