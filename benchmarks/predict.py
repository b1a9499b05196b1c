"""Whole scenes: windows a second of `predict_raster` beside the model alone, and peak memory
against the size of the scene.

    OMP_NUM_THREADS=1 python benchmarks/predict.py [--arch vit_small_patch16_224] [--side 2304] [--device cuda] \\
        [--out FILE.json]
    OMP_NUM_THREADS=1 python benchmarks/predict.py --memory
    OMP_NUM_THREADS=1 python benchmarks/predict.py --seams --arch vit_small_patch14_dinov2 --checkpoint WEIGHTS

Speed: an encoder over a COG of real pixels (4 bands, uint16), to a COG of three principal
components. A window counts once, though neighbouring blocks compute the row and the column
between them twice, and reading, blending, projecting and writing are inside the time. Beside it
the same encoder on as many windows that lie in memory, in batches of the same size. Both run in
turn, `--repeats` times in one process; the fastest of each counts. On a CPU the same ratio is
given for the processor seconds of all threads, which other programs on the machine disturb less.

Memory: a process of its own maps a scene with a model that costs nothing, once with 5,000 x
5,000 and once with 20,000 x 20,000 pixels (4 bands; one tile in eight holds pixels, the others
are empty but count as measured), and tells how far its peak rose.

Seams: tokens of the sample scene by timm weights; the mean step between neighbouring cells where
a window begins or ends, over the mean step elsewhere, without overlap and with the default one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from affine import Affine
from rasterio.windows import Window

from eo_brew.models.encoder import create_encoder
from eo_brew.scenes.open import open_scene, read_window, sample_scene
from eo_brew.maps.predict import predict_raster
from eo_brew.core.sensors import get_sensor
from eo_brew.maps.sweep import Sweep

S4 = get_sensor("sentinel2_l1c", bands="B02 B03 B04 B08".split())


def write_scene(path, side, share=1.0):
    "Tiles of real pixels, mirrored and shifted, in a `share` of a square scene."
    x = (
        read_window(open_scene(sample_scene(), bands=S4.band_names), (0, 0, 512, 512))[0]
        .astype("uint16")
        .clip(1)
    )
    rng = np.random.default_rng(0)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype="uint16",
        count=4,
        height=side,
        width=side,
        crs="EPSG:32633",
        transform=Affine(10, 0, 3e5, 0, -10, 59e5),
        tiled=True,
        blockxsize=512,
        blockysize=512,
        compress="lzw",
        sparse_ok=True,
        bigtiff="IF_SAFER",
    ) as dst:
        for y in range(0, side, 512):
            for left in range(0, side, 512):
                if rng.random() >= share:
                    continue
                h, w = min(512, side - y), min(512, side - left)
                dst.write(
                    np.roll(x, tuple(rng.integers(0, 512, 2)), (1, 2))[:, :h, :w],
                    window=Window(left, y, w, h),
                )
        for i, n in enumerate(S4.band_names, 1):
            dst.set_band_description(i, n)
        dst.update_tags(EO_OFFSET="0")
    return path


def opened(path):
    return open_scene(path, "sentinel2_l1c", S4.band_names)


def sync(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device, run):
    "Seconds on the clock and of the processor."
    sync(device)
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    sync(device)
    return time.perf_counter() - clock, time.process_time() - cpu


@torch.no_grad()
def run_model(encoder, windows, size, bs, device, amp):
    x = torch.rand(bs, 4, size, size) * 3000
    for i in range(0, windows, bs):
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            encoder(x[: min(bs, windows - i)].to(device))


def speed(a):
    torch.manual_seed(0)
    encoder = (
        create_encoder(a.arch, {"ms": S4}, img_size=a.size, patch_size=a.patch).eval().to(a.device)
    )
    amp, kw = a.device == "cuda", dict(size=a.size, bs=a.bs, device=a.device)
    times = dict(model=[], predict_raster=[])
    with tempfile.TemporaryDirectory() as d:
        scene = opened(write_scene(Path(d) / "s.tif", a.side))
        sweep = Sweep(encoder, scene, **kw)
        n = len(sweep.ys) * len(sweep.xs)
        run_model(encoder, 2 * a.bs, a.size, a.bs, a.device, amp)  # warm
        for i in range(a.repeats):
            times["model"].append(
                timed(a.device, lambda: run_model(encoder, n, a.size, a.bs, a.device, amp))
            )
            times["predict_raster"].append(
                timed(
                    a.device,
                    lambda: predict_raster(
                        encoder,
                        scene,
                        Path(d) / f"{i}.tif",
                        pca=3,
                        dtype="int16",
                        progress=False,
                        **kw,
                    ),
                )
            )
    clock, cpu = ({k: min(t[i] for t in v) for k, v in times.items()} for i in (0, 1))
    return dict(
        arch=a.arch,
        device=a.device,
        bf16=amp,
        scene=[a.side, a.side, 4],
        window=a.size,
        patch=a.patch,
        bs=a.bs,
        windows=n,
        windows_per_s={k: round(n / t, 2) for k, t in clock.items()},
        ratio=round(clock["model"] / clock["predict_raster"], 3),
        seconds={k: [round(t[0], 2) for t in v] for k, v in times.items()},
        **(
            {}
            if a.device == "cuda"
            else dict(ratio_of_processor_seconds=round(cpu["model"] / cpu["predict_raster"], 3))
        ),
    )


def status(key):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(key)) / 1024


def peak(path):
    "MB by which this process grows while it maps the scene at `path`."
    run = lambda scene, out: predict_raster(
        lambda b: b["ms"][:, :3, ::8, ::8],
        scene,
        out,
        kind="embeddings",
        dtype="int16",
        size=256,
        progress=False,
    )
    with tempfile.TemporaryDirectory() as d:
        run(opened(write_scene(Path(d) / "warm.tif", 600)), Path(d) / "warm_out.tif")
        open("/proc/self/clear_refs", "w").write("5")
        start, t = status("VmRSS"), time.perf_counter()
        run(opened(path), Path(d) / "out.tif")
        return dict(
            growth_MB=round(status("VmHWM") - start, 1), seconds=round(time.perf_counter() - t, 1)
        )


def memory(a):
    out = {}
    with tempfile.TemporaryDirectory() as d:
        for side in a.sides:
            f = write_scene(Path(d) / f"{side}.tif", side, 1 / 8)
            r = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, "--peak", str(f)],
                capture_output=True,
                text=True,
                check=True,
            )
            out[side] = json.loads(r.stdout.splitlines()[-1])
    return dict(memory=out)


def seams(a):
    encoder = (
        create_encoder(
            a.arch, {"ms": S4}, img_size=a.size, patch_size=a.patch, checkpoint=a.checkpoint
        )
        .eval()
        .to(a.device)
    )
    scene, out = open_scene(sample_scene(), bands=S4.band_names), {}
    for overlap in 0, None:
        s = Sweep(encoder, scene, size=a.size, overlap=overlap, device=a.device)
        steps = np.abs(np.diff(s.region(0, 0, *s.shape)[0], axis=2)).mean((0, 1))
        border = np.isin(np.arange(1, s.shape[1]), [e for x in s.xs for e in (x, x + s.n)])
        out[f"{s.overlap * s.cell} px"] = round(
            float(steps[border].mean() / steps[~border].mean()), 3
        )
    return dict(arch=a.arch, window=a.size, patch=a.patch, seams_by_overlap=out)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--arch", default="vit_small_patch16_224")
    p.add_argument("--device", default="cpu")
    p.add_argument("--out")
    for k, v in dict(size=224, patch=16, side=2304, bs=8, repeats=3).items():
        p.add_argument(f"--{k}", type=int, default=v)
    p.add_argument("--memory", action="store_true")
    p.add_argument("--sides", type=int, nargs="+", default=[5000, 20000])
    p.add_argument("--peak")
    p.add_argument("--seams", action="store_true")
    p.add_argument("--checkpoint")
    a = p.parse_args()
    if a.device == "cpu":
        torch.set_num_threads(1)
    result = (
        peak(a.peak) if a.peak else memory(a) if a.memory else seams(a) if a.seams else speed(a)
    )
    print(json.dumps(result))
    if a.out:
        Path(a.out).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
