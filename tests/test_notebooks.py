"""Every notebook runs from its first cell to its last: they are the unit tests of the package.

nbdev's own runner executes them, so `#| eval: false` and the flags `slow`, `cuda` and `network` mean what they mean to
`nbdev_test`. Each notebook has a process of its own, forked from one that has torch and fastai loaded already."""

import io
import os
import re
import sys
import multiprocessing as mp
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path

import pytest

from project import ROOT, directives, nb_id, notebooks

# a comment in a cell whose output no two runs share: times, downloads, addresses
VARIES = "# varies:"
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


NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")
# progress bars, names that pandas and xarray draw, addresses of objects
NOISE = re.compile(
    r"<style.*?</style>|<div>\s*<progress.*?</div>|\bT_[0-9a-f]{5}| at 0x[0-9a-f]+"
    r"|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.S,
)
TEMPORARY = re.compile(r"(?:/[\w.-]+)*/tmp\w{8}\b")  # folders, stored as ...
CLOCK = re.compile(r"\b\d+:\d\d(?::\d\d)?\b")  # durations in fastai's tables
# of weights: processors differ in the last bit of random draws
DIGEST = re.compile(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{12}\b")


def texts(cell):  # what a cell says, in words: pictures and progress bars aside
    found = []
    for o in cell.get("outputs", []):
        if o["output_type"] == "stream" and o["name"] == "stdout":
            # without lines that were written over
            found.append(re.sub(r"[^\n]*\r", "", "".join(o["text"])))
        data = o.get("data", {})
        kind = next((k for k in ("text/markdown", "text/html", "text/plain") if k in data), None)
        if kind and not any(k.startswith("image/") for k in data):
            found.append("".join(data[kind]))
    text = TEMPORARY.sub("...", CLOCK.sub("", NOISE.sub("", "".join(found))))
    text = DIGEST.sub("digest", text)
    return re.sub(r"\s+", " ", text).strip()


def differs(
    old: str,  # stored text of an output
    new: str,  # of a fresh run
    tolerance: float = 0.05,  # of numbers: processors round differently, and training adds that up
) -> bool:
    "Other words, or numbers further apart than `tolerance` (relative, and absolute below 1)."
    if NUMBER.sub("#", old) != NUMBER.sub("#", new):
        return True
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new))
    return any(abs(float(a) - float(b)) > tolerance * max(1, abs(float(a))) for a, b in pairs)


def skipped(
    source: str,  # of a cell
    flags: list,  # flags whose cells are skipped
) -> bool:
    "Whether nbdev's runner would pass over a cell."
    said = directives(source)
    return (
        "nbdev_export()" in source or said.get("eval") == "false" or bool(said.keys() & set(flags))
    )


def run(
    nb: Path,  # notebook
    flags: list,  # flags whose cells are skipped
) -> (
    tuple
):  # what went wrong, empty when nothing did; cells whose stored text is not that of this run
    "Run a notebook (in a process of its own) and compare what it says with what it has stored."
    os.environ.update(MPLBACKEND="Agg", OMP_NUM_THREADS="1", IN_TEST="1")
    sys.path.insert(0, str(ROOT))
    import torch
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # numpy's threads, too: two notebooks run side by side, each on one core
    stored, fresh = read_nb(nb), read_nb(nb)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []  # a cell that says nothing would keep what it has stored
    shell = CaptureShell(nb)
    os.chdir(nb.parent)
    err = io.StringIO()
    with redirect_stderr(err):
        try:
            shell.run_all(
                fresh,
                exc_stop=True,
                preproc=lambda c: c.cell_type != "code" or skipped(c.source, flags),
            )
        except Exception:
            return shell.prettytb(fname=nb) or f"{nb} failed without a message", []
    stale = []
    for i, (old, new) in enumerate(zip(stored.cells, fresh.cells)):
        if old.cell_type != "code" or skipped(old.source, flags) or VARIES in old.source:
            continue
        if differs(texts(old), texts(new)):
            stale.append(
                f"cell {i} says now\n{texts(new)[:600]}\nand has stored\n{texts(old)[:600]}"
            )
    return "", stale


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
        return here.recv() if here.poll(timeout) else (f"{nb} took more than {timeout} s", [])
    except EOFError:
        p.join()
        return f"{nb}: its process ended with {p.exitcode}", []
    finally:
        p.kill()
        p.join()
        here.close()


@cache
def result(nb: Path, flags: tuple) -> tuple:  # of `run`
    "A notebook is run once for all tests that look at it."
    return run_alone(nb, list(flags))


@pytest.fixture
def ran(request, nb):
    "What came of running the notebook of a test."
    import torch

    opt = request.config.getoption
    off = {
        "slow": not opt("--runslow"),
        "network": not opt("--runnetwork"),
        "cuda": not torch.cuda.is_available(),
    }
    return result(nb, tuple(f for f, skip in off.items() if skip))


@pytest.mark.parametrize("nb", notebooks(), ids=nb_id)
def test_notebook_runs(nb, ran):
    err, _ = ran
    assert not err, err


# notebooks that train: what they say differs a little from processor to processor
TRAINING = re.compile(
    "app/|tutorials/|methods/|train/|tasks/|runs/|probes/0[3-5]|losses/01|data/07"
)


def by_training(nb: Path):  # a parameter of a test, slow for notebooks that train
    marks = [pytest.mark.slow] if TRAINING.match(nb_id(nb)) else []
    return pytest.param(nb, marks=marks, id=nb_id(nb))


@pytest.mark.parametrize("nb", map(by_training, notebooks()))
def test_notebook_says_what_it_has_stored(nb, ran):
    "Stored text outputs and tables equal those of a fresh run; cells that measure say so with `VARIES`."
    _, stale = ran
    assert not stale, "run the notebook anew and store it:\n" + "\n\n".join(stale)


@pytest.mark.parametrize(
    "old,new,other",
    [
        ("loss 0.50", "loss 0.52", False),
        ("loss 0.50", "loss 0.60", True),
        ("(10, 64)", "(10, 128)", True),
        ("a 1", "b 1", True),
        ("1200 rows", "1201 rows", False),
    ],
)
def test_stale_outputs_are_seen(old, new, other):
    assert differs(old, new) == other


def test_a_failing_cell_is_seen(tmp_path):
    "The runner itself: a wrong assertion fails, what is switched off is not run."
    from execnb.nbio import mk_cell, new_nb, write_nb

    def nb(*srcs):
        write_nb(new_nb([mk_cell(s) for s in srcs]), tmp_path / "x.ipynb")
        return run_alone(tmp_path / "x.ipynb", ["slow"])[0]

    assert "AssertionError" in nb("assert 1 + 1 == 3")
    assert "ended with 3" in nb("import os; os._exit(3)")
    assert not nb("#| eval: false\nassert False", "#| slow\nassert False", "assert True")


def test_progress_is_no_text():
    lines = ["10%\r", "20%\r", "done 1\n"]
    stream = {"output_type": "stream", "name": "stdout", "text": lines}
    style = {"output_type": "display_data", "data": {"text/html": "<style>\nb { x }</style>"}}
    assert texts({"outputs": [stream, style]}) == "done 1"


def test_a_cell_that_fell_silent_is_seen(tmp_path):
    from execnb.nbio import mk_cell, new_nb, write_nb

    cell = mk_cell("x = 1")
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["it was 1"]}]
    write_nb(new_nb([cell]), tmp_path / "x.ipynb")
    _, (stale,) = run_alone(tmp_path / "x.ipynb", [])
    assert "it was 1" in stale
