"""Bytes to pixels: decoding of whatever annotators upload, and the resize, crop and scaling that an encoder wants.

`Preprocessing` repeats the steps of transformers' image processors for CLIP and SigLIP with Pillow and torch (no
torchvision); a test holds the two together. Two things are done on top: JPEGs are decoded at the smallest scale that
still has `OVERSAMPLING` times the edge that the resize needs, and transparency is laid on white.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F  # noqa: N812 - its usual name

from retrieval.errors import ModelError, UnreadableImage

MAX_PIXELS = 200_000_000
"""Default limit on width x height, checked on the header before anything is decoded."""

OVERSAMPLING = 2
"""JPEG draft scale: at least twice the edge of the resize; at 1 the resize cannot smooth, and embeddings move."""

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit only warns; `decode_image` refuses by its `max_pixels` instead.


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS, min_edge: int | None = None) -> Image.Image:
    """Decode any format that Pillow reads to an upright RGB image; of animations, the first frame.

    Args:
        data: the file's bytes.
        max_pixels: largest width x height that is decoded.
        min_edge: JPEGs may be decoded at a reduced scale whose shorter edge is still at least this long.

    Raises:
        UnreadableImage: the bytes are empty, no image, truncated or too large.
    """
    if not data:
        raise UnreadableImage("the file is empty (0 bytes); upload it again")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise UnreadableImage(
                    f"the image is {image.width} x {image.height} pixels, more than the {max_pixels:,} allowed; "
                    "scale it down or raise FORELABEL_MAX_IMAGE_PIXELS"
                )
            if min_edge and image.format == "JPEG":
                shorter = min(image.size)
                if shorter > min_edge:
                    image.draft(None, (image.width * min_edge // shorter, image.height * min_edge // shorter))
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(
            f"not a picture in any known format ({len(data)} bytes beginning {data[:8]!r})"
        ) from error
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error, ...
        kind = f"{len(data)} bytes beginning {data[:8]!r}"
        raise UnreadableImage(f"not an image that can be decoded ({kind}): {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit and float grey are scaled to 8 bits, transparency is laid on white."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_grey_to_8_bit(np.asarray(image, dtype=np.float64))).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bit(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Grey of unknown range [h, w] to 0-255: 0-1, 0-255 and 0-65535 are told apart by the largest value."""
    values = np.nan_to_num(values)
    top = float(values.max(initial=0.0))
    scale = 255.0 if top <= 1 else 1.0 if top <= 255 else 255.0 / max(top, 65535.0)
    return np.clip(values * scale, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Preprocessing:
    """What stands in a preprocessor_config.json, for the processors that resize, crop and normalise."""

    shortest_edge: int | None
    """Resize so that the shorter edge has this length (CLIP); None resizes to `size` whatever the aspect."""
    size: tuple[int, int]
    """(height, width) that the model is given."""
    resample: Image.Resampling
    crop: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Preprocessing:
        """Read preprocessor_config.json. Raises ModelError for steps that are not known here."""
        size, crop = config.get("size"), config.get("crop_size")
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size or {})
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        cropped = bool(config.get("do_center_crop", crop is not None))
        shortest = size.get("shortest_edge")
        target = crop if cropped and crop else size
        if not (config.get("do_resize", True) and "height" in target and "width" in target):
            raise ModelError(f"the preprocessor's size {config.get('size')!r} is none that is known here")
        normalised = config.get("do_normalize", True)
        return cls(
            shortest_edge=int(shortest) if shortest else None,
            size=(int(target["height"]), int(target["width"])),
            resample=Image.Resampling(config.get("resample", Image.Resampling.BICUBIC)),
            crop=cropped,
            mean=tuple(config["image_mean"]) if normalised else (0.0, 0.0, 0.0),
            std=tuple(config["image_std"]) if normalised else (1.0, 1.0, 1.0),
            rescale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        )

    @property
    def min_edge(self) -> int:
        """Shorter edge below which a JPEG is not to be decoded."""
        return OVERSAMPLING * (self.shortest_edge or max(self.size))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB image -> uint8 [height, width, 3], resized and cropped but not yet normalised."""
        height, width = self.size
        if self.shortest_edge is None:
            return resize(image, (width, height), self.resample)
        resized = resize(image, _shortest_edge_size(image.size, self.shortest_edge), self.resample)
        if not self.crop:
            return resized
        left, top = (resized.shape[1] - width) // 2, (resized.shape[0] - height) // 2
        return np.asarray(Image.fromarray(resized).crop((left, top, left + width, top + height)))


def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> NDArray[np.uint8]:
    """RGB image -> uint8 [height, width, 3] of size (width, height).

    torch has Pillow's bilinear and bicubic filters for bytes; it differs by one level here and there, and takes half
    the time.
    """
    mode = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}.get(resample)
    if mode is None:
        return np.asarray(image.resize(size, resample))
    channels_last = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = F.interpolate(channels_last, size[::-1], mode=mode, antialias=True, align_corners=False)
    out: NDArray[np.uint8] = resized[0].permute(1, 2, 0).numpy()
    return out


def _shortest_edge_size(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """(width, height) -> the same aspect with the shorter edge at `edge`, the longer truncated as transformers does."""
    width, height = size
    return (edge, max(1, edge * height // width)) if width <= height else (max(1, edge * width // height), edge)
