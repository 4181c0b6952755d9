"""Draw the README's pictures, which are those of ``glowmap demo``, and write its table of methods, which is the shelf."""

import re
from pathlib import Path

from glowmap.cli import demonstration as tour
from glowmap.methods._method import METHODS

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
HEAD = "| name | price | what it does | when to use it | paper |\n|---|---|---|---|---|\n"


def table() -> str:
    """Lay the shelf of methods out as a table."""
    rows = [f"| `{name}` | {one.cost} | {one.summary} | {one.use} | {one.paper} |\n" for name, one in METHODS.items()]
    return HEAD + "".join(rows)


def main() -> None:
    """Write the pictures and the table."""
    tour.layers().panel().save(DOCS / "images" / "demo.png", optimize=True)
    tour.cars().explanations.panel().save(DOCS / "images" / "question.png", optimize=True)
    tour.portraits_panel(tour.portraits()).save(DOCS / "images" / "shortcut.png", optimize=True)
    README.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: table(), README.read_text()))


if __name__ == "__main__":
    main()
