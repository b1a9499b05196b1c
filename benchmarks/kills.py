"""Is a run that is killed and stopped over and over the run that nobody touched?

    OMP_NUM_THREADS=1 python benchmarks/kills.py FOLDER [--kills 50] [--stops 20] [--steps 300]

Pretrains a small DEO encoder on the shipped scene twice, by `pretrain` with everything that it
switches on: once from end to end, once in as many lives as there are signals. A life ends by
SIGKILL, at any moment from the start of the process on, or by SIGTERM or SIGINT to the whole
process group (loader workers included), sometimes three times in a row, between two steps or in
the middle of one. Every life goes on from what the one before has left. Afterwards weights,
optimiser and log are compared bit for bit.

The script itself may be stopped: called again with the same FOLDER it goes on. It prints one line
a life and leaves `lives.json` and `kills.json` in FOLDER. Some ten minutes on one core.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file

import eo_brew.app.pretrain as app
from eo_brew.runs.checkpoints import CheckpointCallback, list_checkpoints, newest_checkpoint
from eo_brew.runs.faults import EXIT_STOPPED
from eo_brew.scenes.open import sample_scene
from eo_brew.views.multicrop import MultiCrop
from eo_brew.weights.header import encoder_info

PROCESSES = multiprocessing.get_context("fork")  # everything is imported already
TINY = dict(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=1, hidden=16, head_dim=8)
STEPS_OF_AN_EPOCH = 20
app.CheckpointCallback = partial(CheckpointCallback, steps=1)  # a user's are minutes apart


class Tell(Callback):
    "Say when a step begins."

    order = 80

    def __init__(self, pipe):
        self.pipe = pipe

    def before_batch(self):
        if self.training:
            self.pipe.send(self.train_iter)


def run(folder, steps, workers, pipe=None):
    "One life: from the newest checkpoint on, if there is one."
    torch.set_num_threads(1)
    with open(folder.with_suffix(".txt"), "a") as out, redirect_stdout(out), redirect_stderr(out):
        app.pretrain(
            sample_scene(),
            folder,
            bands=["B02", "B03", "B04", "B08", "B11"],
            arch="vit_tiny_patch16_224",
            vfm="none",
            epochs=steps // STEPS_OF_AN_EPOCH,
            size=32,
            bs=4,
            resume=folder.exists(),
            data=dict(
                n=4 * STEPS_OF_AN_EPOCH + 8, num_workers=workers, valid_pct=0.05, device="cpu"
            ),
            views=MultiCrop(n_local=1, global_size=16, local_size=8),
            preset=dict(),
            cbs=[Tell(pipe)] if pipe else [],
            **TINY,
        )


def in_a_group(*args):
    os.setsid()
    run(*args)


def life(folder, steps, number, kill):
    "Start a process and end it: what was done to it, and what is left."
    rng = random.Random(number)
    workers = 2 if number % 5 == 0 or (not kill and number % 2) else 0
    hear, tell = PROCESSES.Pipe(duplex=False)
    p = PROCESSES.Process(target=in_a_group, args=(folder, steps, workers, tell))
    p.start()
    tell.close()
    if kill and rng.random() < 0.2:
        time.sleep(rng.random())  # while it starts
    else:
        for _ in range(1 + rng.randint(0, 4)):
            hear.recv()
        time.sleep(0.1 * rng.random())
    name = "SIGKILL" if kill else rng.choice(["SIGTERM", "SIGINT"])
    times = 1 if kill or rng.random() < 0.6 else 3
    for _ in range(times):
        (os.kill if kill else os.killpg)(p.pid, signal.Signals[name])
    p.join()
    files = list_checkpoints(folder / "checkpoints")
    left = int(files[-1].stem.split("-")[1]) if files else 0
    return dict(signal=name, times=times, workers=workers, code=p.exitcode, step=left)


def log_of(folder):
    "Rows of the log without what is a time."
    with open(folder / "log.csv", newline="") as f:
        times = ("images_per_s", "wait", "seconds", "time")
        return [{k: v for k, v in r.items() if k not in times} for r in csv.DictReader(f)]


def differences(a, b, path=""):
    "Places where two states differ."
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [path]
    if isinstance(a, dict) and a.keys() == b.keys():
        return [d for k in a for d in differences(a[k], b[k], f"{path}/{k}")]
    if isinstance(a, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}/{i}")]
    return [] if a == b else [path]


def compare(whole, hurt):
    "What is not the same in two finished runs."
    found = []
    a, b = (newest_checkpoint(f / "checkpoints") for f in (whole, hurt))
    for part in ("where", "model", "opt", "rng", "order", "recorder"):
        found += differences(a[part], b[part], part)
    if log_of(whole) != log_of(hurt):
        found.append("log.csv")
    # not byte by byte: safetensors writes the two texts of its header in any order
    a, b = (f / "encoder.safetensors" for f in (whole, hurt))
    found += differences(load_file(a), load_file(b), "encoder.safetensors")
    found += differences(encoder_info(a), encoder_info(b), "encoder.safetensors")
    return found


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("folder", type=Path)
    for name, default in (("kills", 50), ("stops", 20), ("steps", 300)):
        p.add_argument(f"--{name}", type=int, default=default)
    a = p.parse_args()
    a.folder.mkdir(parents=True, exist_ok=True)
    whole, hurt, file = a.folder / "whole", a.folder / "hurt", a.folder / "lives.json"
    if not (whole / "encoder.safetensors").exists():
        run(whole, a.steps, 0)
    lives = json.loads(file.read_text()) if file.exists() else []
    kinds = [True] * a.kills + [False] * a.stops
    random.Random(0).shuffle(kinds)
    for number in range(len(lives), len(kinds)):
        start = time.monotonic()
        lives.append(life(hurt, a.steps, number, kinds[number]))
        lives[-1]["seconds"] = round(time.monotonic() - start, 1)
        file.write_text(json.dumps(lives))
        print(number, lives[-1], flush=True)
        if (hurt / "encoder.safetensors").exists():
            sys.exit("the run was over before its last signal: give it more --steps")
    if not (hurt / "encoder.safetensors").exists():
        run(hurt, a.steps, 0)
    wrong = [x for x in lives if x["code"] != (-9 if x["signal"] == "SIGKILL" else EXIT_STOPPED)]
    back = sum(y["step"] < x["step"] for x, y in zip(lives, lives[1:]))
    left = [str(f.relative_to(hurt)) for f in hurt.rglob(".*")]
    summary = dict(
        signals=dict(Counter(x["signal"] for x in lives)),
        steps=a.steps,
        other_exit_codes=wrong,
        lives_that_lost_a_checkpoint=back,
        left_over=left,
        different=compare(whole, hurt),
        seconds=sum(x["seconds"] for x in lives),
    )
    (a.folder / "kills.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    sys.exit(1 if wrong or back or left or summary["different"] else 0)


if __name__ == "__main__":
    main()
