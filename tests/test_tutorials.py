"""Each tutorial runs alone, in an empty folder, after the install line at its top."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

# EO_BREW_NBS names the notebooks where the tests run apart from the checkout
NBS = Path(os.environ.get("EO_BREW_NBS", Path(__file__).parent.parent / "nbs"))
PAGES = sorted(NBS.glob("tutorials/*.ipynb")) + sorted(NBS.glob("guide/*.ipynb"))
if not PAGES:
    pytest.skip("no tutorials here: name their folder in EO_BREW_NBS", allow_module_level=True)
each = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


def code(page: Path) -> list:  # sources of the code cells
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def script(page: Path) -> str:  # what runs, without what only a notebook knows
    cells = [s for s in code(page) if "eval: false" not in s]
    lines = [
        l
        for l in "\n\n".join(cells).splitlines()
        if not re.search("matplotlib_(inline|formats)", l)
    ]
    return "\n".join(lines)


@each
def test_the_install_line_comes_first(page):
    "The first code cell installs the package with extras that exist, and the page reads no file of the repository."
    first, *rest = code(page)
    m = re.search(
        r'!pip install -q "eo_brew(?:\[([\w,]+)\])? @ git\+https://github.com/eo-brew/eo_brew"',
        first,
    )
    assert m and first.startswith("#| eval: false"), first
    settings = NBS.parent / "settings.ini"
    if settings.exists():
        have = re.findall(r"^(\w+)_requirements", settings.read_text(encoding="utf-8"), re.M)
        assert set(filter(None, (m[1] or "").split(","))) <= set(have)
    for src in rest:
        assert not re.search(r"\.\./|read_csv\(\"|benchmarks/", src), src


@pytest.mark.slow
@pytest.mark.timeout(3700)
@each
def test_it_runs_in_an_empty_folder(page, tmp_path):
    start = time.monotonic()
    (tmp_path / "page.py").write_text(script(page), encoding="utf-8")
    r = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=3600,
    )
    print(f"{page.stem}: {time.monotonic() - start:.0f} s")
    assert r.returncode == 0, r.stderr[-3000:]
