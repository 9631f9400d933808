"""The live pages of runs, and the documents behind them: an application for one PanDA and one user.

Who may see it, the server in front of it has decided: `.server`, or the embedded PanDA.  Pages ask again for
themselves (``static/live.js``) with the tag of what they show, and get a new page only if something has
changed.
"""

from __future__ import annotations

__all__ = ["HEADERS", "Allowance", "Visitor", "make_application", "make_static_application"]

import hashlib
import hmac
import secrets
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import flask
from lsst.ctrl.bps.wms_service import WmsStates
from werkzeug.exceptions import HTTPException, TooManyRequests

from ..errors import ConnectionFailedError, PandaBpsError, RunNotFoundError, SettingsError, TransportError
from ..insight.documents import make_document, make_plain
from ..insight.logs import LogLine, LogTransport, find_log_urls, group_lines, read_last_lines
from ..insight.resources import measure_resources
from ..local.request_bodies import LARGEST_CATALOG, LARGEST_FORM, LARGEST_UPLOAD
from ..runs.cancel import cancel_run
from ..runs.client import RunClient
from ..runs.jobs import RunJobs
from ..runs.restart import restart_run
from ..status.failures import find_remarks
from ..status.records import JobRecord
from ..version import __version__
from .images import IMAGE_KINDS, TABLE_KINDS, Images
from .looks import MOST_JOBS, OUTSIDE, JobsSight, Looks, RunSight, Sight
from .page import (
    COLUMNS,
    STEP,
    RunPage,
    compare_attempts,
    count_states,
    find_shares,
    find_wait,
    read_task_graph,
    render,
    render_page,
    style_sheet,
)
from .portal import PREPARATION_SECONDS, QUANTUM_SECONDS, Portal
from .run_sets import RunSets

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # A browser tells a page of ours from others by what "no-referrer" would have it leave out.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Headers of each reply."""

_UPLOAD = "upload"
_REQUESTS = (40.0, 200.0)
"""Requests a second, and how many at once."""

_ACTIONS = (0.2, 10.0)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at the pages after a log-in."""

    name: str
    leave: Callable[[], None]
    """Ends the session."""


@dataclass(frozen=True, slots=True)
class _Live:
    """What a live page knows of itself: its place, its age, and the addresses of others."""

    root: str
    looked_at: datetime
    every: float
    tag: str = ""
    portal: bool = False
    """Whether runs can be started here."""

    images: bool = False
    """Whether there are images of the run."""

    seen: RunSight | None = None
    """The run, on its page."""

    visitor: str = ""
    """Who has logged in, if that was necessary."""

    leaving: str = ""
    """The token with which to log out."""

    def page(self, run: int, action: str = "") -> str:
        """Return the address of a run's page, or of an action."""
        return f"{self.root}runs/{run}/{action}"

    def label(self, run: int, label: str, first: int = 0) -> str:
        """Return the address of the page of a label, from a job on."""
        return f"{self.page(run)}label?{urlencode({'name': label} | ({'first': first} if first else {}))}"

    def job(self, run: int, job: JobRecord) -> str:
        """Return the address of the page of a job."""
        return f"{self.page(run)}job?{urlencode({'label': job.label, 'id': job.panda_id})}"


@dataclass(frozen=True, slots=True)
class _Log:
    """The end of a log."""

    lines: tuple[LogLine, ...] = ()
    cut: bool = False
    """Whether there is more before it."""

    exception: str = ""
    problem: str = ""
    """Why there are no lines."""


class Allowance:
    """How often something may happen: so often a second in the long run, and so often at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Take one; a reply that says "too many" if there is none."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._burst, self._left + (now - self._at) * self._rate)
            self._at = now
            if self._left < 1:
                raise TooManyRequests("too many requests; wait a moment")
            self._left -= 1


class _Pages:
    """The pages of one server."""

    def __init__(self, looks: Looks, visitor: Visitor | None, portal: Portal | None) -> None:
        self._looks = looks
        self._visitor = visitor
        self._portal = portal
        # What lies on the server's machine is its user's, not of who has logged in.
        self._images = Images(shown=visitor is None)
        # Another one after each start, since revisions begin anew.
        self._key = secrets.token_bytes(32)
        self._start = secrets.token_hex(4)
        self._requests, self._actions = Allowance(*_REQUESTS), Allowance(*_ACTIONS)

    # --- replies ----------------------------------------------------------

    def check(self) -> None:
        """Refuse too many requests, and those that change something without the token of a page."""
        self._requests.take()
        request = flask.request
        if request.method != "POST":
            return
        if request.endpoint == _UPLOAD:
            request.max_content_length = LARGEST_UPLOAD
        origin = request.headers.get("Origin", "")
        sent = request.form.get("token", "")
        if not hmac.compare_digest(sent.encode(), self._token().encode()) or (
            origin and origin.partition("://")[2] != request.headers.get("Host", "")
        ):
            self._refuse(403, "This was not sent by a page that is shown here, or the page was too old.")
        self._actions.take()

    def _token(self) -> str:
        """Return the token against forgery: of this start, and of the place of one browser."""
        place = flask.request.script_root.encode()
        return hmac.new(self._key, place, hashlib.sha256).hexdigest()

    @property
    def _root(self) -> str:
        return f"{flask.request.script_root}/"

    def _refuse(self, status: int, text: str) -> None:
        flask.abort(flask.make_response(self._told(f"{HTTPStatus(status).phrase}", text), status))

    def _live(self, looked_at: datetime | None = None, tag: str = "") -> _Live:
        visitor = self._visitor.name if self._visitor is not None else ""
        leaving = self._token() if visitor else ""
        at = looked_at or datetime.now(UTC)
        has_portal = self._portal is not None
        return _Live(self._root, at, self._looks.least, tag, has_portal, visitor=visitor, leaving=leaving)

    def _told(self, title: str, text: str, *, run: int = 0, new_run: int = 0) -> str:
        values = {"title": title, "text": text, "run": run, "new_run": new_run, "token": "", "kind": "told"}
        return str(render("action.html", live=self._live(), **values))

    def fail(self, error: PandaBpsError) -> tuple[str, int]:
        """Make the reply to what could not be found out or done."""
        missing = isinstance(error, RunNotFoundError)
        away = isinstance(error, TransportError | ConnectionFailedError)
        status = 404 if missing else 502 if away else 409
        if "/api/" in flask.request.path:
            return str(error), status
        return self._told("Not found" if missing else "Not known", str(error)), status

    def reply(
        self, sights: Sequence[Sight[Any] | None], make: Callable[[_Live], str], *, more: str = ""
    ) -> flask.Response:
        """Reply with a page, or with nothing if the browser has that of these sights."""
        seen = [sight for sight in sights if sight is not None]
        parts = [self._start, *(str(sight.revision) for sight in seen), more]
        tag = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        live = self._live(min((sight.at for sight in seen), default=None), tag)
        if flask.request.headers.get("If-None-Match") == tag:
            reply = flask.Response(status=304)
        else:
            reply = flask.Response(make(live), mimetype="text/html")
        reply.headers["Looked-At"] = live.looked_at.isoformat()
        return reply

    # --- pages ------------------------------------------------------------

    def runs(self) -> flask.Response:
        """Show the list of runs."""
        arguments = flask.request.args
        text, state = arguments.get("text", "")[:100], arguments.get("state", "")
        days = max(1, min(365, arguments.get("days", 2, type=int)))
        everybody = bool(arguments.get("everybody"))
        sight = self._looks.runs(days=days, everybody=everybody).see()
        runs = [
            run
            for run in sight.value.runs
            if state in ("", run.state)
            and text.casefold() in f"{run.request_id} {run.name} {run.user}".casefold()
        ]

        def make(live: _Live) -> str:
            return str(
                render(
                    "runs.html",
                    live=live,
                    runs=runs,
                    bars={run.request_id: find_shares(run.total) for run in runs},
                    problems=sight.value.problems,
                    wanted={"text": text, "state": state, "days": days, "everybody": everybody},
                    states=[state.name for state in WmsStates],
                    server=self._looks.connect().settings.url,
                )
            )

        return self.reply([sight], make)

    def run(self, run: int) -> flask.Response:
        """Show a run."""
        sight = self._looks.run(run).see()
        jobs = self._looks.jobs(run).glance(sight.value.cause(sight.at))

        def make(live: _Live) -> str:
            has_images = self._images.find(sight.value.evidence) is not None
            return _render_run(sight, jobs, replace(live, images=has_images))

        return self.reply([sight, jobs], make)

    def label(self, run: int) -> flask.Response:
        """Show a label of a run, with its jobs."""
        label = flask.request.args.get("name", "")
        first = max(0, flask.request.args.get("first", 0, type=int))
        sight = self._looks.run(run).see()
        overview = sight.value.overview
        if label not in overview.labels:
            raise RunNotFoundError(f"Run {run} has no label {label!r}.")
        jobs = self._looks.jobs(run, label).see(sight.value.cause(sight.at))
        last = _last_attempts(jobs.value.attempts)
        counts = overview.labels[label]

        def make(live: _Live) -> str:
            return str(
                render(
                    "label.html",
                    live=live,
                    run=overview,
                    label=label,
                    columns=COLUMNS,
                    numbers=count_states(counts),
                    bars=find_shares(counts),
                    jobs=RunJobs(jobs.value.evidence).identify(last[first : first + STEP]),
                    first=first,
                    step=STEP,
                    total=len(last),
                    problems=jobs.value.problems,
                )
            )

        return self.reply([sight, jobs], make)

    def job(self, run: int) -> flask.Response:
        """Show a job: its attempts, and the log of one of them."""
        sight = self._looks.run(run).see()
        jobs, attempts, job = self._find_job(run, sight)
        log = self._read_log(job, sight.value)
        # Of a large run only the jobs that failed are known, and its plan takes long to read.
        small = sum(sight.value.overview.total.values()) <= MOST_JOBS
        everything = self._looks.jobs(run).glance(sight.value.cause(sight.at)) if small else None
        digest = hashlib.sha256(repr(log).encode()).hexdigest()
        failures = [
            group for group in jobs.value.groups if group.example and group.example.panda_id == job.panda_id
        ]

        def make(live: _Live) -> str:
            named = RunJobs(jobs.value.evidence).identify(attempts)
            shown = next(each for each in named if each.panda_id == job.panda_id)
            name = shlex.quote(shown.bps_name or str(shown.panda_id))
            return str(
                render(
                    "job.html",
                    live=live,
                    run=sight.value.overview,
                    job=shown,
                    attempts=named,
                    facts=compare_attempts(named),
                    wait=find_wait(everything.value.evidence, named) if everything is not None else None,
                    log=log,
                    log_groups=list(group_lines(log.lines)),
                    exception=failures[0].exception if failures else log.exception,
                    reproduce=f"panda_bps reproduce {run} {name}",
                )
            )

        return self.reply([sight, jobs, everything], make, more=digest)

    def _find_job(
        self, run: int, sight: Sight[RunSight]
    ) -> tuple[Sight[JobsSight], list[JobRecord], JobRecord]:
        """Find the attempts of the job that the address names, and the one among them."""
        arguments = flask.request.args
        number = arguments.get("id", 0, type=int)
        jobs = self._looks.jobs(run, arguments.get("label", "")).see(sight.value.cause(sight.at))
        job = next((each for each in jobs.value.attempts if each.panda_id == number), None)
        if job is None:
            raise RunNotFoundError(f"Run {run} has no PanDA job {number}.")
        attempts = [e for e in jobs.value.attempts if (e.task_id, e.name) == (job.task_id, job.name)]
        return jobs, sorted(attempts, key=lambda each: each.panda_id), job

    def _read_log(self, job: JobRecord, seen: RunSight) -> _Log:
        """Read the last lines of a log, if it lies where logs of the run may lie."""
        connection, area = self._looks.connect(), seen.overview.staging_area
        if not self._looks.logs.holds(job, connection, area):
            return _Log(problem=OUTSIDE)
        if not find_log_urls(job, connection.settings.url):
            return _Log(problem="There is no log yet.")
        try:
            lines, cut = read_last_lines(job, LogTransport(connection, patience=5.0))
        except TransportError as error:
            return _Log(problem=f"The log could not be read: {error.message}")
        if not lines:
            return _Log(problem="The log is empty so far.")
        end = self._looks.read_end(connection, job, area) if job.failed else None
        return _Log(tuple(lines), cut, (end.exception or "") if end is not None else "")

    # --- actions ----------------------------------------------------------

    def cancel(self, run: int) -> str:
        """Ask whether a run is to be cancelled, and cancel it."""
        name = self._looks.run(run).see().value.overview.name
        if flask.request.method == "GET":
            text = f"Run {run} ({name}) is to be cancelled: its jobs are ended, and nothing more is done."
            return self._confirmed("Cancel", run, text)
        done, message = cancel_run(RunClient(self._looks.connect()), str(run))
        return self._told("Cancelled" if done else "Not cancelled", message, run=run)

    def restart(self, run: int) -> str:
        """Ask whether a run is to be restarted, and restart it."""
        name = self._looks.run(run).see().value.overview.name
        if flask.request.method == "GET":
            text = f"Run {run} ({name}) is to be restarted: a new run does what did not succeed."
            return self._confirmed("Restart", run, text)
        new, _, message = restart_run(RunClient(self._looks.connect()), str(run))
        return self._told("Restarted" if new else "Not restarted", message, run=run, new_run=int(new or 0))

    def logout(self) -> flask.Response:
        """End the session of who has logged in."""
        if self._visitor is None:
            flask.abort(404)
        self._visitor.leave()
        return flask.redirect(self._root, 303)  # type: ignore[return-value]

    def _confirmed(self, title: str, run: int, text: str) -> str:
        values = {"title": title, "run": run, "text": text, "token": self._token(), "kind": "confirm"}
        return str(render("action.html", live=self._live(), **values))

    # --- images -----------------------------------------------------------

    def images(self, run: int) -> str:
        """Show the images of a run, one of them at first."""
        evidence = self._looks.run(run).see().value.evidence
        with self._images.open(evidence) as gallery:
            images, tables = gallery.images(), gallery.tables()
        names = [each["name"] for each in images]
        asked = flask.request.args.get("name", "")
        name = asked if asked in names else next(iter(names), "")
        values = {"run": run, "images": images, "tables": tables, "name": name, "formats": TABLE_KINDS}
        return str(render("images.html", live=self._live(), **values))

    def image(self, run: int, name: str, form: str) -> flask.Response:
        """Return an image as a file, or its pixels."""
        content, kind = self._images.read(self._looks.run(run).see().value.evidence, name, form)
        return _attached(content, f"{run}-{name}.{form}", kind)

    def table(self, run: int, name: str, form: str) -> flask.Response:
        """Return a table as a file."""
        content, kind = self._images.read_table(self._looks.run(run).see().value.evidence, name, form)
        return _attached(content, f"{run}-{name}.{form}", kind)

    def images_document(self, run: int) -> dict[str, Any]:
        """Return which images and tables there are."""
        sight = self._looks.run(run).see().value
        with self._images.open(sight.evidence) as gallery:
            value = {"images": gallery.images(), "tables": gallery.tables()}
        return make_document(value, request_id=run, name=sight.overview.name, kind="images")

    def image_document(self, run: int, name: str) -> dict[str, Any]:
        """Return all of an image but its pixels."""
        sight = self._looks.run(run).see().value
        value = self._images.describe(sight.evidence, name)
        return make_document(value, request_id=run, name=sight.overview.name, kind="image")

    # --- the portal -------------------------------------------------------

    def _require_portal(self) -> Portal:
        if self._portal is None:
            raise RunNotFoundError(
                "These pages have no portal: it simulates on this machine, on an embedded PanDA. "
                "Start one, and open its pages: panda_local start, panda_local open."
            )
        return self._portal

    def portal(self, refused: str = "") -> str | tuple[str, int]:
        """Show the form, and what follows from the choices."""
        portal = self._require_portal()
        preview = portal.preview(flask.request.args)
        if refused:
            preview = replace(preview, faults={**preview.faults, "catalog": refused})
        page = render(
            "portal.html",
            live=self._live(),
            token=self._token(),
            preview=preview,
            fields=portal.fields(),
            plane=portal.draw_plane(preview),
            catalogs=portal.catalogs(),
            largest=LARGEST_CATALOG,
            seconds=(f"{PREPARATION_SECONDS:g}", f"{QUANTUM_SECONDS:g}"),
        )
        # A form that was only looked at is no failed request, of which browsers tell.
        return (str(page), 422) if preview.faults and flask.request.method == "POST" else str(page)

    def launch(self) -> Any:
        """Submit what was chosen."""
        portal = self._require_portal()
        preview = portal.preview(flask.request.args)
        if preview.faults:
            return self.portal()
        return flask.redirect(f"{self._root}portal/launches/{portal.launch(preview)}", 303)

    def launched(self, name: str) -> Any:
        """Show how far a launch is, until there is a run."""
        launch = self._require_portal().read_launch(name)
        if launch.run:
            return flask.redirect(f"{self._root}runs/{launch.run}/", 303)
        return self.reply(
            [], lambda live: str(render("launch.html", live=live, launch=launch)), more=repr(launch)
        )

    def upload(self) -> Any:
        """Keep a catalogue, and choose it."""
        portal = self._require_portal()
        sent = flask.request.files.get("file")
        if sent is None or not sent.filename:
            return self.portal("no file was chosen")
        try:
            content = sent.read()
            sent.close()
            name = portal.add_catalog(sent.filename, content)
        except SettingsError as error:
            return self.portal(str(error))
        query = urlencode([*flask.request.args.items(multi=True), ("catalog", name)])
        return flask.redirect(f"{self._root}portal?{query}", 303)

    def configuration(self) -> Any:
        """Return the YAML that does the same."""
        preview = self._require_portal().preview(flask.request.args)
        if preview.faults:
            return self.portal()
        return _attached(preview.configuration.encode(), "portal.yaml", "application/yaml")

    def portal_document(self) -> dict[str, Any]:
        """Return what follows from the choices, and what there is to choose."""
        preview = self._require_portal().preview(flask.request.args)
        return make_document(preview.document(), request_id=0, kind="portal")

    def launch_document(self, name: str) -> dict[str, Any]:
        """Return how far a launch is."""
        launch = self._require_portal().read_launch(name)
        return make_document(make_plain(launch), request_id=launch.run, kind="launch")

    # --- documents --------------------------------------------------------

    def runs_document(self) -> dict[str, Any]:
        """Return the list of runs."""
        days = max(1, min(365, flask.request.args.get("days", 2, type=int)))
        everybody = bool(flask.request.args.get("everybody"))
        found = self._looks.runs(days=days, everybody=everybody).see().value
        return make_document({"runs": found.runs}, request_id=0, kind="runs", problems=found.problems)

    def run_document(self, run: int) -> dict[str, Any]:
        """Return a run, as ``panda_bps show --json`` has it."""
        overview = self._looks.run(run).see().value.overview
        return make_document(overview, request_id=run, name=overview.name)

    def log_document(self, run: int) -> dict[str, Any]:
        """Return the last lines of the log of a job, in the form of ``panda_bps logs --json``."""
        sight = self._looks.run(run).see()
        jobs, _, job = self._find_job(run, sight)
        log = self._read_log(job, sight.value)
        return make_document(
            {"lines": log.lines, "jobs": RunJobs(jobs.value.evidence).identify([job])},
            request_id=run,
            name=sight.value.overview.name,
            kind="logs",
            problems=(log.problem,) if log.problem else (),
        )

    def part_document(self, run: int, kind: str) -> dict[str, Any]:
        """Return errors, resources or jobs, as the commands have them."""
        label = flask.request.args.get("label", "")
        seen = self._looks.jobs(run, label).see().value
        evidence = seen.evidence
        found: Any = seen.groups
        if kind == "resources":
            found = measure_resources(evidence)
        elif kind == "jobs":
            found = RunJobs(evidence).identify(seen.attempts)
        return make_document(
            found,
            request_id=run,
            name=evidence.name,
            kind=kind,
            problems=evidence.problems,
            remarks=find_remarks(evidence),
        )


def _render_run(sight: Sight[RunSight], jobs: Sight[JobsSight] | None, live: _Live) -> str:
    seen = sight.value
    graph, _ = read_task_graph(seen.evidence)
    page = RunPage(
        overview=seen.overview,
        graph=graph,
        groups=jobs.value.groups if jobs is not None else (),
        labels=measure_resources(jobs.value.evidence) if jobs is not None else (),
        jobs=jobs.value.attempts if jobs is not None else (),
        made_at=sight.at,
        version=__version__,
        left_out=jobs.value.left_out if jobs is not None else 0,
        jobs_at=jobs.at if jobs is not None else None,
    )
    return render_page(page, replace(live, seen=seen))


def _attached(content: bytes, name: str, kind: str) -> flask.Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return flask.Response(content, mimetype=kind, headers=headers)


def _last_attempts(attempts: Sequence[JobRecord]) -> list[JobRecord]:
    """Return the last attempt of each job: those that failed first, then those that run."""
    last: dict[tuple[int, str], JobRecord] = {}
    for each in sorted(attempts, key=lambda each: each.panda_id):
        last[each.task_id, each.name] = each

    def rank(job: JobRecord) -> tuple[int, int]:
        return (0 if job.failed else 2 if job.finished or job.killed else 1, job.panda_id)

    return sorted(last.values(), key=rank)


def make_application(
    looks: Looks, visitor: Visitor | None = None, portal: Portal | None = None
) -> flask.Flask:
    """Make the application; below which path it is, the WSGI server says (``SCRIPT_NAME``)."""
    application = make_static_application()
    application.config.update(MAX_CONTENT_LENGTH=LARGEST_FORM)
    pages = _Pages(looks, visitor, portal)
    application.before_request(pages.check)
    application.register_error_handler(PandaBpsError, pages.fail)
    _add_views(
        application,
        ("/", pages.runs),
        ("/runs/<int:run>/", pages.run),
        ("/runs/<int:run>/label", pages.label),
        ("/runs/<int:run>/job", pages.job),
        *RunSets(looks, pages.reply).rules,
        ("/api/runs", pages.runs_document),
        ("/api/runs/<int:run>", pages.run_document),
        ("/api/runs/<int:run>/<any(errors, resources, jobs):kind>", pages.part_document),
        ("/api/runs/<int:run>/logs", pages.log_document),
        ("/runs/<int:run>/images", pages.images),
        (f"/runs/<int:run>/images/<name>.<any({', '.join(IMAGE_KINDS)}):form>", pages.image),
        (f"/runs/<int:run>/tables/<name>.<any({', '.join(TABLE_KINDS)}):form>", pages.table),
        ("/api/runs/<int:run>/images", pages.images_document),
        ("/api/runs/<int:run>/images/<name>", pages.image_document),
        ("/portal", pages.portal),
        ("/portal/portal.yaml", pages.configuration),
        ("/portal/launches/<name>", pages.launched),
        ("/api/portal", pages.portal_document),
        ("/api/portal/launches/<name>", pages.launch_document),
    )
    for name, action in (("cancel", pages.cancel), ("restart", pages.restart)):
        application.add_url_rule(f"/runs/<int:run>/{name}", name, action, methods=["GET", "POST"])
    application.add_url_rule("/portal/launch", "launch", pages.launch, methods=["POST"])
    application.add_url_rule("/portal/catalog", _UPLOAD, pages.upload, methods=["POST"])
    application.add_url_rule("/logout", "logout", pages.logout, methods=["POST"])
    return application


def make_static_application() -> flask.Flask:
    """Make the application with what all pages need and no page: style sheet, script and icon."""
    application = flask.Flask(__name__, static_folder=None)
    static = files(__package__) / "static"
    kinds = {"js": "text/javascript", "svg": "image/svg+xml"}

    @application.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Any:
        return error if error.response is not None else (f"{error.code} {error.name}\n", error.code)

    @application.after_request
    def protect(reply: flask.Response) -> flask.Response:
        reply.headers.update(HEADERS)
        return reply

    def text(content: str, kind: str) -> Callable[[], flask.Response]:
        return lambda: flask.Response(content, mimetype=kind)

    _add_views(
        application,
        ("/static/page.css", text(style_sheet(), "text/css")),
        *(
            (
                f"/static/{path.name}",
                text(path.read_text(encoding="utf-8"), kinds[path.name.rpartition(".")[2]]),
            )
            for path in static.iterdir()
            if path.name.rpartition(".")[2] in kinds
        ),
    )
    return application


def _add_views(application: flask.Flask, *rules: tuple[str, Any]) -> None:
    for rule, view in rules:
        application.add_url_rule(rule, rule, view, methods=["GET"])
