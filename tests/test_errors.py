"""Errors: the message, the remedy in its two forms, and the checks of arguments."""

import copy
import pickle
from math import inf, nan

import numpy as np
import pytest
import torch

from glowmap.errors import MissingExtra, Remedy, TargetError, is_number, is_whole_number, summarise


@pytest.mark.parametrize(
    ("remedy", "in_python", "on_command_line"),
    [
        (None, "no class 9", "no class 9"),
        ("check the path", "no class 9; check the path", "no class 9; check the path"),
        (Remedy("pass target=0", "ask --target 0"), "no class 9; pass target=0", "no class 9; ask --target 0"),
        (Remedy("pass target=0"), "no class 9; pass target=0", "no class 9; pass target=0 (in Python)"),
    ],
)
def test_an_error_carries_its_remedy_in_both_forms(remedy, in_python, on_command_line):
    error = TargetError("no class 9", remedy=remedy)
    for same in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(same), same.on_command_line, same.fact) == (in_python, on_command_line, "no class 9")
        assert same.remedy == error.remedy


def test_a_missing_extra_survives_pickling():
    error = MissingExtra("timm", "timm", "timm/resnet18")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_error_of_another_library_is_summarised_in_one_line():
    assert summarise(ValueError("  bad shape\nTraceback")) == "ValueError: bad shape"
    assert summarise(KeyError()) == "KeyError: no message"


@pytest.mark.parametrize("value", [0, 7, np.int64(7), np.uint8(7)])
def test_whole_numbers(value):
    assert is_whole_number(value)
    assert is_whole_number(value, value, value + 1)
    assert not is_whole_number(value, int(value) + 1)
    assert not is_whole_number(value, below=value)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float32(1), "1", None, torch.tensor(1), inf])
def test_what_is_not_a_whole_number(value):
    assert not is_whole_number(value)


def test_numbers():
    assert all(map(is_number, (0, -1, 0.5, np.float64(0.5), inf, nan)))
    assert not any(map(is_number, (False, "0.5", None, torch.tensor(0.5))))
