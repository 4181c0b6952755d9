"""Every method of the shelf on every kind of input: one table, built from the shelf."""

import pytest
import torch
from torch import nn

import glowmap
from glowmap.evidence import INPUT, map_places
from tiny_models.convolutional import ON_MAPS, images, with_parameters

AT_PIXELS = {name for name, method in glowmap.METHODS.items() if map_places(method.needs, ("layer",)) == (INPUT,)}
AT_PIXELS |= {"guided_grad_cam", "poly_cam"}
every_method = pytest.mark.parametrize("name", ON_MAPS)


class Net(nn.Module):
    """Convolution, ReLU, a second one, a bend, pooling, a linear head, in one, two or three dimensions; CAM wants no bend."""

    def __init__(self, name, axes=2, classes=4):
        super().__init__()
        self.bend = nn.Identity() if name == "cam" else nn.Tanh()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
        self.features = nn.Sequential(conv(3, 6, 3, 2, 1), nn.ReLU(), conv(6, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Linear(8, classes)
        self.axes = tuple(range(2, 2 + axes))

    def forward(self, images):
        return self.head(self.bend(self.features(images)).mean(self.axes))


def explained(model, batch, name, **options):
    options = {"layer": "features.3", "target": torch.arange(len(batch)) % 4} | options
    return glowmap.explain(model, batch, method=with_parameters(name), **options)


@every_method
@pytest.mark.parametrize("size", [(24,), (16, 20), (8, 10, 12)], ids=["1D", "2D", "3D"])
def test_a_batch_is_its_images_one_by_one(name, size):
    model, batch = Net(name, len(size)).double().eval(), torch.randn(2, 3, *size).double()
    found = explained(model, batch, name)
    assert found.raw.isfinite().all()
    assert float(found.raw.std()) > 0
    assert found.heatmap.shape == (2, *size)
    if name not in AT_PIXELS:
        assert found.raw.shape[1:] == found.grid == tuple(length // 2 for length in size)
    for number, image in enumerate(batch):
        single = explained(model, image[None], name, target=number % 4)
        torch.testing.assert_close(
            found.raw[number], single.raw[0], rtol=1e-6, atol=1e-8 * float(found.raw.abs().max())
        )
        torch.testing.assert_close(found.heatmap[number], single.heatmap[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.scores[number], single.scores[0])


def flat_volume(model, name):
    """The same network in three dimensions, for volumes of one slice."""
    volume = Net(name, 3).eval()
    for mine, theirs in zip(volume.features, model.features, strict=True):
        if isinstance(mine, nn.Conv3d):
            mine.weight.data.zero_()
            mine.weight.data[:, :, 1] = theirs.weight.data
            mine.bias.data.copy_(theirs.bias.data)
    volume.head.load_state_dict(model.head.state_dict())
    return volume


DRAWN = {"rise", "d_rise", "smooth_grad", "smooth_grad_cam_pp", "ss_cam"}  # whose noise has the input's shape


@pytest.mark.parametrize("name", [name for name in ON_MAPS if name not in DRAWN])
def test_a_volume_of_one_slice_is_its_picture(name):
    model, batch = Net(name).eval(), images(2)
    found, flat = explained(flat_volume(model, name), batch[:, :, None], name), explained(model, batch, name)
    torch.testing.assert_close(found.raw[:, 0], flat.raw, rtol=1e-3, atol=1e-4 * float(flat.raw.abs().max()))


class Last(nn.Module):
    """The same computation with channels last in the explained layer."""

    def __init__(self, net):
        super().__init__()
        self.first, self.features, self.bend, self.head = net.features[:3], Moved(), net.bend, net.head

    def forward(self, images):
        return self.head(self.bend(self.features(self.first(images))).mean((1, 2)))


class Moved(nn.Module):
    def forward(self, maps):
        return maps.relu().movedim(1, -1)


@every_method
def test_channels_last_is_channels_first(name):
    model, batch = Net(name).eval(), images(2)
    found, wanted = explained(Last(model).eval(), batch, name, layer="features"), explained(model, batch, name)
    assert found.grid == wanted.grid
    torch.testing.assert_close(found.raw, wanted.raw, rtol=1e-3, atol=1e-4 * float(wanted.raw.abs().max()))


class Tokens(nn.Module):
    """The same computation with tokens in the explained layer, two others before them."""

    def __init__(self, net):
        super().__init__()
        self.first, self.features, self.bend, self.head = net.features, nn.Identity(), net.bend, net.head

    def forward(self, images):
        tokens = self.first(images).flatten(2).transpose(1, 2)
        tokens = self.features(torch.cat([torch.ones_like(tokens[:, :2]), tokens], 1))
        return self.head(self.bend(tokens[:, 2:]).mean(1))


@every_method
def test_tokens_are_cells(name):
    model, batch = Net(name).eval(), images(2)
    found, wanted = explained(Tokens(model).eval(), batch, name, layer="features"), explained(model, batch, name)
    torch.testing.assert_close(found.raw, wanted.raw, rtol=1e-3, atol=1e-4 * float(wanted.raw.abs().max()))


# How far the map may move, as a share of its largest value, where one backward pass makes it: some roundings of the type.
ROUNDING = {torch.float16: 3e-3, torch.bfloat16: 8e-2, torch.float64: 1e-6}


@every_method
@pytest.mark.parametrize("dtype", ROUNDING)
def test_other_precisions_are_computed_where_it_is_safe(name, dtype):
    model, batch = Net(name).eval(), images(2)
    wanted = explained(model, batch, name, target=1)
    found = explained(model.to(dtype), batch.to(dtype), name, target=1)
    assert found.raw.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    together = torch.stack([found.raw.flatten().float(), wanted.raw.flatten()])
    assert float(torch.corrcoef(together)[0, 1]) > 0.9
    if {*glowmap.METHODS[name].needs} <= {"activations", "gradients"}:
        atol = ROUNDING[dtype] * float(wanted.raw.abs().max())
        torch.testing.assert_close(found.raw.float(), wanted.raw, rtol=0, atol=atol)


if torch.cuda.is_available():

    @every_method
    def test_a_gpu_gives_the_same(name):
        model, batch = Net(name).eval(), images(2)
        wanted = explained(model, batch, name).raw
        found = explained(model.cuda(), batch.cuda(), name).raw.cpu()
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
