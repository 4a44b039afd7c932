"""Where a setting comes from, what it may be, and what a user is told."""

import re

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.settings import Settings, load_settings


@pytest.fixture
def env_file(monkeypatch, tmp_path):
    """Write a .env that load_settings reads."""
    path = tmp_path / ".env"
    monkeypatch.setattr("logit_amplification.settings.ENV_FILES", (path,))
    return path


def complaint(**values):
    with pytest.raises(BadInput) as caught:
        load_settings(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults_are_those_that_the_readme_promises():
    settings = load_settings()
    assert settings.model == "mistralai/Mistral-7B-Instruct-v0.2"
    assert settings.quantization == "8bit"
    assert settings.alphas == (-1.0, 0.0, 0.1, 0.3, 0.5, 1.0, 1.5, 2.0)
    assert (settings.max_new_tokens, settings.temperature, settings.top_p) == (100, 0.7, 0.9)


def test_a_flag_beats_the_environment_which_beats_the_file(env_file, monkeypatch):
    env_file.write_text("TEMPERATURE=0.1\nSEED=1\nSAMPLES=1\n")
    monkeypatch.setenv("SEED", "2")
    monkeypatch.setenv("SAMPLES", "2")
    settings = load_settings(flags=["--samples", "3"])
    assert (settings.temperature, settings.seed, settings.samples) == (0.1, 2, 3)


def test_an_argument_beats_everything(env_file):
    env_file.write_text("TEMPERATURE=0.1\n")
    assert load_settings(temperature=0.5).temperature == 0.5


@pytest.mark.parametrize("text", ["0.5,1", " 0.5 , 1", "1,0.5,0.5", "0,0.5,1"])
def test_alphas_are_sorted_once_each_and_with_zero(text):
    assert load_settings(alphas=text).alphas == (0.0, 0.5, 1.0)


def test_negative_alphas_can_be_given_with_an_equals_sign():
    assert load_settings(flags=["--alphas=-1,0,1"]).alphas == (-1.0, 0.0, 1.0)


def test_full_means_no_quantization():
    assert load_settings(quantization="full").quantization == "none"


def test_the_demo_model_is_not_quantized_unless_asked():
    assert load_settings(model="demo").quantization == "none"
    assert load_settings(model="demo", quantization="4bit").quantization == "4bit"


def test_empty_values_in_the_file_mean_the_default(env_file):
    env_file.write_text("TEMPERATURE=\nREVISION=\n")
    assert load_settings().temperature == 0.7


def test_hugging_face_variables_in_the_file_reach_the_environment(env_file, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", "already-set")
    env_file.write_text("HF_TOKEN=hf_secret\nHF_HOME=from-file\n")
    load_settings()
    import os

    assert os.environ.pop("HF_TOKEN") == "hf_secret"
    assert os.environ["HF_HOME"] == "already-set"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("alphas", "abc", "numbers from -100 to 100"),
        ("alphas", "", "numbers"),
        ("alphas", "101", "-100 to 100"),
        ("alphas", "nan", "numbers"),
        ("temperature", "-1", "0.01 to 100"),
        ("temperature", "0.001", "0.01 to 100"),
        ("temperature", "inf", "0.01 to 100"),
        ("top_p", "0", "above 0 and at most 1"),
        ("top_p", "1.5", "above 0 and at most 1"),
        ("top_k", "-1", "whole number from 0"),
        ("samples", "0", "from 1"),
        ("samples", "1.5", "whole number"),
        ("max_new_tokens", "0", "from 1"),
        ("seed", "-1", "from 0"),
        ("quantization", "3bit", "none, 8bit"),
        ("dtype", "float8", "bfloat16"),
        ("device", "tpu", "cpu, cuda, mps, or split"),
        ("arms", "full,fancy", "plausible"),
        ("slots", "0", "auto or a whole number"),
        ("slots", "many", "auto or a whole number"),
        ("model", "", "a folder"),
    ],
)
def test_a_bad_value_is_told_with_its_name_and_what_is_allowed(name, value, allowed):
    told = complaint(**{name: value})
    assert told.startswith(f"{name.upper()} = {value!r} (argument)")
    assert allowed in told


def test_the_place_of_a_bad_value_is_told(env_file, monkeypatch):
    env_file.write_text("TOP_P=7\n")
    assert complaint().startswith("TOP_P = '7' (.env)")
    monkeypatch.setenv("TOP_P", "8")
    assert complaint().startswith("TOP_P = '8' (environment)")
    with pytest.raises(BadInput, match=r"TOP_P = '9' \(flag --top-p\)"):
        load_settings(flags=["--top-p", "9"])


def test_an_unknown_setting_in_the_file_is_refused_by_name(env_file):
    env_file.write_text("TEMPERATUR=0.7\n")
    told = complaint()
    assert "TEMPERATUR" in told and ".env" in told and "TEMPERATURE" in told


def test_a_file_that_is_not_text_is_refused(env_file):
    env_file.write_bytes(b"\xff\xfe\x00S")
    assert "UTF-8" in complaint()


def test_unknown_flags_and_flags_without_a_value_are_refused():
    for flags in (["--bogus", "3"], ["--temperature"], ["stray"]):
        with pytest.raises(BadInput, match="allowed"):
            load_settings(flags=flags)


@hypothesis_settings(deadline=None)
@given(st.sampled_from(sorted(Settings.model_fields)), st.text(max_size=30))
def test_whatever_is_typed_gives_settings_or_one_line(name, value):
    try:
        load_settings(**{name: value})
    except BadInput as error:
        assert "\n" not in str(error) and name.upper() in str(error)


def test_env_example_documents_every_setting_with_its_default():
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^# ?([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))
    defaults = load_settings()
    for name in Settings.model_fields:
        assert name.upper() in documented, name
        if name not in ("prompts", "vllm_python", "data_dir", "visualizations_dir"):
            assert getattr(load_settings(**{name: documented[name.upper()]}), name) == getattr(
                defaults, name
            )


def test_env_example_says_what_is_allowed():
    text = " ".join((ROOT / ".env.example").read_text(encoding="utf-8").replace("#", " ").split())
    for name, field in Settings.model_fields.items():
        assert field.json_schema_extra["allowed"] in text, name


def test_a_list_that_begins_with_a_minus_sign_needs_no_equals_sign():
    assert load_settings(flags=["--alphas", "-1,0,1", "--seed", "3"]).alphas == (-1.0, 0.0, 1.0)
    assert load_settings(flags=["--alphas", "-.5"]).alphas == (-0.5, 0.0)
    with pytest.raises(BadInput, match="SEED = '-1'"):
        load_settings(flags=["--seed", "-1"])
