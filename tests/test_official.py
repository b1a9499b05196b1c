"""Published layouts of DEO and MSSDF: random checkpoints in each, features against independent plain-torch forwards."""

import argparse
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eo_brew.models.backbones import read_state
from eo_brew.weights.official import load_official
from eo_brew.weights.save import load_encoder, save_encoder

D, DEPTH, HEADS = 64, 3, 4


def rand(gen, *shape):
    return torch.randn(*shape, generator=gen) * 0.2


def block(gen, names, d=D, mlp=3 * D):
    "Random tensors of one transformer block; `names` says how the layout calls them."
    shapes = dict(
        n1w=(d,),
        n1b=(d,),
        n2w=(d,),
        n2b=(d,),
        qkv=(3 * d, d),
        qkvb=(3 * d,),
        proj=(d, d),
        projb=(d,),
        fc1=(mlp, d),
        fc1b=(mlp,),
        fc2=(d, mlp),
        fc2b=(d,),
    )
    return {names[k]: rand(gen, *s) for k, s in shapes.items() if k in names}


def attention(x, w, heads):
    "Softmax attention written out, one head after the other."
    q, k, v = F.linear(x, w["qkv"], w["qkvb"]).chunk(3, -1)
    out = []
    for i in range(heads):
        s = slice(i * x.shape[-1] // heads, (i + 1) * x.shape[-1] // heads)
        a = (q[..., s] @ k[..., s].transpose(-1, -2) / math.sqrt(x.shape[-1] // heads)).softmax(-1)
        out.append(a @ v[..., s])
    return F.linear(torch.cat(out, -1), w["proj"], w["projb"])


def transformer_block(x, w, heads=HEADS):
    d = x.shape[-1:]
    x = x + attention(F.layer_norm(x, d, w["n1w"], w["n1b"], 1e-6), w, heads) * w.get("g1", 1)
    h = F.gelu(F.linear(F.layer_norm(x, d, w["n2w"], w["n2b"], 1e-6), w["fc1"], w["fc1b"]))
    return x + F.linear(h, w["fc2"], w["fc2b"]) * w.get("g2", 1)


def patches(x, weight, bias):
    "Patch embedding as a product of unfolded patches."
    p = weight.shape[-1]
    return F.unfold(x, p, stride=p).transpose(1, 2) @ weight.flatten(1).T + bias


TIMM = dict(
    n1w="norm1.weight",
    n1b="norm1.bias",
    n2w="norm2.weight",
    n2b="norm2.bias",
    qkv="attn.qkv.weight",
    qkvb="attn.qkv.bias",
    proj="attn.proj.weight",
    projb="attn.proj.bias",
    fc1="mlp.fc1.weight",
    fc1b="mlp.fc1.bias",
    fc2="mlp.fc2.weight",
    fc2b="mlp.fc2.bias",
)
MMP = dict(
    n1w="ln1.weight",
    n1b="ln1.bias",
    n2w="ln2.weight",
    n2b="ln2.bias",
    qkv="attn.qkv.weight",
    qkvb="attn.qkv.bias",
    proj="attn.proj.weight",
    projb="attn.proj.bias",
    fc1="ffn.layers.0.0.weight",
    fc1b="ffn.layers.0.0.bias",
    fc2="ffn.layers.1.weight",
    fc2b="ffn.layers.1.bias",
)


def read_block(sd, prefix, names):
    return {k: sd[prefix + n] for k, n in names.items()}


def close(a, b):  # to 1e-5 of the size of the features
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-5 * max(1, b.abs().max()), (a - b).abs().max()


@pytest.mark.parametrize(
    "entry,prefix", [("student", "module._orig_mod."), ("teacher", "_orig_mod."), ("student", "")]
)
def test_deo_vit(tmp_path, entry, prefix):
    g = torch.Generator().manual_seed(0)
    sd = {
        "cls_token": rand(g, 1, 1, D),
        "pos_embed": rand(g, 1, 17, D),
        "norm.weight": rand(g, D),
        "norm.bias": rand(g, D),
        "patch_embed.proj.weight": rand(g, D, 3, 8, 8),
        "patch_embed.proj.bias": rand(g, D),
    }
    for i in range(DEPTH):
        sd |= {f"blocks.{i}.{k}": v for k, v in block(g, TIMM).items()}
    embeds = {
        f"patch_embed_{m}.proj.{k}": v
        for m, c in (("ms", 10), ("rgb", 3))
        for k, v in (("weight", rand(g, D, c, 8, 8)), ("bias", rand(g, D)))
    }
    heads = {
        "head_ms.mlp.0.weight": rand(g, 4, D),
        "cls_head.mlp.0.weight": rand(g, 4, D),
        "patch_head_mid.mlp.0.bias": rand(g, 4),
    }
    full = {f"{prefix}backbone.{k}": v for k, v in sd.items()} | {
        f"{prefix}{k}": v for k, v in (embeds | heads).items()
    }
    torch.save(
        {
            entry: full,
            "optimizer": {"state": {}, "param_groups": []},
            "epoch": 7,
            "args": argparse.Namespace(lr=1e-3),
        },
        tmp_path / "c.pth",
    )
    enc = load_official("deo_vit_b", tmp_path / "c.pth", entry=entry, num_heads=HEADS)
    assert {
        "head_ms",
        "cls_head",
        "patch_head_mid",
        "patch_embed",
        "optimizer",
        "epoch",
        "args",
    } == set(enc.metadata["left_aside"])
    for m, c in ("ms", 10), ("rgb", 3):
        x = rand(g, 2, c, 32, 32)
        t = (
            torch.cat(
                [
                    sd["cls_token"].expand(2, -1, -1),
                    patches(
                        x,
                        embeds[f"patch_embed_{m}.proj.weight"],
                        embeds[f"patch_embed_{m}.proj.bias"],
                    ),
                ],
                1,
            )
            + sd["pos_embed"]
        )
        with torch.no_grad():
            out = enc(enc.normalize[m].decode(x), m, layers=(0, 1, 2), norm=False)
        for i in range(DEPTH):
            t = transformer_block(t, read_block(sd, f"blocks.{i}.", TIMM))
            close(out.layers[i].patches, t[:, 1:])
            close(out.layers[i].cls, t[:, 0])
        close(out.cls, F.layer_norm(t, (D,), sd["norm.weight"], sd["norm.bias"], 1e-6)[:, 0])
    again = load_encoder(save_encoder(enc, tmp_path / "e.safetensors"))
    close(again(enc.normalize["rgb"].decode(x), "rgb").cls, out.cls)


@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize("size", [(224, 224), (96, 96), (64, 160)])
def test_deo_swin(tmp_path, window, size):
    "Against torchvision's own Swin, at sizes that fill the windows and at sizes that do not."
    from torchvision.models.swin_transformer import SwinTransformer
    from torchvision.ops.misc import Permute

    torch.manual_seed(0)
    dims = dict(embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4])
    net = SwinTransformer(patch_size=[4, 4], window_size=[window, window], **dims).eval()
    del net.features[0]
    conv = {
        m: nn.Sequential(nn.Conv2d(c, 16, 4, 4), Permute([0, 2, 3, 1]), nn.LayerNorm(16, eps=1e-5))
        for m, c in (("ms", 10), ("rgb", 3))
    }
    for p in (*net.parameters(), *(p for c in conv.values() for p in c.parameters())):
        nn.init.normal_(p, std=0.2)
    sd = {f"module.backbone.{k}": v for k, v in net.state_dict().items()} | {
        f"module.conv_{m}.{k}": v for m, c in conv.items() for k, v in c.state_dict().items()
    }
    torch.save({"student": sd}, tmp_path / "c.pth")
    enc = load_official("deo_swin_b", tmp_path / "c.pth")
    assert enc.metadata["left_aside"] == ["features", "head"] and enc.modalities == {
        "ms": 10,
        "rgb": 3,
    }
    x = torch.randn(1, 10, *size)
    with torch.no_grad():
        out, y, stages = (
            enc(enc.normalize["ms"].decode(x), layers=(0, 1, 2, 3), norm=False),
            conv["ms"](x),
            [],
        )
        for i, layer in enumerate(net.features):
            y = layer(y)
            if i % 2 == 0:
                stages.append(y)
        for got, want in zip(out.layers, stages, strict=True):
            close(got.patches, want.flatten(1, 2))
        close(out.cls, net.norm(y).mean((1, 2)))
        again = load_encoder(save_encoder(enc, tmp_path / "e.safetensors"))
        close(again(enc.normalize["ms"].decode(x)).cls, out.cls)  # the way of padding is kept


@pytest.mark.parametrize("cls,scale", [(True, False), (False, False), (True, True)])
def test_mssdf_training_file(tmp_path, cls, scale):
    g = torch.Generator().manual_seed(0)
    names = {k: v for k, v in TIMM.items() if k != "qkvb"}
    sd = {
        "patch_embed.proj.weight": rand(g, D, 3, 16, 16),
        "patch_embed.proj.bias": rand(g, D),
        "norm.weight": rand(g, D),
        "norm.bias": rand(g, D),
    }
    if cls:
        sd |= {"cls_token": rand(g, 1, 1, D), "cls_embed.weight": rand(g, 1, D)}
    for i in range(DEPTH):
        b = (
            block(g, names)
            | {"attn.q_bias": rand(g, D), "attn.v_bias": rand(g, D)}
            | ({"gamma_1": rand(g, D), "gamma_2": rand(g, D)} if scale else {})
        )
        sd |= {f"blocks.{i}.{k}": v for k, v in b.items()}
    others = {
        "ema_teacher.norm.weight": rand(g, D),
        "decoder.norm.weight": rand(g, 8),
        "mask1_token": rand(g, 1, 1, 8),
        "encoder_to_decoder.weight": rand(g, 8, D),
    }
    torch.save(
        {"model": {f"encoder.{k}": v for k, v in sd.items()} | others, "optimizer": {}, "epoch": 1},
        tmp_path / "c.pth",
    )
    enc = load_official("mssdf_vit_l", tmp_path / "c.pth", img_size=64, num_heads=HEADS)
    assert (
        enc.depth == DEPTH
        and enc.width == D
        and {"ema_teacher", "decoder", "mask1_token", "encoder_to_decoder", "optimizer", "epoch"}
        <= set(enc.metadata["left_aside"])
    )
    pos = torch.tensor(
        [[p / 10000 ** (2 * (j // 2) / D) for j in range(D)] for p in range(16)],
        dtype=torch.float64,
    )
    pos[:, 0::2], pos[:, 1::2] = pos[:, 0::2].sin(), pos[:, 1::2].cos()
    x = rand(g, 2, 3, 64, 64)
    t = patches(x, sd["patch_embed.proj.weight"], sd["patch_embed.proj.bias"]) + pos.float()
    if cls:
        t = torch.cat([(sd["cls_token"] + sd["cls_embed.weight"]).expand(2, 1, -1), t], 1)
    for i in range(DEPTH):
        w = read_block(sd, f"blocks.{i}.", names)
        w["qkvb"] = torch.cat(
            [sd[f"blocks.{i}.attn.q_bias"], torch.zeros(D), sd[f"blocks.{i}.attn.v_bias"]]
        )
        if scale:
            w |= {"g1": sd[f"blocks.{i}.gamma_1"], "g2": sd[f"blocks.{i}.gamma_2"]}
        t = transformer_block(t, w)
    t = F.layer_norm(t, (D,), sd["norm.weight"], sd["norm.bias"], 1e-6)
    with torch.no_grad():
        out = enc(enc.normalize["rgb"].decode(x), "rgb")
    close(out.patches, t[:, int(cls) :])
    close(out.cls, t[:, 0] if cls else t.mean(1))


@pytest.mark.parametrize("wrapped,heads", [(True, HEADS), (False, None)])
def test_mssdf_mmpretrain_file(tmp_path, wrapped, heads):
    "Without `num_heads` heads are 64 channels wide."
    g = torch.Generator().manual_seed(0)
    sd = {
        "cls_token": rand(g, 1, 1, D),
        "pos_embed": rand(g, 1, 17, D),
        "patch_embed.projection.weight": rand(g, D, 3, 16, 16),
        "patch_embed.projection.bias": rand(g, D),
        "ln1.weight": rand(g, D),
        "ln1.bias": rand(g, D),
    }
    for i in range(DEPTH):
        sd |= {f"layers.{i}.{k}": v for k, v in block(g, MMP).items()}
    full = {f"backbone.{k}": v for k, v in sd.items()} | {"head.layers.head.weight": rand(g, 2, D)}
    torch.save({"state_dict": full, "meta": {"epoch": 1}} if wrapped else full, tmp_path / "c.pth")
    enc = load_official("mssdf_vit_b", tmp_path / "c.pth", num_heads=heads)
    x = rand(g, 2, 3, 64, 64)
    t = (
        torch.cat(
            [
                sd["cls_token"].expand(2, -1, -1),
                patches(x, sd["patch_embed.projection.weight"], sd["patch_embed.projection.bias"]),
            ],
            1,
        )
        + sd["pos_embed"]
    )
    with torch.no_grad():
        out = enc(enc.normalize["rgb"].decode(x), "rgb", layers=(0, 1, 2), norm=False)
    for i in range(DEPTH):
        t = transformer_block(t, read_block(sd, f"layers.{i}.", MMP), heads or D // 64)
        close(out.layers[i].patches, t[:, 1:])
    close(out.patches, F.layer_norm(t, (D,), sd["ln1.weight"], sd["ln1.bias"], 1e-6)[:, 1:])


def test_what_does_not_fit_is_listed(tmp_path):
    torch.save({"student": {"backbone.blocks.0.norm1.weight": torch.zeros(4)}}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="not a ViT of DEO"):
        load_official("deo_vit_b", tmp_path / "c.pth")
    with pytest.raises(ValueError, match="not a file"):
        load_official("deo_vit_b", tmp_path / "none.pth")
    with pytest.raises(ValueError, match="deo_swin_b"):
        load_official("deo_swin_t", tmp_path / "c.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "c.pth").read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_official("deo_vit_b", tmp_path / "cut.pth")


def test_reading_leaves_torchs_list_of_safe_classes_alone(tmp_path):
    "A training file holds its options; that they may be read once does not make them safe for ever."
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": {}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "run.pth")
    assert read_state(tmp_path / "run.pth")["args"].lr == 0.1
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "run.pth", weights_only=True)
