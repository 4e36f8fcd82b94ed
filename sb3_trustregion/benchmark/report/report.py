"""The report: what was compared, what came of it, what it cost, and what it does not show."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from sb3_trustregion.benchmark.mixtures import EVALUATION_SEEDS, GYMNASIUM
from sb3_trustregion.benchmark.report import plots, statistics, tables
from sb3_trustregion.benchmark.report.page import Page
from sb3_trustregion.benchmark.report.references import Reference, read_references
from sb3_trustregion.benchmark.report.scores import METRICS, Collection, collect
from sb3_trustregion.benchmark.report.statistics import Block, Estimates, make_block
from sb3_trustregion.benchmark.results import Results, check_folder
from sb3_trustregion.benchmark.variants import ABLATION, OURS, SENSITIVITY, STOCK, TUNED, Variant
from sb3_trustregion.common.validation import check_integer

TITLE = "sb3_trustregion beside stock PPO and TRPO"
FEW_SEEDS = 5

READING = (
    "Scores are normalised per task: 0 is a policy of random actions, 1 the reference in "
    "`sb3_trustregion/benchmark/report/references.yml`, which was fixed before any result was seen. Bars and bands are "
    "95 % stratified-bootstrap intervals over seeds. A failed run counts as score 0. What is Zoo-tuned or set per task "
    "has hyperparameters for that very task; all others have one set for all tasks, the same number of environments and "
    "the same normalisation."
)
RADIUS = (
    "The radius is adapted or it is not, with everything else the same. Below, each algorithm with its twin of a fixed "
    "radius, and with other things that it is said to need taken away."
)
DECISIONS = (
    "Means over seeds (of radii, geometric). A decision by feedback is one that would have been another had the step "
    "been taken to bring nothing. For AdaptivePPO the radius is the factor on the clip range."
)
TASKS = (
    "Raw returns: mean ± standard deviation over the seeds that finished, in bold the best mean of those of which no "
    "run failed. Cost is that of training."
)
COST = (
    "CPU seconds of training per 100 000 steps, one thread: of the machine as it was at the time, so that only what ran "
    "together compares."
)


class Report:
    """
    Writes the sections for which there are results.

    :param page: gets them
    :param collection: the results
    :param references: what scores 0 and 1 mean
    :param reps: bootstrap samples
    """

    def __init__(self, page: Page, collection: Collection, references: dict[str, Reference], reps: int) -> None:
        self.page = page
        self.collection = collection
        self.references = references
        self.reps = reps
        # What is written beside the page, by name.
        self.data: dict[str, list[dict[str, object]]] = {}

    def write(self) -> None:
        """All sections in order."""
        select = self.collection.select
        self._comparison("Is it better than stock?", "stock", select(lambda variant: variant.role in (STOCK, OURS)))
        tuned = select(lambda variant: variant.role == TUNED)
        zoo = select(lambda variant: variant.role == STOCK and variant.per_task)
        self._comparison("With hyperparameters for each task", "tuned", [*zoo, *tuned] if tuned else [])
        self._radius()
        self._sensitivity()
        self._tasks()
        self._runs()
        self._cost()
        self._failures()

    def _comparison(self, title: str, name: str, variants: list[Variant]) -> None:
        if not variants:
            return
        self.page.heading(title)
        block = self._block(variants)
        if block.tasks:
            self._aggregates(block, name)
            stock = [variant for variant in variants if variant.role == STOCK]
            self._improvements(block, name, [(x, y) for x in variants if x.role != STOCK for y in stock])
            self._distributions(block, name)
        self._curves(variants, name)

    def _block(self, variants: list[Variant]) -> Block:
        block = make_block(self.collection, variants, self.references)
        if block.left_out:
            self.page.text(f"Left out of what is taken over all tasks: {'; '.join(block.left_out)}.", is_note=True)
        return block

    def _aggregates(self, block: Block, name: str) -> None:
        estimates = statistics.estimate(block.scores, statistics.interquartile_mean, self.reps)
        for variant in block.variants:
            for index, metric in enumerate(METRICS):
                self._keep("aggregate", estimates, variant.name, index, section=name, metric=metric)
        self.page.table(tables.overview(self.collection, block.variants, estimates))
        caption = f"Interquartile mean over {_tasks(block)} and {tables.count(len(block.seeds), 'seed')}."
        figure = plots.intervals(block.variants, estimates, list(METRICS.values()))
        self.page.picture(f"{name}-intervals", figure, f"{caption} Further right is better.")

    def _improvements(self, block: Block, name: str, pairs: list[tuple[Variant, Variant]]) -> None:
        if not pairs:
            return
        found = statistics.improvements(block.final, pairs, self.reps)
        for x, y in pairs:
            self._keep("improvement", found, f"{x.name}|{y.name}", section=name)
        figure = plots.improvements(found, {variant.name: variant.label for variant in block.variants})
        caption = (
            "Probability that a final policy of the first is better than one of the second on the same task. Right of "
            "the dashed line the first is ahead; an interval that crosses it decides nothing."
        )
        self.page.picture(f"{name}-improvement", figure, caption)

    def _distributions(self, block: Block, name: str) -> None:
        curves = statistics.estimate(block.curves, statistics.interquartile_mean, self.reps)
        for variant, points in curves.points.items():
            for checkpoint in range(len(points)):
                self._keep("sample_efficiency", curves, variant, checkpoint, section=name, checkpoint=checkpoint + 1)
        figure = plots.sample_efficiency(block.variants, curves)
        self.page.picture(f"{name}-sample-efficiency", figure, "Sample efficiency: higher and further left is better.")
        figure = plots.profiles(block.variants, *statistics.performance_profiles(block.final, self.reps))
        self.page.picture(f"{name}-profiles", figure, "Performance profiles of final policies: higher is better.")

    def _curves(self, variants: list[Variant], name: str) -> None:
        if any(key[1] in {variant.name for variant in variants} for key in self.collection.curves):
            figure = plots.learning_curves(self.collection, variants)
            caption = "Raw returns of training episodes: mean over the seeds that finished, from the worst to the best."
            self.page.picture(f"{name}-learning-curves", figure, caption)

    def _keep(self, table: str, estimates: Estimates, name: str, index: int = 0, **names: object) -> None:
        low, high = estimates.intervals[name][:, index]
        figures = {"point": estimates.points[name][index], "low": low, "high": high}
        self.data.setdefault(table, []).append({**names, "variant": name, **figures})

    def _radius(self) -> None:
        select = self.collection.select
        parents = select(lambda variant: variant.role in (OURS, STOCK))
        children = {
            parent.name: select(lambda variant, name=parent.name: variant.role == ABLATION and variant.parent == name)
            for parent in parents
        }
        if not any(children.values()):
            return
        self.page.heading("Does the adaptive radius help?")
        self.page.text(RADIUS)
        for parent in parents:
            if children[parent.name]:
                self._group(parent, children[parent.name])
        table = tables.decisions(self.collection)
        if len(table):
            with self.page.fold("What the rule did"):
                self.page.text(DECISIONS)
                self.page.table(table, n_names=2)

    def _group(self, parent: Variant, children: list[Variant]) -> None:
        self.page.heading(parent.label, level=3)
        variants, name = [parent, *children], f"radius-{parent.name}"
        block = self._block(variants)
        if block.tasks:
            self._aggregates(block, name)
            self._improvements(block, name, [(parent, child) for child in children])
        self._curves(variants, name)

    def _sensitivity(self) -> None:
        families: dict[str, dict[float, str]] = {}
        for variant in self.collection.select(lambda variant: variant.role == SENSITIVITY):
            parent = self.collection.variants.get(variant.parent)
            if parent is not None:
                families.setdefault(parent.label, {1.0: parent.name})[variant.radius_factor] = variant.name
        if not families:
            return
        self.page.heading("Does the initial radius matter?")
        members = [self.collection.variants[name] for family in families.values() for name in family.values()]
        block = self._block(members)
        if not block.tasks:
            return
        estimates = statistics.estimate(block.scores, statistics.interquartile_mean, self.reps)
        for label, family in families.items():
            for factor, name in sorted(family.items()):
                self._keep("sensitivity", estimates, name, family=label, radius_factor=factor)
        caption = f"Final policy over {_tasks(block)} by initial radius. The flatter, the less it matters."
        self.page.picture("sensitivity", plots.sensitivity(families, estimates), caption)
        self.page.text("Largest minus smallest score over the radii:")
        self.page.table(tables.spread_over_radii(block, families))

    def _tasks(self) -> None:
        self.page.heading("Task by task")
        self.page.text(TASKS)
        for task in self.collection.tasks:
            self.page.heading(task, level=3)
            self.page.table(tables.task_table(self.collection, task))

    def _runs(self) -> None:
        runs = [key for key, updates in self.collection.updates.items() if "radius" in updates]
        if runs:
            self.page.heading("Radius, ρ and KL of every run")
        for task in self.collection.tasks:
            variants = self.collection.select(
                lambda variant, task=task: (task, variant.name) in {key[:2] for key in runs}
            )
            if variants:
                with self.page.fold(task):
                    caption = f"Every run on {task}. ρ is cut off beyond ±3."
                    figure = plots.traces(self.collection, task, variants)
                    self.page.picture(f"runs-{task.replace('/', '~')}", figure, caption)

    def _cost(self) -> None:
        self.page.heading("What it costs")
        hours = self.collection.finished["total_seconds"].sum() / 3600 if len(self.collection.finished) else 0.0
        self.page.text(f"{COST} All runs together took {hours:.1f} hours.")
        self.page.table(tables.cost(self.collection))

    def _failures(self) -> None:
        failed = [run for run in self.collection.runs.values() if not run.is_finished]
        self.page.heading("Failed runs")
        self.page.text(f"{len(failed)} of {len(self.collection.runs)} runs failed.")
        for run in failed:
            with self.page.fold(f"{run.variant.name} on {run.task}, seed {run.seed}"):
                self.page.code(run.traceback())


def write_report(results: Results, output: Path, references: Path, reps: int, allow_mixed: bool = False) -> Path:
    """
    :param results: with at least one run
    :param output: folder for the page, its pictures, tables and summary
    :param references: what scores 0 and 1 mean
    :param reps: bootstrap samples
    :param allow_mixed: whether results of several versions are reported on together
    :return: the page
    :raises ValueError: where the results do not belong together, or an argument is wrong
    """
    check_integer("reps", reps, at_least=1)
    known = read_references(references)
    with results.reading() as runs:
        collection = collect(runs, allow_mixed)
        check_folder(output)
        page = Page(output)
        _introduce(page, collection, results.commands())
        report = Report(page, collection, known, reps)
        report.write()
    collection.table.to_csv(output / "runs.csv", index=False, float_format="%.6g")
    for name, rows in report.data.items():
        pd.DataFrame(rows).to_csv(output / f"{name}.csv", index=False, float_format="%.4f")
    return page.write()


def _introduce(page: Page, collection: Collection, commands: list[str]) -> None:
    records = [run.record for run in collection.runs.values()]
    sizes = {"variant": collection.variants, "task": collection.tasks, "seed": collection.seeds}
    counts = ", ".join(tables.count(len(things), name) for name, things in sizes.items())
    page.heading(TITLE, level=1)
    page.text(f"{counts} ({', '.join(map(str, collection.seeds))}). {READING}")
    if {record.get("backend", GYMNASIUM) for record in records} != {GYMNASIUM}:
        page.text("EnvPool, exploration only: its versions of the tasks, not Gymnasium's.", is_note=True)
    if not set(collection.seeds) <= set(EVALUATION_SEEDS):
        seeds = tables.count(len(collection.seeds), "tuning seed")
        text = f"Exploratory: {seeds}. They show where to look, and no claim can rest on them."
        few = " With so few, the bootstrap intervals are too narrow." if len(collection.seeds) < FEW_SEEDS else ""
        page.text(text + few, is_note=True)
    made = [record for record in records if "commit" in record]
    commits = _listed(f"`{record['commit'][:10]}`{'*' * record['modified']}" for record in made)
    versions = _listed(f"{name} {version}" for record in records for name, version in record["versions"].items())
    marks = " (* with changes)" if any(record["modified"] for record in made) else ""
    page.text(f"Made {f'at commit {commits}{marks} ' if made else ''}with {versions}, by")
    page.code("\n".join([*commands, "python -m sb3_trustregion.benchmark report FOLDER"]))


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts)))


def _tasks(block: Block) -> str:
    return f"{len(block.tasks)} tasks" if len(block.tasks) != 1 else block.tasks[0]
