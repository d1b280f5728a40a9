# The first call of a target makes its environment; later calls reuse it until a file it was
# installed from changes.
PYTHON ?= python3

VENV := .venv
REFERENCE_VENV := .venv-reference
BENCH_VENV := .venv-bench
INSTALLED_FROM := setup.cfg setup.py pyproject.toml constraints.txt \
  $(wildcard movinet_port/fast/*.cpp movinet_port/fast/*.h)
# Processes that tests run in; a file's tests stay together, because they share what is slow to make.
# In the order of tests/conftest.py, where the longest come first.
JOBS ?= 2
PYTEST := python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
# A comma inside an argument of $(call).
, := ,

# The extras that tests use; the demo needs what writes its report, and no TensorFlow.
DEMO := report
TESTED := tf,video,plot,onnx,hub,tflite

PYTHON_FITS = import sys; print("yes" if (3, 10) <= sys.version_info[:2] <= (3, 12) else "")
BAD_PYTHON = $(PYTHON) is not a Python 3.10, 3.11 or 3.12 (found: \
  $(or $(shell $(PYTHON) --version 2>&1 | head -n 1),nothing)); name one, for example: \
  make $(MAKECMDGOALS) PYTHON=python3.11

# $(call install,environment,extras). A venv whose creation was cut short has no pip.
define install
$(if $(shell $(PYTHON) -c '$(PYTHON_FITS)' 2>/dev/null),,$(error $(BAD_PYTHON)))
@test -x $(1)/bin/pip || $(PYTHON) -m venv --clear $(1)
@echo "Installing .[$(2)] into $(1) (minutes, the first time)"
$(1)/bin/python -m pip install --quiet -c constraints.txt -e '.[$(2)]'
@touch $@
endef

.PHONY: help demo test test-reference fuzz bench lint wheel clean

help:
	@echo "make demo            convert the sample model and compare both sides"
	@echo "make test            linters, types and the tests that need no tf-models-official"
	@echo "make test-reference  the tests against the authors' code"
	@echo "make fuzz            damaged sources by the hundred, each refused or converted right"
	@echo "make bench           speed and memory, ours and others' side by side (BENCH=--help)"
	@echo "make lint            linters and types only"
	@echo "make wheel           in dist/: the sdist, and a wheel for every Python on this kind of machine"
	@echo "make clean           remove environments, builds and caches"

$(VENV)/.installed-demo: $(INSTALLED_FROM)
	$(call install,$(VENV),$(DEMO))

# Has what the demo needs, too. Not installed after it: each time, the C++ is compiled anew.
$(VENV)/.installed-dev: $(INSTALLED_FROM)
	$(call install,$(VENV),$(TESTED)$(,)dev)
	@touch $(VENV)/.installed-demo

# Apart, because tf-models-official brings some fifty packages that nothing else needs; what it
# shares with the tests it finds in their environment. Its version is in constraints.txt.
$(REFERENCE_VENV)/.installed: $(VENV)/.installed-dev
	@test -x $(@D)/bin/python || $(VENV)/bin/python -m venv --clear --without-pip $(@D)
	@$(VENV)/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % \
	  sysconfig.get_path("purelib"))' > $$(echo $(@D)/lib/python3*/site-packages)/tests.pth
	@echo "Installing tf-models-official into $(@D)"
	$(VENV)/bin/python -m pip --python $(@D)/bin/python install --quiet -c constraints.txt \
	  tf-models-official
	@touch $@

demo: $(VENV)/.installed-demo
	@mkdir -p build
	$(VENV)/bin/movinet-port convert --hub-url weights/samples/movinet_mini_stream.tar.gz \
	  -o build/movinet_mini_stream.pt
	@echo
	$(VENV)/bin/movinet-port parity --hub-url weights/samples/movinet_mini_stream.tar.gz \
	  --weights build/movinet_mini_stream.pt --report build/parity.html

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test test-reference: export TF_USE_LEGACY_KERAS = 1
test test-reference: export TF_CPP_MIN_LOG_LEVEL = 3

test: lint
	$(VENV)/bin/$(PYTEST) -m "not reference"

test-reference: $(REFERENCE_VENV)/.installed
	$(REFERENCE_VENV)/bin/$(PYTEST) -m reference

fuzz: export TF_USE_LEGACY_KERAS = 1
fuzz: $(VENV)/.installed-dev
	$(VENV)/bin/python tests/fuzz.py

wheel: $(VENV)/.installed-dev
	$(VENV)/bin/python -m build --no-isolation

$(BENCH_VENV)/.installed: $(INSTALLED_FROM)
	$(call install,$(BENCH_VENV),tf$(,)bench$(,)reference)

# The first time makes the peers' files and compiles: an hour. Then half an hour.
bench: export TF_USE_LEGACY_KERAS = 1
bench: export TF_CPP_MIN_LOG_LEVEL = 3
bench: $(BENCH_VENV)/.installed
	$(BENCH_VENV)/bin/python benchmarks/speed.py --verbose --plots docs $(BENCH)

clean:
	rm -rf $(VENV) $(REFERENCE_VENV) $(BENCH_VENV) build dist *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
