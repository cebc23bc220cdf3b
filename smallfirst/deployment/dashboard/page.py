"""The page's files, which everybody may read: they hold no data, and load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def page_files() -> Iterator[tuple[str, bytes, Mapping[str, str]]]:
    """Yield path, content and headers of each file; the page is at `/`, all others are below `/dashboard/`."""
    for file in resources.files(__package__).joinpath("static").iterdir():
        path = "/" if file.name == "index.html" else f"/dashboard/{file.name}"
        content_type = f"{_TYPES[file.name.rpartition('.')[2]]}; charset=utf-8"
        yield path, file.read_bytes(), {"content-type": content_type, **HEADERS}
