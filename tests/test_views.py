"""Views: one geometry, honest values, honest masks. The last section puts faults of the released
code back and sees them found.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from eo_brew.views import photometric as P
from eo_brew.views import multicrop as V
from eo_brew.views.photometric import (
    RGBBlur,
    RGBGreyscale,
    RGBJitter,
    RGBPipeline,
    RGBSolarize,
    deo_photometrics,
)
from eo_brew.views.crops import (
    _edges,
    _triangle,
    apply_plan,
    crop_resize,
    crop_together,
    crop_valid,
    gaussian_blur,
)
from eo_brew.views.multicrop import MultiCrop, draw_boxes

quick = settings(max_examples=12, deadline=None)


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def on_device(x, boxes, size, flip):
    "The products that a GPU does, done by the CPU."
    px = _edges(boxes, x.shape[2:])
    return apply_plan(
        [x],
        (
            _triangle(px[:, 0], px[:, 2], x.shape[2], size[0]),
            _triangle(px[:, 1], px[:, 3], x.shape[3], size[1], flip),
            None,
        ),
    )


def coordinates(B, n):
    "(B,2,n,n): every pixel holds its own relative position."
    c = (torch.arange(n) + 0.5) / n
    return torch.stack(torch.meshgrid(c, c, indexing="ij")).expand(B, -1, -1, -1)


def small(**kwargs):
    return MultiCrop(
        **{**dict(n_local=3, global_size=32, local_size=16, strides={"vfm_late": 16}), **kwargs}
    )


def batch_of(B=4, n=64, g=None):
    return {
        "ms": torch.rand(B, 6, n, n, generator=g or seeded()) * 4000,
        "rgb": torch.rand(B, 3, n, n, generator=g or seeded(1)),
        "ms_valid": torch.rand(B, 1, n, n, generator=g or seeded(2)) > 0.002,
        "index": torch.arange(B),
    }


# Resampling


@quick
@given(
    st.integers(0, 10**6),
    st.integers(4, 90),
    st.integers(4, 90),
    st.integers(1, 70),
    st.integers(2, 70),
)
def test_both_paths_equal_torch_on_whole_pixels(seed, H, W, h, w):
    "Not to one column: there torch 2.15 repeats the first row."
    g = seeded(seed)
    x = torch.randn(3, 2, H, W, generator=g)
    y0, x0 = (
        (torch.rand(3, generator=g) * (H - 1)).long(),
        (torch.rand(3, generator=g) * (W - 1)).long(),
    )
    y1, x1 = (
        y0 + 1 + (torch.rand(3, generator=g) * (H - y0)).long(),
        x0 + 1 + (torch.rand(3, generator=g) * (W - x0)).long(),
    )
    y1, x1, flip = y1.clamp(max=H), x1.clamp(max=W), torch.rand(3, generator=g) < 0.5
    boxes = torch.stack([y0 / H, x0 / W, y1 / H, x1 / W], 1)
    want = []
    for b in range(3):
        v = F.interpolate(
            x[b : b + 1, :, y0[b] : y1[b], x0[b] : x1[b]],
            size=(h, w),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )[0]
        want.append(v.flip(-1) if flip[b] else v)
    torch.testing.assert_close(
        crop_resize(x, boxes, (h, w), flip), torch.stack(want), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        on_device(x, boxes, (h, w), flip), torch.stack(want), atol=1e-4, rtol=0
    )


@quick
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 60))
def test_both_paths_agree_between_pixels(seed, n, size):
    g = seeded(seed)
    x, flip = torch.randn(4, 2, n, n, generator=g), torch.rand(4, generator=g) < 0.5
    a, b = torch.rand(2, 4, 2, generator=g).sort(0)[0]
    boxes = torch.cat([a * 0.95, (b * 0.95 + 0.05).clamp(max=1)], 1)
    torch.testing.assert_close(
        crop_resize(x, boxes, size, flip),
        on_device(x, boxes, (size, size), flip),
        atol=1e-4,
        rtol=0,
    )


def test_rasters_of_one_grid_are_cut_together():
    x, y, boxes = (
        torch.rand(2, 3, 32, 32),
        torch.rand(2, 1, 32, 32).half(),
        torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.5, 1, 1.0]]),
    )
    a, b = crop_together([x, y], boxes, 8)
    assert a.dtype == torch.float32 and b.dtype == torch.float16 and b.shape == (2, 1, 8, 8)
    torch.testing.assert_close(a, crop_resize(x, boxes, 8))
    torch.testing.assert_close(b, crop_resize(y, boxes, 8))


def test_autocast_does_not_round_reflectances():
    x, boxes = (
        torch.rand(2, 3, 32, 32) * 4000,
        torch.tensor([[0, 0, 0.5, 0.5], [0.25, 0.5, 1, 1.0]]),
    )
    want = crop_resize(x, boxes, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crop_resize(x, boxes, 24), want)
        torch.testing.assert_close(on_device(x, boxes, (24, 24), None), want, atol=1e-2, rtol=0)


def test_blur_has_no_denormal_weights(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "eo_brew.views.crops.apply_plan", lambda xs, plan: seen.extend(plan[:2]) or xs[0]
    )
    gaussian_blur(torch.rand(3, 1, 64, 64), torch.tensor([0.1, 0.5, 2.0]), 11)
    assert all(
        ((w == 0) | (w > 1e-30)).all() and torch.allclose(w.sum(-1), torch.ones(1)) for w in seen
    )


# Geometry


@quick
@given(
    st.integers(0, 10**6),
    st.sampled_from([(64, 64), (256, 256), (50, 20), (33, 97)]),
    st.sampled_from([(0.05, 0.4), (0.4, 1.0), (1.0, 1.0), (0.2, 0.2001)]),
)
def test_boxes_keep_to_area_shape_and_grid(seed, grid, scale):
    boxes = draw_boxes(200, grid, scale, generator=seeded(seed)).double()
    px = boxes * torch.tensor(grid * 2)
    h, w = (px[:, 2:] - px[:, :2]).round().T
    assert (
        (px - px.round()).abs().max() < 1e-3
        and boxes.min() >= 0
        and boxes.max() <= 1
        and min(h.min(), w.min()) >= 1
    )
    pixel = torch.maximum(h, w) / math.prod(
        grid
    )  # where no whole box has such an area, the nearest one
    area = h * w / math.prod(grid)
    assert (area >= scale[0] - pixel - 1e-6).all() and (area <= scale[1] + pixel + 1e-6).all()
    if scale[1] - scale[0] > 0.1 and grid[0] == grid[1]:
        assert (area >= scale[0] - 1e-6).all() and (area <= scale[1] + 1e-6).all()
        assert (w / h).log().abs().max() < math.log(4 / 3) + 2.5 / h.min()


def test_area_covers_its_range():
    boxes = draw_boxes(4000, (256, 256), (0.4, 1.0), generator=seeded())
    area = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sort()[0]
    assert (area - torch.linspace(0.4, 1, 4000)).abs().max() < 0.03  # uniform


@pytest.mark.parametrize("fine", [64, 128, 192])
def test_all_modalities_share_one_geometry(fine):
    batch = {
        "dsm": coordinates(5, 32),
        "rgb": coordinates(5, fine),
        "ms": coordinates(5, 64),
        "vfm_late": coordinates(5, 4),
    }
    for v in small(photometric=False)(batch, generator=seeded(3)):
        s = v["ms"].shape[-1]
        px = v["box"] * 32
        torch.testing.assert_close(px, px.round(), atol=1e-3, rtol=0)
        i = (torch.arange(s) + 0.5) / s
        want_y = v["box"][:, :1] + i * (v["box"][:, 2:3] - v["box"][:, :1])
        want_x = v["box"][:, 1:2] + torch.where(v["flip"][:, None], 1 - i, i) * (
            v["box"][:, 3:] - v["box"][:, 1:2]
        )
        inner = slice(4, -4)
        for name in ("dsm", "rgb", "ms"):
            torch.testing.assert_close(
                v[name][:, 0, inner, s // 2], want_y[:, inner], atol=0.4 / 32, rtol=0
            )
            torch.testing.assert_close(
                v[name][:, 1, s // 2, inner], want_x[:, inner], atol=0.4 / 32, rtol=0
            )
        assert v["vfm_late"].shape[-1] == s // 16
        down = F.avg_pool2d(v["ms"], 16)
        assert (
            v["vfm_late"] - down
        ).abs().max() < 0.6 / 4  # a token is a quarter of the patch, edges replicate
        assert (v["vfm_late"] - down).abs().mean() < 0.06


def test_view_sizes_strides_and_passengers():
    batch = {
        **batch_of(),
        "vfm_late": torch.rand(4, 8, 4, 4).half(),
        "vfm_cls": torch.rand(4, 8),
        "rgb_fine": torch.rand(4, 3, 64, 64),
    }
    views = small(strides={"vfm_late": 16, "rgb_fine": 0.5})(batch)
    assert [v["ms"].shape[-1] for v in views] == [32, 32, 16, 16, 16]
    assert [v["vfm_late"].shape[-1] for v in views] == [2, 2, 1, 1, 1]
    assert [v["rgb_fine"].shape[-1] for v in views] == [64, 64, 32, 32, 32]
    for v in views:
        assert (
            v["vfm_cls"] is batch["vfm_cls"]
            and v["index"] is batch["index"]
            and v["vfm_late"].dtype == torch.float16
        )
        assert (
            v["box"].shape == (4, 4)
            and v["flip"].dtype == torch.bool
            and v["ms_valid"].dtype == torch.bool
        )
        assert all(type(x) is torch.Tensor for x in v.values())
    assert len(small(n_local=0)(batch)) == 2
    assert len(small(n_global=1, n_local=1)(batch)) == 2


def test_flips_happen_half_of_the_time_and_only_left_to_right():
    views = small(n_local=0, global_scale=(1, 1), photometric=False)(
        {"ms": coordinates(200, 32)}, generator=seeded()
    )
    flips = torch.cat([v["flip"] for v in views]).float().mean()
    assert 0.4 < flips < 0.6
    for v in views:
        want = torch.where(
            v["flip"][:, None, None, None], coordinates(200, 32).flip(-1), coordinates(200, 32)
        )
        torch.testing.assert_close(v["ms"], want, atol=1e-5, rtol=0)


def test_a_seed_fixes_everything():
    for make in (
        lambda: small()(batch_of(), generator=seeded(5)),
        lambda: small(generator=seeded(5))(batch_of()),
    ):
        for a, b in zip(make(), make()):
            assert all(torch.equal(a[k], b[k]) for k in a)
    torch.manual_seed(5)
    a = small()(batch_of())
    torch.manual_seed(5)
    b = small()(batch_of())
    assert all(torch.equal(x[k], y[k]) for x, y in zip(a, b) for k in x)
    c = small()(batch_of())
    assert not torch.equal(a[0]["box"], c[0]["box"])


def test_samples_and_views_differ():
    views = small()(batch_of(), generator=seeded())
    boxes = torch.cat([v["box"] for v in views])
    assert len(boxes.unique(dim=0)) == len(boxes)


# Valid masks


@quick
@given(st.integers(0, 10**6), st.sampled_from([7, 16, 40, 64]), st.sampled_from([12, 33]))
def test_nothing_invalid_contributes_to_a_valid_pixel(seed, size, n):
    g = seeded(seed)
    valid = torch.rand(3, 1, n, n, generator=g) > 0.01
    boxes, flip = draw_boxes(3, (n, n), (0.1, 1.0), generator=g), torch.rand(3, generator=g) < 0.5
    x = torch.rand(3, 2, n, n, generator=g)
    poisoned = torch.where(valid, x, 1e6)
    seen = crop_valid(valid, boxes, size, flip)
    a, b = crop_resize(x, boxes, size, flip), crop_resize(poisoned, boxes, size, flip)
    same = (a == b).all(1, keepdim=True)
    assert not (seen & ~same).any()
    assert (seen != same).float().mean() < 0.01  # and no stricter than that


def test_masks_follow_their_raster():
    batch = {"ms": torch.rand(2, 4, 64, 64), "ms_valid": torch.ones(2, 1, 64, 64).bool()}
    batch["ms_valid"][:, :, :, :32] = False
    for v in small(photometric=False, global_scale=(1, 1), local_scale=(0.9, 1.0))(
        batch, generator=seeded()
    ):
        for one, flip, box in zip(v["ms_valid"][:, 0], v["flip"], v["box"]):
            edge = ((0.5 - box[1]) / (box[3] - box[1]) * one.shape[1]).item()
            cols = one.flip(-1) if flip else one
            assert not cols[:, : math.floor(edge)].any() and cols[:, math.ceil(edge) + 2 :].all()


# Photometric changes


def test_values_stay_in_range_and_inputs_untouched():
    x = torch.cat(
        [
            torch.rand(8, 3, 48, 48, generator=seeded()),
            torch.zeros(2, 3, 48, 48),
            torch.ones(2, 3, 48, 48),
        ]
    )
    before = x.clone()
    for p in (
        *deo_photometrics(),
        RGBJitter(0.9, 0.9, 0.9, 0.5, p=1),
        RGBBlur(p=1),
        RGBSolarize(p=1),
        RGBGreyscale(1),
    ):
        out = p(x, generator=seeded(1))
        assert out.min() >= 0 and out.max() <= 1 and torch.equal(x, before) and out.shape == x.shape
        assert torch.equal(p(x.clone(), generator=seeded(1), inplace=True), out)


def test_shares_of_changed_samples():
    x = torch.rand(2000, 3, 4, 4, generator=seeded())
    for t, p in (
        (RGBJitter(), 0.8),
        (RGBGreyscale(), 0.2),
        (RGBSolarize(), 0.2),
        (RGBBlur(), 0.5),
        (RGBBlur(p=1.0), 1.0),
        (RGBBlur(p=0.0), 0.0),
    ):
        changed = (t(x, generator=seeded(2)) != x).flatten(1).any(1).float().mean()
        assert abs(changed - p) < 0.04
    g1, g2, local = deo_photometrics()
    assert [[s.p for s in p.steps if isinstance(s, RGBBlur)] for p in (g1, g2, local)] == [
        [1.0],
        [0.1],
        [0.5],
    ]
    assert [[type(s) for s in p.steps].count(RGBSolarize) for p in (g1, g2, local)] == [0, 1, 0]


def test_jitter_equals_its_steps_one_by_one():
    x, u = (
        0.35 + 0.3 * torch.rand(5, 3, 20, 20, generator=seeded()),
        torch.rand(5, 4, generator=seeded(1)),
    )
    luma = torch.tensor([0.299, 0.587, 0.114])
    want = []
    for o, (b, c, s, h) in zip(x.double(), (2 * u - 1).double().tolist()):
        o = o * (1 + 0.4 * b)
        o = (1 + 0.4 * c) * o - 0.4 * c * (o.mean((1, 2)) @ luma.double())
        grey = torch.einsum("chw,c->hw", o, luma.double())
        o = (1 + 0.2 * s) * o - 0.2 * s * grey
        yiq, turn = (
            torch.einsum("dc,chw->dhw", P._YIQ.double(), o),
            torch.tensor(2 * math.pi * 0.1 * h).double(),
        )
        i, q = yiq[1] * turn.cos() + yiq[2] * turn.sin(), yiq[2] * turn.cos() - yiq[1] * turn.sin()
        want.append(
            torch.einsum(
                "dc,chw->dhw", torch.linalg.inv(P._YIQ.double()), torch.stack([yiq[0], i, q])
            )
        )
    torch.testing.assert_close(
        RGBJitter().change(x, u), torch.stack(want).float().clamp(0, 1), atol=1e-5, rtol=0
    )


def test_two_rgb_entries_change_alike():
    b = batch_of()
    b["rgb_teacher"] = b["rgb"].clone()
    for v in small(rgb=("rgb", "rgb_teacher"))(b, generator=seeded()):
        assert torch.equal(v["rgb"], v["rgb_teacher"])


def test_own_photometrics_are_called():
    calls = []

    def mine(name):
        return lambda x, generator: calls.append(name) or x * 0

    views = small(photometric=(mine("g1"), mine("g2"), mine("l")))(batch_of())
    assert calls == ["g1", "g2", "l", "l", "l"] and all(
        v["rgb"].max() == 0 and v["ms"].max() > 0 for v in views
    )


# Faults of the released code: the check, then the check on the fault put back


def ms_is_left_alone(crop=MultiCrop):
    make = lambda p: crop(
        n_local=2, global_size=32, local_size=16, photometric=p, generator=seeded(7)
    )
    with_, without = make(True), make(False)
    for _ in range(3):  # over several batches: the draws do not drift apart
        for a, b in zip(with_(batch_of()), without(batch_of())):
            if not all(torch.equal(a[k], b[k]) for k in ("ms", "ms_valid", "box", "flip")):
                return False
            if torch.equal(a["rgb"], b["rgb"]):
                return False
    return True


def a_darker_image_gives_darker_views(crop=MultiCrop):
    b = batch_of()
    dark = {**b, "rgb": b["rgb"] / 10, "ms": b["ms"] / 10}
    make = lambda: crop(
        n_local=2,
        global_size=32,
        local_size=16,
        photometric=(RGBPipeline(RGBBlur()),) * 3,
        generator=seeded(1),
    )
    return all(
        torch.allclose(x[k], y[k] * 10, atol=1e-3)
        for x, y in zip(make()(b), make()(dark))
        for k in ("rgb", "ms")
    )


def test_photometric_changes_do_not_touch_ms():
    class Jittered(MultiCrop):  # the fault: jittered RGB enters the MS branch
        def __call__(self, batch, generator=None):
            views = super().__call__(batch, generator)
            for v in views:
                v["ms"] = torch.cat([v["rgb"] * 4000, v["ms"][:, 3:]], 1)
            return views

    class Drifting(MultiCrop):  # the fault: colours use up numbers of the geometry
        def __call__(self, batch, generator=None):
            if self.photometric:
                torch.rand(1, generator=self.generator)
            return super().__call__(batch, generator)

    assert ms_is_left_alone()
    assert not ms_is_left_alone(Jittered) and not ms_is_left_alone(Drifting)


def test_no_view_is_stretched_by_its_own_maximum():
    class Stretched(MultiCrop):  # the fault: RGB divided by the maximum of its crop
        def __call__(self, batch, generator=None):
            views = super().__call__(batch, generator)
            for v in views:
                v["rgb"] = v["rgb"] / v["rgb"].amax((1, 2, 3), keepdim=True)
            return views

    assert a_darker_image_gives_darker_views()
    assert not a_darker_image_gives_darker_views(Stretched)


def test_views_are_antialiased(monkeypatch):
    def checks():
        stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
        return (
            small(n_local=0, global_scale=(1, 1), global_size=16, photometric=False, strides=None)(
                {"ms": stripes}
            )[0]["ms"]
            - 0.5
        ).abs().max() < 0.05

    assert checks()
    monkeypatch.setattr(
        V,
        "crop_together",
        lambda xs, boxes, size, flip: [
            F.interpolate(x, size=(size, size), mode="nearest") for x in xs
        ],
    )
    assert not checks()


def test_the_last_global_view_is_no_local_one():
    "Both global views are of global size and area, also in view 2."
    for v in small(photometric=False)(batch_of(B=50), generator=seeded())[:2]:
        area = (v["box"][:, 2] - v["box"][:, 0]) * (v["box"][:, 3] - v["box"][:, 1])
        assert v["ms"].shape[-1] == 32 and area.min() >= 0.4 - 1e-6


# Bad input


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: small()({"ms": torch.rand(2, 6, 64, 64)}), "'rgb' is not among"),
        (lambda: small(rgb="optical")(batch_of()), "'optical' is not among"),
        (lambda: small()({"rgb": torch.rand(2, 3, 64, 64) * 255}), "rgb_from"),
        (lambda: small()({"rgb": torch.rand(2, 4, 64, 64)}), r"\(B,3,H,W\)"),
        (lambda: small()(torch.rand(2, 3, 64, 64)), "dict"),
        (lambda: small(photometric=False)({"ms": torch.rand(6, 64, 64)}), r"x\[None\]"),
        (
            lambda: small(photometric=False)(
                {"ms": torch.rand(2, 6, 64, 64), "dsm": torch.rand(3, 1, 64, 64)}
            ),
            "different batch size",
        ),
        (
            lambda: small(photometric=False)({"ms": torch.ones(2, 6, 64, 64).short()}),
            r"x.float\(\)",
        ),
        (
            lambda: small(photometric=False)(
                {"ms": torch.rand(2, 6, 64, 64), "ms_valid": torch.ones(2, 1, 64, 64)}
            ),
            "bool",
        ),
        (lambda: small(photometric=False)({"ms": torch.rand(2, 6, 6, 6)}), "larger windows"),
        (lambda: small(n_local=-1), "n_local"),
        (lambda: MultiCrop(n_global=0, n_local=0), "at least one"),
        (lambda: small(global_scale=(0.5, 1.2)), "scale"),
        (lambda: small(ratio=(2, 1)), "ratio"),
        (lambda: small(flip=2), "flip"),
        (lambda: small(local_size=20), "multiples"),
        (lambda: RGBGreyscale(p=-1), "probability"),
    ],
)
def test_bad_input_says_what_to_do(make, says):
    with pytest.raises(ValueError, match=says):
        make()
