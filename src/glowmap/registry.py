"""A collection of members by name. Each member is registered where it is defined.

Lists of members (the command line's, the tables of the docs, the parameters of the tests) iterate the registry.
"""

import difflib
from collections.abc import Iterable
from typing import TypeVar

Member = TypeVar("Member")
_NEAR = 3  # names in a message


class Registry(dict[str, Member]):
    """Members by name, in the order of their registration. An unknown name raises ``error`` with the names nearest to it."""

    def __init__(self, noun: str, error: type[Exception]) -> None:
        super().__init__()
        self._noun = noun
        self._error = error

    def register(self, name: str, member: Member) -> None:
        """Add a member. Raises ValueError, at import, for a name that exists."""
        if name in self:
            raise ValueError(f"the {self._noun} {name!r} is registered already")
        self[name] = member

    def __missing__(self, name: str) -> Member:
        raise self._error(f"no {self._noun} {name!r}; {near_names(name, self)}")

    def __repr__(self) -> str:
        return f"<{self._noun}s: {', '.join(self)}>"


def near_names(name: str, names: Iterable[str]) -> str:
    """Return the end of an error message: ``near names: layer4, layer3``, or the start of the list where none is near."""
    known = list(dict.fromkeys(names))
    wanted = name.lower()
    by_lower = {candidate.lower(): candidate for candidate in reversed(known)}
    # a common ending comes first: "layer4" for "backbone.layer4"
    longer = sorted((candidate for lower, candidate in by_lower.items() if wanted and lower.endswith(wanted)), key=len)
    similar = [by_lower[lower] for lower in difflib.get_close_matches(wanted, by_lower, n=_NEAR, cutoff=0.55)]
    shorter = sorted(
        (candidate for lower, candidate in by_lower.items() if lower and wanted.endswith(lower)), key=len, reverse=True
    )
    near = list(dict.fromkeys(longer + similar + shorter))[:_NEAR]
    if near:
        return f"near names: {', '.join(near)}"
    more = f" and {len(known) - 8} more" if len(known) > 8 else ""
    return f"there are: {', '.join(known[:8])}{more}" if known else "there are none"
