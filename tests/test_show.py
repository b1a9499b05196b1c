"""Plots: what is drawn is what was given."""

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from eo_brew.scenes.open import open_raster, sample_scene
from eo_brew.core.sensors import get_sensor
from eo_brew.core.show import (
    plot_losses,
    show_bands,
    show_mask,
    show_pca,
    show_rgb,
    show_views,
    stretch,
    token_pca,
)
from eo_brew.views.multicrop import MultiCrop


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(ax, i=0):
    return np.asarray(ax.images[i].get_array())


def test_a_data_array_knows_its_colours():
    land = open_raster(sample_scene(), sensor="sentinel2_l1c", bands=["B08", "B02", "B04", "B03"])[
        :, 400:432, 880:912
    ]
    by_name = show_rgb(land, vrange=(0, 3558))
    by_hand = show_rgb(land.sel(band=["B04", "B03", "B02"]).values, vrange=(0, 3558))
    np.testing.assert_allclose(drawn(by_name), drawn(by_hand), atol=1e-6)


@pytest.mark.parametrize(
    "make", [np.asarray, torch.tensor, lambda x: torch.tensor(x).requires_grad_()]
)
def test_arrays_and_tensors(make):
    x = np.random.default_rng(0).random((3, 8, 8)).astype("f4")
    np.testing.assert_allclose(
        drawn(show_rgb(make(x), vrange=(0, 1)))[..., :3], x.transpose(1, 2, 0), atol=1e-6
    )


def test_a_fixed_range_shows_that_a_scene_is_darker():
    x = np.random.default_rng(0).random((3, 8, 8))
    np.testing.assert_allclose(
        drawn(show_rgb(x / 10, vrange=(0, 1)))[..., :3] * 10,
        drawn(show_rgb(x, vrange=(0, 1)))[..., :3],
        atol=1e-5,
    )


def test_stretch_ignores_nan_and_survives_constants():
    x = np.full((3, 4, 4), np.nan)
    assert np.isnan(stretch(x)).all()
    x[0, 0] = [0, 1, 2, 3]
    assert stretch(x, pct=(0, 100))[0, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_pca_is_joint_and_aligned():
    rng = np.random.default_rng(0)
    a = rng.random((12, 10, 3)) ** 2 @ rng.standard_normal((3, 16))
    whole = token_pca(a)[0]
    parts = token_pca([a[:5], a[5:]])  # one colour for one thing in all images
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    np.testing.assert_allclose(token_pca(-a[..., ::-1], reference=[whole])[0], whole, atol=1e-5)
    np.testing.assert_allclose(
        token_pca(torch.tensor(a).view(1, 120, 16), grid=(12, 10))[0], whole, atol=1e-4
    )


def test_pca_of_tokens_objects():
    class Tokens:
        patches, grid = torch.randn(2, 12, 8, generator=torch.manual_seed(0)), (3, 4)

    assert [p.shape for p in token_pca(Tokens())] == [(3, 4, 3)] * 2
    assert len(show_pca(Tokens())) == 2
    assert show_pca(Tokens.patches[0].view(3, 4, 8), title="t").get_title() == "t"


def test_mask_hides_what_is_true():
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[1, 2] = True
    cover = show_mask(np.zeros((3, 16, 16)), hidden).images[1].get_array()
    assert (~cover.mask).nonzero()[0].tolist() == [1] and (~cover.mask).nonzero()[1].tolist() == [2]


def test_views_are_drawn_where_the_boxes_lie():
    batch = {"ms": torch.rand(3, 5, 64, 64), "rgb": torch.rand(3, 3, 64, 64)}
    views = MultiCrop(n_local=2, global_size=32, local_size=16)(batch)
    axs = show_views(views, max_n=2, batch=batch)
    assert axs.shape == (4, 5) and len(axs[0, 0].patches) == 4
    box = (views[0]["box"][1] * 64).tolist()
    assert axs[2, 0].patches[0].get_xy() == pytest.approx((box[1] - 0.5, box[0] - 0.5))
    np.testing.assert_allclose(
        drawn(axs[0, 1])[..., :3], views[0]["rgb"][0].permute(1, 2, 0), atol=1e-6
    )


def test_bands_and_losses(tmp_path):
    sensor = get_sensor("sentinel2_l1c").select(["B02", "B8A"])
    assert [a.get_title()[:3] for a in show_bands(torch.rand(2, 8, 8), sensor)] == ["B02", "B8A"]
    (tmp_path / "log.csv").write_text("step,lr,loss,valid\n0,1,3,\n1,1,2,5\n2,1,1,\n")
    lines = {
        l.get_label(): l.get_xydata().tolist() for l in plot_losses(tmp_path / "log.csv").lines
    }
    assert lines == {"loss": [[0, 3], [1, 2], [2, 1]], "valid": [[1, 5]]}


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: show_rgb(np.zeros((5, 4, 4))), "sensor=get_sensor"),
        (lambda: show_rgb(np.zeros((1, 3, 4, 4))), r"x\[0\]"),
        (lambda: show_bands(np.zeros((4, 4))), "show_bands"),
        (lambda: token_pca(np.zeros((9, 4))), "grid"),
        (lambda: token_pca(np.zeros((8, 4)), grid=(3, 3)), r"\(9,D\)"),
        (lambda: show_mask(np.zeros((3, 9, 9)), np.ones((2, 2))), "divide"),
        (lambda: show_views([]), "MultiCrop"),
        (lambda: show_views([{"dsm": torch.rand(1, 1, 4, 4)}]), "names"),
        (lambda: plot_losses("no.csv"), "no.csv"),
        (lambda: plot_losses({"loss": [1.0]}, names=["los"]), "columns"),
    ],
)
def test_bad_input_says_what_to_do(call, says):
    with pytest.raises(ValueError, match=says):
        call()
