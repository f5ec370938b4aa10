import io
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from dicom_node.cli import main
from dicom_node.jobs import JobState
from dicom_node.ledger import Job
from doubles.bench import CONFIGURATION, Bench
from doubles.certificates import make_authority, make_certificate
from doubles.models import write_copying_model
from doubles.series import make_series, write_files

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _keep_logging_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_node.cli.configure_logging", lambda *_: None)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    write_copying_model(tmp_path / "models")
    write_copying_model(tmp_path / "models", "limb-ct-boosting")
    bench = Bench(tmp_path / "data", tmp_path / "models")
    yield bench
    bench.ledger.close()


@pytest.fixture
def run(bench: Bench, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, overrides: Sequence[str] = bench.overrides) -> tuple[int, str, str]:
        sets = [word for each in overrides for word in ("--set", each)]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--config", str(CONFIGURATION), *sets])
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


@pytest.fixture
def held(bench: Bench) -> Job:
    bench.receive(make_series("T1w"))
    bench.judge()
    job = bench.claim("FLAIR")
    bench.ledger.refuse_job(job.plan.plan_id, job.attempt, ["the image is noise"])
    return job


def test_version_is_one_json_document(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["version", "--json"])

    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["dicom_node"]


def test_valid_configuration_passes_the_check(run: Run):
    status, out, _ = run("check", "--json")

    assert status == 0
    rules = {each["rule"]: each["mode"] for each in json.loads(out)["rules"]}
    assert rules["brain-mr-complete"] == "send"


def test_check_tells_what_rules_would_do_with_a_folder(run: Run, tmp_path: Path):
    write_files(make_series("T1w"), tmp_path / "study")

    status, out, _ = run("check", str(tmp_path / "study"), "--json")

    assert status == 0
    assert json.loads(out)["studies"][0]["plans"]


def test_wrong_setting_ends_with_2_and_names_file_key_seen_and_wanted(run: Run):
    status, out, err = run("check", overrides=["receiver.port=high"])

    assert (status, out) == (2, "")
    assert err.startswith('node.yaml: receiver.port : seen "high", wanted ')


def test_rule_whose_model_is_not_there_ends_with_2(run: Run, bench: Bench, tmp_path: Path):
    status, _, err = run("check", overrides=[*bench.overrides, f"models_folder={tmp_path}/none"])

    assert status == 2
    assert "brain-any-unet25d" in err


@pytest.mark.integration
def test_key_that_others_can_read_ends_with_2(run: Run, bench: Bench, tmp_path: Path):
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "node")
    tls = f"receiver.tls={{certificate: {certificate}, key: {key}, ca: {authority}}}"
    assert run("check", overrides=[*bench.overrides, tls])[0] == 0
    key.chmod(0o644)

    status, _, err = run("check", overrides=[*bench.overrides, tls])

    assert status == 2
    assert err.startswith(f"node.yaml: receiver.tls.key : seen {key} (mode 0644")


def test_unknown_command_ends_with_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["heal"])

    assert ended.value.code == 2


def test_explain_prints_the_contract_keys(run: Run, tmp_path: Path):
    write_files(make_series("T1w"), tmp_path / "study")

    status, out, _ = run("explain", str(tmp_path / "study"), "--json")

    assert status == 0
    told = json.loads(out)
    assert set(told) == {"study_instance_uid", "series", "rules", "slots", "plans", "refusals"}


def test_explain_and_status_print_tables_without_json(run: Run, held: Job):
    uid = held.plan.study_instance_uid

    for command in ("explain", "status"):
        status, out, _ = run(command, uid)

        assert status == 0
        assert uid in out


def test_status_tells_what_shadow_mode_found_of_each_scanner(run: Run, bench: Bench):
    bench.receive(make_series("T1w"))
    bench.judge()
    job = bench.claim("FLAIR")
    scanner = {"manufacturer": "ACME", "model_name": "Magnet 3", "field_strength": 3}
    figures = {"psnr_db": 21.5, "ssim": 0.625, "mae": 80.0}
    assert bench.ledger.record_derived(
        job.plan.plan_id,
        job.attempt,
        [],
        quality={"verdict": "pass", "comparison": {**scanner, **figures}},
        seconds={},
        record=[],
    )

    status, out, _ = run("status")

    assert status == 0
    for word in ("ACME", "Magnet 3", "21.5 (21.5 to 21.5)", "0.625 (0.625 to 0.625)"):
        assert word in out
    told = json.loads(run("status", "--json")[1])["shadow"]
    assert [(each["model_name"], each["compared"]) for each in told] == [("Magnet 3", 1)]


def test_explain_of_an_unknown_study_ends_with_1(run: Run):
    status, out, err = run("explain", "1.2.404")

    assert (status, out) == (1, "")
    assert "1.2.404" in err


def test_explain_of_what_is_neither_uid_nor_folder_ends_with_2(run: Run):
    assert run("explain", "/no/such/folder")[0] == 2


def test_status_tells_why_a_job_is_held(run: Run, held: Job):
    status, out, _ = run("status", "--json")

    assert status == 0
    jobs = {each["job"]: each for each in json.loads(out)["jobs"]}
    assert jobs[held.plan.plan_id]["state"] == "held"
    assert jobs[held.plan.plan_id]["reason"] == "the image is noise"


@pytest.mark.parametrize(
    ("command", "state"), [("requeue", JobState.QUEUED), ("reject", JobState.REJECTED)]
)
def test_decision_is_kept_with_person_and_reason(
    command: str, state: JobState, run: Run, bench: Bench, held: Job
):
    status, _, _ = run(command, held.plan.plan_id, "--by", "M. Meier", "--why", "looked at")

    assert status == 0
    assert bench.ledger.job(held.plan.plan_id).state is state
    last = bench.ledger.events(held.plan.study_instance_uid)[-1]
    assert (last.detail["by"], last.detail["why"]) == ("M. Meier", "looked at")


def test_release_of_a_job_without_a_result_ends_with_1(run: Run, held: Job):
    status, _, err = run("release", held.plan.plan_id, "--by", "M. Meier", "--why", "looked at")

    assert status == 1
    assert held.plan.plan_id in err


def test_a_study_with_contested_uids_is_shown_and_released(run: Run, bench: Bench):
    first = make_series("T1w")
    bench.receive(first)
    bench.receive(make_series("T1w", patient_name="PHANTOM^OTHER")[:2])
    bench.judge()
    study = first[0].StudyInstanceUID

    shown = json.loads(run("status", study, "--json")[1])
    told, out, _ = run("status", study)
    status, _, _ = run("release", study, "--by", "M. Meier", "--why", "a wrong name")

    assert shown["studies"][0]["reason"].startswith("uid_conflict: 2 contents")
    assert {each["sop_instance_uid"] for each in shown["conflicts"]} == {
        each.SOPInstanceUID for each in first[:2]
    }
    for each in shown["conflicts"]:
        assert bench.store.read(each["kept"]) != bench.store.read(each["quarantined"])
        assert each["quarantined"] in out
    assert (told, status) == (0, 0)
    assert bench.ledger.study_row(study).state == "receiving"
    assert run("release", study, "--by", "M. Meier", "--why", "again")[0] == 1


def test_held_study_is_closed_and_judged_again_by_its_uid(run: Run, bench: Bench):
    first = make_series("T1w")
    bench.receive(first)
    bench.receive(make_series("T1w", patient_name="PHANTOM^OTHER")[:2])
    bench.judge()
    study = first[0].StudyInstanceUID
    person = ("--by", "M. Meier", "--why", "looked at")

    assert run("reject", study, *person)[0] == 0
    assert bench.ledger.study_row(study).hold_code == "rejected"
    assert run("reject", study, *person)[0] == 1
    assert run("requeue", study, *person)[0] == 0
    assert bench.ledger.study_row(study).state == "receiving"


def test_decision_needs_a_person_and_a_reason(run: Run, held: Job):
    assert run("release", held.plan.plan_id, "--by", "M. Meier")[0] == 2
    status, _, err = run("release", held.plan.plan_id, "--by", "M. Meier", "--why", " ")
    assert status == 1
    assert "a reason" in err


def test_command_on_a_node_that_never_ran_ends_with_1(run: Run, bench: Bench, tmp_path: Path):
    status, _, err = run("status", overrides=[*bench.overrides, f"data_folder={tmp_path}/empty"])

    assert status == 1
    assert err


@pytest.mark.parametrize(
    "command",
    [
        *("serve", "check", "explain", "status", "requeue", "release", "reject", "doctor"),
        *("version", "admin", "account"),
    ],
)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main([command, "--help"])

    assert f"Example: dicom-node {command}" in capsys.readouterr().out


def test_account_is_made_listed_and_taken_away(
    run: Run, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.StringIO("correct horse staple\n"))
    assert run("account", "set", "M. Meier", "--role", "operator")[0] == 0

    assert json.loads(run("account", "list", "--json")[1]) == {"M. Meier": {"role": "operator"}}
    assert run("account", "remove", "M. Meier")[0] == 0
    assert run("account", "remove", "M. Meier")[0] == 1
    assert run("account", "list", "--json")[1] == "{}\n"
    acts = [(each.name, each.detail["account"]) for each in bench.ledger.find_acts(9)]
    assert acts == [("account.removed", "M. Meier"), ("account.set", "M. Meier")]


def test_page_that_others_could_overhear_is_refused(run: Run, bench: Bench):
    status, _, err = run("admin", overrides=[*bench.overrides, "admin.host=0.0.0.0"])

    assert status == 2
    assert err.startswith("node.yaml: line ")
    assert "admin : wanted tls, because 0.0.0.0" in err


def test_page_whose_address_is_taken_says_so(run: Run, bench: Bench):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = run("admin", overrides=[*bench.overrides, f"admin.port={port}"])

    assert status == 2
    assert f"port {port}" in err


def test_folder_without_models_is_named_with_its_key(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            ["check", "--config", str(CONFIGURATION), "--set", f"models_folder={tmp_path / 'none'}"]
        )

    assert ended.value.code == 2
    assert f"wanted a model in {tmp_path / 'none'} (models_folder of node.yaml)" in (
        capsys.readouterr().err
    )
