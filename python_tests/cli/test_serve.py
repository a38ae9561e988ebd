"""``vlakern serve`` listens after its warm-up, and ends at SIGTERM with what it counted."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vlakern.cli import main
from vlakern.serve import Client

COMMAND = [sys.executable, "-c", "import sys; from vlakern.cli import main; sys.exit(main())"]


def test_a_policy_is_served_until_sigterm(tmp_path: Path) -> None:
    facts = tmp_path / "serve.json"
    token = tmp_path / "token"
    token.write_text("a-token-that-is-long-enough\n")
    token.chmod(0o600)
    shared = str(tmp_path / "socket")
    words = ["serve", "--port", "0", "--json", str(facts), "--token-file", str(token)]
    words += ["--shared", shared] if sys.platform == "linux" else []
    child = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + 60
        while not facts.exists():
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            assert time.monotonic() < end
            time.sleep(0.05)
        url = json.loads(facts.read_text())["url"]
        with Client(url, token="a-token-that-is-long-enough") as client:
            views = client.metadata["views"]
            images = {f"images/{view}": np.zeros((96, 96, 3), np.uint8) for view in views}
            sent = {**images, "state": np.zeros(4, np.float32), "prompt": "reach"}
            assert client.infer(sent)["actions"].shape == (16, 4)
            assert client.metadata["keys"]["state_width"] == 4
        if sys.platform == "linux":
            with Client(f"shm://{shared}") as client:
                assert client.infer(sent)["actions"].shape == (16, 4)
    finally:
        child.send_signal(signal.SIGTERM)
    said, errors = child.communicate(timeout=30)
    assert child.returncode == 0, errors
    asked = 2 if sys.platform == "linux" else 1
    assert f"{asked} requests, 0 refused" in said
    assert not Path(shared).exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--batch", "0"], "batch is 0"),
        (["--blind-ms", "-1"], "expected more than 0"),
        (["--token-file", "/nonexistent"], "No such file"),
    ],
)
def test_unsafe_words_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vlakern: ")
    assert said in error


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b"\xff\xfe" * 20, "holds no token"),
        (b"a" * 4097, "at most 4096 ASCII letters"),
        (b"a token of\ntwo long lines", "letters that no header holds"),
        (b"short", "at least 16"),
    ],
)
def test_files_that_hold_no_token_are_refused(
    held: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_bytes(held)
    assert main(["serve", "--token-file", str(token)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("vlakern: ")
    assert said in error
