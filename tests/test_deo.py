"DEO end to end on the shipped scene, and the faults of the released code that must not come back."

import fastai.callback.hook  # noqa: F401  (adds `summary`)
import copy

import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from torch import nn

from eo_brew.train.optim import EMACallback
from eo_brew.losses.coding_rate import coding_rate
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods.deo import DEOLoss, DEOModel, deo_learner, distill_layers
from eo_brew.models.encoder import create_encoder
from eo_brew.scenes.open import sample_scene
import eo_brew.runs.precision  # noqa: F401  (adds `.to_precision`)
from eo_brew.train.inputs import ViewsCallback
from eo_brew.train.targets import VFMTargets
from eo_brew.models.teachers import efficientnet_lite_teacher
from eo_brew.views.multicrop import MultiCrop
from eo_brew.weights.save import load_encoder, save_encoder

TINY = dict(img_size=32, patch_size=8, embed_dim=48, depth=6, num_heads=3)
BANDS = ["B02", "B03", "B04", "B08", "B11"]


@pytest.fixture(scope="module")
def vfm():
    return efficientnet_lite_teacher()


def loaders(seed=0, bs=8):
    return eo_dataloaders(
        sample_scene(), sensor="sentinel2_l1c", bands=BANDS, size=64, bs=bs, n=48, seed=seed
    )


def learner(vfm, arch="vit_tiny_patch16_224", encoder=TINY, dls=None, **kwargs):
    set_seed(0)
    views = kwargs.pop("views", MultiCrop(n_local=1, global_size=32, local_size=16))
    learn = deo_learner(
        dls or loaders(), arch, vfm, views=views, hidden=64, head_dim=32, **encoder, **kwargs
    )
    learn.remove_cb(learn.progress) if hasattr(learn, "progress") else None
    return learn


def as_map(tokens, side):
    return tokens.transpose(1, 2).unflatten(2, (side, side))  # (B,N,D) -> (B,D,h,w)


def fit(learn, n=1):
    with learn.no_logging():
        learn.fit(n)
    return learn


def test_all_parts_are_in_the_table_and_finite(vfm):
    learn = fit(learner(vfm), 2)
    assert list(learn.recorder.metric_names)[3:-1] == ["agreement", "expansion", "cls", "patch"]
    for row in learn.recorder.values:
        assert all(torch.isfinite(torch.tensor(float(v))) for v in row)
    assert learn.recorder.losses[-1] < learn.recorder.losses[0]


def test_the_same_seed_gives_the_same_run(vfm):
    a, b = (fit(learner(vfm)) for _ in range(2))
    assert [float(x) for x in a.recorder.losses] == [float(x) for x in b.recorder.losses]
    assert all(
        torch.equal(x, y)
        for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values())
    )


def test_another_process_would_draw_the_same_windows():
    a, b = loaders(seed=3), loaders(seed=3)
    assert (a.train_ds.windows.rows == b.train_ds.windows.rows).all()
    assert [x[0]["index"].tolist() for x in a.train] == [x[0]["index"].tolist() for x in b.train]
    assert [x[0]["index"].tolist() for x in a.train] != [
        x[0]["index"].tolist() for x in loaders(seed=4).train
    ]


@pytest.mark.parametrize(
    "options",
    [
        dict(distill_from=("rgb", "ms")),
        dict(standardize=True),
        dict(self_distill=False),
        dict(same_view=False),
        dict(
            cache=True,
            views=MultiCrop(
                n_local=1, global_size=32, local_size=16, strides={"vfm_mid": 8, "vfm_late": 8}
            ),
        ),
    ],
    ids=lambda o: next(iter(o)),
)
def test_every_option_learns(vfm, options):
    learn = fit(learner(vfm, **options))
    assert torch.isfinite(
        torch.stack([torch.as_tensor(float(x)) for x in learn.recorder.losses])
    ).all()


def test_without_an_optical_teacher():
    learn = fit(learner(None))
    assert list(learn.recorder.metric_names)[3:-1] == ["agreement", "expansion"] and not len(
        learn.model.heads
    )
    with pytest.raises(ValueError, match="no teacher"):
        learner(None, self_distill=False)


def test_swin_student(vfm):
    swin = dict(
        img_size=64, embed_dim=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 3, 3), window_size=4
    )
    learn = fit(
        learner(
            vfm,
            "swin_tiny_patch4_window7_224",
            swin,
            views=MultiCrop(n_local=1, global_size=64, local_size=32),
        )
    )
    assert distill_layers(learn.model.encoder) == (2, 3)
    assert torch.isfinite(torch.as_tensor(float(learn.recorder.losses[-1])))


def test_fastai_around_it(vfm, capsys):
    learn = learner(vfm)
    learn.dls.show_batch(max_n=2)
    learn.show_views(max_n=1)
    assert "Total params" in str(learn.summary())
    fit(learn.to_bf16())
    learn.to_fp32()


def test_unknown_names_say_what_is_near(vfm):
    with pytest.raises(ValueError, match="vit_small_patch16_224"):
        learner(vfm, "vit_smal_patch16_224", {})
    with pytest.raises(ValueError, match="vit_base_patch16_dinov3"):
        deo_learner(loaders(), vfm="vit_base_patch16_dinov33", **TINY)


def test_batch_of_one_is_refused_in_training(vfm):
    with pytest.raises(ValueError, match="batch of 1"):
        fit(learner(vfm, dls=loaders(bs=1)))


# -- faults of the released code -------------------------------------------------------------------


def test_mid_is_the_earlier_layer(vfm):
    "Released: the ViT returns (late, mid) where the loop unpacks (mid, late)."
    encoder = create_encoder("vit_tiny_patch16_224", {"ms": 3, "rgb": 3}, **TINY)
    model = DEOModel(encoder, {"cls": 5, "mid": 6, "late": 7}, hidden=16).eval()
    x = torch.rand(2, 3, 32, 32)
    seen = {}
    for i in model.layers:
        encoder.trunk.blocks[i].register_forward_hook(lambda m, a, o, i=i: seen.__setitem__(i, o))
    with torch.no_grad():
        model([{"ms": x, "rgb": x}] * 2)
        out, n = model([{"ms": x, "rgb": x}] * 2), encoder.trunk.num_prefix_tokens
        rgb = slice(4, 8)  # both modalities in one pass, ms first
        for k, i in zip(("mid", "late"), model.layers):
            torch.testing.assert_close(
                out[k]["rgb"].flatten(2).mT,
                model.heads[k](encoder.trunk.norm(seen[i])[rgb, n:]),
                atol=1e-5,
                rtol=1e-4,
            )


def test_student_layers_have_the_teachers_depth():
    "Released: student blocks (5, 11) against teacher blocks (8, 11)."
    assert distill_layers(create_encoder("vit_tiny_patch16_224", {"ms": 3})) == (8, 11)


def test_ema_teacher_has_no_stochastic_depth(vfm):
    "Released: the EMA teacher is left in training mode."
    learn = learner(vfm, drop_path=0.5)
    modes = []

    class Look(Callback):
        def before_step(self):
            modes.append(any(m.training for m in learn.model.teacher.modules()))

    learn.add_cb(Look())
    fit(learn)
    assert modes and not any(modes)
    x = learn.dls.train.one_batch()[0]["ms"]
    learn.model.train()
    assert torch.equal(learn.model.teacher(x), learn.model.teacher(x))


def test_the_teacher_is_not_trained_and_follows(vfm):
    learn = learner(vfm)
    start = copy.deepcopy(learn.model.teacher.state_dict())
    fit(learn)
    trained = {id(p) for g in learn.opt.param_lists for p in g}
    assert not any(id(p) in trained for p in learn.model.teacher.parameters())
    moved = [
        k
        for k, v in learn.model.teacher.state_dict().items()
        if v.is_floating_point() and not torch.equal(v, start[k])
    ]
    assert moved


def test_aligned_views_count_in_the_cls_loss():
    "Released: pairs of the same view are left out."
    rows = lambda *s: nn.functional.normalize(
        torch.randn(*s, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    t = rows(2, 4, 8)
    pred = {
        "cls": {"rgb": t.clone()},
        "mid": {"rgb": rows(8, 8, 2, 2)},
        "late": {"rgb": rows(8, 8, 2, 2)},
    }
    target = {"cls": t, "mid": rows(8, 8, 2, 2), "late": rows(8, 8, 2, 2)}
    paper, released = DEOLoss(), DEOLoss(same_view=False)
    paper(pred, target)
    released(pred, target)
    cross = (t[0] * t[1]).sum(-1).mean()
    torch.testing.assert_close(paper.parts["cls"], 1 - (1 + cross) / 2)
    torch.testing.assert_close(released.parts["cls"], 1 - cross)


def test_any_token_grid(vfm):
    "Released: the token grid is fixed to 14 x 14."
    learn = learner(vfm, views=MultiCrop(n_local=1, global_size=48, local_size=24))
    fit(learn)
    assert torch.isfinite(torch.as_tensor(float(learn.recorder.losses[-1])))


def test_saved_encoder_is_the_trained_one(vfm, tmp_path):
    "Released: training patch 16 against loading patch 8, and random weights without a word."
    learn = fit(learner(vfm))
    save_encoder(learn, tmp_path / "e.safetensors")
    again, x = load_encoder(tmp_path / "e.safetensors").eval(), learn.dls.valid.one_batch()[0]["ms"]
    assert again.patch_size == learn.model.encoder.patch_size
    with torch.no_grad():
        torch.testing.assert_close(again(x).patches, learn.model.encoder.eval()(x).patches)
    with pytest.raises(ValueError, match="nothing.safetensors"):
        load_encoder(tmp_path / "nothing.safetensors")


def test_invalid_ground_does_not_count(vfm):
    "Tokens over nodata have weight 0 in the patch loss."
    rows = lambda *s: nn.functional.normalize(
        torch.randn(*s, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    s, t = rows(4, 4, 8), rows(4, 4, 8)
    valid = torch.ones(4, 1, 16, 16)
    valid[:, :, :, 8:] = 0
    pred = lambda s: {
        "cls": {"rgb": rows(2, 2, 8)},
        "mid": {"rgb": as_map(s, 2)},
        "late": {"rgb": as_map(s, 2)},
    }
    target = {"cls": rows(2, 2, 8), "mid": as_map(t, 2), "late": as_map(t, 2), "weight": valid}
    loss = DEOLoss()
    loss(pred(s), target)
    first = loss.parts["patch"]
    other = s.clone()
    other[:, 1::2] = -other[:, 1::2]  # the right half of the ground
    loss(pred(other), target)
    torch.testing.assert_close(loss.parts["patch"], first)
    del target["weight"]
    loss(pred(other), target)
    assert abs(loss.parts["patch"] - first) > 1e-4


def test_whole_loss_equals_plain_loops(vfm):
    "The loss of arXiv 2602.19863 written out with loops over views, samples and tokens."
    g = torch.Generator().manual_seed(2)
    rows = lambda *s: nn.functional.normalize(torch.randn(*s, generator=g), dim=-1)
    V = 4
    B = 5
    D = 16
    W = 6
    eps = 0.05
    s = rows(V, B, D)
    t = rows(2, B, D)
    o = rows(V, B, W)
    c = rows(2, B, W)
    m = rows(2 * B, 9, W)
    l = rows(2 * B, 9, W)
    tm = rows(2 * B, 9, W)
    tl = rows(2 * B, 9, W)
    pred = {"ms": s, "cls": {"rgb": o}, "mid": {"rgb": as_map(m, 3)}, "late": {"rgb": as_map(l, 3)}}
    target = {"ms": t, "cls": c, "mid": as_map(tm, 3), "late": as_map(tl, 3)}
    A = torch.stack(
        [t[i, b] @ s[v, b] for i in range(2) for v in range(V) if v != i for b in range(B)]
    ).mean()
    E = 0.0
    for i in range(2):
        z = (s[i] + t[i]) / 2
        cov = sum(torch.outer(z[b], z[b]) for b in range(B))
        E = E + 0.5 * torch.logdet(torch.eye(D) + D / (B * eps) * cov)
    E = (D + B) / (D * B) * 0.5 * E
    cls = (
        1
        - torch.stack(
            [c[i, b] @ o[v, b] for i in range(2) for v in range(V) for b in range(B)]
        ).mean()
    )
    patch = 1 - 0.5 * ((m * tm).sum(-1).mean() + (l * tl).sum(-1).mean())
    torch.testing.assert_close(
        DEOLoss(eps=eps)(pred, target), -A - E + 0.5 * (cls + patch), atol=1e-5, rtol=1e-5
    )
    assert torch.isfinite(coding_rate(s[0]))


def test_cancelled_steps_leave_the_teacher_alone(vfm):
    from fastai.callback.core import CancelStepException

    learn = learner(vfm)

    class Cancel(Callback):
        order = EMACallback.order - 1

        def before_step(self):
            raise CancelStepException()

    learn.add_cb(Cancel())
    with torch.no_grad():
        for p in learn.model.student.parameters():
            p.add_(0.1)
    start = copy.deepcopy(learn.model.teacher.state_dict())
    fit(learn)
    assert all(torch.equal(v, start[k]) for k, v in learn.model.teacher.state_dict().items())


def test_the_optical_teacher_stays_outside_the_model(vfm):
    learn = learner(vfm)
    cb = next(c for c in learn.cbs if isinstance(c, VFMTargets))
    mine = {id(p) for p in learn.model.parameters()}
    assert not any(id(p) in mine for p in cb.vfm.parameters()) and not any(
        p.requires_grad for p in cb.vfm.parameters()
    )


# -- what the optical teacher is asked and what is kept of it --------------------------------------


@pytest.mark.parametrize("n_global, n_local", [(1, 2), (3, 1)])
def test_any_number_of_global_views(vfm, n_global, n_local):
    "The teachers look at the global views, however many, and at no other."
    learn = learner(
        vfm, views=MultiCrop(n_global=n_global, n_local=n_local, global_size=32, local_size=16)
    )
    seen = []

    class Look(Callback):
        order = 40

        def before_batch(self):
            seen.append((len(self.yb[0]["ms"]), len(self.yb[0]["cls"])))

    learn.add_cb(Look())
    fit(learn)
    assert set(seen) == {(n_global, n_global)}


def test_a_deep_student_has_the_layers_of_a_deep_teacher():
    from eo_brew.models.teachers import default_layers

    encoder = create_encoder(
        "vit_tiny_patch16_224", {"ms": 3}, **{**TINY, "depth": 24, "embed_dim": 12, "num_heads": 1}
    )
    assert distill_layers(encoder) == default_layers(24) == (15, 23)


def test_colours_that_are_not_there_do_not_count():
    from eo_brew.core.sensors import with_rgb

    dls = loaders()
    batch = {**dls.one_batch()[0], "ms_bands": torch.ones(8, 5, dtype=torch.bool)}
    batch["ms_bands"][0, BANDS.index("B03")] = False  # green
    batch["ms_bands"][1, BANDS.index("B08")] = False  # no colour
    assert (
        with_rgb(batch, dls.sensors["ms"])["rgb_valid"].flatten(1).all(1).tolist()
        == [False] + [True] * 7
    )
    del batch["ms_valid"]
    assert not with_rgb(batch, dls.sensors["ms"])["rgb_valid"][0].any()


def test_ground_without_data_is_not_in_the_statistics_of_targets():
    from eo_brew.train.targets import TargetNorm

    norm, g = TargetNorm({"late": 3}), torch.Generator().manual_seed(0)
    x, ok = torch.randn(8, 3, 4, 4, generator=g), torch.ones(8, 1, 16, 16)
    x[:, :, :2], ok[:, :, :8] = 50.0, 0.0
    norm({"late": x, "weight": ok})
    assert (
        norm.norms["late"].mean.abs().max() < 0.5
        and 0.5 < norm.norms["late"].var.min()
        and norm.norms["late"].var.max() < 2
    )


def cached(vfm, folder=True, dls=None, **kwargs):
    views = MultiCrop(
        n_local=0,
        global_size=64,
        global_scale=(1.0, 1.0),
        ratio=(1.0, 1.0),
        flip=0.0,
        photometric=False,
        strides={"vfm_mid": 8, "vfm_late": 8},
    )
    return learner(vfm, dls=dls, views=views, cache=folder, **kwargs)


def test_each_dataset_has_its_own_cached_tokens(vfm):
    learn = cached(vfm, self_distill=False)
    with learn.no_logging():
        learn.fit(1)
        assert len(learn.cache_vfm.stores) == 2
        a = learn.validate(ds_idx=0)[0]
        direct = learner(
            vfm,
            self_distill=False,
            views=MultiCrop(
                n_local=0,
                global_size=64,
                global_scale=(1.0, 1.0),
                ratio=(1.0, 1.0),
                flip=0.0,
                photometric=False,
            ),
        )
        direct.model.load_state_dict(learn.model.state_dict())
        assert a == pytest.approx(direct.validate(ds_idx=0)[0], abs=1e-3)


def test_a_cache_folder_knows_weights_pixels_and_a_short_file(vfm, tmp_path):
    def files(vfm, **kwargs):
        dls = eo_dataloaders(
            sample_scene(), sensor="sentinel2_l1c", bands=BANDS, size=64, bs=8, n=48, **kwargs
        )
        learn = cached(vfm, tmp_path, dls, self_distill=False)
        with learn.no_logging():
            learn.validate()
        return {f.name for f in tmp_path.iterdir()}

    first = files(vfm)
    assert len(first) == 4 and files(vfm) == first  # the same again
    assert len(files(vfm, offset=-1000)) == 8
    other = copy.deepcopy(vfm)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    assert len(files(other)) == 12
    late = next(f for f in tmp_path.iterdir() if f.name in first and f.suffix == ".late")
    late.write_bytes(late.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"late has \d+ bytes instead of .* Delete it"):
        files(vfm)


@pytest.mark.parametrize("tap_norm", [True, False])
def test_released_heads_read_what_blocks_give(tap_norm):
    encoder = create_encoder("vit_tiny_patch16_224", {"ms": 4, "rgb": 3}, **TINY)
    with torch.no_grad():
        encoder.trunk.norm.weight.mul_(2)
    widths = {"cls": 20, "mid": 12, "late": 20}
    model = DEOModel(encoder, widths, hidden=16, head_dim=8, tap_norm=tap_norm).eval()
    seen, (mid, late) = {}, model.layers
    for i in (mid, late):
        block = encoder.trunk.blocks[i]
        block.register_forward_hook(lambda m, x, y, i=i: seen.__setitem__(i, y[-4:, 1:]))
    views = [{"ms": torch.rand(2, 4, 32, 32), "rgb": torch.rand(2, 3, 32, 32)} for _ in range(2)]
    with torch.no_grad():
        out = model(views)
        for i, k in ((mid, "mid"), (late, "late")):
            raw = encoder.trunk.norm(seen[i]) if tap_norm else seen[i]
            torch.testing.assert_close(out[k]["rgb"], as_map(model.heads[k](raw), 4))


def test_tables_and_embeddings_do_not_decay():
    from eo_brew.train.optim import decay_groups

    vit = create_encoder("vit_tiny_patch16_224", {"ms": 3, "rgb": 3}, modality_embed=True, **TINY)
    swin = create_encoder(
        "swinv2_tiny_window8_256",
        {"ms": 3},
        img_size=64,
        embed_dim=24,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 3, 3),
        window_size=4,
    )
    swin1 = create_encoder(
        "swin_tiny_patch4_window7_224",
        {"ms": 3},
        img_size=64,
        embed_dim=24,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 3, 3),
        window_size=4,
    )
    for encoder in (vit, swin, swin1):
        decay = {id(p) for p in decay_groups(encoder)[0]}
        assert not [
            n
            for n, p in encoder.named_parameters()
            if id(p) in decay
            and any(
                w in n
                for w in ("modality_embed", "bias_table", "logit_scale", "_token", "pos_embed")
            )
        ]


DENSE = dict(dense=True, ms_weight=0.05, cls_weight=0.0, distill_from=("ms",), standardize=True)


def test_a_dense_teacher_beside_the_optical_one(vfm):
    "Both are trained, the columns say so, and the teacher of tokens follows the student."
    learn = learner(vfm, **DENSE, lr=1e-3)
    start = copy.deepcopy(learn.model.teacher.state_dict())
    fit(learn, 2)
    assert list(learn.recorder.metric_names)[3:-1] == ["agreement", "expansion", "patch"]
    assert learn.method["method"] == "deo (both teachers, the multispectral one dense)"
    assert all(torch.isfinite(torch.tensor(v)).all() for v in learn.recorder.values)
    assert any(not torch.equal(v, start[k]) for k, v in learn.model.teacher.state_dict().items())
    rank = [o["rank"] for o in learn.collapse_monitor.log]
    assert rank and all(1 < r < 33 for r in rank)


def test_the_dense_loss_is_its_formula(vfm):
    "-A - E over tokens, by loops over pairs of views, samples and tokens that both see."
    learn = learner(vfm, **DENSE)
    learn.loss_func = Keep(learn.loss_func)
    fit(learn, 1)
    pred, target = learn.loss_func.last
    cosines = []
    for v, i, where, seen in target["pairs"]:
        assert v != i
        said = nn.functional.grid_sample(
            target["maps"][i], where, padding_mode="border", align_corners=False
        )
        for b, y, x in seen.nonzero().tolist():
            cosines.append(
                nn.functional.cosine_similarity(
                    pred["maps"][v][b, :, y, x], said[b, :, y, x], dim=0
                )
            )
    rows = [(s + t).flatten(2).mT.flatten(0, 1) / 2 for s, t in zip(pred["maps"], target["maps"])]
    n, d = rows[0].shape
    expansion = sum((d + n) / (d * n) * coding_rate(z, 0.05) for z in rows) / 2
    parts = learn.loss_func.loss.parts
    assert torch.allclose(parts["agreement"], torch.stack(cosines).mean(), atol=1e-5)
    assert torch.allclose(parts["expansion"], expansion, atol=1e-4)
    whole = 0.05 * (-parts["agreement"] - parts["expansion"]) + 0.5 * parts["patch"]
    assert torch.allclose(learn.loss_func.value, whole, atol=1e-5)


class Keep(nn.Module):
    "A loss that keeps what it was given last."

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    @property
    def parts(self):
        return self.loss.parts

    def forward(self, pred, target):
        self.last = pred, target
        self.value = self.loss(pred, target)
        return self.value


def test_a_dense_teacher_alone_learns_to_agree():
    "Without colours it is the only teacher; its agreement rises while the tokens stay spread."
    learn = fit(learner(None, dense=True, lr=1e-3), 6)
    first, last = ([float(x) for x in learn.recorder.values[i][1:]] for i in (0, -1))
    assert last[0] < first[0]
    assert learn.method["method"] == "deo (dense multispectral teacher only)"


class Compared(Callback):
    "Blanks the left `blank` pixels of each window, and keeps the share of tokens that are compared."

    order = ViewsCallback.order - 1

    def __init__(self, blank):
        self.blank, self.shares = blank, []

    def before_batch(self):
        batch = self.xb[0]
        batch["ms_valid"] = torch.ones_like(batch["ms"][:, :1], dtype=torch.bool)
        batch["ms_valid"][..., : self.blank] = False

    def after_pred(self):
        self.shares += [float(seen.float().mean()) for *_, seen in self.yb[0]["pairs"]]


def test_tokens_without_data_are_no_pair(vfm):
    "Where half of a window has no data, its tokens are compared in neither view."
    shares = []
    for blank in (0, 32):
        look = Compared(blank)
        learn = learner(vfm, **DENSE)
        learn.add_cb(look)
        fit(learn)
        shares.append(sum(look.shares) / len(look.shares))
    assert 0 < shares[1] < 0.7 * shares[0]


def test_a_dense_teacher_in_half_precision(vfm):
    "Places are computed in fp32 inside bf16, too: the loss is the same but for rounding."
    losses = []
    for precision in ("fp32", "bf16"):
        learn = learner(vfm, **DENSE).to_precision(precision)
        fit(learn)
        losses.append({k: float(v) for k, v in learn.loss_func.parts.items()})
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_weights_and_options_that_contradict_each_other_are_refused(vfm):
    with pytest.raises(ValueError, match="ms_weight=-1: a weight below 0"):
        learner(vfm, ms_weight=-1)
    with pytest.raises(ValueError, match="dense=True is the EMA teacher's"):
        learner(vfm, self_distill=False, dense=True)
    with pytest.raises(ValueError, match="multispectral='densee' is not known"):
        learner(vfm, multispectral=dict(densee=True))
