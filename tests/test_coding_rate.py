"""Coding rate and SimDINO loss (arXiv 2602.19863) against plain loops, closed forms, faults of the
released code, two real processes.
"""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from eo_brew.core.processes import sum_processes
from eo_brew.losses.coding_rate import SimDINOLoss, coding_rate, cross_view_cosine
from processes import on_two


def unit(*shape, seed=0):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64),
        dim=-1,
    )


def plain_rate(z, eps):
    "The formula by eigenvalues, nothing shared with the package."
    n, d = z.shape
    gram = [[sum(z[k, i] * z[k, j] for k in range(n)) for j in range(d)] for i in range(d)]
    values = torch.linalg.eigvalsh(torch.tensor(gram, dtype=torch.float64))
    return sum(0.5 * math.log(1 + d / (n * eps) * max(v, 0)) for v in values.tolist())


def plain_cosine(s, t, same_view):
    cos = [
        (s[v, b] @ t[i, b] / s[v, b].norm() / t[i, b].norm()).item()
        for i in range(len(t))
        for v in range(len(s))
        for b in range(s.shape[1])
        if same_view or v != i
    ]
    return sum(cos) / len(cos)


def plain_simdino(s, t, eps=0.05, smooth=True, same_view=False):
    b, d = s.shape[1:]
    z = [(s[i] + t[i]) / 2 if smooth else s[i] for i in range(2)]
    return -plain_cosine(s, t, same_view) - (d + b) / (d * b) * 0.5 * sum(
        plain_rate(o, eps) for o in z
    )


@pytest.mark.parametrize("n,d", [(3, 7), (7, 3), (6, 6), (2, 12), (1, 4)])
@pytest.mark.parametrize("eps", [0.05, 0.5])
def test_rate_is_the_formula(n, d, eps):
    z = unit(n, d, seed=n)
    assert coding_rate(z, eps).item() == pytest.approx(plain_rate(z, eps), rel=1e-9)
    assert coding_rate(z.float(), eps).item() == pytest.approx(plain_rate(z, eps), rel=1e-5)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("same_view", [True, False])
@pytest.mark.parametrize("v,b,d", [(2, 2, 5), (5, 4, 3), (12, 3, 8)])
def test_loss_is_the_formula(smooth, same_view, v, b, d):
    s, t = unit(v, b, d, seed=1).float(), unit(2, b, d, seed=2).float()
    loss = SimDINOLoss(smooth=smooth, same_view=same_view)
    assert loss(s, t).item() == pytest.approx(
        plain_simdino(s.double(), t.double(), 0.05, smooth, same_view), abs=1e-5
    )
    assert loss.parts["agreement"].item() == pytest.approx(plain_cosine(s, t, same_view), abs=1e-5)
    assert not any(p.requires_grad for p in loss.parts.values())


def test_eps_of_the_paper_is_the_default():
    z = unit(8, 5)
    assert coding_rate(z) == coding_rate(z, 0.05) and coding_rate(z) != coding_rate(z, 0.5)
    assert SimDINOLoss().eps == 0.05


def test_closed_forms_in_fp32_at_full_width():
    "256 directions, 64 samples: the widths of the paper, where single precision could fail."
    one = unit(1, 256).float().expand(64, -1)
    assert coding_rate(one).item() == pytest.approx(0.5 * math.log(1 + 256 / 0.05), rel=1e-4)
    spread = torch.eye(256)[:64]
    assert coding_rate(spread).item() == pytest.approx(
        32 * math.log(1 + 256 / (64 * 0.05)), rel=1e-5
    )


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_gradients(shape):
    z = torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True
    )
    assert torch.autograd.gradcheck(coding_rate, (z,))
    s, t = (x.double().requires_grad_() for x in (unit(3, 4, 5), unit(2, 4, 5, seed=1)))
    assert torch.autograd.gradcheck(lambda s: cross_view_cosine(s, t.detach()), (s,))
    SimDINOLoss()(s, t).backward()
    assert t.grad is None and s.grad.abs().sum() > 0


def test_smooth_expansion_reaches_the_student_through_half_of_the_mean():
    s, t = unit(2, 6, 4).float().requires_grad_(), unit(2, 6, 4, seed=1).float()
    SimDINOLoss().expansion(s, t).backward()
    mean = ((s.detach() + t) / 2).requires_grad_()
    SimDINOLoss(smooth=False).expansion(mean, t).backward()
    torch.testing.assert_close(s.grad, mean.grad / 2, atol=1e-6, rtol=1e-5)


def test_invariances():
    s, t = unit(4, 6, 8).float(), unit(2, 6, 8, seed=1).float()
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    order, loss = torch.tensor([3, 1, 5, 0, 2, 4]), SimDINOLoss()
    torch.testing.assert_close(loss(s @ q, t @ q), loss(s, t), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss(s[:, order], t[:, order]), loss(s, t), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        loss(s[[0, 1, 3, 2]], t), loss(s, t), atol=1e-5, rtol=1e-5
    )  # local views have no order
    assert (loss(s[[2, 1, 0, 3]], t) - loss(s, t)).abs() > 1e-3  # but globals come first


def test_a_view_is_not_compared_with_itself_unless_asked():
    s = unit(2, 4, 6)
    other = (s[0] * s[1]).sum(-1).mean()
    torch.testing.assert_close(cross_view_cosine(s, s), other)
    torch.testing.assert_close(cross_view_cosine(s, s, same_view=True), (1 + other) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_inside_autocast(dtype):
    s, t = unit(4, 8, 32).float(), unit(2, 8, 32, seed=1).float()
    plain = SimDINOLoss()(s, t)
    with torch.autocast("cpu", dtype=dtype):
        cast = SimDINOLoss()(s, t)
    assert cast.dtype == torch.float32 and cast == plain
    half = SimDINOLoss()(s.to(dtype), t.to(dtype))  # half features come in, the sums are still fp32
    assert half.dtype == torch.float32 and (half - plain).abs() < 0.02


def test_collapse_is_worse_than_spread_and_stationary():
    w = torch.ones(6, 4, requires_grad=True)
    coding_rate(F.normalize(w, dim=-1)).backward()
    assert w.grad.abs().max() < 1e-6
    e = torch.eye(16)
    flat, best = e[:1].expand(2, 16, 16), e.expand(2, 16, 16)
    loss = SimDINOLoss()
    assert loss(best, best) < loss(flat, flat) - 1
    assert loss.parts["agreement"] == 1  # agreement alone sees no difference


def test_nan_is_seen_and_does_not_raise():
    s, t = unit(3, 4, 5).float(), unit(2, 4, 5, seed=1).float()
    s[0, 0, 0] = torch.nan
    assert SimDINOLoss()(s, t).isnan()


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: SimDINOLoss()(torch.ones(2, 1, 4), torch.ones(2, 1, 4)), "batch size 1.*bs >= 2"),
        (lambda: coding_rate(torch.ones(2, 3, 4)), r"\(2, 3, 4\)"),
        (lambda: coding_rate(torch.ones(2, 3), eps=-1), "eps: must be > 0, got -1"),
        (lambda: cross_view_cosine(torch.ones(3, 2, 4), torch.ones(2, 2, 5)), "equal B and D"),
        (lambda: cross_view_cosine(torch.ones(1, 2, 4), torch.ones(1, 2, 4)), "no pair"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# two real processes, with batches of unequal size: rate, expansion and the gradient after
#  DDP's mean are those of the whole batch


def _whole(seed=5):
    return torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _share():
    z = _whole()[:, :3] if dist.get_rank() == 0 else _whole()[:, 3:]
    z = z.clone().requires_grad_()
    rate = coding_rate(z[0], reduce=sum_processes)
    rate.backward()
    e = SimDINOLoss(smooth=False).expansion(z.detach(), z.detach())
    return rate.item(), e.item(), z.grad[0]


def _local_share():
    z = _whole()[:, :3] if dist.get_rank() == 0 else _whole()[:, 3:]
    loss = SimDINOLoss(smooth=False, local_cov=True)
    return loss.expansion(z, z).item()


def test_local_covariance_has_the_scale_of_all_processes(tmp_path):
    "Released (`reduce_cov=0`): the sum over 3 or 4 samples, gamma and D/(B eps) of all 7."
    z, (b, d) = _whole(), (7, 5)
    for found, own in zip(on_two(_local_share, tmp_path), (z[:, :3], z[:, 3:])):
        rates = [0.5 * torch.logdet(torch.eye(d) + d / (b * 0.05) * (o.T @ o).float()) for o in own]
        want = (d + b) / (d * b) * sum(rates).item() / 2
        assert found == pytest.approx(want, rel=1e-4)
        assert found < 0.9 * SimDINOLoss(smooth=False).expansion(z, z).item()


def test_two_processes_equal_one(tmp_path):
    found = on_two(_share, tmp_path)
    z = _whole().requires_grad_()
    rate = coding_rate(z[0])
    rate.backward()
    e = SimDINOLoss(smooth=False).expansion(z.detach(), z.detach()).item()
    for r in found:
        assert r[0] == pytest.approx(rate.item(), rel=1e-9) and r[1] == pytest.approx(e, rel=1e-5)
    # each process holds twice its share: DDP's mean over two processes makes the exact gradient of it
    got = torch.cat([r[2] for r in found]) / 2
    torch.testing.assert_close(got, z.grad[0], atol=1e-9, rtol=1e-7)
