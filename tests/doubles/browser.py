"""A real browser without a screen: Chromium, driven by Playwright."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, sync_playwright

from doubles.tools import require_program

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
)
PATIENCE_MS = 60_000

_CONTRAST = """
() => {
  const parse = (text) => {
    const found = text.match(/[0-9.]+/g).map(Number);
    return [...found.slice(0, 3), found.length > 3 ? found[3] : 1];
  };
  const light = ([r, g, b]) => {
    const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const weak = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility() || element.closest(".hidden, .frame, svg")) continue;
    const [one, other] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) weak.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return weak;
}
"""


@contextmanager
def run_chromium() -> Iterator[Browser]:
    """Start it, and end it."""
    program = require_program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


class Window:
    """A page of its own, that remembers what went wrong on it.

    Attributes:
        complaints: what the console said, and what threw.
    """

    def __init__(self, browser: Browser, width: int, height: int, scheme: str) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on(
            "console",
            lambda told: (
                self.complaints.append(told.text) if told.type in {"error", "warning"} else None
            ),
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def find_weak_text(self) -> list[str]:
        """Return text whose contrast is below 4.5 to 1 (WCAG 2.2, 1.4.3)."""
        found: list[str] = self.page.evaluate(_CONTRAST)
        return found

    def is_too_wide(self) -> bool:
        """Say whether the page has to be scrolled sideways."""
        answer: bool = self.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        return answer


@contextmanager
def open_window(
    browser: Browser, width: int = 1280, height: int = 900, scheme: str = "light"
) -> Iterator[Window]:
    """Give a window without any cookies."""
    window = Window(browser, width, height, scheme)
    try:
        yield window
    finally:
        window.context.close()
