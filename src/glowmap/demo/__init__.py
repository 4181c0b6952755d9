"""A small world with known truth, and models trained in it: everything here runs without a network."""
