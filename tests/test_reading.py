"""Reading never lies: what a file says is believed, questioned or refused, as bare rasterio and xarray read it."""

import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from fastai.data.load import SkipItemException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rasters import spoil_tile

from eo_brew.app.cli import main
from eo_brew.core.sensors import Sensor
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.data.samples import WindowDataset
from eo_brew.maps.predict import predict_raster
from eo_brew.scenes.describe import describe_raster
from eo_brew.scenes.open import open_raster, open_scene, open_scenes, write_raster
from eo_brew.scenes.scene import close_handles, read_window
from eo_brew.scenes.stats import band_statistics, check_values
from eo_brew.scenes.windows import keep_valid, window_index

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


def test_rational_polynomials_are_no_grid(tmp_path):
    line = [0.0, 1.0] + [0.0] * 18
    ground = dict(height_off=0, height_scale=1, lat_off=52, lat_scale=1, long_off=13, long_scale=1)
    pixels = dict(line_off=4, line_scale=4, samp_off=4, samp_scale=4)
    one = [1.0] + [0.0] * 19
    terms = dict(line_num_coeff=line, line_den_coeff=one, samp_num_coeff=line, samp_den_coeff=one)
    kw = dict(driver="GTiff", count=1, height=8, width=8, dtype="uint16")
    with rasterio.open(tmp_path / "p.tif", "w", **kw) as dst:
        dst.write(np.ones((1, 8, 8), "uint16"))
        dst.rpcs = rasterio.rpc.RPC(**ground, **pixels, **terms)
    with rasterio.open(tmp_path / "p.tif") as src:
        assert src.rpcs and src.transform == Affine.identity()
    with pytest.raises(ValueError, match="p.tif lies by RPCs, not on a grid.*gdalwarp -rpc"):
        open_scene(tmp_path / "p.tif", own("v"))


def test_latitudes_and_longitudes_of_every_pixel_are_no_grid(tmp_path):
    pytest.importorskip("netCDF4")
    lat, lon = np.meshgrid(np.linspace(52, 51, 8), np.linspace(13, 14, 8), indexing="ij")
    swath = {"v": (("row", "col"), lat + lon), "lat": (("row", "col"), lat)}
    xr.Dataset(swath | {"lon": (("row", "col"), lon)}).to_netcdf(tmp_path / "s.nc")
    with pytest.raises(
        ValueError, match=r"s.nc lies by \['lat', 'lon'\] of every pixel.*pyresample"
    ):
        open_scene(tmp_path / "s.nc", own("v"))


def test_a_folder_with_a_scene_across_the_antimeridian(tmp_path):
    x = np.random.default_rng(0).integers(1, 999, (1, 256, 256)).astype("uint16")
    for zone in (10, 33, 55):
        at = Affine(10, 0, 5e5, 0, -10, 5e6)
        tif(tmp_path / f"{zone}.tif", x, crs=f"EPSG:326{zone}", t=at)
    fiji = Affine(10, 0, 178430, 0, -10, 8173370)
    tif(tmp_path / "f.tif", x, crs="EPSG:32701", t=fiji)
    corners = rasterio.warp.transform_bounds(
        "EPSG:32701", "EPSG:4326", 178430, 8170810, 180990, 8173370
    )
    assert corners[0] > corners[2]  # rasterio: from 179 east to 179 west
    sensor = own("v", mean=0.0, std=1.0)
    dls = eo_dataloaders(tmp_path, sensor, size=64, bs=2, device="cpu", n=None)
    train, valid = dls.train_ds.windows, dls.valid_ds.windows
    assert {0, 1, 2, 3} == set(train.rows[:, 0]) | set(valid.rows[:, 0])
    assert len(train) > 32 and len(valid)


def test_labels_of_another_crs_and_of_a_rounded_transform(tmp_path):
    sensor = own("v", mean=0.0, std=1.0)
    p = tif(tmp_path / "33.tif", np.arange(1, 65537).reshape(1, 256, 256).astype("uint32"))
    y = np.random.default_rng(0).integers(0, 3, (1, 256, 256)).astype("uint8")
    far = tif(tmp_path / "l.tif", y, crs="EPSG:32632")
    with pytest.raises(ValueError, match="l.tif.*EPSG:32632.* label no pixel of 33.tif"):
        eo_dataloaders(p, sensor, size=32, bs=2, labels=far)
    near = tif(tmp_path / "k.tif", y, t=T @ Affine.translation(1e-8, 0))
    dls = eo_dataloaders(p, sensor, size=32, bs=2, labels=near, device="cpu")
    _, (top, left, h, w) = dls.train_ds.windows[0]
    with rasterio.open(near) as src:
        same = src.read(1, window=rasterio.windows.Window(left, top, w, h))
    np.testing.assert_array_equal(dls.train_ds[0][1], same)


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
    for n in ("a_udm2.tif", "a_preview.tif", "dataMask.tif", "thumbnail.tif", "a_cloud_mask.tif"):
        tif(d / n, flat(1, 2, 3, dtype="uint8"))
    with rasterio.open(tif(d / "map.tif", flat(1, 2, 3, dtype="uint8")), "r+") as dst:
        dst.update_tags(software="eo_brew 0.1.0")
    describe_raster(d, "rgb").plot().savefig(d / "look.png")
    assert [Path(s.name).name for s in open_scenes(d, "rgb")] == ["a.tif"]


def test_looking_leaves_nothing_that_is_a_scene(tmp_path, monkeypatch):
    tif(tmp_path / "a.tif", np.arange(1, 12289).reshape(3, 64, 64).astype("uint8"))
    monkeypatch.chdir(tmp_path)
    assert main(["info", ".", "--sensor", "rgb", "--picture", "look.png"]) in (0, None)
    assert (tmp_path / "look.png").exists() and len(open_scenes(".", "rgb")) == 1


def test_options_of_the_command_line(tmp_path, capsys):
    h5py = pytest.importorskip("h5py")
    x = np.random.default_rng(0).integers(0, 99, (3, 9, 3)).astype("uint8")
    with h5py.File(tmp_path / "i.h5", "w") as f:
        f["i"], f["j"] = x, x
    given = ["info", str(tmp_path / "i.h5"), "--sensor", "rgb", "--variable", "i"]
    assert main(given) and "could be cyx or yxc" in capsys.readouterr().err
    assert not main([*given, "--layout", "yxc", "--nodata", "none"])
    assert "3 x 9 pixels" in (said := capsys.readouterr().out) and "nodata none" in said
    assert main([*given, "--layout", "yxc", "--nodata", "some"])
    assert "--nodata: invalid number_or_none value: 'some'" in capsys.readouterr().err


def test_a_folder_of_maps_only(tmp_path):
    like = open_scene(tif(tmp_path / "in" / "a.tif", flat(1)), own("v"))
    with rasterio.open(write_raster(tmp_path / "m.tif", flat(1), like), "r+") as dst:
        dst.update_tags(software="eo_brew 0.1.0")
    (tmp_path / "in" / "a.tif").unlink()
    with pytest.raises(ValueError, match="m.tif.* made by eo_brew.*give the file itself"):
        open_scenes(tmp_path, own("v"))
    assert len(open_scenes(tmp_path / "m.tif", own("v"))) == 1


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


@pytest.fixture
def with_a_bad_tile(tmp_path):
    "One GeoTIFF of 4 x 4 tiles, one of which holds nonsense."
    x = np.random.default_rng(0).integers(1, 3000, (1, 256, 256)).astype("uint16")
    p = tif(tmp_path / "t.tif", x, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    spoil_tile(p, 2, 1)
    return p, x


def test_one_bad_tile_costs_its_own_windows(with_a_bad_tile, monkeypatch):
    p, x = with_a_bad_tile
    scene = open_scene(p, own("v"))
    windows = window_index(scene, 64)
    with rasterio.open(p) as src:
        for i, (_, (top, left, h, w)) in enumerate(windows):
            try:
                src.read(window=rasterio.windows.Window(left, top, w, h))
            except rasterio.errors.RasterioError:
                (bad,) = [i]
    assert windows[bad][1][:2] == (64, 128)
    for in_memory in (True, False):
        ds = WindowDataset(
            scene,
            windows,
            own("v", mean=0.0, std=1.0),
            in_memory=in_memory,
            on_error="skip",
            max_lost=0.1,
        )
        for i, (_, (top, left, h, w)) in enumerate(windows):
            if i == bad:
                with pytest.raises(SkipItemException):
                    ds[i]
                continue
            got = ds[i][0]["ms"]
            np.testing.assert_array_equal(got, x[:, top : top + h, left : left + w])
        with pytest.warns(UserWarning, match="1 of 16 windows could not be read"):
            assert [w for _, w in ds.lost_windows.report()] == [(64, 128, 64, 64)]


def test_statistics_without_a_bad_tile(with_a_bad_tile):
    p, x = with_a_bad_tile
    scene = open_scene(p, own("v"))
    windows = window_index(scene, 64)
    x = x.astype("f8")
    x[:, 64:128, 128:192] = np.nan
    with pytest.raises(ValueError, match=r"t.tif, window \(64, 128, 64, 64\)"):
        band_statistics(scene, windows)
    with pytest.warns(UserWarning, match="1 of 16 windows left out: .*t.tif"):
        stats = band_statistics(scene, windows, on_error="skip")
    assert stats.count[0] == 15 * 64 * 64
    assert stats.mean[0] == pytest.approx(np.nanmean(x)) and stats.std[0] == pytest.approx(
        np.nanstd(x)
    )
    with pytest.warns(UserWarning, match="1 of 16 windows left out"):
        check_values(scene, windows, on_error="skip", limit=16)
    with pytest.raises(ValueError, match="t.tif, window"):
        check_values(scene, windows, limit=16)
    assert len(keep_valid(windows, scene, on_error="skip")) == 16
    with pytest.raises(ValueError, match="t.tif, window"):
        keep_valid(windows, scene)
    with pytest.raises(ValueError, match="t.tif, window"):  # nothing else is there
        band_statistics(scene, windows.take([6]), on_error="skip")


def test_training_beside_a_bad_tile(with_a_bad_tile):
    p, _ = with_a_bad_tile
    options = dict(
        size=64, bs=2, stride=64, valid_pct=0, device="cpu", on_error="skip", max_lost=0.1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dls = eo_dataloaders(p, own("v"), **options)  # statistics are measured, too
        n = sum(len(b[0]["index"]) for b in dls.train)
    assert n in (14, 15) and int(dls.train_ds.lost_windows.lost.sum()) == 1


# maps


@pytest.mark.parametrize("dtype", ["float32", "float16", "int16", "int8"])
@pytest.mark.parametrize("ext", ["tif", "zarr"])
def test_a_map_is_read_by_its_own_tags(tmp_path, ext, dtype):
    if ext == "zarr":
        pytest.importorskip("zarr")
    x = np.random.default_rng(0).uniform(0, 1, (2, 64, 64)).astype("f4")
    x[0] *= 100
    x[:, :9, :9] = np.nan
    scene = open_scene(tif(tmp_path / "in.tif", x, "ab", nodata=float("nan")), own("a", "b"))
    out, sweep = tmp_path / f"m.{ext}", dict(size=32, overlap=0, progress=False)
    predict_raster(lambda b: b["ms"] * 3 + 1, scene, out, kind="values", dtype=dtype, **sweep)
    got, ok = read_window(open_scene(out, own("p", "q"), bands=["p", "q"]))
    step = {"float32": 0, "float16": 1e-3, "int16": 1e-4, "int8": 1e-2}[dtype]
    for a, b in zip(got[:, ok], 3 * x[:, ok] + 1):
        assert (
            abs(a - b) <= step * b.max() + 1e-5
        ).mean() > 0.99  # integers stop at the 99.9th percentile
    assert not ok[:9, :9].any() and ok.sum() == 64 * 64 - 81
    if ext == "tif":
        with rasterio.open(out) as src:
            bare = [src.read(i) * src.scales[i - 1] + src.offsets[i - 1] for i in src.indexes]
        np.testing.assert_allclose(got[:, ok], np.stack(bare)[:, ok], rtol=1e-5)


@pytest.mark.parametrize("nodata", [None, -9999.0])
def test_a_written_array_comes_back(tmp_path, nodata):
    like = open_scene(tif(tmp_path / "in.tif", flat(1)), own("v"))
    x = np.random.default_rng(0).normal(size=(2, 32, 32)).astype("f4")
    x[0, 3, 4] = np.nan
    p = write_raster(tmp_path / "out.tif", x, like, ["p", "q"], nodata=nodata)
    np.testing.assert_array_equal(read_window(open_scene(p, own("p", "q")))[0], x)


# more of the same kinds: what other software writes


def read(path, sensor, **kw):
    return read_window(open_scene(path, sensor, **kw))


def test_wavelengths_name_bands(tmp_path):
    pytest.importorskip("netCDF4")
    axes = dict(wavelength=[490.0, 560.0, 665.0], y=[20.0, 10.0], x=[0.0, 10.0])
    x = np.arange(12.0).reshape(3, 2, 2)
    for n, units in (("nm", {}), ("um", dict(units="um"))):
        scaled = axes | dict(wavelength=np.array(axes["wavelength"]) / (1000 if units else 1))
        ds = xr.Dataset(dict(r=(("wavelength", "y", "x"), x)), scaled)
        ds.wavelength.attrs.update(units)
        ds.to_netcdf(tmp_path / f"{n}.nc")
        got, _ = read(
            tmp_path / f"{n}.nc", "sentinel2_l2a", bands=["B04", "B02"], offset=0, nodata="none"
        )
        np.testing.assert_array_equal(got, ds.r.sel(wavelength=scaled["wavelength"])[[2, 0]])
    cube = tmp_path / "cube"
    kw = dict(driver="ENVI", count=3, height=8, width=8, dtype="int16", transform=T)
    with rasterio.open(cube, "w", crs="EPSG:32633", **kw) as dst:
        dst.write(flat(1, 2, 3, n=8, dtype="int16"))
    with open(tmp_path / "cube.hdr", "a") as f:
        f.write("\nwavelength units = Nanometers\nwavelength = {490.0, 560.0, 665.0}\n")
    assert rasterio.open(cube).descriptions[0] == "Band 1 (490.0 Nanometers)"  # 1 is no B01
    assert first(cube, "sentinel2_l2a", bands=["B04", "B02"], offset=0) == [3, 1]


def test_lists_of_names_in_attributes_and_tags(tmp_path):
    x = flat(1, 2, n=8)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "attribute.h5", "w") as f:
        f.create_dataset("r", data=x).attrs["band_names"] = ["B03", "B02"]
    with h5py.File(tmp_path / "beside.h5", "w") as f:
        f["r"], f["bands"] = x, np.array(["B03", "B02"], "S3")
    da = xr.DataArray(x, dims=("band", "y", "x"), name="r", attrs=dict(band_names="B03, B02"))
    da.to_dataset().to_netcdf(tmp_path / "text.nc")
    with rasterio.open(tif(tmp_path / "tag.tif", x), "r+") as dst:
        dst.update_tags(band_names='["B03", "B02"]')
    for n in ("attribute.h5", "beside.h5", "text.nc", "tag.tif"):
        assert first(tmp_path / n, "sentinel2_l2a", bands=["B02", "B03"], offset=0) == [2, 1], n


def test_a_folder_a_scene_whose_files_are_called_by_bands(tmp_path):
    for place in ("0001", "0002"):
        for season in ("20210101T1", "20210401T1"):
            for b in ("B1", "B2", "B8A"):
                tif(tmp_path / place / season / f"{b}.tif", flat(int(place) * 10 + int(season[5])))
    scenes = open_scenes(tmp_path, "sentinel2_l1c", offset=0)
    want = [f"{p}/{s}" for p in ("0001", "0002") for s in ("20210101T1", "20210401T1")]
    assert [Path(s.name).relative_to(tmp_path).as_posix() for s in scenes] == want
    assert [read_window(s)[0][0, 0, 0] for s in scenes] == [11, 14, 21, 24]


def test_arguments_that_mean_nothing(tmp_path):
    p = tif(tmp_path / "a.tif", flat(1, 2), ["B02", "B03"])
    with pytest.raises(ValueError, match=r"bands='B02' is a text: give a list, \['B02'\]"):
        open_scene(p, "sentinel2_l2a", bands="B02", offset=0)
    with pytest.raises(ValueError, match=r"path=\[\] is an empty list"):
        open_scenes([])
    m = tif(tmp_path / "m.tif", flat(1, dtype="uint8"))
    with pytest.raises(ValueError, match="rule='valid' is not known.*'invalid'"):
        open_scene(p, "sentinel2_l2a", offset=0, mask=(m, dict(valid=(1,))))


def test_an_hdf5_file_by_the_name_of_a_netcdf_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("netCDF4")
    with h5py.File(tmp_path / "h.nc", "w") as f:
        f["B02"], f["B03"] = flat(5, 6)
    with h5py.File(tmp_path / "cube.nc", "w") as f:
        f["cube"] = flat(1, 2)
    assert first(tmp_path / "h.nc", own("B02", "B03")) == [5, 6]
    assert first(tmp_path / "cube.nc", own("a", "b")) == [1, 2]


def test_two_files_of_one_band(tmp_path):
    for n, v in (("T_B02.tif", 1), ("T_b2.tif", 2)):
        tif(tmp_path / n, flat(v))
    tif(tmp_path / "T_B03.tif", flat(3))
    with pytest.raises(ValueError, match="B02 is T_B02.tif and T_b2.tif.*bands="):
        open_scene(tmp_path, "sentinel2_l2a", offset=0)
    told = dict(B02="T_b2.tif", B03="T_B03.tif")
    assert first(tmp_path, "sentinel2_l2a", bands=told, offset=0) == [2, 3]
    for r, v in (("R20m", 5), ("R10m", 4)):  # the same at another resolution is no contradiction
        tif(tmp_path / "safe" / r / "T_B02.tif", flat(v))
    assert first(tmp_path / "safe", "sentinel2_l2a", offset=0) == [4]


def test_harmonised_landsat_and_sentinel(tmp_path):
    for product, sensor in (("S30", "sentinel2_l2a"), ("L30", "landsat8_sr")):
        d = tmp_path / product
        for b, v in (("B02", 500), ("B04", -9999), ("B03", 700)):
            name = f"HLS.{product}.T33UUU.2023001T100000.v2.0.{b}.tif"
            tif(d / name, flat(v, dtype="int16"), nodata=-9999)
        tif(d / name.replace("B03", "Fmask"), flat(64, dtype="uint8"), nodata=255)
        scene = open_scene(d, mask="hls_fmask")
        x, ok = read_window(scene)
        assert scene.sensor.name == sensor and not ok.any()
        two = [b for b in scene.sensor.band_names if b in ("B02", "B03", "B2", "B3")]
        x, ok = read_window(open_scene(d, bands=two, mask="hls_fmask"))
        assert ok.all()
        np.testing.assert_allclose(x[:, 0, 0] * scene.sensor.scale, [0.05, 0.07], rtol=1e-5)


def test_zarr_of_version_3_says_its_fill_value(tmp_path):
    zarr = pytest.importorskip("zarr")
    for fill, lost in ((-9999, True), (0, False)):  # 0 stands where nobody chose one
        a = zarr.open_group(tmp_path / f"{-fill}.zarr", mode="w", zarr_format=3)
        kw = dict(shape=(8, 8), chunks=(8, 8), dtype="int16", dimension_names=["y", "x"])
        v = a.create_array("v", fill_value=fill, **kw)
        v[:] = 5
        v[0, 0] = fill
        x, ok = read(tmp_path / f"{-fill}.zarr", own("v"))
        assert (~ok).sum() == lost and ok[0, 0] != lost


def test_groups_and_single_arrays(tmp_path):
    zarr = pytest.importorskip("zarr")
    netcdf = pytest.importorskip("netCDF4")
    pytest.importorskip("h5py")
    a = zarr.open_group(tmp_path / "z.zarr", mode="w", zarr_format=2)
    v = a.create_group("measurements/r10m").create_array("b02", shape=(4, 4), dtype="uint16")
    v[:] = 7
    v.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    with pytest.raises(ValueError, match=r"holds no array, but groups \['measurements'\]"):
        open_scene(tmp_path / "z.zarr", "sentinel2_l2a", offset=0)
    inner = tmp_path / "z.zarr" / "measurements" / "r10m"
    assert first(inner, "sentinel2_l2a", offset=0) == [7]
    assert len(open_scenes(inner, "sentinel2_l2a", offset=0)) == 1
    v = zarr.create_array(tmp_path / "a.zarr", shape=(4, 4), dtype="f4", dimension_names=["y", "x"])
    with pytest.raises(ValueError, match="a.zarr' is one array without a group"):
        open_scene(tmp_path / "a.zarr", own("v"))
    with netcdf.Dataset(tmp_path / "g.nc", "w") as f:
        g = f.createGroup("PRODUCT")
        g.createDimension("y", 4), g.createDimension("x", 4)
        v = g.createVariable("B02", "i2", ("y", "x"), fill_value=-1)
        v.scale_factor = 0.5
        v[:] = 3.0
    with pytest.raises(ValueError, match=r"g.nc holds no variable outside of its groups.*\.h5"):
        open_scene(tmp_path / "g.nc", own("B02"))
    os.rename(tmp_path / "g.nc", tmp_path / "g.h5")
    assert first(tmp_path / "g.h5", own("B02")) == [3.0]


def test_marks_and_places_in_a_cube_are_no_bands(tmp_path):
    pytest.importorskip("netCDF4")
    plane = lambda v, **kw: (("y", "x"), np.full((4, 4), v, "f4"), kw)
    ds = dict(B02=plane(2), B03=plane(3), SCL=plane(4), flags=plane(1, flag_meanings="cloud"))
    axes = dict(y=[30.0, 20.0, 10.0, 0.0], x=[0.0, 10.0, 20.0, 30.0])
    xr.Dataset(ds | dict(latitude=plane(50)), axes).to_netcdf(tmp_path / "m.nc")
    assert first(tmp_path / "m.nc", "sentinel2_l2a", offset=0) == [2, 3]


@pytest.mark.parametrize("t", [Affine(0, 0, 5, 0, 0, 9), Affine(float("nan"), 0, 0, 0, -10, 0)])
def test_pixels_without_a_size(tmp_path, t):
    p = tif(tmp_path / "t.tif", flat(1), t=t)
    with pytest.raises(ValueError, match="t.tif has no grid.*gdal_edit -a_ullr"):
        open_scene(p, own("v"))


def test_names_of_files_that_programs_stumble_over(tmp_path):
    names = [
        "with blank",
        "ümläut",
        "日本",
        "a[1]",
        "a(2)#x",
        "per%20cent",
        "quo'te",
        "am&p<",
        "50%",
    ]
    for i, n in enumerate(names, 1):
        tif(tmp_path / "d é" / f"{n}.tif", flat(i))
    for s in open_scenes(tmp_path / "d é", own("v"), nodata=0):
        assert read_window(s, size=8)[0][0, 0, 0] == names.index(Path(s.name).stem) + 1
    for b in ("B02", "B03"):
        tif(tmp_path / "we&ird <x> 'q'" / f"{b} [1].tif", flat(int(b[1:])))
    assert first(tmp_path / "we&ird <x> 'q'", "sentinel2_l2a", offset=0) == [2, 3]


def test_links_that_lead_nowhere(tmp_path):
    tif(tmp_path / "a" / "x.tif", flat(1))
    for name, target in (("gone.tif", "nowhere.tif"), ("c1", "c2"), ("c2", "c1"), ("a/up", "..")):
        os.symlink(target, tmp_path / name)
    for n in ("Thumbs.db", "desktop.ini", ".DS_Store", "x.tif.aux.xml.tmp"):
        (tmp_path / "a" / n).write_bytes(b"1")
    assert [Path(s.name).name for s in open_scenes(tmp_path, own("v"))] == ["x.tif"]


def test_labels_beside_images_are_no_scenes(tmp_path):
    for n in ("images/a.tif", "masks/a.tif", "labels/a.tif", "Annotations/a.tif", "b_label.tif"):
        tif(tmp_path / n, flat(1, dtype="uint8"))
    assert [Path(s.name).parent.name for s in open_scenes(tmp_path, own("v"))] == ["images"]
    assert len(open_scenes(tmp_path / "labels", own("v"))) == 1  # asked for by name


def test_archives_in_a_folder_are_told(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "p.zip", "w") as z:
        z.write(tif(tmp_path / "out" / "q.tif", flat(5)), "q.tif")
    (tmp_path / "out" / "q.tif").unlink()
    with pytest.raises(ValueError, match=r"of archives give the names, in a list: \['p.zip'\]"):
        open_scenes(tmp_path, own("v"))
    assert read_window(open_scenes([tmp_path / "p.zip"], own("v"))[0])[0][0, 0, 0] == 5


@pytest.mark.parametrize("text", ["<!DOCTYPE html>\n<html>404</html>", "<html><body>404"])
def test_a_page_in_the_place_of_a_raster(tmp_path, text):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.tif").write_text(text)
    with pytest.raises(ValueError, match="a.tif.* is a web page"):
        open_scene(tmp_path / "d" / "a.tif", own("v"))
    with pytest.raises(ValueError, match="a.tif.* is a web page"):
        open_scenes(tmp_path / "d", own("v"))
    tif(tmp_path / "d" / "b.tif", flat(5))
    with pytest.warns(UserWarning, match="1 scenes left out: .*a.tif.* is a web page"):
        assert len(open_scenes(tmp_path / "d", own("v"), on_error="skip")) == 1
    (tmp_path / "d" / "b.tif").unlink()
    (tmp_path / "d" / "a.tif").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
    )
    with pytest.raises(ValueError, match="git lfs pull"):
        open_scenes(tmp_path / "d", own("v"))


def test_a_mask_that_lies_nowhere(tmp_path):
    p = tif(tmp_path / "a.tif", flat(1))
    codes = flat(4, dtype="uint8")
    codes[0, 3, 4] = 9
    nowhere = dict(crs=None, t=Affine.identity())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tif(tmp_path / "a_SCL.tif", codes, **nowhere)
        ok = read(p, own("v"), mask="scl")[1]
        assert not ok[3, 4] and ok.sum() == 1023
        close_handles()
        tif(tmp_path / "a_SCL.tif", codes[:, :16, :16], **nowhere)
    with pytest.raises(ValueError, match="a_SCL.tif of .16, 16. pixels does not say where it lies"):
        open_scene(p, own("v"), mask="scl")


def test_pictures_with_a_palette_or_more(tmp_path):
    image = pytest.importorskip("PIL.Image")
    im = image.fromarray(flat(3, dtype="uint8")[0], "P")
    im.putpalette([0, 0, 0] * 3 + [255, 10, 20])
    im.save(tmp_path / "p.png")
    with pytest.raises(ValueError, match="p.png.* a palette.*gdal_translate -expand rgb"):
        open_scene(tmp_path / "p.png", "rgb")
    x = flat(10, 20, 30, 255, dtype="uint8")
    x[3, 0, 0] = 0
    image.fromarray(np.moveaxis(x, 0, -1), "RGBA").save(tmp_path / "a.png")
    got, ok = read(tmp_path / "a.png", "rgb", gain=1)
    assert got[:, 1, 1].tolist() == [10, 20, 30] and not ok[0, 0] and ok.sum() == 1023


@pytest.mark.parametrize("how", ["internal", "msk", "cog"])
def test_masks_inside_and_beside(tmp_path, how):
    import rasterio.shutil

    keep = np.random.default_rng(0).integers(0, 2, (512, 512)).astype("uint8") * 255
    p = tif(tmp_path / "m.tif", flat(5, 6, n=512))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=how != "msk"), rasterio.open(p, "r+") as dst:
        dst.write_mask(keep)
    assert (tmp_path / "m.tif.msk").exists() == (how == "msk")
    if how == "cog":
        rasterio.shutil.copy(p, tmp_path / "c.tif", driver="COG")
        p = tmp_path / "c.tif"
    x, ok = read(p, own("a", "b"))
    with rasterio.open(p) as src:
        np.testing.assert_array_equal(ok, src.dataset_mask() > 0)
    assert (x[:, ok] == np.array([[5], [6]])).all() and np.isnan(x[:, ~ok]).all()


def test_earth_engine_exports_of_floats(tmp_path):
    x = np.random.default_rng(0).uniform(0, 1, (13, 16, 16))
    x[:, 0, 0] = np.nan
    names = "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12".split()
    p = tif(tmp_path / "e.tif", x, names)
    got, ok = read(p, "sentinel2_l1c", offset=0, gain=10000)
    np.testing.assert_allclose(got, 10000 * x, rtol=1e-6)
    more = tif(tmp_path / "q.tif", flat(*range(1, 6)), ["B2", "B3", "B4", "SCL", "QA60"])
    with pytest.raises(ValueError, match=r"not known: band 4 \(SCL\), band 5 \(QA60\)"):
        open_scene(more, "sentinel2_l2a", offset=0)
    with pytest.raises(ValueError, match="the largest value is .*reflectance in 0..1"):
        check_values(open_scene(p, "sentinel2_l1c", offset=0))


@pytest.mark.parametrize("nodata", [-0.0, 0.1, 1e20, -3.4028234663852886e38, float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nodata_as_floats_have_it(tmp_path, nodata, dtype):
    x = np.full((1, 8, 8), 300, dtype)
    x[0, 0, 0] = nodata
    p = tif(tmp_path / "n.tif", x, nodata=nodata)
    got, ok = read(p, own("v"))
    with rasterio.open(p) as src:
        np.testing.assert_array_equal(ok, (src.dataset_mask() > 0) & np.isfinite(src.read(1)))
    assert not ok[0, 0] and (got[0][ok] == 300).all()


def test_statistics_and_nodata_in_a_file_beside(tmp_path):
    p = tif(tmp_path / "a.tif", flat(5, 6))
    said = "<Metadata><MDI key='STATISTICS_MEAN'>5</MDI></Metadata><NoDataValue>5</NoDataValue>"
    band = f"<PAMRasterBand band='1'>{said}</PAMRasterBand>"
    Path(f"{p}.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    with rasterio.open(p) as src:
        assert src.nodatavals == (5, None)
    x, ok = read(p, own("a", "b"))
    assert np.isnan(x[0]).all() and (x[1] == 6).all() and not ok.any()
    assert [Path(s.name).name for s in open_scenes(tmp_path, own("a", "b"))] == ["a.tif"]


def test_modis_sinusoidal(tmp_path):
    pytest.importorskip("netCDF4")
    import pyproj

    sphere = pyproj.CRS.from_proj4("+proj=sinu +R=6371007.181 +units=m")
    side = 463.3127
    axes = dict(y=4447802 - side * (np.arange(8) + 0.5), x=1111950.5 + side * (np.arange(8) + 0.5))
    x = np.full((8, 8), 1234, "int16")
    x[0, :3] = -28672, 16001, -101
    about = dict(
        grid_mapping="crs", scale_factor=1e-4, valid_range=np.array([-100, 16000], "int16")
    )
    about |= dict(_FillValue=np.int16(-28672))
    ds = xr.Dataset(dict(sur_refl_b01=(("y", "x"), x, about)), axes)
    ds["crs"] = xr.DataArray(0, attrs=sphere.to_cf())
    ds.to_netcdf(tmp_path / "m.nc")
    scene = open_scene(tmp_path / "m.nc", own("sur_refl_b01"))
    got, ok = read_window(scene)
    assert pyproj.CRS.from_wkt(scene.crs).to_dict()[
        "proj"
    ] == "sinu" and scene.gsd == pytest.approx(side)
    assert not ok[0, :3].any() and ok.sum() == 61
    np.testing.assert_allclose(got[0][ok], 0.1234, rtol=1e-6)


def test_south_up_is_read_as_it_lies(tmp_path):
    x = np.arange(16, dtype="f4").reshape(1, 4, 4)
    scene = open_scene(tif(tmp_path / "s.tif", x, t=Affine(10, 0, 0, 0, 10, 0)), own("v"))
    np.testing.assert_array_equal(read_window(scene)[0], x)
    with rasterio.open(tmp_path / "s.tif") as src:
        b = src.bounds
    assert scene.bounds == (b.left, min(b.top, b.bottom), b.right, max(b.top, b.bottom))


def test_zipped_safe(tmp_path):
    import zipfile

    n = "S2B_MSIL2A_20230101T100000_N0509_R122_T33UUU_20230101T120000.SAFE"
    inside = f"{n}/GRANULE/L2A/IMG_DATA/R10m/T33UUU_20230101T100000"
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as z:
        for b, v in (("B02", 1500), ("B03", 2500), ("SCL", 4), ("TCI", 1)):
            z.write(tif(tmp_path / "t" / f"{b}.tif", flat(v)), f"{inside}_{b}_10m.tif")
        z.writestr(f"{n}/MTD_MSIL2A.xml", '<BOA_ADD_OFFSET band_id="1">-1000</BOA_ADD_OFFSET>')
    assert (
        first(tmp_path / "s.zip", None) == [500, 1500] and len(open_scenes(tmp_path / "s.zip")) == 1
    )


# against bare rasterio

TYPES = "uint8 int8 uint16 int16 uint32 int32 uint64 int64 float32 float64".split()


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
            draw(st.sampled_from([0.5, 10, 1e-4])),
            0,
            draw(st.integers(-9, 9)),
            0,
            draw(st.sampled_from([-10, -0.3, 10])),
            50,
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
