"""Copy three files of `data/` into the package when it is built.

The repository keeps them only in `data/`, where users look for them, but an installed library needs
them too.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = tuple(
    f"data/{name}"
    for name in ("prompt_pairs.csv", "labelled_answers.jsonl", "labelled_generations.jsonl")
)


class BuildWithData(build_py):
    """Adds `SHIPPED` to the package; an editable install reads the repository's files instead."""

    def run(self):
        """Build as usual, then copy the files."""
        super().run()
        if not self.editable_mode:
            for source, copy in self._copies().items():
                self.mkpath(str(Path(copy).parent))
                self.copy_file(source, copy)

    def get_source_files(self):
        """List the files for the source distribution, too."""
        return [*super().get_source_files(), *SHIPPED]

    def get_outputs(self, include_bytecode=1):
        """List the copies among the built files."""
        copies = [] if self.editable_mode else self._copies().values()
        return [*super().get_outputs(include_bytecode), *copies]

    def _copies(self):
        return {name: str(Path(self.build_lib, "logit_amplification", name)) for name in SHIPPED}


setup(cmdclass={"build_py": BuildWithData})
