"""What a control does as well is unspecific: on made-up sweeps whose truth is known."""

import numpy
import pandas
import pytest

from logit_amplification.evaluation import specificity
from logit_amplification.evaluation.matching import at_distance, dose
from logit_amplification.evaluation.specificity import CONTROLS, PAIR

ALPHAS = {PAIR: (-1, 0, 1, 2, 4)} | dict.fromkeys(CONTROLS, (0, 1, 2, 4))
KL = {PAIR: 0.3, "paraphrase": 0.15, "shuffled": 0.4, "random_direction": 0.6}  # nats per alpha


def study(slopes, families=40, noise=0.3, seed=0):
    """Generations whose attribute grows by so much per nat, by kind of contrast."""
    generator = numpy.random.default_rng(seed)
    rows = []
    for family in range(families):
        start, own = generator.normal(0, 1), generator.normal(0, 0.2)
        for kind, alphas in ALPHAS.items():
            control = kind if kind in CONTROLS[:2] else ""
            for alpha in alphas:
                far = 0.1 + KL[kind] * abs(alpha)
                z = start + (slopes[kind] + own) * KL[kind] * alpha
                z += generator.normal(0, noise) * (alpha != 0)
                name = f"p{family}" + f"~{control}" * bool(control)
                rows.append(
                    {"family": f"f{family}", "pair_id": name, "sample": 0, "alpha": float(alpha)}
                    | {"control": control, "attribute": "+sentiment", "declared": z}
                    | {"arm": kind if kind == "random_direction" else "full"}
                    | {"kl_sampled_a": far + generator.normal(0, 0.02)}
                )
    return specificity.contrasts(pandas.DataFrame(rows))


def at(found, control, distance=0.5):
    (one,) = [c for c in found if c.control == control and c.distance == distance]
    return one


def test_a_contrast_that_grows_more_than_every_control_is_seen():
    found = specificity.compare(study(dict.fromkeys(CONTROLS, 0.0) | {PAIR: 1.0}))
    for control in CONTROLS:
        one = at(found, control)
        assert one.difference.lower > 0 and one.p < 0.01 and one.pair.n == 40
    slopes = specificity.mixed_model(study(dict.fromkeys(CONTROLS, 0.0) | {PAIR: 1.0}))
    assert [slope.control for slope in slopes] == list(CONTROLS)
    assert all(slope.slope.lower > 0 and slope.p < 0.01 for slope in slopes)


def test_what_a_control_does_as_well_is_not_called_specific():
    """All grow alike per nat, though at one alpha they are far apart."""
    alike = study(dict.fromkeys((PAIR, *CONTROLS), 1.0))
    for one in specificity.compare(alike):
        assert one.difference.lower <= 0 <= one.difference.upper or one.p > 0.01
    by_alpha = alike[alike["alpha"] == 1].groupby("kind")["z"].mean()
    assert by_alpha["random_direction"] > by_alpha["paraphrase"] + 0.2


def test_false_alarms_are_as_rare_as_promised():
    """40 studies without a specific effect, three controls each, corrected: about one in twenty."""
    alarms = 0
    for seed in range(40):
        found = specificity.compare(study(dict.fromkeys((PAIR, *CONTROLS), 0.5), seed=seed), [0.5])
        alarms += any(c.p < 0.05 for c in found)
    assert alarms <= 6


def test_a_distance_between_two_alphas_is_interpolated():
    rows = study(dict.fromkeys(CONTROLS, 0.0) | {PAIR: 1.0}, noise=0.0)
    own = rows[rows["kind"] == PAIR]
    far = dose(own)
    half = (far[1.0] + far[2.0]) / 2
    values = own.pivot_table(index="family", columns="alpha", values="z")
    assert at_distance(own, "z", half).to_numpy() == pytest.approx(
        ((values[1.0] + values[2.0]) / 2).to_numpy()
    )


def test_a_distance_that_is_not_reached_is_not_made_up():
    rows = study(dict.fromkeys((PAIR, *CONTROLS), 1.0))
    own = rows[rows["kind"] == PAIR]
    assert at_distance(own, "z", 99.0).empty
    assert at_distance(own, "z", 0.0).empty  # nearer than alpha 0
    jump = own.assign(kl_sampled_a=10 * own["kl_sampled_a"])
    assert at_distance(jump, "z", 9.0).empty  # between two alphas that are 6 nats apart
    assert not [c for c in specificity.compare(rows, [1.0]) if c.control == "paraphrase"]


def test_attributes_of_different_units_are_made_comparable():
    rows = study(dict.fromkeys((PAIR, *CONTROLS), 1.0))
    wide = rows.drop(columns=["kind", "z"]).assign(
        declared=1000 * rows["declared"], attribute="-n_words"
    )
    for found in (specificity.contrasts(wide),):
        own = found[(found["kind"] == PAIR) & found["alpha"].isin([0, -1])]
        assert own["z"].std() == pytest.approx(1.0)
