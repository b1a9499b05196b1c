"""What `eo_brew pretrain` does by itself, beside the other presets, on two places whose labels chose no preset.

    OMP_NUM_THREADS=1 EO_BREW_LAB=LAB python benchmarks/presets.py [--out FILE] [--places olinda aquileia]
        [--rows auto dense] [--seeds 0 1 2] [--steps 120] [--window 32]

Olinda: a Landsat-7 scene that is shipped, four classes of height from its elevation model. Aquileia: a Sentinel-2 scene
of LAB/s2_aquileia, seven kinds of ground outlined by eye (`aquileia_by_eye.geojson`), with no index and no band ratio.
Every row has the same windows of 64 px, batches of 12, steps, seeds and student (the small one of `auto`) and the same
optical teacher; a preset sets all else: views, losses, constants. The exception says so: 'pretrain without options'
fits its windows to the scene and takes 100 epochs of 64 of them. All are probed in windows of one size, because how
much ground a token may look at moves the scores of small scenes as much as a preset does: --window 64 shows it.
'random weights' is the first row's student before training, 'forest' a random forest on the pixels. Each line is
written when it is known; what the table has, or the folder of the runs, is not computed again.
"""

import argparse
import csv
import itertools
import shutil
import time
from pathlib import Path

from first_hour import FILE, LAB, NAMES, write_table
from own_folders import OLINDA, height_classes

from eo_brew.app.pretrain import pretrain
from eo_brew.methods.deo import distill_layers
from eo_brew.methods.deo_presets import SMALL_STUDENT
from eo_brew.probes.compare import random_copy, scene_table
from eo_brew.scenes.open import open_raster
from eo_brew.weights.save import load_encoder

SIZE = 64
KEY = ("place", "seed", "window", "steps", "model")
FIELDS = (*KEY, "metric", "score", "seconds")
BY_EYE = Path(__file__).with_name("aquileia_by_eye.geojson")
#: place -> scenes, sensor, labels; made when it is wanted
PLACES = {
    "olinda": lambda work: (OLINDA / "L7_ETMs.tif", "landsat7_dn", height_classes(work)),
    "aquileia": lambda work: (LAB / "s2_aquileia", None, BY_EYE),
}
#: the paper's student, teacher and views are far too large for two cores; 56 and 24 of 64 px are its 224 and 96 of 256
PAPER = dict(arch=dict(**SMALL_STUDENT, img_size=SIZE), vfm="efficientnet_lite2", views=[56, 24])
#: row -> preset, and what is given beside it, None for nothing at all; 'alone' leaves one teacher of 'dense' out
ROWS = {
    "auto": ("auto", {}),
    "dense": ("dense", {}),
    "dense, optical teacher alone": ("dense", dict(self_distill=False, dense=False)),
    "dense, multispectral teacher alone": ("dense", dict(alpha=0.0)),
    "paper": ("paper", PAPER),
    "pretrain without options": ("auto", None),
}
#: what 100 epochs are where a folder has less than two batches of 64, as both have
STEPS_OF_100_EPOCHS = 100


def trained(row, scenes, sensor, out, seed, steps) -> tuple:
    "An encoder by a preset, and the seconds it took."
    file, spent = out / "encoder.safetensors", out.with_name(f"{out.name}.txt")
    if not file.exists():
        shutil.rmtree(out, ignore_errors=True)  # one that was interrupted
        began, (preset, given) = time.monotonic(), ROWS[row]
        own = dict(size=SIZE, bs=12, steps=steps, precision="fp32")
        how = {} if given is None else own | given
        pretrain(scenes, out, sensor=sensor, preset=preset, seed=seed, **how)
        spent.write_text(f"{time.monotonic() - began:.0f}")
    return load_encoder(file), int(spent.read_text())


def probed(models, scenes, labels, seed, window, forest) -> list:
    "Macro-F1 and accuracy of pixels, of each model; all models have the same labels and the same split."
    first = next(iter(models.values()))
    sensor = first.sensors["ms"]
    scene = open_raster(scenes, sensor=sensor.name, bands=sensor.band_names)
    how = dict(modality="ms", layers=distill_layers(first), window=window)
    rows = {name: (e, how) for name, e in models.items()}
    found = scene_table(scene, labels, rows, seeds=(seed,), forest=forest, progress=None)
    kept = [r for r in found if r["metric"].startswith("pixel_") and r["encoder"] != "raw pixels"]
    return [(NAMES.get(r["encoder"], r["encoder"]), r["metric"][6:], r["mean"]) for r in kept]


def measure(key, work, bare) -> list:
    "Lines of the table for a run, and with `bare` those of random weights and of the forest."
    scenes, sensor, labels = PLACES[key["place"]](work)
    row, seed, steps = key["model"], key["seed"], key["steps"]
    encoder, seconds = trained(row, scenes, sensor, work / f"{row} {seed}", seed, steps)
    models = {row: encoder} | ({"random weights": random_copy(encoder, seed)} if bare else {})
    found = probed(models, scenes, labels, seed, key["window"], bare)
    own = lambda model: dict(seconds=seconds) if model == row else dict(steps=0, seconds=0)
    return [
        key | dict(model=model, metric=metric, score=round(score, 4)) | own(model)
        for model, metric, score in found
    ]


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--work", type=Path, default=Path("presets"), help="folder of the runs")
    p.add_argument("--out", type=Path, default=FILE.with_name("presets.csv"))
    p.add_argument("--places", nargs="+", default=list(PLACES), choices=list(PLACES))
    p.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=120)
    p.add_argument("--window", type=int, default=32, help="pixels of the windows that are probed")
    a = p.parse_args()
    rows = list(csv.DictReader(open(a.out))) if a.out.exists() else []
    for of in itertools.product(a.seeds, a.places, a.rows):
        key = dict(zip(("seed", "place", "model"), of), window=a.window, steps=a.steps)
        if ROWS[key["model"]][1] is None:
            key["steps"] = STEPS_OF_100_EPOCHS
        if any(all(r[k] == str(key[k]) for k in KEY) for r in rows):
            continue
        work = a.work / f"{key['place']}_{key['steps']}"
        work.mkdir(parents=True, exist_ok=True)
        beside = dict(key, model="forest", steps=0)
        bare = not any(all(r[k] == str(beside[k]) for k in KEY) for r in rows)
        new = measure(key, work, bare)
        rows += [{k: str(v) for k, v in r.items()} for r in new]
        write_table(rows, FIELDS, a.out)
        print(*new, sep="\n")


if __name__ == "__main__":
    main()
