"""The pages: who may see what, a whole study by forms alone, and what happens when saving fails."""

import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from python_tests.blind.conftest import clip
from vlakern.blind.store import verify
from vlakern.blind.tokens import draw_tokens

MP4 = clip()
Make = Callable[..., Any]


def one_trial(operator: Any) -> str:
    """Starts and stops the next trial and answers the guess; returns its code."""
    operator.get()
    if "Take a break" in operator.page:
        operator.send("pause")
        operator.send("pause")
        operator.get()
    code = operator.code
    operator.send("start")
    operator.send("stop", video=MP4)
    if 'action="/guess"' in operator.page:
        operator.send("guess", guess="unknown")
    assert operator.status == 200, operator.page
    return code


def judge_all(judge: Any, success: bool = True) -> int:
    """Judges until nothing waits."""
    done = 0
    judge.get()
    while 'action="/judge"' in judge.page:
        ticks = dict.fromkeys(re.findall(r'name="(milestone-\d)"', judge.page), "yes")
        fields = {"outcome": "success", **ticks}
        if not success:
            fields = {"outcome": "failure", "failure": "stuck"}
        judge.send("judge", **fields)
        assert judge.status == 200, judge.page
        done += 1
    return done


def test_a_whole_study_by_its_pages(pages: Make) -> None:
    """Operator, two judges, adjudicator and analyst take it from the lock to its names."""
    here = pages(judges=2)
    operator, analyst = here.browser("operator"), here.browser("analyst")
    one, two = here.browser("judge-1"), here.browser("judge-2")
    codes = []
    while "All trials are done" not in operator.get():
        codes.append(one_trial(operator))
    assert len(codes) == 16
    assert here.models.groups[0] == 0
    assert here.models.groups[-1] == 1
    assert judge_all(one) == 16
    assert judge_all(two, success=False) == 16
    analyst.get()
    analyst.send("close")
    assert "16 trials are disputed" in analyst.page
    assert analyst.status == 409
    settle = here.browser("adjudicator")
    settle.get()
    for _ in range(16):
        settle.send("adjudicate", outcome="failure", failure="dropped")
        assert settle.status == 200, settle.page
    analyst.get()
    analyst.send("close")
    analyst.send("request")
    analyst.send("unblind", commitment="0" * 64)
    assert "is not the study's" in re.sub("&#39;", "'", analyst.page)
    analyst.send("unblind", commitment=here.desk.plan.commitment)
    assert "The study is open" in analyst.page
    assert verify(here.folder / "record") == len(here.desk.store.events)


def test_each_role_has_its_page_alone(pages: Make) -> None:
    """A judge's cookie starts no trial, an operator's sees no video, nobody without a token."""
    here = pages()
    operator, judge = here.browser("operator"), here.browser("judge-1")
    one_trial(operator)
    judge.get()
    video = re.search(r'src="(/video/\w+\.mp4)"', judge.page)
    assert video is not None
    assert judge.client.get(video[1]).content == MP4
    assert operator.client.get(video[1]).status_code == 403
    for path in ("start", "stop", "abort", "guess", "pause", "close", "request", "unblind"):
        assert judge.client.post(f"/{path}", data={"token": "x"}).status_code == 403
    for path in ("judge", "adjudicate", "close"):
        assert operator.client.post(f"/{path}", data={"token": "x"}).status_code == 403
    stranger = TestClient(here.app, base_url="http://localhost")
    assert "Sign in" in stranger.get("/").text
    assert stranger.get(video[1]).status_code == 403
    assert stranger.get("/download/trials.csv").status_code == 403
    assert judge.client.get("/video/..%2Fplan.json").status_code == 404
    assert stranger.post("/enter", data={"word": "guess"}).status_code == 403


def test_requests_from_elsewhere_are_refused(pages: Make) -> None:
    """Another host's name, another origin, and a form without its session's word."""
    here = pages()
    operator = here.browser("operator")
    client = operator.client
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421
    operator.get()
    before = len(here.desk.store.events)
    answer = client.post("/start", data={}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert client.post("/start", data={"token": "", "code": operator.code}).status_code == 403
    assert len(here.desk.store.events) == before


def test_answers_say_nothing_beside_themselves(pages: Make) -> None:
    """No script, no cache, no times of files; the video's own time says nothing."""
    here = pages()
    operator, judge = here.browser("operator"), here.browser("judge-1")
    one_trial(operator)
    judge.get()
    for path in ("/", re.findall(r'src="([^"]+)"', judge.page)[0], "/style.css"):
        headers = judge.client.get(path).headers
        assert headers["cache-control"] == "no-store"
        assert "script-src" not in headers["content-security-policy"]
        assert not {"etag", "last-modified", "server"} & set(headers)
    assert "<script" not in judge.page + operator.page
    assert {one.stat().st_mtime for one in (here.folder / "videos").iterdir()} == {0.0}


def test_a_form_sent_twice_is_one_trial(pages: Make) -> None:
    """A thumb that taps twice starts, stops and guesses once."""
    here = pages()
    operator = here.browser("operator")
    operator.get()
    first = operator.page
    operator.send("start")
    operator.page = first
    operator.send("start")
    second = operator.page
    operator.send("stop", video=MP4)
    operator.page = second
    operator.send("stop", video=MP4)
    assert operator.status == 200
    kinds = [event.kind for event in here.desk.store.events]
    assert kinds == ["locked", "started", "ended"]
    assert len(list((here.folder / "videos").iterdir())) == 1


def test_what_cannot_be_saved_stays_in_the_form(pages: Make, monkeypatch: Any) -> None:
    """A full disk: the page says so, keeps the choice, and the same form is saved later."""
    here = pages()
    operator = here.browser("operator")
    operator.get()
    operator.send("start")
    real = os.fsync

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    operator.send("abort", reason="operator error")
    assert operator.status == 507
    assert "Not saved: the disk refused (No space left on device)" in operator.page
    assert '<option value="operator error" selected>' in operator.page
    assert "Running now" in operator.page
    operator.send("stop", video=MP4)
    assert operator.status == 507
    assert list((here.folder / "videos").iterdir()) == []
    monkeypatch.setattr(os, "fsync", real)
    operator.send("abort", reason="operator error")
    assert operator.status == 200
    assert "Saved as entry 3" in operator.page
    assert verify(here.folder / "record") == 3


def test_a_wrong_form_is_shown_again(pages: Make) -> None:
    """A failure without its tag keeps what was chosen and says what is missing."""
    here = pages()
    one_trial(here.browser("operator"))
    judge = here.browser("judge-1")
    judge.get()
    judge.send("judge", outcome="failure")
    assert judge.status == 409
    assert "choose a tag that says how it failed" in judge.page
    assert 'value="failure" required checked' in judge.page


def test_a_correction_has_its_own_form(pages: Make) -> None:
    """An earlier judgement is opened again, with a reason."""
    here = pages()
    code = one_trial(here.browser("operator"))
    judge = here.browser("judge-1")
    judge_all(judge)
    judge.get(f"/?code={code}")
    judge.send("judge", outcome="failure", failure="stuck", why="misclick")
    assert judge.status == 200, judge.page
    assert [event.kind for event in here.desk.store.events][-1] == "corrected"
    judge.get("/?code=NOBODY")
    assert judge.status == 404


def test_markup_in_a_study_is_only_text(pages: Make) -> None:
    """A title with tags in it is shown, not obeyed."""
    here = pages(title='"<b>bold</b><script>1</script>"')
    page = here.browser("operator").get()
    assert "&lt;b&gt;bold" in page
    assert "<script" not in page


def test_a_restart_goes_on_with_the_trial(pages: Make) -> None:
    """The server ends while a trial runs: the next one knows it, and its model answers."""
    here = pages()
    operator = here.browser("operator")
    operator.get()
    code = operator.code
    operator.send("start")
    here.desk.close()
    here.models.current = None
    here.desk.__init__(here.folder, here.models)
    running = here.desk.conduct.state.running
    assert running is not None
    assert running.trial.code == here.models.current == code


@pytest.mark.parametrize("body", [b"not a video at all", b""])
def test_what_is_no_video_is_refused(pages: Make, body: bytes) -> None:
    """The trial goes on until a real one is given."""
    here = pages()
    operator = here.browser("operator")
    operator.get()
    operator.send("start")
    operator.send("stop", video=body)
    assert operator.status == 409
    assert "Not saved:" in operator.page
    assert here.desk.conduct.state.running is not None
    assert here.models.current is not None


def test_new_tokens_end_the_old_ones_browsers(pages: Make) -> None:
    """Drawn while the study is served: the earlier ones are void at once, the new ones hold."""
    here = pages()
    operator = here.browser("operator")
    assert "/start" in operator.get()
    new = draw_tokens(here.folder, 1, 1.0)
    operator.get()
    assert "/start" not in operator.page
    assert "/enter" in operator.page
    client = TestClient(here.app, base_url="http://localhost")
    assert "not known" in client.post("/enter", data={"word": here.tokens["operator"]}).text
    assert "/start" in client.post("/enter", data={"word": new["operator"]}).text


def test_a_browser_is_signed_out_when_its_token_expires(pages: Make) -> None:
    """A cookie lives no longer than the token it was given for."""
    here = pages()
    operator = here.browser("operator")
    assert "/start" in operator.get()
    path = here.folder / "sealed/tokens.json"
    path.write_text(re.sub(r'"expires": *[0-9.]+', '"expires": 1.0', path.read_text()))
    operator.get()
    assert "/start" not in operator.page


def test_an_adjudicator_corrects_with_a_reason(pages: Make) -> None:
    """A settled dispute is opened again; the later word counts and the earlier one stays."""
    here = pages(judges=2)
    code = one_trial(here.browser("operator"))
    judge_all(here.browser("judge-1"))
    judge_all(here.browser("judge-2"), success=False)
    settle = here.browser("adjudicator")
    settle.get(f"/?code={code}")
    assert settle.status == 404
    assert "was not settled by you" in settle.page
    settle.get()
    settle.send("adjudicate", outcome="failure", failure="dropped")
    settle.get(f"/?code={code}")
    assert "Correct trial" in settle.page
    settle.send("adjudicate", outcome="failure", failure="stuck", why=" ")
    assert settle.status == 409
    assert "a correction needs a reason" in settle.page
    settle.send("adjudicate", outcome="failure", failure="stuck", why="the wrong tag")
    assert settle.status == 200, settle.page
    kinds = [event.kind for event in here.desk.store.events]
    assert kinds[-2:] == ["adjudicated", "corrected"]
    found = here.desk.conduct.state.trials[code].outcome(2)
    assert (found.success, found.failure) == (False, "stuck")
    assert len(here.desk.conduct.state.trials[code].judgements) == 3
