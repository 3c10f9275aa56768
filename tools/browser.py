"The site in a real browser: pictures of its pages, and what a page costs a reader; tests and the benchmark use it too"

import functools
import http.server
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

VIEWS = {"light": (1280, "light"), "dark": (1280, "dark"), "narrow": (390, "light")}  # width in pixels, colour scheme
NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OTHER = "channels.html"  # a page with charts, opened second to see what the cache keeps
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


class BrowserError(Exception):
    "No browser, or nothing to drive it with, and what to do about it"


def chromium() -> str:
    "Path of the Chromium or Chrome that is installed here; `BrowserError` if there is none"
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    raise BrowserError("There is no Chromium here to look at pages with. On Debian and Ubuntu: apt install chromium.")


@contextmanager
def browser():
    "A headless browser, as Playwright drives it"
    path = chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as e:
        raise BrowserError("Playwright drives the browser: pip install 'talking_heads[dev]', or `make setup`.") from e
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield b
        finally:
            b.close()


def asked(name: str) -> str:
    "JavaScript that calls one of the functions of browser.js"
    return f"() => {SCRIPT}.{name}()"


def settled(page) -> None:
    "Wait until every chart of a page is drawn"
    page.wait_for_load_state("load")
    page.wait_for_function(asked("drawn"), timeout=90_000)  # busy machines are slow


def pages_of(site: Path) -> list[str]:
    "Names of all pages of a built site, such as `index.html`"
    return sorted(p.relative_to(site).as_posix() for p in Path(site).rglob("*.html"))


def take_screenshots(site: Path, folder: Path) -> list[Path]:
    "Take a picture of every page of a built site in every one of `VIEWS`; give their paths"
    folder.mkdir(parents=True, exist_ok=True)
    shots = []
    with browser() as b:
        for view, (width, scheme) in VIEWS.items():
            page = b.new_page(viewport=dict(width=width, height=900), color_scheme=scheme)
            for name in pages_of(site):
                page.goto((site / name).resolve().as_uri())
                settled(page)
                shots.append(folder / f"{name.removesuffix('.html').replace('/', '-')}-{view}.png")
                page.screenshot(path=shots[-1], full_page=True)
    return shots


class Quiet(http.server.SimpleHTTPRequestHandler):
    "A file server that says nothing"

    def log_message(self, *args):
        pass


@contextmanager
def served(site: Path):
    "Address of a plain file server for a built site, while the block runs"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


# What a page costs


def visit(page, address: str) -> dict:
    "Open a page and read the browser's clock: when the window was ready, and when every chart was drawn"
    page.goto(address)
    page.wait_for_function(asked("windowDrawn"))
    ready = page.evaluate(asked("seconds"))
    settled(page)
    return page.evaluate(asked("cost")) | dict(ready=ready, drawn=page.evaluate(asked("seconds")))


def visit_twice(b, at: str, name: str, other: str | None) -> dict:
    "Costs of a page in a fresh browser; where it loads Vega, `vega_again` says what another page then asks of it"
    with b.new_context(viewport=dict(width=1280, height=900)) as context:
        page = context.new_page()
        row = visit(page, f"{at}/{name}")
        if other and row["vega_loads"] and name != other:
            row["vega_again"] = visit(page, f"{at}/{other}")["vega_bytes"]
    return row


def median_costs(site: Path, pages: list[str], repeats: int) -> list[dict]:
    "Of the visits of each page, the one in the middle by the time until the window is ready"
    other = OTHER if (site / OTHER).is_file() else None
    rows = []
    with browser() as b, served(site) as at:
        for name in pages:
            visits = [visit_twice(b, at, name, other) for _ in range(repeats)]
            rows.append(dict(page=name) | sorted(visits, key=lambda v: v["ready"])[len(visits) // 2])
    return rows


def page_costs(site: Path, pages: list[str] | None = None, repeats: int = 3) -> list[dict]:
    """Weight of pages, and time until they can be used, measured in a fresh browser from a plain file server.

    `pages` are names such as `charts.html`, or None for all. Each row gives bytes read; seconds until the window is
    ready and until all charts are drawn; loads of Vega, and the bytes that another page then asks of it."""
    site = Path(site)
    with ThreadPoolExecutor(1) as own:  # Playwright refuses a thread with an event loop, as a notebook's is
        return own.submit(median_costs, site, pages or pages_of(site), repeats).result()
