"""Chromium, driven by Playwright, and an origin that serves pages to it.

Playwright runs in a thread with an event loop of its own, so that tests need none.
"""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Thread
from typing import Any, Final

from anyio.from_thread import BlockingPortal, start_blocking_portal

_FLAGS: Final = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking")
_HTML: Final = b"""<!doctype html>
<link rel="icon" href="data:,">
<script type="module" src="page.js"></script>
"""
_START_SECONDS: Final = 60


def missing() -> str | None:
    """Return what the tests in a browser lack here and how to get it, or None."""
    if _executable() is None:
        return "needs Chromium: apt-get install chromium"
    if shutil.which("npm") is None:
        return "needs Node 20 or later, with npm"
    if find_spec("playwright") is None:
        return "needs Playwright: uv pip install --require-hashes -r requirements/browser.txt"
    return None


class Page:
    """A page, with its script running."""

    def __init__(self, portal: BlockingPortal, page: Any) -> None:
        self._portal = portal
        self._page = page

    def evaluate(self, function: str, *arguments: object) -> Any:
        """Call a global function of the page, and return what its promise resolves to."""
        call = f"arguments => globalThis.{function}(...arguments)"
        return self._portal.call(self._page.evaluate, call, arguments)

    def expose(self, name: str, function: Callable[..., None]) -> None:
        """Add a global function to the page, which calls ``function`` in another thread."""
        self._portal.call(self._page.expose_function, name, function)


class Chromium:
    """A browser. Pages of it share nothing, not even connections."""

    def __init__(self, portal: BlockingPortal, browser: Any, origin: "_Origin") -> None:
        self._portal = portal
        self._browser = browser
        self._origin = origin

    @property
    def origin(self) -> str:
        """The origin of all pages."""
        return self._origin.url

    @contextmanager
    def page(
        self,
        script: bytes,
        *,
        trusting: bool = False,
        console: Callable[[str], None] | None = None,
    ) -> Iterator[Page]:
        """Open a page that runs ``script``, a module.

        ``trusting`` accepts every certificate. ``console`` is called in another thread with each
        line of the page's ``console.log``, and the text of an exception that the page raises.
        """
        context = self._portal.call(self._new_context, trusting)
        try:
            page = self._portal.call(_open, context, self._origin.add(script), console)
            yield Page(self._portal, page)
        finally:
            self._portal.call(context.close)

    async def _new_context(self, trusting: bool) -> Any:
        return await self._browser.new_context(ignore_https_errors=trusting)


async def _open(context: Any, url: str, console: Callable[[str], None] | None) -> Any:
    page = await context.new_page()
    if console:
        page.on("console", lambda line: line.type == "log" and console(line.text))
        page.on("pageerror", lambda error: console(str(error)))
    await page.goto(url)
    return page


@contextmanager
def launched() -> Iterator[Chromium]:
    """Run Chromium."""
    from playwright.async_api import async_playwright

    with (
        _serving() as origin,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(async_playwright()) as playwright,
    ):

        async def launch() -> Any:
            return await playwright.chromium.launch(
                executable_path=_executable(), args=_FLAGS, timeout=_START_SECONDS * 1000
            )

        browser = portal.call(launch)
        try:
            yield Chromium(portal, browser, origin)
        finally:
            portal.call(browser.close)


class _Origin:
    """Serves each script as a page of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, tuple[str, bytes]] = {}
        self._numbers = itertools.count(1)

    def add(self, script: bytes) -> str:
        """Return the URL of a page that runs ``script``."""
        path = f"/{next(self._numbers)}/"
        self.files |= {path: ("text/html", _HTML), f"{path}page.js": ("text/javascript", script)}
        return self.url + path


@contextmanager
def _serving() -> Iterator[_Origin]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            media_type, content = origin.files[self.path]
            self.send_response(200)
            self.send_header("Content-Type", f"{media_type}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        origin = _Origin(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield origin
        finally:
            server.shutdown()
            thread.join()


def _executable() -> str | None:
    names = ("chromium", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)
