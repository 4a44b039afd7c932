"""Compare kinds of generations where they have moved equally far from A, not at the same alpha.

Far is KL(distribution drawn from || A), after temperature and truncation. No torch.
"""

from __future__ import annotations

import pandas

DOSE = "kl_sampled_a"
STEP = 1.5  # nats: alphas that lie further apart say nothing about what is between them


def dose(cells: pandas.DataFrame) -> pandas.Series:
    """Return the mean distance from A, nats per token, by alpha from 0 on; one kind of contrast."""
    return cells[cells["alpha"] >= 0].groupby("alpha")[DOSE].mean()


def at_distance(cells: pandas.DataFrame, measure: str, distance: float) -> pandas.Series:
    """Return each family's mean of a measure at a distance; empty where no alphas are near it.

    The distance lies between those of two neighbouring alphas. The measure is interpolated between
    its means there, with the same weights in every family, over the draws that both have.
    """
    far = dose(cells)
    beyond = [place for place in range(1, len(far)) if far.iloc[place] >= distance]
    if not beyond or far.iloc[0] > distance:
        return pandas.Series(dtype=float)
    (below, near), (above, further) = list(far.items())[beyond[0] - 1 : beyond[0] + 1]
    if further - near > STEP:
        return pandas.Series(dtype=float)
    weight = (distance - near) / (further - near)
    table = cells.pivot_table(
        index=["family", "pair_id", "sample"], columns="alpha", values=measure
    )
    table = table[[below, above]].dropna()
    mixed = (1 - weight) * table[below] + weight * table[above]
    return mixed.groupby(["family", "pair_id"]).mean().groupby("family").mean()
