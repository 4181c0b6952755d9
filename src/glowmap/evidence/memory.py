"""How much to compute at once, from the memory at hand."""

import os

import torch

_PER_OUTPUT = 4  # a layer's input, its output, and what a convolution unrolls, in sizes of the largest output
_ENOUGH = {"cpu": 96 * 2**20, "cuda": 2**31}  # more at once is no faster, on a processor slower: it leaves the caches


def chunk_size(widest: int, device: torch.device) -> int:
    """Tell how many inputs to run at once when the largest output of one takes so many bytes: at least 1, at most 256."""
    budget = min(_free(device) // 8, _ENOUGH.get(device.type, 2**28))
    return max(1, min(256, budget // (_PER_OUTPUT * widest)))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # a system that does not tell
        return 2**31
