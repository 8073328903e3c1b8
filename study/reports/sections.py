"""The section ``report``: which run stands where the paper has which, and what every page needs of it."""

from collections.abc import Iterable
from itertools import combinations
from typing import Literal

from pydantic import Field, field_validator

from srs.certificates import bounds
from srs.common.settings import Section
from srs.models import PRESETS
from study.common.runs import Name
from study.votes.plan import VotePlans, known
from study.votes.rows import fast_row, stopped

#: A page that needs the size ``small`` alone; the others show what the paper shows, and need all that it has.
ALONE = "24_cifar10"

LEAST_AUDIT = 100  # of those that the record compares
LEAST_RADIUS = 0.25  # at which sequential tests are shown

_CONSISTENCY = tuple(f"{kind}-{steps}A" for kind in ("MDEQ", "SRS-MDEQ") for steps in (1, 3))
_NAIVE = "MDEQ-3N", "SRS-MDEQ-3N"
_START = tuple(f"SRS-MDEQ-{steps}A {start} start" for steps in (1, 3) for start in ("clean", "previous"))

#: What pages show of the main run of each size: lists of rows, and of those the rows that pages name beside the reference.
SHOWN_ROWS = {
    "small": {
        "main": ("MDEQ-1A", "SRS-MDEQ-1A", "SRS-MDEQ-3A"),
        "consistency": _CONSISTENCY + _NAIVE,
        "steps": ("MDEQ-30A", "SRS-MDEQ-3A", "SRS-MDEQ-5A"),
        "solvers": ("MDEQ-30N", "MDEQ-30A"),
        "warmup_steps": (),
        "warmup_solvers": (),
        "restart": ("every batch", "never"),
        "serialized_starts": ("previous draw",),
    },
    "large": {
        "main": ("MDEQ-1A", "MDEQ-30A", "SRS-MDEQ-1A", "SRS-MDEQ-3A"),
        "consistency": _CONSISTENCY + _NAIVE,
        "steps": ("SRS-MDEQ-3A", "SRS-MDEQ-5A"),
        "solvers": ("MDEQ-30N", "MDEQ-30A"),
        "warmup_steps": (),
        "start": _START,
    },
    "imagenet": {"imagenet": ("MDEQ-1B", "SRS-MDEQ-1B", "SRS-MDEQ-3B"), "imagenet_steps": ("SRS-MDEQ-3B", "SRS-MDEQ-5B")},
}


class Size(Section):
    """The runs of one model size: the ``main`` one, and all noise ``levels``."""

    main: str
    levels: list[str] = []

    def runs(self) -> list[str]:
        return list(dict.fromkeys([self.main, *self.levels]))


class Past(Section):
    """Beside a run with amortized rows: what was ``tuned`` from it, and the same layer trained ``unrolled``."""

    tuned: str | None = None
    unrolled: str | None = None

    def models(self) -> list[str]:
        return [key for key in (self.tuned, self.unrolled) if key is not None]


class Pages(Section):
    """The pages to make besides those of every profile, by what they read: ``certificates`` and trained networks alone,
    ``votes`` besides, or ``everything``: attacks, coverage and arithmetic, too."""

    certificates: list[
        Literal[
            "11_main_results",
            "12_noise_levels",
            "13_steps_and_solvers",
            "14_consistency",
            "15_correlation",
            "16_samples",
            "17_warmup",
            "18_training_variants",
            "20_baselines",
        ]
    ] = []
    votes: list[Literal["24_cifar10"]] = []
    everything: list[Literal["19_robustness", "22_record"]] = []

    def names(self) -> list[str]:
        return sorted([*self.certificates, *self.votes, *self.everything])


class Report(Section):
    """What the reports show: which run stands where the paper has which; ``others`` are shown though it has none.
    ``stands_for`` and ``radii``: by data set, what it stands for and the radii of its tables. ``past``: the runs of the report
    that goes past the paper, one a noise level. ``mondeq``: the monotone DEQ whose exact certificates that shows;
    ``lipschitz``: one trained for its deterministic certificate. Pages of the paper's items need all of ``large``,
    ``imagenet``, ``resnet``, ``plain`` (the plain network to beat), ``smoothadv``, ``consistency`` (regularization) and
    ``no_jacobian``. ``votes``: whether `make publish` publishes all votes, too. ``remarks``: by data set, what pages are to say
    of its images and of the trainings on them."""

    stands_for: dict[str, str]
    radii: dict[str, list[float]]
    small: Size
    large: Size | None = None
    imagenet: Size | None = None
    resnet: str | None = None
    plain: str | None = None
    smoothadv: str | None = None
    consistency: str | None = None
    no_jacobian: str | None = None
    past: dict[Name, Past] = Field(min_length=1)
    mondeq: str | None = None
    lipschitz: str | None = None
    others: list[str] = []
    remarks: dict[str, str] = {}
    votes: bool = False
    pages: Pages

    @field_validator("radii")
    @classmethod
    def _radii_ascend_from_zero(cls, radii: dict) -> dict:
        for data, values in radii.items():
            if values[:1] != [0] or sorted(set(values)) != values or len(values) < 2:
                raise ValueError(f"radii.{data} = {values} must start at 0 and ascend: two or more are wanted")
        return radii

    def sizes(self) -> dict[str, Size]:
        """The sizes that there are."""
        every = {"small": self.small, "large": self.large, "imagenet": self.imagenet}
        return {name: size for name, size in every.items() if size is not None}


class Requirements:
    """Whether the runs that a report names have the rows that its pages show. Raises ValueError that names what is missing."""

    def __init__(self, report: Report, plans: VotePlans, alpha: float, candidates: Iterable[str], attacked: Iterable[str]):
        self.report, self.plans, self.alpha = report, plans, alpha
        self.candidates, self.attacked = list(candidates), list(attacked)

    def check(self) -> None:
        report = self.report
        for data in dict.fromkeys(map(self.plans.data, self.plans.plans)):
            known(f"report.stands_for: {data}", data, report.stands_for)
            known(f"report.radii: {data}", data, report.radii)
        if pages := set(report.pages.names()) - {ALONE}:
            self._papers_items()
        if ALONE in report.pages.names() or not pages:
            self._alone()
        for data in report.remarks:
            known("report.remarks", data, report.stands_for)
        for key in report.others:
            self._has("report.others", key)
        for key, past in report.past.items():
            self._past(key, past)
        self._reaches_least_radius(report.past)
        for name in ("mondeq", "lipschitz"):
            if (key := getattr(report, name)) is not None:
                self._is_monotone(f"report.{name}", key)
        if report.mondeq is not None:
            self._has("report.mondeq", report.mondeq, "mondeq")
            self._has_exact_row(report.mondeq)
        self._reaches_second_radius(report.small.main)

    def _alone(self) -> None:
        report, main, fast = self.report, self.report.small.main, ("AS-MDEQ-1N",)
        for kind, rows in {"main": SHOWN_ROWS["small"]["main"], "consistency": _CONSISTENCY}.items():
            self._has("report.small", main, kind, rows)
        for key in report.small.levels if report.small.levels != [main] else ():
            self._has("report.small.levels", key, "levels", SHOWN_ROWS["small"]["main"])
        if report.consistency is not None:
            for key in (report.consistency, main):
                self._has("report.consistency", key, "pair", fast)
        if report.plain is not None:
            self._has("report.plain", report.plain, reference=False)
            self._has("report.plain", main, None, fast)
            self._same_images((report.plain, None), (main, None))

    def _papers_items(self) -> None:
        report = self.report
        for name in ("large", "imagenet", "resnet", "plain", "smoothadv", "consistency", "no_jacobian"):
            if getattr(report, name) is None:
                raise ValueError(f"report.{name} is missing: of the pages only {ALONE!r} does without it")
        for name in ("resnet", "plain"):
            self._has(f"report.{name}", getattr(report, name), reference=False)
            self._same_images((getattr(report, name), None), (report.large.main, None))
        for name, size in report.sizes().items():
            for key in size.runs():
                self._has(f"report.{name}", key)
            for kind, rows in SHOWN_ROWS[name].items():
                self._has(f"report.{name}", size.main, kind, rows)
                if kind.startswith("warmup"):
                    self._several_serialized(size.main, kind)
            if name != "imagenet":
                known(f"robustness.runs: report.{name}.main", size.main, self.attacked)
                self._has(f"report.{name}", size.main, "samples", reference=False)
                self._several_samples(size.main)
            for key in size.levels:
                self._shows_its_method(f"report.{name}.levels", key)
        for name in ("smoothadv", "consistency", "no_jacobian"):
            self._has(f"report.{name}", getattr(report, name), "pair", ("MDEQ-30A", "SRS-MDEQ-1A", "SRS-MDEQ-3A"))
            self._same_images((getattr(report, name), "pair"), (report.small.main, "steps"))
        for name, field in {"smoothadv": "adversary", "consistency": "consistency"}.items():
            key = getattr(report, name)
            if not self.plans.runs[key].training.get(field):
                raise ValueError(f"report.{name} = {key!r} is trained otherwise: give it runs.{key}.training.{field}")
        self._can_be_audited_otherwise(report.small.main)

    def _shows_its_method(self, path: str, key: str) -> None:
        """Whether a noise level's main rows, and those that are alike at all levels, have the serialized row that stands for
        its method."""
        plan = self.plans[key]
        for kind in (None, *(name for name in ("levels", "imagenet_levels") if name in plan.groups)):
            self._has(path, key, kind, [fast_row(plan.reference_row(plan.group(kind)))])

    def _has_exact_row(self, key: str) -> None:
        plan = self.plans[key]
        samplers = plan.groups[plan.group("mondeq")].samplers
        if not any(sampler.exact for sampler in samplers.values()):
            raise ValueError(f"rows.mondeq = {list(samplers)} needs a row whose votes are settled, as 'monDEQ settled' is")

    def _past(self, key: str, past: Past) -> None:
        self._has("report.past", key, "past", self.candidates)
        if (base := self.plans.runs[key].base) is not None:
            raise ValueError(f"report.past: {key} must have starts of its own, and has those of its base {base!r}")
        for other in self.report.past:
            if other != key and self.plans.runs[other].sigma == self.plans.runs[key].sigma:
                raise ValueError(
                    f"report.past: {other} has sigma = {self.plans.runs[key].sigma:g}, as {key}: one run a noise level"
                )
        plan = self.plans[key]
        group = plan.group("past")
        honest = stopped(plan.reference_row(group))
        self._has("report.past", key, "past", [honest])
        if plan.groups[group].samplers[honest].solver.stop == "fixed":
            raise ValueError(f"samplers.{honest}.solver.stop = 'fixed' must be another: it is the baseline that stops")
        self._has("report.past", key, "sequential", reference=False)
        for other in past.models():
            known("report.past", other, self.plans.runs)
            self._has("report.past", other, reference=False)
            self._same_images((other, None), (key, "past"))
            self._same_draws((other, None), (key, "past"))

    def _several_samples(self, key: str) -> None:
        """Whether a run's rows are there by several numbers of draws, on the same images."""
        groups = self.plans[key].groups
        found = {name: group for name, group in groups.items() if group.kind == "samples"}
        if len({group.n for group in found.values()}) < 2:
            raise ValueError(f"votes.groups.{key} = {list(groups)} needs groups with the rows 'samples' of two n or more")
        for one, other in combinations(found, 2):
            self._same_images((key, other), (key, one))
            if (n := found[other].n) == found[one].n:
                raise ValueError(f"draws.{other}.n = {n} is another's, too: groups with the rows 'samples' differ in it")

    def _several_serialized(self, key: str, kind: str) -> None:
        """Whether a list compares serialized rows with one another."""
        group = self.plans[key].group(kind)
        rows = [row for row, sampler in self.plans[key].groups[group].samplers.items() if sampler.audited]
        if len(rows) < 2:
            raise ValueError(f"rows.{kind} needs two serialized rows or more, which are compared; it has {rows}")

    def _reaches_second_radius(self, key: str) -> None:
        """Whether a standard row of a run's main list can certify at the radius at which costs are compared."""
        plan, data = self.plans[key], self.plans.data(key)
        n, r = plan.groups[plan.main].n, self.report.radii[data][1]
        farthest = bounds.largest_radius(n, self.alpha, plan.sigma)
        if r > farthest:
            most = f"at most {bounds.shown(farthest)}, which {n:,} draws reach"
            raise ValueError(f"report.radii.{data} = {self.report.radii[data]}: the second is wanted {most} for {key}")

    def _reaches_least_radius(self, keys: Iterable[str]) -> None:
        """Whether sequential tests can certify at the least radius that is shown, at one noise level at least."""
        found = []
        for key in keys:
            plan = self.plans[key]
            group = plan.group("sequential")
            n = plan.groups[group].n
            found.append((bounds.largest_radius_by_evidence(n, self.alpha, plan.sigma), key, group, n))
        farthest, key, group, n = max(found)
        if farthest < LEAST_RADIUS:
            told = f"tests are shown at r = {LEAST_RADIUS:g} and more, and so many draws of {key} reach"
            raise ValueError(f"draws.{group}.n = {n} is too small: {told} {bounds.shown(farthest)}")

    def _can_be_audited_otherwise(self, key: str) -> None:
        """Whether a run's list `consistency` has more draws than the least audit tried on it, and no audit of its own."""
        plan = self.plans[key]
        group = plan.group("consistency")
        if plan.groups[group].n <= LEAST_AUDIT:
            raise ValueError(f"draws.{group}.n = {plan.groups[group].n} is out of range: more than {LEAST_AUDIT} are audited")
        if (audit := plan.groups[group].audit) is not None:
            raise ValueError(f"draws.{group}.audit = {audit} must be left out: audits of several sizes are compared there")

    def _is_monotone(self, path: str, key: str) -> None:
        model = self.plans.runs[known(path, key, self.plans.runs)].model
        if PRESETS[self.plans.models[model].preset]["family"] != "mondeq":
            raise ValueError(f"{path} = {key!r} is no monotone DEQ: the preset of models.{model} must be 'mondeq'")

    def _has(self, path: str, key: str, kind: str | None = None, rows: Iterable[str] = (), reference: bool = True) -> None:
        """Whether a run has a list of rows (None: its main one), with some rows by name and as a rule the reference."""
        plan = self.plans.plans[known(path, key, self.plans.plans)]
        kinds = {name: group.kind for name, group in plan.groups.items()}
        if kind is not None and kind not in (*kinds, *kinds.values()):
            raise ValueError(f"votes.groups.{key} = {list(kinds)} needs a group with the rows {kind!r}, for {path}")
        group = plan.group(kind)
        samplers = plan.groups[group].samplers
        for row in rows:
            known(f"rows.{kinds[group]}: the row", row, samplers)
        if reference and plan.reference not in samplers.values():
            raise ValueError(f"rows.{kinds[group]} needs the reference of {key} among its rows")

    def _same_images(self, *groups: tuple[str, str | None]) -> None:
        """Whether two groups that are compared image by image are of one size."""
        self._same("images", "image by image", *groups)

    def _same_draws(self, *groups: tuple[str, str | None]) -> None:
        """Whether two groups whose votes are compared have as many."""
        self._same("n", "vote by vote", *groups)

    def _same(self, field: str, how: str, *groups: tuple[str, str | None]) -> None:
        (name, one), (other, agreed) = [(self.plans[key].group(kind), self.plans[key]) for key, kind in groups]
        value, wanted = getattr(one.groups[name], field), getattr(agreed.groups[other], field)
        if value != wanted:
            raise ValueError(f"draws.{name}.{field} = {value} must be {wanted}, as in draws.{other}: they are compared {how}")
