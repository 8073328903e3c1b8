"""What the report notebooks share: reading a profile's results, captions, and showing items of the paper."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from IPython.display import SVG, Markdown, display
from matplotlib.figure import Figure

from srs.data.datasets import Dataset
from srs.votes.samplers import ReleasedSampler, Sampler, StandardSampler
from study.common import params_file
from study.reports import drawn, figures, tables
from study.reports.items import label, stands_in
from study.reports.profile import Profile
from study.votes.rows import released

SIZE_NAMES = {"small": "MDEQ-SMALL", "large": "MDEQ-LARGE", "imagenet": "MDEQ, ImageNet's slot"}
Source = tuple[str, str | None]  # a run and one of its lists of rows (None: the main one)

#: The paper's own two estimators, as columns ``design`` of the table of certificates name them; "exact" is the sound one.
THEOREM, RELEASED_CODE = "Theorem 3.1 as printed", "released code"

#: What the released baseline is, beside which its speed-ups are to be read.
RELEASED = (
    "what the paper's released code does under that name: a batch of draws is solved until its worst row has a relative "
    f"residual of 0.001, so that votes depend on their batch, {tables.NO_GUARANTEE}. Published speed-ups are over this."
)


class Results(Profile):
    """A profile's runs and what came out of them; items.yaml and published.yaml lie beside the profile's data.

    Lists of rows are asked for by the name of the list, or of the draws that use it (None: the run's main ones).
    """

    @cached_property
    def items(self) -> dict:
        return yaml.safe_load(params_file.text(self.layout.data.parent / "items.yaml"))["items"]

    @cached_property
    def published(self) -> dict:
        return yaml.safe_load(params_file.text(self.layout.data.parent / "published.yaml"))

    @cached_property
    def _certificates(self) -> dict[tuple, pd.DataFrame]:
        table = pd.read_csv(self.layout.runs / "results" / "certificates.csv")
        texts = ["design", "estimator", "audit_draw", "classifier"]
        table[texts] = table[texts].fillna("")
        seconds = pd.read_csv(self.layout.runs / "timings" / "certificates" / "seconds.csv")
        return dict(list(table.assign(seconds=seconds["seconds"]).groupby(["run", "group", "design"], sort=False)))

    @cached_property
    def _machines(self) -> dict[str, list[str]]:
        return json.loads((self.layout.runs / "timings" / "certificates" / "machines.json").read_text(encoding="utf-8"))

    def rows(self, key: str, kind: str | None = None, design: str = "") -> pd.DataFrame:
        """The certificates of a list of rows, with what each would cost; serialized ones by another ``design``, if told."""
        group = self.plans[key].group(kind)
        rows = self._certificates[key, group, ""]
        if design:
            order = {method: number for number, method in enumerate(rows["method"].unique())}
            other = self._certificates.get((key, group, design), rows.iloc[:0])
            rows = pd.concat([rows[rows["estimator"] == ""], other], ignore_index=True)
            rows = rows.sort_values("method", key=lambda names: names.map(order), kind="stable")
        return rows.drop(columns=["run", "group", "design"]).reset_index(drop=True)

    def with_estimators(self, key: str, kind: str | None = None, design: str = "") -> pd.DataFrame:
        """The certificates of a list of rows, and after them those of serialized rows by the paper's two estimators."""
        parts = [self.rows(key, kind, design)]
        for title in (THEOREM, RELEASED_CODE):
            rows = self.rows(key, kind, title)
            rows = rows[rows["estimator"] != ""]
            parts.append(rows.assign(method=[by_estimator(method, title) for method in rows["method"]]))
        return pd.concat(parts, ignore_index=True)

    def samplers(self, key: str, kind: str | None = None) -> dict:
        """What casts the votes of each row."""
        plan = self.plans[key]
        return {row: plan.sampler(plan.group(kind), row) for row in plan.groups[plan.group(kind)].samplers}

    def reference(self, key: str, kind: str | None = None) -> str:
        """The row that is the audits' reference."""
        return self.plans[key].reference_row(self.plans[key].group(kind))

    def sample_groups(self, key: str) -> list[str]:
        """The groups that differ in their number of draws, in its order."""
        groups = self.plans[key].groups
        return sorted((name for name in groups if groups[name].kind == "samples"), key=lambda name: groups[name].n)

    def radii(self, key: str) -> list[float]:
        return self.report.radii[self.plans.data(key)]

    def sigma(self, key: str) -> float:
        return self.runs[key].sigma

    def history(self, key: str) -> pd.DataFrame:
        return pd.read_csv(self.layout.model(key).with_name("history.csv"))

    def dataset(self, key: str) -> Dataset:
        name = self.plans.data(key)
        if name not in self._datasets:
            self._datasets[name] = Dataset.load(self.layout.dataset(name))
        return self._datasets[name]

    def basis(self, sources: Sequence[Source], design: str = "") -> str:
        """The sentences that every caption ends with: what its numbers rest on; ``design`` as in :meth:`rows`."""
        models: dict[str, dict[str, None]] = {}  # by what they have in common
        for (key, kind), model in zip(sources, self._models(sources)):
            rows = self.rows(key, kind, design)
            first, serialized = rows.iloc[0], rows[rows["estimator"] != ""]
            common = (
                f"{rows['index'].nunique()} evenly spaced test images, N = {first['n']:,}, n0 = {first['n0']}, "
                f"alpha = {first['alpha']:g}"
            )
            if len(serialized):
                common += f", K = {serialized['k'].max()} audited draws, {tables.audited_by(serialized.iloc[0])}"
            models.setdefault(common, {})[model] = None
        machines = dict.fromkeys(machine for key, _ in sources for machine in self._machines[key])
        return (
            "; ".join(f"{', '.join(named)}: {common}" for common, named in models.items())
            + f". Measured on {'; '.join(machines)}. "
            + self.about_data([key for key, _ in sources])
        )

    def _models(self, sources: Sequence[Source]) -> list[str]:
        """A text for each source; a network that an earlier one has, too, is described there."""
        first: dict[str, str] = {}
        told = []
        for key, _ in sources:
            model = self._model(key)
            same = first.setdefault(model, key)
            network = model if same == key else f"network as {same}"
            told.append(f"{key} ({network}, sigma = {self.sigma(key):g})")
        return told

    def _model(self, key: str) -> str:
        spec = self.plans.models[self.runs[key].model]
        changes = ", ".join(f"{name} = {value}" for name, value in spec.overrides.items())
        return spec.preset + (f" with {changes}" if changes else "") + f", on {spec.data}"

    def about_data(self, keys: Sequence[str]) -> str:
        """Says which data set stands in for which, and of image files what they are."""
        told = []
        for name, dataset in {self.plans.data(key): self.dataset(key) for key in keys}.items():
            if stands_in(dataset.name):
                told.append(f"Stand-in data: {name} takes the place of {self.report.stands_for[name]}.")
            if dataset.name == "folder":
                told.append(f"Data: {name}, {dataset.described()}")
        return " ".join(told)

    def caption(self, item: str, text: str, sources: Sequence[Source] = ()) -> str:
        """HTML that marks and captions an item of the paper: its number, ``text``, and what it rests on.

        Raises KeyError for an item that the paper does not have.
        """
        if item not in self.items:
            raise KeyError(f"item {item!r} is unknown: choose from data/items.yaml")
        return f'<span id="{item}"></span><b>{label(item)}, ours.</b> {text} {self.basis(sources) if sources else ""}'

    def comparison(
        self, item: str, key: str, kind: str | None = None, what: str = "", estimators: bool = False
    ) -> pd.DataFrame:
        """Show a table of the paper that compares methods: ours, its cost, its published twin, and what it says.

        ``estimators``: serialized rows by the paper's own estimators stand below.
        """
        rows, reference = self.rows(key, kind), self.reference(key, kind)
        source = [(key, kind)]
        shown = tables.summary(self.with_estimators(key, kind) if estimators else rows, self.radii(key), reference)
        table = shown.loc[rows["method"].unique()]
        text = (
            f"{what} Certified accuracy in percent at l2 radius r, with its 95 % Clopper-Pearson interval over the images; "
            f"best in bold. {tables.BEYOND}: beyond the largest r that N, K and alpha allow, whatever the votes. ACR: average "
            "certified radius, wrong or abstained images counting 0; as released: every radius counted, wrong predictions "
            "included."
        )
        if estimators:
            text += (
                f" Below, the same votes by the paper's own two estimators: Theorem 3.1 as printed, with a random audit, and "
                f"its released code, which audits the first batch and scales count and total; {tables.NO_GUARANTEE}."
            )
        title = self.caption(item, text, source) if item else f"<b>Not in the paper.</b> {text} {self.basis(source)}"
        sound = rows.groupby("method")["guarantee"].all()
        display(tables.certified_table(shown, title, best_of=[method for method in table.index if sound[method]]))
        cost = "Cost per image, ours: what each method alone would need, warm-up and audit included; speed-up against"
        theirs = f" {released(reference)}: {RELEASED}" if released(reference) in table.index else ""
        display(tables.cost_table(table, f"{cost} {reference}.{theirs} {self.basis(source)}"))
        if item:
            samplers = self.samplers(key, kind)
            self.twin(item, [row for row in table.index if in_paper(samplers[row])], self.radii(key))
        display(Markdown(tables.read_comparison(table, rows, reference, self.samplers(key, kind))))
        if kind is None and len(self.trainings(key)) > 1:
            self.over_trainings(key)
        return table

    def over_trainings(self, key: str) -> None:
        """Show how far a run's repeats under other seeds agree with it: its rows on the draws that all of them share."""
        keys = self.trainings(key)
        draws = self.shared(keys)
        if draws is None:
            return
        trained, radii = [self.rows(one, draws) for one in keys], self.radii(key)
        spread = tables.over_trainings(trained, radii)
        text = (
            f"<b>{key} and its {len(keys) - 1} repeats, ours.</b> Certified accuracy in percent: mean over the {len(keys)} "
            "trainings, which differ in their seed alone, ± one standard deviation of a training, and the 95 % interval of the "
            "mean over trainings and images. "
        )
        display(tables.styled(tables.spread_table(spread, radii), text + self.basis([(key, draws)])))
        shown = "Certified accuracy against radius, a line for each training"
        show_figure(figures.plot_trainings(trained), f"{shown}; thick: {key}. {self.basis([(key, draws)])}")
        display(Markdown(tables.read_trainings(spread)))

    def twin(self, item: str, rows: Sequence[str], radii: Sequence[float]) -> None:
        """Show the published values of a table of certified accuracies, as far as they are known to us."""
        entries = self.published.get(item.replace("_", ""), {})
        name, setting = label(item), self.items[item]["title"]
        if not any(row in entries for row in rows):
            display(Markdown(f"*{name}, as published ({setting}): no value is known to us.*"))
            return
        at = self.published["imagenet_radii" if "ImageNet" in setting else "cifar10_radii"]
        caption = (
            f"<b>{name}, as published</b> ({setting}; N = 10,000, 500 images, one A100). Not our numbers; {tables.NOT_KNOWN}: "
            "not among the published values that are known to us."
        )
        display(tables.published_table(entries, at, rows, radii, caption))

    def combined(self, parts: dict[str, tuple[str, str | None, str]]) -> pd.DataFrame:
        """Rows of several runs as one table: ``parts`` maps each row's new name to (run, list of rows, method)."""
        found = []
        for name, (key, kind, method) in parts.items():
            rows = self.rows(key, kind)
            found.append(rows[rows["method"] == method].assign(method=name))
        return pd.concat(found, ignore_index=True)


def in_paper(sampler: Sampler) -> bool:
    """Whether the paper has such rows by that name: not with an amortized start, nor with a solver that stops."""
    if isinstance(sampler, StandardSampler):
        return sampler.start == "initial" and sampler.solver.stop == "fixed"
    return not isinstance(sampler, ReleasedSampler)


def by_estimator(method: str, title: str) -> str:
    """The name of a row by one of the paper's two."""
    return f"{method}, {title} ({tables.NO_GUARANTEE})"


def show_figure(figure: Figure, caption: str) -> None:
    """A figure as PNG with its caption below, and its numbers beside that."""
    display(figure)
    plt.close(figure)
    _show_caption(caption, drawn.as_csv(figure))


def show_drawing(name: str, caption: str) -> None:
    """One of the drawings beside this module, which explain and show no result, with its caption below."""
    display(SVG(filename=Path(__file__).parent / "drawings" / f"{name}.svg"))
    _show_caption(caption)


def _show_caption(caption: str, numbers: str = "") -> None:
    shown = {"text/html": f'<p style="font-size: 9pt; max-width: 60em">{caption}</p>'}
    display(shown | ({"text/csv": numbers} if numbers else {}), raw=True)


def differences(rows: pd.DataFrame, method: str, reference: str) -> np.ndarray:
    """RRD(x) = |r_reference - r_method| / r_reference over images with r_reference > 0 (the paper's Section 5)."""
    radius = rows.pivot(index="index", columns="method", values="radius")
    radius = radius[radius[reference] > 0]
    return (np.abs(radius[reference] - radius[method]) / radius[reference]).to_numpy()


def mismatch(rows: pd.DataFrame, method: str) -> tuple[np.ndarray, np.ndarray]:
    """For each image where a class was selected: p_m_upper, and its gap to the true mismatch rate among the votes counted."""
    part = rows[(rows["method"] == method) & (rows["n_a"] > 0)]
    return part["p_m_upper"].to_numpy(), (part["p_m_upper"] - part["mismatched"] / part["n_a"]).to_numpy()
