"""Why tokens are speckled, and what the mean over shifts does to their scores: the figures of *Shifts*.

    OMP_NUM_THREADS=1 python benchmarks/speckle.py --data LAB ENCODERS/'optical, 640 steps, seed 0.safetensors' ...
        [--picture OUT.jpg]

The encoders are what `lab.py --encoders` wrote. `speckle.csv`: windows of the sample scene are read again LAG pixels
further on; mean squared difference of the two tokens at one place in the window, as a share of twice the spread of all
tokens (a semivariogram, 1 = as far apart as any two). `shifts.csv`: the lab's scores of each encoder, read once and as
the mean over shifts. The picture is the scene's tokens under the first encoder, both ways.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F

from eo_brew.app.demo import S2_GROUND_BANDS, ground_tokens
from eo_brew.core.sensors import rgb_from
from eo_brew.core.show import show_pca, token_pca
from eo_brew.methods.deo import distill_layers
from eo_brew.models.shifts import ShiftAverage
from eo_brew.models.teachers import efficientnet_lite_teacher
from eo_brew.probes.compare import random_copy
from eo_brew.scenes.open import open_raster, sample_scene
from eo_brew.weights.save import load_encoder
from lab_arms import VIEW
from lab_data import SENSOR, read_chips
from lab_probes import Truth, score_chips, score_scene, speckle

MEASURED = Path(__file__).parent.parent / "eo_brew" / "samples" / "measured"
LAGS, PATCH, WINDOWS = (1, 2, 4, 8, 16, 32), 8, 40
SCORES = (
    "scene_ms",
    "scene_ms_few",
    "chips_ms_cls",
    "chips_ms_mean",
    "chips_ms_both",
    "chips_ms_few",
)


def corners(x):
    "Upper left corners of windows all over a scene (C,H,W), with room for the largest lag."
    spare = VIEW + max(LAGS)
    every = [
        (r, c)
        for r in range(0, x.shape[1] - spare, VIEW)
        for c in range(0, x.shape[2] - spare, VIEW)
    ]
    return every[:: len(every) // WINDOWS]


@torch.no_grad()
def maps(look, x, down=0, right=0):
    "(N,D,h,w) of `look` for all windows, moved by some pixels."
    views = [x[:, r + down :, c + right :][:, :VIEW, :VIEW] for r, c in corners(x)]
    return torch.cat([look(torch.stack(views[i : i + 10])) for i in range(0, len(views), 10)])


def apart(look, x):
    "Lag -> how far apart tokens are that see ground so many pixels apart."
    first = maps(look, x)
    twice = 2 * (first - first.mean((0, 2, 3), keepdim=True)).square().sum(1).mean()
    far = lambda other: (other - first).square().sum(1).mean() / twice
    return {lag: float(far(maps(look, x, lag)) + far(maps(look, x, 0, lag))) / 2 for lag in LAGS}


def last_tokens(encoder):
    "What an encoder says at its last tapped layer, as maps."
    encoder.eval()
    return lambda b: encoder(b, "ms", layers=distill_layers(encoder)).layers[-1].as_map()


def looks(first, sensor):
    "Name -> function of windows (B,C,H,W), for what learns nothing here."
    vfm = efficientnet_lite_teacher(layers=(2, 3), scale=2.0)
    mean, std = sensor.mean[:, None, None], sensor.std[:, None, None]
    cells = (VIEW // PATCH,) * 2
    told = lambda i: (
        lambda b: F.adaptive_avg_pool2d(vfm(rgb_from(b, sensor)).layers[i].as_map(), cells)
    )
    return {
        "means of pixels": lambda b: F.avg_pool2d((b - mean) / std, PATCH),
        "random weights": last_tokens(random_copy(first, 0)),
        "optical teacher, mid": told(0),
        "optical teacher, late": told(1),
    }


def named(file):
    "Arm, steps and seed in a file's name."
    arm, steps, seed = file.stem.rsplit(", ", 2)
    return f"{arm}, {steps}", int(seed.split()[1])


def scores(truth, encoder):
    "The lab's scores of all bands, and the speckle on chips."
    layers = distill_layers(encoder)
    chips, last = score_chips(truth, encoder, "ms", layers)
    found = score_scene(truth, encoder, "ms", layers) | chips
    return {k: found[k] for k in SCORES} | dict(speckle=speckle(last.unflatten(1, (PATCH, PATCH))))


def write(name, rows):
    "A table among the measured ones."
    pd.DataFrame(rows).round(4).to_csv(MEASURED / name, index=False)


def draw(encoder, file):
    "The tokens of the scene, read once and as the mean over shifts."
    scene = open_raster(sample_scene(), sensor=SENSOR, bands=S2_GROUND_BANDS)
    fig, axs = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
    once, often = (
        ground_tokens(e, scene, distill_layers(encoder), VIEW)
        for e in (encoder, ShiftAverage(encoder))
    )
    show_pca(once, ax=axs[0], title="read once")
    show_pca(often, reference=token_pca(once), ax=axs[1], title="mean over 2 x 2 shifts")
    fig.savefig(file, dpi=130, pil_kwargs=dict(quality=80))


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("encoders", nargs="+", type=Path)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--picture", type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    chips, classes, _ = read_chips(a.data)
    truth = Truth(chips, classes)
    loaded = {named(f): load_encoder(f).eval() for f in a.encoders}
    first = next(iter(loaded.values()))
    if a.picture:
        draw(first, a.picture)
    looked = {(n, 0): look for n, look in looks(first, first.sensors["ms"]).items()}
    looked |= {key: last_tokens(e) for key, e in loaded.items()}
    rows = []
    for (what, seed), look in looked.items():
        rows += [
            dict(what=what, seed=seed, lag=k, apart=v) for k, v in apart(look, truth.pixels).items()
        ]
        write("speckle.csv", rows)
    rows = []
    for (name, seed), encoder in loaded.items():
        for n in (1, 2):
            found = scores(truth, encoder if n == 1 else ShiftAverage(encoder, n))
            rows.append(dict(encoder=name, seed=seed, shifts=n) | found)
            write("shifts.csv", rows)
            print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
