"""What the parts of MSSDF do on the shipped Sentinel-2 scene at a very small scale: the table of the tutorial.

    python benchmarks/mssdf_ablation.py OUT.jsonl [--steps 60] [--seeds 0 1 2]

One line a run: variant, seed, macro-F1 and accuracy of a linear probe of the frozen tokens on columns never trained on,
effective rank of the tokens, first and last value of every loss part (means of ten steps). Runs already in OUT are kept.
"""
import argparse, json, time
from pathlib import Path

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.torch_core import set_seed

from eo_brew.data import eo_dataloaders
from eo_brew.encoders import create_encoder
from eo_brew.monitors import effective_rank
from eo_brew.mssdf import mssdf_learner
from eo_brew.rasters import open_raster, sample_labels, sample_scene
from eo_brew.runs import S2_GROUND_BANDS
from eo_brew.scene_probe import scene_probe

OFF = dict(align=0., hsic=0., modality=0.)
VARIANTS = {
    'MSSDF': {}, 'random masks, reconstruction only': dict(masking='random', q=None, weights=OFF), 'random masks': dict(masking='random'),
    'masks not across modalities': dict(q=None), 'no alignment': dict(weights=dict(align=0.)), 'no HSIC': dict(weights=dict(hsic=0.)),
    'no modality classification': dict(weights=dict(modality=0.)), 'alignment and HSIC on the same features': dict(split=False),
}


class Steps(Callback):
    "Keep the loss parts of every step; schedules end at `n` steps."
    order = 95
    def __init__(self, n): self.n, self.rows = n, []
    def after_batch(self):
        self.rows.append({k: float(v) for k, v in self.learn.loss_func.parts.items()})
        self.learn.pct_train = min(1., self.train_iter/self.n)
        if self.train_iter >= self.n: raise CancelFitException()


def run(variant, seed, steps, size=48, bs=16):
    set_seed(seed)
    start = time.process_time()
    dls = eo_dataloaders(sample_scene(), sensor='sentinel2_l1c', bands=S2_GROUND_BANDS, size=size, bs=bs, seed=seed, stride=24, split='stripes', device='cpu')
    enc = create_encoder('vit_tiny_patch16_224', {'ms': dls.sensors['ms'], 'rgb': 'rgb'}, img_size=size, patch_size=8, embed_dim=96, depth=4, num_heads=3, modality_embed=True)
    row = dict(variant=variant, seed=seed, steps=0)
    if variant != 'random encoder':
        log = Steps(steps)
        learn = mssdf_learner(dls, enc, lr=1e-3, decoder_depths=(1, 2), cbs=[log], **VARIANTS[variant])
        with learn.no_bar(), learn.no_logging(): learn.fit(1000)
        mean = lambda rows: {k: round(sum(r[k] for r in rows)/len(rows), 5) for k in rows[0]}
        row.update(steps=steps, first=mean(log.rows[:10]), last=mean(log.rows[-10:]))
    enc.eval()
    with torch.no_grad(): tokens = enc(dls.train.one_batch()[0]['ms']).patches
    scene = open_raster(sample_scene(), sensor='sentinel2_l1c', bands=S2_GROUND_BANDS)
    probe = scene_probe(enc, scene, sample_labels(), window=size, seed=0)
    return {**row, 'macro_f1': round(probe.macro_f1, 4), 'accuracy': round(probe.accuracy, 4), 'rank': round(float(effective_rank(tokens.flatten(0, 1))), 2),
            'cpu_seconds': round(time.process_time() - start, 1)}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('out', type=Path)
    ap.add_argument('--steps', type=int, default=60)
    ap.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    a = ap.parse_args()
    done = {(r['variant'], r['seed']) for r in map(json.loads, a.out.read_text().splitlines())} if a.out.exists() else set()
    for seed in a.seeds:
        for variant in ('random encoder', *VARIANTS):
            if (variant, seed) in done: continue
            row = run(variant, seed, a.steps)
            with a.out.open('a') as f: f.write(json.dumps(row) + '\n')
            print(row, flush=True)


if __name__ == '__main__': main()
