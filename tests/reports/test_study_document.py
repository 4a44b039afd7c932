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
from logit_amplification.reports import study_document, study_tables

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
    pairs = study.generations.loc[study.generations["control"] == "", "pair_id"].nunique()
    for block in study_script.BLOCKS:
        rows = stats.treatment(study.generations)
        rows = rows[rows["arm"].isin(block["arms"]) & rows["alpha"].isin(block["alphas"])]
        wanted = len(block["arms"]) * len(block["alphas"]) * block.get("samples", 1) * pairs
        assert len(rows) >= wanted
    assert set(study.generations["arm"]) == set(study_script.ARM_NAMES)
    assert {"swapped", "shuffled", "paraphrase", "null"} < set(study.generations["control"])


def test_a_number_of_the_document_is_that_of_its_rows(study, document):
    """By hand: the mean over pairs of the means over samples, of one arm at one alpha."""
    frame = study.generations
    rows = frame[
        (frame["arm"] == "api_sentinel") & (frame["alpha"] == 4) & (frame["control"] == "")
    ]
    mean = rows.groupby("pair_id")["nll_a"].mean().mean()
    line = next(line for line in document.splitlines() if line.startswith("| `api_sentinel` |"))
    assert f"{mean:.3g} [" in line


def test_the_readme_quotes_the_document(document):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    quoted = re.search(r"<!-- answer -->\n(.*?)\n<!-- /answer -->", readme, flags=re.DOTALL)[1]
    sentences = re.split(r"\n(?=\* )", quoted)
    assert len(sentences) >= 3
    assert all(sentence in document for sentence in sentences)


EFFECT = r"[+-][\d.e-]+ \[([+-][\d.e-]+), ([+-][\d.e-]+)\](.{0,60})"


def test_every_effect_has_its_n_and_says_when_its_interval_contains_zero(unwrapped):
    effects = re.findall(EFFECT, unwrapped)
    assert len(effects) > 100
    for low, high, rest in effects:
        if not re.match(r", n = \d+ pairs", rest):
            raise AssertionError(rest)
        told = rest.split("|")[0].split("), ")[0].split(" and ")[0]
        contains = float(low) <= 0 <= float(high)
        assert ("the interval contains zero" in told) == contains, (low, high, rest)


def test_every_sentence_about_an_effect_names_its_arm_or_control(unwrapped):
    sentences = [line for line in unwrapped.splitlines() if re.match(r"(?!\|).*" + EFFECT, line)]
    assert len(sentences) > 10
    for line in sentences:
        assert "`" in line, line


def test_other_data_give_other_sentences(study, unwrapped):
    """Were the sentinel's answers as likely as those of `full`, the verdict would be another."""
    verdict = re.compile(r"`api_sentinel` against `full` at alpha 4: (.+?) \(")
    assert verdict.search(unwrapped)[1] == "less likely under A"
    keys = ["pair_id", "alpha", "sample"]
    full = study.arm("full").set_index(keys)["nll_a"]

    def as_full(frame):
        same = frame.set_index(keys).index.map(full)
        return frame["nll_a"].where(frame["arm"] != "api_sentinel", same)

    other = unwrap(study_document.write_document(changed(study, nll_a=as_full)))
    assert verdict.search(other)[1] == "NLL under A, nats per token: not shown to differ"


def test_a_null_pair_that_moves_is_a_warning(study, document):
    assert "the same text at every alpha" in document and "WARNING" not in document
    moved = changed(study, text=lambda f: f["text"].where(f["alpha"] != 4, "moved"))
    assert "WARNING" in study_document.write_document(moved)


def test_a_missing_table_is_told(tmp_path):
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
    document = tmp_path / "RESULTS.md"
    paths = list(study_script.study(common, study_script.BLOCKS, document, brief))
    first = document.read_bytes()
    assert {p.name for p in paths} >= {f"{name}.csv" for name in study_tables.TABLES} | {
        "tokens.html"
    }
    made = study_tables.read_study(tmp_path / "study")
    assert study_document.write_document(made).encode() == first
    assert "tiny-mistral" in first.decode()
