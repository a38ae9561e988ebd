"""What the pages act upon: one study's rules, models, videos and tokens."""

import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

from vlakern.blind.events import Event
from vlakern.blind.protocol import Conduct
from vlakern.blind.results import Judgement
from vlakern.blind.seal import open_key, read_plan
from vlakern.blind.store import Store, sync_folder
from vlakern.blind.tokens import Tokens, read_tokens
from vlakern.blind.video import strip
from vlakern.errors import StudyError, VlakernError

__all__ = ["Desk", "Models", "NoModels"]

LOG = logging.getLogger(__name__)
VIDEOS, RECORD = "videos", "record"
MOST_BYTES = 512 << 20  # of a video
PART = ".part"  # of one that is being written


class Models(Protocol):
    """What runs the trials; see :class:`vlakern.blind.router.Router`."""

    def prepare(self, group: int) -> None: ...
    def begin(self, code: str) -> None: ...
    def end(self) -> int: ...


class NoModels:
    """For steps that need no robot."""

    def prepare(self, group: int) -> None:
        """Nothing to load."""

    def begin(self, code: str) -> None:
        """Nobody answers."""

    def end(self) -> int:
        """No requests."""
        return 0


class Desk:
    """A study that is open for work. Forms come from many threads, and take turns.

    Args:
        folder: of a locked study.
        models: who answers the robot.
        late: replies so far that left after their time.

    Raises:
        StudyError: the study is damaged, was changed after the lock, or is open elsewhere.
    """

    def __init__(self, folder: Path, models: Models, late: Callable[[], int] = lambda: 0) -> None:
        self.folder, self.models, self._late = folder, models, late
        self.plan = read_plan(folder)
        read_tokens(folder)
        spares = open_key(folder).allocation.spares
        self.store = Store(folder / RECORD)
        self.videos = folder / VIDEOS
        for path in (folder, self.videos):  # of a study that an older version locked, too
            path.chmod(0o700)
        self.conduct = Conduct(self.plan, self.store, spares, self.videos)
        self._turn = threading.RLock()
        self._late_before = 0
        for left in self.videos.glob(f".*{PART}"):  # by a crash
            left.unlink()
        self._resume()

    @property
    def tokens(self) -> Tokens:
        """As they are now: those drawn meanwhile hold, and the earlier ones do not."""
        return read_tokens(self.folder)

    def close(self) -> None:
        """Gives the record free."""
        self.store.close()

    def start(self, key: str, code: str) -> Event:
        """Starts a trial: its group's models are loaded, then its own answers."""
        with self._turn:
            turn = self.conduct.state.next
            if turn is not None and turn.trial.code == code and self.conduct.rest() is None:
                self._prepare(turn.trial.group)
            event = self.conduct.start(key, "operator", code)
            self._resume()
            return event

    def stop(self, key: str, code: str, video: BinaryIO) -> Event:
        """Ends the trial that runs, with its video."""
        with self._turn:
            known = self.store.find(key)
            if known is not None:
                return self._same(known, code, video)
            running = self.conduct.state.running
            if running is None or running.trial.code != code:
                raise StudyError(f"trial {code[:16]} is not running; reload the page")
            name = self._keep(video)
            requests = self.models.end()
            try:
                return self.conduct.end(
                    key, "operator", code, name, requests, self._late() - self._late_before
                )
            finally:
                if self.conduct.state.running is not None:  # nothing was saved: it goes on
                    if self.store.settled:
                        (self.videos / name).unlink(missing_ok=True)
                    self._resume()

    def abort(self, key: str, code: str, reason: str) -> Event:
        """Voids the trial that runs."""
        with self._turn:
            event = self.conduct.abort(key, "operator", code, reason)
            self.models.end()
            return event

    def guess(self, key: str, code: str, choice: str) -> Event:
        """The operator's guess after a trial."""
        with self._turn:
            return self.conduct.guess(key, "operator", code, choice)

    def pause(self, key: str) -> Event:
        """Begins or ends a break."""
        with self._turn:
            return self.conduct.pause(key, "operator")

    def judge(self, key: str, code: str, verdict: Judgement, why: str = "") -> Event:
        """A judgement, or with a reason a correction of an earlier one."""
        with self._turn:
            if why:
                return self.conduct.correct(key, verdict.judge, code, verdict, why)
            return self.conduct.judge(key, verdict.judge, code, verdict)

    def adjudicate(self, key: str, code: str, verdict: Judgement, why: str = "") -> Event:
        """The word that settles a dispute, or with a reason a correction of an earlier one."""
        with self._turn:
            if why:
                return self.conduct.correct(key, verdict.judge, code, verdict, why)
            return self.conduct.adjudicate(key, verdict.judge, code, verdict)

    def finish(self, key: str, incomplete: str) -> Event:
        """Closes the study."""
        with self._turn:
            return self.conduct.close(key, "analyst", incomplete)

    def look(self, key: str) -> Event:
        """Which comparisons of a sequential design are decided, under aliases."""
        from vlakern.blind.look import look

        with self._turn:
            verdicts = look(self.plan, open_key(self.folder), self.conduct.state)
            return self.conduct.look(key, "analyst", verdicts)

    def request(self, key: str) -> Event:
        """The first step to the names."""
        with self._turn:
            return self.conduct.request(key, "analyst")

    def unblind(self, key: str, commitment: str) -> Event:
        """The second step to the names."""
        with self._turn:
            return self.conduct.unblind(key, "analyst", commitment.strip())

    def _resume(self) -> None:
        """The trial that the record says is running gets its model, also after a restart."""
        running = self.conduct.state.running
        if running is not None:
            self.models.prepare(running.trial.group)
            self.models.begin(running.trial.code)
            self._late_before = self._late()

    def _prepare(self, group: int) -> None:
        """Loads a group; why it failed names models, and is for the runner's terminal alone."""
        try:
            self.models.prepare(group)
        except VlakernError as error:
            LOG.error("the models of group %d: %s", group + 1, error)
            raise StudyError(
                f"the models of group {group + 1} are not ready; the runner's terminal says why"
            ) from None

    def _same(self, known: Event, code: str, video: BinaryIO) -> Event:
        """The answer to a form that comes again: what it holds has to be what was saved."""
        if (known.kind, known.data.get("code")) != ("ended", code):
            raise StudyError("this form was saved before with another content; reload the page")
        name = self._keep(video)
        path = self.videos / name
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != known.data["sha256"]:
                raise StudyError(f"trial {code} has ended with another video, which is kept")
        finally:
            path.unlink()
        return known

    def _keep(self, video: BinaryIO) -> str:
        """Writes a video's pictures, under a name and a time that say nothing; returns the name."""
        if video.seek(0, os.SEEK_END) > MOST_BYTES:
            raise StudyError(f"the video is larger than {MOST_BYTES >> 20} MiB")
        stem = secrets.token_hex(12)
        temporary = self.videos / f".{stem}{PART}"
        try:
            temporary.touch(0o600)
            name = f"{stem}{strip(video, temporary)}"
            os.utime(temporary, (0, 0))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(self.videos / name)
            sync_folder(self.videos)  # else the event that names it could outlive it
        finally:
            temporary.unlink(missing_ok=True)
        return name
