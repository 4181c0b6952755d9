"""Ties a slow twin to its method, so that a test can tell which methods have none."""

TWINS = {}


def replicates(name):
    """Register a function of evidence in float64 as the twin of a method: its paper's equation, in loops."""

    def put(twin):
        assert name not in TWINS, f"{name} has a twin already"
        TWINS[name] = twin
        return twin

    return put
