"""GeoTIFFs for the tests."""

import rasterio
from affine import Affine

AT = Affine(10, 0, 3e5, 0, -10, 5e6)


def write(path, x, names=(), nodata=None, crs="EPSG:32633", transform=AT, **tags):
    "Write `x` (C,h,w) with band names and tags."
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = dict(count=len(x), height=x.shape[1], width=x.shape[2], dtype=x.dtype)
    profile |= dict(crs=crs, transform=transform, nodata=nodata)
    with rasterio.open(path, "w", driver="GTiff", **profile) as dst:
        dst.write(x)
        for i, name in enumerate(names, 1):
            dst.set_band_description(i, name)
        dst.update_tags(**tags)
    return path
