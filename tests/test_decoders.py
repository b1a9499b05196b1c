"Decoders in a batch against a loop over samples without padding: outputs and gradients."

import copy

import pytest
import torch
from torch import nn

from eo_brew.models.decoders import (
    FusionDecoder,
    KeyBlocks,
    TokenDecoder,
    visible_places,
    true_places,
)
from eo_brew.models.tokens import Tokens
from eo_brew.views.masking import cross_modal_masks, random_mask

GRID, B, D = (3, 4), 5, 16
N = 12


def positions(width):  # sines and cosines of row and column, written out
    bands = 10000 ** (-torch.arange(width // 4) / (width // 4))
    rows = [
        torch.cat(
            [torch.sin(y * bands), torch.sin(x * bands), torch.cos(y * bands), torch.cos(x * bands)]
        )
        for y in range(GRID[0])
        for x in range(GRID[1])
    ]
    return torch.stack(rows)


def case(names="abc", q=0.5, drop=True, seed=0, blind=False):
    """Random tokens, masks, and validity with nodata and missing modalities; `blind` masks may
    leave patches without data visible.
    """
    g = torch.Generator().manual_seed(seed)
    valid = {m: torch.rand(B, N, generator=g) > 0.2 for m in names}
    if drop:
        valid[names[0]][1], valid[names[-1]][2] = False, False
    known = {m: None if blind else valid[m] for m in names}
    masks = cross_modal_masks(
        {m: random_mask(B, N, 0.75, g, known[m]) for m in names}, q, g, None if blind else valid
    )
    tokens = {
        m: Tokens(torch.randn(B, D, generator=g), torch.randn(B, 3, D, generator=g), GRID)
        for m in names
    }
    return tokens, masks, valid


def plain(fusion, decoder, tokens, masks, valid):
    "One sample after the other: only what is there, no padding, no key masks."
    pos, out = positions(fusion.width), {m: [] for m in tokens}

    def through(kb, x):
        for b in kb.blocks:
            x = b(x)
        return kb.norm(x)

    for i in range(B):
        seq, seen = [], set()
        for m, t in tokens.items():
            if not valid[m][i].any():
                continue
            seq.append((fusion.project(t.cls[i]) + fusion.names[m])[None])
            where = [n for n in range(N) if not masks[m][i, n]]
            for k, n in enumerate(where):
                if not valid[m][i, n]:
                    continue
                seen.add(n)
                seq.append((fusion.project(t.patches[i, k]) + fusion.names[m] + pos[n])[None])
        seen = sorted(seen)
        x = (
            torch.cat(seq + [(fusion.fusion + pos[n])[None] for n in seen])
            if seq
            else torch.zeros(0, fusion.width)
        )
        fused = through(fusion.blocks, x[None])[0, len(x) - len(seen) :]
        for m in tokens:
            asked = decoder.mask_tokens[m] + pos
            y = torch.cat([fused + pos[seen], asked])[None]
            out[m].append(through(decoder.blocks, y)[0, len(seen) :])
    return {m: torch.stack(o) for m, o in out.items()}


def decoders(names="abc"):
    torch.manual_seed(0)
    return FusionDecoder(D, names, 16, 2, 2).eval(), TokenDecoder(16, D, names, 2, 2).eval()


@pytest.mark.parametrize(
    "names,q,blind",
    [
        ("abc", 0.5, False),
        ("abc", 0.5, True),
        ("ab", 0.0, False),
        ("ab", 1.0, False),
        ("a", 0.0, False),
    ],
)
def test_the_batch_equals_the_loop_in_outputs_and_gradients(names, q, blind):
    fusion, decoder = decoders(names)
    inputs = case(names, q, drop=len(names) > 1, blind=blind)
    results, grads = [], []
    for f in (lambda fu, de: de(fu(*inputs)), lambda fu, de: plain(fu, de, *inputs)):
        fu, de = copy.deepcopy(fusion), copy.deepcopy(decoder)
        out = f(fu, de)
        sum(
            (de.predict(o) * torch.arange(1.0, D + 1)).square().mean() for o in out.values()
        ).backward()
        results.append(out)
        grads.append(
            {n: p.grad for n, p in [*fu.named_parameters(), *de.named_parameters(prefix="decoder")]}
        )
    for m in names:
        torch.testing.assert_close(results[0][m], results[1][m], rtol=1e-5, atol=1e-5)
    for n, g in grads[0].items():
        scale = grads[1][n].abs().max().clamp(min=1)
        torch.testing.assert_close(
            g / scale, grads[1][n] / scale, rtol=1e-5, atol=1e-5, msg=lambda s, n=n: f"{n}: {s}"
        )


def test_a_key_mask_of_another_order_is_noticed():
    "The released code put CLS first in the tokens and last in the mask."
    fusion, decoder = decoders()
    inputs, right = case(), None
    right = decoder(fusion(*inputs))

    class Wrong(nn.Module):
        def __init__(self, kb):
            super().__init__()
            self.kb = kb

        def forward(self, x, keys):
            return self.kb(x, torch.cat([keys[:, 3:], keys[:, :3]], 1))

    fusion.blocks = Wrong(fusion.blocks)
    wrong = decoder(fusion(*inputs))
    assert max((wrong[m] - right[m]).abs().max() for m in right) > 1e-2
    loop = plain(*decoders(), *inputs)
    assert all(torch.allclose(loop[m], right[m], atol=1e-5) for m in right)


def test_a_missing_modality_has_no_influence():
    fusion, decoder = decoders()
    tokens, masks, valid = case()
    other = {m: Tokens(t.cls.clone(), t.patches.clone(), t.grid) for m, t in tokens.items()}
    other["a"].cls[1], other["a"].patches[1] = 1e3, -1e3
    x, y = (decoder(fusion(t, masks, valid))["b"] for t in (tokens, other))
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def test_everything_missing_is_finite():
    fusion, decoder = decoders()
    tokens, masks, valid = case()
    for v in valid.values():
        v[3] = False
    out = decoder(fusion(tokens, masks, valid))
    assert all(o.isfinite().all() for o in out.values())
    sum(o.sum() for o in out.values()).backward()
    assert all(p.grad.isfinite().all() for p in fusion.parameters() if p.grad is not None)


def test_any_grid_has_its_positions():
    fusion, decoder = decoders("a")
    for grid in ((2, 2), (5, 3)):
        n = grid[0] * grid[1]
        mask = random_mask(2, n, 0.5, torch.Generator().manual_seed(0))
        fused = fusion(
            {"a": Tokens(torch.randn(2, D), torch.randn(2, n - int(mask[0].sum()), D), grid)},
            {"a": mask},
        )
        assert decoder(fused)["a"].shape == (2, n, 16)


def test_slots_hold_what_is_seen():
    tokens, masks, valid = case()
    seen = visible_places(masks, valid)
    places, real = true_places(seen, 9)
    for i in range(B):
        assert places[i, real[i]].tolist() == seen[i].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    "call,match",
    [
        (lambda: KeyBlocks(30, 1, 3), "multiple of 4"),
        (lambda: KeyBlocks(32, 1, 3), "heads=3"),
        (
            lambda: visible_places({"a": torch.ones(1, 4).bool(), "b": torch.ones(1, 9).bool()}),
            "same patch grid",
        ),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
