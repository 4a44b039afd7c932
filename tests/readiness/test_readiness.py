"""What the readiness check says of this machine, of others, and before anything is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from command_line import python_of
from local_hub import COMMIT, serving
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.machine import devices, hardware, sizes
from logit_amplification.models import local
from logit_amplification.readiness import advice, checks, choice
from logit_amplification.settings import Settings, load_settings
from mistral_files import save_mistral

SCRIPT = ROOT / "code" / "check_mistral_readiness.py"
ITS_FILES = [SCRIPT] + [
    ROOT / "code" / "logit_amplification" / f"{name}.py"
    for name in (
        *("__init__", "errors", "locations", "models/__init__", "models/local"),
        *("machine/__init__", "machine/hardware", "machine/sizes"),
        *("readiness/__init__", "readiness/advice", "readiness/checks", "readiness/choice"),
        *("readiness/plan", "readiness/precision"),
    )
]
GB = 10**9
GIB = 1 << 30
TOKEN = "hf_" + "a1B2" * 8


def check(*flags, python=sys.executable, home=None, cwd=ROOT, **changed):
    """Run the script with a bare environment; return its exit code and what it printed."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    home = {"HF_HOME": str(home)} if home else {}
    ended = subprocess.run(
        [python, str(SCRIPT), *flags],
        env={**kept, **home, "HF_ENDPOINT": "http://127.0.0.1:9", **changed},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode, ended.stdout + ended.stderr


def report(*flags, **options):
    code, told = check("--json", *flags, **options)
    return code, json.loads(told)


def level(told, name):
    return {found["name"]: found["level"] for found in told["checks"]}[name]


def text(told, name):
    return {found["name"]: found["text"] for found in told["checks"]}[name]


# -------------------------------------------------------------------------------------- any Python


def test_an_old_python_can_read_it():
    assert all(path.is_file() for path in ITS_FILES)
    vermin = str(Path(sys.executable).with_name("vermin"))
    ended = subprocess.run(
        [vermin, "-t=3.8-", "--no-tips", *map(str, ITS_FILES)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8", "3.9"])
def test_an_old_python_gets_a_sentence(version):
    python = python_of(version)
    if not python:
        pytest.skip(f"no Python {version} on this machine")
    code, told = check(python=python)
    assert code == 1
    assert f"Python {version}" in " ".join(told.split())
    assert "3.10 or newer is needed" in told
    assert "SyntaxError" not in told


def test_it_imports_nothing_that_must_be_installed():
    """Without site-packages it still gives its whole answer."""
    command = [sys.executable, "-S", "-s", "-E", str(SCRIPT), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    found = json.loads(ended.stdout)
    wanted = len(list(checks._requirements()))
    assert level(found, "packages") == "WARN"
    assert f"not installed yet ({wanted} of {wanted})" in text(found, "packages")
    assert "pip install -r requirements.txt" in text(found, "packages")
    assert "FAIL" not in {check["level"] for check in found["checks"]}  # the machine can
    assert ended.returncode == 0 and found["ready"]
    assert level(found, "settings") == "WARN"
    assert len(found["options"]) >= 3


# ------------------------------------------------------------------------------------- this machine


def test_packages_have_one_line():
    _, told = report()
    names = [found["name"] for found in told["checks"]]
    assert names.count("packages") == 1 and not {"torch", "pandas"} & set(names)
    assert level(told, "packages") == "OK"


def test_a_package_of_a_wrong_version_is_named(monkeypatch):
    real = checks.metadata.version
    made_up = {"torch": "1.0"}
    monkeypatch.setattr(checks.metadata, "version", lambda name: made_up.get(name) or real(name))
    check = checks._packages()
    assert check.level == "WARN" and "torch is 1.0, needed is >=" in check.text
    assert "pandas" not in check.text and "not installed" not in check.text


def test_the_verdict_is_on_the_hardware_alone(monkeypatch):
    def nothing(name):
        raise checks.metadata.PackageNotFoundError(name)

    free = hardware.Memory(64 * GIB, 60 * GIB)
    monkeypatch.setattr(hardware, "memory", lambda: free)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(checks.metadata, "version", nothing)
    found = checks.check_machine()
    assert found.ready and list(advice.lines(found))[-1] == "Ready."
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(GIB, GIB))
    monkeypatch.setattr(hardware, "gpus", lambda: [])
    assert not checks.check_machine().ready


def test_the_requirements_are_read_as_pip_reads_them():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert dict(checks._requirements()).keys() == {one.name for one in found}
    assert all(
        one.specifier == SpecifierSet(dict(checks._requirements())[one.name]) for one in found
    )


@pytest.mark.parametrize("version", ["1.2", "1.2.3", "2.0", "2.13.0+cpu", "5.9.9", "6.0.1", "10.0"])
@pytest.mark.parametrize("wanted", ["", ">=1.2,<2", "==2.13.0", ">=5.9,<8", "<6", ">2,<=10"])
def test_versions_are_compared_as_pip_does(version, wanted):
    assert checks.satisfies(version, wanted) == (version in SpecifierSet(wanted))


def test_memory_is_what_psutil_says():
    found, known = hardware.memory(), psutil.virtual_memory()
    assert found.total <= known.total
    assert found.free == pytest.approx(known.available, rel=0.05) or found.total < known.total


def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch):
    (tmp_path / "max").write_text(f"{GIB}\n")
    (tmp_path / "current").write_text(f"{GIB // 4}\n")
    monkeypatch.setattr(
        hardware, "CGROUP_FILES", ((str(tmp_path / "max"), str(tmp_path / "current")),)
    )
    assert hardware.memory() == hardware.Memory(GIB, 3 * GIB // 4)
    (tmp_path / "max").write_text("max\n")
    assert hardware.memory().total > GIB


def test_the_processors_format_is_the_one_that_torch_finds():
    import torch

    native = torch.cpu.get_capabilities()
    has_bfloat16 = any(native.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    assert hardware.cpu_dtype() == ("bfloat16" if has_bfloat16 else "float32")


def test_nvidia_gpus_are_those_of_nvidia_smi(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        "echo 'NVIDIA GeForce GTX 1080, 8192, 500, 6.1, 0, GPU-aa11'\n"
        "echo 'NVIDIA GeForce RTX 4070, 12282, 11800, 8.9, 1, GPU-bb22'\n"
        "echo 'NVIDIA Something, [N/A], [N/A], 9.0, 2, GPU-cc33'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    first, second = hardware.gpus()
    assert (first.name, first.dtype) == ("NVIDIA GeForce RTX 4070", "bfloat16")
    assert first.memory == hardware.Memory(12282 * hardware.MIB, 11800 * hardware.MIB)
    assert (second.dtype, second.compute_capability) == ("float16", 6.1)
    for visible, names in {"0": ["GTX 1080"], "GPU-bb": ["RTX 4070"], "": [], "-1": []}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [gpu.name.removeprefix("NVIDIA GeForce ") for gpu in hardware.gpus()] == names


def test_amd_gpus_are_those_of_the_kernel(tmp_path):
    for card, vendor in (("card0", "0x1002"), ("card1", "0x8086")):
        folder = tmp_path / card / "device"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "mem_info_vram_total").write_text(f"{24 * GIB}\n")
        (folder / "mem_info_vram_used").write_text(f"{GIB}\n")
    (found,) = hardware._amd(str(tmp_path))
    assert found.kind == "cuda" and found.memory == hardware.Memory(24 * GIB, 23 * GIB)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"HF_HOME": "/somewhere/hf"},
        {"HF_HUB_CACHE": "/somewhere/cache"},
        {"XDG_CACHE_HOME": "/somewhere/xdg"},
        {"HF_HOME": "~/hf", "XDG_CACHE_HOME": "/other"},
    ],
)
def test_the_cache_is_where_huggingface_hub_keeps_it(changed):
    program = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), **changed}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert str(local.cache_folder(changed)) == ended.stdout.strip()


# --------------------------------------------------------------------------------- model and token


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(save_mistral(tmp_path_factory.mktemp("hub") / "model")) as hub:
        yield hub


def test_a_model_is_missing_then_whole_then_cut_short(server, tmp_path):
    server.behave()
    flags = ("--model", server.model)
    reached = {"home": tmp_path, "HF_ENDPOINT": server.url}
    _, told = report(*flags, **reached)
    assert level(told, "model") == "WARN" and "download_mistral_model.py" in text(told, "model")
    folder = tmp_path / "hub" / f"models--{server.model.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot.mkdir(parents=True)
    for name, content in server.files.items():
        (snapshot / name).write_bytes(content)
    code, told = report(*flags, **reached)
    assert code == 0 and text(told, "model").endswith("complete")
    assert told["options"][0]["weights"] > 0  # estimated from the model's own configuration
    part = snapshot / "model-00001-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    code, told = report(*flags, **reached)
    assert code == 0 and "is cut short" in text(told, "model")  # the download mends it
    part.unlink()
    code, told = report(*flags, **reached)
    assert code == 0 and f"not complete (no {part.name})" in text(told, "model")
    assert f"download_mistral_model.py --model {server.model}" in text(told, "model")


def test_the_token_is_asked_for_only_when_the_hub_wants_one_and_never_shown(server, tmp_path):
    server.behave()
    flags = ("--model", server.model)
    reached = {"home": tmp_path, "HF_ENDPOINT": server.url}
    _, told = report(*flags, **reached)
    assert text(told, "HF token") == "none; the model needs none"
    server.gated = True
    code, told = report(*flags, **reached)
    assert code == 1 and level(told, "HF token") == "FAIL"
    assert "put HF_TOKEN=... into .env" in text(told, "HF token")
    code, told = check(*flags, HF_TOKEN=TOKEN, **reached)
    assert code == 0 and "present" in told
    assert TOKEN not in told
    (tmp_path / "token").write_text(TOKEN)  # as `hf auth login` leaves it
    code, told = check(*flags, **reached)
    assert code == 0 and "present" in told and TOKEN not in told
    code, told = report("--model", local.MISTRAL, home=tmp_path)
    assert level(told, "HF token") == "WARN"  # nobody answers
    assert code == 0  # and the default model's size is known without
    code, told = report(*flags, home=tmp_path)
    assert code == 0 and text(told, "fits").startswith("not known")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ALPHAS": "much"}, "ALPHAS = 'much' (environment)"),
        ({"PROMPTS": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_bad_settings_are_told_here_too(changed, told):
    code, found = report(**changed)
    assert code == 1 and level(found, "settings") == "FAIL" and told in text(found, "settings")


def test_a_device_that_is_not_here_and_a_folder_that_is_not_a_model_fail(tmp_path):
    import torch

    if not torch.cuda.is_available():
        code, told = report(DEVICE="cuda")
        assert code == 1 and "DEVICE=cuda: this machine has none" in text(told, "fits")
    code, told = report("--model", str(tmp_path))
    assert code == 1 and "no readable config.json" in text(told, "model")
    code, told = report("--model", str(tmp_path / "nowhere"))
    assert code == 1 and "no such folder" in text(told, "model")


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_weights_take_what_is_estimated(quantization):
    """The demo model, loaded: its tensors and those of bitsandbytes' own states."""
    from logit_amplification.models.loading import load_model

    options = {"quantization": quantization, "dtype": "bfloat16", "device": "cpu"}
    model = load_model(load_settings(model="demo", **options)).model
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        if getattr(parameter, "SCB", None) is not None:
            tensors.append(parameter.SCB)
        if state := getattr(parameter, "quant_state", None):
            tensors += [state.absmax, state.state2.absmax]
    held = sum(
        {tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor is not None}.values()
    )
    estimated = sizes.weight_bytes(sizes.SMOLLM2_135M, quantization, 2)
    assert estimated == pytest.approx(held, rel=0.01)


def test_the_built_in_architectures_are_those_of_the_models(demo):
    known = demo.model.config.to_dict()
    assert {name: known[name] for name in sizes.SMOLLM2_135M} == sizes.SMOLLM2_135M
    assert sum(sizes.parameters(sizes.SMOLLM2_135M).values()) - sizes.parameters(
        sizes.SMOLLM2_135M
    )["linear_rows"] == sum(p.numel() for p in demo.model.parameters())


def test_the_defaults_are_those_of_the_settings():
    """Before the libraries are there, the check estimates with these."""
    fields = Settings.model_fields
    assert fields["model"].default == local.MISTRAL
    assert fields["max_new_tokens"].default == checks.NEW_TOKENS
    assert fields["quantization"].default == "8bit"


def use_cuda_build(monkeypatch):
    """Let torch be a build for NVIDIA's GPUs."""
    installed = checks._installed
    builds = {"torch": "2.13.0+cu130"}
    monkeypatch.setattr(checks, "_installed", lambda name: builds.get(name) or installed(name))


@pytest.mark.parametrize(
    ("ram", "gpu", "recommended"),
    [
        (16 * GIB, ("mps", "Apple M2", 10 * GIB, "bfloat16"), ("mps", "8bit")),
        (32 * GIB, ("cuda", "RTX 4070", 11.6 * GIB, "bfloat16"), ("cuda", "8bit")),
        (64 * GIB, ("cuda", "RTX 4090", 23 * GIB, "bfloat16"), ("cuda", "none")),
        (128 * GIB, ("cuda", "H200", 139 * GIB, "bfloat16"), ("cuda", "none")),
        (24 * GIB, None, ("cpu", "none")),
        (16 * GIB, None, ("cpu", "8bit")),
        (8 * GIB, None, ("cpu", "4bit")),
        (4 * GIB, None, None),
    ],
)
def test_what_is_recommended_on_other_machines(ram, gpu, recommended, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(ram, int(0.9 * ram)))
    monkeypatch.setattr(hardware, "cpu_dtype", lambda: "bfloat16")
    gpus = []
    if gpu:
        kind, name, free, native = gpu
        gpus = [hardware.Gpu(kind, name, hardware.Memory(int(free), int(free)), native)]
    monkeypatch.setattr(hardware, "gpus", lambda: gpus)
    use_cuda_build(monkeypatch)
    found = checks.check_machine()
    if recommended is None:
        assert found.recommended is None and not found.ready
        assert any(
            "close programs, use a larger machine, or DEVICE=split" in line
            for line in advice.lines(found)
        )
    else:
        best = found.recommended
        assert (best.device, best.quantization) == recommended
        assert found.ready and best.slots >= 1
        assert best.needed <= best.free
    for option in found.options:
        assert option.fits == (option.slots > 0)


# --------------------------------------------------------------------------------- before loading


def told_before_loading(monkeypatch, free, gpu=None, **values):
    """What is printed on a machine with so many bytes free, and no model on it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(free, free))
    monkeypatch.setattr(hardware, "cpu_dtype", lambda: "bfloat16")
    monkeypatch.setattr(hardware, "gpus", lambda: [gpu] if gpu else [])
    return list(advice.before_loading(load_settings(**values)))


def test_what_is_about_to_be_loaded_is_told_with_its_size(monkeypatch):
    (told,) = told_before_loading(monkeypatch, 12 * GB)
    assert told == (
        f"About to load {local.MISTRAL}: 14.5 GB to download; its weights take 7.5 GB of memory"
    )
    (told,) = told_before_loading(monkeypatch, 12 * GB, model="nobody/nothing")
    assert told == "About to load nobody/nothing: not on this machine yet"
    (told,) = told_before_loading(monkeypatch, 12 * GB, model=f"nobody/{TOKEN}")
    assert TOKEN not in told


def test_a_model_that_is_here_needs_no_download(monkeypatch, tmp_path):
    folder = save_mistral(tmp_path / "model")
    told, *_ = told_before_loading(monkeypatch, 12 * GB, model=str(folder))
    assert told.startswith(f"About to load {folder}: already on this machine; its weights take")


def test_one_line_says_when_full_precision_would_fit_too(monkeypatch):
    hint = (
        "QUANTIZATION=8bit (the default); none would fit here too and is more exact: "
        "QUANTIZATION=none"
    )
    assert told_before_loading(monkeypatch, 60 * GB)[1:] == [hint]
    assert told_before_loading(monkeypatch, 12 * GB)[1:] == []
    # It is the device of the choice that counts: the CPU's memory does not help a small GPU.
    gpu = hardware.Gpu("cuda", "RTX 4070", hardware.Memory(12 * GB, 12 * GB), "bfloat16")
    assert told_before_loading(monkeypatch, 60 * GB, gpu)[1:] == []
    for chosen in ("8bit", "4bit", "none"):  # chosen by hand
        assert told_before_loading(monkeypatch, 60 * GB, quantization=chosen)[1:] == []
    assert told_before_loading(monkeypatch, 60 * GB, model="demo")[1:] == []
    assert told_before_loading(monkeypatch, 60 * GB, model="nobody/nothing")[1:] == []


def test_the_other_model_is_named_with_the_way_to_it(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/nowhere")
    told = advice.other_model(load_settings(model="demo"))
    assert "14.5 GB to download" in told and local.MISTRAL in told
    told = advice.other_model(load_settings())
    assert 'PARAMETERS = {"model": "demo"}' in told and "make lab" in told


def test_slots_given_by_hand_must_fit_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hardware, "gpus", lambda: [])
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(24 * GIB, 22 * GIB))
    monkeypatch.setenv("SLOTS", "4096")
    assert checks.check_machine().recommended is None
    monkeypatch.setenv("SLOTS", "2")
    assert checks.check_machine().recommended.slots == 2


def test_a_torch_that_cannot_use_the_gpu_is_told(monkeypatch):
    gpu = hardware.Gpu("cuda", "RTX 4070", hardware.Memory(12 * GIB, 11 * GIB), "bfloat16")
    monkeypatch.setattr(checks.metadata, "version", lambda name: "2.13.0+cpu")
    found = checks._gpu([gpu], "auto")
    assert found.level == "FAIL" and "torch 2.13.0+cpu cannot use it" in found.text
    assert "torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130" in found.text
    assert checks._gpu([gpu], "cpu").level == "WARN"


# ------------------------------------------------------------------------------------ a choice kept


def on_a_gpu(monkeypatch, total, free, **values):
    """What the check finds beside an NVIDIA GPU with so many bytes free."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(64 * GIB, 60 * GIB))
    gpu = hardware.Gpu("cuda", "RTX 4090", hardware.Memory(total, free), "bfloat16")
    monkeypatch.setattr(hardware, "gpus", lambda: [gpu])
    use_cuda_build(monkeypatch)
    return checks.check_machine(settings=load_settings(**values))


def test_the_recommended_precision_is_written_once_and_then_stays(monkeypatch, tmp_path):
    file = tmp_path / ".env"
    file.write_text("SEED=3")
    told = choice.save(on_a_gpu(monkeypatch, 24 * GIB, 23 * GIB), file)
    assert "Wrote QUANTIZATION=none DEVICE=cuda" in told
    assert file.read_text().splitlines()[0] == "SEED=3"
    monkeypatch.setattr("logit_amplification.settings.ENV_FILES", (file,))
    assert load_settings().quantization == "none" and load_settings().seed == 3
    before = file.read_text()
    found = on_a_gpu(monkeypatch, 24 * GIB, 23 * GIB)
    assert "is set, and stays" in choice.save(found, file) and file.read_text() == before
    monkeypatch.setenv("QUANTIZATION", "4bit")
    found = on_a_gpu(monkeypatch, 24 * GIB, 23 * GIB)
    assert "is set, and stays" in choice.save(found, file) and file.read_text() == before


def test_a_precision_that_is_given_is_kept_for_the_next_command(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTIZATION", "4bit")
    found = on_a_gpu(monkeypatch, 24 * GIB, 9 * GIB)
    assert "Wrote QUANTIZATION=4bit" in choice.save(found, tmp_path / ".env")
    assert (tmp_path / ".env").read_text().splitlines()[1:] == ["QUANTIZATION=4bit"]


def test_a_model_of_unknown_size_is_no_obstacle_and_split_is_not_quantised(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "model_config", lambda plan: None)
    monkeypatch.setattr(choice, "model_config", lambda plan: None)
    found = on_a_gpu(monkeypatch, 24 * GIB, 23 * GIB)
    assert found.ready and "Nothing is chosen" in choice.save(found, tmp_path / ".env")
    monkeypatch.undo()
    found = on_a_gpu(monkeypatch, 24 * GIB, 23 * GIB, device="split")
    (fit,) = [check for check in found.checks if check.name == "fits"]
    assert fit.text == "QUANTIZATION=8bit does not go with DEVICE=split; allowed: none"


def test_a_gpu_that_another_program_uses_lowers_no_precision(monkeypatch, tmp_path):
    found = on_a_gpu(monkeypatch, 24 * GIB, 9 * GIB)
    assert "other programs hold the rest" in next(c.text for c in found.checks if c.name == "GPU")
    with pytest.raises(BadInput, match="idle it would fit QUANTIZATION=none DEVICE=cuda"):
        choice.save(found, tmp_path / ".env")
    assert not (tmp_path / ".env").exists()
    found = on_a_gpu(monkeypatch, 24 * GIB, 9 * GIB, quantization="none")
    (fit,) = [check for check in found.checks if check.name == "fits"]
    assert fit.level == "FAIL" and "are free" in fit.text and not found.ready


def test_a_choice_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="set QUANTIZATION=none DEVICE=cuda yourself"):
        choice.save(on_a_gpu(monkeypatch, 24 * GIB, 23 * GIB), tmp_path)


def test_of_several_gpus_the_one_with_most_free_memory_is_taken(monkeypatch):
    chosen = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda one: ((5, 9, 7)[one.index], 10))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert devices.choose_device("auto") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]


def test_faults_of_a_folder_are_named(tmp_path):
    assert [fault.split()[0] for fault in local.faults(tmp_path)] == ["no"] * 3
    folder = save_mistral(tmp_path / "model")
    assert not local.faults(folder)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 100)
    assert local.faults(folder) == ["model-00001-of-00002.safetensors is damaged"]
    (folder / "model.safetensors.index.json").write_text("{")
    assert local.faults(folder) == ["no model.safetensors"]


def test_what_stands_beside_the_model_counts(monkeypatch, tmp_path):
    """Two checkpoints take twice the weights and as many keys and values; a base takes more."""
    monkeypatch.setattr(
        checks.hardware, "memory", lambda: checks.hardware.Memory(64 * 10**9, 64 * 10**9)
    )
    given = {"model": "demo", "device": "cpu", "dtype": "float32", "slots": 8}
    plain, two, three = (
        checks.check_machine(settings=load_settings(**given, **more)).options[0]
        for more in ({}, {"model_b": "demo"}, {"model_b": "demo", "model_base": "demo"})
    )
    assert two.weights == 2 * plain.weights and three.weights == 3 * plain.weights
    assert two.keys_and_values == plain.keys_and_values
    assert three.keys_and_values == 1.5 * plain.keys_and_values
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x" * 1000)
    asked = load_settings(**given, adapter=str(tmp_path))
    adapted = checks.check_machine(settings=asked).options[0]
    assert adapted.weights == plain.weights + 2000
    unknown = load_settings(**given, model_b=str(tmp_path))
    assert not checks.check_machine(settings=unknown).ready
