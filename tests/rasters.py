"""GeoTIFFs for the tests."""

import rasterio
from affine import Affine

AT = Affine(10, 0, 3e5, 0, -10, 5e6)


def write(path, x, names=(), nodata=None, crs="EPSG:32633", transform=AT, layout={}, **tags):
    "Write `x` (C,h,w) with band names and tags, in the layout that the driver is told."
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = dict(count=len(x), height=x.shape[1], width=x.shape[2], dtype=x.dtype)
    profile |= dict(crs=crs, transform=transform, nodata=nodata) | layout
    with rasterio.open(path, "w", driver="GTiff", **profile) as dst:
        dst.write(x)
        for i, name in enumerate(names, 1):
            dst.set_band_description(i, name)
        dst.update_tags(**tags)
    return path


def spoil_tile(path, column, row):
    "Put nonsense into one tile of a compressed GeoTIFF."
    with rasterio.open(path) as src:
        at = int(src.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=1))
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(b"\xff" * 60)
