"""The benchmarks that nobody can run here have to run where somebody can: a trial of each, tiny, on the CPU."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("no benchmarks here: they are in the checkout", allow_module_level=True)


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # products this small are slower by several
    yield
    torch.set_num_threads(threads)
    for name in ("gpu", "limit", "tries", "steps", "record", "deo_step", "mssdf_step"):
        sys.modules.pop(name, None)


def test_what_is_for_a_gpu_runs_on_a_cpu(scripts, tmp_path):
    import gpu

    out = tmp_path / "gpu.json"
    found = gpu.main(["--smoke", "--out", str(out), "--parts", "masks", "predict"])
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    assert 0 < found["masks"]["share"] < 1 and found["predict"]["windows_per_s"] > 0


@pytest.mark.slow
def test_all_of_what_is_for_a_gpu_runs_on_a_cpu(scripts, tmp_path):
    import gpu

    found = gpu.main(["--smoke", "--out", str(tmp_path / "gpu.json")])
    assert not [k for k in gpu.PARTS if k != "deo" and not isinstance(found[k], dict)], found
    fp32, bf16 = (found["losses"][f"mssdf {p}"] for p in ("fp32", "bf16"))
    assert fp32 != bf16 and abs(fp32[0] - bf16[0]) < 0.05


def test_a_part_that_fails_leaves_its_error(scripts, tmp_path, monkeypatch):
    import gpu

    monkeypatch.setitem(gpu.PARTS, "masks", lambda a: 1 / 0)
    found = gpu.main(["--smoke", "--out", str(tmp_path / "x.json"), "--parts", "masks"])
    assert found["masks"].startswith("ZeroDivisionError")


def test_products_alone_take_a_part_of_the_step(scripts):
    import limit

    layer, x = torch.nn.Linear(256, 512), torch.randn(512, 256)
    with limit.Products() as products:
        layer(x).sum().backward()
    assert {str(f) for f, _, _ in products.found.values()} >= {
        "aten.addmm.default",
        "aten.mm.default",
    }
    options = dict(methods=["predict"], arch="vit_tiny_patch16_224", size=64, bs=2, device="cpu")
    found = limit.measure(Namespace(**options, repeats=1, bf16=False, top=0.05))
    assert 0 < found["predict"]["products_s"]


def test_views_packed_into_one_pass_give_the_same_tokens(scripts, monkeypatch):
    "The try changes nothing but the time; a mask that mixes two views is noticed."
    import tries

    monkeypatch.setattr(tries, "GLOBAL", 64)
    monkeypatch.setattr(tries, "LOCAL", 32)
    encoder = tries.create_encoder("vit_tiny_patch16_224", {"ms": 3}, img_size=64, depth=2)
    views = torch.rand(2, 3, 64, 64), torch.rand(7, 3, 32, 32)
    tries.check_same(encoder, *views)
    mixed = torch.Tensor.__eq__
    monkeypatch.setattr(torch.Tensor, "__eq__", lambda a, b: mixed(a, b) | True)
    with pytest.raises(AssertionError):
        tries.check_same(encoder, *views)
