"""The documentation as a site: the Markdown pages of this folder, and the API from docstrings.

make docs
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "code"))

project = "Logit-difference amplification"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.apidoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = project
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["notebooks"]

# Links as GitHub has them: headings by their slug, and files outside this folder.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

# A page of the API per room, from the docstrings: `name` in them is code.
apidoc_modules = [
    {
        "path": "../code/logit_amplification",
        "destination": "api",
        "separate_modules": False,
        "module_first": True,
        # What other tools call: their pages are INTEGRATIONS and SCALE.
        "exclude_patterns": ["**/inspect_*.py", "**/lm_eval_model.py", "**/engine/vllm"],
    }
]
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
suppress_warnings = ["ref.python"]  # two rooms have a class called Plan


def from_here(app, relative_path, parent, content):
    """README is included from the folder above: its links to other files start there."""
    if relative_path.name == "README.md":
        content[0] = content[0].replace("](CONTRIBUTING.md)", "](docs/contributing.md)")
        content[0] = re.sub(r"(?<!!)(\[[^\]]*\]\()(?!https?:|docs/|#)", r"\1../", content[0])


def to_the_front_page(app, page, content):
    """README is the front page of the site."""
    content[0] = content[0].replace("](../README.md", "](index.md")


def setup(app):
    """Adapt links that are written for GitHub."""
    app.connect("include-read", from_here)
    app.connect("source-read", to_the_front_page)
