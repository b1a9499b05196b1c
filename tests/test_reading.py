"""Reading never lies: what a file says is believed, questioned or refused, as bare rasterio and xarray read it."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eo_brew.core.sensors import Sensor
from eo_brew.scenes.describe import describe_raster
from eo_brew.scenes.open import open_raster, open_scene, open_scenes
from eo_brew.scenes.scene import close_handles, read_window

T = Affine(10, 0, 300000, 0, -10, 5800000)
LAB = Path(
    os.environ.get("EO_BREW_LAB", Path(__file__).resolve().parents[2] / "shared" / "data" / "lab")
)


@pytest.fixture(autouse=True)
def closed():
    yield
    close_handles()


def tif(path, x, names=(), crs="EPSG:32633", t=T, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = dict(count=len(x), height=x.shape[1], width=x.shape[2], dtype=x.dtype)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=t, **shape, **kw) as dst:
        dst.write(x)
        for i, name in enumerate(names, 1):
            dst.set_band_description(i, name)
    return path


def flat(*values, n=32, dtype="uint16"):
    return np.stack([np.full((n, n), v) for v in values]).astype(dtype)


def own(*bands, **fields):
    return Sensor("own", [dict(name=b, wavelength=None, gsd=None, **fields) for b in bands])


def first(path, sensor, **kw):
    "The upper left pixel of each band."
    return open_raster(path, sensor, **kw).values[:, 0, 0].tolist()


# names


def test_names_in_another_spelling(tmp_path):
    names = "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12".split()
    da = open_raster(tif(tmp_path / "g.tif", flat(*range(13)), names), "sentinel2_l1c", offset=0)
    assert len(da.band) == 13 and da.sel(band="B8A")[0, 0] == 8
    p = tif(tmp_path / "p.tif", flat(100, 200, 300, 400), ["Blue", "Green", "Red", "NIR"])
    assert open_raster(p, "rgbn", gain=1).sel(band="red")[0, 0] == 300
    german = tif(tmp_path / "d.tif", flat(1, 2, 3), ["Blau", "Grün", "Rot"])
    assert first(german, "rgb", gain=1) == [3, 2, 1]
    gee = tif(tmp_path / "l.tif", flat(4, 3), ["SR_B4", "SR_B3"])
    assert first(gee, "landsat8_sr", offset=0) == [3, 4]
    snap = tif(
        tmp_path / "s.tif",
        flat(8, 4),
        ["B8, central wavelength 842 nm", "B4, central wavelength 665 nm"],
    )
    assert first(snap, "sentinel2_l2a", offset=0) == [4, 8]


def test_names_that_cover_a_part_or_come_twice_are_questions(tmp_path):
    p = tif(tmp_path / "part.tif", flat(1, 2, 3), ["B02", "B03", "NDVI"])
    with pytest.raises(
        ValueError, match=r"2 are bands of .*not known: band 3 \(NDVI\).*bands=\['B02', 'B03'\]"
    ):
        open_scene(p, "sentinel2_l2a", offset=0)
    assert first(p, "sentinel2_l2a", bands=["B03"], offset=0) == [2]
    assert first(p, "sentinel2_l2a", bands={"B08": 3, "B02": "B02"}, offset=0) == [3, 1]
    p = tif(tmp_path / "twice.tif", flat(1, 2, 3, 4), ["a", "b", "a", "b"])
    with pytest.raises(ValueError, match="a is band 1 .* and band 3"):
        open_scene(p, own("a", "b"))
    p = tif(tmp_path / "zero.tif", flat(1, 2), ["B2", "B02"])
    with pytest.raises(ValueError, match="B02 is band 1 .* and band 2"):
        open_scene(p, "sentinel2_l2a", bands=["B02"], offset=0)


def test_bands_mean_one_thing(tmp_path):
    bare = tif(tmp_path / "x1.tif", flat(1, 2, 3))
    assert first(bare, own("aa", "bb", "cc"), bands=["cc", "bb", "aa"]) == [
        1,
        2,
        3,
    ]  # they name the file's bands
    assert first(bare, own("aa", "bb", "cc", "dd"), bands=["dd", "aa", "bb"]) == [1, 2, 3]
    assert first(bare, own("aa", "bb", "cc"), bands=["cc"]) == [3]  # of the sensor's layout
    named = tif(tmp_path / "x2.tif", flat(1, 2, 3), ["aa", "bb", "cc"])
    assert first(named, own("aa", "bb", "cc"), bands=["cc", "bb", "aa"]) == [3, 2, 1]
    facts = [str(f) for f in open_scene(bare, own("aa", "bb", "cc")).facts]
    assert "aa  by position, in the order of own: the file names no band" in facts


def test_colours_and_tags_are_names_too(tmp_path):
    p = tif(tmp_path / "c.tif", flat(1, 2, 3, dtype="uint16"))
    with rasterio.open(p, "r+") as dst:
        dst.colorinterp = [rasterio.enums.ColorInterp[c] for c in ("blue", "green", "red")]
    assert first(p, "rgb", gain=1) == [3, 2, 1]
    p = tif(tmp_path / "t.tif", flat(1, 2))
    with rasterio.open(p, "r+") as dst:
        dst.update_tags(1, **{"eo:common_name": "nir"})
        dst.update_tags(2, **{"eo:common_name": "red"})
    assert first(p, "sentinel2_l2a", offset=0) == [2, 1]
    with rasterio.open(p, "r+") as dst:
        dst.set_band_description(1, "B02")
    with pytest.raises(
        ValueError, match='from the description "B02", but B08 .*eo:common_name|from the tag "nir"'
    ):
        open_scene(p, "sentinel2_l2a", offset=0)


@pytest.mark.parametrize("names", [(), ("Red", "Green", "Blue", "NIR")], ids=["bare", "named"])
def test_the_fourth_band_of_an_aerial_image_is_no_alpha(tmp_path, names):
    p = tif(tmp_path / "n.tif", flat(1, 2, 3, 0, dtype="uint8"), names)
    assert first(p, "rgbn", gain=1)[:3] == [1, 2, 3] and first(p, "rgbn", gain=1)[3] == 0
    if not names:
        assert np.isnan(first(p, "rgb", gain=1)).all()  # there it hides


def test_a_file_that_says_another_band_than_its_name(tmp_path):
    for n, said in (("x_B02", None), ("x_B03", "B4")):
        tif(tmp_path / f"{n}.tif", flat(1), [said] if said else ())
    with pytest.raises(ValueError, match='B03 by its name, but B04  from the description "B4"'):
        open_scene(tmp_path, "sentinel2_l2a", offset=0)
    assert first(tmp_path / "x_B02.tif", "sentinel2_l2a", offset=0) == [1]  # its name is enough
    with pytest.raises(ValueError, match="not found"):
        open_scene(tmp_path / "x_B02.tif", "sentinel2_l2a", bands=["B08"], offset=0)


# numbers


def test_scale_and_offset_tags(tmp_path):
    p = tif(tmp_path / "r.tif", flat(2500, 2500))
    with rasterio.open(p, "r+") as dst:
        dst.scales, dst.offsets = (1e-4, 2.0), (-0.1, 7.0)
    np.testing.assert_allclose(first(p, own("p", "q")), [0.15, 5007], rtol=1e-6)
    np.testing.assert_allclose(
        first(p, "sentinel2_l2a", bands={"B02": 1}), [1500], rtol=1e-6
    )  # reflectance x 10000
    assert first(p, own("p", "q"), gain=1, offset=0) == [2500, 2500]
    with rasterio.open(p, "r+") as dst:
        dst.scales = (float("nan"), 1.0)
    with pytest.raises(ValueError, match="offset=nan from the file's tags .scale nan"):
        open_scene(p, own("p", "q"))
    with pytest.raises(ValueError, match="gain=inf as given"):
        open_scene(p, own("p", "q"), gain=float("inf"), offset=0)


def test_sources_that_disagree(tmp_path):
    d = tmp_path / "S2A_MSIL2A_20230101T100000_N0511_R1_T33UUU_20230101T120000.SAFE"
    p = tif(d / "T33UUU_20230101T100000_B02_10m.tif", flat(1500))
    assert open_scene(d).offset == -1000
    with rasterio.open(p, "r+") as dst:
        dst.scales = (1e-4,)
    with pytest.raises(
        ValueError,
        match='offset 0  from the file\'s tags.* but offset -1000  by "_N0511_".*offset=',
    ):
        open_scene(d)
    assert open_scene(d, offset=-1000).offset == -1000
    with rasterio.open(p, "r+") as dst:
        dst.offsets = (-0.1,)
    assert open_scene(d).offset == pytest.approx(-1000)  # the same said twice


@pytest.mark.parametrize("baseline", ["", "<PROCESSING_BASELINE>99.99</PROCESSING_BASELINE>"])
@pytest.mark.parametrize(
    "folder", ["plain", "S2A_MSIL2A_20170101T100000_N9999_R1_T33UUU_20230101T120000.SAFE"]
)
def test_a_date_alone_and_the_toolbox_are_doubtful(tmp_path, folder, baseline):
    d = tmp_path / folder
    tif(d / "T33UUU_20170216T102101_B02_10m.tif", flat(1500))
    if baseline:
        (d / "MTD_MSIL2A.xml").write_text(baseline)
    with pytest.raises(ValueError, match="pass offset=-1000 if so"):
        open_scene(d)
    (d / "scene.toml").write_text("offset = -1000")
    assert open_scene(d).offset == -1000


def test_each_band_has_its_own_offset_and_nodata(tmp_path):
    for i, (n, nodata) in enumerate((("B02", 7), ("B03", 9), ("B8A", None))):
        x = flat(1500)
        x[0, 0, :3] = 7, 9, 0
        tif(tmp_path / f"T_{n}.tif", x, nodata=nodata)
    offsets = "".join(
        f'<BOA_ADD_OFFSET band_id="{i}">{-1000 - i}</BOA_ADD_OFFSET>' for i in range(13)
    )
    (tmp_path / "MTD_MSIL2A.xml").write_text(offsets)
    x, ok = read_window(open_scene(tmp_path, "sentinel2_l2a"))
    assert x[:, 5, 5].tolist() == [1500 - 1001, 1500 - 1002, 1500 - 1008]
    assert np.isnan(x[:, 0, :3]).tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert not ok[0, :3].any() and ok[0, 3:].all()


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "uint32", "float64"])
def test_types_as_they_are(tmp_path, dtype):
    x = (np.arange(64).reshape(1, 8, 8) * (2**40 if dtype.endswith("64") else 1)).astype(dtype)
    p = tif(tmp_path / "t.tif", x, nodata=3 * int(x[0, 0, 1]))
    v, ok = read_window(open_scene(p, own("v")))
    assert (~ok).sum() == 1 and not ok[0, 3]
    np.testing.assert_array_equal(v[0][ok], x[0][ok].astype("f4"))
    coarse, ok = read_window(open_scene(p, own("v")), size=4)
    assert (
        np.isfinite(coarse[:, ok]).all()
        and abs(np.nanmean(coarse) / x.astype("f8").mean() - 1) < 0.1
    )


def test_what_is_no_number_is_refused(tmp_path):
    p = tif(tmp_path / "x.tif", (flat(3) + 4j).astype("complex64"))
    with pytest.raises(ValueError, match="x.tif is complex64.*amplitude"):
        open_scene(p, own("v"))
    p = tif(tmp_path / "n.tif", flat(3))
    with pytest.raises(
        ValueError, match="nodata -9999  as given is no uint16 number.*nodata='none'"
    ):
        open_scene(p, own("v"), nodata=-9999)
    vrt = f"""<VRTDataset rasterXSize="32" rasterYSize="32"><VRTRasterBand dataType="UInt16" band="1">
        <NoDataValue>-9999</NoDataValue><SimpleSource><SourceFilename>{p}</SourceFilename></SimpleSource>
        </VRTRasterBand></VRTDataset>"""
    (tmp_path / "n.vrt").write_text(vrt)
    with rasterio.open(tmp_path / "n.vrt") as src:
        said = src.nodata
    if said is not None:
        with pytest.raises(ValueError, match="from the file's tag is no uint16 number"):
            open_scene(tmp_path / "n.vrt", own("v"))
        assert first(tmp_path / "n.vrt", own("v"), nodata="none") == [3]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinite_is_invalid(tmp_path, dtype):
    x = np.ones((1, 32, 32), dtype)
    x[0, 0, :4] = np.inf, -np.inf, np.nan, -9999
    scene = open_scene(tif(tmp_path / "i.tif", x, nodata=-9999), own("v"))
    v, ok = read_window(scene)
    assert not ok[0, :4].any() and ok.sum() == 1020 and (v[0][ok] == 1).all()
    for size in (8, 64):
        v, ok = read_window(scene, size=size)
        assert np.nanmax(np.abs(v)) < 1.001 and np.isfinite(v[0][ok]).all()


def test_eurosat_without_names(tmp_path):
    p = tif(tmp_path / "AnnualCrop_1.tif", flat(*range(13)))
    da = open_raster(p, "eurosat", nodata="none")
    assert [da.sel(band=b)[0, 0].item() for b in ("B08", "B09", "B12", "B8A")] == [7, 8, 11, 12]


# places


@pytest.fixture
def cube():
    coords = dict(
        band=["a", "b"], y=5799995.0 - 10 * np.arange(32), x=300005.0 + 10 * np.arange(32)
    )
    return xr.DataArray(flat(1, 2).astype("f4"), coords, ("band", "y", "x"), "r")


@pytest.mark.parametrize("ext", ["nc", "zarr"])
def test_cf_grid_mapping_and_packing(tmp_path, cube, ext):
    pytest.importorskip(dict(nc="netCDF4", zarr="zarr")[ext])
    import rioxarray  # noqa: F401

    x = (cube * 0.1).rio.write_crs(32633)
    x[0, 0, 0] = np.nan
    packed = dict(r=dict(dtype="int16", scale_factor=1e-4, add_offset=0.05, _FillValue=-9999))
    ds, f = x.rename("r").to_dataset(), tmp_path / f"a.{ext}"
    ds.to_netcdf(f, encoding=packed) if ext == "nc" else ds.to_zarr(f, encoding=packed)
    scene = open_scene(f, own("a", "b"))
    with xr.open_dataset(f) if ext == "nc" else xr.open_zarr(f) as src:
        np.testing.assert_allclose(read_window(scene)[0], src.r.values, rtol=1e-5)
    assert rasterio.CRS.from_wkt(scene.crs).to_epsg() == 32633 and scene.transform == T


def test_hdf5_says_what_netcdf_says(tmp_path, cube):
    pytest.importorskip("netCDF4")
    packed = dict(r=dict(dtype="int16", scale_factor=1e-4, _FillValue=-9999))
    (cube * 0.1).rename("r").to_dataset().to_netcdf(tmp_path / "b.nc", encoding=packed)
    os.rename(tmp_path / "b.nc", tmp_path / "b.h5")
    da = open_raster(tmp_path / "b.h5", own("a", "b"))
    np.testing.assert_allclose(da.values[:, 0, 0], [0.1, 0.2], rtol=1e-6)
    assert da.rio.transform() == T


def test_one_row_one_column_and_irregular_axes(tmp_path, cube):
    pytest.importorskip("netCDF4")
    cube[..., :1].to_dataset().to_netcdf(tmp_path / "c.nc")
    assert open_scene(tmp_path / "c.nc", own("a", "b")).transform == T
    cube[:, :1].to_dataset().to_netcdf(tmp_path / "r.nc")
    assert open_scene(tmp_path / "r.nc", own("a", "b")).transform == T
    cube.isel(y=[0, 1, 2, 5]).to_dataset().to_netcdf(tmp_path / "i.nc")
    with pytest.raises(ValueError, match="the axis 'y' of .*i.nc is irregular"):
        open_scene(tmp_path / "i.nc", own("a", "b"))


def test_each_variable_has_its_own_order(tmp_path):
    pytest.importorskip("netCDF4")
    x = np.arange(12.0).reshape(3, 4)
    ds = xr.Dataset(dict(B1=(("y", "x"), x), B2=(("x", "y"), x.T + 100)))
    ds.to_netcdf(tmp_path / "v.nc")
    np.testing.assert_array_equal(
        read_window(open_scene(tmp_path / "v.nc", own("B1", "B2")))[0], [x, x + 100]
    )


def test_crs_and_grids_are_compared_by_what_they_mean(tmp_path):
    esri = rasterio.CRS.from_wkt(rasterio.CRS.from_epsg(32633).to_wkt(version="WKT1_ESRI"))
    tif(tmp_path / "B02.tif", flat(1))
    tif(tmp_path / "B03.tif", flat(2), crs=esri, t=T @ Affine.translation(1e-7, 0))
    scene = open_scene(tmp_path, "sentinel2_l2a", offset=0)
    assert scene.shape == (32, 32) and read_window(scene)[1].all()


def test_control_points_are_no_grid(tmp_path):
    point = rasterio.control.GroundControlPoint
    kw = dict(driver="GTiff", count=1, height=8, width=8, dtype="uint8")
    with rasterio.open(tmp_path / "g.tif", "w", **kw) as dst:
        dst.write(np.ones((1, 8, 8), "uint8"))
        dst.gcps = (
            [point(0, 0, 13, 52), point(8, 8, 14, 51), point(0, 8, 14, 52)],
            rasterio.CRS.from_epsg(4326),
        )
    with pytest.raises(ValueError, match="g.tif lies by ground control points.*gdalwarp -tps"):
        open_scene(tmp_path / "g.tif", own("v"))


def test_degrees_are_metres_on_the_ground(tmp_path):
    p = tif(tmp_path / "d.tif", flat(1, n=60), crs="EPSG:4326", t=Affine(1e-4, 0, 13, 0, -1e-4, 60))
    assert open_scene(p, own("v")).gsd == pytest.approx(np.sqrt(5.58 * 11.14), rel=1e-2)
    assert "7.885 m" in str(describe_raster(p, own("v")))
    assert open_scene(p, own("v"), gsd=33.4).shape == (20, 10)


# folders


def test_what_is_no_scene(tmp_path):
    d = tmp_path / "in [1]"
    tif(d / "a.tif", flat(1, 2, 3, dtype="uint8"))
    for n in ("._a.tif", ".ipynb_checkpoints/a.tif", "__MACOSX/a.tif"):
        (d / n).parent.mkdir(exist_ok=True)
        (d / n).write_bytes(bytes(99))
    for n in ("a_udm2.tif", "a_preview.tif", "thumbnail.tif", "a_cloud_mask.tif"):
        tif(d / n, flat(1, 2, 3, dtype="uint8"))
    with rasterio.open(tif(d / "map.tif", flat(1, 2, 3, dtype="uint8")), "r+") as dst:
        dst.update_tags(software="eo_brew 0.1.0")
    describe_raster(d, "rgb").plot().savefig(d / "look.png")
    assert [Path(s.name).name for s in open_scenes(d, "rgb")] == ["a.tif"]


def test_links_are_followed_once(tmp_path):
    tif(tmp_path / "st" / "s1.tif", flat(1))
    tif(tmp_path / "da" / "y" / "s2.tif", flat(1))
    os.symlink(tmp_path / "st", tmp_path / "da" / "x")
    os.symlink(tmp_path / "da", tmp_path / "da" / "y" / "up")
    assert len(open_scenes(tmp_path / "da", own("v"))) == 2


def test_metadata_files_are_scenes(tmp_path):
    d = tmp_path / "S2A_MSIL1C_20230101T100000_N0509_R1_T33UUU_20230101T120000.SAFE"
    tif(d / "GRANULE" / "x" / "IMG_DATA" / "T33UUU_20230101T100000_B02.tif", flat(1500))
    (d / "MTD_MSIL1C.xml").write_text('<RADIO_ADD_OFFSET band_id="0">-1000</RADIO_ADD_OFFSET>')
    assert first(d / "MTD_MSIL1C.xml", None) == first(d, None) == [500]


def test_files_of_any_name_are_told(tmp_path):
    for i in (1, 2):
        tif(tmp_path / f"scene_{i}0.tif", flat(i))
    got = first(
        tmp_path, "sentinel2_l2a", bands={"B03": "*_20.tif", "B02": "scene_10.tif"}, offset=0
    )
    assert got == [2, 1]


# masks


def test_masks_are_read_from_full_resolution(tmp_path):
    p, scl = tif(tmp_path / "a.tif", flat(1, n=256)), flat(4, n=256, dtype="uint8")
    scl[0, :, ::2] = 9  # on average clear water
    m = tif(tmp_path / "a_SCL.tif", scl)
    with rasterio.open(m, "r+") as dst:
        dst.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    scene = open_scene(p, own("v"), mask="scl")
    ok = read_window(scene, size=32)[1]
    assert not ok.any() or ok.all()
    m = scene.mask.scene
    with rasterio.open(m.bands[0].file) as src:
        assert set(np.unique(m.raw(rasterio.windows.Window(0, 0, 256, 256), (32, 32))[0])) <= {4, 9}
        assert not set(np.unique(src.read(out_shape=(1, 32, 32)))) <= {4, 9}


def test_masks_of_32_bits_and_masks_that_are_none(tmp_path):
    p = tif(tmp_path / "a.tif", flat(1))
    bits = flat(2**30, dtype="uint32")
    bits[0, 0, 0] += 1  # float32 does not hold it
    scene = open_scene(p, own("v"), mask=(tif(tmp_path / "bits.tif", bits), dict(bits=1)))
    assert (~read_window(scene)[1]).sum() == 1
    with pytest.raises(ValueError, match="float32: classes and bits are integers"):
        open_scene(p, own("v"), mask=(tif(tmp_path / "f.tif", flat(1, dtype="float32")), "scl"))


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_was_never_written(tmp_path, version):
    zarr = pytest.importorskip("zarr")
    a = zarr.open_group(tmp_path / "z.zarr", mode="w", zarr_format=version)
    names = dict(dimension_names=["y", "x"]) if version == 3 else {}
    v = a.create_array("B02", shape=(8, 8), chunks=(4, 4), dtype="uint16", **names)
    v.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    v[:4] = 5
    ok = read_window(
        open_scene(tmp_path / "z.zarr", "sentinel2_l2a", ["B02"], offset=0, nodata="none")
    )[1]
    assert ok[:4].all() and not ok[4:].any()


def test_hdf5_with_bands_last(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "i.h5", "w") as f:
        f["i"] = np.moveaxis(flat(1, 2), 0, -1)
        f["j"] = np.zeros((2, 8, 2))
    assert first(tmp_path / "i.h5", own("a", "b"), variable="i") == [1, 2]
    with pytest.raises(ValueError, match="could be cyx or yxc: say which with layout='yxc'"):
        open_scene(tmp_path / "i.h5", own("a", "b"), variable="j")
    assert open_scene(tmp_path / "i.h5", own("a", "b"), variable="j", layout="yxc").shape == (2, 8)


# errors


@pytest.mark.parametrize("name", ["a.h5", "a.nc", "a.zarr", "a.tif", "a.jp2", "a.png", "a.vrt"])
def test_whatever_a_file_raises_is_one_line(tmp_path, name):
    p = tmp_path / name
    if name.endswith("zarr"):
        p.mkdir()
        (p / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": 7}')
    else:
        p.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(ValueError, match=name) as e:
        open_scene(p, own("v"))
    assert "\n" not in str(e.value) and len(str(e.value)) > 40


def test_a_server_that_stalls(monkeypatch):
    import socket
    import time

    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    for k in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(k, raising=False)
    with (
        socket.create_server(("127.0.0.1", 0)) as s,
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
    ):
        start = time.monotonic()
        with pytest.raises(ValueError, match="a.tif"):
            open_scene(f"http://127.0.0.1:{s.getsockname()[1]}/a.tif", own("v"))
        assert time.monotonic() - start < 60


# against bare rasterio

TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]


@st.composite
def rasters(draw):
    "A raster with what its header may say."
    dtype, count = draw(st.sampled_from(TYPES)), draw(st.integers(1, 4))
    h, w, seed = draw(st.integers(1, 80)), draw(st.integers(1, 80)), draw(st.integers(0, 999))
    info = np.iinfo(dtype) if dtype[0] in "iu" else None
    rng, low, high = (
        np.random.default_rng(seed),
        *((max(info.min, -99), min(info.max, 99)) if info else (-99, 99)),
    )
    x = rng.integers(low, high, (count, h, w), endpoint=True).astype(dtype)
    if not info and draw(st.booleans()):
        x[rng.random(x.shape) < 0.1] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    number = st.one_of(
        st.none(), st.integers(low, high), *([] if info else [st.just(float("nan"))])
    )
    pack = st.sampled_from([(1.0, 0.0), (0.5, -3.0), (1e-4, -0.1), (2.0, 100.0)])
    tiled = draw(st.booleans())
    return dict(
        x=x,
        nodata=draw(st.lists(number, min_size=count, max_size=count)),
        packs=draw(st.lists(pack, min_size=count, max_size=count)),
        layout=dict(tiled=True, blockxsize=16, blockysize=32)
        if tiled
        else dict(blockysize=draw(st.integers(1, 9))),
        interleave=draw(st.sampled_from(["band", "pixel"])),
        overviews=draw(st.booleans()),
        transform=Affine(
            draw(st.sampled_from([0.5, 10, 1e-4])), 0, draw(st.integers(-9, 9)), 0, -10, 50
        ),
    )


def write(folder, r):
    "The raster as a VRT over a GeoTIFF, since a GeoTIFF has one nodata for all bands."
    x = r["x"]
    p = tif(folder / "r.tif", x, t=r["transform"], interleave=r["interleave"], **r["layout"])
    with rasterio.open(p, "r+") as dst:
        dst.scales, dst.offsets = zip(*r["packs"])
        if r["overviews"] and min(x.shape[1:]) > 4:
            dst.build_overviews([2, 4], rasterio.enums.Resampling.average)
    kinds = dict(uint8="Byte", int8="Int8", float32="Float32", float64="Float64")
    bands = ""
    for i, (n, (scale, shift)) in enumerate(zip(r["nodata"], r["packs"]), 1):
        kind = kinds.get(x.dtype.name) or x.dtype.name.replace("int", "Int").replace("u", "U")
        nothing = "" if n is None else f"<NoDataValue>{n}</NoDataValue>"
        bands += f"""<VRTRasterBand dataType="{kind}" band="{i}">{nothing}<Offset>{shift}</Offset><Scale>{scale}</Scale>
            <SimpleSource><SourceFilename>{p}</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"""
    geo = ", ".join(map(str, r["transform"].to_gdal()))
    size = f'rasterXSize="{x.shape[2]}" rasterYSize="{x.shape[1]}"'
    out = folder / "r.vrt"
    out.write_text(
        f"<VRTDataset {size}><SRS>EPSG:32633</SRS><GeoTransform>{geo}</GeoTransform>{bands}</VRTDataset>"
    )
    return out


def wanted(path):
    "Values and validity by bare rasterio."
    with rasterio.open(path) as src:
        values, bad = [], []
        for i in src.indexes:
            x, n = src.read(i), src.nodatavals[i - 1]
            nothing = (
                np.zeros(x.shape, bool)
                if n is None
                else np.isnan(x)
                if np.isnan(n)
                else x == x.dtype.type(n)
            )
            bad.append(nothing | ~np.isfinite(x))
            values.append(x.astype("f8") * src.scales[i - 1] + src.offsets[i - 1])
        return np.where(bad, np.nan, values), ~np.any(bad, 0), src.transform


def check_against_rasterio(folder, r):
    path = write(folder, r)
    values, valid, transform = wanted(path)
    scene = open_scene(path, own(*"wxyz"[: len(r["x"])]))
    got, ok = read_window(scene)
    np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ok, valid)
    assert scene.transform == transform
    y, x = got.shape[1] // 2, got.shape[2] // 3
    part, _ = read_window(scene, (y, x, got.shape[1] - y, got.shape[2] - x))
    np.testing.assert_array_equal(part, got[:, y:, x:])
    close_handles()


KEEP = dict(deadline=None, suppress_health_check=list(HealthCheck))


@settings(max_examples=50, **KEEP)
@given(r=rasters())
def test_as_bare_rasterio_reads_it(tmp_path_factory, r):
    check_against_rasterio(tmp_path_factory.mktemp("fuzz"), r)


@pytest.mark.slow
@settings(max_examples=500, **KEEP)
@given(r=rasters())
def test_500_rasters_as_bare_rasterio_reads_them(tmp_path_factory, r):
    check_against_rasterio(tmp_path_factory.mktemp("fuzz"), r)


# real sensors side by side


@pytest.mark.skipif(not LAB.is_dir(), reason="needs a folder of real scenes: EO_BREW_LAB")
def test_six_real_sensors(tmp_path):
    raw = open_scene(LAB / "s2_aquileia")  # EO Browser: reflectance 1 is 65535
    x, ok = read_window(raw, size=(60, 100))
    assert raw.sensor.name == "sentinel2_l2a" and len(raw.bands) == 12 and 13 < raw.gsd < 15
    b = next(b for b in raw.bands if "B08" in b.file)
    with rasterio.open(b.file) as src:
        dn = src.read(1)
    assert np.nanmean(x[raw.sensor.band_names.index("B08")]) == pytest.approx(
        dn[dn > 0].mean() / 6.5535, rel=0.02
    )
    chips = open_scenes(LAB / "eurosat_ms", "eurosat")
    assert len(chips) == 100 and {s.shape for s in chips} == {(64, 64)}
    for tile in ("s2_t33uub", "s2_t49jgm"):
        with pytest.raises(ValueError, match="a date alone is no proof"):
            open_scene(LAB / tile)
        assert open_scene(LAB / tile, offset=0).shape == (600, 600)
    with tarfile.open(next((LAB / "xlandsat").glob("*.tar.gz"))) as t:
        t.extractall(tmp_path, filter="data")
    landsat = open_scene(tmp_path)
    x, ok = read_window(landsat)
    assert landsat.crs and landsat.gsd == 30 and 0 < np.nanmedian(x) * landsat.sensor.scale < 0.5
    olinda = open_scene(LAB.parent / "olinda" / "L7_ETMs.tif", "landsat7_dn")
    assert olinda.gsd == pytest.approx(28.5) and open_scene(
        LAB.parent / "s2_t33uuu", offset=0
    ).shape == (768, 1536)
