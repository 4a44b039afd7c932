"""Test whether amplification grows the declared attribute more than controls do.

Four kinds of contrast start from the same A with the same random numbers: A against its B (`pair`),
A against its own paraphrase, A against the B of another pair (`shuffled`), and a random direction
(an arm). They are compared at the same distance from A, KL(distribution drawn from || A). An effect
that a control has as well is not specific. No torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import pandas

from ..statistics.intervals import LEVEL, Estimate, holm, interval, sign_flip
from .matching import at_distance, dose
from .stats import common_draws, treatment

PAIR = "pair"
CONTROLS = ("paraphrase", "shuffled", "random_direction")
DISTANCES = (0.25, 0.5, 1.0)  # nats of KL(sampled || A) beyond that of `full` at alpha 0
PRIMARY_DISTANCE = 0.5
FEWEST_TEXTS, FEWEST_OTHERS = 24, 0.1


class Comparison(NamedTuple):
    """The change of z from alpha 0 in the pairs and in a control, their difference, and its p.

    The p-value is corrected over the controls of one distance.
    """

    control: str
    distance: float
    pair: Estimate
    other: Estimate
    difference: Estimate
    p: float

    @property
    def is_exceeded(self) -> bool:
        """Whether interval and corrected test both show that the pairs change by more."""
        return is_more(self.difference, self.p)


def is_more(found: Estimate, p: float) -> bool:
    """Whether an interval and a corrected test both show a difference above zero."""
    return found.lower > 0 and p < 1 - LEVEL


def by_kind(frame: pandas.DataFrame, arm: str = "full") -> pandas.DataFrame:
    """Return the generations whose pair declares an attribute, with `kind` and `measure`.

    frame: of all arms. arm: that of the pairs and of their derived controls.
    """
    if "declared" not in frame:  # no generation, or a run of before there were attributes
        frame = frame.assign(declared=numpy.nan)
    of_arm = frame[frame["arm"] == arm]
    kinds = {PAIR: treatment(of_arm)} | {name: treatment(of_arm, name) for name in CONTROLS[:2]}
    kinds |= {CONTROLS[2]: treatment(frame[frame["arm"] == CONTROLS[2]])}
    found = pandas.concat([rows.assign(kind=kind) for kind, rows in kinds.items()])
    found = found[(found["attribute"] != "") & found["declared"].notna()]
    return found.assign(measure=found["attribute"].str.extract(r"^[+-](\w+)")[0])


def directions(cells: pandas.DataFrame, alpha: float) -> pandas.Series:
    """Return, per family, 1 where the declared attribute is above alpha 0's, -1 where below, or 0.

    Over the draws that both alphas have. cells: of one kind of contrast.
    """
    ends = (cells[cells["alpha"] == one] for one in (alpha, 0.0))
    both = common_draws(*ends, "declared")
    return numpy.sign(both["one"] - both["other"])


def contrasts(frame: pandas.DataFrame, arm: str = "full") -> pandas.DataFrame:
    """Return the generations that are compared: those of `by_kind` with `z`.

    Only the first draw of each pair, because the controls of the study have one. z: the declared
    attribute in units of its standard deviation over unamplified texts (A's and B's own: alpha 0
    and -1 of that arm), so that attributes with different units can be averaged. An attribute that
    does not vary in these texts, such as refusals of a model that never refuses, has no unit and is
    left out.
    """
    found = by_kind(frame, arm)
    own = found[(found["kind"] == PAIR) & found["alpha"].isin([0, -1])]
    raw = own["declared"] * own["attribute"].str[0].map({"+": 1, "-": -1})
    scale = raw.groupby(own["measure"]).std().replace(0, numpy.nan)
    found = found.assign(z=found["declared"] / found["measure"].map(scale))
    # The id of a control ends in its name: both texts begin as those of one pair.
    pair_ids = found["pair_id"].str.split("~").str[0]
    return found.assign(pair_id=pair_ids)[(found["sample"] == 0) & found["z"].notna()]


def compare(rows: pandas.DataFrame, distances: Sequence[float] = DISTANCES) -> list[Comparison]:
    """Compare the pairs with every control at every distance that both reach.

    rows: from `contrasts`. distances: nats beyond `full` at alpha 0. The p-values are those of
    sign-flip tests over families, with Holm's correction over the controls of one distance.
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
    """Leave out attributes whose unit rests on little data, to check how much depends on them.

    Kept are attributes with at least `FEWEST_TEXTS` unamplified texts, of which at least a share
    `FEWEST_OTHERS` differs from the most common value: if a model refused once, one more refusal is
    many standard deviations.
    """
    own = rows[(rows["kind"] == PAIR) & rows["alpha"].isin([0, -1])]
    values = own.groupby("measure")["declared"]
    others = 1 - values.agg(lambda v: v.abs().value_counts(normalize=True).iloc[0])
    kept = (values.size() >= FEWEST_TEXTS) & (others >= FEWEST_OTHERS)
    return rows[rows["measure"].map(kept)]


class Slope(NamedTuple):
    """How much more z changes per nat for the pairs than for a control, and its p-value."""

    control: str
    slope: Estimate
    p: float


def mixed_model(rows: pandas.DataFrame) -> list[Slope]:
    """Fit z ~ KL x kind with a random intercept and slope for every family.

    KL is the mean of a kind and alpha, beyond that at alpha 0. Returns, for each control, the
    pairs' slope minus the control's (statsmodels' MixedLM by restricted maximum likelihood; Wald
    intervals; p-values with Holm's correction). Empty if there are fewer than three families or no
    controls, or if the fit does not converge. The model does not let families vary in how the pairs
    differ from a control, so its intervals are rather too narrow; `compare` is the test.
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
        warnings.simplefilter("ignore")  # a variance of zero gives a warning
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
