"""A stranger's own folder in an hour: what is there, an encoder, its probe, a fine-tuned model, a map and its picture.

Command lines only. Quick versions (two steps, small cuts) are ordinary tests; `--runslow` does it for real, three
minutes of training each."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.features import shapes

from eo_brew.app.cli import main
from own_folders import ELSEWHERE, FOLDERS, LAB
from rasters import AT, write


@pytest.fixture
def eo(capsys):
    "Run a command that has to succeed: its output."

    def call(*words):
        words = [w for x in words for w in (x.split() if isinstance(x, str) else [str(x)])]
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 0, (words, err)
        return out + err

    return call


def folder_of(name, place, quick):
    if name in ELSEWHERE and not (LAB / ELSEWHERE[name]).is_dir():
        pytest.skip(f"{ELSEWHERE[name]} is not shipped: EO_BREW_LAB=FOLDER says where it lies")
    return FOLDERS[name](place, quick)


def hour(eo, case, place, pretrain, finetune, kinds=1):
    "All commands; what fine-tuning said. The map has so many classes at least."
    scenes, read, task = case["scenes"], case["read"], case.get("task", "segmentation")
    offset = read[read.find("--offset") :] if "--offset" in read else ""
    if note := case.get("note"):
        assert "scene.toml" in refused(scenes, "--sensor", "sentinel2_l1c")
        (scenes / "scene.toml").write_text(note)
    assert "cannot be used" not in eo("info", scenes, read)
    more = ["--dsm", case["dsm"]] if "dsm" in case else []
    run, encoder = place / "run", place / "run" / "encoder.safetensors"
    assert "preset auto" in eo("pretrain", scenes, read, *more, pretrain, "--out", run)
    if task != "height":
        out = place / "probe"
        eo("probe", encoder, "--data", scenes, "--labels", case["labels"], offset, "--out", out)
        rows = list(csv.DictReader(open(out / "table.csv")))
        assert {"run", "random encoder"} < {r["encoder"] for r in rows}
        print(*{(r["encoder"], r["metric"], r["mean"][:5]): 0 for r in rows}, sep="\n")
    model = place / "model.safetensors"
    labels = [] if case["labels"] == "folder" else ["--labels", case["labels"]]
    said = eo(
        "finetune", encoder, scenes, *labels, offset, "--task", task, finetune, "--out", model
    )
    assert "kept: " in said and f"model of {task}" in eo("info", model)
    if task == "classification":
        eo("predict", model, scenes, "--out", place / "classes.csv")
        found = list(csv.DictReader(open(place / "classes.csv")))
        print("right", np.mean([Path(r["file"]).parent.name == r["class"] for r in found]))
        return said
    eo("predict", model, scenes, offset, "--out", place / "map.tif", "--picture", place / "map.png")
    with rasterio.open(place / "map.tif") as src:
        x = src.read(1, masked=True)
    assert len(np.unique(x.compressed())) >= kinds
    assert (place / "map.png").stat().st_size > 3000
    return said


def refused(*words):
    "What a command says that does not succeed."
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert main(["info", *map(str, words)]) == 2
    return said.getvalue()


@pytest.fixture
def town(tmp_path, monkeypatch):
    "Roofs on grass at two dates, a third of them new; their outlines, heights, and an encoder that knows nothing."
    import torch
    from eo_brew.app.model_commands import OVERLAPPING
    from eo_brew.core.sensors import get_sensor
    from eo_brew.models.encoder import create_encoder
    from eo_brew.weights.save import save_encoder

    monkeypatch.setitem(OVERLAPPING, "enough", 4)  # a few windows will do here
    rng = np.random.default_rng(0)
    roofs, new = np.zeros((192, 192), bool), np.zeros((192, 192), bool)
    for i, corner in enumerate((y, x) for y in range(8, 184, 32) for x in range(8, 184, 32)):
        at = tuple(slice(v, v + 16) for v in corner)
        roofs[at], new[at] = True, i % 3 == 0
    grass, roof = np.array([60, 120, 50]), np.array([200, 90, 80])
    tall = np.where(roofs, 9, 1).astype("float32")[None]
    for name, there in dict(before=roofs & ~new, after=roofs).items():
        x = np.where(there[..., None], roof, grass) + rng.normal(0, 8, (*roofs.shape, 3))
        write(tmp_path / f"{name}.tif", x.clip(0, 255).astype("uint8").transpose(2, 0, 1))
    write(tmp_path / "change.tif", new.astype("uint8")[None])
    write(tmp_path / "dsm.tif", tall + 100)
    write(tmp_path / "dtm.tif", tall * 0 + 100)
    outlines = shapes(roofs.astype("uint8"), roofs, transform=AT)
    rows = [dict(type="Feature", geometry=g, properties={"class": "roof"}) for g, _ in outlines]
    crs = dict(type="name", properties=dict(name="EPSG:32633"))
    found = dict(type="FeatureCollection", crs=crs, features=rows)
    (tmp_path / "roofs.geojson").write_text(json.dumps(found))
    torch.manual_seed(0)
    small = dict(img_size=64, patch_size=8, embed_dim=48, depth=4, num_heads=4)
    encoder = create_encoder("vit_tiny_patch16_224", {"ms": get_sensor("rgb")}, **small)
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    return tmp_path


def test_change_by_commands(eo, town):
    "Two dates and what has changed: a model, and its map of the two dates."
    later = ["--after", town / "after.tif"]
    given = [
        town / "encoder.safetensors",
        town / "before.tif",
        *later,
        "--labels",
        town / "change.tif",
    ]
    out = town / "model.safetensors"
    said = eo("finetune", *given, "--task change --steps 12 --bs 4", "--out", out)
    assert "change_f1" in said
    eo("predict", out, town / "before.tif", *later, "--out", town / "map.tif")
    m = rasterio.open(town / "map.tif").read(1)
    y = rasterio.open(town / "change.tif").read(1)
    assert (m == y).mean() > max(0.95, 1 - y.mean() / 2), (m == y).mean()


def test_heights_above_the_ground_by_commands(eo, town):
    "A surface model less the ground: heights of roofs."
    given = [town / "encoder.safetensors", town / "after.tif", "--labels", town / "dsm.tif"]
    out = town / "model.safetensors"
    how = "--task height --steps 24 --bs 4"
    assert "rmse" in eo("finetune", *given, "--dtm", town / "dtm.tif", how, "--out", out)
    eo("predict", out, town / "after.tif", "--out", town / "map.tif")
    m, y = (rasterio.open(town / f"{n}.tif").read(1) for n in ("map", "dsm"))
    assert np.abs(m - y + 100).mean() < 2, np.abs(m - y + 100).mean()


def test_boxes_by_commands(eo, town, monkeypatch):
    "Outlines of one kind of object: a model, and the boxes that it finds; few proposals, for the time it takes."
    from eo_brew.tasks.finetune import FEW_BOXES

    for k in FEW_BOXES:
        monkeypatch.setitem(FEW_BOXES, k, 16)
    given = [town / "encoder.safetensors", town / "after.tif", "--labels", town / "roofs.geojson"]
    out = town / "model.safetensors"
    said = eo("finetune", *given, "--task detection --steps 3 --bs 4", "--out", out)
    assert "of roof" in said
    eo("predict", out, town / "after.tif", "--out", town / "found.geojson")
    found = json.loads((town / "found.geojson").read_text())["features"]
    assert {f["properties"]["class"] for f in found} <= {"roof"}
    assert all(f["geometry"]["type"] == "Polygon" for f in found)


@pytest.mark.parametrize("name", ["degrees", "plain", "heights"])
def test_the_hour_in_small(eo, tmp_path, name):
    "Every command works on such a folder, and hands on what the next one needs."
    case = folder_of(name, tmp_path, quick=True)
    hour(
        eo, case, tmp_path, "--steps 1 --bs 4 --size 32 --stride 24", "--steps 3 --size 32 --bs 16"
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FOLDERS)
def test_the_hour(eo, tmp_path, name):
    "Three minutes of training, and fifteen seconds to three minutes of fine-tuning."
    case = folder_of(name, tmp_path, quick=False)
    steps = os.environ.get("EO_BREW_STEPS", "120")
    said = hour(eo, case, tmp_path, f"--bs 16 --steps {steps}", "--steps 120", kinds=2)
    print(said)
