"""A browser without a screen: reads the forms of a page and sends them, as a person would."""

import urllib.error
import urllib.request
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.cookiejar import CookieJar
from typing import Any

from vlakern.errors import StudyError

__all__ = ["Browser"]

BOUNDARY = "----study-form"


@dataclass
class _Form:
    """Where a form goes, its hidden fields, and the names of the others."""

    action: str
    hidden: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    """Forms, definitions (term -> text), the big code and messages of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: dict[str, _Form] = {}
        self.facts: dict[str, str] = {}
        self.code = self.error = self.video = ""
        self._form: _Form | None = None
        self._inside = self._term = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._form = self.forms[found["action"]] = _Form(found["action"])
        elif tag in ("input", "select", "textarea", "button") and self._form is not None:
            name = found.get("name", "")
            if found.get("type") == "hidden":
                self._form.hidden[name] = found["value"]
            elif name:
                self._form.names.append(name)
        elif tag == "video":
            self.video = found["src"]
        if tag in ("dt", "dd"):
            self._inside = tag
        elif tag == "p":
            kinds = found.get("class", "").split()
            self._inside = next((one for one in ("code", "error") if one in kinds), "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        if tag in ("p", "dt", "dd"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "dt":
            self._term = data
            self.facts[data] = ""
        elif self._inside == "dd":
            self.facts[self._term] += data
        elif self._inside == "code":
            self.code += data.strip()
        elif self._inside == "error":
            self.error += data


class Browser:
    """A role's session with the pages of a study.

    Args:
        url: of the pages.
        token: of the role.

    Attributes:
        page: the last page: its ``forms``, ``facts``, ``code``, ``video`` and ``error``.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._open = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(CookieJar())
        ).open
        self.page = _Reader()
        self.read()
        self.send("/enter", word=token)

    def read(self) -> None:
        """Loads the role's page."""
        self._ask(urllib.request.Request(f"{self._url}/"))

    def send(self, action: str, video: bytes | None = None, **fields: str) -> None:
        """Sends a form of the page with its hidden fields.

        Raises:
            StudyError: the page has no such form, or says that it was not saved.
        """
        form = self.page.forms.get(action)
        if form is None:
            raise StudyError(f"the page has no form {action}; it has {list(self.page.forms)}")
        unknown = set(fields) - set(form.names)
        if unknown:
            raise StudyError(f"form {action} has no field {sorted(unknown)[0]!r}")
        body = _multipart({**form.hidden, **fields}, video)
        request = urllib.request.Request(f"{self._url}{action}", body)
        request.add_header("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
        self._ask(request)

    def _ask(self, request: urllib.request.Request) -> None:
        try:
            with self._open(request, timeout=600) as answer:
                self.page = _read(answer)
        except urllib.error.HTTPError as error:
            self.page = _read(error)
            raise StudyError(self.page.error.strip() or f"the page says {error.code}") from error
        if self.page.error:
            raise StudyError(self.page.error.strip())


def _read(answer: Any) -> _Reader:
    page = _Reader()
    page.feed(answer.read().decode())
    return page


def _multipart(fields: dict[str, str], video: bytes | None) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if video is not None:
        head = 'Content-Disposition: form-data; name="video"; filename="trial.mp4"'
        parts.append(f"--{BOUNDARY}\r\n{head}\r\nContent-Type: video/mp4\r\n\r\n".encode())
        parts.append(video + b"\r\n")
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])
