"""The texts say what the numbers say, and no more."""

import re

import pytest

from logit_amplification.logits.vocabulary import MEASURES
from logit_amplification.reports import contact_sheet, report
from logit_amplification.reports.figures import gallery, style
from logit_amplification.statistics import wording
from made_records import make_sweep


def text_of(values, **options):
    run, records = make_sweep(values, **options)
    return "\n".join(report.recommendations(run, records)), run, records


def test_a_steady_likelihood_is_recommended_up_to_the_largest_alpha():
    text, *_ = text_of({"a": [1, 1.02], "b": [1, 1.0], "c": [1, 0.98], "null": [1, 1]})
    assert "Alpha 1: the text is about as likely under A" in " ".join(text.split())
    assert "worse" not in text.split("Incoherent")[0]


def test_a_falling_likelihood_ends_the_recommendation():
    rows = {
        name: [1, 1 + jitter, 4 + jitter]
        for name, jitter in zip("abc", (0, 0.02, -0.02), strict=True)
    }
    text, *_ = text_of(rows, alphas=(0.0, 0.5, 1.0))
    told = " ".join(text.split())
    assert "Alpha 0.5: the text is about as likely" in told
    assert "Alpha 1: the text is less likely under A by more than the margin" in told
    assert "+3.000 [" in told


def test_what_is_neither_shown_nor_ruled_out_is_undecided():
    text, *_ = text_of({"a": [1, 1.5], "b": [1, 1.0], "c": [1, 0.9]})
    assert "Alpha 1: undecided" in " ".join(text.split())


def test_a_null_pair_that_moves_is_a_warning():
    _, run, records = text_of({"a": [1, 1], "b": [1, 1], "null": [1, 1]})
    assert "as it must" in "\n".join(report.recommendations(run, records))
    next(r for r in records if r["control"] == "null" and r["alpha"] == 1)["token_ids"] = [1, 2, 3]
    assert "WARNING" in "\n".join(report.recommendations(run, records))


def test_negative_alphas_are_no_amplification():
    """What happens below alpha 0 must not be told as if it were at "the largest alpha" or "on"."""
    rows = {"a": [3, 1, 1.02], "b": [3.1, 1, 1.0], "c": [2.9, 1, 0.98], "null": [1, 1, 1]}
    text, *_ = text_of(rows, alphas=(-1.0, 0.0, 0.5))
    assert "Alpha 0.5: the text is about" in " ".join(text.split()) and "From alpha 0.5 on" in text
    text, *_ = text_of({name: row[:2] for name, row in rows.items()}, alphas=(-1.0, 0.0))
    assert text.count("No alpha above 0 was swept.") == 2


def test_an_arm_of_which_nothing_came_to_an_end_is_told():
    run, records = make_sweep({"a": [1, 2], "b": [1, 2]})
    failed = make_sweep({"a": [1, 2], "b": [1, 2]}, arm="plausible")[1]
    for record in failed:
        record |= {"finish_reason": "error", "error": "NaN"}
    text = "\n".join(report.detailed_report(run, records + failed))
    assert "Only controls finished in this arm" in text
    assert "nothing can be said" in "\n".join(report.recommendations(run, failed))


def test_an_interval_apart_from_zero_that_the_correction_does_not_bear_out_is_told():
    row = {"mean": 0.2, "lower": 0.03, "upper": 0.3, "n": 30}
    assert wording.format_test(row, 0.26).endswith("p = 0.26, not significant after correction")
    assert wording.format_test(row, 0.01).endswith("p = 0.01")
    assert wording.format_p_value(float("nan")) == "no test"


def test_an_interval_that_contains_zero_is_said_to():
    text, *_ = text_of({"a": [1, 2], "b": [1, 0], "c": [1, 1]}, measure="log_ratio_a_b")
    told = " ".join(text.split())
    assert (
        "log p_A - log p_B, nats per token at alpha 1, +0.0 [-2.5, +2.5], n = 3 families; the"
        in told
    )


def test_every_sentence_with_an_effect_has_its_n():
    text, *_ = text_of({"a": [1, 2], "b": [1, 2], "null": [1, 1]})
    effects = re.findall(r"[+-][\d.]+ \[.*?\](.{14})", " ".join(text.split()))
    assert len(effects) > 3
    for rest in effects:
        assert re.match(r", n = \d+ famil", rest), rest


@pytest.mark.parametrize("values", [{"null": [1, 1]}, {"a": [1, 2]}, {"a": [1], "b": [1]}])
def test_small_sweeps_get_a_text_too(values):
    alphas = (0.0, 1.0)[: len(next(iter(values.values())))]
    text, run, records = text_of(values, alphas=alphas)
    assert text and report.detailed_report(run, records)


def test_the_detailed_report_gives_every_arm_measure_and_pair():
    run, records = make_sweep({"a": [1, 2], "b": [1, 2], "null": [1, 1]})
    records += make_sweep({"a": [1, 2], "b": [1, 2], "null": [1, 1]}, arm="plausible")[1]
    text = "\n".join(report.detailed_report(run, records))
    assert "ARM full" in text and "ARM plausible" in text
    for description in (MEASURES[name].described for name in report.REPORTED):
        assert text.count(description[1:]) >= 2
    assert text.count("\n  a ") == 2 and text.count("\n  null ") == 2


def test_the_csv_is_what_the_contract_names(tmp_path):
    run, records = make_sweep({"a": [1, 2], "b": [1, 2], "null": [1, 1]})
    csv, *_ = report.write_reports(tmp_path, run, records)
    header = csv.read_text().splitlines()[0].split(",")
    assert header[:6] == ["arm", "category", "alpha", "n", "n_pairs", "n_families"]
    assert {"nll_a_mean", "nll_a_lower", "nll_a_upper"} < set(header)


def test_a_run_of_an_earlier_version_with_fewer_measures_gets_its_report():
    run, records = make_sweep({"a": [1, 2], "b": [1, 2]})
    for record in records:
        del record["measures"]["log_ratio_a_b"]
    text = "\n".join(report.detailed_report(run, records))
    assert MEASURES["log_ratio_a_b"].described[1:] not in text
    assert MEASURES["nll_b"].described[1:] in text


def two_arms():
    values = {"a": [1, 2, 3], "b": [1, 2, 4], "c": [2, 2, 3], "null": [1, 1, 1]}
    run, records = make_sweep(values, alphas=(0.0, 1.0, 2.0))
    return run, records + make_sweep(values, alphas=(0.0, 1.0, 2.0), arm="plausible")[1]


PARTS = {
    "one cell is missing": lambda r: (
        (r["pair_id"], r["alpha"], r["arm"]) != ("b", 1.0, "plausible")
    ),
    "one pair alone got to the largest alpha": lambda r: r["alpha"] < 2 or r["pair_id"] == "a",
    "only the null pair got to the largest alpha": lambda r: r["alpha"] < 2 or bool(r["control"]),
    "an arm has its null pair alone": lambda r: r["arm"] == "full" or bool(r["control"]),
    "nothing finished at alpha 0": lambda r: r["alpha"] > 0,
}


@pytest.mark.parametrize("part", PARTS)
def test_an_unfinished_sweep_has_its_texts_and_figures(part, tmp_path):
    """`runs.py artifacts` promises them of any run."""
    run, records = two_arms()
    records = [record for record in records if PARTS[part](record)]
    assert report.recommendations(run, records) and report.detailed_report(run, records)
    assert contact_sheet.write_page(run, records, ["arms"])
    assert style.save_figures(gallery.draw_all(run, records), tmp_path)


def test_few_pairs_are_said_to_be_few():
    few, enough = ({f"p{n}": [1, 2] for n in range(count)} for count in (4, 12))
    told = report.recommendations(*make_sweep(few))
    assert any("TOO FEW PAIRS" in line for line in told)
    assert "at least 12 pairs" in " ".join(told) and "--samples 4" not in " ".join(told)
    assert "TOO FEW" not in " ".join(report.recommendations(*make_sweep(enough)))


@pytest.mark.parametrize("failed", [lambda r: r["alpha"] == 2, lambda r: r["arm"] == "full"])
def test_generations_that_ended_with_an_error_leave_the_rest(failed, tmp_path):
    run, records = two_arms()
    for record in records:
        if failed(record) and not record["control"]:
            record |= {"finish_reason": "error", "error": "NaN"}
    assert report.recommendations(run, records) and report.detailed_report(run, records)
    assert style.save_figures(gallery.draw_all(run, records), tmp_path)


def test_the_count_beside_an_interval_of_a_category_is_that_of_its_families():
    run, records = make_sweep({"a1": [1, 2], "a2": [1, 3], "a3": [1, 2]})
    for record in records[:4]:
        record["family"] = "f"
    lines = report.detailed_report(run, records)
    line = next(line for line in lines if line.startswith("  category of a") and "alpha 1 " in line)
    assert line.count("n = 2 families") == 2
