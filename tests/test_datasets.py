"""The adapters on torchgeo's and GEO-Bench's own classes, reading generated files of the published layout."""

import warnings
from pathlib import Path
import numpy as np
import pytest
import torch

from eo_brew.data.datasets import (
    GeoBenchData,
    TorchGeoData,
    band_key,
    dataset_loaders,
    band_positions,
)
from eo_brew.core.sensors import get_sensor

S2 = get_sensor("sentinel2_l1c")


def sub(*names):
    return S2.select(list(names))


@pytest.mark.parametrize(
    "a,b",
    [
        ("B4", "B04"),
        ("b04", "B04"),
        ("04 - Red", "B04"),
        ("08A - Vegetation Red Edge", "B8A"),
        ("B8a", "B8A"),
        ("Near_IR", "near ir"),
    ],
)
def test_one_band_many_spellings(a, b):
    assert band_key(a) == band_key(b)


def test_8_and_8a_are_not_mixed_up():
    assert band_key("B08") != band_key("B8A") and band_positions(["B8A", "B08"], sub("B08")) == [1]


def test_missing_bands_are_named():
    with pytest.raises(ValueError, match=r"\['B11'\] of sentinel2_l1c are not in the data set"):
        band_positions(["B02", "B03"], sub("B02", "B11"))


def write_tif(path, x, dtype="uint16"):
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            count=len(x),
            height=x.shape[1],
            width=x.shape[2],
            dtype=dtype,
        ) as f:
            f.write(x.astype(dtype))


def test_eurosat(tmp_path):
    datasets = pytest.importorskip("torchgeo.datasets")
    cls = datasets.EuroSAT
    for k, c in enumerate(("AnnualCrop", "Forest")):
        for i in range(2):
            write_tif(
                tmp_path / cls.base_dir / c / f"{c}_{i}.tif",
                np.broadcast_to(np.arange(13)[:, None, None] * 100 + k, (13, 64, 64)),
            )
    for s in cls.splits:
        (tmp_path / f"eurosat-{s}.txt").write_text(
            "\n".join(f"{c}_{i}.jpg" for c in ("AnnualCrop", "Forest") for i in range(2))
        )
    ds = TorchGeoData(cls(str(tmp_path), split="train"), sub("B8A", "B02"))
    d, y = ds[3]
    assert (
        d["ms"].shape == (2, 64, 64) and d["ms"][:, 0, 0].tolist() == [1201.0, 101.0] and y == 1
    )  # B8A comes last in EuroSAT
    dls = dataset_loaders(ds, ds, bs=2, classes=["crop", "forest"], device="cpu")
    x, y = dls.one_batch()
    assert x["ms"].shape == (2, 2, 64, 64) and list(dls.sensors["ms"].band_names) == ["B8A", "B02"]


def test_levir_cd_is_a_pair_of_dates(tmp_path):
    datasets = pytest.importorskip("torchgeo.datasets")
    from PIL import Image

    for k, folder in enumerate(("A", "B", "label")):
        (tmp_path / folder).mkdir()
        a = np.zeros((32, 32, 3), "uint8") + k * 50
        a[:4, :4] = 255
        Image.fromarray(a if folder != "label" else a[..., 0] * (a[..., 0] == 255)).save(
            tmp_path / folder / "train_1.png"
        )
    ds = TorchGeoData(
        datasets.LEVIRCD(str(tmp_path), split="train"),
        "rgb",
        bands=["red", "green", "blue"],
        scale=1 / 255,
    )
    d, y = ds[0]
    assert (
        set(d) == {"before", "after"}
        and d["before"].shape == (3, 32, 32)
        and y.shape == (32, 32)
        and y.sum() == 16
    )
    assert d["after"][0, 20, 20].item() == pytest.approx(50 / 255) and d["after"].max() == 1


def test_oscd_by_band_name(tmp_path):
    datasets = pytest.importorskip("torchgeo.datasets")
    from PIL import Image

    base, city = tmp_path / "Onera Satellite Change Detection dataset - Images", "abudhabi"
    for date in (1, 2):
        for i, b in enumerate(datasets.OSCD.all_bands):
            write_tif(
                base / city / f"imgs_{date}_rect" / f"{b}.tif", np.full((1, 16, 16), i * 10 + date)
            )
    (base / city / "dates.txt").write_text("date_1: 20160101\ndate_2: 20180101\n")
    cm = tmp_path / "Onera Satellite Change Detection dataset - Train Labels" / city / "cm"
    cm.mkdir(parents=True)
    m = np.zeros((16, 16), "uint8")
    m[:2] = 255
    Image.fromarray(m).save(cm / "cm.png")
    ds = TorchGeoData(datasets.OSCD(str(tmp_path), split="train"), sub("B04", "B8A"))
    d, y = ds[0]
    at = [list(datasets.OSCD.all_bands).index(b) * 10 for b in ("B04", "B8A")]
    assert (
        d["before"][:, 0, 0].tolist() == [a + 1 for a in at]
        and d["after"][:, 0, 0].tolist() == [a + 2 for a in at]
        and y.sum() == 32
    )


def save_png(path, x):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path)


@pytest.mark.parametrize(
    "name,image,mask,n",
    [
        ("Potsdam2D", "4_Ortho_RGBIR/top_potsdam_2_10_RGBIR.tif", "top_potsdam_2_10_label.tif", 4),
        ("Vaihingen2D", "top/top_mosaic_09cm_area1.tif", "top_mosaic_09cm_area1.tif", 3),
    ],
)
def test_potsdam_and_vaihingen(tmp_path, name, image, mask, n):
    cls = getattr(pytest.importorskip("torchgeo.datasets"), name)
    write_tif(
        tmp_path / image,
        np.broadcast_to(np.arange(1, n + 1)[:, None, None] * 51, (n, 8, 8)),
        "uint8",
    )
    lab = np.zeros((8, 8, 3), "uint8")
    lab[...] = cls.colormap[1]
    lab[:2] = cls.colormap[5]
    save_png(tmp_path / mask, lab)
    names = ["red", "green", "blue", "nir"][:n]
    d, y = TorchGeoData(cls(str(tmp_path), split="train"), "rgb", bands=names, scale=1 / 255)[0]
    assert (
        d["ms"][:, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
        and y.shape == (8, 8)
        and (y[:2] == 5).all()
        and (y[2:] == 1).all()
    )


def test_pastis_is_a_series(tmp_path):
    cls = pytest.importorskip("torchgeo.datasets").PASTIS
    import geopandas
    from shapely.geometry import Point

    base = tmp_path / cls.directory
    geopandas.GeoDataFrame(
        dict(ID_PATCH=[7], Fold=[1]), geometry=[Point(0, 0)], crs="EPSG:2154"
    ).to_file((base.mkdir(), base / "metadata.geojson")[1])
    for k in ("s2", "semantic"):
        Path(f"{base}/{cls.prefix[k]}7.npy").parent.mkdir(parents=True, exist_ok=True)
    np.save(
        f"{base}/{cls.prefix['s2']}7.npy",
        np.arange(3)[:, None, None, None] * 100
        + np.arange(10)[None, :, None, None]
        + np.zeros((3, 10, 8, 8), int),
    )
    lab = np.zeros((3, 8, 8), int)
    lab[0, 0] = 19
    np.save(f"{base}/{cls.prefix['semantic']}7.npy", lab)
    ds = cls(str(tmp_path), folds=(1,))
    with pytest.raises(ValueError, match="does not say which bands"):
        TorchGeoData(ds, sub("B02"))
    d, y = TorchGeoData(
        ds,
        sub("B8A", "B02"),
        bands="B02 B03 B04 B05 B06 B07 B08 B8A B11 B12".split(),
        time="median",
        mask_map={19: 255},
    )[0]
    assert (
        d["ms"][:, 0, 0].tolist() == [107.0, 100.0] and (y[0] == 255).all() and (y[1:] == 0).all()
    )


def test_dior_boxes_start_at_one(tmp_path):
    cls = pytest.importorskip("torchgeo.datasets").DIOR
    save_png(tmp_path / "a.png", np.full((16, 16, 3), 51, "uint8"))
    corners = "<xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>12</ymax>"
    box = f"<object><name>{cls.classes[0]}</name><bndbox>{corners}</bndbox></object>"
    (tmp_path / "a.xml").write_text(f"<annotation><filename>a.png</filename>{box}</annotation>")
    (tmp_path / "sample_df.csv").write_text("image_path,label_path,split\na.png,a.xml,train\n")
    ds = cls(str(tmp_path), split="train")
    kw = dict(bands=["red", "green", "blue"], scale=1 / 255)
    d, y = TorchGeoData(ds, "rgb", label_offset=1, **kw)[0]
    assert (
        y["labels"].tolist() == [1]
        and y["boxes"].tolist() == [[2.0, 3.0, 9.0, 12.0]]
        and d["ms"].max() == pytest.approx(0.2)
    )
    with pytest.raises(ValueError, match="label_offset=1"):
        TorchGeoData(ds, "rgb", **kw)[0]


def test_dota_boxes_horizontal_rotated_and_none(tmp_path):
    cls = pytest.importorskip("torchgeo.datasets").DOTA
    notes = tmp_path / "train" / "annotations" / "version1.0"
    notes.mkdir(parents=True)
    for k, text in (("a", "4 2 8 4 6 8 2 6 ship 0\n"), ("b", "imagesource:GoogleEarth\ngsd:0.1\n")):
        save_png(tmp_path / "train" / "images" / f"{k}.png", np.full((16, 16, 3), 51, "uint8"))
        (notes / f"{k}.txt").write_text(text)
    (tmp_path / "samples.csv").write_text(
        "image_path,annotation_path,split,version\n"
        + "".join(
            f"train/images/{k}.png,train/annotations/version1.0/{k}.txt,train,1.0\n" for k in "ab"
        )
    )
    kw = dict(sensor="rgb", bands=["red", "green", "blue"], label_offset=1)
    ds = TorchGeoData(cls(str(tmp_path), version="1.0", bbox_orientation="horizontal"), **kw)
    assert (
        ds[0][1]["boxes"].tolist() == [[2.0, 2.0, 8.0, 8.0]]
        and ds[0][1]["labels"].tolist() == [2]
        and ds[1][1]["boxes"].shape == (0, 4)
    )
    with pytest.raises(ValueError, match="rotated"):
        TorchGeoData(cls(str(tmp_path), version="1.0"), **kw)[0]
    from eo_brew.tasks.detection import collate_boxes

    _, y = dataset_loaders(ds, ds, bs=2, device="cpu", create_batch=collate_boxes).valid.one_batch()
    assert y["labels"].tolist() == [[2], [0]]


@pytest.fixture
def geobench(tmp_path, monkeypatch):
    "geobench's own reader over its own files: samples in HDF5, specifications, a partition."
    monkeypatch.setenv("GEO_BENCH_DIR", str(tmp_path))
    dataset = pytest.importorskip("geobench.dataset")
    from geobench.task import TaskSpecifications

    def make(label, label_type, samples=("one",), split="train", shift=0.0):
        folder = tmp_path / "bench" / "m-toy"
        folder.mkdir(parents=True, exist_ok=True)
        info = [
            dataset.Sentinel2(n, a, r)
            for n, a, r in (
                ("02 - Blue", ("2", "02", "blue"), 10),
                ("04 - Red", ("4", "04", "red"), 10),
                ("08A - Vegetation Red Edge", ("8A", "08A"), 20),
            )
        ]
        bands = [
            dataset.Band(np.full((s, s), 10.0 * i), b, b.spatial_resolution)
            for i, (b, s) in enumerate(zip(info, (8, 8, 4)))
        ]
        for k, name in enumerate(samples):
            dataset.Sample(
                [
                    dataset.Band(b.data + shift * (k % 2), b.band_info, b.spatial_resolution)
                    for b in bands
                ],
                label(dataset, k),
                name,
            ).write(folder)
        TaskSpecifications(
            "m-toy", info, 10, patch_size=(8, 8), n_time_steps=1, label_type=label_type
        ).save(folder, overwrite=True)
        p = dataset.Partition()
        [p.add(split, n) for n in samples]
        p.save(folder, "default")
        return dataset.GeobenchDataset(folder, split=split)

    return make


def test_geobench_segmentation(geobench):
    ds = geobench(
        lambda m, k: m.Band(
            np.eye(8, dtype=int) - 1, m.SegmentationClasses("label", 10, n_classes=2), 10
        ),
        "segmentation",
    )
    d, y = GeoBenchData(ds, sub("B04", "B8A"), mask_map={-1: 255})[0]
    assert (
        d["ms"].shape == (2, 8, 8)
        and d["ms"][:, 0, 0].tolist() == [10.0, 20.0]
        and y.unique().tolist() == [0, 255]
        and (y == 0).sum() == 8
    )
    with pytest.raises(ValueError, match=r"\['B11'\]"):
        GeoBenchData(ds, sub("B11"))


@pytest.mark.parametrize("label,want", [(3, 3), (np.array([0, 1]), [0.0, 1.0])])
def test_geobench_labels_of_images(geobench, label, want):
    assert (
        GeoBenchData(geobench(lambda m, k: label, "classification"), sub("B02"))[0][1].tolist()
        == want
    )


def test_recipe_of_a_geobench_row(geobench, tmp_path):
    "m-eurosat's protocol over generated files: training and test differ, both are geobench's own reading."
    from eo_brew.models.encoder import create_encoder
    from eo_brew.tasks.benchmarks import RECIPES, run_recipe

    sets = {
        s: geobench(
            lambda m, k: k % 2, "classification", [f"{s}{k}" for k in range(n)], s, shift=2000.0
        )
        for s, n in (("train", 10), ("test", 4))
    }
    enc = create_encoder(
        "vit_tiny_patch16_224",
        {"ms": sub("B02", "B8A")},
        img_size=8,
        patch_size=4,
        depth=1,
        embed_dim=24,
        num_heads=1,
    )
    out = run_recipe(
        "m-eurosat",
        enc,
        tmp_path,
        open=lambda root, split, sensor, modality: GeoBenchData(sets[split], sensor),
    )
    assert out["accuracy"] == 1.0 and RECIPES["m-eurosat"].published == 97.0


def test_recipe_of_a_torchgeo_row(tmp_path):
    pytest.importorskip("torchgeo.datasets")
    from eo_brew.models.encoder import create_encoder
    from eo_brew.tasks.benchmarks import run_recipe

    levir(tmp_path, np.random.default_rng(0))
    enc = create_encoder(
        "vit_tiny_patch16_224",
        {"rgb": "rgb"},
        img_size=32,
        patch_size=8,
        depth=4,
        embed_dim=24,
        num_heads=1,
    )
    out = run_recipe("LEVIR-CD", enc, tmp_path, size=32, epochs=6, bs=2, progress=False)
    assert set(out) == {"change_f1", "change_iou"} and out["change_f1"] > 0.5


def levir(folder, rng):
    for s in ("train", "val", "test"):
        for k in range(2):
            a = rng.integers(0, 90, (32, 64, 3)).astype("uint8")
            b = a.copy()
            b[8:16, 8:40] += 150
            for kind, x in (("A", a), ("B", b), ("label", (b != a).any(-1).astype("uint8") * 255)):
                save_png(folder / kind / f"{s}_{k}.png", x)


def city(folder, rng, split):
    "An OSCD city of 13 bands at two dates; what has changed is bright."
    base, name = (
        folder / "Onera Satellite Change Detection dataset - Images",
        f"{split.lower()}ville",
    )
    change = np.zeros((32, 32), bool)
    change[8:24, 4:20] = True
    for date in (1, 2):
        for b in "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12".split():
            write_tif(
                base / name / f"imgs_{date}_rect" / f"{b}.tif",
                rng.integers(300, 900, (1, 32, 32)) + 4000 * change * (date == 2),
            )
    (base / name / "dates.txt").write_text("date_1: 20160101\ndate_2: 20180101\n")
    save_png(
        folder
        / f"Onera Satellite Change Detection dataset - {split} Labels"
        / name
        / "cm"
        / "cm.png",
        change.astype("uint8") * 255,
    )


def oscd(folder, rng):
    for split in ("Train", "Test"):
        city(folder, rng, split)


def town(folder, rng, cls, image, mask, n):
    "Colours as bright as the number of the class."
    for split in ("train", "test"):
        for name in cls.splits[split][:2]:
            name = name.removesuffix(".tif")
            y = np.repeat(rng.integers(0, 6, (8, 8)), 8, 0).repeat(8, 1)
            write_tif(
                folder / image.format(name), np.broadcast_to(y * 40 + 20, (n, 64, 64)), "uint8"
            )
            save_png(folder / mask.format(name), np.array(cls.colormap, "uint8")[y])


def potsdam(folder, rng):
    town(folder, rng, datasets().Potsdam2D, "4_Ortho_RGBIR/{}_RGBIR.tif", "{}_label.tif", 4)


def vaihingen(folder, rng):
    town(folder, rng, datasets().Vaihingen2D, "top/{}.tif", "{}.tif", 3)


def heights(file, mask, lacks=0):
    "A surface model in metres: what is labelled white stands 30 m out of a plane."
    from PIL import Image

    y = np.asarray(Image.open(mask)).astype(int).sum(-1)
    z = 40.0 + 30 * (y == 3 * 255)
    write_tif(file, z[None, :, : z.shape[1] - lacks], "float32")


def potsdam_dsm(folder, rng):
    potsdam(folder, rng)
    for k, mask in enumerate(sorted(folder.glob("*_label.tif"))):
        row, column = map(int, mask.stem.split("_")[2:4])
        heights(folder / f"1_DSM/dsm_potsdam_{row:02}_{column:02}.tif", mask, lacks=k == 0)


def vaihingen_dsm(folder, rng):
    vaihingen(folder, rng)
    for mask in folder.glob("*.tif"):
        number = mask.stem.removeprefix("top_mosaic_09cm_area")
        heights(folder / f"dsm/dsm_09cm_matching_area{number}.tif", mask)


def photos(folder, rng, name, numbers):
    "Photographs in class folders, as bright as the number of their class."
    for k, place in enumerate(("Airport", "Beach", "Forest")):
        for i in numbers:
            x = rng.integers(0, 40, (40, 48, 3)) + 80 * k
            save_png(folder / name.format(place=place, i=i), x.astype("uint8"))


def aid(folder, rng):
    photos(folder, rng, "{place}/{place}_{i}.jpg", range(1, 21))


def nwpu(folder, rng):
    photos(folder, rng, "NWPU-RESISC45/{place}/{place}_{i:03}.jpg", range(1, 21))
    for split, numbers in (
        ("train", range(1, 11)),
        ("val", range(11, 13)),
        ("test", range(13, 21)),
    ):
        names = [f"{p}_{i:03}.jpg" for p in ("Airport", "Beach", "Forest") for i in numbers]
        (folder / f"resisc45-{split}.txt").write_text("\n".join(names))


def dior(folder, rng):
    "Pascal VOC boxes, and the table of the splits that torchgeo reads."
    name, rows = datasets().DIOR.classes[3], ["image_path,label_path,split"]
    for i, split in enumerate(("train", "train", "val", "val")):
        save_png(folder / f"{i}.jpg", rng.integers(0, 255, (64, 64, 3)).astype("uint8"))
        corners = "<xmin>8</xmin><ymin>8</ymin><xmax>40</xmax><ymax>40</ymax>"
        box = f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>"
        (folder / f"{i}.xml").write_text(
            f"<annotation><filename>{i}.jpg</filename>{box}</annotation>"
        )
        rows.append(f"{i}.jpg,{i}.xml,{split}")
    (folder / "sample_df.csv").write_text("\n".join(rows))


def dota(folder, rng):
    "Rotated boxes, and images that are larger and smaller than a window."
    rows = ["image_path,annotation_path,split,version"]
    for split in ("train", "val"):
        notes = folder / split / "annotations" / "version1.0"
        notes.mkdir(parents=True)
        for k, size in (("a", (40, 100, 3)), ("b", (64, 64, 3))):
            image = f"{split}/images/{k}.png"
            save_png(folder / image, rng.integers(0, 255, size).astype("uint8"))
            (notes / f"{k}.txt").write_text("20 4 36 20 20 36 4 20 ship 0\n")
            rows.append(f"{image},{(notes / f'{k}.txt').relative_to(folder)},{split},1.0")
    (folder / "samples.csv").write_text("\n".join(rows))


def floods(folder, rng):
    hand = folder / "v1.1/data/flood_events/HandLabeled"
    lists = folder / "v1.1/splits/flood_handlabeled"
    lists.mkdir(parents=True)
    for split in ("train", "test"):
        for i in range(2):
            y = np.repeat(rng.integers(-1, 2, (4, 4)), 8, 0).repeat(8, 1)[None]
            write_tif(hand / f"S2Hand/{split}{i}_S2Hand.tif", 900 + 500 * y + np.zeros((13, 1, 1)))
            write_tif(hand / f"LabelHand/{split}{i}_LabelHand.tif", y, "int16")
        rows = [f"{split}{i}_S1Hand.tif,{split}{i}_LabelHand.tif\n" for i in range(2)]
        (lists / f"flood_{split}_data.csv").write_text("".join(rows))


def second(folder, rng):
    for split in ("train", "test"):
        for i in range(2):
            x = rng.integers(0, 99, (32, 32, 3)).astype("uint8")
            y = np.full((32, 32, 3), 255, "uint8")
            y[8:16, 8:24] = 60
            for kind, image in (("im1", x), ("im2", x + (y != 255) * 99), ("label1", y)):
                save_png(folder / split / kind / f"{i}.png", image.astype("uint8"))


def us3d(folder, rng):
    for split in ("train", "test"):
        for i in range(2):
            z = np.repeat(rng.uniform(2, 20, (4, 4)), 8, 0).repeat(8, 1)[None]
            write_tif(folder / split / f"{i}_RGB.tif", (12 * z).repeat(3, 0), "uint8")
            write_tif(folder / split / f"{i}_AGL.tif", z, "float32")


def pastis(folder, rng):
    import geopandas
    from shapely.geometry import Point

    cls = datasets().PASTIS
    base = folder / cls.directory
    base.mkdir()
    geopandas.GeoDataFrame(
        dict(ID_PATCH=[1, 2, 3], Fold=[1, 2, 5]), geometry=[Point(0, 0)] * 3, crs="EPSG:2154"
    ).to_file(base / "metadata.geojson")
    for i in (1, 2, 3):
        y = np.repeat(rng.integers(0, 20, (4, 4)), 8, 0).repeat(8, 1)
        for kind, x in (
            ("s2", np.broadcast_to(300 + 200 * y, (5, 10, 32, 32))),
            ("semantic", np.stack([y] * 3)),
        ):
            file = Path(f"{base}/{cls.prefix[kind]}{i}.npy")
            file.parent.mkdir(exist_ok=True)
            np.save(file, x)


def rio(folder, rng):
    "SpaceNet 1: pictures in degrees, houses as polygons."
    import geopandas
    import rasterio
    from shapely.geometry import box

    base, gsd = folder / "SN1_buildings" / "train", 1e-5
    for d in ("3band", "geojson"):
        (base / d).mkdir(parents=True)
    for i in (1, 2):
        x0, y0 = -43 + i * 0.01, -22.0
        x, corner = np.full((3, 439, 406), 40, "uint8"), rng.integers(20, 200, 2)
        (r, c) = corner
        x[:, r : r + 150, c : c + 150] = 220
        with rasterio.open(
            base / "3band" / f"3band_AOI_1_RIO_img{i}.tif",
            "w",
            driver="GTiff",
            count=3,
            height=439,
            width=406,
            dtype="uint8",
            crs="EPSG:4326",
            transform=rasterio.Affine(gsd, 0, x0, 0, -gsd, y0),
        ) as f:
            f.write(x)
        geopandas.GeoDataFrame(
            geometry=[box(x0 + c * gsd, y0 - (r + 150) * gsd, x0 + (c + 150) * gsd, y0 - r * gsd)],
            crs="EPSG:4326",
        ).to_file(base / "geojson" / f"Geo_AOI_1_RIO_img{i}.geojson")


def datasets():
    return pytest.importorskip("torchgeo.datasets")


TEN = "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12".split()
DENSE, BOXES = dict(size=32, epochs=2), dict(size=64, epochs=2)
PUBLIC = {
    "OSCD": (oscd, DENSE),
    "PASTIS": (pastis, dict(epochs=2)),
    "SpaceNet": (rio, dict(size=96, epochs=1, share=0.2)),
    "SpaceNet, 10%": (rio, dict(size=96, epochs=1)),
    "Sen1Floods11": (floods, DENSE),
    "LEVIR-CD": (levir, DENSE),
    "Potsdam": (potsdam, DENSE),
    "Potsdam, released": (potsdam, dict(size=32, batches=2)),
    "Potsdam + DSM": (potsdam_dsm, DENSE),
    "Vaihingen": (vaihingen, DENSE),
    "Vaihingen + DSM": (vaihingen_dsm, DENSE),
    "SECOND": (second, DENSE),
    "US3D": (us3d, DENSE),
    "AID": (aid, dict(resize=32)),
    "AID, 20%": (aid, dict(resize=32, epochs=2)),
    "NWPU": (nwpu, dict(resize=32)),
    "NWPU, 20%": (nwpu, dict(resize=32, epochs=2)),
    "DIOR": (dior, BOXES),
    "DOTA": (dota, BOXES),
}


def run_row(name, folder, **changes):
    "A row with an encoder of its modalities that is next to nothing."
    from eo_brew.models.encoder import create_encoder
    from eo_brew.tasks.benchmarks import RECIPES, run_recipe

    torch.manual_seed(0)
    row = RECIPES[name]
    sensors = {"ms": sub(*TEN), "rgb": "rgb", "dsm": "dsm"}
    enc = create_encoder(
        "vit_tiny_patch16_224",
        {m: sensors[m] for m in (row.modality, *row.others)},
        img_size=32,
        patch_size=8,
        depth=4,
        embed_dim=24,
        num_heads=1,
    )
    before = [p.detach().clone() for p in enc.parameters()]
    out = run_recipe(name, enc, folder, bs=4, progress=False, **changes)
    moved = [bool((a != b).any()) for a, b in zip(before, enc.parameters())]
    return row, out, moved


@pytest.mark.parametrize("name", PUBLIC)
def test_recipes_run_on_the_published_layouts(tmp_path, name):
    "Reading, a few steps, a score; a frozen encoder stays as it is, another one is trained."
    datasets()
    write, changes = PUBLIC[name]
    write(tmp_path, np.random.default_rng(0))
    row, out, moved = run_row(name, tmp_path, **changes)
    assert row.metric in out and row.ran == "generated files"
    assert all(np.isfinite(v) for v in out.values())
    assert any(moved) != row.frozen


def test_every_row_is_run_here():
    from eo_brew.tasks.benchmarks import RECIPES

    assert set(PUBLIC) | set(GEOBENCH) == set(RECIPES)


def test_what_a_row_of_boxes_sees(tmp_path):
    "Windows of images of any size; the horizontal box around a rotated one; zeros that the mask leaves out."
    from eo_brew.tasks.benchmarks import RECIPES, recipe_data

    datasets()
    dota(tmp_path, np.random.default_rng(0))
    from dataclasses import replace

    train, _ = recipe_data(replace(RECIPES["DOTA"], size=64), get_sensor("rgb"), tmp_path)
    assert len(train) == 3  # 40 x 100 and 64 x 64
    (d, y), (_, beside) = train[0], train[1]
    assert d["rgb"].shape == (3, 64, 64) and int(d["rgb_valid"].sum()) == 40 * 64
    assert y["boxes"].tolist() == [[4, 4, 36, 36]] and y["labels"].tolist() == [2]
    assert beside["boxes"].shape == (0, 4)


def test_a_folder_without_classes_is_named(tmp_path):
    from eo_brew.tasks.benchmarks import RECIPES, recipe_data

    with pytest.raises(ValueError, match="empty' has no folders of images"):
        recipe_data(RECIPES["AID"], get_sensor("rgb"), tmp_path / "empty")


def test_heights_reach_the_row_that_has_them(tmp_path):
    "What the colours of a window do not tell, the surface model does."
    from dataclasses import replace
    from eo_brew.tasks.benchmarks import RECIPES, recipe_data

    datasets()
    potsdam_dsm(tmp_path, np.random.default_rng(0))
    row = replace(RECIPES["Potsdam + DSM"], size=32)
    train, test = recipe_data(row, get_sensor("rgb"), tmp_path)
    for d, y in (*train, *test):
        assert set(d) == {"rgb", "dsm", "dsm_valid"} and d["dsm"].shape == (1, 32, 32)
        assert set(d["dsm"].unique().tolist()) <= {40.0, 70.0}
        assert torch.equal(d["dsm"][0][y != 255] == 70, y[y != 255] == 1)  # white is class 1


# bands as GEO-Bench writes them: (name, aliases); what the data sets of colours have beside them is left out
NAMES = "02 - Blue,03 - Green,04 - Red,05 - Vegetation Red Edge,06 - Vegetation Red Edge"
NAMES += ",07 - Vegetation Red Edge,08 - NIR,08A - Vegetation Red Edge,11 - SWIR,12 - SWIR"
GEOBENCH = {
    "m-bigearthnet": "several",
    "m-bigearthnet, 10%": "several",
    "m-so2sat": "one",
    "m-eurosat": "one",
    "m-nz-cattle": "raster",
    "m-pv4ger-seg": "raster",
    "m-chesapeake": "raster",
    "m-SA-crop-type": "raster",
    "m-SA-crop-type, 10%": "raster",
    "m-cashew-plant": "raster",
}


def geobench_row(folder, row, kind, rng):
    "Samples in HDF5, specifications and a partition, by geobench's own writer."
    dataset = pytest.importorskip("geobench.dataset")
    from geobench.task import TaskSpecifications

    ms = row.modality == "ms"
    names = NAMES.split(",") if ms else ["Red", "Green", "Blue"]
    info = [dataset.Sentinel2(n, (n.split(" -")[0], n.lower()), 10) for n in names]
    label_info = dataset.SegmentationClasses("label", 10, n_classes=row.classes)
    partition = dataset.Partition()
    few = kind == "raster"  # a head of UPerNet takes its time
    for split, n in (("train", 10 if few else 40), ("valid", 2), ("test", 2 if few else 8)):
        for k in range(n):
            y = {
                "one": k % 2,
                "several": np.array([k % 2, 1 - k % 2]),
                "raster": rng.integers(0, row.classes, (32, 32)),
            }[kind]
            level = 100 + 100 * (y if kind == "raster" else np.full((32, 32), k % 2))
            bands = [dataset.Band(level.astype(float), b, 10) for b in info]
            label = dataset.Band(y, label_info, 10) if kind == "raster" else y
            dataset.Sample(bands, label, f"{split}{k}").write(folder)
            partition.add(split, f"{split}{k}")
    partition.save(folder, "default")
    TaskSpecifications(
        folder.name, info, 10, patch_size=(32, 32), n_time_steps=1, label_type=kind
    ).save(folder, overwrite=True)


@pytest.mark.parametrize("name", GEOBENCH)
def test_recipes_run_on_files_of_geobench(tmp_path, monkeypatch, name):
    from eo_brew.tasks.benchmarks import RECIPES

    monkeypatch.setenv("GEO_BENCH_DIR", str(tmp_path))
    row, kind = RECIPES[name], GEOBENCH[name]
    part = tmp_path / row.reads.removeprefix("geobench ")
    part.mkdir(parents=True)
    geobench_row(part, row, kind, np.random.default_rng(0))
    row, out, moved = run_row(name, tmp_path, **({"epochs": 1} if kind == "raster" else {}))
    assert row.metric in out and all(0 <= v <= 1 for v in out.values()) and not any(moved)
