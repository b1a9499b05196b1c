"""What the parts of MSSDF do on the shipped Sentinel-2 scene in a very short run: the table of the
tutorial.

    OMP_NUM_THREADS=1 python benchmarks/mssdf_ablation.py [OUT.csv] [--steps 300] [--seeds 0 1 2] [--variants MSSDF ...]

One row a run: variant, seed, macro-F1 and accuracy of a linear probe of the frozen tokens
(blocks 4 and 5) on columns never trained on, effective rank of the tokens, and of every loss
part the mean of the first and the last ten steps. Runs that OUT has already are kept, so a
stopped table goes on where it was; the rows are in the order of the runs.
"""

import argparse
import csv
import time
from functools import partial
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed

from eo_brew.models.encoder import create_encoder
from eo_brew.data.loader import EODataLoader
from eo_brew.runs.monitors import effective_rank
from eo_brew.methods.mssdf import WEIGHTS, mssdf_learner
from eo_brew.scenes.open import open_raster, sample_labels, sample_scene
from eo_brew.app.demo import S2_GROUND_BANDS, fit_steps, sample_loaders
from eo_brew.probes.scene_probe import scene_probe
from eo_brew.models.teachers import efficientnet_lite_teacher

MEASURED = Path(__file__).parent.parent / "eo_brew" / "samples" / "measured"
OFF = dict(align=0.0, hsic=0.0, modality=0.0)
VARIANTS = {
    "random encoder": None,
    "MSSDF": {},
    "random masks, reconstruction only": dict(masking="random", q=None, weights=OFF),
    "random masks": dict(masking="random"),
    "masks not across modalities": dict(q=None),
    "no alignment": dict(weights=dict(align=0.0)),
    "no HSIC": dict(weights=dict(hsic=0.0)),
    "no modality classification": dict(weights=dict(modality=0.0)),
    "alignment and HSIC on the same features": dict(split=False),
    "reconstruction only": dict(weights=OFF),
    "no reconstruction": dict(weights=dict(recon=0.0)),
    "with an optical teacher": dict(
        vfm=partial(efficientnet_lite_teacher, layers=(2, 3), scale=2.0), distill_from="ms"
    ),
}
PARTS = [f"{when}_{part}" for part in WEIGHTS for when in ("first", "last")]
COLUMNS = ["variant", "seed", "steps", "macro_f1", "accuracy", "rank", *PARTS, "cpu_seconds"]
SIZE, BATCH = 48, 16


class Kept(torch.utils.data.Dataset):
    "The windows of a dataset, read once."

    def __init__(self, ds):
        self.items = [ds[i] for i in range(len(ds))]
        self.sensors = ds.sensors

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Parts(Callback):
    "Keep the loss parts of every step."

    order = 90

    def before_fit(self):
        self.rows = []

    def after_batch(self):
        if self.training:
            self.rows.append({k: float(v) for k, v in self.learn.loss_func.parts.items()})


def train(variant, seed, steps, windows):
    "An encoder trained for `steps` steps on `windows`, and a row of the table with its losses and effective rank."
    set_seed(seed)
    dls = DataLoaders(
        *[
            EODataLoader(windows, bs=BATCH, shuffle=s, drop_last=True, seed=seed)
            for s in (True, False)
        ],
        device="cpu",
    )
    dls.sensors = windows.sensors
    sensors = {"rgb": "rgb", **dls.sensors}
    enc = create_encoder(
        "vit_tiny_patch16_224",
        {m: sensors[m] for m in sorted(sensors, key="ms rgb dem".index)},
        img_size=SIZE,
        patch_size=8,
        embed_dim=96,
        depth=6,
        num_heads=3,
        modality_embed=True,
    )
    row = dict(variant=variant, seed=seed, steps=0)
    if VARIANTS[variant] is not None:
        options = {k: v() if callable(v) else v for k, v in VARIANTS[variant].items()}
        learn = mssdf_learner(
            dls, enc, lr=1e-3, decoder_depths=(1, 2), cbs=[log := Parts()], **options
        )
        learn._do_epoch_validate = lambda *args, **kwargs: None  # the probe is the validation
        with learn.no_bar(), learn.no_logging():
            fit_steps(learn, steps)
        for when, part in (("first", log.rows[:10]), ("last", log.rows[-10:])):
            row |= {
                f"{when}_{k}": round(sum(r[k] for r in part) / len(part), 4)
                for k in part[0]
                if k in WEIGHTS
            }
        row["steps"] = len(log.rows)
    enc.eval()
    with torch.no_grad():
        tokens = enc(dls.train.one_batch()[0]["ms"]).patches
    return enc, {**row, "rank": round(float(effective_rank(tokens.flatten(0, 1))), 1)}


def table(run, columns, out, variants=VARIANTS, doc=__doc__):
    "Add the runs that are missing to a table; `run(variant, seed, steps)` gives a row."
    ap = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("out", type=Path, nargs="?", default=out)
    ap.add_argument("--steps", type=int, default=300)
    ap.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ap.add_argument("--variants", nargs="+", choices=list(variants), default=list(variants))
    a = ap.parse_args()
    new = not a.out.exists()
    done = (
        set()
        if new
        else {(r["variant"], int(r["seed"])) for r in csv.DictReader(a.out.open(newline=""))}
    )
    todo = [(v, s) for s in a.seeds for v in a.variants if (v, s) not in done]
    if not todo:
        return print("nothing to do: all runs are in", a.out)
    with a.out.open("a", newline="") as f:
        rows = csv.DictWriter(f, columns, restval="")
        if new:
            rows.writeheader()
        for variant, seed in todo:
            start = time.process_time()
            row = {**run(variant, seed, a.steps), "cpu_seconds": round(time.process_time() - start)}
            rows.writerow(row)
            f.flush()
            print(row, flush=True)


def main():
    windows, scene = (
        Kept(sample_loaders(size=SIZE, bs=BATCH).train_ds),
        open_raster(sample_scene(), sensor="sentinel2_l1c", bands=S2_GROUND_BANDS).load(),
    )

    def run(variant, seed, steps):
        enc, row = train(variant, seed, steps, windows)
        probe = scene_probe(enc, scene, sample_labels(), (4, 5), window=SIZE, seed=0)
        return {**row, "macro_f1": round(probe.macro_f1, 4), "accuracy": round(probe.accuracy, 4)}

    table(run, COLUMNS, MEASURED / "mssdf_ablation.csv")


if __name__ == "__main__":
    main()
