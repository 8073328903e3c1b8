"""Run a notebook as a pipeline stage: checked parameters in, a byte-stable notebook and its HTML out.

    python -m srs.notebooks NOTEBOOK OUTPUT [--section NAME=DOTTED.PATH ...] [--set NAME=VALUE ...]

``--section`` gives the notebook a section of params.yaml, which the stage `check` has checked as a whole; ``--set`` a plain
text value.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

sys.modules.setdefault("rfc3987_syntax", None)  # jsonschema's optional URI grammar: 1.5 s at every start, for nothing here

import nbformat  # noqa: E402
import papermill  # noqa: E402
from nbconvert import HTMLExporter  # noqa: E402
from papermill.exceptions import PapermillExecutionError  # noqa: E402

from srs import sections  # noqa: E402
from srs.journal import lock  # noqa: E402

# glibc: keep freed memory rather than hand it back after every evaluation of f (1.4 times the speed on two cores)
KEEP_MEMORY = {
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}
_HIDDEN_TAGS = {"parameters", "injected-parameters", "hide"}


def run(notebook: str | Path, output: str | Path, parameters: dict, sources: dict[str, str] | None = None) -> None:
    """Execute ``notebook`` with ``parameters`` in the current directory; write ``output`` and, beside it, its HTML.

    The output holds no times, run ids or progress bars, so that equal results give equal bytes. A notebook that fails
    is left as OUTPUT with the suffix .failed.ipynb. ``sources``: from which section of params.yaml which parameter comes.

    Raises ParameterError for parameters that the notebook does not declare or lacks, and for sections that were edited
    meanwhile: DVC reads them when a stage ends, and would take the new values for those used; and PapermillExecutionError.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_names(notebook, parameters)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the kernel's debugger warns about frozen modules otherwise
    for name, value in KEEP_MEMORY.items():  # for the kernel, which inherits them
        os.environ.setdefault(name, value)
    partial = output.with_suffix(".failed.ipynb")
    with lock(output):
        executed = papermill.execute_notebook(
            str(notebook),
            str(partial),
            parameters=parameters,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            shutdown_kernel="immediate",  # all cells are done: torch takes a second to say goodbye
            extra_arguments=["--log-level=ERROR"],  # the kernel's, else it warns about its local sockets
        )
        _require_unchanged(parameters, sources or {})
        stable = _stable(executed)
        nbformat.write(stable, partial)
        output.with_suffix(".html").write_text(to_html(stable, title=output.stem), encoding="utf-8")
        os.replace(partial, output)


def to_html(notebook: nbformat.NotebookNode, title: str) -> str:
    """One page that opens from disk without a network: code hidden, pictures embedded, no scripts from elsewhere."""
    exporter = HTMLExporter(
        exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True, mathjax_url="", require_js_url=""
    )
    shown = notebook.copy()
    shown.cells = [cell for cell in notebook.cells if not _HIDDEN_TAGS & set(cell.metadata.get("tags", []))]
    body, _ = exporter.from_notebook_node(shown, resources={"metadata": {"name": title}})
    return body


def _check_names(notebook: str | Path, parameters: dict) -> None:
    declared = set(papermill.inspect_notebook(str(notebook)))
    for name in parameters.keys() - declared:
        raise sections.ParameterError(f"{notebook} declares no parameter {name!r}: choose from {', '.join(sorted(declared))}")
    for name in declared - parameters.keys():
        raise sections.ParameterError(f"{notebook} needs the parameter {name!r}: give --section or --set")


def _require_unchanged(parameters: dict, sources: dict[str, str]) -> None:
    values = sections.read() if sources else {}
    for name, path in sources.items():
        if sections.section(values, path) != parameters[name]:
            raise sections.ParameterError(f"params.yaml: {path} was edited while it was in use: run the stage again")


def _stable(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    executed.metadata = {"kernelspec": executed.metadata.get("kernelspec", {})}
    for number, cell in enumerate(executed.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
            for output in cell.outputs:
                if "text/html" in output.get("data", {}):
                    output["data"].pop("text/plain", None)  # a styled table's holds its address in memory
    return executed


def _end_with_parent() -> None:
    """End this process soon after its parent ends, so that a killed `dvc repro` leaves nobody at work behind it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m srs.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("notebook")
    parser.add_argument("output")
    parser.add_argument("--section", action="append", default=[], metavar="NAME=PATH", help="a section of params.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a plain text value")
    given = parser.parse_args(arguments)
    for option, items in {"--section": given.section, "--set": given.set}.items():
        for item in items:
            if "=" not in item:
                parser.error(f"{option} {item}: NAME=... is wanted")
    _end_with_parent()
    try:
        values = sections.read()
        if not Path(given.notebook).is_file():
            raise sections.ParameterError(f"there is no notebook {given.notebook} in {Path.cwd()}")
        paths = dict(item.split("=", 1) for item in given.section)
        parameters = {name: sections.section(values, path) for name, path in paths.items()}
        parameters |= dict(item.split("=", 1) for item in given.set)
        run(given.notebook, given.output, parameters, paths)
    except sections.ParameterError as error:
        sys.exit(str(error))
    except PapermillExecutionError as error:
        sys.exit(
            f"{given.notebook} failed: {error.ename}: {error.evalue}\nsee {Path(given.output).with_suffix('.failed.ipynb')}"
        )


if __name__ == "__main__":
    main()
