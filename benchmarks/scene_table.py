"""Where the demo's encoder stands on the shipped scene: one table with the baselines.

    python benchmarks/scene_table.py [--steps 240 960] [--seeds 0] [--dinov2 FILE] [--out scene_table.csv]

Trains the demo's student for each number of steps and seed, and puts it beside raw pixels, random weights, a per-pixel random forest
on ten bands and on RGB, the demo's optical teacher and, with FILE (a timm state dict of vit_small_patch14_dinov2), a DINOv2-S on RGB.
"""
import argparse
from pathlib import Path

import torch

from eo_brew.compare import OnRGB, compare, random_copy, scene_table
from eo_brew.deo import distill_layers
from eo_brew.rasters import open_raster, sample_labels, sample_scene
from eo_brew.runs import S2_GROUND_BANDS, demo_learner, fit_steps
from eo_brew.scene_probe import pixel_forest
from eo_brew.teachers import VFMTeacher, efficientnet_lite_teacher


def trained(steps, seed):
    "The demo's encoder after `steps` steps."
    learn = demo_learner(seed)
    with learn.no_bar(), learn.no_logging(): fit_steps(learn, steps)
    return learn.model.encoder


def dinov2(file):
    "The nine blocks of a DINOv2-S that a later fine-tuning left alone, tokens of 8 pixels."
    return VFMTeacher('vit_small_patch14_dinov2', file, layers=(5, 8), scale=2, patch_size=16, depth=9, drop=('blocks.9.', 'blocks.10.', 'blocks.11.'))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--steps', type=int, nargs='+', default=[240, 960]); p.add_argument('--seeds', type=int, nargs='+', default=[0])
    p.add_argument('--dinov2'); p.add_argument('--out', type=Path, default=Path('scene_table.csv')); p.add_argument('--threads', type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    scene = open_raster(sample_scene(), sensor='sentinel2_l1c', bands=S2_GROUND_BANDS)
    first = demo_learner(args.seeds[0])
    sensor, student = first.dls.sensors['ms'], first.model.encoder
    both = dict(layers=distill_layers(student))
    rows = {'random weights': (random_copy(student, 1), both),
            'optical teacher on RGB': (OnRGB(efficientnet_lite_teacher(layers=(2, 3), scale=2), sensor), dict(layers=(2, 3)))}
    if args.dinov2: rows['DINOv2-S on RGB'] = (OnRGB(dinov2(args.dinov2), sensor), dict(layers=(5, 8)))
    table = scene_table(scene, sample_labels(), rows)
    table += compare({'random forest on RGB': scene.eo.rgb.transpose(2, 0, 1)}, {'scene': lambda rgb, s: _pixels(pixel_forest(rgb, sample_labels(), seed=s))})
    for steps in args.steps:
        for seed in args.seeds:
            table += [r for r in scene_table(scene, sample_labels(), {f'DEO, {steps} steps, seed {seed}': (trained(steps, seed), both)}, forest=False) if r['encoder'] != 'raw pixels']
            table.csv(args.out)
    print(table.markdown('macro_f1'), table.markdown('pixel_macro_f1'), table.markdown('pixel_accuracy'), sep='\n\n')


def _pixels(r): return {'pixel_macro_f1': r.macro_f1, 'pixel_accuracy': r.accuracy}


if __name__ == '__main__': main()
