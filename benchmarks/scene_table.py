"""Where DEO's encoder stands on the shipped scene: one table with the baselines.

    python benchmarks/scene_table.py [--dinov2 FILE] [--steps 240 960] [--seeds 0] [--out OUT.csv]

Trains the demo's student for each teacher, number of steps and seed, and puts it beside raw
pixels, random weights, per-pixel random forests and the frozen optical teachers on RGB; linear
CKA says how much its tokens of all bands have in common with its teacher's of RGB, before and
after. With FILE (a timm state dict of vit_small_patch14_dinov2) a DINOv2-S is a row and a
teacher too. Rows are written as they come; those that --out holds already are not computed
again.
"""

import argparse
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from eo_brew.probes.compare import RGBEncoder, Table, compare
from eo_brew.methods.deo import distill_layers
from eo_brew.probes.protocols import cka
from eo_brew.scenes.open import open_raster, sample_labels, sample_scene
from eo_brew.app.demo import (
    S2_GROUND_BANDS,
    demo_learner,
    fit_steps,
)
from eo_brew.data.splits import stripe_columns
from eo_brew.probes.scene_probe import (
    RawCells,
    pixel_forest,
    scene_array,
    scene_probe,
    scene_tokens,
    scene_windows,
)
from eo_brew.models.teachers import VFMTeacher, efficientnet_lite_teacher


def dinov2(file, layers=(5, 8)):
    "The nine blocks of a DINOv2-S that a later fine-tuning left alone, tokens of 8 pixels."
    return VFMTeacher(
        "vit_small_patch14_dinov2",
        file,
        layers=layers,
        scale=2,
        patch_size=16,
        depth=9,
        drop=("blocks.9.", "blocks.10.", "blocks.11."),
    )


def learner_of(vfm, seed):
    "The demo's learner with another optical teacher."
    return demo_learner(seed, vfm=vfm)


def trained(learn, steps):
    "Its encoder after `steps` steps."
    with learn.no_bar(), learn.no_logging():
        fit_steps(learn, steps)
    return learn.model.encoder


def nearest(bands):
    "The scene with its 20 m bands repeated instead of interpolated."
    alone = [
        open_raster(sample_scene(), sensor="sentinel2_l1c", bands=[b]).values[0] for b in bands
    ]
    finest = max(len(a) for a in alone)
    return np.stack([a.repeat(finest // len(a), 0).repeat(finest // len(a), 1) for a in alone])


def forest(image):
    "A row of the per-pixel random forest."
    r = pixel_forest(image, sample_labels())
    return Table(
        dict(
            encoder="", task="scene", metric=f"pixel_{k}", mean=getattr(r, k), std=float("nan"), n=1
        )
        for k in ("macro_f1", "accuracy")
    )


def likeness(encoder, layers, teacher, teacher_layers, scene):
    "Rows with the linear CKA of an encoder's tokens and its teacher's, cell by cell."
    x, _ = scene_array(scene)
    wins = scene_windows(x.shape[1], stripe_columns(x.shape[2]))
    a, b = (
        scene_tokens(e, x, wins, layers=l).flatten(0, 1)
        for e, l in ((encoder, layers), (teacher, teacher_layers))
    )
    return Table(
        [
            dict(
                encoder="",
                task="scene",
                metric="cka_teacher",
                mean=float(cka(a, b)),
                std=float("nan"),
                n=1,
            )
        ]
    )


def rows(args):
    "Name -> function that gives the row's scores."
    scene, random = (
        open_raster(sample_scene(), sensor="sentinel2_l1c", bands=S2_GROUND_BANDS),
        demo_learner(1).model.encoder,
    )
    sensor, both = random.sensors["ms"], distill_layers(random)

    def probe(make, **kw):
        return lambda: compare(
            {"": make()},
            {"scene": lambda e, s: scene_probe(e, scene, sample_labels(), seed=s, **kw)},
            progress=None,
        )

    teachers = {
        "EfficientNet-Lite2": (lambda: efficientnet_lite_teacher(layers=(2, 3), scale=2), (2, 3))
    }
    if args.dinov2:
        teachers["DINOv2-S"] = (lambda: dinov2(args.dinov2), (5, 8))
    out = {
        "raw pixels, means of 8 x 8": probe(lambda: RawCells(8)),
        "random forest, 10 bands": lambda: forest(scene),
        "random forest, 10 bands, nearest": lambda: forest(nearest(S2_GROUND_BANDS)),
        "random forest, RGB": lambda: forest(scene.eo.rgb.transpose(2, 0, 1)),
        "random encoder, mid and late": probe(lambda: random, layers=both),
        "random encoder, late": probe(lambda: random),
    }
    for name, (make, layers) in teachers.items():
        out[f"{name} on RGB, two layers"] = probe(
            lambda make=make: RGBEncoder(make(), sensor), layers=layers
        )
        out[f"{name} on RGB, last"] = probe(lambda make=make: RGBEncoder(make(), sensor))
        out[f"random encoder beside {name}"] = lambda make=make, layers=layers: likeness(
            random, both, RGBEncoder(make(), sensor), layers, scene
        )
    for steps, seed, (name, (make, layers)) in product(args.steps, args.seeds, teachers.items()):
        run = cache(
            lambda steps=steps, seed=seed, make=make: trained(learner_of(make(), seed), steps)
        )
        out[f"DEO from {name}, {steps} steps, seed {seed}, mid and late"] = (
            lambda run=run, make=make, layers=layers: Table(
                probe(run, layers=both)()
                + likeness(run(), both, RGBEncoder(make(), sensor), layers, scene)
            )
        )
        out[f"DEO from {name}, {steps} steps, seed {seed}, late"] = probe(run)
    return out


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--steps", type=int, nargs="*", default=[240, 960])
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    p.add_argument("--dinov2")
    p.add_argument("--out", type=Path, default=Path("eo_brew/samples/measured/scene_table.csv"))
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    table = Table(pd.read_csv(args.out).to_dict("records") if args.out.exists() else [])
    for name, scores in rows(args).items():
        if any(r["encoder"] == name for r in table):
            continue
        table += [r | dict(encoder=name) for r in scores()]
        table.csv(args.out)
        print(
            name,
            {r["metric"]: round(r["mean"], 3) for r in table if r["encoder"] == name},
            flush=True,
        )
    print(
        table.markdown("pixel_macro_f1"),
        table.markdown("pixel_accuracy"),
        table.markdown("macro_f1"),
        table.markdown("accuracy"),
        sep="\n\n",
    )


if __name__ == "__main__":
    main()
