"""A study behind its pages: browsers that are signed in, and a model runner that only counts."""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from vlakern.blind.seal import lock
from vlakern.blind.tokens import draw_tokens
from vlakern.blind.web import Desk, make_app


@dataclass
class Counted:
    """Stands for the models: which trial is on, and which groups were loaded."""

    current: str | None = None
    groups: list[int] = field(default_factory=list)

    def prepare(self, group: int) -> None:
        self.groups.append(group)

    def begin(self, code: str) -> None:
        self.current = code

    def end(self) -> int:
        self.current = None
        return 7


@dataclass
class Browser:
    """One person's browser: reads forms out of pages and sends them."""

    client: TestClient
    page: str = ""
    status: int = 200

    def get(self, path: str = "/") -> str:
        answer = self.client.get(path)
        self.page, self.status = answer.text, answer.status_code
        return self.page

    def send(self, action: str, video: bytes | None = None, **fields: str) -> str:
        """Sends the page's form of that action with its hidden fields; returns the next page."""
        form = re.search(rf'<form[^>]*action="/{action}".*?</form>', self.page, re.DOTALL)
        assert form is not None, f"no form {action} in {self.page}"
        hidden = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form[0]))
        files = None if video is None else {"video": ("clip.mp4", video, "video/mp4")}
        answer = self.client.post(f"/{action}", data={**hidden, **fields}, files=files)
        self.page, self.status = answer.text, answer.status_code
        return self.page

    @property
    def code(self) -> str:
        found = re.search(r'<p class="code">([A-Z0-9]+)</p>', self.page)
        assert found is not None, self.page
        return found[1]


@dataclass
class Pages:
    """A study with one browser for each role."""

    desk: Desk
    models: Counted
    tokens: dict[str, str]
    app: Any
    folder: Path

    def browser_without_token(self) -> Browser:
        found = Browser(TestClient(self.app, base_url="http://localhost"))
        found.get()
        return found

    def browser(self, role: str) -> Browser:
        found = self.browser_without_token()
        found.send("enter", word=self.tokens[role])
        assert found.status == 200, found.page
        return found


@pytest.fixture
def pages(tmp_path: Path, study_file: Path) -> Iterator[Callable[..., Pages]]:
    """Locks a study and serves its pages."""
    desks: list[Desk] = []

    def make(**changes: Any) -> Pages:
        text = study_file.read_text()
        for name, value in {"minutes": 0.0, "between_groups": 0.0, **changes}.items():
            text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        study_file.write_text(text)
        folder = tmp_path / "study"
        public = lock(study_file, folder, random.Random(1))
        tokens = draw_tokens(folder, public.judges, 30.0)
        models = Counted()
        desks.append(Desk(folder, models))
        return Pages(desks[-1], models, tokens, make_app(desks[-1]), folder)

    yield make
    for desk in desks:
        desk.close()
