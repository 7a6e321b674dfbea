# The four commands of the project; CI runs the same lines.
PY := .venv/bin/python

.PHONY: setup smoke test lint clean

setup: ## .venv with pinned versions; does nothing when nothing changed
	@bash tools/bootstrap.sh

smoke: setup ## every stage of R1, tiny, on two CPU cores; run again to continue or to see the table
	$(PY) -m r1train experiment=tiny_full

# One file stays on one worker (its fixtures are built once), in tree order: the long e2e files start early.
test: setup ## every test this machine can run; the others are skipped with a reason
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

lint: setup ## style, types, shell
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@if command -v shellcheck >/dev/null; then \
		echo shellcheck .ci/run and every .sh and .sbatch; \
		shellcheck -x .ci/run $$(git ls-files "*.sh" "*.sbatch"); \
	else echo "shellcheck is not installed: shell scripts were not checked"; fi

clean: ## caches and build leftovers; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
