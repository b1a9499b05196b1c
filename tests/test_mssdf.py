"MSSDF end to end on the shipped scenes, and the faults of the released code that must not come back."

import warnings
from itertools import combinations, permutations

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from eo_brew.losses.distill import hsic, info_nce
from eo_brew.train.log import StepLog
from eo_brew.runs.checkpoints import CheckpointCallback
from eo_brew.models.encoder import create_encoder
from eo_brew.data.loader import EODataLoader
from eo_brew.views.masking import random_mask
from eo_brew.data.modalities import Modality
from eo_brew.methods.mssdf import WEIGHTS, MSSDFLoss, MSSDFModel, mssdf_learner
from eo_brew.data.samples import WindowDataset
from eo_brew.scenes.open import open_scene, sample_scene
from eo_brew.views.multicrop import MultiCrop
from eo_brew.weights.save import load_encoder, save_encoder
from eo_brew.scenes.windows import window_index
from test_encoders import ARCHS

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, decoder_depths=(1, 1))


class Kept(torch.utils.data.Dataset):
    "The samples of a dataset, read once."

    def __init__(self, ds):
        self.items = [ds[i] for i in range(len(ds))]
        self.sensors = ds.sensors

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.fixture(scope="module")
def olinda():
    etm = open_scene(sample_scene("olinda") / "L7_ETMs.tif", "landsat7_dn")
    dem = open_scene(sample_scene("olinda") / "olinda_dem_utm25s.tif", "dem", crs="EPSG:31985")
    return Kept(
        WindowDataset(
            etm,
            window_index(etm, 32, n=24),
            others=["rgb", Modality("dem", dem.sensor, [dem], size=32)],
        )
    )


def loaders(ds, bs=8, seed=0, names=None):
    few = torch.utils.data.Subset(ds, range(bs))
    few.sensors = ds.sensors
    dls = DataLoaders(
        *[EODataLoader(d, bs=bs, shuffle=d is ds, drop_last=True, seed=seed) for d in (ds, few)],
        device="cpu",
    )
    dls.sensors = {m: s for m, s in ds.sensors.items() if names is None or m in names}
    return dls


def learner(ds, dls=None, encoder=TINY, **kwargs):
    set_seed(0)
    learn = mssdf_learner(
        dls or loaders(ds), "vit_tiny_patch16_224", **{"lr": 1e-3, **encoder, **kwargs}
    )
    if hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    return learn


def fit(learn, n=1):
    with learn.no_logging():
        learn.fit(n)
    return learn


class Watch(Callback):
    "Keep what the model and the loss are given."

    order = 40

    def before_fit(self):
        self.rows = []

    def before_batch(self):
        if self.training:
            self.rows.append((self.pct_train, self.mask.share, self.xb, self.yb[0]))


class Each(torch.utils.data.Dataset):
    "A dataset changed sample by sample."

    def __init__(self, ds, change):
        self.ds = ds
        self.change = change
        self.sensors = ds.sensors

    def __len__(self):
        return len(self.ds)

    def __getitem__(self, i):
        return self.change(i, *self.ds[i])


def test_a_run_on_three_modalities(olinda):
    learn = fit(learner(olinda), 4)
    assert list(learn.recorder.metric_names)[3:-1] == list(WEIGHTS)
    first, last = (torch.tensor([float(v) for v in learn.recorder.values[k]]) for k in (0, -1))
    assert first.isfinite().all() and last.isfinite().all()
    assert (last[[0, 1, 2, 5]] < first[[0, 1, 2, 5]]).all()  # losses, reconstruction, modality


def test_the_same_seed_gives_the_same_run(olinda):
    a, b = (fit(learner(olinda)) for _ in range(2))
    assert [float(x) for x in a.recorder.losses] == [float(x) for x in b.recorder.losses]
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values())
    )


def test_masks_are_exact_all_through_the_curriculum(olinda):
    learn = learner(olinda, cbs=[Watch()])
    rows = fit(learn, 4).watch.rows
    shares = [s for _, s, _, _ in rows]
    assert (
        shares[0] == pytest.approx(0.1)
        and shares[-1] == pytest.approx(0.7)
        and shares == sorted(shares)
    )
    for _, _, ((view,), _), _ in rows:
        for m in learn.model.modalities:
            assert (view[f"{m}_mask"].sum(1) == 12).all()


def test_validation_masks_stay(olinda):
    learn = learner(olinda)
    learn.create_opt()
    views = []

    class Keep(Callback):
        order = 40

        def before_batch(self):
            if not self.training:
                views.append(self.xb[0][0]["ms_mask"])

    learn.add_cb(Keep())
    learn.pct_train = 0.5
    for _ in range(2):
        with learn.no_logging():
            learn.validate()
    assert len(views) == 2 and torch.equal(*views)


def test_the_teacher_starts_as_the_student_and_stays_996(olinda):
    "Released: the weights were reversed and the teacher started at random."
    learn = learner(olinda)
    student, teacher = learn.model.student, learn.model.teacher
    start = [p.clone() for p in student.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, teacher.parameters()))

    class Two(Callback):
        def before_fit(self):
            self.seen = []

        def after_batch(self):
            if self.training:
                self.seen.append(
                    (
                        [p.clone() for p in student.parameters()],
                        [p.clone() for p in teacher.parameters()],
                        self.ema.momentum,
                    )
                )

    learn.remove_cbs([c for c in learn.cbs if c.name == "schedule"])
    fit(learn.add_cb(Two()))
    s, t, m = learn.two.seen[0]
    assert 0.996 <= m < 0.9975 and max((a - b).abs().max() for a, b in zip(s, start)) > 1e-4
    for a, b, p in zip(start, t, s):
        torch.testing.assert_close(b, m * a + (1 - m) * p, rtol=1e-5, atol=1e-7)


def test_the_teacher_sees_whole_images_in_evaluation_mode(olinda):
    learn = learner(olinda, drop_path=0.5, cbs=[Watch()])
    calls = []
    together = learn.model.teacher.module.together

    def watched(batch, **kw):
        calls.append((kw.get("masks"), learn.model.teacher.training, torch.is_grad_enabled()))
        return together(batch, **kw)

    learn.model.teacher.module.together = watched
    fit(learn)
    assert calls and all(c == (None, False, False) for c in calls)
    target = learn.watch.rows[0][3]["tokens"]["ms"]
    torch.testing.assert_close(target.mean(-1), torch.zeros(8, 16), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        target.std(-1, unbiased=False), torch.ones(8, 16), rtol=1e-3, atol=1e-3
    )


def test_a_perfect_classifier_and_a_perfect_prediction_cost_nothing():
    names = ("a", "b")
    t = {m: torch.randn(4, 9, 8) for m in names}
    target = dict(
        tokens=t,
        masks={m: torch.ones(4, 9).bool() for m in names},
        valid={m: torch.ones(4, 9).bool() for m in names},
    )
    loss = MSSDFLoss()
    loss(
        dict(
            tokens=t,
            modality=[40.0 * torch.eye(2)[k].expand(4, 2) for k in range(2)],
            cls=torch.randn(2, 4, 8),
        ),
        target,
    )
    assert loss.parts["recon"] < 1e-6 and loss.parts["modality"] < 1e-6


def first_batch(olinda, change=None, **kwargs):
    "A model, its input and its target in the first step of a run."
    learn = learner(
        olinda, loaders(olinda if change is None else Each(olinda, change)), cbs=[Watch()], **kwargs
    )
    xb, target = fit(learn).watch.rows[0][2:]
    return learner(olinda, **kwargs).model, xb, target


def test_alignment_and_hsic_work_on_parts_of_their_own(olinda):
    "`split=False`: both on the same features."
    model, xb, target = first_batch(olinda)
    for split, shared_pulled in ((True, False), (False, True)):
        model.zero_grad()
        MSSDFLoss(dict(recon=0, align=0, modality=0), split=split)(model(*xb), target).backward()
        has = lambda m: any(p.grad is not None and p.grad.abs().sum() > 0 for p in m.parameters())
        assert has(model.shared) == shared_pulled and has(model.unique) == (not shared_pulled)


def test_as_released_both_act_on_the_predictions_of_the_decoder(olinda):
    "Without projections: the same two terms by hand, and a gradient for the decoder."
    model, xb, target = first_batch(olinda, on_predictions=True)
    assert model.shared is None and not len(model.unique)
    out, crit = model(*xb), MSSDFLoss(dict(recon=0, modality=0), on_predictions=True)
    crit(out, target).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.decoder.predict.parameters())
    pairs = list(combinations(out["tokens"], 2))
    both = lambda term: sum(term(*(out["tokens"][m].flatten(0, 1) for m in p)) for p in pairs)
    for name, term in (("align", info_nce), ("hsic", hsic)):
        torch.testing.assert_close(crit.parts[name], both(term).detach() / len(pairs))


def test_released_curriculum_and_scores_reach_the_masks(olinda):
    learn = learner(olinda, preset="released")
    assert learn.loss_func.on_predictions and learn.mask.scores == "channels"
    shares = []

    class Look(Callback):
        order = 100

        def after_batch(self):
            shares.append(round(learn.mask.share, 3))

    learn.mask.q_epochs, n = 1, len(learn.dls.train)
    learn.add_cb(Look())
    fit(learn, 2)
    assert shares[:n] == [0.1] * n and shares[-1] == 0.2
    view = learn.dls.one_batch()[0] | {"rgb": torch.rand(8, 3, 32, 32)}
    draw = lambda: learn.mask.draw(view, 0.0, torch.Generator().manual_seed(0))["ms_mask"]
    theirs = draw()
    learn.mask.scores = "pixels"
    assert not torch.equal(theirs, draw())


def test_networks_are_not_the_released_ones_in_four_things(olinda):
    "Released: fixed positions, no bias, heads of 64 channels, a CLS that is added and not read."
    model, ((view,), _), _ = first_batch(olinda, encoder=TINY | dict(embed_dim=128, num_heads=2))
    assert model.encoder.trunk.pos_embed.requires_grad and model.fusion.project.bias is not None
    width, blocks = model.fusion.width, (*model.fusion.blocks.blocks, *model.decoder.blocks.blocks)
    assert width == 64 and {b.attn.num_heads for b in blocks} == {2}
    read = []
    model.fusion.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    model.eval()([view])
    tokens = read[0]
    args = [{m: view[f"{m}_{k}"] for m in tokens} for k in ("mask", "patch_valid")]
    before = model.fusion(tokens, *args).tokens
    for t in tokens.values():
        t.cls = torch.randn_like(t.cls)
    assert not torch.allclose(model.fusion(tokens, *args).tokens, before, atol=1e-3)


def test_alignment_reaches_the_encoder_and_compares_the_same_places(olinda):
    model, ((view,), whole), target = first_batch(olinda)
    align = lambda whole: MSSDFLoss(dict(recon=0, hsic=0, modality=0))(model([view], whole), target)
    align(whole).backward()
    assert all(model.encoder.embeds[m].proj.weight.grad.abs().sum() > 0 for m in model.modalities)
    assert not any(p.grad is not None and p.grad.any() for p in model.decoder.parameters())
    pair = model([view], whole)["between"][0]  # student: ms, teacher: rgb
    at = [row.nonzero()[:, 0] for row in ~view["ms_mask"]]
    for k in (0, 5):
        torch.testing.assert_close(pair["shared"][1][k], model.shared(whole["rgb"][k, at[k]]))


def test_each_modality_is_hidden_by_its_own_mask(olinda):
    model, ((view,), _), _ = first_batch(olinda)
    model.eval()
    assert not any(
        torch.equal(view[f"{a}_mask"], view[f"{b}_mask"])
        for a, b in permutations(model.modalities, 2)
    )

    def shuffled(m, where):  # the same values, and so the same median, elsewhere
        x, at = (
            view[m].clone(),
            where.view(-1, 4, 4).repeat_interleave(8, 1).repeat_interleave(8, 2),
        )
        for image, there in zip(x, at):
            image[:, there] = image[:, there].flip(1)
        return model([{**view, m: x}])["tokens"]

    want = model([view])["tokens"]
    for m in model.modalities:
        for k, t in shuffled(m, view[f"{m}_mask"]).items():
            torch.testing.assert_close(t, want[k])
        assert not torch.allclose(shuffled(m, ~view[f"{m}_mask"])[m], want[m], atol=1e-3)


def test_a_missing_modality_in_a_sample_changes_nothing_else(olinda):
    def gone(fill):
        def change(i, batch):
            if i % 2:
                return (batch,)
            return (
                {
                    **batch,
                    "dem": torch.full_like(batch["dem"], fill) + torch.arange(32.0) * fill,
                    "dem_valid": torch.zeros_like(batch["dem_valid"]),
                },
            )

        return change

    def run(fill):
        learn = learner(olinda, loaders(Each(olinda, gone(fill))), masking="random")
        return [float(x) for x in fit(learn).recorder.losses]

    a, b = run(0.0), run(7.0)
    assert a == pytest.approx(b, rel=1e-5) and all(x == x for x in a)


def test_nodata_never_counts(olinda):
    def void(i, batch):
        valid = batch["ms_valid"].clone()
        valid[:, :24] = False  # 12 of 16 patches: as many as are hidden
        return ({**batch, "ms_valid": valid},)

    model, ((view,), whole), target = first_batch(olinda, void)
    assert (
        not view["ms_patch_valid"][:, :12].any()
        and (view["ms_mask"].sum(1) == 12).all()
        and view["ms_mask"][:, :12].all()
    )
    view["ms_patch_valid"][:, 12:14] = False  # and some of the visible ones
    spoilt = {**whole, "ms": torch.where(view["ms_patch_valid"][..., None], whole["ms"], 1e3)}
    crit = MSSDFLoss()
    loss = lambda whole: crit(model([view], whole), {**target, "tokens": whole})
    model.eval()
    loss(whole)
    a = crit.parts
    loss(spoilt)
    for k in a:
        torch.testing.assert_close(crit.parts[k], a[k], rtol=1e-5, atol=1e-6)


class NoWait(TorchDispatchMode):
    "Refuse what makes a host wait for a GPU: values, and shapes that depend on values."

    names = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        index = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in self.names or any(i is not None and i.dtype == torch.bool for i in index):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masking", ["info", "random", "block"])
def test_a_step_waits_for_the_device_nowhere(olinda, masking):
    learn = learner(olinda, masking=masking, max_tokens=16)
    batch, model, crit = learn.dls.one_batch()[0], learn.model, learn.loss_func
    learn.mask.draw(batch, 0.0)  # the heights of the first batch are looked at
    with NoWait():
        view = {**batch, **learn.mask.draw(batch, 0.5)}
        with torch.no_grad():
            whole = {
                m: t.patches
                for m, t in model.teacher.together({m: batch[m] for m in model.modalities}).items()
            }
        crit(
            model([view], whole),
            dict(
                tokens=whole,
                **{
                    k: {m: view[f"{m}_{w}"] for m in whole}
                    for k, w in (("masks", "mask"), ("valid", "patch_valid"))
                },
            ),
        ).backward()
        model.teacher.update(model.student, 0.996)
    view.pop("visible")
    with NoWait(), pytest.raises(AssertionError, match="waits for the device"):
        model([view])  # masks have to be counted


def test_flat_images_give_no_nan(olinda):
    flat = lambda i, batch: (
        {
            k: torch.full_like(v, 50.0) if v.ndim == 3 and v.is_floating_point() else v
            for k, v in batch.items()
        },
    )
    assert all(
        float(x) == float(x)
        for x in fit(learner(olinda, loaders(Each(olinda, flat)))).recorder.losses
    )


def test_masks_follow_the_ground_and_not_an_8_bit_wrap(olinda):
    "Released: normalised values wrapped to 8 bit, so that faint noise about the mean jumps between 0 and 255."
    learn = learner(olinda, modalities=["ms", "rgb"], masking="info")
    z = torch.linspace(-1, 1, 64).expand(64, 64).clone()  # left: a slope
    z[:, 32:] = 0.05 * torch.randn(
        64, 32, generator=torch.Generator().manual_seed(0)
    )  # right: next to nothing
    enc = learn.model.encoder
    view = {m: enc.normalize[m].decode(z.expand(40, n, 64, 64)) for m, n in enc.modalities.items()}
    share = (
        learn.mask.draw(view, 0, torch.Generator().manual_seed(0))["ms_mask"]
        .view(40, 8, 8)
        .float()
        .mean((0, 1))
    )
    assert share[4:].mean() > share[:4].mean() + 0.08  # flat ground is hidden more often


def test_heights_are_relative_to_the_patch(olinda):
    learn = learner(olinda)
    x = torch.rand(2, 1, 32, 32) * 20
    learn.model.eval()
    a, b = (learn.model.encoder(h, "dem").cls for h in (x, x + 800))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda x: x * 3.28 + 9500, "span 9.*gain=.3048"),
        (lambda x: torch.where(x < 5, -9999.0, x), "nodata=-9999"),
    ],
)
def test_heights_that_no_ground_has_are_told(olinda, change, words):
    learn = learner(olinda, loaders(Each(olinda, lambda i, b: ({**b, "dem": change(b["dem"])},))))
    with pytest.warns(UserWarning, match=words):
        fit(learn)


def test_voids_in_a_later_batch_are_told(olinda):
    late = lambda i, b: (
        {**b, "dem": torch.where(b["dem"] < 5, -9999.0, b["dem"]) if i >= 16 else b["dem"]},
    )
    dls = DataLoaders(
        *[EODataLoader(Each(olinda, late), bs=8, device="cpu") for _ in range(2)], device="cpu"
    )
    dls.sensors = olinda.sensors
    with pytest.warns(UserWarning, match="nodata=-9999"):
        fit(learner(olinda, dls))


def test_ordinary_heights_are_not_told(olinda):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*heights")
        fit(learner(olinda))


def test_one_modality_only_says_so(olinda):
    with pytest.warns(UserWarning, match="one modality only"):
        learn = learner(olinda, modalities=["ms"])
    assert [m.name for m in fit(learn).metrics] == ["recon"]


def test_two_modalities_of_the_sentinel_scene():
    scene = open_scene(sample_scene(), "sentinel2_l1c", ["B02", "B03", "B04", "B08", "B11"])
    ds = WindowDataset(scene, window_index(scene, 32, n=8))
    learn = fit(learner(ds))  # RGB comes from the bands
    assert learn.model.modalities == ("ms", "rgb") and learn.model.encoder.modalities == {
        "ms": 5,
        "rgb": 3,
    }


@pytest.mark.parametrize("masking", ["random", "block"])
def test_a_plain_masked_autoencoder_is_a_choice_of_arguments(olinda, masking):
    learn = fit(learner(olinda, masking=masking, q=None, weights=dict(align=0, hsic=0, modality=0)))
    assert [m.name for m in learn.metrics] == ["recon"] and learn.mask.share == 0


def test_views_and_an_optical_teacher_compose(olinda):
    class Teacher(nn.Module):
        width, layer_widths, info = 16, [16, 16], {"arch": "x"}

        def __init__(self):
            super().__init__()
            self.enc = create_encoder(
                "vit_tiny_patch16_224",
                {"rgb": "rgb"},
                patch_size=16,
                img_size=32,
                embed_dim=16,
                depth=2,
                num_heads=2,
            ).eval()

        def forward(self, rgb):
            with torch.no_grad():
                return self.enc(rgb, "rgb", layers=(0, 1))

    learn = learner(
        olinda,
        vfm=Teacher(),
        views=MultiCrop(n_global=2, n_local=0, global_size=32, photometric=False),
    )
    fit(learn, 2)
    assert [m.name for m in learn.metrics] == [*WEIGHTS, "cls", "patch"]
    assert all(float(v) == float(v) for v in learn.recorder.values[-1])
    assert not any(
        "vfm" in k.lower() for k in learn.model.state_dict()
    )  # the frozen teacher stays outside the model


def test_views_bring_modalities_of_other_sizes_together(olinda):
    coarse = Each(
        olinda,
        lambda i, b: (
            {**b, "dem": b["dem"][:, ::2, ::2], "dem_valid": b["dem_valid"][:, ::2, ::2]},
        ),
    )
    with pytest.raises(ValueError, match=r"'dem': \(2, 2\)"):
        fit(learner(olinda, loaders(coarse)))
    fit(
        learner(
            olinda,
            loaders(coarse),
            views=MultiCrop(n_global=1, n_local=0, global_size=32, photometric=False),
        )
    )


def test_a_labelled_loader_will_do(olinda):
    fit(learner(olinda, loaders(Each(olinda, lambda i, b: (b, torch.tensor(i % 3))))))


def test_a_resumed_run_equals_the_run(olinda, tmp_path):
    whole = fit(learner(olinda, cbs=[StepLog(tmp_path / "a.csv")]), 2)

    class Stop(Callback):
        order = 95

        def after_batch(self):
            if self.training and self.train_iter == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(learner(olinda, cbs=[CheckpointCallback(tmp_path / "c", steps=4), Stop()]), 2)
    again = fit(learner(olinda).resume(tmp_path / "c"), 2)
    for (k, x), y in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert torch.equal(x, y), k


def test_the_encoder_is_saved_and_comes_back(olinda, tmp_path):
    learn = fit(learner(olinda))
    save_encoder(learn, tmp_path / "e.safetensors")
    enc, x = load_encoder(tmp_path / "e.safetensors"), torch.rand(2, 6, 32, 32) * 100
    learn.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(enc.eval()(x).cls, learn.model.encoder(x).cls)


@pytest.mark.parametrize(
    "kwargs,match",
    [
        (dict(ratio=0.99), "at least one must be hidden"),
        (dict(modalities=["ms", "sar"]), "the data have"),
        (dict(masking="blocks"), "wanted one of"),
        (dict(weights={"reconstruction": 1}), "the objectives are"),
        (dict(q=(0.7, 0.1)), "first=0.7"),
    ],
)
def test_bad_arguments_are_named(olinda, kwargs, match):
    with pytest.raises(ValueError, match=match):
        fit(learner(olinda, **kwargs))


@pytest.mark.parametrize("arch", [a for a in ARCHS if "swin" not in a])
def test_any_vit_will_do(arch):
    "With register tokens, rotary positions, no CLS; on a grid that it was not made for."
    enc = create_encoder(
        arch,
        {"ms": 5, "rgb": 3},
        modality_embed=True,
        **ARCHS[arch] | dict(img_size=96, patch_size=16, embed_dim=32),
    )
    model, batch = (
        MSSDFModel(enc, fusion_depth=1, depth=1),
        {m: torch.randn(2, n, 96, 64) for m, n in enc.modalities.items()},
    )
    masks = {
        m: random_mask(2, 24, 0.75, torch.Generator().manual_seed(i)) for i, m in enumerate(batch)
    }
    seen = {m: torch.ones_like(x) for m, x in masks.items()}

    def said(batch):
        with torch.no_grad():
            return model.eval()(
                [
                    {
                        **batch,
                        **{
                            f"{m}_{k}": v[m]
                            for k, v in (("mask", masks), ("patch_valid", seen))
                            for m in v
                        },
                    }
                ]
            )["tokens"]

    hidden = masks["ms"].view(2, 1, 6, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    a, b, c = (
        said({**batch, "ms": x})
        for x in (
            batch["ms"],
            batch["ms"].masked_fill(hidden, 9.0),
            batch["ms"].masked_fill(~hidden, 9.0),
        )
    )
    for m in a:
        torch.testing.assert_close(a[m], b[m])
        assert (a[m] - c[m]).abs().max() > 1e-3  # what is hidden is not seen, what is visible is


def test_a_swin_is_refused(olinda):
    swin = create_encoder(
        "swin_tiny_patch4_window7_224",
        {"ms": 6, "rgb": 3},
        img_size=32,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
        window_size=4,
    )
    with pytest.raises(ValueError, match="take a ViT"):
        mssdf_learner(loaders(olinda), swin)
