"""Which format suits a store of windows: one .npy, HDF5 (a chunk a window), Zarr 3 (shards).

    python benchmarks/store_formats.py [--windows 300] [--size 256]

Windows of 10 bands, uint16, uncompressed, are read in random order into float32 memory that is
there already, in one thread; the formats take turns, medians of `--repeats` rounds. Pages that the
system keeps of files that were just written make this the cost of the format, not of the disk.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import zarr


def write(folder, n, size, bands=10):
    x = np.random.default_rng(0).integers(0, 4000, (n, bands, size, size), dtype=np.uint16)
    np.save(folder / "a.npy", x)
    with h5py.File(folder / "a.h5", "w") as f:
        f.create_dataset("images", data=x, chunks=(1, *x.shape[1:]))
    chunks = dict(chunks=(1, *x.shape[1:]), shards=(min(16, n), *x.shape[1:]))
    zarr.create_array(folder / "a.zarr", data=x, **chunks, compressors=None)
    return x


def readers(folder):
    npy = np.load(folder / "a.npy", mmap_mode="r")
    h5 = h5py.File(folder / "a.h5")["images"]
    array = zarr.open_array(folder / "a.zarr", mode="r")
    return dict(npy=npy, hdf5=h5, zarr=array)


def main():
    p = argparse.ArgumentParser()
    for k, v in dict(windows=300, size=256, repeats=3).items():
        p.add_argument(f"--{k}", type=int, default=v)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        x = write(Path(d), a.windows, a.size)
        out, ms = np.empty(x.shape[1:], np.float32), {}
        for _ in range(a.repeats):
            for name, source in readers(Path(d)).items():
                order, t = np.random.default_rng(0).permutation(a.windows), time.perf_counter()
                for i in order:
                    out[:] = source[i]
                ms.setdefault(name, []).append(1e3 * (time.perf_counter() - t) / a.windows)
                assert (out == x[order[-1]]).all()
    print(json.dumps({k: round(float(np.median(v)), 2) for k, v in ms.items()}), "ms a window")


if __name__ == "__main__":
    main()
