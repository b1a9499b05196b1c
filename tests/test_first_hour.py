"""A stranger's own folder in an hour: what is there, an encoder, its probe, a fine-tuned model, a map and its picture.

Command lines only. Quick versions (two steps, small cuts) are ordinary tests; `--runslow` does it for real, three
minutes of training each. Two of the six folders are not shipped: EO_BREW_LAB=FOLDER says where `s2_aquileia` and
`eurosat_ms` lie."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.features import shapes
from rasterio.warp import Resampling, calculate_default_transform, reproject

from eo_brew.app.cli import main
from eo_brew.scenes.open import open_raster, sample_labels, sample_scene
from rasters import write

LAB = Path(os.environ.get("EO_BREW_LAB", "not given"))
OLINDA = sample_scene("olinda")


def cut(side, bands=None):  # values, CRS, transform and band names of a piece of the sample scene
    piece = open_raster(sample_scene(), bands=bands)[:, 300 : 300 + side, 500 : 500 + side]
    return piece.values, piece.rio.crs, piece.rio.transform(), piece.band.values.tolist()


def height_classes(folder):
    "The shipped elevation model as four classes, on its own grid of 90 m."
    with rasterio.open(OLINDA / "olinda_dem_utm25s.tif") as src:
        z, transform = src.read(), src.transform
    kinds = np.digitize(z, [3, 10, 30]).astype("uint8") + 1
    return write(folder / "heights.tif", kinds, (), 255, "EPSG:31985", transform)


def olinda(folder, quick):
    "Landsat-7 in 8 bits, classes on a coarser grid."
    shutil.copy(OLINDA / "L7_ETMs.tif", folder)
    labels = height_classes(folder)
    return dict(scenes=folder / "L7_ETMs.tif", read="--sensor landsat7_dn", labels=labels)


def degrees(folder, quick):
    "A small piece in degrees, labels in metres."
    x, crs, transform, names = cut(
        120 if quick else 240, ["B02", "B03", "B04", "B08"] if quick else None
    )
    there = "EPSG:4326"
    box = rasterio.transform.array_bounds(*x.shape[1:], transform)
    grid, width, height = calculate_default_transform(crs, there, *x.shape[:0:-1], *box)
    out = np.zeros((len(x), height, width), "uint16")
    how = dict(src_crs=crs, dst_crs=there, src_transform=transform, dst_transform=grid)
    reproject(x.astype("uint16"), out, resampling=Resampling.bilinear, **how)
    scene = write(folder / "scene.tif", out, names, 0, there, grid)
    return dict(scenes=scene, read="--sensor sentinel2_l1c --offset 0", labels=sample_labels())


def aquileia(folder, quick):
    "EO Browser's files in degrees; polygons of three kinds, told by two indices."
    x = open_raster(LAB / "s2_aquileia", bands=["B03", "B04", "B08"])[:, ::8, ::8]
    green, red, nir = x.values
    kinds = np.where(nir < green, 0, np.where((nir - red) / (nir + red) > 0.5, 1, 2)).astype(
        "uint8"
    )
    found = shapes(kinds, np.isfinite(nir), transform=x.rio.transform(recalc=True))
    rows = [
        dict(type="Feature", geometry=g, properties={"class": ("water", "green", "bare")[int(v)]})
        for g, v in found
    ]
    labels = folder / "kinds.geojson"
    labels.write_text(json.dumps(dict(type="FeatureCollection", features=rows)))
    return dict(scenes=LAB / "s2_aquileia", read="", labels=labels)


def plain(folder, quick):
    "One band a file, called by numbers, of two types; a note says which is which."
    x, crs, transform, names = cut(72 if quick else 320)
    wanted = {"B02": 2, "B03": 3, "B04": 4, "B08": 8}
    if not quick:
        wanted |= {"B05": 5, "B11": 12, "B12": 13}
    for i, band in enumerate(x, 1):
        kind = "float32" if i % 3 == 0 else "int16"
        write(
            folder / "bands" / f"scene_{i}.tif",
            band[None].astype(kind),
            crs=crs,
            transform=transform,
        )
    note = ['sensor = "sentinel2_l1c"', "offset = 0"]
    note += [f'bands.{name} = "scene_{i}.tif"' for name, i in wanted.items()]
    return dict(scenes=folder / "bands", read="", labels=sample_labels(), note="\n".join(note))


def heights(folder, quick):
    "Colours of 8 bits and a surface model with voids."
    with rasterio.open(OLINDA / "L7_ETMs.tif") as src:
        x = src.read([3, 2, 1])[:, : 72 if quick else None, : 72 if quick else None]
        rgb = write(folder / "ortho.tif", x, crs=src.crs, transform=src.transform)
    with rasterio.open(OLINDA / "olinda_dem_utm25s.tif") as src:
        z, transform = src.read().astype("float32"), src.transform
    z[:, 4:9, 12:17] = z[:, 80:83] = -9999
    dsm = write(folder / "dsm.tif", z, (), -9999, "EPSG:31985", transform)
    return dict(scenes=rgb, read="--sensor rgb", labels=dsm, task="height", dsm=dsm)


def chips(folder, quick):
    "A folder for each class, thirteen bands without names."
    return dict(
        scenes=LAB / "eurosat_ms", read="--sensor eurosat", labels="folder", task="classification"
    )


FOLDERS = dict(olinda=olinda, degrees=degrees, aquileia=aquileia, plain=plain, heights=heights)
FOLDERS |= dict(chips=chips)
ELSEWHERE = dict(aquileia="s2_aquileia", chips="eurosat_ms")


@pytest.fixture
def eo(capsys):
    "Run a command that has to succeed: its output."

    def call(*words):
        words = [w for x in words for w in (x.split() if isinstance(x, str) else [str(x)])]
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 0, (words, err)
        return out + err

    return call


def folder_of(name, place, quick):
    if name in ELSEWHERE and not (LAB / ELSEWHERE[name]).is_dir():
        pytest.skip(f"{ELSEWHERE[name]} is not shipped: EO_BREW_LAB=FOLDER says where it lies")
    return FOLDERS[name](place, quick)


def hour(eo, case, place, pretrain, finetune, kinds=1):
    "All commands; what fine-tuning said. The map has so many classes at least."
    scenes, read, task = case["scenes"], case["read"], case.get("task", "segmentation")
    offset = read[read.find("--offset") :] if "--offset" in read else ""
    if note := case.get("note"):
        assert "scene.toml" in refused(scenes, "--sensor", "sentinel2_l1c")
        (scenes / "scene.toml").write_text(note)
    assert "cannot be used" not in eo("info", scenes, read)
    more = ["--dsm", case["dsm"]] if "dsm" in case else []
    run, encoder = place / "run", place / "run" / "encoder.safetensors"
    assert "preset auto" in eo("pretrain", scenes, read, *more, pretrain, "--out", run)
    if task != "height":
        out = place / "probe"
        eo("probe", encoder, "--data", scenes, "--labels", case["labels"], offset, "--out", out)
        rows = list(csv.DictReader(open(out / "table.csv")))
        assert {"run", "random encoder"} < {r["encoder"] for r in rows}
        print(*{(r["encoder"], r["metric"], r["mean"][:5]): 0 for r in rows}, sep="\n")
    model = place / "model.safetensors"
    labels = [] if case["labels"] == "folder" else ["--labels", case["labels"]]
    said = eo(
        "finetune", encoder, scenes, *labels, offset, "--task", task, finetune, "--out", model
    )
    assert "kept: " in said and f"model of {task}" in eo("info", model)
    if task == "classification":
        eo("predict", model, scenes, "--out", place / "classes.csv")
        found = list(csv.DictReader(open(place / "classes.csv")))
        print("right", np.mean([Path(r["file"]).parent.name == r["class"] for r in found]))
        return said
    eo("predict", model, scenes, offset, "--out", place / "map.tif", "--picture", place / "map.png")
    with rasterio.open(place / "map.tif") as src:
        x = src.read(1, masked=True)
    assert len(np.unique(x.compressed())) >= kinds
    assert (place / "map.png").stat().st_size > 3000
    return said


def refused(*words):
    "What a command says that does not succeed."
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert main(["info", *map(str, words)]) == 2
    return said.getvalue()


@pytest.mark.parametrize("name", ["degrees", "plain", "heights"])
def test_the_hour_in_small(eo, tmp_path, name):
    "Every command works on such a folder, and hands on what the next one needs."
    case = folder_of(name, tmp_path, quick=True)
    hour(
        eo, case, tmp_path, "--steps 1 --bs 4 --size 32 --stride 24", "--steps 3 --size 32 --bs 16"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_the_hour(eo, tmp_path, name):
    "Three minutes of training, and fifteen seconds to three minutes of fine-tuning."
    case = folder_of(name, tmp_path, quick=False)
    steps = os.environ.get("EO_BREW_STEPS", "120")
    said = hour(eo, case, tmp_path, f"--bs 16 --steps {steps}", "--steps 120", kinds=2)
    print(said)
