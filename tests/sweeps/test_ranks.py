"""Several processes share a sweep: the same bytes as one makes, whoever of them dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import flags_in

import logit_diff_mistral
from command_line import SWEEP, as_list, free_port, run_process, start, start_ranks
from logit_amplification.errors import BadInput
from logit_amplification.locations import ROOT
from logit_amplification.sweeps import history
from logit_amplification.sweeps.processes import sharing
from logit_amplification.sweeps.processes.ranks import Ranks

RESULTS = "amplification_results.json"
MORE = {"alphas": "0,0.5,1,2", "samples": 10, "max-new-tokens": 40, "step": "packed"}
BIN = os.path.dirname(sys.executable)


@pytest.fixture(scope="module")
def made_alone(tmp_path_factory, tiny_folder):
    """The bytes that one process makes of 120 cells in 9 pieces."""
    flags = flags_in(tmp_path_factory.mktemp("alone"), tiny_folder) | MORE
    assert logit_diff_mistral.main(as_list(flags)) == 0
    return results(flags)


@pytest.fixture
def shared(flags, made_alone, few_figures):
    """Flags of that sweep, and its bytes."""
    return flags | MORE, made_alone


def results(flags):
    return (flags["data-dir"] / RESULTS).read_bytes()


def metadata(flags):
    return json.loads((flags["data-dir"] / "experiment_metadata.json").read_text())


def until(ranks, condition):
    while not condition():
        assert any(rank.returncode is None for rank in ranks), [rank.told for rank in ranks]
        time.sleep(0.02)


def generations(flags):
    return sum(path.read_bytes().count(b"\n") for path in flags["data-dir"].rglob("*.jsonl"))


def whole(flags):
    """What is missing is made by one process, in this one."""
    assert logit_diff_mistral.main(as_list(flags)) == 0
    return results(flags)


# ------------------------------------------------------------------------------- shared by several


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_make_the_bytes_that_one_makes(shared, count, tmp_path):
    flags, expected = shared
    ranks = start_ranks(count, flags, tmp_path / "told")
    assert [rank.wait() for rank in ranks] == [0] * count, [rank.told for rank in ranks]
    assert results(flags) == expected
    made = metadata(flags)["ranks"]
    assert [one["rank"] for one in made] == list(range(count))
    assert sum(one["generations"] for one in made) == 120 == generations(flags)  # none twice
    assert "120 of 120 answers" in ranks[0].told and "Wrote" in ranks[0].told
    assert not any(rank.told for rank in ranks[1:])  # one speaks
    assert not list(flags["data-dir"].rglob("claims-*"))


def test_one_process_notices_nothing_of_it(flags, few_figures):
    assert logit_diff_mistral.main(as_list(flags)) == 0
    assert "ranks" not in metadata(flags)
    assert [path.name for path in flags["data-dir"].rglob("*.jsonl")] == ["0.jsonl"]


def test_several_processes_go_on_with_what_one_has_begun_and_rerun_an_alpha(shared, tmp_path):
    flags, expected = shared
    whole(flags | {"samples": 3})
    for options in (flags, flags | {"rerun": "0.5"}):
        ranks = start_ranks(2, options, tmp_path / "told")
        assert [rank.wait() for rank in ranks] == [0, 0], [rank.told for rank in ranks]
        assert results(flags) == expected
    assert "30 generations to make, 90 found" in ranks[0].told
    assert sum(one["generations"] for one in metadata(flags)["ranks"]) == 30


# -------------------------------------------------------------------------------- deaths and stops


@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", "2"))))
def test_others_make_what_a_killed_process_held(shared, seed, tmp_path):
    """SIGKILL of one of three at a random moment; KILLS=100 for the long version."""
    flags, expected = shared
    chance = random.Random(seed)
    ranks = start_ranks(3, flags, tmp_path / "told", lapse=3.0)
    until(ranks, lambda: generations(flags) > chance.randrange(30))
    victim = chance.randrange(3)
    ranks[victim].send_signal(signal.SIGKILL)
    codes = [rank.wait() for rank in ranks]
    if codes[victim] != 0:  # it may have been done already
        assert codes[victim] == -signal.SIGKILL
    assert all(code == 0 for n, code in enumerate(codes) if n != victim), [r.told for r in ranks]
    (journal,) = history.list_runs(flags["data-dir"])
    assert len(journal.read()) == 120  # all is made
    if victim == 0 and codes[0]:  # who writes the artifacts is dead: the same command writes them
        before = generations(flags)
        assert whole(flags) == expected
        assert generations(flags) == before
    assert results(flags) == expected


def test_sigterm_ends_at_a_step_with_the_exit_code_that_requeues(shared, tmp_path):
    flags, expected = shared
    process = start(flags | {"samples": 200}, tmp_path / "told")
    until([process], lambda: generations(flags) > 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert "Ended by SIGTERM. Finished work is kept" in process.told
    kept = generations(flags)
    (journal,) = history.list_runs(flags["data-dir"])
    assert len(journal.read()) == kept > 5  # whole lines, none twice
    assert whole(flags) == expected  # the requeued job


def test_sigterm_ends_a_process_that_waits_for_others(shared, tmp_path):
    flags, _ = shared
    ranks = start_ranks(2, flags | {"samples": 40}, tmp_path / "told")
    try:
        until(ranks, lambda: [p for p in flags["data-dir"].rglob("0.jsonl") if p.stat().st_size])
        ranks[0].send_signal(signal.SIGSTOP)  # it holds pieces, and does not lapse for two minutes
        before = -1
        while before != (now := generations(flags)):  # until all others are made
            before = now
            time.sleep(1)
        ranks[1].send_signal(signal.SIGTERM)
        assert ranks[1].wait() == 75
    finally:
        ranks[0].send_signal(signal.SIGKILL)
        ranks[0].wait()


# ----------------------------------------------------------------------------------- the launchers


def launched(command, **environment):
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(
        command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def test_torchrun_of_two_nodes_makes_the_same_bytes(shared, tmp_path):
    """Two launchers, as on two hosts that share a folder, meet on loopback."""
    flags, expected = shared
    with_port = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    port = f"--master-port={free_port()}"
    nodes = [
        launched([f"{BIN}/torchrun", *with_port, port, f"--node-rank={n}", SWEEP, *as_list(flags)])
        for n in range(2)
    ]
    told = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], told
    assert results(flags) == expected
    assert len(metadata(flags)["ranks"]) == 2


def test_accelerate_starts_again_what_was_killed(shared, tmp_path):
    flags, expected = shared
    flags = flags | {"samples": 25}
    # Without a GPU too, this is what starts several processes; the script takes the CPU.
    command = [f"{BIN}/accelerate", "launch", "--multi_gpu", "--num_processes=2"]
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    command += ["--max_restarts=2", f"--main_process_port={free_port()}"]
    process = launched([*command, SWEEP, *as_list(flags)])
    while not list(flags["data-dir"].rglob("1.beat")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    (owner,) = flags["data-dir"].rglob("1.owner")
    os.kill(int(owner.read_text().split()[1]), signal.SIGKILL)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert told.count("generations to make") == 2, told  # begun again
    assert whole(flags | {"samples": 10}) == expected


# ---------------------------------------------------------------------------------------- bad input


def test_a_process_that_would_make_something_else_is_refused():
    _, other = ranks_of_one_store(2)
    configuration, plan = {"libraries": {"torch": "2.13.0"}, "engine": {}}, {"pairs": []}
    work = {"configuration": configuration, "plan": sharing.digest(plan)}
    sharing.refuse_other_work(work, configuration, plan, other)
    changed = {"libraries": {"torch": "2.14.0"}, "engine": {}}
    with pytest.raises(BadInput, match=r"rank 1 of 2: libraries.torch is 2.14.0, and on rank 0"):
        sharing.refuse_other_work(work, changed, plan, other)
    with pytest.raises(BadInput, match="rank 1 of 2 has other pairs, alphas"):
        sharing.refuse_other_work(work, configuration, {"pairs": [1]}, other)


class Store(dict):
    def set(self, name, value):
        self[name] = value

    def get(self, name):
        if name not in self:
            raise RuntimeError("wait timeout")
        return self[name]


def ranks_of_one_store(size):
    store = Store()
    ranks = [Ranks(number, size, store) for number in range(size)]
    for rank in ranks:
        rank.name = "sweep"
    return ranks


def test_the_first_decides_and_gathers():
    first, second, third = ranks_of_one_store(3)
    assert second.gathered("room", 4) == [4] and third.gathered("room", 6) == [6]
    assert first.gathered("room", 5) == [5, 4, 6]
    assert first.decided("step", lambda: "packed") == "packed"
    assert third.decided("step", pytest.fail) == "packed"
    with pytest.raises(BadInput, match="rank 1 of 3 timed out waiting for 'slots'"):
        second.decided("slots", pytest.fail)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two' (environment)"),
        ({"WORLD_SIZE": "2"}, "RANK = '' (environment)"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK = 2; allowed: 0 to WORLD_SIZE - 1, which is 1"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "cannot reach the others at MASTER_ADDR = ''"),
    ],
)
def test_variables_that_no_launcher_sets_are_refused(variables, told, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput) as error:
        Ranks.here()
    assert told in str(error.value)


def test_a_fault_names_the_rank_that_has_it(flags):
    told = run_process(flags | {"alphas": "x"}, RANK="3").stderr
    assert told.startswith("error: rank 3: ALPHAS = ")


@pytest.mark.parametrize("size", [1, 7, 8, 1000])
def test_what_is_missing_is_told_bit_by_bit(size):
    chance = random.Random(size)
    missing = [chance.random() < 0.5 for _ in range(size)]
    alone = Ranks(0, 1)
    work = sharing.prepared(None, {}, {}, missing, None, alone)
    assert sharing.unpacked(json.loads(json.dumps(work))["missing"], size) == missing
