#!/usr/bin/env bash
# ROS 2 Jazzy from PyPI's wheels and our interfaces, in .venv: what `make ros` runs after `make setup`. For machines
# without ROS; where ROS is installed, build the workspace with colcon instead (docs/ros.md). Does nothing while nothing
# has changed.
#
#   bash scripts/ros.sh --if-possible   a machine for which there are no wheels is no error (its tests of ROS are skipped)
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_CONSTRAINT
export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 LC_ALL=C.UTF-8

readonly STAMP=.venv/.ros-done
readonly LOG=.venv/ros-build.txt
readonly INTERFACES=ros2_ws/src/d2ppo_interfaces

stop() {
    printf 'ros: %s\n' "$*" >&2
    exit 1
}

unfit() { # why these wheels are not for this machine
    [[ ${1:-} == --if-possible ]] || stop "$2"
    echo "ros: left out: $2"
    exit 0
}

fingerprint() {
    { cat requirements-ros.txt scripts/ros.sh .venv/.setup-done
        find "$INTERFACES" -type f -print0 | sort -z | xargs -0 cat; } | sha256sum | cut -d' ' -f1
}

# The wheels' cmake files name the machine that built them: point them at this one's headers.
mend_paths() {
    local python_headers numpy_headers
    python_headers=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
    numpy_headers=$(.venv/bin/python -c 'import numpy; print(numpy.get_include())')
    { grep -rlE '/opt/python/cp3' .venv/share/*/cmake --include='*.cmake' || true; } | xargs -r sed -i -E \
        -e "s#/opt/python/cp3[0-9]+-cp3[0-9]+/lib/python3\.[0-9]+/site-packages/numpy/_?core/include#$numpy_headers#g" \
        -e "s#/opt/python/cp3[0-9]+-cp3[0-9]+/include/python3\.[0-9]+#$python_headers#g"
}

build_interfaces() {
    local venv build
    venv=$PWD/.venv build=$(mktemp -d)
    {
        PATH=$venv/bin:$PATH AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv cmake -S "$INTERFACES" -B "$build" \
            -DCMAKE_INSTALL_PREFIX="$venv" -DCMAKE_BUILD_TYPE=Release -DBUILD_TESTING=OFF \
            -DPython3_EXECUTABLE="$venv/bin/python" -DPython3_FIND_VIRTUALENV=ONLY &&
            PATH=$venv/bin:$PATH cmake --build "$build" -j "$(nproc)" && cmake --install "$build"
    } >"$LOG" 2>&1 || stop "building the interfaces failed: $(grep -m 1 -iE 'error' "$LOG") (all of it: $LOG)"
    rm -rf "$build"
}

main() {
    local begin=$EPOCHREALTIME wanted
    ! command -v flock >/dev/null || { exec 9<"${BASH_SOURCE[0]}" && flock 9; }
    [[ -x .venv/bin/python ]] || stop "there is no .venv; run 'make setup' first"
    [[ -z ${ROS_DISTRO:-} ]] || unfit "${1:-}" \
        "ROS $ROS_DISTRO is sourced in this shell, and these wheels would mix with it; build with colcon (docs/ros.md), or use a fresh shell"
    [[ $(uname -m) == x86_64 ]] || unfit "${1:-}" \
        "the wheels are for x86_64 only; install ROS and build with colcon (docs/ros.md)"
    wanted=$(fingerprint)
    if [[ $(cat "$STAMP" 2>/dev/null) == "$wanted" ]]; then
        echo "ros: up to date"
        return
    fi
    rm -f "$STAMP"
    echo "ros: installing the wheels"
    .venv/bin/python -m pip install --quiet --progress-bar off --no-deps --requirement requirements-ros.txt 2>"$LOG" ||
        stop "installing the wheels failed: $(grep -i error "$LOG" | tail -n 1) (all of it: $LOG)"
    echo "ros: building the interfaces"
    mend_paths
    build_interfaces
    echo "$wanted" >"$STAMP.partial"
    mv "$STAMP.partial" "$STAMP"
    awk -v a="$begin" -v b="$EPOCHREALTIME" 'BEGIN { printf "ros: done in %.0f s\n", b - a }'
}

main "$@"
