"""The command line as a whole: exit codes, one-sentence errors, the report's head, progress."""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import vlakern
from vlakern import cli
from vlakern.cli import _common
from vlakern.errors import ConfigError

MAIN = "import sys; from vlakern.cli import main; sys.exit(main())"


def vlakern_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    return subprocess.run([sys.executable, "-c", MAIN, *words], capture_output=True, text=True)


def failing(error: BaseException):
    """A verb's ``run`` that raises."""

    def run(_: object) -> int:
        raise error

    return run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """``--version`` prints the package's version and is a success."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlakern {vlakern.__version__}\n"


@pytest.mark.parametrize("words", [[], ["doctr"], ["doctor", "--jsn", "x"], ["doctor", "--json"]])
def test_wrong_words_exit_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No verb, an unknown verb or option, a missing value: exit code 2 and no traceback."""
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    streams = capsys.readouterr()
    assert "Traceback" not in streams.out + streams.err
    assert streams.err


def test_help_is_a_success_and_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` lists the verbs, each with what it does."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name, module in cli.VERBS.items():
        assert name in shown
        assert (module.Args.__doc__ or "").split()[0] in shown


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ConfigError("size is 3, expected 4; write 4"), "size is 3, expected 4; write 4"),
        (KeyboardInterrupt(), "interrupted"),
        (
            OSError(28, "No space left on device"),
            "No space left on device; free some space or write elsewhere, nothing half-written was"
            " left",
        ),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
    ],
)
def test_failure_is_one_sentence_and_exit_code_1(
    error: BaseException,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What goes wrong outside the program is one line on standard error."""
    monkeypatch.setattr(cli.doctor, "run", failing(error))
    assert cli.main(["doctor"]) == 1
    streams = capsys.readouterr()
    assert streams.err == f"vlakern: {sentence}\n"
    assert streams.out == ""


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A programming error keeps its traceback."""
    monkeypatch.setattr(cli.doctor, "run", failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_a_reader_that_leaves_is_no_traceback() -> None:
    """``vlakern --help | head -1`` style pipes end without a complaint."""
    code = (
        "import sys; from vlakern import cli\n"
        "cli.doctor.run = lambda args: print('line\\n' * 200000) or 0\n"
        "sys.exit(cli.main(['doctor']))"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read().decode()
    assert complaint == ""
    assert process.returncode == 1


def test_command_in_its_own_process(tmp_path: Path) -> None:
    """The entry point hands its code to the shell: 0, 1 and 2."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert vlakern_command("--version").returncode == 0
    assert vlakern_command("no-such-verb").returncode == 2
    failed = vlakern_command("doctor", "--json", str(blocked / "x.json"))
    assert failed.returncode == 1
    assert failed.stderr.startswith("vlakern: ")
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["doctor", "collect", "train", "rollout"])
def test_json_is_refused_before_the_work(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every verb finds out at once that its ``--json`` cannot be written, also as root."""
    words = {"doctor": [], "train": ["--data", str(tmp_path / "none")]}
    given = words.get(verb, []) + ([] if verb == "doctor" else ["--out", str(tmp_path / "out")])
    assert cli.main([verb, *given, "--json", "/proc/no.json"]) == 1
    assert capsys.readouterr().err.startswith("vlakern: cannot write /proc/no.json: /proc: ")
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass
class Options:
    """Options as a verb has them."""

    path: Path = Path("a/b")
    sizes: tuple[int, ...] = (1, 2)


def test_report_has_its_head(tmp_path: Path) -> None:
    """The JSON object starts with schema, version, commit, machine and the options."""
    path = tmp_path / "deep/x.json"
    _common.write_report(path, Options(), {"rows": ({"at": Path("c")},)})
    report = json.loads(path.read_text())
    assert list(report) == ["schema", "vlakern", "commit", "machine", "config", "rows"]
    assert report["schema"] == 1
    assert report["vlakern"] == vlakern.__version__
    assert report["config"] == {"path": "a/b", "sizes": [1, 2]}
    assert report["rows"] == [{"at": "c"}]
    machine = report["machine"]
    assert {"cpu", "cores", "memory_gib", "load_average", "system", "python"} <= set(machine)
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0


def test_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout gives its commit, an edited one says so, and an installation gives None."""
    package = tmp_path / "checkout/vlakern/__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    monkeypatch.setattr(vlakern, "__file__", str(package))
    assert _common.commit() is None

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path / "checkout"), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert _common.commit() == head
    package.write_text("edited")
    assert _common.commit() == f"{head}-dirty"


def test_progress_off_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line every 10 s and the last count once, without control characters."""
    now = [100.0]
    monkeypatch.setattr(_common.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with _common.Progress(4, "episodes", stream) as bar:
        for _ in range(4):
            now[0] += 6.0
            bar.update(note="ok")
    assert stream.getvalue().splitlines() == [
        "episodes: 2/4 in 12 s, ok",
        "episodes: 4/4 in 24 s, ok",
    ]


def test_progress_says_at_once_what_may_take_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of its own, though the last is not 10 s old."""
    monkeypatch.setattr(_common.time, "monotonic", lambda: 5.0)
    stream = io.StringIO()
    with _common.Progress(3, "bench", stream) as bar:
        bar.update(note="machine")
        bar.update(note="compiles for minutes", at_once=True)
    assert stream.getvalue() == "bench: 2/3 in 0 s, compiles for minutes\n"


def test_progress_passes_items_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The items come through in order, and the last line has the count."""
    assert list(_common.progress("abc", 3, "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err.endswith("letters: 3/3 in 0 s\n")


def test_progress_says_where_a_failure_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """A loop that is left early reports how far it came."""
    for letter in _common.progress("abc", 3, "letters"):
        if letter == "b":
            break
    assert capsys.readouterr().err.endswith("letters: 1/3 in 0 s\n")
