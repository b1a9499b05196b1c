"""What a training step does besides the right numbers: it asks the device for nothing, it goes
through `torch.compile` once, and it can be spread over several batches.
"""

import shutil
from contextlib import nullcontext

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback import progress  # noqa: F401  (no_bar)
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from fastai.torch_core import set_seed

from eo_brew.train.log import StepLog
from eo_brew.train.optim import adamw
from eo_brew.runs.checkpoints import CheckpointCallback
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods.deo import deo_learner
from eo_brew.runs.dry_run import BF16, compile_blocks
from eo_brew.runs.faults import StopOnNaN, StopOnSignal
from eo_brew.runs.monitors import LoaderWait
from eo_brew.methods.mssdf import mssdf_learner
from eo_brew.scenes.open import sample_scene
from eo_brew.models.teachers import VFMTeacher
from eo_brew.views.multicrop import MultiCrop

BANDS = ["B02", "B03", "B04", "B08", "B11"]
TINY = dict(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=1)


SCENE = {}  # read once for all runs


def loaders(n=28, bs=4, size=32, **kwargs):
    set_seed(0)
    dls = eo_dataloaders(
        sample_scene(),
        sensor="sentinel2_l1c",
        bands=BANDS,
        size=size,
        bs=bs,
        n=n,
        seed=0,
        device="cpu",
        **kwargs,
    )
    dls.train_ds.cache = dls.valid_ds.cache = SCENE
    return dls


def teacher():
    return VFMTeacher("vit_tiny_patch16_224", pretrained=False, **{**TINY, "embed_dim": 16})


def deo(dls, vfm=None, **kwargs):
    views = (
        dict(views=MultiCrop(n_local=1, global_size=16, local_size=8))
        if not kwargs.get("cache")
        else {}
    )
    return deo_learner(
        dls, "vit_tiny_patch16_224", vfm, hidden=16, head_dim=8, lr=1e-3, **views, **TINY, **kwargs
    )


def mssdf(dls, vfm=None, **kwargs):
    return mssdf_learner(
        dls,
        "vit_tiny_patch16_224",
        vfm=vfm,
        lr=1e-3,
        decoder_depths=(1, 1),
        **{**TINY, "img_size": 32, "embed_dim": 16},
        **kwargs,
    )


# -- nothing is asked of the device ----------------------------------------------------------------


class Done(Exception):
    pass


class Steps(Callback):
    "Three steps where fastai would go through the batches."

    order = 1000

    def before_train(self):
        # the first step may look
        self.learn.train_iter = 1
        self.learn.n_iter = 3
        self.lazy_loss.shown = torch.zeros(())
        batches = [b for b, _ in zip(self.dl, range(3))]
        for i, b in enumerate(batches):
            self.learn.one_batch(i, b)
        raise Done("three steps")


@pytest.mark.parametrize("make", [deo, mssdf])
def test_a_step_asks_the_device_for_nothing(make, tmp_path, monkeypatch):
    """It runs on torch's device without values, where `.item()`, `.cpu()` and whatever depends on a
    value are errors. A GPU would wait for them.
    """
    dls = loaders()
    often = dict(every=1000)
    learn = make(
        dls,
        teacher(),
        cbs=[
            StepLog(tmp_path / "log.csv", **often),
            LoaderWait(),
            StopOnNaN(**often),
            CheckpointCallback(tmp_path),
            StopOnSignal(),
        ],
    )
    learn.opt_func = lambda params, **kw: OptimWrapper(
        params, opt=torch.optim.AdamW, **{k: v for k, v in kw.items() if k != "betas"}
    )
    learn.vfm_targets.vfm.checked = True  # so may the first batch
    learn.views.views._seen = True
    learn.model.to("meta")
    dls.device = torch.device("meta")
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: nullcontext()
    )  # which does not know this device
    with pytest.raises(Done), learn.no_logging(), learn.no_bar():
        learn.fit(1, cbs=Steps())
    assert learn.loss.device.type == "meta" and learn.train_iter == 4


@pytest.mark.cuda
@pytest.mark.parametrize("make", [deo, mssdf])
def test_a_step_asks_a_gpu_for_nothing(make, tmp_path):
    "The same where there is one, by torch's own watch, in bf16."
    dls = loaders()
    dls.device = torch.device("cuda")
    learn = make(
        dls,
        teacher(),
        cbs=[StepLog(tmp_path / "log.csv", every=1000), LoaderWait(), StopOnNaN(every=1000)],
    ).to_bf16()

    class Watch(Callback):
        order = -1000

        def before_batch(self):
            if self.train_iter == 2:
                torch.cuda.set_sync_debug_mode("error")

        def after_train(self):
            torch.cuda.set_sync_debug_mode("default")

    with learn.no_logging():
        learn.fit(1, cbs=Watch())


# -- compiled --------------------------------------------------------------------------------------


def steps(learn, n=1):
    with learn.no_logging(), learn.no_bar():
        learn.fit(n)
    return [float(l) for l in learn.recorder.losses]


@pytest.mark.parametrize("make", [deo, mssdf])
def test_compiled_once_for_all_view_sizes(make):
    "Blocks are compiled in the first epoch and not again; the losses are those of the run that was not."
    import torch._dynamo
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    plain = steps(make(loaders()), 2)
    learn, counter, seen = make(loaders()), CompileCounter(), []
    compile_blocks(learn.model, backend=counter)

    class Count(Callback):
        def after_batch(self):
            seen.append(counter.frame_count)

    learn.add_cb(Count())
    assert steps(learn, 2) == pytest.approx(plain, rel=1e-4)
    first = seen[len(seen) // 2 - 1]
    assert first > 0 and seen[-1] == first


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.slow
def test_compiled_for_real():
    "By torch's own compiler for the CPU."
    plain, learn = steps(deo(loaders(n=20))), deo(loaders(n=20))
    compile_blocks(learn.model)
    assert steps(learn) == pytest.approx(plain, rel=1e-3)


# -- spread over several batches -------------------------------------------------------------------


@pytest.mark.parametrize("make", [deo, mssdf])
def test_accumulated_gradients(make):
    "Weights and EMA teacher move every second batch; schedules go by the share of the run, as without."

    class Look(Callback):
        order = 95

        def before_fit(self):
            self.moved = []
            self.last = None

        def after_batch(self):
            if not self.training:
                return
            now = [
                torch.cat([p.detach().flatten() for p in m.parameters()])
                for m in (self.model.student, self.model.teacher)
            ]
            if self.last:
                self.moved.append(tuple(not torch.equal(a, b) for a, b in zip(now, self.last)))
            self.last = now

    learn, whole = make(loaders(), cbs=[GradientAccumulation(8), look := Look()]), make(loaders())
    steps(learn, 2)
    steps(whole, 2)
    assert len(look.moved) > 6 and look.moved == [(i % 2 == 0,) * 2 for i in range(len(look.moved))]
    assert (
        learn.recorder.hps["lr"] == whole.recorder.hps["lr"]
        and learn.recorder.hps["wd"] == whole.recorder.hps["wd"]
    )


def test_accumulated_gradients_are_those_of_the_batches():
    "Half the sum of two batches' gradients, where no loss compares samples of different batches."
    x = torch.randn(8, 3)

    def grads(bs, *cbs):
        set_seed(0)
        dl = lambda: TfmdDL([(a, a.sum()[None]) for a in x], bs=bs, num_workers=0)
        learn, kept = (
            Learner(
                DataLoaders(dl(), dl(), device="cpu"),
                torch.nn.Linear(3, 1),
                loss_func=torch.nn.MSELoss(),
                opt_func=adamw,
                cbs=list(cbs),
            ),
            [],
        )

        class Keep(Callback):
            def before_step(self):
                kept.append(self.model.weight.grad.clone())

        learn.add_cb(Keep())
        steps(learn)
        return kept

    torch.testing.assert_close(grads(4, GradientAccumulation(8))[-1], grads(8)[0])


# -- memory and precision --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make,arch", [(deo, None), (mssdf, None), (deo, "swin_tiny_patch4_window7_224")]
)
def test_activation_checkpointing_changes_no_loss(make, arch):
    "With stochastic depth, whose random numbers the second computation repeats."

    def one():
        if arch is None:
            return make(loaders(n=16), drop_path=0.3)
        return deo_learner(
            loaders(n=16, size=64),
            arch,
            None,
            views=MultiCrop(n_local=1, global_size=64, local_size=32),
            hidden=16,
            head_dim=8,
            lr=1e-3,
            img_size=64,
            window_size=4,
            embed_dim=12,
            depths=(1, 1, 2, 1),
            num_heads=(1, 1, 2, 2),
        )

    plain, learn = steps(one()), one()
    learn.model.encoder.set_grad_checkpointing()
    assert steps(learn) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("make", [deo, mssdf])
def test_bf16(make):
    "The student computes in half precision; the loss is near the one in fp32, and weights stay fp32."

    def first(*cbs):
        dls, vfm = loaders(n=16), teacher()
        learn = make(dls, vfm, cbs=list(cbs))
        losses = steps(learn)
        assert all(
            p.dtype == torch.float32 and p.isfinite().all() for p in learn.model.parameters()
        )
        return losses[0]

    half, plain = first(BF16()), first()
    assert half != plain and half == pytest.approx(plain, rel=0.05)
