"""Files of encoders: whole or not at all, readable by plain timm, ONNX and the hub's layout."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from eo_brew.app.cli import main
from eo_brew.models.encoder import create_encoder
from eo_brew.weights.export import export_onnx, export_program, from_pretrained, push, save_folder
from eo_brew.core.sensors import get_sensor
from eo_brew.weights.save import encoder_info, load_encoder, save_encoder, warm_start

VIT, SWIN = (
    dict(embed_dim=24, depth=2, num_heads=2),
    dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4)),
)
S2 = get_sensor("sentinel2_l1c", bands="B02 B03 B04 B08 B11".split())


def close(a, b, eps=1e-5):
    assert torch.allclose(a, b, atol=eps, rtol=eps), (a - b).abs().max()


@pytest.mark.parametrize(
    "arch,kw",
    [
        ("vit_tiny_patch16_224", VIT),
        ("vit_small_patch14_reg4_dinov2", VIT | dict(patch_size=16, img_size=64)),
        ("vit_small_patch16_dinov3", VIT),
        ("vit_base_patch16_siglip_224", VIT),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("swinv2_tiny_window8_256", SWIN),
    ],
)
def test_round_trips(tmp_path, arch, kw):
    enc = create_encoder(arch, {"ms": S2, "rgb": "rgb", "dsm": 1}, modality_embed=True, **kw).eval()
    file = save_encoder(enc, tmp_path / "e.safetensors", method="deo")
    again, x = load_encoder(file), torch.rand(1, 5, 64, 96) * 4000
    with torch.no_grad():
        assert torch.equal(again(x).cls, enc(x).cls)
    assert again.sensors == enc.sensors and not again.training and again.metadata["method"] == "deo"
    model = timm.create_model(**encoder_info(file)["timm"], in_chans=5)
    model.load_state_dict(
        {
            k.replace("embeds.ms.", "patch_embed.").removeprefix("trunk."): v
            for k, v in load_file(file).items()
            if k.startswith(("trunk.", "embeds.ms."))
        }
    )
    folder = save_folder(enc, tmp_path / "repo", method="deo")
    with torch.no_grad():
        assert torch.equal(from_pretrained(folder)(x).cls, enc(x).cls)


WITHOUT = """
import sys; sys.modules['eo_brew'] = None                                       # it cannot be imported
import json, timm, torch
from safetensors import safe_open
from safetensors.torch import load_file
for file, n, given, features in json.load(sys.stdin):
    recipe = json.loads(safe_open(file, 'pt').metadata()['eo_brew'])['timm']
    weights = load_file(file)
    model = timm.create_model(**recipe, in_chans=n).eval()
    kept = {k: v for k, v in weights.items() if k.startswith(('trunk.', 'embeds.ms.'))}
    names = [k.replace('embeds.ms.', 'patch_embed.').removeprefix('trunk.') for k in kept]
    model.load_state_dict(dict(zip(names, kept.values())))
    x = torch.load(given, weights_only=True)
    x = (x - weights['normalize.ms.mean'].view(-1, 1, 1))/weights['normalize.ms.std'].view(-1, 1, 1)
    with torch.no_grad(): torch.save(model.forward_features(x), features)
"""


def test_plain_timm_gives_the_same_tokens_without_eo_brew(tmp_path):
    "In a process that has no eo_brew; DINOv3 among them, whose pooling timm builds in its own way."
    archs = {
        "vit_tiny_patch16_224": VIT,
        "vit_small_patch14_reg4_dinov2": VIT | dict(patch_size=16, img_size=64),
        "vit_small_patch16_dinov3": VIT,
        "swin_tiny_patch4_window7_224": SWIN,
    }
    jobs, want, x = [], [], torch.rand(2, 5, 64, 96) * 4000
    torch.save(x, tmp_path / "x.pt")
    for arch, kw in archs.items():
        enc = create_encoder(arch, {"rgb": "rgb", "ms": S2}, **kw).eval()
        with torch.no_grad():
            for p in enc.parameters():
                p += 0.1 * torch.randn_like(p)
            want.append(enc(x, "ms").patches)
        jobs.append(
            [
                str(save_encoder(enc, tmp_path / f"{arch}.safetensors")),
                5,
                str(tmp_path / "x.pt"),
                str(tmp_path / f"{arch}.pt"),
            ]
        )
    r = subprocess.run(
        [sys.executable, "-I", "-W", "ignore", "-c", WITHOUT],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert r.returncode == 0, r.stderr
    for job, t in zip(jobs, want, strict=True):
        got = torch.load(job[3], weights_only=True)
        close(got[:, -t.shape[1] :] if got.ndim == 3 else got.flatten(1, 2), t)


def test_push_and_from_pretrained_without_a_network(tmp_path, monkeypatch):
    "From the hub's cache as another machine has filled it; what cannot be uploaded lies in the folder."
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    enc, x, repo = (
        create_encoder("vit_tiny_patch16_224", {"ms": S2}, **VIT).eval(),
        torch.rand(1, 5, 32, 32) * 4000,
        tmp_path / "cache" / "models--someone--brew",
    )
    save_folder(enc, repo / "snapshots" / ("a" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    for revision in None, "main", "a" * 40:
        with torch.no_grad():
            assert torch.equal(from_pretrained("hf-hub:someone/brew", revision)(x).cls, enc(x).cls)
    assert (
        main(["export", "hf-hub:someone/brew", str(tmp_path / "copy")]) == 0
        and load_encoder(tmp_path / "copy").config == enc.config
    )
    assert (
        main(["export", "hf-hub:someone/else", str(tmp_path / "none")]) == 2
        and not (tmp_path / "none").exists()
    )
    for bad in ("hf-hub:someone/brew", "v2"), ("hf-hub:someone/else", None):
        with pytest.raises(ValueError, match="is not reachable on the hub"):
            from_pretrained(*bad)
    with pytest.raises(ValueError, match="write hf-hub:someone/brew"):
        from_pretrained("someone/brew")  # a mistyped folder asks nobody
    with pytest.raises(ValueError, match="could not be written.*The files are in"):
        push(enc, "someone/brew", tmp_path / "up", method="deo")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "up")(x).cls, enc(x).cls)
    assert {p.name for p in (tmp_path / "up").iterdir()} == {"encoder.safetensors", "README.md"}


def test_statistics_bands_and_gsd_are_in_the_file(tmp_path):
    enc = create_encoder("vit_tiny_patch16_224", {"ms": S2}, **VIT)
    band = encoder_info(save_encoder(enc, tmp_path / "e.safetensors"))["config"]["modalities"][
        "ms"
    ]["bands"][4]
    assert (band["name"], band["gsd"], band["mean"], band["wavelength"]) == (
        "B11",
        20,
        1732.16,
        1613.7,
    )


def test_a_file_is_never_a_pickle_and_never_half(tmp_path):
    "Killed while it writes: the old file or the new one, nothing that looks finished and is not."
    enc = create_encoder(
        "vit_tiny_patch16_224", {"ms": 5}, embed_dim=192, depth=4, num_heads=3
    ).eval()
    file = save_encoder(enc, tmp_path / "e.safetensors", run=-1)
    gen = torch.Generator().manual_seed(0)
    for i in range(6):
        pid = os.fork()
        if pid == 0:
            n = 0
            while True:
                save_encoder(enc, file, run=n)
                n += 1
        time.sleep(torch.rand(1, generator=gen).item() * 0.3)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        load_encoder(file)
    assert file.read_bytes()[8:9] == b"{"  # a safetensors header


@pytest.mark.parametrize(
    "what,says",
    [
        ("pickle", "a pickle"),
        ("cut", "cut off"),
        ("other", "another project"),
        ("empty", "no whole safetensors"),
        ("none", "no file"),
    ],
)
def test_foreign_files_are_named(tmp_path, what, says):
    enc, f = create_encoder("vit_tiny_patch16_224", {"ms": 5}, **VIT), tmp_path / "x.safetensors"
    if what == "pickle":
        torch.save(enc.state_dict(), f)
    if what == "cut":
        f.write_bytes(save_encoder(enc, tmp_path / "e.safetensors").read_bytes()[:-100])
    if what == "other":
        save_file({"a": torch.zeros(2)}, f)
    if what == "empty":
        f.touch()
    with pytest.raises(ValueError, match=says):
        load_encoder(f)


def test_newer_or_damaged_metadata_is_no_traceback(tmp_path):
    enc = create_encoder("vit_tiny_patch16_224", {"ms": 5}, **VIT)
    about = encoder_info(save_encoder(enc, tmp_path / "e.safetensors"))
    about["config"]["arch"] = "vit_from_the_future"
    save_file(enc.state_dict(), tmp_path / "f.safetensors", {"eo_brew": json.dumps(about)})
    with pytest.raises(ValueError, match="vit_from_the_future"):
        load_encoder(tmp_path / "f.safetensors")


def test_warm_start_keeps_shared_bands(tmp_path):
    old = create_encoder(
        "vit_tiny_patch16_224", {"ms": S2, "rgb": "rgb"}, img_size=32, patch_size=8, **VIT
    ).eval()
    file = save_encoder(old, tmp_path / "e.safetensors")
    more = get_sensor("sentinel2_l1c", bands="B12 B11 B08 B04 B03 B02 B05".split())
    new = create_encoder(
        "vit_tiny_patch16_224", {"ms": more}, img_size=32, patch_size=8, **VIT
    ).eval()
    report = warm_start(new, file)
    assert report["ms"] == {"kept": ["B11", "B08", "B04", "B03", "B02"], "new": ["B12", "B05"]}
    x = torch.rand(2, 5, 32, 32) * 4000
    y = torch.rand(2, 7, 32, 32) * 4000
    for i, b in enumerate(S2.band_names):
        y[:, more.band_names.index(b)] = x[:, i]
    with torch.no_grad():
        close(new(y).patches, old(x).patches)  # new bands start silent
    new(y).cls[:, :3].sum().backward()
    assert new.embeds["ms"].proj.weight.grad[:, 0].abs().sum() > 0  # and learn
    l8 = (
        create_encoder(
            "vit_tiny_patch16_224", {"ms": "landsat8_sr"}, img_size=32, patch_size=8, **VIT
        )
        if get_sensor("landsat8_sr").has_stats
        else None
    )
    if l8:
        assert "B4" in warm_start(l8, file)["ms"]["kept"]
    with pytest.raises(ValueError, match="missing"):
        warm_start(
            create_encoder(
                "vit_tiny_patch16_224",
                {"ms": S2},
                img_size=32,
                patch_size=8,
                embed_dim=24,
                depth=3,
                num_heads=2,
            ),
            file,
        )


@pytest.mark.parametrize(
    "arch,kw",
    [
        ("vit_tiny_patch16_224", VIT),
        ("vit_small_patch16_dinov3", VIT),
        ("swin_tiny_patch4_window7_224", SWIN),
    ],
)
def test_warm_start_from_timm_weights_is_by_wavelength(tmp_path, arch, kw):
    src = timm.create_model(arch, num_classes=0, **kw)
    save_file(src.state_dict(), tmp_path / "rgb.safetensors")
    enc = create_encoder(
        arch, {"ms": S2, "rgb": "rgb"}, checkpoint=tmp_path / "rgb.safetensors", **kw
    )
    k, rgb = enc.embeds["ms"].proj.weight, src.patch_embed.proj.weight
    close(k.sum(1), rgb.sum(1))
    close(k[:, 0], rgb[:, 2])
    close(k[:, 1], rgb[:, 1])  # B02 blue, B03 green
    close(k[:, 2], rgb[:, 0] / 3)
    close(k[:, 4], rgb[:, 0] / 3)  # red is shared by red, B08 and B11
    close(enc.embeds["rgb"].proj.weight, rgb)
    theirs = {k: v for k, v in src.state_dict().items() if not k.startswith("patch_embed.")}
    assert theirs.keys() == enc.trunk.state_dict().keys() and all(
        torch.equal(v, theirs[k]) for k, v in enc.trunk.state_dict().items()
    )


@pytest.mark.parametrize(
    "arch,kw,size",
    [
        ("vit_tiny_patch16_224", VIT, None),
        ("vit_small_patch16_dinov3", VIT, (64, 96)),
        pytest.param(
            "vit_small_patch14_reg4_dinov2",
            VIT | dict(patch_size=16, img_size=64),
            None,
            marks=pytest.mark.slow,
        ),
        pytest.param("swin_tiny_patch4_window7_224", SWIN, (224, 224), marks=pytest.mark.slow),
    ],
)
def test_onnx(tmp_path, arch, kw, size):
    onnx, runtime, _ = (
        pytest.importorskip(m, reason="pip install eo_brew[onnx]")
        for m in ("onnx", "onnxruntime", "onnxscript")
    )
    enc = create_encoder(arch, {"ms": S2}, **kw).eval()
    assert export_onnx(enc, tmp_path / "e.onnx", size=size, layers=(0,)) < 1e-4
    session = runtime.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    for shape in (
        ((1, 5, 48, 112), (3, 5, 64, 64)) if size is None else ((1, 5, *size), (3, 5, *size))
    ):  # free batch, free size where it can be
        x = torch.rand(shape) * 4000
        with torch.no_grad():
            want = enc(x, layers=(0,))
        for got, t in zip(
            session.run(None, {"x": x.numpy()}),
            (want.cls, want.patches, want.layers[0].patches),
            strict=True,
        ):
            close(torch.from_numpy(got), t, 1e-4)
    about = json.loads(
        {p.key: p.value for p in onnx.load(tmp_path / "e.onnx").metadata_props}["eo_brew"]
    )
    assert about["config"]["modalities"]["ms"]["bands"][0]["name"] == "B02"


def test_exported_program_takes_other_sizes():
    enc = create_encoder("vit_tiny_patch16_224", {"ms": S2}, **VIT).eval()
    program, x = export_program(enc), torch.rand(3, 5, 64, 112) * 4000
    with torch.no_grad():
        close(program.module()(x)[1], enc(x).patches, 1e-4)
