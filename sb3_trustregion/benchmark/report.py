"""The report: what was compared, what came of it, what it cost, and what it does not show."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from sb3_trustregion.benchmark import plots, statistics, tables
from sb3_trustregion.benchmark.mixtures import EVALUATION_SEEDS
from sb3_trustregion.benchmark.page import Code, Fold, Heading, Part, Picture, Section, Table, Text, write_page
from sb3_trustregion.benchmark.references import Reference, read_references
from sb3_trustregion.benchmark.results import Results, check_folder
from sb3_trustregion.benchmark.scores import METRICS, Collection, collect
from sb3_trustregion.benchmark.statistics import Block, Interval, make_block
from sb3_trustregion.benchmark.variants import ABLATION, OURS, SENSITIVITY, STOCK, TUNED, Variant
from sb3_trustregion.validation import check_integer

TITLE = "sb3_trustregion beside stock PPO and TRPO"
HEADLINE = "evaluation"
FEW_SEEDS = 5

READING = (
    "Scores are normalised per task: 0 is a policy of random actions, 1 the reference in "
    "`sb3_trustregion/benchmark/references.yml`, which was fixed before any result was seen. Bars and bands are 95 % "
    "stratified-bootstrap intervals over seeds. A failed run counts as score 0. What is Zoo-tuned or set per task has "
    "hyperparameters for that very task; all others have one set for all tasks, the same number of environments and "
    "the same normalisation."
)
RADIUS = (
    "The radius is adapted or it is not, with everything else the same. Below, each algorithm with its twin of a fixed "
    "radius, and with other things that it is said to need taken away."
)


class Report:
    """
    What the sections are made from.

    :param collection: the results
    :param references: what scores 0 and 1 mean
    :param reps: bootstrap samples
    """

    def __init__(self, collection: Collection, references: Mapping[str, Reference], reps: int) -> None:
        self.collection = collection
        self.references = references
        self.reps = reps
        # What is written beside the page, by name.
        self.data: dict[str, list[dict[str, object]]] = {}

    def sections(self) -> list[Section]:
        """:return: those for which there are results"""
        found = [self._stock(), self._tuned(), self._radius(), self._sensitivity(), self._tasks(), self._runs()]
        return [section for section in [*found, self._cost(), self._failures()] if section is not None]

    def _stock(self) -> Section | None:
        variants = self.collection.select(lambda variant: variant.role in (STOCK, OURS))
        return self._comparison("Is it better than stock?", "stock", variants) if variants else None

    def _tuned(self) -> Section | None:
        variants = self.collection.select(
            lambda variant: variant.role == TUNED or (variant.role == STOCK and variant.per_task)
        )
        if not any(variant.role == TUNED for variant in variants):
            return None
        return self._comparison("With hyperparameters for each task", "tuned", variants)

    def _comparison(self, title: str, name: str, variants: list[Variant]) -> Section:
        styles = plots.family_styles(variants)
        block = self._block(variants)
        parts: list[Part] = []
        if not block.is_empty:
            parts += self._aggregates(block, name, styles)
            pairs = [(x, y) for x in _names(variants, is_stock=False) for y in _names(variants, is_stock=True)]
            parts += self._improvements(block, name, pairs)
            parts += self._distributions(block, name, styles)
        parts += _left_out(block)
        return Section(title, [*parts, *self._curves(variants, name, styles)])

    def _block(self, variants: list[Variant]) -> Block:
        return make_block(self.collection, variants, self.references)

    def _aggregates(self, block: Block, name: str, styles: Mapping[str, plots.Style]) -> list[Part]:
        estimates = {metric: statistics.interquartile_means(block, metric, self.reps) for metric in METRICS}
        for metric, found in estimates.items():
            for variant, interval in found.items():
                self._keep("aggregate", interval, section=name, metric=metric, variant=variant)
        picture = plots.intervals(block.variants, estimates, styles)
        seeds = tables.count(len(block.seeds), "seed")
        caption = f"Interquartile mean over {_tasks(block)} and {seeds}. Further right is better."
        table = tables.overview(self.collection, block.variants, estimates)
        return [table, Picture(f"{name}-intervals", picture, caption)]

    def _curves(self, variants: list[Variant], name: str, styles: Mapping[str, plots.Style]) -> list[Part]:
        names = {variant.name for variant in variants}
        if not any(key[1] in names for key in self.collection.scores):
            return []
        curves = plots.learning_curves(self.collection, variants, styles)
        caption = "Raw returns of training episodes: mean over seeds, band from the worst to the best seed"
        failed = any(run.variant.name in names for run in self.collection.failed())
        return [Picture(f"{name}-learning-curves", curves, caption + (", of those that finished." if failed else "."))]

    def _improvements(self, block: Block, name: str, pairs: list[tuple[str, str]]) -> list[Part]:
        if not pairs:
            return []
        found = statistics.improvements(block, HEADLINE, pairs, self.reps)
        for (x, y), interval in found.items():
            self._keep("improvement", interval, section=name, variant=x, other=y)
        picture = plots.improvements(found, {variant.name: variant.label for variant in block.variants})
        caption = (
            f"Probability of improvement, by the {METRICS[HEADLINE]}. Right of the dashed line the first is ahead; an "
            "interval that crosses it decides nothing."
        )
        return [Picture(f"{name}-improvement", picture, caption)]

    def _distributions(self, block: Block, name: str, styles: Mapping[str, plots.Style]) -> list[Part]:
        thresholds, shares = statistics.performance_profiles(block, HEADLINE, self.reps)
        curves = statistics.sample_efficiency(block, self.reps)
        for variant, interval in curves.items():
            for checkpoint, values in enumerate(zip(*interval, strict=True), 1):
                self._keep("sample_efficiency", Interval(*values), section=name, variant=variant, checkpoint=checkpoint)
        profile = plots.profiles(block.variants, thresholds, shares, styles)
        efficiency = plots.sample_efficiency(block.variants, curves, styles)
        return [
            Picture(f"{name}-sample-efficiency", efficiency, "Sample efficiency: higher and further left is better."),
            Picture(f"{name}-profiles", profile, "Performance profiles of final policies: higher is better."),
        ]

    def _keep(self, table: str, interval: Interval, **names: object) -> None:
        figures = {part: float(value) for part, value in interval._asdict().items()}
        self.data.setdefault(table, []).append({**names, **figures})

    def _radius(self) -> Section | None:
        parts: list[Part] = []
        for parent in self.collection.select(lambda variant: variant.role in (OURS, STOCK)):
            children = self.collection.select(_is_ablation_of(parent))
            if children:
                parts += self._group([parent, *children])
        if not parts:
            return None
        table = tables.decisions(self.collection, self._with_radius())
        return Section("Does the adaptive radius help?", [Text(RADIUS), *parts, *_decisions(table)])

    def _group(self, variants: list[Variant]) -> list[Part]:
        parent, *children = variants
        styles = plots.group_styles(variants)
        block = self._block(variants)
        parts: list[Part] = [Heading(parent.label)]
        name = f"radius-{parent.name}"
        if not block.is_empty:
            parts += self._aggregates(block, name, styles)
            parts += self._improvements(block, name, [(parent.name, child.name) for child in children])
        parts += _left_out(block)
        return [*parts, *self._curves(variants, name, styles)]

    def _with_radius(self) -> list[Variant]:
        return self.collection.select(lambda variant: variant.config.startswith("adaptive"))

    def _sensitivity(self) -> Section | None:
        families = self._families()
        if not families:
            return None
        members = [self.collection.variants[name] for family in families.values() for name in family.values()]
        block = self._block(members)
        parts: list[Part] = [*_left_out(block)]
        if not block.is_empty:
            found = statistics.interquartile_means(block, HEADLINE, self.reps)
            points = {
                name: {factor: found[member] for factor, member in family.items()} for name, family in families.items()
            }
            for name, intervals in points.items():
                for factor, interval in sorted(intervals.items()):
                    self._keep("sensitivity", interval, variant=name, radius_factor=factor)
            parents = [self.collection.variants[name] for name in families]
            labels = {variant.name: variant.label for variant in parents}
            picture = plots.sensitivity(points, labels, plots.family_styles(parents))
            caption = f"Final policy over {_tasks(block)} by initial radius. The flatter, the less it matters."
            spread = tables.spread_over_radii(block, HEADLINE, families, labels)
            parts += [
                Picture("sensitivity", picture, caption),
                Text("Largest minus smallest score over the radii:"),
                spread,
            ]
        return Section("Does the initial radius matter?", parts)

    def _families(self) -> dict[str, dict[float, str]]:
        families: dict[str, dict[float, str]] = {}
        for variant in self.collection.select(lambda variant: variant.role == SENSITIVITY):
            if variant.parent in self.collection.variants:
                family = families.setdefault(variant.parent, {1.0: variant.parent})
                family[variant.radius_factor] = variant.name
        return families

    def _tasks(self) -> Section:
        parts: list[Part] = [
            Text(
                "Raw returns: mean ± standard deviation over the seeds that finished, in bold the best mean of those "
                "of which no run failed. Cost is that of training."
            )
        ]
        variants = list(self.collection.variants.values())
        for task in self.collection.tasks:
            parts += [Heading(task), tables.task_table(self.collection, task, variants)]
        return Section("Task by task", parts)

    def _runs(self) -> Section | None:
        parts: list[Part] = []
        for task in self.collection.tasks:
            variants = [variant for variant in self._with_radius() if self._has(task, variant)]
            if variants:
                picture = plots.traces(self.collection, task, variants)
                caption = f"Every run on {task}. ρ is cut off beyond ±3."
                parts.append(Fold(task, [Picture(f"runs-{task.replace('/', '~')}", picture, caption)]))
        return Section("Radius, ρ and KL of every run", parts) if parts else None

    def _has(self, task: str, variant: Variant) -> bool:
        return any(key[:2] == (task, variant.name) for key in self.collection.scores)

    def _cost(self) -> Section:
        table = tables.cost(self.collection, list(self.collection.variants.values()))
        total = sum(run.record["seconds"]["total"] for run in self.collection.runs.values() if run.is_finished)
        text = (
            "CPU seconds of training per 100 000 steps, one thread: of the machine as it was at the time, so that only "
            f"what ran together compares. All runs together took {total / 3600:.1f} hours."
        )
        return Section("What it costs", [Text(text), table])

    def _failures(self) -> Section:
        failed = self.collection.failed()
        parts: list[Part] = [Text(f"{len(failed)} of {len(self.collection.runs)} runs failed.")]
        for run in failed:
            parts.append(Fold(f"{run.variant.name} on {run.task}, seed {run.seed}", [Code(run.traceback())]))
        return Section("Failed runs", parts)


def write_report(results: Path, output: Path, references: Path, reps: int, allow_mixed: bool = False) -> Path:
    """
    :param results: folder of the results
    :param output: folder for the page, its pictures, tables and summary
    :param references: what scores 0 and 1 mean
    :param reps: bootstrap samples
    :param allow_mixed: whether results of several versions are reported on together
    :return: the page
    :raises ValueError: where the results do not belong together, or an argument is wrong
    """
    check_integer("reps", reps, at_least=1)
    collection = collect(results, allow_mixed)
    check_folder(output)
    report = Report(collection, read_references(references), reps)
    sections = report.sections()
    page = write_page(TITLE, _introduction(collection, Results(results).commands()), sections, output)
    collection.table().to_csv(output / "runs.csv", index=False, float_format="%.6g")
    for name, rows in report.data.items():
        pd.DataFrame(rows).to_csv(output / f"{name}.csv", index=False, float_format="%.4f")
    return page


def _introduction(collection: Collection, commands: list[str]) -> list[Part]:
    parts: list[Part] = [Text(f"{_size(collection)} {READING}")]
    if not set(collection.seeds) <= set(EVALUATION_SEEDS):
        seeds = tables.count(len(collection.seeds), "tuning seed")
        text = f"Exploratory: {seeds}. They show where to look, and no claim can rest on them."
        if len(collection.seeds) < FEW_SEEDS:
            text += " With so few, the bootstrap intervals are too narrow."
        parts.append(Text(text, is_note=True))
    records = [run.record for run in collection.runs.values()]
    commits = sorted(
        {f"`{record['commit'][:10]}`{'*' * record['modified']}" for record in records if "commit" in record}
    )
    versions = sorted({f"{name} {version}" for record in records for name, version in record["versions"].items()})
    marks = " (* with changes)" if any(record.get("modified") for record in records) else ""
    made = f"Made at commit {', '.join(commits)}{marks} " if commits else "Made "
    lines = [*commands, "python -m sb3_trustregion.benchmark report FOLDER"]
    return [*parts, Text(f"{made}with {', '.join(versions)}, by"), Code("\n".join(lines))]


def _size(collection: Collection) -> str:
    sizes = {"variant": collection.variants, "task": collection.tasks, "seed": collection.seeds}
    counts = ", ".join(tables.count(len(things), name) for name, things in sizes.items())
    return f"{counts} ({', '.join(map(str, collection.seeds))})."


def _names(variants: list[Variant], is_stock: bool) -> list[str]:
    return [variant.name for variant in variants if (variant.role == STOCK) is is_stock]


def _is_ablation_of(parent: Variant) -> Callable[[Variant], bool]:
    return lambda variant: variant.role == ABLATION and variant.parent == parent.name


def _tasks(block: Block) -> str:
    return f"{len(block.tasks)} tasks" if len(block.tasks) != 1 else block.tasks[0]


def _left_out(block: Block) -> list[Part]:
    if not block.left_out:
        return []
    return [Text(f"Left out of what is taken over all tasks: {'; '.join(block.left_out)}.", is_note=True)]


def _decisions(table: Table) -> list[Part]:
    text = (
        "What the rule did, means over seeds (of radii, geometric). A decision by feedback is one that would have been "
        "another had the step been taken to bring nothing. For AdaptivePPO the radius is the factor on the clip range."
    )
    if not table.rows:
        return []
    return [Heading("What the rule did"), Fold("By task and variant", [Text(text), table])]
