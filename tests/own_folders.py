"""Six folders of the kinds that people have, for the commands of a new user: the tests', and the benchmark's.

Two of them are not shipped: EO_BREW_LAB=FOLDER says where `s2_aquileia` and `eurosat_ms` lie."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import rasterio
from rasterio.features import shapes
from rasterio.warp import Resampling, calculate_default_transform, reproject

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
