"""A drawn world with known truth, and models trained on it. Everything here runs offline."""
