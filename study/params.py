"""The shape of params.yaml, checked as a whole before any work is spent."""

import difflib
import json
import math
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, field_validator, model_validator

from srs.certificates import bounds
from srs.certificates.at_radius import NAMING_DRAWS
from srs.certificates.certify import CertifySettings, Confidence
from srs.common.settings import Section, faults, reason
from srs.data.datasets import DataConfig
from srs.models import PRESETS, configure
from srs.starts import StartSettings
from srs.training.train import Training
from srs.votes.samplers import DirectSampler, StandardSampler
from study import training
from study.arithmetic import Arithmetic
from study.common import snapshot
from study.common.engine import Machine
from study.common.params_file import ParameterError, read, text
from study.common.runs import Model, Name, Run
from study.coverage import Coverage
from study.reports.sections import Report, Requirements
from study.robustness import Robustness, judgement
from study.speed import Speed, timed_rows
from study.starts import Starts
from study.votes.plan import Draws, Spelling, VotePlans, Voting, is_amortized, known
from study.votes.rows import sampler_of
from study.votes.table import settings

#: Sections that the reports read, and on which they depend by a file of their own.
SHOWN = ("data", "models", "training", "runs", "samplers", "rows", "draws", "votes", "starts", "certificates", "report")
SHOWN += ("robustness", "speed")

#: Families of networks that are no DEQs.
PLAIN = {"resnet"}

#: How many classes data sets have that are known before they are read.
_CLASSES = {"digits": 10, "mnist": 10, "cifar10": 10}

#: Folders beside those of the profiles.
_TAKEN = ("bench", "gpu", "kernels", "notebooks", "scratch", "snapshots", "work")


class Study(Section):
    """params.yaml: one size of the whole study, as section by section its classes have it. ``training`` holds a schedule for
    each model (:class:`srs.training.train.Training`), ``samplers`` the rows whose name does not say what they are, ``rows``
    lists of rows, ``published`` whose networks and starts are taken from the snapshot in place of being trained, ``machine``
    what no result depends on."""

    name: Name
    data: dict[Name, DataConfig]
    models: dict[str, Model]
    training: dict[str, dict[str, Any]]
    runs: dict[Name, Run]
    published: Literal["none", "all"] | list[str] = "none"
    starts: Starts
    samplers: dict[str, Spelling] = {}
    rows: dict[str, list[str]]
    draws: dict[str, Draws]
    votes: Voting
    certificates: Confidence
    robustness: Robustness
    coverage: Coverage
    arithmetic: Arithmetic
    speed: Speed
    report: Report
    machine: Machine = Machine()

    @property
    def plans(self) -> VotePlans:
        names = ("runs", "models", "votes", "rows", "draws", "samplers")
        return VotePlans(**{"samplers": {}} | self.model_dump(include=set(names), exclude_unset=True))  # unset is not default

    def made_by(self) -> dict[str, dict]:
        """What each result of training and of fitting is made by, under its place in the profile's folder."""
        sections, runs, found = self.model_dump(mode="json"), self.plans.runs, {}

        def parts(run: Run) -> dict:
            every = training.parameters(run, sections["models"], sections["training"], sections["data"])
            return {name: part.model_dump(mode="json") for name, part in every.items()}

        for key, run in runs.items():
            made_by = parts(run)
            if run.base is not None:
                fitted = {name: sections["starts"][name] for name in StartSettings.model_fields}
                made_by["base"] = parts(runs[run.base]) | {"starts": fitted}
            if run.pretrained is not None:
                made_by["pretrained"] = parts(runs[run.pretrained])
            found[f"{run.folder}/{key}"] = made_by
        candidates = {row: sampler_of(row, self.samplers, self.votes.chains) for row in self.starts.candidates}
        fitted = {"starts": sections["starts"], "candidates": {row: s.model_dump(mode="json") for row, s in candidates.items()}}
        return found | {f"starts/{key}": fitted for key in self.plans.with_starts()}

    def taken(self) -> dict[str, dict]:
        """The published results that stand for training and fitting. Raises ValueError where one is missing, or not what
        would be made here."""
        if self.published == "none":
            return {}
        there, found = snapshot.networks(self.name), {}
        runs = {result.partition("/")[2]: None for result in there if not result.startswith("starts/")}
        if not runs:
            raise ValueError(
                f"published = {self.published!r}: {snapshot.SNAPSHOTS / self.name} has no networks: none is wanted"
            )
        chosen = [key for key in self.plans.runs if key in runs] if self.published == "all" else self.published
        for key in chosen:
            known("published", key, runs)
        for result, made_by in self.made_by().items():
            stage, _, key = result.partition("/")
            if key not in chosen or (stage == "starts" and result not in there):
                continue
            told = there.get(result, {"made_by": {}})["made_by"]
            for place, ours, theirs in _differences(made_by, told, "", set()):
                raise ValueError(
                    f"published = {self.published!r}: {result} was made by other settings, {place or 'all'} is {ours} here and "
                    f"{theirs} there: list the runs to take without {key}, or none"
                )
            snapshot.require_whole(self.name, result, there[result]["sha256"])
            found[result] = there[result]
        return found

    @field_validator("published", mode="before")
    @classmethod
    def _runs_or_all(cls, published: Any) -> Any:
        if published not in ("none", "all") and not isinstance(published, list):
            raise ValueError("none, all or a list of runs is wanted")
        return published

    @field_validator("name")
    @classmethod
    def _has_its_own_folder(cls, name: str) -> str:
        if name in _TAKEN:
            raise ValueError(f"runs/{name} is no folder of a profile: choose a name beside {', '.join(_TAKEN)}")
        return name

    @model_validator(mode="after")
    def _names_resolve(self) -> "Study":
        self._models_can_be_built()
        self._runs_can_be_trained()
        plans = self.plans
        for key, plan in plans.plans.items():
            self._has_images(f"votes.images.{plans.data(key)}", plan.images, plans, key)
            for group in plan.groups:
                self._can_vote(plans, key, group)
                self._certifiable(plan, group)
        self._can_be_attacked(plans)
        _require_deq("arithmetic.run", plans, known("arithmetic.run", self.arithmetic.run, self.runs))
        self._has_images("arithmetic.images", self.arithmetic.images, plans, self.arithmetic.run)
        for key in self.published if isinstance(self.published, list) else ():
            known("published", key, plans.runs)
        if self.votes.n0 < NAMING_DRAWS:
            raise ValueError(f"votes.n0 = {self.votes.n0} is out of range: {NAMING_DRAWS} or more")
        self._can_be_deployed()
        for name in ("stands_for", "radii"):
            for data in getattr(self.report, name):
                known(f"report.{name}", data, self.data)
        Requirements(self.report, plans, self.certificates.alpha, self.starts.candidates, self.robustness.runs).check()
        self._can_be_timed(plans)
        return self

    def _can_be_deployed(self) -> None:
        """Whether the rows among which the one to deploy is chosen are standard ones, and some of them amortized."""
        try:
            found = {row: sampler_of(row, self.samplers, self.votes.chains) for row in self.starts.candidates}
        except ValueError as error:
            raise ValueError(f"starts.candidates: {error}") from None
        for row, sampler in found.items():
            if not (isinstance(sampler, StandardSampler) and sampler.independent and not sampler.exact):
                raise ValueError(f"starts.candidates: the row {row!r} is none that could be deployed: expected a standard one")
        if not any(map(is_amortized, found.values())):
            raise ValueError(f"starts.candidates = {self.starts.candidates} has no amortized row, such as AS-MDEQ-1N")

    def _can_be_timed(self, plans: VotePlans) -> None:
        """Whether the runs that are timed, which have all that their report needs, have what ``speed`` asks for besides."""
        speed = self.speed
        for key in self.report.past:
            plan = plans[key]
            self._has_images("speed.images", speed.images, plans, key)
            whole = [group.kind for group in plan.groups.values() if plan.reference in group.samplers.values()]
            known(f"speed.rows: a list of {key} with {plan.reference_row(plan.group('past'))}", speed.rows, whole)
            timed, _, _ = timed_rows(plan, speed)
            for row in self.starts.candidates:
                known(f"starts.candidates: the row, to be timed by speed.rows = {speed.rows!r},", row, timed)
            farthest = bounds.largest_radius_by_evidence(speed.n, CertifySettings().alpha, plan.sigma)
            if speed.radius is not None and speed.radius > farthest:
                most = f"0 to {bounds.shown(farthest)} for {key}, from speed.n = {speed.n} draws"
                raise ValueError(f"speed.radius = {speed.radius:g} is out of range: {most}")

    def _can_be_attacked(self, plans: VotePlans) -> None:
        """Whether the attacked runs have the rows that are told, and whether PREDICT can name a class."""
        attacks = self.robustness
        for key, row in attacks.runs.items():
            main = plans.plans[known("robustness.runs", key, plans.plans)].groups[plans[key].main]
            _require_deq("robustness.runs", plans, key)
            known(f"robustness.runs.{key}", row, main.samplers)
            if attacks.images > main.images:
                raise ValueError(f"robustness.images = {attacks.images} is out of range: 1 to {main.images}")
        try:
            judgement(attacks, 1.0, self.certificates.alpha)
        except ValidationError as error:
            raise ValueError(f"robustness.n = {attacks.n} at certificates.alpha: {_first_of(error)}") from None
        most = max(_CLASSES.get(self.data[plans.data(key)].name, 2) for key in attacks.runs)
        if bounds.log_evidence(attacks.n, attacks.n, 0.5) < math.log(most / self.certificates.alpha):  # as a Poll has it
            told = "is too small for certificates.alpha: not even equal votes name a class"
            raise ValueError(f"robustness.n = {attacks.n} {told}")

    def _has_images(self, path: str, images: int, plans: VotePlans, key: str) -> None:
        """Whether the data set of a run has so many test images, where the section ``data`` says how many."""
        data = self.data[plans.data(key)]
        if data.name == "folder":  # whether these are there the stage `prepare` says
            most = plans[key].images
            told = f"1 to votes.images.{plans.data(key)} = {most}"
        else:
            most = {"digits": data.test, "mnist": data.test, "cifar10": 10_000}[data.name]
            told = f"the data set has {most} test images"
        if images > most:
            raise ValueError(f"{path} = {images} is out of range: {told}")

    def _can_vote(self, plans: VotePlans, key: str, group: str) -> None:
        """Whether a run's network can cast the votes of a group's rows."""
        network, chosen = family(plans, key), plans[key].groups[group]
        audits = {"its audits' reference": plans[key].reference} if chosen.serialized else {}
        for row, sampler in (chosen.samplers | audits).items():
            place = f"votes.groups.{key}: {group} has {row if row in audits else f'the row {row!r}'}"
            if isinstance(sampler, DirectSampler) != (network in PLAIN):
                wanted = "direct ones" if network in PLAIN else "standard, serialized or released ones"
                raise ValueError(f"{place}, but the network is {'no' if network in PLAIN else 'a'} DEQ: {wanted} are wanted")
            if network not in {*PLAIN, "mondeq"} and sampler.solver.stop == "settled":
                raise ValueError(f"{place}: only a monotone DEQ bounds its distance from the fixed point, which settles votes")

    def _models_can_be_built(self) -> None:
        for key, model in self.models.items():
            known(f"models.{key}.data", model.data, self.data)
            for name in {"family", "preset"} & model.overrides.keys():
                raise ValueError(f"models.{key}.overrides.{name} = {model.overrides[name]!r} must go: choose another preset")
            try:
                configure(model.preset, **model.overrides)
            except ValidationError as error:
                told = (f"models.{key}.overrides.{fault}" for fault in faults(error, "as a whole"))
                raise ValueError("; ".join(told)) from None
            except ValueError as error:
                raise ValueError(f"models.{key}: {error}") from None

    def _runs_can_be_trained(self) -> None:
        for key in self.training:
            known("training", key, self.models)
        given = {f"training.{key}": fields for key, fields in self.training.items()}
        for place, fields in (given | {f"runs.{key}.training": run.training for key, run in self.runs.items()}).items():
            for name in sorted({"sigma", "seed"} & fields.keys()):
                raise ValueError(f"{place}.{name} = {fields[name]!r} must go: it is each run's own, runs.RUN.{name}")
        for key, run in self.runs.items():
            known(f"runs.{key}.model", run.model, self.models)
            try:
                schedule = Training(**run.schedule(self.training))
            except ValidationError as error:
                first = error.errors()[0]["loc"]
                place = f"runs.{key}.training" if first and first[0] in run.training else f"training.{run.model}"
                raise ValueError("; ".join(f"{place}.{fault}" for fault in faults(error, "as a whole"))) from None
            if run.base is None:
                if schedule.start != "initial":
                    raise ValueError(f"runs.{key}.training.start = {schedule.start!r} needs a base, whose starts it has")
                if run.pretrained is not None:
                    self._goes_on_from(key, run, "pretrained")
                continue
            self._goes_on_from(key, run, "base")
            if schedule.start == "initial":
                raise ValueError(f"runs.{key}.training.start = 'initial' must be 'mean' or 'learned': it goes on from a base")

    def _goes_on_from(self, key: str, run: Run, field: str) -> None:
        """Whether the run that ``field`` names, base or pretrained, is trained from scratch and has the same model."""
        name = getattr(run, field)
        first = self.runs[known(f"runs.{key}.{field}", name, self.runs)]
        if first.base is not None or first.pretrained is not None:
            raise ValueError(f"runs.{key}.{field} = {name!r} must be trained from scratch")
        if first.model != run.model:
            raise ValueError(f"runs.{key}.model = {run.model!r} must be that of its {field} run, {first.model!r}")

    def _certifiable(self, plan, group: str) -> None:
        chosen = plan.groups[group]
        if chosen.serialized and chosen.audit is not None and self.certificates.census:
            raise ValueError(
                f"certificates.census = {self.certificates.census} needs the reference's votes on all draws: "
                f"draws.{group}.audit = {chosen.audit} must go, and the reference be a row"
            )
        try:
            config = settings(plan, group, self.certificates)
            if chosen.serialized:
                config.require_audit()
        except ValidationError as error:
            raise ValueError(f"draws.{group}: {_first_of(error)}") from None
        except ValueError as error:
            raise ValueError(f"draws.{group}: {error}") from None


def family(plans: VotePlans, key: str) -> str:
    """The family of a run's network."""
    return PRESETS[plans.models[plans.runs[key].model].preset]["family"]


def _require_deq(path: str, plans: VotePlans, key: str) -> None:
    """Raises ValueError, with the ``path``, for a run of another network."""
    if family(plans, key) in PLAIN:
        raise ValueError(f"{path} = {key!r} is no DEQ: one is wanted")


def _first_of(error: ValidationError) -> str:
    """What is wrong first, without its place."""
    return error.errors()[0]["msg"].removeprefix("Value error, ")


def load(path: str | Path = "params.yaml") -> Study:
    """Read and check params.yaml. Raises ParameterError."""
    values = read(path)
    try:
        _require_one_reading(values, path)
        return Study.model_validate(values)
    except ValidationError as error:
        raise ParameterError("\n".join(_explain(error, str(path)))) from None
    except RecursionError:
        raise ParameterError(f"{path} is nested too deeply") from None


def _require_one_reading(values: dict, path: str | Path) -> None:
    """DVC reads YAML 1.2, the study 1.1: what is checked must be what DVC tracks. Here alone, before anything is spent: read
    twice at every start of a notebook, the file would cost each of them twice the time."""
    try:
        from ruamel.yaml import YAML, YAMLError  # which notebooks that import this module need not wait for
    except ImportError:  # it comes with DVC, which is not here
        return
    try:
        theirs = YAML(typ="safe").load(text(path))
    except (YAMLError, ValueError) as error:
        raise ParameterError(f"{path} is not valid YAML 1.2, which DVC reads: {error}") from None
    found = [
        f"{path}: {place} is {ours} in YAML 1.1, which the study reads, and {other} in 1.2, which DVC reads: "
        "write numbers plainly (0.5 for 5e-1), true or false, and other text in quotes"
        for place, ours, other in _differences(values, theirs, "", set())
    ]
    if found:
        raise ParameterError("\n".join(found))


def _differences(ours: Any, theirs: Any, place: str, seen: set[int]) -> Iterator[tuple[str, str, str]]:
    """Where two readings differ, and what they are there; of what stands in several places by an anchor, at the first."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [sorted(map(repr, one.keys() - other.keys())) for one, other in ((ours, theirs), (theirs, ours))]
        if any(names):
            yield f"a name in {place or 'the file'}", *map(", ".join, names)
        parts = [(name, ours[name], theirs[name]) for name in ours if name in theirs]
    elif isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            yield place or "the file", repr(ours), repr(theirs)
        parts = [(i, *pair) for i, pair in enumerate(zip(ours, theirs))]
    else:
        parts = []
        if type(ours) is not type(theirs) or repr(ours) != repr(theirs):
            yield place, repr(ours), repr(theirs)
    if id(ours) not in seen:
        seen |= {id(ours)} if parts else set()
        for name, mine, other in parts:
            yield from _differences(mine, other, f"{place}.{name}".lstrip("."), seen)


#: Of unions in places of faults: what pydantic calls their members.
_TAGS = {"row", "sampler", "standard", "serialized", "direct", "released", "[key]"}


def _explain(error: ValidationError, path: str) -> Iterator[str]:
    """A line for each fault."""
    for fault in error.errors():
        place = [str(part) for part in fault["loc"] if part not in _TAGS]
        what = ""
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(place[-1], _field_names(Study), n=3)
            what = "no such parameter" + (f"; did you mean {' or '.join(near)}?" if near else "")
        yield ": ".join(part for part in (path, ".".join(place), reason(fault, what)) if part)


@cache
def _field_names(model: type[BaseModel]) -> set[str]:
    """The names of all parameters in ``model`` and in the models that its annotations mention, at any depth."""
    whole = model.model_json_schema()
    return {name for schema in [whole, *whole["$defs"].values()] for name in schema.get("properties", {})}


def main() -> None:
    try:
        values, study = read(), load()
        taken = study.taken()
        if read() != values:  # DVC reads it when the stage ends, and would take what it finds for what was checked
            raise ParameterError("params.yaml was edited while it was checked: run the stage again")
    except ParameterError as error:
        sys.exit(str(error))
    except ValueError as error:
        sys.exit(f"params.yaml: {error}")
    folder = Path("runs") / study.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checked").write_text("params.yaml is well formed\n", encoding="utf-8")
    (folder / "shown.json").write_text(json.dumps({name: values.get(name) for name in SHOWN}, indent=1), encoding="utf-8")
    (folder / "published.json").write_text(json.dumps(taken, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
