"""The shape of params.yaml, checked as a whole before any work is spent."""

import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from srs.certification import Certification
from srs.data import DataConfig
from srs.models import configure
from srs.training import Training
from srs.votes import Sampler


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(_Section):
    """Which network on which data set; ``overrides`` replace fields of the preset."""

    data: str
    preset: str
    overrides: dict = {}

    @model_validator(mode="after")
    def _makes_a_model(self) -> "ModelSpec":
        configure(self.preset, **self.overrides)
        return self


class Methods(_Section):
    """What is certified: ``images`` evenly spaced test images by every sampler; audits compare with ``reference``."""

    images: int = Field(ge=1)
    settings: Certification
    reference: str
    samplers: dict[str, Sampler] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "Methods":
        if self.reference not in self.samplers or not self.samplers[self.reference].independent:
            names = [name for name, sampler in self.samplers.items() if sampler.independent]
            raise ValueError(f"reference {self.reference!r} must name a standard sampler: {', '.join(names)}")
        if self.settings.audit > self.settings.n:
            raise ValueError(f"audit = {self.settings.audit} must be at most n = {self.settings.n}")
        return self


class Experiment(_Section):
    """One trained model and its certificates."""

    model: ModelSpec
    training: Training
    certification: Methods


class Report(_Section):
    """What the reports show: the radii of the tables, and which experiment stands where the paper has which."""

    radii: list[float]
    table2: str

    @model_validator(mode="after")
    def _radii_ascend_from_zero(self) -> "Report":
        if self.radii[:1] != [0] or sorted(set(self.radii)) != self.radii:
            raise ValueError(f"radii = {self.radii} must start at 0 and ascend")
        return self


class Profile(_Section):
    """One size of the whole study."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    datasets: dict[str, DataConfig]
    experiments: dict[str, Experiment]
    report: Report

    @model_validator(mode="after")
    def _names_resolve(self) -> "Profile":
        for key, experiment in self.experiments.items():
            data = self.datasets.get(experiment.model.data)
            if data is None:
                raise ValueError(
                    f"experiments.{key}.model.data = {experiment.model.data!r} is unknown: "
                    f"choose one of {', '.join(self.datasets)}"
                )
            if data.name in ("digits", "mnist") and experiment.certification.images > data.test:
                raise ValueError(
                    f"experiments.{key}.certification.images = {experiment.certification.images} is out of range: "
                    f"the data set has {data.test} test images"
                )
        if self.report.table2 not in self.experiments:
            raise ValueError(f"report.table2 = {self.report.table2!r} is unknown: choose one of {', '.join(self.experiments)}")
        return self


class Study(_Section):
    """params.yaml: named groups of samplers to refer to, the profiles, and the active one."""

    samplers: dict[str, dict[str, Sampler]]
    profiles: dict[str, Profile]
    active: Profile


class ParameterError(ValueError):
    """params.yaml is wrong; the message has a line for each fault: path, value, what is accepted."""


def load(path: str | Path = "params.yaml") -> Study:
    """Read and check params.yaml. Raises ParameterError."""
    try:
        return Study.model_validate(read(path))
    except ValidationError as error:
        raise ParameterError("\n".join(_explain(error, str(path)))) from None


def read(path: str | Path = "params.yaml") -> dict:
    """params.yaml as plain values. Raises ParameterError where it is not YAML."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ParameterError(f"{path} is not valid YAML: {error}") from None


def section(params: dict, dotted: str) -> object:
    """The value at a dotted path. Raises ParameterError that names the first missing key."""
    value = params
    for key in dotted.split("."):
        if not isinstance(value, dict) or key not in value:
            raise ParameterError(f"params.yaml has no {dotted!r}: {key!r} is missing")
        value = value[key]
    return value


def _explain(error: ValidationError, path: str) -> Iterator[str]:
    """A line for each fault; one that `active` merely repeats from a profile is told once, under the profile."""
    shown = set()
    for fault in sorted(error.errors(), key=lambda fault: fault["loc"][0] == "active"):
        place = [str(part) for part in fault["loc"] if part not in ("standard", "serialized", "direct")]
        what = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(place[-1], _field_names(Study), n=3)
            what = "no such parameter" + (f"; did you mean {' or '.join(near)}?" if near else "")
        if not isinstance(fault["input"], dict):
            what += f" (got {fault['input']!r})"
        inner = (*place[1:], what) if place[0] == "active" else (*place[2:], what)
        if place[0] != "active" or inner not in shown:
            yield f"{path}: {'.'.join(place)}: {what}"
        shown.add(inner)


def _field_names(model: type[BaseModel]) -> set[str]:
    """The names of all parameters in ``model`` and in the models that its annotations mention, at any depth."""
    names: set[str] = set()
    for schema in [model.model_json_schema(), *model.model_json_schema()["$defs"].values()]:
        names |= set(schema.get("properties", {}))
    return names


def main() -> None:
    try:
        study = load()
    except ParameterError as error:
        sys.exit(f"params.yaml is not usable:\n{error}")
    checked = Path("runs") / study.active.name / "checked"
    checked.parent.mkdir(parents=True, exist_ok=True)
    checked.write_text("params.yaml is well formed\n")


if __name__ == "__main__":
    main()
