"""The policies of a comparison: found, checked to fit one another, named, and hidden where nobody may know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from d2ppo_core.checkpoint import read_policy
from d2ppo_core.contract import PolicySpec
from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256

FILE = "policy.safetensors"
HIDDEN = "[hidden]"
SHORT = 12  # letters of a digest, as reports show it


@dataclass(frozen=True)
class Policy:
    """One of those that are compared."""

    name: str
    path: Path
    digest: str
    spec: PolicySpec

    @property
    def about(self) -> dict[str, str]:
        """As the session's file keeps it."""
        return {"name": self.name, "path": str(self.path), "digest": self.digest}


def find(text: str) -> list[Policy]:
    """The policies of `policies=a,b,c`: files, or folders of training runs. All must fit the same robot and cameras."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError("no policies are given; add policies=A,B (files, or folders of training runs)")
    paths = [Path(word) / FILE if Path(word).is_dir() else Path(word) for word in words]
    found = [
        Policy(name, path.absolute(), sha256(path), read_policy(path)[0])
        for name, path in zip(names(paths), paths, strict=True)
    ]
    digests = [policy.digest for policy in found]
    for number, policy in enumerate(found):
        first = digests.index(policy.digest)
        if first < number:
            raise UserError(f"policies={text}: {words[number]} and {words[first]} are the same policy; give it once")
    require_alike(found)
    return found


def again(about: Sequence[dict[str, str]]) -> list[Policy]:
    """The policies of a session that goes on, exactly as they were."""
    found = []
    for policy in about:
        path = Path(policy["path"])
        digest = sha256(path)
        if digest != policy["digest"]:
            raise UserError(f"{path} is not the file that the session began with; put that one back")
        found.append(Policy(policy["name"], path, digest, read_policy(path)[0]))
    return found


def names(paths: Sequence[Path]) -> list[str]:
    """What each is called: the end of its path that tells it from the others; of `X/policy.safetensors`, X."""
    parts = [
        path.absolute().parts[1:-1] if path.name == FILE else (*path.absolute().parts[1:-1], path.stem)
        for path in paths
    ]
    longest = max(len(part) for part in parts)
    for length in range(1, longest + 1):
        tried = ["/".join(part[-length:]) for part in parts]
        if len(set(tried)) == len(tried):
            return tried
    return [str(path) for path in paths]  # the same one twice; whoever asked says so


def require_alike(policies: Sequence[Policy]) -> None:
    """One robot, one set of cameras, one safety node serve them all."""
    first = policies[0]
    for other in policies[1:]:
        for what, here, there in (
            ("task", first.spec.task, other.spec.task),
            ("cameras", first.spec.observation.cameras, other.spec.observation.cameras),
            ("action", first.spec.action, other.spec.action),
        ):
            if here != there:
                raise UserError(
                    f"{first.path} and {other.path} cannot be compared in one session, their contracts differ in "
                    f"{what}: {_plain(here)} and {_plain(there)}; compare policies of one task"
                )


def _plain(value: object) -> str:
    return str(value) if value != () else "none"


class Curtain:
    """Takes everything out of a text that says which policy it is about.

    Our own texts never say it; those of other nodes, and errors, may hold a path or a digest.
    """

    def __init__(self, policies: Sequence[dict[str, str]], drawn: bool = True) -> None:
        self.drawn = drawn
        exact, names = set(), set()
        for policy in policies:
            path = Path(policy["path"])
            exact |= {policy["path"], str(path.parent), policy["digest"], policy["digest"][:SHORT]}
            names |= {part for part in (policy["name"], path.parent.name, path.stem) if len(part) > 2}
        exact -= {"/", "."}
        names -= {Path(FILE).stem}
        # Longest first: of two that begin alike the whole one goes. Names count as whole words only.
        alike = [rf"(?<![\w-]){word}(?![\w-])" for word in _longest_first(names)]
        self._pattern = re.compile("|".join([*_longest_first(exact), *alike]))

    def hide(self, text: str) -> str:
        """The text without them, as long as the curtain is drawn."""
        return self._pattern.sub(HIDDEN, text) if self.drawn else text


def _longest_first(words: set[str]) -> list[str]:
    return [re.escape(word) for word in sorted(words, key=lambda word: (-len(word), word))]
