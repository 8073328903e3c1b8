"""The shape of params.yaml, checked as a whole before any work is spent."""

import difflib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from srs.arithmetic import Arithmetic
from srs.attacks import Attack
from srs.bench import Speed
from srs.casting import Casting
from srs.certification import Assurance
from srs.coverage import Coverage
from srs.data import DataConfig
from srs.models import configure
from srs.results import stopped
from srs.sections import ParameterError, Section, faults, read, reason, text
from srs.starts import Starts
from srs.training import Training
from srs.votes import Sampler, StandardSampler


def _plain(name: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"the name {name!r} must have letters, digits, - and _ alone, and begin with a letter or digit")
    return name


#: What becomes the name of a DVC stage, a part of a path and a word of a shell.
Name = Annotated[str, AfterValidator(_plain)]

#: Folders beside those of the profiles.
_TAKEN = ("bench", "notebooks", "scratch", "work")


class ModelSpec(Section):
    """Which network on which data set; ``overrides`` replace fields of the preset."""

    data: str
    preset: str
    overrides: dict[str, Any] = {}

    @model_validator(mode="after")
    def _makes_a_model(self) -> "ModelSpec":
        for name in {"family", "preset"} & self.overrides.keys():
            raise ValueError(f"overrides.{name} = {self.overrides[name]!r} must go: choose another preset")
        try:
            configure(self.preset, **self.overrides)
        except ValidationError as error:
            raise ValueError("; ".join(f"overrides.{fault}" for fault in faults(error, "as a whole"))) from None
        return self


class Experiment(Section):
    """One trained model and the votes that are cast with it."""

    model: ModelSpec
    training: Training
    votes: Casting


class Variant(Experiment):
    """The network of an ``experiment``, trained otherwise: from scratch or, where ``training.start`` is a fitted start, from
    the experiment's model and starts on. No starts are fitted to what is trained from scratch."""

    experiment: str

    @model_validator(mode="after")
    def _has_its_starts(self) -> "Variant":
        if self.training.start != "initial":
            return self
        for group in self.votes.groups.values():
            for row, sampler in group.samplers.items():
                if isinstance(sampler, StandardSampler) and sampler.start != "initial":
                    raise ValueError(
                        f"row {row!r} starts at {sampler.start!r}: training.start must be 'mean' or 'learned' (got 'initial')"
                    )
        return self


#: Sections that the reports read, and on which they depend by a file of their own.
SHOWN = ("experiments", "variants", "report", "attacks", "certificates")

#: A report that needs the size ``small`` alone; the others show what the paper shows, and need all that it has.
ALONE = "24_cifar10"

#: The groups that reports read of the main experiment of each size, and rows that they name beside the reference.
_NEEDED = {
    "small": {
        "main": ("MDEQ-1A", "SRS-MDEQ-1A", "SRS-MDEQ-3A"),
        "consistency": tuple(f"{kind}-{steps}A" for kind in ("MDEQ", "SRS-MDEQ") for steps in (1, 3)),
        "steps": ("SRS-MDEQ-3A", "SRS-MDEQ-5A"),
        "solvers": ("MDEQ-30N", "MDEQ-30A"),
        "warmup_steps": (),
        "warmup_solvers": (),
        "restart": (),
        "serialized_starts": (),
    },
    "imagenet": {"main": ("MDEQ-1B", "SRS-MDEQ-1B", "SRS-MDEQ-3B"), "steps": ()},
}
_NEEDED["large"] = {
    **{name: rows for name, rows in _NEEDED["small"].items() if name not in ("warmup_solvers", "restart", "serialized_starts")},
    "start": tuple(f"SRS-MDEQ-{steps}A {start} start" for steps in (1, 3) for start in ("clean", "previous")),
}


class Attacks(Section):
    """Empirical robustness of an experiment's certified smoothed classifier: ``attacks`` on ``images`` evenly spaced ones
    among its group ``main``'s, at each of ``radii``; each attacked image is classified by PREDICT with up to ``n`` draws.
    ``method`` names the row of the group ``main`` whose certificates stand beside. ``threads``: as in Training."""

    experiment: str
    method: str
    images: int = Field(ge=1)
    n: int = Field(ge=20)
    seed: int = Field(0, ge=0, lt=1 << 63)
    batch_size: int = Field(800, ge=1)
    radii: list[float]
    attacks: dict[str, Attack] = Field(min_length=1)
    threads: int | None = Field(None, ge=1)


class DataRole(Section):
    """What a data set stands for in the reports, and the radii of its tables."""

    stands_for: str
    radii: list[float]

    @model_validator(mode="after")
    def _radii_ascend_from_zero(self) -> "DataRole":
        if self.radii[:1] != [0] or sorted(set(self.radii)) != self.radii:
            raise ValueError(f"radii = {self.radii} must start at 0 and ascend")
        return self


class Size(Section):
    """The experiments of one model size: the ``main`` one, all noise ``levels``, the main one's ``repeats`` under other
    seeds, and its entry in ``attacks``."""

    main: str
    levels: list[str] = []
    repeats: list[str] = []
    attack: str | None = None

    def experiments(self) -> list[str]:
        return list(dict.fromkeys([self.main, *self.levels, *self.repeats]))


class Past(Section):
    """Beside an experiment with amortized rows: what was ``tuned`` from it, and the same layer trained ``unrolled``."""

    tuned: str | None = None
    unrolled: str | None = None

    def models(self) -> list[str]:
        return [key for key in (self.tuned, self.unrolled) if key is not None]


class Report(Section):
    """What the reports show: which experiment stands where the paper has which; ``others`` are shown though it has none.
    ``past``: the experiments of the report that goes past the paper, one a noise level. Reports of the paper's items need
    all of ``large``, ``imagenet``, ``resnet``, ``smoothadv`` and ``no_jacobian``."""

    data: dict[str, DataRole]
    small: Size
    large: Size | None = None
    imagenet: Size | None = None
    resnet: str | None = None
    smoothadv: str | None = None
    no_jacobian: str | None = None
    past: dict[Name, Past]
    others: list[str] = []

    def sizes(self) -> dict[str, Size]:
        """The sizes that there are."""
        every = {"small": self.small, "large": self.large, "imagenet": self.imagenet}
        return {name: size for name, size in every.items() if size is not None}


class Profile(Section):
    """One size of the whole study. ``pages``: the reports to make, besides those of Table 2 and past the paper."""

    name: Name
    datasets: dict[Name, DataConfig]
    experiments: dict[Name, Experiment]
    starts: Starts
    variants: dict[Name, Variant] = {}
    certificates: Assurance
    speed: Speed
    coverage: Coverage
    arithmetic: Arithmetic
    attacks: dict[Name, Attacks] = {}
    report: Report
    pages: list[Name] = Field(min_length=1)

    @property
    def trained(self) -> dict[str, Experiment]:
        """Everything that is trained and votes: experiments, then variants."""
        return {**self.experiments, **self.variants}

    def _place(self, key: str) -> str:
        return f"experiments.{key}" if key in self.experiments else f"variants.{key}"

    @field_validator("name")
    @classmethod
    def _has_its_own_folder(cls, name: str) -> str:
        if name in _TAKEN:
            raise ValueError(f"runs/{name} is no folder of a profile: choose a name beside {', '.join(_TAKEN)}")
        return name

    @model_validator(mode="after")
    def _names_resolve(self) -> "Profile":
        for key, variant in self.variants.items():
            _known(f"variants.{key}.experiment", variant.experiment, self.experiments)
            if key in self.experiments:
                raise ValueError(f"variants.{key} is the name of an experiment, too: choose another")
            if variant.model != self.experiments[variant.experiment].model:
                raise ValueError(f"variants.{key}.model must be the model of its experiment, {variant.experiment!r}")
        for key, experiment in self.trained.items():
            place = self._place(key)
            data = self.datasets.get(_known(f"{place}.model.data", experiment.model.data, self.datasets))
            if data.name in ("digits", "mnist") and experiment.votes.images > data.test:
                raise ValueError(
                    f"{place}.votes.images = {experiment.votes.images} is out of range: "
                    f"the data set has {data.test} test images"
                )
            _known(f"report.data: {experiment.model.data}", experiment.model.data, self.report.data)
            for group in experiment.votes.groups:
                self._certifiable(key, group)
        self._rows_can_be_compared()
        for key, attacks in self.attacks.items():
            attacked = self.experiments[_known(f"attacks.{key}.experiment", attacks.experiment, self.experiments)]
            rows = attacked.votes.groups[_known(f"attacks.{key}: group", "main", attacked.votes.groups)].samplers
            _known(f"attacks.{key}.method", attacks.method, rows)
            most = attacked.votes.groups["main"].images
            if attacks.images > most:
                raise ValueError(f"attacks.{key}.images = {attacks.images} is out of range: 1 to {most}")
        _known("arithmetic.experiment", self.arithmetic.experiment, self.experiments)
        self._reports_find_their_rows()
        return self

    def _rows_can_be_compared(self) -> None:
        """Reports compare rows image by image: groups of one size must hold the same images, whatever the experiment."""
        first: dict[str, tuple[str, int]] = {}
        for key, experiment in self.trained.items():
            images = experiment.votes.images
            other, agreed = first.setdefault(experiment.model.data, (self._place(key), images))
            if images != agreed:
                raise ValueError(
                    f"{self._place(key)}.votes.images = {images} must be {agreed}, as in {other}: groups take their images "
                    "evenly from those, and rows of different experiments are compared image by image"
                )

    def _reports_find_their_rows(self) -> None:
        report = self.report
        if set(self.pages) - {ALONE}:
            self._papers_items_find_their_rows()
        else:
            rows = _NEEDED["small"]
            for group in ("main", "consistency"):
                self._has_rows("report.small", report.small.main, group, rows[group])
        for key in report.others:
            self._has_rows("report.others", key, "main")
        for key, past in report.past.items():
            self._has_rows("report.past", key, "past", self.starts.candidates)
            casting = self.experiments[_known("report.past", key, self.experiments)].votes
            honest = stopped(casting.reference_row("past"))
            self._has_rows("report.past", key, "past", [honest])
            if casting.groups["past"].samplers[honest].solver.stop == "fixed":
                raise ValueError(f"experiments.{key}.votes.groups.past: {honest}.solver.stop = 'fixed' must be another")
            self._has_rows("report.past", key, "sequential", reference=False)
            for kind in ("tuned", "unrolled"):
                if (other := getattr(past, kind)) is not None:
                    _known(f"report.past.{kind}", other, self.variants)
                    self._has_rows("report.past", other, "past", reference=False)
                    self._same_images((other, "past"), (key, "past"))

    def _papers_items_find_their_rows(self) -> None:
        report = self.report
        for name in ("large", "imagenet", "resnet", "smoothadv", "no_jacobian"):
            if getattr(report, name) is None:
                raise ValueError(f"report.{name} is missing: of the pages only {ALONE!r} does without it (got {self.pages})")
        self._has_rows("report.resnet", report.resnet, "main", reference=False)
        self._same_images((report.resnet, "main"), (report.large.main, "main"))
        for name, size in report.sizes().items():
            for key in size.experiments():
                self._has_rows(f"report.{name}", key, "main")
            for group, rows in _NEEDED[name].items():
                self._has_rows(f"report.{name}", size.main, group, rows)
            if name != "imagenet":
                _known(f"report.{name}.attack", size.attack, self.attacks)
                if not any(group.startswith("samples") for group in self.experiments[size.main].votes.groups):
                    raise ValueError(f"experiments.{size.main}.votes.groups needs a group samples_*, with SRS-MDEQ-3A")
        for name in ("smoothadv", "no_jacobian"):
            self._has_rows(f"report.{name}", getattr(report, name), "pair", ("SRS-MDEQ-1A", "SRS-MDEQ-3A"))
            self._same_images((getattr(report, name), "pair"), (report.small.main, "steps"))
        if self.trained[report.smoothadv].training.adversary is None:
            raise ValueError(
                f"report.smoothadv = {report.smoothadv!r} is not trained by SmoothAdv: give its training an adversary"
            )

    def _has_rows(self, path: str, key: str, group: str, rows: Iterable[str] = (), reference: bool = True) -> None:
        """Whether an experiment has a group, with some rows by name and as a rule the reference."""
        votes = self.trained[_known(path, key, self.trained)].votes
        samplers = votes.groups[_known(f"{path}: the group", group, votes.groups)].samplers
        for row in rows:
            _known(f"{self._place(key)}.votes.groups.{group}: the row", row, samplers)
        if reference and votes.reference not in samplers.values():
            raise ValueError(f"{self._place(key)}.votes.groups.{group} needs the reference among its samplers")

    def _same_images(self, *groups: tuple[str, str]) -> None:
        """Whether two groups that are compared image by image are of one size."""
        (place, images), (other, agreed) = (
            (f"{self._place(key)}.votes.groups.{group}.images", self.trained[key].votes.groups[group].images)
            for key, group in groups
        )
        if images != agreed:
            raise ValueError(f"{place} = {images} must be {agreed}, as {other}: they are compared image by image")

    def _certifiable(self, key: str, group: str) -> None:
        chosen = self.trained[key].votes.groups[group]
        place = f"{self._place(key)}.votes.groups.{group}"
        if chosen.serialized and chosen.audit is not None and self.certificates.census:
            raise ValueError(
                f"certificates.census = {self.certificates.census} needs the reference's votes on all draws: "
                f"{place}.audit = {chosen.audit} must go, and the reference be a row"
            )
        try:
            settings = self.certificates.settings(self.trained[key].votes, group)
            if chosen.serialized:
                settings.require_audit()
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{place}: {reason}") from None
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def _known(path: str, name: str, choices: Iterable[str]) -> str:
    if name not in choices:
        raise ValueError(f"{path} = {name!r} is unknown: choose one of {', '.join(choices)}")
    return name


class Study(Section):
    """params.yaml: named rows, attacks and radii to refer to, the profiles, and the active one."""

    samplers: dict[str, dict[str, Sampler]]
    candidates: dict[str, StandardSampler]
    attacks: dict[str, dict[str, Attack]]
    radii: dict[str, list[float]]
    pages: list[Name]
    profiles: dict[str, Profile]
    active: Profile


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
    from ruamel.yaml import YAML, YAMLError  # which notebooks that import this module need not wait for

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
        parts = [(i, *pair) for i, pair in enumerate(zip(ours, theirs))]
    else:
        parts = []
        if type(ours) is not type(theirs) or repr(ours) != repr(theirs):
            yield place, repr(ours), repr(theirs)
    if id(ours) not in seen:
        seen |= {id(ours)} if parts else set()
        for name, mine, other in parts:
            yield from _differences(mine, other, f"{place}.{name}".lstrip("."), seen)


def _explain(error: ValidationError, path: str) -> Iterator[str]:
    """A line for each fault; one that `active` merely repeats from a profile is told once, under the profile."""
    shown = set()
    for fault in sorted(error.errors(), key=lambda fault: fault["loc"][0] == "active"):
        place = [str(part) for part in fault["loc"] if part not in ("standard", "serialized", "direct", "[key]")]
        what = ""
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(place[-1], _field_names(Study), n=3)
            what = "no such parameter" + (f"; did you mean {' or '.join(near)}?" if near else "")
        what = reason(fault, what)
        inner = (*place[1:], what) if place[0] == "active" else (*place[2:], what)
        if place[0] != "active" or inner not in shown:
            yield f"{path}: {'.'.join(place)}: {what}"
        shown.add(inner)


@cache
def _field_names(model: type[BaseModel]) -> set[str]:
    """The names of all parameters in ``model`` and in the models that its annotations mention, at any depth."""
    whole = model.model_json_schema()
    return {name for schema in [whole, *whole["$defs"].values()] for name in schema.get("properties", {})}


def main() -> None:
    try:
        values, study = read(), load()
        if read() != values:  # DVC reads it when the stage ends, and would take what it finds for what was checked
            raise ParameterError("params.yaml was edited while it was checked: run the stage again")
    except ParameterError as error:
        sys.exit(str(error))
    folder, active = Path("runs") / study.active.name, values["active"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checked").write_text("params.yaml is well formed\n", encoding="utf-8")
    (folder / "shown.json").write_text(json.dumps({name: active.get(name) for name in SHOWN}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
