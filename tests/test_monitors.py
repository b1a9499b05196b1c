"""Monitors: the numbers, when they look, and that they change nothing."""

import csv
import warnings

import pytest
import torch
from torch import nn
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner

from eo_brew.runs.monitors import (
    CollapseMonitor,
    LoaderWait,
    PeriodicProbe,
    effective_rank,
    feature_health,
)


class Student(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Linear(4, 8)

    def forward(self, d):
        return {"ms": self.f(d["ms"])[None]}


def spread(p, y):
    z = nn.functional.normalize(p["ms"][0], dim=-1)
    return (z @ z.T).square().mean()


def shrink(p, y):
    return (p["ms"][0] - 1).square().mean()


def learner(loss, *cbs, n=32):
    torch.manual_seed(0)
    dl = lambda: DataLoader([({"ms": torch.randn(4)}, 0) for _ in range(n)], bs=8, num_workers=0)
    learn = Learner(DataLoaders(dl(), dl(), device="cpu"), Student(), loss_func=loss, cbs=list(cbs))
    learn.remove_cb(learn.progress) if hasattr(learn, "progress") else None
    return learn


def fit(learn, *a):
    with learn.no_logging():
        learn.fit(*a)


def test_closed_forms():
    assert effective_rank(torch.eye(7)).item() == pytest.approx(7)
    rank, std, cos = feature_health(torch.ones(6, 3)).tolist()
    assert (rank, std, cos) == (
        pytest.approx(1, abs=1e-4),
        pytest.approx(0, abs=1e-5),
        pytest.approx(1, abs=1e-5),
    )


def test_a_cloud_around_a_point_counts_as_collapse():
    "A centred rank would call the noise around one point healthy."
    z = torch.ones(64, 16) + 1e-3 * torch.randn(64, 16)
    assert feature_health(z)[0] < 1.1 and effective_rank(z - z.mean(0)) > 10


def test_the_host_waits_only_every_n_steps(monkeypatch):
    calls = []
    import eo_brew.runs.monitors as m

    real = m.feature_health
    monkeypatch.setattr(m, "feature_health", lambda z: calls.append(1) or real(z))
    cb = CollapseMonitor(every=5)
    fit(learner(spread, cb), 3)  # 12 steps
    assert len(calls) == 3 and [r["step"] for r in cb.log] == [0, 5, 10]


def test_it_stops_a_collapsing_run_and_says_what_to_try():
    cb = CollapseMonitor(every=2, grace=4, patience=2, stop=True, max_cosine=0.9, min_rank=1.2)
    learn = learner(shrink, cb)
    with pytest.warns(UserWarning, match="lower learning rate"):
        fit(learn, 200, 0.05)
    assert cb.warned and learn.train_iter < 800


def test_nan_features_are_an_alarm():
    """The first step makes the weights NaN; the look at the second stops the run, by a warning and
    not by an error of the decomposition.
    """
    cb = CollapseMonitor(every=1, grace=0, patience=1, stop=True)
    learn = learner(lambda p, y: p["ms"].sum() * float("nan"), cb)
    with pytest.warns(UserWarning, match="features are not finite at step 1"):
        fit(learn, 3)
    assert learn.train_iter == 1 and [r["rank"] == r["rank"] for r in cb.log] == [True, False]


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match=r"the model's output has \['ms'\]"):
        fit(learner(spread, CollapseMonitor(key="rgb")), 1)


def test_what_was_seen_goes_into_checkpoints(tmp_path):
    "Looks, alarms and probes of the part before are there after a resume, and none is made for epochs passed over."
    from eo_brew.train.optim import adamw
    from eo_brew.runs.checkpoints import CheckpointCallback

    def run(epochs, stop=None):
        cb, probe = CollapseMonitor(every=2, grace=2, patience=1, max_cosine=-1.0), Counted()
        learn = learner(
            spread,
            cb,
            probe,
            CheckpointCallback(tmp_path, steps=1),
            *([Stop(stop)] if stop else []),
        )
        learn.opt_func = adamw
        if stop is None:
            learn.resume(tmp_path)
        try:
            fit(learn, epochs)
        except KeyboardInterrupt:
            pass
        return cb, probe

    class Stop(Callback):
        order = 95

        def __init__(self, step):
            self.step = step

        def after_batch(self):
            if self.training and self.train_iter == self.step:
                raise KeyboardInterrupt

    class Counted(PeriodicProbe):
        def __init__(self):
            self.every = 1
            self.log = []
            self.images = []

        def _look(self, epoch):
            self.log.append(dict(epoch=epoch, rank=1.0))
            self.images.append((epoch, torch.rand(2, 3, 3, 3)))

    with pytest.warns(UserWarning, match="collapsed"):
        first, seen = run(4, 10)
    assert first.warned and [r["epoch"] for r in seen.log] == [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the alarm has been given
        again, probe = run(4)
    assert [r["step"] for r in again.log] == list(range(0, 16, 2)) and again.log[:5] == first.log
    assert [r["epoch"] for r in probe.log] == [0, 1, 2, 3, 4] and torch.equal(
        probe.images[1][1], seen.images[1][1]
    )


def test_loader_wait_adds_up():
    cb = LoaderWait(limit=2.0)
    fit(learner(spread, cb), 2)
    assert len(cb.log) == 2 and all(0 <= r["wait"] <= r["total"] for r in cb.log)


def test_periodic_probe_keeps_training_flags():
    from eo_brew.models.encoder import create_encoder

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = create_encoder(
                "vit_tiny_patch16_224",
                {"ms": 2},
                img_size=16,
                patch_size=8,
                depth=2,
                embed_dim=16,
                num_heads=1,
            )

        def forward(self, d):
            return self.encoder(d["ms"]).cls

    dl = lambda: DataLoader(
        [({"ms": torch.randn(2, 16, 16)}, 0) for _ in range(8)], bs=4, num_workers=0
    )
    cb = PeriodicProbe({"ms": torch.randn(8, 2, 16, 16)}, torch.arange(8) % 2, k=3)
    learn = Learner(
        DataLoaders(dl(), dl(), device="cpu"),
        Net(),
        loss_func=lambda p, y: p.square().mean(),
        cbs=cb,
    )
    fit(learn, 1)
    assert [r["epoch"] for r in cb.log] == [0, 1] and len(cb.images) == 2 and "knn" in cb.log[0]
    assert all(p.requires_grad for p in learn.model.parameters())


# -- TensorBoard and W&B ---------------------------------------------------------------------------


def watched(folder, *cbs):
    "Two epochs of DEO, tiny, with a log every three steps, as a user writes it."
    from fastai.torch_core import set_seed
    from eo_brew.train.log import StepLog
    from eo_brew.data.dataloaders import eo_dataloaders
    from eo_brew.methods.deo import deo_learner
    from eo_brew.scenes.open import sample_scene
    from eo_brew.views.multicrop import MultiCrop

    set_seed(0)
    dls = eo_dataloaders(
        sample_scene(),
        sensor="sentinel2_l1c",
        bands=["B02", "B03", "B04", "B11"],
        size=32,
        bs=4,
        n=28,
        device="cpu",
    )
    learn = deo_learner(
        dls,
        "vit_tiny_patch16_224",
        None,
        views=MultiCrop(n_local=1, global_size=16, local_size=8),
        hidden=16,
        head_dim=8,
        cbs=[StepLog(folder / "log.csv", every=3), LoaderWait(limit=1.0), *cbs],
        img_size=16,
        patch_size=8,
        embed_dim=12,
        depth=2,
        num_heads=1,
    )
    fit(learn, 2)
    with open(folder / "log.csv", newline="") as f:
        return learn, list(csv.DictReader(f))


def test_tensorboard(tmp_path):
    "fastai's own callback: what the CSV has is in the event file too."
    pytest.importorskip("tensorboard")
    from fastai.callback.tensorboard import TensorBoardCallback
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    learn, rows = watched(
        tmp_path, TensorBoardCallback(tmp_path / "tb", trace_model=False, log_preds=False)
    )
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert {"train_loss", "agreement", "expansion", "lr_0", "wd_0"} <= set(events.Tags()["scalars"])
    for name in rows[0].keys() - {"step"}:
        want = [(int(r["step"]), float(r[name])) for r in rows if r[name]]
        assert [(e.step, e.value) for e in events.Scalars(f"step/{name}")] == [
            (s, pytest.approx(v, rel=1e-6)) for s, v in want
        ], name
    assert {
        "step/ema_distance",
        "step/grad_norm",
        "step/rank",
        "step/images_per_s",
        "step/wait",
    } <= set(events.Tags()["scalars"])


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from fastai.callback.wandb import WandbCallback

    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="eo_brew")
    try:
        learn, rows = watched(tmp_path, WandbCallback(log_preds=False))
        summary = dict(run.summary)
    finally:
        run.finish()
    last = next(r for r in reversed(rows) if r["ema_distance"])
    assert (
        summary["step/ema_distance"] == pytest.approx(float(last["ema_distance"]), rel=1e-5)
        and "step/grad_norm" in summary
    )
    assert summary["train_loss"] == pytest.approx(
        float(learn.recorder.losses[-1]), rel=0.1
    ) and list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
