"What `limit.py` and `gpu.py` share: learners of both methods on the shipped scene, and steps of them outside an epoch."

import time

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import set_seed

import eo_brew.runs.precision  # noqa: F401  (adds `.to_precision`)
from eo_brew.app.demo import S2_GROUND_BANDS
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods.deo import deo_learner
from eo_brew.methods.mssdf import mssdf_learner
from eo_brew.models.teachers import efficientnet_lite_teacher
from eo_brew.scenes.open import sample_scene


def loaders(bs, size, device, bands=S2_GROUND_BANDS):
    "Random windows of the shipped scene; enough for a few batches."
    options = dict(bands=bands, size=size, bs=bs, n=max(16, 3 * bs), valid_pct=0.1, min_valid=0)
    rgb = dict(modalities=dict(rgb="rgb"))
    return eo_dataloaders(sample_scene(), "sentinel2_l1c", device=device, **options, **rgb)


def learner_of(method, arch, dls, precision="fp32", **kwargs):
    "A learner of that method in its paper's form, the same weights every time."
    set_seed(0)
    if method == "deo":
        kwargs["vfm"] = efficientnet_lite_teacher().to(dls.device)
    make = dict(deo=deo_learner, mssdf=mssdf_learner)[method]
    learn = make(dls, arch, **kwargs).to_precision(precision)
    learn.model.to(dls.device)
    return learn


def in_fit(learn, job):
    "Call `job(step)` where training stands; `step()` is a step by fastai's own loop, with all callbacks."
    batch, found = learn.dls.train.one_batch()[0], []

    class Once(Callback):
        order = 200

        def before_train(self):
            self.learn.n_iter = 10**6
            found.append(job(lambda: self.learn.one_batch(0, (dict(batch),))))
            raise CancelFitException()

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Once())
    return found[0]


def seconds(f, repeats, device="cpu", clock=None):
    "The median of `repeats` calls, after one that does not count."
    took = []
    clock = clock or (time.process_time if str(device) == "cpu" else time.perf_counter)
    wait = torch.cuda.synchronize if str(device).startswith("cuda") else lambda: None
    for _ in range(repeats + 1):
        wait()
        t = clock()
        f()
        wait()
        took.append(clock() - t)
    return sorted(took[1:])[repeats // 2]
