# make demo and make test set up whatever they need; nothing else is assumed but Python 3.11+ with venv.
.PHONY: setup demo check test test-extended test-gpu test-gpu-kit test-versions fixtures lint bench clean
VENV := .venv/bin
OPENMP := $(abspath .venv/lib/libiomp5.so)
# The OpenMP runtime that vLLM's CPU backend is built for; without it speculation is much slower.
RUN = env LD_PRELOAD="$(wildcard $(OPENMP))$${LD_PRELOAD:+:$$LD_PRELOAD}"
# The same with vLLM's other model runner, as far as a CPU can: tests/runner_v2.
ON_V2 = $(RUN) tools/on_v2.sh
# What is named in ARGS need not have tests for it.
NONE_IS_FINE = $(if $(ARGS),|| [ $$? -eq 5 ])

setup:
	@tools/setup.sh

demo: setup
	@$(VENV)/vllm-eagle demo

# Minutes: format, lint, types, and every test that starts no engine and no browser. T=tests/... runs that test alone.
check: lint
ifdef T
	$(RUN) $(VENV)/python -m pytest -n 0 -m "" $(T) $(ARGS)
else
	$(RUN) $(VENV)/python -m pytest -m "not engine and not extended and not browser" $(ARGS)
endif

# What CI runs: everything on Model Runner V1 that is not extended, and a little of each kind on V2.
test: lint
	@tools/browser.sh
	$(RUN) $(VENV)/python -m pytest $(ARGS)
	$(ON_V2) $(VENV)/python -m pytest $(ARGS) $(NONE_IS_FINE)

# What takes longer, at full size, on both runners.
test-extended: setup
	$(RUN) $(VENV)/python -m pytest -m extended $(ARGS)
	$(ON_V2) $(VENV)/python -m pytest -m extended $(ARGS) $(NONE_IS_FINE)

# On a machine with a GPU and vLLM: correctness, then speeds, within SECONDS. The kit is for a card without a clone.
SECONDS := 600
test-gpu:
	python -m tests.gpu.prepare artifacts/gpu/data
	python -m tests.gpu.drive artifacts/gpu/data -o artifacts/gpu --seconds $(SECONDS)

test-gpu-kit: setup
	@tools/gpu_kit.sh

# Other versions of vLLM, each in an environment of its own.
test-versions:
	@tools/sources.sh
	@tools/versions.sh $(VERSIONS)

# Heads and outputs of the producers' own packages, for tests/test_producers_own.py.
fixtures: setup
	@tools/fixtures.sh

lint: setup
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	@tools/typecheck.sh

bench: setup
	$(RUN) $(VENV)/python -m experiments.reproduce

clean:
	rm -rf .venv build dist *.egg-info
