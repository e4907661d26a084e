# Every target sets up what it needs in .venv (tools/bootstrap.py); a second run starts at once.
# Without make (Windows): python tools/bootstrap.py demo --run -m outbid.demo

PYTHON ?= python3
IN = $(PYTHON) tools/bootstrap.py
ARGS ?=
# Most tests wait for processes more than they compute: four at a time keep two cores busy. WORKERS=0 runs them one by
# one. Files are handed out in the order of tests/conftest.py, not by how many tests they have.
WORKERS ?= 4
PYTEST = tools/suite.py -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo test check lint bench bench-quick format wheel reference clean

help:
	@echo 'make demo      three nodes on this machine bid for real chats'
	@echo 'make test      every test (ARGS="-k name" for some)'
	@echo 'make check     format, lint, types, import floors, unit and integration tests'
	@echo 'make bench     measure everything, in some 40 minutes, and print tables (ARGS="dispatch chat" for some)'
	@echo 'make bench-quick  3 minutes: which ratios moved since they were kept in bench/quick.json'
	@echo 'make format    put the source in the usual format'
	@echo 'make reference write the generated pages of docs/reference again'
	@echo 'make wheel     build dist/outbid-*.whl'
	@echo 'make clean     remove what these targets made in this folder'

demo:
	@$(IN) demo --run -m outbid.demo $(ARGS)

test:
	@$(IN) test --run $(PYTEST) $(ARGS)

lint:
	@$(IN) dev --run tools/lint.py

check: lint
	@$(IN) test --run $(PYTEST) tests/unit tests/integration $(ARGS)

bench:
	@$(IN) bench --run -m outbid_bench $(ARGS)

bench-quick:
	@$(IN) test --run -m outbid_bench.quick $(ARGS)

format:
	@$(IN) dev --run tools/lint.py --fix

reference:
	@$(IN) dev --run tools/reference.py

wheel:
	@$(IN) demo --run -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
