"""Reading: bad files, offsets, masks, handles across threads and forks; never a silent zero."""

import multiprocessing as mp
import os
import shutil
import warnings
from dataclasses import replace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from eo_brew.data.loader import EODataLoader
from eo_brew.data.modalities import read_ground
from eo_brew.data.samples import WindowDataset
from eo_brew.scenes.files import band_files
from eo_brew.scenes.open import (
    open_raster,
    open_scene,
    open_scenes,
    sample_labels,
    sample_scene,
    write_raster,
)
from eo_brew.scenes.scene import Scene, close_handles, handles, read_window
from eo_brew.core.sensors import get_sensor
from eo_brew.scenes.windows import window_index

UTM = rasterio.CRS.from_epsg(32633)


@pytest.fixture(autouse=True)
def closed():
    yield
    close_handles()


def save(path, x, gsd=10, crs=UTM, x0=0, transform=None, **kw):
    x = np.asarray(x)
    x = x[None] if x.ndim == 2 else x
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=x.dtype,
        count=len(x),
        height=x.shape[1],
        width=x.shape[2],
        crs=crs,
        transform=transform or Affine(gsd, 0, x0, 0, -gsd, 0),
        **kw,
    ) as dst:
        dst.write(x)
    return path


@pytest.mark.parametrize(
    "name,baseline,offset",
    [("MSIL1C", "N0204", 0), ("MSIL1C", "N0400", -1000), ("MSIL2A", "N0511", -1000)],
)
def test_baseline_offset(tmp_path, name, baseline, offset):
    d = tmp_path / f"S2A_{name}_20230101T100000_{baseline}_R1_T33UUU_20230101T120000.SAFE"
    d.mkdir()
    save(d / "T33UUU_20230101T100000_B02.tif", np.full((8, 8), 1500, "uint16"))
    x, _ = read_window(open_scene(d, bands=["B02"]))
    assert (x == 1500 + offset).all()


def test_offset_is_asked_for_and_metadata_wins(tmp_path):
    save(tmp_path / "T33UUU_20230101T100000_B02.tif", np.full((8, 8), 1500, "uint16"))
    with pytest.raises(ValueError, match="pass offset=-1000 if so"):
        open_scene(tmp_path)
    (tmp_path / "MTD_MSIL1C.xml").write_text(
        '<RADIO_ADD_OFFSET band_id="0">-1000</RADIO_ADD_OFFSET>'
    )
    assert open_scene(tmp_path).offset == -1000
    assert open_scene(tmp_path, offset=0).offset == 0


def test_nodata_stays_invalid_after_the_offset(tmp_path):
    x = np.full((8, 8), 1500, "uint16")
    x[0] = 0
    f = save(tmp_path / "a.tif", x)
    v, ok = read_window(open_scene(f, "sentinel2_l1c", ["B02"], offset=-1000))
    assert np.isnan(v[0, 0]).all() and not ok[0].any() and (v[0, 1:] == 500).all() and ok[1:].all()


def test_saturated_nan_and_alpha(tmp_path):
    x = np.full((8, 8), 1500, "uint16")
    x[0, 0] = 65535
    assert (
        read_window(open_scene(save(tmp_path / "s.tif", x), "sentinel2_l1c", ["B02"], offset=0))[
            1
        ].sum()
        == 63
    )
    y = np.full((8, 8), 1.0, "f4")
    y[1, 1] = np.nan
    assert read_window(open_scene(save(tmp_path / "n.tif", y), "dsm"))[1].sum() == 63
    rgba = np.full((4, 8, 8), 255, "uint8")
    rgba[3, :2] = 0
    v, ok = read_window(
        open_scene(save(tmp_path / "a.tif", rgba, photometric="RGB", alpha="YES"), "rgb")
    )
    assert v.shape == (3, 8, 8) and ok.sum() == 48 and np.isnan(v[:, :2]).all()


def _masked_file(path, kind):
    x, mask = (
        np.random.default_rng(0).integers(100, 200, (3, 32, 32)).astype("uint8"),
        np.full((32, 32), 255, "uint8"),
    )
    x[:, :8] = mask[:8] = 0
    x[:, 12:14, 12:14] = 7
    x[:, 20:22, 20:22] = 255
    if kind == "alpha":
        return save(path, np.concatenate([x, mask[None]]), photometric="RGB", alpha="YES")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(save(path, x), "r+") as dst:
        dst.write_mask(mask)
    return path


@pytest.mark.parametrize(
    "given,lost",
    [
        (dict(), 0),
        (dict(nodata=7), 4),
        (dict(saturated=255), 4),
        (dict(nodata=7, saturated=255), 8),
    ],
)
@pytest.mark.parametrize("kind", ["alpha", "internal"])
def test_mask_of_the_file_goes_through_every_way(tmp_path, kind, given, lost):
    "The mask was lost in the virtual raster, and nodata and saturation beside it at native size."
    f = _masked_file(tmp_path / "m.tif", kind)
    scene, coarse = open_scene(f, "rgb", **given), open_scene(f, "rgb", gsd=20, **given)
    for n, reads in (
        (32, [read_window(scene), read_ground(scene, scene.bounds, scene.crs, 32)]),
        (
            16,
            [
                read_window(scene, size=16),
                read_window(coarse),
                read_ground(scene, scene.bounds, scene.crs, 16),
            ],
        ),
    ):
        for x, ok in reads:
            k = 32 // n
            assert not ok[: 8 // k].any() and ok.sum() == n * n * 3 // 4 - lost // k**2
            assert ok[12 // k, 12 // k] == ("nodata" not in given) and ok[20 // k, 20 // k] == (
                "saturated" not in given
            )
            assert (
                x[:, 8 // k : 10 // k][:, ok[8 // k : 10 // k]].min() >= 100 / 255 - 1e-6
            )  # the zeros next door did not bleed in
            if "nodata" in given:
                assert np.nanmin(x) >= 100 / 255 - 1e-6


def test_scl_beside_the_bands(tmp_path):
    d = tmp_path / "S2A_MSIL2A_20230101T100000_N0511_R1_T33UUU_20230101T120000.SAFE"
    d.mkdir()
    save(d / "T33UUU_20230101T100000_B02_10m.tif", np.full((12, 12), 1500, "uint16"))
    scl = np.full((6, 6), 4, "uint8")
    scl[0] = 9
    scl[1] = 11
    save(d / "T33UUU_20230101T100000_SCL_20m.tif", scl, 20)
    scene = open_scene(d, bands=["B02"], mask="scl")
    _, ok = read_window(scene)
    assert not ok[:2].any() and ok[2:].all()  # cloud out, snow in
    _, ok = read_ground(scene, scene.bounds, scene.crs, 6)
    assert not ok[:1].any() and ok[1:].all()


def test_each_file_has_its_own_mask(tmp_path):
    "The first mask of the folder was taken for every scene in it."
    for i, n in enumerate(("a_20200101", "b_20200201")):
        save(tmp_path / f"{n}.tif", np.full((8, 8), 1500, "uint16"))
        scl = np.full((8, 8), 4, "uint8")
        scl[i] = 9
        save(tmp_path / f"{n}_SCL.tif", scl)
    kw = dict(sensor="sentinel2_l2a", bands=["B02"], offset=0, mask="scl")
    scenes = open_scenes(tmp_path, **kw)  # the masks are not scenes
    assert len(scenes) == 2
    for i, s in enumerate(scenes):
        ok = read_window(s)[1]
        assert not ok[i].any() and ok.sum() == 56
    save(tmp_path / "b_20200201_SCL_new.tif", np.full((8, 8), 4, "uint8"))
    assert not read_window(open_scene(tmp_path / "b_20200201.tif", **kw))[1][1].any()
    (tmp_path / "b").mkdir()
    save(tmp_path / "b" / "b_20200201_SCL.tif", np.full((8, 8), 4, "uint8"))
    with pytest.raises(
        ValueError, match=r"b_20200201.tif: 2 files could be its mask.*mask=\(path, rule\)"
    ):
        open_scene(tmp_path / "b_20200201.tif", **kw)
    save(tmp_path / "c.tif", np.full((8, 8), 1500, "uint16"))
    with pytest.raises(ValueError, match="c.tif: no file with SCL in its name belongs to it"):
        open_scene(tmp_path / "c.tif", **kw)


def test_landsat_qa_bits(tmp_path):
    save(tmp_path / "LC08_L2SP_1_2_20200101_2_02_T1_SR_B4.TIF", np.full((4, 4), 10000, "uint16"))
    qa = np.full((4, 4), 21824, "uint16")
    qa[0, 0] = 22280
    qa[0, 1] = 1  # clear; cloud; fill
    save(tmp_path / "LC08_L2SP_1_2_20200101_2_02_T1_QA_PIXEL.TIF", qa)
    x, ok = read_window(open_scene(tmp_path, mask="qa_pixel", bands=["B4"]))
    assert ok.sum() == 14 and np.allclose(x[0, 1] * 2.75e-5, 0.075, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["LE07_L1TP_1_2_20200101_2_02_T1", "LT05_L1TP_1_2_20200101_2_02_T1"]
)
def test_level_1_of_tm_is_not_read_as_oli(tmp_path, name):
    "8-bit numbers had OLI's 16-bit coefficients."
    for b in ("B3", "B4"):
        save(tmp_path / f"{name}_{b}.TIF", np.full((4, 4), 100, "uint8"))
    with pytest.raises(
        ValueError, match=f"{name}_B3.TIF is Level 1 of TM or ETM.*sensor='landsat7_dn', nodata=0"
    ):
        open_scene(tmp_path)
    assert (read_window(open_scene(tmp_path, "landsat7_dn", nodata=0))[0] == 100).all()


BAD = {
    "zero bytes": (lambda p: p.write_bytes(b""), "it has 0 bytes"),
    "not an image": (lambda p: p.write_text("hello"), "cannot be opened"),
    "band counts": (lambda p: save(p, np.ones((5, 8, 8), "uint16")), "5 bands without known names"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_raise_or_are_skipped(tmp_path, what):
    make, text = BAD[what]
    good = write_raster(tmp_path / "a.tif", np.ones((2, 8, 8), "uint16"), names=["B02", "B03"])
    make(tmp_path / "b.tif")
    with pytest.raises(ValueError, match=text):
        open_scenes(tmp_path, "sentinel2_l1c", ["B02", "B03"])
    with pytest.warns(UserWarning, match="1 scenes left out"):
        assert [
            s.name for s in open_scenes(tmp_path, "sentinel2_l1c", ["B02", "B03"], on_error="skip")
        ] == [str(good)]


def test_truncated_tiff(tmp_path):
    f = save(
        tmp_path / "a.tif",
        np.random.default_rng(0).integers(1, 9999, (256, 256)).astype("uint16"),
        tiled=True,
        blockxsize=64,
        blockysize=64,
    )
    data = f.read_bytes()
    f.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        ValueError, match=r"a\.tif, window \(192, 192, 64, 64\).*Is the file complete"
    ):
        read_window(open_scene(f, "sentinel2_l1c", ["B02"], offset=0), (192, 192, 64, 64))


def test_replaced_file(tmp_path):
    scene = open_scene(
        save(tmp_path / "a.tif", np.ones((8, 8), "uint16")), "sentinel2_l1c", ["B02"], offset=0
    )
    read_window(scene)
    save(tmp_path / "a.tif", np.full((9, 9), 9, "uint16"))
    with pytest.raises(ValueError, match="was replaced or removed after the scene was opened"):
        read_window(scene)
    assert (
        read_window(open_scene(tmp_path / "a.tif", "sentinel2_l1c", bands=["B02"], offset=0))[0]
        == 9
    ).all()  # no open dataset of the old file


def test_file_replaced_while_it_is_read(tmp_path, monkeypatch):
    "Between the check and the pixels: what was read may be half of each."
    f = save(tmp_path / "a.tif", np.ones((8, 8), "uint16"))
    scene, real = open_scene(f, "sentinel2_l1c", ["B02"], offset=0), Scene.raw

    def late(self, *args):
        got = real(self, *args)
        save(f, np.full((8, 8), 9, "uint16"), compress="lzw")
        return got

    monkeypatch.setattr(Scene, "raw", late)
    with pytest.raises(ValueError, match=r"a\.tif, window \(0, 0, 8, 8\).*was replaced or removed"):
        read_window(scene)


def test_replaced_file_on_other_ground_and_in_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    scene = open_scene(
        save(tmp_path / "a.tif", np.ones((8, 8), "uint16")), "sentinel2_l1c", ["B02"], offset=0
    )
    read_ground(scene, scene.bounds, scene.crs, 4)
    save(tmp_path / "a.tif", np.full((9, 9), 9, "uint16"))
    with pytest.raises(ValueError, match=r"a\.tif, ground .* was replaced"):
        read_ground(scene, scene.bounds, scene.crs, 4)
    for n in (6, 7):
        (tmp_path / "new.h5").unlink(missing_ok=True)
        with h5py.File(tmp_path / "new.h5", "w") as f:
            f["images"] = np.full((2, 13, 8, 8 + n), n, "uint16")
        one = open_scenes(tmp_path / "new.h5", "sentinel2_l1c", offset=0)[
            1
        ]  # no open file of the old one
        assert (read_window(one)[0] == n).all() and one.shape == (8, 8 + n)


@pytest.mark.parametrize("share", [0.99, 0.5, 0.02])
def test_truncated_jp2(tmp_path, share):
    "GDAL decodes JP2s in threads of its own and the error is lost there: what lay in memory came back as pixels."
    for n in ("B04", "B08"):
        data = next(sample_scene().glob(f"*_{n}.jp2")).read_bytes()
        (tmp_path / f"T33UUU_20170216T102101_{n}.jp2").write_bytes(
            data[: int(len(data) * share)] if n == "B04" else data
        )
    for bands in (["B04"], ["B08", "B04"]):  # alone, and in a virtual raster
        scene = open_scene(tmp_path, bands=bands, offset=0)
        with pytest.raises(ValueError, match="cannot be read"):
            read_window(scene)
        with pytest.raises(ValueError, match="Is the file complete"):
            read_ground(scene, scene.bounds, scene.crs, scene.shape)
    assert read_window(open_scene(tmp_path, bands=["B08"], offset=0), (700, 1400, 60, 60))[1].all()


@pytest.mark.parametrize(
    "ext,driver", [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("tif", "GTiff")]
)
def test_truncated_pictures(tmp_path, ext, driver):
    x = np.random.default_rng(0).integers(1, 255, (3, 128, 128)).astype("uint8")
    f = tmp_path / f"a.{ext}"
    with rasterio.open(f, "w", driver=driver, dtype="uint8", count=3, height=128, width=128) as dst:
        dst.write(x)
    data = f.read_bytes()
    f.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(ValueError, match=f"a.{ext}.*Is the file complete"):
        read_window(open_scene(f, "rgb"))


def test_bands_of_another_place_or_crs(tmp_path):
    save(tmp_path / "B02.tif", np.ones((8, 8), "uint16"))
    save(tmp_path / "B03.tif", np.ones((8, 8), "uint16"), x0=1e5)
    with pytest.raises(ValueError, match="bands do not overlap"):
        open_scene(tmp_path, "sentinel2_l1c", offset=0)
    save(tmp_path / "B03.tif", np.ones((8, 8), "uint16"), crs=rasterio.CRS.from_epsg(32632))
    with pytest.raises(ValueError, match="bands differ in CRS.*EPSG:3263"):
        open_scene(tmp_path, "sentinel2_l1c", offset=0)


def test_partial_overlap_takes_the_common_ground(tmp_path):
    g = np.arange(64, dtype="uint16").reshape(8, 8) + 1
    save(tmp_path / "B02.tif", g)
    save(tmp_path / "B03.tif", g, x0=30)
    scene = open_scene(tmp_path, "sentinel2_l1c", offset=0)
    x, ok = read_window(scene)
    assert scene.shape == (8, 5) and ok.all()
    np.testing.assert_array_equal(x[0], g[:, 3:])
    np.testing.assert_array_equal(x[1], g[:, :5])


@pytest.mark.parametrize("turn", [30, 90, 180])
def test_rotated_rasters_are_refused(tmp_path, turn):
    "Their rotation was dropped, without an error."
    t = Affine(10, 0, 0, 0, -10, 0) @ Affine.rotation(turn)
    for n, k in (("B02", 1), ("B11", 2)):
        save(
            tmp_path / f"{n}.tif",
            np.ones((24 // k, 24 // k), "uint16"),
            transform=t @ Affine.scale(k),
        )
    for path, kw in (
        (tmp_path, {}),
        (tmp_path / "B02.tif", dict(bands=["B02"])),
        (tmp_path / "B02.tif", dict(bands=["B02"], gsd=20)),
    ):
        with pytest.raises(ValueError, match="B02.tif is rotated or flipped.*gdalwarp"):
            open_scene(path, "sentinel2_l1c", offset=0, **kw)
    good = save(tmp_path / "good.tif", np.ones((24, 24), "uint16"))
    with pytest.raises(ValueError, match="B02.tif is rotated"):
        open_scene(good, "sentinel2_l1c", ["B02"], offset=0, mask=(tmp_path / "B02.tif", "scl"))


def test_south_up_at_mixed_resolution(tmp_path):
    fine = np.random.default_rng(0).integers(1, 999, (24, 24)).astype("uint16")
    up = Affine(10, 0, 500, 0, 10, 700)
    save(tmp_path / "B02.tif", fine, transform=up)
    save(
        tmp_path / "B11.tif",
        np.repeat(np.arange(1, 7, dtype="uint16"), 6).reshape(6, 6) * 100,
        transform=up @ Affine.scale(2),
    )
    scene = open_scene(tmp_path, "sentinel2_l1c", offset=0)
    assert (scene.shape, scene.transform) == (
        (12, 12),
        up,
    )  # the ground of both: the first rows, in the south
    x, ok = read_window(scene)
    np.testing.assert_array_equal(x[0], fine[:12, :12])
    assert ok.all() and (np.diff(x[1][:, 0]) >= 0).all() and x[1][0, 0] == 100
    coarse = open_scene(tmp_path / "B02.tif", "sentinel2_l1c", ["B02"], offset=0, gsd=20)
    assert (
        coarse.transform == up @ Affine.scale(2)
        and np.corrcoef(
            read_window(coarse)[0].ravel(), fine.reshape(12, 2, 12, 2).mean((1, 3)).ravel()
        )[0, 1]
        > 0.85
    )
    save(tmp_path / "B11.tif", np.ones((6, 6), "uint16"), 20)
    with pytest.raises(ValueError, match="are north-up, some south-up: warp them"):
        open_scene(tmp_path, "sentinel2_l1c", offset=0)


@pytest.mark.parametrize(
    "rule", ["scl", "fmask", "hls_fmask", "qa_pixel", dict(invalid=(9,))], ids=str
)
@pytest.mark.parametrize("gsd", [10, 20])
def test_ground_outside_the_mask_is_not_clear(tmp_path, rule, gsd):
    "The virtual raster gives 0 there, which is clear in most masks."
    f = save(tmp_path / "a.tif", np.full((16, 16), 1500, "uint16"))
    clear = 4 if rule == "scl" else 0
    save(tmp_path / "mask.tif", np.full((160 // gsd, 80 // gsd), clear, "uint8"), gsd, x0=40)
    scene = open_scene(f, "sentinel2_l1c", ["B02"], offset=0, mask=(tmp_path / "mask.tif", rule))
    for n, (x, ok) in (
        (16, read_window(scene)),
        (8, read_window(scene, size=8)),
        (16, read_ground(scene, scene.bounds, scene.crs, 16)),
    ):
        assert (
            ok[:, n // 4 : 3 * n // 4].all()
            and ok.sum() == n * n // 2
            and np.isnan(x[:, ~ok]).all()
        )
    assert (
        not read_window(scene, (0, 0, 4, 4))[1].any() and read_window(scene, (0, 4, 8, 8))[1].all()
    )


def test_hole_of_a_coarse_band_is_not_filled(tmp_path):
    "Bilinear resampling alone would fill a lone missing 60 m pixel from its neighbours."
    c = np.full((6, 6), 1000, "uint16")
    c[2, 3] = 0
    save(tmp_path / "B01.tif", c, 60)
    save(tmp_path / "B02.tif", np.full((36, 36), 500, "uint16"))
    x, ok = read_window(open_scene(tmp_path, "sentinel2_l1c", offset=0))
    assert (~ok).sum() == 36 and not ok[12:18, 18:24].any() and np.nanmin(x[0]) == 1000


def _pid_and_mean(scene):
    x, _ = read_window(scene, (10, 20, 64, 64))
    return os.getpid(), float(x.mean())


def test_handles_are_lent_to_one_thread_and_survive_fork():
    scene = open_scene(sample_scene(), bands=["B04", "B11"])
    want = _pid_and_mean(scene)[1]
    with ThreadPoolExecutor(4) as ex:
        with handles(scene.vrt) as mine:
            assert all(abs(m - want) < 1e-3 for _, m in ex.map(_pid_and_mean, [scene] * 16))
            with handles(scene.vrt) as other:
                assert other is not mine
        with mp.get_context("fork").Pool(2) as pool:
            got = pool.map(_pid_and_mean, [scene] * 8)
    assert all(p != os.getpid() and abs(m - want) < 1e-3 for p, m in got)
    with handles(scene.vrt) as again:
        assert again is mine and not mine.closed  # the parent's handle was left alone


def _same_in_every_window(scene, want, n):
    return all(
        np.array_equal(read_window(scene, (y, x, 64, 64))[0], want[:, y : y + 64, x : x + 64])
        for y, x in np.random.default_rng(os.getpid()).integers(0, 960, (n, 2)).tolist()
    )


@pytest.mark.parametrize("archive", ["zip", "tar"])
def test_archives_survive_fork(tmp_path, archive):
    "Two forked workers moved one file position of an archive that the parent had read."
    x = np.random.default_rng(0).integers(1, 9999, (2, 1024, 1024)).astype("uint16")
    (tmp_path / "s").mkdir()
    for n, b in zip(("B02", "B03"), x):
        save(tmp_path / "s" / f"{n}.tif", b, tiled=True, blockxsize=64, blockysize=64)
    path = Path(shutil.make_archive(str(tmp_path / "s"), archive, tmp_path / "s"))
    bands = tuple(band_files(f"/vsi{archive}/{path}/{n}.tif")[0] for n in ("B02", "B03"))
    scene = Scene(
        "s",
        get_sensor("sentinel2_l1c", ["B02", "B03"]),
        bands,
        (1024, 1024),
        bands[0].transform,
        bands[0].crs,
    )
    read_window(scene, (0, 0, 8, 8))  # opens, and keeps few blocks
    with mp.get_context("fork").Pool(4) as pool:
        assert all(pool.starmap_async(_same_in_every_window, [(scene, x, 100)] * 8, 1).get(60))


@pytest.mark.parametrize(
    "file,after",
    [
        ("/d/a.tif", "//d/a.tif"),
        ("/vsizip//d/p.zip/a.tif", "/vsizip///d/p.zip/a.tif"),
        ("/vsitar//vsigzip//d/p.gz/a.tif", "/vsitar//vsigzip///d/p.gz/a.tif"),
        ("/vsicurl/https://h/a.tif", "/vsicurl/https://h/a.tif"),
        ("/vsizip//vsicurl/https://h/p.zip/a.tif", "/vsizip//vsicurl/https://h/p.zip/a.tif"),
        ("/vsimem/a.tif", "/vsimem/a.tif"),
    ],
)
def test_forked_process_has_names_of_its_own(monkeypatch, file, after):
    import eo_brew.scenes.scene as reading

    monkeypatch.setattr(reading, "_forks", [])
    assert reading._own_name(file) == file
    monkeypatch.setattr(reading, "_forks", [1])
    assert reading._own_name(file) == after


def test_threads_of_the_next_epoch_find_what_is_open(monkeypatch):
    import eo_brew.scenes.scene as reading

    close_handles()
    opened, real = [], reading._open
    monkeypatch.setattr(reading, "_open", lambda s: opened.append(s) or real(s))
    scene = open_scene(sample_scene("olinda") / "L7_ETMs.tif", "landsat7_dn")
    dl = EODataLoader(
        WindowDataset(scene, window_index(scene, 64), in_memory=False), bs=4, threads=2
    )
    for _ in range(3):
        assert sum(len(b["index"]) for (b,) in dl) == len(dl.dataset)
    assert 1 <= len(opened) <= 2


def test_handles_are_closed_under_their_lock(monkeypatch):
    "A thread that takes an open dataset meanwhile finds it either open or gone."
    import eo_brew.scenes.scene as reading

    own = reading._Handles()

    class Lock:
        def __enter__(self):
            self.before = len(own.rest)

        def __exit__(self, *_):
            self.after = len(own.rest)

    own.lock = Lock()
    own.rest = [(("a", None), src := open(os.devnull))]
    monkeypatch.setattr(reading, "handles", own)
    close_handles()
    assert src.closed and (own.lock.before, own.lock.after) == (1, 0)


def test_opened_once(monkeypatch):
    "The released code opens its file for every item."
    import eo_brew.scenes.scene as reading

    close_handles()
    opened, real = [], reading._open
    monkeypatch.setattr(reading, "_open", lambda s: opened.append(s) or real(s))
    scene = open_scene(sample_scene("olinda") / "L7_ETMs.tif", "landsat7_dn")
    for i in range(20):
        read_window(scene, (i, i, 32, 32))
    assert len(opened) == 1


def test_lazy_array_reads_only_what_is_asked(monkeypatch):
    import eo_brew.scenes.open as rasters

    seen = []
    monkeypatch.setattr(
        rasters,
        "read_window",
        lambda s, w: seen.append((s.sensor.band_names, w)) or read_window(s, w),
    )
    da = open_raster(sample_scene(), bands=["B04", "B08"])
    da.sel(band="B08").isel(x=slice(100, 110), y=slice(5, 9)).values
    assert seen == [(["B08"], (5, 100, 4, 10))]


def test_warp_between_utm_zones(tmp_path):
    scene = open_scene(sample_scene(), bands=["B08"])
    from rasterio.vrt import WarpedVRT

    with rasterio.open(scene.bands[0].file) as src, WarpedVRT(src, crs="EPSG:32632", nodata=0) as v:
        other = open_scene(save_like(tmp_path / "z32.tif", v), "sentinel2_l1c", ["B08"], offset=0)
    y, x, n = 300, 600, 128
    (l, t), (r, b) = scene.transform @ (x, y), scene.transform @ (x + n, y + n)
    a, ok = read_ground(other, (l, b, r, t), scene.crs, n)
    want = read_window(scene, (y, x, n, n))[0]
    assert ok.all() and np.corrcoef(a.ravel(), want.ravel())[0, 1] > 0.9


def save_like(path, v):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint16",
        count=1,
        height=v.height,
        width=v.width,
        crs=v.crs,
        transform=v.transform,
        nodata=0,
    ) as dst:
        dst.write(v.read())
    return path


def test_labels_are_never_interpolated():
    from eo_brew.data.labels import open_labels

    scene = open_scene(sample_scene(), bands=["B02"])
    coarse = replace(scene, shape=(300, 600), transform=scene.transform @ Affine.scale(2.56))
    with pytest.warns(UserWarning, match="is warped to the grid of"):
        y = open_labels(sample_labels(), coarse).read(0, coarse)
    assert set(y.unique().tolist()) == {*range(8), 255}


def test_sample_carries_its_licences():
    assert "Copernicus" in (sample_scene() / "ATTRIBUTION.md").read_text()
    assert "ODbL" in (sample_labels().parent / "LICENSE.md").read_text()
    with rasterio.open(sample_labels()) as src:
        y = src.read(1)
        assert (
            src.tags()["classes"].split(",")
            == "farm forest grass meadow residential scrub water wetland".split()
        )
    assert (
        y.shape == (768, 1536)
        and set(np.unique(y)) == {*range(8), 255}
        and 0.30 < (y != 255).mean() < 0.32
    )


@pytest.mark.slow
def test_memory_is_flat_on_a_huge_cog(tmp_path):
    "20,000 x 20,000 x 10, 8 GB of pixels: read by windows."
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from loader import huge_cog, peak_memory

    growth = peak_memory(huge_cog(tmp_path / "huge.tif"))
    assert growth < 400, f"{growth} MB"


def test_one_gsd_for_all(tmp_path):
    "Files of 10 and 20 m in one folder are told of, and read alike on request."
    fine = np.random.default_rng(0).integers(100, 2000, (40, 40)).astype("uint16")
    save(tmp_path / "a.tif", fine, 10)
    save(tmp_path / "b.tif", fine.reshape(20, 2, 20, 2).mean((1, 3)).astype("uint16"), 20)
    kw = dict(sensor="sentinel2_l1c", bands=["B04"], offset=0)
    with pytest.warns(UserWarning, match="scenes differ in GSD.*10 m a.tif, 20 m b.tif.*gsd="):
        open_scenes(tmp_path, **kw)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        a, b = open_scenes(tmp_path, gsd=20, **kw)
    assert a.shape == b.shape == (20, 20) and a.transform == b.transform
    (x, ok), (y, _) = read_window(a), read_window(b)
    assert (
        ok.all() and np.corrcoef(x.ravel(), y.ravel())[0, 1] > 0.85
    )  # of white noise: antialiased .90, nearest .5
    assert read_window(open_scene(tmp_path / "b.tif", gsd=10, **kw))[0].shape == (1, 40, 40)
    with pytest.raises(ValueError, match="smaller than one such pixel"):
        open_scene(tmp_path / "b.tif", gsd=1e4, **kw)


@pytest.mark.parametrize("option", [dict(gsd=20.0), dict(mask="scl"), dict(saturated=255.0)])
def test_arrays_say_which_options_they_cannot_use(tmp_path, option):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "p.h5", "w") as f:
        f["images"] = np.ones((2, 13, 16, 16), "uint16")
    for opens in (open_scene, open_scenes):
        with pytest.raises(ValueError, match=f"{next(iter(option))}.*not with arrays"):
            opens(tmp_path / "p.h5", "sentinel2_l1c", offset=0, **option)


def test_an_alpha_band_that_is_not_applied_is_told(tmp_path):
    x = np.full((6, 8, 8), 1000, "uint16")
    x[5, :4] = 0
    save(tmp_path / "a.tif", x)
    with rasterio.open(tmp_path / "a.tif", "r+") as dst:
        dst.colorinterp = [rasterio.enums.ColorInterp.gray] * 5 + [rasterio.enums.ColorInterp.alpha]
    with pytest.warns(UserWarning, match=r"does not apply alpha band 6.*-mask 6"):
        s = open_scene(
            tmp_path / "a.tif", "sentinel2_l1c", bands=["B02", "B03", "B04", "B05", "B06"], offset=0
        )
    assert len(s.bands) == 5
