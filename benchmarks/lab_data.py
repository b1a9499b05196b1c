"""What the lab trains and probes on: unlabelled scenes, and EuroSAT chips with all bands."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from fastai.data.core import DataLoaders

from eo_brew.app.demo import S2_GROUND_BANDS
from eo_brew.core.sensors import get_sensor, rgb_from
from eo_brew.data.loader import EODataLoader
from eo_brew.data.splits import stripe_columns
from eo_brew.scenes.open import open_raster, sample_scene

#: bands of a EuroSAT file, in its order
EUROSAT_BANDS = [*(f"B{i:02}" for i in range(1, 13)), "B8A"]
SENSOR = "sentinel2_l1c"
WINDOW = 96
SHIPPED = "t33uuu"


def read_scene(folder):
    """The ten bands of a Sentinel-2 scene (C,H,W) as DN, NaN where nothing was measured."""
    return open_raster(folder, sensor=SENSOR, bands=S2_GROUND_BANDS, offset=0).values


def read_browser_scene(folder):
    """A scene of EO Browser: one file a band, 65535 = reflectance 1, 0 = nothing measured."""
    files = [next(Path(folder).glob(f"*_{b}_*.tiff")) for b in S2_GROUND_BANDS]
    raw = np.stack([rasterio.open(f).read(1) for f in files]).astype(np.float32)
    return np.where((raw == 0).all(0), np.nan, raw * (1e4 / 65535))


def read_scenes(data, names=("t33uuu", "t33uub", "t49jgm", "aquileia")):
    """Name -> (C,H,W) DN; of the shipped scene ('t33uuu') the test columns are NaN."""

    def read(name):
        if name == "aquileia":
            return read_browser_scene(Path(data) / "s2_aquileia")
        if name != SHIPPED:
            return read_scene(Path(data) / f"s2_{name}")
        x = read_scene(sample_scene()).copy()
        x[..., stripe_columns(x.shape[2])] = np.nan
        return x

    return {name: read(name) for name in names}


def cut_windows(x, size=WINDOW, stride=48):
    """All regular windows (N,C,size,size) of a scene that hold data in every pixel."""

    def starts(n):
        return sorted({*range(0, n - size + 1, stride), n - size})

    whole = np.isfinite(x).all(0)
    at = [(r, c) for r in starts(x.shape[1]) for c in starts(x.shape[2])]
    keep = [(r, c) for r, c in at if whole[r : r + size, c : c + size].all()]
    return torch.stack([torch.from_numpy(x[:, r : r + size, c : c + size].copy()) for r, c in keep])


class MemoryWindows(torch.utils.data.Dataset):
    """Windows in memory, with what a frozen teacher says of each."""

    def __init__(self, windows, sensor, said=None):
        self.parts = {"ms": windows, **(said or {})}
        self.sensors = {"ms": sensor}

    def __len__(self):
        return len(self.parts["ms"])

    def __getitem__(self, i):
        return ({k: v[i] for k, v in self.parts.items()},)


def measured(windows, bands=S2_GROUND_BANDS):
    """The sensor of these bands with statistics of these windows."""
    sensor = get_sensor(SENSOR, bands)
    bare = replace(sensor, bands=tuple(replace(b, mean=None, std=None) for b in sensor.bands))
    flat = windows.transpose(0, 1).flatten(1)
    return bare.with_stats(flat.mean(1), flat.std(1))


@torch.no_grad()
def ask(vfm, windows, sensor, bs=16):
    """Name -> (N,...) of a frozen teacher's answers about the colours of `windows`."""

    def one(x):
        t = vfm(rgb_from(x, sensor))
        mid, late = t.layers
        return {"vfm_cls": t.cls, "vfm_mid": mid.as_map(), "vfm_late": late.as_map()}

    parts = [one(x) for x in windows.split(bs)]
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


def loaders(dataset, bs, seed):
    """Training batches of a dataset, in an order of its own for each seed."""
    dls = DataLoaders(
        *[
            EODataLoader(dataset, bs=bs, shuffle=s, drop_last=True, seed=seed)
            for s in (True, False)
        ],
        device="cpu",
    )
    dls.sensors = dataset.sensors
    return dls


def read_chips(data):
    """EuroSAT chips (N,13,64,64) as DN, their classes (N,), and the names of the classes."""
    files = sorted((Path(data) / "eurosat_ms").glob("*/*.tif"))
    if not files:
        raise ValueError(f"data={str(data)!r} has no eurosat_ms/CLASS/*.tif")
    names = sorted({f.parent.name for f in files})
    pixels = np.stack([rasterio.open(f).read().astype(np.float32) for f in files])
    return torch.from_numpy(pixels), np.array([names.index(f.parent.name) for f in files]), names


def ground_bands(chips):
    """The ten bands of 10 and 20 m of chips with all thirteen."""
    return chips[:, [EUROSAT_BANDS.index(b) for b in S2_GROUND_BANDS]]
