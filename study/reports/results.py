"""What the report notebooks share: reading a profile's results, captions, and showing items of the paper."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from IPython.display import HTML, SVG, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from srs.data.datasets import Dataset
from srs.votes.samplers import ReleasedSampler, Sampler, StandardSampler
from study.common import params_file
from study.reports import cells, drawn, figures, items, tables
from study.reports.items import label, stands_in
from study.reports.numbers import BEYOND, listed, plural, text
from study.reports.profile import Profile
from study.reports.statistics import average_certified_radius, counted_radii, mean_interval
from study.votes.rows import released

#: The sizes as the paper calls them, and the places of those that are smaller here, on other data.
SIZE_NAMES = {"small": "MDEQ-SMALL", "large": "MDEQ-LARGE", "imagenet": "MDEQ-SMALL on ImageNet"}
SLOTS = {"small": "SMALL's slot", "large": "LARGE's slot", "imagenet": "ImageNet's slot"}
Source = tuple[str, str | None]  # a run and one of its lists of rows (None: the main one)

#: The paper's own two estimators, as columns ``design`` of the table of certificates name them; "exact" is the sound one.
THEOREM, RELEASED_CODE = "Theorem 3.1 as printed", "released code"
DESIGNS = ("", "exact", THEOREM, RELEASED_CODE)  # "": as params.yaml has it

#: What the paper's numbers rest on.
PAPERS = "the paper has N = 10,000 and, on CIFAR-10, 500 images"

#: How every page is to be read.
WORDS = {
    "MDEQ-30A": "standard smoothing, every noisy copy solved from scratch in 30 steps of Anderson's method (A; N: naive "
    "iteration, B: Broyden's method).",
    "stopped": "each solve until its relative residual is small (0.001 in our profiles), after 30 steps at the latest.",
    "as released": "the baseline of the paper's released code: draws are solved in batches, each until the relative residual "
    "of its worst row is small, so that votes depend on one another: not a guarantee (docs/released.md).",
    "SRS-": "serialized: an image's draws make chains, solved side by side; in a chain each solve starts from where the one "
    "before ended, unless the row's name says otherwise.",
    "AS-": "each solve from an amortized start, a function of the noisy copy alone (mean: one constant state).",
    "N, n0, K": "noisy copies of an image: N, whose votes are counted; n0, that choose its class before; K, that are audited: "
    "the reference, a standard row, solves those of them again whose serialized vote was for the class.",
    "Radii": "l2, of pixels in [0, 1]; largest radii are rounded down.",
    "Intervals": "of level 95 %: Clopper and Pearson's over images for a share, Fay and Lumbard's (2021; 0 lies outside where "
    "the exact sign test rejects it) for a difference of shares of the same images, Student's t over images for means, their "
    "differences and (linearized) ratios, cut at 0 where nothing is negative, unless another is named; over trainings never "
    "shorter than over images alone; each by itself unless it is called simultaneous; not printed where it rounds to the value "
    "itself. Seconds of votes, speed-ups in these and ACRs in tables that have more have none.",
    "ACR": "the average certified radius, over all images, 0 for wrong or abstained ones; its column as released: "
    "wrong predictions' radii counted, too, as the released code does.",
    BEYOND: "beyond the largest radius that N, K, alpha and its split between audit and votes allow, whatever the votes; or no "
    "value there.",
    "Costs": "what a method alone would need, warm-up, audit and rows that are solved again alone included, but not the "
    "fitting of a start, which is done once a network. Seconds of votes are evaluations of f at a row's usual pace, without "
    "the making of noise, while other workers are at work: rows of equal work differ in them, so that they say less than "
    "evaluations. Whole certificates are timed in the report 23_past_the_paper.",
}

#: What the released baseline is, beside which its speed-ups are to be read.
RELEASED = (
    "what the paper's released code does under that name: a batch of 400 draws is solved until its worst row has a "
    f"relative residual of 0.001, or for 30 steps, so that votes depend on their batch ({tables.NO_GUARANTEE}). Whether the "
    "published baseline stopped so is not known (docs/released.md)."
)
SLOT = "A slot is the place of one of the paper's models, taken here by a smaller network."


class Results(Profile):
    """A profile's runs and what came out of them, beside what is published (``published``) and the paper's ``items``.

    Lists of rows are asked for by the name of the list, or of the draws that use it (None: the run's main ones).
    """

    def __init__(self, name: str):
        super().__init__(name)
        # What the page shows: run, list of rows, design; and of that list these rows (none: all).
        self._shown: dict[tuple[str, str | None, str], set[str]] = {}

    @cached_property
    def items(self) -> dict:
        return items.read()[1]

    @cached_property
    def published(self) -> dict:
        return yaml.safe_load(params_file.text(self.layout.data.parent / "published.yaml"))

    @cached_property
    def _certificates(self) -> dict[tuple, pd.DataFrame]:
        return dict(list(cells.read(self.layout.runs).groupby(["run", "group", "design"], sort=False)))

    def rows(self, key: str, kind: str | None = None, design: str = "") -> pd.DataFrame:
        """The certificates of a list of rows, with what each would cost; serialized ones by another ``design``, if told.

        Raises ValueError for an unknown design.
        """
        if design not in DESIGNS:
            raise ValueError(f"design = {design!r} is not known: expected one of {', '.join(map(repr, DESIGNS))}")
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
            self.note([(key, kind)], title)
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

    def by_samples(self, key: str, row: str) -> dict[str, tuple[str, str, str]]:
        """A row of each of the :meth:`sample_groups`, by its number of draws, for :meth:`combined`."""
        return {f"N = {self.plans[key].groups[group].n:,}": (key, group, row) for group in self.sample_groups(key)}

    def radii(self, key: str) -> list[float]:
        return self.report.radii[self.plans.data(key)]

    def sigma(self, key: str) -> float:
        return self.runs[key].sigma

    def history(self, key: str) -> pd.DataFrame:
        return pd.read_csv(self.layout.runs / self.runs[key].folder / key / "history.csv")

    def held_out(self, key: str) -> pd.DataFrame:
        """A run's amortized rows on held-out images, a line each; which was ``chosen`` to be deployed."""
        return pd.read_csv(self.layout.runs / "starts" / key / "held_out.csv")

    def dataset(self, key: str) -> Dataset:
        name = self.plans.data(key)
        if name not in self._datasets:
            self._datasets[name] = Dataset.load(self.layout.dataset(name))
        return self._datasets[name]

    def at_hand(self, key: str) -> bool:
        """Whether the images that a run voted on are here: where published votes were unpacked, those of a folder are not."""
        try:
            self.dataset(key).test.images(np.array([0]))
        except FileNotFoundError:
            return False
        return True

    def slot(self, size: str) -> str:
        """What the runs of a size are: the paper's model, or what stands in its place."""
        source = self.data[self.plans.data(self.report.sizes()[size].main)]["name"]
        return (SLOTS if stands_in(source) else SIZE_NAMES)[size]

    def note(self, sources: Sequence[Source], design: str = "", only: Collection[str] = ()) -> None:
        """The page rests on these, ``only`` on some of their rows where told, which :meth:`rests_on` is to say."""
        for key, kind in sources:
            before = self._shown.get((key, kind, design), set(only))
            self._shown[key, kind, design] = before | set(only) if before and only else set()

    def basis(self, sources: Sequence[Source], design: str = "", audited: bool = True, only: Collection[str] = ()) -> str:
        """On how many images and draws of which runs something rests, in short; :meth:`rests_on` says the rest of it, once a
        page. ``design`` as in :meth:`rows`; ``audited``: K is told, where there is one; ``only`` these rows are shown."""
        self.note(sources, design, only)
        told: dict[str, dict[str, float]] = {}  # runs, with their sigma, by what they have in common
        for key, kind in sources:
            told.setdefault(amount(self._rows_of(key, kind, design, only), audited), {})[key] = self.sigma(key)
        return "; ".join(f"{in_short(runs)}: {many}" for many, runs in told.items()) + "."

    def _rows_of(self, key: str, kind: str | None, design: str, only: Collection[str]) -> pd.DataFrame:
        rows = self.rows(key, kind, design)
        return rows[rows["method"].isin(only)] if only else rows

    def _sources(self) -> list[Source]:
        return list(dict.fromkeys((key, kind) for key, kind, _ in self._shown))

    def images(self, sources: Sequence[Source] = ()) -> list[int]:
        """How many images each of ``sources`` has, of what the page has shown so far unless told."""
        return [self.rows(*source)["index"].nunique() for source in sources or self._sources()]

    def weaker(self, sources: Sequence[Source] = (), papers: str = PAPERS, what: str = "All of this") -> str:
        """A sentence that says on how much less than the paper (``papers``) something rests, and on which data; ``sources``:
        what the page has shown so far, unless told; "" where that is nothing."""
        sources = sources or self._sources()
        if not sources:
            return ""
        images, draws = self.images(sources), [self.rows(*source)["n"].iloc[0] for source in sources]
        about = self.about_data([key for key, _ in sources])
        told = f"{what} rests on {_span(images)} images and N = {_span(draws)}; {papers}."
        return f"{told} {about}".strip()

    def rests_on(self, seconds: bool = True, more: Sequence[str] = ()) -> None:
        """Show the box that ends a page: how to read it, and what all that it shows rests on; ``seconds``: these, too; ``more``
        of what is not read from certificates alone."""
        keys = list(dict.fromkeys(key for key, _ in self._sources()))
        amounts = []
        for (key, kind, design), only in self._shown.items():
            rows = self._rows_of(key, kind, design, only)
            serialized = rows[rows["estimator"] != ""].drop_duplicates("estimator")
            chains = f", {plural(self.plans.votes.chains, 'chain')} an image" if len(serialized) else ""
            common = f"{amount(rows)}{chains}, n0 = {rows['n0'].iloc[0]}, alpha = {rows['alpha'].iloc[0]:g}"
            audits = dict.fromkeys(tables.audited_by(row) for _, row in serialized.iterrows())
            amounts.append(("; ".join([common, *audits]), key, self.plans[key].group(kind)))
        lines = [f"Networks: {'; '.join(self.networks(keys))}."] if keys else []
        table = pd.DataFrame(amounts, columns=["amount", "run", "list"]).drop_duplicates()
        for common, part in table.groupby("amount", sort=False):
            lists = part.groupby("run", sort=False)["list"].agg(", ".join)
            told = [f"{', '.join(runs.index)} ({alike})" for alike, runs in lists.groupby(lists, sort=False)]
            lines.append(f"{'; '.join(told)}: {common}.")
        lines += self._told_machines(keys, seconds)
        spread = "Images are spread over the test images as evenly as may be, those of shorter lists over those of the longest."
        lines += [f"{spread} {self.about_data(keys)}"] if keys else []
        lines += [
            self.report.remarks[data] for data in dict.fromkeys(map(self.plans.data, keys)) if data in self.report.remarks
        ]
        words = [f"<b>{term}</b>: {meaning}" for term, meaning in WORDS.items()]
        rests, terms = ("".join(f"<li>{line}</li>" for line in shown) for shown in ([*lines, *more], words))
        style = "border: 1px solid #999; border-radius: 4px; padding: 0.6em 1em; font-size: 9pt; max-width: 75em"
        told = f"<b>What this rests on</b><ul>{rests}</ul>" if rests else ""
        display(HTML(f'<div class="rests-on" style="{style}">{told}<b>Terms</b><ul>{terms}</ul></div>'))

    def _told_machines(self, keys: Sequence[str], seconds: bool) -> list[str]:
        """On which machines the votes of which runs were cast; where ``seconds`` are shown, on which those were measured."""

        def runs_by(part: slice) -> dict[str, list[str]]:
            """The runs by this part of their machines, in words."""
            found = {}
            for key in keys:
                if machines := self.machines[key][part]:
                    found.setdefault(listed(machines), []).append(key)
            return found

        if not seconds:
            return [f"Votes of {listed(runs)} were cast on {where}." for where, runs in runs_by(slice(None)).items()]
        timed = runs_by(slice(1))  # the first: whose seconds are told
        lines = [f"Seconds of votes of {listed(runs)} were measured on {where}." for where, runs in timed.items()]
        lines += ["Seconds of different machines do not compare."] if len(timed) > 1 else []
        return lines + [
            f"Votes of {listed(runs)} were cast on {where}, too. Seconds measured there are left out: a row cast there alone "
            "shows none."
            for where, runs in runs_by(slice(1, None)).items()
        ]

    def networks(self, keys: Sequence[str]) -> list[str]:
        """A text for each run; a network that an earlier one has, too, is described there."""
        first: dict[str, str] = {}
        told = []
        for key in keys:
            model = self._model(key)
            same = first.setdefault(model, key)
            network = model if same == key else f"network as {same}"
            schedule = self.schedule(key)
            batches = f" of batches of {schedule['batch_size']}" if "batch_size" in schedule else ""
            course = f"{plural(schedule['epochs'], 'epoch')}{batches}"
            told.append(f"{key} ({network}, sigma = {self.sigma(key):g}, {course})")
        return told

    def _model(self, key: str) -> str:
        spec = self.plans.models[self.runs[key].model]
        changes = text(spec.overrides)
        return spec.preset + (f" with {changes}" if changes else "") + f", on {spec.data}"

    def about_data(self, keys: Sequence[str]) -> str:
        """Says which data set stands in for which, and of image files what they are."""
        told, datasets = [], {self.plans.data(key): self.dataset(key) for key in keys}
        for name, dataset in datasets.items():
            if stands_in(dataset.name):
                told.append(f"Stand-in data: {name} takes the place of {self.report.stands_for[name]}.")
            if dataset.name == "folder":
                told.append(
                    f"Data: {name}, {dataset.described()} An image's number is its place among the files, class by class."
                )
        return " ".join([*told, SLOT] if any(stands_in(dataset.name) for dataset in datasets.values()) else told)

    def caption(
        self, item: str, said: str, sources: Sequence[Source] = (), design: str = "", only: Collection[str] = ()
    ) -> str:
        """HTML that marks and captions an item of the paper: its number, what is ``said``, and the :meth:`basis` of
        ``sources``.

        Raises KeyError for an item that the paper does not have.
        """
        if item not in self.items:
            raise KeyError(f"item {item!r} is unknown: choose from data/items.yaml")
        told = f" {self.basis(sources, design, only=only)}" if sources else ""
        return f'<span id="{item}"></span><b>{label(item)}, ours.</b> {said}{told}'

    def _certified(self, item: str, what: str, sources: Sequence[Source], only: Collection[str] = ()) -> str:
        """The caption of a table of certificates, of the paper's ``item`` or, where that is "", of ours alone."""
        text = f"{what} Certified accuracy in percent at l2 radius r.".strip()
        if item:
            return self.caption(item, text, sources, only=only)
        return f"<b>Not in the paper.</b> {text} {self.basis(sources, only=only)}"

    def comparison(self, item: str, key: str, kind: str | None = None, what: str = "", estimators: bool = False) -> None:
        """Show a table of the paper that compares methods: ours, its cost, its published twin, and what it says.

        ``estimators``: serialized rows by the paper's own estimators stand below.
        """
        table = self._with_cost(self._certified(item, what, [(key, kind)]), key, kind, estimators)
        entries, samplers = self.published.get(item.replace("_", ""), {}), self.samplers(key, kind)
        if item:
            self.twin(item, [row for row in table.index if in_paper(samplers[row])], self.radii(key))
        display(Markdown(tables.read_comparison(table, self.rows(key, kind), self.reference(key, kind), samplers, entries)))

    def of_run(self, item: str, key: str, what: str = "", estimators: bool = False) -> None:
        """Show a run's main rows (:meth:`comparison`) and, under headings of their own, what its repeats and more draws say."""
        self.comparison(item, key, what=what, estimators=estimators)
        self.over_trainings(key)
        self.with_more_draws(key)

    def _with_cost(self, title: str, key: str, kind: str | None, estimators: bool = False) -> pd.DataFrame:
        """Show what a list of rows certifies, and what it costs; that table, without the rows of other ``estimators``."""
        rows, reference = self.rows(key, kind), self.reference(key, kind)
        every = self.with_estimators(key, kind) if estimators else rows
        shown = tables.summary(every, self.radii(key), reference)
        table = shown.loc[rows["method"].unique()]
        display(tables.certified_table(shown, title, folded=[row for row in shown.index if row not in table.index]))
        samplers, n0 = self.samplers(key, kind), rows["n0"].iloc[0]
        told = f" {released(reference)}: {RELEASED}" if released(reference) in table.index else ""
        if warm := [row for row, sampler in samplers.items() if sampler.audited and sampler.warm_draws >= n0]:
            told += f" All n0 = {n0:,} draws that choose the class are solved by the warm-up in the rows {'; '.join(warm)}."
        if not self.timed_alike([self.report.small.main, key]):
            told += f" Seconds are of another kind of machine than {self.report.small.main}'s: do not compare them with those."
        audits = tables.audit_columns(rows, reference, samplers)
        display(tables.cost_table(rows, reference, f"<b>Cost per image, ours.</b>{told}", audits))
        return table

    def with_more_draws(self, key: str) -> None:
        """Show the main rows on more draws than the main ones, which reach larger radii, where they were cast."""
        plan, reference = self.plans[key], self.reference(key)
        main = plan.groups[plan.main]
        for draws, group in plan.groups.items():
            if group.n <= main.n or reference not in group.samplers or not {*group.samplers} <= {*main.samplers}:
                continue
            display(Markdown(f"### {key} on more draws"))
            rows, text = self.rows(key, draws), "<b>On more draws, ours.</b> Certified accuracy in percent at l2 radius r. "
            table = self._with_cost(text + self.basis([(key, draws)]), key, draws)
            told = [tables.read_comparison(table, rows, reference, self.samplers(key, draws))]
            for row in (row for row in table.index if row != reference):
                differ = tables.differences_at(rows, row, reference, self.radii(key))
                told.append(tables.read_differences(row, reference, differ))
            display(Markdown("\n".join(told)))

    def beside(self, key: str) -> tuple[pd.DataFrame, str]:
        """The certified accuracies of a run's main rows beside those of the published Table 2
        (:func:`study.reports.tables.beside`); and what ours rest on, in words."""
        rows = self.rows(key)
        return tables.beside(rows, self.published["table2"], self.published["cifar10_radii"]), amount(rows)

    def level_table(self, size: str, key: str) -> str:
        """The paper's table of a ``size`` at a run's noise level, "" where it has none (or not apart from its main one)."""
        at = {"size": size, "sigma": self.sigma(key)}
        return next((name for name, item in self.items.items() if at.items() <= item.items()), "")

    def published_acr(self, size: str, row: str) -> float | None:
        """The published average certified radius of a size's row of that name, at sigma 0.5; None where that is not known."""
        return self.published["acr"].get(row.replace("MDEQ", SIZE_NAMES[size]))

    def acr_by_level(self, sources: Sequence[Source], title: str) -> pd.DataFrame:
        """ACR of each row of a size, called ``title``, at each noise level: columns size, sigma, method, acr, lower, upper (a
        95 % interval over images)."""
        lines = []
        for source in sources:
            for method, part in self.rows(*source).groupby("method", sort=False):
                low, high = mean_interval(counted_radii(part), least=0.0)
                place = {"size": title, "sigma": self.sigma(source[0]), "method": method}
                lines.append(place | {"acr": average_certified_radius(part), "lower": low, "upper": high})
        return pd.DataFrame(lines)

    def side_by_side(self, item: str, parts: dict[str, tuple[str, str | None, str]], reference: str, what: str) -> None:
        """Show certificates of rows of several runs (:meth:`combined`), and their published twin where they are an ``item`` of
        the paper."""
        radii, sources = self.radii(parts[reference][0]), list(dict.fromkeys((key, kind) for key, kind, _ in parts.values()))
        table = tables.summary(self.combined(parts), radii, reference)
        only = {method for *_, method in parts.values()}
        display(tables.certified_table(table, self._certified(item, what, sources, only)))
        if item:
            self.twin(item, list(parts), radii)

    def more_samples(self, item: str, key: str, what: str = "") -> dict[str, pd.DataFrame]:
        """Show a figure of the paper that compares numbers of draws, a panel a row; these rows by N (:meth:`combined`)."""
        groups = self.sample_groups(key)
        rows = {row: self.combined(self.by_samples(key, row)) for row in self.samplers(key, groups[0])}
        text = (
            "Certified accuracy against radius for several N (the paper's: 1,000, 10,000 and 100,000); each curve ends at the "
            "largest radius that its N, K, alpha and split allow. Draws of a smaller N are the first ones of a larger."
        )
        caption = self.caption(item, f"{what} {text}".strip(), [(key, group) for group in groups])
        show_figure(figures.plot_curve_panels(rows, ""), caption)
        return rows

    def over_trainings(self, key: str) -> None:
        """Show how far a run's repeats under other seeds agree with it: its rows on the draws that all of them share."""
        keys = self.trainings(key)
        draws = self.shared(keys) if len(keys) > 1 else None
        if draws is None:
            return
        display(Markdown(f"### {key} over trainings"))
        trained, radii = [self.rows(one, draws) for one in keys], self.radii(key)
        spread = tables.over_trainings(trained, radii)
        text = (
            f"<b>{key} and its {plural(len(keys) - 1, 'repeat')}, ours.</b> Certified accuracy in percent: mean over "
            f"{len(keys)} trainings, which differ in their seed alone, ± the standard deviation between them, and the 95 % "
            "interval of the mean over trainings and images (the hull of Clopper and Pearson's and of Student's t over both). "
        )
        basis = self.basis([(one, draws) for one in keys])
        display(tables.styled(tables.spread_table(spread, radii), text + basis))
        shown = "Certified accuracy against radius, a line for each training"
        show_figure(figures.plot_trainings(trained), f"{shown}; thick: {key}. {basis}")
        display(Markdown(tables.read_trainings(spread, key)))

    def twin(self, item: str, rows: Sequence[str], radii: Sequence[float]) -> None:
        """Show the published values of a table of certified accuracies, as far as they are known to us."""
        entries = self.published.get(item.replace("_", ""), {})
        name, setting = label(item), self.items[item]["title"]
        rows = self.items[item].get("rows", rows)
        if not any(row in entries for row in rows):
            display(Markdown(f"*{name}, as published ({setting}): no value of it is known to us.*"))
            return
        at = self.published["imagenet_radii" if "ImageNet" in setting else "cifar10_radii"]
        images = "" if "ImageNet" in setting else ", 500 images"
        caption = f"<b>{name}, as published</b> ({setting}; N = 10,000{images}, one A100), as far as it is known to us."
        display(tables.published_table(entries, at, rows, radii, caption))

    def combined(self, parts: dict[str, tuple[str, str | None, str]]) -> pd.DataFrame:
        """Rows of several runs as one table: ``parts`` maps each row's new name to (run, list of rows, method)."""
        found = []
        for name, (key, kind, method) in parts.items():
            rows = self.rows(key, kind)
            found.append((key, rows[rows["method"] == method].assign(method=name)))
        return self.together(found)

    def together(self, parts: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
        """Rows of several runs (``parts``: of which run, and its rows) as one table; without seconds (NaN) where these are of
        different machines, for such do not compare."""
        rows = pd.concat([part for _, part in parts], ignore_index=True)
        return rows if self.timed_alike([key for key, _ in parts]) else rows.assign(seconds=np.nan)

    def timed_alike(self, keys: Sequence[str]) -> bool:
        """Whether the seconds of these runs were measured on machines of one kind."""
        return len({machine for key in keys for machine in self.machines[key][:1]}) <= 1


def in_paper(sampler: Sampler) -> bool:
    """Whether the paper has such rows by that name: not with an amortized start, nor with a solver that stops."""
    if isinstance(sampler, StandardSampler):
        return sampler.start == "initial" and sampler.solver.stop == "fixed"
    return not isinstance(sampler, ReleasedSampler)


def by_estimator(method: str, title: str) -> str:
    """The name of a row by one of the paper's two."""
    return tables.marked(f"{method}, {title}", False)


def takeaway(told: Sequence[str]) -> None:
    """What a page shows, before it shows it: a line of a list for each of ``told``."""
    display(Markdown("\n".join(["**In short**", "", *(f"- {one}" for one in told if one)])))


def show_figure(figure: Figure, caption: str, more: str = "") -> None:
    """A figure as PNG with its caption below, and in words (and ``more``) for who cannot see it; its numbers beside the
    caption."""
    alt = f"{described(figure)}. {more}".strip()
    display(figure, metadata={"image/png": {"alt": alt}})
    height, numbers = figure.get_figheight() * figure.dpi, drawn.as_csv(figure)
    plt.close(figure)
    _show_caption(caption, height, numbers)


def described(figure: Figure) -> str:
    """A figure in words: its panels, their axes, and what is drawn in them."""
    shown = [axes for axes in figure.axes if axes.axison]
    bands = [axes.get_ylabel() for axes in shown if figure.get_supylabel()]
    by_panel = [(axes.get_title(), _names(axes.get_legend())) for axes in shown if axes.get_legend()]
    heads = {title for title, _ in by_panel if title}
    apart = len(heads) == len(by_panel) and any(each != by_panel[0][1] for _, each in by_panel)
    names = [name for legend in figure.legends for name in _names(legend)]
    if apart:
        names += [f"in {title}: {', '.join(each)}" for title, each in by_panel]
    else:
        names += [name for _, each in by_panel for name in each]
    titles = list(dict.fromkeys(filter(None, (axes.get_title() for axes in shown))))
    plotted = [axes for axes in shown if not axes.images]
    across, up = (
        next(filter(None, (own, *others)), "")
        for own, others in (
            (figure.get_supxlabel(), [axes.get_xlabel() for axes in plotted]),
            (figure.get_supylabel(), [axes.get_ylabel() for axes in plotted]),
        )
    )
    told = [f"{up or 'pictures'} against {across}" if across and up else across or "pictures"]
    told += [f"Panels: {'; '.join(titles)}"] if titles else []
    told += [f"Rows of panels: {'; '.join(dict.fromkeys(filter(None, bands)))}"] if any(bands) else []
    told += [f"Lines: {'; '.join(dict.fromkeys(lines))}"] if (lines := _categories(shown)) else []
    told += [f"Shown: {'; '.join(dict.fromkeys(names))}"] if names else []
    alike = re.sub(r"\n\((one \w+)\)", r", as \1", ". ".join(told))  # figures.ONE_CURVE, ONE_MARK
    return alike.replace("\n", " and ")


def _names(legend: Legend) -> list[str]:
    return [text.get_text() for text in legend.texts]


def _categories(shown: Sequence[Axes]) -> list[str]:
    """What stands at the ticks of vertical axes where it is no number."""
    names = [label.get_text() for axes in shown for label in axes.get_yticklabels()]
    return [name for name in names if re.search("[a-z]", name) and "$" not in name]


def show_drawing(name: str, caption: str) -> None:
    """One of the drawings beside this module, which explain and show no result, with its caption below."""
    display(SVG(filename=Path(__file__).parent / "drawings" / f"{name}.svg"))
    _show_caption(caption, 420)


def _show_caption(caption: str, height: float, numbers: str = "") -> None:
    """``height``: of the picture above in pixels, so that a link to the caption lands on the picture; ``numbers``: CSV."""
    caption = caption.replace("<span id=", f'<span style="scroll-margin-top: {height + 40:.0f}px" id=', 1)
    shown = {"text/html": f'<p class="caption" style="font-size: 9pt; max-width: 60em">{caption}</p>'}
    display(shown | ({"text/csv": numbers} if numbers else {}), raw=True)


def draws_told(rows: pd.DataFrame, audited: bool = True) -> str:
    """On how many draws certificates rest; ``audited``: K is told, where there is one."""
    draws = listed([f"{n:,}" for n in sorted(rows["n"].unique())])
    return f"N = {draws}" + (f", K = {rows['k'].max():,}" if audited and rows["k"].max() else "")


def amount(rows: pd.DataFrame, audited: bool = True) -> str:
    """On how many images and draws certificates rest; ``audited`` as in :func:`draws_told`."""
    return f"{rows['index'].nunique()} images, {draws_told(rows, audited)}"


def right_held_out(results: Results, key: str) -> tuple[int, int]:
    """On how many held-out images, a noisy copy of each, a run's network is right as its training ends; and of how many."""
    images = len(results.dataset(key).validation)
    return round(images * results.history(key)["validation_accuracy"].iloc[-1]), images


def in_short(runs: Mapping[str, float]) -> str:
    """Runs with their sigma; of many how many they are."""
    if len(runs) > 4:
        return f"{len(runs)} networks, sigma = {_span(runs.values(), 'g')}"
    return ", ".join(f"{key} (sigma = {sigma:g})" for key, sigma in runs.items())


def _span(values: Collection[float], form: str = ",") -> str:
    least, most = (format(end(values), form) for end in (min, max))
    return least if least == most else f"{least} to {most}"


def relative_radius_differences(rows: pd.DataFrame, method: str, reference: str) -> np.ndarray:
    """RRD(x) = |r_reference - r_method| / r_reference over images with r_reference > 0 (the paper's Section 5)."""
    radius = rows.pivot(index="index", columns="method", values="radius")
    radius = radius[radius[reference] > 0]
    return (np.abs(radius[reference] - radius[method]) / radius[reference]).to_numpy()


def other_class(rows: pd.DataFrame, method: str, reference: str) -> tuple[int, int]:
    """On how many images with a radius by both a row certifies another class than the reference; and how many these are."""
    radius, named = (rows.pivot(index="index", columns="method", values=value) for value in ("radius", "prediction"))
    both = (radius[[method, reference]] > 0).all(axis=1)
    return int((named[method] != named[reference])[both].sum()), int(both.sum())


def mismatch(rows: pd.DataFrame, method: str) -> tuple[np.ndarray, np.ndarray]:
    """For each image where a class was selected: p_m_upper, and its gap to the true mismatch rate among the votes counted."""
    part = rows[(rows["method"] == method) & (rows["n_a"] > 0)]
    return part["p_m_upper"].to_numpy(), (part["p_m_upper"] - part["mismatched"] / part["n_a"]).to_numpy()
