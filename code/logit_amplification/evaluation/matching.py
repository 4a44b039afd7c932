"""Compare kinds of contrast at the same distance from A instead of at the same alpha.

The distance is KL(distribution drawn from || A), after temperature and truncation. No torch.
"""

from __future__ import annotations

import pandas

DOSE = "kl_sampled_a"
STEP = 1.5  # nats: no interpolation between alphas further apart than this


def dose(cells: pandas.DataFrame) -> pandas.Series:
    """Return the mean distance from A, nats per token, by alpha from 0 on.

    cells: generations of one kind of contrast.
    """
    return cells[cells["alpha"] >= 0].groupby("alpha")[DOSE].mean()


def at_distance(cells: pandas.DataFrame, measure: str, distance: float) -> pandas.Series:
    """Return each family's mean of a measure at a given distance from A, by interpolation.

    The distance lies between those of two neighbouring alphas. The measure is interpolated between
    its means there, with the same weights in every family, over the draws that both alphas have.
    Empty if the distance is outside the range of the alphas, or if the two alphas are more than
    `STEP` apart.
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
