"""The state machine of safety: what goes to the robot, what is held, what is latched until a person re-arms.

    DISARMED -> READY -> ARMED <-> HOLD -> STOPPED -> (rearm) READY

DISARMED and READY turn into each other by themselves; only `arm` leads to ARMED, and only `rearm` out of STOPPED.
No method reads a clock: times are int ns that the caller passes in.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from d2ppo_core.contract import ActionSpec

from ..records import SECOND, ArmState, Command, Kind, RobotState, SafetyReport, State
from .arms import ArmWatch, well_formed
from .cameras import CameraWatch, ImageFacts
from .checks import Clock, Finding, Freshness, Reaction, Share, ns, worst
from .motion import MotionFilter
from .settings import SafetySettings
from .sources import Sources
from .trial import MOTION, Operator, TrialGuard

_LIVE = (State.ARMED, State.HOLD)


def _serious(findings: list[Finding]) -> Finding | None:
    """The strongest that holds or stops the arm."""
    return worst(finding for finding in findings if finding.reaction >= Reaction.HOLD)


class SafetyMonitor:
    """Every message and every tick goes through here; it answers with what the robot may be sent.

    Attributes for diagnostics: `counts` by check name (clips, refusals, dropped messages), `warnings` by check name.
    """

    def __init__(self, settings: SafetySettings, action: ActionSpec, now: int) -> None:
        self.settings, self.spec = settings, action
        self.counts: Counter[str] = Counter()
        self.warnings: dict[str, Finding] = {}
        self.arms = [ArmWatch(i, settings) for i in range(action.arms)]
        self.cameras = {name: CameraWatch(name, settings) for name in settings.cameras}
        self._filter, self._trial = MotionFilter(settings, action), TrialGuard(settings)
        self._operator, self._clamped = Operator(settings), Share()
        self._clock = Clock(jump=settings.clock_jump, warn=settings.tick_warn, stop=settings.tick_stop)
        self._sources = Sources(settings, action.arms)
        self._now, self._armed_at = now, now
        self._bad, self._held_by_command, self._sent_motion = 0, False, False
        self._state, self._since, self._cause = State.DISARMED, now, None
        self._passed = self._changed = self._refused = 0

    # What comes in. -------------------------------------------------------------------------------------------------

    def on_state(self, state: RobotState, now: int) -> None:
        """The robot's observation. Only its time and that its numbers are numbers matter here."""
        if all(np.isfinite(value).all() for value in state.values.values()):
            self._accept(self._sources.state, state.stamp, now)
        else:
            self.counts["robot's state: malformed"] += 1

    def on_arm(self, state: ArmState, now: int, arm: int = 0) -> None:
        """One arm's joints, pose, wrench and faults."""
        watch = self.arms[arm]
        if not well_formed(state):
            self.counts[f"joints of arm {arm}: malformed"] += 1
        elif self._accept(self._sources.arms[arm], state.stamp, now):
            watch.update(state)
            finding = worst(watch.findings())
            if self._state in _LIVE and finding is not None and finding.reaction is Reaction.STOP:
                self._latch(finding, self._now)  # now: it may be over when the next tick comes

    def on_image(self, facts: ImageFacts, now: int) -> None:
        """One camera frame; cameras that the settings do not name are not looked at."""
        source = self._sources.cameras.get(facts.camera)
        if source is not None and self._accept(source, facts.stamp, now):
            self.cameras[facts.camera].update(facts, sum(arm.path for arm in self.arms))

    def on_operator(self, pressed: bool, now: int) -> None:
        """A heartbeat of the operator's switch."""
        self._operator.update(pressed, self._advance(now))

    def on_command(self, command: Command, now: int) -> Command:
        """What is sent to the robot instead of this command: itself, a shortened one, a HOLD or a STOP."""
        now = self._advance(now)
        dropped = self._accept_command(command, now)
        if self._state is State.STOPPED:
            return self._answer(command, Kind.STOP, self._reason())
        if self._state not in _LIVE:
            return self._answer(command, Kind.STOP if command.kind is Kind.STOP else Kind.HOLD, "not armed")
        self._held_by_command = dropped is not None
        if dropped is not None:
            return self._refuse(command, dropped, now)
        if self._trial.update(command, now):
            for arm in self.arms:
                arm.start_path()
        if command.kind is Kind.STOP:
            return self._refuse(command, Finding("requested", Reaction.STOP, command.reason or "asked for"), now)
        standing = _serious(self._standing(now))
        if standing is not None:
            return self._refuse(command, standing, now)
        if self._state is State.HOLD:
            self._enter(State.ARMED, None, now)
        return self._pass(command) if command.kind not in MOTION else self._move(command, now)

    # What a person or a program asks. -------------------------------------------------------------------------------

    def arm(self, now: int) -> tuple[bool, str]:
        """READY -> ARMED; or why not. Nothing moves until a command comes that is stamped from now on."""
        now = self._advance(now)
        if self._state is not State.READY:
            why = f" ({self._cause.text})" if self._cause else ""
            return False, f"cannot arm: safety is {self._state.name}{why}"
        finding = _serious(self._standing(now))
        if finding is not None:
            return False, f"cannot arm: {finding.text}"
        self._armed_at, self._bad = now, 0
        self._passed = self._changed = self._refused = 0
        self._rest()
        self._trial.start(self._trial.trial, now)
        for watch in self.arms:
            watch.start_path()
        self._enter(State.ARMED, None, now)
        return True, "armed"

    def disarm(self, now: int, why: str) -> None:
        """ARMED, HOLD -> READY or DISARMED. It does not end STOPPED."""
        now = self._advance(now)
        if self._state in _LIVE:
            self._enter(State.READY, Finding("disarmed", Reaction.HOLD, why), now)

    def stop(self, now: int, why: str) -> None:
        """Emergency stop: latched, from any state."""
        self._latch(Finding("stop", Reaction.STOP, why), self._advance(now))

    def rearm(self, now: int) -> tuple[bool, str]:
        """STOPPED -> READY, once nothing is wrong any more; or why not."""
        now = self._advance(now)
        if self._state is not State.STOPPED:
            return False, f"cannot re-arm: safety is {self._state.name}, not STOPPED"
        finding = _serious(self._standing(now))
        if finding is not None:
            return False, f"cannot re-arm: {finding.text}"
        self._enter(State.READY, None, now)
        return True, "ready; arm it to move"

    # Time. ----------------------------------------------------------------------------------------------------------

    def tick(self, now: int, monotonic: int) -> Command | None:
        """To be called at 100 Hz with ROS time and steady time: a HOLD or STOP to be sent now, or None."""
        clock = self._clock.tick(now, monotonic)
        if any(finding.check == "clock" for finding in clock):
            self._forget(now)
        now = self._advance(now)
        resting = self._state in (State.DISARMED, State.READY)
        findings = [*clock, *self._standing(now, resting)]
        self._warn(findings, now)
        finding = _serious(findings)
        if self._state in _LIVE:
            self._tick_live(finding, now)
        elif resting:
            self._tick_resting(finding, now)
        if self._state is State.STOPPED:
            return self._own(Kind.STOP, now)
        if self._state is State.HOLD or (self._sent_motion and self._state is not State.ARMED):
            return self._own(Kind.HOLD, now)
        return None

    def report(self, now: int) -> SafetyReport:
        """How safety stands; its heartbeat."""
        cause = self._cause
        about = {} if cause is None else {"check": cause.check, "value": cause.value, "limit": cause.limit}
        return SafetyReport(
            stamp=now, state=self._state, profile=self.settings.profile, reason=self._reason(), since=self._since,
            passed=self._passed, changed=self._changed, refused=self._refused, **about,
        )  # fmt: skip

    @property
    def state(self) -> State:
        """Where the state machine is."""
        return self._state

    # Inside. --------------------------------------------------------------------------------------------------------

    def _advance(self, now: int) -> int:
        """Time never goes back in here: what was too old stays too old."""
        self._now = max(self._now, now)
        return self._now

    def _forget(self, now: int) -> None:
        """The clock jumped: stamps from before say nothing."""
        self._now = now
        self._sources.forget()
        for watch in (*self.arms, *self.cameras.values()):
            watch.forget()
        self._operator, self._clamped = Operator(self.settings), Share()

    def _accept(self, source: Freshness, stamp: int, now: int) -> bool:
        why = source.accept(stamp, self._advance(now))
        if why:
            self.counts[f"{source.name}: {why}"] += 1
        return not why

    def _accept_command(self, command: Command, now: int) -> Finding | None:
        """Take a command's stamp; a finding when the command is to be dropped."""
        age, late = now - command.stamp, ns(self.settings.command_hold)
        why = "late" if 0 < late < age else self._sources.command.accept(command.stamp, now)
        if not why and self._state in _LIVE and command.kind in MOTION and command.stamp < self._armed_at:
            why = "before it was armed"
        if not why:
            return None
        self.counts[f"command: {why}"] += 1
        return Finding("stamp", Reaction.HOLD, f"a command with a wrong stamp: {why}", age / SECOND)

    def _standing(self, now: int, resting: bool = False) -> list[Finding]:
        """What is wrong at this time, whatever is asked for."""
        findings = [*self._sources.findings(now, resting), *self._operator.findings(now)]
        for watch in (*self.arms, *self.cameras.values()):
            findings += watch.findings()
        if self._state in _LIVE:
            findings += self._trial.findings(now, max(arm.path for arm in self.arms))
            for arm, pose in zip(self.arms, self._filter.last, strict=True):
                findings += arm.stopped()
                if pose is not None:
                    findings += arm.track(pose.position, pose.rotation, now)
        return findings

    def _tick_live(self, finding: Finding | None, now: int) -> None:
        if finding is None:
            if self._state is State.HOLD and not self._held_by_command:
                self._enter(State.ARMED, None, now)
        elif finding.reaction is Reaction.STOP:
            self._latch(finding, now)
        else:
            self._hold(finding, now)
        held, longest = (now - self._since) / SECOND, self.settings.hold_stop
        if self._state is State.HOLD and 0 < longest < held:
            text = f"held for {held:.2f} s: {self._cause.text}"
            self._latch(replace(self._cause, reaction=Reaction.STOP, text=text), now)

    def _tick_resting(self, finding: Finding | None, now: int) -> None:
        """DISARMED <-> READY."""
        state = State.DISARMED if finding is not None else State.READY
        if state is not self._state:
            self._enter(state, finding, now)
        elif finding is not None:
            self._cause = finding

    def _warn(self, findings: list[Finding], now: int) -> None:
        """What is worth saying and stops nothing."""
        warnings = [finding for finding in findings if finding.reaction is Reaction.WARN]
        s, share = self.settings, self._clamped.value(now)
        if s.clamp_warn and share > s.clamp_warn:
            text = f"{share:.0%} of the motions of the last second were shortened"
            warnings.append(Finding("clamped", Reaction.WARN, text, share, s.clamp_warn))
        skew = self._sources.skew()
        if s.image_skew and skew > s.image_skew:
            text = f"the cameras' last frames are {skew:.3f} s apart"
            warnings.append(Finding("image_skew", Reaction.WARN, text, skew, s.image_skew))
        self.warnings = {finding.check: finding for finding in warnings}

    def _move(self, command: Command, now: int) -> Command:
        """A motion, while nothing else is wrong."""
        result, findings = self._filter.check(command, self.arms)
        finding = self._count_bad(findings) or worst(findings)
        if finding is not None and finding.reaction >= Reaction.HOLD:
            self._held_by_command = True
            return self._refuse(command, finding, now)
        self._clamped.add(finding is not None, now)
        self.counts.update({found.check for found in findings})
        return self._pass(command, result, finding)

    def _count_bad(self, findings: list[Finding]) -> Finding | None:
        """A stop, when its sender makes nothing but nonsense."""
        bad = next((finding for finding in findings if finding.check in ("malformed", "range")), None)
        self._bad = self._bad + 1 if bad else 0
        if bad is None or self._bad < self.settings.bad_commands:
            return None
        text = f"{self._bad} bad commands in a row: {bad.text}"
        return Finding(bad.check, Reaction.STOP, text, self._bad, self.settings.bad_commands)

    def _pass(self, command: Command, result: Command | None = None, clipped: Finding | None = None) -> Command:
        """Let a command through, perhaps changed. After a hold, KEEP means nothing until a motion came."""
        if command.kind is Kind.KEEP and not self._filter.moving:
            return self._answer(command, Kind.HOLD, "waits for a motion")
        if command.kind is Kind.HOLD:
            self._rest()
        self._sent_motion = command.kind is not Kind.HOLD
        self._changed, self._passed = self._changed + bool(clipped), self._passed + (not clipped)
        return command if result is None else result

    def _refuse(self, command: Command, finding: Finding, now: int) -> Command:
        """Hold or stop instead."""
        self.counts[finding.check] += 1
        self._refused += 1
        if finding.reaction is Reaction.STOP:
            self._latch(finding, now)
            return self._answer(command, Kind.STOP, finding.text)
        self._hold(finding, now)
        return self._answer(command, Kind.HOLD, finding.text)

    def _hold(self, finding: Finding, now: int) -> None:
        self._rest()
        if self._state is State.HOLD:
            self._cause = finding
        else:
            self._enter(State.HOLD, finding, now)

    def _latch(self, finding: Finding, now: int) -> None:
        """The first reason stays."""
        self._rest()
        if self._state is not State.STOPPED:
            self.counts[f"stopped: {finding.check}"] += 1
            self._enter(State.STOPPED, finding, now)

    def _enter(self, state: State, cause: Finding | None, now: int) -> None:
        self._state, self._since, self._cause = state, now, cause
        if state not in _LIVE:
            self._rest()

    def _rest(self) -> None:
        """Nothing is under way: the next motion is a first one, and nothing is tracked."""
        self._filter.reset()
        for watch in self.arms:
            watch.untrack()

    def _reason(self) -> str:
        return self._cause.text if self._cause else ""

    def _answer(self, command: Command, kind: Kind, reason: str) -> Command:
        self._sent_motion = False
        return replace(command, kind=kind, reason=reason, action=np.zeros(0), targets=())

    def _own(self, kind: Kind, now: int) -> Command:
        """A command that answers none, and so has no number."""
        self._sent_motion = False
        return Command(now, self._trial.trial, 0, kind, reason=self._reason())
