"""Chaos at length: SRS_CHAOS=20 python -m pytest tests/test_chaos.py (a quarter of an hour on two idle cores).

`dvc repro` of the smallest profile's votes is killed so many times at random moments, each time somewhere else; its disk is
full once. In the end its files are those of an undisturbed run, and what was whole was never cast again. tests/test_engine.py
has the same in small.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("SRS_CHAOS", "0"))
ROOT = Path(__file__).parent.parent
VOTES, RECORDS = Path("runs/smoke/votes"), Path("runs/smoke/timings/votes")
pytestmark = pytest.mark.skipif(not KILLS, reason="SRS_CHAOS says how many kills")


def _repro(root: Path, *words: str, **more: str) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    here = os.environ | {"PYTHONPATH": str(root), "PATH": path} | more
    with open(root.parent / f"{root.name}.log", "a") as log:
        return subprocess.Popen(["dvc", "repro", *words], cwd=root, env=here, stdout=log, stderr=log, start_new_session=True)


def _project(place: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(ROOT), str(place)], check=True)
    text = (ROOT / "profiles/smoke.yaml").read_text()
    more = re.sub(r"(images: \d+, n: )(\d+)", lambda found: found[1] + str(20 * int(found[2])), text)  # a minute's votes
    (place / "params.yaml").write_text(more)
    return place


def _whole(root: Path) -> dict[Path, tuple]:
    """The results that are there with their records: when each was written."""
    found = {}
    for path in (root / VOTES).rglob("*.npz"):
        record = root / RECORDS / path.relative_to(root / VOTES)
        if record.is_file() and not path.name.startswith("."):
            found[path.relative_to(root)] = (path.stat().st_mtime_ns, record.stat().st_mtime_ns)
    return found


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted((root / VOTES).rglob("*")) if path.is_file()}


def _at_work(root: Path, what: str) -> list[int]:
    """Processes in ``root`` whose command has ``what`` in it."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if re.search(what, command) and Path(os.readlink(place / "cwd")) == root:
                found.append(int(place.name))
        except OSError:
            continue
    return found


WHO = {"a worker": "dask worker|spawn_main", "the client": "ipykernel", "the runner": "study.run", "dvc": "dvc repro"}


def _nobody(root: Path) -> None:
    deadline = time.monotonic() + 60
    while _at_work(root, "python|dvc") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _at_work(root, "python|dvc")


def _kill(root: Path, who: str, process: subprocess.Popen, after: float) -> None:
    """Kill somebody so many seconds after a first new result; all others end by themselves. (A worker is replaced, and the run
    goes on: its client is killed, too, a little later.)"""
    before, deadline = len(_whole(root)), time.monotonic() + 120
    while len(_whole(root)) == before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(after)
    for victim in [who, "the client"] if who == "a worker" else [who]:
        some = _at_work(root, WHO[victim])
        assert some or process.poll() is not None, f"{victim} is not there"
        for one in some[-1:]:
            os.kill(one, signal.SIGKILL)
        time.sleep(after)
    process.wait(300)
    _nobody(root)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = _project(tmp_path_factory.mktemp("chaos") / "undisturbed")
    assert _repro(root, "tune").wait(1200) == 0
    before = tmp_path_factory.getbasetemp() / "before"
    shutil.copytree(root, before, symlinks=True)
    assert _repro(root, "vote").wait(1200) == 0
    return root, before


def test_votes_survive_whatever_dies(undisturbed):
    undisturbed, root = undisturbed
    chance, whole = random.Random(KILLS), {}
    for number in range(KILLS):
        _kill(root, list(WHO)[number % len(WHO)], _repro(root, "vote"), chance.uniform(0, 1.5))
        again = {path for path, written in _whole(root).items() if path in whole and written != whole[path]}
        assert not again, f"cast again: {again}"
        whole = _whole(root)
        print(f"kill {number + 1}: {len(whole)} results are whole")
    assert _repro(root, "vote").wait(1200) == 0
    assert {path: written for path, written in _whole(root).items() if path in whole} == whole
    assert _bytes(root) == _bytes(undisturbed)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_votes_survive_a_full_disk_and_the_death_of_a_scheduler(undisturbed):
    undisturbed, root = undisturbed
    shutil.rmtree(root / VOTES, ignore_errors=True)
    shutil.rmtree(root / RECORDS, ignore_errors=True)
    (root / VOTES).mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(root / VOTES)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be had: {mounted.stderr.decode()}")
    try:
        assert _repro(root, "vote", "--force").wait(600) != 0
        some = {path: path.read_bytes() for path in (root / VOTES).rglob("*.npz") if not path.name.startswith(".")}
    finally:
        subprocess.run(["umount", str(root / VOTES)], check=True)
    assert some and all(content == (undisturbed / path.relative_to(root)).read_bytes() for path, content in some.items())

    address = "tcp://127.0.0.1:18786"
    python, port = [sys.executable, "-m", "dask"], address.rpartition(":")[2]
    here = {"cwd": root, "env": os.environ | {"PYTHONPATH": str(root)}, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([*python, "scheduler", "--no-dashboard", "--host", "127.0.0.1", "--port", port], **here)
    options = ["--nworkers", "1", "--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--death-timeout", "20"]
    cluster = [subprocess.Popen([*python, "worker", address, *options], process_group=0, **here) for _ in range(2)]
    try:
        process, deadline = _repro(root, "vote", DASK_SCHEDULER_ADDRESS=address), time.monotonic() + 120
        while len(_whole(root)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        scheduler.kill()
        assert process.wait(300) != 0
    finally:
        for one in (scheduler, *cluster):
            one.kill()
            one.wait()
    whole = _whole(root)
    assert len(whole) >= 3
    assert _repro(root, "vote").wait(1200) == 0
    assert {path: written for path, written in _whole(root).items() if path in whole} == whole
    assert _bytes(root) == _bytes(undisturbed)
