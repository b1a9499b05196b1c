"""README is made from nbs/index.ipynb, its commands are those that the CI runs, and its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from project import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")
COMMANDS = [
    l.strip()
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", README, re.S)
    for l in block.splitlines()
    if l.strip() and not l.startswith("#")
]


def test_readme_is_up_to_date():
    r = subprocess.run(
        [sys.executable, str(ROOT / "tools/docs.py"), "readme", "--check"],
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stdout + r.stderr


def test_readme_has_both_commands():
    text = "\n".join(COMMANDS)
    assert (
        "pip install '.[demo]' && eo_brew demo" in text
        and "pip install -e '.[dev]' && pytest" in text
    )


@pytest.mark.parametrize(
    "part", ["pip install '.[demo]'", "eo_brew demo", "pip install -e '.[dev]'", "pytest"]
)
def test_ci_runs_what_readme_says(part):
    ran = "\n".join(l for l in CI.splitlines() if not l.lstrip().startswith("#"))
    assert part in ran and any(part in c for c in COMMANDS)


def test_commands_of_eo_brew_exist():
    "Every `eo_brew COMMAND --option` that README shows is known to the command line."
    cli = pytest.importorskip("eo_brew.app.cli")
    shown = re.findall(
        r"eo_brew (\w+)((?:[^\n&`]|\\\n)*)", "\n".join(COMMANDS).replace("\\\n", " ")
    )
    assert shown
    for command, rest in shown:
        r = subprocess.run(
            [sys.executable, "-m", cli.__name__, command, "--help"], capture_output=True, text=True
        )
        r = (
            r
            if r.returncode == 0 and r.stdout
            else subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"import sys; from eo_brew.app.cli import main; "
                    f'sys.argv = ["eo_brew", {command!r}, "--help"]; main()',
                ],
                capture_output=True,
                text=True,
            )
        )
        assert r.returncode == 0, r.stderr
        for option in re.findall(r"--[\w-]+", rest):
            assert option in r.stdout, f"eo_brew {command} has no {option}"


def test_python_fits_the_package():
    "The Python of README calls functions that exist with arguments that they take."
    import ast
    import importlib
    import inspect

    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        tree, names = ast.parse(block), {}
        for n in ast.walk(tree):
            if isinstance(n, ast.ImportFrom):
                module = importlib.import_module(n.module)
                for name in (a.name for a in n.names):
                    found = module.__all__ if name == "*" else [name]
                    names |= {k: getattr(module, k) for k in found}
        for n in ast.walk(tree):
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in names:
                inspect.signature(names[n.func.id]).bind(
                    *n.args, **{k.arg: k.value for k in n.keywords}
                )


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", README) + re.findall(r'src="([^"]+)"', README)
    lost = [l for l in links if not re.match(r"\w+:", l) and not (ROOT / l).exists()]
    assert not lost


def test_extras_named_in_the_docs_exist():
    from configparser import ConfigParser

    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini")
    named = set(
        re.findall(r"\.\[(\w+)\]", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    )
    assert named and all(f"{e}_requirements" in cfg["DEFAULT"] for e in named)


@pytest.mark.slow
def test_commands_for_an_own_folder_word_for_word(tmp_path):
    "The block of README that looks at a folder, trains on it and makes a map, on two small scenes."
    import os

    scenes = pytest.importorskip("eo_brew.scenes.open")
    (tmp_path / "scenes").mkdir()
    whole = scenes.open_raster(scenes.sample_scene(), "sentinel2_l1c")
    for name, row in (("one", 100), ("two", 400)):
        piece = whole[:, row : row + 56, 300:356]
        scenes.write_raster(tmp_path / "scenes" / f"{name}.tif", piece)
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    (block,) = [b for b in blocks if "eo_brew info scenes/" in b]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | dict(PATH=path, PYTHONPATH=os.pathsep.join(sys.path))
    r = subprocess.run(
        ["bash", "-e", "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert r.returncode == 0, r.stdout + r.stderr
    assert (tmp_path / "tokens.tif").stat().st_size and "preset auto" in r.stdout + r.stderr
