"""Run a notebook as a pipeline stage: checked parameters in, a byte-stable notebook out.

    python -m study.run NOTEBOOK [[NAME=]SECTION ...] [--set NAME=VALUE ...] [--as NAME] [--into FOLDER]

NOTEBOOK is the name of one of runs/notebooks. It gets the profile's ``name``, the SECTIONs of params.yaml, which the stage
`check` has checked as a whole, under their own names or others (alpha=certificates.alpha), and what --set says as text. What it
makes goes to runs/<profile>/FOLDER/NAME.ipynb: without --into and --as to its own name in ``notebooks``.
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
from papermill.exceptions import PapermillExecutionError  # noqa: E402

from srs.common.resume import lock  # noqa: E402
from study.common import params_file  # noqa: E402
from study.common.memory import keep_memory  # noqa: E402


def run(notebook: str | Path, output: str | Path, parameters: dict, sources: dict[str, str] | None = None) -> None:
    """Execute ``notebook`` with ``parameters`` in the current directory; write ``output``.

    The output holds no times, run ids or progress bars, so that equal results give equal bytes. A notebook that fails
    is left as OUTPUT with the suffix .failed.ipynb. ``sources``: from which section of params.yaml which parameter comes.

    Raises ParameterError for parameters that the notebook does not declare or lacks, and for sections that were edited
    meanwhile: DVC reads them when a stage ends, and would take the new values for those used; and PapermillExecutionError.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_names(notebook, parameters)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the kernel's debugger warns about frozen modules otherwise
    keep_memory()
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
        nbformat.write(_stable(executed), partial)
        os.replace(partial, output)


def _check_names(notebook: str | Path, parameters: dict) -> None:
    declared = set(papermill.inspect_notebook(str(notebook)))
    for name in parameters.keys() - declared:
        raise params_file.ParameterError(
            f"{notebook} declares no parameter {name!r}: choose from {', '.join(sorted(declared))}"
        )
    for name in declared - parameters.keys():
        raise params_file.ParameterError(f"{notebook} needs the parameter {name!r}: give a section or --set")


def _require_unchanged(parameters: dict, sources: dict[str, str]) -> None:
    values = params_file.read() if sources else {}
    for name, path in sources.items():
        if params_file.section(values, path) != parameters[name]:
            raise params_file.ParameterError(f"params.yaml: {path} was edited while it was in use: run the stage again")


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
    parser = argparse.ArgumentParser(prog="python -m study.run", description=__doc__.splitlines()[0])
    parser.add_argument("notebook", help="a name in runs/notebooks")
    parser.add_argument("sections", nargs="*", metavar="[NAME=]SECTION", help="a section of params.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a plain text value")
    parser.add_argument("--as", dest="name", help="the name of what is made")
    parser.add_argument("--into", default="notebooks", metavar="FOLDER", help="the folder of what is made")
    given = parser.parse_args(arguments)
    for item in given.set:
        if "=" not in item:
            parser.error(f"--set {item}: NAME=... is wanted")
    _end_with_parent()
    source = Path("runs/notebooks") / f"{given.notebook}.ipynb"
    try:
        values = params_file.read()
        if not source.is_file():
            raise params_file.ParameterError(f"there is no notebook {source} in {Path.cwd()}")
        paths = {item.partition("=")[0]: item.rpartition("=")[2] for item in ["name", *given.sections]}
        parameters = {name: params_file.section(values, path) for name, path in paths.items()}
        parameters |= dict(item.split("=", 1) for item in given.set)
        output = Path("runs") / parameters["name"] / given.into / f"{given.name or given.notebook}.ipynb"
        run(source, output, parameters, paths)
    except params_file.ParameterError as error:
        sys.exit(str(error))
    except PapermillExecutionError as error:
        sys.exit(f"{source} failed: {error.ename}: {error.evalue}\nsee {output.with_suffix('.failed.ipynb')}")


if __name__ == "__main__":
    main()
