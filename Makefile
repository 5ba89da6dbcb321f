# Everything from python3, pip and make alone: `make demo`, `make test`.
PYTHON ?= python3
PYTEST_ARGS ?=
DATA ?=
MINUTES ?= 9
BIN := .venv/bin
# For networks as small as those of the tests and the demo one thread is faster than several.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: .venv demo table reproduce test bench docs lint types clean

.venv: .venv/.installed

# A python3 without ensurepip (Debian splits it off) makes the bare venv and fills it by its own pip.
.venv/.installed: pyproject.toml requirements-nodeps.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv || \
		{ $(PYTHON) -m venv --clear --without-pip .venv && \
		  $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/pip install -e '.[dev]'
	$(BIN)/pip install --no-deps -r requirements-nodeps.txt
	touch $@

demo: .venv
	$(ONE_THREAD) $(BIN)/robust-plugin compare --config compare/digits-demo --out runs/demo

table: .venv
	$(ONE_THREAD) $(BIN)/robust-plugin compare --config compare/digits-table --out runs/table

# On a GPU, in pieces: each goes on where the last one stopped.
reproduce: .venv
	@test -n "$(DATA)" || { echo "give DATA=FOLDER, with train/<class>/ and test/<class>/"; exit 2; }
	timeout --signal=INT $(MINUTES)m $(BIN)/robust-plugin compare \
		--config compare/cifar10-resnet18 --base.data.folder $(DATA) --out runs/resnet18 || \
		{ test $$? = 124 && echo "The $(MINUTES) minutes are over; the same command goes on."; }

# Each process gets one half of the tests in their order, so that few fixtures are made twice.
test: .venv
	$(ONE_THREAD) $(BIN)/pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# One process: benchmarks that share the machine measure each other.
bench: .venv
	$(ONE_THREAD) $(BIN)/pytest -m bench -s $(PYTEST_ARGS)

docs: .venv
	$(ONE_THREAD) $(BIN)/sphinx-build -W --keep-going -b html docs build/docs

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Inside the repository mypy sees only one of the three folders, silently. So: a folder of links that
# looks like the installed package.
types: .venv
	set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; mkdir "$$dir/robust_plugin"; \
	ln -s $(CURDIR)/robust_plugin/* $(CURDIR)/adapters $(CURDIR)/recipes "$$dir/robust_plugin"; \
	cd "$$dir"; MYPYPATH="$$dir" $(CURDIR)/$(BIN)/mypy --strict \
		--config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p robust_plugin

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
