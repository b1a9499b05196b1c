"""What `eo_brew pretrain --dry-run` says of a few usual cases on this machine, for the page "Choosing".

    python benchmarks/dry_runs.py [--out dry_runs.csv]

Each case is the command of its row, word for word, with `--dry-run --json` added. SAMPLE and OLINDA
stand for the two scenes that come with the package, HEIGHTS for the elevation model of the latter.
"""

import argparse
import csv
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from eo_brew.scenes.open import sample_scene

FILE = Path(__file__).parent.parent / "eo_brew" / "samples" / "measured" / "dry_runs.csv"
CASES = {
    "Sentinel-2, a scene or a few": "SAMPLE --sensor sentinel2_l1c --steps 960",
    "Sentinel-2, many scenes": "SAMPLE --sensor sentinel2_l1c --arch vit_tiny_patch16_224 "
    "--vfm efficientnet_lite2 --bs 8 --epochs 1",
    "Landsat with heights, MSSDF": "OLINDA --sensor landsat7_dn --dsm HEIGHTS --method mssdf "
    "--bs 16 --steps 960",
    "any bands, no optical teacher": "SAMPLE --sensor sentinel2_l1c --vfm none --steps 960",
}


def measured(command: str) -> dict:
    "What a dry run of this command says."
    olinda = sample_scene("olinda")
    places = dict(
        SAMPLE=sample_scene(),
        OLINDA=olinda / "L7_ETMs.tif",
        HEIGHTS=olinda / "olinda_dem_utm25s.tif",
    )
    words = [str(places.get(w, w)) for w in shlex.split(command)]
    run = [sys.executable, "-m", "eo_brew", "pretrain", *words, "--dry-run", "--json"]
    return json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", type=Path, default=FILE)
    a = p.parse_args()
    rows = []
    for have, command in CASES.items():
        said = measured(command)
        row = dict(have=have, command=f"eo_brew pretrain {command}")
        row |= dict(images_per_s=round(said["images_per_s"], 2), batch=said["batch"])
        row |= dict(memory_gb=round(said["memory"] / 1e9, 2), device=said["device"])
        row |= dict(machine=f"{platform.machine()}, {torch.get_num_threads()} threads")
        rows.append(row)
        print(row, flush=True)
    with open(a.out, "w", newline="") as f:
        table = csv.DictWriter(f, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
