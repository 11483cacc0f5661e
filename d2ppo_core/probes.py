"""Questions that only another process can answer: importing a broken package or opening OpenGL may end the process.

A probe is a small program given to a fresh interpreter. It prints one JSON object a line as it goes, so that what it
found before it died is not lost. Nothing here imports a simulator into this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

# Each import is announced before it is tried: the last announcement of a process that died names the culprit.
IMPORTS = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps({"trying": name}), flush=True)
    try:
        importlib.import_module(name)
        error = None
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"
    print(json.dumps({"module": name, "error": error}), flush=True)
"""

TORCH = """
import json, numpy, torch
torch.from_numpy(numpy.ones(2)).add(1).numpy()  # fails where torch was built for another numpy
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else []
print(json.dumps({"threads": torch.get_num_threads(), "built_for_cuda": torch.version.cuda, "gpus": names}))
"""

RENDER = """
import json, os
import mujoco
from OpenGL import GL
scene = "<mujoco><worldbody><light pos='0 0 3'/><geom size='.5' rgba='1 0 0 1'/></worldbody></mujoco>"
model = mujoco.MjModel.from_xml_string(scene)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, height=32, width=32)
renderer.update_scene(data)
bright = int(renderer.render().max())
name = (GL.glGetString(GL.GL_RENDERER) or b"").decode()
print(json.dumps({"bright": bright, "renderer": name}), flush=True)
os._exit(0)  # some drivers crash while they are unloaded; the picture is already made
"""


class Probe:
    """A probe that is running. Start several, then ask each for its answer."""

    def __init__(self, program: str, *arguments: str, **environment: str) -> None:
        surroundings = {k: v for k, v in os.environ.items() if k != "PYOPENGL_PLATFORM"} | environment
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=surroundings,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def answer(self, timeout: float = 60.0) -> tuple[list[dict[str, Any]], str]:
        """What it printed, and why it failed (empty: it did not)."""
        try:
            output, errors = self._process.communicate(timeout=timeout)
            failure = "" if self._process.returncode == 0 else self._reason(errors)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
            failure = f"no answer in {timeout:.0f} s"
        return _json_lines(output), failure

    def _reason(self, errors: str) -> str:
        if self._process.returncode < 0:
            return f"the process died of {signal.Signals(-self._process.returncode).name}"
        lines = [line.strip() for line in errors.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self._process.returncode}"


def _json_lines(output: str) -> list[dict[str, Any]]:
    """The lines that are JSON objects; packages print all sorts of things when imported."""
    found = []
    for line in output.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(line)
            if isinstance(value, dict):
                found.append(value)
    return found


def import_errors(probe: Probe) -> dict[str, str]:
    """Module -> why it does not import, of an `IMPORTS` probe."""
    lines, failure = probe.answer(timeout=120)
    errors = {line["module"]: line["error"] for line in lines if line.get("error")}
    if failure and lines and "trying" in lines[-1]:
        errors[lines[-1]["trying"]] = failure
    return errors
