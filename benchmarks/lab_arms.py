"""The arms of the lab as data, and what makes a fastai Learner of one."""

from fastai.torch_core import set_seed

from eo_brew.methods.deo import deo_learner
from eo_brew.methods.mssdf import mssdf_learner
from eo_brew.models.encoder import create_encoder
from eo_brew.train.cache import cached_strides
from eo_brew.train.targets import EMATargets
from eo_brew.views.multicrop import MultiCrop
from lab_data import WINDOW, loaders
from lab_terms import (
    BalanceGradients,
    DenseModel,
    DenseTargets,
    DropBands,
    HideTokens,
    TwoTeacherLoss,
    run_momentum,
)

#: what every arm has unless it says otherwise: the optical teacher alone, on tokens of all bands
BASE = dict(
    method="deo",
    optical=True,
    ms=None,
    path=("ms",),
    cls_weight=0.0,
    standardize=True,
    momentum="run",
    shares=None,
    weights={},
    head_dim=256,
    eps=0.05,
    drop=0.0,
    hide=0.0,
    lr=1e-3,
    views="crops",
    n_local=2,
    stride=48,
    scenes=("t33uuu", "t33uub", "t49jgm", "aquileia"),
)
PAPER = dict(ms="cls", path=("rgb",), cls_weight=1.0, standardize=False, momentum=0.996)
DUAL = dict(ms="cls", momentum=0.996)
EVEN = dict(ms="cls", shares={"ms": 0.5})
DENSE = dict(ms="tokens", shares={"tokens": 0.5})
OFF = dict(align=0.0, hsic=0.0, modality=0.0)

#: name -> changes to BASE
ARMS = {
    "random weights": dict(method="random"),
    "optical": {},
    "multispectral": dict(optical=False, ms="cls"),
    "dual as in the paper": PAPER,
    "optical as in the paper": PAPER | dict(ms=None),
    "dual, all together": dict(
        ms="both", shares={"ms": 0.5, "tokens": 0.5}, path=("rgb", "ms"), cls_weight=1.0
    ),
    "dual": DUAL,
    "dual, momentum by run": DUAL | dict(momentum="run"),
    "dual, balance": DUAL | dict(shares={"ms": 0.5}),
    "dual, momentum and balance": EVEN,
    "dense": DENSE,
    "dense, weight .05": dict(ms="tokens", weights={"tokens": 0.05}),
    "dense, bands dropped in local views": DENSE | dict(drop=0.5),
    "hidden tokens, weight .05": dict(
        ms="tokens", hide=0.5, weights={"tokens": 0.0, "hidden": 0.05}
    ),
    "dense and hidden tokens, weight .05": dict(
        ms="tokens", hide=0.5, weights={"tokens": 0.05, "hidden": 0.05}
    ),
    "MSSDF": dict(method="mssdf"),
    "optical with L_cls": dict(cls_weight=1.0),
    "dense, weight .05, with L_cls": dict(ms="tokens", weights={"tokens": 0.05}, cls_weight=1.0),
    "optical, RGB and MS paths": dict(path=("rgb", "ms")),
    "dense with CLS": dict(ms="both", shares={"tokens": 0.35, "ms": 0.35}),
    "dense alone": dict(optical=False, ms="tokens"),
    "dual, narrow head, no overlap": EVEN | dict(head_dim=64, eps=0.5, stride=96),
    "optical, RGB path": dict(path=("rgb",)),
    "optical, whole windows": dict(views="whole"),
    "MSSDF with optical teacher": dict(method="mssdf", masked_optical=True),
    "masked reconstruction": dict(method="mssdf", weights=OFF),
    "optical, one whole window at full size": dict(views="full"),
    "dense, weight .05, one whole window at full size": dict(
        ms="tokens", weights={"tokens": 0.05}, views="full"
    ),
    "optical, shipped scene alone": dict(scenes=("t33uuu",)),
    "dual, whole windows": EVEN | dict(views="whole"),
    "paper to the letter": PAPER | dict(lr=None),
}
BATCH, VIEW, LOCAL, HIDDEN = 12, 48, 24, 256
#: arguments of MultiCrop for the views of an arm: crops at about the window's resolution, all of the window in a view
#: of half its size, or the window as it is, as preset='auto' shows it
WHOLE = dict(global_scale=(1.0, 1.0), ratio=(1.0, 1.0))
VIEWS = dict(
    crops=dict(global_size=VIEW, global_scale=(0.15, 0.45)),
    whole=dict(global_size=VIEW, **WHOLE),
    full=dict(global_size=WINDOW, n_global=1, **WHOLE),
)


def settings(arm):
    """All settings of an arm."""
    return BASE | ARMS[arm]


def student(sensor, masked=False, size=VIEW):
    """A ViT of 2 million weights: 4 blocks, width 192, patches of 8 pixels, positions for views of `size`."""
    return create_encoder(
        "vit_tiny_patch16_224",
        {"ms": sensor, "rgb": "rgb"},
        img_size=size,
        patch_size=8,
        embed_dim=192,
        depth=4,
        num_heads=3,
        modality_embed=masked,
    )


def crops(s, vfm, masked=False):
    """The views of an arm."""
    local = s["n_local"] if s["ms"] or s["cls_weight"] else 0
    return MultiCrop(
        n_local=0 if masked else local,
        local_size=LOCAL,
        local_scale=(0.04, 0.12),
        strides=cached_strides(vfm),
        turn=True,
        photometric=masked or "rgb" in s["path"],
        **VIEWS[s["views"]],
    )


def random_encoder(sensor, seed):
    """The student before training."""
    set_seed(seed)
    return student(sensor)


def learner(arm, dataset, vfm, seed, steps):
    """A Learner for an arm; random weights, order and views follow the seed."""
    s = settings(arm)
    set_seed(seed)
    dls = loaders(dataset, BATCH, seed)
    make = masked_learner if s["method"] == "mssdf" else dual_learner
    learn = make(s, dls, vfm, steps)
    learn._do_epoch_validate = lambda *args, **kwargs: None  # the probes are the validation
    return learn


def masked_learner(s, dls, vfm, steps):
    """MSSDF, perhaps with the optical teacher."""
    optical = dict(vfm=vfm, distill_from="ms") if s.get("masked_optical") else {}
    momentum = run_momentum(steps) if s["momentum"] == "run" else s["momentum"]
    return mssdf_learner(
        dls,
        student(dls.sensors["ms"], True),
        views=crops(s, vfm, True),
        lr=s["lr"],
        decoder_depths=(1, 2),
        weights=s["weights"] or None,
        momentum=momentum,
        **optical,
    )


def dual_learner(s, dls, vfm, steps):
    """DEO with one teacher or two, and the lab's terms in place of its loss."""
    enc = student(dls.sensors["ms"], size=VIEWS[s["views"]]["global_size"])
    momentum = run_momentum(steps) if s["momentum"] == "run" else s["momentum"]
    learn = deo_learner(
        dls,
        enc,
        vfm if s["optical"] else None,
        views=crops(s, vfm),
        self_distill=bool(s["ms"]),
        distill_from=s["path"],
        standardize=s["standardize"],
        head_dim=s["head_dim"],
        hidden=HIDDEN,
        lr=s["lr"],
        momentum=momentum,
        drop_path=0.0,
    )
    weights = {"ms": 1.0, "tokens": 1.0, "hidden": 1.0, "optical": 1.0} | s["weights"]
    learn.loss_func = TwoTeacherLoss(weights, s["cls_weight"], s["eps"])
    if s["ms"]:
        learn.add_cb(BalanceGradients(s["shares"]))
    if s["ms"] in ("tokens", "both"):
        dense(learn, s, vfm)
    if s["drop"]:
        learn.add_cb(DropBands(s["drop"]))
    if s["hide"]:
        learn.add_cb(HideTokens(s["hide"]))
    return learn


def dense(learn, s, vfm):
    """Give a dual Learner a multispectral teacher that speaks of tokens."""
    old = learn.model
    widths = (
        {"cls": vfm.width, **dict(zip(("mid", "late"), vfm.layer_widths))} if s["optical"] else None
    )
    learn.model = DenseModel(
        old.encoder,
        widths,
        "ms",
        s["path"],
        True,
        s["standardize"],
        s["head_dim"],
        HIDDEN,
        n_global=old.n_global,
        cls_too=s["ms"] == "both",
    )
    learn.remove_cbs(
        [c for c in learn.cbs if isinstance(c, EMATargets) or type(c).__name__ == "CollapseMonitor"]
    )
    learn.add_cb(DenseTargets(old.n_global))
