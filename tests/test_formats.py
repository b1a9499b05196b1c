"""The same window through every format: made from the shipped scene, opened, measured, listed, read, batched."""

import shutil
import zipfile

import numpy as np
import pytest
import rasterio
from affine import Affine
from servers import Ranges

from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.scenes.open import open_raster, open_scene, open_scenes, sample_scene, write_raster
from eo_brew.scenes.scene import close_handles, read_window
from eo_brew.core.sensors import get_sensor
from eo_brew.scenes.stats import band_statistics
from eo_brew.scenes.windows import window_index

BANDS = ["B02", "B03", "B04", "B08"]  # 10 m: every format holds the very same pixels
ROWS, COLS = slice(128, 256), slice(600, 792)  # of the shipped scene
WINDOW = (32, 48, 64, 64)  # of that cut


@pytest.fixture(scope="module")
def cut():
    scene = open_scene(sample_scene(), bands=BANDS)
    x, _ = read_window(scene, (ROWS.start, COLS.start, 128, 192))
    transform = scene.transform @ Affine.translation(COLS.start, ROWS.start)
    return scene, x.astype("uint16"), transform


def _save(path, x, cut, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    where = dict(transform=cut[2], crs=rasterio.CRS.from_wkt(cut[0].crs)) if cut[2] else {}
    with rasterio.open(
        path, "w", dtype=x.dtype, count=len(x), height=x.shape[1], width=x.shape[2], **where, **kw
    ) as dst:
        dst.write(x)


def geotiff(d, cut):
    write_raster(d / "a.tif", cut[1], cut[0], BANDS, cut[2])
    return d / "a.tif", {}


def cog(d, cut):
    write_raster(d / "c.tif", cut[1], cut[0], BANDS, cut[2], driver="COG", blocksize=64)
    return d / "c.tif", {}


def unnamed(d, cut):
    _save(d / "u.tif", cut[1], cut, driver="GTiff")
    return d / "u.tif", dict(offset=0)


def file_a_band(d, cut):
    for n, b in zip(BANDS, cut[1]):
        _save(d / "bands" / f"{n}.tif", b[None], cut, driver="GTiff")
    return d / "bands", dict(offset=0)


def _jp2(path, x, cut):
    _save(path, x, cut, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES", YCBCR420="NO")


def safe_l1c(d, cut):
    root = d / "S2A_MSIL1C_20170216T102101_N0204_R065_T33UUU_20170216T102204.SAFE"
    img = root / "GRANULE" / "L1C_T33UUU_A008642_20170216T102204" / "IMG_DATA"
    for n, b in zip(BANDS, cut[1]):
        _jp2(img / f"T33UUU_20170216T102101_{n}.jp2", b[None], cut)
    _jp2(img / "T33UUU_20170216T102101_TCI.jp2", (cut[1][[2, 1, 0]] // 16).astype("uint8"), cut)
    _jp2(root / "GRANULE" / "L1C_x" / "QI_DATA" / "MSK_DETFOO_B02.jp2", cut[1][:1] * 0, cut)
    (root / "MTD_MSIL1C.xml").write_text(
        "<n1:Level-1C_User_Product><PROCESSING_BASELINE>02.04</PROCESSING_BASELINE>"
    )
    return root, dict(sensor=None)


def safe_l2a(d, cut):
    root = d / "S2A_MSIL2A_20230216T102101_N0509_R065_T33UUU_20230216T180000.SAFE"
    img = root / "GRANULE" / "L2A_T33UUU_A008642_20230216T102204" / "IMG_DATA"
    for n, b in zip(BANDS, cut[1]):
        _jp2(img / "R10m" / f"T33UUU_20230216T102101_{n}_10m.jp2", b[None] + 1000, cut)
        _jp2(
            img / "R20m" / f"T33UUU_20230216T102101_{n}_20m.jp2",
            b[None, ::2, ::2] * 0 + 7,
            (cut[0], None, cut[2] @ Affine.scale(2)),
        )
    (root / "MTD_MSIL2A.xml").write_text(
        '<x><BOA_ADD_OFFSET band_id="0">-1000</BOA_ADD_OFFSET></x>'
    )
    return root, dict(sensor=None)


def vsizip(d, cut):
    root, kw = safe_l1c(d / "tmp", cut)
    with zipfile.ZipFile(d / "p.zip", "w") as z:
        for f in sorted(root.rglob("*")):
            z.write(f, f.relative_to(root.parent))
    shutil.rmtree(root)
    return f"/vsizip/{d}/p.zip", kw


def zarr(d, cut):
    pytest.importorskip("zarr")
    open_raster(geotiff(d, cut)[0], "sentinel2_l1c").to_dataset().drop_encoding().to_zarr(
        d / "a.zarr"
    )
    return d / "a.zarr", dict(sensor=None)


def netcdf(d, cut):
    pytest.importorskip("netCDF4")
    da = open_raster(geotiff(d, cut)[0], "sentinel2_l1c")
    da.to_dataset("band").assign_attrs(
        sensor="sentinel2_l1c", offset=0.0
    ).drop_encoding().to_netcdf(d / "a.nc", engine="netcdf4")
    return d / "a.nc", dict(sensor=None)  # a variable a band


def hdf5_deo(d, cut):
    h5py = pytest.importorskip("h5py")
    full = np.zeros((2, 13, *cut[1].shape[1:]), "uint16")
    full[1, [1, 2, 3, 7]] = cut[1]
    with h5py.File(d / "deo.h5", "w") as f:
        f.create_dataset("images", data=full, chunks=(1, 13, 64, 64))
    return d / "deo.h5", dict(offset=0)


def hdf5_named(d, cut):
    h5py = pytest.importorskip("h5py")
    with h5py.File(d / "named.h5", "w") as f:
        for n, b in zip(BANDS, cut[1]):
            f[n] = b[None]
    return d / "named.h5", dict(offset=0)


def http(d, cut):
    cog(d, cut)
    return "{served}/c.tif", {}


FORMATS = [
    geotiff,
    cog,
    unnamed,
    file_a_band,
    safe_l1c,
    safe_l2a,
    vsizip,
    http,
    zarr,
    netcdf,
    hdf5_deo,
    hdf5_named,
]


@pytest.mark.parametrize("make", FORMATS, ids=lambda f: f.__name__)
def test_same_window_through_every_format(make, tmp_path, cut, served):
    path, kw = make(tmp_path, cut)
    path = str(path).replace("{served}", served)
    kw = dict(sensor="sentinel2_l1c", bands=BANDS) | kw
    scene = open_scenes(path, **kw)[-1]
    y, x, h, w = WINDOW
    want = cut[1][:, y : y + h, x : x + w].astype("f4")
    got, valid = read_window(scene, WINDOW)  # read
    np.testing.assert_array_equal(got, want)
    assert valid.all()
    if scene.crs:
        assert scene.transform.almost_equals(cut[2], 1e-6)
    np.testing.assert_allclose(
        band_statistics(scene).mean, cut[1].mean((1, 2)), rtol=1e-5
    )  # statistics
    assert len(window_index(scene, 64)) == 6  # windows
    np.testing.assert_array_equal(
        open_raster(scene)[:, y : y + h, x : x + w].values, want
    )  # the lazy array
    (batch,) = eo_dataloaders(
        scene, size=64, bs=2, valid_pct=0.2, device="cpu", in_memory=False
    ).one_batch()  # batch
    assert batch["ms"].shape == (2, 4, 64, 64) and batch["ms_valid"].all()
    full = np.pad(cut[1], ((0, 0), (0, 0), (0, 0)))
    assert all(
        any(
            np.array_equal(b, full[:, i : i + 64, j : j + 64])
            for i in (0, 64)
            for j in (0, 64, 128)
        )
        for b in batch["ms"].numpy()
    )
    close_handles()


def png(d, x, cut):
    _save(d / "p.png", x, (cut[0], None, None), driver="PNG")
    return d / "p.png", "rgb", {}


def webp(d, x, cut):
    _save(d / "p.webp", x, (cut[0], None, None), driver="WEBP", LOSSLESS="YES")
    return d / "p.webp", "rgb", {}


def bmp(d, x, cut):
    _save(d / "p.bmp", x, (cut[0], None, None), driver="BMP")
    return d / "p.bmp", "rgb", {}


def orthophoto(d, x, cut):
    _save(d / "o.tif", x, cut, driver="GTiff", compress="deflate")
    return d / "o.tif", "rgb", {}


def rgbn(d, x, cut):
    _save(
        d / "n.tif", np.concatenate([x, x[:1]]), cut, driver="GTiff", photometric="RGB", alpha="NO"
    )
    return d / "n.tif", "rgbn", dict(bands=["red", "green", "blue"])


def pair(d, x, cut):
    _save(d / "a_dom.tif", x, cut, driver="GTiff")
    _save(
        d / "a_dsm.tif",
        np.random.default_rng(0).normal(50, 3, (1, 128, 192)).astype("f4"),
        cut,
        driver="GTiff",
    )
    return (
        d / "*_dom.tif",
        "rgb",
        dict(modalities=dict(dsm=dict(path=str(d / "*_dsm.tif"), sensor="dsm"))),
    )


@pytest.mark.parametrize("make", [png, webp, bmp, orthophoto, rgbn, pair], ids=lambda f: f.__name__)
def test_same_colours_through_every_format(make, tmp_path, cut):
    x = (cut[1][[2, 1, 0]] // 16).clip(1, 255).astype("uint8")
    path, sensor, kw = make(tmp_path, x, cut)
    modalities, (y, c, h, w) = kw.pop("modalities", None), WINDOW
    (scene,) = open_scenes(sorted(map(str, tmp_path.glob(path.name))), sensor, **kw)
    want = x[:, y : y + h, c : c + w] / np.float32(255)
    got, valid = read_window(scene, WINDOW)
    np.testing.assert_allclose(got, want, atol=1e-7)
    assert valid.all()
    np.testing.assert_allclose(band_statistics(scene).mean, x.mean((1, 2)) / 255, rtol=1e-5)
    assert len(window_index(scene, 64)) == 6 and bool(scene.crs) == (scene.name.endswith(".tif"))
    (batch,) = eo_dataloaders(
        path,
        sensor,
        size=64,
        bs=2,
        valid_pct=0.2,
        device="cpu",
        in_memory=False,
        name="rgb",
        modalities=modalities,
        **kw,
    ).one_batch()
    cuts = [x[:, i : i + 64, j : j + 64] / np.float32(255) for i in (0, 64) for j in (0, 64, 128)]
    assert all(any(np.allclose(b, v, atol=1e-6) for v in cuts) for b in batch["rgb"].numpy())
    assert ("dsm" in batch) == (modalities is not None)
    close_handles()


@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_safe_folder_of_the_whole_scene(tmp_path, level):
    "All bands at three resolutions as the product comes: level, offset and grid are told by names and metadata."
    root = tmp_path / f"S2A_MSI{level}_20170216T102101_N0500_R065_T33UUU_20230216T180000.SAFE"
    sensor, tag = get_sensor(f"sentinel2_{level.lower()}"), dict(L1C="RADIO", L2A="BOA")[level]
    for b in sensor.bands:
        name = f"T33UUU_20170216T102101_{b.name}"
        inner = f"{name}.jp2" if level == "L1C" else f"R{b.gsd:.0f}m/{name}_{b.gsd:.0f}m.jp2"
        to = root / "GRANULE" / f"{level}_T33UUU_A008642_20170216T102204" / "IMG_DATA" / inner
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes((sample_scene() / f"{name}.jp2").read_bytes())
    (root / f"MTD_MSI{level}.xml").write_text(
        f'<x><{tag}_ADD_OFFSET_VALUES_LIST><{tag}_ADD_OFFSET band_id="0">-1000</{tag}_ADD_OFFSET></x>'
    )
    scene, flat = open_scene(root), open_scene(sample_scene(), bands=sensor.band_names)
    assert (scene.sensor.name, scene.sensor.band_names, scene.offset, scene.shape) == (
        sensor.name,
        sensor.band_names,
        -1000,
        (768, 1536),
    )
    np.testing.assert_array_equal(
        read_window(scene, (96, 192, 96, 96))[0], read_window(flat, (96, 192, 96, 96))[0] - 1000
    )
    close_handles()


def test_mixed_gsd_on_the_finest_grid(tmp_path):
    scene = open_scene(sample_scene(), bands=["B04", "B11", "B01"])
    x, valid = read_window(scene)
    assert x.shape == (3, 768, 1536) and valid.all()
    for band, n, f in ((1, "B11", 2), (2, "B01", 6)):
        with rasterio.open(next(sample_scene().glob(f"*_{n}.jp2"))) as src:
            own = src.read(1).astype("f4")
        mean = x[band].reshape(own.shape[0], f, own.shape[1], f).mean((1, 3))
        assert (
            np.corrcoef(mean.ravel(), own.ravel())[0, 1] > 0.98
        )  # interpolated in place, not shifted
        assert len(np.unique(x[band])) > 2 * len(np.unique(own))  # and not by the nearest pixel
    shifted = np.roll(x[1], 4, 1)
    with rasterio.open(next(sample_scene().glob("*_B11.jp2"))) as src:
        own = src.read(1).astype("f4").repeat(2, 0).repeat(2, 1)
    assert (
        np.corrcoef(x[1].ravel(), own.ravel())[0, 1]
        > np.corrcoef(shifted.ravel(), own.ravel())[0, 1] + 0.05
    )


def test_pair_folder_and_plain_rgb(tmp_path, cut):
    rgb, h = (
        (cut[1][[2, 1, 0]] // 16).clip(0, 255).astype("uint8"),
        np.random.default_rng(0).normal(50, 3, (1, 64, 96)).astype("f4"),
    )
    for n in "abcd":
        _save(tmp_path / f"{n}_dom.tif", rgb, cut, driver="GTiff")
        _save(
            tmp_path / f"{n}_dsm.tif", h, (cut[0], None, cut[2] @ Affine.scale(2)), driver="GTiff"
        )
        (tmp_path / "plain").mkdir(exist_ok=True)
        with rasterio.open(
            tmp_path / "plain" / f"{n}.png",
            "w",
            driver="PNG",
            dtype="uint8",
            count=3,
            height=128,
            width=192,
        ) as dst:
            dst.write(rgb)
    dls = eo_dataloaders(
        f"{tmp_path}/*_dom.tif",
        "rgb",
        size=64,
        bs=4,
        valid_pct=0.3,
        name="rgb",
        device="cpu",
        modalities=dict(dsm=dict(path=f"{tmp_path}/*_dsm.tif", sensor="dsm")),
    )
    (b,) = dls.one_batch()
    assert (
        b["rgb"].shape == (4, 3, 64, 64)
        and b["dsm"].shape == (4, 1, 32, 32)
        and 0 <= b["rgb"].min()
        and b["rgb"].max() <= 1
    )
    s, (y, x, *_) = dls.train_ds.windows[int(b["index"][0])]
    np.testing.assert_allclose(
        b["dsm"][0, 0], h[0, y // 2 : y // 2 + 32, x // 2 : x // 2 + 32], atol=0.01
    )
    np.testing.assert_allclose(
        b["rgb"][0], rgb[:, y : y + 64, x : x + 64] / np.float32(255), atol=1e-6
    )
    plain = eo_dataloaders(
        tmp_path / "plain", "rgb", size=64, bs=4, valid_pct=0.3, name="rgb", device="cpu"
    )
    assert plain.one_batch()[0]["rgb"].shape == (4, 3, 64, 64) and not plain.train_ds.scenes[0].crs
    close_handles()


def test_http_with_range_requests(tmp_path, cut, served):
    noise = np.random.default_rng(0).integers(1, 60000, (4, 1024, 1024)).astype("uint16")
    noise[:, :128, :192] = cut[1]
    write_raster(tmp_path / "big.tif", noise, cut[0], BANDS, cut[2], driver="COG", blocksize=128)
    Ranges.sent.value = 0
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        scene = open_scene(f"{served}/big.tif", "sentinel2_l1c", BANDS)
        got, _ = read_window(scene, WINDOW)
    y, x, h, w = WINDOW
    np.testing.assert_array_equal(got, cut[1][:, y : y + h, x : x + w].astype("f4"))
    assert (
        Ranges.sent.value < 0.3 * (tmp_path / "big.tif").stat().st_size
    )  # the window, not the file
    with pytest.raises(ValueError, match="nowhere.tif"):
        open_scene(f"{served}/nowhere.tif", "sentinel2_l1c", BANDS)


def test_http_folder_of_bands(tmp_path, cut, served):
    pytest.importorskip("aiohttp")
    for n, b in zip(BANDS, cut[1]):
        _save(tmp_path / "scene" / f"T33UUU_20170216T102101_{n}.tif", b[None], cut, driver="GTiff")
    scene = open_scene(f"{served}/scene/", bands=BANDS, offset=0)
    np.testing.assert_array_equal(read_window(scene)[0], cut[1].astype("f4"))


def test_time_steps_of_a_cube(tmp_path, cut):
    xr = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    import pandas as pd
    from eo_brew.scenes.windows import keep_time

    cube = xr.DataArray(
        np.stack([cut[1], cut[1] + 1]),
        dims=["time", "band", "y", "x"],
        name="s2",
        coords=dict(time=pd.to_datetime(["2020-05-01", "2021-05-01"]), band=BANDS),
    )
    cube.to_dataset().to_zarr(tmp_path / "cube.zarr")
    scenes = open_scenes(tmp_path / "cube.zarr", "sentinel2_l1c", ["B08", "B02"], offset=0)
    np.testing.assert_array_equal(
        read_window(scenes[1], WINDOW)[0], read_window(scenes[0], WINDOW)[0] + 1
    )
    later = keep_time(window_index(scenes, 64), scenes, "2021")
    assert {s for s, _ in later} == {1}
    close_handles()


@pytest.mark.parametrize("names", ["yx", ("lat", "lon"), ("northing", "easting")], ids=str)
@pytest.mark.parametrize("ext", ["zarr", "nc"])
def test_axes_of_any_name_say_where_an_array_lies(tmp_path, names, ext):
    "Axes called lat and lon were read, but the map lay at (0, 0)."
    xr = pytest.importorskip("xarray")
    pytest.importorskip(dict(zarr="zarr", nc="netCDF4")[ext])
    y, x = names
    ds = xr.DataArray(
        np.ones((4, 6, 8), "uint16"),
        dims=["band", y, x],
        name="s2",
        coords={
            "band": BANDS,
            y: 52 - 0.01 * (np.arange(6) + 0.5),
            x: 12 + 0.02 * (np.arange(8) + 0.5),
        },
    ).to_dataset()
    f, kw = (
        tmp_path / f"a.{ext}",
        dict(sensor="sentinel2_l1c", bands=BANDS, offset=0, crs="EPSG:4326"),
    )
    ds.to_zarr(f) if ext == "zarr" else ds.to_netcdf(f, engine="netcdf4")
    scene = open_scene(f, **kw)
    assert (
        scene.transform.almost_equals(Affine(0.02, 0, 12, 0, -0.01, 52), 1e-9)
        and rasterio.CRS.from_wkt(scene.crs).to_epsg() == 4326
    )
    close_handles()
    bare = ds.drop_vars([y, x])
    f = tmp_path / f"b.{ext}"
    bare.to_zarr(f) if ext == "zarr" else bare.to_netcdf(f, engine="netcdf4")
    with pytest.raises(
        ValueError, match=rf"crs='EPSG:4326': .*b.{ext} does not say where its pixels lie"
    ):
        open_scene(f, **kw)
    assert open_scene(f, **kw | dict(crs=None)).transform == Affine.identity()
    close_handles()


def test_a_crs_alone_places_neither_hdf5_nor_a_picture(tmp_path, cut):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["images"] = np.ones((1, 13, 8, 8), "uint16")
    _save(tmp_path / "p.png", np.ones((3, 8, 8), "uint8"), (None, None, None), driver="PNG")
    for name, sensor in (("a.h5", "sentinel2_l1c"), ("p.png", "rgb")):
        with pytest.raises(
            ValueError, match=f"crs='EPSG:32633': .*{name} does not say where its pixels lie"
        ):
            open_scene(tmp_path / name, sensor, offset=0, crs="EPSG:32633")
    close_handles()


def test_arrays_have_the_gain_and_saturation_of_rasters(tmp_path, cut):
    "8-bit colours came as 0..255, and saturated pixels as numbers."
    h5py = pytest.importorskip("h5py")
    rgb, s2 = (
        np.random.default_rng(0).integers(0, 255, (3, 8, 8)).astype("uint8"),
        np.full((13, 8, 8), 1500, "uint16"),
    )
    s2[:, 2, 3] = 65535
    for name, x, sensor in (("rgb", rgb, "rgb"), ("s2", s2, "sentinel2_l1c")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as f:
            f["images"] = x[None]
        _save(tmp_path / f"{name}.tif", x, cut, driver="GTiff")
        (a, ok), (b, ok2) = (
            read_window(open_scene(tmp_path / f"{name}.{e}", sensor, offset=0))
            for e in ("h5", "tif")
        )
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(ok, ok2)
    assert not ok[2, 3] and ok.sum() == 63
    assert read_window(open_scene(tmp_path / "rgb.h5", "rgb", gain=1))[0].max() > 200
    close_handles()
