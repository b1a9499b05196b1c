"""More files as people have them, of the kinds in test_reading.py: read as independent readers do, or a question."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from test_reading import T, closed, first, flat, own, read, tif  # noqa: F401  (a fixture)

from eo_brew.core.sensors import Sensor
from eo_brew.data.labels import open_labels
from eo_brew.scenes.describe import describe_raster
from eo_brew.scenes.open import open_scene, open_scenes
from eo_brew.scenes.scene import close_handles, read_window

NOWHERE = dict(crs=None, t=Affine.identity())


def value(path, sensor=None, **kw):
    "The upper left value, and how many pixels are valid."
    x, ok = read(path, sensor or own("v"), **kw)
    return float(x[0, 0, 0]), int(ok.sum())


# names


def test_names_that_hold_those_of_other_bands(tmp_path):
    "Red edge was read as red, shortwave and thermal infrared as near infrared, coastal blue as blue."
    odd = {"Red edge": "red", "Coastal blue": "blue", "Deep blue": "blue", "green_i": "green"}
    odd |= {"Shortwave infrared 1": "nir", "Thermal Infrared": "nir", "Vegetation red edge": "red"}
    for i, (name, band) in enumerate(odd.items()):
        p = tif(tmp_path / f"p{i}.tif", flat(1, 2), [name, "NIR" if band == "green" else "Green"])
        with pytest.raises(ValueError, match=rf"not known: band 1 \({name}\)"):
            open_scene(p, "rgbn")
        with pytest.raises(ValueError, match="not found"):
            open_scene(p, "rgbn", bands=[band])
    planet = "coastal_blue blue green_i green yellow red rededge nir".split()
    p = tif(tmp_path / "planet.tif", flat(*range(1, 9)), planet)
    assert first(p, "rgbn", bands=["red", "green", "blue", "nir"], gain=1) == [6, 4, 2, 8]
    maxar = ["BAND_B", "BAND_G", "BAND_R", "BAND_N"]  # were taken for red, green, blue, nir
    assert first(tif(tmp_path / "maxar.tif", flat(1, 2, 3, 4), maxar), "rgbn", gain=1) == [
        3,
        2,
        1,
        4,
    ]
    hls = tif(tmp_path / "hls.tif", flat(1, 2), ["Coastal_Aerosol", "NIR_Narrow"])
    assert first(hls, "landsat8_sr", offset=0) == [1, 2] == first(hls, "sentinel2_l2a", offset=0)


def test_names_of_other_bands_are_no_position(tmp_path):
    p = tif(tmp_path / "s1.tif", flat(-1, -2, dtype="float32"), ["HH", "HV"])
    with pytest.raises(ValueError, match="calls it 'HH', which 'sentinel1_db' .VV, VH. does not"):
        open_scene(p, "sentinel1_db")
    assert first(p, "sentinel1_db", bands=["VV", "VH"]) == [-1, -2]  # somebody says so
    p = tif(tmp_path / "i.tif", flat(1, 2, 3), ["NIR", "SWIR1", "Red edge"])
    with pytest.raises(ValueError, match="calls it 'NIR', which 'rgb' .red, green, blue. does not"):
        open_scene(p, "rgb")
    assert first(p, own("x", "y", "z")) == [1, 2, 3]  # a sensor with names of its own


@pytest.mark.parametrize("end", ["_median", "_1", "_p50", " (reflectance)"])
def test_names_of_composites(tmp_path, end):
    for start in ("", "S2_", "0_", "20210101T101010_20210101T101011_T33UUU_"):
        names = [f"{start}{b}{end}" for b in ("B8A", "B2")]
        p = tif(tmp_path / f"{start}.tif", flat(8, 2), names)
        assert first(p, "sentinel2_l2a", offset=0) == [2, 8]
    two = tif(tmp_path / "two.tif", flat(1, 2), ["0_B2", "1_B2"])
    with pytest.raises(ValueError, match="B02 is band 1 .* and band 2"):
        open_scene(two, "sentinel2_l2a", offset=0)


def test_one_band_of_a_product(tmp_path):
    "Each of the nineteen files of a folder was read as the temperature."
    for scene in (
        "LC08_L2SP_192024_20200420_20200822_02_T1",
        "LC08_L2SP_192025_20200420_20200822_02_T1",
    ):
        for i, band in enumerate(("SR_B1", "SR_B4", "ST_B10", "ST_QA", "ST_TRAD", "QA_PIXEL")):
            tif(tmp_path / scene / f"{scene}_{band}.TIF", flat(40000 + i))
    found = open_scenes(tmp_path, "landsat8_st")
    assert len(found) == 2
    for s in found:
        assert read_window(s)[0][0, 0, 0] == pytest.approx(40002 * 0.00341802 + 149, rel=1e-5)


# numbers


def test_words_of_cf_among_the_tags_of_a_raster(tmp_path):
    "GDAL leaves them alone, as what is made of HDF files has them."
    x = flat(5000, dtype="int16")
    x[0, 0, 1:4] = -28672, 16001, -101
    tags = dict(scale_factor="0.0001", add_offset="0.1", _FillValue="-28672")
    p = tif(tmp_path / "a.tif", x)
    with rasterio.open(p, "r+") as dst:
        dst.update_tags(1, valid_range="-100, 16000", **tags)
    got, ok = read(p, own("v"))
    assert got[0, 0, 0] == pytest.approx(0.6) and not ok[0, 1:4].any() and ok.sum() == 32 * 32 - 3
    assert "valid range from -100 to 16000  from the file's tags" in str(
        describe_raster(p, own("v"))
    )
    with rasterio.open(p, "r+") as dst:
        dst.scales = (0.5,)
    with pytest.raises(ValueError, match="offset 0 .*, but offset 1000 .*scale_factor 0.0001"):
        open_scene(p, own("v"))
    assert value(p, own("v"), gain=2, offset=0)[0] == 10_000
    with rasterio.open(p, "r+") as dst:
        dst.nodata = 7
    with pytest.raises(ValueError, match="nodata 7 .*, but nodata -28672 .*_FillValue"):
        open_scene(p, own("v"), gain=1, offset=0)


X = np.array([[0, 100, 200, 1000], [5000, 10000, 20000, -1]], "int16")


def packed(path, x=X, **attrs):
    "A netCDF file as netCDF4 writes it, with a fill value only if it is given."
    netcdf = pytest.importorskip("netCDF4")
    close_handles()
    with netcdf.Dataset(path, "w") as f:
        for n, d in zip(x.shape, "yx"):
            f.createDimension(d, n)
        v = f.createVariable("v", x.dtype, ("y", "x"), fill_value=attrs.pop("_FillValue", None))
        v.set_auto_maskandscale(False)
        v[:] = x
        v.setncatts(attrs)
    return path


def test_ranges_of_quantities_and_of_numbers(tmp_path):
    "A range of 0 to 1 beside numbers to 10000 left nothing, and -6 as the end of unsigned numbers nothing at all."
    scale = dict(scale_factor=1e-4)
    same = [[True] * 4, [True, True, False, False]]
    ranges = dict(valid_range=np.array([0.0, 1.0])), dict(valid_min=0.0, valid_max=1.0)
    ranges += dict(valid_range="0, 10000"), dict(valid_range=np.array([0, 10000], "int16"))
    for i, said in enumerate(ranges):
        x, ok = read(packed(tmp_path / f"{i}.nc", **scale, **said), own("v"))
        assert ok.tolist() == same
        np.testing.assert_allclose(x[0][ok], X[ok] / 1e4, rtol=1e-5)
    goes = dict(_Unsigned="true", valid_range=np.array([0, -6], "int16"), _FillValue=np.int16(-1))
    numbers = np.array([[0, 1, -2, -1], [5, 6, -6, -7]], "int16")
    x, ok = read(packed(tmp_path / "goes.nc", numbers, **goes), own("v"))
    assert ok.tolist() == [[True, True, False, False], [True] * 4]
    assert x[0, 1].tolist() == [5, 6, 65530, 65529]


@pytest.mark.parametrize("word", ["nodata", "NoData_Value", "no_data", "FillValue", "nodatavals"])
def test_words_for_nodata(tmp_path, word):
    for said in (np.int16(-1), "-1"):
        path = packed(tmp_path / f"{type(said).__name__}.nc", **{word: said})
        assert value(path) == (0, 7)
    assert value(packed(tmp_path / "text.nc", **{word: "none"}))[1] == 8
    if word != "nodatavals":
        with rasterio.open(tif(tmp_path / "a.tif", X[None]), "r+") as dst:
            dst.update_tags(**{word: "-1"})
        assert value(tmp_path / "a.tif") == (0, 7)


def test_attributes_that_nobody_can_read(tmp_path):
    for said in ("1e-4 (reflectance)", np.array([1.0, 2.0, 3.0]), np.nan):
        path = packed(tmp_path / "a.nc", scale_factor=said)
        with pytest.raises(ValueError, match=r"a.nc: \w+=nan .* makes no value"):
            open_scene(path, own("v"))
        assert value(path, gain=2, offset=1)[0] == 2
    for word in (dict(Slope=0.5), dict(Intercept=1.0), dict(gain=0.5), dict(offset=2)):
        path = packed(tmp_path / "b.nc", **word)
        with pytest.raises(ValueError, match="b.nc: its attribute .* is no word of a convention"):
            open_scene(path, own("v"))
        assert value(path, gain=2, offset=1)[0] == 2
    assert value(packed(tmp_path / "c.nc", Slope=1.0, offset=0, missing_value="N/A")) == (0, 8)


def test_what_netcdf_holds_where_nothing_was_written(tmp_path):
    netcdf = pytest.importorskip("netCDF4")
    for kind in ("u2", "i2", "f4", "f8", "i8"):
        with netcdf.Dataset(tmp_path / f"{kind}.nc", "w") as f:
            f.createDimension("y", 8), f.createDimension("x", 8)
            f.createVariable("v", kind, ("y", "x"), chunksizes=(4, 4))[:4, :4] = 7
        with netcdf.Dataset(tmp_path / f"{kind}.nc") as f:
            masked = np.ma.getmaskarray(f["v"][:])
        _, ok = read(tmp_path / f"{kind}.nc", own("v"))
        np.testing.assert_array_equal(ok, ~masked)
    x = np.full((4, 4), 255, "uint8")  # any single byte may be a value
    assert value(packed(tmp_path / "bytes.nc", x)) == (255, 16)


def test_a_chunk_of_a_shard_that_was_never_written(tmp_path):
    zarr = pytest.importorskip("zarr")
    g = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    kw = dict(shards=(8, 8), chunks=(4, 4), fill_value=0, dimension_names=["y", "x"])
    v = g.create_array("v", shape=(8, 8), dtype="uint16", **kw)
    v[:4, :4] = 7
    v[0, 0] = 0
    x, ok = read(tmp_path / "s.zarr", own("v"))
    assert ok[:4, :4].all() and ok.sum() == 16 and x[0, 0, 0] == 0
    assert not read_window(open_scene(tmp_path / "s.zarr", own("v")), (5, 1, 1, 1))[1].any()


# places


def placed(path, dims=("y", "x"), y=None, x=None, yat=(), xat=(), mapping=None, **attrs):
    coords = (
        {} if y is None else {dims[0]: (dims[0], y, dict(yat)), dims[1]: (dims[1], x, dict(xat))}
    )
    ds = xr.Dataset({"v": (dims, np.ones((4, 6), "f4"), attrs)}, coords)
    if mapping is not None:
        ds["crs"] = xr.DataArray(0, attrs=mapping)
        ds.v.attrs["grid_mapping"] = "crs"
    close_handles()
    ds.to_netcdf(path)
    return path


def where(path, **kw):
    s = open_scene(path, own("v"), **kw)
    return (rasterio.CRS.from_wkt(s.crs).to_epsg() if s.crs else None), s


def test_axes_have_units(tmp_path):
    "Kilometres and radians were taken for metres; latitudes and longitudes lay nowhere."
    pyproj = pytest.importorskip("pyproj")
    pytest.importorskip("netCDF4")
    lat, lon = 50 - 0.1 * np.arange(4), 10 + 0.1 * np.arange(6)
    north, east = dict(units="degrees_north"), dict(units="degrees_east")
    for dims, units in ((("lat", "lon"), ((), ())), (("y", "x"), (north, east))):
        epsg, s = where(placed(tmp_path / "d.nc", dims, lat, lon, *units))
        assert epsg == 4326 and s.gsd == pytest.approx(8944, rel=1e-3)
    km = dict(y=5840.0 - 10 * np.arange(4), x=-3845.0 + 10 * np.arange(6))
    km |= dict(yat=dict(units="km"), xat=dict(units="km"))
    epsg, s = where(placed(tmp_path / "k.nc", mapping=pyproj.CRS(3413).to_cf(), **km))
    assert (epsg, s.gsd, s.transform.c) == (3413, 10_000, -3_850_000)
    geos = pyproj.CRS.from_proj4("+proj=geos +h=35786023 +lon_0=-75 +sweep=x +ellps=GRS80").to_cf()
    rad = dict(y=0.1 - 56e-6 * np.arange(4), x=-0.05 + 56e-6 * np.arange(6))
    rad |= dict(yat=dict(units="rad"), xat=dict(units="rad"))
    _, s = where(placed(tmp_path / "g.nc", mapping=geos, **rad))
    assert s.gsd == pytest.approx(56e-6 * 35786023)
    p = placed(tmp_path / "c.nc", ("y", "x"), lat, lon, north, east, pyproj.CRS(32633).to_cf())
    with pytest.raises(
        ValueError, match="the axis 'y' is in degrees_north, but the CRS EPSG:32633"
    ):
        open_scene(p, own("v"))
    assert where(p, crs="EPSG:4326")[0] == 4326


def test_a_crs_in_any_words(tmp_path):
    pyproj = pytest.importorskip("pyproj")
    pytest.importorskip("netCDF4")
    at = dict(y=5.8e6 - 10 * np.arange(4), x=3e5 + 10.0 * np.arange(6))
    utm = pyproj.CRS(32633)
    for said in (
        dict(epsg_code="EPSG:32633"),
        dict(proj4=utm.to_proj4()),
        dict(crs="urn:ogc:def:crs:EPSG::32633"),
    ):
        assert where(placed(tmp_path / "a.nc", mapping=said, **at))[0] == 32633
    for bad in (dict(grid_mapping_name="foo"), dict(crs_wkt="UTM zone 33N")):
        p = placed(tmp_path / "b.nc", mapping=bad, **at)
        with pytest.raises(ValueError, match="b.nc: its CRS .* is not known .*pass crs="):
            open_scene(p, own("v"))
        assert where(p, crs="EPSG:32633")[0] == 32633  # the remedy
    _, s = where(placed(tmp_path / "c.nc", grid_mapping="lost", **at))
    assert "CRS none  its grid mapping 'lost' is not in the file" in map(str, s.facts)


def test_a_crs_without_a_place_places_nothing(tmp_path):
    "All such chips lay on each other, at 0, 0."
    p = tif(tmp_path / "a.tif", flat(1), t=Affine.identity())
    epsg, s = where(p)
    assert epsg is None and "the file says EPSG:32633, but not where" in str([*map(str, s.facts)])
    zarr = pytest.importorskip("zarr")
    for version, key in ((2, "proj:transform"), (3, "spatial:transform")):
        g = zarr.open_group(tmp_path / f"{version}.zarr", mode="w", zarr_format=version)
        names = dict(dimension_names=["y", "x"]) if version == 3 else {}
        v = g.create_array("v", shape=(4, 6), dtype="uint16", **names)
        v[:] = 5
        v.attrs.update({"_ARRAY_DIMENSIONS": ["y", "x"]} if version == 2 else {})
        v.attrs.update({"proj:epsg": 32633, key: [10, 0, 3e5, 0, -10, 5.8e6]})
        epsg, s = where(tmp_path / f"{version}.zarr")
        assert (epsg, s.transform) == (32633, T)


@pytest.mark.parametrize(
    "name", ["a.tfw", "a.TFW", "a.tifw", "a.wld", "a.tif.aux.xml", "empty.tfw"]
)
def test_places_beside_a_raster(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kw = dict(driver="GTiff", count=1, height=4, width=4, dtype="uint16")
        with rasterio.open(tmp_path / "a.tif", "w", **kw) as dst:
            dst.write(flat(1, n=4))
        world = "10\n0\n0\n-10\n300005\n5799995\n"
        pam = "<GeoTransform>300000,10,0,5800000,0,-10</GeoTransform>"
        text = (
            f"<PAMDataset>{pam}</PAMDataset>" if "xml" in name else "" if "empty" in name else world
        )
        (tmp_path / name.replace("empty", "a")).write_text(text)
        with rasterio.open(tmp_path / "a.tif") as src:
            assert open_scene(tmp_path / "a.tif", own("v")).transform == src.transform
            assert (src.transform == T) == (name != "empty.tfw")


# layers


def test_pages_and_masks_of_bands_are_not_left_out(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pages = [image.fromarray(np.full((8, 8), i, "uint8")) for i in (1, 2, 3)]
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"p.tif holds 3 pages or layers, \['GTIFF_DIR:1:p.tif'"):
        open_scene(tmp_path / "p.tif", own("v"))
    tif(tmp_path / "a.tif", flat(1, 2))
    source = "<SourceFilename relativeToVRT='1'>a.tif</SourceFilename><SourceBand>1</SourceBand>"
    source = f"<SimpleSource>{source}</SimpleSource>"
    mask = f"<MaskBand><VRTRasterBand dataType='Byte'>{source}</VRTRasterBand></MaskBand>"
    band = f"<VRTRasterBand dataType='UInt16' band='%d'>{source}{mask}</VRTRasterBand>"
    bands = band % 1 + band % 2
    (tmp_path / "m.vrt").write_text(
        f"<VRTDataset rasterXSize='32' rasterYSize='32'>{bands}</VRTDataset>"
    )
    with pytest.raises(ValueError, match="m.vrt: each band has a mask of its own"):
        open_scene(tmp_path / "m.vrt", own("a", "b"))


def test_axes_of_unknown_names_and_bands_in_the_middle(tmp_path):
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("netCDF4")
    cube = np.zeros((5, 3, 6), "uint16") + np.array([1, 2, 3], "uint16")[:, None]
    with h5py.File(tmp_path / "p.he5", "w") as f:  # as PRISMA has them
        f["HDFEOS/SWATHS/HCO/Data Fields/VNIR_Cube"] = cube
    assert first(tmp_path / "p.he5", own("a", "b", "c")) == [1, 2, 3]
    xr.Dataset({"r": (("downtrack", "bands", "crosstrack"), cube)}).to_netcdf(tmp_path / "e.nc")
    with pytest.raises(ValueError, match=r"'downtrack', 'bands', 'crosstrack'.*with layout='yxc'"):
        open_scene(tmp_path / "e.nc", own("a", "b", "c"))
    assert first(tmp_path / "e.nc", own("a", "b", "c"), layout="ycx") == [1, 2, 3]


def test_what_is_no_raster_is_called_by_its_name(tmp_path):
    import gzip

    (tmp_path / "m.hdf").write_bytes(b"\x0e\x03\x13\x01" + bytes(99))
    (tmp_path / "t.tif.gz").write_bytes(gzip.compress(b"II*\0"))
    for name, said in (("m.hdf", "it is HDF4"), ("t.tif.gz", "it is an archive: unpack it")):
        with pytest.raises(ValueError, match=said):
            open_scene(tmp_path / name, own("v"))
    zarr = pytest.importorskip("zarr")
    zarr.open_group(tmp_path / "store", mode="w").create_array("v", shape=(2, 2), dtype="u1")
    with pytest.raises(ValueError, match="it is a Zarr store: .*ends with .zarr"):
        open_scene(tmp_path / "store", own("v"))
    p = tif(tmp_path / "a.tif", flat(5))
    assert first(f"file://{p}", own("v")) == [5]


# folders


def test_products_of_two_sensors_are_one_set_only_if_told(tmp_path):
    for level, tag in (("1C", "RADIO"), ("2A", "BOA")):
        d = tmp_path / f"S2B_MSIL{level}_20230101T100000_N0509_R122_T33UUU_20230101T100000.SAFE"
        for b in ("B02", "B03"):
            tif(d / "GRANULE" / "G" / "IMG_DATA" / f"T33UUU_20230101T100000_{b}.tif", flat(1500))
        (d / f"MTD_MSIL{level}.xml").write_text(f"<{tag}_ADD_OFFSET>-1000</{tag}_ADD_OFFSET>")
    with pytest.raises(ValueError, match="scenes of 2 sensors: sentinel2_l1c .*sentinel2_l2a"):
        open_scenes(tmp_path, bands=["B02", "B03"])
    told = open_scenes(tmp_path, "sentinel2_l2a", bands=["B02", "B03"])
    assert [s.offset for s in told] == [-1000, -1000]
    assert 'as given; sentinel2_l1c by "MSIL1C" in the name' in str([*map(str, told[0].facts)])
    (next(tmp_path.glob("*MSIL2A*")) / "MTD_MSIL2A.xml").write_text(
        "<BOA_QUANTIFICATION_VALUE>0</BOA_QUANTIFICATION_VALUE>"
    )
    with pytest.raises(ValueError, match="MTD_MSIL2A.xml cannot be understood"):
        open_scene(next(tmp_path.glob("*MSIL2A*")))


# labels


def labelled(tmp_path, path, **kw):
    rgb = Sensor("x", [dict(name="v", wavelength=None, gsd=None)])
    return open_labels(path, open_scene(tif(tmp_path / "image.tif", flat(1)), rgb), **kw)


def test_one_class_is_told(tmp_path):
    "Masks of 0 and 255 lost their class without a word."
    half = flat(0, dtype="uint8")
    half[0, :, 16:] = 255
    with pytest.warns(UserWarning, match="a.tif has one class only, 0: 255, nodata and what"):
        labelled(tmp_path, tif(tmp_path / "a.tif", half))
    with pytest.warns(UserWarning, match=r"b.tif has one class only, 1: 255, nodata \(0\)"):
        labelled(tmp_path, tif(tmp_path / "b.tif", half // 255, nodata=0))


def test_names_of_classes_that_cannot_be_read(tmp_path):
    p = tif(tmp_path / "a.tif", np.stack([np.eye(32, dtype="uint8")]))
    side = Path(f"{p}.aux.xml")
    side.write_text("")
    assert labelled(tmp_path, p).names == ("0", "1")
    side.write_text("<PAMDataset><PAMRaster")
    with pytest.raises(ValueError, match="a.tif.*what its classes are called cannot be understood"):
        labelled(tmp_path, p)


def collection(path, rows, crs="EPSG:32633", encoding="utf-8"):
    square = [[300000, 5799700], [300160, 5799700], [300160, 5800000], [300000, 5799700]]
    shape = lambda g: dict(type="Polygon", coordinates=[square]) if g == 1 else g or None
    rows = [dict(type="Feature", geometry=shape(g), properties=dict(label=v)) for g, v in rows]
    d = dict(type="FeatureCollection", features=rows)
    d["crs"] = crs and dict(type="name", properties=dict(name=crs))
    path.write_text(json.dumps(d), encoding=encoding)
    return path


@pytest.mark.filterwarnings("ignore:labels")
def test_polygons_as_people_have_them(tmp_path):
    p = tmp_path / "p.geojson"
    names = lambda *a, **kw: labelled(tmp_path, collection(p, *a, **kw)).names
    assert names([(1, "a")], encoding="utf-8-sig") == ("a",)
    empty = dict(type="Polygon", coordinates=[])
    assert names([(1, 1.0), (1, 2.0), (None, 3.0), (empty, 4.0), (1, float("nan"))]) == (
        "1",
        "2",
    )
    with pytest.raises(
        ValueError, match=r"p.geojson.*300000.* are no degrees, but its CRS is EPSG"
    ):
        names([(1, "a")], crs=None)
    with pytest.raises(ValueError, match="column='label' holds lists"):
        names([(1, ["a"])])
    for text in ("hello", " ", "[1]", '{"type": "Topology"}', "<!DOCTYPE html>"):
        p.write_text(text)
        with pytest.raises(ValueError, match="p.geojson' cannot be opened .*"):
            labelled(tmp_path, p)
