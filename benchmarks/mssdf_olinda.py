"""MSSDF on the shipped Olinda scene, Landsat bands, their colours and an elevation model, in a very
short run.

    OMP_NUM_THREADS=1 python benchmarks/mssdf_olinda.py [OUT.csv] [--steps 300] [--seeds 0 1 2] [--variants MSSDF ...]

One row a run: variant, seed, how much of the relief a linear probe reads from the frozen tokens
of the colours alone (R2 of each patch's height above its window's median, on rows 176 to 263,
never trained on), effective rank of the tokens, and of every loss part the mean of the first and
the last ten steps. Runs that OUT has already are kept.
"""

import numpy as np
import torch
from mssdf_ablation import MEASURED, PARTS, SIZE, VARIANTS, Kept, table, train
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eo_brew.data.modalities import Modality
from eo_brew.data.samples import WindowDataset
from eo_brew.scenes.open import open_scene, sample_scene
from eo_brew.scenes.windows import window_index

TEST = 176, 264
COLUMNS = ["variant", "seed", "steps", "height_r2", "rank", *PARTS, "cpu_seconds"]


def windows(stride):
    "Windows above and below the test rows, and windows inside them."
    etm = open_scene(sample_scene("olinda") / "L7_ETMs.tif", "landsat7_dn")
    dem = open_scene(sample_scene("olinda") / "olinda_dem_utm25s.tif", "dem", crs="EPSG:31985")
    every = window_index(etm, SIZE, stride=stride)
    top, bottom = every.rows[:, 1], every.rows[:, 1] + SIZE

    def read(keep):
        return Kept(
            WindowDataset(
                etm, every.take(keep), others=["rgb", Modality("dem", dem.sensor, [dem], size=SIZE)]
            )
        )

    return read((bottom <= TEST[0]) | (top >= TEST[1])), read(
        (top >= TEST[0]) & (bottom <= TEST[1])
    )


@torch.no_grad()
def patches(enc, ds, layers=(4, 5)):
    "Tokens of the colours and heights above the window's median, one row a patch."
    batch = {k: torch.stack([torch.as_tensor(x[0][k]) for x in ds.items]) for k in ("rgb", "dem")}
    tokens = torch.cat(
        [
            torch.nn.functional.layer_norm(t.patches, t.patches.shape[-1:])
            for t in enc(batch["rgb"], "rgb", layers=layers).layers
        ],
        -1,
    )
    height = torch.nn.functional.avg_pool2d(batch["dem"], enc.patch_size).flatten(1)
    return tokens.flatten(0, 1).numpy(), (
        height - height.median(1, keepdim=True).values
    ).flatten().numpy()


def main():
    train_ds, (fit, test) = windows(8)[0], windows(16)

    def run(variant, seed, steps):
        enc, row = train(variant, seed, steps, train_ds)
        probe = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 6, 13))).fit(
            *patches(enc, fit)
        )
        return {**row, "height_r2": round(float(probe.score(*patches(enc, test))), 4)}

    table(run, COLUMNS, MEASURED / "mssdf_olinda.csv", VARIANTS, __doc__)


if __name__ == "__main__":
    main()
