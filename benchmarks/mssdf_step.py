"""Time of an MSSDF training step: eo_brew's batch against a loop over samples, in one run.

The loop does what the released training step does, written out anew: masks sample by sample and
patch by patch, one encoder pass a modality, both decoders sample by sample with sequences of
their own lengths, torch's ordinary AdamW and a Python loop for the moving average. Both have the
same student, teacher, decoders and losses. Their order alternates.

    python benchmarks/mssdf_step.py [--arch vit_small_patch16_224] [--bs 16] [--size 160] \\
        [--repeats 3] [--threads 2] [--device cuda] \\
        [--bf16]

Prints seconds a step, median and in brackets the least, and the ratio of the medians: by the
clock on the wall, and on the CPU also in seconds of the process, all threads together, so that
other programs on the machine do not count. On a CPU both do the same matrix products, four
fifths of the step: there the ratio is little above 1. With --bf16 the batched step is autocast;
on a GPU the loop too, on a CPU it stays in fp32, as the released code does there.
"""

import argparse
import statistics
import time
from itertools import permutations

import torch
import torch.nn.functional as F
from masks import looped
from record import record

from eo_brew.train.optim import adamw, decay_groups
from eo_brew.models.encoder import create_encoder
from eo_brew.views.masking import cross_modal_masks, grey_levels, info_mask, info_scores
from eo_brew.methods.mssdf import MSSDFLoss, MSSDFModel
from eo_brew.models.decoders import _positions


def targets(model, batch, masks):
    with torch.no_grad():
        said = model.teacher.together(batch)
    tokens = {m: F.layer_norm(t.patches, t.patches.shape[-1:]) for m, t in said.items()}
    return {
        "tokens": tokens,
        "masks": masks,
        "valid": {m: torch.ones_like(x) for m, x in masks.items()},
    }


class Batched:
    def __init__(self, model, bf16):
        self.model = model
        self.loss = MSSDFLoss()
        self.bf16 = bf16
        self.opt = adamw(decay_groups(model), 1e-4)

    def __call__(self, batch):
        model, p = self.model, self.model.encoder.patch_size
        scores = info_scores([grey_levels(x) for x in batch.values()], p)
        masks = cross_modal_masks({m: info_mask(scores) for m in batch}, 0.4)
        view = {
            **batch,
            **{f"{m}_mask": x for m, x in masks.items()},
            **{f"{m}_patch_valid": torch.ones_like(x) for m, x in masks.items()},
        }
        with torch.autocast(batch["ms"].device.type, torch.bfloat16, enabled=self.bf16):
            target = targets(model, batch, masks)
            loss = self.loss(model([view], target["tokens"]), target)
        loss.backward()
        self.opt.step()
        self.opt.zero_grad()
        model.teacher.update(model.student, 0.996)


class Looped:
    def __init__(self, model, bf16):
        self.model = model
        self.loss = MSSDFLoss()
        self.bf16 = bf16
        self.opt = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], 1e-4, foreach=False
        )

    def decode(self, tokens, masks, i):
        fusion, decoder, grid = (
            self.model.fusion,
            self.model.decoder,
            next(iter(tokens.values())).grid,
        )
        pos, seq, seen = (
            _positions(grid, fusion.width, fusion.fusion),
            [],
            torch.zeros_like(next(iter(masks.values()))[0]),
        )
        for m, t in tokens.items():
            x = fusion.project(torch.cat([t.cls[i, None], t.patches[i]])) + fusion.names[m]
            seq.append(torch.cat([x[:1], x[1:] + pos[~masks[m][i]]]))
            seen = seen | ~masks[m][i]
        x = torch.cat(seq + [fusion.fusion + pos[seen]])[None]
        for b in fusion.blocks.blocks:
            x = b(x)
        fused, out = fusion.blocks.norm(x)[:, -int(seen.sum()) :] + pos[seen], {}
        for m in tokens:
            y = torch.cat([fused, (decoder.mask_tokens[m] + pos)[None]], 1)
            for b in decoder.blocks.blocks:
                y = b(y)
            out[m] = decoder.blocks.norm(y)[0, fused.shape[1] :]
        return out

    def between(self, tokens, target, a, b):
        one = [
            self.model._between(
                tokens[a].patches[i : i + 1],
                target["tokens"][b][i : i + 1],
                target["masks"][a][i : i + 1],
                target["valid"][a][i : i + 1],
                a,
                b,
            )
            for i in range(len(tokens[a].cls))
        ]
        return {
            k: tuple(torch.cat(x) for x in zip(*(p[k] for p in one))) for k in ("shared", "unique")
        } | {"valid": torch.cat([p["valid"] for p in one])}

    def __call__(self, batch):
        model, names = self.model, list(batch)
        grey = [grey_levels(x) for x in batch.values()]
        masks = dict(
            zip(
                names,
                (
                    m.to(grey[0].device)
                    for m in looped([g.cpu() for g in grey], model.encoder.patch_size, 0.4)
                ),
            )
        )
        with torch.autocast(batch["ms"].device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.forward(batch, masks)
        loss.backward()
        self.opt.step()
        self.opt.zero_grad()
        with torch.no_grad():
            for a, b in zip(model.teacher.parameters(), model.student.parameters()):
                a.mul_(0.996).add_(b, alpha=0.004)

    def forward(self, batch, masks):
        model, names, n = self.model, list(batch), len(next(iter(batch.values())))
        tokens = {m: model.encoder(batch[m], m, mask=masks[m]) for m in names}
        rows = [self.decode(tokens, masks, i) for i in range(n)]
        f = {m: torch.stack([r[m] for r in rows]) for m in names}
        target = targets(model, batch, masks)
        pred = {
            "tokens": {m: model.decoder.predict(f[m]) for m in names},
            "modality": [model.classify(t.cls) for t in tokens.values()],
            "cls": torch.stack([t.cls for t in tokens.values()]),
            "between": [self.between(tokens, target, a, b) for a, b in permutations(names, 2)],
        }
        return self.loss(pred, target)


def main(argv=None):
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--arch", default="vit_small_patch16_224")
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--save", action="store_true")
    ap.add_argument("--bf16", action="store_true")
    for name, default in (("bs", 16), ("size", 160), ("bands", 10), ("repeats", 3), ("threads", 2)):
        ap.add_argument(f"--{name}", type=int, default=default)
    a = ap.parse_args(argv)
    torch.manual_seed(0)
    torch.set_num_threads(a.threads)
    batch = {
        "rgb": torch.randn(a.bs, 3, a.size, a.size, device=a.device),
        "ms": torch.randn(a.bs, a.bands, a.size, a.size, device=a.device),
    }
    steps = {"batched": Batched, "loop": Looped}
    for name, kind in list(steps.items()):
        torch.manual_seed(0)
        steps[name] = kind(
            MSSDFModel(
                create_encoder(
                    a.arch, {"rgb": 3, "ms": a.bands}, img_size=a.size, modality_embed=True
                )
            )
            .to(a.device)
            .train(),
            a.bf16 and (name == "batched" or a.device == "cuda"),
        )
    clocks = {"wall": time.perf_counter} | ({"CPU": time.process_time} if a.device == "cpu" else {})
    seconds = {(clock, name): [] for clock in clocks for name in steps}
    for k in range(a.repeats + 1):
        for name in list(steps)[:: 1 if k % 2 else -1]:
            if a.device != "cpu":
                torch.cuda.synchronize()
            start = {c: f() for c, f in clocks.items()}
            steps[name](batch)
            if a.device != "cpu":
                torch.cuda.synchronize()
            for c, f in clocks.items():
                if k:
                    seconds[c, name].append(f() - start[c])
    for c in clocks:
        loop, batched = (statistics.median(seconds[c, n]) for n in ("loop", "batched"))
        print(
            f"{c}: batched {batched:.2f} s a step ({min(seconds[c, 'batched']):.2f}), "
            f"loop {loop:.2f} ({min(seconds[c, 'loop']):.2f}), ratio {loop / batched:.2f}"
        )
    if a.save:
        record(
            "MSSDF step" + ", bf16" * a.bf16 + " (GPU)" * (a.device == "cuda"),
            a.device,
            what=f"MSSDF step, {a.arch}, {a.size} px, batch {a.bs}" + ", bf16" * a.bf16,
            plain=loop,
            ours=batched,
            unit="s a step of CPU time" if a.device == "cpu" else "s a step",
            ratio=loop / batched,
            target=4.0,
            better="more",
        )
    return dict(plain=a.bs / loop, eo_brew=a.bs / batched)


if __name__ == "__main__":
    main()
