"""The drawn world: reproducible from its seed, and with masks that match its pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from glowmap.demo.world.kinds import KINDS
from glowmap.demo.world.mark import MARKED, mark_mask, marked
from glowmap.demo.world.scenes import CLASSES, PlacedObject, street
from glowmap.errors import InputError

MOVING = ("car", "bus", "person", "dog", "bicycle")


def pixels(scene):
    return np.asarray(scene.picture).astype(int)


def test_a_seed_draws_the_same_street_and_another_seed_another():
    one, again, other = street(5).draw(), street(5).draw(), street(6).draw()
    assert np.array_equal(pixels(one), pixels(again))
    assert np.array_equal(one.instances, again.instances)
    assert one.objects == again.objects
    assert (pixels(one) != pixels(other)).mean() > 0.9


def test_drawing_leaves_the_global_generators_alone():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    street(5).draw()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_every_kind_comes_and_the_background_too():
    seen = dict.fromkeys(CLASSES, 0.0)
    for seed in range(40):
        labels = street(seed).draw().labels
        for index, name in enumerate(CLASSES):
            seen[name] += (labels == index).mean() / 40
    assert set(seen) == {"background", *KINDS}
    assert min(seen.values()) > 0.004
    assert 0.4 < seen["background"] < 0.8
    assert 0.03 < seen["car"] < 0.2


def noiseless(scene):
    return replace(scene, backdrop=replace(scene.backdrop, noise=0.0))


def test_a_mask_holds_the_pixels_that_show_the_object():
    """Removing an object changes only its pixels, their smooth edge and the shadow at its foot."""
    full = noiseless(street(14))
    for number, placed in enumerate(full.objects, 1):
        with_it = full.draw()
        mine = with_it.instances == number
        if mine.sum() < 30:
            continue
        without = replace(full, objects=tuple(other for other in full.objects if other is not placed)).draw()
        changed = np.abs(pixels(with_it) - pixels(without)).max(2) > 2
        assert changed[mine].mean() > 0.9, placed.kind
        near = np.asarray(Image.fromarray(mine.astype(np.uint8)).filter(ImageFilter.MaxFilter(5))) > 0
        rows, columns = np.nonzero(changed & ~near)
        height, foot, middle = placed.size * 128, placed.y * 128, placed.x * 128
        assert (np.abs(columns - middle) < KINDS[placed.kind].width * 0.75 * height + 6).all(), placed.kind
        assert ((rows > foot - height - 6) & (rows < foot + 0.2 * height + 6)).all(), placed.kind
        assert (changed & ~near).sum() < mine.sum(), placed.kind


def test_nearer_objects_hide_farther_ones():
    empty = replace(street(3), objects=())
    far, near = PlacedObject("house", 0.75, 0.5, 0.4, False, 1), PlacedObject("bus", 0.75, 0.7, 0.3, False, 2)
    alone = replace(empty, objects=(far,)).draw().mask("house")
    both = replace(empty, objects=(far, near)).draw()
    assert not (both.mask("house") & both.mask("bus")).any()
    assert np.array_equal(both.mask("house"), alone & ~both.mask("bus"))
    assert (alone & both.mask("bus")).sum() > 200


def test_two_objects_of_a_kind_have_separate_instances():
    objects = tuple(PlacedObject("car", x, 0.8, 0.15, False, seed) for seed, x in enumerate((0.4, 1.1)))
    scene = replace(street(3), objects=objects).draw()
    left, right = scene.instances == 1, scene.instances == 2
    assert scene.objects == ("car", "car")
    assert np.nonzero(left)[1].max() < 96 < np.nonzero(right)[1].min()
    assert np.array_equal(scene.mask("car"), left | right)


def test_the_same_street_at_any_resolution():
    coarse, fine = street(11).draw(), street(11).draw(384, 576)
    assert fine.picture.size == (576, 384)
    assert (coarse.labels == fine.labels[1::3, 1::3]).mean() > 0.98
    reduced = np.asarray(fine.picture.resize((192, 128), Image.Resampling.BOX)).astype(int)
    assert np.abs(reduced - pixels(coarse)).mean() < 8


@pytest.mark.parametrize("kind", MOVING)
def test_a_single_object_is_in_full_view(kind):
    for seed in range(12):
        scene = street(seed, only=kind).draw()
        assert [name for name in scene.objects if name in MOVING] == [kind]
        mask = scene.mask(kind)
        assert mask.sum() > 40
        assert not mask[:, [0, -1]].any()
        assert not mask[-1].any()


def test_errors_name_the_fact_and_the_remedy():
    with pytest.raises(InputError, match="no kind of object 'cat'; near names: car"):
        street(0, only="cat")
    with pytest.raises(InputError, match="in the ratio 2:3, not at 100 x 100; try 100 x 150"):
        street(0).draw(100, 100)
    with pytest.raises(InputError, match="a street's seed is a whole number from 0 on, not -1"):
        street(-1)
    with pytest.raises(InputError, match="a street of 0 x 0 pixels, drawn 2 times finer, has no pixels; try 128 x 192"):
        street(0).draw(0, 0)
    with pytest.raises(InputError, match="no kind of object 'lorry'"):
        street(0).draw().mask("lorry")


def test_the_mark_lies_in_its_corner_and_changes_nothing_else():
    for seed in range(5):
        plain = street(seed, only=MARKED).draw()
        stamped = marked(plain, seed)
        mask = mark_mask(128, 192, seed)
        changed = (pixels(plain) != pixels(stamped)).any(2)
        assert not (changed & ~mask).any()
        assert changed[mask].mean() > 0.95
        assert 0.005 < mask.mean() < 0.015
        assert np.nonzero(mask)[0].min() > 95
        assert np.nonzero(mask)[1].min() > 155
        assert np.array_equal(plain.instances, stamped.instances)
    assert not np.array_equal(mark_mask(128, 192, 0), mark_mask(128, 192, 1))
