"""Random states, lent and given back: those of a process are shared by all its threads."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class _Borrowers(threading.local):
    """How deep this thread is in calls that keep the random states."""

    depth = 0


_HERE = _Borrowers()
_LOCK = threading.Lock()
_THREADS: set[int] = set()  # that hold the states at this moment
_STATES: dict[int | None, Tensor] = {}  # as the first of them found them; None stands for the CPU


@contextmanager
def keep_random_states(devices: Sequence[int]) -> Iterator[None]:
    """Give the random states of the CPU and of these CUDA devices back as they were.

    Where several threads overlap, the last to end gives back what the first found, as none of them can tell its own draws.
    """
    with torch.random.fork_rng(
        devices=devices, enabled=_HERE.depth > 0
    ):  # a call within a call has its own to give back
        _HERE.depth += 1
        with _LOCK:
            _THREADS.add(threading.get_ident())
            _STATES.setdefault(None, torch.get_rng_state())
            for device in devices:
                _STATES.setdefault(device, torch.cuda.get_rng_state(device))
        try:
            yield
        finally:
            _HERE.depth -= 1
            with _LOCK:
                if _HERE.depth == 0:
                    _THREADS.discard(threading.get_ident())
                if not _THREADS:
                    _restore()


def _restore() -> None:
    for device, state in _STATES.items():
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
    _STATES.clear()
