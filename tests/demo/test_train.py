"""The training script, on very few pictures: it runs, is reproducible and writes its report."""

import pytest
from typer.testing import CliRunner

pytest.importorskip("torchvision")

import typer

from glowmap.demo.bundled import BUNDLED
from glowmap.demo.train import BATCH, PICTURES, main, street_numbers


@pytest.fixture
def train(monkeypatch):
    monkeypatch.setattr("glowmap.demo.train.BATCH", 4)  # what is drawn and learned from costs by the picture
    app = typer.Typer()
    app.command()(main)

    def train(folder, seed):
        options = ["--out", str(folder), "--seed", str(seed), "--share", "0.0002", "--tested", "5"]
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 0, result.output
        return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}, result.output

    return train


def test_a_seed_gives_the_same_weights_again_and_another_seed_others(train, tmp_path):
    first, output = train(tmp_path / "first", 0)
    again, _ = train(tmp_path / "again", 0)
    other, _ = train(tmp_path / "other", 1)
    assert set(first) == {bundled.file for _, bundled in BUNDLED.items()}
    assert first == again
    assert all(first[name] != other[name] for name in first)
    report = (tmp_path / "first" / "report.md").read_text()
    assert "Segmentation: mean IoU" in report
    assert "pictures trained on: demo 4" in report
    assert "demo/shortcut" in output


def test_no_street_is_trained_on_twice_or_held_out():
    seen = []
    for seed in (0, 1, 999):
        batches = street_numbers(seed)
        steps = max(PICTURES.values()) // BATCH
        seen += [number for _ in range(steps) for number in next(batches)]
    assert len(seen) == len(set(seen)) == 3 * max(PICTURES.values())
    assert max(seen) < 1_000_000_000
