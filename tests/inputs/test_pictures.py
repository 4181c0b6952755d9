import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image

import glowmap
from glowmap.errors import InputError
from glowmap.inputs import MAX_PIXELS, Picture, read_picture, read_pictures
from tiny_models.convolutional import ColourSegmenter


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def png(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def test_all_kinds_of_one_picture_are_one_picture(rgb, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(rgb))
    kinds = [path, str(path), png(rgb), Image.fromarray(rgb), rgb, rgb / 255, (rgb / 255).astype(np.float32)]
    for kind in kinds:
        assert np.array_equal(np.asarray(read_picture(kind)), rgb), type(kind)
    assert len(read_pictures(kinds)) == len(kinds)
    assert len(read_pictures(np.stack([rgb, rgb]))) == 2


@given(some.integers(1, 8))
def test_exif_orientation_is_applied(orientation):
    stored = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).convert("RGB")
    exif = stored.getexif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    stored.save(stream, "PNG", exif=exif)
    pixels = np.arange(12).reshape(3, 4)
    # what the standard says a viewer must do with the stored rows and columns
    upright = {1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1]}
    upright |= {5: pixels.T, 6: pixels[::-1].T, 7: pixels[::-1, ::-1].T, 8: pixels[:, ::-1].T}
    assert np.array_equal(np.asarray(read_picture(stream.getvalue()))[..., 0], upright[orientation])


def test_grey_palette_alpha_and_16_bits_become_rgb(rgb):
    grey = rgb[..., 0]
    assert np.array_equal(np.asarray(read_picture(grey)), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(np.asarray(read_picture(grey[..., None])), np.repeat(grey[..., None], 3, 2))
    assert np.array_equal(np.asarray(read_picture(np.dstack([rgb, grey]))), rgb)
    assert np.asarray(read_picture(grey > 128)).max() == 255
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(read_picture(deep))[..., 0], grey)


def test_files_that_are_no_picture(tmp_path, rgb):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes(png(rgb)[:-30])
    for name, message in {
        "missing.png": "there is no file .*missing.png; check the path",
        "empty.png": "empty.png is an empty file",
        "text.png": "text.png is not a picture that Pillow can read",
        "cut.png": "cut.png is damaged or cut short",
        ".": "is a folder; give one picture in it",
    }.items():
        with pytest.raises(InputError, match=message):
            read_picture(tmp_path / name)


def test_gigantic_pictures_are_refused_from_their_header(tmp_path):
    """A file that claims 20000 x 20000 pixels holds none of them: nothing may be decoded to find out."""
    stream = io.BytesIO()
    Image.new("1", (20000, 20000)).save(stream, "PNG")
    assert MAX_PIXELS < 20000 * 20000
    with pytest.raises(
        InputError, match="the picture in 200 bytes is far too large; a picture has at most 67108864 pixels; crop"
    ):
        read_picture(stream.getvalue()[:200])
    with pytest.raises(
        InputError, match="the given picture has 9000 x 8000 pixels; a picture has at most 67108864 pixels; crop"
    ):
        read_picture(Image.new("1", (9000, 8000)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 5, 7), np.uint8), r"3 x 5 x 7 is not a picture .* array.transpose\(1, 2, 0\)"),
        (np.zeros(5, np.uint8), "an array of shape 5 is not a picture"),
        (np.zeros((2, 3, 4, 4, 3), np.uint8), "not a picture"),
        (np.zeros((0, 7, 3), np.uint8), "no pixels"),
        (np.full((5, 7, 3), np.nan), "NaN or infinite values"),
        (np.full((5, 7, 3), 200.0), r"floats lie in \[200, 200\], not in \[0, 1\]; divide by 255"),
        (np.full((5, 7, 3), 70000, np.int32), "int32 has an unknown range"),
    ],
)
def test_arrays_that_are_no_picture(array, message):
    with pytest.raises(InputError, match=message):
        read_picture(array)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "not int"),
        ("https://example.org/cat.jpg", "an address, and Glowmap downloads no pictures"),
        ([], "the list of pictures is empty"),
        (Image.new("F", (4, 4)), "F pixels, whose range"),
    ],
)
def test_other_things_that_are_no_picture(given, message):
    with pytest.raises(InputError, match=message):
        read_pictures(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("street.png", r"without preprocessing a ColourSegmenter takes its own input tensors .* glowmap.load\(module"),
        (np.zeros((4, 4, 3), np.uint8), "the input is a ndarray, but without preprocessing"),
        ([torch.zeros(3, 4, 4)], "a list of tensors is ambiguous"),
        (
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            r"no tensor of the input can be images \(\(1, 3, 4, 4\) torch.uint8\)",
        ),
        (torch.zeros(0, 3, 4, 4), "the input is empty"),
        (torch.tensor([0.0, torch.nan])[:, None, None, None].expand(2, 3, 4, 4), "NaN or infinite values in image 1;"),
        ((), "the input is a tuple, but"),
    ],
)
def test_what_a_bare_module_does_not_take(given, message):
    with pytest.raises(InputError, match=message):
        glowmap.explain(ColourSegmenter(), given, target=0, layer="layer")


def test_pictures_of_different_sizes_need_one_size(rgb):
    model = glowmap.load(ColourSegmenter(), mean=0.5)
    with pytest.raises(
        InputError, match=r"different sizes after preprocessing \(\(3, 5, 7\), \(3, 6, 7\)\); explain them one by one"
    ):
        glowmap.explain(model, [rgb, np.vstack([rgb, rgb[:1]])], target=0, layer="layer")


def test_tensors_are_shown_as_they_are_or_stretched():
    whole = torch.ones(2, 2)
    unit = torch.tensor([0.0, 0.25, 1.0])[None, :, None, None].expand(1, 3, 2, 2)
    for tensor in (unit, unit * 10 - 3):
        shown = glowmap.explain(ColourSegmenter(), tensor, target=glowmap.targets.Pixels(0, whole), layer="layer")
        assert np.asarray(shown.pictures[0].image)[0, 0].tolist() == [0, 64, 255]


def test_other_numbers_of_channels_are_shown_as_their_mean():
    model = torch.nn.Sequential(torch.nn.Conv2d(5, 2, 1))
    tensor = torch.linspace(0, 1, 5)[None, :, None, None].expand(1, 5, 2, 2)
    found = glowmap.explain(model, tensor, target=glowmap.targets.Pixels(0, torch.ones(2, 2)), layer="0")
    assert np.asarray(found.pictures[0].image)[0, 0].tolist() == [128, 128, 128]


def test_paths_that_no_file_can_have(tmp_path):
    for path, message in {
        tmp_path / ("n" * 300 + ".png"): "cannot be read .*File name too long",
        "a\0b.png": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=message):
            read_picture(path)


def test_a_gigantic_file_is_not_read_to_find_out_what_it_is(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as stream:
        stream.truncate(30 * 2**30)
    with pytest.raises(InputError, match="sparse.png is not a picture"):
        read_picture(path)


def test_pictures_that_break_only_when_they_are_looked_at(rgb):
    for lazy in (Image.open(io.BytesIO(png(rgb)[:-30])), Image.open(io.BytesIO(png(rgb)))):
        if lazy.fp is not None and len(lazy.fp.getvalue()) == len(png(rgb)):
            lazy.close()
        with pytest.raises(InputError, match="the given picture is damaged or cut short"):
            read_picture(lazy)


def test_a_picture_that_is_cut_and_padded_knows_where_it_lies_in_what_the_model_saw():
    """Ten columns in the middle of twenty, and rows 10 to 29 of forty."""
    values = np.random.default_rng(0).integers(1, 256, (40, 10, 3)).astype(np.uint8)
    picture = Picture(Image.fromarray(values), (-5.0, 10.0, 15.0, 30.0))
    seen = np.zeros((20, 20, 3), np.uint8)
    seen[:, 5:15] = values[10:30]
    assert np.array_equal(np.asarray(picture.visible_part()), seen)
    assert picture.describe() == "the part that the model saw of the picture, of 10 x 40 pixels: from 0, 10 to 9, 29"
    assert picture.is_cropped
    mask = torch.from_numpy(values[..., 0] > 128)
    assert torch.equal(picture.crop_mask(mask), torch.from_numpy(seen[..., 0] > 128))
    assert picture.crop_mask(torch.zeros(20, 20)) is None
    assert picture.locate(0.0, 10.0) == (5.5 / 20, 0.5 / 20)
    assert picture.locate(9.4, 29.4) == pytest.approx((14.9 / 20, 19.9 / 20))
    for outside in ((-1, 15), (-0.6, 15), (9.5, 15), (12, 15), (5, 9), (5, 30), (5, np.nan)):
        assert picture.locate(*map(float, outside)) is None
    padded = Picture(picture.image, (-15.0, 0.0, 25.0, 40.0))
    assert padded.describe() == "the picture, of 10 x 40 pixels"
    assert not padded.is_cropped
    assert padded.locate(0.0, 0.0) == (15.5 / 40, 0.5 / 40)


def test_a_clip_with_its_frames_first_is_refused():
    with pytest.raises(
        InputError, match=r"a clip of 1 x 8 x 3 x 4 x 4 has its frames before its colours, .*transpose\(1, 2\)"
    ):
        glowmap.explain(ColourSegmenter(), torch.zeros(1, 8, 3, 4, 4), target=0, layer="layer")


def test_a_path_that_no_file_can_have(tmp_path):
    for name in ("a" * 300, "a\0b"):
        with pytest.raises(InputError, match=r"cannot be read \(.+\); check the path"):
            read_picture(str(tmp_path / name))
