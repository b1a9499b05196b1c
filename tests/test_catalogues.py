"""STAC catalogues in the place of folders: over HTTP with ranges, signed, from S3, from an API."""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from datetime import datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasters import write
from servers import serving

from eo_brew.app.cli import main
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.scenes.catalogues import _is_api, own_reading, read_items
from eo_brew.scenes.open import open_scene, open_scenes, sample_scene
from eo_brew.scenes.scene import read_window
from eo_brew.scenes.windows import scene_date

pystac = pytest.importorskip("pystac")  # the extra stac
BANDS = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08"}
DATES = {
    "2017-02-16": (0, 0),
    "2017-06-01": (0, 400),
}  # two cuts of the shipped scene, row and column
SIDE = 192


def cut(row, col):
    "Pixels, transform and CRS of a cut."
    scene = open_scene(sample_scene(), bands=list(BANDS.values()))
    x, _ = read_window(scene, (row, col, SIDE, SIDE))
    return x.astype("uint16"), scene.transform @ Affine.translation(col, row), scene.crs


def degrees(transform, crs):
    "The box of a cut."
    box = rasterio.transform.array_bounds(SIDE, SIDE, transform)
    return list(rasterio.warp.transform_bounds(crs, "EPSG:4326", *box))


def item_of(folder, day, extra=None, **properties):
    "An item whose files lie beside it."
    x, transform, crs = cut(*DATES[day])
    w, s, e, n = box = degrees(transform, crs)
    ring = dict(type="Polygon", coordinates=[[[w, s], [e, s], [e, n], [w, n], [w, s]]])
    about = dict(datetime=f"{day}T10:10:10Z", platform="sentinel-2a") | properties
    item = dict(
        type="Feature", stac_version="1.0.0", id=f"tile_{DATES[day][1]}", links=[], assets={}
    )
    item |= dict(collection="sentinel-2-l1c", properties=about, geometry=ring, bbox=box)
    for (key, band), values in zip(BANDS.items(), x):
        file = folder / item["id"] / f"{band}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, values[None], [band], crs=crs, transform=transform)
        said = {"nodata": 0, "scale": 0.0001, "offset": 0}
        item["assets"][key] = {
            "href": f"./{item['id']}/{band}.tif",
            "type": "image/tiff; application=geotiff",
        }
        item["assets"][key] |= {
            "raster:bands": [said],
            "eo:bands": [dict(name=band, common_name=key)],
        } | (extra or {})
    return item


@pytest.fixture
def catalogue(tmp_path):
    "A file that lists two items."
    folder = tmp_path / "stac"
    items = [item_of(folder, day) for day in DATES]
    listed = dict(type="FeatureCollection", features=items)
    (folder / "items.json").write_text(json.dumps(listed))
    return folder / "items.json"


def test_catalogue_is_read_like_its_files(catalogue):
    scenes = open_scenes(catalogue)
    assert [(s.name, scene_date(s)) for s in scenes] == [
        ("tile_0", "2017-02-16"),
        ("tile_400", "2017-06-01"),
    ]
    for scene, at in zip(scenes, DATES.values()):
        assert np.array_equal(read_window(scene)[0], cut(*at)[0])
    assert any("from the item's asset red" in str(f) for f in scenes[0].facts)


def test_over_http(catalogue, served):
    url = f"{served}/stac/items.json"
    (scene,) = open_scenes(url, datetime="2017-06")
    assert scene.bands[0].file.startswith("/vsicurl/http://")
    assert np.array_equal(read_window(scene)[0], cut(0, 400)[0])
    dls = eo_dataloaders(url, size=64, bs=4, bands=["B04", "B08"])
    assert dls.one_batch()[0]["ms"].shape == (4, 2, 64, 64)


def test_box_crops_and_leaves_out(catalogue):
    x, transform, crs = cut(0, 0)
    w, s, e, n = degrees(transform, crs)
    box = (w, (s + n) / 2, (w + e) / 2, n)
    (scene,) = open_scenes(catalogue, bbox=box)
    assert scene.name == "tile_0"
    sides = rasterio.warp.transform_bounds("EPSG:4326", crs, *box)
    corners = [~transform @ (a, b) for a in sides[::2] for b in sides[1::2]]
    (left, right), (top, bottom) = ((min(v), max(v)) for v in zip(*corners))
    col, row = (round(v) for v in ~transform @ (scene.transform.c, scene.transform.f))
    h, w = scene.shape
    assert (
        abs(col - max(left, 0)) <= 1 and abs(col + w - right) <= 1
    )  # a pixel that is touched is kept
    assert abs(row - max(top, 0)) <= 1 and abs(row + h - bottom) <= 1
    assert np.array_equal(read_window(scene)[0], x[:, row : row + h, col : col + w])


def test_catalogue_of_folders(catalogue, tmp_path):
    "A static catalogue as pystac writes it, with relative links."
    root = pystac.Catalog("root", "two dates")
    for item in pystac.ItemCollection.from_file(str(catalogue)):
        item.set_self_href(str(catalogue))
        item.make_asset_hrefs_absolute()
        root.add_item(item)
    root.normalize_and_save(str(tmp_path / "root"), pystac.CatalogType.SELF_CONTAINED)
    assert [s.name for s in open_scenes(tmp_path / "root" / "catalog.json")] == [
        "tile_0",
        "tile_400",
    ]
    assert open_scene(tmp_path / "root" / "catalog.json", datetime="2017-06").name == "tile_400"
    with pytest.raises(ValueError, match="lists 2 scenes, .*narrow it with bbox"):
        open_scene(tmp_path / "root" / "catalog.json")
    with pytest.raises(ValueError, match="is for items of a catalogue"):
        open_scene(catalogue.parent / "tile_0" / "B02.tif", "sentinel2_l1c", sign=sign)


SECRET = "sig=open-sesame-4711"


def sign(url):
    return f"{url}{'&' if '?' in url else '?'}{SECRET}"


def test_signed_urls_are_never_shown(tmp_path, served):
    folder = tmp_path / "signed"
    item = item_of(folder, "2017-02-16")
    (tmp_path / "item.json").write_text(json.dumps(item))
    for asset in item["assets"].values():
        asset["href"] = f"{served}/signed/{asset['href']}"
    item, token, wrong = pystac.Item.from_dict(item), "?token=abc", "&sig=wrong"
    for asset in item.assets.values():
        asset.href += token
    scene = open_scene(item, sign=sign)
    assert np.array_equal(read_window(scene)[0], cut(0, 0)[0])
    shown = repr(scene) + str(scene.bands) + "".join(map(str, scene.facts))
    assert SECRET not in shown and token not in shown
    with pytest.raises(ValueError) as told:
        open_scene(item, sign=lambda url: url + wrong)
    text = "".join(traceback.format_exception(told.value))
    with pytest.raises(ValueError) as lost:
        open_scenes(f"{served}/none.json{token}")
    assert token not in str(lost.value) and "none.json?..." in str(lost.value)
    assert "cannot be opened" in text and wrong not in text and token not in text


class API(BaseHTTPRequestHandler):
    "The least that a STAC API with item search answers."

    items = None

    def __init__(self, *args, directory, **kwargs):
        self.root = Path(directory)
        super().__init__(*args, **kwargs)

    def log_message(self, *a):
        pass

    def _answer(self, what):
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        here = f"http://{self.headers['Host']}"
        conforms = ["core", "item-search"]
        links = [dict(rel="self", href=here), dict(rel="root", href=here)]
        links += [
            dict(rel="search", href=f"{here}/search", type="application/geo+json", method="POST")
        ]
        about = dict(
            type="Catalog",
            stac_version="1.0.0",
            id="api",
            description="made for a test",
            links=links,
        )
        self._answer(
            about | dict(conformsTo=[f"https://api.stacspec.org/v1.0.0/{c}" for c in conforms])
        )

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (self.root / "asked.json").write_text(json.dumps(asked))
        items = json.loads((self.root / "items.json").read_text())["features"]
        for item in items:
            for asset in item["assets"].values():
                asset["href"] = str(self.root / asset["href"])
        items = [i for i in items if i["collection"] in asked["collections"]]
        self._answer(dict(type="FeatureCollection", features=items, links=[]))


def test_api_is_asked(catalogue, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(catalogue.parent, API) as url:
        box = (12.4, 52.3, 12.6, 52.6)
        scenes = open_scenes(url, collections=["sentinel-2-l1c"], datetime="2017", bbox=box)
        with pytest.raises(ValueError, match="lists no item with"):
            open_scenes(url, collections=["landsat-c2-l2"])
    assert [s.name for s in scenes] == ["tile_0", "tile_400"]


def test_asks_by_place_and_time(catalogue, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(catalogue.parent, API) as url:
        open_scenes(
            url,
            collections=["sentinel-2-l1c"],
            datetime="2017-02/2017-06",
            bbox=(12.4, 52.3, 12.6, 52.6),
        )
    asked = json.loads((catalogue.parent / "asked.json").read_text())
    assert asked["bbox"] == [12.4, 52.3, 12.6, 52.6] and asked["datetime"].startswith(
        "2017-02-01T00:00:00Z/2017-06-30"
    )


@pytest.fixture
def s3(monkeypatch):
    "A bucket of a server of its own: not a thread, GDAL may ask while Python is locked."
    pytest.importorskip("moto")
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = dict(AWS_ACCESS_KEY_ID="me", AWS_SECRET_ACCESS_KEY="secret-4713", AWS_REGION="us-east-1")
    keys |= dict(AWS_S3_ENDPOINT=f"127.0.0.1:{port}", AWS_HTTPS="NO", AWS_VIRTUAL_HOSTING="FALSE")
    for k, v in (keys | dict(no_proxy="127.0.0.1")).items():
        monkeypatch.setenv(k, v)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL
    )
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
    for _ in range(300):
        try:
            client.create_bucket(Bucket="scenes")
            break
        except boto3.exceptions.botocore.exceptions.EndpointConnectionError:
            time.sleep(0.1)
    yield client
    server.terminate()
    server.wait()


def test_from_s3(catalogue, tmp_path, s3):
    listed = json.loads(catalogue.read_text())
    for asset in (a for item in listed["features"] for a in item["assets"].values()):
        s3.upload_file(str(catalogue.parent / asset["href"]), "scenes", asset["href"][2:])
        asset["href"] = f"s3://scenes/{asset['href'][2:]}"
    (tmp_path / "s3.json").write_text(json.dumps(listed))
    first, second = open_scenes(tmp_path / "s3.json")
    assert first.bands[0].file == "/vsis3/scenes/tile_0/B02.tif"
    assert np.array_equal(read_window(second)[0], cut(0, 400)[0])


def assets(**keys):
    "An item of the collection with these assets: key -> entries of it, href of one flat file."
    item = pystac.Item("one", None, None, datetime(2024, 1, 1), {}, collection="sentinel-2-l2a")
    for key, (href, extra) in keys.items():
        item.add_asset(
            key, pystac.Asset(str(href), extra_fields=extra, media_type=extra.pop("type", None))
        )
    return item


def flat(path, *values, names=()):
    x = np.stack([np.full((32, 32), v, "uint16") for v in values])
    return write(path, x, names)


def first(item, **kwargs):
    scene = open_scene(item, **kwargs)
    return {b: float(v[0, 0]) for b, v in zip(scene.sensor.band_names, read_window(scene)[0])}


def test_which_asset_is_which_band(tmp_path):
    a, b, c = (flat(tmp_path / f"{n}.tif", v) for n, v in (("a", 1500), ("b", 2500), ("c", 3500)))
    zero = dict(offset=0)
    # several resolutions of a band: the finest; the overview is none
    item = assets(
        B04_60m=(a, {}), B04_10m=(b, {}), B05_20m=(c, {}), visual=(c, {}), SCL_20m=(c, {})
    )
    assert first(item, **zero) == {"B04": 2500, "B05": 3500}
    # the same pixels as JPEG 2000
    item = assets(**{"red-jp2": (c, dict(type="image/jp2")), "red": (a, dict(type="image/tiff"))})
    assert first(item, **zero) == {"B04": 1500}
    # a name that says nothing, with a common name that does; STAC 1.1
    item = assets(
        M1=(a, {"eo:bands": [dict(name="M1", common_name="red")]}),
        M2=(b, {"bands": [{"eo:common_name": "nir"}]}),
    )
    assert first(item, **zero) == {"B04": 1500, "B08": 2500}
    # one file of several bands
    many = flat(tmp_path / "many.tif", 1500, 2500)
    item = assets(data=(many, {"bands": [dict(name="B08"), dict(name="B02")]}))
    assert first(item, **zero) == {"B02": 2500, "B08": 1500}
    assert first(item, bands=dict(B02="data"), **zero) == {"B02": 2500}
    item = assets(B04=(a, dict(gsd=10)), red_small=(b, {}))  # of unknown size: last
    assert first(item, **zero) == {"B04": 1500}
    for odd, said in (
        (assets(B04=(a, {"eo:bands": [dict(name="B08")]})), "B04 by 'B04', but B08 by 'B08'"),
        (assets(red=(many, {})), "has 2 bands, the item says 1"),
        (assets(red=(flat(tmp_path / "named.tif", 7, names=["B08"]), {})), "B04 by the item, but"),
        (assets(data=(many, {"bands": [dict(name="x"), dict(name="y")]})), "no asset with a band"),
    ):
        with pytest.raises(ValueError, match=said):
            open_scene(odd, **zero)
    twice = assets(red=(a, {}), B04=(b, {}))
    with pytest.raises(ValueError, match="'red' and 'B04' are both B04; say which with bands="):
        open_scene(twice, **zero)
    assert first(twice, bands=dict(B04="red"), **zero) == {"B04": 1500}
    with pytest.raises(ValueError, match="has no asset with a band of 'sentinel2_l2a'"):
        open_scene(assets(visual=(a, {})), **zero)


def test_numbers_of_an_item_are_believed_or_questioned(tmp_path):
    a = flat(tmp_path / "a.tif", 3000)
    said = {"raster:bands": [dict(scale=0.0001, offset=-0.1, nodata=0)]}
    item = assets(red=(a, dict(said)))
    assert first(item)["B04"] == 2000
    item.properties["earthsearch:boa_offset_applied"] = True
    assert first(item)["B04"] == 3000
    item.properties["earthsearch:boa_offset_applied"] = False  # known to be wrong at times
    with pytest.raises(ValueError, match="does not say whether 1000 was added"):
        open_scene(item)
    assert first(item, offset=-1000)["B04"] == 2000
    own = {
        "bands": [{"name": "B04", "raster:offset": -0.1, "raster:scale": 0.0001}],
        "raster:offset": 0,
    }
    assert first(assets(red=(a, own)))["B04"] == 2000  # the band's own, not the file's
    for baseline, value in (("02.12", 3000), ("05.09", 2000)):
        old = assets(red=(a, {}))
        old.properties["s2:processing_baseline"] = baseline
        assert first(old)["B04"] == value
    assert (
        first(assets(red=(a, {"raster:bands": [dict(scale=None, offset=None)]})), offset=0)["B04"]
        == 3000
    )
    hls = assets(B04=(a, {}))
    hls.collection_id = "HLSL30_2.0"
    assert open_scene(hls).offset == 0
    with rasterio.open(a, "r+") as dst:
        dst.scales, dst.offsets = (0.0001,), (0.05,)
    item = assets(red=(a, dict(said)))
    with pytest.raises(
        ValueError,
        match="offset -1000  from the item's asset red .* but offset 500  from the file's tags",
    ):
        open_scene(item)
    assert first(assets(red=(flat(tmp_path / "n.tif", 7), {"nodata": 7})), offset=0) != {
        "B04": 7
    }  # NaN


def test_place_and_time_of_items(tmp_path):
    a = flat(tmp_path / "a.tif", 3000)
    fiji, long = assets(red=(a, {})), assets(red=(a, {}))
    fiji.bbox = [179, -17, -179, -16]
    long.id, long.bbox, long.datetime = "long", [10, 50, 11, 51], None
    long.common_metadata.start_datetime = datetime(2024, 1, 1)
    long.common_metadata.end_datetime = datetime(2024, 12, 31)
    both = [fiji, long]
    for box in (179.2, -16.9, 179.8, -16.1), (-179.8, -16.9, -179.2, -16.1):
        assert [i.id for i in read_items(both, bbox=box)] == ["one"]
    assert [i.id for i in read_items(both, datetime="2024-06")] == ["long"]
    assert len(read_items(both, collections="sentinel-2-l2a")) == 2
    with pytest.raises(ValueError, match="lists no item with collections='l2a'"):
        read_items(both, collections="l2a")


def test_one_bad_item_is_left_out(catalogue, tmp_path):
    listed = json.loads(catalogue.read_text())
    listed["features"][0]["assets"]["red"]["href"] = "./nowhere.tif"
    catalogue.write_text(json.dumps(listed))
    with pytest.warns(UserWarning, match="1 scenes left out.*nowhere.tif"):
        assert [s.name for s in open_scenes(catalogue, on_error="skip")] == ["tile_400"]
    with pytest.raises(
        ValueError, match=r"lies at \(12.*shows none of it|lists no item.*west, south, east, north"
    ):
        open_scenes(catalogue, bbox=(52.1, 12.4, 52.9, 12.9))


def test_two_catalogues_and_their_store(catalogue, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, day in (one, "2017-02-16"), (other, "2017-06-01"):
        item = item_of(folder, day)
        (folder / "items.json").write_text(
            json.dumps(dict(type="FeatureCollection", features=[item]))
        )
    paths = [str(f / "items.json") for f in (one, other)]
    assert [s.name for s in open_scenes(paths)] == ["tile_0", "tile_400"]


def test_a_store_of_one_query_is_not_that_of_another(catalogue, served, tmp_path):
    url, few = f"{served}/stac/items.json", dict(size=64, bs=4, store=tmp_path / "packed")
    eo_dataloaders(url, datetime="2017-02", **few)
    with pytest.raises(ValueError, match="was made of something else"):
        eo_dataloaders(url, datetime="2017-06", **few)


def test_mask_of_an_item(tmp_path):
    a = flat(tmp_path / "a.tif", 3000)
    scl = np.zeros((1, 16, 16), "uint8") + np.where(np.arange(16) < 8, 4, 9).astype("uint8")
    write(tmp_path / "scl.tif", scl, transform=Affine(20, 0, 3e5, 0, -20, 5e6))
    item = assets(red=(a, {}), scl=(tmp_path / "scl.tif", {}))
    _, valid = read_window(open_scene(item, offset=0, mask="scl"))
    assert valid[:, :16].all() and not valid[:, 16:].any()
    with pytest.raises(ValueError, match="no asset with Fmask in its name"):
        open_scene(item, offset=0, mask="fmask")


def test_commands_take_a_catalogue(catalogue, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["info", str(catalogue), "--datetime", "2017-06"]) == 0
    assert "tile_400: sentinel2_l1c" in capfd.readouterr().out
    x, transform, crs = cut(0, 0)
    box = [str(v) for v in degrees(transform, crs)]
    run = ["pretrain", str(catalogue), "--bbox", *box, "--steps", "1", "--vfm", "none"]
    assert main([*run, "--size", "48", "--n", "12", "--bs", "4", "--out", "run"]) == 0
    kept = (tmp_path / "run" / "config.yaml").read_text()
    assert "bbox:" in kept and os.path.basename(catalogue) in kept
    table = ["embed", "run/encoder.safetensors", str(catalogue), "--out", "t.parquet"]
    assert main([*table, "--size", "96"]) == 0
    assert main(["info", str(catalogue), "--datetime", "1999"]) == 2
    assert "lists no item with --datetime '1999'" in capfd.readouterr().err


def radar_item(folder, day, power):
    "Radar of the first cut's ground: one power in both bands."
    item = item_of(folder, "2017-02-16")
    _, transform, crs = cut(0, 0)
    item |= dict(id=f"radar_{day}", collection="sentinel-1-rtc", assets={})
    item["properties"] = dict(datetime=f"{day}T05:00:00Z", platform="sentinel-1a")
    for key in ("vv", "vh"):
        file = f"{item['id']}_{key}.tif"
        x = np.full((1, SIDE, SIDE), power, "float32")
        write(folder / file, x, [key.upper()], crs=crs, transform=transform)
        item["assets"][key] = dict(href=f"./{file}", type="image/tiff; application=geotiff")
    return item


@pytest.fixture
def two_kinds(tmp_path):
    "One list of two optical and two radar scenes, a decade in power apart."
    items = [item_of(tmp_path, day) for day in DATES]
    items += [
        radar_item(tmp_path, d, p) for d, p in {"2017-02-17": 0.1, "2017-06-02": 0.01}.items()
    ]
    (tmp_path / "all.json").write_text(json.dumps(dict(type="FeatureCollection", features=items)))
    return tmp_path / "all.json"


@pytest.mark.parametrize("month, decibels", {"2017-02": -10, "2017-06": -20}.items())
def test_a_search_holds_for_further_modalities(two_kinds, month, decibels):
    from eo_brew.app.pretrain import modalities_of

    x, transform, crs = cut(0, 0)
    scene = write(
        two_kinds.parent / "S2.tif", x, list(BANDS.values()), crs=crs, transform=transform
    )
    asked = dict(datetime=month, collections=["sar=sentinel-1-rtc"])
    others = modalities_of("deo", modality={"sar": (two_kinds, "sentinel1_grd")}, reading=asked)
    reading = own_reading(scene, asked, dict(sar=two_kinds))
    assert reading == {}  # the scene itself is in no catalogue, and is not asked for a date
    few = dict(size=48, bs=4, sensor="sentinel2_l1c", offset=0)
    batch = eo_dataloaders(scene, modalities=others, **few).one_batch()[0]
    np.testing.assert_allclose(batch["sar"].numpy(), decibels, atol=1e-3)


def test_what_holds_for_which_modality(two_kinds):
    from eo_brew.app.pretrain import modalities_of

    asked = dict(bbox=(12, 52, 13, 53), datetime="2017", sign="keys:sign", gsd=10)
    asked |= dict(collections=["sentinel-2-l1c", "dsm=cop-dem"])
    sar = dict(sar=(str(two_kinds), "sentinel1_grd"), near=("near.tif", "rgb"))
    found = modalities_of("deo", str(two_kinds), "https://example.com/stac", sar, asked)
    search = {k: asked[k] for k in ("bbox", "datetime", "sign")}
    plain = search | dict(collections=["sentinel-2-l1c"])
    kept = {n: {k: v for k, v in s.items() if k in plain} for n, s in found.items()}
    heights = {k: v for k, v in search.items() if k != "datetime"} | dict(collections=["cop-dem"])
    assert kept == dict(rgb=plain, sar=plain, dsm=heights, near={})
    assert all("gsd" not in s for s in found.values())


def test_collections_that_name_the_scenes_modality_reach_the_search_without_its_name():
    asked = dict(collections=["ms=sentinel-2-l2a"], datetime="2017")
    wanted = asked | dict(collections=["sentinel-2-l2a"])
    assert own_reading("https://example.com/stac", asked, {}) == wanted
    assert own_reading("https://example.com/stac", asked, dict(dsm="dsm.tif")) == wanted
    with pytest.raises(ValueError, match=r"'s1/' is no catalogue; leave sar=... out"):
        own_reading("https://example.com/stac", dict(collections=["s2", "sar=s1"]), dict(sar="s1/"))


def test_commands_search_for_all_modalities(two_kinds, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = "--steps 1 --vfm none --size 48 --n 12 --bs 4 --datetime 2017-02".split()
    run = ["pretrain", "all.json", "--modality", "sar=all.json:sentinel1_grd", *few]
    kinds = ["--collections", "sentinel-2-l1c", "sar=sentinel-1-rtc"]
    assert main([*run, *kinds, "--out", "run"]) == 0, capfd.readouterr().err
    assert "sar=sentinel-1-rtc" in (tmp_path / "run" / "config.yaml").read_text()
    assert main([*run, *kinds[:2], "radar=sentinel-1-rtc", "--out", "b"]) == 2
    assert "'radar' is no modality; there are ['ms', 'sar']" in capfd.readouterr().err
    assert main([*run, *kinds[:2], "sar=sentinel-1-grd", "--out", "b"]) == 2
    assert "lists no item with" in capfd.readouterr().err


@pytest.mark.parametrize(
    "where,api",
    [
        ("https://example.org", True),
        ("https://example.org/api/v1.0", True),
        ("https://example.org/api/v1/search?limit=2", True),
        ("https://example.org/catalogue.json?key=a.b", False),
        ("https://example.org/scene.jp2", False),
        ("folder/v1.0", False),
    ],
)
def test_an_address_without_a_file_is_an_api(where, api):
    assert _is_api(where) == api
