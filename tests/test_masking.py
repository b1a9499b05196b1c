"Masks: exact counts, distributions, the released code's faults, bad input."

import pytest
import torch
from hypothesis import given, settings, strategies as st

from eo_brew.views.masking import (
    block_mask,
    SCORES,
    complement_share,
    complement_share_by_epoch,
    cross_modal_mask,
    cross_modal_masks,
    grey_levels,
    hide_highest,
    info_mask,
    info_scores,
    info_weights,
    n_hidden,
    patch_valid,
    random_mask,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.floats(0.05, 0.95), st.integers(0, 9999), st.floats(0, 1))
def test_counts_are_exact_for_every_ratio_and_q(n, ratio, seed, q):
    if not 1 <= round(n * ratio) < n:
        return
    g, count = gen(seed), round(n * ratio)
    scores, valid = torch.rand(5, n, generator=g), torch.rand(5, n, generator=g) > 0.3
    a, b = info_mask(scores, ratio, g, valid), random_mask(5, n, ratio, g, valid)
    for m in (
        a,
        b,
        cross_modal_mask(a, b, q, g, valid),
        cross_modal_mask(a, b, q, g),
        block_mask(5, (1, n), ratio, g),
    ):
        assert m.dtype == torch.bool and (m.sum(1) == count).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999))
def test_invalid_patches_are_hidden_as_long_as_there_is_room(seed):
    g = gen(seed)
    valid = torch.rand(8, 24, generator=g) > torch.rand(8, 1, generator=g)
    for m in (
        random_mask(8, 24, 0.75, g, valid),
        info_mask(torch.rand(8, 24, generator=g), 0.75, g, valid),
        block_mask(8, (4, 6), 0.75, g, valid),
        cross_modal_mask(random_mask(8, 24, 0.75, g), random_mask(8, 24, 0.75, g), 0.5, g, valid),
    ):
        for row, ok in zip(m, valid):
            if (~ok).sum() <= 18:
                assert (row | ok).all()  # everything invalid is hidden
            else:
                assert not (row & ok).any()  # everything hidden is invalid


def plain_scores(images, p, over="pixels"):
    "Loops over samples, patches and pixels; Sobel written out."
    out = []
    for b in range(len(images[0])):
        total = None
        for x in images:
            z, g = x[b].double(), x[b].double().mean(0)
            h, w = g.shape
            held = z if over == "channels" else g[None]  # what the variance is taken over
            inside = lambda i, n: min(max(i, 0), n - 1)
            if over == "channels":
                inside = lambda i, n: (
                    n - 1 - abs(n - 1 - abs(i))
                )  # mirrored, without the border twice
                if len(z) == 3:
                    g = 0.299 * z[0] + 0.587 * z[1] + 0.114 * z[2]
            at = lambda i, j: g[inside(i, h), inside(j, w)]
            slope = torch.zeros_like(g)
            for i in range(h):
                for j in range(w):
                    dx = sum(
                        k * (at(i + d, j + 1) - at(i + d, j - 1))
                        for d, k in ((-1, 1), (0, 2), (1, 1))
                    )
                    dy = sum(
                        k * (at(i + 1, j + d) - at(i - 1, j + d))
                        for d, k in ((-1, 1), (0, 2), (1, 1))
                    )
                    slope[i, j] = (dx**2 + dy**2).sqrt()
            s = torch.stack(
                [
                    slope[i : i + p, j : j + p].mean()
                    + held[:, i : i + p, j : j + p].var(unbiased=False)
                    for i in range(0, h, p)
                    for j in range(0, w, p)
                ]
            )
            total = s if total is None else total + s
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("over", ["pixels", "channels"])
def test_scores_equal_a_plain_loop(over):
    images = [
        torch.rand(2, 3, 12, 8, generator=gen()) * 255,
        torch.rand(2, 1, 12, 8, generator=gen(1)) * 255,
        torch.rand(2, 5, 12, 8, generator=gen(2)) * 255,
    ]
    found = info_scores(images, 4, over=over).double()
    torch.testing.assert_close(found, plain_scores(images, 4, over), rtol=1e-5, atol=1e-2)


def test_a_flat_coloured_patch_is_rich_as_released_only():
    x = torch.full((1, 3, 32, 32), 100.0)
    x[:, 0, :16] = 200.0  # the upper half is red, as flat as the lower one
    valid = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    for seen in (None, [valid]):
        here, theirs = (info_scores(x, 8, seen, over)[0].view(4, 4) for over in SCORES)
        assert (here[[0, 3]] < 1e-6).all()  # away from the border between the halves
        assert (theirs[0] > 2000).all() and (theirs[3] < 1e-6).all()
    with pytest.raises(ValueError, match="over='luma'"):
        info_scores(x, 8, over="luma")


def test_scores_are_linear_in_neither_wrap_nor_saturation():
    "Normalised values wrapped to 8 bit (released) would turn a smooth ramp into edges."
    z = torch.linspace(-2.9, 2.9, 64).expand(1, 1, 64, 64)
    smooth = info_scores(grey_levels(z), 16)
    wrapped = info_scores((z * 255).remainder(256), 16)
    assert smooth.max() / smooth.min() < 1.5 and wrapped.min() > 3 * smooth.max()


def test_grey_levels_saturate_and_never_turn_around():
    grey = grey_levels(torch.arange(-200, 201) / 10)
    assert (grey.diff() >= 0).all() and (grey.min(), grey[200], grey.max()) == (0, 127.5, 255)


def test_variance_is_exact_far_from_zero():
    "Mean square minus square of the mean would be wrong by more than the variance."
    for level in (0, 250):
        x = level + torch.randn(1, 1, 16, 16, generator=gen()) * 1e-2
        torch.testing.assert_close(
            info_scores(x, 16).double(), plain_scores([x], 16), rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_hidden_share_follows_the_race_of_the_weights(ratio):
    scores = torch.arange(50.0).expand(6000, -1)
    share = info_mask(scores, ratio, gen()).float().mean(0)
    w = info_weights(scores[:1])[0]
    draws = (
        torch.stack(
            [
                torch.bincount(
                    torch.multinomial(w, round(50 * ratio), generator=gen(s)), minlength=50
                )
                for s in range(3000)
            ]
        )
        .float()
        .mean(0)
    )
    for v in w.unique():
        assert (
            abs(share[w == v].mean() - draws[w == v].mean()) < 0.01
        )  # torch.multinomial draws without replacement


def test_a_flat_image_has_uniform_weights():
    scores = info_scores(torch.full((2, 4, 32, 32), 80.0), 8)
    assert (scores == 0).all() and (info_weights(scores) == 0.5).all()
    assert info_mask(scores, generator=gen()).float().mean() == 0.75


def test_one_rich_outlier_does_not_flatten_the_rest():
    z = torch.zeros(1, 1, 64, 64)
    z[..., 1, 1] = 1e4
    assert torch.equal(grey_levels(z)[..., 32:, 32:], torch.full((1, 1, 32, 32), 127.5))


@pytest.mark.parametrize("q", [0.0, 0.1, 0.4, 0.7, 1.0])
def test_cross_modal_masks_keep_75_percent(q):
    "The released masking only adds: 75% becomes 92%."
    a, b = random_mask(200, 100, 0.75, gen()), random_mask(200, 100, 0.75, gen(1))
    c = cross_modal_mask(a, b, q, gen(2))
    assert (c.sum(1) == 75).all()
    both = (~a & ~c).sum(1).float().mean()
    if q == 0:
        assert torch.equal(b, c)
    if q == 1:
        assert both == 0
    assert both <= 25 * 0.25 * (1 - 0.8 * q) + 0.5


def test_the_first_mask_decides():
    "The released masking ignores it."
    b = random_mask(50, 100, 0.75, gen())
    c1, c2 = (cross_modal_mask(random_mask(50, 100, 0.75, gen(s)), b, 0.7, gen(9)) for s in (1, 2))
    assert (c1 != c2).float().mean() > 0.1


def test_more_modalities_see_different_places():
    masks = cross_modal_masks(
        {m: random_mask(20, 100, 0.75, gen(i)) for i, m in enumerate("abcd")}, 1.0, gen(9)
    )
    assert (
        sum((~m).int() for m in masks.values()) == 1
    ).all()  # four times a quarter: every place exactly once


def test_the_curriculum_rises_in_steps():
    assert [round(complement_share(k / 70), 6) for k in (0, 9, 10, 35, 69, 70)] == [
        0.1,
        0.1,
        0.2,
        0.4,
        0.7,
        0.7,
    ]
    assert complement_share(0.3, 0.5, 0.5, 1) == 0.5


def test_the_released_curriculum_counts_epochs():
    "Released: .7 from the 60th of 500 epochs on, an eighth of the run."
    assert [round(complement_share_by_epoch(e), 6) for e in (0, 9, 10, 35, 59, 60, 499)] == [
        0.1,
        0.1,
        0.2,
        0.4,
        0.6,
        0.7,
        0.7,
    ]


def test_a_seed_gives_the_same_masks_and_the_global_seed_does_too():
    s = torch.rand(3, 30, generator=gen())
    assert torch.equal(info_mask(s, generator=gen(5)), info_mask(s, generator=gen(5)))
    torch.manual_seed(1)
    a = info_mask(s)
    torch.manual_seed(1)
    assert torch.equal(a, info_mask(s))


def test_blocks_hang_together():
    def edges(m):
        m = m.view(-1, 14, 14)
        return (m[:, 1:] != m[:, :-1]).float().mean() + (m[..., 1:] != m[..., :-1]).float().mean()

    assert edges(block_mask(100, (14, 14), 0.6, gen())) < 0.6 * edges(
        random_mask(100, 196, 0.6, gen())
    )


def test_counts_stay_on_the_device():
    "No mask asks the device for a value: on the meta device that would raise."
    s = torch.rand(2, 16, device="meta")
    for m in (
        hide_highest(s, 12),
        hide_highest(s, 12, s > 0.5),
        cross_modal_mask(s > 0.5, s > 0.5, 0.5),
        random_mask(2, 16, device="meta"),
        block_mask(2, (4, 4), device="meta"),
        info_scores(torch.rand(2, 3, 32, 32, device="meta"), 8),
    ):
        assert m.device.type == "meta"


@pytest.mark.cuda
def test_masks_do_not_synchronise_a_gpu():
    x = torch.rand(2, 3, 64, 64, device="cuda") * 255
    valid = torch.ones(2, 16, dtype=torch.bool, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        s = info_scores([x, x], 16)
        cross_modal_mask(
            info_mask(s, valid=valid), block_mask(2, (4, 4), device="cuda"), 0.5, valid=valid
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda: n_hidden(16, 0.99), "at least one must be hidden"),
        (lambda: random_mask(2, 1), "one visible"),
        (
            lambda: info_scores([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 4, 4)], 4),
            r"\(1, 2, 2\), \(1, 1, 1\)",
        ),
        (lambda: info_scores(torch.zeros(1, 8, 8), 4), r"wanted \(B,C,H,W\)"),
        (
            lambda: cross_modal_mask(torch.ones(1, 4).bool(), torch.ones(1, 9).bool(), 0.5),
            "same patch grid",
        ),
        (
            lambda: cross_modal_mask(torch.ones(1, 4).bool(), torch.ones(1, 4).bool(), -1),
            "probability",
        ),
        (lambda: info_mask(torch.rand(1, 4), valid=torch.ones(1, 4)), "True = measured"),
        (lambda: patch_valid(torch.ones(1, 1, 9, 8).bool(), 4), "multiples of patch_size=4"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_what_stays_visible_of_invalid_ground_is_random():
    "Not always the last patches: that would be a place the student never learns without its partner."
    none = torch.zeros(8, 24, dtype=torch.bool)
    assert torch.equal(random_mask(8, 24, 0.75, gen(), none), random_mask(8, 24, 0.75, gen()))


def test_a_missing_modality_completes_nothing():
    g, n = gen(), 16
    masks = {m: random_mask(500, n, 0.75, g) for m in "ab"}
    valid = {"a": torch.zeros(500, n, dtype=torch.bool), "b": torch.ones(500, n, dtype=torch.bool)}
    masks["a"] = random_mask(500, n, 0.75, g, valid["a"])
    seen = (~cross_modal_masks(masks, 1.0, g, valid)["b"]).float().mean(0)
    assert seen.min() > 0.18 and seen.max() < 0.32  # a quarter everywhere
    taken = (~masks["a"]).float().mean(0)
    assert taken.min() > 0.18 and taken.max() < 0.32


def test_the_edge_of_the_data_is_no_information():
    x = 128 + 10 * torch.randn(4, 1, 64, 64, generator=gen())
    valid = torch.ones(4, 1, 64, 64, dtype=torch.bool)
    torch.testing.assert_close(info_scores([x], 16, [valid]), info_scores(x, 16))
    valid[..., 24:] = False  # cuts the second column of patches in halves
    filled = torch.where(valid, x, 40.0)
    blind, seeing = (info_scores([filled], 16, v).view(4, 4, 4) for v in (None, [valid]))
    assert (blind[..., 1] > 3 * blind[..., 0]).all()
    assert ((seeing[..., 1] / seeing[..., 0]).log().abs() < 0.4).all() and (
        seeing[..., 2:] == 0
    ).all()
