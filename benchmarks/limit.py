"""How far a step is from what the machine can multiply.

    OMP_NUM_THREADS=1 python benchmarks/limit.py [--bs 4] [--repeats 3] [--device cuda] [--bf16]
        [--methods deo mssdf predict] [--arch vit_tiny_patch16_224] [--save]

Every product of a step (of matrices, convolutions and attention, forwards and backwards) is noted
with its shapes and strides; then each of them is done alone, on random numbers, as often as the
step does it. Their time is what this machine needs at least with these kernels, and its share of
the step is printed, with what the step does beside. On a CPU all times are those of the process,
on a GPU wall-clock. `--top` lists the operations that take more than that share of the step and
are no products, by torch's profiler.
"""

import argparse
import json

import torch
from record import record
from steps import in_fit, learner_of, loaders, seconds
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")


class Products(TorchDispatchMode):
    "Notes every product: (function, arguments without their numbers) -> how often."

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in PRODUCTS or "scaled_dot_product" in name:
            known = tree_map(_shape_only, (args, kwargs or {}))
            _, n, _ = self.found.setdefault(str((name, known)), (func, 0, known))
            self.found[str((name, known))] = func, n + 1, known
        return func(*args, **(kwargs or {}))

    def seconds(self, repeats, device):
        "All of them alone."
        return sum(n * _alone(f, known, repeats, device) for f, n, known in self.found.values())


class _Shape(tuple):
    "(shape, stride, type, device) of a tensor."


def _shape_only(v):
    return _Shape((v.shape, v.stride(), v.dtype, v.device)) if isinstance(v, torch.Tensor) else v


def _alone(func, known, repeats, device):
    def made(v):
        if not isinstance(v, _Shape):
            return v
        shape, stride, dtype, where = v
        long = 1 + sum((n - 1) * k for n, k in zip(shape, stride)) if all(shape) else 0
        t = torch.zeros(
            long, dtype=dtype, device=where
        )  # rows that are expanded share their memory
        return (t.normal_() if dtype.is_floating_point else t).as_strided(shape, stride)

    args, kwargs = tree_map(made, known, is_leaf=lambda v: isinstance(v, _Shape))
    return seconds(lambda: func(*args, **kwargs), repeats, device)


def share(step, repeats, device):
    "Seconds of a step, and of its products alone."
    with Products() as products:
        step()
    return seconds(step, repeats, device), products.seconds(repeats, device)


def predict_step(arch, size, bs, device, bf16):
    "The forward pass of a map."
    learn = learner_of("mssdf", arch, loaders(bs, size, device))
    encoder, x = learn.model.encoder.eval(), learn.dls.train.one_batch()[0]["ms"]

    @torch.inference_mode(False)
    def step():
        with torch.no_grad(), torch.autocast(str(device), torch.bfloat16, enabled=bf16):
            encoder(x, "ms")

    return step


def beside(step, least):
    "Operations that are no products and take more than `least` of the step, with their share."
    with torch.profiler.profile() as prof:
        step()
    rows = prof.key_averages()
    total = sum(r.self_cpu_time_total for r in rows)
    skip = (*PRODUCTS, "mkldnn_convolution", "scaled_dot_product", "linear", "matmul")
    other = {
        r.key: r.self_cpu_time_total / total for r in rows if not any(p in r.key for p in skip)
    }
    return {k: round(v, 3) for k, v in sorted(other.items(), key=lambda o: -o[1]) if v > least}


def measure(a):
    "{what: step, products, share}"
    out = {}
    for what in a.methods:
        if what == "predict":
            step = predict_step(a.arch, a.size, a.bs, a.device, a.bf16)
            found = (*share(step, a.repeats, a.device), beside(step, a.top))
        else:
            precision = "bf16" if a.bf16 else "fp32"
            learn = learner_of(what, a.arch, loaders(a.bs, a.size, a.device), precision)
            job = lambda step: (*share(step, a.repeats, a.device), beside(step, a.top))  # noqa: E731
            found = in_fit(learn, job)
        took, least, others = found
        row = dict(step_s=took, products_s=least, share=least / took, others=others)
        out[what] = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        print(
            f"{what:8} {took:.3f} s a step, products alone {least:.3f} s: {least / took:.0%}  {others}"
        )
    return out


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--methods", nargs="+", default=["deo", "mssdf", "predict"])
    p.add_argument("--arch", default="vit_tiny_patch16_224")
    p.add_argument("--device", default="cpu")
    p.add_argument("--top", type=float, default=0.05)
    for k, v in dict(bs=4, size=224, repeats=3).items():
        p.add_argument(f"--{k}", type=int, default=v)
    for k in ("bf16", "save"):
        p.add_argument(f"--{k}", action="store_true")
    a = p.parse_args()
    for what, row in measure(a).items():
        if a.save:
            record(
                f"limit {what}" + ", bf16" * a.bf16,
                a.device,
                what=f"products alone, {what}, {a.arch}, {a.size} px, batch {a.bs}"
                + ", bf16" * a.bf16,
                ours=100 * row["share"],
                unit="% of the step",
                others=json.dumps(row["others"]),
                better="more",
            )


if __name__ == "__main__":
    main()
