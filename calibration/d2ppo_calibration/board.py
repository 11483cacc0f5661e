"""The ChArUco board: its numbers, what OpenCV needs of it, and a page to print with scales to check by a ruler.

The board's frame has its origin in the corner of the first square, x to the right, y down the page and z into it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
from pydantic import Field, model_validator

from d2ppo_core.errors import UserError
from d2ppo_core.files import atomic_path
from d2ppo_core.frozen import Frozen

PAPERS = {"a4": (297.0, 210.0), "a3": (420.0, 297.0), "letter": (279.4, 215.9)}  # mm, on its long side
SCALE = 100.0  # mm: length of the printed scales
EDGE = 4.0  # mm that printers leave blank, at least


class BoardSpec(Frozen):
    """A chessboard whose white squares hold ArUco markers."""

    columns: Annotated[int, Field(ge=3, le=40)] = 9  # squares
    rows: Annotated[int, Field(ge=3, le=40)] = 6  # squares
    square: Annotated[float, Field(gt=0)] = 0.030  # m: edge of a square, as measured on the print
    marker: Annotated[float, Field(gt=0)] = 0.022  # m: edge of a marker
    dictionary: str = "DICT_5X5_250"
    legacy: bool = False  # boards of even row count printed by OpenCV before 4.6

    @model_validator(mode="after")
    def _printable(self) -> BoardSpec:
        if not self.dictionary.startswith("DICT_") or not hasattr(cv2.aruco, self.dictionary):
            raise ValueError(
                f"there is no dictionary '{self.dictionary}'; use DICT_5X5_250 or another of OpenCV's names"
            )
        if not 0.4 <= self.marker / self.square <= 0.9:
            raise ValueError(
                f"markers of {1000 * self.marker:g} mm in squares of {1000 * self.square:g} mm; use 40 to 90 % of it"
            )
        there = len(cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary)).bytesList)
        if self.columns * self.rows // 2 > there:
            raise ValueError(
                f"{self.columns} x {self.rows} squares need more markers than the {there} of {self.dictionary}"
            )
        return self

    def charuco(self) -> Any:
        """OpenCV's `CharucoBoard`."""
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary))
        board = cv2.aruco.CharucoBoard((self.columns, self.rows), self.square, self.marker, dictionary)
        board.setLegacyPattern(self.legacy)
        return board

    @property
    def corners(self) -> np.ndarray:
        """(n, 3) m: the inner corners in the board's frame, by id."""
        return np.asarray(self.charuco().getChessboardCorners(), dtype=np.float64).reshape(-1, 3)

    @property
    def size(self) -> tuple[float, float]:
        """m: width and height."""
        return self.columns * self.square, self.rows * self.square


def black_cells(board: BoardSpec) -> np.ndarray:
    """(n, 4) mm: every black rectangle as x, y of its upper left corner (y down), width and height."""
    side, edge = 1000 * board.square, 1000 * board.marker
    charuco = board.charuco()
    corners = [1000 * np.asarray(points)[0, :2] for points in charuco.getObjPoints()]  # upper left of each marker
    with_marker = {tuple((corner // side).astype(int)) for corner in corners}
    squares = [
        (column * side, row * side, side, side)
        for row in range(board.rows) for column in range(board.columns) if (column, row) not in with_marker
    ]  # fmt: skip
    dictionary, cells = charuco.getDictionary(), []
    bits = dictionary.markerSize + 2
    for number, corner in zip(charuco.getIds().ravel(), corners, strict=True):
        marker = cv2.aruco.generateImageMarker(dictionary, int(number), bits)
        for row, line in enumerate(marker):
            for start, stop in _runs(line == 0):
                at = corner + edge / bits * np.array([start, row])
                cells.append((*at, edge / bits * (stop - start), edge / bits))
    return np.array(squares + cells)


def _runs(dark: np.ndarray) -> list[tuple[int, int]]:
    """First and one-past-last index of each run of true values."""
    change = np.flatnonzero(np.diff(np.concatenate([[0], dark.astype(int), [0]])))
    return list(zip(change[::2].tolist(), change[1::2].tolist(), strict=True))


def write_board(path: str | Path, board: BoardSpec, paper: str = "a4", dpi: int = 600) -> tuple[float, float]:
    """Print the board to PDF (vectors) or PNG at its true size, with scales of 100 mm.

    Returns where its upper left corner is on the page, mm.

    Raises:
        UserError: the board does not fit the paper, or the file's ending is neither .pdf nor .png.
    """
    path = Path(path)
    if path.suffix.lower() not in (".pdf", ".png"):
        raise UserError(f"{path}: a board is written as .pdf or .png; change the file's ending")
    if paper not in PAPERS:
        raise UserError(f"there is no paper '{paper}'; choose one of {', '.join(PAPERS)}")
    page = PAPERS[paper]
    width, height = (1000 * v for v in board.size)
    left, top = (page[0] - width) / 2, (page[1] - height) / 2
    if left < 2 * EDGE or top < 2 * EDGE:
        raise UserError(
            f"a board of {width:g} x {height:g} mm does not fit {paper} ({page[0]:g} x {page[1]:g} mm) with its "
            "scales; take smaller squares, fewer of them, or larger paper"
        )
    figure = _page(board, paper, left, top)
    kind = path.suffix.lower()[1:]
    with atomic_path(path) as partial:
        figure.savefig(partial, format=kind, dpi=dpi, metadata={"CreationDate": None} if kind == "pdf" else None)
    return left, top


def _page(board: BoardSpec, paper: str, left: float, top: float) -> Any:
    """A matplotlib figure of the page; its axes count millimetres from the upper left corner, y down."""
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    page, height = PAPERS[paper], 1000 * board.size[1]
    figure = Figure(figsize=(page[0] / 25.4, page[1] / 25.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, page[0]), ylim=(page[1], 0))
    axes.axis("off")
    cells = [Rectangle((left + x, top + y), w, h) for x, y, w, h in black_cells(board)]
    axes.add_collection(PatchCollection(cells, facecolor="black", edgecolor="none", antialiased=False, linewidth=0))
    below, beside = top + height + EDGE, left - EDGE
    _scale(axes, (left, below), (1, 0))
    _scale(axes, (beside, top), (0, 1))
    axes.text(
        left + SCALE + 3, below,
        f"both scales: {SCALE:g} mm. {board.columns} x {board.rows} squares of {1000 * board.square:g} mm, markers "
        f"{1000 * board.marker:g} mm, {board.dictionary}. Print at 100 %, glue it flat.",
        fontsize=6, va="center",
    )  # fmt: skip
    return figure


def _scale(axes: Any, start: tuple[float, float], along: tuple[int, int]) -> None:
    """A line of SCALE mm with a tick each 10 mm."""
    (x, y), (dx, dy) = start, along
    axes.plot([x, x + SCALE * dx], [y, y + SCALE * dy], color="black", linewidth=0.4, solid_capstyle="butt")
    for step in range(11):
        reach = 1.5 if step % 5 == 0 else 0.8
        at = (x + 10 * step * dx, y + 10 * step * dy)
        ticks = [at[0] - reach * dy, at[0] + reach * dy], [at[1] - reach * dx, at[1] + reach * dx]
        axes.plot(*ticks, color="black", linewidth=0.3)
