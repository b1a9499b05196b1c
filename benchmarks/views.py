"""Time of DEO's views, 2 x 224 + 10 x 96 of 10 bands and RGB with photometric changes, against the
usual chain.

    python benchmarks/views.py                  # one CPU thread: the figure of a data-loading core
    python benchmarks/views.py --device cuda    # the batch on a GPU; the usual chain stays on one CPU thread

Prints milliseconds a sample, median and in brackets the least of the repeats, and the ratio of
the medians. On the CPU the time is that of the process, so that other programs on the machine do
not count. `--profile` shows where the time goes.
"""

import argparse
import statistics
import time

import torch
from record import record
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as tvf

from eo_brew.views.multicrop import MultiCrop

VIEWS = (  # name, pixels, area, share blurred, share solarised
    ("global-1", 224, (0.4, 1.0), 1.0, 0.0),
    ("global-2", 224, (0.4, 1.0), 0.1, 0.2),
    *[("local", 96, (0.05, 0.4), 0.5, 0.0)] * 10,
)


def usual_chain():
    "torchvision's transforms, sample by sample and view by view: crop and flip shared, colours on RGB."
    jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
    views = []
    for _, size, scale, blur, solarize in VIEWS:
        colours = [
            jitter,
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=blur),
        ]
        if solarize:
            colours.append(v2.RandomSolarize(0.5, p=solarize))
        views.append((size, scale, v2.Compose(colours)))

    def one(sample):
        out = []
        for size, scale, colours in views:
            box = RandomResizedCrop.get_params(sample["ms"], list(scale), [3 / 4, 4 / 3])
            flip = torch.rand(1).item() < 0.5
            view = {
                k: tvf.resized_crop(x, *box, [size, size], antialias=True)
                for k, x in sample.items()
            }
            if flip:
                view = {k: tvf.horizontal_flip(x) for k, x in view.items()}
            view["rgb"] = colours(view["rgb"])
            out.append(view)
        return out

    def batch(b):
        views = [one({"ms": ms, "rgb": rgb}) for ms, rgb in zip(b["ms"], b["rgb"])]
        return [{k: torch.stack([s[v][k] for s in views]) for k in b} for v in range(len(VIEWS))]

    return batch


def clock(f, device, repeats):
    "Median and least seconds of `f()`."
    times = []
    for i in range(repeats + 1):
        torch.manual_seed(i)
        if device == "cuda":
            torch.cuda.synchronize()
        now = time.process_time if device == "cpu" else time.perf_counter
        start = now()
        f()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(now() - start)
    return statistics.median(times[1:]), min(times[1:])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bs", type=int, default=16, help="samples in a batch")
    parser.add_argument("--size", type=int, default=256, help="pixels of a patch, a side")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    cpu = {
        "ms": torch.rand(args.bs, 10, args.size, args.size, generator=g) * 4000,
        "rgb": torch.rand(args.bs, 3, args.size, args.size, generator=g),
    }
    batch = {k: x.to(args.device) for k, x in cpu.items()}
    crop, bare, usual = MultiCrop(), MultiCrop(photometric=False), usual_chain()
    masked = {
        **batch,
        "ms_valid": torch.rand(args.bs, 1, args.size, args.size, generator=g).to(args.device)
        > 0.001,
    }
    print(
        f"2 x 224 + 10 x 96, 10 bands + RGB, window {args.size}, "
        f"batch {args.bs}, {args.device}, torch {torch.__version__}, one CPU thread"
    )

    def report(name, f, device=args.device):
        median, least = (1e3 * t / args.bs for t in clock(f, device, args.repeats))
        print(f"{name:22}{median:8.2f} ({least:.2f}) ms a sample")
        return median

    ours = report("MultiCrop", lambda: crop(batch))
    report("  without photometrics", lambda: bare(batch))
    report("  with a valid mask", lambda: crop(masked))
    theirs = report("torchvision v2, on CPU", lambda: usual(cpu), "cpu")
    print(f"ratio {theirs / ours:.2f}")
    if args.save:
        record(
            "views" + " (GPU)" * (args.device == "cuda"),
            args.device,
            what="views, 2 x 224 + 10 x 96, 10 bands and RGB",
            plain=theirs,
            ours=ours,
            unit="ms a sample",
            ratio=theirs / ours,
            target=16.0,
            better="less",
        )
    if args.profile:
        with torch.profiler.profile() as p:
            crop(batch)
        print(
            p.key_averages().table(
                sort_by="self_cpu_time_total" if args.device == "cpu" else "self_cuda_time_total",
                row_limit=20,
                max_name_column_width=40,
            )
        )


if __name__ == "__main__":
    main()
