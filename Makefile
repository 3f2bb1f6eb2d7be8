# Two commands on a bare machine: `make demo` draws, `make test` checks. Each first sets .venv up, once.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
# Named after what requirements.txt holds: the same pins are never installed again, changed ones always are.
STAMP := $(VENV)/installed-$(shell cksum < requirements.txt | cut -d ' ' -f 1)
FITS := import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))

.PHONY: help demo test tables results clean

help:
	@echo "make demo    draw the pictures of test_imgs/ with the tiny model into outputs/demo.png"
	@echo "make test    check the whole project"
	@echo "make tables  render the tables of README, models/ and docs/ from results/"
	@echo "make results measure again what is stale or absent there; takes hours, can be stopped"
	@echo "make clean   remove $(VENV) and the caches; pictures stay"

demo: $(STAMP)
	$(RUN) -m app.demo

# One thread a worker: more would only wait for each other's core. Tests never ask a model hub.
test: export OMP_NUM_THREADS := 1
test: export HF_HUB_OFFLINE := 1
test: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m pytest -q -n $(WORKERS) --dist loadfile

tables: $(STAMP)
	$(RUN) -m bench.tables

results: $(STAMP)
	$(RUN) -m bench.tables --again

$(STAMP):
	@if ! $(RUN) -c 'import pip; $(FITS)' 2> /dev/null; then \
		$(PYTHON) -c '$(FITS)' 2> /dev/null || { \
			echo "Python 3.10, 3.11 or 3.12 is needed, but $(PYTHON) is \"`$(PYTHON) --version 2>&1`\":" \
				"name a fitting one, as in make PYTHON=python3.12 demo" >&2; exit 1; }; \
		echo "creating $(VENV) with `$(PYTHON) --version`"; \
		$(PYTHON) -m venv --clear $(VENV); \
	fi
	@echo "installing requirements.txt into $(VENV): about 6 GB, some minutes, only this once"
	@$(RUN) -m pip install --disable-pip-version-check $(if $(CI),--quiet) -r requirements.txt
	@rm -f $(VENV)/installed-*
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
