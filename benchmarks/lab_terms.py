"""What the lab has beside the package: a teacher of CLS and tokens at once, and balanced gradients."""

import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from torch import nn

from eo_brew.core.processes import unwrap_model
from eo_brew.losses.coding_rate import SimDINOLoss
from eo_brew.losses.distill import cls_distill_loss, map_distill_loss
from eo_brew.methods.deo import DEOModel
from eo_brew.losses.tokens import DenseSimDINOLoss
from eo_brew.models.encoder import ProjectionHead
from eo_brew.models.teachers import EMATeacher
from eo_brew.train.inputs import ViewsCallback
from eo_brew.views.masking import random_mask
from eo_brew.views.same_ground import same_ground


def run_momentum(steps, half_life=0.05, most=0.996):
    """Momentum that forgets half within a share `half_life` of the run, at most `most`."""
    return min(most, 0.5 ** (1 / (half_life * steps)))


def pairs(student, views, n_global):
    """(view, global view, where its tokens lie there, which of them are inside) of all but a view and itself."""
    for v, maps in enumerate(student):
        for i in range(n_global):
            if v != i:
                where = same_ground(views[v], maps.shape[2:], views[i])
                yield v, i, where, (where.abs() <= 1).all(-1)


def own_places(student, views):
    """(view, itself, where its tokens lie there, which of them were hidden) of the global views."""
    for v, maps in enumerate(student):
        yield v, v, same_ground(views[v], maps.shape[2:], views[v]), views[v]["hidden"]


class TokenBranch(nn.Module):
    """Encoder, head for its CLS, head for its tokens: what the EMA teacher is an average of."""

    def __init__(self, encoder, head, token_head, modality="ms"):
        super().__init__()
        self.encoder, self.modality = encoder, modality
        self.head, self.token_head = head, token_head

    def maps(self, tokens):
        """Projected tokens (B,D,h,w)."""
        return self.token_head(tokens.patches).transpose(1, 2).unflatten(2, tokens.grid)

    def forward(self, x):
        tokens = self.encoder(x, modality=self.modality)
        return self.head(tokens.cls), self.maps(tokens)


class DenseModel(DEOModel):
    """DEO whose multispectral teacher also speaks of tokens."""

    def __init__(self, encoder, *args, token_dim=64, token_hidden=256, cls_too=False, **kwargs):
        super().__init__(encoder, *args, **kwargs)
        head = ProjectionHead(encoder.width, token_dim, hidden=token_hidden)
        self.student = TokenBranch(encoder, self.student.head, head, self.modality)
        self.teacher, self.cls_too = EMATeacher(self.student), cls_too

    def forward(self, views):
        """As DEO, and 'tokens': a map (B,D,h,w) of every view."""
        n, glob, loc = len(views[0][self.modality]), views[: self.n_global], views[self.n_global :]
        groups = [self._tokens(glob, self.layers)] + ([self._tokens(loc)] if loc else [])
        out = {"tokens": [m for g in groups for m in self.student.maps(g[self.modality]).split(n)]}
        if "hidden" in glob[0]:
            x = torch.cat([v["half"] for v in glob])
            out["hidden"] = self.student.maps(self.encoder(x, self.modality)).split(n)
        if self.cls_too:
            cls = torch.cat([g[self.modality].cls for g in groups])
            out["ms"] = self.student.head(cls).unflatten(0, (-1, n))
        if self.distill_from:
            out |= self._optical(groups, n)
        return out

    def _optical(self, groups, n):
        """Predictions of the optical teacher, as DEO makes them."""

        def cls(m):
            return torch.cat([g[m].cls for g in groups])

        out = {
            "cls": {m: self.heads["cls"](cls(m)).unflatten(0, (-1, n)) for m in self.distill_from}
        }
        for i, k in enumerate(("mid", "late")):
            said = {m: groups[0][m].layers[i] for m in self.distill_from}
            out[k] = {
                m: self.heads[k](t.patches).transpose(1, 2).unflatten(2, t.grid)
                for m, t in said.items()
            }
        return out


class DenseTargets(Callback):
    """Put the EMA teacher's CLS and token maps of the global views into `yb`, with all views."""

    order = MixedPrecision.order + 4

    def __init__(self, n_global, source="ms"):
        self.n_global, self.source = n_global, source

    def before_batch(self):
        views = self.xb[0]
        whole = torch.cat([v[self.source] for v in views[: self.n_global]])
        cls, maps = unwrap_model(self.model).teacher(whole)
        n = len(whole) // self.n_global
        said = {"ms": cls.unflatten(0, (-1, n)), "tokens": maps.split(n), "views": views}
        self.learn.yb = ({"samples": whole.new_empty(n, 0), **said},)


class DropBands(Callback):
    """Hide bands of the local views from the student: their values become the band's mean."""

    order = ViewsCallback.order + 1

    def __init__(self, share, source="ms", seed=0):
        self.share, self.source = share, source
        self.generator = torch.Generator().manual_seed(seed)

    def before_batch(self):
        mean = unwrap_model(self.model).encoder.normalize[self.source].mean
        for view in self.xb[0][self.views.views.n_global :]:
            x = view[self.source]
            hidden = torch.rand(*x.shape[:2], 1, 1, generator=self.generator) < self.share
            view[self.source] = torch.where(hidden, mean, x)


class HideTokens(Callback):
    """Give global views a second look ('half'), a share of whose patches ('hidden') shows the bands' means."""

    order = ViewsCallback.order + 1

    def __init__(self, share, source="ms", seed=0):
        self.share, self.source = share, source
        self.generator = torch.Generator().manual_seed(seed)

    def before_batch(self):
        encoder = unwrap_model(self.model).encoder
        mean, p = encoder.normalize[self.source].mean, encoder.patch_size
        for view in self.xb[0][: self.views.views.n_global]:
            x = view[self.source]
            b, h, w = len(x), x.shape[2] // p, x.shape[3] // p
            hidden = random_mask(b, h * w, self.share, generator=self.generator).view(b, h, w)
            over = hidden.repeat_interleave(p, 1).repeat_interleave(p, 2)[:, None]
            view |= {"hidden": hidden, "half": torch.where(over, mean, x)}


class TwoTeacherLoss(nn.Module):
    """Weighted sum of L_MS ('ms'), the same for tokens ('tokens', 'hidden') and the 'optical' terms.

    Terms of weight 0 are left out.

    With weights of 1 for 'ms' and alpha for 'optical' it is DEO's loss; `terms` keep their graph.
    """

    def __init__(self, weights, cls_weight=1.0, eps=0.05):
        super().__init__()
        self.weights, self.cls_weight = dict(weights), cls_weight
        self.ms, self.token, self.terms, self.parts = SimDINOLoss(eps), DenseSimDINOLoss(), {}, {}

    def forward(self, pred, target):
        """What the model returns and what the target callbacks put together -> scalar."""
        self.terms, self.parts = {}, {}
        if "ms" in pred:
            self.terms["ms"] = self.ms(pred["ms"], target["ms"])
            self.parts |= self.ms.parts
        if "tokens" in pred and self.weights["tokens"]:
            between = list(pairs(pred["tokens"], target["views"], len(target["tokens"])))
            self.terms["tokens"] = self.token(pred["tokens"], target["tokens"], between)
            self.parts |= {f"token_{k}": v for k, v in self.token.parts.items()}
        if "hidden" in pred:
            within = list(own_places(pred["hidden"], target["views"]))
            self.terms["hidden"] = self.token(pred["hidden"], target["tokens"], within)
            self.parts |= {f"hidden_{k}": v for k, v in self.token.parts.items()}
        if "cls" in pred:
            self.terms["optical"] = self.optical(pred, target)
        self.parts = {k: v.detach() for k, v in self.parts.items()}
        return sum(self.weights[k] * t for k, t in self.terms.items())

    def optical(self, pred, target):
        """Half of cls_weight L_cls + L_patch."""
        l_cls = torch.stack(
            [cls_distill_loss(s, target["cls"]) for s in pred["cls"].values()]
        ).mean()
        patch = [map_distill_loss(s, target[k]) for k in ("mid", "late") for s in pred[k].values()]
        l_patch = torch.stack(patch).mean()
        self.parts |= dict(cls=l_cls, patch=l_patch)
        return (self.cls_weight * l_cls + l_patch) / 2


class BalanceGradients(Callback):
    """Measure each term's gradient norm at the trunk; on demand keep them at fixed shares.

    `shares` is term -> wanted norm relative to the optical term's, e.g. {'ms': .3}; None only
    measures.
    The weighted norms are kept in `rows`.
    """

    order = MixedPrecision.order + 10

    def __init__(self, shares=None, every=20, keep=0.5):
        self.shares, self.every, self.keep, self.rows = shares, every, keep, []

    def before_backward(self):
        crit = self.learn.loss_func
        if not self.training or self.train_iter % self.every or len(crit.terms) < 2:
            return
        trunk = list(unwrap_model(self.model).encoder.trunk.blocks.parameters())
        norms = {k: self.norm(t, trunk) for k, t in crit.terms.items()}
        for k, share in (self.shares or {}).items():
            wanted = share * norms["optical"] * crit.weights["optical"] / max(norms[k], 1e-9)
            keep = self.keep if self.rows else 0.0
            crit.weights[k] = keep * crit.weights[k] + (1 - keep) * wanted
        self.rows.append({k: crit.weights[k] * n for k, n in norms.items()})
        self.learn.loss_grad = sum(crit.weights[k] * t for k, t in crit.terms.items())

    def norm(self, term, params):
        """Norm of a term's gradient by all of `params`."""
        grads = torch.autograd.grad(term, params, retain_graph=True, allow_unused=True)
        return float(torch.stack([g.norm() for g in grads if g is not None]).norm())
