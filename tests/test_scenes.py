"""Whole scenes: equal to the untiled model, no seams, resumable after a kill, valid COGs, flat memory."""

import multiprocessing as mp
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from affine import Affine
from torch import nn

from eo_brew.models.encoder import create_encoder
from eo_brew.scenes.open import open_raster, open_scene, read_window, sample_scene, write_raster
from eo_brew.scenes.scene import Mask
from eo_brew.maps.jobs import MapJob
from eo_brew.maps.predict import predict_raster
from eo_brew.core.sensors import get_sensor
from eo_brew.maps.models import ProbeMap
from eo_brew.maps.sweep import Sweep

S4 = get_sensor("sentinel2_l1c", bands="B02 B03 B04 B08".split())
SMALL = dict(
    size=64, block=200, pca=3, dtype="int8", progress=False
)  # 768 x 768 px: 256 windows in 25 blocks


def small_encoder():
    "Its tokens know where in their window they are, so that windows without overlap are seen."
    torch.manual_seed(0)
    enc = create_encoder(
        "vit_tiny_patch16_224",
        {"ms": S4},
        img_size=64,
        patch_size=8,
        embed_dim=24,
        depth=1,
        num_heads=2,
    ).eval()
    with torch.no_grad():
        enc.trunk.pos_embed[:, 1:] += (
            0.3 * torch.linspace(-1, 1, 8).repeat(8)[None, :, None] * torch.randn(24)
        )
    return enc


def conv_model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 3, padding=1)
    ).eval()

    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, batch):
            return self.net((batch["ms"] - 1200) / 500)

    return Dense()


def write_bands(path, h, w, fill, crs="EPSG:32633", names=S4.band_names, dtype="uint16", gsd=10):
    "Four bands written tile by tile; `fill(window)` gives the pixels."
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=dtype,
        count=len(names),
        height=h,
        width=w,
        crs=crs,
        transform=Affine(gsd, 0, 3e5, 0, -gsd, 5e6),
        nodata=0,
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress="lzw",
    ) as dst:
        for _, win in dst.block_windows(1):
            dst.write(fill(win), window=win)
        for i, n in enumerate(names, 1):
            dst.set_band_description(i, n)
        dst.update_tags(EO_OFFSET="0")
    return path


def scene_file(path, h, w, hole=False, **kwargs):
    "Random DN; on request the upper left is nodata."
    tile = np.random.default_rng(0).integers(300, 3000, (4, 256, 256)).astype("uint16")

    def fill(win):
        return tile[:, : win.height, : win.width] * (
            not (hole and win.row_off < h // 2 and win.col_off < w // 2)
        )

    return write_bands(path, h, w, fill, **kwargs)


def opened(path):
    return open_scene(path, "sentinel2_l1c", S4.band_names)


def read(path):
    with rasterio.open(path) as src:
        return src.read()


def blocks(folder):
    return len(list(folder.glob("*.npy")))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "A part of the shipped scene, 360 x 520 px."
    x = read_window(
        open_scene(sample_scene(), "sentinel2_l1c", S4.band_names), (200, 500, 360, 520)
    )[0].astype("uint16")
    path = write_bands(
        tmp_path_factory.mktemp("real") / "s.tif",
        360,
        520,
        lambda w: x[:, w.row_off : w.row_off + w.height, w.col_off : w.col_off + w.width],
    )
    return path, x.astype("float32")


def test_the_map_equals_the_untiled_model(tmp_path, real):
    model, kw = conv_model(), dict(size=128, overlap=32, margin=2, block=200, progress=False)
    with torch.no_grad():
        whole = model({"ms": torch.from_numpy(real[1])[None]})[0]
    diff = lambda f: np.abs(read(f) - whole.numpy()).max()
    assert (
        diff(predict_raster(model, opened(real[0]), tmp_path / "v.tif", kind="values", **kw)) < 1e-5
    )
    classes = read(predict_raster(model, opened(real[0]), tmp_path / "c.tif", **kw))
    assert np.array_equal(classes[0], whole.argmax(0))
    assert (
        diff(
            predict_raster(
                model,
                opened(real[0]),
                tmp_path / "n.tif",
                kind="values",
                **{**kw, "overlap": 0, "margin": 0},
            )
        )
        > 0.01
    )


def test_there_are_no_seams(tmp_path, real):
    "The mean step between neighbouring cells is nowhere in the lattice of windows larger than on average."

    def worst(overlap):
        z = read(
            predict_raster(
                small_encoder(),
                opened(real[0]),
                tmp_path / f"{overlap}.tif",
                size=64,
                overlap=overlap,
                block=150,
                progress=False,
            )
        )
        steps, n = np.abs(np.diff(z, axis=2)).mean((0, 1)), 8 - overlap // 8
        return max(steps[i::n][1:-1].mean() for i in range(n)) / steps.mean()

    assert worst(32) < 1.15 and worst(0) > 2


@pytest.mark.parametrize(
    "kind,dtype,pca",
    [
        ("classes", None, None),
        ("embeddings", "int8", 3),
        ("embeddings", "float16", 3),
        ("embeddings", "float32", None),
    ],
)
def test_nodata_is_kept_and_the_cog_is_valid(tmp_path, kind, dtype, pca):
    scene, classes = opened(scene_file(tmp_path / "s.tif", 700, 900, hole=True)), kind == "classes"
    f = predict_raster(
        conv_model() if classes else small_encoder(),
        scene,
        tmp_path / "o.tif",
        names=("water", "wood", "field") if classes else (),
        colors=("#0000ff", "#00ff00", "#ffff00") if classes else (),
        size=64,
        pca=pca,
        dtype=dtype,
        progress=False,
    )
    with rasterio.open(f) as src:
        mask, c = src.dataset_mask() > 0, src.shape[0] / 700
        assert (
            not mask[: int(500 * c), : int(500 * c)].any()
            and mask[int(520 * c) :].all()
            and mask[:, int(520 * c) :].all()
        )
        assert (
            src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            and src.is_tiled
            and src.compression.name == "deflate"
        )
        assert (
            bool(src.overviews(1)) == (max(src.shape) > 512)
            and src.crs == "EPSG:32633"
            and "eo_brew" in src.tags()["software"]
        )
        if classes:
            assert [src.colormap(1)[i][:3] for i in range(3)] == [
                (0, 0, 255),
                (0, 255, 0),
                (255, 255, 0),
            ]
            assert src.tags(1)["class_1"] == "wood" and set(np.unique(src.read())) == {0, 1, 2, 255}
    cogeo = pytest.importorskip("rio_cogeo", reason="pip install rio-cogeo")
    assert cogeo.cog_validate(f, strict=True) == (True, [], [])


def forked(call):
    "Start a copy of this process for `call()`, with one thread; its number."
    if pid := os.fork():
        return pid
    try:
        torch.set_num_threads(1)
        call()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_moment_the_map_is_the_same(tmp_path):
    "A moment is a number of finished blocks, from none to all, and a little time more."
    path, out, parts = (
        scene_file(tmp_path / "s.tif", 768, 768),
        tmp_path / "got.tif",
        tmp_path / ".got.tif.parts",
    )
    want = read(predict_raster(small_encoder(), opened(path), tmp_path / "want.tif", **SMALL))
    rng, left = np.random.default_rng(0), []
    for n in sorted(rng.integers(0, 26, 10)):
        pid = forked(
            lambda: predict_raster(small_encoder(), opened(path), out, overwrite=True, **SMALL)
        )
        while blocks(parts) < n and not os.waitid(
            os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        left.append(blocks(parts))
        if out.exists():
            assert np.array_equal(read(out), want)
            out.unlink()  # whole or not there
    assert np.array_equal(
        read(predict_raster(small_encoder(), opened(path), out, overwrite=True, **SMALL)), want
    )
    assert max(left) > 0 and len(set(left)) > 2, left  # it was hit at several stages
    assert not [
        p for p in tmp_path.iterdir() if p.name.startswith(".")
    ]  # and nothing is left beside the maps


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_while_it_removes_its_blocks_the_next_call_goes_on(tmp_path, monkeypatch):
    path, out = scene_file(tmp_path / "s.tif", 300, 300), tmp_path / "got.tif"

    def half(folder, ignore_errors=False):
        if (note := Path(folder) / "job.json").exists():
            note.unlink()  # blocks outlive the note that says whose they are
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as m:
        m.setattr(shutil, "rmtree", half)
        pid = forked(lambda: predict_raster(small_encoder(), opened(path), out, **SMALL))
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert len([*tmp_path.glob("..got.tif.parts.*.part/*.npy")]) > 1
    want = read(out)
    predict_raster(small_encoder(), opened(path), out, overwrite=True, **SMALL)
    assert np.array_equal(read(out), want)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_block_killed_half_written_is_not_there(tmp_path):
    path, kw = (
        scene_file(tmp_path / "s.tif", 300, 300),
        dict(kind="values", size=64, block=100, progress=False),
    )
    job = MapJob(
        Sweep(conv_model(), opened(path), kind="values", size=64),
        tmp_path / ".o.tif.parts",
        block=100,
    )

    def half(f):
        f.write(b"half")
        f.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(lambda: job.put(job.path(job.blocks[3]).name, half)), 0)
    assert len(job.missing()) == len(job.blocks) and len(list(job.folder.glob("*.part"))) == 1
    want = read(predict_raster(conv_model(), opened(path), tmp_path / "p.tif", **kw))
    assert np.array_equal(
        read(predict_raster(conv_model(), opened(path), tmp_path / "o.tif", **kw)), want
    )


def test_finished_blocks_are_not_computed_again(tmp_path):
    path, seen = scene_file(tmp_path / "s.tif", 300, 300), []

    def model(b):
        seen.append(len(b["ms"]))
        if len(seen) == 12:
            raise KeyboardInterrupt
        return b["ms"][:, :2] / 1000

    kw = dict(kind="values", size=64, block=100, bs=1, progress=False)
    with pytest.raises(KeyboardInterrupt):
        predict_raster(model, opened(path), tmp_path / "o.tif", **kw)
    kept, before = blocks(tmp_path / ".o.tif.parts"), len(seen)
    resumed = read(predict_raster(model, opened(path), tmp_path / "o.tif", **kw))
    again, seen[:] = len(seen) - before, []
    seen += [0] * 100  # never interrupted any more
    assert np.array_equal(
        resumed, read(predict_raster(model, opened(path), tmp_path / "p.tif", **kw))
    )
    assert kept > 0 and again < len(seen) - 100


@pytest.mark.parametrize(
    "limit,where,name",
    [
        (2_000, "finished blocks are kept", "o.tif"),
        (60_000, "No file of that name was made", "o.tif"),
        (60_000, "No store of that name was made", "o.zarr"),
    ],
)
def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path, limit, where, name):
    "Files may not grow beyond a limit: blocks cannot be written, or they can and the map cannot."
    resource = pytest.importorskip("resource", reason="limits of Unix")
    if name == "o.zarr":
        pytest.importorskip("zarr")
    path, model, out = scene_file(tmp_path / "s.tif", 300, 300), conv_model(), tmp_path / name
    kw, (soft, hard) = (
        dict(kind="values", size=64, block=64, progress=False),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(ValueError, match=where):
            predict_raster(model, opened(path), out, **kw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not out.exists() and [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [
        f".{name}.parts"
    ]
    with torch.no_grad():
        whole = model({"ms": torch.from_numpy(read(path).astype("f4"))[None]})[0]
    predict_raster(model, opened(path), out, overlap=16, margin=2, **kw)
    got = read(out) if name == "o.tif" else xr.open_zarr(out)["map"].values
    assert np.abs(got - whole.numpy()).max() < 1e-5


@pytest.mark.parametrize("other", ["weights", "probe", "function"])
def test_another_model_does_not_continue_a_job(tmp_path, other):
    path, enc = scene_file(tmp_path / "s.tif", 300, 300), small_encoder()

    def model(i):
        if other == "weights":
            with torch.no_grad():
                enc.embeds["ms"].proj.weight += i
            return enc
        if other == "probe":
            return ProbeMap(enc, lambda z: (z[:, i] > 0).astype(int), 2)
        return lambda b: b["ms"][:, i : i + 1] if len(b["ms"]) else None

    kw = dict(size=64, block=100, progress=False)
    job = MapJob(Sweep(model(0), opened(path), size=64), tmp_path / ".o.tif.parts", block=100)
    for b in job.missing():
        job.run(b)  # stopped when all blocks were there
    f = predict_raster(model(1), opened(path), tmp_path / "o.tif", **kw)
    g = predict_raster(
        model(0) if other == "weights" else model(1), opened(path), tmp_path / "p.tif", **kw
    )
    assert np.array_equal(read(f), read(g))


@pytest.mark.parametrize(
    "change", ["nodata", "saturated", "mask", "bits", "transform", "crs", "resampling"]
)
def test_a_scene_read_otherwise_does_not_continue_a_job(tmp_path, change):
    scene, folder = opened(scene_file(tmp_path / "s.tif", 300, 300)), tmp_path / ".o.tif.parts"
    code = lambda **kw: Mask(
        replace(scene, bands=scene.bands[:1], sensor=scene.sensor.select(["B02"])), **kw
    )
    scene = replace(scene, mask=code(invalid=(400,)))
    other = dict(
        nodata=500.0,
        saturated=2999.0,
        mask=code(invalid=(401,)),
        bits=code(invalid=(400,), bits=1),
        transform=scene.transform @ Affine.translation(1, 0),
        crs=rasterio.CRS.from_epsg(32634).to_wkt(),
        resampling="cubic",
    )[change]

    def missing(s):
        return len(
            MapJob(Sweep(conv_model(), s, kind="values", size=64), folder, block=100).missing()
        )

    job = MapJob(Sweep(conv_model(), scene, kind="values", size=64), folder, block=100)
    job.run(job.blocks[0])
    assert missing(scene) == len(job.blocks) - 1
    assert missing(replace(scene, **{"mask" if change == "bits" else change: other})) == len(
        job.blocks
    )


def test_nodata_is_filled_as_in_training(tmp_path):
    """A window of the sweep is the patch that `WindowDataset` makes of it: heights with the
    window's median, bands with the encoder's mean.
    """
    from eo_brew.data.samples import WindowDataset
    from eo_brew.scenes.windows import window_index

    rng = np.random.default_rng(0)
    scene = opened(scene_file(tmp_path / "s.tif", 96, 96))
    dsm = rng.normal(500, 20, (1, 96, 96)).astype("f4")
    dsm[:, :40, :50] = np.nan
    dn = rng.integers(300, 3000, (4, 96, 96)).astype("uint16")
    dn[:, 30:60, 30:] = 0
    own = S4.with_stats([1000, 1100, 1200, 1300], [500] * 4)
    dn, dsm = (
        write_raster(tmp_path / "dn.tif", dn, scene, S4.band_names, nodata=0),
        write_raster(tmp_path / "dsm.tif", dsm, scene),
    )
    for m, sensor, at in (
        ("ms", own, open_scene(dn, "sentinel2_l1c", S4.band_names, offset=0)),
        ("dsm", get_sensor("dsm").with_stats([3.0], [7.0]), open_scene(dsm, "dsm")),
    ):
        seen, enc = (
            [],
            create_encoder(
                "vit_tiny_patch16_224",
                {m: sensor},
                img_size=64,
                patch_size=8,
                embed_dim=24,
                depth=1,
                num_heads=2,
            ),
        )
        sweep = Sweep(enc, at, size=64, overlap=32, bs=1, any_gsd=True)
        sweep.fn = lambda b: seen.append(b[m]) or enc(b[m], m).as_map()
        sweep.region(0, 0, *sweep.shape)
        patches = WindowDataset(at, window_index(at, 64, 32), sensor, name=m)
        assert len(seen) == len(patches) and all(
            torch.equal(x[0], p[m]) for x, (p,) in zip(seen, patches)
        )


def test_every_task_learner_makes_its_map(tmp_path, real):
    "Classes with the names of the data, heights, change; what gives no map is told so."
    from fastai.data.core import DataLoader, DataLoaders
    from eo_brew.tasks.detection import detection_learner
    from eo_brew.tasks.learners import (
        change_learner,
        classification_learner,
        height_learner,
        segmentation_learner,
    )

    def loaders(x, y, classes=None, names=("ms",)):
        dls = DataLoaders(
            *(DataLoader([({m: x for m in names}, y)] * 2, bs=2, num_workers=0) for _ in range(2))
        )
        dls.classes = classes
        return dls

    enc, pixels, zeros = small_encoder(), torch.rand(4, 64, 64) * 3000, torch.zeros(64, 64).long()

    def mapped(learn, scene=real[0], **kwargs):
        return predict_raster(
            learn, scene, tmp_path / "o.tif", size=64, progress=False, overwrite=True, **kwargs
        )

    def whole(learn, *names):
        with torch.no_grad():
            return learn.model.eval()(
                {m: torch.from_numpy(real[1])[None, :, :64, :64] for m in names}
            )[0]

    seg = segmentation_learner(
        loaders(pixels, zeros, ["water", "wood", "field"]), enc, head="linear"
    )
    with rasterio.open(mapped(seg)) as src:
        assert src.tags(1) == {
            "class_0": "water",
            "class_1": "wood",
            "class_2": "field",
        } and src.shape == (360, 520)
        assert np.array_equal(
            src.read(1)[:48, :48], whole(seg, "ms").argmax(0)[:48, :48]
        )  # there is but one window
    lazy = open_raster(real[0], "sentinel2_l1c").eo.predict(seg, size=64)
    assert lazy.attrs["names"] == ["water", "wood", "field"] and np.array_equal(
        lazy[0, 100:164, 200:300], read(tmp_path / "o.tif")[0, 100:164, 200:300]
    )
    height = height_learner(loaders(pixels, torch.rand(64, 64) * 30), enc, head="linear")
    with rasterio.open(mapped(height, names=("height",))) as src:
        assert (src.dtypes, src.descriptions) == (("float32",), ("height",)) and np.abs(
            src.read()[:, :48, :48] - whole(height, "ms")[:, :48, :48].numpy()
        ).max() < 1e-4
    change = change_learner(loaders(pixels, zeros, names=("before", "after")), enc, head="linear")
    with torch.no_grad():
        change.model.head.bias.copy_(torch.tensor([0.1, 0]))
    with rasterio.open(
        mapped(change, dict(before=real[0], after=real[0]), names=("same", "changed"))
    ) as src:
        assert not src.read().any() and src.tags(1)["class_1"] == "changed"
    with pytest.raises(ValueError, match="images or of boxes makes no map"):
        mapped(classification_learner(loaders(pixels, 1, ["a", "b"]), enc))
    boxes = detection_learner(loaders(pixels, 1), enc, n_classes=1, channels=16)
    with pytest.raises(ValueError, match="gives a .* for a window"):
        mapped(boxes)


def test_the_model_says_which_modality_it_reads(tmp_path, real):
    rgb = create_encoder(
        "vit_tiny_patch16_224",
        {"rgb": get_sensor("sentinel2_l1c", bands=["B04", "B03", "B02"])},
        img_size=64,
        patch_size=8,
        embed_dim=24,
        depth=1,
        num_heads=2,
    )
    with rasterio.open(
        predict_raster(
            rgb, real[0], tmp_path / "o.tif", size=64, pca=3, dtype="int8", progress=False
        )
    ) as src:
        assert src.shape == (45, 65)
    assert open_raster(real[0], "sentinel2_l1c").eo.predict(rgb, size=64).shape == (24, 45, 65)


def test_probe_and_two_dates(tmp_path):
    scene, enc = opened(scene_file(tmp_path / "s.tif", 256, 320)), small_encoder()
    f = predict_raster(
        ProbeMap(enc, lambda z: (z[:, 0] > 0).astype(int), 2),
        scene,
        tmp_path / "p.tif",
        names=("no", "yes"),
        size=64,
        progress=False,
    )
    with rasterio.open(f) as src:
        assert src.shape == (32, 40) and set(np.unique(src.read())) <= {0, 1}
    f = predict_raster(
        lambda b: (b["before"] - b["after"])[:, :1],
        {"before": scene, "after": scene},
        tmp_path / "d.tif",
        size=64,
        progress=False,
    )
    with rasterio.open(f) as src:
        assert not src.read().any() and src.count == 1
    other = opened(scene_file(tmp_path / "t.tif", 256, 256))
    with pytest.raises(ValueError, match="different grids"):
        predict_raster(lambda b: b["a"], {"a": scene, "b": other}, tmp_path / "x.tif", size=64)


BAD = {
    "no CRS": (dict(crs=None), {}),
    r"\['B08'\] not found .* trained on \['B02', 'B03', 'B04', 'B08'\]": (
        dict(names=S4.band_names[:3]),
        {},
    ),
    "pixels of 30 m, the encoder was trained at 10 m": (dict(gsd=30), {}),
    "smaller than one window of size=512": ({}, dict(size=512)),
    "overwrite=True": ({}, dict(out="s.tif")),
    "does not exist": ({}, dict(out="no/o.tif")),
    "end in .tif": ({}, dict(out="o.png")),
}


@pytest.mark.parametrize("says", BAD)
def test_bad_input_is_named(tmp_path, says):
    scene, call = BAD[says]
    path = write_bands(
        tmp_path / "s.tif",
        128,
        128,
        lambda w: np.full(
            (len(scene.get("names", S4.band_names)), w.height, w.width), 900, "uint16"
        ),
        **scene,
    )
    with pytest.raises(ValueError, match=says):
        predict_raster(
            small_encoder(),
            path,
            tmp_path / call.get("out", "o.tif"),
            size=call.get("size", 64),
            progress=False,
        )
    assert {p.name for p in tmp_path.iterdir()} == {"s.tif"}


def test_a_scene_in_reflectance_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    p = write_bands(
        tmp_path / "r.tif",
        128,
        128,
        lambda w: rng.random((4, w.height, w.width), dtype="f4") * 0.4,
        dtype="float32",
    )
    with pytest.raises(ValueError, match="expects .*gain="):
        predict_raster(small_encoder(), opened(p), tmp_path / "o.tif", size=64)
    predict_raster(
        small_encoder(),
        open_scene(p, "sentinel2_l1c", S4.band_names, gain=10000),
        tmp_path / "o.tif",
        size=64,
        progress=False,
    )


def peak(path, send):
    "Growth of the peak memory of this process, MB, by a map with a model that costs nothing."
    import eo_brew.maps.sweep

    def status(key):
        return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key))

    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    start = status("VmRSS")
    eo_brew.maps.sweep.CACHE = 4 << 20
    predict_raster(
        lambda b: b["ms"][:, :2, ::8, ::8],
        opened(path),
        path.with_suffix(".out.tif"),
        kind="embeddings",
        size=128,
        block=1024,
        bs=4,
        progress=False,
    )
    send.send((status("VmHWM") - start) / 1024)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat_against_height(tmp_path):
    peaks = []
    for h in 1024, 6144:
        get, send = mp.Pipe(False)
        path = scene_file(tmp_path / f"{h}.tif", h, 1024)
        pid = forked(lambda: peak(path, send))
        assert get.poll(120)
        peaks.append(get.recv())
        os.waitpid(pid, 0)
    assert 0 < peaks[1] < peaks[0] + 20, peaks  # MB; as float32 the five blocks more are 84


def test_threads_of_dask_give_the_same_map(tmp_path):
    distributed = pytest.importorskip("dask.distributed", reason="pip install eo_brew[dask]")
    path = scene_file(tmp_path / "s.tif", 300, 300)
    want = read(predict_raster(small_encoder(), opened(path), tmp_path / "want.tif", **SMALL))
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
    ) as client:
        assert np.array_equal(
            read(
                predict_raster(
                    small_encoder(), opened(path), tmp_path / "got.tif", client=client, **SMALL
                )
            ),
            want,
        )


def test_a_dask_worker_may_die(tmp_path):
    distributed = pytest.importorskip("distributed", reason="pip install eo_brew[dask]")
    path, parts, kw = (
        scene_file(tmp_path / "s.tif", 768, 768),
        tmp_path / ".got.tif.parts",
        SMALL | dict(block=100),
    )
    want = read(predict_raster(small_encoder(), opened(path), tmp_path / "want.tif", **kw))
    import dask

    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    distributed.utils.get_mp_context().set_forkserver_preload(
        ["distributed", "eo_brew.maps.predict"]
    )  # imported once, not by each worker
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim, hit = [*client.run(os.getpid).values()][0], []

        def kill():
            while blocks(parts) < 5:
                time.sleep(0.02)
            os.kill(victim, signal.SIGKILL)
            hit.append(blocks(parts))

        t = threading.Thread(target=kill, daemon=True)
        t.start()
        f = predict_raster(small_encoder(), opened(path), tmp_path / "got.tif", client=client, **kw)
        t.join(10)
    assert np.array_equal(read(f), want) and 5 <= hit[0] < 64, hit


def test_a_part_of_a_scene_is_refused(tmp_path):
    "Else the map of the whole scene would come back for a part of it."
    da = open_raster(scene_file(tmp_path / "s.tif", 64, 64), "sentinel2_l1c", bands=S4.band_names)
    with pytest.raises(ValueError, match="whole scene"):
        da[:, :32].eo.predict(small_encoder(), size=32)
    assert da.eo.predict(small_encoder(), size=32).shape[1:] == (64 // 8, 64 // 8)
