# Everything a newcomer needs; `make` alone lists it. `demo` and `test` set up first, which costs nothing once done.
.DEFAULT_GOAL := help
.PHONY: help setup ros robot demo test test-slow test-faults lint clean

# Two test processes with one thread each: torch's own threads would only fight over the cores.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 .venv/bin/python -m pytest --durations=10

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## make .venv with the pinned packages (does nothing when nothing changed; PYTHON=python3.12 to choose)
	@bash scripts/setup.sh

ros: setup ## ROS 2 Jazzy from PyPI's wheels and our interfaces, into .venv (where ROS is installed: docs/ros.md)
	@bash scripts/ros.sh

robot: setup ## the client library that speaks to your arm: make robot ROBOT=panda or ROBOT=fr3 (docs/robot.md)
	@bash scripts/robot.sh "$(ROBOT)"

demo: setup ## demonstrations, pre-training, fine-tuning, evaluation and a report of robosuite Lift, in runs/demo
	@bash scripts/demo.sh

# Tests of whole ROS graphs are timed by wall clocks, and so run one at a time. Exit code 5: nothing was chosen by ARGS.
test: setup ## all tests but the slow ones (ARGS="-k name" passes options to pytest)
	@bash scripts/ros.sh --if-possible
	@$(PYTEST) -m "not slow and not graph" -n $(WORKERS) --dist loadfile $(ARGS) || [ $$? = 5 ]
	@$(PYTEST) -m "graph and not slow" $(ARGS) || [ $$? = 5 ]

test-slow: ros ## the tests that take minutes each
	@$(PYTEST) -m "slow and not faults" $(ARGS)

test-faults: ros ## every fault of docs/safety.md and docs/robot.md, 20 times each: two hours on a machine that does nothing else
	@$(PYTEST) -m "slow and faults" $(ARGS)

lint: setup ## ruff
	@.venv/bin/ruff check .

clean: ## remove caches and build leftovers (keeps .venv, runs and demos)
	@rm -rf build dist install log ./*.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
