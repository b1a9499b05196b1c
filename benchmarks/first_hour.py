"""Six folders as people have them: a few minutes of pretraining beside random weights and a forest on the pixels.

    EO_BREW_LAB=LAB python benchmarks/first_hour.py [--work DIR] [--sets olinda chips] [--seeds 0 1 2] [--steps 120]

The folders are those of `tests/own_folders.py`, the commands those of `tests/test_first_hour.py`: an encoder is
pretrained as `eo_brew pretrain` does it by itself, with the seed; its probe, that of random weights of the same seed
and the forest have the same labels and the same split. Heights are fine-tuned, from trained and from random weights.
Each line is written when it is known; what the table has, or DIR, is not computed again.
"""

import argparse
import csv
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from own_folders import ELSEWHERE, FOLDERS, LAB

from eo_brew.app.cli import main as eo_brew
from eo_brew.app.probe_command import _images
from eo_brew.data.tasks import height_dataloaders
from eo_brew.maps.predict import open_for
from eo_brew.methods.deo import distill_layers
from eo_brew.probes.compare import image_table, random_copy, scene_table
from eo_brew.scenes.open import open_raster
from eo_brew.tasks.finetune import load_model
from eo_brew.weights.header import encoder_info
from eo_brew.weights.save import load_encoder, save_encoder

FILE = Path(__file__).parents[1] / "eo_brew" / "samples" / "measured" / "first_hour.csv"
FIELDS = ("data", "seed", "model", "metric", "score", "seconds")
NAMES = {"run": "trained", "random encoder": "random weights", "random forest": "forest"}
NAMES |= {"random forest on these": "forest"}


def command(*words):
    "A command that has to succeed."
    words = [w for x in words for w in (x.split() if isinstance(x, str) else [str(x)])]
    if eo_brew(words):
        raise SystemExit(f"eo_brew {' '.join(words)} failed")


def offset_of(case) -> str:
    "The part of the reading options that the later commands take, too."
    return case["read"][case["read"].find("--offset") :] if "--offset" in case["read"] else ""


def trained(case, place, seed, steps) -> tuple:
    "The file of an encoder of this seed, and the seconds it took."
    run, spent = place / f"run{seed}", place / f"seconds{seed}.txt"
    if not (run / "encoder.safetensors").exists():
        shutil.rmtree(run, ignore_errors=True)  # one that was interrupted
        began = time.monotonic()
        more = ["--dsm", case["dsm"]] if "dsm" in case else []
        how = f"--bs 16 --steps {steps} --seed {seed} --quiet"
        command("pretrain", case["scenes"], case["read"], *more, how, "--out", run)
        spent.write_text(f"{time.monotonic() - began:.0f}")
    return run / "encoder.safetensors", float(spent.read_text())


def classes(case, file, seed):
    "Scores of the linear probe, of random weights and of a forest."
    encoder = load_encoder(file)
    how = dict(modality="ms", layers=distill_layers(encoder))
    rows = {"run": (encoder, how), "random encoder": (random_copy(encoder, seed), how)}
    if case["labels"] == "folder":
        images = _images(encoder, "ms", case["scenes"], "folder", {})
        return image_table(*images, rows, seeds=(seed,), progress=None)
    reading = dict(offset=float(offset_of(case).split()[1])) if offset_of(case) else {}
    scene = open_raster(open_for(case["scenes"], encoder, "ms", **reading))
    return scene_table(scene, case["labels"], rows, seeds=(seed,), progress=None)


def pixels_of(dl, most, seed):
    "Pixels (n,C) with a height, and the heights."
    found = []
    for d, y in dl:
        on = torch.isfinite(y)
        found.append((d["ms"].movedim(1, -1)[on].numpy(), y[on].numpy()))
    x, y = (np.concatenate(v) for v in zip(*found))
    some = np.random.default_rng(seed).permutation(len(y))[:most]
    return x[some], y[some]


def forest_of_heights(case, size, seed) -> float:
    "RMSE of a forest that is fitted on training windows, on the held-out ones of fine-tuning."
    from sklearn.ensemble import RandomForestRegressor

    options = dict(sensor="rgb", size=size, valid_pct=0.2, seed=seed)
    dls = height_dataloaders(case["scenes"], str(case["labels"]), **options)
    x, y = pixels_of(dls.train, 20_000, seed)
    model = RandomForestRegressor(60, min_samples_leaf=3, random_state=seed).fit(x, y)
    x, y = pixels_of(dls.valid, None, seed)
    return float(np.sqrt(np.mean((model.predict(x) - y) ** 2)))


def heights(case, file, place, seed):
    "RMSE on held-out windows after fine-tuning, from trained and from random weights, and of a forest."
    fresh = place / f"random{seed}.safetensors"
    save_encoder(random_copy(load_encoder(file), seed), fresh)
    rows = []
    for name, encoder in (("run", file), ("random encoder", fresh)):
        out = place / f"model_{name[:3]}{seed}.safetensors"
        how = f"--task height --steps 120 --seed {seed} --quiet --overwrite"
        command("finetune", encoder, case["scenes"], "--labels", case["labels"], how, "--out", out)
        done = encoder_info(out)["finetuned"]
        kept = next(s for s in done["stages"] if s["trained"] == done["kept"])
        rows.append(dict(encoder=name, metric="rmse", mean=kept["rmse"]))
    score = forest_of_heights(case, load_model(out).task["size"], seed)
    return rows + [dict(encoder="random forest", metric="rmse", mean=score)]


def measure(data, case, place, seed, steps) -> list:
    "Lines of the table."
    file, spent = trained(case, place, seed, steps)
    tall = case.get("task") == "height"
    found = heights(case, file, place, seed) if tall else classes(case, file, seed)
    pixels = any(r["metric"].startswith("pixel_") for r in found)
    kept = [r for r in found if r["metric"].startswith("pixel_") or not pixels]
    return [
        dict(
            data=data,
            seed=seed,
            model=NAMES.get(r["encoder"], r["encoder"]),
            metric=r["metric"].removeprefix("pixel_"),
            score=round(r["mean"], 4),
            seconds=round(spent) if r["encoder"] == "run" else 0,
        )
        for r in kept
    ]


def write_table(rows, fields, out):
    "All lines as CSV."
    with open(out, "w", newline="") as f:
        table = csv.DictWriter(f, fields, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write(rows, out):
    "All lines in the order of the sets."
    order = list(FOLDERS)
    write_table(sorted(rows, key=lambda r: (order.index(r["data"]), int(r["seed"]))), FIELDS, out)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--work", type=Path, default=Path("first_hour"), help="folder of the runs")
    p.add_argument("--sets", nargs="+", default=list(FOLDERS), choices=list(FOLDERS))
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--steps", type=int, default=120)
    p.add_argument("--out", type=Path, default=FILE)
    a = p.parse_args()
    rows = list(csv.DictReader(open(a.out))) if a.out.exists() else []
    for seed in a.seeds:
        for data in a.sets:
            have = any((r["data"], r["seed"]) == (data, str(seed)) for r in rows)
            if have or (data in ELSEWHERE and not (LAB / ELSEWHERE[data]).is_dir()):
                continue
            place = a.work / data
            place.mkdir(parents=True, exist_ok=True)
            case = FOLDERS[data](place, False)
            if note := case.get("note"):
                (case["scenes"] / "scene.toml").write_text(note)
            new = measure(data, case, place, seed, a.steps)
            rows += [{k: str(v) for k, v in r.items()} for r in new]
            write(rows, a.out)
            print(
                *(f"{r['data']} {r['seed']} {r['model']} {r['metric']} {r['score']}" for r in new),
                sep="\n",
            )


if __name__ == "__main__":
    main()
