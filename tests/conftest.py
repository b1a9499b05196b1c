"""What every test shares: threads, a plotting backend without a screen, and the flags `slow`, `cuda` and `network`."""

import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
if not ALONE:  # two processes of tests side by side have one core each, and so have their children
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings
import torch

torch.set_num_threads(min(2, os.cpu_count() or 1) if ALONE else 1)

settings.register_profile(
    "same", derandomize=True
)  # the same examples in every run; HYPOTHESIS_PROFILE=default draws new ones
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_addoption(parser):
    parser.addoption(
        "--runslow", action="store_true", help="also run what takes more than a minute"
    )
    parser.addoption("--runnetwork", action="store_true", help="also run what needs a network")


def pytest_xdist_auto_num_workers(config):
    "The whole suite runs in two processes; a file or a test that is named runs in this one."
    named = [a for a in config.invocation_params.args if os.path.isfile(str(a).split("::")[0])]
    return 0 if named else min(2, os.cpu_count() or 1)


def pytest_configure(config):
    # without --runnetwork nothing may ask a hub: such a call then fails at once instead of waiting for a time-out
    if not config.getoption("--runnetwork"):
        os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_xdist_make_scheduler(config, log):
    "Tests of a file share fixtures and stay in one process, but those of each notebook go where there is time."
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            notebook = test.partition("[")[2] if file.endswith("test_notebooks.py") else ""
            return notebook or file

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    skips = {
        "slow": None if config.getoption("--runslow") else "slow: needs --runslow",
        "network": None if config.getoption("--runnetwork") else "needs a network: --runnetwork",
        "cuda": None if torch.cuda.is_available() else "needs a GPU",
    }
    debts = (
        (Path(__file__).parent / "debts.txt").read_text().split("\n")
    )  # known faults and house rules not kept yet; one that passes again fails here
    for item in items:
        if any(d and item.nodeid.endswith(d) for d in debts):
            item.add_marker(pytest.mark.xfail(strict=True, reason="listed in debts.txt"))
        for mark, reason in skips.items():
            if reason and mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter):
    "Skips are said aloud, even with -q."
    skipped = {}
    for r in terminalreporter.stats.get("skipped", []):
        reason = r.longrepr[2] if isinstance(r.longrepr, tuple) else str(r.longrepr)
        skipped.setdefault(reason.removeprefix("Skipped: "), []).append(r.nodeid)
    for reason, ids in skipped.items():
        terminalreporter.write_line(f"SKIPPED ({reason}): {len(ids)} test(s), first {ids[0]}")


@pytest.fixture(autouse=True)
def _no_leaks():
    "Every test starts from the same seeds and leaves no figure open."
    import numpy as np
    import random

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def served(tmp_path, monkeypatch):
    "The URL under which files of `tmp_path` are served."
    from eo_brew.scenes.scene import close_handles
    from servers import serving

    for k in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(k, raising=False)
    with serving(tmp_path) as url:
        yield url
        close_handles()
