"""Is it the contrast that grows? The declared attribute under amplification and under controls.

Four kinds of contrast start from the same A with the same random numbers: A against its B (`pair`),
against its own paraphrase, against the B of another pair (`shuffled`), and in a random direction
(an arm). They are compared where they have moved equally far from A: at the same KL of the
distribution that tokens are drawn from. What a control does as well is unspecific. No torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import pandas

from ..statistics.intervals import Estimate, holm, interval, sign_flip
from .matching import at_distance, dose
from .stats import treatment

PAIR = "pair"
CONTROLS = ("paraphrase", "shuffled", "random_direction")
DISTANCES = (0.25, 0.5, 1.0)  # nats of KL(sampled || A) beyond that of `full` at alpha 0
PRIMARY_DISTANCE = 0.5
FEWEST_TEXTS, FEWEST_OTHERS = 24, 0.1


class Comparison(NamedTuple):
    """The pairs' change of z from alpha 0, a control's, and their difference; p is corrected."""

    control: str
    distance: float
    pair: Estimate
    other: Estimate
    difference: Estimate
    p: float


def contrasts(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return the generations that take part, with `kind` and `z`; the frame is a whole study's.

    The first draw of each pair, for the controls have one. z: the declared attribute in units of
    its standard deviation over unamplified texts (A's and B's own: alpha 0 and -1 of `full`), so
    that attributes of different units can be averaged. What no such text varies in, as refusals of
    a model that never refuses, has no unit and is left out.
    """
    full = frame[frame["arm"] == "full"]
    kinds = {PAIR: treatment(full)} | {name: treatment(full, name) for name in CONTROLS[:2]}
    kinds |= {CONTROLS[2]: treatment(frame[frame["arm"] == CONTROLS[2]])}
    found = pandas.concat([rows.assign(kind=kind) for kind, rows in kinds.items()])
    found = found[(found["attribute"] != "") & found["declared"].notna()]
    found = found.assign(measure=found["attribute"].str.extract(r"^[+-](\w+)")[0])
    own = found[(found["kind"] == PAIR) & found["alpha"].isin([0, -1])]
    raw = own["declared"] * own["attribute"].str[0].map({"+": 1, "-": -1})
    scale = raw.groupby(own["measure"]).std().replace(0, numpy.nan)
    found = found.assign(z=found["declared"] / found["measure"].map(scale))
    # A control's pair ids carry its name: the texts begin as those of one pair.
    pair_ids = found["pair_id"].str.split("~").str[0]
    return found.assign(pair_id=pair_ids)[(found["sample"] == 0) & found["z"].notna()]


def compare(rows: pandas.DataFrame, distances: Sequence[float] = DISTANCES) -> list[Comparison]:
    """Compare the pairs with every control at every distance that both reach; rows: `contrasts`.

    The p-values are of sign-flip tests within families, corrected over the controls of a distance.
    """
    of_kind = dict(list(rows.groupby("kind")))
    if PAIR not in of_kind:
        return []
    own = of_kind[PAIR]
    start = own[own["alpha"] == 0].groupby(["family", "pair_id"])["z"].mean()
    start = start.groupby("family").mean()
    found = []
    for distance in distances:
        target = dose(own).loc[0.0] + distance
        moved = at_distance(own, "z", target) - start
        at = {n: at_distance(of_kind[n], "z", target) - start for n in CONTROLS if n in of_kind}
        sides = {
            n: pandas.concat({"pair": moved, "other": o}, axis=1).dropna() for n, o in at.items()
        }
        sides = {name: both for name, both in sides.items() if len(both)}
        apart = {name: both["pair"] - both["other"] for name, both in sides.items()}
        for (name, both), p in zip(
            sides.items(), holm([sign_flip(values) for values in apart.values()]), strict=True
        ):
            estimates = map(interval, (both["pair"], both["other"], apart[name]))
            found.append(Comparison(name, distance, *estimates, p))
    return found


def well_measured(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Leave out the attributes whose unit rests on little: a check of how much hangs on them.

    Kept is what has `FEWEST_TEXTS` unamplified texts, of which `FEWEST_OTHERS` at least are not the
    commonest value: of a model that refused once, one more refusal is many standard deviations.
    """
    own = rows[(rows["kind"] == PAIR) & rows["alpha"].isin([0, -1])]
    values = own.groupby("measure")["declared"]
    others = 1 - values.agg(lambda v: v.abs().value_counts(normalize=True).iloc[0])
    kept = (values.size() >= FEWEST_TEXTS) & (others >= FEWEST_OTHERS)
    return rows[rows["measure"].map(kept)]


class Slope(NamedTuple):
    """By how much z changes per nat, more for the pairs than for a control; and its p-value."""

    control: str
    slope: Estimate
    p: float


def mixed_model(rows: pandas.DataFrame) -> list[Slope]:
    """Fit z ~ KL x kind with a random intercept and slope of every family.

    KL is the mean of a kind and alpha, beyond alpha 0. Returns, by control, the pairs' slope minus
    that control's (statsmodels' MixedLM by restricted maximum likelihood; Wald intervals and
    p-values, corrected by Holm's method). Empty where the fit does not converge. Families that
    differ in what sets them apart from a control are not in the model: its intervals are rather too
    narrow, and `compare` is the test.
    """
    from statsmodels.formula.api import mixedlm

    rows = rows[rows["alpha"] >= 0]
    far = {kind: dose(cells) for kind, cells in rows.groupby("kind")}
    swept = zip(rows["kind"], rows["alpha"], strict=True)
    kl = [far[kind][alpha] - far[kind][0.0] for kind, alpha in swept]
    rows = rows.assign(kl=kl)
    known = [name for name in CONTROLS if (rows["kind"] == name).any()]
    if not known or PAIR not in far or rows["family"].nunique() < 3:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of zero is told as a warning
        fitted = mixedlm(
            f"z ~ kl * C(kind, Treatment('{PAIR}'))",
            rows,
            groups=rows["family"],
            re_formula="~kl",
        ).fit(method=["lbfgs", "powell"])
    if not fitted.converged:
        return []
    bounds, n = fitted.conf_int(), rows["family"].nunique()
    terms = {name: f"kl:C(kind, Treatment('{PAIR}'))[T.{name}]" for name in known}
    chances = holm([fitted.pvalues[term] for term in terms.values()])
    return [
        Slope(
            name,
            Estimate(-fitted.params[term], -bounds.loc[term, 1], -bounds.loc[term, 0], n),
            p,
        )
        for (name, term), p in zip(terms.items(), chances, strict=True)
    ]
