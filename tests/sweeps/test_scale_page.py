"""docs/SCALE.md: its job script, with stand-ins for what a cluster has."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from logit_amplification.locations import ROOT

PAGE = (ROOT / "docs" / "SCALE.md").read_text("utf-8")

# Starts as many tasks as SLURM would, one after the other, and ends as the worst of them.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
worst=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE)) "$@"
    code=$?; [ $code -gt $worst ] && worst=$code
done
exit $worst
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) printf 'node7\\nnode8\\n' ;;
    requeue) echo "requeued $2" ;;
esac
"""
# In place of Python: what the sweep would see of the launch, and the exit code that is asked for.
PYTHON = """#!/bin/bash
echo "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT: $*"
exit ${EXIT:-0}
"""


@pytest.fixture
def cluster(tmp_path):
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE, flags=re.S)
    files = {"amplify.sbatch": script, "bin/srun": SRUN, "bin/scontrol": SCONTROL}
    for name, text in (files | {".venv/bin/python": PYTHON}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(**environment):
        given = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_ID": "123456"}
        given |= {"SLURM_JOB_NODELIST": "node[7-8]", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        return subprocess.run(
            [tmp_path / "amplify.sbatch", "--alphas", "0, 1"],
            env=os.environ | given | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


def test_every_task_is_told_its_rank_and_where_the_others_are(cluster):
    ended = cluster()
    assert ended.returncode == 0 and ended.stderr == ""
    told = "code/logit_diff_mistral.py --alphas 0, 1"
    assert ended.stdout.splitlines() == [
        f"{rank} 4 {rank % 2} 2 node7 23456: {told}" for rank in range(4)
    ]


@pytest.mark.parametrize(("code", "requeued"), [("75", True), ("0", False), ("2", False)])
def test_only_what_was_ended_by_sigterm_is_put_back_into_the_queue(cluster, code, requeued):
    ended = cluster(EXIT=code)
    assert str(ended.returncode) == code
    assert ("requeued 123456" in ended.stdout) == requeued


def test_the_other_scripts_work_alone():
    program = [sys.executable, "code/runs.py"]
    ended = subprocess.run(
        program, env=os.environ | {"WORLD_SIZE": "2"}, cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "error: WORLD_SIZE = '2' (environment): this script runs as one process"
    )
