from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval.errors import ModelError, UnreadableImage
from retrieval.preprocess import Preprocessing, decode_image
from tests.retrieval.tiny_models import encoded, photo

CONFIG = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def mean_colour(data: bytes) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    return tuple(int(v) for v in np.asarray(image).reshape(-1, 3).mean(axis=0).round())


RED = Image.new("RGB", (20, 10), (200, 30, 40))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(format: str) -> None:
    np.testing.assert_allclose(mean_colour(encoded(RED, format)), (200, 30, 40), atol=6)


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (RED.convert("P"), "PNG", (200, 30, 40)),
        (Image.new("L", (4, 4), 90), "PNG", (90, 90, 90)),
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("LA", (4, 4), (90, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG", (127, 127, 127)),
        (Image.fromarray(np.full((4, 4), 0x8000, np.uint16)), "PNG", (128, 128, 128)),
        (Image.fromarray(np.full((4, 4), 0x4000, np.uint16)), "TIFF", (64, 64, 64)),
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF", (127, 127, 127)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", (254, 0, 0)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    ],
    ids=[
        "palette",
        "grey",
        "bilevel",
        "grey-alpha",
        "clear",
        "half-clear",
        "png16",
        "tiff16",
        "float",
        "cmyk-jpeg",
        "cmyk-tiff",
    ],
)
def test_modes(image: Image.Image, format: str, expected: tuple[int, ...]) -> None:
    np.testing.assert_allclose(mean_colour(encoded(image, format)), expected, atol=2)


def test_transparent_palette_is_laid_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30] * 256)
    assert mean_colour(encoded(image, "PNG", transparency=0)) == (255, 255, 255)


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert mean_colour(data) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("min_edge", [None, 16])
def test_exif_orientation(orientation: int, min_edge: int | None) -> None:
    upright = photo(96, 64)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = decode_image(encoded(stored, "JPEG", exif=exif, quality=95), min_edge=min_edge)
    wanted = np.asarray(upright.resize(shown.size, Image.Resampling.BOX), np.float32)
    assert np.abs(np.asarray(shown, np.float32) - wanted).mean() < 8


def test_jpeg_is_decoded_at_reduced_scale_but_no_smaller_than_asked() -> None:
    data = encoded(photo(1600, 1200), "JPEG")
    assert decode_image(data).size == (1600, 1200)
    assert 128 <= min(decode_image(data, min_edge=128).size) < 600


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1000) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"hello, I am a text file\n", "not a picture"),
        (encoded(photo(64, 64), "JPEG")[:400], "decoded|truncated"),
        (encoded(photo(64, 64), "PNG")[:100], "decoded|truncated"),
        (png_header(30_000, 30_000), "30000 x 30000 pixels"),
    ],
    ids=["empty", "text", "truncated-jpeg", "truncated-png", "bomb"],
)
def test_unreadable(data: bytes, message: str) -> None:
    with pytest.raises(UnreadableImage, match=message):
        decode_image(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.integers(0, 300))
def test_damaged_files_raise_nothing_else(noise: bytes, format: str, at: int) -> None:
    data = bytearray(encoded(photo(24, 24), format))
    data[at : at + len(noise)] = noise
    with contextlib.suppress(UnreadableImage):
        assert decode_image(bytes(data)).mode == "RGB"


def test_pixel_limit_is_a_setting() -> None:
    data = encoded(photo(40, 30))
    assert decode_image(data, max_pixels=1200).size == (40, 30)
    with pytest.raises(UnreadableImage, match="FORELABEL_MAX_IMAGE_PIXELS"):
        decode_image(data, max_pixels=1199)


@pytest.mark.parametrize("size", [(8, 8), (100, 20), (20, 100), (1, 1), (3000, 1)])
def test_crop_always_has_the_size_of_the_model(size: tuple[int, int]) -> None:
    clip = {**CONFIG, "size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True}
    for config in (CONFIG, clip):
        assert Preprocessing.from_config(config).pixels(
            photo(*size) if min(size) > 9 else Image.new("RGB", size)
        ).shape == (8, 8, 3)


def test_unknown_preprocessing_is_refused() -> None:
    with pytest.raises(ModelError, match="longest_edge"):
        Preprocessing.from_config({**CONFIG, "size": {"longest_edge": 8}})


def test_icc_and_exif_junk_do_not_matter() -> None:
    buffer = io.BytesIO()
    RED.save(buffer, "JPEG", exif=b"Exif\x00\x00junk")
    np.testing.assert_allclose(mean_colour(buffer.getvalue()), (200, 30, 40), atol=6)
