"""Clips, volumes and signals: which frames are drawn, where their heat lies, and how they are saved."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import glowmap
from glowmap.errors import InputError, OutputError
from glowmap.explanation.explanation import Explanation
from glowmap.explanation.tiles import heat_tile, picture_tile, prediction_tiles
from glowmap.inputs import Picture, Signal, Volume, pictures_of
from glowmap.outputs import Prediction
from glowmap.render import COLORMAPS, Style, clip, curves, label_colour, volume
from glowmap.render.axis import hottest, hottest_cell, hottest_span, spread, ticks
from glowmap.render.curve_plots import GUTTER
from glowmap.render.strips import CROSS

HOT, COLD = (tuple(COLORMAPS["glow"][entry].tolist()) for entry in (255, 0))
MARGIN = 12  # pixels around an overlay
WIDTH = 1180
INK = (62, 66, 74)


def pixels(image):
    return np.asarray(image).astype(int)


def is_colour(image, colour, tolerance=0):
    return (np.abs(pixels(image) - colour) <= tolerance).all(-1)


def values(shares):
    return [share.value for share in shares]


def explained(raw, images, **fields):
    """Return an explanation whose raw map is ``raw``."""
    raw = torch.as_tensor(raw, dtype=torch.float32)
    known = {"scores": torch.arange(len(raw)) + 1.0, "layer": "layer", "method": "grad_cam", "model": "Model"}
    known |= {
        "target_names": tuple(f"class {index}" for index in range(len(raw))),
        "input_size": tuple(images.shape[2:]),
    }
    return Explanation(raw, **({"pictures": pictures_of(images)} | known | fields))


def hot_at(size, *place):
    raw = torch.zeros(1, *size)
    raw[0][place] = 1
    return raw


class Net(nn.Module):
    """Two convolutions and a head over any number of axes."""

    def __init__(self, axes, channels, classes=4):
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.features = nn.Sequential(conv(channels, 6, 3, 2, 1), nn.ReLU(), conv(6, 8, 3, 2, 1))
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        return self.head(self.features(images).flatten(2).mean(2))


CLIP = torch.rand(1, 3, 16, 20, 24, generator=torch.Generator().manual_seed(0))
VOLUME = torch.rand(1, 1, 12, 40, 50, generator=torch.Generator().manual_seed(1))
SIGNAL = torch.randn(1, 3, 100, generator=torch.Generator().manual_seed(2))


class TestPicturesOf:
    def test_a_clip_in_its_colours(self):
        (shown,) = pictures_of(CLIP)
        assert isinstance(shown, Volume)
        np.testing.assert_array_equal(shown.values, (CLIP[0] * 255).round().byte().permute(1, 2, 3, 0).numpy())

    def test_a_volume_in_grey_over_its_own_range(self):
        (shown,) = pictures_of(torch.cat([VOLUME * 8 - 3, VOLUME * 8 + 1], 1))  # two channels: their mean
        stretched = (VOLUME[0, 0] - VOLUME.min()) / (VOLUME.max() - VOLUME.min())
        assert shown.values.shape == (12, 40, 50, 1)
        assert np.abs(shown.values[..., 0] / 255 - stretched.numpy()).max() <= 0.51 / 255

    def test_a_signal_with_its_values_and_a_copy_of_them(self):
        given = SIGNAL.clone()
        (shown,) = pictures_of(given)
        given.zero_()
        assert isinstance(shown, Signal)
        np.testing.assert_array_equal(shown.values, SIGNAL[0].numpy())

    def test_a_grey_picture_and_more_axes_than_three(self):
        (shown,) = pictures_of(VOLUME[:, :, 0])
        assert isinstance(shown, Picture)
        assert shown.image.mode == "RGB"
        assert pictures_of(torch.rand(1, 3, 2, 2, 2, 2)) == ()


class TestFrames:
    @given(st.integers(1, 60), st.integers(1, 9), st.data())
    @settings(deadline=None)
    def test_evenly_spaced_in_order_and_through_the_hottest(self, count, most, data):
        through = data.draw(st.integers(0, count - 1))
        frames = spread(count, most, through)
        assert through in frames
        assert frames == sorted(set(frames))
        assert len(frames) == min(count, most)
        assert 0 <= frames[0] <= frames[-1] < count

    def test_which_frames_are_chosen(self):
        assert spread(16, 6) == [1, 4, 6, 9, 12, 14]
        assert spread(16, 6, 5) == [1, 5, 6, 9, 12, 14]
        assert spread(4, 6, 2) == [0, 1, 2, 3]

    def test_the_hottest_is_the_middle_of_a_flat_top_of_the_first(self):
        assert hottest(np.array([0.0, 1, 1, 1, 0, 1])) == 2
        assert hottest(np.array([0.5, 1.0, 0.2])) == 1
        assert hottest(np.zeros(5)) is hottest(np.full(5, 0.5), cold=0.5) is None
        assert hottest_span(np.array([0.6, 0, 0.4, 0.5, 1, 0.7, 0.2])) == (3, 5)
        assert hottest_span(np.array([0.5, 0.7, 0.8, 1.0]), cold=0.5) == (2, 3)
        heat = np.zeros((4, 5, 6))
        heat[1, 0, 5] = heat[2, 3, 0] = 1  # no place in between, where there is nothing
        assert hottest_cell(heat) == (1, 0, 5)
        assert hottest_cell(heat * 0) is None

    def test_ticks_are_round_numbers(self):
        assert ticks(1000, 12) == [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]
        assert ticks(1, 12) == [0]
        assert ticks(13, 12) == [0, 2, 4, 6, 8, 10, 12]


class TestClips:
    def frames(self, drawn, count):
        """Cut the frames out of a row of at most four: 24 columns x 20 rows, twelve times as large."""
        top = MARGIN + 18 + 1  # a line of text, and a pixel
        lefts = range(MARGIN, MARGIN + count * 296, 296)
        return [drawn.crop((left, top, left + 288, top + 240)) for left in lefts]

    def bar(self, drawn, count=16):
        """Return the colours of the bar below the frames."""
        row = MARGIN + 19 + 240 + 16 + 5
        return [drawn.getpixel((MARGIN + round((i + 0.5) / count * (drawn.width - 24)), row)) for i in range(count)]

    def test_heat_in_one_frame_marks_that_frame_only(self):
        explanation = explained(hot_at((16, 20, 24), 5), CLIP)
        blank = explained(torch.zeros(1, 16, 20, 24), CLIP)
        frames = [4, 5, 6]
        hot = self.frames(explanation.overlay(frames=frames, opacity=1.0), 3)
        cold = self.frames(blank.overlay(frames=frames, opacity=1.0), 3)
        assert hot[0].tobytes() == cold[0].tobytes()
        assert hot[2].tobytes() == cold[2].tobytes()
        assert is_colour(hot[1], HOT).all()
        assert self.bar(explanation.overlay(frames=frames)) == [HOT if frame == 5 else COLD for frame in range(16)]
        assert self.bar(blank.overlay(frames=frames)) == [COLD] * 16

    def test_the_frame_is_under_its_heat_where_the_heat_is(self):
        raw = torch.zeros(1, 16, 20, 24)
        raw[0, 9, 4:12, 2:10] = 1
        (drawn,) = self.frames(explained(raw, CLIP).overlay(frames=[9], opacity=1.0), 1)
        assert is_colour(drawn, HOT)[12 * 5 : 12 * 11, 12 * 3 : 12 * 9].all()
        assert not is_colour(drawn, HOT, 60)[:, 12 * 12 :].any()
        (bare,) = self.frames(explained(raw, CLIP).overlay(frames=[9], opacity=0.0), 1)
        frame = (CLIP[0, :, 9] * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(pixels(bare), frame.repeat(12, 0).repeat(12, 1))

    def test_the_hottest_frame_is_drawn_and_named(self):
        explanation, blank = (explained(raw, CLIP) for raw in (hot_at((16, 20, 24), 5), torch.zeros(1, 16, 20, 24)))
        chosen = [1, 5, 6, 9, 12, 14]
        assert explanation.overlay().tobytes() == explanation.overlay(frames=chosen).tobytes()
        heading = (MARGIN + 176, MARGIN, MARGIN + 2 * 176, MARGIN + 18)
        marked, unmarked = (pixels(one.overlay(frames=chosen).crop(heading)) for one in (explanation, blank))
        assert (marked < 100).sum() > 1.4 * (unmarked < 100).sum()  # bold, and a word more

    def test_a_line_leads_from_each_frame_to_its_position_in_the_bar(self):
        drawn = explained(hot_at((16, 20, 24), 5), CLIP).overlay(frames=[2, 5, 13])
        lines = pixels(drawn)[MARGIN + 19 + 240 : MARGIN + 19 + 240 + 16].min(-1)
        starts, ends = (np.flatnonzero(lines[row, MARGIN:-MARGIN] < 220) for row in (0, 15))
        width = drawn.width - 2 * MARGIN
        for positions, expected in ((starts, [144, 440, 736]), (ends, [(p + 0.5) / 16 * width for p in (2, 5, 13)])):
            assert all(np.abs(positions - position).min() <= 1 for position in expected)
            assert all(np.abs(np.array(expected) - position).min() <= 2 for position in positions)
        assert lines[:, MARGIN + 440].min() < 100 < lines[:, [MARGIN + 144, MARGIN + 736]].min()  # the hottest in ink

    def test_frames_count_from_either_end_and_stay_in_order(self):
        explanation = explained(hot_at((16, 20, 24), 5), CLIP)
        assert explanation.overlay(frames=[15, -16]).tobytes() == explanation.overlay(frames=[-1, 0]).tobytes()
        last, first = self.frames(explanation.overlay(frames=[15, 0], opacity=0.0), 2)
        one, other = self.frames(explanation.overlay(frames=[0, 15], opacity=0.0), 2)
        assert (last.tobytes(), first.tobytes()) == (other.tobytes(), one.tobytes())

    def test_many_frames_take_several_lines(self):
        explanation = explained(hot_at((16, 20, 24), 5), CLIP)
        sizes = [explanation.overlay(frames=range(count)).size for count in (8, 9, 16)]
        assert sizes[0][0] == sizes[2][0] <= WIDTH + 2 * MARGIN
        assert sizes[0][1] + 100 < sizes[1][1]

    def test_evidence_against_is_blue_in_its_frame_and_in_the_bar(self):
        raw = hot_at((16, 20, 24), 5) - hot_at((16, 20, 24), 8)
        drawn = explained(raw, CLIP).overlay(colormap="signed", opacity=1.0, frames=[5, 8, 11])
        in_favour, against, nothing = self.frames(drawn, 3)
        signed = COLORMAPS["signed"]
        assert is_colour(in_favour, signed[255]).all()
        assert is_colour(against, signed[0]).all()
        assert (
            nothing.tobytes() == self.frames(explained(raw * 0, CLIP).overlay(opacity=1.0, frames=[11]), 1)[0].tobytes()
        )
        colours = self.bar(drawn)
        assert (colours[5], colours[8]) == (tuple(signed[255]), tuple(signed[0]))
        assert all(min(colour) > 230 for place, colour in enumerate(colours) if place not in (5, 8))

    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            ([3, 16], "there is no frame 16: this clip has 16, counted from 0 to 15; choose among these"),
            ([-17], "there is no frame -17: this clip has 16"),
            ([], "frames= is empty, so no frame is chosen: this clip has 16"),
        ],
    )
    def test_frames_that_do_not_exist(self, frames, message):
        explanation = explained(hot_at((16, 20, 24), 5), CLIP)
        for ask in (explanation.overlay, explanation.panel):
            with pytest.raises(OutputError, match=message):
                ask(frames=frames)

    def test_edges_are_for_pictures_only_and_frames_for_the_others(self):
        with pytest.raises(
            OutputError, match="edges=True aligns heat with the edges of a picture, and this input is a clip"
        ):
            explained(hot_at((16, 20, 24), 5), CLIP).overlay(edges=True)
        picture = explained(torch.rand(1, 2, 3), CLIP[:, :, 0])
        for ask in (picture.overlay, picture.panel):
            with pytest.raises(OutputError, match="chooses frames, slices or channels, and this input is a picture"):
                ask(frames=[0])

    def test_large_frames_are_reduced_and_narrow_ones_keep_their_shape(self):
        wide, narrow = np.zeros((3, 300, 400, 3), np.uint8), np.zeros((3, 400, 50, 3), np.uint8)
        drawn = clip(wide, np.zeros((3, 300, 400)), [0, 1, 2], Style())
        assert drawn.width == 3 * 289 + 2 * 8
        drawn = clip(narrow, np.zeros((3, 400, 50)), [0, 1, 2], Style())
        black = is_colour(drawn, (0, 0, 0))
        assert black[:, 5].sum() == pytest.approx(8 * black[100].sum() / 3, rel=0.1)

    def test_scale_two_is_twice_as_large(self):
        values, heat = pictures_of(CLIP)[0].values, np.random.default_rng(0).random((16, 20, 24))
        once, twice = (clip(values, heat, [0, 8], Style(scale=scale), scale * WIDTH) for scale in (1, 2))
        assert twice.width >= 2 * once.width
        assert abs(twice.height / twice.width - once.height / once.width) < 0.03


class TestVolumes:
    def test_crosshairs_go_through_the_hottest_voxel_in_three_planes(self):
        heat = np.zeros((12, 40, 50))
        heat[3, 10, 30] = 1
        drawn = volume(pictures_of(VOLUME)[0].values, heat, [3], Style(opacity=0.0))
        ratio = (WIDTH - 18) / 140  # of the width of a slice, a row and a column: 50 + 50 + 40
        marked = is_colour(drawn, CROSS)
        left = [0, round(50 * ratio) + 8, 2 * (round(50 * ratio) + 8)]
        for start, (across, down), (columns, rows) in zip(
            left, [(30, 10), (30, 3), (10, 3)], [(50, 40), (50, 12), (40, 12)], strict=True
        ):
            plane = marked[19 : 19 + round(rows * ratio), start : start + round(columns * ratio)]
            lines, posts = np.flatnonzero(plane.sum(1) > 100), np.flatnonzero(plane.sum(0) > 40)
            assert lines.tolist() == [int((down + 0.5) / rows * plane.shape[0])]
            assert posts.tolist() == [int((across + 0.5) / columns * plane.shape[1])]
            assert not plane[lines[0], posts[0] - 10 : posts[0] + 11].any(), "the hottest cell itself must be seen"

    def test_each_plane_shows_its_own_heat(self):
        heat = np.zeros((12, 40, 50))
        heat[2:6, 8:16, 25:40] = 1
        drawn = volume(np.zeros((12, 40, 50, 1), np.uint8), heat, [0], Style(opacity=1.0))
        ratio = (WIDTH - 18) / 140
        hot = is_colour(drawn, HOT) | is_colour(drawn, CROSS)
        step = round(50 * ratio) + 8
        for number, box in enumerate([(25, 8, 40, 16), (25, 2, 40, 6), (8, 2, 16, 6)]):
            west, north, east, south = (round(edge * ratio) for edge in box)
            plane = hot[19:, number * step :]
            assert plane[north + 6 : south - 6, west + 6 : east - 6].all()
            assert not plane[north + 6 : south - 6, max(west - 12, 0) : west - 6].all(0).any()

        below = is_colour(drawn, HOT)[19 + round(40 * ratio) + 40 :]
        assert 0 < below.mean() < 0.05, "of slice 1 there is only the bar"

    def test_a_blank_volume_has_no_crosshairs(self):
        drawn = volume(np.zeros((4, 40, 50, 1), np.uint8), np.zeros((4, 40, 50)), [0], Style())
        assert not is_colour(drawn, CROSS).any()
        assert drawn.width <= WIDTH

    def test_slices_default_to_the_hottest_and_others(self):
        explanation = explained(hot_at((12, 40, 50), 7, 20, 30), VOLUME)
        assert explanation.overlay().tobytes() == explanation.overlay(frames=[1, 3, 5, 7, 9, 11]).tobytes()
        with pytest.raises(OutputError, match="there is no slice 12: this volume has 12"):
            explanation.overlay(frames=[12])

    def test_the_class_of_every_voxel_is_painted_over_the_slices(self):
        labels = torch.zeros(1, 12, 40, 50, dtype=torch.long)
        labels[0, :, :, 25:] = 2
        said = Prediction(("a", "b", "c"), labels=labels)
        explanation = explained(hot_at((12, 40, 50), 7), VOLUME, prediction=said)
        (tile,) = prediction_tiles(explanation, 0, Style(frames=[0, 1]))
        painted, bare = pixels(tile.image), pixels(picture_tile(explanation, 0, "", Style(frames=[0, 1])).image)
        for left, label in ((10, 0), (160, 2)):
            inside = np.s_[30:200, left : left + 110]
            tinted = 0.45 * bare[inside] + 0.55 * np.array(label_colour(label))
            near = np.abs(painted[inside] - tinted).max(-1) <= 2
            assert near.mean() > 0.8  # the rest is the name of the class
        assert {text for _, text in tile.legend} == {"a", "c"}


class TestSignals:
    LEFT = GUTTER  # where the samples begin
    ACROSS = WIDTH - GUTTER

    def at(self, sample, count=100):
        return self.LEFT + round((sample + 0.5) / count * self.ACROSS)

    def drawn(self, heat, values=None, **look):
        values = SIGNAL[0].numpy() if values is None else values
        return curves(values, heat, list(range(len(values))), Style(**look))

    def heat(self, first=40, last=49, count=100):
        heat = np.zeros(count)
        heat[first : last + 1] = 1
        return heat

    def test_the_ground_glows_where_it_is_hot_and_only_there(self):
        drawn = pixels(self.drawn(self.heat(), opacity=1.0))
        band = drawn[28:80]
        hot = (band == HOT).all(-1).mean(0)
        assert hot[self.at(41) : self.at(48)].min() > 0.5  # but for the curve
        white = (band == 255).all(-1).mean(0)
        assert white[self.at(3) : self.at(38)].max() > 0.9
        assert not hot[: self.at(39)].any()
        assert not hot[self.at(51) :].any()

    def test_the_line_is_thicker_and_of_the_colour_of_the_heat(self):
        flat = np.zeros((1, 100), np.float32)
        drawn = pixels(self.drawn(self.heat(), flat, opacity=0.0))[28:200]
        dark = (drawn.min(-1) < 200).sum(0)
        assert dark[self.at(45)] > dark[self.at(15)] >= 1
        row = int(drawn[:, self.at(15)].min(-1).argmin())
        (red, green, blue), cold = drawn[row, self.at(45)], drawn[row, self.at(15)]
        assert red > 200 > green > blue
        assert np.ptp(cold) < 40
        assert cold.max() < 130

    def test_the_curve_goes_through_the_samples(self):
        ramp = np.linspace(-1, 1, 50, dtype=np.float32)[None]
        drawn = pixels(self.drawn(None, ramp))[:190, :, 0]
        heights = [int(drawn[:, self.at(sample, 50)].argmin()) for sample in (2, 13, 25, 37, 47)]
        expected = [6 + (1 - float(ramp[0, sample])) / 2 * (190 - 12) for sample in (2, 13, 25, 37, 47)]
        np.testing.assert_allclose(heights, expected, atol=2)

    def test_a_spike_of_one_sample_in_a_hundred_thousand_is_seen(self):
        values = np.zeros((1, 100_000), np.float32)
        values[0, 70_000] = 5
        drawn = pixels(self.drawn(None, values))[:100, self.LEFT :].min(-1)
        columns = np.flatnonzero((drawn < 200).sum(0) > 50)
        assert columns.size
        assert np.abs(columns - 0.7 * self.ACROSS).max() <= 2

    def test_the_hottest_span_is_marked_and_the_bar_is_the_heat(self):
        drawn = pixels(self.drawn(self.heat()))
        top = drawn[17:27].min(-1)
        line = int((top < 120).sum(1).argmax())
        marked = np.flatnonzero(top[line] < 120)
        assert marked[0] == pytest.approx(self.LEFT + 0.4 * self.ACROSS, abs=2)
        assert marked[-1] == pytest.approx(self.LEFT + 0.5 * self.ACROSS, abs=2)
        rows = np.flatnonzero((drawn[:, self.at(10)] == COLD).all(-1))
        bar = drawn[rows[len(rows) // 2]]
        assert [tuple(bar[self.at(sample)]) for sample in (10, 39, 40, 49, 50, 90)] == [
            COLD,
            COLD,
            HOT,
            HOT,
            COLD,
            COLD,
        ]
        assert (pixels(self.drawn(np.zeros(100)))[:27] == 255).all(), "no span is marked where nothing is hot"

    def test_a_channel_that_never_changes_a_single_sample_and_a_bare_signal(self):
        for values in (np.full((1, 100), 3.0, np.float32), np.ones((2, 1), np.float32)):
            drawn = pixels(self.drawn(None, values))
            assert (drawn[:150, self.LEFT + 100].min(-1) < 130).any()

    def test_at_most_twelve_channels_unless_they_are_chosen(self):
        images = torch.randn(1, 20, 100, generator=torch.Generator().manual_seed(3))
        explanation = explained(self.heat()[None], images)
        assert explanation.overlay().tobytes() == explanation.overlay(frames=range(12)).tobytes()
        assert explanation.overlay(frames=[19]).tobytes() != explanation.overlay(frames=[18]).tobytes()
        assert "12 of 20 channels" in heat_tile(explanation, 0, "", Style()).caption
        assert "12 of 20 channels" in picture_tile(explanation, 0, "", Style()).caption
        with pytest.raises(OutputError, match="there is no channel 20: this signal has 20"):
            explanation.overlay(frames=[20])

    def test_an_unknown_colormap_or_opacity_is_refused(self):
        explanation = explained(self.heat()[None], SIGNAL)
        with pytest.raises(OutputError, match="no colormap 'glov'"):
            explanation.overlay(colormap="glov")
        with pytest.raises(OutputError, match="opacity is .*; give a number from 0"):
            explanation.overlay(opacity=1.5)


@pytest.fixture(params=[(3, CLIP), (3, VOLUME), (1, SIGNAL)], ids=["clip", "volume", "signal"])
def per_method(request):
    axes, images = request.param
    model = Net(axes, images.shape[1]).eval()
    return glowmap.explain(model, images, target=[0, 1], layer="features.2", method=["grad_cam", "hires_cam"])


class TestExplained:
    def test_the_heatmap_is_resized_along_every_axis(self, per_method):
        size, raw = per_method[0].input_size, per_method[0].raw
        mode = "trilinear" if len(size) == 3 else "linear"
        wide = F.interpolate(raw.relu()[:, None], size, mode=mode, align_corners=False)[0, 0]
        spread_out = (wide - wide.min()) / (wide.max() - wide.min()).clamp_min(1e-12)
        torch.testing.assert_close(per_method[0].heatmap[0], spread_out)

    def test_the_share_of_the_heat_in_a_mask(self, per_method):
        size, grid = per_method[0].input_size, per_method[0].grid
        raw = torch.rand(1, *grid)
        explanation = explained(raw, torch.rand(1, 1, *size))
        cells = torch.zeros(grid)
        cells[: grid[0] // 2] = 1
        share = float(raw[0, : grid[0] // 2].sum() / raw.sum())
        shares = explanation.share(cells)
        assert shares == explanation.share([cells]) == explanation.share(cells[None])
        assert values(shares) == pytest.approx([share])
        fine = torch.zeros(size)
        fine[size[0] // 3 :] = 1
        wide = F.interpolate(raw[None], size, mode="trilinear" if len(size) == 3 else "linear")[0, 0]
        assert values(explanation.share(fine.numpy())) == pytest.approx(
            [float((wide * fine).sum() / wide.sum())], rel=1e-4
        )

    def test_a_mask_of_other_axes_is_an_error(self, per_method):
        with pytest.raises(InputError, match="a mask of .* does not fit 1 image of"):
            per_method[0].share(torch.ones(per_method[0].input_size)[..., None, None])

    def test_the_panel_shows_the_picture_once_and_a_row_for_each_method(self, per_method, monkeypatch):
        drawn = []
        monkeypatch.setattr(
            "glowmap.explanation.figure.panel", lambda rows, **_: drawn.extend(rows) or Image.new("RGB", (9, 9))
        )
        per_method.panel()
        signal = len(per_method[0].input_size) == 1
        assert [len(row) for row in drawn] == ([2, 1, 2, 1] if signal else [3, 1, 3, 1])
        assert [row[0 if signal else -1].heading for row in drawn] == [
            "features.2 · grad_cam",
            "features.2 · hires_cam",
        ] * 2
        assert [tile.columns for tile in drawn[0]] == ([4, 1] if signal else [4, 1, 4])
        if signal:
            assert drawn[2][0].caption[0].startswith("class 1, score ")
        else:
            assert [drawn[0][0].heading, drawn[2][0].heading] == ["class 0", "class 1"]

    def test_all_rows_about_an_image_show_the_same_frames(self):
        raws, shown = [hot_at((16, 20, 24), 5), hot_at((16, 20, 24), 10) * 0.5], pictures_of(CLIP)
        both = glowmap.Explanations(
            explained(raw, CLIP, layer=f"layer{number}", pictures=shown) for number, raw in enumerate(raws)
        )
        assert both.panel().tobytes() == both.panel(frames=[1, 5, 6, 9, 12, 14]).tobytes()
        assert both.panel(frames=[3]).tobytes() != both.panel(frames=[4]).tobytes()

    def test_a_figure_has_a_fixed_width_and_twice_that_at_scale_two(self, per_method):
        small, large = per_method[0].panel(), per_method[0].panel(scale=2)
        assert small.width == 24 + WIDTH + 20 + 280 + 24
        assert large.width == 2 * small.width

    def test_saved_numbers_draw_the_same_figure(self, per_method, tmp_path):
        explanations = glowmap.Explanations.load(per_method.save(tmp_path / "numbers.npz"))
        assert explanations.panel().tobytes() == per_method.panel().tobytes()
        assert [type(explanation.pictures[0]) for explanation in explanations] == [
            type(explanation.pictures[0]) for explanation in per_method
        ]
        with np.load(tmp_path / "numbers.npz") as stored:
            assert sum(name.startswith("picture") for name in stored) == 1
        explanation = Explanation.load(per_method[1].save(tmp_path / "one.npz", frames=[0]))
        assert torch.equal(explanation.heatmap, per_method[1].heatmap)

    def test_a_write_that_fails_leaves_the_old_file(self, per_method, tmp_path, monkeypatch):
        path = per_method.save(tmp_path / "numbers.npz")
        before = path.read_bytes()

        def half(stream, **_):
            stream.write(b"half")
            raise OSError("disk full")

        monkeypatch.setattr(np, "savez_compressed", half)
        with pytest.raises(OutputError, match="disk full"):
            per_method.save(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["numbers.npz"]

    def test_saved_as_a_picture_and_shown_in_a_notebook(self, per_method, tmp_path):
        with Image.open(per_method[0].save(tmp_path / "figure.png", frames=[0])) as saved:
            assert pixels(saved).tobytes() == pixels(per_method[0].panel(frames=[0])).tobytes()
        assert Image.open(io.BytesIO(per_method[0]._repr_png_())).size == per_method[0].panel().size

    def test_an_image_of_a_batch_is_drawn_as_on_its_own(self):
        clips = torch.cat([CLIP, CLIP.flip(2)])
        explanation = glowmap.explain(Net(3, 3).eval(), clips, target=1, layer="features.2")
        assert (
            explanation.overlay(1).tobytes() == explanation[1].overlay().tobytes() != explanation.overlay(0).tobytes()
        )
        assert explanation[1].pictures == explanation.pictures[1:]
        assert explanation.panel().height > 1.8 * explanation[0].panel().height


def test_a_video_network_of_torchvision():
    video = pytest.importorskip("torchvision.models.video")
    model = video.r3d_18(weights=None).eval()
    moving = torch.zeros(1, 3, 8, 32, 32)
    for frame in range(8):
        moving[0, :, frame, 10:18, 3 * frame : 3 * frame + 8] = 1
    explanation = glowmap.explain(model, moving, target=7, layer="layer2")
    assert explanation.grid == (4, 8, 8)
    assert explanation.heatmap.shape == moving[:, 0].shape
    frames = spread(8, 6, hottest(explanation.heatmap[0].amax((1, 2)).numpy()))
    assert explanation.overlay().tobytes() == explanation.overlay(frames=frames).tobytes()
    assert explanation.panel().width == 24 + WIDTH + 20 + 280 + 24
