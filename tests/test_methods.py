"""Every registered method: its contract, presets, the demo's path; methods and terms of one's own."""

import csv

import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from torch import nn

from eo_brew.app.demo import demo_learner, fit_steps, sample_settings
from eo_brew.app.pretrain import pretrain
from eo_brew.core.sensors import with_rgb
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods import registry
from eo_brew.methods.assemble import Facts, Schedule, assemble, take_options
from eo_brew.methods.deo import deo_learner
from eo_brew.methods.deo_presets import choose_deo
from eo_brew.methods.mssdf import choose_mssdf
from eo_brew.methods.registry import PretrainModel, get_method, list_methods, register_method
from eo_brew.models.encoder import Encoder, create_encoder
from eo_brew.models.teachers import EMATeacher
from eo_brew.scenes.open import sample_scene
from eo_brew.train.log import StepLog
from eo_brew.train.targets import TargetNorm
from eo_brew.views.masking import random_mask
from eo_brew.weights.save import load_encoder, save_encoder

SMALL = dict(
    arch="vit_tiny_patch16_224", patch_size=8, img_size=32, embed_dim=24, depth=3, num_heads=2
)


def loaders(**kwargs):
    return eo_dataloaders(
        sample_scene(), seed=0, **sample_settings(32, **dict(bs=8, stride=160) | kwargs)
    )


@pytest.fixture(autouse=True)
def same_register():
    "What a test registers is forgotten behind it."
    before = dict(registry._METHODS)
    yield
    registry._METHODS.clear()
    registry._METHODS.update(before)


def quiet(learn):
    learn.remove_cb(learn.progress) if hasattr(learn, "progress") else None
    return learn


def fit(learn, n=1):
    with quiet(learn).no_logging():
        learn.fit(n)
    return learn


def weights(learn):
    return torch.cat([p.detach().flatten() for p in learn.model.encoder.parameters()])


# -- the contract ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deo", "mssdf"])
@pytest.mark.parametrize("preset", ["paper", "released", "auto"])
def test_the_model_has_what_callbacks_read(name, preset):
    method = get_method(name)
    given = {} if preset == "auto" else dict(arch=SMALL, vfm=None)
    learn = method.create(loaders(), preset, 5, **given)
    model = learn.model
    assert isinstance(model, PretrainModel) and isinstance(model.encoder, Encoder)
    assert model.modalities == tuple(model.encoder.modalities)
    assert model.teacher is None or isinstance(model.teacher, EMATeacher)
    assert model.target_norm is None or isinstance(model.target_norm, TargetNorm)
    if model.teacher is not None:  # an average of what is trained, not of something else
        assert [p.shape for p in model.teacher.parameters()] == [
            p.shape for p in model.student.parameters()
        ]
    assert {id(p) for p in model.encoder.parameters()} <= {id(p) for p in model.parameters()}
    assert learn.method["preset"]["name"] == preset and learn.method["terms"]


def test_the_package_brings_two_methods():
    assert {"deo", "mssdf"} <= set(list_methods())
    with pytest.raises(ValueError, match="method='doe' is not known. Did you mean 'deo'"):
        get_method("doe")


# -- presets ---------------------------------------------------------------------------------------


def test_paper_is_the_default_of_the_learners():
    a = deo_learner(loaders(), SMALL, vfm=None)
    b = deo_learner(loaders(), SMALL, vfm=None, preset="paper")
    assert a.method == b.method and a.method["preset"]["settings"] == {}
    assert a.lr == pytest.approx(5e-4 * 8 / 256) and a.ema.start == 0.996
    assert (a.clip_per_tensor.max_norm, a.schedule.warmup, a.schedule.wd) == (3.0, 0.1, (0.04, 0.4))


def test_released_is_what_the_authors_code_differs_in():
    assert get_method("deo").create(loaders(), "released", arch=SMALL, vfm=None).method["preset"][
        "settings"
    ] == {
        "optical": {"same_view": False, "tap_norm": False},
        "schedule": {"decay_tables": True},
        "multispectral": {"local_cov": True},
    }
    learn = get_method("deo").create(loaders(), "released", arch=SMALL, vfm=None)
    decaying = {id(p) for p in learn.splitter(learn.model)[0]}
    trunk = learn.model.encoder.trunk
    assert {id(trunk.cls_token), id(trunk.pos_embed)} <= decaying
    assert id(trunk.norm.weight) not in decaying
    assert learn.loss_func.ms.local_cov
    masked = get_method("mssdf").create(loaders(), "released", arch=SMALL)
    assert masked.loss_func.on_predictions and not masked.loss_func.split
    assert (masked.mask.scores, masked.mask.q_epochs) == ("channels", 10)


@pytest.mark.parametrize("size,rate", [("tiny", 0.2), ("small", 0.3), ("base", 0.5)])
def test_a_released_swin_is_that_of_torchvision(size, rate):
    "Its drop path is never passed on, so torchvision's own holds; its windows pad before they shift."
    import torchvision

    theirs = getattr(torchvision.models, f"swin_{size[0]}")()
    assert theirs.features[-1][-1].stochastic_depth.p == rate
    less = dict(img_size=64, embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 3))
    arch = dict(arch=f"swin_{size}_patch4_window7_224", window_size=4, **less)
    build = lambda preset, **kw: get_method("deo").create(
        loaders(), preset, arch=arch, vfm=None, hidden=32, head_dim=8, **kw
    )
    config = build("released").model.encoder.config
    assert (config["drop_path"], config["windows"]) == (rate, "torchvision")
    paper = build("paper").model.encoder.config
    assert (paper["drop_path"], paper["windows"]) == (0.1, "timm")
    assert build("released", drop_path=0.0).model.encoder.config["drop_path"] == 0.0


@pytest.mark.parametrize("choose", [choose_deo, choose_mssdf])
def test_constants_of_auto_follow_the_length_of_the_run(choose):
    facts = [Facts(1000, 96, steps, 8, True) for steps in (100, 1000, 10_000)]
    momenta = [choose(f).settings["schedule"]["momentum"] for f in facts]
    assert momenta == sorted(momenta) and momenta[-1] == 0.996
    assert momenta[0] ** 5 == pytest.approx(0.5)  # half of the teacher is new after 5% of the run
    assert choose(facts[0]).settings["schedule"]["floor"] == 1e-3
    assert choose(Facts(10**6, 96, 10**6, 256, True)).settings == {}


def test_auto_looks_at_what_there_is():
    rgb, none = (choose_deo(Facts(1000, 100, 240, 8, rgb)) for rgb in (True, False))
    assert rgb.settings["views"]["global_size"] == 96  # a multiple of the patch
    assert not rgb.settings["self_distill"] and none.settings["vfm"] is None
    assert "optical" not in none.settings
    huge = choose_deo(Facts(10**6, 256, 240, 8, True)).settings["optical"]
    assert not huge["cache"] and rgb.settings["optical"]["cache"]
    assert all(p.evidence and p.why for p in (rgb, none))


def test_what_is_given_wins_over_the_preset(capsys):
    learn = get_method("deo").create(
        loaders(), "auto", 9, lr=3e-4, alpha=2.0, views=dict(turn=False)
    )
    assert learn.lr == 3e-4 and learn.loss_func.alpha == 2.0
    assert not learn.views.views.turn and learn.views.views.sizes == [32]
    assert "preset auto: 9 steps" in capsys.readouterr().out
    with pytest.raises(ValueError, match="preset='atuo' is not known. Did you mean 'auto'"):
        deo_learner(loaders(), preset="atuo")
    with pytest.raises(ValueError, match="schedule='warm' is not known"):
        take_options(Schedule(), {"warm": 0.1}, {})


def test_a_name_says_which_teachers_teach(tmp_path):
    alone = get_method("deo").create(loaders(), "auto", 9)
    assert alone.method["method"] == "deo (optical teacher only)"
    assert [m.name for m in alone.metrics] == alone.method["terms"] == ["patch"]
    other = deo_learner(loaders(), SMALL, vfm=None)
    assert other.method["method"] == "deo (multispectral teacher only)"
    masked = get_method("mssdf").create(loaders(), arch=SMALL, weights=dict(hsic=0.0))
    assert masked.method["method"] == "mssdf (without hsic)"
    save_encoder(alone, tmp_path / "e.safetensors")
    said = load_encoder(tmp_path / "e.safetensors").metadata
    assert said["method"] == "deo (optical teacher only)"
    assert said["preset"] == alone.method["preset"] and said["preset"]["evidence"]


# -- the demo has no recipe of its own -------------------------------------------------------------


@pytest.mark.parametrize("name", ["deo", "mssdf"])
def test_the_demo_is_the_auto_preset_on_the_same_scene(name):
    method, steps = get_method(name), 2
    shown = quiet(demo_learner(0, name, steps))
    set_seed(0)
    dls = eo_dataloaders(sample_scene(), seed=0, **sample_settings(method.demo["size"]))
    mine = quiet(method.create(dls, "auto", steps))
    assert mine.method == shown.method
    for learn in (shown, mine):
        set_seed(1)
        with learn.no_logging():
            fit_steps(learn, steps)
    assert torch.equal(weights(shown), weights(mine))


def test_pretrain_builds_what_the_demo_builds(tmp_path):
    "One code path: the encoder of `pretrain --preset auto` is that of the method's own learner, as in the demo."
    settings = sample_settings(32, 8, 160)
    data = {k: settings.pop(k) for k in ("stride", "split")}
    same = dict(steps=2, seed=0, precision="fp32")  # half precision where a processor is fast at it
    file = pretrain(sample_scene(), tmp_path / "run", data=data, **same, **settings)
    set_seed(0)
    mine = quiet(get_method("deo").create(loaders(), "auto", 2))
    with mine.no_logging():
        fit_steps(mine, 2)
    there = load_encoder(file)
    for a, b in zip(mine.model.encoder.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), atol=1e-6, rtol=1e-5)
    assert there.metadata["method"] == mine.method["method"]


# -- terms of one's own ----------------------------------------------------------------------------


def redundancy(pred, target):
    "Off-diagonal correlations between the channels of two views."
    a, b = pred["ms"][:2].float()
    if len(a) < 2:
        return 0.0 * a.sum()
    a, b = [(z - z.mean(0)) / (z.std(0) + 1e-6) for z in (a, b)]
    c = a.T @ b / len(a)
    eye = torch.eye(len(c), device=c.device)
    return ((c - eye).square() * (eye + 0.005 * (1 - eye))).sum() / len(c)


def test_an_extra_term_is_trained_and_has_its_columns(tmp_path):
    views = dict(n_local=1, global_size=32, local_size=16)
    given = dict(vfm=None, views=views, hidden=32, head_dim=16, lr=1e-3)
    set_seed(0)
    learn = deo_learner(
        loaders(),
        SMALL,
        extra={"redundancy": (redundancy, 0.5)},
        cbs=StepLog(tmp_path / "log.csv"),
        **given,
    )
    fit(learn)
    assert learn.recorder.metric_names[3:6] == ["agreement", "expansion", "redundancy"]
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    for r in rows:
        own = -float(r["agreement"]) - float(r["expansion"])
        assert float(r["loss"]) == pytest.approx(own + 0.5 * float(r["redundancy"]), abs=1e-3)
    set_seed(0)
    without = fit(deo_learner(loaders(), SMALL, **given))
    assert not torch.equal(weights(learn), weights(without))
    assert "redundancy" in learn.method["terms"]


def test_a_validation_batch_of_one_is_no_obstacle():
    learn = deo_learner(
        loaders(),
        SMALL,
        vfm=None,
        views=dict(n_local=0, global_size=32),
        extra={"redundancy": (redundancy, 0.5)},
    )
    batch = learn.dls.one_batch()[0]
    one = {k: v[:1] for k, v in batch.items()}
    pred = learn.model(learn.views.views(with_rgb(one, learn.dls.sensors["ms"])))
    target = {"ms": pred["ms"].detach()}
    assert learn.loss_func.eval()(pred, target).isfinite()
    assert learn.loss_func.parts["redundancy"] == 0


# -- a method of one's own -------------------------------------------------------------------------


class MAE(PretrainModel):
    "Hide three quarters of the patches, paint them from the rest."

    def __init__(self, encoder):
        super().__init__(encoder)
        channels = encoder.modalities["ms"]
        self.token = nn.Parameter(torch.zeros(encoder.width))
        self.paint = nn.Linear(encoder.width, channels * encoder.patch_size**2)

    def forward(self, batch):
        x, p = batch["ms"], self.encoder.patch_size
        n = (x.shape[-2] // p) * (x.shape[-1] // p)
        fixed = None if self.training else torch.Generator().manual_seed(0)
        mask = random_mask(len(x), n, generator=fixed).to(x.device)
        visible = self.encoder(x, "ms", mask=mask).patches
        places = (~mask).nonzero()[:, 1].view(len(x), -1, 1).expand_as(visible)
        context = visible.mean(1, keepdim=True) + self.token
        full = context.expand(-1, n, -1).scatter(1, places, visible)
        pixels = nn.functional.unfold(self.encoder.normalize["ms"](x), p, stride=p).transpose(1, 2)
        return {"painted": self.paint(full), "pixels": pixels, "mask": mask}


class PaintLoss(nn.Module):
    def forward(self, pred, target):
        error = (pred["painted"] - pred["pixels"]).square().mean(-1)
        loss = error[pred["mask"]].mean()
        self.parts = {"paint": loss.detach()}
        return loss


class Samples(Callback):
    "fastai skips the loss where a batch has no second part: say how many samples there are."

    def before_batch(self):
        x = self.xb[0]["ms"]
        self.learn.yb = ({"samples": x.new_empty(len(x), 0)},)


def mae_learner(dls, arch=SMALL, lr=1e-3, cbs=None, **kwargs):
    arch = dict(arch=arch) if isinstance(arch, str) else arch
    encoder = create_encoder(modalities={"ms": dls.sensors["ms"]}, **arch | kwargs)
    return assemble(
        dls, MAE(encoder), PaintLoss(), [Samples()], Schedule(lr=lr), ["paint"], cbs=cbs
    )


def test_a_method_of_ones_own_is_reached_by_its_name(tmp_path):
    register_method("mae", mae_learner, "paints what is hidden", demo=dict(size=32, steps=2))
    assert "mae" in list_methods() and get_method("mae").presets == []
    settings = sample_settings(32, 8, 160)
    data = {k: settings.pop(k) for k in ("stride", "split")}
    file = pretrain(sample_scene(), tmp_path / "run", method="mae", steps=3, data=data, **settings)
    assert load_encoder(file).modalities == {"ms": 10}
    learn = fit(get_method("mae").create(loaders()), 3)
    first, last = (float(learn.recorder.values[i][1]) for i in (0, -1))
    assert last < first
    assert learn.model.teacher is None and learn.recorder.metric_names[3] == "paint"


def test_a_model_that_callbacks_cannot_read_is_told():
    def bare_learner(dls, cbs=None):
        learn = mae_learner(dls, cbs=cbs)
        learn.model = nn.Linear(1, 1)
        return learn

    register_method("bare", bare_learner, "lacks everything")
    with pytest.raises(ValueError, match="'bare': its model Linear has no encoder, modalities"):
        get_method("bare").create(loaders())


def test_auto_fits_the_patches_of_the_student():
    "A window of 72 px is no multiple of 16: the views are 64; a patch of 4 needs whole cached tokens of 8."
    dls = eo_dataloaders(sample_scene(), **sample_settings(72, bs=8, stride=160))
    for given, sizes in (
        (dict(arch="vit_tiny_patch16_224"), {64}),
        (dict(arch="vit_tiny_patch16_224", vfm=None), {64, 32}),
        (dict(arch=dict(arch="vit_tiny_patch16_224", patch_size=4)), {72}),
        (dict(), {72}),
    ):
        learn = deo_learner(dls, preset="auto", steps=100, **given)
        assert set(learn.views.views.sizes) == sizes, given


def test_views_that_patches_do_not_cover_are_refused():
    with pytest.raises(ValueError, match="views of 40 px are no multiple of patch_size=16.*48 px"):
        deo_learner(
            loaders(), "vit_tiny_patch16_224", vfm=None, views=dict(global_size=40, n_local=0)
        )


@pytest.mark.parametrize("dense", [False, True])
def test_one_view_has_no_other_to_agree_with(dense):
    "Said when the learner is made, not in the first batch."
    one = dict(global_size=32, n_global=1, n_local=0)
    student = dict(arch="vit_tiny_patch16_224", patch_size=8, embed_dim=24, depth=2, num_heads=2)
    with pytest.raises(ValueError, match="one view alone"):
        deo_learner(loaders(), student, vfm=None, views=one, multispectral=dict(dense=dense))


def test_the_dense_preset_takes_both_teachers():
    "Its crops are whole patches of any student; what it cannot do is said before anything is read."
    dls = eo_dataloaders(sample_scene(), **sample_settings(96, bs=8, stride=160))
    for given, sizes in ((dict(), {48, 24}), (dict(patch_size=4), {48, 24})):
        learn = deo_learner(dls, preset="dense", steps=100, **given)
        assert set(learn.views.views.sizes) == sizes
        assert learn.method["terms"] == ["agreement", "expansion", "patch"]
    with pytest.raises(ValueError, match="windows of 64 px or more .here 32.: take preset='auto'"):
        deo_learner(loaders(), preset="dense", steps=100)
    with pytest.raises(ValueError, match="wants colours"):
        deo_learner(dls, preset="dense", vfm=None, steps=100)
    with pytest.raises(ValueError, match="dense"):
        get_method("mssdf").create(dls, "dense", 100)
