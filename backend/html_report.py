"""A page with pictures and their suggestions, since people would rather look than read. One file, no scripts."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from retrieval.errors import UnreadableImage
from retrieval.preprocess import decode_image

THUMBNAIL_EDGE = 240
"""About 8 KB each as JPEG: a page of 1,000 pictures stays under 12 MB."""

_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Forelabel: suggestions</title>
<style>
body{font:14px/1.4 system-ui,sans-serif;margin:2rem;background:#f6f7f9;color:#1b1f24}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:1rem}
figure{margin:0;background:#fff;border-radius:8px;overflow:hidden;box-shadow:0 1px 3px #0002}
img{display:block;width:100%;height:200px;object-fit:contain;background:#e9ecf0}
figcaption{padding:.6rem .8rem}.name{color:#667;font-size:12px;overflow-wrap:anywhere}
.bar{position:relative;margin:.25rem 0;padding:.1rem .4rem;border-radius:4px;overflow:hidden}
.bar i{position:absolute;inset:0 auto 0 0;background:#cfe3ff;z-index:0}.bar span{position:relative}
.bar b{position:relative;float:right;font-weight:500}.error{color:#b00020}.caption{color:#556;font-style:italic}
</style><h1>Forelabel: suggestions</h1><main>
"""


class HtmlReport:
    """Writes the page as records of `label_images` come in; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._stream: TextIO = path.open("w", encoding="utf-8")

    def __enter__(self) -> HtmlReport:
        self._stream.write(_HEAD)
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.write("</main></html>\n")
        self._stream.close()

    def add(self, record: dict[str, Any]) -> None:
        picture = _thumbnail_of(Path(record["image"]))
        shown = f'<img loading="lazy" alt="" src="{picture}">' if picture else ""
        self._stream.write(f'<figure>{shown}<figcaption><div class="name">{html.escape(record["image"])}</div>')
        if "error" in record:
            self._stream.write(f'<p class="error">{html.escape(record["error"])}</p>')
        for item in record.get("labels", []):
            share = f"{100 * item['score']:.1f}%"
            self._stream.write(
                f'<div class="bar"><i style="width:{share}"></i>'
                f"<span>{html.escape(item['label'])}</span><b>{share}</b></div>"
            )
        for caption in record.get("captions", [])[:1]:
            self._stream.write(f'<div class="caption">{html.escape(caption)}</div>')
        self._stream.write("</figcaption></figure>\n")


def _thumbnail_of(path: Path) -> str:
    try:
        return thumbnail(path.read_bytes())
    except OSError:
        return ""


def thumbnail(data: bytes) -> str:
    """A picture's bytes -> a small data URI, or "" where they cannot be read."""
    try:
        image = decode_image(data, min_edge=THUMBNAIL_EDGE)
    except UnreadableImage:
        return ""
    image.thumbnail((2 * THUMBNAIL_EDGE, 2 * THUMBNAIL_EDGE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
