"""What fine-tuning brings on the sample scene: the table of "Fine-tuning with few labels".

    eo_brew demo --out DEMO
    python benchmarks/finetune.py DEMO/encoder.safetensors [--seeds 0 1 2] [--times 1] [--out OUT.csv]

The seeds are those of the split, the head, the order and, for the rows of a random encoder, of its weights. Nothing
sees the test columns: windows of the other columns are split on the ground as `eo_brew finetune` splits them, and after
each stage all pixels of the test columns are scored on a map of overlapping windows. A linear probe and a forest on
pixels of the same columns come first. Seeds that OUT.csv has already are not computed again.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from fastai.torch_core import set_seed

from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.data.labels import read_labels
from eo_brew.data.splits import ground_split, stripe_columns
from eo_brew.maps.sweep import Sweep
from eo_brew.models.teachers import default_layers
from eo_brew.probes.compare import random_copy
from eo_brew.probes.scene_probe import pixel_forest, scene_probe
from eo_brew.probes.scores import class_f1, confusion_matrix
from eo_brew.scenes.open import open_raster, sample_labels, sample_scene
from eo_brew.tasks.finetune import few_label_learner, finetune
from eo_brew.weights.save import load_encoder

FILE = Path(__file__).parents[1] / "eo_brew" / "samples" / "measured" / "finetune.csv"
SIZE = 96


def loaders(scene, y, test, seed):
    "Labelled windows outside the test columns, a fifth of their ground held out."

    def split(windows, scenes):
        boxes = [(slice(r, r + SIZE), slice(c, c + SIZE)) for _, r, c in windows.rows]
        keep = [not test[c].any() and (y[r, c] != 255).mean() > 0.02 for r, c in boxes]
        return ground_split(windows.take(np.array(keep)), scenes, 0.2, None, seed)[:2]

    options = dict(labels=str(sample_labels()), split=split, enough=256, seed=seed)
    return eo_dataloaders([scene], None, SIZE, 8, **options)


def score(model, scene, y, test):
    "Macro-F1 and accuracy of the pixels in test columns."
    s = Sweep(model, scene, kind="classes", size=SIZE, overlap=SIZE // 2)
    said = s.region(0, 0, *s.shape, finish=lambda v: v.argmax(0, keepdim=True))[0][0]
    on = (y != 255) & test[None]
    m = confusion_matrix(y[on], said[on].astype(int), int(y[on].max()) + 1)
    return class_f1(m).nanmean().item(), (m.diagonal().sum() / m.sum()).item()


def measure(encoder, seed, what, times, known):
    "Lines of one seed as they come: what a probe and a forest say, and each stage of fine-tuning."
    da = open_raster(sample_scene(), bands=encoder.sensors["ms"].band_names)
    y, _ = read_labels(sample_labels(), da)
    test = stripe_columns(y.shape[1])
    layers = default_layers(encoder.depth)
    probe = scene_probe(encoder, da, sample_labels(), layers, seed=seed).pixels
    yield f"{what}linear probe", probe.macro_f1, probe.accuracy
    if (seed, "forest on pixels") not in known:
        forest = pixel_forest(da, sample_labels(), seed=seed)
        yield "forest on pixels", forest.macro_f1, forest.accuracy
    scene = da.encoding["scene"]
    dls = loaders(scene, y, test, seed)
    set_seed(seed)
    learn, found = few_label_learner("segmentation", dls, encoder), {}

    def tell(text):
        found[text.split(", ")[0].split(":")[0]] = score(learn.model, scene, y, test)

    finetune(learn, times=times, tell=tell)
    yield from ((f"finetune: {what}{stage}", *scores) for stage, scores in found.items())
    yield f"finetune: {what}kept", *found[learn.finetuned["kept"]]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("encoder")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--times", type=float, default=1.0, help="that many times the steps")
    p.add_argument("--out", type=Path, default=FILE)
    a = p.parse_args()
    rows = list(csv.DictReader(open(a.out))) if a.out.exists() else []
    for seed, random in ((s, r) for s in a.seeds for r in (False, True)):
        encoder, what = load_encoder(a.encoder), "random encoder, " * random
        encoder = random_copy(encoder, seed) if random else encoder
        known = {(int(r["seed"]), r["model"]) for r in rows}
        if (seed, f"finetune: {what}kept") in known:
            continue
        for model, f1, accuracy in measure(encoder, seed, what, a.times, known):
            row = dict(scene="s2_t33uuu", seed=seed, model=model, f1=f"{f1:.3f}")
            rows.append(row | dict(accuracy=f"{accuracy:.3f}"))
            print(*rows[-1].values(), sep=", ", flush=True)
        with open(a.out, "w", newline="") as f:
            table = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
