#!/usr/bin/env bash
# The Franka client library for one robot model, into .venv or the active virtual environment: what `make robot` runs.
# Each build of franky speaks one version of the robot's protocol: the package index's own speaks to an FR3 (server
# version 10, system 5.9 or newer), the one of franky's own index to a Panda (server version 5, system 4.2.1 or newer).
#
#   bash scripts/robot.sh panda|fr3     FRANKY_INDEX=URL or a folder of wheels instead of franky's own index (Panda)
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 LC_ALL=C.UTF-8
unset PIP_CONSTRAINT

readonly PANDA_INDEX=${FRANKY_INDEX:-https://timschneider42.github.io/franky/whl/by-robot-server-version/5/}

stop() {
    printf 'robot: %s\n' "$*" >&2
    exit 1
}

main() {
    local python=.venv/bin/python errors pin extra=()
    [[ -x $python ]] || python=${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}
    [[ -n $python ]] || stop "there is no .venv and no active virtual environment; run 'make setup' first"
    pin=$(grep '^franky-control==' constraints.txt)
    case ${1:-} in
    panda) extra=(--extra-index-url "$PANDA_INDEX") ;;
    fr3) ;;
    *) stop "say which robot: make robot ROBOT=panda or make robot ROBOT=fr3" ;;
    esac
    errors=$(mktemp)
    # --force-reinstall: both builds have the same version but for a label, and one may be there already.
    if ! "$python" -m pip install --quiet --progress-bar off --only-binary :all: --no-deps --force-reinstall \
        ${extra[@]+"${extra[@]}"} "$pin" 2>"$errors"; then
        stop "installing $pin for the $1 failed: $(grep -i error "$errors" | tail -n 1); check the network (${extra[*]:-the package index}), and that Python is 3.10 to 3.13 on x86_64"
    fi
    if ! "$python" -m d2ppo_ros.robot.versions "$1" 2>"$errors"; then
        [[ $1 != panda ]] || stop "franky's own index ($PANDA_INDEX) gave no build for this Python, so the one for an FR3 is installed; check the network, or name a folder of its wheels: make robot ROBOT=panda FRANKY_INDEX=FOLDER"
        stop "$(sed 's/^d2ppo: //' "$errors")"
    fi
    rm -f "$errors"
}

main "$@"
