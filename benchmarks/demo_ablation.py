"""What each option of the demo brings: the table of the tutorial "DEO on one scene".

    python benchmarks/demo_ablation.py [--out OUT.csv] [--steps 240] [--seeds 0 1 2] \\
        [--runs shipped ...] [--threads 2]

One line a run: options, seed, and the linear probe (macro-F1, accuracy) of the frozen tokens on
columns never trained on, before and after training. Runs that OUT holds already are kept, so an
interrupted table is finished by the same command.
"""

import argparse
import csv
import time
from pathlib import Path

import torch

from eo_brew.methods.deo import distill_layers
from eo_brew.scenes.open import open_raster, sample_labels, sample_scene
from eo_brew.app.demo import S2_GROUND_BANDS, demo_learner, fit_steps
from eo_brew.probes.scene_probe import scene_probe

TEACHER = dict(vfm="efficientnet_lite2", layers=(2, 3), scale=2.0)
RUNS = {
    "shipped": {},
    "with L_cls": dict(cls_weight=1.0),
    "raw targets": dict(standardize=False),
    "teacher layers of stride 16 and 32": dict(vfm=dict(TEACHER, layers=(3, 4))),
    "RGB not enlarged": dict(vfm=dict(TEACHER, scale=1.0)),
    "no quarter turns": dict(views=dict(turn=False)),
    "RGB path only, as in the paper": dict(distill_from=("rgb",)),
    "RGB and MS paths": dict(distill_from=("rgb", "ms")),
    "with self-distillation": dict(self_distill=True, views=dict(n_global=2), momentum=0.996),
}
COLUMNS = ["run", "seed", "steps", "random_f1", "random_accuracy", "f1", "accuracy", "minutes"]


def measure(run, seed, steps):
    "One row of the table."
    learn, start = demo_learner(seed, **RUNS[run]), time.time()
    scene, encoder = (
        open_raster(sample_scene(), sensor="sentinel2_l1c", bands=S2_GROUND_BANDS),
        learn.model.encoder,
    )

    def probe():
        return scene_probe(encoder, scene, sample_labels(), distill_layers(encoder), seed=seed)

    random = probe()
    with learn.no_bar(), learn.no_logging():
        fit_steps(learn, steps)
    trained = probe()
    scores = [
        round(s, 4) for s in (random.macro_f1, random.accuracy, trained.macro_f1, trained.accuracy)
    ]
    return dict(zip(COLUMNS, (run, seed, steps, *scores, round((time.time() - start) / 60, 1))))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, default=Path("eo_brew/samples/measured/demo_ablation.csv"))
    p.add_argument("--steps", type=int, default=240)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
    done = {(r["run"], int(r["seed"]), int(r["steps"])) for r in rows}
    for seed in args.seeds:
        for run in args.runs:
            if (run, seed, args.steps) in done:
                continue
            rows.append(measure(run, seed, args.steps))
            with args.out.open("w", newline="") as f:
                w = csv.DictWriter(f, COLUMNS)
                w.writeheader()
                w.writerows(rows)
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
