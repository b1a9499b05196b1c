"""Are two dates of one ground better views than one? The multispectral teacher alone, on a pair of Landsat 8.

    OMP_NUM_THREADS=1 python benchmarks/lab_dates.py --data DIR --out FILE.csv [--seeds 0 1 2] [--steps 320]
        [--teachers CLS tokens]

DIR is the lab's folder. Trained on: the six bands of Brumadinho (30 m) of 2019-01-14 and of 2019-01-30, between
which a dam broke; all windows of both dates in every arm. 'one date' shows each window at its own
date in all views, 'two dates' shows it at the other date in every second view. Probed on: the same
six bands of Sentinel-2 in the lab's scene and chips, each band scaled to the mean and deviation that
the student was trained with. Rows that FILE has already are not run again.
"""

import argparse
import csv
import tarfile
from pathlib import Path

import numpy as np
import rasterio
import torch

from eo_brew.app.demo import S2_GROUND_BANDS, fit_steps
from eo_brew.methods.deo import distill_layers
from eo_brew.models.teachers import efficientnet_lite_teacher
from lab_arms import learner, random_encoder
from lab_data import MemoryWindows, cut_windows, measured, read_chips
from lab_probes import Truth, score_chips, score_scene

#: Landsat 8's bands and those of Sentinel-2 that look at about the same
PAIR = dict(B2="B02", B3="B03", B4="B04", B5="B8A", B6="B11", B7="B12")
DATES = ("20190114", "20190130")
#: what the moving average is asked -> the lab's arm
TEACHERS = {"CLS": "multispectral", "tokens": "dense alone"}
STRIDE = 24
KEY = ["teacher", "views", "seed", "steps"]


def read_date(data, date):
    """The six bands of one date (6,H,W) in ten thousandths of reflectance."""
    file = next((Path(data) / "xlandsat").glob(f"*218074_{date}*.tar.gz"), None)
    if file is None:
        raise ValueError(f"data={str(data)!r} has no xlandsat/*218074_{date}*.tar.gz")
    with tarfile.open(file) as tar:
        names = {b: next(n for n in tar.getnames() if n.endswith(f"SR_{b}.TIF")) for b in PAIR}
        bands = [
            rasterio.MemoryFile(tar.extractfile(n).read()).open().read(1) for n in names.values()
        ]
    raw = np.stack(bands).astype(np.float32)
    # Collection 2: reflectance is 2.75e-5 DN - 0.2, and 0 where nothing was measured
    return np.where(raw == 0, np.nan, (raw * 2.75e-5 - 0.2) * 1e4)


class Pair:
    """Windows of both dates in one order, and the same windows at their other dates."""

    def __init__(self, data):
        dates = [read_date(data, d) for d in DATES]
        gone = np.isnan(dates).any((0, 1))
        one, two = (cut_windows(np.where(gone, np.nan, x), stride=STRIDE) for x in dates)
        self.own, self.other = torch.cat([one, two]), torch.cat([two, one])
        self.sensor = measured(self.own, list(PAIR.values()))

    def dataset(self, views):
        """Training windows of 'one date' or of 'two dates'."""
        return MemoryWindows(
            self.own, self.sensor, {"ms_dates": self.other} if views == "two dates" else None
        )


def six_bands(truth, sensor):
    """Let scene and chips of `truth` have the bands of `sensor`, at its means and deviations."""
    at = [S2_GROUND_BANDS.index(b) for b in sensor.band_names]
    mean, std = (torch.tensor([getattr(b, k) for b in sensor.bands]) for k in ("mean", "std"))

    def one(x):
        flat = x.transpose(0, 1).flatten(1)
        x = (x - flat.mean(1)[:, None, None]) / flat.std(1)[:, None, None]
        return x * std[:, None, None] + mean[:, None, None]

    scene, chips = truth.inputs["ms"]
    truth.inputs["ms"] = one(scene[None, at])[0], one(chips[:, at])
    return truth


def row(pair, truth, vfm, teacher, views, seed, steps):
    """Scores of one student."""
    if teacher == "none":
        encoder = random_encoder(pair.sensor, seed)
    else:
        learn = learner(TEACHERS[teacher], pair.dataset(views), vfm, seed, steps)
        with learn.no_bar(), learn.no_logging():
            fit_steps(learn, steps)
        encoder = learn.model.encoder
    layers = distill_layers(encoder)
    chips, _ = score_chips(truth, encoder, "ms", layers)
    return score_scene(truth, encoder, "ms", layers) | chips


def todo(args, done):
    """Keys of the rows that are missing."""
    runs = [("none", "", seed, 0) for seed in args.seeds]
    for teacher in args.teachers:
        for seed in args.seeds:
            runs += [(teacher, views, seed, args.steps) for views in ("one date", "two dates")]
    return [key for key in runs if tuple(map(str, key)) not in done]


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=320)
    p.add_argument("--teachers", nargs="+", choices=list(TEACHERS), default=list(TEACHERS))
    args = p.parse_args()
    torch.set_num_threads(1)
    rows = list(csv.DictReader(args.out.open(newline=""))) if args.out.exists() else []
    pair, vfm = Pair(args.data), efficientnet_lite_teacher(layers=(2, 3), scale=2.0)
    truth = six_bands(Truth(*read_chips(args.data)[:2]), pair.sensor)
    for key in todo(args, {tuple(r[k] for k in KEY) for r in rows}):
        scores = row(pair, truth, vfm, *key)
        rows.append(dict(zip(KEY, key)) | {k: round(float(v), 4) for k, v in scores.items()})
        with args.out.open("w", newline="") as f:
            w = csv.DictWriter(f, rows[-1].keys())
            w.writeheader()
            w.writerows(rows)
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
