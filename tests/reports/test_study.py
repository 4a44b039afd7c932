"""The document of results is written from the study's tables, and says what these say."""

import dataclasses
import re
import shutil

import pytest

import study as study_script
from logit_amplification.errors import BadInput
from logit_amplification.evaluation import stats
from logit_amplification.evaluation.calibration import read_labelled
from logit_amplification.locations import ROOT
from logit_amplification.prompts.files import read_pairs
from logit_amplification.reports.study import document as study_document
from logit_amplification.reports.study import figures as study_figures
from logit_amplification.reports.study import tables as study_tables
from logit_amplification.statistics import intervals, wording

FOLDER = ROOT / "data" / "study"
DOCUMENT = ROOT / "docs" / "RESULTS_ANALYSIS.md"


@pytest.fixture(scope="module")
def study():
    return study_tables.read_study(FOLDER)


@pytest.fixture(scope="module")
def document(study):
    return study_document.write_document(study)


def unwrap(document):
    """A line per sentence or row: line breaks within paragraphs taken out."""
    return re.sub(r"(?<!\n)\n(?![\n|*#!])[ ]*", " ", document)


@pytest.fixture(scope="module")
def unwrapped(document):
    return unwrap(document)


def changed(study, **columns):
    """The study with some columns of its generations replaced, by functions of the rows."""
    frame = study.generations.copy()
    for name, function in columns.items():
        frame[name] = function(frame)
    return dataclasses.replace(study, generations=frame)


def test_the_committed_document_is_what_the_committed_tables_say(document):
    assert DOCUMENT.read_text(encoding="utf-8") == document


def test_the_committed_study_is_whole(study):
    """Every block of the design, every cell once."""
    cells = ["pair_id", "alpha", "sample", "arm"]
    assert not study.generations.duplicated(cells).any()
    rows = stats.treatment(study.generations)
    for block in study_script.BLOCKS:
        pairs = [p for p in read_pairs(block.get("prompts")) if not p.control]
        made = rows[rows["arm"].isin(block["arms"]) & rows["alpha"].isin(block["alphas"])]
        made = made[made["pair_id"].isin({p.id for p in pairs})]
        wanted = len(block["arms"]) * len(block["alphas"]) * block.get("samples", 1) * len(pairs)
        assert len(made) + study.run["errors"] >= wanted
    assert {"shuffled", "paraphrase", "null"} == set(study.generations["control"]) - {""}
    assert rows["family"].nunique() >= 96


def test_a_number_of_the_document_is_that_of_its_rows(study, document):
    """By hand: draws within pairs, pairs within families, then the mean over families."""
    frame = study.generations
    rows = frame[(frame["arm"] == "full") & (frame["alpha"] == 4) & (frame["control"] == "")]
    mean = rows.groupby(["family", "pair_id"])["nll_a"].mean().groupby("family").mean().mean()
    line = next(line for line in document.splitlines() if line.startswith("| NLL under A, nats"))
    cells = [cell.strip() for cell in line.split("|")]
    place = study.alphas().index(4.0) + 2
    assert float(cells[place].split()[0]) == pytest.approx(mean, abs=0.006)


def test_the_readme_quotes_the_document(document):
    """Sentence by sentence, what the document begins with."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    lead = " ".join(document.split("\n\n")[1].split())
    quoted = re.search(r"<!-- found -->(.*?)<!-- end -->", readme)[1]
    points = re.split(r" \d\. ", f" {quoted.strip()}")[1:]
    assert len(points) >= 3
    assert all(point.strip() in lead for point in points)


EFFECT = r"[+-][\d.]+ \[([+-][\d.]+), ([+-][\d.]+)\](.{0,60})"


def sentences(unwrapped):
    """The lines that are no row of a table."""
    return [line for line in unwrapped.splitlines() if not line.startswith("|")]


def test_every_effect_has_its_n_and_says_when_its_interval_contains_zero(unwrapped):
    effects = [found for line in sentences(unwrapped) for found in re.findall(EFFECT, line)]
    assert len(effects) > 12
    for low, high, rest in effects:
        assert re.match(r", n = \d+ (families|pairs)", rest), rest
        if "pairs" not in rest[:14]:
            contains = float(low) <= 0 <= float(high)
            assert ("the interval contains zero" in rest) == contains, (low, high, rest)


def test_every_sentence_about_an_effect_names_its_arm_or_control(unwrapped):
    found = [line for line in sentences(unwrapped) if re.search(EFFECT, line)]
    assert len(found) > 8
    for line in found:
        assert "`" in line, line


def test_other_data_give_other_sentences(study):
    """Were the pairs' attribute what it is at alpha 0, nothing would grow; and the other way."""
    keys = ["pair_id", "sample"]
    start = study.full[study.full["alpha"] == 0].set_index(keys)["declared"]

    def still(frame):
        own = frame.set_index(keys).index.map(start)
        return frame["declared"].where((frame["control"] != "") | (frame["arm"] != "full"), own)

    def growing(frame):
        more = frame["declared"].abs().mean() * frame["alpha"].clip(lower=0) * 50
        pairs = (frame["control"] == "") & (frame["arm"] == "full")
        return frame["declared"] + more.where(pairs, 0.0)

    assert study_tables.verdict(changed(study, declared=still)) == "not shown to be specific"
    other = changed(study, declared=growing)
    assert study_tables.verdict(other) == "specific"
    assert "grows more than under any control" in unwrap(study_document.write_document(other))


def test_what_a_has_before_amplification_is_said_either_way(study):
    text = unwrap(study_document.write_document(study))
    shown = study_tables.a_minus_b(study.own_contrasts).lower > 0
    assert ("the model is not shown to have the declared contrasts" in text) != shown
    own = (study.generations["control"] == "") & (study.generations["arm"] == "full")
    declared = study.generations["declared"]
    more = ((study.generations["alpha"] >= 0) & own).astype(float)
    moved = declared + 100 * declared.std() * more
    other = dataclasses.replace(study, generations=study.generations.assign(declared=moved))
    assert study_tables.a_minus_b(other.own_contrasts).lower > 0
    assert "the model shows the declared contrasts before" in unwrap(
        study_document.write_document(other)
    )


def test_where_model_and_primary_comparison_disagree_is_said(study):
    only_modelled, only_compared = study_tables.disagreements(study)
    compared = {one.control for one in study_tables.primary(study)}
    assert not set(only_modelled) & set(only_compared)
    assert {*only_modelled, *only_compared} <= compared
    text = unwrap(study_document.write_document(study))
    assert text.count("only the mixed model shows more") == bool(only_modelled)
    assert text.count("only the primary comparison shows more") == len(only_compared)


def test_a_scorer_that_errs_as_often_as_it_hits_measures_nothing(study):
    wrong = dataclasses.replace(study, calibration=study.calibration.assign(found="incoherent"))
    assert not study_tables.is_measurable(wrong, "incoherent")
    assert "incoherent answers of `full` is not measurable" in unwrap(
        study_document.write_document(wrong)
    )


def test_without_controls_nothing_is_said_about_specificity(study):
    alone = study.generations[study.generations["control"].isin(["", "null"])]
    alone = alone[alone["arm"] != "random_direction"]
    other = dataclasses.replace(study, generations=alone)
    text = unwrap(study_document.write_document(other))
    assert study_tables.verdict(other) == "not compared" and "Not known: no control" in text
    assert study_figures.draw_specificity(other)


def test_coherent_is_only_what_keeps_both_margins_at_every_alpha(study):
    assert study_tables.stays_coherent(study) in ("no", "undecided")
    calm = changed(study, incoherent=lambda f: 0.0, nll_a=lambda f: 1.0)
    assert study_tables.stays_coherent(calm) == "yes"
    rising = changed(study, incoherent=lambda f: 0.0, nll_a=lambda f: 1.0 + f["alpha"].abs())
    assert study_tables.stays_coherent(rising) == "no"


def test_a_margin_has_four_answers():
    def verdict(low, high):
        return wording.against_margin(intervals.Estimate(0.0, low, high, 9), 0.2)

    assert verdict(-0.1, 0.1) == "equivalent" and verdict(-0.5, 0.1) == "not worse"
    assert verdict(-0.5, -0.3) == "better" and verdict(0.1, 0.3) == "undecided"
    assert verdict(0.3, 0.5) == "worse by more than the margin"
    assert verdict(float("nan"), float("nan")) == "no interval"


def test_a_null_pair_that_moves_is_a_warning(study, document):
    assert "the same text at every alpha" in document and "WARNING" not in document
    moved = changed(study, text=lambda f: f["text"].where(f["alpha"] != 4, "moved"))
    assert "WARNING" in study_document.write_document(moved)


def test_a_missing_table_is_told(tmp_path, study):
    for path in FOLDER.glob("*.*"):
        if path.name != "calibration.csv":
            shutil.copy(path, tmp_path)
    with pytest.raises(BadInput, match=r"calibration\.csv: No such file"):
        study_tables.read_study(tmp_path)


def test_the_study_can_be_made_from_nothing_in_small(tmp_path, tiny_folder):
    """The whole script on the tiny model: two pairs, two tokens; started twice it makes nothing."""
    rows = (ROOT / "data" / "prompt_pairs.csv").read_text(encoding="utf-8").splitlines()
    graded = [row for row in rows if row.startswith(("graded", "refusal"))]
    (tmp_path / "pairs.csv").write_text("\n".join([rows[0], *graded]) + "\n", encoding="utf-8")
    common = {
        "model": str(tiny_folder),
        "quantization": "none",
        "dtype": "float32",
        "prompts": tmp_path / "pairs.csv",
        "max_new_tokens": 3,
        "slots": 8,
        "data_dir": tmp_path / "study",
        "visualizations_dir": tmp_path / "figures",
    }
    brief = [answer for answer in read_labelled() if len(answer["answer"]) < 90]
    blocks = [{n: v for n, v in block.items() if n != "prompts"} for block in study_script.BLOCKS]
    document = tmp_path / "RESULTS.md"
    paths = list(study_script.study(common, blocks, document, brief))
    first = document.read_bytes()
    names = {p.name for p in paths}
    assert {f"{name}.csv" for name in study_tables.TABLES} | {"tokens.html"} <= names
    assert {"specificity.png", "sensitivity.png", "gap_law.png"} <= names
    made = study_tables.read_study(tmp_path / "study")
    assert study_document.write_document(made).encode() == first
    assert "tiny-mistral" in first.decode()
