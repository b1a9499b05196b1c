"""Everything that only a GPU can show, in at most eight minutes, as JSON.

    python benchmarks/gpu.py --out gpu.json
    python benchmarks/gpu.py --smoke --out smoke.json      # seconds, on the CPU: does it run?

| part | what |
|---|---|
| deo, mssdf | images/s beside the plain steps of `deo_step.py` and `mssdf_step.py`; fp32, bf16, compiled |
| dry_deo, dry_mssdf | `dry_run` in bf16: images/s, wait for the loader, memory, largest batch, utilisation |
| views, masks | milliseconds of views (a sample) and masks (a pair) on the device, and their share of the step |
| predict | windows/s of an encoder over the shipped scene, swept as `predict_raster` does |
| losses | the same steps in fp32 and bf16 from the same weights, side by side |

The trial leaves `deo` out, whose plain step takes half a minute on a core, and its losses.

A part that fails leaves its error, one that would begin after `--minutes` is left out: both are
written down. The order is that of what is wanted most.
"""

import argparse
import json
import time
from pathlib import Path

import deo_step
import mssdf_step
import torch
from steps import in_fit, learner_of, loaders, seconds

from eo_brew.maps.sweep import Sweep
from eo_brew.runs.dry_run import compile_blocks, dry_run
from eo_brew.scenes.open import open_scene, sample_scene
from eo_brew.views.masking import cross_modal_mask, info_mask, info_scores
from eo_brew.views.multicrop import MultiCrop

#: sizes of the measurements on a GPU, and of the trial that they run
FULL = dict(arch="vit_small_patch16_224", size=224, bs=64, steps=20, repeats=5)
SMOKE = dict(arch="vit_tiny_patch16_224", size=64, bs=2, steps=2, repeats=1)


def against_plain(a, method):
    "images/s of the plain step and of eo_brew's, for each precision."
    line = ["--arch", a.arch, "--bs", a.bs, "--device", a.device, "--repeats", a.repeats]
    line += [] if method == "deo" else ["--size", a.size]
    run = dict(deo=deo_step, mssdf=mssdf_step)[method].main
    more = [[], ["--bf16"]] + ([["--bf16", "--compile"]] if method == "deo" else [])
    more = [[]] if a.smoke else more
    return {" ".join(m) or "fp32": run([*map(str, line), *m]) for m in more}


def learner(a, method, precision=None):
    small = dict(n_local=2, global_size=a.size, local_size=a.size // 2)
    more = dict(views=small) if a.smoke and method == "deo" else {}
    dls = loaders(a.bs, a.size, a.device)
    return learner_of(method, a.arch, dls, precision or a.half, **more)


def dry(a, method):
    "What a dry run measures, with the GPU's utilisation right after it."
    learn = learner(a, method)
    found = dry_run(learn, 1, steps=a.steps, probe=a.device != "cpu").to_dict()
    try:
        return found | dict(utilisation=torch.cuda.utilization())
    except Exception as e:  # needs NVIDIA's library
        return found | dict(utilisation=f"not known: {type(e).__name__}")


def step_seconds(a, method, compiled=False):
    learn = learner(a, method)
    if compiled:
        compile_blocks(learn.model)
    return in_fit(learn, lambda step: seconds(step, a.repeats, a.device))


def views(a):
    "ms a sample, and the share of a DEO step."
    batch = loaders(a.bs, a.size, a.device).train.one_batch()[0]
    crop = MultiCrop()
    took = seconds(lambda: crop(batch), a.repeats, a.device)
    return dict(ms_a_sample=1e3 * took / a.bs, share=took / step_seconds(a, "deo"))


def masks(a):
    "ms a pair, and the share of an MSSDF step."
    images = [torch.rand(a.bs, c, a.size, a.size, device=a.device) * 255 for c in (3, 10)]

    def pair():
        scores = [info_scores(x, 16) for x in images]
        cross_modal_mask(info_mask(scores[0]), info_mask(scores[1]), 0.4)

    took = seconds(pair, a.repeats, a.device)
    return dict(ms_a_pair=1e3 * took / a.bs, share=took / step_seconds(a, "mssdf"))


def predict(a):
    "Windows a second over the shipped scene."
    learn = learner(a, "mssdf")
    encoder = learn.model.encoder.eval()
    scene = open_scene(sample_scene(), bands=encoder.sensors["ms"].band_names)
    sweep = Sweep(encoder, scene, "ms", size=a.size, bs=a.bs, any_gsd=True)
    cells = sweep.shape if not a.smoke else (8, 8)
    took = seconds(lambda: sweep.region(0, 0, *cells), a.repeats, a.device)
    windows = max(1, round(cells[0] * cells[1] / (a.size / encoder.patch_size) ** 2))
    return dict(windows=windows, windows_per_s=windows / took)


def losses(a):
    "The loss of each step, in both precisions, from the same weights on the same batch."

    def job(learn):
        out = []

        def steps(step):
            for _ in range(a.steps):
                step()
                out.append(round(float(learn.loss), 5))
            return out

        return steps

    out = {}
    for method in ("mssdf",) if a.smoke else ("deo", "mssdf"):
        for precision in ("fp32", "bf16"):
            learn = learner(a, method, precision)
            out[f"{method} {precision}"] = in_fit(learn, job(learn))
    return out


PARTS = dict(
    deo=lambda a: against_plain(a, "deo"),
    mssdf=lambda a: against_plain(a, "mssdf"),
    dry_deo=lambda a: dry(a, "deo"),
    dry_mssdf=lambda a: dry(a, "mssdf"),
    views=views,
    masks=masks,
    predict=predict,
    losses=losses,
    deo_compiled=lambda a: dict(images_per_s=a.bs / step_seconds(a, "deo", not a.smoke)),
)


def measure(a):
    "All parts, with the machine and the seconds that each took."
    start = time.monotonic()
    gpu = torch.cuda.get_device_name() if a.device.startswith("cuda") else "CPU"
    out = dict(machine=gpu, torch=torch.__version__, options={k: getattr(a, k) for k in FULL})
    for name in a.parts:
        t = time.monotonic()
        if t - start > 60 * a.minutes:
            out[name] = "left out: no time"
            continue
        try:
            out[name] = PARTS[name](a)
        except Exception as e:  # the others are still worth having
            out[name] = f"{type(e).__name__}: {e}"
        out[f"{name}, s"] = round(time.monotonic() - t, 1)
        Path(a.out).write_text(json.dumps(out, indent=1))
        print(name, json.dumps(out[name]), flush=True)
    return out


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", required=True)
    p.add_argument("--smoke", action="store_true", help="tiny, on the CPU")
    p.add_argument("--minutes", type=float, default=7, help="no part begins after so many")
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    for k, v in FULL.items():
        p.add_argument(f"--{k}", type=type(v))
    a = p.parse_args(argv)
    for k, v in (SMOKE if a.smoke else FULL).items():
        setattr(a, k, v if getattr(a, k) is None else getattr(a, k))
    a.parts = [n for n in a.parts if not (a.smoke and n == "deo")]
    a.device, a.half = ("cpu", "fp32") if a.smoke else ("cuda", "bf16")
    return measure(a)


if __name__ == "__main__":
    main()
