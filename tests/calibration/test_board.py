"""A printed board has its true size, is found, and is refused where it cannot be printed."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_calibration import board
from d2ppo_calibration.board import BoardSpec, black_cells, write_board
from d2ppo_calibration.commands import CALIBRATE
from d2ppo_calibration.detect import Detector
from d2ppo_core.errors import UserError

PER_MM = 10  # pixels of the pictures that are looked at
FILLED = re.compile(r"((?:-?[\d.]+ -?[\d.]+ [ml]\n)+)h\n+f\n")
DRAWN = re.compile(r"(-?[\d.]+) (-?[\d.]+) m\n(-?[\d.]+) (-?[\d.]+) l\n\s*S\n")


def pdf_page(path: Path) -> tuple[np.ndarray, str]:
    """Width and height in mm, and what is drawn, of a PDF with one page; read without the library that wrote it."""
    content = path.read_bytes()
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", content)
    streams = []
    for found in re.finditer(rb"stream\r?\n(.*?)endstream", content, re.S):
        try:
            streams.append(zlib.decompress(found[1]).decode("latin1"))
        except zlib.error:
            continue
    return np.array([float(box[1]), float(box[2])]) * 25.4 / 72, max(streams, key=len)


def painted(size: np.ndarray, drawn: str) -> np.ndarray:
    """The page's black areas as a picture of PER_MM pixels a mm, row 0 on top."""
    picture = np.full((round(size[1] * PER_MM), round(size[0] * PER_MM)), 255, dtype=np.uint8)
    for area in FILLED.findall(drawn)[1:]:  # the first is the paper
        points = np.array([[float(v) for v in line.split()[:2]] for line in area.strip().split("\n")]) * 25.4 / 72
        points[:, 1] = size[1] - points[:, 1]
        low, high = np.round(points.min(0) * PER_MM).astype(int), np.round(points.max(0) * PER_MM).astype(int)
        picture[low[1] : high[1], low[0] : high[0]] = 0
    return picture


def test_the_pdf_has_the_boards_true_size(tmp_path: Path):
    spec = BoardSpec()
    left, top = write_board(tmp_path / "board.pdf", spec)
    size, drawn = pdf_page(tmp_path / "board.pdf")
    assert np.allclose(size, (297, 210), atol=0.01)
    seen = Detector(spec).find(painted(size, drawn))
    assert len(seen.ids) == 40
    expected = PER_MM * (1000 * seen.points[:, :2] + (left, top)) - 0.5
    assert np.abs(seen.pixels - expected).max() < 0.3  # pixels of 0.1 mm
    lengths = [np.hypot(float(d) - float(b), float(c) - float(a)) * 25.4 / 72 for a, b, c, d in DRAWN.findall(drawn)]
    assert sum(abs(length - 100) < 0.01 for length in lengths) == 2


@pytest.mark.parametrize("spec", [
    BoardSpec(columns=7, rows=5, square=0.025, marker=0.018, dictionary="DICT_4X4_50"),
    BoardSpec(columns=8, rows=6, square=0.020, marker=0.015, dictionary="DICT_6X6_250", legacy=True),
])  # fmt: skip
def test_the_png_is_found_at_its_true_size(spec, tmp_path: Path):
    left, top = write_board(tmp_path / "board.png", spec, dpi=round(25.4 * PER_MM))
    picture = cv2.imread(str(tmp_path / "board.png"), cv2.IMREAD_GRAYSCALE)
    seen = Detector(spec).find(picture)
    assert len(seen.ids) == (spec.columns - 1) * (spec.rows - 1)
    expected = PER_MM * (1000 * seen.points[:, :2] + (left, top)) - 0.5
    assert np.abs(seen.pixels - expected).max() < 0.8


@settings(max_examples=10, deadline=None)
@given(columns=st.integers(3, 9), rows=st.integers(3, 7), legacy=st.booleans(), share=st.sampled_from([0.5, 0.7, 0.8]))
def test_black_areas_are_those_that_opencv_draws(columns, rows, legacy, share):
    """Every cell of its own picture, looked at in the middle of sixteenths of a square, is black where ours is."""
    spec = BoardSpec(columns=columns, rows=rows, square=0.028, marker=0.028 * share, legacy=legacy)
    theirs = spec.charuco().generateImage((columns * 280, rows * 280), marginSize=0, borderBits=1)
    ours = np.full_like(theirs, 255)
    for x, y, w, h in black_cells(spec) * 10:
        ours[round(y) : round(y + h), round(x) : round(x + w)] = 0
    assert (ours != theirs).mean() < 0.02  # they round markers to pixels of their own


def test_a_board_that_cannot_be_is_answered_in_a_sentence(tmp_path: Path):
    with pytest.raises(UserError, match="does not fit a4"):
        write_board(tmp_path / "board.pdf", BoardSpec(columns=12))
    with pytest.raises(UserError, match=r"\.pdf or \.png"):
        write_board(tmp_path / "board.svg", BoardSpec())
    with pytest.raises(UserError, match="no paper 'a7'"):
        write_board(tmp_path / "board.pdf", BoardSpec(), "a7")
    for arguments, says in (
        (["--marker", "29"], "40 to 90 %"),
        (["--dictionary", "DICT_9X9"], "no dictionary"),
        (["--columns", "2"], "columns"),
        (["--columns", "20", "--rows", "20", "--dictionary", "DICT_4X4_50"], "more markers than the 50"),
        (["--board", str(tmp_path / "none.json")], "no such file"),
    ):
        with pytest.raises(UserError, match=says):
            CALIBRATE.run(["board", str(tmp_path / "board.pdf"), *arguments])
    assert not list(tmp_path.iterdir())


def test_the_command_leaves_the_boards_numbers_beside_it(tmp_path: Path):
    assert CALIBRATE.run(["board", str(tmp_path / "b.pdf"), "--square", "29.6", "--marker", "21.7"]) == 0
    numbers = json.loads((tmp_path / "b.json").read_text())
    assert numbers["square"] == pytest.approx(0.0296) and BoardSpec.model_validate_json(json.dumps(numbers))
    assert board.SCALE == 100
