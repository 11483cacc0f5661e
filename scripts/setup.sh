#!/usr/bin/env bash
# Make .venv with the pinned packages. Does nothing, and needs no network, while nothing has changed.
#
#   PYTHON=python3.12 make setup     choose the interpreter (3.11 or 3.12)
#   SYSTEM_PACKAGES=skip make setup  go on although system packages are missing
#
# torch comes from whatever index pip is configured for; on Linux that is usually the CUDA build. For the smaller CPU
# build point PIP_EXTRA_INDEX_URL at PyTorch's CPU index.
set -euo pipefail
exec </dev/null # nothing here may ever ask a question
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# A sourced ROS or a user's pip settings would make pip take packages from, or put them, somewhere else.
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_CONSTRAINT
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 LC_ALL=C.UTF-8

readonly STAMP=.venv/.setup-done   # says for what the environment was completed
readonly UNDERWAY=.venv/.setup-underway # still there: the last set-up was killed, nothing in .venv can be trusted
readonly ERRORS=.venv/setup-errors.txt
# One name a word; with "a|b", whichever this release of Debian or Ubuntu has. libgl1 and glib are what OpenCV links to.
readonly SYSTEM_PACKAGES_NEEDED="g++ libegl1 libgl1 libgl1-mesa-dri libosmesa6 libglib2.0-0|libglib2.0-0t64 libusb-1.0-0"

stop() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

fingerprint() {
    cat constraints.txt pyproject.toml requirements-build.txt requirements-robosuite.txt scripts/setup.sh | sha256sum | cut -d' ' -f1
}

version_of() { # 3.11, or nothing where the command is absent or does not run (as an idle pyenv shim)
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

venv_version() {
    sed -n 's/^version *= *\([0-9]*\.[0-9]*\).*/\1/p' .venv/pyvenv.cfg 2>/dev/null || true
}

find_python() {
    local candidate version
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        version=$(version_of "$candidate")
        case $version in
        3.11 | 3.12)
            PYTHON=$candidate PYTHON_VERSION=$version
            return
            ;;
        esac
    done
    [[ -z ${PYTHON:-} ]] || stop "PYTHON=$PYTHON is not a Python 3.11 or 3.12 (${version:-it does not run}); choose another"
    stop "found no Python 3.11 or 3.12; install one (apt-get install python3.11) or name it: PYTHON=/path/to/python3.12 make setup"
}

is_installed() {
    dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -x installed >/dev/null
}

missing_packages() {
    local entry name
    for entry in $SYSTEM_PACKAGES_NEEDED; do
        for name in ${entry//|/ }; do
            is_installed "$name" && continue 2
        done
        echo "$entry"
    done
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || echo "python$PYTHON_VERSION-venv"
}

available() { # of each "a|b", the first that apt knows; the first of all where it knows none
    local entry name
    for entry in "$@"; do
        for name in ${entry//|/ }; do
            [[ -n $(apt-cache show "$name" 2>/dev/null) ]] && echo "$name" && continue 2
        done
        echo "${entry%%|*}"
    done
}

system_packages() {
    local missing
    [[ ${SYSTEM_PACKAGES:-} != skip ]] || return 0
    if ! command -v dpkg-query >/dev/null; then
        echo "setup: no dpkg here, so system packages are not checked; needed: $SYSTEM_PACKAGES_NEEDED (Debian names)"
        return
    fi
    missing=$(missing_packages)
    [[ -n $missing ]] || return 0
    if [[ $(id -u) != 0 ]]; then
        # shellcheck disable=SC2046,SC2086 # lists of words
        stop "missing system packages; run: sudo apt-get install -y" $(available $missing) "(or go on without: SYSTEM_PACKAGES=skip make setup)"
    fi
    echo "setup: installing system packages:" $missing
    install_system_packages "$missing"
}

install_system_packages() {
    local log names
    log=$(mktemp)
    apt-get update -qq >"$log" 2>&1 || true # a stale list may still do
    # shellcheck disable=SC2046,SC2086
    names=$(echo $(available $1))
    # shellcheck disable=SC2086
    if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $names >>"$log" 2>&1; then
        stop "apt-get could not install $names: $(grep '^E:' "$log" | tail -n 1); install them by hand, then run 'make setup' again"
    fi
    rm -f "$log"
}

pip_install() { # what it is, then pip's arguments
    local what=$1 quiet=()
    shift
    echo "setup: installing $what"
    [[ -t 1 ]] || quiet=(--quiet --progress-bar off)
    if ! .venv/bin/python -m pip install "${quiet[@]}" --no-build-isolation "$@" 2>"$ERRORS"; then
        # pip changes nothing before all is downloaded: after any other failure than this one .venv is still whole.
        grep -q 'Could not install packages' "$ERRORS" || rm -f "$UNDERWAY"
        stop "installing $what failed: $(grep -i error "$ERRORS" | tail -n 1) (all of it: $ERRORS); check network and disk, then run 'make setup' again"
    fi
}

make_venv() {
    if [[ -e $UNDERWAY || $(venv_version) != "$PYTHON_VERSION" ]] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        echo "setup: new .venv with Python $PYTHON_VERSION"
        rm -rf .venv
        mkdir .venv
        : >"$UNDERWAY"
        "$PYTHON" -m venv .venv >"$ERRORS" 2>&1 || stop "$PYTHON -m venv failed: $(tail -n 1 "$ERRORS")"
    fi
    : >"$UNDERWAY"
    rm -f "$STAMP"
}

install_packages() {
    local exact=(--constraint constraints.txt)
    pip_install "build tools" --requirement requirements-build.txt
    # Before all that depends on it: a later step must find torch there, not choose another build of it.
    pip_install torch "${exact[@]}" "$(grep '^torch==' constraints.txt)"
    pip_install "the other packages and d2ppo itself" "${exact[@]}" --editable '.[sim,trials,robot,standin,ray,dev]'
    pip_install robosuite "${exact[@]}" --no-deps --requirement requirements-robosuite.txt
}

main() {
    local begin=$EPOCHREALTIME wanted
    # One set-up at a time; the lock is on this file, so that nothing is left behind.
    ! command -v flock >/dev/null || { exec 9<"${BASH_SOURCE[0]}" && flock 9; }
    wanted="$(fingerprint) $PWD"
    if [[ $(cat "$STAMP" 2>/dev/null) == "$wanted" && ! -e $UNDERWAY ]] && .venv/bin/python -c '' 2>/dev/null &&
        [[ -z ${PYTHON:-} || $(version_of "$PYTHON") == "$(venv_version)" ]]; then
        echo "setup: up to date"
        return
    fi
    find_python
    system_packages
    make_venv
    install_packages
    echo "$wanted" >"$STAMP.partial"
    rm -f "$UNDERWAY" "$ERRORS"
    mv "$STAMP.partial" "$STAMP"
    awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "setup: done in %.0f s (Python '"$PYTHON_VERSION"')\n", b - a }'
}

main
