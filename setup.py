"""The build's one step of our own: three files of `data/` go into the package.

The repository keeps them once, where its users look for them; an installed library needs them too.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = tuple(
    f"data/{name}"
    for name in ("prompt_pairs.csv", "labelled_answers.jsonl", "labelled_generations.jsonl")
)


class BuildWithData(build_py):
    """Python's files, and `SHIPPED` beside them; an editable install reads the repository's."""

    def run(self):
        """Build as usual, then copy."""
        super().run()
        if not self.editable_mode:
            for source, copy in self._copies().items():
                self.mkpath(str(Path(copy).parent))
                self.copy_file(source, copy)

    def get_source_files(self):
        """Name the files for the source distribution, too."""
        return [*super().get_source_files(), *SHIPPED]

    def get_outputs(self, include_bytecode=1):
        """Name the copies among what is built."""
        copies = [] if self.editable_mode else self._copies().values()
        return [*super().get_outputs(include_bytecode), *copies]

    def _copies(self):
        return {name: str(Path(self.build_lib, "logit_amplification", name)) for name in SHIPPED}


setup(cmdclass={"build_py": BuildWithData})
