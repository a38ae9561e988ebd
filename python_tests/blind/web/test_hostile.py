"""Forms that no page made, disks that refuse, and browsers that come back: nothing half done."""

import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from python_tests.blind.conftest import clip, recorded
from vlakern.blind.store import verify

MP4 = clip()
Make = Callable[..., Any]


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow beyond ``room`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)


def hidden(browser: Any, action: str) -> dict[str, str]:
    """The hidden fields of a form of the page."""
    form = re.search(rf'<form[^>]*action="/{action}".*?</form>', browser.page, re.DOTALL)
    assert form is not None, browser.page
    return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form[0]))


def started(here: Any) -> Any:
    operator = here.browser("operator")
    operator.get()
    operator.send("start")
    assert operator.status == 200, operator.page
    return operator


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_disk_that_takes_no_more(pages: Make, room: int) -> None:
    """Said on the page, nothing kept in part, and the same page saves once there is room."""
    here = pages()
    operator = started(here)
    before = len(here.desk.store.events)
    with full_disk(room):
        operator.send("stop", video=MP4)
        assert operator.status == 507
        assert "Not saved: the disk refused" in operator.page
        operator.send("abort", reason="operator error")
        assert operator.status == 507
    assert list((here.folder / "videos").iterdir()) == []
    assert len(here.desk.store.events) == before
    assert here.models.current is not None
    operator.send("stop", video=MP4)
    assert operator.status == 200, operator.page
    assert verify(here.folder / "record") == before + 1
    assert len(list((here.folder / "videos").iterdir())) == 1


BODIES = {
    "nothing": (b"", None),
    "no fields": (b"a=b", "application/x-www-form-urlencoded"),
    "json": (b'{"key": "x", "code": "y"}', "application/json"),
    "words": (b"\xff\xfe\x00", "text/plain"),
    "no boundary": (b"--x\r\n", "multipart/form-data"),
    "an open end": (b"--x\r\nContent-Disposition: form-data; name=key\r\n\r\nabc",
                    "multipart/form-data; boundary=x"),
    "not the boundary": (b"--y\r\n\r\n--y--", "multipart/form-data; boundary=x"),
    "not UTF-8": (b"token=%ff%fe&key=%00", "application/x-www-form-urlencoded"),
    "many fields": (b"&".join(b"a%d=1" % i for i in range(2000)),
                    "application/x-www-form-urlencoded"),
    "many parts": (b"".join(b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n' % i
                            for i in range(2000)) + b"--x--\r\n",
                   "multipart/form-data; boundary=x"),
    "many files": (b"".join(b'--x\r\nContent-Disposition: form-data; name="video"; filename="%d"'
                            b"\r\n\r\n1\r\n" % i for i in range(50)) + b"--x--\r\n",
                   "multipart/form-data; boundary=x"),
    "a file as token": (b'--x\r\nContent-Disposition: form-data; name="token"; filename="f"\r\n\r\n'
                        b"abc\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    "a huge field": (b'--x\r\nContent-Disposition: form-data; name="key"\r\n\r\n' + bytes(2 << 20)
                     + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    "a huge word": (b"token=" + b"a" * (2 << 20), "application/x-www-form-urlencoded"),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_no_page_makes(pages: Make, name: str) -> None:
    """Refused with a page and a number below 500, by every form, and nothing is written."""
    here = pages()
    body, kind = BODIES[name]
    headers = {} if kind is None else {"content-type": kind}
    for role, actions in {
        "operator": ("start", "stop", "abort", "guess", "pause", "enter"),
        "judge-1": ("judge",),
        "analyst": ("close", "request", "unblind"),
    }.items():
        client = here.browser(role).client
        for action in actions:
            answer = client.post(f"/{action}", content=body, headers=headers)
            assert 400 <= answer.status_code < 500, (action, answer.status_code)
            assert 'role="alert"' in answer.text, (action, answer.text)
            assert "Traceback" not in answer.text
    assert len(here.desk.store.events) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"code": "x" * 5000},
        {"code": ""},
        {"key": ""},
        {"key": "k" * 5000},
        {"key": "a\0b", "code": "\0"},
        {"code": "../../sealed/key.json"},
        {"code": "\N{ROBOT FACE}" * 900},
    ],
)
def test_fields_that_no_page_holds(pages: Make, change: dict[str, str]) -> None:
    """A signed-in person's own forgeries change nothing."""
    here = pages()
    operator = here.browser("operator")
    operator.get()
    fields = {**hidden(operator, "start"), **change}
    answer = operator.client.post("/start", data=fields)
    assert answer.status_code in (400, 409), answer.text
    assert len(here.desk.store.events) == 1


def test_one_form_many_times(pages: Make) -> None:
    """300 posts of one form are one event and one answer."""
    here = pages()
    operator = here.browser("operator")
    operator.get()
    fields = hidden(operator, "start")
    for _ in range(300):
        answer = operator.client.post("/start", data=fields, follow_redirects=False)
        assert answer.headers["location"] == "/?saved=2"
    assert verify(here.folder / "record") == 2


@pytest.mark.parametrize(
    "path",
    ["..", "%2e%2e", "..%2f..%2fsealed%2fkey.json", "%00", ".hidden", "x" * 4000, "%ff", "a%5cb",
     "..%5c..%5cplan.json", "%252e%252e%252fplan.json", "."],
)  # fmt: skip
def test_no_way_out_of_the_videos(pages: Make, path: str) -> None:
    """No name but a recorded video's is opened."""
    here = pages()
    judge = here.browser("judge-1")
    answer = judge.client.get(f"/video/{path}", follow_redirects=False)
    assert answer.status_code in (200, 404)
    if answer.status_code == 200:  # the path's dots were taken away on the way
        assert answer.headers["content-type"].startswith("text/html")
    assert "commitment" not in answer.text


def test_a_token_that_expired(pages: Make, monkeypatch: Any) -> None:
    """Refused with the days and what to do; a session that is open ends then, too."""
    here = pages()
    operator = here.browser("operator")
    late = time.time() + 31 * 86_400.0
    monkeypatch.setattr(time, "time", lambda: late)
    other = here.browser_without_token()
    other.send("enter", word=here.tokens["operator"])
    assert other.status == 403
    assert "expired 1.0 days ago" in other.page
    operator.get()
    assert "Sign in" in operator.page


def test_two_operators_at_once(pages: Make) -> None:
    """The second start of one trial is refused with a reason, and the page shows what runs."""
    here = pages()
    one, two = here.browser("operator"), here.browser("operator")
    one.get()
    two.get()
    code = one.code
    one.send("start")
    two.send("start")
    assert two.status == 409
    assert f"trial {code} is running" in two.page
    assert two.code == code
    one.send("stop", video=MP4)
    two.send("abort", reason="operator error")
    assert two.status == 409
    assert [event.kind for event in here.desk.store.events] == ["locked", "started", "ended"]


def test_back_and_send_again(pages: Make) -> None:
    """After saving, the page before it sends another video for the same trial: one is kept."""
    here = pages()
    operator = started(here)
    before = operator.page
    operator.send("stop", video=MP4)
    operator.page = before
    operator.send("abort", reason="operator error")
    assert operator.status == 409
    operator.page = before
    operator.send("stop", video=clip(1))
    assert len(list((here.folder / "videos").iterdir())) == 1
    assert [event.kind for event in here.desk.store.events] == ["locked", "started", "ended"]


def test_after_a_restart_one_signs_in_again(pages: Make) -> None:
    """An old page's form is refused with a sentence, and the token still opens the study."""
    from vlakern.blind.web import make_app

    here = pages()
    operator = started(here)
    operator.client.app = make_app(here.desk)
    operator.client._transport.app = operator.client.app  # the same cookies at a new server
    operator.send("stop", video=MP4)
    assert operator.status == 403
    assert "Sign in with your token first" in operator.page
    operator.send("enter", word=here.tokens["operator"])
    assert "Running now" in operator.page


@pytest.mark.parametrize("path", ["enter", "leave", "start", "stop", "judge", "nothing"])
def test_a_body_without_an_end_is_not_read(pages: Make, path: str) -> None:
    """Nobody fills the disk by sending on and on, with or without a token."""
    here = pages()

    def sending() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="word"; filename="f"\r\n\r\n'
        for _ in range(4):
            yield bytes(1 << 20)

    kind = {"content-type": "multipart/form-data; boundary=x"}
    for browser in (here.browser_without_token(), here.browser("operator")):
        answer = browser.client.post(f"/{path}", content=sending(), headers=kind)
        assert answer.status_code == 411
        assert "does not say how long it is" in answer.text


@pytest.mark.parametrize("length", ["262145", "999999999999", "-1", "+5", "0x10", "\u00b2", ""])
def test_a_body_has_a_length(pages: Make, length: str) -> None:
    """A number, and no more than a form without a video needs."""
    here = pages()
    headers = {"content-length": length.encode("latin-1")}
    kind = {"content-type": "application/x-www-form-urlencoded"}
    client = here.browser_without_token().client
    answer = client.post("/enter", content=b"word=x", headers={**headers, **kind})
    assert answer.status_code in (411, 413)
    assert 'role="alert"' in answer.text


def test_a_disk_that_takes_no_upload(pages: Make) -> None:
    """A long video waits on disk while it comes in; that this fails is said on the page, too."""
    here = pages()
    operator = started(here)
    long = recorded() + bytes(3 << 20)
    with full_disk(100_000):
        operator.send("stop", video=long)
        assert operator.status == 507
        assert "Not saved: the disk refused" in operator.page
    operator.send("stop", video=long)
    assert operator.status == 200, operator.page
