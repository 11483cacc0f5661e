"""Camera frames as the monitor sees them: alive, lit, of one size, taken with one set of settings."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from d2ppo_core.errors import UserError

from .checks import Finding, Reaction
from .settings import SafetySettings

_BLACK, _WHITE = 8, 250  # of 255: no light, and no more light to see


@dataclass(frozen=True)
class ImageFacts:
    """What safety needs to know of one frame."""

    camera: str
    stamp: int  # capture
    digest: int  # of the pixels
    black: float  # share of the numbers
    saturated: float
    shape: tuple[int, ...]  # (H, W, C)


def image_facts(camera: str, stamp: int, image: np.ndarray) -> ImageFacts:
    """Look at one frame, uint8 (H, W, C)."""
    pixels = np.ascontiguousarray(image)
    size = max(1, pixels.size)
    return ImageFacts(
        camera=camera,
        stamp=stamp,
        digest=zlib.crc32(pixels.data) if pixels.size else 0,
        black=float(np.count_nonzero(pixels < _BLACK)) / size,
        saturated=float(np.count_nonzero(pixels >= _WHITE)) / size,
        shape=tuple(pixels.shape),
    )


def changed_options(setup: str) -> dict[str, tuple[float, float]]:
    """Of what a camera's node latches (`camera/NAME/setup`): option -> as the driver had set it, as it is now.

    Empty where no driver says anything.
    """
    try:
        changed = (json.loads(setup)["driver"] or {}).get("changed", {})
        return {str(name): (float(before), float(now)) for name, (before, now) in changed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"a camera's setup cannot be read ({error}); the sender is broken") from error


class CameraWatch:
    """The frames of one camera. Ages are looked at elsewhere."""

    def __init__(self, name: str, settings: SafetySettings) -> None:
        self.name, self.settings = name, settings
        self._shape: tuple[int, ...] | None = None  # of the first frame
        self._changed: dict[str, tuple[float, float]] = {}  # options of the driver: as set, as they are
        self.forget()

    def forget(self) -> None:
        """As if no frame had come yet; what size they have is remembered."""
        self._last: ImageFacts | None = None
        self._same = 0  # identical frames in a row
        self._path = 0.0  # the arms' path when the first of them came

    def update(self, facts: ImageFacts, path: float) -> None:
        """Take a frame; `path` is how far (m) the arms have moved so far."""
        self._shape = self._shape or facts.shape
        if self._last is None or facts.digest != self._last.digest or path < self._path:
            self._same, self._path = 0, path
        self._same += 1
        self._moved = path - self._path
        self._last = facts

    def set_up(self, changed: Mapping[str, tuple[float, float]]) -> None:
        """What the driver reads back and did not set so (`changed_options`): exposure, white balance. It lasts until
        the driver says that all is as it was.
        """
        self._changed = dict(changed)

    def findings(self) -> list[Finding]:
        """What is wrong with the last frames."""
        s, last = self.settings, self._last
        if last is None:
            return []
        findings = []
        for option, (before, now) in list(self._changed.items())[:1]:
            text = f"camera {self.name}: {option} was changed from {before:g} to {now:g} by somebody else"
            findings.append(Finding("setup", Reaction.HOLD, text, now, before))
        if s.frozen_frames and self._same >= s.frozen_frames and self._moved >= s.frozen_motion:
            text = f"camera {self.name} repeats one frame: {self._same} times"
            findings.append(Finding("frozen", Reaction.HOLD, text, self._same, s.frozen_frames))
        for check, share in (("black", last.black), ("saturated", last.saturated)):
            if s.image_extreme and share > s.image_extreme:
                text = f"camera {self.name}: {share:.0%} of the frame is {check}"
                findings.append(Finding(check, Reaction.HOLD, text, share, s.image_extreme))
        if last.shape != self._shape:
            text = f"camera {self.name} changed its frames from {self._shape} to {last.shape}"
            findings.append(Finding("image_size", Reaction.HOLD, text))
        return findings
