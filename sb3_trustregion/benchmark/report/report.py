"""The report: what was compared, what came of it, what it cost, and what it does not show."""

from pathlib import Path

import numpy as np
import pandas as pd

from sb3_trustregion.benchmark.mixtures import EVALUATION_SEEDS, GYMNASIUM
from sb3_trustregion.benchmark.report import plots, statistics, tables
from sb3_trustregion.benchmark.report.page import Page
from sb3_trustregion.benchmark.report.scores import METRICS, REFERENCES, Collection, Reference, collect, read_references
from sb3_trustregion.benchmark.results import Results
from sb3_trustregion.benchmark.run.spec import title
from sb3_trustregion.benchmark.variants import ABLATION, OURS, SENSITIVITY, STOCK, TUNED, Variant
from sb3_trustregion.common.validation import check_integer

FEW_SEEDS = 5
SECTION, SUBSECTION, NOTE = "## ", "### ", "> "

READING = """Scores are normalised per task: 0 is a policy of random actions, 1 the reference in
`sb3_trustregion/benchmark/report/references.yml`, which was fixed before any result was seen. Bars and bands are 95 %
stratified-bootstrap intervals over seeds. A failed run counts as score 0. What is Zoo-tuned or set per task has
hyperparameters for that very task; all others have one set for all tasks, the same normalisation, and the same number
of environments unless the set names one with its steps an update."""
RADIUS = """The radius is adapted or it is not, with everything else the same. Below, each algorithm with its twin of a
fixed radius, and with other things that it is said to need taken away."""
DECISIONS = """Means over seeds (of radii, geometric). A decision by feedback is one that would have been another had
the step been taken to bring nothing. For AdaptivePPO the radius is the factor on the clip range."""
TASKS = """Raw returns: mean ± standard deviation over the seeds that finished, in bold the best mean of those of which
no run failed. Cost is that of training."""
COST = """CPU seconds of training per 100 000 steps, one thread: of the machine as it was at the time, so that only what
ran together compares."""
IMPROVEMENT = """Probability that a final policy of X is better than one of Y on the same task. Right of the dashed line
X is ahead; an interval that crosses it decides nothing."""


class Report:
    """Writes the sections for which there are results; the arguments are those of :func:`write_report`."""

    def __init__(self, page: Page, collection: Collection, references: dict[str, Reference], reps: int) -> None:
        self.page, self.collection, self.references, self.reps = page, collection, references, reps
        # What is written beside the page, by name.
        self.data: dict[str, list[pd.DataFrame]] = {}

    def write(self) -> None:
        """Write all sections in order."""
        select = self.collection.select
        main = select(lambda variant: variant.role in (STOCK, OURS))
        tuned = select(lambda variant: variant.role == TUNED or (variant.role == STOCK and variant.per_task))
        sections = {"Is it better than stock?": ("stock", main), "With hyperparameters for each task": ("tuned", tuned)}
        for question, (name, variants) in sections.items():
            if any(variant.role != STOCK for variant in variants) or (variants and name == "stock"):
                self.page.add(question, SECTION)
                self._beside_stock(variants, name)
        self._radius()
        self._sensitivity()
        self.page.add("Task by task", SECTION)
        self.page.add(TASKS)
        for task in self.collection.tasks:
            self.page.add(task, SUBSECTION)
            self.page.table(tables.task_table(self.collection, task))
        self._runs()
        self._cost()
        self._failures()

    def _beside_stock(self, variants: list[Variant], name: str) -> None:
        """Compare each of ours with each of stock; where seeds are missing, once more those that have all of them."""

        def pairs_of(those: list[Variant]) -> list[tuple[Variant, Variant]]:
            return [(x, y) for x in those if x.role != STOCK for y in those if y.role == STOCK]

        block = self._compare(variants, name, pairs_of(variants))
        complete = [v for v in variants if self.collection.seeds_of(v) == self.collection.seeds]
        if 1 < len(complete) < len(variants):
            self.page.add("Those that have been run with all seeds", SUBSECTION)
            self._compare(complete, f"{name}-all-seeds", pairs_of(complete))
        self._distributions(block, name)
        self._curves(variants, name)

    def _compare(self, variants: list[Variant], name: str, pairs: list[tuple[Variant, Variant]]) -> statistics.Block:
        """Show interquartile means, and which of a pair is better, over all tasks where no run is missing."""
        block = statistics.make_block(self.collection, variants, self.references)
        if block.left_out:
            self.page.add(f"Left out of what is taken over all tasks: {'; '.join(block.left_out)}.", NOTE)
        if block.tasks:
            estimates = statistics.estimate(block.scores, statistics.interquartile_mean, self.reps)
            self._keep("aggregate", estimates, name, list(METRICS))
            self.page.table(tables.overview(self.collection, block, estimates))
            if block.seeds != self.collection.seeds:
                self.page.add(f"Over the seeds that all of these have: {', '.join(map(str, block.seeds))}.", NOTE)
            size = f"{_count(block.tasks, 'task')} and {_count(block.seeds, 'seed')}"
            caption = f"Interquartile mean over {size}. Further right is better."
            self.page.picture(f"{name}-intervals", plots.intervals(estimates, list(METRICS.values())), caption)
        if block.tasks and pairs:
            both = {f"{x.label}|{y.label}": [block.final[x.label], block.final[y.label]] for x, y in pairs}
            probabilities = statistics.estimate(both, statistics.improvement_probability, self.reps)
            self._keep("improvement", probabilities, name)
            self.page.picture(f"{name}-improvement", plots.improvements(probabilities), IMPROVEMENT.replace("\n", " "))
            self.page.table(tables.improvements(probabilities))
        return block

    def _distributions(self, block: statistics.Block, name: str) -> None:
        if block.tasks:
            curves = statistics.estimate(block.curves, statistics.interquartile_mean, self.reps)
            self._keep("sample_efficiency", curves, name)
            caption = "Sample efficiency: higher and further left is better."
            self.page.picture(f"{name}-sample-efficiency", plots.sample_efficiency(curves), caption)
            values = np.stack(list(block.final.values()))
            taus = np.linspace(min(values.min(), 0.0), max(values.max(), 1.0), 101)
            shares = statistics.estimate(block.final, lambda x: (x[..., None] > taus).mean(axis=(0, 1)), self.reps)
            caption = "Performance profiles of final policies: higher is better."
            self.page.picture(f"{name}-profiles", plots.profiles(shares, taus), caption)

    def _curves(self, variants: list[Variant], name: str) -> None:
        names = {variant.name for variant in variants}
        if any(key[1] in names and np.isfinite(curve).any() for key, curve in self.collection.curves.items()):
            figure = plots.learning_curves(self.collection, variants)
            caption = "Raw returns of training episodes: mean over the seeds that finished, from the worst to the best."
            self.page.picture(f"{name}-learning-curves", figure, caption)

    def _keep(self, name: str, estimates: statistics.Estimates, section: str, figures: list[str] | None = None) -> None:
        for label, point in estimates.points.items():
            low, high = estimates.intervals[label]
            names: list[str] | range = figures or range(1, len(point) + 1)
            rows = {"section": section, "variant": label, "figure": names, "point": point, "low": low, "high": high}
            self.data.setdefault(name, []).append(pd.DataFrame(rows))

    def _radius(self) -> None:
        ablations = self.collection.select(lambda variant: variant.role == ABLATION)
        parent_of = {ablation.name: _parent(ablation, self.collection.variants) for ablation in ablations}
        parents = [variant for variant in self.collection.variants if variant in parent_of.values()]
        if not parents:
            return
        self.page.add("Does the adaptive radius help?", SECTION)
        self.page.add(RADIUS)
        for parent in parents:
            self.page.add(parent.label, SUBSECTION)
            children = [ablation for ablation in ablations if parent_of[ablation.name] == parent]
            pairs = [(parent, child) for child in children]
            self._compare([parent, *children], f"radius-{parent.name}", pairs)
            self._curves([parent, *children], f"radius-{parent.name}")
        table = tables.decisions(self.collection)
        if len(table):
            with self.page.fold("What the rule did"):
                self.page.add(DECISIONS)
                self.page.table(table)

    def _sensitivity(self) -> None:
        variants = {variant.name: variant for variant in self.collection.variants}
        families: dict[str, dict[float, str]] = {}
        for variant in variants.values():
            if variant.role == SENSITIVITY and variant.parent in variants:
                label = variants[variant.parent].label
                families.setdefault(label, {1.0: label})[variant.radius_factor] = variant.label
        if not families:
            return
        self.page.add("Does the initial radius matter?", SECTION)
        labels = {label for family in families.values() for label in family.values()}
        block = self._compare([variant for variant in variants.values() if variant.label in labels], "sensitivity", [])
        if block.tasks:
            self.page.add("Largest minus smallest score of the final policies over the radii:")
            self.page.table(tables.spread_over_radii(block, families))

    def _runs(self) -> None:
        runs = {key[:2] for key, updates in self.collection.updates.items() if "radius" in updates}
        if runs:
            self.page.add("Radius, ρ and KL of every run", SECTION)
        for task in [task for task in self.collection.tasks if any(run[0] == task for run in runs)]:
            variants = [variant for variant in self.collection.variants if (task, variant.name) in runs]
            with self.page.fold(task):
                figure = plots.traces(self.collection, task, variants)
                name = f"runs-{task.replace('/', '~')}"
                self.page.picture(name, figure, f"Every run on {task}. ρ is cut off beyond ±3.")

    def _cost(self) -> None:
        table = self.collection.table
        columns = ["variant", "task", "training_cpu_seconds", "n_timesteps", "total_seconds"]
        done = table[table["status"] == "finished"].reindex(columns=columns)
        self.page.add("What it costs", SECTION)
        self.page.add(f"{COST} All runs together took {done['total_seconds'].sum() / 3600:.1f} hours.")
        cost = done.assign(cost=1e5 * done["training_cpu_seconds"] / done["n_timesteps"])
        labels = {variant.name: variant.label for variant in self.collection.variants}
        means = cost.pivot_table("cost", "variant", "task").reindex(labels).rename(labels)
        self.page.table(means.map(tables.number))

    def _failures(self) -> None:
        failed = [run for run in self.collection.runs.values() if not run.is_finished]
        self.page.add("Failed runs", SECTION)
        self.page.add(f"{len(failed)} of {len(self.collection.runs)} runs failed.")
        for run in failed:
            with self.page.fold(title(run.key)):
                self.page.code(run.traceback())


def _parent(ablation: Variant, variants: list[Variant]) -> Variant | None:
    """What an ablation differs from: by name or, where a grid gives names of its own, by what it has in common."""
    has = ablation.hyperparameters.items()
    alike = [v for v in variants if v.algorithm == ablation.algorithm and v.hyperparameters.items() <= has]
    named = [variant for variant in variants if variant.name == ablation.parent]
    return next(iter([*named, *(variant for variant in alike if variant.role != ABLATION)]), None)


def write_report(
    results: Results, output: Path, references: Path = REFERENCES, reps: int = 2000, allow_mixed: bool = False
) -> Path:
    """Write page, pictures, tables and summary; arguments as on the command line. Returns the page's path."""
    check_integer("reps", reps, at_least=1)
    known = read_references(references)
    with results.reading() as runs:
        collection = collect(runs, allow_mixed)
        output.mkdir(parents=True, exist_ok=True)
        page = Page(output)
        _introduce(page, collection, results.commands())
        report = Report(page, collection, known, reps)
        report.write()
    collection.table.to_csv(output / "runs.csv", index=False, float_format="%.6g")
    for name, frames in report.data.items():
        pd.concat(frames).to_csv(output / f"{name}.csv", index=False, float_format="%.4f")
    return page.write()


def _introduce(page: Page, collection: Collection, commands: list[str]) -> None:
    records = [run.record for run in collection.runs.values()]
    seeds = _count(collection.seeds, "seed")
    size = f"{_count(collection.variants, 'variant')}, {_count(collection.tasks, 'task')}, {seeds}"
    page.add("sb3_trustregion beside stock PPO and TRPO", "# ")
    page.add(f"{size} ({', '.join(map(str, collection.seeds))}). {READING}")
    if any(record.get("backend", GYMNASIUM) != GYMNASIUM for record in records):
        page.add("EnvPool, exploration only: its versions of the tasks, not Gymnasium's.", NOTE)
    if not set(collection.seeds) <= set(EVALUATION_SEEDS):
        few = " With so few, the bootstrap intervals are too narrow." if len(collection.seeds) < FEW_SEEDS else ""
        text = f"Exploratory: {seeds}, for tuning. They show where to look, and no claim can rest on them.{few}"
        page.add(text, NOTE)
    commits = {f"`{record['commit'][:10]}`{'*' * record['modified']}" for record in records if "commit" in record}
    versions = {f"{name} {version}" for record in records for name, version in record["versions"].items()}
    made = f"Made at commit {', '.join(sorted(commits))} (* with changes) " if commits else "Made "
    page.add(f"{made}with {', '.join(sorted(versions))}, by")
    page.code("\n".join([*commands, "python -m sb3_trustregion.benchmark report FOLDER"]))


def _count(things: list[int] | list[str] | list[Variant], name: str) -> str:
    return f"{len(things)} {name}" if len(things) == 1 else f"{len(things)} {name}s"
