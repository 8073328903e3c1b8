# make repro: regenerate the study.  make test: the test suite.  Both install what they need into .venv first.
PYTHON ?= python3
JOBS ?= 2# lines of stages that `make repro` runs side by side: one a core, for each takes one thread (threads in params.yaml)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
INSTALLED := .venv/.installed

.PHONY: repro test bench publish lint strip lock clean

# lines of stages, each line one after the other, $(JOBS) lines at a time; DVC gives up where another holds its lock for seconds
SIDE_BY_SIDE = xargs -P $(JOBS) -L 1 bash -o pipefail -c 'log=$$(mktemp); for try in {1..50}; do dvc repro -s "$$0" "$$@" 2>&1 | tee "$$log" && exit; grep -qE "acquire lock|is busy" "$$log" || exit 1; sleep 1; done'
STAGES = echo "$$stages" | grep -E
MAIN = $(shell python -c "import yaml; print(yaml.safe_load(open('params.yaml'))['active']['report']['small']['main'])")

repro: $(INSTALLED) # dvc repro alone does the same, one stage after the other; what a side-by-side run leaves undone, it does
	dvc status -q > /dev/null 2>&1 || { stages=$$(dvc stage list --name-only) && \
		$(STAGES) '^(check|source)$$' | $(SIDE_BY_SIDE) && \
		$(STAGES) '^prepare@' | $(SIDE_BY_SIDE) && \
		{ echo train@$(MAIN) start@$(MAIN) vote@$(MAIN) table2; echo coverage; $(STAGES) '^train@' | sed '/@$(MAIN)$$/d; s/train@\(.*\)/train@\1 start@\1 vote@\1/'; } | $(SIDE_BY_SIDE) && \
		$(STAGES) '^(attack@|arithmetic$$|variant@|speed@)' | $(SIDE_BY_SIDE) && \
		{ echo past; $(STAGES) '^(certify$$|report@)' | xargs -n 2; } | $(SIDE_BY_SIDE); }
	dvc repro
	@python -c "import yaml, pathlib; name = yaml.safe_load(open('params.yaml'))['active']['name']; print('Reports:', *sorted(pathlib.Path('runs', name, 'reports').resolve().glob('*.html')), sep='\n  ')"

test: $(INSTALLED)
	python -m pytest

# glibc keeps freed memory, as in the pipeline (srs/notebooks.py): 1.4 times the speed on two cores

bench: $(INSTALLED) # what each method costs on this machine: Markdown tables; single timings in runs/bench/
	dvc repro -q start@small-025 start@small-050 start@small-100
	name=$$(python -c "import yaml; print(yaml.safe_load(open('params.yaml'))['active']['name'])") && \
		env $$(python -c "from srs.notebooks import KEEP_MEMORY; print(*map('='.join, KEEP_MEMORY.items()))") \
		python -m srs.bench --models runs/$$name/models --starts runs/$$name/starts --data data/$$name

publish: $(INSTALLED) # the active profile's reports -> reports/<profile>/, to be committed
	python -m srs.publish

lint: $(INSTALLED)
	ruff check . && ruff format --check .

strip: $(INSTALLED) # notebooks are committed without outputs
	nbstripout --extra-keys metadata.language_info notebooks/*.ipynb

lock: $(INSTALLED) # exact versions for everybody, from pyproject.toml
	pip-compile -q --upgrade --extra dev --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --no-annotate --allow-unsafe --output-file requirements.lock pyproject.toml

clean: # results and working files; DVC's cache stays, so that `make repro` restores what has not changed
	rm -rf runs data/*/

$(INSTALLED): pyproject.toml requirements.lock
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=/path/to/python' % sys.version_info[:2])"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@
