"""Keep the results in docs/performance.json and write them into the tables of the docs."""

from __future__ import annotations

import json
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from logit_amplification.locations import ROOT

RESULTS = ROOT / "docs" / "performance.json"

DOCUMENTS = (
    *(ROOT / "docs" / name for name in ("PERFORMANCE.md", "SCALE.md")),
    ROOT / "README.md",
)
ON_PAPER = ("machines", "plans")

Row = dict[str, Any]


def keep(name: str, rows: list[Row]) -> None:
    """Save a measurement and its machine in docs/performance.json, and its table in the docs."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    libraries = ("torch", "transformers", "bitsandbytes")
    measured_on = (
        f"{device_name(torch.device('cpu'))}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}, "
        + ", ".join(f"{library} {version(library)}" for library in libraries)
    )
    results[name] = {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": "estimated, not measured" if name in ON_PAPER else measured_on,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text("utf-8"), results), "utf-8")


def with_tables(text: str, results: dict[str, Any]) -> str:
    """Write every measurement's table behind its marker `<!-- name -->`."""
    for name, result in results.items():
        where = f"{result['measured']}, {result['machine']}."
        block = f"<!-- {name} -->\n{table(result['rows'])}\n{where}\n<!-- end -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- end -->", lambda _, b=block: b, text, flags=re.S)
    return text


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([row[h] for h in heads] for row in rows)]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def device_name(device: torch.device) -> str:
    """Return the name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = re.findall(r"model name\s*: (.+)", read_system("/proc/cpuinfo"))
    return f"{torch.get_num_threads()} cores of {names[0] if names else platform.processor()}"


def read_system(path: str) -> str:
    """Return the text of a system file, or an empty text if there is none."""
    return Path(path).read_text() if Path(path).exists() else ""
