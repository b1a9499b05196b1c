"""Where the project's files are and how to read them: for the tests of the project itself, not of the package."""

import ast
import re
import shutil
import tokenize
from io import StringIO
from pathlib import Path

import pytest

nbdev = pytest.importorskip(
    "nbdev", reason="the project's own tests need nbdev: pip install -e '.[dev]'"
)
from execnb.nbio import read_nb

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
SKIP = {"_proc", "_docs", "_site", ".ipynb_checkpoints"}
if not (ROOT / "settings.ini").exists():
    pytest.skip("not in a checkout of the project", allow_module_level=True)


def notebooks() -> list:  # every notebook of the project, in the order of reading
    return sorted(p for p in NBS.rglob("*.ipynb") if not SKIP & set(p.parts))


def nb_id(p: Path) -> str:
    return p.relative_to(NBS).as_posix()


def directives(src: str) -> dict:  # '#| name rest' lines of a cell -> {name: rest}
    res = {}
    for l in src.splitlines():
        m = re.match(r"\s*#\|\s*([\w:]+)\s*(.*)", l)
        if m:
            res[m[1].rstrip(":")] = m[2].strip()
    return res


def is_export(src: str) -> bool:
    return bool({"export", "exports", "exporti"} & directives(src).keys())


def code_cells(p: Path) -> list:  # (index, source) of the code cells of a notebook
    return [(i, c.source) for i, c in enumerate(read_nb(p).cells) if c.cell_type == "code"]


def module_name(p: Path):  # name of the module that a notebook exports, or None
    for _, src in code_cells(p):
        if "default_exp" in directives(src):
            return directives(src)["default_exp"].split()[0]


def parse(src: str):  # syntax tree of a cell; lines for IPython become `pass`
    return ast.parse(re.sub(r"^(\s*)[%!].*", r"\1pass", src, flags=re.M))


def comment_lines(src: str) -> set:  # numbers of the lines of `src` that carry a comment with words
    return {
        t.start[0]
        for t in tokenize.generate_tokens(StringIO(src).readline)
        if t.type == tokenize.COMMENT and not t.string.startswith("#|") and t.string.strip("# ")
    }


def copy_project(to: Path) -> Path:  # a copy without data, git and what was built, to work on
    "Copy what nbdev and the site need into `to`."
    ignore = shutil.ignore_patterns(
        "__pycache__", "_proc", "_docs", ".ipynb_checkpoints", "samples", "nbdev.yml"
    )
    for d in "nbs", "eo_brew", "tools":
        shutil.copytree(ROOT / d, to / d, ignore=ignore, symlinks=True)
    for f in (f for f in ROOT.iterdir() if f.is_file() and not f.name.startswith(".")):
        shutil.copy(f, to)
    return to
