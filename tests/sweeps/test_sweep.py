"""The sweep: what it makes, what it keeps, what it makes again; its journal and its results."""

import json
import math

import pytest
import torch

from decoding import PAIRS, chat
from logit_amplification.engine.batch import step
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.forward import text_nll
from logit_amplification.engine.reference import sample_amplified
from logit_amplification.errors import BadInput
from logit_amplification.evaluation.outcomes import score, usual_nll
from logit_amplification.logits.amplification import amplify
from logit_amplification.logits.vocabulary import PER_TOKEN
from logit_amplification.prompts.chat import encode_pairs
from logit_amplification.prompts.controls import with_controls
from logit_amplification.prompts.files import read_pairs
from logit_amplification.prompts.pairs import PromptPair
from logit_amplification.records.files import read_results, write_results
from logit_amplification.records.journal import Journal, run_id
from logit_amplification.sweeps.sweep import run_configuration, sweep


def test_every_pair_alpha_and_sample_is_there_in_the_order_of_the_plan(tiny, settings):
    done = sweep(tiny, PAIRS, settings)
    cells = [(r["pair_id"], r["alpha"], r["sample"]) for r in done.records]
    assert cells == [(p.id, a, s) for p in PAIRS for a in (0.0, 0.5, 2.0) for s in (0, 1)]


def test_a_record_holds_what_the_contract_names(tiny, settings):
    for record in sweep(tiny, PAIRS, settings).whole_records():
        assert record["n_tokens"] == len(record["token_ids"])
        assert record["finish_reason"] in ("eos", "length")
        assert set(record["per_token"]) == {"token", *PER_TOKEN}
        assert "".join(record["per_token"]["token"]).startswith(record["text"])
        assert {len(values) for values in record["per_token"].values()} == {record["n_tokens"]}
        for name in PER_TOKEN:
            values = record["per_token"][name]
            mean = sum(values) / len(values)
            assert record["measures"][name] == pytest.approx(mean, rel=1e-5, abs=1e-9)
        assert {"n_characters", "distinct_1", "distinct_2", "repeated_4gram_share"} < set(
            record["measures"]
        )
        assert record["measures"]["n_characters"] == len(record["text"])


def test_alpha_reaches_the_text_but_not_the_null_pair(tiny, settings):
    texts = {}
    for record in sweep(tiny, PAIRS, settings).records:
        texts.setdefault((record["pair_id"], record["sample"]), set()).add(record["text"])
    assert len(texts["null-control", 0]) == 1 and len(texts["null-control", 1]) == 1
    assert len(texts["long", 0]) > 1


def test_a_second_sweep_makes_nothing_and_returns_the_same(tiny, settings, generated):
    first = sweep(tiny, PAIRS, settings)
    second = sweep(tiny, PAIRS, settings)
    assert [len(cells) for cells in generated] == [18, 0]
    assert second.records == first.records and second.run == first.run


def test_added_alphas_samples_and_pairs_make_only_what_is_new(tiny, settings, generated):
    sweep(tiny, PAIRS[1:], settings)
    sweep(tiny, PAIRS, settings)
    sweep(tiny, PAIRS, settings.model_copy(update={"alphas": (0.0, 0.5, 2.0, 4.0)}))
    sweep(tiny, PAIRS, settings.model_copy(update={"samples": 3}))
    assert [len(cells) for cells in generated] == [12, 6, 6, 9]


def test_a_pair_with_another_text_is_made_again(tiny, settings, generated):
    sweep(tiny, PAIRS, settings)
    changed = [PromptPair("short", "y", chat("Yes!"), chat("No?")), PAIRS[0], PAIRS[2]]
    sweep(tiny, changed, settings)
    assert {cell.pair_id for cell in generated[1]} == {"short"} and len(generated[1]) == 6


def test_a_renamed_category_is_taken_over_without_making_anything(tiny, settings, generated):
    sweep(tiny, PAIRS, settings)
    renamed = [PromptPair("short", "new name", chat("Yes?"), chat("No?"))]
    records = sweep(tiny, renamed, settings).records
    assert generated[1] == [] and {r["category"] for r in records} == {"new name"}


def test_rerun_makes_exactly_that_alpha_again(tiny, settings, generated):
    first = sweep(tiny, PAIRS, settings)
    again = sweep(tiny, PAIRS, settings, rerun=[0.5])
    assert {cell.alpha for cell in generated[1]} == {0.5} and len(generated[1]) == 6
    assert again.records == first.records


def test_rerun_of_an_alpha_outside_the_sweep_is_refused(tiny, settings):
    with pytest.raises(BadInput, match=r"RERUN = 7; allowed: alphas of the sweep"):
        sweep(tiny, PAIRS, settings, rerun=[7.0])


def test_the_rule_that_is_given_is_the_rule_that_runs(tiny, settings, generated):
    """Editing the notebook's cell is another experiment, under a name of its own."""

    def only_b(logits_a, logits_b, alpha):
        return logits_b + 0 * alpha

    ours = sweep(tiny, PAIRS, settings)
    edited = sweep(tiny, PAIRS, settings, rule=only_b)
    assert [len(cells) for cells in generated] == [18, 18]
    assert edited.run["id"] != ours.run["id"]
    plain_b = [r for r in edited.records if r["pair_id"] == "long"]
    assert len({r["text"] for r in plain_b if r["sample"] == 0}) == 1  # alpha does nothing in it
    assert edited.records != ours.records
    assert sweep(tiny, PAIRS, settings).records == ours.records


def test_a_loop_of_your_own_makes_the_cells_that_the_engine_makes(tiny, settings):
    by_engine = sweep(tiny, PAIRS, settings)
    by_loop = sweep(tiny, PAIRS, settings, loop=sample_amplified)
    assert by_loop.run["id"] != by_engine.run["id"]
    for ours, theirs in zip(by_engine.records, by_loop.records, strict=True):
        assert ours["token_ids"] == theirs["token_ids"]


def test_a_loop_of_your_own_has_no_other_arms(tiny, settings):
    arms = settings.model_copy(update={"arms": ("full", "plausible")})
    with pytest.raises(BadInput, match="allowed: full"):
        sweep(tiny, PAIRS, arms, loop=sample_amplified)


def test_what_can_change_a_token_changes_the_name_of_the_run(tiny, settings):
    def named(step="packed", **given):
        rule = given.pop("rule", amplify)
        changed = settings.model_copy(update=given)
        return run_id(run_configuration(tiny, changed, step=step, rule=rule))

    names = {named()}
    changes = {"temperature": 0.5, "top_p": 0.5, "top_k": 3, "max_new_tokens": 7, "seed": 1}
    for name, value in changes.items():
        names.add(named(**{name: value}))
    names |= {named(rule=lambda a, b, alpha: a), named(forwards=2), named(step="eager")}
    assert len(names) == len(changes) + 4
    for name, value in {"alphas": (0.0,), "samples": 9, "slots": 2, "data_dir": "x"}.items():
        assert named(**{name: value}) in names


# ------------------------------------------------------------------------------------------ slots


def test_the_automatic_number_of_slots_is_said_and_recorded(tiny, settings, capsys):
    done = sweep(tiny, PAIRS, settings.model_copy(update={"slots": "auto"}))
    batch = done.metadata["slots"]
    assert batch["number"] == 48 and batch["chosen"] == "auto" and batch["halved_to"] == []
    assert batch["weights_bytes"] >= sum(p.nbytes for p in tiny.model.parameters())
    assert "48 slots (auto), packed steps: 0.0" in capsys.readouterr().out
    assert {record["slots"] for record in done.records} == {48}


def test_a_run_goes_on_with_the_number_of_slots_it_was_begun_with(tiny, settings):
    auto = settings.model_copy(update={"slots": "auto"})
    sweep(tiny, PAIRS[1:], settings)
    done = sweep(tiny, PAIRS, auto)
    assert done.metadata["slots"]["number"] == 4
    assert done.metadata["slots"]["chosen"] == "as the run was begun"
    assert {record["slots"] for record in done.records} == {4}


def test_running_out_of_memory_is_said_and_recorded(tiny, settings, monkeypatch, capsys):
    forward = step.Rows.forward

    def limited(self, tokens):
        if len(tokens) > 4:
            raise torch.cuda.OutOfMemoryError
        forward(self, tokens)

    monkeypatch.setattr(step.Rows, "forward", limited)
    done = sweep(tiny, PAIRS, settings)
    assert done.metadata["slots"]["halved_to"] == [2]
    assert "Out of memory: the cells that are not finished go on with 2 slots" in (
        capsys.readouterr().out
    )
    assert len(done.records) == 18 and {record["slots"] for record in done.records} == {2}


def test_lists_per_token_stay_on_disk(tiny, settings):
    """A night's sweep is held in memory without them; the JSON has them."""
    done = sweep(tiny, PAIRS, settings)
    assert not any("per_token" in record for record in done.records)
    whole = list(done.whole_records())
    assert all(r["per_token"]["nll_a"] for r in whole)
    assert [{k: v for k, v in r.items() if k != "per_token"} for r in whole] == done.records


# ---------------------------------------------------------------------------------------- journal


def interrupt_after(monkeypatch, count):
    generate = BatchedEngine.generate

    def interrupted(*args, **options):
        for number, generation in enumerate(generate(*args, **options)):
            if number == count:
                raise KeyboardInterrupt
            yield generation

    monkeypatch.setattr(BatchedEngine, "generate", interrupted)


def test_what_is_finished_survives_an_interrupt(tiny, settings, monkeypatch, generated):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(KeyboardInterrupt):
            sweep(tiny, PAIRS, settings)
    resumed = sweep(tiny, PAIRS, settings)
    assert len(generated[-1]) == 18 - 7
    whole = sweep(tiny, PAIRS, settings.model_copy(update={"data_dir": settings.data_dir / "new"}))
    assert resumed.records == whole.records


def journal_of(settings):
    (path,) = (settings.data_dir / "journal").glob("*/*.jsonl")
    return path


def test_a_torn_last_line_is_dropped_and_made_again(tiny, settings, generated):
    first = sweep(tiny, PAIRS, settings)
    path = journal_of(settings)
    path.write_bytes(path.read_bytes()[:-40])
    again = sweep(tiny, PAIRS, settings)
    assert len(generated[1]) == 1 and again.records == first.records
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_a_damaged_line_is_told_and_made_again(tiny, settings, generated, capsys):
    first = sweep(tiny, PAIRS, settings)
    path = journal_of(settings)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3][:-1] + "?"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    again = sweep(tiny, PAIRS, settings)
    assert "line 4 is damaged" in capsys.readouterr().out
    assert len(generated[1]) == 1 and again.records == first.records


def test_the_next_sweep_finishes_a_killed_rerun(tiny, settings, monkeypatch, generated):
    sweep(tiny, PAIRS, settings)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            sweep(tiny, PAIRS, settings, rerun=[2.0])
    sweep(tiny, PAIRS, settings)
    assert len(generated[-1]) == 4 and {cell.alpha for cell in generated[-1]} == {2.0}


def test_a_journal_cannot_be_written_where_a_file_stands(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="DATA_DIR"):
        Journal(tmp_path / "file", "0").open({}).__enter__()


# ---------------------------------------------------------------------------------------- results


def test_the_results_are_read_back_as_they_were_written(tiny, settings):
    done = sweep(tiny, PAIRS, settings)
    path = write_results(settings.data_dir, done.run, done.whole_records())
    assert read_results(settings.data_dir) == (done.run, list(done.whole_records()))
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == 1 and set(content) == {"schema", "run", "generations"}
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if '"token_ids"' in line]) == len(done.records)


def test_results_that_are_none_are_refused(tmp_path):
    with pytest.raises(BadInput, match="run a sweep first"):
        read_results(tmp_path)
    (tmp_path / "amplification_results.json").write_text('{"schema": 99, "run": {}}')
    with pytest.raises(BadInput, match="schema 99"):
        read_results(tmp_path)
    (tmp_path / "amplification_results.json").write_text("[]")
    with pytest.raises(BadInput, match="not the results"):
        read_results(tmp_path)


def test_nothing_of_this_machine_stands_in_run_or_metadata(tiny, settings, tmp_path):
    done = sweep(tiny, PAIRS, settings)
    text = json.dumps([done.run, done.metadata])
    assert str(tmp_path) not in text and str(settings.model) not in text
    assert done.metadata["throughput"]["tokens_per_second"] > 0
    assert done.metadata["peak_memory_bytes"] > 10_000_000
    assert done.metadata["chat"]["system_role"] == "folded into the first user message"
    assert done.run["rule"]["name"] == amplify.__name__


def test_controls_share_the_random_numbers_of_their_pair(tiny, settings):
    """So swapped at alpha 0 is the pair at alpha -1, and shuffled at alpha 0 the pair at 0."""
    pairs = with_controls(PAIRS, ("swapped", "shuffled"))
    asked = settings.model_copy(update={"alphas": (-1.0, 0.0, 2.0)})
    done = sweep(tiny, pairs, asked)
    ids = {(r["pair_id"], r["alpha"], r["sample"]): r["token_ids"] for r in done.records}
    for sample in (0, 1):
        assert ids["long~swapped", 0.0, sample] == ids["long", -1.0, sample]
        assert ids["long~swapped", -1.0, sample] == ids["long", 0.0, sample]
        assert ids["long~shuffled", 0.0, sample] == ids["long", 0.0, sample]
        assert ids["long~shuffled", 2.0, sample] != ids["long", 2.0, sample]
    labels = {r["pair_id"]: (r["control"], r["category"]) for r in done.records}
    assert labels["long~swapped"] == ("swapped", "control: swapped")
    assert labels["long"] == ("", "x") and labels["null-control"][0] == "null"


def test_every_arm_of_a_cell_has_the_same_random_numbers(tiny, settings):
    """A list longer than the vocabulary of 259 leaves the rule alone: the same tokens."""
    asked = settings.model_copy(update={"arms": ("full", "candidates_top1000", "plausible")})
    texts = {}
    for record in sweep(tiny, PAIRS, asked).records:
        cell = record["pair_id"], record["alpha"], record["sample"]
        texts.setdefault(record["arm"], {})[cell] = record["token_ids"]
    assert texts["full"] == texts["candidates_top1000"]
    assert texts["full"] != texts["plausible"]


def test_the_power_of_the_design_is_told_before_the_sweep(tiny, settings, capsys):
    sweep(tiny, PAIRS, settings)
    told = capsys.readouterr().out
    assert told.index("With 2 families, one test alone can detect") < told.index(
        "generations to make"
    )


def test_every_record_of_a_sweep_has_its_outcome_and_the_evidence(tiny, settings):
    done = sweep(tiny, PAIRS, settings)
    usual = usual_nll(done.records)
    for record in done.records:
        assert record["outcome"] == score(record, usual)._asdict()
    path = write_results(settings.data_dir, done.run, done.whole_records())
    assert all(g["outcome"]["evidence"] for g in json.loads(path.read_text())["generations"])


def test_every_answer_is_scored_under_its_paraphrase_and_has_its_attributes(tiny, settings):
    """Held to the forward of the paraphrase alone; controls and the null pair have none."""
    pairs = [pair for pair in read_pairs(controls=("shuffled",)) if "graded-gloom" in pair.id]
    pairs += [pair for pair in read_pairs() if pair.control]
    done = sweep(tiny, pairs, settings)
    limits = {"max_new_tokens": 9, "max_positions": 4096}
    encoded = {one.pair.id: one for one in encode_pairs(pairs, tiny.tokenizer, **limits)}
    scored = 0
    for record in done.records:
        measures, pair = record["measures"], encoded[record["pair_id"]]
        assert set(record["attributes"]) > {"sentiment", "declared"}
        total = record["n_tokens"] * measures["log_ratio_a_b"]
        assert measures["posterior_a"] == pytest.approx(1 / (1 + math.exp(-total)), rel=1e-3)
        apart = measures["logprob_sampled"] + measures["nll_a"]
        assert measures["kl_sampled_a"] == pytest.approx(apart, abs=1e-4)
        if record["control"]:
            assert measures["nll_p"] is None and measures["log_ratio_a_p"] is None
            continue
        scored += 1
        nll = text_nll(tiny.model, pair.ids_p, record["token_ids"])
        assert measures["nll_p"] == pytest.approx(nll, abs=1e-4)
        assert measures["log_ratio_a_p"] == pytest.approx(nll - measures["nll_a"], abs=1e-4)
        declared = record["attributes"]["declared"]
        if declared is not None:
            assert declared == -record["attributes"]["sentiment"]
    assert scored == 4 * len(settings.alphas) * settings.samples
