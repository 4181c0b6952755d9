"""The command line: strings in, the functions of the library below, lines and files out."""

from glowmap.cli.commands import main as main
