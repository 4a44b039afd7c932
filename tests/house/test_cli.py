"""The command line: a good run, the same bytes in another process, and one line for bad input."""

import json
import os
import re
import subprocess
import sys

import pandas
import pytest
from conftest import PROMPTS

import logit_diff_mistral
from command_line import as_list, run_process
from logit_amplification.locations import ROOT
from made_records import FIGURES


def test_a_run_leaves_every_artifact_and_says_where(flags, tmp_path, capsys):
    assert logit_diff_mistral.main(as_list(flags | {"arms": "full,plausible,api_floor"})) == 0
    told = capsys.readouterr().out
    written = (tmp_path / "out").rglob("*.*")
    names = {path.name for path in written if "journal" not in path.parts}
    assert names == {
        "amplification_results.json",
        "experiment_metadata.json",
        "summary_statistics.csv",
        "generations.csv",
        "generations.parquet",
        "recommendations.txt",
        "detailed_report.txt",
        "index.html",
        *FIGURES,
    }
    assert all(name in told for name in names)
    assert_git_sees_only_the_example(tmp_path / "out")
    data = tmp_path / "out" / "data"
    results = json.loads((data / "amplification_results.json").read_text(encoding="utf-8"))
    assert len(results["generations"]) == 3 * 2 * 3  # two pairs and the null pair, alphas, arms
    table = pandas.read_csv(data / "summary_statistics.csv")
    assert set(table["category"]) == {"all", "x", "y", "control"}
    assert set(table["arm"]) == {"full", "plausible", "api_floor"}


def assert_git_sees_only_the_example(out):
    """What a run leaves in data/ and visualizations/ is ignored.

    In their example/, the journal, and the table that is written where an extra is installed.
    """
    left = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    left = [path.replace("figures/", "visualizations/", 1) for path in left]
    example = [path.replace("/", "/example/", 1) for path in left]
    asked = subprocess.run(
        ["git", "check-ignore", "--no-index", *left, *example],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    ignored = [p for p in example if "/journal/" in p or p.endswith(".parquet")]
    assert len(ignored) > 1 and set(asked.stdout.split()) == {*left, *ignored}


def test_another_process_with_another_hash_seed_makes_the_same_bytes(flags, tmp_path, few_figures):
    """The process of the tests has a hash seed of its own, drawn when it started."""
    folders = {"data-dir": tmp_path / "other", "visualizations-dir": tmp_path / "other"}
    done = run_process(flags | folders, PYTHONHASHSEED="1")
    assert done.returncode == 0, done.stderr
    assert logit_diff_mistral.main(as_list(flags)) == 0
    made = [
        (options["data-dir"] / "amplification_results.json").read_bytes()
        for options in (flags, folders)
    ]
    assert made[0] == made[1]


def test_rerun_makes_one_alpha_again(flags, tmp_path, capsys, few_figures):
    assert logit_diff_mistral.main(as_list(flags)) == 0
    before = (tmp_path / "out" / "data" / "amplification_results.json").read_bytes()
    assert logit_diff_mistral.main([*as_list(flags), "--rerun", "1"]) == 0
    assert "3 generations to make, 3 found" in capsys.readouterr().out
    assert (tmp_path / "out" / "data" / "amplification_results.json").read_bytes() == before


HEADER = PROMPTS.splitlines()[0] + "\n"
BAD_SETTINGS = [
    ({"alphas": "abc"}, "ALPHAS = 'abc'"),
    ({"temperature": -1}, "TEMPERATURE = '-1'"),
    ({"top-p": 0}, "TOP_P = '0'"),
    ({"top-p": 1.5}, "TOP_P = '1.5'"),
    ({"bogus": 1}, "unrecognized arguments: --bogus"),
    ({"rerun": "x"}, "RERUN = 'x'"),
    ({"rerun": "7"}, "RERUN = 7"),
    ({"model": "nobody/nothing-like-this"}, "MODEL = 'nobody/nothing-like-this'"),
    ({"model": "what is this?"}, "MODEL = 'what is this?'"),
    ({"model": "./nowhere"}, "no such folder"),
    ({"device": "mps"}, "DEVICE = 'mps'"),
    ({"prompts": "nowhere.csv"}, "No such file"),
]
BAD_PROMPTS = [
    ("p,c,,,,\n", "line 2: a_user is empty"),
    ("p,c,Hi,,,\np,c,Ho,,,\n", "line 3: the id 'p' is used twice"),
    (f"p,c,{'x' * 600},,,\n", "pair 'p', a: 616 prompt tokens and max_new_tokens = 5 exceed"),
]


def assert_refused(options, told, capsys, tmp_path):
    """Exit code 2, one line that names the matter, and nothing on disk."""
    assert logit_diff_mistral.main(as_list(options)) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and complaint.count("\n") == 1
    assert told in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changed", "told"), BAD_SETTINGS)
def test_a_bad_setting_is_refused(changed, told, flags, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read by the readiness check
    assert_refused(flags | changed, told, capsys, tmp_path)


@pytest.mark.parametrize(("rows", "told"), BAD_PROMPTS)
def test_a_bad_prompt_file_is_refused(rows, told, flags, tmp_path, capsys):
    (tmp_path / "bad.csv").write_text(HEADER + rows)
    assert_refused(flags | {"prompts": tmp_path / "bad.csv"}, told, capsys, tmp_path)


def test_a_folder_without_a_model_is_refused(flags, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert_refused(
        flags | {"model": tmp_path / "empty"}, "no readable config.json", capsys, tmp_path
    )


def test_a_data_folder_below_a_file_is_refused(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert_refused(flags | {"data-dir": tmp_path / "file" / "x"}, "DATA_DIR", capsys, tmp_path)


def test_an_unknown_setting_in_the_env_file_is_exit_code_2(flags, tmp_path, capsys, monkeypatch):
    (tmp_path / ".env").write_text("TEMPRATURE=1\n")
    monkeypatch.setattr("logit_amplification.settings.ENV_FILES", (tmp_path / ".env",))
    assert logit_diff_mistral.main(as_list(flags)) == 2
    assert "unknown setting TEMPRATURE in .env" in capsys.readouterr().err


def test_bad_input_in_a_process_of_its_own_shows_no_traceback(flags):
    done = run_process(flags | {"alphas": "abc"})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_an_interrupt_is_exit_code_130(flags, monkeypatch, capsys):
    def interrupted(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(logit_diff_mistral, "run", interrupted)
    assert logit_diff_mistral.main(as_list(flags)) == 130
    assert "kept" in capsys.readouterr().out


def test_help_names_every_setting_and_needs_no_torch():
    program = (
        "import sys; sys.path.insert(0, 'code'); import logit_diff_mistral as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in logit_diff_mistral.Command.model_fields:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_a_secret_is_in_no_file_and_no_message(flags, tmp_path):
    """Planted in the environment and in .env, for a good run and for three bad ones."""
    secret = "hf_" + "Zq7" * 10
    folder = tmp_path / "started here"
    folder.mkdir()
    env = folder / ".env"
    for line, changed, code in (
        (f"HF_TOKEN={secret}", {}, 0),
        (f"HUB_TOKEN={secret}", {}, 2),
        (f"SAMPLES={secret}", {}, 2),
        (f"HF_TOKEN={secret}", {"model": f"nobody/{secret}"}, 2),
    ):
        env.write_text(line + "\n")
        command = [sys.executable, str(ROOT / "code" / "logit_diff_mistral.py")]
        done = subprocess.run(
            [*command, *as_list(flags | changed)],
            env=os.environ | {"HF_TOKEN": secret, "API_KEY": secret, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            cwd=folder,
        )
        assert done.returncode == code, done.stderr
        assert secret not in done.stdout + done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path != env]
    assert len(left) > 9
    assert not [path for path in left if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("script", ["logit_diff_mistral.py", "download_mistral_model.py"])
def test_a_python_without_the_packages_is_told_in_a_line(script):
    command = [sys.executable, "-S", "-s", "-E", str(ROOT / "code" / script)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert re.fullmatch(
        r"error: this Python has no \w+; run make demo, then use .venv/bin/python\n", ended.stderr
    )
