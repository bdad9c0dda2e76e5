"""Threads that end a process when another rank is gone or stuck, which JAX alone may never notice.

Every second each rank tells the others that it lives, how far it is and the line it is at; what it
dies of, too. What all say is kept by JAX's coordination service, which lives in rank 0.
"""

import json
import os
import re
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

FAILED = 3  # the status of a process that ends because of another, or in disagreement
COMPILING = 600.0  # seconds that a compiler may take, while all that is heard is that a rank lives


class Store:
    """Words by key, from all ranks to all. JAX keeps it private: where it is gone nothing is heard,
    and only JAX's own heartbeats and a rank's own patience are left."""

    def __init__(self, client: Any = None) -> None:
        needed = ("key_value_set", "key_value_dir_get")
        self._client: Any = client if all(hasattr(client, name) for name in needed) else None

    def __bool__(self) -> bool:
        return self._client is not None

    def put(self, folder: str, rank: int, words: Any) -> None:
        self._client.key_value_set(f"{folder}/{rank}", json.dumps(words), allow_overwrite=True)

    def all(self, folder: str) -> dict[int, Any]:
        found = self._client.key_value_dir_get(folder)
        return {int(key.rsplit("/", 1)[1]): json.loads(words) for key, words in found}


class Beat(NamedTuple):
    """What a rank says of itself; `number` grows with every beat, `marks` with its progress."""

    number: int = -1
    marks: int = 0
    step: int = 0
    place: str = "its start"


class Watchdog:
    """Ends this process, with a reason, when a rank has been silent or nothing has moved for long.

    How long is `patience`, in seconds: of silence, from the last new beat; of standing still, from
    the last `reached`, but there at least twice the longest wait so far: epochs may be long.
    """

    def __init__(self, rank: int, ranks: int, patience: float, store: Store) -> None:
        now = time.monotonic()
        self.rank, self.patience, self.store = rank, patience, store
        self.said: dict[int, str] = {}  # why ranks ended, by those that could say it
        self.tick = min(1.0, patience / 10)
        self._heard = {other: (Beat(), now) for other in range(ranks)}
        self._answered = now
        self._marks, self.step, self._since, self._longest = 0, 0, now, 0.0
        self._within: float | None = COMPILING
        self._over, self._ending = threading.Event(), threading.Lock()
        self._launcher = int(os.environ.get("LOCAL_LAUNCHER", 0))
        self._threads = [threading.Thread(target=self._judge, daemon=True)]
        if store:
            self._threads.append(threading.Thread(target=self._talk, daemon=True))
        for thread in self._threads:
            thread.start()

    def reached(self, step: int, within: float | None = None) -> None:
        """The main thread is at this step; it will say the next in `within` seconds."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._since)
        self._marks, self.step, self._since, self._within = self._marks + 1, step, now, within

    def waits(self) -> None:
        """The main thread has done its part and waits for the others; who does not is behind."""
        self._marks += 1

    def _talk(self) -> None:
        """Beats and listens. It may hang for as long as rank 0 does, so that another judges."""
        for number in count():
            try:
                beat = Beat(number, self._marks, self.step, _place())
                self.store.put("beat", self.rank, beat)
                beats, said = self.store.all("beat"), self.store.all("end")
            except Exception:  # whatever it is, it counts as no answer
                pass
            else:
                self._hear(beats, said, time.monotonic())
            if self._over.wait(self.tick):
                return

    def _hear(self, beats: dict[int, Any], said: dict[int, str], now: float) -> None:
        self._answered, self.said = now, said
        for rank, words in beats.items():
            if (beat := Beat(*words)).number != self._heard[rank][0].number:
                self._heard[rank] = (beat, now)

    def _judge(self) -> None:
        while not self._over.wait(self.tick / 2):
            if reason := self.verdict(time.monotonic()):
                self.end(reason)

    def verdict(self, now: float) -> str:
        """Why this process has to end; '' while it has not."""
        if self.said:
            return next(iter(self.said.values()))
        if self._launcher and os.getppid() != self._launcher:
            return "the launcher is gone"
        if silent := self.silent(now, self.patience):
            return silent
        limit = self._within or max(self.patience, 2 * self._longest)
        if now - self._since <= limit:
            return ""
        if silent := self.silent(now, self.patience / 2):  # since a beat after the last that moved
            return silent
        return f"nothing has moved for {now - self._since:.0f} s: {self._where()}"

    def silent(self, now: float, seconds: float) -> str:
        """Who has not been heard of for so long, the longest first; '' where there is nobody."""
        if not self.store:
            return ""
        late = {r: when for r, (_, when) in self._heard.items() if now - when > seconds}
        late.pop(self.rank, None)
        # the service was heard of at rank 0's last beat, or a little later
        unanswered = now - self._answered > (seconds / 2 if 0 in late else seconds)
        if self.rank and unanswered:
            found = [("rank 0, with the coordination service,", self._answered, self._heard[0][0])]
        else:
            by = sorted(late, key=lambda rank: (late[rank], rank))
            found = [(f"rank {rank}", late[rank], self._heard[rank][0]) for rank in by]
        return "; ".join(
            f"{who} was last heard of {now - when:.0f} s ago, at step {beat.step}: "
            "killed, stopped or cut off"
            for who, when, beat in found
        )

    def _where(self) -> str:
        """Who is behind, if anybody is, and the line that each main thread is at."""
        own = Beat(0, self._marks, self.step, _place())
        beats = {rank: beat for rank, (beat, _) in self._heard.items()} | {self.rank: own}
        least, most = (f(beat.marks for beat in beats.values()) for f in (min, max))
        behind = [f"rank {rank}" for rank, beat in beats.items() if beat.marks == least < most]
        places = [f"rank {r} is at step {b.step}, {b.place}" for r, b in sorted(beats.items())]
        return "; ".join([f"{' and '.join(behind)} is behind"] * bool(behind) + places)

    def suspect(self) -> str:
        """After a failed collective: who is gone, a few beats later; '' where all are there."""
        gone, until = "", time.monotonic() + 5 * self.tick
        while not gone and time.monotonic() < until:
            time.sleep(self.tick / 4)
            gone = next(iter(self.said.values()), "")
            gone = gone or self.silent(time.monotonic(), 3 * self.tick)
        return gone

    def end(self, reason: str) -> NoReturn:
        """Says why, to people and to the other ranks, and is gone: what is left may hang."""
        with self._ending:  # of two threads the first
            own = f"rank {self.rank}"
            tell(reason if re.match(rf"{own}\b", reason) else f"{own}: {reason}")
            thread = threading.Thread(target=self._testify, args=[reason], daemon=True)
            thread.start()
            thread.join(timeout=2)  # the service may hang
            if self.rank == 0:
                time.sleep(3 * self.tick)  # the others hear it as long as the service lives
            leave()

    def _testify(self, reason: str) -> None:
        with suppress(Exception):  # the service may be gone with rank 0
            self.store.put("end", self.rank, reason)

    def stop(self) -> None:
        """Before the coordination service is left, which would be an error to it."""
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=2)


def tell(message: str) -> None:
    """To people; a launcher that was killed reads no more."""
    with suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def leave() -> NoReturn:
    """Without the interpreter's own end, which waits for others in destructors of JAX."""
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(FAILED)


def _place() -> str:
    """The line of the program that the main thread is at: not JAX's, and none that only waits."""
    passed = re.compile(r"site-packages|common.(processes|watchdog)")
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame and passed.search(frame.f_code.co_filename):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "its end"
