"""Routes of the pages: sessions, forms, answers. No script, nothing from elsewhere, no cache."""

import base64
import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from vlakern.blind.web import views
from vlakern.blind.web.desk import Desk
from vlakern.blind.web.download import export, report
from vlakern.errors import StudyError, VlakernError

__all__ = ["make_app"]

HERE = Path(__file__).parent
COOKIE = "study"
MOST_VIDEO, MOST_FORM = 520 << 20, 1 << 18  # bytes of a form with a video, and of another
MOST_FIELD = 4000  # characters
POLICY = (
    "default-src 'none'; style-src 'self'; media-src 'self'; img-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
POLICY_HEADER = "Content-Security-Policy"
HEADERS = {
    POLICY_HEADER: POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
SILENT = ("etag", "last-modified", "server")
KEY = re.compile("[0-9a-f]{32}")  # of a form, as the pages draw it
KINDS = ("application/x-www-form-urlencoded", "multipart/form-data")
Form = dict[str, Any]


@dataclass
class _Session:
    """A browser that showed a token."""

    role: str
    kept: Any  # of its token, when it was shown
    secret: str = field(default_factory=lambda: secrets.token_hex(16))


class _Sessions:
    """Browsers by cookie; a restart of the server, or their token's end, signs them out."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._open = desk, dict[str, _Session]()

    def begin(self, role: str) -> str:
        cookie = secrets.token_urlsafe(24)
        self._open[cookie] = _Session(role, self._desk.tokens.kept[role])
        return cookie

    def of(self, request: Request) -> _Session | None:
        found = self._open.get(request.cookies.get(COOKIE, ""))
        if found is None or self._desk.tokens.kept.get(found.role) != found.kept:
            return None  # new tokens were drawn
        return None if time.time() >= found.kept.expires else found

    def end(self, request: Request) -> None:
        self._open.pop(request.cookies.get(COOKIE, ""), None)


class _Pages:
    """Renders a role's page and takes its forms."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.sessions = desk, _Sessions(desk)
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def show(
        self,
        session: _Session | None,
        *,
        typed: Mapping[str, str] | None = None,
        error: str = "",
        status: int = 200,
        query: Mapping[str, str] | None = None,
    ) -> Response:
        """The page of a session; ``typed`` is what a form held that was not saved."""
        page = "enter" if session is None else session.role.split("-")[0]
        values: dict[str, Any] = {
            "title": self.desk.plan.title,
            "error": error,
            "saved": (query or {}).get("saved", ""),
            "role": "" if session is None else session.role,
            "token": "" if session is None else session.secret,
        }
        known = defaultdict(str, typed or {})
        values |= self._view(session, known, (query or {}).get("code", ""))
        text = self._templates.get_template(f"{page}.html").render(values)
        return HTMLResponse(text, status)

    def _view(
        self, session: _Session | None, typed: Mapping[str, str], code: str
    ) -> dict[str, Any]:
        if session is None:
            return {}
        if session.role.startswith("judge"):
            return views.judge(self.desk, session.role, typed, code)
        if session.role == "adjudicator":
            return views.adjudicator(self.desk, typed, code)
        made = {"operator": views.operator}
        return made.get(session.role, views.analyst)(self.desk, typed)

    async def take(
        self, request: Request, role: str, action: Callable[[_Session, Form], Any]
    ) -> Response:
        """Runs a form's action: back to the page when it is saved, the same page when not."""
        session = self.sessions.of(request)
        if session is None or session.role.split("-")[0] != role:
            return self.show(None, error="Sign in with your token first.", status=403)
        try:
            form = await _form(request)
        except StudyError as error:
            return self.show(session, error=f"Not saved: {error}.", status=400)
        except OSError as error:  # a video waits on disk while it comes in
            return self.show(session, error=_refused(error), status=507)
        typed = {name: value for name, value in form.items() if isinstance(value, str)}
        if not hmac.compare_digest(typed.get("token", "").encode(), session.secret.encode()):
            return self.show(session, error="This form is too old; send it again.", status=403)
        if KEY.fullmatch(typed.get("key", "")) is None:
            return self.show(session, error="This form is not whole; send it again.", status=400)
        try:
            event = await run_in_threadpool(action, session, form)
        except VlakernError as error:
            return self._again(session, typed, f"Not saved: {error}.", 409)
        except (OSError, sqlite3.Error) as error:
            return self._again(session, typed, _refused(error), 507)
        return RedirectResponse(f"/?saved={event.number + 1}", 303)

    def refuse(self, request: Request, error: str, status: int) -> Response:
        """The page of who asks, with why nothing was done."""
        return self.show(self.sessions.of(request), error=error, status=status)

    def _again(
        self, session: _Session, typed: Mapping[str, str], error: str, status: int
    ) -> Response:
        code = typed.get("code", "") if typed.get("why") is not None else ""
        return self.show(session, typed=typed, error=error, status=status, query={"code": code})


def make_app(desk: Desk, hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "::1")) -> FastAPI:
    """The pages of a study.

    Args:
        hosts: names under which the pages may be asked for; others are refused.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages = _Pages(desk)
    _guard(app, pages, hosts)
    _common(app, pages)
    _operator(app, pages)
    _judges(app, pages)
    _analyst(app, pages)
    return app


def _guard(app: FastAPI, pages: _Pages, hosts: tuple[str, ...]) -> None:
    @app.middleware("http")
    async def guard(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        host = request.headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "") if host else ""
        origin = request.headers.get("origin")
        asks = request.method in ("GET", "HEAD")
        size = request.headers.get("content-length", "0" if asks else "")
        most = MOST_VIDEO if request.url.path == "/stop" else MOST_FORM
        if name not in hosts:
            response: Response = Response("this host is not served\n", 421)
        elif origin not in (None, f"{request.url.scheme}://{host}"):
            response = Response("forms come from these pages alone\n", 403)
        elif not size.isdecimal():  # a body without an end would fill the disk
            response = pages.refuse(
                request, "Not saved: the form does not say how long it is.", 411
            )
        elif int(size) > most:
            sentence = f"Not saved: the form has {int(size):,} bytes, expected at most {most:,}."
            response = pages.refuse(request, sentence, 413)
        else:
            response = await call_next(request)
        for header, value in HEADERS.items():
            response.headers.setdefault(header, value)
        for header in SILENT:
            if header in response.headers:
                del response.headers[header]
        return response


def _common(app: FastAPI, pages: _Pages) -> None:
    @app.get("/style.css")
    async def style() -> Response:
        return FileResponse(HERE / "style.css", media_type="text/css")

    @app.get("/")
    async def page(request: Request) -> Response:
        session = pages.sessions.of(request)
        try:
            return pages.show(session, query=dict(request.query_params))
        except StudyError as error:
            return pages.show(session, error=f"{error}.", status=404)

    @app.post("/enter")
    async def enter(request: Request) -> Response:
        try:
            form = await _form(request)
            role = pages.desk.tokens.role(str(form.get("word", "")).strip())
        except StudyError as error:
            return pages.show(None, error=f"{error}.", status=403)
        response = RedirectResponse("/", 303)
        response.set_cookie(COOKIE, pages.sessions.begin(role), httponly=True, samesite="strict")
        return response

    @app.post("/leave")
    async def leave(request: Request) -> Response:
        pages.sessions.end(request)
        return RedirectResponse("/", 303)


def _operator(app: FastAPI, pages: _Pages) -> None:
    desk = pages.desk
    actions: dict[str, Callable[[_Session, Form], Any]] = {
        "start": lambda _, form: desk.start(_text(form, "key"), _text(form, "code")),
        "stop": lambda _, form: desk.stop(
            _text(form, "key"), _text(form, "code"), _upload(form).file
        ),
        "abort": lambda _, form: desk.abort(
            _text(form, "key"), _text(form, "code"), _text(form, "reason")
        ),
        "guess": lambda _, form: desk.guess(
            _text(form, "key"), _text(form, "code"), _text(form, "guess")
        ),
        "pause": lambda _, form: desk.pause(_text(form, "key")),
    }
    for name, action in actions.items():
        _post(app, pages, "operator", name, action)


def _judges(app: FastAPI, pages: _Pages) -> None:
    desk = pages.desk

    def judge(session: _Session, form: Form) -> Any:
        found = views.verdict(desk, session.role, form)
        return desk.judge(_text(form, "key"), _text(form, "code"), found, _why(form))

    def adjudicate(session: _Session, form: Form) -> Any:
        found = views.verdict(desk, session.role, form)
        return desk.adjudicate(_text(form, "key"), _text(form, "code"), found, _why(form))

    _post(app, pages, "judge", "judge", judge)
    _post(app, pages, "adjudicator", "adjudicate", adjudicate)

    @app.get("/video/{name}")
    async def video(request: Request, name: str) -> Response:
        session = pages.sessions.of(request)
        known = {one.video for one in desk.conduct.state.trials.values() if one.video}
        if session is None or not session.role.startswith(("judge", "adjudicator")):
            return pages.show(None, error="Sign in with a judge's token first.", status=403)
        if name not in known or not (desk.videos / name).is_file():
            return pages.show(session, error="This video is not there.", status=404)
        kind = "video/webm" if name.endswith(".webm") else "video/mp4"
        return FileResponse(desk.videos / name, media_type=kind)


def _analyst(app: FastAPI, pages: _Pages) -> None:
    desk = pages.desk
    actions: dict[str, Callable[[_Session, Form], Any]] = {
        "look": lambda _, form: desk.look(_text(form, "key")),
        "close": lambda _, form: desk.finish(_text(form, "key"), _text(form, "incomplete")),
        "request": lambda _, form: desk.request(_text(form, "key")),
        "unblind": lambda _, form: desk.unblind(_text(form, "key"), _text(form, "commitment")),
    }
    for name, action in actions.items():
        _post(app, pages, "analyst", name, action)

    @app.get("/download/{name}")
    async def download(request: Request, name: str) -> Response:
        session = pages.sessions.of(request)
        if session is None or session.role != "analyst":
            return pages.show(None, error="Sign in with the analyst's token first.", status=403)
        made = {"trials.csv": (export, "text/csv"), "report.html": (report, "text/html")}
        if name not in made:
            return pages.show(session, error="There is no such file.", status=404)
        make, kind = made[name]
        try:
            text = await run_in_threadpool(make, desk)
        except VlakernError as error:
            return pages.show(session, error=f"{error}.", status=409)
        return Response(text, media_type=kind, headers={POLICY_HEADER: _own_style(text)})


def _post(
    app: FastAPI,
    pages: _Pages,
    role: str,
    name: str,
    action: Callable[[_Session, Form], Any],
) -> None:
    @app.post(f"/{name}")
    async def post(request: Request) -> Response:
        return await pages.take(request, role, action)


async def _form(request: Request) -> Form:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in KINDS:
        raise StudyError("a form was expected and something else was sent; reload the page")
    try:
        found = await request.form(max_files=1, max_fields=40)
    # A multipart body without a boundary, or with a charset that nobody knows.
    except (HTTPException, LookupError, ValueError) as error:
        reason = error.detail if isinstance(error, HTTPException) else "it has no boundary"
        raise StudyError(f"the form cannot be read ({reason}); reload the page") from error
    return {
        name: value[:MOST_FIELD] if isinstance(value, str) else value
        for name, value in found.items()
    }


def _refused(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"Not saved: the disk refused ({reason}). Free space there and send it again."


def _own_style(text: str) -> str:
    """The policy that lets a page use the one style sheet inside it, and no other."""
    found = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    if found is None:
        return POLICY
    digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
    return POLICY.replace("style-src 'self'", f"style-src 'sha256-{digest}'")


def _text(form: Form, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise StudyError(f"field {name!r} is a file, expected words")
    return value


def _why(form: Form) -> str:
    """Why an earlier judgement is corrected; empty for a first one."""
    why = _text(form, "why") if "why" in form else ""
    if "why" in form and not why.strip():
        raise StudyError("a correction needs a reason")
    return why


def _upload(form: Form) -> UploadFile:
    value = form.get("video")
    if not isinstance(value, UploadFile) or not value.size:
        raise StudyError("choose the trial's video first")
    return value
