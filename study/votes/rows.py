"""Rows of tables by the paper's names: SRS-MDEQ-3A is serialized, three steps of Anderson's method."""

import re

from srs.deq.solvers import Solver
from srs.votes.samplers import Sampler, SerializedSampler, StandardSampler

METHODS = {"N": "naive", "A": "anderson", "B": "broyden"}
WARMUP = 10  # steps, as the command in the authors' README has it (the paper's text says 30)
_NAME = re.compile(r"(?P<kind>SRS-|AS-|)MDEQ-(?P<steps>[1-9]\d*)(?P<method>[NAB])")


def sampler_of(row: str, spelled: dict[str, Sampler | str], chains: int) -> Sampler:
    """What casts the votes of a ``row``: what its name says, or what is ``spelled`` out for it, which may be another row.

    MDEQ is standard smoothing, AS-MDEQ from the learned start, SRS-MDEQ serialized after 10 warm-up steps of Anderson's method
    (of Broyden's, where that is the row's); then the number of steps, and N, A or B for naive iteration, Anderson and Broyden.
    Serialized rows run in so many ``chains``, unless it is spelled out.

    Raises ValueError for a name that says nothing.
    """
    found = spelled.get(row)
    if isinstance(found, str):
        if isinstance(spelled.get(found), str):
            raise ValueError(f"samplers.{row} = {found!r} must name a row that is spelled out, or whose name says what it is")
        return sampler_of(found, spelled, chains)
    if found is None:
        found = _named(row)
    if isinstance(found, SerializedSampler) and "chains" not in found.model_fields_set:
        found = found.model_copy(update={"chains": chains})
    return found


def _named(row: str) -> Sampler:
    parts = _NAME.fullmatch(row)
    if parts is None:
        accepted = "MDEQ-30A, SRS-MDEQ-3A, AS-MDEQ-1N and their like, or what is spelled out in samplers"
        raise ValueError(f"the row {row!r} does not say what it is: expected {accepted}")
    solver = Solver(method=METHODS[parts["method"]], steps=int(parts["steps"]))
    if parts["kind"] == "SRS-":
        warmup = Solver(method="broyden" if solver.method == "broyden" else "anderson", steps=WARMUP)
        return SerializedSampler(solver=solver, warmup=warmup)
    return StandardSampler(solver=solver, start="learned" if parts["kind"] else "initial")


def plain(reference: str) -> str:
    """The name of the row that is ``reference`` with fixed steps."""
    return reference.removesuffix(" stopped")


def fast_row(reference: str) -> str:
    """The name of the serialized row that stands for its method: three steps of the reference's solver."""
    return f"SRS-MDEQ-3{plain(reference)[-1]}"


def stopped(reference: str) -> str:
    """The name of the row that is ``reference``, stopped at its tolerance: the honest baseline of speed-ups."""
    return f"{plain(reference)} stopped"


def released(reference: str) -> str:
    """The name of the row that does what the paper's released baseline does: ``reference``, stopped batch by batch."""
    return f"{plain(reference)} as released"
