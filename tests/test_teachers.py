"""Teachers: faults of the released code, local weights, the teacher of the demo extra."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from eo_brew.models.encoder import create_encoder
from eo_brew.models.teachers import (
    EMATeacher,
    TargetStandardizer,
    VFMTeacher,
    create_teacher,
    lite_weights,
)

SMALL = dict(embed_dim=24, num_heads=2)


def close(a, b, eps=1e-5):
    assert torch.allclose(a, b, atol=eps, rtol=eps), (a - b).abs().max()


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants as c

    monkeypatch.setattr(c, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    "arch", ["vit_base_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"]
)
def test_mid_comes_before_late(arch):
    "The released ViT returns (late, mid) where (mid, late) is unpacked."
    v = VFMTeacher(arch, pretrained=False, depth=12, **SMALL)
    assert v.layer_ids == (8, 11) and v.info["layers"] == [8, 11]
    t = v(torch.rand(1, 3, 4 * v.patch_size, 4 * v.patch_size))
    close(t.layers[1].patches, t.patches)
    assert not torch.allclose(t.layers[0].patches, t.patches)


@pytest.mark.parametrize(
    "arch,mean", [("tf_efficientnet_lite2", 0.5), ("vit_small_patch14_dinov2", 0.485)]
)
def test_input_has_the_teachers_own_statistics(arch, mean):
    v = VFMTeacher(arch, pretrained=False, **({} if "lite" in arch else SMALL | dict(depth=2)))
    seen = []
    v.model.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    (v.model.conv_stem if "lite" in arch else v.model.patch_embed).register_forward_pre_hook(
        lambda m, x: seen.append(x[0])
    )
    v(torch.full((1, 3, 56, 56), mean))
    assert seen[-1][:, 0].abs().max() < 1e-6


def test_a_darker_image_is_another_input():
    "The released code divides by the crop's maximum: ten times darker gave the same input."
    v = VFMTeacher("resnet18", pretrained=False)
    x = torch.rand(1, 3, 64, 64)
    assert not torch.allclose(v(x).cls, v(x / 10).cls)


def test_wrong_weights_are_never_random_weights(tmp_path, offline):
    with pytest.raises(ValueError, match="none are made up"):
        VFMTeacher("resnet18", checkpoint=tmp_path / "typo.pth")
    with pytest.raises(ValueError, match="checkpoint="):
        VFMTeacher("resnet18")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        VFMTeacher("resnet18", checkpoint=tmp_path / "other.safetensors")


def test_nothing_learns_and_nothing_drops():
    v = VFMTeacher("vit_base_patch16_224", pretrained=False, depth=2, drop_path_rate=0.9, **SMALL)
    x = torch.rand(2, 3, 32, 32)
    holder = torch.nn.ModuleList([v]).train()
    close(holder[0](x).cls, v(x).cls)
    assert not any(p.requires_grad for p in v.parameters()) and not v(x).patches.requires_grad
    (
        v(x).patches * torch.ones(24, requires_grad=True)
    ).sum().backward()  # targets may stand in a loss


def test_ema_weighs_the_past():
    "Released MSSDF code swaps the weights."
    s = torch.nn.Linear(1, 1, bias=False)
    t = EMATeacher(s)
    with torch.no_grad():
        s.weight.add_(1)
    t.update(s, 0.9)
    close(t.module.weight, s.weight - 0.9)
    assert EMATeacher(s).module.weight == s.weight  # and the teacher starts as the student


def test_ema_of_an_encoder_follows_masks_and_layers():
    enc = create_encoder("vit_tiny_patch16_224", {"ms": 4}, depth=2, **SMALL).eval()
    t, x, mask = (
        EMATeacher(enc),
        torch.randn(2, 4, 32, 32),
        torch.tensor([[True, False, False, True]] * 2),
    )
    a, b = t(x, mask=mask, layers=(0,)), enc(x, mask=mask, layers=(0,))
    close(a.layers[0].patches, b.layers[0].patches)


def test_lite_teacher_knows_a_palace():
    "Weights in a wrong order would have right shapes too: ask for the class of a picture."
    import timm
    from sklearn.datasets import load_sample_image

    weights = lite_weights()
    net = timm.create_model("tf_efficientnet_lite2").eval()
    net.load_state_dict(weights)
    x = torch.tensor(load_sample_image("china.jpg")).permute(2, 0, 1)[None] / 255
    x = F.interpolate(x[..., :427, 106:533], (256, 256), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert net((x - 0.5) / 0.5).argmax() == 698
    v = create_teacher("efficientnet_lite2")
    t = v(x)
    with torch.no_grad():
        close(t.cls, net.forward_head(net.forward_features((x - 0.5) / 0.5), pre_logits=True), 1e-4)
    assert [l.grid for l in t.layers] == [(16, 16), (8, 8)] and v.info["licence"] == "Apache-2.0"


def test_standardizer_is_the_plain_mean_first_and_a_running_one_later():
    st = TargetStandardizer(2, momentum=0.25)
    for i in range(4):
        st(torch.full((3, 2), float(i)))
    close(st.mean, torch.full((2,), 1.5))
    close(st.var, torch.full((2,), 1.25))
    st(torch.full((3, 2), 9.5))
    close(st.mean, torch.full((2,), 3.5))
    assert set(st.state_dict()) == {"mean", "var", "batches"}  # resumes with the learner
