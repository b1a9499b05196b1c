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
from rasters import spoil_tile, write

from eo_brew.app.cli import main
from eo_brew.data.dataloaders import eo_dataloaders
from eo_brew.data.pack import pack
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
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".packed.{socket.gethostname()}.{ended.pid}.part"
    left.mkdir()
    (left / "ms.npy").touch()
    shares = on_two(read_share, tmp_path / "run", str(tmp_path / "packed"))
    plain, store = loaders(), PatchStore(tmp_path / "packed")
    assert store.done[: len(plain.train_ds)].all() and not store.done[len(plain.train_ds) :].any()
    kept = loaders(store=tmp_path / "packed")
    assert all(torch.equal(a, b) for a, b in zip(pixels(plain), pixels(kept)))
    assert len(shares[0]) + len(shares[1]) == len(plain.train_ds)
    assert [p.name for p in tmp_path.iterdir() if "packed" in p.name] == ["packed"]


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


def test_workers_of_dask_pack_the_same_store(tmp_path):
    distributed = pytest.importorskip("dask.distributed", reason="pip install eo_brew[dask]")
    alone = pack(sample_scene(), tmp_path / "alone", **SMALL)
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        store = pack(sample_scene(), tmp_path / "packed", client=client, **SMALL)
        here = os.getpid() in client.run(os.getpid).values()
    assert store.done.all() and not here
    for name, array in alone.arrays.items():
        assert np.array_equal(array, store.arrays[name]), name


def test_what_a_worker_of_dask_lost_is_told(tmp_path):
    distributed = pytest.importorskip("dask.distributed", reason="pip install eo_brew[dask]")
    x = np.random.default_rng(0).integers(1, 3000, (2, 256, 256)).astype("uint16")
    tiles = dict(tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    file = write(tmp_path / "scene.tif", x, ["B02", "B04"], layout=tiles)
    spoil_tile(file, 2, 1)
    options = dict(sensor="sentinel2_l1c", bands=["B02", "B04"], size=64, stride=64, offset=0)
    with distributed.Client(processes=False, n_workers=1, dashboard_address=None) as client:
        with pytest.warns(UserWarning, match="windows could not be read and were skipped"):
            store = pack(
                file, tmp_path / "packed", client=client, on_error="skip", max_lost=0.2, **options
            )
    assert (~store.done).sum() == 1


def test_a_cluster_by_its_address(tmp_path, capsys):
    distributed = pytest.importorskip("dask.distributed", reason="pip install eo_brew[dask]")
    command = ["pack", str(sample_scene()), "--out", str(tmp_path / "packed"), "--size", "64"]
    with distributed.LocalCluster(
        processes=False, n_workers=1, dashboard_address=None, protocol="tcp"
    ) as cluster:
        assert main([*command, "--n", "12", "--cluster", cluster.scheduler_address]) == 0
    assert PatchStore(tmp_path / "packed").done.all()
    assert main([*command, "--cluster", "tcp://127.0.0.1:9"]) != 0
    assert "no Dask scheduler answers" in capsys.readouterr().err
