"""Load a causal language model: the demo model, one from Hugging Face, or a local folder."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import BadInput
from ..locations import DEMO, MISTRAL, cache_folder
from ..machine import hardware, sizes
from ..machine.devices import choose_device, choose_dtype, mps_has_bfloat16
from ..progress import Bar
from ..settings import Settings
from . import hub
from .adapters import adapter_config, with_adapter
from .local import read_json
from .spec import ModelSpec, model_spec, other_spec
from .weights import demo_folder, hash_weights, quiet_transformers

BAR_AFTER = 2.0  # seconds: a small model needs no bar
M_MMAP_THRESHOLD = -3  # glibc's constant for mallopt(3)


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, its tokenizer, and where both came from.

    stop_ids: the token ids that end an answer. max_positions: the longest context, in tokens.
    others: further weights by the name of their source: `model_b` for B, and `model_base` for the
    model that the difference is added to.
    """

    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    max_positions: int
    info: dict[str, Any] = field(repr=False)  # what can change a token; part of the run's identity
    folder: Path | None = None  # of the model's files
    others: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        """The device for input ids; with vLLM, the device that was chosen for it."""
        return torch.device(self.info["device"]) if self.is_elsewhere else self.model.device

    @property
    def is_elsewhere(self) -> bool:
        """Whether the weights are in vLLM's process, so that `model` is the architecture alone."""
        return self.model.device.type == "meta"

    @property
    def sources(self) -> dict[str, Any]:
        """All models by the name of their source, this model first."""
        return {"model": self.model, **self.others}

    def weight_bytes(self) -> int:
        """Return the bytes of all weights; weights that sources share count once."""
        parts = {
            id(part): part.nbytes
            for source in self.sources.values()
            for part in (*source.parameters(), *source.buffers())
        }
        return sum(parts.values())


def load_model(
    model: str | Path | ModelSpec | Settings,
    *,
    revision: str | None = None,
    quantization: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    adapter: str | Path | None = None,
    model_b: str | Path | None = None,
    model_base: str | Path | None = None,
) -> LoadedModel:
    """Load a model: `demo`, a Hugging Face id, a folder with safetensors, or what settings name.

    adapter: a folder with a PEFT adapter; A is the model with it, B without. model_b: another model
    with the same vocabulary, used for B. model_base: another one, which the difference is added to.
    If `model` is a folder with an adapter, A and B both use the model that the adapter was trained
    on, with the adapter.

    Keywords override what settings say. By default the demo model is not quantised and others are
    in `8bit`; `revision`, `dtype` and `device` are chosen automatically (`auto`). Raises BadInput
    when there is no such model, or when it cannot be loaded here.
    """
    choices = {"revision": revision, "quantization": quantization, "dtype": dtype, "device": device}
    others = {"adapter": adapter, "model_b": model_b, "model_base": model_base}
    choices |= {name: value if value is None else str(value) for name, value in others.items()}
    spec = model_spec(model, **choices)
    _refuse_missing(spec)
    own = Path(spec.model).expanduser()
    is_adapter = (own / "adapter_config.json").is_file()
    if spec.engine == "vllm":
        _refuse_what_vllm_has_not(spec, is_adapter)
    loaded = _as_one(own, spec) if is_adapter else _load(spec)
    if spec.adapter:
        loaded = _adapted(loaded, Path(spec.adapter).expanduser())
    for setting in ("model_b", "model_base"):
        if name := getattr(spec, setting):
            loaded = _beside(loaded, setting, _load(other_spec(spec, name)))
    return loaded


def _refuse_missing(spec: ModelSpec) -> None:
    """Raise BadInput, before anything is loaded, for folders that do not exist."""
    if spec.adapter:
        adapter_config(Path(spec.adapter).expanduser())
    for setting in ("model_b", "model_base"):
        name = getattr(spec, setting)
        is_path = name.startswith((".", "~")) or Path(name).is_absolute()
        if is_path and not Path(name).expanduser().is_dir():
            raise BadInput(f"{setting.upper()} = {name!r}: no such folder")


def _refuse_what_vllm_has_not(spec: ModelSpec, is_adapter: bool) -> None:
    """Raise BadInput for models and settings that the vLLM engine cannot use."""
    if is_adapter:
        raise BadInput(
            f"MODEL = {spec.model!r} is an adapter; allowed with ENGINE = vllm: its model, and the "
            "adapter as ADAPTER"
        )
    for setting in ("model_b", "model_base"):
        if name := getattr(spec, setting):
            raise BadInput(
                f"{setting.upper()} = {name!r}: vLLM's process has the weights of one model; "
                "allowed with ENGINE = vllm: ADAPTER"
            )
    if spec.device == "split":
        raise BadInput(
            "DEVICE = 'split'; allowed with ENGINE = vllm: auto, and tensor_parallel_size in "
            "VLLM_OPTIONS"
        )
    if spec.quantization != "none":
        raise BadInput(
            f"QUANTIZATION = {spec.quantization!r}; allowed with ENGINE = vllm: none, and models "
            "that are quantised already"
        )


def _as_one(folder: Path, spec: ModelSpec) -> LoadedModel:
    """Load a folder with an adapter as one model: the model it was trained on, with the adapter."""
    trained_on = adapter_config(folder).get("base_model_name_or_path")
    if not trained_on:
        raise BadInput(f"MODEL = {spec.model!r}: its adapter_config.json names no base model")
    loaded = _adapted(_load(other_spec(spec, trained_on)), folder)
    return replace(loaded, info=loaded.info | {"name": folder.name}, others={})


def _adapted(loaded: LoadedModel, folder: Path) -> LoadedModel:
    """Return the model with an adapter, and the model without it as `model_b`."""
    trained_on = adapter_config(folder).get("base_model_name_or_path") or "an unnamed model"
    if Path(trained_on).name != Path(loaded.info["name"]).name:
        print(f"Adapter {folder.name} was trained on {trained_on}")
    adapted = loaded.model if loaded.is_elsewhere else with_adapter(loaded.model, folder)
    made_of = {"name": folder.name, "files_sha256": hash_weights(folder)}
    return replace(
        loaded,
        model=adapted,
        info=loaded.info | {"adapter": made_of},
        others={"model_b": loaded.model},
    )


def _beside(loaded: LoadedModel, setting: str, other: LoadedModel) -> LoadedModel:
    """Add another model's weights as the source `setting`.

    Raises BadInput unless both have the same vocabulary with the same ids.
    """
    names = loaded.info["name"], other.info["name"]
    sizes_of_vocabulary = loaded.info["vocabulary"], other.info["vocabulary"]
    if len(set(sizes_of_vocabulary)) > 1:
        raise BadInput(
            f"{setting.upper()} = {names[1]!r}: {sizes_of_vocabulary[1]} logits, and {names[0]!r} "
            f"has {sizes_of_vocabulary[0]}; allowed: the same vocabulary"
        )
    ours, theirs = loaded.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if ours != theirs:
        token = min(set(ours.items()) ^ set(theirs.items()), key=lambda item: item[::-1])[0]
        raise BadInput(
            f"{setting.upper()} = {names[1]!r}: the token {token!r:.40} has a different id than in "
            f"{names[0]!r}; allowed: the same vocabulary with the same ids"
        )
    return replace(
        loaded,
        max_positions=min(loaded.max_positions, other.max_positions),
        info=loaded.info | {setting: other.info},
        others=loaded.others | {setting: other.model},
    )


def _load(spec: ModelSpec) -> LoadedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    refuse_what_cannot_work(spec, device, dtype)
    if spec.model == MISTRAL:  # its size is known without downloading 14 GB first
        refuse_what_cannot_fit(spec, device, dtype, sizes.MISTRAL_7B)
    folder, origin = find_model(spec)
    hub.refuse_faults(spec.model, folder)
    config = read_json(folder / "config.json")
    if spec.quantization != "none" and "quantization_config" in config:
        raise BadInput(
            f"QUANTIZATION = {spec.quantization!r}: the weights of {spec.model!r} are "
            "quantised already; allowed with them: none"
        )
    refuse_what_cannot_fit(spec, device, dtype, config)
    if spec.quantization != "none" and device.type == "cpu":
        keep_heap_tight()
    with quiet_transformers():
        try:
            # Tokens must not depend on whether mistral-common happens to be installed.
            tokenizer = AutoTokenizer.from_pretrained(folder, mistral_format=False)
            if spec.engine == "vllm":
                model = _without_weights(folder, dtype)
            else:
                with progress_shown():
                    model = AutoModelForCausalLM.from_pretrained(
                        folder,
                        dtype=dtype,
                        **placed(spec, device),
                        quantization_config=quantization_config(spec.quantization, dtype),
                        use_safetensors=True,
                    )
        except torch.OutOfMemoryError:
            raise BadInput(f"MODEL = {spec.model!r}: out of memory on {device}") from None
        except Exception as error:  # a damaged or foreign folder can raise many types
            told = f"cannot be loaded: {type(error).__name__}: {_first_line(error)}"
            raise BadInput(f"MODEL = {spec.model!r} {told}") from error
    model.requires_grad_(False).eval()
    config = model.config.get_text_config()
    info = {
        "name": Path(spec.model).name if Path(spec.model).is_dir() else spec.model,
        **origin,
        "quantization": spec.quantization,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "parameters": model.num_parameters(),
        "vocabulary": config.vocab_size,
        "chat_template_sha256": hashlib.sha256(
            (tokenizer.chat_template or "").encode()
        ).hexdigest(),
    }
    positions = config.max_position_embeddings
    window = getattr(config, "sliding_window", None)
    return LoadedModel(
        model,
        tokenizer,
        stop_ids=_stop_ids(model, tokenizer),
        # The slot cache keeps every position, so a sliding window must never start to slide.
        max_positions=min(positions, window) if window else positions,
        info=info,
        folder=folder,
    )


def placed(spec: ModelSpec, device: torch.device) -> dict[str, Any]:
    """Return `from_pretrained`'s arguments for placement: one device, or as accelerate plans it."""
    if spec.device != "split":
        return {"device_map": {"": device}}
    return {
        "device_map": "auto",
        "max_memory": spec.memory,
        "offload_folder": cache_folder() / "offload",
    }


def _without_weights(folder: Path, dtype: torch.dtype) -> Any:
    """Return a model's architecture alone, on torch's `meta` device; calling it raises BadInput."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)

    def forward(*args: Any, **options: Any) -> None:
        raise BadInput(
            "ENGINE = vllm: the weights are in vLLM's process, and this needs them here; allowed: "
            "ENGINE = torch"
        )

    model.forward = forward
    return model


def refuse_what_cannot_work(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Raise BadInput for a precision that this device or installation does not support."""
    if spec.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            f"QUANTIZATION = {spec.quantization!r}: bitsandbytes is not installed; "
            "allowed without it: none"
        )
    # LLM.int8 needs int8 tensor cores (bitsandbytes' installation guide). AMD GPUs number their
    # capabilities differently.
    nvidia = device.type == "cuda" and torch.version.hip is None
    if nvidia and spec.quantization == "8bit":
        capability = torch.cuda.get_device_capability(device)
        if capability < (7, 5):
            raise BadInput(
                "QUANTIZATION = '8bit' needs an NVIDIA GPU of compute capability 7.5, this one has "
                f"{capability[0]}.{capability[1]}; allowed here: none, 4bit"
            )
    if device.type == "mps" and dtype == torch.bfloat16 and not mps_has_bfloat16():
        raise BadInput("DTYPE = 'bfloat16' needs macOS 14 on Apple's GPU; allowed: auto, float16")


def refuse_what_cannot_fit(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, config: dict[str, Any]
) -> None:
    """Raise BadInput when the weights alone exceed the device's total memory.

    config: as in config.json; a type whose size cannot be estimated passes.
    """
    on_gpu = device.type == "cuda"
    memory = torch.cuda.mem_get_info(device)[1] if on_gpu else hardware.memory().total
    try:
        weights = {
            name: sizes.weight_bytes(config, name, dtype.itemsize)
            for name in ("none", "8bit", "4bit")
        }
    except (ValueError, KeyError, TypeError):  # the size cannot be estimated
        return
    if weights[spec.quantization] > memory and spec.device != "split":
        fitting = [name for name, size in weights.items() if size < memory]
        raise BadInput(
            f"QUANTIZATION = {spec.quantization!r}: the weights of {spec.model!r} take "
            f"{weights[spec.quantization] / 1e9:.1f} GB and the {device.type} here has "
            f"{memory / 1e9:.1f}; allowed here: {', '.join(fitting) or 'no precision, see DEVICE'}"
        )


def quantization_config(name: str, dtype: torch.dtype) -> Any:
    """Return bitsandbytes' configuration for `8bit` (LLM.int8) or `4bit` (NF4), None for `none`."""
    if name == "none":
        return None
    from transformers import BitsAndBytesConfig

    # In 8 bit it warns per layer and step that bfloat16 inputs are cast, in 4 bit on a CPU of a
    # kernel that it would like to download. A user can do nothing about either.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def find_model(spec: ModelSpec) -> tuple[Path, dict[str, Any]]:
    """Return the model's local folder, downloading it if needed, and its revision and hashes.

    Raises BadInput for a path that is no folder, and as `hub.fetch` does.
    """
    if spec.model == DEMO:
        return demo_folder()
    folder = Path(spec.model).expanduser()
    if folder.is_dir():
        return folder, {"revision": None, "files_sha256": hash_weights(folder)}
    if folder.is_absolute() or spec.model.startswith((".", "~")):
        raise BadInput(f"MODEL = {spec.model!r}: no such folder")
    found = hub.fetch(spec.model, spec.revision)
    return found, {"revision": found.name, "files_sha256": hash_weights(found)}


def keep_heap_tight() -> None:
    """Make glibc return large blocks to the system when they are freed, in the whole process.

    Quantised layers are packed and, on a CPU, unpacked at every step. By default glibc adapts and
    keeps such blocks: Mistral in 4 bit would take 6.7 GB instead of 4.8. No effect without glibc.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


@contextmanager
def progress_shown() -> Iterator[None]:
    """Show the progress of loading weights, which transformers reports, in our own bar."""
    from transformers.utils import logging as hf_logging

    def bar(_factory: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Bar:
        return Bar(*args, **options | {"desc": "loading weights", "delay": BAR_AFTER})

    before = hf_logging.set_tqdm_hook(bar)
    try:
        yield
    finally:
        hf_logging.set_tqdm_hook(before)


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return every id that ends an answer: the generation config's (one or several) and the EOS."""
    listed = model.generation_config.eos_token_id
    ids = listed if isinstance(listed, list) else [listed]
    return frozenset(token for token in (*ids, tokenizer.eos_token_id) if token is not None)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
