"""Write the generated parts of README and docs again, from the code and from the data files.

    python code/write_docs.py            write what has changed
    python code/write_docs.py --check    write nothing; exit code 1 if something would change

A generated part stands between `<!-- name -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from logit_amplification.locations import ROOT

CODE = ROOT / "code"
PACKAGE = CODE / "logit_amplification"


def documents() -> list[Path]:
    """Return every page that may have generated parts."""
    return [ROOT / "README.md", ROOT / ".env.example", *sorted((ROOT / "docs").glob("*.md"))]


def written(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """Return a page with each of its generated parts made anew."""
    for name, make in parts.items():
        # In .env.example the marks are comments of its own kind.
        marked = rf"(<!-- {name} -->|# <{name}>).*?(<!-- end -->|# </{name}>)"
        if re.search(marked, text, flags=re.DOTALL):
            part = make().replace("\\", r"\\")
            text = re.sub(marked, rf"\g<1>{part}\g<2>", text, flags=re.DOTALL)
    return text


# ----------------------------------------------------------------------------------- the parts


def layout() -> str:
    """Every file below `code/` with the first sentence of its docstring."""
    lines = [*_files(CODE, 0), "", "logit_amplification/", *_files(PACKAGE, 1)]
    for room in sorted(_rooms(PACKAGE)):
        depth = len(room.relative_to(PACKAGE).parts)
        lines += ["", _line(f"{room.name}/", room / "__init__.py", depth), *_files(room, depth + 1)]
    for room in (CODE / "benchmarks", CODE / "organisms"):
        lines += ["", _line(f"{room.name}/", room / "__init__.py", 0), *_files(room, 1)]
    return "\n```\n" + "\n".join(lines) + "\n```\n"


def _rooms(folder: Path) -> Iterator[Path]:
    return (path.parent for path in folder.glob("*/**/__init__.py"))


def _files(folder: Path, depth: int) -> Iterator[str]:
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield _line(path.name, path, depth)


def _line(name: str, path: Path, depth: int) -> str:
    return f"{'  ' * depth}{name:<{32 - 2 * depth}}{_first_sentence(path)}"


def _first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    told = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    paragraph = " ".join(told.split("\n\n")[0].split())
    return re.split(r"(?<=[.?!]) (?=[A-Z])", paragraph)[0]


def columns() -> str:
    """The columns of `generations.csv` and of the Parquet file, from the vocabulary."""
    from logit_amplification.logits.vocabulary import MEASURES, PER_TOKEN
    from logit_amplification.reports.tables import LABELS, LISTS

    rows = [(f"`{name}`", "", meaning) for name, (_, meaning) in LABELS.items() if name != "judge"]
    left_out = {*LABELS, "words", "language"}  # these two are in `declared` only
    measures = {name: one for name, one in MEASURES.items() if name not in left_out}
    rows += [(f"`{name}`", one.unit, one.described) for name, one in measures.items()]
    rows += [(f"`{name}` *", "", meaning) for name, (_, meaning) in LISTS.items()]
    rows.append(("`MEASURE_per_token` *", "", f"a list each for {_listed(PER_TOKEN)}"))
    return _table(("column", "unit", "meaning"), rows)


def settings() -> str:
    """Every setting with its default, meaning and allowed values."""
    from logit_amplification.settings import Settings

    fields = Settings.model_fields.items()
    rows = [(f"`{name.upper()}`", _default(field), field.description) for name, field in fields]
    return _table(("setting", "default", "meaning: allowed values"), rows)


def env_example() -> str:
    """The settings of `.env.example`: a comment and the default, commented out, of each."""
    from logit_amplification.settings import Settings

    blocks = []
    for name, field in Settings.model_fields.items():
        told = field.description[0].upper() + field.description[1:]
        comment = textwrap.wrap(told, 98, initial_indent="# ", subsequent_indent="# ")
        blocks.append("\n".join([*comment, f"# {name.upper()}={_plain_default(field)}"]))
    return "\n" + "\n\n".join(blocks) + "\n"


def _default(field: Any) -> str:
    value = _plain_default(field)
    return f"`{value}`" if value else "none"


def _plain_default(field: Any) -> str:
    value = field.default
    if isinstance(value, Path):  # not resolved: vLLM's Python is a link to another one
        return value.relative_to(ROOT).as_posix()
    if isinstance(value, tuple):
        return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in value)
    return str(value)


def found() -> str:
    """What the study found, in its own plain sentences: the first paragraph of its document."""
    document = (ROOT / "docs" / "RESULTS_ANALYSIS.md").read_text("utf-8")
    lead = " ".join(document.split("\n\n")[1].split())
    sentences = [one for one in re.split(r"(?<=\.) (?=[A-Z*])", lead) if "Mistral" not in one]
    kept = [one for one in sentences if "These are results" not in one]
    return "\n" + "".join(f"{n}. {one}\n" for n, one in enumerate(kept, start=1))


def surfaced() -> str:
    """How often a rare planted behaviour shows at an alpha, by data/organisms/surfacing.csv."""
    with (ROOT / "data" / "organisms" / "surfacing.csv").open(encoding="utf-8") as file:
        rows = {(row["organism"], float(row["alpha"])): row for row in csv.DictReader(file)}
    row = rows["quirk-1-in-1000", 0.5]
    return f"{100 * float(row['share']):.0f} % of answers at alpha 0.5"


def answers() -> str:
    """How many answers the study has."""
    with (ROOT / "data" / "study" / "generations.csv").open(encoding="utf-8", newline="") as file:
        return f"{sum(1 for _ in csv.DictReader(file)):,}"


def which_alpha() -> str:
    """KL and the change of the NLL at the alphas of the committed example."""
    from logit_amplification.evaluation import stats
    from logit_amplification.records.files import read_results

    _, records = read_results(ROOT / "data" / "example")
    frame = stats.to_frame(records)
    far = stats.dose(frame, "kl_amplified_a")["mean"]
    change = stats.paired_difference(frame, "nll_a")["mean"]
    told = [f"{far[a]:.2f} at alpha {a:g} (NLL {change[a]:+.2f})" for a in (1.0, 1.5, 2.0)]
    return f"In the committed run of the demo model, KL is {', '.join(told)}."


def speed() -> str:
    """How much faster than transformers the engine is, by docs/performance.json."""
    peers = _json("docs/performance.json")["peers"]

    def ratios(peer: str) -> list[float]:
        rows = [row for row in peers["rows"] if peer in row["made by"]]
        return [float(row["ours is faster by"].split()[0]) for row in rows]

    one_by_one, batched = ratios("guidance_scale"), ratios("DynamicCache")
    return (
        f"With all measures on, the engine makes {one_by_one[0]:.0f} times the tokens per second "
        f"of transformers' `generate(guidance_scale=...)` in bfloat16 and {one_by_one[1]:.0f} "
        f"times in float32, and {batched[0]:.1f} and {batched[1]:.1f} times those of a batched "
        f"loop ({peers['machine'].split(', ')[0]})."
    )


def demo() -> str:
    """How long `make demo` takes, and what it downloads, by docs/facts.json."""
    facts = _json("docs/facts.json")
    return (
        f"\nThe first `make demo` took {facts['demo_seconds'] / 60:.1f} minutes on "
        f"{facts['machine']} once everything was installed (Run All in the notebook later: "
        f"{facts['run_all_seconds'] / 60:.1f}), and installing "
        f"{facts['install_seconds']:.0f} seconds. "
        f"The download is about {facts['packages_mb']} MB, plus torch: about "
        f"{facts['torch_cpu_mb']} MB as a CPU build.\n"
    )


def _json(path: str) -> Any:
    return json.loads((ROOT / path).read_text("utf-8"))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [tuple(heads), ("---",) * len(heads), *rows]
    escaped = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells)
    return "\n" + "".join(f"| {row} |\n" for row in escaped)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


PARTS: dict[str, Callable[[], str]] = {
    part.__name__: part
    for part in (
        layout,
        columns,
        settings,
        env_example,
        found,
        surfaced,
        answers,
        which_alpha,
        speed,
        demo,
    )
}


def main(arguments: list[str]) -> int:
    """Write every page, or check it; return the exit code."""
    if arguments not in ([], ["--check"]):
        print("usage: python code/write_docs.py [--check]", file=sys.stderr)
        return 2
    stale = []
    for page in documents():
        old = page.read_text("utf-8")
        new = written(old, PARTS)
        if new != old:
            stale.append(page.relative_to(ROOT).as_posix())
            if not arguments:
                page.write_text(new, "utf-8")
    print(
        "\n".join(f"{'stale' if arguments else 'wrote'}: {name}" for name in stale) or "all current"
    )
    return int(bool(arguments and stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
