# make demo    the main job: GRPO on the toy world, then the score before and after (4 minutes of CPU time, once installed)
# make pictures     every picture of the README and docs/, from that run and seven short ones (RUN=runs/demo)
# make paper   table 1 of the paper on the toy, seed 0: SFT against GRPO on every toy benchmark (tools/paper.py has them all)
# make test    the tests; GPUs are hidden from them unless TEST_GPU=1 is set
# make test-all     those, and the slow ones
# make lint    what ruff has to say about the code; make format: its formatting
# make docs-check   every command of the README, docs/ and CONTRIBUTING.md, cut short
# make gpu-check    on a machine with a GPU: does everything run there, and as the plan says (ARGS="--device cpu": at toy size)
# make simulate     a step of a 7B and a 3B at their exact shapes, without a GPU: devices, waits, kernels, memory beside the plan (an hour)
# make base    make a toy base model from nothing (hours)
#
# Each makes .venv first if it is missing or requirements.txt changed.

PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo
TWO = OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2
.PHONY: demo pictures paper test test-slow test-all lint format docs-check gpu-check simulate base

.venv/installed: requirements.txt
	@echo "making .venv and installing requirements.txt (1.4 GB)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# On the CPU whatever GPUs there are: two processes would share one, and its launches take longer than this model's products.
demo: .venv/installed
	@echo "demo, 1 of 2: two processes render clips and train 1.1 million weights on them (no GPU)"
	@$(TWO) train.py --task grounding --device cpu --steps 80 --save-every 20 --keep 4 --out runs/demo --overwrite $$([ -t 1 ] || echo --quiet)
	@echo "demo, 2 of 2: 200 questions to the model before and after, and again with grey frames"
	@$(TWO) eval.py --bench charades --device cpu --model assets/toy-base runs/demo --controls grey

BROWSER = $$(command -v chromium || command -v chromium-browser || command -v google-chrome)
pictures: .venv/installed
	$(BIN)/python -m tools.moving $(RUN)
	$(BIN)/python -m tools.report $(RUN)
	$(BIN)/python -m tools.curves
	cp $(RUN)/learning.gif assets/
	cp runs/curves/*.png assets/curves/
	@[ "$(BROWSER)" ] || { echo "assets/report-laptop.png is not made anew: it needs Chromium or Chrome"; exit 2; }
	$(BROWSER) --headless --no-sandbox --disable-gpu --hide-scrollbars --allow-file-access-from-files --window-size=1280,900 --screenshot=assets/report-laptop.png file://$(abspath $(RUN))/report.html

paper: .venv/installed
	$(BIN)/python -m tools.paper 1 --seeds 0

# Two at a time, a file to each: most tests are short programs of one thread.
TESTS = $(BIN)/python -m pytest -q -n 2 --dist loadfile
test: .venv/ruff
	$(TESTS) -m "not slow" tests

test-slow: .venv/ruff
	$(TESTS) -m slow tests

test-all: test test-slow

lint: .venv/ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/ruff
	$(BIN)/ruff check --select I --fix .
	$(BIN)/ruff format .

.venv/ruff: .venv/installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

docs-check: .venv/installed
	$(BIN)/python tests/docs_check.py

gpu-check: .venv/installed
	$(BIN)/python tests/bench/gpu_check.py $(ARGS)

simulate: .venv/installed
	$(BIN)/python tests/bench/simulate.py $(ARGS)

base: .venv/installed
	$(TWO) -m toy.base
