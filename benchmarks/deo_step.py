"""Images/s of a DEO training step: eo_brew's learner against a plain transcription of the released
schedule, in one run.

The plain version does what DEO-FM's training loop does, written out anew: one pass per modality
and view size (four a step), torch's ordinary AdamW, a Python loop for the moving average and one
for the clipping, per-sample views on the CPU. Both have the same student, heads, teachers,
losses and crops. The order of the two alternates; medians are printed.

    python benchmarks/deo_step.py [--arch vit_tiny_patch16_224] [--bs 4] [--repeats 5] \\
        [--device cuda] [--bf16] [--compile] \\
        [--profile] [--save]
"""

import argparse
import statistics
import time

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import set_seed
from record import record
from torchvision.transforms import RandomResizedCrop, v2

from eo_brew.losses.coding_rate import SimDINOLoss
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.methods.deo import deo_learner
from eo_brew.runs.dry_run import BF16, compile_blocks
from eo_brew.losses.distill import cls_distill_loss, patch_distill_loss
from eo_brew.scenes.open import sample_scene
from eo_brew.app.demo import S2_GROUND_BANDS
from eo_brew.core.sensors import with_rgb
from eo_brew.models.teachers import efficientnet_lite_teacher


class PlainStep:
    "One training step after the released schedule."

    def __init__(self, learn, vfm, sensor, bf16):
        self.model = learn.model
        self.vfm = vfm
        self.sensor = sensor
        self.bf16 = bf16
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.opt = torch.optim.AdamW(self.params, lr=1e-4, foreach=False)
        self.sim = SimDINOLoss()
        jitter = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
            ]
        )
        self.jitter = jitter

    def views(self, batch):
        "Per sample, per view, on the CPU, as a Dataset's transform would do it."
        out = []
        for size, scale, n in ((224, (0.4, 1.0), 2), (96, (0.05, 0.4), 10)):
            for _ in range(n):
                ms, rgb = [], []
                for m, r in zip(batch["ms"].cpu(), batch["rgb"].cpu()):
                    i, j, h, w = RandomResizedCrop.get_params(m, list(scale), [3 / 4, 4 / 3])
                    flip = torch.rand(()) < 0.5
                    a, b = (
                        v2.functional.resized_crop(t, i, j, h, w, [size, size], antialias=True)
                        for t in (m, r)
                    )
                    if flip:
                        a, b = a.flip(-1), b.flip(-1)
                    ms.append(a)
                    rgb.append(self.jitter(b.clamp(0, 1)))
                out.append(
                    {
                        "ms": torch.stack(ms).to(batch["ms"].device),
                        "rgb": torch.stack(rgb).to(batch["ms"].device),
                    }
                )
        return out

    def __call__(self, batch):
        model, B = self.model, len(batch["ms"])
        views = self.views(with_rgb(batch, self.sensor))
        glob, loc = views[:2], views[2:]
        cat = lambda vs, m: torch.cat([v[m] for v in vs])
        with torch.autocast(batch["ms"].device.type, torch.bfloat16, enabled=self.bf16):
            with torch.no_grad():
                t_ms = model.teacher(cat(glob, "ms")).unflatten(0, (2, -1))
                t = self.vfm(cat(glob, "rgb"))
            enc = model.encoder
            ms = torch.cat([enc(cat(vs, "ms"), modality="ms").cls for vs in (glob, loc)])
            g = enc(cat(glob, "rgb"), modality="rgb", layers=model.layers)
            cls = torch.cat([g.cls, enc(cat(loc, "rgb"), modality="rgb").cls])
            s_ms, s_cls = (
                model.student.head(ms).unflatten(0, (-1, B)),
                model.heads["cls"](cls).unflatten(0, (-1, B)),
            )
            dense = [
                patch_distill_loss(model.heads[k](s.patches), q.patches, s.grid, q.grid)
                for k, s, q in zip(("mid", "late"), g.layers, t.layers)
            ]
            loss = self.sim(s_ms, t_ms) + 0.5 * (
                cls_distill_loss(s_cls, t.cls.unflatten(0, (2, -1))) + sum(dense) / 2
            )
        self.opt.zero_grad()
        loss.backward()
        for p in self.params:
            if p.grad is not None and (n := p.grad.norm()) > 3:
                p.grad.mul_(3 / (n + 1e-6))
        self.opt.step()
        with torch.no_grad():
            for p, q in zip(model.student.parameters(), model.teacher.parameters()):
                q.mul_(0.996).add_(p, alpha=0.004)
        return loss


def learner_step(learn, batch):
    "One step through fastai's own loop, with all callbacks."
    learn.one_batch(0, (dict(batch),))


def main(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--arch", default="vit_tiny_patch16_224")
    p.add_argument("--bs", type=int, default=4)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--device", default="cpu")
    p.add_argument("--bf16", action="store_true")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--save", action="store_true")
    p.add_argument("--profile", action="store_true")
    args = p.parse_args(argv)
    set_seed(0)
    dls = eo_dataloaders(
        sample_scene(),
        sensor="sentinel2_l1c",
        bands=S2_GROUND_BANDS,
        size=256,
        bs=args.bs,
        n=max(64, 4 * args.bs),
        valid_pct=0.05,
        device=args.device,
    )
    vfm = efficientnet_lite_teacher().to(args.device)
    learners = [deo_learner(dls, args.arch, vfm) for _ in range(2)]
    for l in learners:
        l.model.to(args.device).train()
    ours, plain = (
        learners[0],
        PlainStep(learners[1], vfm, dls.sensors["ms"], args.bf16 and args.device == "cuda"),
    )
    if args.bf16:
        ours.add_cb(BF16())
    if args.compile:
        compile_blocks(ours.model)
    batch = dls.train.one_batch()[0]
    times = {"plain": [], "eo_brew": []}
    sync = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)

    def timed(name, f):
        sync()
        t, c = time.perf_counter(), time.process_time()
        f()
        sync()
        times[name].append((time.perf_counter() - t, time.process_time() - c))

    class Inside(Callback):
        "The learner's own loop needs `fit`'s set-up: one epoch is begun, the benchmark runs inside it."

        order = 200

        def before_train(self):
            self.learn.n_iter = 10**6
            steps = (
                ("plain", lambda: plain(batch)),
                ("eo_brew", lambda: learner_step(self.learn, batch)),
            )
            for r in range(args.repeats + 1):
                for name, f in steps[:: 1 if r % 2 else -1]:
                    timed(name, f)
            if args.profile:
                with torch.profiler.profile() as prof:
                    learner_step(self.learn, batch)
                print(
                    prof.key_averages().table(
                        sort_by="self_cpu_time_total"
                        if args.device == "cpu"
                        else "self_cuda_time_total",
                        row_limit=25,
                        max_name_column_width=40,
                    )
                )
            raise CancelFitException()

    ours.add_cb(Inside())
    with ours.no_logging(), ours.no_bar():
        ours.fit(1)
    wall, cpu = (
        {k: statistics.median(t[i] for t in v[1:]) for k, v in times.items()} for i in (0, 1)
    )
    for k, v in wall.items():
        print(
            f"{k:8s} {v * 1e3:8.0f} ms a step   {args.bs / v:7.2f} images/s   {cpu[k] * 1e3:8.0f} ms of CPU time"
        )
    print(
        f"ratio    {wall['plain'] / wall['eo_brew']:.2f}x, "
        f"of CPU time {cpu['plain'] / cpu['eo_brew']:.2f}x   ({args.arch}, 2x224 + 10x96, "
        f"batch {args.bs}, {args.device}, {torch.get_num_threads()} threads, medians of {args.repeats})"
    )
    if args.save:
        record(
            "DEO step" + ", bf16" * args.bf16 + " (GPU)" * (args.device == "cuda"),
            args.device,
            what=f"DEO step, {args.arch}, 2 x 224 + 10 x 96, batch {args.bs}"
            + ", bf16" * args.bf16,
            plain=args.bs / wall["plain"],
            ours=args.bs / wall["eo_brew"],
            unit="images/s",
            ratio=wall["plain"] / wall["eo_brew"],
            target=2.0 if args.device == "cuda" else 1.5,
            better="more",
        )
    return {k: args.bs / v for k, v in wall.items()}


if __name__ == "__main__":
    main()
