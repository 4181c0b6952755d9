"""``python -m glowmap`` is ``glowmap``."""

from glowmap.cli.commands import main

if __name__ == "__main__":
    main()
