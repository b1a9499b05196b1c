"""Mean, spread over seeds and mean rank of the lab's arms, as a markdown table.

    python benchmarks/lab_table.py lab.csv [--arms 'optical' 'dual'] [--steps 160]

Ranks are over the columns named under (a) to (d), 1 is best; a group counts once however many
columns it has.
"""

import argparse

import pandas as pd

#: the questions, and the columns that answer them
GROUPS = {
    "(a) scene": ["scene_ms"],
    "(b) chips": ["chips_ms_cls", "chips_ms_mean", "chips_ms_both"],
    "(c) RGB": ["scene_rgb", "chips_rgb_both"],
    "(d) few labels": ["scene_ms_few", "chips_ms_few"],
}
SHOWN = [c for columns in GROUPS.values() for c in columns]


def mean_ranks(means):
    """Mean over the groups of the mean rank over each group's columns, 1 = best."""
    ranks = means[SHOWN].rank(ascending=False, na_option="keep")
    return pd.concat([ranks[c].mean(axis=1) for c in GROUPS.values()], axis=1).mean(axis=1)


def seed_ranks(rows):
    """Mean and spread of every arm's mean rank, taken within each seed that all arms have."""
    counts = rows.groupby("seed").arm.nunique()
    full = counts[counts == rows.arm.nunique()].index
    ranks = [mean_ranks(rows[rows.seed == s].set_index("arm")) for s in full]
    return pd.concat(ranks, axis=1).agg(["mean", "std"], axis=1) if ranks else pd.DataFrame()


def table(rows):
    """One line an arm: rank, then mean and spread of every column."""
    by = rows.groupby("arm")[SHOWN]
    mean, std = by.mean(), by.std()
    text = mean.map("{:.3f}".format) + std.map(lambda s: "" if s != s else f" ± {s:.3f}")
    text.insert(0, "rank", mean_ranks(mean).map("{:.1f}".format))
    text.insert(1, "seeds", by.size())
    return text.loc[mean_ranks(mean).sort_values().index]


def markdown(frame):
    """A frame as a markdown table."""
    head = [frame.index.name or "", *frame.columns]
    body = [[str(i), *map(str, r)] for i, r in zip(frame.index, frame.to_numpy())]
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *body])


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("csv")
    p.add_argument("--arms", nargs="+")
    p.add_argument("--steps", type=int, default=160)
    args = p.parse_args()
    rows = pd.read_csv(args.csv)
    rows = rows[rows.steps.isin([0, args.steps])]
    if args.arms:
        rows = rows[rows.arm.isin(args.arms)]
    print(markdown(table(rows)))
    ranks = seed_ranks(
        rows[rows.arm.isin(rows.groupby("arm").seed.nunique().loc[lambda n: n > 1].index)]
    )
    if len(ranks):
        print("\nranks within each seed:\n" + ranks.sort_values("mean").round(2).to_string())


if __name__ == "__main__":
    main()
