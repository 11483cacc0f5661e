"""Real pictures brought to the contract's size, shape, colour order and origin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ppo_core.contract import Camera
from d2ppo_core.errors import UserError
from d2ppo_core.observation import fit_image

pytest.importorskip("cv2")


def camera(height: int = 8, width: int = 8, **stated: str) -> Camera:
    return Camera(name="front", height=height, width=width, field_of_view=45.0, **stated)  # type: ignore[arg-type]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_picture_that_fits_is_returned_as_it_is() -> None:
    picture = noise(8, 12)
    assert fit_image(picture, camera(8, 12)) is picture


def test_colour_order_and_origin_become_the_contracts() -> None:
    """One red pixel in the upper left corner, wherever and however it is stored."""
    for stored_colour in ("rgb", "bgr"):
        for stored_origin in ("top_left", "bottom_left"):
            picture = np.zeros((8, 12, 3), dtype=np.uint8)
            picture[0 if stored_origin == "top_left" else -1, 0, stored_colour.index("r")] = 255
            for colour in ("rgb", "bgr"):
                for origin in ("top_left", "bottom_left"):
                    stated = camera(8, 12, colour=colour, origin=origin)
                    fitted = fit_image(picture, stated, stored_colour, stored_origin)
                    row = 0 if origin == "top_left" else 7
                    assert fitted[row, 0, colour.index("r")] == 255 and fitted.sum() == 255
                    assert fitted.flags.c_contiguous


def test_the_centre_is_cut_out_and_averaged() -> None:
    """640 x 480 to 80 x 80: columns 80 to 559, and each pixel the mean of 6 x 6."""
    picture = noise(480, 640)
    means = picture[:, 80:560].reshape(80, 6, 80, 6, 3).mean((1, 3))  # [480, 480, 3] -> [80, 80, 3]
    assert np.abs(fit_image(picture, camera(80, 80)) - means).max() <= 0.51
    tall = noise(640, 480)
    means = tall[80:560].reshape(80, 6, 80, 6, 3).mean((1, 3))
    assert np.abs(fit_image(tall, camera(80, 80)) - means).max() <= 0.51


def test_the_corners_stay_in_their_corners() -> None:
    """Four colours in the corners of what is kept, so that no turn and no mirror could pass."""
    picture, shades = np.zeros((48, 96, 3), dtype=np.uint8), np.arange(1, 13).reshape(4, 3) * 20
    left = (96 - 48) // 2
    for shade, (row, column) in zip(shades, ((0, left), (0, left + 42), (42, left), (42, left + 42)), strict=True):
        picture[row : row + 6, column : column + 6] = shade
    fitted = fit_image(picture, camera(8, 8))
    np.testing.assert_array_equal(fitted[[0, 0, -1, -1], [0, -1, 0, -1]], shades)
    mirrored = fit_image(picture, camera(8, 8, colour="bgr", origin="bottom_left"))
    np.testing.assert_array_equal(mirrored[[-1, -1, 0, 0], [0, -1, 0, -1]], shades[:, ::-1])


@settings(max_examples=60, deadline=None)
@given(*[st.integers(1, 40)] * 4)
def test_every_size_becomes_the_contracts(height: int, width: int, wanted_height: int, wanted_width: int) -> None:
    """And a plain colour stays it."""
    picture = np.full((height, width, 3), (10, 100, 250), dtype=np.uint8)
    fitted = fit_image(picture, camera(wanted_height, wanted_width))
    assert fitted.dtype == np.uint8
    np.testing.assert_array_equal(fitted, np.broadcast_to(picture[0, 0], (wanted_height, wanted_width, 3)))


@pytest.mark.parametrize(("picture", "stored", "message"), [
    (np.zeros((8, 8, 3)), {}, "is float64"), (np.zeros((8, 8), dtype=np.uint8), {}, "must be uint8"),
    (np.zeros((8, 8, 4), dtype=np.uint8), {}, r"\(8, 8, 4\)"), (None, {}, "is NoneType"),
    (np.zeros((0, 8, 3), dtype=np.uint8), {}, "must hold pixels"),
    (noise(8, 8), {"colour": "yuv"}, "rgb or bgr"), (noise(8, 8), {"origin": "centre"}, "top_left or bottom_left"),
])  # fmt: skip
def test_what_is_no_such_picture_is_refused(picture: object, stored: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_image(picture, camera(), **stored)  # type: ignore[arg-type]
