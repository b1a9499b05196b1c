"""Encoders: parity with plain timm, the faults of released code, mixed precision, many architectures."""

import copy

import pytest
import timm
import torch

from eo_brew.models.encoder import ProjectionHead, create_encoder
from eo_brew.models.teachers import EMATeacher

VIT, SWIN = (
    dict(embed_dim=24, depth=3, num_heads=2),
    dict(embed_dim=16, depths=(1, 2, 2, 1), num_heads=(1, 2, 2, 4)),
)
ARCHS = {
    "vit_tiny_patch16_224": VIT,
    "vit_small_patch14_reg4_dinov2": VIT | dict(patch_size=16, img_size=96),
    "deit_tiny_patch16_224": VIT,
    "vit_small_patch16_dinov3": VIT,
    "vit_base_patch16_siglip_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
}


def close(a, b, eps=1e-5):
    assert a.shape == b.shape and torch.allclose(a, b, atol=eps, rtol=eps), (a - b).abs().max()


def plain_timm(enc, modality):
    "The trunk in timm alone, by the recipe of the docs."
    from eo_brew.weights.save import timm_recipe

    model = timm.create_model(**timm_recipe(enc), in_chans=enc.modalities[modality])
    sd = enc.state_dict()
    model.load_state_dict(
        {
            k.replace(f"embeds.{modality}.", "patch_embed.").removeprefix("trunk."): v
            for k, v in sd.items()
            if k.startswith(("trunk.", f"embeds.{modality}."))
        }
    )
    return model.eval()


@pytest.mark.parametrize("arch", ARCHS)
def test_same_as_plain_timm(arch):
    enc = create_encoder(arch, {"ms": 5, "rgb": 3}, **ARCHS[arch]).eval()
    model = plain_timm(enc, "ms")
    for size in (96, 96), (64, 128), (224, 224):
        x = torch.randn(2, 5, *size)
        with torch.no_grad():
            t, y = enc(x), model.forward_features(x)
        close(t.patches, y[:, model.num_prefix_tokens :] if enc.is_vit else y.flatten(1, 2))
        if enc.has_cls:
            close(t.cls, y[:, 0])
        assert t.grid == (
            (size[0] // 16, size[1] // 16) if enc.is_vit else (size[0] // 32, size[1] // 32)
        )


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_one_trunk_learns_from_both_modalities(arch):
    enc = create_encoder(arch, {"ms": 5, "rgb": "rgb"}, **ARCHS[arch])
    out = enc.together({"ms": torch.randn(2, 5, 64, 64), "rgb": torch.rand(2, 3, 64, 64)})
    out["ms"].patches[..., :3].sum().backward()
    assert all(
        p.grad is None or not p.grad.abs().sum() for p in enc.embeds["rgb"].parameters()
    )  # no leak between modalities
    assert enc.embeds["ms"].proj.weight.grad.abs().sum() > 0
    trunk = sum(p.grad.abs().sum() for p in enc.trunk.parameters() if p.grad is not None)
    out = enc.together(
        {"ms": torch.randn(2, 5, 64, 64), "rgb": torch.rand(2, 3, 32, 32)}
    )  # of two sizes
    out["rgb"].patches[..., :3].sum().backward()
    assert sum(p.grad.abs().sum() for p in enc.trunk.parameters() if p.grad is not None) != trunk


def test_drop_path_is_off_in_evaluation_and_for_the_teacher():
    enc = create_encoder("vit_tiny_patch16_224", {"ms": 5}, drop_path=0.9, **VIT)
    x = torch.randn(4, 5, 32, 32)
    assert not torch.allclose(enc.train()(x).cls, enc(x).cls)
    close(enc.eval()(x).cls, enc(x).cls)
    t = EMATeacher(enc).train()
    close(t(x).cls, t(x).cls)


def test_patch_size_travels_with_the_config():
    "The released code trains at patch 16 and loads at patch 8."
    enc = create_encoder("vit_tiny_patch16_224", {"ms": 5}, patch_size=8, img_size=64, **VIT)
    again = create_encoder(**enc.config)
    again.load_state_dict(enc.state_dict())
    assert again.patch_size == 8 and again(torch.randn(1, 5, 64, 64)).grid == (8, 8)
    with pytest.raises(RuntimeError):
        create_encoder(**enc.config | dict(patch_size=16)).load_state_dict(enc.state_dict())


def test_bf16_autocast_keeps_dn_apart():
    "DN of 10,000 have steps of 64 in bf16: values are normalised in fp32 first."
    enc = create_encoder("vit_tiny_patch16_224", {"ms": "sentinel2_l1c"}, **VIT).eval()
    x = torch.rand(2, 13, 32, 32) * 10000
    with torch.no_grad():
        full = enc(x).patches
        with torch.autocast("cpu", torch.bfloat16):
            half = enc(x).patches.float()
    assert ((full - half).abs().mean() / full.abs().mean()) < 0.02


def test_masks_may_differ_between_samples_and_modalities():
    enc = create_encoder(
        "vit_tiny_patch16_224", {"ms": 5, "dsm": 1}, modality_embed=True, **VIT
    ).eval()
    g = torch.Generator().manual_seed(0)
    masks = {m: torch.rand(3, 36, generator=g).argsort(1) < k for m, k in (("ms", 27), ("dsm", 20))}
    batch = {"ms": torch.randn(3, 5, 96, 96), "dsm": torch.randn(3, 1, 96, 96)}
    with torch.no_grad():
        out = enc.together(batch, masks=masks)
        for m, x in batch.items():
            assert out[m].patches.shape[1] == (~masks[m]).sum(1)[0]
            close(out[m].patches, enc(x, m, mask=masks[m]).patches)
            enc.embed(x, m).flatten(1, 2) + enc.trunk.pos_embed.new_zeros(1)
            for b in range(3):
                close(enc(x[b : b + 1], m, mask=masks[m][b : b + 1]).cls, out[m].cls[b : b + 1])
    with pytest.raises(ValueError, match="every modality"):
        enc.together(batch, masks={"ms": masks["ms"]})


def test_windows_of_torchvision_are_kept_in_the_config():
    enc = create_encoder(
        "swin_tiny_patch4_window7_224", {"ms": 5}, windows="torchvision", **SWIN
    ).eval()
    other = create_encoder(
        "swin_tiny_patch4_window7_224", {"ms": 5}, always_partition=True, **SWIN
    ).eval()
    other.load_state_dict(enc.state_dict())
    x = torch.randn(1, 5, 96, 96)
    with torch.no_grad():
        again = create_encoder(**enc.config).eval()
        again.load_state_dict(enc.state_dict())
        close(again(x).cls, enc(x).cls)
        assert not torch.allclose(other(x).cls, enc(x).cls, atol=1e-4)
        assert torch.equal(copy.deepcopy(enc)(x).cls, enc(x).cls)
    with pytest.raises(ValueError, match="windows='torch'"):
        create_encoder("swin_tiny_patch4_window7_224", {"ms": 5}, windows="torch", **SWIN)


def test_an_ema_copy_of_torchvision_windows_moves_its_own_weights():
    "A patched method must be bound to the copy, not to the original."
    enc = create_encoder(
        "swin_tiny_patch4_window7_224", {"ms": 5}, windows="torchvision", **SWIN
    ).eval()
    t, x = EMATeacher(enc), torch.randn(1, 5, 96, 96)
    with torch.no_grad():
        before = t(x).cls
        for p in enc.parameters():
            p.add_(0.1)
        close(t(x).cls, before)


def test_head_has_unit_rows_for_huge_and_tiny_input():
    h = ProjectionHead(8, 4, hidden=16)
    for s in 1e-3, 1e3:
        close(h(torch.randn(5, 8) * s).norm(dim=1), torch.ones(5))
