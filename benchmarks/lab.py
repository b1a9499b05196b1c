"""Does a second teacher pay? One small student, pretrained in many ways and probed alike.

    OMP_NUM_THREADS=1 python benchmarks/lab.py --data DIR --out lab.csv [--arms 'optical' 'dual']
        [--seeds 0 1 2] [--steps 160] [--dinov2 FILE] [--cache FOLDER] [--encoders FOLDER]

DIR holds the lab's scenes (s2_t33uub, s2_t49jgm, s2_aquileia) and eurosat_ms/CLASS/*.tif. FILE is
a timm state dict of vit_small_patch14_dinov2 whose first nine blocks count. Every row is one arm,
seed and number of steps; rows that OUT has already are not run again. Scores: 'scene' is macro-F1
on the test columns of the shipped scene, 'chips' accuracy on EuroSAT chips never trained on, 'few'
the same with 5% of the labels (at least one a class), 'ms' and 'rgb' what the encoder looks at.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch

from eo_brew.app.demo import fit_steps
from eo_brew.methods.deo import distill_layers
from eo_brew.models.teachers import VFMTeacher, efficientnet_lite_teacher
from eo_brew.weights.save import save_encoder
from lab_arms import ARMS, BASE, learner, random_encoder, settings
from lab_data import MemoryWindows, ask, cut_windows, measured, read_chips, read_scenes
from lab_probes import Truth, chip_features, score, score_forest, score_rgb_teacher

KEY = ["arm", "seed", "steps"]
SCORES = [
    f"{place}_{m}{what}"
    for m in ("ms", "rgb")
    for place, kinds in (
        ("scene", ("", "_acc", "_few")),
        ("chips", ("_cls", "_mean", "_both", "_few")),
        ("cka", ("",)),
        ("rank", ("",)),
        ("speckle", ("",)),
    )
    for what in kinds
    if (m, what) not in (("rgb", "_cls"), ("rgb", "_mean"))
]
COLUMNS = [
    *KEY,
    *SCORES,
    "grad_first",
    "grad_last",
    "loss_parts",
    "windows",
    "step_seconds",
    "seconds",
]


class Lab:
    """Scenes, chips and teachers, each read or made when first needed."""

    def __init__(self, data, dinov2=None, cache=None, encoders=None):
        chips, classes, _ = read_chips(data)
        self.data, self.dinov2, self.cache, self.encoders = data, dinov2, cache, encoders
        self.truth, self.sets = Truth(chips, classes), {}
        self.scenes = read_scenes(data, BASE["scenes"])
        every = torch.cat([cut_windows(x) for x in self.scenes.values()])
        self.sensor = measured(every)  # one for all arms, so that inputs are alike
        self.vfm = efficientnet_lite_teacher(layers=(2, 3), scale=2.0)
        self.teacher_tokens = chip_features(self.vfm, self.truth.inputs["rgb"][1], "rgb", None)[2]

    def windows(self, names, stride):
        """Training windows of some scenes with the optical teacher's answers."""
        if (names, stride) not in self.sets:
            x = torch.cat([cut_windows(self.scenes[n], stride=stride) for n in names])
            self.sets[names, stride] = MemoryWindows(
                x, self.sensor, self.said(x, f"{'_'.join(names)}_{stride}")
            )
        return self.sets[names, stride]

    def said(self, windows, name):
        """The optical teacher's answers, kept in a file where a folder for them was given."""
        file = self.cache and self.cache / f"{name}.pt"
        if file and file.exists():
            return torch.load(file)
        out = ask(self.vfm, windows, self.sensor)
        if file:
            torch.save(out, file)
        return out

    def train(self, arm, seed, steps):
        """An arm's encoder after training, and what was measured on the way."""
        s = settings(arm)
        if s["method"] == "random":
            return random_encoder(self.sensor, seed), {}
        windows = self.windows(s["scenes"], s["stride"])
        learn = learner(arm, windows, self.vfm, seed, steps)
        start = time.time()
        with learn.no_bar(), learn.no_logging():
            fit_steps(learn, steps)
        parts = {k: round(float(v), 3) for k, v in learn.loss_func.parts.items()}
        measured = dict(
            step_seconds=(time.time() - start) / steps, windows=len(windows), loss_parts=parts
        )
        if hasattr(learn, "balance_gradients") and learn.balance_gradients.rows:
            rows = [{k: round(v, 3) for k, v in r.items()} for r in learn.balance_gradients.rows]
            measured |= dict(grad_first=rows[0], grad_last=rows[-1])
        return learn.model.encoder, measured

    def row(self, arm, seed, steps):
        """One row of the table."""
        if arm in BASELINES:
            return BASELINES[arm](self, seed)
        encoder, measured = self.train(arm, seed, steps)
        if self.encoders:
            save_encoder(encoder, self.encoders / f"{arm}, {steps} steps, seed {seed}.safetensors")
        return score(self.truth, encoder, distill_layers(encoder), self.teacher_tokens) | measured


def dinov2(lab, seed):
    """Scores of the nine good blocks of a DINOv2-S on RGB, tokens of 8 pixels."""
    drop = tuple(f"blocks.{i}." for i in (9, 10, 11))
    vfm = VFMTeacher(
        "vit_small_patch14_dinov2",
        lab.dinov2,
        layers=(5, 8),
        scale=2,
        patch_size=16,
        depth=9,
        drop=drop,
    )
    return score_rgb_teacher(lab.truth, vfm, (5, 8))


BASELINES = {
    "EfficientNet-Lite2 on RGB": lambda lab, seed: score_rgb_teacher(lab.truth, lab.vfm, (2, 3)),
    "DINOv2-S on RGB": dinov2,
    "random forest, 10 bands": lambda lab, seed: score_forest(lab.truth, seed),
    "random forest, 13 bands": lambda lab, seed: score_forest(lab.truth, seed, "all"),
}


def todo(args, done):
    """(arm, seed, steps) of the rows that are missing."""
    for seed in args.seeds:
        for arm in args.arms:
            if (
                arm == "DINOv2-S on RGB"
                and not args.dinov2
                or arm in BASELINES
                and seed
                and "forest" not in arm
            ):
                continue
            steps = 0 if arm in BASELINES or arm == "random weights" else args.steps
            if (arm, str(seed), str(steps)) not in done:
                yield arm, seed, steps


def shown(v):
    """A number with four digits behind the point, all else as it is."""
    return round(float(v), 4) if isinstance(v, (float, np.floating)) else v


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, default=Path("lab.csv"))
    names = [*BASELINES, *ARMS]
    p.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--steps", type=int, default=160)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--dinov2")
    p.add_argument("--encoders", type=Path, help="folder in which to keep what was trained")
    p.add_argument(
        "--cache", type=Path, help="folder in which to keep what the optical teacher says"
    )
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    rows = list(csv.DictReader(args.out.open(newline=""))) if args.out.exists() else []
    left = list(todo(args, {tuple(r[k] for k in KEY) for r in rows}))
    for folder in filter(None, (args.cache, args.encoders)):
        folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(args.data, args.dinov2, args.cache, args.encoders) if left else None
    for key in left:
        start = time.time()
        row = dict(zip(KEY, key)) | lab.row(*key)
        rows.append(
            {k: shown(v) for k, v in row.items()} | dict(seconds=round(time.time() - start))
        )
        with args.out.open("w", newline="") as f:
            w = csv.DictWriter(f, COLUMNS, restval="")
            w.writeheader()
            w.writerows(rows)
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
