"""Pixels from maps: their values and positions, not only their shapes."""

import colorsys
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glowmap.errors import OutputError
from glowmap.render import (
    COLORMAPS,
    ColourBar,
    Tile,
    colorize,
    label_colour,
    label_legend,
    overlay,
    paint_labels,
    panel,
    ranking_tile,
    resize_heat,
)
from glowmap.render.blocks import legend
from glowmap.render.colormap import oklab_from_polar, oklab_from_srgb, srgb_from_oklab
from glowmap.render.style import Lettering, printable

BYTES = st.integers(0, 255)
SIZES = st.integers(1, 12)
LETTERS = st.characters(categories=["Lu", "Ll", "Nd", "Pd"], max_codepoint=0x2FF) | st.sampled_from("._/")
WORDS = st.lists(st.text(LETTERS, min_size=1, max_size=12) | st.text(LETTERS, max_size=80), max_size=20).map(" ".join)
LETTERING = Lettering(13)
MARGIN = 24  # pixels of white around a panel


def plain(colour, size=(500, 375)):
    return Image.new("RGB", size, colour)


def pixels(image):
    return np.asarray(image).astype(int)


def where(image, colour):
    """Return the box (left, top, right, bottom) of the pixels of one colour."""
    rows, columns = np.nonzero((pixels(image) == colour).all(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def noise(seed, *shape):
    return np.random.default_rng(seed).random(shape)


def photo(seed, columns, rows):
    return Image.fromarray((noise(seed, rows, columns, 3) * 256).astype(np.uint8))


class TestOklab:
    @pytest.mark.parametrize(
        ("colour", "coordinates"),  # as published with the colour space
        [
            ((255, 255, 255), (1, 0, 0)),
            ((255, 0, 0), (0.62796, 0.22486, 0.12585)),
            ((0, 255, 0), (0.86644, -0.23389, 0.17950)),
            ((0, 0, 255), (0.45201, -0.03246, -0.31153)),
        ],
    )
    def test_known_colours(self, colour, coordinates):
        np.testing.assert_allclose(oklab_from_srgb(np.array(colour, dtype=np.uint8)), coordinates, atol=1e-4)

    @given(st.tuples(BYTES, BYTES, BYTES))
    @settings(deadline=None)
    def test_there_and_back(self, colour):
        there = oklab_from_srgb(np.array(colour, dtype=np.uint8))
        assert np.abs(srgb_from_oklab(there).astype(int) - colour).max() <= 1

    @given(st.floats(0.2, 0.9), st.floats(0.0, 360.0))
    @settings(deadline=None)
    def test_a_colour_no_screen_can_show_keeps_lightness_and_hue(self, lightness, hue):
        shown = oklab_from_srgb(srgb_from_oklab(oklab_from_polar(lightness, 0.5, hue)))
        assert shown[0] == pytest.approx(lightness, abs=0.01)
        aside = np.array([-np.sin(np.deg2rad(hue)), np.cos(np.deg2rad(hue))])
        assert shown[1:] @ aside == pytest.approx(0, abs=0.01)


class TestColormaps:
    @pytest.mark.parametrize("name", COLORMAPS)
    def test_a_table_has_256_colours_and_is_read_only(self, name):
        table = COLORMAPS[name]
        assert table.shape == (256, 3)
        assert table.dtype == np.uint8
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0

    @pytest.mark.parametrize("name", COLORMAPS)
    def test_the_ends_of_the_values_are_the_ends_of_the_table(self, name):
        assert colorize(np.array([[0.0, 1.0]]), name).tolist() == [COLORMAPS[name][[0, 255]].tolist()]

    def test_glow_gets_lighter_in_a_straight_line(self):
        lightness = oklab_from_srgb(COLORMAPS["glow"])[:, 0]
        assert (np.diff(lightness) > 0).all()
        np.testing.assert_allclose(lightness, np.linspace(0.14, 0.95, 256), atol=0.01)

    def test_glow_is_warm_and_smooth(self):
        red, green, blue = COLORMAPS["glow"][40:].astype(int).T
        assert (red >= green).all()
        assert (red > blue).all()
        assert np.abs(np.diff(COLORMAPS["glow"].astype(int), axis=0)).max() <= 4

    def test_jet_is_the_classical_formula(self):
        explanation = colorize(np.array([0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1]), "jet").astype(int)
        expected = [(0, 0, 128), (0, 0, 255), (0, 255, 255), (255, 255, 0), (255, 0, 0), (128, 0, 0)]
        np.testing.assert_allclose(explanation, expected, atol=2)

    def test_gray_is_the_value(self):
        values = np.arange(256) / 255
        assert (colorize(values, "gray") == np.arange(256)[:, None]).all()

    def test_signed_is_blue_then_neutral_then_red(self):
        lightness, redness, yellowness = oklab_from_srgb(COLORMAPS["signed"]).T
        assert np.hypot(redness, yellowness)[127:129].max() < 0.005
        assert lightness[127:129].min() == lightness.max() > 0.95
        assert yellowness[0] < -0.1
        assert redness[255] > 0.1
        np.testing.assert_allclose(lightness, lightness[::-1], atol=0.02)

    @pytest.mark.parametrize(
        ("values", "found"), [([0.5, np.nan], "holds NaN"), ([0, 1.2], "from 0 to 1.2"), ([-3.0, 1], "from -3 to 1")]
    )
    def test_values_outside_are_refused(self, values, found):
        with pytest.raises(OutputError, match=rf"lies in \[0, 1\].*{found}; normalise"):
            colorize(np.array([values]))

    def test_an_unknown_colormap_names_the_near_ones(self):
        with pytest.raises(OutputError, match="no colormap 'glov'; near names: glow"):
            colorize(np.zeros((2, 2)), "glov")


class TestOverlay:
    def test_cold_keeps_the_hue_and_most_of_the_light(self):
        picture = photo(0, 40, 30)
        cold = pixels(overlay(picture, np.zeros((3, 4)))).reshape(-1, 3)
        for before, after in zip(pixels(picture).reshape(-1, 3), cold, strict=True):
            assert after.max() >= 0.6 * before.max()
            assert np.ptp(after) <= np.ptp(before)  # paler, not louder
            hue, saturation, _ = colorsys.rgb_to_hsv(*before / 255)
            apart = abs(colorsys.rgb_to_hsv(*after / 255)[0] - hue)
            if saturation > 0.3 and before.max() > 60:
                assert min(apart, 1 - apart) < 0.02

    @pytest.mark.parametrize("name", COLORMAPS)
    def test_heat_one_at_full_opacity_is_the_top_of_the_table(self, name):
        shown = overlay(photo(1, 20, 10), np.ones((2, 2)), colormap=name, opacity=1.0)
        assert (pixels(shown) == COLORMAPS[name][255]).all()

    @given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(list(COLORMAPS)))
    @settings(deadline=None)
    def test_no_opacity_gives_the_picture_back(self, columns, rows, name):
        picture = photo(2, columns, rows)
        assert overlay(picture, noise(3, 5, 7), colormap=name, opacity=0.0).tobytes() == picture.tobytes()

    def test_hotter_is_nearer_to_the_colour(self):
        heat = np.linspace(0, 1, 101)[None]
        shown = pixels(overlay(plain((90, 140, 200), (101, 1)), heat, opacity=1.0))[0]
        away = np.abs(shown - colorize(heat)[0]).max(axis=-1)
        assert (np.diff(away) <= 1).all()
        assert away[0] > 100
        assert away[-1] == 0

    @pytest.mark.parametrize("ground", [(255, 255, 255), (210, 225, 255), (128, 128, 128), (12, 12, 16)])
    def test_the_hot_place_stands_out_on_any_ground(self, ground):
        heat = np.zeros((20, 20))
        heat[5:15, 5:15] = 1
        seen = oklab_from_srgb(np.asarray(overlay(plain(ground, (20, 20)), heat)))
        assert np.linalg.norm(seen[10, 10] - seen[0, 0]) > 0.12

    def test_no_evidence_is_cold(self):
        picture = photo(4, 16, 12)
        neutral = overlay(picture, np.full((3, 4), 0.5), colormap="signed")
        assert neutral.tobytes() == overlay(picture, np.zeros((3, 4))).tobytes()

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
    def test_a_picture_of_any_kind(self, mode):
        picture = photo(5, 16, 12).convert(mode)
        shown = overlay(picture, np.eye(4))
        assert shown.tobytes() == overlay(picture.convert("RGB"), np.eye(4)).tobytes()

    @given(SIZES, SIZES, st.integers(0, 40), st.integers(0, 40))
    @settings(deadline=None)
    def test_enlarging_agrees_with_torch(self, rows, columns, more_rows, more_columns):
        heat = noise(rows * 100 + columns, rows, columns).astype(np.float32)
        size = (rows + more_rows, columns + more_columns)
        tensor = torch.from_numpy(heat)[None, None]
        expected = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(resize_heat(heat, rows=size[0], columns=size[1]), expected, atol=1 / 255)

    def test_reducing_loses_no_spot(self):
        heat = np.zeros((64, 64))
        heat[21, 42] = 1
        reduced = resize_heat(heat, rows=8, columns=8)
        assert np.unravel_index(reduced.argmax(), reduced.shape) == (2, 5)
        assert reduced.sum() == pytest.approx(1 / 64, rel=0.05)

    @pytest.mark.parametrize("opacity", [-0.1, 1.5, float("nan")])
    def test_an_opacity_outside_zero_to_one_is_refused(self, opacity):
        with pytest.raises(OutputError, match=f"the opacity is {opacity}; give a number from 0 .* to 1"):
            overlay(plain((0, 0, 0)), np.zeros((2, 2)), opacity=opacity)

    @pytest.mark.parametrize("shape", [(4,), (1, 4, 4), (0, 4)])
    def test_a_heat_without_rows_and_columns_is_refused(self, shape):
        with pytest.raises(OutputError, match="has rows and columns, and this one has shape"):
            overlay(plain((0, 0, 0)), np.zeros(shape))


class TestLabels:
    def test_64_classes_look_different(self):
        colours = oklab_from_srgb(np.array([label_colour(index) for index in range(64)], dtype=np.uint8))
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(colours, 2)) > 0.03

    def test_the_first_classes_look_very_different(self):
        colours = oklab_from_srgb(np.array([label_colour(index) for index in range(8)], dtype=np.uint8))
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(colours, 2)) > 0.12

    @pytest.mark.parametrize("turned", [False, True])
    def test_a_class_is_tinted_and_its_border_is_solid(self, turned):
        labels = np.zeros((30, 30), dtype=np.int64)
        labels[:, 15:] = 3
        painted = pixels(paint_labels(plain((100, 120, 140), (30, 30)), labels.T if turned else labels, opacity=0.4))
        painted = painted.swapaxes(0, 1) if turned else painted
        for index, border, inside in [(0, 14, slice(0, 14)), (3, 15, slice(16, 30))]:
            assert (painted[:, border] == label_colour(index)).all()
            tinted = 0.6 * np.array([100, 120, 140]) + 0.4 * np.array(label_colour(index))
            np.testing.assert_allclose(painted[:, inside], np.broadcast_to(tinted, (30, 14, 3)), atol=1)

    def test_the_background_stays_as_it_is(self):
        labels = np.zeros((20, 30), dtype=np.int64)
        labels[5:10, 5:10] = 2
        picture = photo(6, 30, 20)
        changed = (pixels(paint_labels(picture, labels, background=0)) != pixels(picture)).any(axis=-1)
        assert not changed[labels == 0].any()
        assert changed[labels == 2].mean() > 0.9

    def test_a_small_label_map_covers_the_whole_picture(self):
        labels = np.array([[0, 1], [2, 3]])
        painted = pixels(paint_labels(plain((0, 0, 0), (40, 20)), labels, opacity=1.0))
        expected = np.array([label_colour(index) for index in range(4)]).reshape(2, 2, 3)
        assert (painted == expected.repeat(10, axis=0).repeat(20, axis=1)).all()

    def test_a_large_picture_has_a_wider_border(self):
        labels = np.array([[0, 1]])
        painted = pixels(paint_labels(plain((0, 0, 0), (2000, 10)), labels))[5]
        assert ((painted == label_colour(0)).all(axis=-1)).nonzero()[0].tolist() == [996, 997, 998, 999]

    def test_a_name_is_written_where_it_fits_and_only_there(self):
        labels = np.zeros((200, 300), dtype=np.int64)
        labels[40:140, 100:280] = 1
        labels[10:16, 10:20] = 2
        picture = photo(7, 300, 200)
        unnamed, named = paint_labels(picture, labels), paint_labels(picture, labels, ["", "elephant", "elephant"])
        rows, columns = np.nonzero((pixels(unnamed) != pixels(named)).any(axis=-1))
        assert (labels[rows, columns] == 1).all()
        assert (rows.min() + rows.max()) / 2 == pytest.approx(89.5, abs=6)
        assert (columns.min() + columns.max()) / 2 == pytest.approx(189.5, abs=6)

    def test_the_legend_starts_with_the_largest_class(self):
        labels = np.array([[0, 0, 0, 2, 2, 1]])
        assert label_legend(labels, ["sky", "car"]) == (
            (label_colour(0), "sky"),
            (label_colour(2), "class 2"),
            (label_colour(1), "car"),
        )
        assert [text for _, text in label_legend(labels, background=0)] == ["class 2", "class 1"]

    def test_unlabelled_pixels_are_refused(self):
        with pytest.raises(OutputError, match="this label map holds -1; give unlabelled pixels a class"):
            paint_labels(plain((0, 0, 0)), np.array([[0, -1]]))
        with pytest.raises(OutputError, match="count from 0, and this one is -1"):
            label_colour(-1)

    def test_label_maps_without_rows_and_columns_are_refused(self):
        with pytest.raises(OutputError, match=r"label map has rows and columns, .* shape \(1, 4, 4\)"):
            label_legend(np.zeros((1, 4, 4), dtype=np.int64))


class TestText:
    @given(WORDS, st.integers(40, 300))
    @settings(deadline=None)
    def test_wrapping_keeps_every_letter_and_the_width(self, text, width):
        lines = LETTERING.wrap(text, width)
        assert all(LETTERING.width(line) <= width for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())

    @given(WORDS, st.integers(40, 300), st.integers(1, 3))
    @settings(deadline=None)
    def test_what_does_not_fit_ends_in_an_ellipsis(self, text, width, most):
        lines = LETTERING.wrap(text, width, most)
        assert len(lines) <= most
        assert all(LETTERING.width(line) <= width for line in lines)
        assert lines[-1].endswith("…") == (len(LETTERING.wrap(text, width)) > most)

    def test_words_are_kept_whole_and_dotted_names_break_after_a_dot(self):
        assert LETTERING.wrap("evidence for a car", LETTERING.width("evidence for")) == ["evidence for", "a car"]
        assert LETTERING.wrap("backbone.layer4.conv3", LETTERING.width("backbone.layer4")) == [
            "backbone.",
            "layer4.conv3",
        ]

    def test_signs_that_the_font_lacks_are_replaced(self):
        assert printable("32 × 32 – −0.3 café Łódź\nStraße ≤ 1") == "32 x 32 - -0.3 cafe Lodz Strasse <= 1"
        assert printable("犬…") == "犬…"


class TestPanel:
    def test_a_tile_is_where_it_should_be(self):
        figure = panel([[Tile(plain((10, 200, 30)))]])
        left, top, right, bottom = where(figure, (10, 200, 30))
        assert (left, right, figure.width) == (MARGIN, MARGIN + 420, MARGIN + 420 + MARGIN)
        assert (bottom - top, top) == (315, figure.height - MARGIN - 315)

    def test_tiles_side_by_side_are_equal_and_evenly_spaced(self):
        colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
        tiles = [Tile(plain(colour), "heading " * number, ("caption",)) for number, colour in enumerate(colours)]
        boxes = [where(panel([tiles], title="title", footer=["note"]), colour) for colour in colours]
        assert len({(right - left, bottom - top, top) for left, top, right, bottom in boxes}) == 1
        assert boxes[1][0] - boxes[0][2] == boxes[2][0] - boxes[1][2] == 20

    @pytest.mark.parametrize(("count", "lengths"), [(6, [6]), (7, [4, 3]), (9, [5, 4]), (13, [5, 5, 3])])
    def test_more_than_six_go_on_in_the_next_line(self, count, lengths):
        colours = [(10 + number, 0, 0) for number in range(count)]
        figure = panel([[Tile(plain(colour, (60, 40))) for colour in colours]])
        tops = [int(where(figure, colour)[1]) for colour in colours]
        assert [tops.count(top) for top in sorted(set(tops))] == lengths
        assert tops == sorted(tops)

    def test_a_tiny_picture_is_enlarged_pixel_by_pixel(self):
        picture = photo(8, 32, 32)
        figure = panel([[Tile(picture)]])
        top = figure.height - MARGIN - 9 * 32
        explanation = pixels(figure)[top : top + 9 * 32, MARGIN : MARGIN + 9 * 32]
        assert (explanation == pixels(picture).repeat(9, axis=0).repeat(9, axis=1)).all()

    def test_a_tall_picture_keeps_its_shape_within_the_row(self):
        left, top, right, bottom = where(panel([[Tile(plain((9, 9, 9), (400, 2000)))]]), (9, 9, 9))
        assert (bottom - top, right - left) == (500, 100)

    def test_many_tiles_are_narrower(self):
        figure = panel([[Tile(plain((7, 7, 7), (2000, 1500)))] * 6])
        assert figure.width == 2 * MARGIN + 6 * 280 + 5 * 20

    def test_the_same_figure_every_time(self):
        rows = [[Tile(photo(9, 50, 40), "heading", ("caption",), ColourBar(), ((label_colour(0), "car"),))]]
        assert panel(rows, title="t", footer=["n"]).tobytes() == panel(rows, title="t", footer=["n"]).tobytes()

    def test_scale_two_is_twice_as_large(self):
        rows = [[Tile(plain((10, 200, 30)), "heading", ("caption",), ColourBar())]]
        once, twice = (panel(rows, title="title", footer=["note"], scale=scale) for scale in (1, 2))
        assert twice.width == 2 * once.width
        assert abs(twice.height - 2 * once.height) <= 8
        (left, _, right, _), (far_left, _, far_right, _) = (where(figure, (10, 200, 30)) for figure in (once, twice))
        assert (far_left, far_right) == (2 * left, 2 * right)

    def test_the_colour_bar_runs_from_low_to_high_below_its_tile(self):
        figure = panel([[Tile(plain((10, 200, 30)), bar=ColourBar("jet", "−1", "1"))]])
        bottom = where(figure, (10, 200, 30))[3]
        low, high = where(figure, (0, 0, 128)), where(figure, (128, 0, 0))
        assert MARGIN < low[0] < high[2] < MARGIN + 420
        assert bottom < low[1] < bottom + 12
        assert high[2] - low[0] > 350

    def test_swatches_stand_below_their_tile(self):
        figure = panel([[Tile(plain((10, 200, 30)), legend=(((250, 0, 0), "car"), ((0, 0, 250), "sky")))]])
        red, blue = where(figure, (250, 0, 0)), where(figure, (0, 0, 250))
        assert MARGIN == red[0] < red[2] < blue[0]
        assert where(figure, (10, 200, 30))[3] < red[1] == blue[1]

    @given(st.lists(st.text(max_size=60), min_size=1, max_size=40), st.integers(260, 420))
    @settings(deadline=None, max_examples=40)
    def test_a_legend_stays_inside_its_tile(self, names, width):
        entries = [((200, 0, 0), name) for name in names]
        block = legend(entries, LETTERING, width, 4)  # asserts that no line is wider
        assert block.width == width
        assert block.height <= 4 * LETTERING.leading

    def test_a_long_legend_shows_the_first_classes_only(self):
        block = legend([((200, 0, index), "a class of its own") for index in range(40)], LETTERING, 300, 4)
        shown = {colour[2] for colour in pixels(block).reshape(-1, 3).tolist() if colour[:2] == [200, 0]}
        assert block.height == 4 * LETTERING.leading
        assert shown == set(range(len(shown)))
        assert 4 <= len(shown) <= 8

    def test_text_never_changes_the_width(self):
        long = "an extraordinarily long text " * 20
        tile = Tile(plain((1, 2, 3)), long, (long, long), ColourBar("glow", long, long), (((250, 0, 0), long),))
        figure = panel([[tile]], title=long, footer=[long])
        assert figure.width == 420 + 2 * MARGIN
        outside = pixels(figure)[:, list(range(MARGIN)) + list(range(MARGIN + 420, figure.width))]
        assert (outside == 255).all()

    def test_headings_of_two_lines_keep_the_pictures_in_line(self):
        tiles = [Tile(plain((200, 0, 0)), "short"), Tile(plain((0, 200, 0)), "long " * 30)]
        figure = panel([tiles])
        assert where(figure, (200, 0, 0))[1] == where(figure, (0, 200, 0))[1]

    def test_the_title_stands_above_and_the_footer_below(self):
        bare, full = (
            panel([[Tile(plain((9, 9, 9)))]], **words) for words in ({}, {"title": "T", "footer": ["n", "n"]})
        )
        above = where(full, (9, 9, 9))[1] - where(bare, (9, 9, 9))[1]
        below = (full.height - where(full, (9, 9, 9))[3]) - (bare.height - where(bare, (9, 9, 9))[3])
        assert above > 20
        assert below > 30
        assert (pixels(full)[MARGIN : MARGIN + above] < 100).any()

    @pytest.mark.parametrize("rows", [[], [[]], [[], []]])
    def test_no_tile_is_refused(self, rows):
        with pytest.raises(OutputError, match="there are no tiles to draw"):
            panel(rows)

    def test_no_scale_is_refused(self):
        with pytest.raises(OutputError, match="the scale of the drawing is 0; give 1 or more"):
            panel([[Tile(plain((0, 0, 0)))]], scale=0)


class TestRanking:
    NAMES = ("cat", "dog", "car", "sky", "sea", "sun", "ant")
    PROBABILITIES = np.array([0.1, 0.5, 0.0, 0.2, 0.09, 0.08, 0.03])
    ORANGE = tuple(COLORMAPS["glow"][170].tolist())
    GREY = (150, 158, 172)

    def lengths(self, image, colour):
        """Return the lengths of the bars of one colour, from the top."""
        counts = (pixels(image) == colour).all(axis=-1).sum(axis=1)
        return [int(length) for length, _ in itertools.groupby(counts) if length > 20]

    def test_bars_are_as_long_as_their_probability(self):
        tile = ranking_tile(self.NAMES, self.PROBABILITIES, (400, 300), highlighted=3)
        assert tile.image.size == (400, 300)
        assert self.lengths(tile.image, self.GREY) == [200, 40, 36, 32]
        assert self.lengths(tile.image, self.ORANGE) == [80]
        assert where(tile.image, self.ORANGE)[1] > where(tile.image, self.GREY)[1]

    def test_the_highlighted_class_is_shown_even_when_it_is_unlikely(self):
        tile = ranking_tile(self.NAMES, self.PROBABILITIES + 0.05, (400, 300), highlighted=2, top=3)
        assert self.lengths(tile.image, self.GREY) == [220, 100]
        left, top, right, _ = where(tile.image, self.ORANGE)
        assert (left, right) == (0, 20)
        assert top > where(tile.image, self.GREY)[3]

    def test_it_is_redrawn_at_the_width_of_its_tile(self):
        tiles = [Tile(plain((10, 200, 30), (32, 24))), ranking_tile(self.NAMES, self.PROBABILITIES, (32, 24), "said")]
        assert tiles[1].image.size == (288, 216)
        figure = panel([tiles, [Tile(plain((1, 2, 3), (400, 300)))]])
        left = where(figure, (1, 2, 3))[2] + 20
        assert self.lengths(figure, self.GREY) == [200, 80, 40, 36, 32]
        assert where(figure, self.GREY)[0] == left

    def test_a_flat_tile_shows_fewer_classes(self):
        tile = ranking_tile(self.NAMES, self.PROBABILITIES, (400, 65))
        assert self.lengths(tile.image, self.GREY) == [200, 80]

    @pytest.mark.parametrize(
        ("names", "probabilities", "highlighted", "message"),
        [
            (["a"], [0.5, 0.5], None, "1 names and probabilities of shape"),
            ([], [], None, "one probability per name"),
            (["a", "b"], [0.5, np.nan], None, "apply a softmax first"),
            (["a", "b"], [12.0, -3.0], None, "apply a softmax first"),
            (["a", "b"], [0.5, 0.5], 2, "to highlight is 2, and there are 2 names"),
        ],
    )
    def test_arguments_that_do_not_match_are_refused(self, names, probabilities, highlighted, message):
        with pytest.raises(OutputError, match=message):
            ranking_tile(names, np.array(probabilities), (400, 300), highlighted=highlighted)
