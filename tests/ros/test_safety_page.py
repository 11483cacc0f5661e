"""docs/safety.md names every check there is."""

from __future__ import annotations

import re
from pathlib import Path

import d2ppo_ros.safety

PAGE = Path(__file__).resolve().parents[2] / "docs" / "safety.md"


def test_every_check_is_on_the_page() -> None:
    sources = Path(d2ppo_ros.safety.__file__).parent.glob("*.py")
    found = {name for path in sources for name in re.findall(r'(?:Finding|above|Freshness)\("(\w+)"', path.read_text())}
    assert len(found) > 30
    assert not found - set(re.findall(r"`(\w+)`", PAGE.read_text())) - {"disarmed"}
