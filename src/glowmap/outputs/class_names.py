"""Class names: which class a name stands for, and whether the first class is a background."""

from collections.abc import Sequence

from glowmap.errors import Remedy, TargetError
from glowmap.registry import near_names


def index_of_name(category: str, names: Sequence[str] | None, count: int, model: str) -> int:
    """Return the index of the class with this name among the ``count`` classes of a model.

    A name matches exactly, or else without regard to case, or else as one of the synonyms in "lynx, catamount". Raises
    TargetError for an unknown name, for an ambiguous one, and where the names are unknown.
    """
    if names is None:
        raise TargetError(
            f"class {category!r} was given by name, but the class names of {model} are unknown",
            remedy=Remedy(
                f"give the index (0 to {count - 1}), or the names: glowmap.load(model, classes=...)",
                f"give the index (0 to {count - 1}), or the names: --classes FILE",
            ),
        )
    wanted = category.casefold()
    for fits in (category.__eq__, lambda name: name.casefold() == wanted, lambda name: wanted in _synonyms(name)):
        matches = [index for index, name in enumerate(names) if fits(name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise TargetError(
                f"the name {category!r} stands for the classes {matches}; give the index of the one you mean"
            )
    synonyms = [part.strip() for name in names for part in name.split(",")]
    raise TargetError(f"no class {category!r} in {model}; {near_names(category, synonyms)}")


def _synonyms(name: str) -> list[str]:
    """Split an ImageNet class name into its synonyms: "lynx, catamount"."""
    return [synonym.strip().casefold() for synonym in name.split(",")]


def background_class(names: Sequence[str]) -> int | None:
    """Return 0 where the name of the first class is that of a background, else None."""
    words = ("background", "unlabelled", "unlabeled", "void")
    return 0 if names and names[0].strip("_").casefold() in words else None
