"""The sample scene as the tokens of the lab's encoders see it, side by side: the picture of *Does it work?*.

    python benchmarks/lab_pictures.py ENCODERS OUT.jpg [--names 'random weights, 0 steps' 'optical, 640 steps' ...]

ENCODERS is what `lab.py --encoders` wrote. Each picture is the first three principal components of the joined mid and
late tokens, with colours that agree with the first one's as far as they can.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from eo_brew.app.demo import S2_GROUND_BANDS, ground_tokens
from eo_brew.core.show import show_pca, show_rgb, token_pca
from eo_brew.methods.deo import distill_layers
from eo_brew.scenes.open import open_raster, sample_scene
from eo_brew.weights.save import load_encoder
from lab_arms import VIEW

COLUMNS = 3


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("encoders", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--names", nargs="+", help="files without their ending (default: all)")
    args = p.parse_args()
    names = args.names or sorted(f.stem for f in args.encoders.glob("*.safetensors"))
    scene = open_raster(sample_scene(), sensor="sentinel2_l1c", bands=S2_GROUND_BANDS)
    rows = -(-(len(names) + 1) // COLUMNS)
    fig, axs = plt.subplots(rows, COLUMNS, figsize=(9, 1.75 * rows), layout="constrained")
    show_rgb(scene.eo.rgb, ax=axs.flat[0], title="scene")
    first = None
    for ax, name in zip(axs.flat[1:], names):
        encoder = load_encoder(args.encoders / f"{name}.safetensors")
        tokens = ground_tokens(encoder, scene, distill_layers(encoder), VIEW)
        first = token_pca(tokens) if first is None else first
        show_pca(tokens, reference=first, ax=ax, title=name)
    for ax in axs.flat[len(names) + 1 :]:
        ax.set_axis_off()
    fig.savefig(args.out, dpi=130, pil_kwargs=dict(quality=80))


if __name__ == "__main__":
    main()
