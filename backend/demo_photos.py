"""The photos of the demo: those that scikit-image and scikit-learn ship, or a folder of the user's own.

Of their pictures, the ones taken by a camera that a layman can name were chosen, before any model saw them: no
drawings, diagrams, micrographs or medical images, and one of each pair of a kind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class SamplePhoto:
    """A photo and what an annotator would call it."""

    package: str
    file: str
    accepted: frozenset[str]
    """Labels of SAMPLE_LABELS that are right: more than one where two people could well differ."""

    @property
    def path(self) -> Path:
        return Path(str(files(self.package) / self.file))


def _photo(package: str, file: str, *accepted: str) -> SamplePhoto:
    return SamplePhoto(package, file, frozenset(accepted))


SAMPLE_PHOTOS = (
    _photo("skimage.data", "astronaut.png", "person"),
    _photo("skimage.data", "brick.png", "brick wall"),
    _photo("skimage.data", "camera.png", "person", "camera"),
    _photo("skimage.data", "chelsea.png", "cat"),
    _photo("skimage.data", "coffee.png", "coffee"),
    _photo("skimage.data", "coins.png", "coins"),
    _photo("skimage.data", "grass.png", "grass"),
    _photo("skimage.data", "gravel.png", "gravel"),
    _photo("skimage.data", "hubble_deep_field.jpg", "stars"),
    _photo("skimage.data", "moon.png", "moon"),
    _photo("skimage.data", "motorcycle_left.png", "motorcycle"),
    _photo("skimage.data", "page.png", "page of text"),
    _photo("skimage.data", "rocket.jpg", "rocket"),
    _photo("sklearn.datasets.images", "china.jpg", "temple"),
    _photo("sklearn.datasets.images", "flower.jpg", "flower"),
)

SAMPLE_LABELS = (
    "person",
    "cat",
    "dog",
    "bird",
    "flower",
    "tree",
    "grass",
    "gravel",
    "brick wall",
    "temple",
    "bridge",
    "car",
    "motorcycle",
    "rocket",
    "coffee",
    "pizza",
    "coins",
    "camera",
    "page of text",
    "stars",
    "moon",
)
"""Every label of a photo, and some that fit none, as in a real project."""


def photos_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """The files under `folder` whose names end in one of the (lower-case) `suffixes`, sorted.

    Raises:
        FileNotFoundError: no such folder, or no image in it; the message says what was looked for.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; name one with photos in it")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise FileNotFoundError(f"there is no image in {folder}; looked for {', '.join(sorted(suffixes))}")
    return found
