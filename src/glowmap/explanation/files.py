"""Output files: formats by file name ending, and atomic writes."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from PIL import Image

from glowmap.errors import OutputError


def file_kind(path: str | Path) -> str:
    """Return the format of a path by its ending: NPZ, or one of Pillow's formats. Raises OutputError for others."""
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
    """Write to a temporary file beside the path and rename it, so that a failed write leaves no partial file.

    Raises OutputError where the path cannot be written, or ``write`` fails to write to it.
    """
    target = Path(os.path.realpath(path))  # replaces the file that a link points to, not the link
    part = target.with_name(f".glowmap-{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("xb") as stream:
            write(stream)
        part.replace(target)
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
