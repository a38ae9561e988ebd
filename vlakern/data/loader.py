"""Batches by their step in the run, made here or by worker processes: the same bits either way.

Workers are processes, not threads. Two of either made as many samples on two busy cores (from
memory 960 and 965 a second, from video files 323 and 306, one alone 796 and 219), but a process
does not hold the interpreter while training needs it, and a decoder that crashes ends a worker and
not the run. They are forked, so that episodes in memory are shared and not copied. Pictures come as
fp32 that is ready to use: to receive 105 of 96 pixels and round them to bf16 took the training
process 8 ms, and 17 ms as bytes that it normalised and recoloured itself.
"""

import multiprocessing
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import TracebackType

import numpy as np
import torch
from torch.utils import data

from vlakern.data.collate import Augment, Clip, TrainBatch, collate_clips
from vlakern.data.corpus import Corpus
from vlakern.data.quarantine import Damage, Quarantine
from vlakern.data.sampler import Sampler
from vlakern.errors import ConfigError, DatasetError, InputError, VlakernError

__all__ = ["Loader", "Made", "check_batches", "make"]

# Draws for one sample before the dataset is given up.
MOST_DAMAGED = 100
# For the next batch [s]; workers that take longer hang, and torch raises RuntimeError. In so many
# waits, of which a pause of the whole machine uses up one.
PATIENCE, WAITS = 600, 120
# Batches that each worker makes ahead.
AHEAD = 2


@dataclass(frozen=True)
class Made:
    """A batch, how many samples were drawn for it, and those that were damaged."""

    batch: TrainBatch
    drawn: int
    damages: tuple[Damage, ...]


def make(corpus: Corpus, sampler: Sampler, seed: int, numbers: range, augment: Augment) -> Made:
    """The batch of these sample numbers.

    Everything random in a sample comes from a generator of its own, seeded by ``seed``, its number
    and how many damaged samples were drawn in its place.

    Raises:
        DatasetError: 100 samples in a row are damaged.
    """
    damages: list[Damage] = []
    drawn = [_Draw(corpus, sampler, seed, number, augment) for number in numbers]
    clips = [draw.clip(damages) for draw in drawn]
    try:
        batch = collate_clips(corpus.config, corpus.tokenizer, clips, augment)
    except InputError:
        # One of them holds no rotation, or numbers out of range: it alone is replaced.
        clips = [draw.checked(clip, damages) for draw, clip in zip(drawn, clips, strict=True)]
        batch = collate_clips(corpus.config, corpus.tokenizer, clips, augment)
    return Made(batch, len(numbers) + len(damages), tuple(damages))


def check_batches(seed: int, batch_size: int, workers: int, world: int, parts: int) -> None:
    """Refuses what a :class:`Loader` cannot be made of.

    Raises:
        ConfigError: a number below its least, or a batch that cannot be divided.
    """
    numbers = {"seed": (seed, 0), "batch size": (batch_size, 1), "number of workers": (workers, 0)}
    numbers |= {"number of ranks": (world, 1), "number of micro-batches": (parts, 1)}
    for name, (number, least) in numbers.items():
        if number < least:
            raise ConfigError(f"the {name} is {number}, expected at least {least}")
    if batch_size % (world * parts):
        raise ConfigError(
            f"batch size {batch_size} is not divisible by {world} ranks times {parts} parts"
            f" (micro-batches of gradient accumulation); use a multiple of {world * parts}"
        )
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        raise ConfigError("worker processes need a system that can fork; use 0 workers")


class _Draw:
    """What is drawn for one sample number: the sample, and others where it is damaged."""

    def __init__(
        self, corpus: Corpus, sampler: Sampler, seed: int, number: int, augment: Augment
    ) -> None:
        self._corpus, self._sampler, self._augment = corpus, sampler, augment
        self._seed, self._number, self._attempt = seed, number, 0

    def clip(self, damages: list[Damage]) -> Clip:
        """The first that can be read."""
        while self._attempt < MOST_DAMAGED:
            number, attempt = self._number, self._attempt
            sampler = self._sampler
            sample = sampler.instead(number, attempt) if attempt else sampler.sample(number)
            rng = np.random.default_rng((self._seed, number, attempt))
            try:
                return self._corpus.clip(sample, number, self._augment, rng)
            except DatasetError as error:
                damages.append(Damage(self._corpus.name(sample), str(error)))
            self._attempt += 1
        last = damages[-1]
        raise DatasetError(
            f"{MOST_DAMAGED} samples in a row are damaged, the last is {last.name}: {last.reason}"
        )

    def checked(self, clip: Clip, damages: list[Damage]) -> Clip:
        """The clip, or the next one that can be encoded."""
        while True:
            try:
                clip.check()
                return clip
            except InputError as error:
                damages.append(Damage(clip.name, str(error)))
            self._attempt += 1
            clip = self.clip(damages)


class _Batches(data.Dataset[Made | VlakernError]):
    """Made batches by (step, part); an error is returned, so that its sentence stays one."""

    def __init__(self, loader: "Loader") -> None:
        self._loader = loader

    def __getitem__(self, key: tuple[int, int]) -> Made | VlakernError:
        try:
            return self._loader.make(*key)
        except VlakernError as error:
            return error


class _Keys(data.Sampler[tuple[int, int]]):
    """Every (step, part) from ``first`` on, without end."""

    def __init__(self, first: tuple[int, int], parts: int) -> None:
        self._first, self._parts = first, parts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        step, part = self._first
        while True:
            yield step, part
            step, part = (step, part + 1) if part + 1 < self._parts else (step + 1, 0)


class Loader:
    """Batches of a corpus in any order, fastest in the order of a run.

    Sample ``i`` of part ``p`` on rank ``r`` at step ``s`` is number
    ``s * batch_size + (p * world + r) * (batch_size / world / parts) + i`` of the run: the samples
    of a step are the same on any number of ranks, in any number of parts, with any number of
    workers.

    Args:
        seed: of the random changes of samples.
        batch_size: samples of an optimizer step, over all ranks and parts.
        workers: processes that make batches ahead; 0 makes them in this process when asked.
        rank, world: of this process, and how many there are.
        parts: micro-batches of an optimizer step.
        augment: random changes.

    Attributes:
        waited: time that the last :meth:`batch` took to get the batch [s].
        quarantine: what was damaged.

    Raises:
        ConfigError: the batch cannot be divided, or numbers below their least.
    """

    def __init__(
        self,
        corpus: Corpus,
        sampler: Sampler,
        *,
        seed: int,
        batch_size: int,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
        augment: Augment | None = None,
    ) -> None:
        check_batches(seed, batch_size, workers, world, parts)
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world}: expected one below the number of ranks")
        self.waited = 0.0
        self.quarantine = Quarantine()
        self._corpus, self._sampler, self._augment = corpus, sampler, augment or Augment()
        self._seed, self._size, self._parts = seed, batch_size, parts
        self._local, self._workers = batch_size // (world * parts), workers
        self._rank, self._world = rank, world
        self._next: tuple[int, int] | None = None
        self._stream: Iterator[Made | VlakernError] | None = None
        self._processes: list[BaseProcess] = []

    @property
    def quarantined(self) -> dict[str, str]:
        """Name of every damaged sample that was met -> reason."""
        return self.quarantine.reasons

    def numbers(self, step: int, part: int = 0) -> range:
        """The sample numbers of a batch."""
        first = step * self._size + (part * self._world + self._rank) * self._local
        return range(first, first + self._local)

    def make(self, step: int, part: int = 0) -> Made:
        """Makes a batch in this process, whatever the workers do."""
        numbers = self.numbers(step, part)
        return make(self._corpus, self._sampler, self._seed, numbers, self._augment)

    def batch(self, step: int, part: int = 0) -> TrainBatch:
        """The batch of an optimizer step, or its micro-batch ``part``.

        Raises:
            DatasetError: more than 0.1 % of what was drawn is damaged.
        """
        if step < 0 or not 0 <= part < self._parts:
            raise InputError(
                f"step {step}, part {part} is asked for; steps count from 0, and there are"
                f" {self._parts} parts"
            )
        begin = time.perf_counter()
        made = self._take(step, part) if self._workers else self.make(step, part)
        self.waited = time.perf_counter() - begin
        if isinstance(made, VlakernError):
            raise made
        self.quarantine.add(made.drawn, made.damages)
        return made.batch

    def start(self, step: int = 0, part: int = 0) -> None:
        """Starts the workers, so that the first batch is under way; :meth:`batch` does it too."""
        if self._workers:
            self._stream, self._next = self._begin(step, part), (step, part)

    def _begin(self, step: int, part: int) -> Iterator[Made | VlakernError]:
        self.close()
        with warnings.catch_warnings():
            # More workers than cores are the caller's choice.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            batches = data.DataLoader(
                _Batches(self),
                batch_size=None,
                sampler=_Keys((step, part), self._parts),
                num_workers=self._workers,
                prefetch_factor=AHEAD,
                collate_fn=_as_it_is,  # pyright: ignore[reportArgumentType]
                multiprocessing_context="fork",
                worker_init_fn=_stay,
                timeout=PATIENCE / WAITS,
                generator=torch.Generator(),  # the shared one stays as it is without workers
            )
            before = multiprocessing.active_children()
            with _no_errors_from_signals():
                found = iter(batches)
            self._processes = [p for p in multiprocessing.active_children() if p not in before]
            return found

    def close(self) -> None:
        """Ends the workers."""
        stream, self._stream, self._next = self._stream, None, None
        # Dropping the iterator joins its processes, for some seconds each.
        del stream
        for process in self._processes:
            # One that hangs ignores SIGTERM, and the interpreter would wait for it at its end.
            process.kill()
            process.join()
        self._processes = []

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, step: int, part: int) -> Made | VlakernError:
        """The next batch from the workers, which begin anew where the order is left."""
        if self._stream is None or self._next != (step, part):
            self._stream = self._begin(step, part)
        try:
            made = _patiently(self._stream)
        except RuntimeError as error:
            self.close()
            reason = str(error).splitlines()[0]
            raise DatasetError(
                f"the worker processes of the loader failed ({reason}); try fewer workers"
            ) from error
        self._next = (step, part + 1) if part + 1 < self._parts else (step + 1, 0)
        return made


def _patiently(stream: Iterator[Made | VlakernError]) -> Made | VlakernError:
    """The next batch; raises torch's RuntimeError for workers that died, or made none in time."""
    for wait in range(WAITS):
        try:
            return next(stream)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            if wait + 1 == WAITS:
                raise RuntimeError(f"no batch for {PATIENCE} s") from error
        except (OSError, EOFError) as error:
            raise RuntimeError(f"DataLoader worker gone with a batch: {error}") from error
    raise AssertionError


@contextmanager
def _no_errors_from_signals() -> Iterator[None]:
    """Undoes what torch does about SIGCHLD: it would raise wherever the run is when a worker dies.

    Between two waits of ``_patiently`` torch looks for dead workers, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers are the main thread's, and torch sets none in others
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _stay(_: int) -> None:
    """A scheduler's SIGTERM is for the run, which needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _unless_the_run_has_gone


def _unless_the_run_has_gone(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints what a thread of a worker met, but for a run that ended while it fetched a batch."""
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def _as_it_is(made: Made | VlakernError) -> Made | VlakernError:
    return made
