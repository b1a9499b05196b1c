"""An encoder in torchgeo-bench and in terratorch, each run by itself on generated files of its layout (Python 3.12)."""

import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch

from eo_brew.core.sensors import get_sensor
from eo_brew.models.encoder import create_encoder
from eo_brew.weights.save import save_encoder

TINY = dict(img_size=64, patch_size=16, embed_dim=24, depth=4, num_heads=2)
BANDS = ["B02", "B03", "B04", "B8A"]


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    sensor = get_sensor("sentinel2_l1c", bands=BANDS)
    enc = create_encoder("vit_tiny_patch16_224", {"ms": sensor}, **TINY).eval()
    return save_encoder(enc, tmp_path / "encoder.safetensors")


def write(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = dict(driver="GTiff", dtype=x.dtype, count=len(x), height=64, width=64)
    with rasterio.open(path, "w", **profile) as dst:
        dst.write(x)


def eurosat(root):
    "EuroSAT's folders with chips of two classes that differ by their brightness."
    rng, level = np.random.default_rng(0), {"Forest": 800, "River": 2500}
    base = root / "ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    for split, n in dict(train=8, val=4, test=4).items():
        names = [f"{c}_{split}{i}" for c in level for i in range(n)]
        (root / f"eurosat-{split}.txt").write_text("".join(f"{n}.jpg\n" for n in names))
        for name in names:
            c = name.split("_")[0]
            x = rng.normal(level[c], 100, (13, 64, 64)).clip(1).astype("uint16")
            write(base / c / f"{name}.tif", x)


CONFIG = """_target_: eo_brew.weights.elsewhere.bench_model
name: eo_brew
encoder: {encoder}
"""


def so2sat(root):
    "GEO-Bench-2's So2Sat: radar and reflectances of each place in a tortilla, these in one, two classes by brightness."
    from tacotoolbox import tortilla

    Sample, Samples = tortilla.datamodel.Sample, tortilla.datamodel.Samples
    rng, level, places = np.random.default_rng(0), (0.08, 0.25), []
    (root / "so2sat").mkdir(parents=True)
    for split, n in dict(train=8, validation=4, test=4).items():
        for i in range(2 * n):
            place = root / f"parts/{split}{i}.tortilla"
            about = dict(data_split=split, file_format="GTiff", patch_id=place.stem)
            parts = []
            for name, bands in (("s1", 2), ("s2", 10)):
                file = root / f"parts/{split}{i}_{name}.tif"
                write(file, rng.normal(level[i % 2], 0.01, (bands, 64, 64)).astype("float32"))
                parts.append(Sample(id=name, path=str(file), labels=i % 2, **about))
            tortilla.create(Samples(samples=parts), str(place), quiet=True)
            about |= dict(file_format="TORTILLA", labels=i % 2)
            places.append(Sample(id=place.stem, path=str(place), **about))
    tortilla.create(
        Samples(samples=places), str(root / "so2sat/geobench_so2sat.tortilla"), quiet=True
    )


def run_bench(encoder, folder, name):
    "torchgeo-bench's own command on the data set of that name in `folder`/data; its table."
    (folder / "conf/model").mkdir(parents=True)
    (folder / "conf/model/eo_brew.yaml").write_text(CONFIG.format(encoder=encoder))
    line = f"""--config-dir {folder}/conf model=eo_brew dataset.names=[{name}] dataset.bands=all device=cpu
    dataset.image_size=64 dataset.batch_size=8 dataset.num_workers=0 eval.bootstrap=2 eval.c_range=[-1,1,2]
    eval.knn_k=3 output={folder}/out.csv"""
    run = "from torchgeo_bench.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", run, "run", *line.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | dict(CUDA_VISIBLE_DEVICES="", GEOBENCH_V2_NO_DOWNLOAD="1"),
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return pytest.importorskip("pandas").read_csv(folder / "out.csv")


@pytest.mark.parametrize("name", ["eurosat", "so2sat"])
def test_torchgeo_bench_runs_an_encoder(encoder, tmp_path, name):
    "A data set of torchgeo's, and one of GEO-Bench-2: two levels of brightness are told apart."
    pytest.importorskip("torchgeo_bench", reason="extra: bench")
    if name == "eurosat":
        (tmp_path / "data/eurosat").mkdir(parents=True)
        eurosat(tmp_path / "data/eurosat")
    else:
        pytest.importorskip("tacotoolbox", reason="makes GEO-Bench-2's files: tacotoolbox<0.6")
        so2sat(tmp_path / "data/geobenchv2")
    table = run_bench(encoder, tmp_path, name)
    assert (table.name == "eo_brew").all()
    scores = table.set_index("method").metric_value
    assert scores["knn3"] > 0.9 and scores["linear"] > 0.9


def test_the_benchmark_feeds_bands_in_our_order_and_unit(encoder):
    pytest.importorskip("torchgeo_bench", reason="extra: bench")
    from torchgeo_bench.datasets.eurosat import EuroSAT

    from eo_brew.weights.elsewhere import bench_model
    from eo_brew.weights.save import load_encoder

    specs = EuroSAT().select_band_specs(None)
    model = bench_model(specs, str(encoder), name="eo_brew", normalization="bandspec_zscore").eval()
    x = torch.rand(2, 13, 64, 64) * 3000
    with torch.no_grad():
        got = model(x)
        want = load_encoder(encoder)(x[:, [1, 2, 3, 12]]).patches.mean(1)
    torch.testing.assert_close(got, want)
    with pytest.raises(ValueError, match=r"\['B8A'\]"):
        bench_model(EuroSAT().select_band_specs(["red", "green", "blue"]), str(encoder))


def test_terratorch_trains_a_decoder_on_an_encoder(encoder, tmp_path):
    pytest.importorskip("terratorch", reason="extra: terratorch")
    import lightning
    from terratorch.datamodules import GenericNonGeoSegmentationDataModule
    from terratorch.tasks import SemanticSegmentationTask

    from eo_brew.weights.elsewhere import register_terratorch

    register_terratorch()
    register_terratorch()  # twice is once
    rng = np.random.default_rng(0)
    for i in range(4):
        y = (rng.random((1, 64, 64)) < 0.5).astype("uint8")
        x = (1000 + 1500.0 * y + rng.normal(0, 50, (4, 64, 64))).astype("float32")
        write(tmp_path / f"x/{i}_img.tif", x)
        write(tmp_path / f"y/{i}_lab.tif", y)
    folders = {}
    for split in ("train", "val", "test"):
        folders |= {
            f"{split}_data_root": tmp_path / "x",
            f"{split}_label_data_root": tmp_path / "y",
        }
    data = GenericNonGeoSegmentationDataModule(
        batch_size=2,
        num_workers=0,
        img_grep="*_img.tif",
        label_grep="*_lab.tif",
        means=[0.0] * 4,
        stds=[1.0] * 4,
        num_classes=2,
        **folders,
    )
    args = dict(backbone="eo_brew", backbone_encoder=str(encoder), num_classes=2)
    args |= dict(backbone_model_bands=["BLUE", "GREEN", "RED", "NIR_NARROW"])
    args |= dict(decoder="UperNetDecoder", decoder_channels=16)
    task = SemanticSegmentationTask(
        model_factory="EncoderDecoderFactory",
        model_args=args,
        loss="ce",
        ignore_index=-1,
        freeze_backbone=True,
    )
    trainer = lightning.Trainer(
        fast_dev_run=1, accelerator="cpu", logger=False, enable_progress_bar=False
    )
    trainer.fit(task, datamodule=data)
    assert torch.isfinite(trainer.callback_metrics["val/loss"])
    assert type(task.model.encoder).__name__ == "TerratorchBackbone"
