"""Opening a folder of many small scenes, beside bare rasterio reading the same headers.

    python benchmarks/opening.py [--scenes 5000] [--repeats 3]

The files are GeoTIFFs of 64 x 64 pixels and four named bands, made for it in one folder. Bare
rasterio opens each and asks for what a scene keeps of it: names, tags, nodata, scales, CRS, grid.
Both run on one thread of one process, in turn; seconds of processor time are given, which other
load on the machine changes less than seconds of the clock, and the least of the repeats counts.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from eo_brew.scenes.files import _headers
from eo_brew.scenes.open import open_scenes

NAMES = ("blue", "green", "red", "nir")


def make_scenes(folder: Path, n: int):
    "`n` GeoTIFFs side by side."
    x = np.random.default_rng(0).integers(1, 3000, (len(NAMES), 64, 64)).astype("uint16")
    kw = dict(driver="GTiff", count=len(x), height=64, width=64, dtype=x.dtype, crs="EPSG:32633")
    with rasterio.Env():
        for i in range(n):
            at = Affine(10, 0, 300000 + 640 * (i % 100), 0, -10, 5800000 - 640 * (i // 100))
            with rasterio.open(folder / f"s{i:05d}.tif", "w", transform=at, **kw) as dst:
                dst.write(x)
                for k, name in enumerate(NAMES, 1):
                    dst.set_band_description(k, name)


def bare(folder: Path) -> list:
    "What rasterio says of each file."
    said = []
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
        for f in sorted(folder.glob("*.tif")):
            with rasterio.open(f) as src:
                numbers = src.nodatavals, src.scales, src.offsets, src.dtypes
                said.append(
                    (src.descriptions, src.tags(), src.crs.to_wkt(), src.transform, *numbers)
                )
    return said


def seconds(run, *args, **kwargs) -> tuple:  # of processor time, of the clock
    "How long a run takes, with nothing kept of the one before."
    _headers.cache_clear()
    cpu, clock = time.process_time(), time.perf_counter()
    run(*args, **kwargs)
    return time.process_time() - cpu, time.perf_counter() - clock


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--scenes", type=int, default=5000)
    p.add_argument("--repeats", type=int, default=3)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        make_scenes(Path(d), a.scenes)
        rounds = [
            (seconds(bare, Path(d)), seconds(open_scenes, d, "rgbn", gain=1))
            for _ in range(a.repeats)
        ]
    plain, ours = (min(r[i] for r in rounds) for i in (0, 1))
    out = dict(scenes=a.scenes, rasterio_cpu_s=plain[0], open_scenes_cpu_s=ours[0])
    out |= dict(open_scenes_clock_s=ours[1], ratio=ours[0] / plain[0])
    print(json.dumps({k: round(v, 2) for k, v in out.items()}, indent=1))


if __name__ == "__main__":
    main()
