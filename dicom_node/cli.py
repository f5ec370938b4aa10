"""The command `dicom-node`: run the node, check and explain it, see where things stand, decide.

Exit codes: 0 done, 1 ran and failed, 2 bad arguments or configuration. With `--json` one JSON
document goes to standard output and nothing else; log and messages go to standard error.
"""

import getpass
import json
import platform
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import pydicom
import typer
from rich.console import Console

from dicom_node import __version__, decisions, doctor, node, statement, terminal
from dicom_node.admin.accounts import Accounts, Role
from dicom_node.admin.server import AdminServer
from dicom_node.assembly import build_judge
from dicom_node.audit import configure_logging
from dicom_node.backfill import Backfill, list_days
from dicom_node.dicomweb import show_secret
from dicom_node.errors import ConfigurationError, DicomNodeError, StorageError
from dicom_node.explain import explain_folder, explain_listed, explain_study
from dicom_node.export import MANIFEST, Export
from dicom_node.identifiers import WRITER_VERSION
from dicom_node.json_schema import FOLDER, write_schemas
from dicom_node.ledger import Ledger
from dicom_node.query import find_asked
from dicom_node.routing import Judge
from dicom_node.settings import Configuration, load
from dicom_node.status import read_status
from dicom_node.store import Store
from dicom_node.tls import inspect_own
from synthesis.errors import SynthesisError
from synthesis.registry import load_cards

FAILED = 1
WRONG = 2
"""Exit code for bad arguments and a wrong configuration."""

app = typer.Typer(
    help="A DICOM node that completes studies. Research use only; no medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

accounts = typer.Typer(
    help="Who may log in to the admin page.\n\nExample: dicom-node account list",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(accounts, name="account")

ConfigFolder = Annotated[
    Path,
    typer.Option("--config", envvar="DICOM_NODE_CONFIG", help="Folder of the YAML files."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Dotted key over node.yaml; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
JobOrStudy = Annotated[
    str, typer.Argument(metavar="JOB|STUDY_UID", help="As `dicom-node status` shows it.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="As `dicom-node status` shows it.")]
By = Annotated[str, typer.Option("--by", metavar="NAME", help="Who decides; kept for good.")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="Why; kept for good.")]
DEFAULT_CONFIG = Path("config")
DAYS = ["%Y-%m-%d"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and end with its exit code.

    Raises:
        SystemExit: always.
    """
    try:
        app(arguments)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(WRONG)
    except (DicomNodeError, SynthesisError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(FAILED)
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError is a fault of the program, not an answer
            raise
        sys.stderr.write(f"{error}\n")
        sys.exit(FAILED)


@app.command()
def serve(config: ConfigFolder = DEFAULT_CONFIG, overrides: Overrides = None) -> None:
    """Run the node in the foreground until SIGTERM or Ctrl-C.

    Example: dicom-node serve --config config --set receiver.port=11112
    """
    configure_logging()
    configuration = load(config, overrides or [])

    def announce(at: node.Addresses) -> None:
        typer.echo(f"ready dicom={at.dicom[0]}:{at.dicom[1]} web={at.web[0]}:{at.web[1]}")
        sys.stdout.flush()

    node.serve(configuration, overrides or [], announce)


@app.command()
def check(
    study_folder: Annotated[Path | None, typer.Argument(help="Says what rules do with it.")] = None,
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Validate the configuration; with STUDY_FOLDER also tell what each rule would do.

    Example: dicom-node check --config config ~/studies/brain
    """
    _set_up_quiet()
    configuration = load(config, overrides or [])
    cards = load_cards(configuration.node.models_folder)
    problems = doctor.find_model_problems(configuration, {card.id for card in cards})
    if told := "\n".join(dict.fromkeys(problems)):
        raise ConfigurationError(told)
    if configuration.node.receiver.tls is not None:
        inspect_own(configuration.node.receiver.tls)
    for alias, peer in configuration.node.peers.items():
        if peer.dicomweb is not None:
            show_secret(peer.dicomweb, f"peers.{alias}.dicomweb")
    studies = []
    if study_folder is not None:
        with _progress("reading headers", as_json):
            studies = explain_folder(
                _existing(study_folder), _build_judge(configuration), node.now()
            )
    rules = [
        {"rule": rule.name, "mode": rule.mode, "says": rule.says, "owner": rule.owner}
        for rule in configuration.routing.in_order()
    ]
    if as_json:
        _print_json({"digest": configuration.digest, "rules": rules, "studies": studies})
        return
    terminal.print_rules(rules)
    for study in studies:
        terminal.print_explanation(study)
    typer.echo(f"the configuration in {configuration.folder} is valid")


@app.command()
def explain(
    study: Annotated[str, typer.Argument(metavar="[STUDY_UID|FOLDER]")] = "",
    query: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of a study at the PACS; repeatable."),
    ] = None,
    peer: Annotated[str, typer.Option(help="Alias of the peer that is queried.")] = "pacs",
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Tell why the node does what it does with a study; sends and writes nothing.

    A study is named by its UID when the node has received it, by a folder of files, or by a query
    of the PACS, whose series are labelled by what they are called. Several studies give a JSON
    list.

    Example: dicom-node explain 1.2.840.113619.2.1 --config config --json
    """
    _set_up_quiet()
    configuration = load(config, overrides or [])
    judge = _build_judge(configuration)
    if bool(study) == bool(query):
        raise ConfigurationError("explain : seen neither or both, wanted a study or --query")
    with _progress("reading headers", as_json):
        if query:
            keys = dict(each.partition("=")[::2] for each in query)
            walk = _build_walk(configuration, peer, judge)
            found = [
                explain_listed(uid, listed, judge, node.now()) for uid, listed, _ in walk.find(keys)
            ]
        elif decisions.is_study(study) and not Path(study).exists():
            with _open_ledger(configuration) as ledger:
                store = Store(configuration.node.store_folder)
                found = [explain_study(study, ledger, store, judge, node.now())]
        else:
            found = explain_folder(_existing(Path(study)), judge, node.now())
    if as_json:
        _print_json(found[0] if len(found) == 1 else found)
        return
    for each in found:
        terminal.print_explanation(each)


@app.command()
def status(
    study: Annotated[str | None, typer.Argument(metavar="STUDY_UID")] = None,
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show studies, jobs and deliveries with state, age, attempts and last reason.

    Example: dicom-node status --config config
    """
    _set_up_quiet()
    with _open_ledger(load(config, overrides or [])) as ledger:
        found = read_status(ledger, study, node.now())
    if as_json:
        _print_json(found)
    else:
        terminal.print_status(found)


@app.command()
def requeue(
    named: JobOrStudy,
    by: By,
    why: Why,
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
) -> None:
    """Let a held or failed job run again; let a done one try again what its peers did not take.

    A study is judged again, by the rules as they are now.

    Example: dicom-node requeue 6f1d… --by "M. Meier" --why "the model folder is mounted again"
    """
    _decide(config, overrides, lambda ledger: decisions.requeue(ledger, named, by, why))


@app.command()
def release(
    held: JobOrStudy,
    by: By,
    why: Why,
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
) -> None:
    """Let the result of a held job go out; or go on with a held study (uid_conflict, peer_silent).

    The study is judged again, with the content of each instance that came first, and the PACS is
    asked again.

    Example: dicom-node release 6f1d… --by "M. Meier" --why "looked at; the warning is the implant"
    """
    _decide(config, overrides, lambda ledger: decisions.release(ledger, held, by, why))


@app.command()
def reject(
    held: JobOrStudy,
    by: By,
    why: Why,
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
) -> None:
    """Close a held job, whose result never goes out; or a held study, of which nothing is made.

    A study that was closed opens again when something new of it comes.

    Example: dicom-node reject 6f1d… --by "M. Meier" --why "motion"
    """
    _decide(config, overrides, lambda ledger: decisions.reject(ledger, held, by, why))


@app.command()
def backfill(
    first: Annotated[datetime, typer.Option("--from", formats=DAYS, help="The first day.")],
    last: Annotated[datetime, typer.Option("--to", formats=DAYS, help="The last day.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what it would do.")] = False,
    peer: Annotated[str, typer.Option(help="Alias of the peer that is asked.")] = "pacs",
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Complete what a PACS holds of some days, when the node has nothing else to do.

    Tells first what the studies lack, by what their series are called: an estimate, because the
    node labels by physics once a study is here. Then has each study that lacks something sent to
    the node that runs on this configuration. May be stopped, and goes on where it was.

    Example: dicom-node backfill --from 2026-01-01 --to 2026-01-31 --dry-run
    """
    _set_up_quiet()
    configuration = load(config, overrides or [])
    if peer not in find_asked(configuration.node):
        raise ConfigurationError(f"--peer : seen {peer!r}, wanted a peer with the role query")
    days = list(list_days(first.date(), last.date()))
    walk = _build_walk(configuration, peer, _build_judge(configuration))
    with _progress("asking", as_json):
        tally = walk.estimate(days)
    if as_json:
        _print_json({"rules": tally.as_document()})
    else:
        for line in tally.describe():
            typer.echo(line)
    if dry_run:
        return
    with _open_ledger(configuration) as ledger, _progress("fetching", as_json) as tell:
        for number, study in enumerate(walk.run(days, ledger), 1):
            tell(f"{number} studies, last {study}")


@app.command()
def export(
    query: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="Of studies at the PACS; repeatable.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Empty folder to write.")],
    peer: Annotated[str, typer.Option(help="Alias of the peer that is asked.")] = "pacs",
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Write the complete studies of a PACS as de-identified volumes, for `synthesis train`.

    The node must be running: it receives what the PACS sends.

    Example: dicom-node export --query StudyDate=20260101-20260131 --out ~/brains
    """
    _set_up_quiet()
    configuration = load(config, overrides or [])
    if peer not in find_asked(configuration.node):
        raise ConfigurationError(f"--peer : seen {peer!r}, wanted a peer with the role query")
    judge = _build_judge(configuration)
    walk = _build_walk(configuration, peer, judge)
    store = Store(configuration.node.store_folder)
    keys = dict(each.partition("=")[::2] for each in query)
    with _open_ledger(configuration) as ledger, _progress("exporting", as_json) as tell:
        run = Export(walk, judge, ledger, store, out, by=getpass.getuser())
        for people in run.run(keys):
            tell(f"{people} people")
    if as_json:
        _print_json({"exported": run.tally.exported, "left_out": dict(run.tally.left_out)})
    else:
        typer.echo(f"{run.tally.describe()}; manifest {out / MANIFEST}")


@app.command()
def withdraw(
    job: JobId,
    by: By,
    why: Why,
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
) -> None:
    """Take back a result that was sent and is not wanted any more (`when_late: ask` or `keep`).

    The peers that took it get a Key Object Selection "Rejected for Quality Reasons".

    Example: dicom-node withdraw 6f1d… --by "M. Meier" --why "the FLAIR was acquired after all"
    """
    _set_up_quiet()
    configuration = load(config, overrides or [])
    store = Store(configuration.node.store_folder)
    with _open_ledger(configuration) as ledger:
        decisions.withdraw(ledger, store, configuration.node.installation, job, by, why)


@app.command()
def admin(config: ConfigFolder = DEFAULT_CONFIG, overrides: Overrides = None) -> None:
    """Serve the admin page in the foreground until SIGTERM or Ctrl-C.

    It runs beside the node, and without it. See docs/admin.md.

    Example: dicom-node admin --config config
    """
    configure_logging()
    server = AdminServer(load(config, overrides or []), node.now)
    typer.echo(f"ready admin={server.open()}")
    sys.stdout.flush()
    server.run()


@accounts.command(name="set")
def set_account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Kept with all that it decides.")],
    role: Annotated[
        Role, typer.Option(help="viewer looks; operator decides, too; admin sees who did what.")
    ],
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
) -> None:
    """Make an account, or give one another password and role.

    The password is asked for, or is the first line of standard input.

    Example: dicom-node account set "M. Meier" --role operator
    """
    kept = _open_accounts(config, overrides)
    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\n")
    kept.put(name, role, password, node.now())
    _note_account("account.set", name, config, overrides)


@accounts.command(name="remove")
def remove_account(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    config: ConfigFolder = DEFAULT_CONFIG,
    overrides: Overrides = None,
) -> None:
    """Take an account away; who is logged in with it is logged out.

    Example: dicom-node account remove "M. Meier"
    """
    _open_accounts(config, overrides).remove(name)
    _note_account("account.removed", name, config, overrides)


@accounts.command(name="list")
def list_accounts(
    config: ConfigFolder = DEFAULT_CONFIG, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Print who may log in.

    Example: dicom-node account list
    """
    found = _open_accounts(config, overrides).read()
    if as_json:
        _print_json({name: {"role": account.role} for name, account in found.items()})
        return
    for name, account in found.items():
        typer.echo(f"{name}: {account.role}, since {account.changed_at:%Y-%m-%d}")


@app.command(name="doctor")
def examine(
    config: ConfigFolder = DEFAULT_CONFIG, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Try out disk, clock, ledger, TLS, peers and models; print what to enter at the PACS.

    Example: dicom-node doctor --config config
    """
    _set_up_quiet()
    configuration = load(config, overrides or [])
    pool = node.build_executor(configuration.node, doctor.TRIAL_LIMIT)
    findings = []
    with _progress("trying out", as_json) as tell:
        for finding in doctor.examine(configuration, pool):
            findings.append(finding)
            tell(f"{finding.check}: {finding.state}")
    pool.shutdown()
    document = doctor.as_document(findings, configuration)
    if as_json:
        _print_json(document)
    else:
        terminal.print_examination(document)
    if any(finding.state is doctor.State.FAILED for finding in findings):
        raise typer.Exit(FAILED)


@app.command()
def conformance(
    config: ConfigFolder = DEFAULT_CONFIG, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Print the DICOM Conformance Statement (PS3.2) of a node with this configuration, in Markdown.

    With --json only what it accepts and proposes.

    Example: dicom-node conformance --config config > statement.md
    """
    _set_up_quiet()
    configuration = load(config, overrides or [])
    if as_json:
        _print_json(statement.describe(configuration))
    else:
        typer.echo(statement.write(configuration), nl=False)


@app.command()
def schema(
    folder: Annotated[Path, typer.Argument(help="Where the JSON Schemas are written.")] = (
        DEFAULT_CONFIG / FOLDER
    ),
) -> None:
    """Write JSON Schemas of the configuration files, by which editors complete and mark mistakes.

    Example: dicom-node schema config/schema
    """
    for path in write_schemas(folder):
        typer.echo(str(path))


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the versions of the node, of what it writes, and of what it stands on.

    Example: dicom-node version --json
    """
    versions = {
        "dicom_node": __version__,
        "writer": WRITER_VERSION,
        "python": platform.python_version(),
        "pydicom": pydicom.__version__,
    }
    if as_json:
        _print_json(versions)
    else:
        typer.echo(" ".join(f"{name} {number}" for name, number in versions.items()))


def _open_accounts(config: Path, overrides: list[str] | None) -> Accounts:
    _set_up_quiet()
    return Accounts(load(config, overrides or []).node.data_folder)


def _note_account(event: str, name: str, config: Path, overrides: list[str] | None) -> None:
    """Keep who changed an account; before the first start of the node there is nowhere to."""
    with suppress(StorageError), _open_ledger(load(config, overrides or [])) as ledger:
        ledger.note_command(event, getpass.getuser(), account=name)


def _decide(config: Path, overrides: list[str] | None, decide: Callable[[Ledger], None]) -> None:
    _set_up_quiet()
    with _open_ledger(load(config, overrides or [])) as ledger:
        decide(ledger)


def _set_up_quiet() -> None:
    """Let only what is grave reach standard error: the answer is on standard output."""
    configure_logging("ERROR")


def _open_ledger(configuration: Configuration) -> Ledger:
    return Ledger(configuration.node.ledger_url, node.now).open(create=False)


def _build_walk(configuration: Configuration, peer: str, judge: Judge) -> Backfill:
    """Return what asks a peer, and keeps in the ledger that it did where there is one."""

    def note(keys: Mapping[str, str]) -> None:
        with suppress(StorageError), _open_ledger(configuration) as ledger:
            ledger.note_query(getpass.getuser(), peer, keys)

    return Backfill(peer, configuration.node, judge, node.now, note)


def _build_judge(configuration: Configuration) -> Judge:
    """Return what decides, under this installation's UUID where there is one already."""
    store = Store(configuration.node.store_folder)
    installed = store.path("installation").is_file()
    namespace = configuration.node.installation
    if namespace is None:
        namespace = store.namespace() if installed else uuid.UUID(int=0)
    return build_judge(configuration, load_cards(configuration.node.models_folder), namespace)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        # Its name may be a patient's: the person who typed it knows it.
        raise ConfigurationError("STUDY_FOLDER : seen no folder, wanted one with DICOM files")
    return folder


@contextmanager
def _progress(what: str, as_json: bool) -> Iterator[Callable[[str], None]]:
    """Show on a terminal that something goes on; the block may tell how far it is."""
    console = Console(stderr=True, quiet=as_json or not sys.stdout.isatty())
    with console.status(what) as spinner:
        yield lambda step: spinner.update(f"{what}: {step}")


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
