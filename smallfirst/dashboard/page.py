"""The page's files, which everybody may read: they hold no data, and load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

from smallfirst.serving.plugins import PluginRequest, PluginRoute, TextResponse

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def page_files() -> Iterator[tuple[str, TextResponse]]:
    """Yield the path and the content of each file; the page itself is at `/`, all others are below `/dashboard/`."""
    for file in resources.files(__package__).joinpath("static").iterdir():
        media_type = _MEDIA_TYPES[file.name.rpartition(".")[2]]
        path = "/" if file.name == "index.html" else f"/dashboard/{file.name}"
        yield path, TextResponse(file.read_text(encoding="utf-8"), media_type, HEADERS)


def page_routes() -> Iterator[PluginRoute]:
    """Yield a public route for each file."""
    for path, content in page_files():

        async def answer(_: PluginRequest, content: TextResponse = content) -> TextResponse:
            return content

        yield PluginRoute("GET", path, answer, "public")
