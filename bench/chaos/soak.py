"""Owns the soak: one fault after another by the plan, the invariants after each, all of them after some."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from .audit import Audit
from .faults import EARLY, Faults
from .ledger import Ledger
from .means import Means
from .plan import Action
from .remote import Remote
from .traffic import Traffic
from .victim import Victim, Wrong

WINDOW = 25  # faults between two audits of everything
CHANGED = 0.6  # share of the points whose text is another after each of them
KEPT_ACTIONS = 15  # said with a violation


class Soak:
    """`say` prints a line. The folder `root` is the soak's own."""

    def __init__(self, root: Path, means: Means, seed: int, log: IO[str] | None, say: Callable[[str], None]) -> None:
        self._root, self._means, self._rng, self._log, self._say = root, means, random.Random(seed), log, say
        self._seed = seed
        self.victim = Victim(root)
        self._ledger = Ledger()
        self._faults = Faults(self.victim, self._ledger, means)
        self._audit = Audit(self.victim, self._ledger)
        self._remote = Remote(root / "remote", self._faults)
        self._dying: dict[int, str] = {}
        self._last: deque[str] = deque(maxlen=KEPT_ACTIONS)
        self.violation = ""
        self._done = self._embedded = self._orphans = 0
        self._began = time.monotonic()

    def run(self, actions: Sequence[Action], until: float) -> None:
        """Do the actions, or those before the monotonic time `until`. Stops at the first violation."""
        faults = self._faults.named() | self._remote.named()
        traffic: Traffic | None = None
        try:
            self.victim.start()
            self.victim.await_ready()
            self._audit.effects.create()
            self._audit.effects.change(self._rng, 1.0)
            traffic = Traffic(self.victim, self._ledger, self._seed)
            for action in actions:
                if time.monotonic() > until:
                    break
                self._one(action, faults[action.fault], traffic)
                self._done = action.number
                if action.number % WINDOW == 0 and action is not actions[-1]:
                    self._whole(traffic, len(actions))
            self._whole(traffic, len(actions), is_last=True)
            self.victim.stop()
        except Wrong as wrong:
            self.violation, self._orphans = str(wrong), wrong.orphans
        finally:
            if traffic is not None:
                traffic.stop()
            log = self._root / "embedded"
            self._embedded = log.read_bytes().count(b"\n") if log.exists() else 0
            self._remote.close()
            self.victim.close()

    def _one(self, action: Action, fault: Callable[..., None], traffic: Traffic) -> None:
        rng = random.Random(action.seed)
        began = time.monotonic()
        details: dict[str, Any] = {}
        is_early = action.fault == "supervisor" and rng.random() < EARLY
        self._last.append(f"{action.number} {action.fault}{' early' * is_early}")
        if traffic.error is not None:
            raise Wrong(f"the load met {type(traffic.error).__name__}: {traffic.error}") from traffic.error
        if is_early:
            details = {"is_early": True}
            self._faults.supervisor(rng, is_early=True)
        else:
            self.victim.await_ready()
            self._audit.after_fault(rng)
            fault(rng)
        if dying := {pid: how for pid, how in self.victim.dying.items() if pid not in self._dying}:
            self._dying |= dying
            details |= {"ending_after_1_s": dying}
        self._write(action=action.number, fault=action.fault, s=time.monotonic() - began, **details)

    def _whole(self, traffic: Traffic, of: int, *, is_last: bool = False) -> None:
        self._last.append("audit")
        traffic.pause.ask()
        self._faults.settle()
        began = time.monotonic()
        self._audit.whole()
        if not is_last:
            self._audit.effects.change(self._rng, CHANGED)
            traffic.pause.go_on()
        passed_s = time.monotonic() - self._began
        left_s = passed_s / max(self._done, 1) * (of - self._done)
        counts = self._faults.counts
        self._say(
            f"{passed_s:7.0f} s  {self._done} of {of} faults, about {left_s:.0f} s left; {counts['workers killed']} workers"
            f" and {counts['supervisors killed']} supervisors killed, {self._ledger.accepted} tasks accepted,"
            f" the last of their processes gone after {1000 * max(self._faults.gone_s, default=0.0):.0f} ms at most"
        )
        self._write(audit=self._audit.counts["audits"], s=time.monotonic() - began)

    def _write(self, **what: Any) -> None:
        if self._log is not None:
            row = {"t": round(time.monotonic() - self._began, 3)} | what
            row["s"] = round(row["s"], 3)
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()

    def summary(self) -> dict[str, Any]:
        """Return everything counted."""
        audit, faults = self._audit, self._faults
        found: dict[str, Any] = {
            "soak": "chaos",
            "seed": self._seed,
            "seconds": round(time.monotonic() - self._began, 1),
            "violations": int(bool(self.violation)),
            "faults": dict(sorted(faults.counts.items())),
            "orphans_after_1_s": self._orphans,
            "ending_after_1_s": len(self.victim.dying) + self._remote.ending,
            "accepted": self._ledger.accepted,
            "unanswered": self._ledger.unanswered,
            "ended": dict(sorted(audit.counts.items())),
            "starts": self.victim.starts,
            "points_to_embed": audit.effects.embedded,
            "texts_embedded": self._embedded,
            "most_fds": audit.most_fds,
            "most_rss_mib": round(audit.most_rss_kib / 1024, 1),
            "not_exercised": self._means.missing,
            "means": self._means.notes,
        }
        for name, values in (("gone_ms", faults.gone_s), ("status_ms", self.victim.status_s)):
            if values:
                ranked = sorted(values)
                found[name] = {
                    "p50": round(1000 * statistics.median(ranked), 1),
                    "p99": round(1000 * ranked[int(0.99 * (len(ranked) - 1))], 1),
                    "max": round(1000 * ranked[-1], 1),
                }
        if self.violation:
            found |= {"violation": self.violation, "last_actions": list(self._last)}
        return found
