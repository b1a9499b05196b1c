"""Time of MSSDF's masks for a pair of images of 320 px, on one thread, beside a loop over samples
and patches.

    python benchmarks/masks.py [--bs 16] [--size 320] [--bands 10] [--repeats 20] [--device cuda]

Prints milliseconds a pair (RGB and multispectral: scores, two masks by information, the second
completed from the first), median and in brackets the least of the repeats. On the CPU the time
is that of the process, so that other programs on the machine do not count. On a GPU a second
line says whether a call waits for the device.
"""

import argparse
import statistics
import time

import torch
from record import record

from eo_brew.views.masking import cross_modal_mask, info_mask, info_scores


def batched(images, p, q):
    scores = info_scores(images, p)
    a = info_mask(scores)
    return a, cross_modal_mask(a, info_mask(scores), q)


def looped(images, p, q):
    "One sample and one patch after the other; torch's own functions inside."
    kx = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])[None, None]
    masks = []
    for i in range(len(images[0])):
        total = 0
        for x in images:
            g = torch.nn.functional.pad(x[i].mean(0)[None, None], (1, 1, 1, 1), mode="replicate")
            slope = (torch.conv2d(g, kx) ** 2 + torch.conv2d(g, kx.mT) ** 2).sqrt()[0, 0]
            g = g[0, 0, 1:-1, 1:-1]
            corners = [(y, x) for y in range(0, g.shape[0], p) for x in range(0, g.shape[1], p)]
            total = total + torch.stack(
                [
                    slope[y : y + p, x : x + p].mean() + g[y : y + p, x : x + p].var(unbiased=False)
                    for y, x in corners
                ]
            )
        lo, hi = total.quantile(0.2), total.quantile(0.8)
        w = torch.where(total < lo, 0.8, torch.where(total > hi, 0.3, 0.5))
        n = round(0.75 * len(w))
        a, b = (
            torch.zeros(len(w), dtype=torch.bool).index_fill(0, torch.multinomial(w, n), True)
            for _ in range(2)
        )
        for k in range(len(w)):
            if torch.rand(()) < q:
                b[k] = ~a[k]
        while b.sum() != n:
            k = torch.randint(len(w), ())
            if b[k] == (b.sum() > n):
                b[k] = ~b[k]
        masks.append((a, b))
    return [torch.stack(m) for m in zip(*masks)]


def times(f, repeats, device):
    clock = time.process_time if device == "cpu" else time.perf_counter
    out = []
    for _ in range(repeats + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        t = clock()
        f()
        if device != "cpu":
            torch.cuda.synchronize()
        out.append((clock() - t) * 1e3)
    return out[1:]


def main():
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("bs", 16), ("size", 320), ("bands", 10), ("patch", 16), ("repeats", 20)):
        ap.add_argument(f"--{name}", type=int, default=default)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--save", action="store_true")
    a = ap.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = [torch.rand(a.bs, c, a.size, a.size, device=a.device) * 255 for c in (3, a.bands)]
    found = {}
    for name, f, n in (
        ("batched", lambda: batched(images, a.patch, 0.4), a.bs),
        ("loop", lambda: looped([x[:1].cpu() for x in images], a.patch, 0.4), 1),
    ):
        t = [x / n for x in times(f, a.repeats if n > 1 else 3, a.device)]
        found[name] = statistics.median(t)
        print(f"{name}: {found[name]:.2f} ms a pair ({min(t):.2f})")
    if a.save:
        record(
            "masks" + " (GPU)" * (a.device == "cuda"),
            a.device,
            what=f"information-aware masks, {a.size} px",
            plain=found["loop"],
            ours=found["batched"],
            unit="ms a pair",
            ratio=found["loop"] / found["batched"],
            target=4.0 if a.device == "cpu" else 0.1,
            better="less",
        )
    if a.device == "cpu":
        return
    torch.cuda.set_sync_debug_mode("error")
    batched(images, a.patch, 0.4)
    print("no call waits for the device")


if __name__ == "__main__":
    main()
