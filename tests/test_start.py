"""What is imported before an answer: a look at a scene needs no torch and no xarray, a map no fastai."""

import json
import os
import subprocess
import sys

import pytest

from eo_brew.core.sensors import get_sensor
from eo_brew.models.encoder import create_encoder
from eo_brew.scenes.open import sample_scene
from eo_brew.weights.save import save_encoder

# each line of input is a command or an import; each answer the exit code and what stands in `sys.modules` after it
PROGRAM = """
import contextlib, io, json, sys
answers = []
for line in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        if isinstance(line, str):
            code = exec(line)
        else:
            from eo_brew.app.cli import main
            code = main(line)
    answers.append([line, code, err.getvalue(), sorted(sys.modules)])
json.dump(answers, sys.stdout)
"""
ARRAYS = {"xarray", "rioxarray", "pandas", "dask"}  # fastai needs pandas
TRAINS = {"fastai", "sklearn", "scipy", "matplotlib.pyplot", "IPython"}


def imported(lines, cwd):
    "What commands and imports, one after the other in one new process, have imported."
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    run = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    p = subprocess.run(
        run, input=json.dumps(lines), capture_output=True, text=True, cwd=cwd, env=env
    )
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    "A look at a scene, an export, a map, and then everything."
    d = tmp_path_factory.mktemp("start")
    sensor = get_sensor("landsat7_dn")
    options = dict(img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2)
    encoder = create_encoder("vit_tiny_patch16_224", {"ms": sensor}, **options)
    save_encoder(encoder, d / "e.safetensors")
    scene = str(sample_scene("olinda") / "L7_ETMs.tif")
    return imported(
        [
            ["info", scene, "--sensor", "landsat7_dn"],
            ["export", "e.safetensors", "folder"],
            ["predict", "e.safetensors", scene, "--out", "map.tif"],
            "import eo_brew.all",
        ],
        d,
    )


@pytest.mark.parametrize(
    "i,without",
    [
        (0, {"torch", "matplotlib", "fastprogress"} | ARRAYS | TRAINS),
        (1, TRAINS | ARRAYS),
        (2, TRAINS | ARRAYS),
        (3, ARRAYS - {"pandas"}),
    ],
    ids=["info", "export", "predict", "all"],
)
def test_a_command_imports_what_it_needs(chain, i, without):
    line, code, said, names = chain[i]
    assert not code, said
    assert not without & set(names), without & set(names)
