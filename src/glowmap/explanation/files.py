"""Files out: what kind an ending names, and writing that leaves a whole file or none."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from PIL import Image

from glowmap.errors import OutputError


def file_kind(path: str | Path) -> str:
    """Tell by its ending what would be written to a path: NPZ, or one of Pillow's formats. OutputError for any other."""
    ending = Path(path).suffix.lower()
    formats = {ending: kind for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE}
    if ending == ".npz":
        return "NPZ"
    if ending not in formats:
        raise OutputError(
            f"{path} {f'ends in {ending}, which is no format for a panel' if ending else 'has no ending'}; "
            "end it in .png, .jpg, .webp, .tiff or .pdf for the panel, .npz for the numbers"
        )
    return formats[ending]


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> Path:
    """Write beside the path and rename, so that an interrupted or failed write leaves no half of a file.

    Raises OutputError where the path cannot be written, or ``write`` cannot write to it.
    """
    place = Path(os.path.realpath(path))  # what a link points to is replaced, not the link
    part = place.with_name(f".glowmap-{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("xb") as stream:
            write(stream)
        part.replace(place)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError | ValueError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{path} cannot be written ({reason}); choose a folder that exists and is writable, or .png"
        ) from error
    return path
