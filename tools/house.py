"""Draws the packages as a house, from the table in CONTRIBUTING.md and the modules as they are.

python tools/house.py          writes nbs/images/house.svg
python tools/house.py --lines  prints the packages with their modules and lines of code
"""

import re
import sys
from pathlib import Path
from textwrap import fill

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "nbs/images/house.svg"


def read_packages() -> (
    dict
):  # package -> (what it holds, packages that it may import), lowest first
    "Rows of the layers table."
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text[text.index("| package | holds |") :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" `") for cell in line.strip("|").split("|")])
    names = [row[0] for row in rows]
    below = {"-": [], **{f"all {n}": names[:i] for i, n in enumerate(names)}}
    return {
        name: (holds, below[f"all {name}"] if may == "all" else re.findall(r"\w+", may))
        for name, holds, may, _ in rows
    }


def count_lines(package: str) -> dict:  # module -> lines with code or comment
    "Modules of a package."
    return {
        p.stem: sum(bool(line.strip()) for line in p.read_text(encoding="utf-8").splitlines())
        for p in sorted((ROOT / "eo_brew" / package).glob("[a-z]*.py"))
    }


def floors(packages: dict) -> list:  # names, a list a floor, the ground floor first
    "A package stands one floor above the highest that it may import."
    level = {}
    for name, (_, below) in packages.items():
        level[name] = 1 + max((level[b] for b in below), default=-1)
    return [[n for n in packages if level[n] == f] for f in range(max(level.values()) + 1)]


def draw(packages: dict):
    "One box a package, one row a floor."
    import matplotlib
    from matplotlib import pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "house", "svg.fonttype": "none", "font.size": 9})
    rows = floors(packages)
    fig, ax = plt.subplots(figsize=(10, 1.25 * len(rows)), layout="constrained")
    for f, names in enumerate(rows):
        for i, name in enumerate(names):
            width = 10 / len(names)
            ax.add_patch(
                plt.Rectangle(
                    (i * width + 0.05, f + 0.08), width - 0.1, 0.84, fc="#eef3f8", ec="#2b5d8a"
                )
            )
            ax.text((i + 0.5) * width, f + 0.72, name, weight="bold", ha="center", va="center")
            rooms = fill(", ".join(count_lines(name)), round(9 * width))
            ax.text((i + 0.5) * width, f + 0.36, rooms, ha="center", va="center", size=7)
    ax.set(xlim=(0, 10), ylim=(0, len(rows)), xticks=[], yticks=[])
    ax.axis("off")
    ax.set_title("The packages of eo_brew: a floor imports from the floors below it only")
    fig.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    packages = read_packages()
    if "--lines" in sys.argv:
        for name in packages:
            lines = count_lines(name)
            print(
                f"{name:8} {sum(lines.values()):5}  "
                + "  ".join(f"{m} {n}" for m, n in lines.items())
            )
    else:
        draw(packages)
