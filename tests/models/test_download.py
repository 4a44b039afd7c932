"""The download script against a real server on loopback: the hub's API, and its misbehaviour."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import huggingface_hub
import pytest

import download_mistral_model
from local_hub import COMMIT, serving
from logit_amplification.locations import ROOT
from logit_amplification.models import hub as hub_module
from mistral_files import save_mistral

SCRIPT = ROOT / "code" / "download_mistral_model.py"
TOKEN = "hf_" + "a1B2" * 8  # of the right shape, and nobody's
UNWANTED = ("consolidated.safetensors", "pytorch_model.bin", "README.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_mistral(tmp_path_factory.mktemp("hub") / "model")
    for name in UNWANTED:
        (folder / name).write_bytes(os.urandom(2000))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as hub:
        yield hub


@pytest.fixture
def hub(server):
    server.behave()
    return server


def environment(hub, home, **changed):
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_ETAG_TIMEOUT": "3"} | {
        name: str(value) for name, value in changed.items()
    }


def start(hub, home, *flags, fetch_only=True, **changed):
    command = [sys.executable, str(SCRIPT), "--model", hub.model, *flags]
    return subprocess.Popen(
        command + ["--fetch-only"] * fetch_only,
        env=environment(hub, home, **changed),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them, and all below, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def download(hub, home, *flags, **options):
    process = start(hub, home, *flags, **options)
    told, complaints = process.communicate(timeout=120)
    return process.returncode, told, complaints


def refused(hub, home, *flags, **options):
    """The one line that a download that cannot be done ends with."""
    code, _, complaints = download(hub, home, *flags, **options)
    assert code == 2, complaints
    assert "Traceback" not in complaints
    (line,) = [line for line in complaints.splitlines() if line.startswith("error:")]
    return line


def snapshot(hub, home):
    return home / "hub" / f"models--{hub.model.replace('/', '--')}" / "snapshots" / COMMIT


def whole(hub, home):
    """Whether all wanted files lie in the cache, with the very bytes that the hub has."""
    wanted = set(hub.files) - set(UNWANTED)
    found = {path.name: path.read_bytes() for path in snapshot(hub, home).iterdir()}
    left = list((snapshot(hub, home).parents[1] / "blobs").glob("*.incomplete"))
    return not left and found == {name: hub.files[name] for name in wanted}


def fetched(hub):
    """Names of the files whose content was asked for."""
    return [
        path.rsplit("/", 1)[-1] for m, path, _ in hub.requests if m == "GET" and "/resolve/" in path
    ]


def test_only_what_is_needed_is_fetched_once_verified_tried_and_then_runs_offline(hub, tmp_path):
    code, told, complaints = download(hub, tmp_path)
    assert code == 0, complaints
    assert whole(hub, tmp_path)
    assert "Every file has the hash that the hub lists" in told
    assert "fetching: 100%" in told and "\r" not in told + complaints  # a log: plain lines

    hub.behave()
    code, told, _ = download(hub, tmp_path)
    assert code == 0 and not fetched(hub)

    hub.behave()
    hub.status = (500, "")  # it must not even be asked
    code, told, complaints = download(
        hub, tmp_path, "--quantization=8bit", fetch_only=False, HF_HUB_OFFLINE=1
    )
    assert code == 0, complaints
    assert not hub.requests
    assert "alpha 0:" in told and "alpha 1:" in told
    assert "Recommended: QUANTIZATION=" in told
    assert not complaints  # not one of bitsandbytes' warnings per layer and step


@pytest.mark.parametrize(
    ("status", "changed", "told"),
    [
        ((401, ""), {}, "has no such model; private ones need an HF_TOKEN"),
        ((401, ""), {"HF_TOKEN": TOKEN}, "does not accept the HF_TOKEN given"),
        ((403, "GatedRepo"), {}, "accepted its terms: an HF_TOKEN is needed; accept at http"),
        ((403, "GatedRepo"), {"HF_TOKEN": TOKEN}, "the HF_TOKEN given has no access"),
        ((404, "RepoNotFound"), {}, "the hub has no such model"),
        ((429, ""), {}, "asks to wait"),
        ((500, ""), {}, "a fault of its own (500)"),
        ((503, ""), {}, "a fault of its own (503)"),
        (None, {"HF_HUB_OFFLINE": 1}, "HF_HUB_OFFLINE forbids"),
        (None, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach http://127.0.0.1:9"),
        (None, {"HF_ENDPOINT": "http://no-such-host.invalid"}, "cannot reach"),
        (None, {"HTTP_PROXY": "http://user:secret@127.0.0.1:9"}, "reach"),
    ],
)
def test_what_the_hub_or_the_network_refuses_is_told_in_one_sentence(
    hub, tmp_path, status, changed, told
):
    hub.status = status
    line = refused(hub, tmp_path, **changed)
    assert told in line
    assert hub.model in line
    assert TOKEN not in line and "secret" not in line
    assert not snapshot(hub, tmp_path).exists()


def test_a_gated_model_needs_a_token_and_a_wrong_revision_is_named(hub, tmp_path):
    hub.gated = True
    assert "an HF_TOKEN is needed" in refused(hub, tmp_path)
    assert download(hub, tmp_path, HF_TOKEN=TOKEN)[0] == 0
    assert whole(hub, tmp_path)
    hub.behave()
    line = refused(hub, tmp_path, "--revision", "no-such-branch")
    assert "it has no such revision; allowed: a branch, tag or commit" in line


def test_a_connection_that_breaks_goes_on_where_it_broke(tmp_path):
    """huggingface_hub writes 10 MB at a time: what came after the last of them comes again."""
    folder = save_mistral(tmp_path / "larger", hidden_size=256)
    name = "model-00001-of-00003.safetensors"
    assert (folder / name).stat().st_size > 15_000_000
    with serving(folder) as hub:
        hub.drop_at = {name: [12_000_000, 14_000_000]}
        assert download(hub, tmp_path)[0] == 0
        assert whole(hub, tmp_path)
        asked = [first for method, path, first in hub.requests if name in path and method == "GET"]
    assert len(asked) == 3
    assert all(int(first.removeprefix("bytes=").rstrip("-")) >= 10_000_000 for first in asked[1:])


def test_a_connection_that_is_reset_is_tried_again(hub, tmp_path):
    name = "model-00001-of-00002.safetensors"
    hub.drop_at = {name: [500_000, 900_000]}
    hub.reset = True
    code, told, complaints = download(hub, tmp_path)
    assert code == 0, complaints
    waits = re.findall(r"The connection broke; trying again in (\d+) s", told)
    assert waits == ["1", "2"]  # longer each time, as nothing has been written
    assert whole(hub, tmp_path)
    others = [path for path in fetched(hub) if path not in (name, "config.json")]
    assert len(others) == len(set(others))


def test_a_file_that_arrives_damaged_is_fetched_again_and_twice_is_an_error(hub, tmp_path):
    name = "model-00002-of-00002.safetensors"
    hub.corrupt = {name: 1}
    code, told, complaints = download(hub, tmp_path)
    assert code == 0, complaints
    assert f"Damaged, fetching again: {name}" in told
    assert whole(hub, tmp_path)
    shutil.rmtree(tmp_path / "hub")
    hub.corrupt = {name: 2}
    assert f"{name} arrived damaged twice" in refused(hub, tmp_path)
    assert not (snapshot(hub, tmp_path) / name).exists()


def test_a_file_cut_short_in_the_cache_is_found_and_mended(hub, tmp_path):
    assert download(hub, tmp_path)[0] == 0
    name = "model-00001-of-00002.safetensors"
    path = (snapshot(hub, tmp_path) / name).resolve()
    path.write_bytes(path.read_bytes()[:-1000])
    hub.behave()
    # The sweep does not load it, and names the command that mends it.
    sweep = [sys.executable, "code/logit_diff_mistral.py", "--model", hub.model]
    ended = subprocess.run(
        sweep, env=environment(hub, tmp_path), cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert f"{name} is cut short" in ended.stderr and SCRIPT.name in ended.stderr
    code, told, _ = download(hub, tmp_path)
    assert code == 0 and name in told
    assert fetched(hub) == [name]
    assert whole(hub, tmp_path)


def test_a_disk_that_fills_up_is_told(hub, tmp_path):
    """A limit on file sizes stands for it: the write fails halfway."""
    limit = 1_000_000
    command = [sys.executable, str(SCRIPT), "--model", hub.model, "--fetch-only"]
    ended = subprocess.run(
        command,
        env=environment(hub, tmp_path),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert ended.returncode == 2
    assert "the disk is full in" in ended.stderr and "HF_HOME" in ended.stderr
    assert download(hub, tmp_path)[0] == 0
    assert whole(hub, tmp_path)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: no right to mount")
    try:
        line = refused(hub, disk)
        assert "GB still to download" in line and "HF_HOME" in line
        assert set(fetched(hub)) <= {"config.json"}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_cache_that_cannot_be_written_is_told(hub, tmp_path):
    (tmp_path / "hub").write_text("a file where a folder should be")
    assert "error" in refused(hub, tmp_path)


def test_killed_at_random_bytes_it_always_completes_and_fetches_no_finished_file_again(
    hub, tmp_path
):
    total = sum(len(content) for name, content in hub.files.items() if name not in UNWANTED)
    chance = random.Random(4)
    kills = 0
    for _ in range(20):
        before = {name for name in hub.files if (snapshot(hub, tmp_path) / name).exists()}
        hub.behave()
        hub.delay = 0.0005
        process = start(hub, tmp_path)
        hub.at_byte = (chance.randrange(1, total // 2), process.kill)
        process.communicate(timeout=120)
        kills += process.returncode == -signal.SIGKILL
        assert not before & set(fetched(hub))
    assert kills >= 10  # towards the end so little is missing that it may be faster
    hub.behave()
    assert download(hub, tmp_path)[0] == 0
    assert whole(hub, tmp_path)


def test_ctrl_c_ends_it_at_once_and_keeps_what_is_finished(hub, tmp_path):
    hub.delay = 0.05  # all of it would take minutes
    process = start(hub, tmp_path)
    asked = threading.Event()

    def interrupt():
        process.send_signal(signal.SIGINT)
        asked.set()

    hub.at_byte = (200_000, interrupt)
    assert asked.wait(60)
    told, complaints = process.communicate(timeout=10)
    assert process.returncode == 130, complaints
    assert "the same command fetches the rest" in told
    assert "Traceback" not in complaints
    assert hub.sent < 2_000_000
    hub.behave()
    assert download(hub, tmp_path)[0] == 0
    assert whole(hub, tmp_path)


def test_an_interruption_leaves_at_most_one_file_unfinished(hub, tmp_path):
    process = start(hub, tmp_path)
    hub.delay = 0.001
    hub.at_byte = (2_000_000, process.kill)
    process.communicate(timeout=60)
    begun = fetched(hub)
    assert len(begun) > 2
    assert all((snapshot(hub, tmp_path) / name).exists() for name in begun[:-1])


def test_a_verified_commit_needs_no_hub(hub, tmp_path):
    commit = ("--revision", COMMIT)
    assert download(hub, tmp_path, *commit)[0] == 0
    hub.behave()
    code, told, complaints = download(hub, tmp_path, *commit)
    assert code == 0 and "Every file has the hash" in told and not hub.requests, complaints
    path = (snapshot(hub, tmp_path) / "model-00001-of-00002.safetensors").resolve()
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # as long as before
    code, told, _ = download(hub, tmp_path, *commit)
    assert code == 0 and "Damaged, fetching again" in told and whole(hub, tmp_path)


def test_a_hub_that_is_gone_before_the_hashes_leaves_a_complete_model_usable(
    folder, monkeypatch, capsys
):
    class ConnectError(Exception):
        """As the hub's HTTP library calls it."""

    def gone(*args, **options):
        raise ConnectError("refused")

    monkeypatch.setattr(hub_module, "fetch", lambda *_: folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "verify_repo_checksums", gone)
    download_mistral_model.fetch_and_verify(SimpleNamespace(model="a/b", revision="main"))
    told = capsys.readouterr().out
    assert "Sizes are checked, hashes are not" in told and "cannot reach" in told


def test_a_folder_of_weights_needs_no_download(hub, tmp_path, folder):
    command = [sys.executable, str(SCRIPT), "--model", str(folder), "--fetch-only"]
    run = {"env": environment(hub, tmp_path), "capture_output": True, "text": True}
    ended = subprocess.run(command, **run)
    assert ended.returncode == 0 and "its files are complete" in ended.stdout, ended.stderr
    assert not hub.requests
    part = shutil.copytree(folder, tmp_path / "part")
    (part / "model-00001-of-00002.safetensors").unlink()
    ended = subprocess.run([*command[:3], str(part), "--fetch-only"], **run)
    assert ended.returncode == 2 and "no model-00001-of-00002" in ended.stderr


def test_two_downloads_at_once_do_not_disturb_each_other(hub, tmp_path):
    hub.delay = 0.001
    processes = [start(hub, tmp_path) for _ in range(2)]
    outcomes = []
    threads = [
        threading.Thread(target=lambda p=p: outcomes.append((p.communicate(), p.returncode)))
        for p in processes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [code for _, code in outcomes] == [0, 0], outcomes
    assert whole(hub, tmp_path)
