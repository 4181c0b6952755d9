"""One method for each kind of evidence: what a call does to a model depends on the evidence, not on the formula."""

import glowmap


def representatives(methods, preferred=()):
    """Pick one method for each set of evidence, in the registry's order; a preferred one where there is a choice."""
    chosen: dict[frozenset[str], str] = {}
    for method in methods:
        evidence = frozenset(glowmap.METHODS[method].needs)
        if evidence not in chosen or method in preferred:
            chosen[evidence] = method
    return list(chosen.values())
