"""The patch store under several processes: one store made by all, killed and filled up, trained from on two nodes."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from processes import on_two

from eo_brew.app.cli import main
from eo_brew.data.dataloaders import eo_dataloaders, pack
from eo_brew.data.store import PatchStore
from eo_brew.scenes.open import sample_scene

SMALL = dict(size=32, bs=4, bands=["B02", "B04"], n=24, valid_pct=0.2)


def loaders(**kwargs):
    return eo_dataloaders(sample_scene(), **SMALL, **kwargs)


def pixels(dls):
    "All windows of both loaders, in order."
    return [
        ds.item(i)[0]["ms"].clone() for ds in (dls.train_ds, dls.valid_ds) for i in range(len(ds))
    ]


def read_share(folder):
    "Each of two processes opens the same new store and reads every second window into it."
    rank = int(os.environ["RANK"])
    dls = loaders(store=folder)
    return [dls.train_ds.item(i)[0]["ms"] for i in range(rank, len(dls.train_ds), 2)]


def test_two_processes_make_one_store(tmp_path):
    shares = on_two(read_share, tmp_path / "run", str(tmp_path / "packed"))
    plain, store = loaders(), PatchStore(tmp_path / "packed")
    assert store.done[: len(plain.train_ds)].all() and not store.done[len(plain.train_ds) :].any()
    kept = loaders(store=tmp_path / "packed")
    assert all(torch.equal(a, b) for a, b in zip(pixels(plain), pixels(kept)))
    assert len(shares[0]) + len(shares[1]) == len(plain.train_ds)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("packed")] == ["packed"]


def fill(folder, first):
    "Reads a few windows, says so, and goes on."
    dls = loaders(store=folder)
    for i in range(len(dls.train_ds)):
        dls.train_ds.item(i)
        if i == 5:
            first.set()
            signal.pause()


def test_a_killed_pack_is_filled_up(tmp_path):
    context = multiprocessing.get_context("fork")
    told = context.Event()
    p = context.Process(target=fill, args=(tmp_path / "packed", told))
    p.start()
    assert told.wait(60)
    p.kill()
    p.join()
    assert PatchStore(tmp_path / "packed").done.sum() == 6
    whole = pack(sample_scene(), tmp_path / "packed", **SMALL)
    assert whole.done.all()
    plain = loaders()
    alone = eo_dataloaders(tmp_path / "packed", bs=4)  # without its scenes
    assert all(torch.equal(a, b) for a, b in zip(pixels(plain), pixels(alone)))


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_from_one_store(tmp_path):
    "`torchrun` twice, as on two machines that share a disk; one process with the whole batch learns the same."
    few = ["--size", "48", "--n", "24", "--bands", "B02", "B03", "B04"]
    assert main(["pack", str(sample_scene()), "--out", str(tmp_path / "packed"), *few]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def command(bs, out):
        run = [
            "-m",
            "eo_brew",
            "pretrain",
            str(tmp_path / "packed"),
            "--vfm",
            "none",
            "--steps",
            "2",
        ]
        return [
            *run,
            "--seed",
            "0",
            "--bs",
            bs,
            "--precision",
            "fp32",
            "--out",
            str(tmp_path / out),
        ]

    shape = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        port,
    ]
    start = [sys.executable, "-m", "torch.distributed.run", *shape]
    alike = os.environ | dict(OMP_NUM_THREADS="1")
    nodes = [
        subprocess.Popen([*start, "--node-rank", str(n), *command("4", "four")], env=alike)
        for n in range(2)
    ]
    assert [p.wait(900) for p in nodes] == [0, 0]
    for name in ("encoder.safetensors", "log.csv"):
        assert (tmp_path / "four" / name).is_file()
    steps = np.genfromtxt(tmp_path / "four" / "log.csv", delimiter=",", names=True)
    assert steps.shape == (2,) and np.isfinite(steps["loss"]).all()
