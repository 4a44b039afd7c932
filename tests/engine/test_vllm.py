"""vLLM as an engine makes the tokens that ours makes, or says in one line that it cannot.

These need vLLM's environment (`make vllm`), on a CPU.
"""

from __future__ import annotations

import os

import pytest
import torch
from conftest import save_tiny_mistral

from decoding import TINY_CONTEXTS, contrasts, demo_contexts
from logit_amplification.engine.batch.batched import BatchedEngine
from logit_amplification.engine.forward import text_nll
from logit_amplification.engine.interface import Cell, Contrast, Request, Stream
from logit_amplification.engine.vllm import engine as vllm
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.logits.sampling import make_sampler
from logit_amplification.models.loading import load_model
from logit_amplification.models.weights import demo_folder
from logit_amplification.prompts.files import read_pairs
from logit_amplification.settings import load_settings
from logit_amplification.sweeps.sweep import sweep

PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="needs vLLM's environment (make vllm): none is here"
)

NAMES = [pair.id for pair in read_pairs(ROOT / "data" / "prompt_pairs.csv")][:8]
ALPHAS = (-1.0, 0.0, 1.0, 3.0)


@pytest.fixture(scope="module")
def contexts(demo):
    return contrasts(demo_contexts(demo, *NAMES))


def started(folder, **given):
    return vllm.VllmEngine(
        folder, python=PYTHON, dtype="float32", **{"slots": 8, "longest": 400} | given
    )


@pytest.fixture(scope="module")
def engine():
    """One vLLM for most tests: it takes a quarter of a minute to start."""
    paraphrases = {NAMES[0]: (1, 28, 44, 7)}
    made = started(demo_folder()[0], paraphrases=paraphrases)
    yield made
    made.close()


def request(demo, temperature=0.0, length=24, **more):
    return Request(make_sampler(temperature, 0, 0.9), 0, length, demo.stop_ids, **more)


def made(engine, cells, contexts, asked):
    return {one.cell: one for one in engine.generate(iter(cells), contexts, asked)}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for cell, one in ours.items():
        assert theirs[cell].token_ids == one.token_ids, cell
        assert theirs[cell].finish_reason == one.finish_reason
        for row, other in zip(one.per_token, theirs[cell].per_token, strict=True):
            assert other == pytest.approx(row, abs=2e-3)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_and_measures_are_those_of_our_engine(engine, demo, contexts, temperature):
    """Sampled texts too: both draw by the same uniform numbers."""
    cells = [Cell(name, alpha, 0) for name in contexts for alpha in ALPHAS]
    asked = request(demo, temperature)
    steps = []
    theirs = made(engine, cells, contexts, request(demo, temperature, on_step=steps.append))
    assert_same(made(BatchedEngine(demo.model, 16), cells, contexts, asked), theirs)
    assert sum(steps) == sum(len(one.token_ids) for one in theirs.values())
    scored = [one for cell, one in theirs.items() if cell.pair_id == NAMES[0]]
    for one in scored:
        expected = text_nll(demo.model, engine.paraphrases[NAMES[0]], one.token_ids)
        assert one.nll_p == pytest.approx(expected, abs=1e-4)
    assert all(one.nll_p is None for c, one in theirs.items() if c.pair_id != NAMES[0])


def test_arms_rules_null_pairs_and_likeliest_tokens_are_as_ours(engine, demo, contexts):
    a = contexts[NAMES[1]].a
    own = {NAMES[1]: contexts[NAMES[1]], "null": Contrast(a, a)}
    cells = [Cell(n, 2.0, s, arm) for n in own for s in (0, 1) for arm in ("full", "api_floor")]
    weight = 0.5  # of the surroundings of the rule: it goes along

    def half(logits_a, logits_b, alpha):
        return logits_a + weight * alpha * (logits_a - logits_b)

    asked = request(demo, 1.0, rule=half, likeliest=3)
    ours, theirs = (made(one, cells, own, asked) for one in (BatchedEngine(demo.model, 16), engine))
    assert_same(ours, theirs)
    for cell, one in ours.items():
        for left, right in zip(one.likeliest, theirs[cell].likeliest, strict=True):
            assert [token for token, _ in left] == [token for token, _ in right]


def test_what_ends_an_answer_is_ours_to_say(engine, demo, contexts):
    def stops(tokens):
        return len(tokens) == 3

    def breaks(logits_a, logits_b, alpha):
        return logits_a + torch.where(alpha == 3, torch.nan, 0.0)

    cells = [Cell(NAMES[0], alpha, 0) for alpha in ALPHAS]
    stopped = made(engine, cells, contexts, request(demo, stops=stops))
    assert {(len(one.token_ids), one.finish_reason) for one in stopped.values()} == {(3, "stop")}
    broken = made(engine, cells, contexts, request(demo, length=5, rule=breaks))
    reasons = [broken[cell].finish_reason for cell in cells]
    assert reasons[-1] == "error" and "NaN or infinite" in broken[cells[-1]].error
    assert "error" not in reasons[:-1]


def test_a_rule_that_fails_is_told(engine, demo, contexts):
    """The last with this engine: it ends vLLM's process, and what follows is told so."""

    def wrong(logits_a, logits_b, alpha):
        return logits_a[:, :10]

    cells = [Cell(NAMES[0], 1.0, 0)]
    with pytest.raises(BadInput, match="ENGINE = vllm: the rule returned"):
        made(engine, cells, contexts, request(demo, rule=wrong))
    with pytest.raises(BadInput, match="ENGINE = vllm: its process has ended"):
        made(engine, cells, contexts, request(demo))


TIGHT = {
    "max_num_seqs": 7,  # odd: a cell has two
    "max_num_batched_tokens": 200,
    "kv_cache_memory_bytes": 200 << 20,
}


def test_little_room_makes_the_same_tokens_or_one_line(demo, contexts):
    """Chunked prefill, an odd number of sequences and a small cache at once."""
    tight = started(demo_folder()[0], options=TIGHT | {"max_model_len": 256})
    fitting = {n: c for n, c in contexts.items() if sum(len(s.ids) for s in c.streams) <= 200}
    assert len(fitting) >= 3
    cells = [Cell(name, alpha, 0) for name in fitting for alpha in ALPHAS]
    ours = made(BatchedEngine(demo.model, 16), cells, fitting, request(demo))
    assert_same(ours, made(tight, cells, fitting, request(demo)))
    long = {"long": Contrast(Stream(tuple(range(3, 130))), Stream(tuple(range(3, 100))))}
    with pytest.raises(BadInput, match=r"'long' needs 224 of vLLM's max_num_batched_tokens"):
        made(tight, [Cell("long", 1.0, 0)], long, request(demo))
    tight.close()


def test_a_sweep_with_an_adapter_has_the_records_that_ours_has(tmp_path):
    """Model diffs by vLLM's requests with and without LoRA; the whole way of a sweep."""
    adapter = ROOT / "data" / "organisms" / "quirk-1-in-50"
    common = {"model": "demo", "dtype": "float32", "device": "cpu", "adapter": str(adapter)}
    common |= {"alphas": [-1, 0, 2], "slots": 4, "max_new_tokens": 16}
    records = {}
    for engine in ("torch", "vllm"):
        settings = load_settings(
            **common,
            engine=engine,
            data_dir=tmp_path / engine,
            visualizations_dir=tmp_path / engine,
        )
        pairs = read_pairs(ROOT / "data" / "organisms" / "held_out.csv", (), settings.sources)[:3]
        done = sweep(load_model(settings), pairs, settings)
        records[engine] = [(r["pair_id"], r["alpha"], r["token_ids"]) for r in done.records]
    assert records["torch"] == records["vllm"]
    assert done.run["engine"]["name"] == "vllm" and done.run["engine"]["versions"]["vllm"]
    assert len({tuple(ids) for _, _, ids in records["vllm"]}) > 4


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processor cores: one is here")
def test_a_model_that_is_split_over_two_processes_makes_the_same_tokens(tmp_path, monkeypatch):
    """Tensor parallelism: the processor runs in each, and they have to agree."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    # Of a width that vLLM's attention on a CPU knows: 64 for each head.
    wide = {"hidden_size": 256, "num_attention_heads": 4, "initializer_range": 0.2}
    folder = save_tiny_mistral(tmp_path / "wide", **wide)
    loaded = load_model(folder, quantization="none", dtype="float32", device="cpu")
    contexts = contrasts(TINY_CONTEXTS)
    cells = [Cell(name, alpha, 0) for name in contexts for alpha in ALPHAS]
    asked = Request(make_sampler(0.7, 0, 0.9), 0, 24, loaded.stop_ids)
    split = started(folder, options={"tensor_parallel_size": 2})
    assert_same(
        made(BatchedEngine(loaded.model, 8), cells, contexts, asked),
        made(split, cells, contexts, asked),
    )
    split.close()
