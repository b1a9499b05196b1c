"""Windows, splits, masks and loaders: properties that hold for any input, and faults that must not come back."""

import json
import pickle
import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from fastai.callback import progress  # noqa: F401  (no_bar)
from fastai.learner import Learner
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn

from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.data.labels import open_labels, scene_classes
from eo_brew.data.loader import EODataLoader
from eo_brew.data.modalities import BandDropout, open_modality
from eo_brew.data.samples import WindowDataset, fill_invalid
from eo_brew.scenes.open import open_scene, open_scenes, sample_labels, sample_scene, write_raster
from eo_brew.scenes.scene import close_handles, read_window
from eo_brew.core.sensors import Sensor, get_sensor
from eo_brew.scenes.stats import band_statistics
from eo_brew.data.splits import footprints, spatial_split, stripe_split
from eo_brew.scenes.windows import Windows, window_index

BANDS = ["B04", "B03", "B02", "B08"]
S2 = open_scene(sample_scene(), bands=["B02"])
fast = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def closed():
    yield
    close_handles()


def scene_of(h, w, x0=0, y0=0, crs=None, gsd=10.0):
    return replace(
        S2,
        name=f"{h}x{w}@{x0},{y0}",
        shape=(h, w),
        transform=Affine(gsd, 0, x0, 0, -gsd, y0),
        crs=crs if crs is not None else S2.crs,
    )


@fast
@given(
    h=st.integers(8, 90), w=st.integers(8, 90), size=st.integers(1, 8), stride=st.integers(1, 12)
)
def test_every_pixel_is_reached(h, w, size, stride):
    ws = window_index(scene_of(h, w), size, stride)
    seen = np.zeros((h, w), int)
    for _, (y, x, a, b) in ws:
        assert 0 <= y <= h - a and 0 <= x <= w - b
        seen[y : y + a, x : x + b] += 1
    if stride <= size:
        assert seen.min() >= 1
    assert len({tuple(r) for r in ws.rows.tolist()}) == len(ws)


@fast
@given(
    h=st.integers(40, 120),
    w=st.integers(40, 120),
    size=st.integers(4, 12),
    stride=st.integers(2, 14),
    pct=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
    dx=st.integers(0, 60),
    n=st.one_of(st.none(), st.integers(20, 80)),
)
def test_no_ground_on_both_sides(h, w, size, stride, pct, seed, dx, n):
    "Two scenes of overlapping ground (another date): not a pixel of it in training and in validation."
    scenes = [scene_of(h, w), scene_of(h, w, dx * 10.0, -30.0)]
    ws = window_index(scenes, size, stride, n, seed)
    try:
        train, valid = spatial_split(ws, scenes, pct, seed=seed)
    except ValueError as e:
        assert "use a smaller size" in str(e)
        return
    cover = []
    for part in (train, valid):
        m = np.zeros((h + 3, w + 60), bool)
        for s, (y, x, a, b) in part:
            m[y + 3 * s : y + 3 * s + a, x + dx * s : x + dx * s + b] = True
        cover.append(m)
    assert not (cover[0] & cover[1]).any()
    again = spatial_split(ws, scenes, pct, seed=seed)
    np.testing.assert_array_equal(again[1].rows, valid.rows)


@fast
@given(size=st.integers(16, 200), stride=st.integers(16, 200))
def test_stripes(size, stride):
    train, test = stripe_split(window_index(S2, size, stride))
    is_test = (np.arange(1536) // 256) % 3 == 2
    assert all(not is_test[x : x + b].any() for _, (y, x, a, b) in train)
    assert all(is_test[x : x + b].all() for _, (y, x, a, b) in test)


def test_split_across_crs():
    "The same ground in two UTM zones."
    zone32 = rasterio.CRS.from_epsg(32632).to_wkt()
    from rasterio.warp import transform_bounds

    a = scene_of(200, 200, 330000.0, 5822040.0)
    l, b, r, t = transform_bounds(
        rasterio.CRS.from_wkt(a.crs), rasterio.CRS.from_wkt(zone32), *a.bounds
    )
    c = scene_of(200, 200, l, t, zone32)
    ws = window_index([a, c], 10)
    train, valid = spatial_split(ws, [a, c], 0.2)
    (ft, _), (fv, _) = footprints(train, [a, c]), footprints(valid, [a, c])
    over = (
        np.minimum(ft[:, None, 2:], fv[None, :, 2:]) - np.maximum(ft[:, None, :2], fv[None, :, :2])
    ).min(-1)
    assert over.max() <= 1e-6


@fast
@given(y=st.integers(0, 40), x=st.integers(0, 40), size=st.integers(4, 24), seed=st.integers(0, 9))
def test_crops_and_masks_move_together(tmp_path_factory, y, x, size, seed):
    d = tmp_path_factory.mktemp("m")
    a = (
        np.random.default_rng(seed).integers(0, 5, (2, 64, 64)).astype("uint16")
    )  # 0 is nodata: a fifth of the pixels
    scene = open_scene(write_raster(d / "a.tif", a, S2, ["B02", "B03"], nodata=0), "sentinel2_l1c")
    v, ok = read_window(scene, (y, x, size, size))
    want = (a != 0).all(0)[y : y + size, x : x + size]
    np.testing.assert_array_equal(ok, want)
    np.testing.assert_array_equal(v[:, ok], a[:, y : y + size, x : x + size][:, want])
    filled = fill_invalid(v.copy(), ok, scene.sensor)
    assert np.isfinite(filled).all() and not (filled == 0).any()  # never a silent zero
    np.testing.assert_allclose(
        filled[:, ~ok],
        np.broadcast_to(scene.sensor.mean.numpy()[:, None], (2, (~ok).sum())),
        rtol=1e-6,
    )
    close_handles()


@fast
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 999), st.integers(0, 999)), max_size=20
    ),
    size=st.integers(1, 64),
)
def test_window_table_round_trip(tmp_path_factory, rows, size):
    f = tmp_path_factory.mktemp("w") / "w.json"
    w = Windows(
        np.array(rows, np.int64).reshape(-1, 3), size, tuple("abcd"), ((9, 9),) * 4, 3, dict(seed=1)
    )
    w.save(f)
    back = Windows.load(f)
    np.testing.assert_array_equal(back.rows, w.rows)
    assert (back.size, back.scenes, back.shapes, back.stride, back.note) == (
        w.size,
        w.scenes,
        w.shapes,
        w.stride,
        w.note,
    )
    json.loads(f.read_text())


def order(dl):
    return np.concatenate([b[0]["index"] for b in dl]).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_order_depends_on_seed_and_epoch_alone(workers):
    "The released code draws an unseeded subset, another one in every process."
    make = lambda seed: (
        eo_dataloaders(
            sample_scene(),
            size=128,
            bs=4,
            bands=["B02"],
            seed=seed,
            device="cpu",
            num_workers=workers,
        ).train
    )
    random.seed(1)
    a = make(3)
    first = [order(a) for _ in range(3)]
    random.seed(2)
    b = make(3)
    b.set_epoch(2)
    assert order(b) == first[2] and first[0] != first[1] and order(make(3)) == first[0]
    assert sorted(first[0]) != [] and len(set(map(tuple, first))) == 3


def test_workers_give_the_same_pixels():
    kw = dict(size=128, bs=4, bands=BANDS, device="cpu", labels=sample_labels(), split="stripes")
    one = eo_dataloaders(sample_scene(), num_workers=0, in_memory=True, **kw).valid
    two = eo_dataloaders(sample_scene(), num_workers=2, in_memory=False, **kw).valid
    for (a, ya), (b, yb) in zip(one, two):
        assert all(np.array_equal(a[k], b[k]) for k in a) and torch.equal(ya, yb)


def _files(d, n=12):
    for i in range(n):
        write_raster(
            d / f"{i:02}.tif",
            np.random.default_rng(i).integers(1, 3000, (4, 64, 64)).astype("uint16"),
            S2,
            BANDS,
            S2.transform @ Affine.translation(64 * i, 0),
        )
    return open_scenes(d, "sentinel2_l1c")


@pytest.mark.parametrize("workers,threads", [(0, 0), (2, 0), (0, 2)])
def test_skip_counts_lists_and_goes_on(tmp_path, workers, threads):
    scenes = _files(tmp_path)
    (tmp_path / "03.tif").write_bytes((tmp_path / "03.tif").read_bytes()[:3000])
    ds = WindowDataset(
        scenes, window_index(scenes, 64), on_error="skip", max_lost=0.2, in_memory=False
    )
    dl = EODataLoader(ds, bs=4, num_workers=workers, threads=threads)
    with pytest.warns(
        UserWarning,
        match=r"1 of 12 windows could not be read and were skipped: \[\('.*03.tif', \(0, 0, 64, 64\)",
    ):
        assert sorted(order(dl)) == [0, 1, 2, *range(4, 12)]
    for f in ("05.tif", "07.tif"):
        (tmp_path / f).unlink()
    with pytest.raises(ValueError, match="more than max_lost=0.2"):
        order(dl)
    with pytest.raises(ValueError, match=r"03.tif"):
        order(EODataLoader(WindowDataset(scenes, window_index(scenes, 64), in_memory=False), bs=4))


@pytest.mark.parametrize(
    "how", [dict(num_workers=0), dict(num_workers=2), dict(threads=3)], ids=str
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_samples_are_read_into_their_batch(tmp_path, how, in_memory):
    """In place or collated, with lost windows between: a batch holds what the dataset gives, and
    earlier batches stay as they were.
    """
    scenes = _files(tmp_path, 22)
    for i in (3, 4, 9):
        (tmp_path / f"{i:02}.tif").write_bytes((tmp_path / f"{i:02}.tif").read_bytes()[:3000])
    ds = WindowDataset(
        scenes, window_index(scenes, 64), on_error="skip", max_lost=0.5, in_memory=in_memory
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = [b for (b,) in EODataLoader(ds, bs=4, shuffle=True, **how)]
    assert sorted(i for b in batches for i in b["index"].tolist()) == [
        i for i in range(22) if i not in (3, 4, 9)
    ]
    for b in batches:
        for i, x, ok in zip(b["index"].tolist(), b["ms"], b["ms_valid"]):
            (want,) = ds[i]
            assert (
                torch.equal(x, want["ms"])
                and torch.equal(ok, want["ms_valid"])
                and int(x[0, 0, 0]) > 0
            )


@pytest.mark.parametrize("threads", [0, 2])
def test_collating_copies_nothing(tmp_path, monkeypatch, threads):
    import eo_brew.data.loader as loader

    made, real = [], loader.BatchMemory._slab
    monkeypatch.setattr(loader.BatchMemory, "_slab", lambda *a: made.append(real(*a)) or made[-1])
    scenes = _files(tmp_path, 11)
    batches = [
        b
        for (b,) in EODataLoader(
            WindowDataset(scenes, window_index(scenes, 64), in_memory=False), bs=4, threads=threads
        )
    ]
    assert [len(b["ms"]) for b in batches] == [4, 4, 3]
    assert [b["ms"].data_ptr() for b in batches] == [s.data_ptr() for s in made]


def test_a_view_of_a_sample_stays_what_it_is(tmp_path):
    "A transposed square patch begins where the patch does: its batch was the one before the transform."
    ds = WindowDataset(scenes := _files(tmp_path, 5), window_index(scenes, 64), in_memory=False)
    turned = lambda d: {**d, "ms": d["ms"].transpose(1, 2)}
    for (b,) in EODataLoader(ds, bs=2, after_item=turned):
        for i, x in zip(b["index"].tolist(), b["ms"]):
            assert torch.equal(x, ds[i][0]["ms"].transpose(1, 2)) and not torch.equal(
                x, ds[i][0]["ms"]
            )


def test_a_used_loader_is_sent_to_another_process(tmp_path):
    "With the memory of its last pass it could not be pickled, which starting workers by spawn does."
    ds = WindowDataset(scenes := _files(tmp_path, 5), window_index(scenes, 64), in_memory=False)
    dl = EODataLoader(ds, bs=2)
    for _ in dl:
        dl.one_batch()  # a pass within a pass
    assert [b["index"].tolist() for (b,) in pickle.loads(pickle.dumps(dl))] == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("threads", [0, 2])
def test_memory_is_given_out_again_and_kept_batches_are_left_alone(tmp_path, threads):
    scenes = _files(tmp_path, 40)
    ds = WindowDataset(scenes, window_index(scenes, 64), in_memory=False)
    kept, where = {}, []
    for (b,) in EODataLoader(ds, bs=2, threads=threads):
        where.append(b["ms"].data_ptr())
        if len(where) % 5 == 1:
            kept |= {
                int(i): b["ms"][k] for k, i in enumerate(b["index"])
            }  # a view is enough to keep it
    assert len(set(where)) < len(where)
    assert all(torch.equal(x, ds[i][0]["ms"]) for i, x in kept.items())


def test_threads_read_no_further_than_asked(tmp_path):
    "Leaving an epoch early stops the readers; looking at one batch starts none."
    import threading

    scenes = _files(tmp_path, 60)
    ds, read = WindowDataset(scenes, window_index(scenes, 64), in_memory=False), []
    real = ds.sample
    ds.sample = lambda i, out=None: (
        read.append((i, threading.current_thread() is threading.main_thread())) or real(i, out)
    )
    dl = EODataLoader(ds, bs=4, threads=2)
    dl.one_batch()
    assert all(here for _, here in read)
    read.clear()
    it = iter(dl)
    next(it)
    it.close()
    assert len(read) < 30 and not any(here for _, here in read)


def test_nodata_travels_from_the_file_to_the_loss(tmp_path):
    """Ground without pixels: invalid in the batch, in each view, and of no weight in the loss; and
    not in the statistics.
    """
    from eo_brew.methods.deo import deo_learner
    from eo_brew.models.teachers import efficientnet_lite_teacher
    from eo_brew.views.multicrop import MultiCrop
    from fastai.callback.core import Callback

    x = read_window(open_scene(sample_scene(), bands=BANDS), (0, 0, 512, 512))[0].astype("uint16")
    x[:, :, 256:] = 0
    f = write_raster(tmp_path / "half.tif", x, S2, BANDS, nodata=0)
    dls = eo_dataloaders(
        f,
        "sentinel2_l1c",
        bands=BANDS,
        size=64,
        stride=48,
        bs=8,
        device="cpu",
        valid_pct=0.2,
        min_valid=0,
    )
    assert (
        abs(
            band_statistics(open_scene(f, "sentinel2_l1c", BANDS)).mean - x[:, :, :256].mean((1, 2))
        ).max()
        < 0.1
    )
    torch.manual_seed(0)
    learn = deo_learner(
        dls,
        "vit_tiny_patch16_224",
        efficientnet_lite_teacher(),
        views=MultiCrop(n_local=1, global_size=32, local_size=16),
        hidden=32,
        head_dim=16,
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
    )
    seen = []

    class Look(Callback):
        def after_pred(self):
            pred, target = self.pred, self.yb[0]
            loss = lambda t: (self.loss_func(pred, t), self.loss_func.parts["patch"])[1]
            first, gone = (
                loss(target),
                {
                    k: nn.functional.adaptive_avg_pool2d(target["weight"], target[k].shape[2:]) == 0
                    for k in ("mid", "late")
                },
            )
            turned = {**target, **{k: torch.where(gone[k], -target[k], target[k]) for k in gone}}
            seen.append(
                (
                    first,
                    loss(turned),
                    loss({k: v for k, v in turned.items() if k != "weight"}),
                    gone["late"].float().mean(),
                )
            )
            assert torch.equal(
                target["weight"] > 0, torch.cat([v["ms_valid"] for v in self.xb[0][:2]])
            )

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Look())
    assert 0.1 < np.mean([g for *_, g in seen]) < 0.9
    for first, turned, counted, _ in seen:
        torch.testing.assert_close(turned, first)
    assert any(abs(counted - first) > 1e-3 for first, _, counted, _ in seen)


def test_refused_inputs(tmp_path):
    scenes = _files(tmp_path)
    with pytest.raises(ValueError, match="list them again"):
        WindowDataset(scenes, window_index(scenes[:3], 64))
    x = np.random.default_rng(0).random((4, 256, 256)).astype("f4")
    f = write_raster(tmp_path / "r.tif", x, S2, BANDS)
    with pytest.raises(ValueError, match="reflectance in 0..1.*gain=10000"):
        eo_dataloaders(f, "sentinel2_l1c", size=64, bs=4)
    assert (
        eo_dataloaders(f, "sentinel2_l1c", size=64, bs=4, gain=1e4, device="cpu")
        .one_batch()[0]["ms"]
        .max()
        > 5000
    )
    x[2] = 7.0
    with pytest.raises(ValueError, match=r"\['B02'\] are constant"):
        eo_dataloaders(
            write_raster(
                tmp_path / "c.tif", x * 3e3 * (np.arange(4) != 2)[:, None, None], S2, BANDS
            ),
            "sentinel2_l1c",
            size=64,
            bs=4,
        )
    wrapped = (np.random.default_rng(0).integers(-200, 3000, (4, 256, 256))).astype("uint16")
    with pytest.raises(ValueError, match="16-bit overflow"):
        eo_dataloaders(
            write_raster(tmp_path / "o.tif", wrapped, S2, BANDS), "sentinel2_l1c", size=64, bs=4
        )
    nothing = np.zeros((4, 256, 256), "uint16")
    with pytest.raises(ValueError, match="no valid pixel"):
        eo_dataloaders(
            write_raster(tmp_path / "n.tif", nothing, S2, BANDS), "sentinel2_l1c", size=64, bs=4
        )


def _at(path, x, transform, crs=32633):
    x = np.asarray(x, "float32")[None]
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="float32",
        count=1,
        height=x.shape[1],
        width=x.shape[2],
        transform=transform,
        crs=rasterio.CRS.from_epsg(crs) if crs else None,
    ) as dst:
        dst.write(x)
    return str(path)


def test_classes_by_the_longest_path(tmp_path):
    "Labels given by path collapsed to the file name: both were water."
    files = []
    for n in "ab":
        (tmp_path / n).mkdir()
        files.append(_at(tmp_path / n / "1.tif", np.ones((4, 4)), Affine(10, 0, 0, 0, -10, 0)))
    scenes = open_scenes(files, "dsm")
    assert scene_classes({"a/1.tif": "forest", "b/1.tif": "water"}, scenes) == (
        ["forest", "water"],
        ["forest", "water"],
    )
    assert scene_classes(
        {"b/1": "water", f"{tmp_path}/a/1.tif": "forest", "c/1.tif": "town"}, scenes
    )[0] == ["forest", "water"]
    assert scene_classes({"1.tif": "forest", "1.png": "water"}, scenes)[0] == ["forest", "forest"]
    with pytest.raises(
        ValueError, match=r"b/1.tif could be any of \['a/1.tif \(forest\)', 'c/1.tif \(town\)'\]"
    ):
        scene_classes({"a/1.tif": "forest", "c/1.tif": "town"}, scenes)
    (tmp_path / "l.csv").write_text("1.tif,forest\n1.tif,water\n")
    with pytest.raises(ValueError, match="give more of their paths"):
        scene_classes(tmp_path / "l.csv", scenes)


@pytest.mark.parametrize("south_up", [True, False])
def test_second_look_at_a_south_up_scene(tmp_path, south_up):
    "Its ground had a negative height: nothing overlapped, and the second modality was silently empty."
    rows = np.repeat(np.arange(64.0)[:, None], 64, 1)  # northing in tens of metres
    up, down = Affine(10, 0, 0, 0, 10, 0), Affine(10, 0, 0, 0, -10, 640)
    first = open_scenes(_at(tmp_path / "a.tif", rows, up), "dsm")
    spec = dict(
        path=_at(tmp_path / "b.tif", rows if south_up else rows[::-1], up if south_up else down),
        sensor="dsm",
    )
    x, ok = open_modality("dsm", spec, first).read(0, first[0], (8, 0, 32, 32))
    assert ok.all()
    np.testing.assert_array_equal(x[0], read_window(first[0], (8, 0, 32, 32))[0][0])


def test_degrees_beside_metres_ask_for_a_size(tmp_path):
    "1e-4 degrees by 10 m: patches of one pixel."
    first = open_scenes(
        _at(tmp_path / "a.tif", np.ones((64, 64)), Affine(1e-4, 0, 15, 0, -1e-4, 50.02), 4326),
        "dsm",
    )
    spec = dict(
        path=_at(tmp_path / "b.tif", np.ones((128, 128)), Affine(10, 0, 499500, 0, -10, 5541500)),
        sensor="dsm",
    )
    with pytest.raises(
        ValueError, match=r"modalities\['dsm'\].*a.tif has degrees and .*b.tif metres.*size="
    ):
        open_modality("dsm", spec, first)
    x, ok = open_modality("dsm", spec | dict(size=24), first).read(0, first[0], (0, 0, 32, 32))
    assert x.shape == (1, 24, 24) and ok.all()


def test_one_star_does_not_pair_by_order(tmp_path):
    "As many files as scenes, in another order: each scene had another's ground."
    t = lambda i: Affine(10, 0, 1000.0 * i, 0, -10, 0)
    for i, n in enumerate("ab"):
        _at(tmp_path / f"{n}_s.tif", np.full((32, 32), i), t(i))
        _at(tmp_path / f"{'yx'[i]}_dsm.tif", np.full((32, 32), i), t(i))
    scenes = open_scenes([str(tmp_path / f"{n}_s.tif") for n in "ab"], "dsm")
    m = open_modality(
        "dsm", dict(path=f"{tmp_path}/*_dsm.tif", sensor="dsm"), scenes, str(tmp_path)
    )
    for i in (0, 1):
        assert (m.read(i, scenes[i], (0, 0, 16, 16))[0] == i).all()


def test_statistics_are_measured_without_the_invalid(tmp_path):
    x = np.random.default_rng(0).normal(9000, 100, (6, 256, 256)).astype("uint16")
    x[:, :100] = 0
    f = write_raster(tmp_path / "l.tif", x, S2, get_sensor("landsat5_sr").band_names)
    with rasterio.open(f, "r+") as dst:
        dst.update_tags(EO_OFFSET="-7272.7")
    dls = eo_dataloaders(f, "landsat5_sr", size=64, bs=4, device="cpu")
    torch.testing.assert_close(
        dls.sensors["ms"].mean, torch.full((6,), 9000 - 7273.0), atol=3, rtol=0
    )
    torch.testing.assert_close(dls.sensors["ms"].std, torch.full((6,), 100.0), atol=3, rtol=0)


def test_missing_bands_and_partners(tmp_path):
    _files(tmp_path)
    write_raster(
        tmp_path / "03.tif",
        np.ones((2, 64, 64), "uint16") * np.array([100, 200])[:, None, None].astype("uint16"),
        S2,
        ["B04", "B08"],
    )
    with pytest.raises(ValueError, match=r"bands=\['B03', 'B02'\] not found"):
        open_scenes(tmp_path, "sentinel2_l1c", BANDS)
    dls = eo_dataloaders(
        tmp_path,
        "sentinel2_l1c",
        size=64,
        bs=2,
        bands=BANDS,
        allow_missing=True,
        device="cpu",
        valid_pct=0.2,
    )
    {int(i): b for (x,) in [*dls.train, *dls.valid] for i, b in zip(x["index"], x["ms_bands"])}
    gone = [
        x
        for ds in (dls.train_ds, dls.valid_ds)
        for (x,) in (ds[i] for i in range(len(ds)))
        if not x["ms_bands"].all()
    ]
    assert (
        len(gone) == 1
        and gone[0]["ms_bands"].tolist() == [True, False, False, True]
        and gone[0]["ms_valid"].all()
    )
    torch.testing.assert_close(
        gone[0]["ms"][1], torch.full((64, 64), dls.sensors["ms"].mean[1].item())
    )


@fast
@given(p=st.floats(0, 0.95), keep=st.integers(1, 4), seed=st.integers(0, 999))
def test_band_dropout(p, keep, seed):
    sensor = get_sensor("sentinel2_l1c", BANDS)
    b = BandDropout(sensor, p, keep, generator=torch.Generator().manual_seed(seed))(
        {"ms": torch.zeros(8, 4, 2, 2), "ms_valid": torch.ones(8, 1, 2, 2)}
    )
    assert b["ms_bands"].sum(1).min() >= keep
    assert ((b["ms"][:, :, 0, 0] == 0) == b["ms_bands"]).all()


class Head(nn.Module):
    def __init__(self, c=4):
        super().__init__()
        self.conv = nn.Conv2d(c, 8, 1)

    def forward(self, b):
        return self.conv(b["ms"] / 1e4)


def test_in_a_plain_learner():
    dls = eo_dataloaders(
        sample_scene(),
        size=128,
        bs=8,
        bands=BANDS,
        labels=sample_labels(),
        split="stripes",
        device="cpu",
    )
    torch.manual_seed(0)
    learn = Learner(
        dls,
        Head(),
        loss_func=lambda o, y: nn.functional.cross_entropy(o, y, ignore_index=255),
        lr=0.1,
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
    assert learn.recorder.values[-1][0] < np.log(8)
    p, y = learn.get_preds()
    assert p.shape[0] == len(dls.valid_ds) == y.shape[0]
    dls.show_batch(max_n=2)


def test_hundred_thousand_windows():
    big = scene_of(20224, 20224)
    w = window_index(big, 64)
    train, valid = spatial_split(w, big, 0.1)
    assert (
        len(w) == 316**2
        and len(train) + len(valid) == len(w)
        and abs(len(valid) / len(w) - 0.1) < 0.01
    )


def _ground(path, field, gsd, bounds, crs, scale, dtype, bands, nodata=None, void=None):
    "A raster of `field(easting, northing in UTM 33)` on a grid of its own."
    from rasterio.warp import transform

    l, b, r, t = bounds
    xs, ys = np.meshgrid(np.arange(l + gsd / 2, r, gsd), np.arange(t - gsd / 2, b, -gsd))
    e, n = (np.reshape(v, xs.shape) for v in transform(crs, "EPSG:32633", xs.ravel(), ys.ravel()))
    x = np.stack([field(e, n) * scale + 10 * k for k in range(bands)])
    if void is not None:
        x[(slice(None), *void)] = nodata
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=bands,
        height=xs.shape[0],
        width=xs.shape[1],
        crs=crs,
        dtype=dtype,
        nodata=nodata,
        transform=rasterio.Affine(gsd, 0, l, 0, -gsd, t),
    ) as dst:
        dst.write(x.round().astype(dtype) if dtype != "float32" else x.astype(dtype))


def test_three_modalities_on_one_ground(tmp_path):
    "Multispectral at 10 m, an aerial picture at 5 m in another CRS, heights at 20 m for the western half, with a void."
    field = lambda e, n: 100 + (e - 400000) / 40 + 20 * np.sin((n - 5800000) / 200)
    ms, west = (400000, 5800000, 402560, 5801280), (399990, 5799990, 401290, 5801290)
    _ground(tmp_path / "ms.tif", field, 10, ms, "EPSG:32633", 10, "uint16", 3)
    from rasterio.warp import transform_bounds

    _ground(
        tmp_path / "air.tif",
        field,
        5,
        transform_bounds("EPSG:32633", "EPSG:32632", *ms),
        "EPSG:32632",
        1,
        "uint8",
        3,
    )
    _ground(
        tmp_path / "dsm.tif",
        field,
        20,
        west,
        "EPSG:32633",
        1,
        "float32",
        1,
        nodata=-9999,
        void=(slice(0, 5), slice(0, 5)),
    )
    dls = eo_dataloaders(
        tmp_path / "ms.tif",
        "sentinel2_l1c",
        size=64,
        bs=4,
        bands=["B04", "B03", "B02"],
        offset=0,
        valid_pct=0.25,
        device="cpu",
        allow_missing=True,
        modalities=dict(
            rgb=dict(path=tmp_path / "air.tif", sensor="rgb"),
            dsm=dict(path=tmp_path / "dsm.tif", sensor="dsm"),
        ),
    )
    seen = set()
    for part in (dls.train, dls.valid):
        for i in range(len(part.dataset)):
            (item,) = part.dataset[i]
            _, (y, x, h, w) = part.dataset.windows[i]
            assert {k: tuple(item[k].shape) for k in ("ms", "rgb", "dsm")} == dict(
                ms=(3, 64, 64), rgb=(3, 128, 128), dsm=(1, 32, 32)
            )
            for name, scale, gsd, off in (
                ("ms", 10, 10, 0.06),
                ("rgb", 1 / 255, 5, 1.2),
                ("dsm", 1, 20, 1.3),
            ):  # half a pixel at the void's border
                n, ok = item[name].shape[-1], item[f"{name}_valid"][0]
                e, no = np.meshgrid(
                    ms[0] + x * 10 + (np.arange(n) + 0.5) * gsd,
                    ms[3] - y * 10 - (np.arange(n) + 0.5) * gsd,
                )
                got = item[name][0].numpy() / scale
                if ok.any():
                    assert np.abs(got - field(e, no))[ok].max() < off, name
                seen.add((name, "all" if ok.all() else "some" if ok.any() else "none"))
    assert seen >= {("ms", "all"), ("rgb", "all"), ("dsm", "all"), ("dsm", "some"), ("dsm", "none")}


def test_colours_of_a_missing_band_are_invalid(tmp_path):
    x = read_window(open_scene(sample_scene(), bands=BANDS), (0, 0, 64, 128))[0].astype("uint16")
    for k in (0, 2, 3):
        write_raster(
            tmp_path / f"T33UUU_{BANDS[k]}.tif", x[k : k + 1], S2, BANDS[k : k + 1]
        )  # no B03
    scene = open_scene(tmp_path, "sentinel2_l1c", BANDS, offset=0, allow_missing=True)
    (item,) = WindowDataset(scene, window_index(scene, 64), allow_missing=True, others=["rgb"])[0]
    assert (
        item["ms_valid"].all()
        and not item["rgb_valid"].any()
        and item["ms_bands"].tolist() == [True, False, True, True]
    )


def _flat(path, value=1, n=256, crs=32633, transform=Affine(10, 0, 300000, 0, -10, 5800000)):
    "A raster as bare rasterio writes it."
    x = np.asarray(value, "uint8")
    x = np.full((1, n, n), x) if x.ndim == 0 else x[None]
    profile = dict(driver="GTiff", dtype="uint8", count=1, height=x.shape[1], width=x.shape[2])
    profile |= dict(crs=rasterio.CRS.from_epsg(crs) if crs else None, transform=transform)
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(x)
    return str(path)


OWN = Sensor("own", [dict(name="a", wavelength=None, gsd=None, mean=0.0, std=1.0)])


def test_a_scene_across_the_antimeridian_is_split(tmp_path):
    "One Fiji scene among six made blocks as wide as the world: nothing was left for training."
    noise = np.random.default_rng(0).integers(1, 255, (256, 256))
    for zone in (10, 33, 55):
        t = Affine(10, 0, 5e5, 0, -10, 5e6)
        _flat(tmp_path / f"{zone}.tif", noise, crs=32600 + zone, transform=t)
    fiji = Affine(10, 0, 178430, 0, -10, 8173370)
    _flat(tmp_path / "fiji.tif", noise, crs=32701, transform=fiji)
    dls = eo_dataloaders(tmp_path, OWN, size=64, bs=2, device="cpu")
    assert len(dls.train_ds) > 40 and len(dls.valid_ds) > 0
    scenes = dls.train_ds.scenes
    fp, _ = footprints(window_index(scenes, 64), scenes)
    assert (fp[:, 2] - fp[:, 0]).max() < 1500


@pytest.mark.parametrize(
    "first,second", [(32760, 32701), (32701, 32760), (32760, 4326), (4326, 32701)]
)
def test_second_looks_across_the_antimeridian(tmp_path, first, second):
    "The same place in zone 60, in zone 1 and in degrees: values as rasterio warps them, and none missing."
    from rasterio.vrt import WarpedVRT
    from rasterio.warp import transform_bounds

    places = {32760: (815000, 8173370), 32701: (178430, 8173370), 4326: (179.985, -16.51)}
    rows = np.repeat(np.arange(256)[:, None], 256, 1)
    step = 1e-4 if first == 4326 else 10
    t = Affine(step, 0, places[first][0], 0, -step, places[first][1])
    a = open_scenes(_flat(tmp_path / "a.tif", rows, crs=first, transform=t), OWN)
    if second == 4326:  # 179.9 to 180.1 degrees, as files that cross the line have them
        l, b, r, top = transform_bounds(rasterio.CRS.from_epsg(first), "EPSG:4326", *a[0].bounds)
        r = r if r > l else r + 360
        t2 = Affine((r - l + 0.02) / 300, 0, l - 0.01, 0, -(top - b + 0.02) / 300, top + 0.01)
    else:
        l, b, r, top = transform_bounds(
            rasterio.CRS.from_epsg(first), rasterio.CRS.from_epsg(second), *a[0].bounds
        )
        t2 = Affine(10, 0, l - 200, 0, -10, top + 200)
    other = _flat(
        tmp_path / "b.tif", np.arange(512 * 512).reshape(512, 512) % 251, crs=second, transform=t2
    )
    m = open_modality("b", dict(path=other, sensor=OWN, size=64), a)
    found = m.find(0, a[0].bounds, a[0].crs)
    assert found is not None
    x, ok = m.read(0, a[0], (64, 64, 64, 64))
    with rasterio.open(other) as src:
        to = dict(
            crs=rasterio.CRS.from_epsg(first), transform=a[0].transform @ Affine.translation(64, 64)
        )
        with WarpedVRT(src, width=64, height=64, add_alpha=True, **to) as v:
            want, inside = v.read()
    assert ok.mean() > 0.9 and (ok == (inside != 0)).mean() > 0.99
    assert np.abs(x[0][ok] - want[ok].astype(float)).mean() < 12  # bilinear here, nearest there


@pytest.mark.parametrize("turn", [360, -360])
def test_second_looks_in_degrees_of_another_turn(tmp_path, turn):
    "-70 degrees of one file are 290 of another."
    west = Affine(1e-4, 0, -70 if turn > 0 else 290, 0, -1e-4, -10)
    rows = np.arange(256 * 256).reshape(256, 256) % 199
    a = open_scenes(_flat(tmp_path / "a.tif", rows, crs=4326, transform=west), OWN)
    far = Affine(1e-4, 0, west.c + turn, 0, -1e-4, -10)
    b = _flat(tmp_path / "b.tif", rows, crs=4326, transform=far)
    m = open_modality("b", dict(path=b, sensor=OWN, size=64), a)
    x, ok = m.read(0, a[0], (64, 64, 64, 64))
    assert ok.all() and np.abs(x[0] - rows[64:128, 64:128]).max() < 1e-3


def test_labels_of_another_crs_are_not_accepted_by_equal_numbers(tmp_path):
    scene = open_scenes(
        _flat(tmp_path / "a.tif", np.arange(65536).reshape(256, 256) % 200 + 1), OWN
    )
    with pytest.raises(ValueError, match="label no pixel of a.tif"):
        open_labels(_flat(tmp_path / "l.tif", crs=32632), scene)
    t = Affine(10, 0, 300000, 0, -10, 5800000)
    near = open_labels(_flat(tmp_path / "k.tif", transform=t @ Affine.translation(1e-8, 0)), scene)
    assert (near.read(0, scene[0]) == 0).all()
    bare = _flat(tmp_path / "n.tif", crs=None, transform=Affine.identity())
    assert (open_labels(bare, scene).read(0, scene[0], (0, 0, 8, 8)) == 0).all()
    with pytest.raises(ValueError, match="no CRS to warp them by"):
        open_labels(_flat(tmp_path / "m.tif", n=100, crs=None, transform=Affine.identity()), scene)


def test_labels_of_another_grid_as_rasterio_warps_them(tmp_path):
    from rasterio.warp import Resampling, reproject, transform_bounds

    scene = open_scenes(
        _flat(tmp_path / "a.tif", np.arange(65536).reshape(256, 256) % 200 + 1), OWN
    )[0]
    l, b, r, t = transform_bounds(rasterio.CRS.from_wkt(scene.crs), "EPSG:4326", *scene.bounds)
    to = Affine((r - l) / 90, 0, l, 0, -(t - b) / 70, t)
    y = np.random.default_rng(0).integers(1, 8, (70, 90)).astype("uint8")
    file = _flat(tmp_path / "l.tif", y, crs=4326, transform=to)
    want = np.zeros(scene.shape, "uint8")
    crs = rasterio.CRS.from_wkt(scene.crs)
    reproject(
        y, want, src_transform=to, src_crs="EPSG:4326", dst_transform=scene.transform, dst_crs=crs,
        resampling=Resampling.nearest,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="EPSG:4326, 70x90 pixels. is warped to the grid of a.tif"):
        labels = open_labels(file, scene)
    got = labels.read(0, scene).numpy()
    assert labels.names == tuple("1234567")  # seven classes
    on = want > 0
    assert (got[on] == want[on] - 1).mean() > 0.999 and (got[~on] == 255).all()


@pytest.mark.parametrize("size,bs", [(96, 64), (100, 8), (230, 4)])
def test_few_windows_are_no_error(tmp_path, size, bs):
    file = _flat(tmp_path / "a.tif", np.arange(57600).reshape(240, 240) % 200 + 1)
    with pytest.warns(UserWarning, match=f"few windows of {size} px.* for training"):
        dls = eo_dataloaders(file, OWN, size=size, bs=bs, device="cpu")
    train, valid = dls.train_ds.windows, dls.valid_ds.windows
    assert len(train) >= dls.train.bs > 0
    seen = [np.zeros((240, 240), bool) for _ in range(2)]
    for m, ws in zip(seen, (train, valid)):
        for _, (y, x, h, w) in ws:
            m[y : y + h, x : x + w] = True
    assert not (seen[0] & seen[1]).any()
    assert len(valid) or size == 230


def test_windows_need_a_share_of_valid_pixels(tmp_path):
    x = np.arange(65536).reshape(256, 256) % 200 + 1
    x[:, 104:] = 0
    file = _flat(tmp_path / "a.tif", x)
    count = lambda **kw: len(
        eo_dataloaders(file, OWN, size=32, bs=2, valid_pct=0, nodata=0, device="cpu", **kw).train_ds
    )
    assert (count(), count(min_valid=0), count(min_valid=0.05)) == (24, 64, 32)
    with pytest.raises(
        ValueError, match="the fullest of 16 windows of 64 px is valid to 0%.*no valid pixel"
    ):
        eo_dataloaders(_flat(tmp_path / "z.tif", 0), OWN, size=64, bs=2, nodata=0)


def test_polygons_of_a_geopackage(tmp_path):
    geopandas = pytest.importorskip("geopandas")
    from shapely.geometry import box

    scene = open_scenes(
        _flat(tmp_path / "a.tif", np.arange(65536).reshape(256, 256) % 200 + 1), OWN
    )[0]
    shapes = [box(300000, 5799000, 300500, 5800000), box(300500, 5799000, 301000, 5800000)]
    table = geopandas.GeoDataFrame(
        dict(id=[7, 8], crop=["rye", "beet"]), geometry=shapes, crs=32633
    )
    table.to_crs(4326).to_file(tmp_path / "f.gpkg")
    with pytest.raises(ValueError, match=r"which of \['id', 'crop'\] holds the class"):
        open_labels(tmp_path / "f.gpkg", scene)
    with pytest.warns(UserWarning, match="2 polygons of f.gpkg are rasterised"):
        labels = open_labels(tmp_path / "f.gpkg", scene, column="crop")
    y = labels.read(0, scene, (0, 0, 100, 120)).numpy()
    assert labels.names == ("beet", "rye")
    assert (y[2:-2, 2:48] == 1).all() and (y[2:-2, 52:98] == 0).all() and (y[:, 104:] == 255).all()
