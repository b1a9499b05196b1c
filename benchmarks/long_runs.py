"""What a long run loses beside training: waiting for the loader, writing checkpoints.

    python benchmarks/long_runs.py [--arch vit_tiny_patch16_224] [--bs 8] [--steps 12] \\
        [--workers 1] [--device cuda] [--save]

Trains DEO on the shipped scene (2 x 224 + 10 x 96, EfficientNet-Lite2 as the optical teacher)
and prints the share of the time that the loop waited for the loader, leaving the first two steps
out. Then it writes checkpoints of that run, after a history of a million steps, and prints the
time of one as a share of five minutes.
"""

import argparse
import statistics
import tempfile
import time

from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import set_seed
from record import record

from eo_brew.runs.checkpoints import CheckpointCallback, list_checkpoints
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods.deo import deo_learner
from eo_brew.runs.monitors import LoaderWait
from eo_brew.scenes.open import sample_scene
from eo_brew.app.demo import S2_GROUND_BANDS
from eo_brew.models.teachers import efficientnet_lite_teacher


class Measure(Callback):
    "Waiting and whole time of the steps after the second; then checkpoints."

    order = LoaderWait().order - 1

    def __init__(self, steps):
        self.steps = steps

    def after_batch(self):
        if self.train_iter == 2:
            self.start = time.perf_counter()
            self.before = self.loader_wait.wait
        if self.train_iter < self.steps + 2:
            return
        self.wait = self.loader_wait.wait - self.before
        self.total = time.perf_counter() - self.start
        self.write()
        raise CancelFitException

    def write(self):
        saver, r, n = self.checkpoint, self.recorder, 10**6
        r.losses = [0.5] * n
        r.lrs = [1e-4] * n
        self.schedule.hps = {"lr": [1e-4] * n, "wd": [0.04] * n}
        self.seconds = []
        for _ in range(5):
            t = time.perf_counter()
            saver.save()
            self.seconds.append(time.perf_counter() - t)
        self.size = list_checkpoints(saver.folder)[-1].stat().st_size


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--arch", default="vit_tiny_patch16_224")
    p.add_argument("--device", default="cpu")
    p.add_argument("--save", action="store_true")
    for name, default in (("bs", 8), ("steps", 12), ("workers", 1)):
        p.add_argument(f"--{name}", type=int, default=default)
    a = p.parse_args()
    set_seed(0)
    dls = eo_dataloaders(
        sample_scene(),
        sensor="sentinel2_l1c",
        bands=S2_GROUND_BANDS,
        size=256,
        bs=a.bs,
        n=2 * a.bs * (a.steps + 4),
        valid_pct=0.05,
        num_workers=a.workers,
        device=a.device,
    )
    with tempfile.TemporaryDirectory() as folder:
        learn = deo_learner(
            dls,
            a.arch,
            efficientnet_lite_teacher(),
            cbs=[
                LoaderWait(limit=1.0),
                CheckpointCallback(folder, minutes=1e6),
                measure := Measure(a.steps),
            ],
        )
        if a.device == "cuda":
            learn.to_bf16()
        with learn.no_logging(), learn.no_bar():
            learn.fit(1)
    wait, one = measure.wait / measure.total, statistics.median(measure.seconds)
    print(
        f"{a.arch}, batch {a.bs}, {a.device}, {a.workers} loader process(es), {measure.total / a.steps:.2f} s a step"
    )
    print(
        f"waiting for the loader   {wait:.2%} of the time of {a.steps} steps   (target: below 5%)"
    )
    print(
        f"checkpoint               {one:.2f} s for {measure.size / 1e6:.0f} MB = "
        f"{one / 300:.2%} of five minutes   (target: below 1%)"
    )
    if a.save:
        record(
            "loader wait",
            a.device,
            what=f"waiting for the loader, DEO step, {a.arch}, batch {a.bs}",
            ours=100 * wait,
            unit="% of the step",
            target=5.0,
            better="less",
        )
        record(
            "checkpoint",
            a.device,
            what=f"checkpoint every 5 minutes, {a.arch}, {measure.size / 1e6:.0f} MB, after a million steps",
            ours=one / 3,
            unit="% of the time",
            target=1.0,
            better="less",
        )


if __name__ == "__main__":
    main()
