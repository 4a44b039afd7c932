"""Every row of docs/BAD_INPUT.md: exit code 2, one line that names the matter, nothing changed."""

import errno
import os
import re
import shutil
import subprocess

import pytest
from conftest import PROMPTS
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import logit_diff_mistral
import runs as runs_script
import study
from command_line import as_list
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.prompts.files import read_pairs
from logit_amplification.records.files import refuse_unwritable
from logit_amplification.settings import Settings, load_settings
from logit_amplification.sweeps.sweep import sweep

PAGE = (ROOT / "docs" / "BAD_INPUT.md").read_text("utf-8")


def rows(heading):
    """The rows of a section's table: what stands between backquotes, and the line."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    return [tuple(cell.strip().strip("`") for cell in line[2:-2].split(" | ")) for line in table]


def state(folder):
    """Everything below a folder: files with their bytes, folders with None."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(capsys, told, run):
    """Run it; hold it to exit code 2 and one line that says what is told."""
    capsys.readouterr()
    assert run() == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ") and complaint.count("\n") == 1, complaint
    assert told in complaint


def test_the_page_has_at_least_sixty_rows():
    headings = re.findall(r"^## (.+)$", PAGE, flags=re.M)
    assert sum(len(rows(heading)) for heading in headings) >= 60


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read by the readiness check


@pytest.mark.parametrize(("flag", "told"), rows("Settings"))
def test_settings(flag, told, flags, tmp_path, capsys):
    name, value = flag.removeprefix("--").split("=", 1)
    before = state(tmp_path)
    refused(capsys, told, lambda: logit_diff_mistral.main(as_list(flags | {name: value})))
    assert state(tmp_path) == before


@pytest.mark.parametrize("name", ["data-dir", "visualizations-dir"])
@pytest.mark.parametrize("place", ["file", "file/below", "good/file/far/below"])
def test_an_output_folder_is_tried_before_the_model_is_loaded(
    name, place, flags, tmp_path, capsys, monkeypatch
):
    (tmp_path / "good").mkdir()
    for file in (tmp_path / "file", tmp_path / "good" / "file"):
        file.write_text("x")
    monkeypatch.setattr("logit_amplification.models.loading.load_model", loaded_all_the_same)
    before = state(tmp_path)
    told = f"{name.upper().replace('-', '_')} = {str(tmp_path / place)!r}: Not a directory"
    changed = flags | {name: tmp_path / place}
    refused(capsys, told, lambda: logit_diff_mistral.main(as_list(changed)))
    assert state(tmp_path) == before


def loaded_all_the_same(settings):
    raise AssertionError("the model was loaded first")


@pytest.mark.parametrize("failing", ["pathlib.Path.mkdir", "tempfile.TemporaryFile"])
def test_a_folder_that_must_not_be_written_is_told_and_leaves_nothing(
    failing, flags, tmp_path, capsys, monkeypatch
):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("logit_amplification.models.loading.load_model", loaded_all_the_same)
    monkeypatch.setattr(failing, refuse)
    before = state(tmp_path)
    refused(capsys, "Permission denied", lambda: logit_diff_mistral.main(as_list(flags)))
    assert state(tmp_path) == before


def test_a_good_folder_is_tried_without_a_trace(settings, tmp_path):
    settings.data_dir.mkdir()
    before = state(tmp_path)
    refuse_unwritable(settings)
    assert state(tmp_path) == before


def test_the_other_ways_to_a_sweep_try_the_folders_too(
    settings, tiny, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("x")
    bad = {"visualizations_dir": tmp_path / "file" / "x"}
    before = state(tmp_path)
    with pytest.raises(BadInput, match="VISUALIZATIONS_DIR"):
        sweep(tiny, [], settings.model_copy(update=bad))
    monkeypatch.setattr("logit_amplification.models.loading.load_model", loaded_all_the_same)
    with pytest.raises(BadInput, match="VISUALIZATIONS_DIR"):
        next(study.study(study.COMMON | {"data_dir": tmp_path / "new"} | bad, (), tmp_path / "doc"))
    told = f"VISUALIZATIONS_DIR = {str(tmp_path / 'file' / 'x')!r}"
    place = ["--data-dir", str(tmp_path), "--visualizations-dir", str(tmp_path / "file" / "x")]
    for command in ("artifacts", "figures"):
        refused(capsys, told, lambda command=command: runs_script.main([command, *place]))
    assert state(tmp_path) == before


@pytest.mark.parametrize(("line", "told"), rows("Lines of .env"))
def test_lines_of_env(line, told, flags, tmp_path, capsys, monkeypatch):
    env = tmp_path / ".env"
    env.write_bytes(unescaped(line) + b"\n")
    monkeypatch.setattr("logit_amplification.settings.ENV_FILES", (env,))
    name = line.split("=")[0].lower().replace("_", "-")
    kept = {key: value for key, value in flags.items() if key != name}
    before = state(tmp_path)
    refused(capsys, told, lambda: logit_diff_mistral.main(as_list(kept)))
    assert state(tmp_path) == before


def unescaped(text):
    r"""The bytes of a cell: \n, \xff and the like, and {x*N}."""
    text = re.sub(r"\{x\*(\d+)\}", lambda found: "x" * int(found[1]), text)
    return text.encode().decode("unicode_escape").encode("latin-1")


@pytest.mark.parametrize(("name", "content", "told"), rows("Prompt files"))
def test_prompt_files(name, content, told, flags, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(unescaped(content))
    refused(capsys, told, lambda: logit_diff_mistral.main(as_list(flags | {"prompts": path})))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("command", "told"), rows("Model folders"))
def test_model_folders(command, told, flags, tiny_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    before = state(tmp_path)
    refused(capsys, told, lambda: logit_diff_mistral.main(as_list(flags | {"model": folder})))
    assert state(tmp_path) == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_folder):
    """The data folder of a finished sweep."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "prompts.csv").write_text(PROMPTS)
    options = {
        "model": tiny_folder,
        "quantization": "none",
        "device": "cpu",
        "prompts": folder / "prompts.csv",
        "alphas": "0,1",
        "max-new-tokens": 3,
        "data-dir": folder / "data",
        "visualizations-dir": folder / "figures",
    }
    assert logit_diff_mistral.main(as_list(options)) == 0
    return folder / "data"


@pytest.mark.parametrize(("command", "told"), rows("Tampered journals and artifacts"))
def test_tampered_journals_and_artifacts(command, told, finished, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(finished, data)
    subprocess.run(["bash", "-c", command], cwd=data, check=True)
    before = state(tmp_path)
    folders = ["--data-dir", str(data), "--visualizations-dir", str(tmp_path / "figures")]
    refused(capsys, told, lambda: runs_script.main(["artifacts", *folders]))
    assert state(tmp_path) == before


# ------------------------------------------------------------------------------------- good, though


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", b"\xef\xbb\xbfid,category,a_user\np,c,Hi\n"),
        ("windows.csv", b"id,category,a_user\r\np,c,Hi\r\n"),
        ("order.csv", b'a_user,id,category\n"Hi, you\nthere",p,c\n'),
        ("blank.jsonl", b'\n{"id": "p", "category": "c", "a_user": "Hi"}\n\n'),
        ("日本 ünï.csv", "id,category,a_user\n🦜/../é,ü,Grüß dich\n".encode()),
    ],
)
def test_what_looks_odd_and_is_good_is_read(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert len(read_pairs(path)) == 1  # a null pair itself


def test_an_id_cannot_leave_the_data_folder(flags, tmp_path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,category,a_user\n../../../escaped,=1+1,Hi\n/etc/passwd,c,Ho\n")
    assert logit_diff_mistral.main(as_list(flags)) == 0
    inside = tmp_path / "out"
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == {
        prompts,
        *(path for path in inside.rglob("*") if path.is_file()),
    }
    assert not (tmp_path.parent / "escaped").exists()
    table = (inside / "data" / "summary_statistics.csv").read_text()
    assert "'=1+1" in table and ",=1+1" not in table
    results = (inside / "data" / "amplification_results.json").read_text()
    assert '"category": "=1+1"' in results


# -------------------------------------------------------------------------------------------- fuzz

VALUES = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "auto", "none", "0,1", "-1", "1e400", "\x00", "nan", "../..", "=1"]),
)


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(Settings.model_fields)), VALUES)
def test_any_value_of_any_setting_is_taken_or_told_in_one_line(name, value):
    try:
        load_settings(**{name: value})
    except BadInput as error:
        assert "\n" not in str(error)
        assert name.upper() in str(error)


@hypothesis_settings(
    deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from([".csv", ".json", ".jsonl"]),
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.lists(
            st.dictionaries(
                st.sampled_from(["id", "category", "a_user", "b_user", "a", "b", "x"]),
                st.one_of(st.text(max_size=5), st.integers(), st.none(), st.lists(st.text())),
            )
        ).map(lambda pairs: repr(pairs).replace("'", '"').replace("None", "null").encode("utf-8")),
    ),
)
def test_any_prompt_file_is_read_or_told_in_one_line(tmp_path, suffix, content):
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes(content)
    try:
        assert read_pairs(path)
    except BadInput as error:
        assert "\n" not in str(error) and path.name in str(error)
