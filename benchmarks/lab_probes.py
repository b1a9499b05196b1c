"""What frozen features are worth on the shipped scene's test columns and on EuroSAT chips."""

import warnings
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from eo_brew.app.demo import S2_GROUND_BANDS
from eo_brew.core.sensors import get_sensor, rgb_from
from eo_brew.data.labels import read_labels
from eo_brew.data.splits import stripe_columns
from eo_brew.probes.features import frozen, join_layers, token_labels
from eo_brew.probes.probes import linear_probe
from eo_brew.probes.protocols import cka, draw_labels
from eo_brew.probes.scene_probe import scene_array, scene_tokens, scene_windows
from eo_brew.probes.scores import ProbeResult, confusion_matrix
from eo_brew.runs.monitors import effective_rank
from eo_brew.scenes.open import open_raster, sample_labels, sample_scene
from lab_data import SENSOR, ground_bands

WINDOW, CELL, DRAWS, FOLDS, FEW = 64, 8, 5, 5, 0.05
CHIP_C = 0.01


class Truth:
    """Scene, labels and chips, read once."""

    def __init__(self, chips, classes):
        scene = open_raster(sample_scene(), sensor=SENSOR, bands=S2_GROUND_BANDS)
        sensor = get_sensor(SENSOR, S2_GROUND_BANDS)
        self.pixels, ok = scene_array(scene)
        self.test = stripe_columns(self.pixels.shape[2])
        labels, self.names = read_labels(sample_labels(), scene)
        self.labels = np.where(ok, labels, 255)
        self.wins = scene_windows(self.pixels.shape[1], self.test, WINDOW, CELL)
        self.all_bands, self.chips, self.classes = chips, ground_bands(chips), classes
        self.inputs = {"ms": (self.pixels, self.chips)}
        self.inputs["rgb"] = tuple(rgb_from(x, sensor) for x in self.inputs["ms"])


def scene_rows(truth, tokens):
    """Features, labels and windows of the training cells and of the test cells."""
    h, w, _ = tokens.shape
    lab = token_labels(torch.as_tensor(truth.labels)[None], (h, w), min_labelled=0.5)[0]
    col, group, k = (
        torch.as_tensor(truth.test[::CELL]).repeat(h),
        torch.full((h, w), -1),
        WINDOW // CELL,
    )
    for i, (r, c) in enumerate(truth.wins):
        group[r // CELL : r // CELL + k, c // CELL : c // CELL + k] = i
    lab[group.flatten() < 0] = 255
    x, group = tokens.flatten(0, 1), group.flatten()
    return [(x[m], lab[m], group[m]) for m in (~col & (lab != 255), col & (lab != 255))]


def score_scene(truth, encoder, modality, layers):
    """Macro-F1 and accuracy with all labels, and macro-F1 with 5% of them."""
    x = truth.inputs[modality][0]
    train, test = scene_rows(
        truth, scene_tokens(encoder, x, truth.wins, WINDOW, CELL, modality, layers)
    )
    full = linear_probe(train, test, classes=truth.names)
    few = []
    for draw in range(DRAWS):
        at = draw_labels(train[1], FEW, draw)
        few.append(
            linear_probe(
                tuple(t[at] for t in train), test, classes=truth.names, Cs=(0.01,)
            ).macro_f1
        )
    return {
        f"scene_{modality}": full.macro_f1,
        f"scene_{modality}_acc": full.accuracy,
        f"scene_{modality}_few": float(np.mean(few)),
    }


def chip_features(encoder, x, modality, layers, bs=50):
    """CLS (N,D), mean of tokens (N,D) and last tokens (N,n,D) of chips."""
    outs = []
    with frozen(encoder):
        for b in x.split(bs):
            t = (
                encoder(b, modality, layers=layers)
                if hasattr(encoder, "modalities")
                else encoder(b)
            )
            cls, mean = (join_layers(list(t.layers), pool)[0] for pool in ("cls", "mean"))
            if not hasattr(encoder, "modalities"):
                cls = t.cls
            last = (
                F.interpolate(t.layers[-1].as_map(), (8, 8), mode="bilinear")
                .flatten(2)
                .transpose(1, 2)
            )
            outs.append((cls, mean, last))
    return [torch.cat(o) for o in zip(*outs)]


def folds(y):
    """Rows of training and of test, 5 folds of 5 draws."""
    for draw in range(DRAWS):
        yield from StratifiedKFold(FOLDS, shuffle=True, random_state=draw).split(y, y)


def one_each(y, draws=25):
    """One training row of each class, all others for test."""
    for draw in range(draws):
        train = draw_labels(y, FEW, draw)
        yield train, np.setdiff1d(np.arange(len(y)), train)


def accuracy(make, x, y, splits):
    """Mean accuracy of a classifier over splits of rows."""
    x = np.asarray(x, dtype=np.float64)
    scores = []
    for train, test in splits:
        mean, std = x[train].mean(0), x[train].std(0) + 1e-6
        fitted = make().fit((x[train] - mean) / std, y[train])
        scores.append((fitted.predict((x[test] - mean) / std) == y[test]).mean())
    return float(np.mean(scores))


def linear():
    """The probe of chips: its penalty is fixed, 80 chips being too few to choose it."""
    return LogisticRegression(C=CHIP_C, max_iter=100)


def score_chips(truth, encoder, modality, layers):
    """Accuracies on chips (CLS, mean of tokens, both, one label a class), and the last tokens."""
    cls, mean, last = chip_features(encoder, truth.inputs[modality][1], modality, layers)
    both, y, out = torch.cat([cls, mean], 1), truth.classes, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, x in (("cls", cls), ("mean", mean), ("both", both)):
            if modality == "rgb" and name != "both":
                continue
            out[f"chips_{modality}_{name}"] = accuracy(linear, x, y, folds(y))
        out[f"chips_{modality}_few"] = accuracy(linear, both, y, one_each(y))
    return out, last


def score(truth, encoder, layers, teacher):
    """All scores of an encoder; `teacher` (N,n,W) are the optical teacher's tokens of the chips."""
    out = {}
    for modality in ("ms", "rgb"):
        out |= score_scene(truth, encoder, modality, layers)
        chips, last = score_chips(truth, encoder, modality, layers)
        out |= chips
        out[f"cka_{modality}"] = cka(last.flatten(0, 1), teacher.flatten(0, 1))
        out[f"rank_{modality}"] = float(
            effective_rank(F.normalize(last[:, ::4].flatten(0, 1), dim=-1))
        )
        out[f"speckle_{modality}"] = speckle(last.unflatten(1, (8, 8)))
    return out


def speckle(maps):
    """How much neighbouring tokens differ, as a share of the tokens' spread; maps (N,h,w,D)."""
    spread = (maps - maps.mean((0, 1, 2))).square().sum(-1).mean()
    steps = [(maps[:, 1:] - maps[:, :-1]), (maps[:, :, 1:] - maps[:, :, :-1])]
    return float(torch.stack([d.square().sum(-1).mean() for d in steps]).mean() / (2 * spread))


def score_rgb_teacher(truth, teacher, layers):
    """Scores of a frozen optical teacher, which sees colours alone: under both headings."""
    rgb = score_scene(truth, teacher, "rgb", layers) | score_chips(truth, teacher, "rgb", layers)[0]
    return rgb | {k.replace("rgb", "ms"): v for k, v in rgb.items()}


def forest(seed):
    """A random forest for chips."""
    return RandomForestClassifier(100, random_state=seed)


def score_forest(truth, seed, bands=None):
    """Random forests: on pixels of the scene, and on mean and deviation of the bands of chips.

    Under 'rgb' the forest sees three bands, under 'ms' the encoder's ten or, with bands='all', the
    thirteen of the chips.
    """
    out, y = {}, truth.classes
    for modality, (scene, chips) in truth.inputs.items():
        out |= pixel_forests(truth, scene, modality, seed)
        chips = truth.all_bands if bands == "all" and modality == "ms" else chips
        x = torch.cat([chips.mean((2, 3)), chips.std((2, 3))], 1)
        out[f"chips_{modality}_both"] = accuracy(lambda: forest(seed), x, y, folds(y))
        out[f"chips_{modality}_few"] = accuracy(lambda: forest(seed), x, y, one_each(y))
    return out


@cache
def pixel_forests(truth, scene, modality, seed):
    """Per-pixel random forests with all labels and with 5% of them, scored on cells of 8 pixels."""
    means = F.avg_pool2d(scene[None], CELL)[0]
    spread = (F.avg_pool2d(scene[None] ** 2, CELL)[0] - means**2).clamp(min=0).sqrt()
    (x, y, _), (xt, yt, _) = scene_rows(truth, torch.cat([means, spread]).permute(1, 2, 0))

    def fit(at):
        m = RandomForestClassifier(
            100, min_samples_leaf=2, class_weight="balanced_subsample", random_state=seed
        )
        said = m.fit(x[at], y[at]).predict(xt)
        return ProbeResult(confusion_matrix(yt, said, len(truth.names)), truth.names)

    full = fit(np.arange(len(y)))
    few = np.mean([fit(draw_labels(y, FEW, d)).macro_f1 for d in range(DRAWS)])
    return {
        f"scene_{modality}": full.macro_f1,
        f"scene_{modality}_acc": full.accuracy,
        f"scene_{modality}_few": float(few),
    }
