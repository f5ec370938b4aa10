"""The command `synthesis`: models, predict, approve, train, evaluate, gates, results and more.

No PACS is needed.

Exit codes: 0 done, 1 ran and failed, 2 bad arguments or configuration.
"""

import json
import logging
import os
import resource
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml
from rich.console import Console
from rich.table import Table

from synthesis.errors import SynthesisError, TrainingError, UntrustedModel
from synthesis.people import Person
from synthesis.registry import CARD, Metric, ModelCard, load_card, load_cards
from synthesis.types import ContrastLabel, Synthesis, Verdict, Volume

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console()

ModelsFolder = Annotated[Path, typer.Option("--models", help="Folder of model folders.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:N; auto is a GPU where there is one.")
]
Work = Annotated[Path, typer.Option(help="Folder of prepared people and progress; a run resumes.")]
DEFAULT_MODELS = Path("models")
DEFAULT_WORK = Path("training")
KIBIBYTES_PER_MEGABYTE = 1024


def main() -> None:
    """Run the command and map errors to exit codes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        app()
    except (UntrustedModel, TrainingError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except SynthesisError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


@app.command()
def models(models_folder: ModelsFolder = DEFAULT_MODELS, as_json: AsJson = False) -> None:
    """List the models with task, state and held-out figures.

    Example: synthesis models --json
    """
    cards = load_cards(models_folder)
    if as_json:
        typer.echo(json.dumps([_summary(card) for card in cards], indent=2))
        return
    table = Table("id", "method", "sources", "target", "state", "digest", "held out")
    for card in cards:
        for target, facts in card.targets.items():
            figures = [m for m in card.metrics if m.target == target]
            text = ", ".join(f"{m.name} {m.value:.4g} (n={m.n})" for m in figures)
            sources = " ".join(s for s in card.sources if s != target)
            table.add_row(
                card.id, card.method, sources, target, facts.state, card.digest[:12], text
            )
    console.print(table)


@app.command()
def predict(
    model: Annotated[str, typer.Option(help="Id of the model.")],
    source: Annotated[list[str], typer.Option(help="LABEL=PATH, NIfTI file or DICOM folder.")],
    out: Annotated[Path, typer.Option(help="NIfTI file to write.")],
    target: Annotated[str | None, typer.Option(help="Needed when the model has several.")] = None,
    uncertainty: Annotated[Path | None, typer.Option(help="NIfTI of the error band.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    models_folder: ModelsFolder = DEFAULT_MODELS,
    as_json: AsJson = False,
) -> None:
    """Synthesize one contrast from files onto the grid of the first source.

    Example: synthesis predict --model brain-any-unet25d --source T1w=t1.nii.gz --target T2w
    --out t2.nii.gz
    """
    from synthesis.engine import synthesize  # noqa: PLC0415 - listing models needs no engine

    card = load_card(models_folder, model)
    wanted = _choose_target(card, target)
    volumes = {}
    for item in source:
        label, _, path = item.partition("=")
        if label not in card.sources or not path:
            raise typer.BadParameter(f"{item!r}: wanted LABEL=PATH with LABEL in {card.sources}")
        volumes[ContrastLabel(label)] = _read(Path(path))
    synthesis = synthesize(
        volumes,
        target=wanted,
        reference=next(iter(volumes)),
        model_id=card.id,
        model_digest=card.digest,
        models_folder=models_folder,
        seed=seed,
    )
    refused = synthesis.quality.verdict is Verdict.REFUSE
    if not refused:
        _write(synthesis.volume, out)
        if uncertainty is not None and synthesis.half_width is not None:
            _write(synthesis.half_width, uncertainty)
    _report(card, synthesis, as_json=as_json)
    if refused:
        raise typer.Exit(1)


@app.command()
def approve(
    model: Annotated[str, typer.Argument(help="Id of the model.")],
    by: Annotated[str, typer.Option(help="Who approves.")],
    target: Annotated[str | None, typer.Option(help="Only this target.")] = None,
    models_folder: ModelsFolder = DEFAULT_MODELS,
) -> None:
    """Approve a candidate model's targets for this site; research targets stay research.

    A generative model whose figures on lesions are absent or poor is for research, whatever its
    card says: see `synthesis audit lesions`.

    Example: synthesis approve brain-any-unet25d --by "A. Admin"
    """
    card = load_card(models_folder, model)
    path = models_folder / model / CARD
    facts = yaml.safe_load(path.read_text())
    wanted = {name: entry for name, entry in card.targets.items() if target in (None, name)}
    changed = [name for name, entry in wanted.items() if entry.state == "candidate"]
    for name, entry in wanted.items():
        if entry.lock:
            typer.echo(f"{model}: {name} is for research: {entry.lock}")
    for name in changed:
        facts["targets"][name]["state"] = "approved"
    path.write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100))
    typer.echo(f"{model}: approved by {by}: {', '.join(changed) or 'nothing to approve'}")


@app.command()
def prepare(
    experiment: Annotated[Path, typer.Argument(help="Experiment file.")],
    work: Work = DEFAULT_WORK,
) -> None:
    """Prepare the people whom an experiment learns from, so that training needs no images.

    The folder --work may then be carried to a machine with a GPU.

    Example: synthesis prepare config/experiments/brain-any-unet25d.yaml
    """
    from synthesis.training import read_cases, read_experiment  # noqa: PLC0415

    cases = read_cases(read_experiment(experiment), data_folder=_data_folder(), work=work)
    for split, members in cases.items():
        typer.echo(f"{split}: {len(members)} people prepared below {work}")


@app.command()
def train(
    experiment: Annotated[Path, typer.Argument(help="Experiment file.")],
    work: Work = DEFAULT_WORK,
    minutes: Annotated[float | None, typer.Option(help="Stop after this many minutes.")] = None,
    without: Annotated[
        str | None,
        typer.Option(
            help="Leave out people whose subject begins so; judge on them, write no model."
        ),
    ] = None,
    device: Device = "auto",
    models_folder: ModelsFolder = DEFAULT_MODELS,
) -> None:
    """Train a model and write its folder; a stopped run goes on where it was.

    People who are prepared below --work need no images: see `synthesis prepare`. What torch trains
    leaves curve.csv, and validation.png with pictures of the validation people, below --work.

    Example: synthesis train config/experiments/brain-any-unet25d.yaml
    """
    from synthesis.progress import show_progress  # noqa: PLC0415
    from synthesis.radiographs import is_projected, train_projected  # noqa: PLC0415
    from synthesis.training import judge_without, read_experiment, register  # noqa: PLC0415
    from synthesis.training import train as train_on_images  # noqa: PLC0415

    settings = read_experiment(experiment)
    budget = timedelta(minutes=minutes) if minutes else None
    images = _data_folder(must_exist=False)
    if is_projected(settings) and without is not None:
        raise typer.BadParameter("--without: a model of projected people is not trained so")
    run = train_projected if is_projected(settings) else train_on_images
    if without is not None:
        with show_progress(settings.model, Console(stderr=True)) as report:
            rows = judge_without(
                settings,
                without,
                data_folder=images,
                work=work,
                budget=budget,
                device=device,
                report=report,
            )
        _print_rows(rows)
        return
    with show_progress(settings.model, Console(stderr=True)) as report:
        learnt = run(
            settings, data_folder=images, work=work, budget=budget, device=device, report=report
        )
    folder = register(settings, learnt, models_folder)
    typer.echo(
        f"wrote {folder}; now: synthesis gates --model {settings.model} --work {work}, "
        f"synthesis evaluate --model {settings.model} --write"
    )


@app.command()
def benchmark(
    model: Annotated[
        list[str] | None, typer.Option(help="Id of a model; every model of volumes if none.")
    ] = None,
    size: Annotated[str, typer.Option(help="Slices, rows and columns.")] = "160x256x256",
    device: Device = "auto",
    repeats: Annotated[int, typer.Option(help="Timed runs; the median is printed.")] = 3,
    models_folder: ModelsFolder = DEFAULT_MODELS,
    as_json: AsJson = False,
) -> None:
    """Time models on a rendered head of 1 mm voxels: network, whole path, beside MONAI.

    Example: synthesis benchmark --model brain-any-unet25d
    """
    from synthesis.speed import measure_speed  # noqa: PLC0415

    slices, rows, columns = (int(n) for n in size.split("x"))
    found = []
    volumes = [card.id for card in load_cards(models_folder) if not card.is_flat]
    for model_id in model or volumes:
        speed = measure_speed(
            load_card(models_folder, model_id),
            models_folder=models_folder,
            shape=(slices, rows, columns),
            device=device,
            repeats=repeats,
        )
        found.append(speed)
        if as_json:
            continue
        how = ", ".join(str(part) for part in speed.backend.values())
        typer.echo(f"{model_id}, {size} voxels of 1 mm, {speed.machine}")
        typer.echo(f"  network     {speed.network_seconds:.2f} s   {how}")
        steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in speed.steps.items())
        typer.echo(f"  whole path  {speed.whole_seconds:.2f} s   {steps}")
        typer.echo(f"  memory      {speed.peak_mb:.0f} MB at most")
        if speed.monai_seconds is not None:
            ratio = speed.monai_seconds / speed.network_seconds
            typer.echo(
                f"  MONAI       {speed.monai_seconds:.2f} s   the same network in float32 by its "
                f"SlidingWindowInferer: {ratio:.1f} times as long, "
                f"{speed.monai_psnr_db:.1f} dB between the answers"
            )
    if as_json:
        typer.echo(json.dumps([speed.as_dict() for speed in found], indent=2))


@app.command()
def benchmark_forest(
    trees: Annotated[int, typer.Option(help="Trees of the forest.")] = 60,
    minimum_leaf: Annotated[int, typer.Option(help="Fewest training voxels in a leaf.")] = 20,
    repeats: Annotated[int, typer.Option(help="Timed runs; medians are printed.")] = 3,
) -> None:
    """Time our walk of a random forest, scikit-learn's of the same one, and the bound of both.

    Example: synthesis benchmark-forest
    """
    from synthesis.speed import measure_forest  # noqa: PLC0415

    found = measure_forest(trees=trees, minimum_leaf=minimum_leaf, repeats=repeats)
    typer.echo(
        f"{trees} trees, {found.nodes} nodes, {found.visits:.0f} passed for a voxel; one thread\n"
        f"ours {found.ours:,.0f} voxels/s, scikit-learn {found.scikit_learn:,.0f} "
        f"({found.ours / found.scikit_learn:.2f} times as fast), {found.in_order:,.0f} with voxels "
        f"in order; lookups alone {found.bound:,.0f}; answers differ by "
        f"{found.largest_difference:.1g}"
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="Id of the model.")],
    manifest: Annotated[
        Path | None,
        typer.Option(help="People, with their splits; those of config/experiments if none."),
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option(help="Only these people; the card's test people if none.")
    ] = None,
    all_subsets: Annotated[bool, typer.Option(help="Every subset of the sources.")] = False,
    write: Annotated[bool, typer.Option(help="Write the summary into the card.")] = False,
    models_folder: ModelsFolder = DEFAULT_MODELS,
    as_json: AsJson = False,
) -> None:
    """Judge a model on held-out people, one row each, beside the baselines.

    A model of radiographs is judged on exposures that are projected from the CTs of the people.

    Example: synthesis evaluate --model brain-any-unet25d
    """
    from synthesis.evaluation import evaluate as judge  # noqa: PLC0415
    from synthesis.evaluation import summarize  # noqa: PLC0415
    from synthesis.people import read_manifest  # noqa: PLC0415

    card = load_card(models_folder, model)
    wanted = set(subject or card.training.test)
    default = Path("config/experiments") / ("projected.yaml" if card.is_flat else "people.yaml")
    people = [p for p in read_manifest(manifest or default).people if p.subject in wanted]
    if card.is_flat:
        projected, summary = _judge_projected(card, people, models_folder, as_json=as_json)
        _conclude(card, projected, summary, models_folder, write=write, as_json=as_json)
        return
    rows = []
    for row in judge(
        card,
        people,
        models_folder=models_folder,
        data_folder=_data_folder(),
        all_subsets=all_subsets,
    ):
        rows.append(row)
        if not as_json:
            figures = f"{row.psnr_db:.2f} dB (copy {row.copy_psnr_db:.2f})" if row.psnr_db else ""
            mae = f" MAE {row.mae:.1f} (baseline {row.copy_mae:.1f})" if row.mae else ""
            sources = "+".join(row.sources)
            console.print(
                f"{row.subject}: {sources} → {row.target}: {row.verdict} {figures}{mae}"
                f" {'; '.join(row.reasons)}"
            )
    _conclude(
        card,
        [row.as_dict() for row in rows],
        summarize(rows),
        models_folder,
        write=write,
        as_json=as_json,
    )


def _judge_projected(
    card: ModelCard, people: list[Person], models_folder: Path, *, as_json: bool
) -> tuple[list[dict[str, object]], list[Metric]]:
    """Return the rows of a model of radiographs, and their means."""
    from synthesis.radiographs import judge_projected, summarize_projected  # noqa: PLC0415

    rows = []
    for row in judge_projected(
        card, people, models_folder=models_folder, data_folder=_data_folder()
    ):
        rows.append(row)
        if not as_json:
            console.print(
                f"{row.subject}: {row.exposures} exposures, {row.refused} refused, "
                f"{row.psnr_db:.2f} dB (linear {row.linear_psnr_db:.2f}) MAE {row.mae:.1f} "
                f"(linear {row.linear_mae:.1f}, constant {row.constant_mae:.1f}) where bone is "
                f"{row.bone_mae:.1f} (linear {row.linear_bone_mae:.1f}) SSIM {row.ssim:.3f} "
                f"band holds {row.band_coverage:.2f}"
            )
    return [asdict(row) for row in rows], summarize_projected(rows)


def _conclude(
    card: ModelCard,
    rows: list[dict[str, object]],
    summary: list[Metric],
    models_folder: Path,
    *,
    write: bool,
    as_json: bool,
) -> None:
    """Print the means of an evaluation, and write them into the card."""
    from synthesis.evaluation import write_metrics  # noqa: PLC0415

    if write:
        write_metrics(models_folder / card.id / CARD, summary)
    if as_json:
        metrics = [metric.model_dump(mode="json") for metric in summary]
        typer.echo(json.dumps({"rows": rows, "summary": metrics}, indent=2))
        return
    table = Table("target", "n", "metric", "model", "baseline")
    for entry in summary:
        table.add_row(
            entry.target,
            str(entry.n),
            entry.name,
            f"{entry.value:.4g}",
            "" if entry.baseline_value is None else f"{entry.baseline_value:.4g} {entry.baseline}",
        )
    console.print(table)


@app.command()
def gates(
    model: Annotated[str, typer.Option(help="Id of the model.")],
    manifest: Annotated[Path, typer.Option(help="People, with their splits.")] = Path(
        "config/experiments/people.yaml"
    ),
    work: Work = DEFAULT_WORK,
    models_folder: ModelsFolder = DEFAULT_MODELS,
) -> None:
    """Set the limits of a model's quality gate anew from the people of its training.

    Test people are not looked at. The table and its SHA-256 in the card are written.

    Example: synthesis gates --model brain-any-unet25d
    """
    from synthesis.gates import write_table  # noqa: PLC0415
    from synthesis.people import read_manifest  # noqa: PLC0415

    table = write_table(
        load_card(models_folder, model),
        read_manifest(manifest),
        models_folder=models_folder,
        data_folder=_data_folder(must_exist=False),
        work=work,
    )
    for name in ("farthest", "agreement", "disagreement"):
        typer.echo(f"{name}: {table.get(name, 'not judged')}")
    typer.echo(f"posture: {'judged' if 'shape' in table else 'not judged'}")
    typer.echo(f"wrote {models_folder / model}; its digest is another one now")


@app.command()
def results(
    table: Annotated[
        list[Path] | None, typer.Option(help="Table files; all of the experiments' when none.")
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only rows of this name.")] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Only rows of this fold.")] = None,
    page_only: Annotated[bool, typer.Option(help="Compute nothing, write the page.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the rows' JSON.")] = Path("results"),
    page: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/results.md"),
    work: Work = DEFAULT_WORK,
    device: Device = "cpu",
) -> None:
    """Compute the rows of the tables that are absent or stale, and write the page of all rows.

    A stopped command goes on with the row that it was at, and several may run beside one another.
    With --device cuda the rows that have a recipe for a GPU are computed by it.

    Example: synthesis results --row copy --row linear --fold fixed
    """
    from synthesis.results import compute_absent  # noqa: PLC0415
    from synthesis.results_page import write_page  # noqa: PLC0415

    tables = table or sorted(Path("config/experiments/results").glob("*.yaml"))
    if not tables:
        raise typer.BadParameter("no table below config/experiments/results; name one by --table")
    failed = False
    for path in [] if page_only else tables:
        for done, outcome in compute_absent(
            path,
            results=out,
            work=work,
            data_folder=_data_folder(must_exist=False),
            device=device,
            only=row or (),
            folds=fold or (),
        ):
            typer.echo(f"{done.table}, {done.name}, {done.fold.name}: {outcome}")
            failed = failed or outcome.startswith("failed")
            write_page(tables, out, page)
    write_page(tables, out, page)
    if failed:
        raise typer.Exit(1)


@app.command()
def audit(
    kind: Annotated[str, typer.Argument(help="robustness, lesions, use, memory or steps.")],
    model: Annotated[list[str] | None, typer.Option(help="Id of a model.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Name of a row that was learnt.")] = None,
    table: Annotated[Path, typer.Option(help="Table that names people and tasks.")] = Path(
        "config/experiments/results/brain.yaml"
    ),
    task: Annotated[list[str] | None, typer.Option(help="Only these of its tasks.")] = None,
    write: Annotated[bool, typer.Option(help="Write figures on lesions into the cards.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the rows' JSON.")] = Path("results"),
    page: Annotated[Path, typer.Option(help="Page to write.")] = Path("docs/audits.md"),
    work: Work = DEFAULT_WORK,
    models_folder: ModelsFolder = DEFAULT_MODELS,
) -> None:
    """Audit models and rows on the test people of a table, and write the page of all audits.

    Without --model and --row only the page is written. What is there is not measured again; a
    stopped audit goes on with the person that it was at.

    Example: synthesis audit robustness --model brain-any-unet25d --row unet25d-short
    """
    from synthesis.audits import find_model, find_row, list_kept, run  # noqa: PLC0415
    from synthesis.audits_page import summarize_lesions, write_page  # noqa: PLC0415
    from synthesis.evaluation import write_metrics  # noqa: PLC0415

    models = [find_model(each, table, models_folder) for each in model or ()]
    for subject in [*models, *(find_row(each, table, work, "cpu") for each in row or ())]:
        for done in run(
            kind,
            subject,
            results=out,
            work=work,
            data_folder=_data_folder(must_exist=False),
            only=task or (),
        ):
            typer.echo(done)
    if write:
        for subject in models:
            write_metrics(models_folder / subject.name / CARD, summarize_lesions(subject, out))
    write_page(list_kept(out, table.parent, work, models_folder), out, page)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        sources = "+".join(row["sources"])
        typer.echo(
            f"{row['subject']}: {sources} → {row['target']}: {row['psnr_db']:.2f} dB, "
            f"after a linear fit {row['psnr_db_after_linear_fit']:.2f} dB, SSIM {row['ssim']:.3f}"
        )


def _data_folder(*, must_exist: bool = True) -> Path:
    folder = Path(os.environ.get("DICOM_NODE_DATA", "../shared/data"))
    if must_exist and not folder.is_dir():
        raise TrainingError(f"no data folder at {folder}; set DICOM_NODE_DATA")
    return folder


def _choose_target(card: ModelCard, target: str | None) -> ContrastLabel:
    if target is None and len(card.targets) == 1:
        return ContrastLabel(next(iter(card.targets)))
    if target is None or target not in card.targets:
        raise typer.BadParameter(f"--target {target}: wanted one of {', '.join(card.targets)}")
    return ContrastLabel(target)


def _read(path: Path) -> Volume:
    from synthesis.evaluation import volume_of  # noqa: PLC0415
    from synthesis.preparation import read_image  # noqa: PLC0415

    return volume_of(read_image(path.parent, path.name))


def _write(volume: Volume, path: Path) -> None:
    import SimpleITK as sitk  # noqa: N813, PLC0415

    from synthesis.preprocessing import to_image  # noqa: PLC0415

    sitk.WriteImage(to_image(volume), path)


def _report(card: ModelCard, synthesis: Synthesis, *, as_json: bool) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIBIBYTES_PER_MEGABYTE
    document = {
        "seconds": round(float(np.sum(list(synthesis.seconds.values()))), 2),
        "peak_rss_mb": round(peak),
        "quality": {
            "verdict": str(synthesis.quality.verdict),
            "reasons": list(synthesis.quality.reasons),
        },
        "model_digest": card.digest,
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        console.print(document)


def _summary(card: ModelCard) -> dict[str, object]:
    return {
        "id": card.id,
        "method": card.method,
        "tasks": [
            {
                "sources": [s for s in card.sources if s != target],
                "target": target,
                "state": facts.state,
            }
            for target, facts in card.targets.items()
        ],
        "licence": card.licence,
        "digest": card.digest,
        "metrics": [metric.model_dump() for metric in card.metrics],
    }
