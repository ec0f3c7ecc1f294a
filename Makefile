# The same commands on a laptop and in CI. Needs Python 3.11 or newer; everything else is set up here.
#
#   make demo [PHOTOS=~/holiday LABELS=cat,dog,beach] [CHECK=1]
#   make test     check + every test, end to end included
#   make check    style, types, import rule, consistent dependencies
#   make bench    the figures of the README
#   make clean    remove all that these made, the demo's data included

PYTHON ?= python3
BIN = .venv/bin
STUDIO = .venv-studio/bin/label-studio
export FORELABEL_LABEL_STUDIO ?= $(abspath $(STUDIO))

.PHONY: demo test check bench clean system-packages

# Its Label Studio, its login and its store are kept in .forelabel/demo, so that a second run goes on with them.
demo: export FORELABEL_DATA_DIR ?= $(CURDIR)/.forelabel
demo: .venv/.installed .venv-studio/.installed
	$(BIN)/forelabel demo $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(LABELS),--labels "$(LABELS)") $(if $(CHECK),--check)

test: system-packages check .venv-studio/.installed
	$(BIN)/pytest

check: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pip check
	$(BIN)/pytest -q tests/test_architecture.py

bench: .venv/.installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-studio .forelabel build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is touched last: an interrupted installation is taken up again, a finished one costs nothing.
.venv/.installed: pyproject.toml constraints.txt
	$(call make-venv,.venv)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Label Studio pins packages that clash with ours (redis<5.3), so it has an environment of its own.
.venv-studio/.installed: constraints-studio.txt
	$(call make-venv,.venv-studio)
	.venv-studio/bin/pip install --quiet --disable-pip-version-check -c constraints-studio.txt label-studio
	@touch $@

define make-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Forelabel needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(1) || { \
	  echo "This Python cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(1); this takes some minutes the first time."
endef

# What the tests need beyond Python: a real Redis and a real browser.
system-packages:
	@missing=; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v chromedriver >/dev/null || missing="$$missing chromium-driver"; \
	[ -z "$$missing" ] && exit 0; \
	if ! command -v apt-get >/dev/null; then \
	  echo "The tests need redis-server, chromium and chromedriver on PATH; missing:$$missing (Debian's names)." >&2; exit 1; fi; \
	sudo=; \
	if [ "$$(id -u)" != 0 ]; then \
	  sudo="sudo -n"; \
	  $$sudo true 2>/dev/null || { echo "Please run as root, then try again: apt-get install$$missing" >&2; exit 1; }; fi; \
	echo "Installing$$missing with apt-get"; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing
