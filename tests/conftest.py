import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from PIL import Image


def pytest_addoption(parser):
    parser.addoption(
        "--representatives", action="store_true", help="run each test function once, and each named parameter once"
    )


# Files whose tests share what is slow to make (the demonstration, explained scenes, made-up weights): one process runs each.
ONE_PROCESS = ("test_demonstration.py", "test_docs.py", "test_known_truth.py", "test_real_images.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Send each file of ONE_PROCESS to one process, these first, and all other tests one by one to the next free process."""
    from xdist.scheduler import LoadScopeScheduling

    class FileOrTest(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file.endswith(ONE_PROCESS) else nodeid

    return FileOrTest(config, log)


def pytest_collection_modifyitems(config, items):
    """Under ``--representatives`` keep one cell for each test function, and for each method, target and family.

    The run with shape checks needs no more: annotations belong to call sites, so that the first cell of a test checks them
    as well as its hundredth. A further cell is kept where one of its parameters is a text that no cell before it had:
    the name of a method, target, family or kind of model.
    """
    if not config.getoption("representatives"):
        return
    covered, kept, dropped = set(), [], []
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        reached = {(item.path, item.originalname)} | {value for value in parameters if isinstance(value, str)}
        (dropped if reached <= covered else kept).append(item)
        covered |= reached
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two test processes on two cores: more threads than that only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def street(tmp_path):
    """A picture file of 60 x 40 (columns x rows): sky over road, a red thing on the right."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = (120, 170, 230)
    pixels[20:] = (110, 110, 110)
    pixels[18:30, 36:54] = (200, 30, 30)
    path = tmp_path / "street.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line in this process: arguments in; exit code, standard output and standard error out."""
    from glowmap.cli import commands

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glowmap", *map(str, arguments)])
        code = 0
        try:
            commands.main()
        except SystemExit as ended:
            code = ended.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
