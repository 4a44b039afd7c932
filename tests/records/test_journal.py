"""Nothing finished is ever lost: damage, kills, locks, full disks; runs that are brought back."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import logit_diff_mistral
import runs as runs_script
from command_line import as_list, start
from decoding import PAIRS
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.logits.amplification import amplify
from logit_amplification.records.journal import Journal, cell_key, only_writer, run_id
from logit_amplification.reports.artifacts import save_artifacts
from logit_amplification.reports.figures import gallery
from logit_amplification.sweeps import history
from logit_amplification.sweeps.sweep import sweep
from made_records import RUN, make_record

CONFIGURATION = {name: value for name, value in RUN.items() if name != "id"} | {
    "rule": {"name": "amplify", "sha256": "0" * 64}
}
NAME = run_id(CONFIGURATION)
RECORDS = [make_record(f"pair-{n}", alpha) for n in range(10) for alpha in (0.0, 1.0)]


@pytest.fixture
def journal(tmp_path):
    """A journal of twenty generations."""
    journal = Journal(tmp_path, NAME)
    with journal.open(CONFIGURATION) as writer:
        for record in RECORDS:
            writer.append({"generation": record})
    return journal


def file_of(journal, writer="0"):
    return journal.folder / f"{writer}.jsonl"


def read_whole(journal):
    return {key: journal.whole(kept) for key, kept in journal.read().items()}


EXPECTED = {cell_key(record): record for record in RECORDS}


# ----------------------------------------------------------------------------------------- damage


def test_what_is_written_is_read_back(journal):
    assert read_whole(journal) == EXPECTED
    lines = file_of(journal).read_text("utf-8").splitlines()
    assert all(json.loads(line)["generation"] for line in lines)


@pytest.mark.parametrize("seed", range(200))
def test_a_flipped_bit_is_harmless_or_told_and_the_other_lines_are_kept(journal, seed, capsys):
    chance = random.Random(seed)
    content = bytearray(file_of(journal).read_bytes())
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    file_of(journal).write_bytes(content)
    number = bytes(content[:place]).count(b"\n") + 1
    found = read_whole(journal)
    assert all(EXPECTED[key] == record for key, record in found.items())
    missing = len(EXPECTED) - len(found)
    assert missing <= 2  # two where the end of a line was hit
    torn = place == len(content) - 1
    told = capsys.readouterr().out
    assert (f"line {number} is damaged" in told) == (missing > 0 and not torn)
    with journal.open(CONFIGURATION) as writer:
        for key, record in EXPECTED.items():
            if key not in found:
                writer.append({"generation": record})
    if missing and not torn:
        assert (journal.folder / "0.jsonl.damaged-1").read_bytes() == content
    capsys.readouterr()
    assert read_whole(journal) == EXPECTED
    assert not capsys.readouterr().out  # told once


@pytest.mark.parametrize("cut", [1, 2, 100, 400])
def test_a_torn_last_line_is_dropped_without_a_word(journal, cut, capsys):
    content = file_of(journal).read_bytes()
    file_of(journal).write_bytes(content[:-cut])
    assert len(read_whole(journal)) == len(EXPECTED) - 1
    with journal.open(CONFIGURATION) as writer:
        writer.append({"generation": RECORDS[-1]})
    assert read_whole(journal) == EXPECTED
    assert file_of(journal).read_bytes() == content
    assert not capsys.readouterr().out


def test_an_empty_file_and_a_file_of_one_torn_line_are_empty_journals(tmp_path):
    journal = Journal(tmp_path, NAME)
    journal.folder.mkdir(parents=True)
    for content in (b"", b'{"crc32":"0000'):
        file_of(journal).write_bytes(content)
        assert journal.read() == {}
        with journal.open(CONFIGURATION) as writer:
            writer.append({"generation": RECORDS[0]})
        assert len(journal.read()) == 1


def test_a_damaged_plan_or_configuration_is_told(journal):
    for name, read in (("plan.json", journal.plan), ("configuration.json", journal.configuration)):
        (journal.folder / name).write_text('{"half":')
        with pytest.raises(BadInput, match=f"{name} is damaged"):
            read()
        (journal.folder / name).unlink()
        with pytest.raises(BadInput, match=f"{name}: No such file"):
            read()


# ---------------------------------------------------------------------------------------- writers


def test_files_of_several_writers_are_merged_by_cell(tmp_path):
    journal = Journal(tmp_path, NAME)
    with journal.open(CONFIGURATION, "0") as zero, journal.open(CONFIGURATION, "1") as one:
        for number, record in enumerate(RECORDS):
            (zero, one)[number % 2].append({"generation": record})
    assert read_whole(journal) == EXPECTED
    assert {kept.file for kept in journal.read().values()} == {"0.jsonl", "1.jsonl"}


def test_a_rerun_voids_what_all_writers_made_before_it(tmp_path):
    journal = Journal(tmp_path, NAME)
    with journal.open(CONFIGURATION, "1") as one:
        for record in RECORDS:
            one.append({"generation": record})
    new = {**RECORDS[1], "text": "again"}
    with journal.open(CONFIGURATION, "0") as zero:
        zero.append(journal.void([1.0]))
        zero.append({"generation": new})
    found = read_whole(journal)
    assert {key[2] for key in found} == {0.0, 1.0}
    assert [record for record in found.values() if record["alpha"] == 1.0] == [new]


LOCKING = """
import sys, time; sys.path.insert(0, {code!r})
from logit_amplification.records.journal import only_writer
with only_writer({folder!r}):
    print("held", flush=True); time.sleep(60)
"""


def test_a_second_sweep_on_a_folder_is_refused_and_a_dead_one_is_no_obstacle(tmp_path):
    program = LOCKING.format(code=str(ROOT / "code"), folder=str(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    for _ in range(2):
        with pytest.raises(
            BadInput, match=f"a sweep is already running there .process {holder.pid} on"
        ):
            Journal(tmp_path, NAME).open(CONFIGURATION).__enter__()
    with only_writer(tmp_path, "1"):
        pass  # another rank has a lock of its own
    holder.kill()
    holder.wait()
    assert (tmp_path / "journal" / "0.owner").exists()  # what a dead process leaves
    with Journal(tmp_path, NAME).open(CONFIGURATION) as writer:
        writer.append({"generation": RECORDS[0]})


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("kilobytes", "told"),
    [(3, "/0.jsonl in "), (11, "amplification_results.json in ")],
)
def test_a_full_disk_ends_the_sweep_with_one_line_and_keeps_what_is_finished(
    flags, tmp_path, kilobytes, told, capsys, few_figures
):
    """A limit on the size of a file stands for it: reached by the journal, or by an artifact."""
    ended = start(flags, tmp_path / "told", largest_file=1024 * kilobytes)
    assert ended.wait() == 2, ended.told
    (line,) = [line for line in ended.told.splitlines() if line.startswith("error:")]
    assert "cannot write" in line and told in line and "File too large" in line
    assert "Traceback" not in ended.told
    assert logit_diff_mistral.main(as_list(flags)) == 0
    assert " 0 found" not in capsys.readouterr().out
    other = {"data-dir": tmp_path / "other", "visualizations-dir": tmp_path / "other"}
    assert logit_diff_mistral.main(as_list(flags | other)) == 0
    name = "amplification_results.json"
    assert (flags["data-dir"] / name).read_bytes() == (other["data-dir"] / name).read_bytes()


def test_a_folder_that_vanishes_is_told(tiny, settings, monkeypatch):
    generate = BatchedEngine.generate

    def vanishing(*args, **options):
        for number, generation in enumerate(generate(*args, **options)):
            if number == 3:
                (settings.data_dir).rename(settings.data_dir.with_name("elsewhere"))
            yield generation

    monkeypatch.setattr(BatchedEngine, "generate", vanishing)
    with pytest.raises(BadInput, match="the journal has vanished"):
        sweep(tiny, PAIRS, settings)
    elsewhere = Journal(settings.data_dir.with_name("elsewhere"), runs_of(settings, "elsewhere"))
    assert len(elsewhere.read()) == 3


def runs_of(settings, name):
    (plan,) = (settings.data_dir.with_name(name) / "journal").glob("*/plan.json")
    return plan.parent.name


def test_a_folder_that_cannot_be_written_is_told(tiny, settings):
    with pytest.raises(BadInput, match="DATA_DIR = '/proc/nowhere'"):
        sweep(tiny, PAIRS, settings.model_copy(update={"data_dir": Path("/proc/nowhere")}))


def test_a_clock_that_jumps_changes_nothing(tiny, settings, generated, monkeypatch):
    first = sweep(tiny, PAIRS, settings)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    (plan,) = (settings.data_dir / "journal").glob("*/plan.json")
    os.utime(plan, (2**33, 2**33))
    again = sweep(tiny, PAIRS, settings, rerun=[2.0])
    assert len(generated[-1]) == 6 and again.records == first.records


def breaking_at_two(logits_a, logits_b, alpha):
    """A rule of the user's that divides by zero at alpha 2."""
    amplified = amplify(logits_a, logits_b, alpha)
    return torch.where(torch.as_tensor(alpha) == 2.0, amplified / 0.0, amplified)


def test_rows_that_become_nan_end_with_an_error_and_are_left_out(tiny, settings):
    done = sweep(tiny, PAIRS, settings, rule=breaking_at_two)
    broken = [record for record in done.records if record["finish_reason"] == "error"]
    assert len(done.records) == 18 and len(broken) == 6
    assert all("NaN or infinite" in record["error"] for record in broken)
    written = {path.name: path for path in save_artifacts(done, settings)}
    report = written["detailed_report.txt"].read_text("utf-8")
    assert "6 ended with an error and are left out" in report
    assert "alpha 2 " not in report
    again = sweep(tiny, PAIRS, settings, rule=breaking_at_two)
    assert again.records == done.records


def nothing_but_nan(logits_a, logits_b, alpha):
    """A rule that never works."""
    return logits_a * float("nan")


def test_a_sweep_of_nothing_but_errors_is_told(tiny, settings):
    done = sweep(tiny, PAIRS, settings, rule=nothing_but_nan)
    with pytest.raises(BadInput, match="every generation ended with an error, the first because"):
        save_artifacts(done, settings)
    assert (settings.data_dir / "amplification_results.json").exists()


# ------------------------------------------------------------------------------------------- kills

KILLS = int(os.environ.get("KILLS", "4"))


def test_killed_anywhere_the_end_is_the_same(flags, tmp_path, few_figures):
    """SIGKILL during the sweep or while artifacts are written; KILLS=100 for the long version."""
    flags = flags | {"alphas": "0,0.5,1,1.5,2,3,4", "samples": 6, "max-new-tokens": 40}
    whole = flags | {"data-dir": tmp_path / "whole", "visualizations-dir": tmp_path / "whole"}
    assert logit_diff_mistral.main(as_list(whole)) == 0
    name = "amplification_results.json"
    expected = (tmp_path / "whole" / name).read_bytes()
    chance = random.Random(7)
    kept, killed = 0, 0
    results = flags["data-dir"] / name
    while killed < KILLS:
        process = start(flags, tmp_path / "told")
        while "generations to make" not in process.told and process.returncode is None:
            time.sleep(0.02)
        time.sleep(chance.random() * 4)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        runs_found = history.list_runs(flags["data-dir"])
        if runs_found:
            found = len(runs_found[0].read())
            assert found >= kept  # nothing finished is lost
            kept = found
        if results.exists():
            assert results.read_bytes() == expected  # never half a file
        if process.returncode == 0 or (results.exists() and killed < KILLS):
            for path in flags["data-dir"].rglob("*"):  # done too soon: begin again
                path.unlink() if path.is_file() else None
            kept = 0
    assert logit_diff_mistral.main(as_list(flags)) == 0
    assert results.read_bytes() == expected
    (journal,) = history.list_runs(flags["data-dir"])
    lines = file_of(journal).read_bytes().count(b"\n")
    assert lines == len(journal.read())  # none twice


def test_ctrl_c_ends_within_five_seconds_and_keeps_everything(flags, tmp_path):
    flags = flags | {"samples": 200, "max-new-tokens": 40}
    process = start(flags, tmp_path / "told")
    while not ((found := history.list_runs(flags["data-dir"])) and found[0].read()):
        assert process.returncode is None
        time.sleep(0.1)
    asked = time.perf_counter()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert time.perf_counter() - asked < 5
    assert "Finished work is kept" in process.told
    (journal,) = history.list_runs(flags["data-dir"])
    assert 0 < len(journal.read()) < 600


# --------------------------------------------------------------------------------- runs, once made


def test_another_configuration_is_another_run_and_the_old_one_comes_back(
    tiny,
    settings,
    generated,
    capsys,
):
    first = sweep(tiny, PAIRS, settings)
    save_artifacts(first, settings)
    results = settings.data_dir / "amplification_results.json"
    before = {path.name: path.read_bytes() for path in settings.data_dir.glob("*.*")}
    other = settings.model_copy(update={"temperature": 1.3, "seed": 4})
    capsys.readouterr()
    second = sweep(tiny, PAIRS, other)
    told = capsys.readouterr().out
    assert (
        f"New run {second.run['id']}: sampling.temperature, sampling.seed differ from run "
        f"{first.run['id']}, which is kept in the journal" in told
    )
    save_artifacts(second, other)
    assert results.read_bytes() != before[results.name]
    folders = ["--data-dir", str(settings.data_dir)]
    folders += ["--visualizations-dir", str(settings.visualizations_dir)]
    assert runs_script.main(["list", *folders]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 and listed[0].startswith(second.run["id"])
    assert "18 of 18 generations" in listed[1] and "temperature 0.7" in listed[1]
    names = [first.run["id"][:6], second.run["id"][:6]]
    assert runs_script.main(["compare", *names, *folders]) == 0
    compared = capsys.readouterr().out
    assert "sampling.temperature: 0.7 | 1.3" in compared and "sampling.seed: 0 | 4" in compared
    assert "18 cells are in both, 0 only in the first" in compared
    assert runs_script.main(["artifacts", names[0], *folders]) == 0
    assert {path.name: path.read_bytes() for path in settings.data_dir.glob("*.*")} == before
    assert len(generated) == 2


def test_artifacts_of_an_unfinished_run_hold_what_is_finished(tiny, settings, monkeypatch):
    generate = BatchedEngine.generate

    def interrupted(*args, **options):
        for number, generation in enumerate(generate(*args, **options)):
            if number == 12:
                raise KeyboardInterrupt
            yield generation

    monkeypatch.setattr(BatchedEngine, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(tiny, PAIRS, settings)
    recalled = history.recall(settings.data_dir, "")
    assert len(recalled.records) == 12
    assert len(save_artifacts(recalled, settings)) == 7 + 2 * len(gallery.FIGURES) + 1
    assert "12 of 18 generations" in history.describe(recalled.journal)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["artifacts"], "no runs in it; run a sweep first"),
        (["compare", "a", "b"], "no runs in it"),
        (["compare", "a"], "1 runs named; two are needed"),
        (["artifacts", "a", "b"], "2 runs named; at most one"),
    ],
)
def test_runs_that_are_not_there_are_one_line(arguments, told, tmp_path, capsys):
    assert runs_script.main([*arguments, "--data-dir", str(tmp_path)]) == 2
    complaint = capsys.readouterr().err
    assert told in complaint and complaint.count("\n") == 1


def test_an_ambiguous_name_is_refused(tiny, settings):
    sweep(tiny, PAIRS, settings)
    with pytest.raises(BadInput, match="0 runs begin so; allowed: "):
        history.find_run(settings.data_dir, "zz")


def test_no_torch_is_needed_to_write_artifacts_again(tiny, settings):
    sweep(tiny, PAIRS, settings)
    program = (
        "import sys; sys.path.insert(0, 'code'); import runs\n"
        f"code = runs.main(['artifacts', '--data-dir', {str(settings.data_dir)!r}, "
        f"'--visualizations-dir', {str(settings.visualizations_dir)!r}])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (settings.visualizations_dir / "dose_response.png").exists()
