"""What the page answers over a real socket: who may what, what is refused, what is kept."""

import http.client
import re
import socket
import ssl
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from dicom_node.admin.accounts import RIGHTS, Role
from dicom_node.admin.guard import MOST_BODY_BYTES
from dicom_node.admin.pages import ROUTES, Route
from dicom_node.admin.words import ACTS
from dicom_node.domain import Role as DerivedRole
from dicom_node.jobs import JobState
from dicom_node.ledger import Job
from dicom_node.ledger.overview import _COMMANDS, _PEOPLE, _PEOPLE_OF_STUDIES
from doubles.admin import PEOPLE, STAPLE, AdminUnderTest, Answer, Client
from doubles.bench import Bench
from doubles.certificates import make_authority, make_certificate
from doubles.ledger import make_derived
from doubles.series import make_series

LogIn = Callable[..., Client]
pytestmark = pytest.mark.integration


def fill(route: Route, bench: Bench) -> str:
    job = next(job for job in bench.ledger.jobs() if job.state is JobState.DONE)
    return (
        route.path.replace("{job}", job.plan.plan_id)
        .replace("{uid}", job.plan.study_instance_uid)
        .replace("{layer}/{plane}/{number:int}", "result/coronal/3")
        .replace("{version}/{name}", "x/admin.css")
    )


def ask(client: Client, route: Route, bench: Bench) -> Answer:
    path = fill(route, bench)
    return client.get(path) if route.method == "GET" else client.post(path, {})


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_stranger_sees_nothing_but_the_log_in_form(
    route: Route, admin: AdminUnderTest, bench: Bench
) -> None:
    answer = ask(Client(admin.port), route, bench)

    if route.right is not None:
        is_led = answer.status == 303 and answer.headers["Location"] == "/login"
        assert is_led or answer.status == 401
        assert len(answer.body) < 10, answer.text


@pytest.mark.parametrize("role", Role)
def test_each_role_gets_what_its_rights_say_and_nothing_else(
    role: Role, log_in: LogIn, bench: Bench
) -> None:
    person = next(name for name, its in PEOPLE.items() if its is role)
    client = log_in(person)
    routes = [route for route in ROUTES if route.right is not None and route.path != "/logout"]

    refused = {name_of(route) for route in routes if ask(client, route, bench).status == 403}

    assert refused == {name_of(r) for r in routes if r.right not in RIGHTS[role]}
    acts = [each for each in bench.ledger.find_acts(99) if each.detail["by"] == person]
    assert sum(each.name == "page.right_missing" for each in acts) == len(refused)


def test_answer_runs_no_script_of_others_and_is_kept_nowhere(log_in: LogIn) -> None:
    answer = log_in("V. Viewer").get("/studies")

    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert not re.search(r"<script(?! src)|<style| on\w+=| style=", answer.text)


def test_cookie_is_for_this_page_only(admin: AdminUnderTest) -> None:
    client = Client(admin.port)

    cookie = client.log_in("V. Viewer").headers["Set-Cookie"]

    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


def test_log_in_gives_another_token_each_time(admin: AdminUnderTest) -> None:
    tokens = set()
    for _ in range(2):
        client = Client(admin.port)
        client.log_in("V. Viewer")
        tokens.add(client.cookies["dicom-node-session"])

    assert len(tokens) == 2


def test_log_in_form_of_another_site_is_refused(admin: AdminUnderTest) -> None:
    client = Client(admin.port)
    client.get("/login")
    form = {"name": "V. Viewer", "password": STAPLE, "token": "another"}

    assert client.post("/login", form).status == 403
    client.cookies.clear()
    assert client.post("/login", {**form, "token": ""}).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
        {"Content-Encoding": "gzip"},
    ],
    ids=", ".join,
)
def test_request_that_is_not_of_this_page_is_refused(
    headers: dict[str, str], log_in: LogIn, bench: Bench, held: Job
) -> None:
    client = log_in("O. Operator")
    form = {"act": "reject", "named": held.plan.plan_id, "why": "looked at"}

    assert client.post("/decide", form, headers).status in {400, 403, 415}

    assert bench.ledger.job(held.plan.plan_id).state is JobState.HELD


def test_decision_without_the_token_of_the_session_is_refused(
    log_in: LogIn, bench: Bench, held: Job
) -> None:
    client, other = log_in("O. Operator"), log_in("O. Operator")
    form = {"act": "reject", "named": held.plan.plan_id, "why": "looked at"}

    assert client.post("/decide", {**form, "token": other.token}).status == 403

    assert bench.ledger.job(held.plan.plan_id).state is JobState.HELD


@pytest.mark.parametrize(
    ("act", "state"),
    [
        ("release", JobState.DONE),
        ("reject", JobState.REJECTED),
        ("requeue", JobState.QUEUED),
    ],
)
def test_decision_is_kept_with_the_name_of_who_is_logged_in(
    act: str, state: JobState, log_in: LogIn, bench: Bench, held: Job
) -> None:
    form = {"act": act, "named": held.plan.plan_id, "why": "looked at", "by": "somebody else"}

    answer = log_in("O. Operator").post("/decide", form)

    assert (answer.status, answer.headers["Location"]) == (303, "/holds")
    assert bench.ledger.job(held.plan.plan_id).state is state
    last = bench.ledger.events(held.plan.study_instance_uid)[-1]
    assert (last.detail["by"], last.detail["why"]) == ("O. Operator", "looked at")


def test_decision_that_cannot_be_is_told_and_changes_nothing(
    log_in: LogIn, bench: Bench, held: Job
) -> None:
    client = log_in("O. Operator")
    named = {"named": held.plan.plan_id}

    answers = [
        client.post("/decide", {**named, "act": "release", "why": " "}),
        client.post("/decide", {**named, "act": "release", "why": "x" * 501}),
        client.post("/decide", {**named, "act": "drop", "why": "looked at"}),
        client.post("/decide", {"named": "f" * 32, "act": "release", "why": "looked at"}),
        client.post("/decide", {**named, "act": "withdraw", "why": "looked at"}),
    ]

    assert [answer.status for answer in answers] == [409, 409, 404, 404, 404]
    assert "needs the name of a person and a reason" in answers[0].text
    assert bench.ledger.job(held.plan.plan_id).state is JobState.HELD


def test_held_study_is_closed_at_the_page(log_in: LogIn, bench: Bench, held: Job) -> None:
    uid = held.plan.study_instance_uid
    client = log_in("O. Operator")
    client.post("/decide", {"act": "requeue", "named": uid, "why": "the rules are mended"})
    row = bench.ledger.study_row(uid)
    assert bench.ledger.hold_study(uid, row.generation, "two", "of two patients", seen=row.seen)
    assert "of two patients" in client.get("/holds").text

    client.post("/decide", {"act": "reject", "named": uid, "why": "a wrong image", "back": uid})

    assert bench.ledger.study_row(uid).hold_code == "rejected"
    told = client.get(f"/studies/{uid}").text
    assert "closed by a person: a wrong image" in told
    assert "in your name: “a wrong image”" in told
    assert "of two patients" not in client.get("/holds").text


def test_wrong_passwords_lock_the_account_and_say_nothing_of_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    with AdminUnderTest(bench, "admin.attempts=2", "admin.lock=5 min").served() as admin:
        client = Client(admin.port)
        statuses = [client.log_in("V. Viewer", "a wrong password").status for _ in range(3)]
        right = client.log_in("V. Viewer").status
        stranger = client.log_in("my password", "typed as a name").status
        admin.ahead += admin.configuration.node.admin.lock
        later = client.log_in("V. Viewer").status

    assert (statuses, right, stranger, later) == ([401, 401, 429], 429, 401, 303)
    acts = [(each.name, each.detail["by"]) for each in bench.ledger.find_acts(4)]
    assert acts == [
        ("page.login", "V. Viewer"),
        ("page.login_failed", "nobody known"),
        ("page.locked", "V. Viewer"),
        ("page.login_failed", "V. Viewer"),
    ]
    assert "page_locked" in caplog.text or any(
        getattr(record, "event", "") == "page_locked" for record in caplog.records
    )
    assert "my password" not in caplog.text


def test_who_logged_out_has_to_log_in_again(log_in: LogIn) -> None:
    client = log_in("V. Viewer")
    kept = dict(client.cookies)

    client.post("/logout", {})
    client.cookies = kept

    assert client.get("/studies").status == 303


def test_name_of_a_patient_is_shown_only_where_role_and_setting_allow_it(
    log_in: LogIn, bench: Bench
) -> None:
    uid = next(
        job for job in bench.ledger.jobs() if job.state is JobState.DONE
    ).plan.study_instance_uid
    name = "PHANTOM"

    def ask(admin: AdminUnderTest, who: str) -> tuple[int, bool]:
        client = log_in(who, admin)
        shown = [
            client.get(path).text for path in (f"/studies/{uid}", "/studies", "/holds", "/acts")
        ]
        assert not any(name in text.upper() for text in shown)
        answer = client.post(f"/studies/{uid}/patient", {})
        return answer.status, name in answer.text.upper()

    with AdminUnderTest(bench).served() as admin:
        assert ask(admin, "A. Admin") == (404, False)
    with AdminUnderTest(bench, "admin.patient_names=true").served() as admin:
        assert ask(admin, "V. Viewer") == (403, False)
        assert ask(admin, "O. Operator") == (200, True)
    [last] = bench.ledger.find_acts(1)
    assert (last.name, last.detail["by"], last.study_instance_uid) == (
        "page.patient_seen",
        "O. Operator",
        uid,
    )


def test_story_tells_in_words_what_came_lacked_was_made_and_went_where(
    log_in: LogIn, bench: Bench
) -> None:
    job = next(job for job in bench.ledger.jobs() if job.state is JobState.DONE)

    text = log_in("V. Viewer").get(f"/studies/{job.plan.study_instance_uid}").text

    for words in (
        "T2w was made",
        "quality: pass",
        "Used to make T2w",
        "% sure",
        "waiting to be sent",
    ):
        assert words in text, words
    assert job.plan.model_digest in text
    assert "/decide" not in text


def test_pages_say_nothing_as_markup_that_a_peer_wrote(log_in: LogIn, bench: Bench) -> None:
    job = next(job for job in bench.ledger.jobs() if job.state is JobState.DONE)
    attack = "<img src=x onerror=alert(1)>"
    bench.ledger.record_outage("pacs", attack, job.changed_at)
    try:
        text = log_in("V. Viewer").get("/node").text
    finally:
        bench.ledger.end_outage("pacs")

    assert attack not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_unknown_studies_jobs_and_pictures_are_told(log_in: LogIn, bench: Bench) -> None:
    job = next(job for job in bench.ledger.jobs() if job.state is JobState.DONE)
    client = log_in("V. Viewer")
    picture = f"/jobs/{job.plan.plan_id}"

    for path in (
        "/studies/1.2.404",
        "/jobs/404",
        f"{picture}/result/coronal/9999.png",
        f"{picture}/secret/coronal/1.png",
        f"{picture}/result/oblique/1.png",
        "/static/x/..%2f..%2fserver.py",
        "/nothing",
    ):
        assert client.get(path).status == 404, path


def test_long_body_is_refused(admin: AdminUnderTest) -> None:
    answer = Client(admin.port).post("/login", {"name": "x" * MOST_BODY_BYTES})

    assert answer.status == 413


def test_slow_client_is_left_alone_soon(
    admin: AdminUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.admin.server.HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", admin.port), timeout=30) as slow:
        slow.sendall(b"GET /login HTTP/1.1\r\nHost: localhost\r\n")
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            slow.recv(1) or (_ for _ in ()).throw(ConnectionResetError)

    assert time.monotonic() - began < 20


def test_comparison_of_a_scanner_without_a_magnet_tells_no_field(
    log_in: LogIn, bench: Bench
) -> None:
    bench.receive(make_series("T1w", key=generate_uid()))
    bench.judge()
    job = bench.claim("FLAIR")
    compared = {"manufacturer": "ACME", "model_name": "Ring 5", "field_strength": None, "mae": 0.4}
    quality = {"verdict": "pass", "comparison": compared}
    assert bench.ledger.record_derived(
        job.plan.plan_id, job.attempt, [], quality=quality, seconds={}, record=[]
    )

    page = log_in(next(iter(PEOPLE))).get("/comparison").text

    told = re.search(r"ACME Ring 5[^<]*", page)
    assert told is not None
    assert told[0].split(";")[0] == "ACME Ring 5"


def test_result_of_which_only_a_report_was_written_offers_no_picture(
    log_in: LogIn, bench: Bench
) -> None:
    bench.receive(make_series("T1w", key=generate_uid()))
    bench.judge()
    job = bench.claim("FLAIR")
    path = f"derived/{job.plan.plan_id}/1/report-0001.dcm"
    report = make_derived(sop_instance_uid=generate_uid(), path=path, role=DerivedRole.REPORT)
    refused = {"verdict": "refuse", "reasons": ["the image is noise"]}
    bench.ledger.refuse_job(
        job.plan.plan_id, job.attempt, ["the image is noise"], [report], quality=refused
    )
    client = log_in("O. Operator")

    for path in ("/holds", f"/studies/{job.plan.study_instance_uid}"):
        text = client.get(path).text
        card = text[text.index(f'id="job-{job.plan.plan_id}"') :].partition("</article>")[0]
        assert "Look at it" not in card
        assert "Nothing but a report" in card


@pytest.fixture
def over_https(bench: Bench, tmp_path: Path) -> Iterator[tuple[AdminUnderTest, Path]]:
    """The page with a certificate, and the authority that signed it."""
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "page")
    tls = f"admin.tls={{certificate: {certificate}, key: {key}}}"
    with AdminUnderTest(bench, tls).served() as admin:
        yield admin, authority


def test_page_is_served_over_https_with_its_certificate(
    over_https: tuple[AdminUnderTest, Path],
) -> None:
    admin, authority = over_https
    client = Client(admin.port, ssl.create_default_context(cafile=authority))

    assert admin.address.startswith("https://")
    answer = client.log_in("O. Operator")
    assert answer.status == 303
    assert "Secure" in answer.headers["Set-Cookie"]
    assert answer.headers["Strict-Transport-Security"]
    assert client.get("/studies").status == 200
    assert client.post("/logout", {}).headers["Location"] == "/login"


def test_https_takes_no_old_protocol_no_stranger_and_no_plain_text(
    over_https: tuple[AdminUnderTest, Path],
) -> None:
    admin, authority = over_https
    old = ssl.create_default_context(cafile=authority)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT@SECLEVEL=0")

    with pytest.raises(ssl.SSLError):
        Client(admin.port, old).get("/login")
    with pytest.raises(ssl.SSLCertVerificationError):
        Client(admin.port, ssl.create_default_context()).get("/login")
    with pytest.raises((http.client.HTTPException, OSError)):
        Client(admin.port).get("/login")


def test_acts_are_told_in_words(log_in: LogIn, bench: Bench) -> None:
    bench.ledger.note_query("root", "pacs", {"StudyDate": "20260101", "PatientID": "4711"})
    bench.ledger.note_command("account.set", "root", account="M. Meier")
    client = log_in("A. Admin")
    client.get("/acts")

    text = client.get("/acts").text

    for words in (
        *("looked at the acts", "logged in", "asked an archive", "set an account"),
        *("pacs: StudyDate 20260101, PatientID<", "M. Meier"),
    ):
        assert words in text
    assert "4711" not in text


def test_each_act_that_is_kept_has_its_words() -> None:
    kept = {*_PEOPLE, *_PEOPLE_OF_STUDIES, *_COMMANDS}

    assert kept <= ACTS.keys()
