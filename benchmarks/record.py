"Keep what a benchmark measured for the page of the site: each script does so when asked with `--save`."

import json
import platform
import shlex
import sys
from pathlib import Path

import torch

FILE = Path(__file__).parent.parent / "eo_brew" / "samples" / "measured" / "speed.json"


def record(name, device="cpu", **values):
    "Write `values` under `name`, with the command, the machine's kind and torch's version; other entries stay."
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    machine = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU, {platform.machine()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    )
    command = shlex.join(
        ["python", *("benchmarks/" + Path(a).name if i == 0 else a for i, a in enumerate(sys.argv))]
    )
    kept[name] = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()} | dict(
        command=command, machine=machine, torch=torch.__version__.split("+")[0]
    )
    FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
