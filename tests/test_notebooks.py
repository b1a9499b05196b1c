"""Every notebook runs from its first cell to its last: they are the unit tests of the package.

nbdev's own runner executes them, so `#| eval: false` and the flags `slow`, `cuda` and `network` mean what they mean to
`nbdev_test`. Each notebook has a process of its own, forked from one that has torch and fastai loaded already."""

import io
import os
import multiprocessing as mp
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from project import ROOT, nb_id, notebooks

PRELOAD = [
    "torch",
    "timm",
    "fastai.vision.all",
    "rasterio",
    "xarray",
    "matplotlib.pyplot",
    "nbdev.test",
    "nbdev.showdoc",
]


def run(
    nb: Path,  # notebook
    flags: list,  # flags whose cells are skipped
) -> str:  # what went wrong; empty when nothing did
    "Run a notebook with nbdev's runner (in a process of its own)."
    os.environ.update(MPLBACKEND="Agg", OMP_NUM_THREADS="1")
    import torch
    from nbdev.test import test_nb

    torch.set_num_threads(1)
    err = io.StringIO()
    with redirect_stderr(err):
        ok, _ = test_nb(nb, skip_flags=flags, basepath=ROOT)
    return "" if ok else err.getvalue() or f"{nb} failed without a message"


def answer(pipe, nb, flags):
    pipe.send(run(nb, flags))


def run_alone(nb: Path, flags: list, timeout: float = 900) -> str:
    "`run` in a new fork of a process that has imported what takes long."
    ctx = mp.get_context("forkserver")
    ctx.set_forkserver_preload(PRELOAD)
    here, there = ctx.Pipe(duplex=False)
    p = ctx.Process(target=answer, args=(there, nb, flags))
    p.start()
    there.close()
    try:
        return here.recv() if here.poll(timeout) else f"{nb} took more than {timeout} s"
    except EOFError:
        p.join()
        return f"{nb}: its process ended with {p.exitcode}"
    finally:
        p.kill()
        p.join()
        here.close()


@pytest.fixture(scope="module")
def pool():
    "Two notebooks at a time."
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def results(request, pool):
    "A future for every notebook that was asked for."
    import torch

    opt = request.config.getoption
    off = {
        "slow": not opt("--runslow"),
        "network": not opt("--runnetwork"),
        "cuda": not torch.cuda.is_available(),
    }
    flags = [f for f, skip in off.items() if skip]
    wanted = [
        i.callspec.params["nb"]
        for i in request.session.items
        if i.module is request.module and hasattr(i, "callspec")
    ]
    return {
        nb: pool.submit(run_alone, nb, flags)
        for nb in sorted(wanted, key=lambda nb: "tutorials" not in nb.parts)
    }  # the longest first


@pytest.mark.parametrize("nb", notebooks(), ids=nb_id)
def test_notebook_runs(nb, results):
    err = results[nb].result()
    assert not err, err


def test_a_failing_cell_is_seen(tmp_path):
    "The runner itself: a wrong assertion fails, what is switched off is not run."
    from execnb.nbio import mk_cell, new_nb, write_nb

    def nb(*srcs):
        write_nb(new_nb([mk_cell(s) for s in srcs]), tmp_path / "x.ipynb")
        return run_alone(tmp_path / "x.ipynb", ["slow"])

    assert "AssertionError" in nb("assert 1 + 1 == 3")
    assert "ended with 3" in nb("import os; os._exit(3)")
    assert not nb("#| eval: false\nassert False", "#| slow\nassert False", "assert True")
