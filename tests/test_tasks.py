"""Each task learner overfits ten samples, and its metric is that of an independent computation."""

import fastai.callback.schedule  # noqa: F401  (adds `fit_one_cycle`)
import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner

from eo_brew.models.encoder import create_encoder
from eo_brew.tasks.learners import (
    change_learner,
    classification_learner,
    height_learner,
    segmentation_learner,
)


def vit(n=3, size=32, patch=4):
    return create_encoder(
        "vit_tiny_patch16_224",
        {"ms": n},
        img_size=size,
        patch_size=patch,
        depth=4,
        embed_dim=48,
        num_heads=3,
    )


def swin():
    return create_encoder(
        "swin_tiny_patch4_window7_224",
        {"ms": 3},
        img_size=32,
        window_size=2,
        embed_dim=24,
        depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
    )


def loaders(samples, bs=10, **kw):
    return DataLoaders(
        *(DataLoader(samples, bs=bs, num_workers=0, shuffle=s, **kw) for s in (True, False)),
        device="cpu",
    )


def fit(learn, n, lr):
    if hasattr(learn, "progress"):
        learn.remove_cb(learn.progress)
    with learn.no_logging():
        learn.fit_one_cycle(n, lr)
    return learn


def scores(learn):
    with learn.no_logging():
        return list(learn.validate())


@pytest.fixture(autouse=True)
def one_thread():
    "Networks this small are fastest on one thread."
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="module")
def blocks():
    "Ten images of three classes in blocks of 8 pixels, noise added."
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (10, 4, 4), generator=g).repeat_interleave(8, 1).repeat_interleave(8, 2)
    x = (
        torch.stack([(y == c).float() for c in range(3)], 1) * 2
        - 1
        + 0.3 * torch.randn(10, 3, 32, 32, generator=g)
    )
    return x, y


@pytest.mark.parametrize("make,epochs,lr", [(vit, 35, 4e-3), (swin, 80, 6e-3)])
def test_segmentation_overfits_and_scores_like_scikit_learn(blocks, make, epochs, lr):
    from sklearn.metrics import f1_score, jaccard_score

    x, y = blocks
    y = y.clone()
    y[:, :4] = 255
    learn = fit(
        segmentation_learner(
            loaders([({"ms": a}, b) for a, b in zip(x, y)]), make(), 3, channels=32
        ),
        epochs,
        lr,
    )
    _, iou, f1, acc = scores(learn)
    p, t = learn.get_preds(dl=learn.dls.valid)
    on = t != 255
    p, t = p.argmax(1)[on], t[on]
    assert iou == pytest.approx(jaccard_score(t, p, average="macro"), abs=1e-6)
    assert f1 == pytest.approx(f1_score(t, p, average="macro"), abs=1e-6) and acc == pytest.approx(
        (p == t).float().mean().item(), abs=1e-6
    )
    assert iou > 0.97 and acc > 0.985 and type(learn) is Learner
    assert len(learn.show_results(max_n=2).axes) >= 6


def test_a_named_timm_vit_goes_through_segmentation(blocks):
    x, y = blocks
    learn = segmentation_learner(
        loaders([({"ms": a}, b) for a, b in zip(x, y)], bs=4),
        "vit_tiny_patch16_224",
        3,
        channels=16,
        frozen=True,
        encoder_kwargs=dict(img_size=32, patch_size=8, depth=4, embed_dim=24, num_heads=1),
    )
    before = {k: v.clone() for k, v in learn.model.encoder.state_dict().items()}
    fit(learn, 1, 1e-3)
    assert np.isfinite(scores(learn)[0]) and all(
        torch.equal(v, before[k]) for k, v in learn.model.encoder.state_dict().items()
    )
    assert not learn.model.encoder.training


def test_classification_overfits():
    x = torch.eye(3)[torch.arange(10) % 3][:, :, None, None] * 2 + 0.3 * torch.randn(10, 3, 32, 32)
    learn = fit(
        classification_learner(loaders([({"ms": a}, i % 3) for i, a in enumerate(x)]), vit(), 3),
        15,
        2e-3,
    )
    assert scores(learn)[1:] == [1.0, 1.0]
    learn.show_results(max_n=3)


def test_multi_label_scores_like_scikit_learn():
    from sklearn.metrics import average_precision_score

    y = torch.stack([torch.arange(10) % 2, (torch.arange(10) % 3 == 0).long()], 1)
    x = torch.cat([y, y[:, :1] * 0], 1)[:, :, None, None] * 2.0 + 0.3 * torch.randn(10, 3, 32, 32)
    learn = fit(
        classification_learner(
            loaders([({"ms": a}, b.float()) for a, b in zip(x, y)]), vit(), 2, multi_label=True
        ),
        20,
        2e-3,
    )
    _, ap, f1 = scores(learn)
    p, t = learn.get_preds(dl=learn.dls.valid)
    assert ap == pytest.approx(average_precision_score(t, p), abs=1e-6) and ap > 0.99 and f1 > 0.95


def test_change_overfits_and_ignores_the_order_of_dates(blocks):
    from sklearn.metrics import f1_score, jaccard_score

    x, _ = blocks
    y = torch.zeros(10, 32, 32, dtype=torch.long)
    for i in range(10):
        y[i, 8 * (i % 3) : 8 * (i % 3) + 8, 8 * (i % 2) : 8 * (i % 2) + 16] = 1
    after = x + y[:, None] * torch.tensor([3.0, -3, 3])[:, None, None]
    learn = fit(
        change_learner(
            loaders([({"before": a, "after": b}, c) for a, b, c in zip(x, after, y)]),
            vit(),
            channels=32,
        ),
        25,
        4e-3,
    )
    _, f1, iou = scores(learn)
    p, t = learn.get_preds(dl=learn.dls.valid)
    p = p.argmax(1)
    assert (
        f1 == pytest.approx(f1_score(t.flatten(), p.flatten()), abs=1e-6)
        and iou == pytest.approx(jaccard_score(t.flatten(), p.flatten()), abs=1e-6)
        and f1 > 0.97
    )
    learn.show_results(max_n=1)


def test_height_overfits_and_skips_declared_nodata(blocks):
    x, y = blocks
    h = y * 5.0 + 2
    h[:, :4] = float("nan")
    learn = fit(
        height_learner(
            loaders([({"ms": a}, b) for a, b in zip(x, h)]), vit(), nodata=float("nan"), channels=32
        ),
        100,
        8e-3,
    )
    _, rmse, mae, delta = scores(learn)
    p, t = learn.get_preds(dl=learn.dls.valid)
    on = torch.isfinite(t)
    e = (p[:, 0] - t)[on].double()
    assert rmse == pytest.approx(
        e.square().mean().sqrt().item(), abs=1e-4
    ) and mae == pytest.approx(e.abs().mean().item(), abs=1e-4)
    assert rmse < 0.35 and delta > 0.97
    learn  # heights of 2, 7 and 12
    learn.show_results(max_n=1)


def boxes(n=10):
    g = torch.Generator().manual_seed(0)
    out = []
    for i in range(n):
        x, b, l = 0.1 * torch.randn(3, 64, 64, generator=g), [], []
        for k in range(0 if i == 9 else 1 + i % 3):
            q, c = (i + k) % 4, 1 + (i + k) % 2
            x0, y0 = 4 + 32 * (q % 2) + 4 * (i % 3), 4 + 32 * (q // 2) + 4 * (i % 2)
            x[:, y0 : y0 + 16, x0 : x0 + 16] = 3.0 if c == 1 else -3.0
            b.append([x0, y0, x0 + 16, y0 + 16])
            l.append(c)
        out.append(
            (
                {"ms": x},
                dict(
                    boxes=torch.tensor(b).reshape(-1, 4), labels=torch.tensor(l, dtype=torch.long)
                ),
            )
        )
    return out


def detector(samples, bs=5):
    from eo_brew.tasks.detection import BoxAP, collate_boxes, detection_learner

    few = dict(
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=50,
        rpn_post_nms_top_n_test=20,
        box_batch_size_per_image=32,
    )
    return detection_learner(
        loaders(samples, bs, create_batch=collate_boxes),
        vit(3, 64, 8),
        2,
        channels=32,
        anchors=(8, 16, 24, 32),
        metrics=[BoxAP("map_50")],
        detector_kwargs=few,
    )


def test_detection_trains_with_an_empty_image():
    pytest.importorskip("pycocotools")
    learn = detector(boxes(4)[2:] + boxes()[9:], bs=3)
    before = scores(learn)[0]
    fit(learn, 4, 1e-3)
    loss, ap = scores(learn)
    assert loss < before and 0 <= ap <= 1
    learn.show_results(max_n=2)


def test_detection_overfits_and_scores_like_torchmetrics():
    pytest.importorskip("pycocotools")
    from torchmetrics.detection import MeanAveragePrecision

    samples = boxes()
    learn = detector(samples)
    learn.metrics, metrics = [], learn.metrics
    fit(learn, 34, 3e-3)
    learn.metrics = metrics
    got = scores(learn)[1]
    own = MeanAveragePrecision(box_format="xyxy")
    learn.model.eval()
    with torch.no_grad():  # image by image, what the metric takes in batches
        for d, y in samples:
            own.update(learn.model({"ms": d["ms"][None]})["boxes"], [y])
    assert got == pytest.approx(own.compute()["map_50"].item(), abs=1e-3) and got > 0.95


@pytest.mark.parametrize(
    "y,match", [(torch.full((32, 32), 7), r"labels hold \[7\]"), (torch.zeros(32, 32), "integers")]
)
def test_labels_out_of_range_are_named(y, match):
    learn = segmentation_learner(
        loaders([({"ms": torch.zeros(3, 32, 32)}, y)] * 2, 2), vit(), 3, channels=16
    )
    with pytest.raises(ValueError, match=match):
        fit(learn, 1, 1e-3)


def test_undeclared_nan_heights_are_an_error():
    y = torch.ones(32, 32)
    y[0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 1024 heights|2 of 2048 heights"):
        height_learner(loaders([({"ms": torch.zeros(3, 32, 32)}, y)] * 2, 2), vit())


def test_a_class_that_training_never_shows_is_told():
    a, b = (({"ms": torch.randn(3, 32, 32)}, torch.full((32, 32), k)) for k in (0, 2))
    dls = DataLoaders(*(DataLoader([s] * 2, bs=2, num_workers=0) for s in (a, b)), device="cpu")
    with pytest.warns(UserWarning, match=r"classes \[2\] occur in the validation set"):
        learn = fit(segmentation_learner(dls, vit(), 3, channels=16), 1, 1e-3)
    assert scores(learn)[1] < 0.5  # missed, not left out


def test_an_unlabelled_batch_has_no_loss_and_no_nan():
    learn = segmentation_learner(
        loaders([({"ms": torch.randn(3, 32, 32)}, torch.full((32, 32), 255))] * 2, 2),
        vit(),
        3,
        channels=16,
    )
    fit(learn, 1, 1e-3)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


@pytest.mark.parametrize(
    "y,match",
    [
        (dict(boxes=[[4, 4, 4, 9]], labels=[1]), "have no area"),
        (dict(boxes=[[0, 0, 9, 9]], labels=[3]), r"labels hold \[3\]"),
    ],
)
def test_bad_boxes_are_named(y, match):
    with pytest.raises(ValueError, match=match):
        fit(detector([({"ms": torch.zeros(3, 64, 64)}, y)] * 2, 2), 1, 1e-3)
