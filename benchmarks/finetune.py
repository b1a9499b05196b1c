"""What fine-tuning brings on the sample scene: the table of "Fine-tuning with few labels".

    eo_brew demo --out DEMO
    python benchmarks/finetune.py DEMO/encoder.safetensors [--random] [--seed 0] [--times 1]

Nothing sees the test columns: windows of the other columns are split on the ground as `eo_brew finetune` splits them,
and after each stage all pixels of the test columns are scored on a map of overlapping windows. A linear probe and a
forest on pixels of the same columns come first. Prints lines for eo_brew/samples/measured/finetune.csv.
"""

import argparse

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


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("encoder")
    p.add_argument("--random", action="store_true", help="fresh weights in the place of its own")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--times", type=float, default=1.0, help="that many times the steps")
    a = p.parse_args()
    encoder = load_encoder(a.encoder)
    encoder = random_copy(encoder, a.seed) if a.random else encoder
    what = "random encoder, " * a.random
    da = open_raster(sample_scene(), bands=encoder.sensors["ms"].band_names)
    y, _ = read_labels(sample_labels(), da)
    test = stripe_columns(y.shape[1])

    def row(name, f1, accuracy):
        print(f's2_t33uuu,{a.seed},"{name}",{f1:.3f},{accuracy:.3f}', flush=True)

    layers = default_layers(encoder.depth)
    for name, r in (
        (f"{what}linear probe", scene_probe(encoder, da, sample_labels(), layers).pixels),
        ("forest on pixels", pixel_forest(da, sample_labels())),
    ):
        row(name, r.macro_f1, r.accuracy)
    scene = da.encoding["scene"]
    dls = loaders(scene, y, test, a.seed)
    set_seed(a.seed)
    learn = few_label_learner("segmentation", dls, encoder)

    def tell(text):
        row(
            f"finetune: {what}{text.split(', ')[0].split(':')[0]}",
            *score(learn.model, scene, y, test),
        )

    finetune(learn, times=a.times, tell=tell)
    print(f"# kept: {learn.finetuned['kept']}")


if __name__ == "__main__":
    main()
