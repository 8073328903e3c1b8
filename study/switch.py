"""Make another profile of ``profiles/`` the present one: python -m study.switch NAME

params.yaml is replaced, unless that would lose an edit: what neither a profile nor git's last commit has.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from study.common import params_file

PROFILES = Path("profiles")


def switch(name: str) -> None:
    """Replace params.yaml by a profile. Raises ParameterError for an unknown name, and where an edit would be lost."""
    names = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    if name not in names:
        choice = (
            f"choose one of {', '.join(names)}" if names else "there are no profiles here; start in the project's own folder"
        )
        raise params_file.ParameterError(f"PROFILE = {name!r} is unknown: {choice}")
    present, chosen = Path("params.yaml"), PROFILES / f"{name}.yaml"
    if present.is_file() and present.read_bytes() != chosen.read_bytes():
        values = params_file.read(present)
        kept = any(params_file.read(PROFILES / f"{known}.yaml") == values for known in names)
        if not kept and _edited(present):
            told = "params.yaml has edits that neither a profile nor git's last commit has"
            raise params_file.ParameterError(f"{told}: commit them, or copy the file, before {name!r} takes its place")
    shutil.copyfile(chosen, present)


def _edited(path: Path) -> bool:
    """Whether git's last commit has a file otherwise, or there is no git to ask."""
    try:
        told = subprocess.run(["git", "status", "--porcelain", str(path)], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return True
    return bool(told.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m study.switch", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a profile in profiles/")
    try:
        switch(parser.parse_args().name)
    except params_file.ParameterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
