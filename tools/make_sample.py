"""Make the shipped label raster from OpenStreetMap polygons.

    python tools/make_sample.py osm_landuse_water.gpkg eo_brew/samples/s2_t33uuu/T33UUU_20170216T102101_B02.jp2 \
        eo_brew/samples/s2_t33uuu_labels/landuse.tif

Needs geopandas (not a dependency of eo_brew). Large polygons are burnt before small ones, so that a pond in a forest
stays a pond. 255 is unlabelled: the polygons cover a third of the scene, the rest is not background.
"""

import sys

import geopandas as gpd
import numpy as np
import rasterio
from rasterio.features import rasterize

CLASSES = {
    "farm": "#e8c45a",
    "forest": "#1b6b2f",
    "grass": "#8fce5a",
    "meadow": "#c3e68a",
    "residential": "#c4463a",
    "scrub": "#9a8f4f",
    "water": "#2f6fd0",
    "wetland": "#5fb8b0",
}


def main(polygons, like, out):
    with rasterio.open(like) as src:
        crs, transform, shape = src.crs, src.transform, src.shape
    df = gpd.read_file(polygons).to_crs(crs)
    df = df.iloc[np.argsort(-df.area.to_numpy(), kind="stable")]
    codes = {c: i for i, c in enumerate(CLASSES)}
    y = rasterize(
        zip(df.geometry, df.fclass.map(codes)), shape, fill=255, transform=transform, dtype="uint8"
    )
    colours = {
        i: tuple(int(h[k : k + 2], 16) for k in (1, 3, 5)) + (255,)
        for i, h in enumerate(CLASSES.values())
    }
    with rasterio.open(
        out,
        "w",
        driver="GTiff",
        dtype="uint8",
        count=1,
        height=shape[0],
        width=shape[1],
        crs=crs,
        transform=transform,
        nodata=255,
        compress="deflate",
        zlevel=9,
        tiled=True,
        blockxsize=256,
        blockysize=256,
    ) as dst:
        dst.write(y, 1)
        dst.write_colormap(1, {**colours, 255: (0, 0, 0, 0)})
        dst.update_tags(
            classes=",".join(CLASSES), source="OpenStreetMap contributors", licence="ODbL-1.0"
        )
    share = {c: float((y == i).mean().round(4)) for c, i in codes.items()}
    print(share, "labelled:", float((y != 255).mean().round(4)))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
