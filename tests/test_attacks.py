"""What strangers' files, two runs at once, signals and changed inputs can do: one line on the screen.

Each table holds an attack and what the user sees. A local server counts requests: there are none.
"""

import http.server
import io
import json
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from processes import PROCESSES
from safetensors.torch import save_file

from eo_brew.app.cli import COMMANDS, main
from eo_brew.core.sensors import get_sensor
from eo_brew.core.trust import allow_outside
from eo_brew.maps.predict import predict_raster
from eo_brew.models.encoder import create_encoder
from eo_brew.probes.features import encode
from eo_brew.runs.states import CheckpointError, read_checkpoint
from eo_brew.scenes.open import open_scene, open_scenes
from eo_brew.weights.export import export_onnx, save_folder
from eo_brew.weights.save import describe_encoder, load_encoder, save_encoder

S3 = get_sensor("sentinel2_l1c", bands="B02 B03 B04".split())
TINY = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)


def encoder():
    torch.manual_seed(0)
    return create_encoder("vit_tiny_patch16_224", {"ms": S3}, **TINY).eval()


def raster(path, seed=0, size=96, **tags):
    x = np.random.default_rng(seed).integers(1, 3000, (3, size, size)).astype("uint16")
    profile = dict(
        driver="GTiff", dtype="uint16", count=3, height=size, width=size, crs="EPSG:32633"
    )
    with rasterio.open(path, "w", transform=Affine(10, 0, 3e5, 0, -10, 5e6), **profile) as dst:
        dst.write(x)
        for i, n in enumerate(S3.band_names, 1):
            dst.set_band_description(i, n)
        dst.update_tags(EO_OFFSET="0", **tags)
    return path


@pytest.fixture
def server():
    "An address, and the list of requests that it got."
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()


@pytest.fixture
def eo(capsys):
    "Run a command line: (exit code, output, error output)."

    def call(*argv):
        try:
            code = main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code
        return code, *capsys.readouterr()

    return call


def test_the_server_counts(server):
    import urllib.error
    import urllib.request

    address, asked = server
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{address}/x")
    assert asked == ["/x"]


# -- an encoder of a stranger


def forged(path, config=None, tensors=None, about=None, text=None):
    "An encoder's file with changes to what it says and holds."
    enc = encoder()
    d = describe_encoder(enc) | (about or {})
    d["config"] = d["config"] | (config or {})
    text = json.dumps(d) if text is None else text
    save_file(enc.state_dict() | (tensors or {}), path, {"format": "pt", "eo_brew": text})
    return path


NAN = torch.full((24,), float("nan"))
CONFIGS = {
    "a repository as architecture": (dict(arch="hf-hub:stranger/model"), "is no timm name"),
    "a folder as architecture": (dict(arch="local-dir:/etc"), "is no timm name"),
    "a path as architecture": (dict(arch="../../etc"), "is no timm name"),
    "weights from the hub": (dict(pretrained=True), "pretrained=True"),
    "a checkpoint": (dict(checkpoint="/etc/passwd"), "checkpoint="),
    "timm's checkpoint": (dict(checkpoint_path="{url}/w.pth"), "checkpoint_path="),
    "a configuration with an address": (
        dict(pretrained_cfg=dict(url="{url}/w")),
        "pretrained_cfg=",
    ),
    "an overlay with a file": (
        dict(pretrained_cfg_overlay=dict(file="/etc/passwd")),
        "pretrained_cfg",
    ),
    "an address": (dict(url="{url}"), "url="),
    "a folder for the cache": (dict(cache_dir="/"), "cache_dir="),
    "a gigantic width": (dict(embed_dim=16384, num_heads=1), "does not fit"),
    "an impossible width": (dict(embed_dim=10**12), "embed_dim="),
    "a million blocks": (dict(depth=10**6), "depth="),
    "a gigantic image": (dict(img_size=10**7), "img_size="),
    "infinite": (dict(mlp_ratio=float("inf")), "mlp_ratio="),
    "a nest of lists": (dict(depth=[[[[1]]]]), "depth="),
    "no modalities": (dict(modalities=[]), "none of an encoder"),
    "a billion bands": (dict(modalities={"ms": 10**9}), "no sound bands"),
    "a path as modality": (dict(modalities={"../../x": 3}), "no sound bands"),
    "a number as architecture": (dict(arch=7), "is no timm name"),
    "an argument of Python": (dict(__class__="x"), "__class__"),
}


@pytest.mark.parametrize("attack", CONFIGS)
def test_hostile_configuration(eo, tmp_path, server, attack, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server[0])
    config, says = CONFIGS[attack]
    config = json.loads(json.dumps(config).replace("{url}", server[0]))
    path = forged(tmp_path / "encoder.safetensors", config)
    raster(tmp_path / "s.tif")
    with pytest.raises(ValueError) as e:
        load_encoder(path)
    assert says in str(e.value) and "\n" not in str(e.value)
    code, _, err = eo("predict", path, tmp_path / "s.tif", "--out", tmp_path / "m.tif")
    assert code == 2 and err.startswith("eo_brew: ") and err.count("\n") == 1
    assert not server[1] and not (tmp_path / "m.tif").exists()


TENSORS = {
    "NaN": (
        dict(tensors={"trunk.norm.bias": NAN}),
        "trunk.norm.bias holds NaN or infinite numbers (24 of 24)",
    ),
    "infinite": (
        dict(tensors={"trunk.norm.bias": NAN.nan_to_num(np.inf)}),
        "trunk.norm.bias holds NaN or infinite",
    ),
    "integers": (
        dict(tensors={"trunk.norm.bias": torch.zeros(24, dtype=torch.int32)}),
        "of type I32",
    ),
    "another shape": (dict(tensors={"trunk.norm.bias": torch.zeros(25)}), "wrong shape"),
    "one more": (dict(tensors={"trunk.more": torch.zeros(1)}), "unexpected: 1 (trunk.more)"),
    "deep JSON": (dict(text="[" * 100_000 + "]" * 100_000), "not readable"),
    "a list": (dict(text="[1, 2]"), "is a list"),
    "no JSON": (dict(text="{'a': 1}"), "not readable"),
    "a number of many digits": (dict(text="9" * 10_000), "not readable"),
    "nothing": (dict(text="{}"), "none of an encoder"),
}


@pytest.mark.parametrize("attack", TENSORS)
def test_hostile_tensors_and_texts(eo, tmp_path, attack):
    change, says = TENSORS[attack]
    path = forged(tmp_path / "e.safetensors", **change)
    with pytest.raises(ValueError) as e:
        load_encoder(path)
    assert says in str(e.value)
    code, _, err = eo("export", path, tmp_path / "hub")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "hub").exists()


def header(path, text, tail=b""):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + tail)
    return path


HEADERS = {
    "a length beyond the file": (b"\xff" * 8, "no whole safetensors file"),
    "empty": (b"", "no whole safetensors file"),
    "a pickle": (b"\x80\x02}q\x00.", "a pickle of torch.save"),
    "a list": ([], "is a list"),
    "nested": (b"[" * 200_000, "not readable"),
    "sizes that do not fit": (
        {"a": dict(dtype="F32", shape=[2], data_offsets=[0, 4])},
        "no sound size",
    ),
    "a negative shape": (
        {"a": dict(dtype="F32", shape=[-1], data_offsets=[0, 4])},
        "no sound size",
    ),
    "a gigantic shape": (
        {"a": dict(dtype="F32", shape=[2**40, 2**40], data_offsets=[0, 4])},
        "no sound size",
    ),
    "a tensor without a type": ({"a": dict(shape=[1], data_offsets=[0, 4])}, "its header lacks"),
    "cut short": ({"a": dict(dtype="F32", shape=[9], data_offsets=[0, 36])}, "cut off in a copy"),
}


@pytest.mark.parametrize("attack", HEADERS)
def test_hostile_headers(eo, tmp_path, attack):
    content, says = HEADERS[attack]
    path = tmp_path / "e.safetensors"
    if isinstance(content, bytes) and not content.startswith(b"["):
        path.write_bytes(content)
    else:
        header(path, content, bytes(4))
    code, out, err = eo("info", path)
    assert code == 2 and says in err and err.count("\n") == 1 and not out


def test_a_gigantic_encoder_costs_no_memory(tmp_path):
    "Nine gigabytes were allocated before anybody looked at the tensors."
    path = forged(tmp_path / "e.safetensors", dict(embed_dim=16384, num_heads=1))
    code = (
        "import resource, sys\nfrom eo_brew.weights.save import load_encoder\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load_encoder(sys.argv[1])\nexcept ValueError as e: assert 'does not fit' in str(e)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    r = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert r.returncode == 0 and int(r.stdout) < 200_000, r.stdout + r.stderr  # kB


def test_what_info_prints_obeys_nobody(eo, tmp_path):
    evil = "deo\x1b[2J\x1b]0;owned\x07\u202e\r"
    path = forged(
        tmp_path / "e.safetensors", about=dict(method=evil, vfm=dict(arch=evil, source=evil))
    )
    code, out, _ = eo("info", path)
    assert code == 0 and "deo" in out
    assert all(c == "\n" or c.isprintable() for c in out)


def test_the_hub_is_asked_only_by_its_name(eo, tmp_path, server, monkeypatch):
    "`predict runs/deo` with a mistyped folder asked the hub for a stranger's repository."
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server[0])
    raster(tmp_path / "s.tif")
    monkeypatch.chdir(tmp_path)
    code, _, err = eo("predict", "runs/deo", "s.tif", "--out", "m.tif")
    assert code == 2 and "write hf-hub:runs/deo" in err and not server[1]
    code, _, err = eo("predict", "hf-hub:../deo/x", "s.tif", "--out", "m.tif")
    assert code == 2 and "hf-hub:USER/NAME" in err and not server[1]


def test_hostile_checkpoints(tmp_path):
    for text in "[" * 100_000, "3", '{"items": [[1]]}', '{"tensor": "x"}', '{"items": {"a": 1}}':
        save_file({}, tmp_path / "c.ckpt", {"format": "eo_brew-checkpoint-1", "state": text})
        with pytest.raises(CheckpointError, match="is no checkpoint that eo_brew wrote"):
            read_checkpoint(tmp_path / "c.ckpt")


# -- a folder of a stranger


def vrt(source, kind="raw"):
    if kind == "code":
        inner = "<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode>x</PixelFunctionCode>"
        band = f"<VRTRasterBand dataType='Byte' band='1' subClass='VRTDerivedRasterBand'>{inner}</VRTRasterBand>"
    elif kind == "raw":
        band = (
            "<VRTRasterBand dataType='Byte' band='1' subClass='VRTRawRasterBand'>"
            f"<SourceFilename relativeToVRT='0'>{source}</SourceFilename><ImageOffset>0</ImageOffset>"
            "<PixelOffset>1</PixelOffset><LineOffset>8</LineOffset></VRTRasterBand>"
        )
    else:
        band = (
            "<VRTRasterBand dataType='UInt16' band='1'><SimpleSource>"
            f"<SourceFilename relativeToVRT='1'>{source}</SourceFilename><SourceBand>1</SourceBand>"
            "</SimpleSource></VRTRasterBand>"
        )
    return f"<VRTDataset rasterXSize='8' rasterYSize='8'>{band}</VRTDataset>"


def plant(folder, attack, secret, url):
    "Put one hostile file into a folder of scenes."
    texts = {
        "a raw band of another file": vrt(secret),
        "a raw band by an entity": vrt(str(secret).replace("/", "&#47;")),
        "a way up": vrt("../" * 20 + str(secret)[1:], "simple"),
        "an address": vrt(f"/vsicurl/{url}/a.tif", "simple"),
        "a plain address": vrt(f"{url}/a.tif", "simple"),
        "an archive elsewhere": vrt(f"/vsizip/{secret}/a.tif", "simple"),
        "a container elsewhere": vrt(f'NETCDF:"{secret}":x', "simple"),
        "code in a VRT": vrt("", "code"),
        "a map service": f"<GDAL_WMS><Service name='TMS'><ServerUrl>{url}</ServerUrl></Service></GDAL_WMS>",
        "a catalogue": json.dumps(
            {"stac_version": "1.0.0", "assets": {"a": {"href": f"{url}/a.tif"}}}
        ),
        "entities": "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><VRTDataset>&b;</VRTDataset>",
    }
    if attack == "a link of the file system":
        (folder / "x.tif").symlink_to(secret)
    elif attack == "overviews elsewhere":
        raster(folder / "x.tif", 3)
        item = f"<MDI key='OVERVIEW_FILE'>{secret}</MDI>"
        (folder / "x.tif.aux.xml").write_text(
            f"<PAMDataset><Metadata domain='OVERVIEWS'>{item}</Metadata></PAMDataset>"
        )
    elif attack.startswith("HDF5"):
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "x.h5", "w") as f:
            if "link" in attack:
                f["ms"] = h5py.ExternalLink(str(secret), "x")
            else:
                f.create_dataset("ms", (3, 2, 2), "u1", external=[(str(secret), 0, 12)])
    else:
        (folder / "x.tif").write_text(texts[attack])


FOLDERS = (
    "a raw band of another file",
    "a raw band by an entity",
    "a way up",
    "an address",
    "a plain address",
    "an archive elsewhere",
    "a container elsewhere",
    "code in a VRT",
    "a map service",
    "a catalogue",
    "entities",
    "a link of the file system",
    "overviews elsewhere",
    "HDF5 with external data",
    "HDF5 with an external link",
)


@pytest.mark.parametrize("attack", FOLDERS)
def test_hostile_folders(eo, tmp_path, server, attack):
    "Nothing outside of the folder is opened, and nobody is asked."
    folder, secret = tmp_path / "scenes", tmp_path / "secret.bin"
    folder.mkdir()
    secret.write_bytes(b"private" * 100)
    raster(folder / "good.tif")
    plant(folder, attack, secret, server[0])
    os.utime(secret, (1, 1))
    secret.chmod(0)
    for on_error in "raise", "skip":
        with pytest.raises(ValueError, match="x\\.(tif|h5)"):
            open_scenes(folder, sensor="sentinel2_l1c", on_error=on_error)
    code, _, err = eo("pretrain", folder, "--sensor", "sentinel2_l1c", "--out", tmp_path / "run")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "run").exists()
    assert not server[1] and secret.stat().st_atime == 1


def test_what_stays_inside_or_is_allowed_opens(tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    raster(tmp_path / "elsewhere.tif")
    (folder / "x.tif").symlink_to(tmp_path / "elsewhere.tif")
    with pytest.raises(ValueError, match="--allow-outside"):
        open_scenes(folder, sensor="sentinel2_l1c")
    with allow_outside():
        assert len(open_scenes(folder, sensor="sentinel2_l1c")) == 1
    with pytest.raises(ValueError, match="--allow-outside"):
        open_scenes(folder, sensor="sentinel2_l1c")
    assert open_scene(folder / "x.tif", "sentinel2_l1c").shape == (96, 96)  # named by the user


# -- numbers that are none


def broken():
    enc = encoder()
    with torch.no_grad():
        enc.trunk.blocks[1].mlp.fc1.bias[0] = float("nan")
    return enc


@pytest.mark.parametrize("kind", ["embeddings", "int8", "classes"])
def test_a_map_of_nan_is_no_map(tmp_path, kind):
    scene = open_scene(raster(tmp_path / "s.tif"), "sentinel2_l1c")
    options = dict(size=32, progress=False)
    if kind == "int8":
        options |= dict(dtype="int8", pca=2)
    model = broken()
    if kind == "classes":
        model, options["kind"] = (lambda b: b["ms"][:, :2] / 0.0 * 0.0), "classes"
    with pytest.raises(ValueError, match="NaN or infinite"):
        predict_raster(model, scene, tmp_path / "m.tif", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["s.tif"]


def test_a_window_that_makes_nan_is_named(tmp_path):
    "Not before it is met: the map goes on from there when the model is repaired."
    scene = open_scene(raster(tmp_path / "s.tif"), "sentinel2_l1c")

    met = []

    def model(batch):
        met.append(1)
        return batch["ms"][:, :1] / 1000 * (float("inf") if len(met) == 6 else 1)

    with pytest.raises(ValueError, match=r"s.tif, windows at row \d+, columns \[\d+"):
        predict_raster(
            model, scene, tmp_path / "m.tif", kind="values", size=32, bs=1, progress=False
        )
    assert not (tmp_path / "m.tif").exists()


def test_features_weights_and_exports_of_nan(tmp_path):
    data = [({"ms": torch.rand(3, 32, 32)}, i % 2) for i in range(4)]
    with pytest.raises(ValueError, match="layer last of the Encoder for samples 0 to 3 holds NaN"):
        encode(broken(), data)
    with pytest.raises(ValueError, match="layer 1 of the Encoder"):
        encode(broken(), data, layers=(0, 1))
    for write in (
        lambda e: save_encoder(e, tmp_path / "e.safetensors"),
        lambda e: save_folder(e, tmp_path / "hub"),
    ):
        with pytest.raises(ValueError, match="trunk.blocks.1.mlp.fc1.bias holds NaN"):
            write(broken())
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match="trunk.blocks.1.mlp.fc1.bias holds NaN"):
        export_onnx(broken(), tmp_path / "e.onnx")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_features_made_by_hand(tmp_path):
    from eo_brew.probes.probes import knn_probe, linear_probe

    x, y = torch.rand(40, 3), torch.arange(40) % 2
    for odd in (float("nan"), float("inf"), 1e300):
        bad = x.double()
        bad[3] = odd
        for probe in linear_probe, knn_probe:
            with pytest.raises(
                ValueError, match="1 of 40 rows of training features hold NaN or inf"
            ):
                probe((bad, y), (x, y))
            with pytest.raises(ValueError, match="1 of 40 rows of test features hold NaN or inf"):
                probe((x.numpy(), y.numpy()), (bad.numpy(), y.numpy()))


def test_grids_that_do_not_match_are_told_when_the_learner_is_made(tmp_path):
    from eo_brew.data.dataloaders import eo_dataloaders
    from eo_brew.methods.mssdf import mssdf_learner

    heights = raster(tmp_path / "dsm.tif", 1)
    with rasterio.open(heights) as src:
        z, profile = src.read([1]).astype("float32"), src.profile | dict(count=1, dtype="float32")
    with rasterio.open(heights, "w", **profile) as dst:
        dst.write(z)

    def learner(size):
        dsm = dict(path=heights, sensor="dsm", size=size)
        same = dict(size=32, bs=2, valid_pct=0, modalities=dict(dsm=dsm))
        dls = eo_dataloaders(raster(tmp_path / "s.tif"), "sentinel2_l1c", **same)
        tiny = dict(patch_size=8, img_size=32, embed_dim=24, depth=2, num_heads=2)
        return mssdf_learner(dls, "vit_tiny_patch16_224", modalities=("ms", "dsm"), **tiny)

    assert learner(32)
    with pytest.raises(ValueError, match=r"patch grids .*ms.*\(4, 4\).*dsm.*\(2, 2\)"):
        learner(16)
    with pytest.raises(ValueError, match="do not divide into patches of 8 px"):
        learner(20)


@pytest.mark.slow
def test_an_onnx_file_names_no_folder_of_the_machine(tmp_path):
    pytest.importorskip("onnxscript")
    export_onnx(encoder(), tmp_path / "e.onnx")
    data = (tmp_path / "e.onnx").read_bytes()
    for place in Path(torch.__file__).parent, Path(__file__).parent.parent, tmp_path, Path.home():
        assert str(place).encode() not in data
    assert b".py" not in data and b'"eo_brew"' in data


# -- two at once

HOLD = (
    "import sys, time\nfrom eo_brew.core.files import one_writer\n"
    "with one_writer(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)"
)


def holder(path):
    "A process that holds the lock of a run folder or file."
    p = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert p.stdout.readline() == "held\n"
    return p


def test_a_second_run_is_refused_and_a_dead_one_is_taken_over(eo, tmp_path):
    from eo_brew.app.pretrain import held

    run = tmp_path / "run"
    run.mkdir()
    first = holder(run)
    try:
        time.sleep(1.1)
        said = rf"is being written by process {first.pid} on \S+, for [1-9]\d* s: wait for it"
        with pytest.raises(ValueError, match=said), held(run, resume=True):
            pass
        scene = raster(tmp_path / "s.tif")
        for how in ([scene, "--sensor", "sentinel2_l1c"], ["--resume", scene]):
            code, _, err = eo("pretrain", *how, "--out", run, "--precision", "fp32")
            assert code == 2 and re.search(said, err) and err.count("\n") == 1
    finally:
        first.kill()
        first.wait()
    assert {p.name for p in run.iterdir()} == {".lock", ".lock.owner"}
    with held(run, resume=True):
        pass
    assert not list(run.iterdir())


def test_a_second_map_is_refused(tmp_path):
    scene, out = open_scene(raster(tmp_path / "s.tif"), "sentinel2_l1c"), tmp_path / "m.tif"
    first = holder(out)
    try:
        with pytest.raises(ValueError, match=f"being written by process {first.pid}"):
            predict_raster(encoder(), scene, out, size=32, progress=False)
        assert not out.exists() and not (tmp_path / ".m.tif.parts").exists()
    finally:
        first.kill()
        first.wait()
    assert predict_raster(encoder(), scene, out, size=32, progress=False).exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.tif", "s.tif"]


# -- other people's files


def test_no_command_replaces_what_it_did_not_make(eo, tmp_path):
    "With --overwrite too."
    e, s = save_encoder(encoder(), tmp_path / "e.safetensors"), raster(tmp_path / "s.tif")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "README.md").write_text("my notes")
    (tmp_path / "theirs.zarr").mkdir()
    (tmp_path / "theirs.zarr" / "data.bin").write_bytes(b"1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.csv").write_text("mine")
    (tmp_path / "i.png").write_bytes(b"mine")
    (tmp_path / ".m.tif.parts").mkdir()
    (tmp_path / ".m.tif.parts" / "notes.txt").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    lines = {
        ("export", e, tmp_path / "hub"): "README.md exists",
        ("export", e, tmp_path / "hub", "--overwrite"): "README.md was not made by eo_brew",
        ("export", e, tmp_path, "--overwrite"): None,
        ("predict", e, s, "--out", s, "--overwrite"): "is an input",
        ("predict", e, s, "--out", tmp_path / "theirs.zarr", "--overwrite"): "not made by eo_brew",
        ("predict", e, s, "--out", tmp_path / "m.tif", "--size", "32"): "is no job of eo_brew",
        ("pretrain", s, "--sensor", "sentinel2_l1c", "--out", tmp_path / "run"): "log.csv exists",
        ("demo", "--out", tmp_path / "run"): "log.csv exists",
        ("info", s, "--sensor", "sentinel2_l1c", "--picture", tmp_path / "i.png"): "i.png exists",
    }
    for line, says in lines.items():
        code, _, err = eo(*line)
        if says:
            assert code == 2 and says in err, (line, err)
    now = {p: p.read_bytes() for p in before}
    assert now == before


def test_nothing_is_written_beside_what_is_asked_for(eo, tmp_path, monkeypatch):
    "`info` left a picture in the folder where one stood."
    monkeypatch.chdir(tmp_path)
    raster(tmp_path / "s.tif")
    assert eo("info", "s.tif", "--sensor", "sentinel2_l1c")[0] == 0
    assert [p.name for p in tmp_path.iterdir()] == ["s.tif"]


def test_a_job_folder_is_private(tmp_path):
    from eo_brew.maps.jobs import MapJob, _run_remote
    from eo_brew.maps.sweep import Sweep

    scene = open_scene(raster(tmp_path / "s.tif"), "sentinel2_l1c")
    job = MapJob(Sweep(encoder(), scene, size=32), tmp_path / ".m.tif.parts")
    assert stat.S_IMODE(job.folder.stat().st_mode) == 0o700
    (job.folder / "job.cloudpickle").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    os.chmod(job.folder, 0o777)
    with pytest.raises(ValueError, match="could have been written by somebody else"):
        _run_remote(str(job.folder / "job.cloudpickle"), (0, 0, 4, 4))
    assert not Path("owned").exists()


def on_a_small_disk(limit, argv, said):
    "A command whose files cannot become larger than `limit` bytes."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    torch.set_num_threads(1)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        code = main(argv)
    said.send(err.getvalue())
    os._exit(code)


@pytest.mark.parametrize("limit", [1_000, 20_000])
@pytest.mark.parametrize("what", ["export", "predict"])
def test_a_full_disk_leaves_no_half_file(tmp_path, limit, what):
    e, s = save_encoder(encoder(), tmp_path / "e.safetensors"), raster(tmp_path / "s.tif")
    (tmp_path / "out").mkdir()
    line = {
        "export": ["export", e, tmp_path / "out" / "hub"],
        "predict": [
            "predict",
            e,
            s,
            "--out",
            tmp_path / "out" / "m.tif",
            "--pca",
            0,
            "--dtype",
            "float32",
            "--size",
            32,
        ],
    }[what]
    hear, tell = PROCESSES.Pipe(duplex=False)
    p = PROCESSES.Process(target=on_a_small_disk, args=(limit, list(map(str, line)), tell))
    p.start()
    err = hear.recv()
    p.join()
    assert p.exitcode == 2 and err.splitlines()[-1].startswith("eo_brew: "), err
    assert not (tmp_path / "out" / "hub").exists()
    whole = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and ".parts" not in str(p)]
    assert not whole


# -- the same run

RUN = (
    "--sensor sentinel2_l1c --method mssdf --arch vit_tiny_patch16_224 --patch-size 16 --size 32 --bs 4 "
    "--n 24 --epochs 1000 --valid-pct 0"
).split()


def until_told(folder, argv, rows):
    "Pretrain until the log has more than `rows` lines, then SIGTERM to the group: (exit code, output)."
    log, said = Path(folder) / "log.csv", Path(folder).with_suffix(".txt")
    argv = [sys.executable, "-m", "eo_brew", "pretrain", "--out", folder, *argv]
    # a process of its own: a fork of this one may find a lock of GDAL taken by a thread that it does not have
    with open(said, "w") as out:
        own = dict(stdout=out, stderr=out, start_new_session=True)
        p = subprocess.Popen([*map(str, argv)], **own, env=os.environ | dict(OMP_NUM_THREADS="1"))
    while p.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > rows):
        time.sleep(0.1)
    os.killpg(p.pid, signal.SIGTERM)
    return p.wait(120), said.read_text()


CHANGES = {
    "an offset": (["--offset", "-1000"], "offset"),
    "a gain": (["--gain", "2"], "gain"),
    "a mask of nodata": (["--nodata", "5"], "nodata"),
    "a seed": (["--seed", "1"], "seed"),
    "bands": (["--bands", "B02", "B03"], "bands"),
    "an architecture": (["--arch", "vit_small_patch16_224"], "arch"),
    "windows": (["--n", "23"], "windows"),
    "a learning rate": (["--lr", "1"], "lr"),
    "epochs": (["--epochs", "3"], "epochs"),
    "a preset": (["--preset", "paper"], "preset"),
    "a method": (["--method", "deo", "--vfm", "none"], "method"),
    "a resolution": (["--gsd", "20", "--n", "9"], "gsd"),
    "a size of windows": (["--size", "48"], "size"),
    "a batch": (["--bs", "6"], "batch"),
}


def test_a_resumed_run_is_the_same_run(eo, tmp_path):
    "`--offset -1000` on resume, or a scene replaced by noise, passed without a word."
    scenes, run = tmp_path / "scenes", tmp_path / "run"
    scenes.mkdir()
    raster(scenes / "a.tif")
    raster(scenes / "b.tif", 1)
    code, said = until_told(run, [scenes, *RUN, "--workers", "2"], 1)
    assert code == 75 and "checkpoint of step" in said, said
    for attack, (more, name) in CHANGES.items():
        code, _, err = eo("pretrain", "--resume", "--out", run, *more)
        assert code == 2 and "--allow-change" in err and f"{name}: " in err, (attack, err)
    kept = (scenes / "b.tif").read_bytes()
    raster(scenes / "b.tif", 7)
    code, _, err = eo("pretrain", "--resume", "--out", run)
    assert code == 2 and "scenes: " in err and "b.tif" in err and "is now" in err
    (scenes / "b.tif").unlink()
    code, _, err = eo("pretrain", "--resume", "--out", run)
    assert code == 2 and "b.tif is gone" in err
    (scenes / "b.tif").write_bytes(kept)  # the same bytes at another time: only the user can say
    code, _, err = eo("pretrain", "--resume", "--out", run)
    assert code == 2 and "b.tif" in err
    rows = len((run / "log.csv").read_text().splitlines())
    code, said = until_told(run, ["--resume", "--allow-change", "scenes"], rows)
    assert code == 75 and "going on with another scenes" in said, said


# -- the page "What is promised"

PAGE = Path(__file__).parent.parent / "nbs" / "guide" / "what_is_promised.md"
with_page = pytest.mark.skipif(not PAGE.exists(), reason="not in a checkout of the project")


@with_page
def test_each_promise_names_a_test_that_exists():
    here, text = Path(__file__).parent, PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", text))
    assert len(named) > 30
    gone = [n for f, n in named if not re.search(rf"^def {n}\(", (here / f).read_text(), re.M)]
    assert not gone
    tables = [l for l in text.splitlines() if l.startswith("| ") and "`" in l]
    commands = [l for l in tables if re.match(r"\| `\w+` \|", l)]
    assert {l.split("`")[1] for l in commands} == set(COMMANDS)
    assert not [l for l in tables if l not in commands and "::" not in l]


def promised(command):
    "Names of the files below OUT that the page tells of, as patterns."
    row = next(l for l in PAGE.read_text().splitlines() if l.startswith(f"| `{command}` |"))
    return set(re.findall(r"`OUT/([^`]+)`", row.split("|")[2]))


@with_page
def test_commands_write_the_files_that_are_promised(eo, tmp_path, monkeypatch):
    "Each in an empty folder; `demo`, which takes minutes, in its notebook."
    e, s = save_encoder(encoder(), tmp_path / "e.safetensors"), raster(tmp_path / "s.tif", size=768)
    y = tmp_path / "y.tif"
    with rasterio.open(s) as src, rasterio.open(y, "w", **src.profile | dict(count=1)) as dst:
        dst.write(src.read([1]) // 1500)
    tiny = RUN[: RUN.index("--epochs")] + "--epochs 1 --n 24 --bs 24 --valid-pct 0".split()
    lines = {
        "pretrain": [s, *tiny, "--out", "run"],
        "pack": [s, "--sensor", "sentinel2_l1c", "--size", 96, "--n", 8, "--out", "packed"],
        "info": [s, "--sensor", "sentinel2_l1c"],
        "predict": [e, s, "--out", "m.tif", "--size", 32],
        "embed": [e, s, "--out", "v.parquet", "--size", 32],
        "export": [e, "hub"],
        "probe": [e, "--data", s, "--labels", y, "--out", "p", "--layers", 0],
        "finetune": [e, s, "--labels", y, "--out", "m.safetensors", "--steps", 3, "--size", 32],
    }
    if not (find_spec("pyarrow") and find_spec("geopandas")):
        del lines["embed"]  # an extra
    for command, line in lines.items():
        place = tmp_path / command
        place.mkdir()
        monkeypatch.chdir(place)
        code, _, err = eo(command, *line)
        assert code == 0, (command, err)
        files = [p.relative_to(place) for p in place.rglob("*") if p.is_file()]
        if command in ("info", "predict", "embed", "finetune"):
            one = dict(predict="m.tif", embed="v.parquet", finetune="m.safetensors").get(command)
            assert files == ([Path(one)] if one else [])
            continue
        below, patterns = {str(Path(*f.parts[1:])) for f in files}, promised(command)
        assert len({f.parts[0] for f in files}) == 1
        assert all(any(fnmatch(f, p) for p in patterns) for f in below), (command, below)
        assert all(any(fnmatch(f, p) for f in below) for p in patterns), (command, below)
    code, out, _ = eo("pretrain", "--resume", "--out", tmp_path / "pretrain" / "run")
    assert code == 0 and "holds a finished run: there is nothing to go on with" in out
