"""Write the generated parts of README and docs again, from the code and from the data files.

    python code/write_docs.py            write what has changed
    python code/write_docs.py --check    write nothing; exit code 1 if something would change

A generated part stands between `<!-- name -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from logit_amplification.locations import ROOT

CODE = ROOT / "code"
PACKAGE = CODE / "logit_amplification"


def documents() -> list[Path]:
    """Return every page that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def written(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """Return a page with each of its generated parts made anew."""
    for name, make in parts.items():
        marked = rf"(<!-- {name} -->).*?(<!-- end -->)"
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


PARTS: dict[str, Callable[[], str]] = {"layout": layout}


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
