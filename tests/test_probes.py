"""Probes against scikit-learn, and the scene's split against leaks."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from eo_brew.models.encoder import create_encoder
from eo_brew.data.labels import read_labels
from eo_brew.data.splits import stripe_columns
from eo_brew.scenes.open import open_raster
from eo_brew.probes.features import Features, encode, token_labels
from eo_brew.probes.scores import confusion_matrix
from eo_brew.probes.probes import knn_probe, linear_probe
from eo_brew.probes.protocols import (
    cka,
    encode_to_zarr,
    low_data_probe,
    multilabel_probe,
    open_features,
)
from eo_brew.probes.scene_probe import (
    RawCells,
    one_ground,
    pixel_forest,
    scene_probe,
    scene_windows,
)


def clouds(n=300, d=6, k=3, noise=0.8, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % k
    return Features(
        torch.eye(d)[y] * 2 + noise * torch.randn(n, d, generator=g), y, torch.arange(n) // 10
    )


def vit(n=4, **kw):
    return create_encoder(
        "vit_tiny_patch16_224",
        {"ms": n},
        img_size=32,
        patch_size=8,
        depth=4,
        embed_dim=32,
        num_heads=2,
        **kw,
    )


def test_linear_probe_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    f = clouds(noise=2.0)
    tr, te = f[:200], f[200:]
    r = linear_probe(tr, te, Cs=(0.1,))
    m, s = tr.x.mean(0), tr.x.std(0, unbiased=False)
    ref = (
        LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
        .fit((tr.x - m) / s, tr.y)
        .predict((te.x - m) / s)
    )
    assert r.macro_f1 == pytest.approx(f1_score(te.y, ref, average="macro"), abs=0.02)
    assert r.accuracy == pytest.approx(accuracy_score(te.y, ref), abs=0.02)
    assert r.confusion.sum() == 100 and r.n_train == 200


def test_c_is_chosen_without_the_test_set():
    "Whatever the test labels are, the C chosen and the classifier are the same."
    f = clouds(noise=2.0)
    tr, te = f[:200], f[200:]
    a = linear_probe(tr, te)
    b = linear_probe(tr, Features(te.x, te.y.flip(0)))
    assert a.settings == b.settings and (a.model(te.x) == b.model(te.x)).all()


def test_knn_against_a_plain_loop():
    f = clouds(90, noise=1.5)
    tr, te = f[:60], f[60:]
    m, s = tr.x.mean(0), tr.x.std(0, unbiased=False)
    unit = lambda x: torch.nn.functional.normalize((x - m) / s, dim=1)
    pred = []
    for q in unit(te.x):
        sims = sorted(((float(q @ v), int(c)) for v, c in zip(unit(tr.x), tr.y)), reverse=True)[:7]
        votes = [sum(np.exp(s / 0.07) for s, c in sims if c == k) for k in range(3)]
        pred.append(int(np.argmax(votes)))
    assert (
        knn_probe(tr, te, k=7).confusion == confusion_matrix(te.y, np.array(pred), 3).numpy()
    ).all()


def test_encode_changes_nothing_in_the_encoder():
    enc = vit(drop_path=0.5).train()
    enc.trunk.blocks[1].eval()
    flags = {n: m.training for n, m in enc.named_modules()}
    data = [({"ms": torch.randn(4, 32, 32)}, i % 2) for i in range(6)]
    a, b = encode(enc, data, bs=4), encode(enc, data, bs=2)
    torch.testing.assert_close(
        a.x, b.x, atol=1e-5, rtol=1e-4
    )  # no stochastic depth, no batch effects
    assert {n: m.training for n, m in enc.named_modules()} == flags
    assert not a.x.requires_grad and a.x.shape == (6, 32)


def test_layers_are_normalised_and_joined():
    enc, data = vit(), [({"ms": torch.randn(4, 32, 32)},) for _ in range(2)]
    f = encode(enc, data, layers=(1, 3), pool="tokens")
    assert f.x.shape == (2 * 16, 64) and f.grid == (4, 4) and f.y is None
    for part in f.x.split(32, -1):
        torch.testing.assert_close(part.mean(-1), torch.zeros(32), atol=1e-4, rtol=0)


def test_fastai_loader_drops_no_sample():
    "A training loader shuffles and drops the last batch; encode must not."
    from fastai.data.load import DataLoader

    data = [({"ms": torch.full((4, 32, 32), float(i))}, i) for i in range(7)]
    f = encode(RawCells(8), DataLoader(data, bs=3, shuffle=True, drop_last=True, num_workers=0))
    assert f.y.tolist() == list(range(7)) and f.x[:, 0].tolist() == list(range(7))


def test_token_labels_majority_by_hand():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, (2, 12, 12))
    y[rng.random(y.shape) < 0.5] = 255
    got = token_labels(torch.as_tensor(y), (3, 3)).reshape(2, 3, 3)
    for b, i, j in np.ndindex(2, 3, 3):
        cell = y[b, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        cell = cell[cell != 255]
        assert got[b, i, j] == (np.bincount(cell, minlength=4).argmax() if len(cell) else 255)


@pytest.mark.parametrize("shape,window", [((96, 768), 96), ((100, 832), 64), ((768, 1536), 128)])
def test_no_window_sees_both_sides_of_the_split(shape, window):
    test = stripe_columns(shape[1])
    wins = scene_windows(shape[0], test, window)
    assert wins and all(
        len(set(test[x : x + window])) == 1 and x + window <= shape[1] and y + window <= shape[0]
        for y, x in wins
    )


def test_scene_probe_learns_nothing_from_test_columns():
    rng = np.random.default_rng(0)
    y = np.kron(rng.integers(0, 3, (8, 96)), np.ones((8, 8), int))
    x = np.stack([(y == c) * 4.0 for c in range(3)]) + rng.normal(size=(3, 64, 768))
    r = scene_probe(RawCells(8), x, y, window=32)
    assert r.accuracy > 0.95 and r.map.shape == (8, 96)
    cols = stripe_columns(768)
    other = x.copy()
    other[..., cols] = rng.normal(size=other[..., cols].shape)
    s = scene_probe(RawCells(8), other, y, window=32)
    assert (s.map[:, ~cols[::8]] == r.map[:, ~cols[::8]]).all() and s.accuracy < 0.6


def test_pixels_without_data_are_not_scored():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (64, 768))
    x = y[None] * 2.0 + rng.normal(size=(1, 64, 768))
    x[:, :8, 520:528] = np.nan
    full = pixel_forest(np.nan_to_num(x), y, trees=5)
    holed = pixel_forest(x, y, trees=5)
    assert full.n_test - holed.n_test == 64


def two_dates(seed=0):
    "Four kinds of ground, of which each date tells two pairs apart: none of them says it all."
    rng = np.random.default_rng(seed)
    y = np.kron(rng.integers(0, 4, (12, 96)), np.ones((8, 8), int))
    return y, [k[None] * 4.0 + rng.normal(size=(1, *y.shape)) for k in (y // 2, y % 2)]


def test_dates_that_are_joined_say_what_none_says_alone():
    y, dates = two_dates()
    alone = [scene_probe(RawCells(8), d, y, window=32).accuracy for d in dates]
    both = scene_probe(RawCells(8), dates, y, window=32)
    assert max(alone) < 0.65 and both.accuracy > 0.95
    trees = [pixel_forest(d, y, trees=10).accuracy for d in (*dates, dates)]
    assert max(trees[:2]) < 0.65 and trees[2] > 0.85
    one = scene_probe(RawCells(8), dates[:1], y, window=32)
    assert one.accuracy == alone[0] and one.n_train == both.n_train


def test_a_cell_counts_where_all_dates_are_valid():
    y, (a, b) = two_dates()
    a[:, :8], b[:, :, :64] = np.nan, np.nan  # a row of cells, and eight columns of cells
    r = scene_probe(RawCells(8), [a, b], y, window=32)
    assert r.n_test == 11 * 32 and r.n_train == 11 * 56
    swapped = scene_probe(RawCells(8), [b, a], y, window=32)
    assert (swapped.n_train, swapped.n_test) == (r.n_train, r.n_test)
    assert pixel_forest([a, b], y, trees=2).n_test == 88 * 256


def test_each_date_is_seen_by_itself():
    "The tokens of a stack are those of the dates, side by side."
    y, dates = two_dates()
    seen = {}

    def keep(train, test, **kwargs):
        seen["x"] = train[0]
        return linear_probe(train, test, **kwargs)

    def rows(scene):
        scene_probe(vit(1), scene, y, window=32, probe=keep)
        return seen["x"]

    parts = []
    for scene in (*dates, dates):
        torch.manual_seed(0)
        parts.append(rows(scene))
    assert torch.equal(parts[2], torch.cat(parts[:2], 1))


LAB = Path(os.environ.get("EO_BREW_LAB", "not given")) / "xlandsat"


@pytest.mark.skipif(not LAB.is_dir(), reason="needs real dates: EO_BREW_LAB")
def test_two_real_dates_on_their_common_ground(tmp_path):
    "Brumadinho before and after: cut-outs 900 m apart are refused, the box that both show is taken."
    for day in ("20190114", "20190130"):
        (file,) = LAB.glob(f"LC08_L2SP_218074_{day}*.tar.gz")
        with tarfile.open(file) as archive:
            archive.extractall(tmp_path / day, filter="data")
    scenes = [tmp_path / "20190114", tmp_path / "20190130"]
    with pytest.raises(ValueError, match="20190130 lies on 300x400 .* cut them with bbox="):
        one_ground([open_raster(s, bands=["B4", "B5"]) for s in scenes])
    box = (-44.19, -20.178, -44.089, -20.102)
    dates = [open_raster(s, bands=["B4", "B5"], bbox=box).load() for s in scenes]
    assert len(one_ground(dates)) == 2
    swir = open_raster(scenes[0], bands=["B7"], bbox=box).values[0]
    y = (swir > np.median(swir)).astype("uint8")
    alone, both = (scene_probe(RawCells(4), d, y, cell=4) for d in (dates[0], dates))
    assert both.n_test == alone.n_test and both.accuracy > 0.6


@pytest.mark.parametrize("width", [768 + 40, 1280 + 88])
def test_a_narrow_last_stripe_is_left_unused(width):
    "Its labels, here wrong, are neither learnt nor scored."
    rng = np.random.default_rng(0)
    y = np.kron(rng.integers(0, 3, (12, width // 8)), np.ones((8, 8), int))
    x = np.stack([(y == c) * 4.0 for c in range(3)]) + rng.normal(size=(3, *y.shape))
    end = width // 256 * 256
    wrong = y.copy()
    wrong[:, end:] = 3
    a, b = (scene_probe(RawCells(8), x[..., :n], l[..., :n]) for n, l in ((end, y), (width, wrong)))
    assert (a.map == b.map[:, : end // 8]).all() and (b.map[:, end // 8 :] == 255).all()
    for r, s in ((a, b), (a.pixels, b.pixels)):  # class 3 exists, and occurs nowhere else
        assert (np.pad(r.confusion, (0, 1)) == s.confusion).all()


@pytest.mark.parametrize("nodata,dtype", [(0, "uint8"), (-1, "int8"), (-32768, "int16")])
def test_nodata_of_a_label_file_is_unlabelled(tmp_path, nodata, dtype):
    from eo_brew.scenes.open import write_raster

    y = np.array([[nodata, 1], [2, nodata]], dtype)
    classes, names = read_labels(write_raster(tmp_path / "y.tif", y, nodata=nodata))
    assert (classes.tolist(), names) == ([[255, 0], [1, 255]], ("1", "2"))


def test_a_training_loader_is_encoded_without_dropped_bands():
    from eo_brew.data.dataloaders import eo_dataloaders
    from eo_brew.scenes.open import sample_scene

    dls = eo_dataloaders(
        sample_scene(),
        sensor="sentinel2_l1c",
        bands=["B02", "B03"],
        size=128,
        bs=8,
        band_dropout=0.5,
        device="cpu",
    )
    assert torch.equal(encode(RawCells(8), dls.train).x, encode(RawCells(8), dls.train_ds).x)


def test_a_random_copy_keeps_nothing_of_what_was_learnt():
    from eo_brew.probes.compare import random_copy

    for arch, kw in (
        ("vit_tiny_patch16_224", dict(modality_embed=True, init_values=0.1, reg_tokens=2)),
        ("vit_small_patch16_dinov3", {}),
        ("swin_tiny_patch4_window7_224", dict(depths=(1, 1), num_heads=(1, 2))),
    ):
        enc = create_encoder(
            arch,
            {"ms": 3},
            img_size=224,
            **{
                **dict(embed_dim=24),
                **(kw if "swin" in arch else dict(depth=2, num_heads=2, **kw)),
            },
        )
        with torch.no_grad():
            for p in enc.parameters():
                p.fill_(7.0)
        new, again, other = random_copy(enc), random_copy(enc), random_copy(enc, 1)
        assert not [n for n, p in new.named_parameters() if (p == 7).any()]
        assert all(
            torch.equal(a, b) for a, b in zip(new.parameters(), again.parameters())
        ) and not torch.equal(new.embeds["ms"].proj.weight, other.embeds["ms"].proj.weight)


def test_labels_of_another_grid_are_warped():
    from eo_brew.scenes.open import open_raster, sample_labels, sample_scene

    scene = open_raster(sample_scene(), sensor="sentinel2_l1c", bands=["B02"])
    y, _ = read_labels(sample_labels(), scene)
    with pytest.warns(UserWarning, match="is warped to the grid of"):
        moved, _ = read_labels(sample_labels(), scene.assign_coords(y=scene.y - 10))
    assert (moved[:-1] == y[1:]).all() and (moved[-1] == 255).all()
    with pytest.raises(ValueError, match="on the scene's grid"):
        read_labels(np.zeros((3, 3)), scene)


def test_an_encoder_that_lacks_bands_is_named():
    from eo_brew.probes.compare import scene_table
    from eo_brew.scenes.open import open_raster, sample_labels, sample_scene
    from eo_brew.core.sensors import get_sensor

    scene = open_raster(sample_scene(), sensor="sentinel2_l1c", bands=["B02", "B03"])
    enc = vit(get_sensor("sentinel2_l1c").select(["B02", "B08"]))
    with pytest.raises(ValueError, match=r"missing \['B08'\]"):
        scene_table(scene, sample_labels(), {"x": enc}, forest=False)


@pytest.mark.parametrize(
    "change,match",
    [
        (lambda tr, te: (tr[tr.y < 2], te), "occur in the test set but not in training"),
        (lambda tr, te: ((tr.x * torch.nan, tr.y), te), "NaN"),
        (lambda tr, te: ((tr.x, tr.y - 1), te), "labels run from -1"),
        (lambda tr, te: ((tr.x, tr.y * 0 + 255), te), "no labelled row"),
    ],
)
@pytest.mark.parametrize("probe", [linear_probe, knn_probe])
def test_bad_labels_and_features(probe, change, match):
    f = clouds()
    with pytest.raises(ValueError, match=match):
        probe(*change(f[:200], f[200:]))


def test_low_data_draws_differ_and_keep_every_class():
    f = clouds()
    c = low_data_probe(f[:200], f[200:], shares=(0.05, 1.0), draws=3)
    assert len(c[0].results) == 3 and c[0].std > 0 and c[0].n < 15 and c[1].mean > c[0].mean - 0.05


def test_multilabel_is_scikit_learns():
    from sklearn.metrics import average_precision_score

    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=g)
    y = (x[:, :2] > 0).long()
    r = multilabel_probe((x[:150], y[:150]), (x[150:], y[150:]))
    assert (
        r.map > 0.98
        and r.map == pytest.approx(np.mean(r.ap))
        and isinstance(average_precision_score(y[150:, 0], x[150:, 0]), float)
    )


def test_cka_of_an_encoder_and_itself(tmp_path):
    pytest.importorskip("zarr")
    enc, data = vit(), [({"ms": torch.randn(4, 32, 32)},) for _ in range(12)]
    f = open_features(
        encode_to_zarr(tmp_path / "f.zarr", enc, data, block=5, pool="tokens", dtype="float32")
    )
    mem = encode(enc, data, pool="tokens")
    torch.testing.assert_close(f.x, mem.x, atol=1e-5, rtol=1e-4)
    assert cka(f.x, mem.x) == pytest.approx(1, abs=1e-4) and (f.group == mem.group).all()
