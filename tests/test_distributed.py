"""Two processes (gloo) against one: gradients, whole runs, shares, checkpoints."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed
from torch.nn.parallel import DistributedDataParallel

from eo_brew.train.log import StepLog
from eo_brew.runs.checkpoints import CheckpointCallback, list_checkpoints
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods.deo import DEOLoss, DEOModel, deo_learner
from eo_brew.losses import mssdf
from eo_brew.runs.distributed import distribute
from eo_brew.models.encoder import create_encoder
from eo_brew.runs.faults import StopOnSignal
from eo_brew.views.masking import random_mask
from eo_brew.methods.mssdf import MSSDFLoss, MSSDFModel
from eo_brew.scenes.open import sample_scene
from eo_brew.runs.states import CheckpointError
from eo_brew.views.multicrop import MultiCrop
from processes import on_two

TINY = dict(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=1)


def mine(t, dim=0):  # this process's half of a batch
    return t.chunk(dist.get_world_size(), dim)[dist.get_rank()] if dist.is_initialized() else t


def compare(one, two, tolerance=1e-5):
    "Gradients of both processes equal those of one process."
    for grads in two:
        assert grads.keys() == one.keys()
        for k, g in grads.items():
            assert (g - one[k]).abs().max() <= tolerance * max(1.0, one[k].abs().max()), k


# -- gradients -------------------------------------------------------------------------------------


def deo_gradients(local=False):
    "DEO's whole loss for 8 samples in 3 views; each process takes its share of them."
    set_seed(0)
    encoder = create_encoder("vit_tiny_patch16_224", {"ms": 4, "rgb": 3}, **TINY)
    model = DEOModel(encoder, {"cls": 5, "mid": 6, "late": 7}, head_dim=8, hidden=16)
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(0.05 * torch.randn_like(p))
    sizes, B = (16, 16, 8), 8
    views = [{m: torch.randn(B, c, s, s) for m, c in (("ms", 4), ("rgb", 3))} for s in sizes]
    said = {
        "cls": torch.randn(2, B, 5),
        **{k: torch.randn(2, B, 4, w) for k, w in (("mid", 6), ("late", 7))},
    }
    views = [{m: mine(x) for m, x in v.items()} for v in views]
    said = {k: mine(v, 1) for k, v in said.items()}
    target = {
        "cls": said["cls"],
        **{k: said[k].flatten(0, 1).transpose(1, 2).unflatten(2, (2, 2)) for k in ("mid", "late")},
    }
    target["ms"] = model.teacher(torch.cat([v["ms"] for v in views[:2]])).unflatten(0, (2, -1))
    loss = DEOLoss()
    if local:
        loss.ms.local_cov = True
    wrapped = (
        DistributedDataParallel(model, broadcast_buffers=False) if dist.is_initialized() else model
    )
    loss(wrapped(views), target).backward()
    return {k: p.grad for k, p in model.named_parameters() if p.requires_grad}


def test_gradients_of_deo(tmp_path):
    compare(deo_gradients(), on_two(deo_gradients, tmp_path))


def test_a_local_coding_rate_is_another_loss(tmp_path):
    "What the sum over processes is for: without it the comparison above fails."
    with pytest.raises(AssertionError):
        compare(deo_gradients(), on_two(deo_gradients, tmp_path, True), 1e-3)


def mssdf_batch(mine):
    "Model, view, tokens and target of 8 samples of three modalities, of which a process takes what is its own."
    set_seed(0)
    names, B, N = {"ms": 4, "rgb": 3, "dem": 1}, 8, 9
    model = MSSDFModel(
        create_encoder(
            "vit_tiny_patch16_224",
            names,
            modality_embed=True,
            **{**TINY, "img_size": 24, "embed_dim": 16},
        ),
        depth=1,
        fusion_depth=1,
        proj=6,
    )
    view = {m: torch.randn(B, c, 24, 24) for m, c in names.items()}
    view |= {f"{m}_mask": random_mask(B, N, 0.6) for m in names} | {
        f"{m}_patch_valid": torch.rand(B, N) > 0.2 * (m == "ms") for m in names
    }
    view = {k: mine(v) for k, v in view.items()}
    tokens = {m: mine(torch.randn(B, N, model.encoder.width)) for m in names}
    return (
        model,
        view,
        tokens,
        {
            "tokens": tokens,
            "masks": {m: view[f"{m}_mask"] for m in names},
            "valid": {m: view[f"{m}_patch_valid"] for m in names},
        },
    )


def mssdf_gradients(local=False):
    "Of the terms that compare places with each other."
    model, view, tokens, target = mssdf_batch(mine)
    wrapped = (
        DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
        if dist.is_initialized()
        else model
    )
    crit = MSSDFLoss(
        dict(recon=0.0, modality=0.0)
    )  # means over valid places of a share: not what is gathered
    if local:
        mssdf.gather_rows = lambda x: x
    crit(wrapped([view], tokens), target).backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def test_gradients_of_mssdf(tmp_path):
    compare(mssdf_gradients(), on_two(mssdf_gradients, tmp_path))
    with pytest.raises(AssertionError):
        compare(mssdf_gradients(), on_two(mssdf_gradients, tmp_path / "local", True), 1e-3)


def mssdf_validation():
    "Each process has all samples, as fastai's validation here gives them."
    model, view, tokens, target = mssdf_batch(lambda t: t)
    crit = MSSDFLoss()
    with torch.no_grad():
        crit(model([view], tokens), target)
    return crit.parts


def test_validation_of_mssdf_counts_nothing_twice(tmp_path):
    compare(mssdf_validation(), on_two(mssdf_validation, tmp_path))


# -- whole runs ------------------------------------------------------------------------------------


class Look(Callback):
    "Which samples each step had."

    order = -50

    def before_fit(self):
        self.seen = []

    def before_batch(self):
        if self.training:
            self.seen.append(self.xb[0]["index"].tolist())


class Stop(Callback):
    order = 95

    def __init__(self, step):
        self.step = step

    def after_batch(self):
        if self.training and self.train_iter == self.step:
            raise KeyboardInterrupt


class Term(Callback):
    "SIGTERM for one of the processes."

    def __init__(self, rank, step):
        self.rank = rank
        self.step = step

    def before_step(self):
        if dist.get_rank() == self.rank and self.train_iter == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def run(folder, bs, stop=None, fixed=True, epochs=2, term=None):
    """DEO's self-distillation; `fixed`: views that do not depend on random numbers, and an
    optimizer that does not magnify rounding.
    """
    set_seed(0)
    dls = eo_dataloaders(
        sample_scene(),
        sensor="sentinel2_l1c",
        bands=["B02", "B03", "B04", "B08"],
        size=32,
        bs=bs,
        n=44,
        seed=0,
        device="cpu",
    )
    geometry = (
        dict(global_scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, photometric=False)
        if fixed
        else {}
    )
    views, look = (
        MultiCrop(n_local=0 if fixed else 1, global_size=16, local_size=8, **geometry),
        Look(),
    )
    learn = deo_learner(
        dls,
        "vit_tiny_patch16_224",
        None,
        views=views,
        hidden=16,
        head_dim=8,
        lr=0.05 if fixed else 1e-3,
        drop_path=0.0 if fixed else 0.2,
        cbs=[look, CheckpointCallback(folder, steps=1), StepLog(Path(folder) / "log.csv", every=2)],
        **TINY,
    )
    if fixed:
        learn.opt_func = partial(OptimWrapper, opt=torch.optim.SGD)
    learn.remove_cb(learn.progress) if hasattr(learn, "progress") else None
    learn.collapse_monitor.every = 3
    distribute(learn)
    if list_checkpoints(folder):
        learn.resume(folder)
    if stop:
        learn.add_cb(Stop(stop))
    if term:
        learn.add_cbs([StopOnSignal(), Term(*term)])
    try:
        with learn.no_logging():
            learn.fit(epochs)
    except KeyboardInterrupt:
        return look.seen
    except SystemExit as e:
        return e.code
    return dict(
        seen=look.seen,
        model=learn.model.state_dict(),
        loss=float(learn.recorder.losses[-1]),
        values=[float(v) for v in learn.recorder.values[-1]],
        monitor=learn.collapse_monitor.log,
    )


def close(a, b, tolerance=1e-4):
    "Ten steps of rounding apart; they moved a thousand times as far."
    for k, v in a.items():
        if v.is_floating_point():
            assert (v - b[k]).abs().max() <= tolerance, k


def test_a_run_of_two_processes_is_that_of_one(tmp_path):
    one = run(tmp_path / "one", 8)
    two = on_two(run, tmp_path / "two", tmp_path / "shared", 4)
    assert (
        len(one["seen"]) > 6
        and [a + b for a, b in zip(two[0]["seen"], two[1]["seen"], strict=True)] == one["seen"]
    )
    for r in two:
        close(one["model"], r["model"])
    assert all(
        torch.equal(v, two[1]["model"][k]) for k, v in two[0]["model"].items()
    )  # student and EMA teacher alike
    assert any(k.startswith("teacher.") for k in one["model"])
    assert [r["step"] for r in one["monitor"]] == [0, 3, 6] and two[0]["monitor"] == two[1][
        "monitor"
    ]  # looks at all samples, everywhere
    for a, b in zip(one["monitor"], two[0]["monitor"]):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)
    assert two[0]["values"][1:] == two[1]["values"][1:]  # validation: all of it, everywhere
    assert (tmp_path / "shared" / "log.csv").read_text().count("\n") == len(
        one["seen"]
    ) + 1  # one process writes


def test_checkpoints_are_read_by_any_number_of_processes(tmp_path):
    one = run(tmp_path / "one", 8)
    for name, first, then in (("2to1", 2, 1), ("1to2", 1, 2)):
        shared = tmp_path / name
        for world, stop in ((first, 6), (then, None)):
            res = (
                on_two(run, tmp_path / f"p{name}{world}", shared, 4, stop)
                if world == 2
                else [run(shared, 8, stop)] * 2
            )
        for r in res:
            close(one["model"], r["model"])
    with pytest.raises(CheckpointError, match="give each of the 1 processes bs=8"):
        run(tmp_path / "one", 4)


def test_the_last_checkpoint_of_two_processes_is_resumed(tmp_path):
    "It is written when the loader is whole again; nothing is left to do."
    first, again = (on_two(run, tmp_path / name, tmp_path / "shared", 4) for name in "ab")
    for a, b in zip(first, again):
        assert b["seen"] == [] and all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())


def first_box():
    set_seed(0)
    dls = eo_dataloaders(
        sample_scene(),
        sensor="sentinel2_l1c",
        bands=["B02", "B03", "B04"],
        size=32,
        bs=4,
        n=44,
        seed=0,
        device="cpu",
    )
    views = MultiCrop(n_local=0, global_size=16, generator=torch.Generator().manual_seed(3))

    class Look(Callback):
        def before_batch(self):
            self.learn.box = self.xb[0][0]["box"]
            raise KeyboardInterrupt

    learn = distribute(
        deo_learner(
            dls,
            "vit_tiny_patch16_224",
            None,
            views=views,
            hidden=16,
            head_dim=8,
            cbs=[Look()],
            **TINY,
        )
    )
    try:
        learn.fit(1)
    except KeyboardInterrupt:
        return learn.box


def test_a_generator_of_the_views_differs_between_processes(tmp_path):
    a, b = on_two(first_box, tmp_path)
    assert not torch.equal(a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "A run of two processes that nobody stops; random views and stochastic depth, which differ between the processes."
    folder = tmp_path_factory.mktemp("whole")
    return on_two(run, folder / "a", folder / "whole", 4, None, False)


def goes_on(whole, tmp_path, done):
    again = on_two(run, tmp_path / "c", tmp_path / "cut", 4, None, False)
    for w, a in zip(whole, again):
        assert all(torch.equal(v, a["model"][k]) for k, v in w["model"].items())
        assert w["seen"][done:] == a["seen"]


def test_two_processes_resume_bit_for_bit(whole, tmp_path):
    on_two(run, tmp_path / "b", tmp_path / "cut", 4, 6, False)
    goes_on(whole, tmp_path, 6)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_is_told_to_stop(whole, tmp_path, rank):
    "All leave after the same step, with code 75 and a checkpoint."
    assert on_two(run, tmp_path / "b", tmp_path / "cut", 4, None, False, 2, (rank, 6)) == [75, 75]
    assert [c.stem for c in list_checkpoints(tmp_path / "cut")][-1] == "step-00000007"
    goes_on(whole, tmp_path, 7)


def other_data():
    set_seed(0)
    dls = eo_dataloaders(
        sample_scene(),
        sensor="sentinel2_l1c",
        bands=["B02", "B03", "B04"],
        size=32,
        bs=4,
        n=40 + 8 * dist.get_rank(),
        seed=0,
        device="cpu",
    )
    learn = distribute(
        deo_learner(
            dls,
            "vit_tiny_patch16_224",
            None,
            views=MultiCrop(n_local=0, global_size=16),
            hidden=16,
            head_dim=8,
            **TINY,
        )
    )
    try:
        learn.fit(1)
    except ValueError as e:
        return str(e)


def test_processes_that_disagree_about_the_data_say_so(tmp_path):
    for said in on_two(other_data, tmp_path):
        assert "different (samples, bs)" in said and "same scenes, seed and bs" in said


@pytest.mark.slow
def test_the_launcher(tmp_path):
    "The script of the documentation's shape, started by torchrun."
    (tmp_path / "train.py").write_text(f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_distributed import run
from fastai.torch_core import rank_distrib
import torch
torch.set_num_threads(1)
res = run({str(tmp_path / "run")!r}, 4)
torch.save(res, {str(tmp_path)!r} + f'/res{{rank_distrib()}}.pt')
import os, torch.distributed as dist
dist.barrier(); os._exit(0)                          # see processes.py
""")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(tmp_path / "train.py"),
        ],
        check=True,
        timeout=900,
    )
    one = run(tmp_path / "one", 8)
    for r in range(2):
        close(one["model"], torch.load(tmp_path / f"res{r}.pt", weights_only=False)["model"])
