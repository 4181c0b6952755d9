"""Draw the README's pictures: those of ``glowmap demo``."""

from pathlib import Path

from glowmap import tour

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    """Write demo.png and shortcut.png."""
    tour.layers().panel().save(IMAGES / "demo.png", optimize=True)
    tour.portraits_panel(tour.portraits()).save(IMAGES / "shortcut.png", optimize=True)


if __name__ == "__main__":
    main()
