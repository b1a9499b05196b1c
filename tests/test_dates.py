"""Several dates of one ground as views of each other."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from fastai.torch_core import set_seed

from eo_brew.app.cli import main
from eo_brew.core.sensors import rgb_from
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods.assemble import facts_of
from eo_brew.methods.deo import deo_learner
from eo_brew.methods.deo_presets import choose_deo
from eo_brew.runs.same_run import run_facts
from eo_brew.views.multicrop import MultiCrop

TINY = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3)
BANDS = ["B02", "B03", "B04", "B08"]


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    "Three dates of 128 x 128 px, each twice as bright as the one before."
    d, rng = tmp_path_factory.mktemp("series"), np.random.default_rng(0)
    x = rng.integers(300, 900, (4, 128, 128))
    profile = dict(driver="GTiff", dtype="uint16", count=4, height=128, width=128)
    profile |= dict(crs="EPSG:32633", transform=Affine(10, 0, 3e5, 0, -10, 5e6))
    for i, day in enumerate(("20200110", "20200511", "20200901")):
        with rasterio.open(d / f"S2_{day}.tif", "w", **profile) as dst:
            dst.write((x * 2**i).astype("uint16"))
            dst.update_tags(EO_OFFSET="0")
            for k, b in enumerate(BANDS, 1):
                dst.set_band_description(k, b)
    return d


def loaders(series, **kwargs):
    return eo_dataloaders(series, "sentinel2_l1c", size=32, bs=4, dates="views", **kwargs)


def whole(**kwargs):
    "Views that are the whole window, unturned."
    same = dict(global_size=32, global_scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    return MultiCrop(**dict(n_local=0, photometric=False) | same | kwargs)


def learner(dls, **kwargs):
    set_seed(0)
    options = dict(vfm=None, views=whole(), hidden=32, head_dim=16) | TINY | kwargs
    return deo_learner(dls, "vit_tiny_patch16_224", **options)


def test_the_next_date_lies_beside_each_window(series):
    dls = loaders(series)
    assert dls.sensors.keys() == {"ms"}  # no modality of its own
    batch = dls.one_batch()[0]
    first = dls.train_ds.windows.rows[np.asarray(batch["index"])][:, 0]
    factor = torch.tensor([2.0, 2.0, 0.25])[torch.as_tensor(first)][
        :, None, None, None
    ]  # after the last the first
    torch.testing.assert_close(batch["ms_dates"].cpu(), batch["ms"].cpu() * factor)


def test_training_and_validation_share_no_ground(series):
    dls = loaders(series, valid_pct=0.2)
    ground = [{tuple(r) for r in ds.windows.rows[:, 1:]} for ds in (dls.train_ds, dls.valid_ds)]
    assert all(ground) and not ground[0] & ground[1]


def test_the_second_global_view_is_another_date(series):
    learn = learner(loaders(series))
    batch = learn.dls.one_batch()[0]
    one, two = learn.views.cut(batch)
    torch.testing.assert_close(one["ms"], batch["ms"])
    torch.testing.assert_close(two["ms"], batch["ms_dates"])
    torch.testing.assert_close(two["rgb"], rgb_from(batch["ms_dates"], learn.dls.sensors["ms"]))
    assert not [k for k in (*one, *two) if "_dates" in k]


def test_colours_of_both_dates_change_alike(series):
    learn = learner(loaders(series), views=whole(photometric=True))
    assert learn.views.views.rgb == ("rgb", "rgb_dates")
    views = learn.views.cut(learn.dls.one_batch()[0])
    assert all(0 <= v["rgb"].min() <= v["rgb"].max() <= 1 for v in views)


def test_the_self_distilling_teacher_learns_from_dates(series):
    learn = learner(
        loaders(series, n=8, valid_pct=0), views=MultiCrop(n_local=1, global_size=32, local_size=16)
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert all(np.isfinite(float(v)) for v in learn.recorder.losses)


def test_auto_lets_dates_agree(series):
    facts = facts_of(loaders(series), 100)
    chosen = choose_deo(facts)
    assert facts.dates and facts.rgb and chosen.settings["vfm"] is None
    assert "dates to agree on" in chosen.why


def test_a_run_without_dates_is_another_run(series):
    a = run_facts(loaders(series))
    b = run_facts(eo_dataloaders(series, "sentinel2_l1c", size=32, bs=4))
    assert {k for k in a if a[k] != b[k]} == {"dates"}


def test_what_cannot_be(series, tmp_path, capsys):
    with pytest.raises(ValueError, match="'stack'"):
        eo_dataloaders(series, "sentinel2_l1c", size=32, dates="stack")
    with pytest.raises(ValueError, match="all scenes are of 2020-05-11"):
        loaders(series / "S2_20200511.tif")
    (tmp_path / "new.tif").write_bytes((series / "S2_20200511.tif").read_bytes())
    with pytest.raises(ValueError, match="no date"):
        loaders(tmp_path)
    with pytest.raises(ValueError, match="kept of one date"):
        learner(loaders(series), vfm="efficientnet_lite2", optical=dict(cache=True))
    with pytest.raises(ValueError, match="keeps one date"):
        loaders(series, store=tmp_path / "store")
    line = f"pretrain {series} --sensor sentinel2_l1c --dates views --print-config"
    assert main(line.split()) == 0 and "dates: views" in capsys.readouterr().out
