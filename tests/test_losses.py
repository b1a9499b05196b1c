"Losses of DEO and MSSDF against plain loops over samples, closed forms, gradients, and the released code's faults."

import math

import pytest
import torch
import torch.nn.functional as F
from torch import tensor

from eo_brew.losses.coding_rate import SimDINOLoss, coding_rate, cross_view_cosine
from eo_brew.losses.distill import (
    cls_distill_loss,
    hsic,
    info_nce,
    masked_token_loss,
    modality_loss,
    patch_distill_loss,
    resize_tokens,
    weighted_mean,
)

CLOSE = dict(rtol=1e-5, atol=1e-5)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return F.normalize(rand(*shape, seed=seed), dim=-1)


def cos(a, b):
    return (a @ b) / (a.norm() * b.norm())


def plain_rate(z, eps):  # by eigenvalues, in double
    n, d = z.shape
    return (
        0.5
        * torch.linalg.eigvalsh(
            torch.eye(d, dtype=torch.double) + d / (n * eps) * z.double().T @ z.double()
        )
        .log()
        .sum()
    )


@pytest.mark.parametrize("n,d,eps", [(3, 8, 0.05), (16, 4, 0.5), (7, 7, 0.01)])
def test_coding_rate_equals_the_eigenvalues(n, d, eps):
    z = unit(n, d, seed=n)
    torch.testing.assert_close(coding_rate(z, eps).double(), plain_rate(z, eps), **CLOSE)


def test_coding_rate_closed_forms():
    n, d, eps = 12, 6, 0.05
    torch.testing.assert_close(
        coding_rate(unit(1, d).expand(n, d), eps), tensor(0.5 * math.log(1 + d / eps)), **CLOSE
    )
    torch.testing.assert_close(
        coding_rate(torch.eye(d).repeat(2, 1), eps), tensor(d / 2 * math.log(1 + 1 / eps)), **CLOSE
    )


@pytest.mark.parametrize("same", [True, False])
def test_agreement_equals_the_loop(same):
    s, t = unit(5, 4, 8), unit(2, 4, 8, seed=1)
    plain = torch.stack(
        [
            cos(t[i, b], s[v, b])
            for i in range(2)
            for v in range(5)
            for b in range(4)
            if same or v != i
        ]
    ).mean()
    torch.testing.assert_close(cross_view_cosine(s, t, same_view=same), plain, **CLOSE)
    torch.testing.assert_close(cls_distill_loss(s, t, same_view=same), 1 - plain, **CLOSE)


def test_simdino_equals_the_loop():
    s, t, eps = unit(4, 6, 8), unit(2, 6, 8, seed=1), 0.05
    agreement = torch.stack(
        [cos(t[i, b], s[v, b]) for i in range(2) for v in range(4) for b in range(6) if v != i]
    ).mean()
    gamma = (8 + 6) / (8 * 6)
    expansion = gamma / 2 * sum(plain_rate((s[i] + t[i]) / 2, eps) for i in range(2))
    torch.testing.assert_close(
        SimDINOLoss(eps)(s, t).double(), -agreement.double() - expansion, **CLOSE
    )


@pytest.mark.parametrize(
    "grid,teacher_grid", [((4, 4), (4, 4)), ((2, 3), (4, 6)), ((6, 6), (3, 3))]
)
def test_patch_distillation_equals_the_loop(grid, teacher_grid):
    "The teacher's grid is whatever it is (released: fixed to 14 x 14)."
    s, t = rand(2, grid[0] * grid[1], 5), rand(2, teacher_grid[0] * teacher_grid[1], 5, seed=1)
    w = torch.rand(2, t.shape[1], generator=torch.Generator().manual_seed(2))
    r = torch.stack(
        [
            F.interpolate(
                x.T.reshape(1, 5, *grid),
                teacher_grid,
                mode="bilinear",
                antialias=teacher_grid[0] < grid[0],
            )[0]
            .flatten(1)
            .T
            for x in s
        ]
    )
    plain = (
        sum(w[b, n] * (1 - cos(r[b, n], t[b, n])) for b in range(2) for n in range(t.shape[1]))
        / w.sum()
    )
    torch.testing.assert_close(patch_distill_loss(s, t, grid, teacher_grid, w), plain, **CLOSE)


def test_masked_tokens_equal_the_loop():
    p, t, m = rand(3, 10, 4), rand(3, 10, 4, seed=1), rand(3, 10, seed=2) > 0
    plain = torch.stack(
        [(p[b, n] - t[b, n]).square().mean() for b in range(3) for n in range(10) if m[b, n]]
    ).mean()
    torch.testing.assert_close(masked_token_loss(p, t, m), plain, **CLOSE)
    assert masked_token_loss(p, t, torch.zeros_like(m)) == 0


def test_info_nce_equals_the_loop():
    a, b, tau = rand(9, 5), rand(9, 5, seed=1), 0.07

    def one(x, y):
        return (
            sum(
                -cos(x[i], y[i]) / tau
                + torch.logsumexp(torch.stack([cos(x[i], y[j]) / tau for j in range(9)]), 0)
                for i in range(9)
            )
            / 9
        )

    torch.testing.assert_close(info_nce(a, b, tau), (one(a, b) + one(b, a)) / 2, **CLOSE)


def test_info_nce_closed_forms():
    n = 8
    torch.testing.assert_close(
        info_nce(torch.ones(n, 3), torch.ones(n, 3)), tensor(math.log(n)), **CLOSE
    )  # nothing told apart
    torch.testing.assert_close(
        info_nce(torch.eye(n), torch.eye(n)),
        tensor(math.log(1 + (n - 1) * math.exp(-1 / 0.07))),
        **CLOSE,
    )  # all told apart
    assert info_nce(rand(50, 4), rand(50, 4, seed=1), max_tokens=10).isfinite()


def test_hsic_equals_the_loop_and_the_kernel_form():
    a, b, n = rand(11, 3), rand(11, 4, seed=1), 11
    plain = (
        sum(
            ((a[:, i] - a[:, i].mean()) * (b[:, j] - b[:, j].mean())).sum().square()
            for i in range(3)
            for j in range(4)
        )
        / (n - 1) ** 2
    )
    torch.testing.assert_close(hsic(a, b), plain, **CLOSE)
    H = torch.eye(n) - 1 / n
    torch.testing.assert_close(
        hsic(a, b), torch.trace(a @ a.T @ H @ b @ b.T @ H) / (n - 1) ** 2, rtol=1e-4, atol=1e-5
    )
    assert hsic(a, torch.ones(n, 2)) < 1e-8  # a constant tells nothing
    torch.testing.assert_close(hsic(a + 5, b - 3), hsic(a, b), rtol=1e-4, atol=1e-5)


def test_a_perfect_classifier_has_no_loss():
    "The released loss cannot fall below ln 2."
    right = [30.0 * F.one_hot(torch.full((4,), k), 2).float() for k in range(2)]
    assert modality_loss(right) < 1e-6
    torch.testing.assert_close(modality_loss([torch.zeros(4, 2)] * 2), tensor(math.log(2)), **CLOSE)
    torch.testing.assert_close(
        modality_loss([None, right[1]]), modality_loss([right[0], None]), **CLOSE
    )
    assert modality_loss(right[::-1]) > 20


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: coding_rate(x[0], 0.05),
        lambda x: cross_view_cosine(x, unit(2, 4, 3, seed=5)),
        lambda x: patch_distill_loss(x, rand(2, 4, 3, seed=5), (2, 2), (2, 2)),
        lambda x: masked_token_loss(x, rand(2, 4, 3, seed=5), torch.ones(2, 4).bool()),
        lambda x: info_nce(x[0], x[1], 0.5),
        lambda x: hsic(x[0], x[1]),
        lambda x: modality_loss([x[0], x[1], None]),
    ],
)
def test_gradients_equal_differences(loss):
    x = unit(2, 4, 3).requires_grad_()
    (grad,) = torch.autograd.grad(loss(x), x)
    step = unit(2, 4, 3, seed=9)
    with torch.no_grad():
        diff = (loss(x + 1e-2 * step).double() - loss(x - 1e-2 * step).double()) / 2e-2
    assert abs(diff - (grad * step).sum()) < 2e-2 * max(1.0, float(diff.abs()))


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: cls_distill_loss(s, t),
        lambda s, t: patch_distill_loss(s, t, (2, 2), (2, 2)),
        lambda s, t: masked_token_loss(s, t, torch.ones(2, 4).bool()),
    ],
)
def test_teachers_get_no_gradient(loss):
    s, t = rand(2, 4, 3).requires_grad_(), rand(2, 4, 3, seed=1).requires_grad_()
    loss(s, t).backward()
    assert s.grad.abs().sum() > 0 and t.grad is None


def test_losses_compute_in_float32_inside_autocast():
    a, b = rand(64, 32), rand(64, 32, seed=1)
    logits = [rand(8, 2), rand(8, 2, seed=1)]
    calls = [
        lambda: info_nce(a, b),
        lambda: hsic(a, b),
        lambda: coding_rate(F.normalize(a, dim=1)),
        lambda: modality_loss(logits),
        lambda: patch_distill_loss(a.view(4, 16, 32), b.view(4, 16, 32), (4, 4), (4, 4)),
    ]
    for f in calls:
        with torch.autocast("cpu", torch.bfloat16):
            inside = f()
        assert inside.dtype == torch.float32 and torch.equal(inside, f())


def test_what_has_no_weight_does_not_count():
    x, w = rand(6), tensor([1.0, 1, 0, 0, 1, 0])
    torch.testing.assert_close(weighted_mean(x, w), x[w > 0].mean(), **CLOSE)
    assert weighted_mean(x, 0 * w) == 0
    p, t, m = rand(1, 4, 3), rand(1, 4, 3, seed=1), tensor([[True, True, False, False]])
    q = p.clone()
    q[:, 2:] = 1e6
    assert torch.equal(masked_token_loss(p, t, m), masked_token_loss(q, t, m))


@pytest.mark.parametrize("bad", [float("nan"), 1e6])
def test_invalid_places_count_neither_as_question_nor_as_answer(bad):
    a, b, ok = rand(60, 5), rand(60, 5, seed=1), rand(60, seed=2) > -0.5
    hole = [torch.where(ok[:, None], x, bad).requires_grad_() for x in (a, b)]
    for loss in (
        info_nce,
        hsic,
        lambda x, y, valid=None: info_nce(x, y, max_tokens=9, valid=valid),
    ):
        value = loss(*hole, valid=ok)
        torch.testing.assert_close(value, loss(a[ok], b[ok]), **CLOSE)
        for x, g in zip(hole, torch.autograd.grad(value, hole)):
            assert g.isfinite().all() and not g[~ok].any() and g[ok].any()
        assert loss(*hole, valid=ok & False) == 0


def test_few_valid_places_among_many_are_all_taken():
    a, b, ok = rand(500, 5), rand(500, 5, seed=1), torch.arange(500) % 50 == 7
    torch.testing.assert_close(
        info_nce(a, b, max_tokens=64, valid=ok), info_nce(a[ok], b[ok]), **CLOSE
    )
    seen = a.clone().requires_grad_()
    info_nce(seen, b, max_tokens=100).backward()
    used = seen.grad.abs().sum(1).nonzero()[:, 0]
    assert len(used) == 100 and (used.diff() == 5).all()  # spread evenly, none twice


def test_samples_without_a_modality_have_no_class():
    logits, have = [rand(6, 2), rand(6, 2, seed=1)], [torch.arange(6) < 2, torch.arange(6) > 0]
    torch.testing.assert_close(
        modality_loss(logits, have), modality_loss([l[h] for l, h in zip(logits, have)]), **CLOSE
    )
    assert modality_loss(logits, [h & False for h in have]) == 0


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda: info_nce(rand(3, 2), rand(4, 2)), "row k of both"),
        (lambda: info_nce(rand(3, 2), rand(3, 2), 0), "above 0"),
        (lambda: hsic(rand(1, 2), rand(1, 2)), "N >= 2"),
        (lambda: modality_loss([None, None]), "every modality is missing"),
        (lambda: modality_loss([rand(2, 3), rand(2, 3)]), r"expected \(B,2\)"),
        (
            lambda: masked_token_loss(rand(1, 4, 2), rand(1, 4, 3), torch.ones(1, 4).bool()),
            "expected",
        ),
        (
            lambda: info_nce(rand(3, 2), rand(3, 2), valid=torch.ones(2).bool()),
            r"wanted \(3,\) bool",
        ),
        (lambda: hsic(rand(3, 2), rand(3, 2), torch.ones(3)), "True = measured"),
        (lambda: resize_tokens(rand(1, 5, 2), (2, 2), (4, 4)), "has 4 places"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
