"""Loader throughput against bare rasterio and torchgeo, and memory on a huge COG.

    python benchmarks/loader.py [--windows 1600] [--workers 2] [--cache 64] \\
        [--compress deflate] [--huge] [--out FILE.json] \\
        [--save loader store]

All read the same COGs (made from the shipped scene, tiled 4 x 4, 10 bands, uint16, blocks of
256). Bare rasterio reads the same windows in the same order, block reads with one open dataset a
file, in as many processes as the loaders have workers, and returns the arrays as they are.
eo_brew (threads, as `eo_dataloaders` does by itself, and processes) and torchgeo (processes)
return float batches. Processes are timed from the first batch on, so their start and what they
read ahead cost them nothing; threads from the start. GDAL keeps `--cache` MB of blocks a
process, far less than the COGs hold, as with a folder larger than memory: so windows are
decoded, not found in the cache. `store` is eo_brew's loader from the second epoch on, with a patch
store that the first one filled (not timed; its size is given beside that of the COGs). The files
of all, COGs and store, are those that the system keeps in memory if there is enough. They run in
turn, `--repeats` times, each time in a new process; the median counts. Seconds of processor time
(all processes, start included) are given too: other load on the machine changes them less.
torchgeo is left out when it is not installed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window
from record import record

from eo_brew.data.loader import EODataLoader
from eo_brew.data.samples import WindowDataset
from eo_brew.data.store import open_store
from eo_brew.scenes.open import open_scene, open_scenes, sample_scene, write_raster
from eo_brew.scenes.scene import read_window
from eo_brew.scenes.windows import window_index

BANDS = "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12".split()


def make_cogs(folder, n=2, compress="deflate", tile=(4, 2), noise=True):
    "COGs of real pixels, large enough not to be one cached block."
    scene = open_scene(sample_scene(), bands=BANDS)
    x, _ = read_window(scene)
    big = np.tile(np.nan_to_num(x).astype("uint16").clip(1), (1, *tile))
    big = (
        big + np.random.default_rng(0).integers(0, 8, big.shape[1:]).astype("uint16")
        if noise
        else big
    )
    return [
        write_raster(
            folder / f"scene{i}.tif",
            big,
            scene,
            BANDS,
            scene.transform @ Affine.translation(i * big.shape[2], 0),
            nodata=0,
            driver="COG",
            blocksize=256,
            compress=compress,
            num_threads=2,
        )
        for i in range(n)
    ]


_open = {}


def bare(job):
    file, (y, x, h, w) = job
    if file not in _open:
        _open[file] = rasterio.open(file)
    _open[file].read(window=Window(x, y, w, h))


def time_bare(scenes, windows, workers):
    jobs = [(scenes[s].name, w) for s, w in windows]
    np.random.default_rng(0).shuffle(jobs := np.array(jobs, dtype=object))
    jobs = [tuple(j) for j in jobs]
    if not workers:
        t = time.perf_counter()
        for job in jobs:
            bare(job)
        return time.perf_counter() - t
    with get_context("fork").Pool(workers) as pool:
        pool.map(bare, jobs[:workers])
        t = time.perf_counter()
        for _ in pool.imap_unordered(bare, jobs, chunksize=32):
            pass
        return time.perf_counter() - t


def alone(f, *args):
    "Seconds that `f` returns, and of processor time, in a process of its own: nobody inherits another's caches."
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as ex:
        return ex.submit(_alone, f, args).result()


def _alone(f, args):
    c = cpu_seconds()
    epochs = EPOCHS if getattr(f, "func", f) is time_store else 1
    return f(*args), (cpu_seconds() - c) / epochs


def cpu_seconds():
    "Of this process and of its children that have ended."
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def time_threads(scenes, windows, workers):
    dl, t = loader_of(scenes, windows, threads=workers), time.perf_counter()
    assert sum(len(b["index"]) for (b,) in dl) == len(windows)
    return time.perf_counter() - t


def time_processes(scenes, windows, workers):
    return time_loader(
        (len(b["index"]) for (b,) in loader_of(scenes, windows, num_workers=workers)), len(windows)
    )


def loader_of(scenes, windows, **how):
    return EODataLoader(
        WindowDataset(scenes, windows, in_memory=False),
        bs=32,
        shuffle=True,
        device=torch.device("cpu"),
        **how,
    )


EPOCHS = 6  # of the store: one is over before a clock has settled


def with_store(folder, scenes, windows):
    "The windows' dataset with a store."
    parts = windows, windows.take(slice(0))
    sets = [WindowDataset(scenes, w, in_memory=False) for w in parts]
    return sets[0], open_store(folder, *sets)


def time_store(folder, scenes, windows, workers):
    dataset, _ = with_store(folder, scenes, windows)
    dl = EODataLoader(dataset, bs=32, shuffle=True, device=torch.device("cpu"), threads=workers)
    t = time.perf_counter()
    for _ in range(EPOCHS):
        assert sum(len(b["index"]) for (b,) in dl) == len(windows)
    return (time.perf_counter() - t) / EPOCHS


def time_loader(lengths, n):
    "Seconds for n windows, from the first batch on (workers have started, as bare rasterio's have)."
    first = next(lengths)
    t = time.perf_counter()
    rest = sum(lengths)
    assert first + rest >= n - 1
    return (time.perf_counter() - t) * n / rest


def time_torchgeo(folder, scenes, windows, workers, bs=32):
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import RandomGeoSampler, Units

    class Scenes(RasterDataset):
        filename_glob, is_image, separate_files = "scene*.tif", True, False

    ds, n, size = Scenes(str(folder)), len(windows), windows.size
    dl = DataLoader(
        ds,
        batch_size=bs,
        sampler=RandomGeoSampler(ds, size=size, length=n, units=Units.PIXELS),
        num_workers=workers,
        collate_fn=stack_samples,
    )
    return time_loader((len(b["image"]) for b in dl), n)


def huge_cog(path, side=20_000, bands=10):
    """A COG of side x side x bands uint16: real pixels in every eighth block, the rest constant (8
    GB of pixels in a small file).
    """
    x = (
        read_window(open_scene(sample_scene(), bands=BANDS[:bands]))[0]
        .astype("uint16")[:, :512, :512]
        .clip(1)
    )
    plain = Path(path).with_suffix(".plain.tif")
    kw = dict(
        count=bands,
        height=side,
        width=side,
        dtype="uint16",
        crs="EPSG:32633",
        transform=Affine(10, 0, 300000, 0, -10, 5900000),
    )
    with rasterio.open(
        plain,
        "w",
        driver="GTiff",
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="lzw",
        interleave="pixel",
        sparse_ok=True,
        bigtiff="yes",
        **kw,
    ) as dst:
        rng = np.random.default_rng(0)
        for y in range(0, side - 512, 512):
            for x0 in range(0, side - 512, 512):
                if rng.random() < 1 / 8:
                    dst.write(x, window=Window(x0, y, 512, 512))
    from rasterio.shutil import copy

    copy(
        plain,
        path,
        driver="COG",
        compress="lzw",
        blocksize=512,
        overviews="NONE",
        sparse_ok="YES",
        bigtiff="YES",
        num_threads="2",
    )
    plain.unlink()
    return Path(path)


_CHILD = """
import os, resource, sys, torch
from eo_brew.data.dataloaders import eo_dataloaders
rss = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])//1024
import fastai.callback.core
options = dict(size=256, bs=16, n=4000, valid_pct=0, offset=0, device='cpu', nodata=0, on_error='skip')
dls = eo_dataloaders(sys.argv[1], 'sentinel2_l1c', bands=%r, **options)
next(iter(dls.train)); base = rss()
n = 0
for i, (b,) in enumerate(dls.train):
    n += len(b['index'])
    if i in (10, 60, 120): print(n, rss(), flush=True)
    if i == 120: break
print('growth', rss() - base)
"""


def peak_memory(path):
    "MB by which the peak of a process grows while it reads some 2,000 windows of 256 px (2.5 GB of pixels)."
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CHILD % BANDS, str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "GDAL_CACHEMAX": "128"},
    )
    if out.returncode:
        raise RuntimeError(out.stderr[-2000:])
    print(out.stdout)
    return int(out.stdout.split()[-1])


def save(out, a):
    "Keep the ratios that were asked for, for the page."
    names = dict(bare="bare rasterio")
    window = f"{a.size} x {a.size} x {len(BANDS)} windows"
    for mine, title, targets in (
        ("eo_brew", f"{window} of COGs ({a.compress})", dict(bare=0.8, torchgeo=2.0)),
        ("store", f"{window} from the second epoch, with a store", dict(bare=3.0, torchgeo=6.0)),
    ):
        name = dict(eo_brew="loader").get(mine, mine)
        for other in (o for o in targets if o in out and name in a.save):
            record(
                f"{name} beside {other}",
                "cpu",
                what=f"{title}, beside {names.get(other, other)}",
                plain=out[other]["windows_per_s"],
                ours=out[mine]["windows_per_s"],
                unit="windows/s",
                ratio=out[f"{mine}/{other}"]["windows_per_s"],
                target=targets[other],
                better="more",
            )


def main():
    p = argparse.ArgumentParser()
    for k, v in dict(windows=1600, size=256, workers=2, repeats=3, scenes=6, cache=64).items():
        p.add_argument(f"--{k}", type=int, default=v)
    p.add_argument("--huge", action="store_true")
    p.add_argument("--out")
    p.add_argument("--compress", default="deflate")
    p.add_argument("--save", nargs="+", default=[], choices=["loader", "store"])
    a = p.parse_args()
    torch.set_num_threads(1)
    os.environ["GDAL_CACHEMAX"] = str(a.cache)  # read by GDAL at its first use, and inherited
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        make_cogs(d, a.scenes, a.compress)
        scenes = open_scenes(d, "sentinel2_l1c", BANDS)
        windows = window_index(scenes, a.size, n=a.windows, seed=0)
        dataset, store = with_store(d / "store", scenes, windows)
        for i in range(len(dataset)):
            dataset.item(i)
        assert store.done.all()
        pixels = len(scenes) * np.prod(scenes[0].shape)
        cogs = sum(f.stat().st_size for f in d.glob("*.tif")) / pixels
        sizes = dict(COGs=cogs, store=store.megabytes * 1e6 / (len(windows) * a.size**2))
        runs = dict(
            bare=time_bare,
            store=partial(time_store, d / "store"),
            eo_brew=time_threads,
            eo_brew_processes=time_processes,
            torchgeo=partial(time_torchgeo, d),
        )
        try:
            import torchgeo.datasets
            import torchgeo.samplers  # noqa: F401  (before the clock runs)
        except ImportError as e:
            print("torchgeo is left out:", e)
            del runs["torchgeo"]
        rounds = [
            {k: alone(f, scenes, windows, a.workers) for k, f in runs.items()}
            for _ in range(a.repeats)
        ]
    size = a.windows * a.size**2 * len(BANDS) * 2
    median = {k: np.median([r[k] for r in rounds], 0) for k in runs}
    out = {
        k: dict(
            windows_per_s=round(a.windows / t, 1),
            MB_per_s=round(size / 1e6 / t, 1),
            cpu_ms_per_window=round(1e3 * c / a.windows, 2),
        )
        for k, (t, c) in median.items()
    }
    ours = ("eo_brew", "store")
    for mine, other in ((m, o) for m in ours for o in median.keys() - set(ours)):
        out[f"{mine}/{other}"] = dict(
            windows_per_s=round(median[other][0] / median[mine][0], 2),
            per_cpu_s=round(median[other][1] / median[mine][1], 2),
        )
    out["bytes a pixel and band"] = {k: round(v / len(BANDS), 2) for k, v in sizes.items()}
    save(out, a)
    if a.huge:
        with tempfile.TemporaryDirectory() as d:
            t = time.perf_counter()
            f = huge_cog(Path(d) / "huge.tif")
            out["huge"] = dict(
                file_MB=round(f.stat().st_size / 1e6),
                made_in_s=round(time.perf_counter() - t, 1),
                growth_MB=peak_memory(f),
            )
    print(json.dumps(out, indent=1))
    if a.out:
        Path(a.out).write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
