"""Which build of the client library speaks to which arm, and what to install where it is the wrong one.

    python -m d2ppo_ros.robot.versions panda|fr3
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version

from d2ppo_core.errors import UserError

from .limits import require_model

SERVER = {"panda": 5, "fr3": 10}  # version of the robot's server that the pinned build speaks
NEEDED = (2, 0)  # of franky: the first with impedance trackers
_INSIDE = {"0.9": 5, "0.10": 6, "0.11": 6, "0.12": 6, "0.13": 7, "0.14": 8, "0.15": 9, "0.16": 9, "0.17": 9,
           "0.18": 10, "0.19": 10, "0.20": 10, "0.21": 10}  # libfranka's versions -> the server's  # fmt: skip
_MISMATCH = re.compile(r"server version: (\d+).*library version: (\d+)")


def installed() -> str:
    """franky's version with its label; empty: there is none."""
    try:
        return version("franky-control")
    except PackageNotFoundError:
        return ""


def library_server(found: str) -> int | None:
    """The server version that an installed build speaks, by its label; None: it does not say."""
    label = re.search(r"libfranka[._](\d+\.\d+)", found)
    if label:
        return _INSIDE.get(label.group(1))
    return SERVER["fr3"] if found.startswith("2.") else None


def install_line(model: str) -> str:
    """What a person types."""
    return f"make robot ROBOT={require_model(model)}"


def wrong_build(message: str, model: str) -> str:
    """The client's complaint about versions as a sentence with the way out."""
    found = _MISMATCH.search(message)
    if not found:
        return f"the robot refuses this build of franky ({message}); install the one for it: {install_line(model)}"
    server, library = map(int, found.groups())
    fitting = next((name for name, number in SERVER.items() if number == server), "")
    if not fitting:
        return (
            f"the robot's server has version {server}, this franky speaks version {library}; franky's own index has "
            f"a folder for each: pip install --force-reinstall --no-deps 'franky-control==2.0.0' --extra-index-url "
            f"https://timschneider42.github.io/franky/whl/by-robot-server-version/{server}/"
        )
    other = "" if fitting == model else f" and set robot_model: {fitting}"
    return (
        f"the robot's server has version {server}, this franky speaks version {library}; install the build for it: "
        f"{install_line(fitting)}{other}"
    )


def check(model: str) -> str:
    """What is installed, as a sentence; a `UserError` where it is nothing or the wrong thing for this model."""
    found, line = installed(), install_line(model)
    if not found:
        raise UserError(f"franky is not installed; run {line}")
    if tuple(int(part) for part in found.split("+")[0].split(".")[:2]) < NEEDED:
        raise UserError(f"franky {found} has no impedance tracker, 2.0 or newer is needed; run {line}")
    speaks = library_server(found)
    if speaks is not None and speaks != SERVER[model]:
        raise UserError(
            f"franky {found} speaks server version {speaks}, a {model} has version {SERVER[model]}; run {line}"
        )
    return f"franky {found} for a {model} (server version {SERVER[model]})"


def main(arguments: list[str]) -> int:
    """Check what is installed for the model given."""
    try:
        print(f"robot: {check(require_model(arguments[0] if arguments else ''))} is installed")
    except UserError as error:
        print(f"d2ppo: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
