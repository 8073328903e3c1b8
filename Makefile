# make repro: regenerate the study.  make test: the test suite.  Both install what they need into .venv first.
PYTHON ?= python3
PROFILE ?= # one of profiles/; params.yaml as it is, unless given
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)# study/, which is not installed, for notebooks that run elsewhere
export PYTHONDONTWRITEBYTECODE :=# set in some containers, where each of a study's many processes would compile torch anew
INSTALLED := .venv/.installed
MUTANTS ?= # a pattern of names; all, unless given

.PHONY: repro test mutants bench publish lint strip lock clean

repro: $(INSTALLED) # dvc repro, and the installation
	@$(if $(PROFILE),python -m study.switch $(PROFILE))
	dvc repro
	@python -c "import yaml, pathlib; name = yaml.safe_load(open('params.yaml'))['name']; print(pathlib.Path('runs', name, 'comparison.txt').read_text(encoding='utf-8'), end=''); print('Reports:', pathlib.Path('runs', name, 'site/index.html').resolve())"

test: $(INSTALLED)
	python -m pytest -n auto --dist loadfile --no-loadscope-reorder

mutants: $(INSTALLED) # which changes of the proved code no test would see: docs/testing.md
	@python -c "import mutmut" 2> /dev/null || python -m pip install --quiet --disable-pip-version-check mutmut
	HYPOTHESIS_PROFILE=mutants OMP_NUM_THREADS=1 python -m mutmut run --max-children 2 $(MUTANTS)

bench: $(INSTALLED) # what each method costs on this machine: Markdown tables; single timings in runs/bench/
	dvc repro -q start
	python -m study.bench
	python -m study.scaling

publish: $(INSTALLED) # the present profile's reports -> reports/<profile>/, its data -> data/snapshots/<profile>/, to be committed
	python -m study.reports.publish
	dvc repro -q # which compares the run with itself

lint: $(INSTALLED)
	ruff check . && ruff format --check .

strip: $(INSTALLED) # notebooks are committed without outputs
	nbstripout --extra-keys metadata.language_info notebooks/*.ipynb

lock: $(INSTALLED) # exact versions for everybody, from pyproject.toml
	pip-compile -q --upgrade --extra study --extra dev --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate --output-file requirements.lock pyproject.toml

clean: # results and working files; DVC's cache stays, so that `make repro` restores what has not changed
	rm -rf runs $(patsubst profiles/%.yaml,data/%,$(wildcard profiles/*.yaml))

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=/path/to/python' % sys.version_info[:2])"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c requirements.lock -e '.[study,dev]'
	touch $@
