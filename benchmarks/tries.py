"""What could still make a step faster, tried one by one on the student's passes of DEO's views.

    OMP_NUM_THREADS=1 python benchmarks/tries.py [--bs 4] [--repeats 3] [--device cuda] [--bf16] [--save]

A step's student sees 2 views of 224 px and 10 of 96 px, forwards and backwards. Each try changes one
thing, and its time stands beside that of the package's own passes in the same run:

- channels last: images and the patch embedding in that memory format
- compiled: torch.compile of the blocks
- packed: all views in one pass, five local ones behind each other in the place of a global one, kept
  apart by a mask of attention (as NaViT does); the same tokens come out, which is checked
- half of the local tokens: local views with every second token left out. Another task, for the speed alone

Queries, keys and values are one product in timm's blocks already, and attention is torch's fused one.
"""

import argparse
from functools import partial

import torch
from record import record
from steps import seconds

from eo_brew.app.demo import S2_GROUND_BANDS
from eo_brew.core.sensors import get_sensor
from eo_brew.models.encoder import create_encoder, final_norm

GLOBAL, LOCAL, N_GLOBAL, N_LOCAL = 224, 96, 2, 10


def plain(encoder, large, small):
    "The package's own: a pass for each size."
    return [encoder(x, "ms").patches for x in (large, small)]


def channels_last(encoder, large, small):
    "The same with images in another order."
    return plain(
        encoder, *(x.contiguous(memory_format=torch.channels_last) for x in (large, small))
    )


def half_tokens(mask, encoder, large, small):
    "Local views without every second token."
    return [encoder(large, "ms").patches, encoder(small, "ms", mask=mask).patches]


def packed(encoder, large, small):
    "All views as rows of one length: local ones behind each other, each seeing itself alone."
    trunk = encoder.trunk
    a, b = (trunk._pos_embed(encoder.embed(x, "ms")) for x in (large, small))
    fit = a.shape[1] // b.shape[1]
    rows = -(-len(b) // fit)
    room = b.new_zeros(rows * fit - len(b), *b.shape[1:])
    filled = torch.cat([b, room]).unflatten(0, (rows, fit)).flatten(1, 2)
    x = torch.cat([a, torch.nn.functional.pad(filled, (0, 0, 0, a.shape[1] - filled.shape[1]))])
    owner = torch.zeros(len(x), a.shape[1], device=x.device)
    owner[len(a) :] = 1 + torch.arange(a.shape[1], device=x.device) // b.shape[1]
    mask = owner[:, None, :, None] == owner[:, None, None, :]
    for block in trunk.blocks:
        x = block(x, attn_mask=mask)
    x = final_norm(trunk)(x)
    small_ones = x[len(a) :, : filled.shape[1]].unflatten(1, (fit, -1)).flatten(0, 1)[: len(b)]
    return [x[: len(a), 1:], small_ones[:, 1:]]


def check_same(encoder, *views):
    "Packing must change nothing but the time."
    with torch.no_grad():
        for x, y in zip(plain(encoder.eval(), *views), packed(encoder, *views)):
            torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-3)
    encoder.train()


def step(way, encoder, views, bf16):
    "Forwards and backwards."
    with torch.autocast(views[0].device.type, torch.bfloat16, enabled=bf16):
        loss = sum(t.float().square().mean() for t in way(encoder, *views))
    loss.backward()


def measure(a):
    "{try: seconds}"
    torch.manual_seed(0)
    sensor = get_sensor("sentinel2_l1c", S2_GROUND_BANDS)
    make = partial(create_encoder, a.arch, {"ms": sensor}, drop_path=0.0)
    encoder = make().to(a.device)
    views = [
        2000 * torch.rand(n * a.bs, len(sensor), s, s, device=a.device)
        for n, s in ((N_GLOBAL, GLOBAL), (N_LOCAL, LOCAL))
    ]
    check_same(encoder, *views)
    last, fast = make().to(a.device), make().to(a.device)
    last.embeds["ms"].proj.to(memory_format=torch.channels_last)
    for block in fast.trunk.blocks:
        block.compile(dynamic=False)
    hidden = torch.arange((LOCAL // encoder.patch_size) ** 2, device=a.device) % 2 == 1
    hidden = hidden.expand(len(views[1]), -1)
    ways = {
        "as it is": (plain, encoder),
        "channels last": (channels_last, last),
        "compiled": (plain, fast),
        "packed": (packed, encoder),
        "half of the local tokens": (partial(half_tokens, hidden), encoder),
    }
    out = {}
    for name, (way, model) in ways.items():
        out[name] = seconds(lambda: step(way, model, views, a.bf16), a.repeats, a.device)
        print(f"{name:26} {out[name]:.3f} s, {out['as it is'] / out[name]:.2f}x", flush=True)
    return out


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--arch", default="vit_tiny_patch16_224")
    p.add_argument("--device", default="cpu")
    for k, v in dict(bs=4, repeats=3).items():
        p.add_argument(f"--{k}", type=int, default=v)
    for k in ("bf16", "save"):
        p.add_argument(f"--{k}", action="store_true")
    a = p.parse_args(argv)
    took = measure(a)
    for name in list(took)[1:] if a.save else ():
        record(
            f"try, {name}" + ", bf16" * a.bf16,
            a.device,
            what=f"student's passes of DEO's views, {a.arch}, batch {a.bs}: {name}"
            + ", bf16" * a.bf16,
            plain=took["as it is"],
            ours=took[name],
            unit="s a step of CPU time" if a.device == "cpu" else "s a step",
            ratio=took["as it is"] / took[name],
            better="more",
        )
    return took


if __name__ == "__main__":
    main()
