"""What each address of the admin page shows, by which right, and what its forms do.

`ROUTES` is the whole of it: nothing is served that does not stand there. Whoever has not logged in
sees the log-in form and no more. A form changes something through `decisions`, as the command line
does, under the name of whoever is logged in.
"""

import http.client
import json
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from statistics import median
from typing import Any

from jinja2 import Environment
from pydicom import config as pydicom_config
from pydicom import dcmread
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from dicom_node import decisions
from dicom_node.admin import story
from dicom_node.admin.accounts import Accounts, Person, Right
from dicom_node.admin.charts import Point, draw_points
from dicom_node.admin.pictures import Gallery, Plane
from dicom_node.admin.sessions import Lockout, Session, Sessions
from dicom_node.complaints import raise_alert
from dicom_node.errors import ConfigurationError, IllegalTransition, StorageError, UnusableStudy
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger, Show
from dicom_node.live_rules import LiveRules
from dicom_node.settings import Configuration
from dicom_node.status import describe_destinations
from dicom_node.store import Store
from synthesis.errors import SynthesisError

PER_PAGE = 50
MOST_HELD = 200
LONGEST_REASON = 500
HEALTH_SECONDS = 2.0
ACTS: Mapping[str, str] = {
    "release": "released",
    "reject": "closed",
    "requeue": "queued again",
    "withdraw": "withdrawn",
}
_FORM_COOKIE = "dicom-node-form"
_SESSION_COOKIE = "dicom-node-session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the pages are made from.

    Attributes:
        statics: file name to content type and content, of what is served as it is.
        version: of the statics; part of their addresses.
        secure: whether browsers come over TLS.
    """

    configuration: Configuration
    ledger: Ledger
    store: Store
    rules: LiveRules
    gallery: Gallery
    accounts: Accounts
    sessions: Sessions
    account_lock: Lockout
    address_lock: Lockout
    templates: Environment
    statics: Mapping[str, tuple[str, bytes]]
    version: str
    secure: bool
    clock: Callable[[], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, when it is known who asks.

    Attributes:
        form: of a POST; the last value of each name.
    """

    site: Site
    request: Request
    session: Session | None
    person: Person | None
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Who asks; only where somebody has logged in."""
        return "" if self.person is None else self.person.name

    def path(self, key: str) -> str:
        """Return a part of the address."""
        return str(self.request.path_params[key])

    def query(self, key: str, default: str = "") -> str:
        """Return a value of the query, or what stands for it."""
        return self.request.query_params.get(key, default)

    def render(self, template: str, status: int = 200, **facts: Any) -> HTMLResponse:
        """Return a page, or only its live part when the page itself asks for that."""
        site = self.site
        notice = None
        is_part = bool(self.query("part"))
        if self.session is not None and not is_part:
            notice, self.session.notice = self.session.notice, None
        text = site.templates.get_template(template).render(
            asked=self,
            person=self.person,
            form_token="" if self.session is None else self.session.form_token,
            notice=notice,
            now=site.clock(),
            version=site.version,
            part=is_part,
            right=Right,
            **facts,
        )
        return HTMLResponse(text, status)


Handler = Callable[[Asked], Response]


def answer(route: "Route", site: Site, request: Request, form: Mapping[str, str]) -> Response:
    """Answer a request, if whoever asks may."""
    found = site.sessions.find(
        request.cookies.get(_SESSION_COOKIE, ""), counts=not request.query_params.get("part")
    )
    session, person = found or (None, None)
    asked = Asked(site=site, request=request, session=session, person=person, form=form)
    try:
        return _refuse(route, asked) or route.handler(asked)
    except LookupError as error:
        if type(error) is not LookupError:  # a KeyError is a fault of the program, not an answer
            raise
        return _tell(asked, HTTPStatus.NOT_FOUND, _sentence(error))
    except (IllegalTransition, UnusableStudy) as error:
        return _tell(asked, HTTPStatus.CONFLICT, _sentence(error))
    except (StorageError, SynthesisError, ConfigurationError) as error:
        return _tell(asked, HTTPStatus.SERVICE_UNAVAILABLE, _sentence(error))


def _refuse(route: "Route", asked: Asked) -> Response | None:
    """Return the answer to who may not ask this."""
    if route.right is None:
        return None
    session, person = asked.session, asked.person
    if session is None or person is None:
        return _send_to_login(asked.request)
    if not person.may(route.right):
        raise_alert("page_right_missing", who=person.name, right=route.right)
        asked.site.ledger.note_act("right_missing", person.name, right=route.right)
        return _tell(asked, HTTPStatus.FORBIDDEN, f"Your role, {person.role}, may not do this.")
    if asked.request.method == "POST" and not session.takes(asked.form.get("token", "")):
        return _tell(asked, HTTPStatus.FORBIDDEN, "The form was not this session's. Try again.")
    return None


def _send_to_login(request: Request) -> Response:
    is_page = request.method == "GET" and not request.query_params.get("part")
    if not is_page or request.url.path.endswith(".png"):
        return PlainTextResponse("log in\n", HTTPStatus.UNAUTHORIZED)
    return RedirectResponse("/login", HTTPStatus.SEE_OTHER)


def _tell(asked: Asked, status: HTTPStatus, says: str) -> Response:
    if asked.query("part"):
        return PlainTextResponse(f"{says}\n", status)
    return asked.render("problem.html", status, title=status.phrase, says=says)


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}"


def show_login(asked: Asked, problem: str = "", status: int = 200) -> Response:
    """Show the form, with a token that it has to bring back together with a cookie."""
    token = secrets.token_urlsafe()
    response = asked.render(
        "login.html", status, problem=problem, token=token, is_empty=not asked.site.accounts.read()
    )
    _set_cookie(asked.site, response, _FORM_COOKIE, token)
    return response


def log_in(asked: Asked) -> Response:
    """Take name and password."""
    site, form = asked.site, asked.form
    kept = asked.request.cookies.get(_FORM_COOKIE, "")
    if not kept or not secrets.compare_digest(kept.encode(), form.get("token", "").encode()):
        return show_login(asked, "The form was too old. Try again.", HTTPStatus.FORBIDDEN)
    name, password = form.get("name", "").strip(), form.get("password", "")
    client = asked.request.client
    address = client.host if client is not None else ""
    if site.account_lock.is_locked(name) or site.address_lock.is_locked(address):
        return show_login(asked, "Locked for a while.", HTTPStatus.TOO_MANY_REQUESTS)
    account = site.accounts.check(name, password)
    if account is None:
        locks = site.account_lock.note_failure(name) | site.address_lock.note_failure(address)
        # What was typed as a name may be a password.
        known = name if name in site.accounts.read() else "nobody known"
        raise_alert("page_locked" if locks else "page_login_failed", who=known, address=address)
        site.ledger.note_act("locked" if locks else "login_failed", known, address=address)
        return show_login(asked, "Name or password is wrong.", HTTPStatus.UNAUTHORIZED)
    site.account_lock.forget(name)
    site.address_lock.forget(address)
    site.ledger.note_act("login", name, address=address)
    response = RedirectResponse("/studies", HTTPStatus.SEE_OTHER)
    _set_cookie(site, response, _SESSION_COOKIE, site.sessions.begin(name, account))
    response.delete_cookie(_FORM_COOKIE)
    return response


def log_out(asked: Asked) -> Response:
    """End the session."""
    asked.site.sessions.end(asked.request.cookies.get(_SESSION_COOKIE, ""))
    asked.site.ledger.note_act("logout", asked.name)
    response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
    response.delete_cookie(_SESSION_COOKIE)
    return response


def _set_cookie(site: Site, response: Response, name: str, value: str) -> None:
    response.set_cookie(name, value, httponly=True, samesite="strict", secure=site.secure)


def go_home(_: Asked) -> Response:
    """Lead to the first page."""
    return RedirectResponse("/studies", HTTPStatus.SEE_OTHER)


def show_studies(asked: Asked) -> Response:
    """List studies as they stand, with what goes on."""
    site = asked.site
    show = _read_word(Show, asked.query("show"), Show.ALL)
    page = _read_number(asked.query("page"), 1)
    uid = asked.query("find").strip()
    if uid and decisions.is_study(uid) and site.ledger.glance(Show.ALL, 1, study_instance_uid=uid):
        return RedirectResponse(f"/studies/{uid}", HTTPStatus.SEE_OTHER)
    usual = site.ledger.read_usual_seconds()
    quiet = site.configuration.node.assembly.quiet_period
    found = site.ledger.glance(show, PER_PAGE + 1, (page - 1) * PER_PAGE)
    counts = site.ledger.count_shown()
    return asked.render(
        "studies.html",
        show=show,
        shows=Show,
        page=page,
        more=len(found) > PER_PAGE,
        counts=counts,
        find=uid,
        glances=[story.glance(each, site.clock(), quiet, usual) for each in found[:PER_PAGE]],
        health=read_health(site),
    )


def show_study(asked: Asked) -> Response:
    """Tell the story of one study."""
    return _show_story(asked)


def identify(asked: Asked) -> Response:
    """Tell whose study it is, and keep who asked."""
    site, uid = asked.site, asked.path("uid")
    if not site.configuration.node.admin.patient_names:
        raise LookupError("names of patients are not shown here (admin.patient_names)")
    site.ledger.note_act("patient_seen", asked.name, study=uid)
    return _show_story(asked, patient=_read_patient(site, uid))


def _show_story(asked: Asked, patient: Mapping[str, str] | None = None) -> Response:
    site = asked.site
    told = story.tell(
        site.ledger,
        asked.path("uid"),
        site.clock(),
        site.configuration.node.assembly.quiet_period,
        site.ledger.read_usual_seconds(),
    )
    return asked.render(
        "study.html",
        story=told,
        patient=patient,
        may_identify=site.configuration.node.admin.patient_names,
        outdated={each.plan.plan_id for each in site.ledger.find_outdated()},
    )


def _read_patient(site: Site, uid: str) -> Mapping[str, str]:
    keywords = {
        "Name": "PatientName",
        "Patient ID": "PatientID",
        "Born": "PatientBirthDate",
        "Accession number": "AccessionNumber",
        "Study date": "StudyDate",
    }
    instances = site.ledger.read_instances(uid)
    path = next(
        (path for each in instances if (path := site.store.path(each.path)).is_file()), None
    )
    if path is None:
        raise LookupError("the files of this study are gone: retention has deleted them")
    with pydicom_config.disable_value_validation():
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(keywords.values()))
    return {name: str(header.get(keyword) or "not told") for name, keyword in keywords.items()}


def show_pictures(asked: Asked) -> Response:
    """Show the quick look at a job."""
    site, plan_id = asked.site, asked.path("job")
    look = site.gallery.look(plan_id)
    rows = []
    for plane, edges in look.edges.items():
        count = look.count(plane)
        number = min(_read_number(asked.query(plane), look.choose(plane), least=0), count - 1)
        rows.append((plane, number, count, edges))
    return asked.render("pictures.html", job=site.ledger.job(plan_id), look=look, rows=rows)


def send_picture(asked: Asked) -> Response:
    """Send one slice as PNG."""
    plane = _read_word(Plane, asked.path("plane"), None)
    look = asked.site.gallery.look(asked.path("job"))
    if plane is None:
        raise LookupError("there is no such picture")
    drawn = look.draw(asked.path("layer"), plane, int(asked.path("number")))
    return Response(drawn, media_type="image/png")


def show_holds(asked: Asked) -> Response:
    """List what waits for a person."""
    ledger = asked.site.ledger
    jobs = ledger.find_jobs((JobState.HELD, JobState.FAILED), MOST_HELD)
    told = []
    for job in jobs:
        deliveries = ledger.deliveries(job.plan.study_instance_uid)
        its_own = [each for each in deliveries if each.plan_id == job.plan.plan_id]
        told.append(story.tell_job(job, its_own, ledger.derived(job.plan.plan_id)))
    return asked.render(
        "holds.html",
        studies=ledger.find_held_studies(MOST_HELD),
        made=told,
        parked=ledger.find_parked_jobs(MOST_HELD),
        outdated=[each for each in ledger.find_outdated() if _asks(asked, each.plan.rule)],
    )


def _asks(asked: Asked, rule: str) -> bool:
    rules = {each.name: each.when_late for each in asked.site.rules.routing.rules}
    return rules.get(rule) in {"ask", None}


def decide(asked: Asked) -> Response:
    """Do what a form says about a job or a study, under the name of whoever is logged in."""
    site, form = asked.site, asked.form
    act, named, why = form.get("act", ""), form.get("named", ""), form.get("why", "").strip()
    if act not in ACTS:
        raise LookupError("there is no such decision")
    if len(why) > LONGEST_REASON:
        raise IllegalTransition(f"a reason has at most {LONGEST_REASON} characters")
    if act == "withdraw":
        installation = site.configuration.node.installation
        decisions.withdraw(site.ledger, site.store, installation, named, asked.name, why)
    else:
        do = {
            "release": decisions.release,
            "reject": decisions.reject,
            "requeue": decisions.requeue,
        }[act]
        do(site.ledger, named, asked.name, why)
    if asked.session is not None:
        what = "The study" if decisions.is_study(named) else "The job"
        asked.session.notice = ("good", f"{what} was {ACTS[act]}, in your name: “{why}”.")
    back = form.get("back", "")
    return RedirectResponse(
        f"/studies/{back}" if decisions.is_study(back) else "/holds", HTTPStatus.SEE_OTHER
    )


def show_rules(asked: Asked) -> Response:
    """Show the rules and models as they are loaded, with their digests."""
    site = asked.site
    rules = site.rules.look()
    return asked.render(
        "rules.html",
        configuration=rules.configuration,
        cards=rules.cards,
        problem=site.rules.problem,
        held=site.ledger.read_held_rules(),
    )


def show_node(asked: Asked) -> Response:
    """Show how the node is, and each peer."""
    site = asked.site
    node = site.configuration.node
    found = describe_destinations(site.ledger, site.clock())
    status = {each["peer"]: each for each in found}
    return asked.render(
        "node.html",
        health=read_health(site),
        node=node,
        destinations=[(alias, peer, status.get(alias, {})) for alias, peer in node.peers.items()],
        gone=[each for alias, each in status.items() if alias not in node.peers],
        counts=site.ledger.counts(),
    )


def show_comparison(asked: Asked) -> Response:
    """Show how near results of rules in shadow mode are to the real series, by scanner."""
    site = asked.site
    charts = []
    for group, jobs in site.ledger.find_compared().items():
        figures = [
            (name, chart)
            for name, key, unit in (
                ("SSIM", "ssim", "1 is the same image"),
                ("PSNR", "psnr_db", "dB"),
                ("Mean absolute error", "mae", "in the target's units"),
            )
            if (chart := _draw(jobs, key, name, unit)) is not None
        ]
        problems: dict[str, int] = defaultdict(int)
        for job in jobs:
            if problem := job.quality["comparison"].get("problem"):
                problems[problem] += 1
        charts.append((group, len(jobs), figures, dict(problems)))
    return asked.render("comparison.html", charts=charts)


def _draw(jobs: Sequence[Any], key: str, name: str, unit: str) -> tuple[str, Any] | None:
    points = [
        Point(
            at=job.changed_at,
            value=float(value),
            href=f"/studies/{job.plan.study_instance_uid}",
            label=f"{value:.4g} on {job.changed_at:%Y-%m-%d %H:%M}",
        )
        for job in jobs
        if (value := job.quality["comparison"].get(key)) is not None
    ]
    if not points:
        return None
    values = sorted(point.value for point in points)
    says = (
        f"median {median(values):.4g}, {values[0]:.4g} to {values[-1]:.4g}, {len(values)} compared"
    )
    return says, draw_points(points, unit, f"{name} over time: {says}")


def show_acts(asked: Asked) -> Response:
    """Show who did what, and who may; keep who looked."""
    page = _read_number(asked.query("page"), 1)
    acts = asked.site.ledger.find_acts(PER_PAGE, (page - 1) * PER_PAGE)
    asked.site.ledger.note_act("acts_seen", asked.name)
    return asked.render(
        "acts.html", acts=acts, page=page, accounts=asked.site.accounts.read(), limit=PER_PAGE
    )


def send_static(asked: Asked) -> Response:
    """Send style sheet or script."""
    found = asked.site.statics.get(asked.path("name"))
    if found is None:
        raise LookupError("there is no such file")
    kind, content = found
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(content, media_type=kind, headers=kept)


def read_health(site: Site) -> Mapping[str, Any]:
    """Return what the node's own /healthz says; `status` is `silent` where it does not answer."""
    web = site.configuration.node.web
    connection = http.client.HTTPConnection(web.host, web.port, timeout=HEALTH_SECONDS)
    try:
        connection.request("GET", "/healthz")
        found: Mapping[str, Any] = json.loads(connection.getresponse().read(MOST_HEALTH_BYTES))
    except (OSError, http.client.HTTPException, ValueError):
        return {"status": "silent", "problems": []}
    finally:
        connection.close()
    return found


MOST_HEALTH_BYTES = 64 * 1024


def _read_word(kind: Any, text: str, default: Any) -> Any:
    try:
        return kind(text)
    except ValueError:
        return default


def _read_number(text: str, default: int, least: int = 1) -> int:
    return max(least, int(text)) if text.isascii() and text.isdigit() and len(text) < 9 else default  # noqa: PLR2004


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One address, how it is asked, and what that takes.

    Attributes:
        right: None for what is shown to whoever comes.
    """

    path: str
    method: str
    right: Right | None
    handler: Handler


JOB = "{job}"
STUDY = "{uid}"
ROUTES = (
    Route(path="/", method="GET", right=Right.LOOK, handler=go_home),
    Route(path="/login", method="GET", right=None, handler=show_login),
    Route(path="/login", method="POST", right=None, handler=log_in),
    Route(path="/logout", method="POST", right=Right.LOOK, handler=log_out),
    Route(path="/studies", method="GET", right=Right.LOOK, handler=show_studies),
    Route(path=f"/studies/{STUDY}", method="GET", right=Right.LOOK, handler=show_study),
    Route(path=f"/studies/{STUDY}/patient", method="POST", right=Right.IDENTIFY, handler=identify),
    Route(path=f"/jobs/{JOB}", method="GET", right=Right.LOOK, handler=show_pictures),
    Route(
        path=f"/jobs/{JOB}/{{layer}}/{{plane}}/{{number:int}}.png",
        method="GET",
        right=Right.LOOK,
        handler=send_picture,
    ),
    Route(path="/holds", method="GET", right=Right.LOOK, handler=show_holds),
    Route(path="/decide", method="POST", right=Right.DECIDE, handler=decide),
    Route(path="/rules", method="GET", right=Right.LOOK, handler=show_rules),
    Route(path="/node", method="GET", right=Right.LOOK, handler=show_node),
    Route(path="/comparison", method="GET", right=Right.LOOK, handler=show_comparison),
    Route(path="/acts", method="GET", right=Right.OVERSEE, handler=show_acts),
    Route(path="/static/{version}/{name}", method="GET", right=None, handler=send_static),
)
