"""What the report notebooks share: reading a profile's results, captions, and showing items of the paper."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from IPython.display import HTML, Markdown, display
from matplotlib.figure import Figure

from srs import sections, tables
from srs.casting import VoteTable
from srs.certification import Assurance, certificates
from srs.data import Dataset
from srs.index import label, stands_in
from srs.params import Attacks, Experiment, Report, Variant
from srs.results import released
from srs.votes import ReleasedSampler, Sampler, StandardSampler, Votes

SIZE_NAMES = {"small": "MDEQ-SMALL", "large": "MDEQ-LARGE", "imagenet": "MDEQ, ImageNet's slot"}
Source = tuple[str, str]  # an experiment and one of its groups

EXACT = {"estimator": "finite_population", "audit_draw": "random", "census": 0.0}

#: The paper's estimators, which are no guarantees: its theorem on a random audit, and its released code's on the first batch
#: (that code compares with 10 steps of the solver; here all compare with the reference).
PUBLISHED_ESTIMATORS = {
    "Theorem 3.1 as printed": {"estimator": "theorem_3_1", "audit_draw": "random", "census": 0.0},
    "released code": {"estimator": "released_code", "audit_draw": "first_batch", "census": 0.0},
}

#: What the released baseline is, beside which its speed-ups are to be read.
RELEASED = (
    "what the paper's released code does under that name: a batch of draws is solved until its worst row has a relative "
    f"residual of 0.001, so that votes depend on their batch, {tables.NO_GUARANTEE}. Published speed-ups are over this."
)


class Results:
    """A profile's experiments and what came out of them.

    ``experiments``, ``report``, ``certificates``, ``attacks`` and ``variants`` are sections of params.yaml; ``data`` and
    ``runs`` are the profile's folders; variants stand among the experiments. items.yaml and published.yaml lie beside the
    profile's data.
    """

    def __init__(
        self,
        experiments: dict,
        report: dict,
        data: str,
        runs: str,
        certificates: dict,
        attacks: dict | None = None,
        variants: dict | None = None,
    ):
        self.experiments = {key: Experiment(**value) for key, value in experiments.items()}
        self.experiments |= {key: Variant(**value) for key, value in (variants or {}).items()}
        self.report = Report(**report)
        self.assurance = Assurance(**certificates)
        self.attacks = {key: Attacks(**value) for key, value in (attacks or {}).items()}
        self.data, self.runs = Path(data), Path(runs)
        self._datasets: dict[str, Dataset] = {}
        self._votes: dict[str, VoteTable] = {}
        self._rows: dict[tuple, pd.DataFrame] = {}

    @cached_property
    def items(self) -> dict:
        return yaml.safe_load(sections.text(self.data.parent / "items.yaml"))["items"]

    @cached_property
    def published(self) -> dict:
        return yaml.safe_load(sections.text(self.data.parent / "published.yaml"))

    def rows(self, key: str, group: str = "main", **choices) -> pd.DataFrame:
        """The certificates of one group, with what each would have cost; ``choices`` replace fields of the assurance."""
        name = (key, group, *choices.items())
        if name not in self._rows:
            labels, casting = self.dataset(key).test.labels, self.experiments[key].votes
            assurance = Assurance(**self.assurance.model_dump() | choices)
            self._rows[name] = certificates(self.votes(key), labels, casting, assurance, [group]).drop(columns="group")
        return self._rows[name]

    def with_estimators(self, key: str, group: str = "main", **choices) -> pd.DataFrame:
        """The certificates of one group (``choices`` as in :meth:`rows`), and after them those of serialized rows by the
        paper's two estimators."""
        parts = [self.rows(key, group, **choices)]
        for title, theirs in PUBLISHED_ESTIMATORS.items():
            rows = self.rows(key, group, **theirs)
            rows = rows[rows["estimator"] != ""]
            parts.append(rows.assign(method=[by_estimator(method, title) for method in rows["method"]]))
        return pd.concat(parts, ignore_index=True)

    def samplers(self, key: str, group: str = "main") -> dict:
        """What casts the votes of each row."""
        casting = self.experiments[key].votes
        return {row: casting.sampler(group, row) for row in casting.groups[group].samplers}

    def reference(self, key: str, group: str = "main") -> str:
        """The row that is the audits' reference."""
        return self.experiments[key].votes.reference_row(group)

    def sample_groups(self, key: str) -> list[str]:
        """The groups that differ in their number of draws, in its order."""
        groups = self.experiments[key].votes.groups
        return sorted((name for name in groups if name.startswith("samples")), key=lambda name: groups[name].n)

    def radii(self, key: str) -> list[float]:
        return self.report.data[self.experiments[key].model.data].radii

    def sigma(self, key: str) -> float:
        return self.experiments[key].votes.sigma

    def votes(self, key: str) -> VoteTable:
        """Raises ValueError where they are of other settings, of another model or other data."""
        if key not in self._votes:
            experiment, model = self.experiments[key], self.runs / "models" / key
            files = {"model": model / "model.pt", "data": self.data / f"{experiment.model.data}.npz"}
            if isinstance(experiment, Variant):  # an experiment's starts are none of what every report depends on
                files["starts"] = model / "starts.pt"
            self._votes[key] = VoteTable.load(self.runs / "votes" / key, experiment.votes, files)
        return self._votes[key]

    def cast(self, key: str, group: str, row: str, n: int | None = None) -> list[Votes]:
        """The votes of one row on each image of its group: n0 + ``n`` of them (None: all that the group has)."""
        casting = self.experiments[key].votes
        drawn = slice(0, casting.n0 + (casting.groups[group].n if n is None else n))
        return [self.votes(key).of(casting.sampler(group, row), int(p), drawn) for p in casting.members(group)]

    def history(self, key: str) -> pd.DataFrame:
        return pd.read_csv(self.runs / "models" / key / "history.csv")

    def dataset(self, key: str) -> Dataset:
        name = self.experiments[key].model.data
        if name not in self._datasets:
            self._datasets[name] = Dataset.load(self.data / f"{name}.npz")
        return self._datasets[name]

    def basis(self, sources: Sequence[Source], **choices) -> str:
        """The sentences that every caption ends with: what its numbers rest on; ``choices`` as in :meth:`rows`."""
        models: dict[str, dict[str, None]] = {}  # by what they have in common
        for (key, group), model in zip(sources, self._models(sources)):
            rows = self.rows(key, group, **choices)
            first, serialized = rows.iloc[0], rows[rows["estimator"] != ""]
            common = (
                f"{rows['index'].nunique()} evenly spaced test images, N = {first['n']:,}, n0 = {first['n0']}, "
                f"alpha = {first['alpha']:g}"
            )
            if len(serialized):
                common += f", K = {serialized['k'].max()} audited draws, {tables.audited_by(serialized.iloc[0])}"
            models.setdefault(common, {})[model] = None
        machines = dict.fromkeys(self._machine(key) for key, _ in sources)
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
        spec = self.experiments[key].model
        changes = ", ".join(f"{name} = {value}" for name, value in spec.overrides.items())
        return spec.preset + (f" with {changes}" if changes else "") + f", on {spec.data}"

    def _machine(self, key: str) -> str:
        machine = json.loads((self.runs / "votes" / key / "machine.json").read_text(encoding="utf-8"))
        return f"{machine['hardware']}, torch {machine['torch']}"

    def about_data(self, keys: Sequence[str]) -> str:
        """Says which data set stands in for which, and of image files what they are."""
        told = []
        for name, dataset in {self.experiments[key].model.data: self.dataset(key) for key in keys}.items():
            if stands_in(dataset.name):
                told.append(f"Stand-in data: {name} takes the place of {self.report.data[name].stands_for}.")
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

    def comparison(self, item: str, key: str, group: str = "main", what: str = "", estimators: bool = False) -> pd.DataFrame:
        """Show a table of the paper that compares methods: ours, its cost, its published twin, and what it says.

        ``estimators``: serialized rows by the paper's own estimators stand below.
        """
        rows, reference = self.rows(key, group), self.reference(key, group)
        source = [(key, group)]
        shown = tables.summary(self.with_estimators(key, group) if estimators else rows, self.radii(key), reference)
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
            samplers = self.samplers(key, group)
            self.twin(item, [row for row in table.index if in_paper(samplers[row])], self.radii(key))
        display(Markdown(tables.read_comparison(table, rows, reference, self.samplers(key, group))))
        return table

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

    def combined(self, parts: dict[str, tuple[str, str, str]]) -> pd.DataFrame:
        """Rows of several experiments as one table: ``parts`` maps each row's new name to (experiment, group, method)."""
        found = []
        for name, (key, group, method) in parts.items():
            rows = self.rows(key, group)
            found.append(rows[rows["method"] == method].assign(method=name))
        return pd.concat(found, ignore_index=True)


def in_paper(sampler: Sampler) -> bool:
    """Whether the paper has such rows by that name: not with an amortized start, nor with a solver that stops."""
    if isinstance(sampler, StandardSampler):
        return sampler.start == "initial" and sampler.solver.stop == "fixed"
    return not isinstance(sampler, ReleasedSampler)


def by_estimator(method: str, title: str) -> str:
    """The name of a row by one of PUBLISHED_ESTIMATORS."""
    return f"{method}, {title} ({tables.NO_GUARANTEE})"


def show_figure(figure: Figure, caption: str) -> None:
    """A figure as PNG with its caption below."""
    display(figure)
    plt.close(figure)
    display(HTML(f'<p style="font-size: 9pt; max-width: 60em">{caption}</p>'))


def differences(rows: pd.DataFrame, method: str, reference: str) -> np.ndarray:
    """RRD(x) = |r_reference - r_method| / r_reference over images with r_reference > 0 (the paper's Section 5)."""
    radius = rows.pivot(index="index", columns="method", values="radius")
    radius = radius[radius[reference] > 0]
    return (np.abs(radius[reference] - radius[method]) / radius[reference]).to_numpy()


def mismatch(rows: pd.DataFrame, method: str) -> tuple[np.ndarray, np.ndarray]:
    """For each image where a class was selected: p_m_upper, and its gap to the true mismatch rate among the votes counted."""
    part = rows[(rows["method"] == method) & (rows["n_a"] > 0)]
    return part["p_m_upper"].to_numpy(), (part["p_m_upper"] - part["mismatched"] / part["n_a"]).to_numpy()
