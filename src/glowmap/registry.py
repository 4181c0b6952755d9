"""A named collection that fills where its members are defined.

Whoever needs the list of members (the command line, a table in the docs, a test) iterates the shelf; it is written nowhere else.
"""

import difflib
from collections.abc import ItemsView, Iterable, Iterator
from typing import Generic, TypeVar

Member = TypeVar("Member")


class Registry(Generic[Member]):
    """Members by name, in the order in which they were put; an unknown name raises ``error`` with the near ones."""

    def __init__(self, noun: str, error: type[Exception]) -> None:
        self._noun = noun
        self._error = error
        self._members: dict[str, Member] = {}

    def register(self, name: str, member: Member) -> None:
        """Add a member; a name is taken once (else a ValueError at import, where it belongs)."""
        if name in self._members:
            raise ValueError(f"there is a {self._noun} {name!r} on the shelf already")
        self._members[name] = member

    def __getitem__(self, name: str) -> Member:
        if name not in self._members:
            raise self._error(f"no {self._noun} {name!r}; {near_names(name, self)}")
        return self._members[name]

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def items(self) -> ItemsView[str, Member]:
        return self._members.items()

    def __repr__(self) -> str:
        return f"<{self._noun}s: {', '.join(self)}>"


def near_names(name: str, names: Iterable[str], count: int = 3) -> str:
    """End an error message: ``near names: layer4, layer3``, or the start of the list where none is near."""
    known = list(dict.fromkeys(names))
    wanted = name.lower()
    spelled = {candidate.lower(): candidate for candidate in reversed(known)}
    # "layer4" means "backbone.layer4" more than any likeness of letters can tell
    longer = sorted((c for low, c in spelled.items() if wanted and low.endswith(wanted)), key=len)
    alike = [spelled[low] for low in difflib.get_close_matches(wanted, spelled, n=count, cutoff=0.55)]
    shorter = sorted((c for low, c in spelled.items() if low and wanted.endswith(low)), key=len, reverse=True)
    near = list(dict.fromkeys(longer + alike + shorter))[:count]
    if near:
        return f"near names: {', '.join(near)}"
    more = f" and {len(known) - 8} more" if len(known) > 8 else ""
    return f"there are: {', '.join(known[:8])}{more}" if known else "there are none"
