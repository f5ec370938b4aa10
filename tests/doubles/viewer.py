"""OHIF in Chromium over an Orthanc, as deploy/ serves it: its files and DICOMweb under one origin.

Questions about what is shown are put to Cornerstone, which draws it; scrolling, clicking and
reading thumbnails go through the page.
"""

import http.client
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from playwright.sync_api import Browser, Page
from playwright.sync_api import TimeoutError as WaitedInVain

from doubles.browser import PATIENCE_MS
from doubles.tools import give_up

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "deploy" / "viewer.js"
DICOMWEB = "/dicom-web/"
ATTEMPTS = 3
"""At showing what was asked for."""
_KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}


def require_ohif() -> Path:
    """Return the folder of OHIF's files, or end the test."""
    folder = ROOT / ".venv" / "ohif"
    if not folder.is_dir():
        give_up("OHIF is missing: deploy/install-viewer .venv/ohif")
    return folder


@contextmanager
def serve_ohif(files: Path, pacs: str) -> Iterator[str]:
    """Serve OHIF's files, and what the PACS at the address `pacs` says of DICOMweb."""

    class Door(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path.startswith(DICOMWEB):
                self._ask_pacs()
            elif path == "/app-config.js":
                self._send(200, "text/javascript", SETTINGS.read_bytes())
            else:
                file = files / path.lstrip("/")
                file = file if file.is_file() else files / "index.html"
                kind = _KINDS.get(file.suffix, "application/octet-stream")
                self._send(200, kind, file.read_bytes())

        def _ask_pacs(self) -> None:
            connection = http.client.HTTPConnection(urlsplit(pacs).netloc, timeout=60)
            try:
                headers = {"Host": self.headers["Host"], "Accept": self.headers["Accept"]}
                connection.request("GET", self.path, headers=headers)
                answer = connection.getresponse()
                self._send(answer.status, answer.headers["Content-Type"] or "", answer.read())
            finally:
                connection.close()

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # the browser has left in the middle of an answer

    server = Server(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="ohif")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_FIND = "cornerstone.getRenderingEngines().flatMap((each) => each.getViewports())"

_PROBED = """cornerstoneTools.annotation.state.getAllAnnotations()
  .filter((each) => each.metadata.toolName === 'Probe')
  .flatMap((each) => Object.values(each.data.cachedStats ?? {}))"""


class Ohif:
    """One study in OHIF.

    Attributes:
        page: Playwright's.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self._address = address

    def open(self, study: str, **query: str) -> None:
        """Open a study, and wait until its pictures are drawn."""
        words = urlencode({"StudyInstanceUIDs": study, **query})
        self.page.goto(f"{self._address}/viewer?{words}")
        self.page.wait_for_function(f"window.cornerstone && {_FIND}.length")
        self.wait_until_drawn()
        for name in ("Skip all", "Confirm and hide"):
            button = self.page.get_by_role("button", name=name)
            button.click() if button.count() else None

    def wait_until_drawn(self) -> None:
        """Wait until every viewport shows an image, and all of a volume is loaded."""
        self.page.wait_for_function(
            f"""() => {_FIND}.every((each) => {{
              if (!each.getImageData()) return false;
              const volume = each.getVolumeId && cornerstone.cache.getVolume(each.getVolumeId());
              return !volume || volume.loadStatus?.loaded !== false;
            }})""",
            timeout=PATIENCE_MS,
        )
        self.page.wait_for_timeout(500)

    def ask(self, script: str, argument: Any = None) -> Any:
        """Return the value of a function of the page."""
        return self.page.evaluate(script, argument)

    def list_series(self) -> list[dict[str, Any]]:
        """Return the series that OHIF lists."""
        found: list[dict[str, Any]] = self.ask(
            """() => services.displaySetService.getActiveDisplaySets().map((each) => ({
              uid: each.SeriesInstanceUID, modality: each.Modality, number: each.SeriesNumber,
              description: each.SeriesDescription, images: each.numImageFrames,
              set: each.displaySetInstanceUID }))"""
        )
        return found

    def show_side_by_side(self, *series: str) -> None:
        """Show series in one row."""
        sets = {each["uid"]: each["set"] for each in self.list_series()}
        self.ask(
            "(n) => commandsManager.runCommand('setViewportGridLayout', {numRows: 1, numCols: n})",
            len(series),
        )
        self.page.wait_for_function(f"(n) => {_FIND}.length === n", arg=len(series))
        # OHIF may still be laying out the study by itself, and put its own choice over ours
        for attempt in range(1, ATTEMPTS + 1):
            self.ask(
                """(sets) => {
                  const ids = [...services.viewportGridService.getState().viewports.keys()];
                  services.viewportGridService.setDisplaySetsForViewports(
                    sets.map((set, k) => ({ viewportId: ids[k], displaySetInstanceUIDs: [set] })));
                }""",
                [sets[uid] for uid in series],
            )
            try:
                self.page.wait_for_function(
                    f"""(series) => series.every((uid, k) => {{
                      const id = {_FIND}[k]?.getCurrentImageId?.();
                      return id && cornerstone.metaData.get('generalSeriesModule', id)
                        .seriesInstanceUID === uid; }})""",
                    arg=list(series),
                    timeout=PATIENCE_MS / ATTEMPTS,
                )
                break
            except WaitedInVain:
                if attempt == ATTEMPTS:
                    raise
        # A place keeps the camera of what OHIF put there first; this is its Reset View.
        self.ask(f"() => {_FIND}.forEach((each) => {{ each.resetCamera(); each.render(); }})")
        self.wait_until_drawn()

    def scroll(self, viewport: int, steps: int) -> None:
        """Turn the mouse wheel over a viewport."""
        canvas = self.page.locator("canvas.cornerstone-canvas").nth(viewport)
        canvas.hover()
        for _ in range(steps):
            self.page.mouse.wheel(0, 100)
            self.page.wait_for_timeout(200)
        self.page.wait_for_timeout(500)

    def read_thumbnail(self, description: str) -> str:
        """Return what can be read of a series' name in the list, before it is cut off."""
        seen: str = self.ask(
            """(text) => {
              const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
              while (walker.nextNode()) {
                const node = walker.currentNode;
                if (node.textContent !== text) continue;
                const edge = node.parentElement.getBoundingClientRect().right;
                const range = document.createRange();
                for (let end = text.length; end > 0; end -= 1) {
                  range.setStart(node, 0);
                  range.setEnd(node, end);
                  if (range.getBoundingClientRect().right <= edge + 0.5) return text.slice(0, end);
                }
              }
              return '';
            }""",
            description,
        )
        return seen

    def read_positions(self) -> list[list[float]]:
        """Return Image Position (Patient) of the image in each viewport."""
        found: list[list[float]] = self.ask(
            f"""() => {_FIND}.map((each) => [...cornerstone.metaData.get(
              'imagePlaneModule', each.getCurrentImageId()).imagePositionPatient])"""
        )
        return found

    def read_windows(self) -> list[tuple[float, float]]:
        """Return from where to where each viewport shows."""
        found = self.ask(f"() => {_FIND}.map((each) => each.getProperties().voiRange)")
        return [(each["lower"], each["upper"]) for each in found]

    def jump(self, viewport: int, world: list[float]) -> None:
        """Let a stack show the image nearest to a point."""
        planes = self.ask(
            f"""(k) => {_FIND}[k].getImageIds().map((id) => {{
              const plane = cornerstone.metaData.get('imagePlaneModule', id);
              return [[...plane.imagePositionPatient], [...plane.rowCosines],
                      [...plane.columnCosines]]; }})""",
            viewport,
        )
        normal = np.cross(planes[0][1], planes[0][2])
        far = [abs(float((np.array(world) - at) @ normal)) for at, _, _ in planes]
        index = int(np.argmin(far))
        self.ask(f"([k, n]) => {{ {_FIND}[k].setImageIdIndex(n); }}", [viewport, index])
        self.page.wait_for_function(
            f"([k, n]) => {_FIND}[k].getCurrentImageIdIndex() === n", arg=[viewport, index]
        )
        self.page.wait_for_timeout(500)

    def locate(self, viewport: int, world: list[float]) -> tuple[float, float]:
        """Return where a viewport shows a point, from the left and top of the page."""
        box = self.page.locator("canvas.cornerstone-canvas").nth(viewport).bounding_box()
        assert box is not None
        x, y = self.ask(f"([k, world]) => {_FIND}[k].worldToCanvas(world)", [viewport, world])
        return box["x"] + x, box["y"] + y

    def sample(self, viewport: int, step: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """Return points in the patient, (n, 3) LPS mm, and how bright they are shown, 0 to 255."""
        found = self.ask(
            f"""([k, step]) => {{
              const view = {_FIND}[k];
              view.render();
              const canvas = document.createElement('canvas');
              [canvas.width, canvas.height] = [view.canvas.clientWidth, view.canvas.clientHeight];
              const brush = canvas.getContext('2d');
              brush.drawImage(view.canvas, 0, 0, canvas.width, canvas.height);
              const pixels = brush.getImageData(0, 0, canvas.width, canvas.height);
              const found = [];
              for (let y = step; y < canvas.height; y += step)
                for (let x = step; x < canvas.width; x += step)
                  found.push([...view.canvasToWorld([x + 0.5, y + 0.5]),
                              pixels.data[4 * (y * canvas.width + x)]]);
              return found; }}""",
            [viewport, step],
        )
        table = np.array(found, float)
        return table[:, :3], table[:, 3]

    def measure_distances(self, world: list[float]) -> list[float]:
        """Return how far a point lies from the plane that each viewport shows, in mm."""
        found: list[float] = self.ask(
            f"""(world) => {_FIND}.map((each) => {{
              const {{ viewPlaneNormal: n, focalPoint: at }} = each.getCamera();
              return Math.abs(n.reduce((sum, v, k) => sum + v * (world[k] - at[k]), 0)); }})""",
            world,
        )
        return found

    def click(self, viewport: int, world: list[float], tool: str) -> None:
        """Click with a tool at a point."""
        self.ask(
            """(name) => commandsManager.runCommand('setToolActiveToolbar', {
              toolName: name, toolGroupIds: ['default', 'mpr'] })""",
            tool,
        )
        self.page.wait_for_timeout(500)
        x, y = self.locate(viewport, world)
        self.page.mouse.move(x - 3, y - 3)
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.up()
        self.page.wait_for_timeout(500)

    def probe(self, viewport: int, world: list[float]) -> str:
        """Click at a point with the probe, and return the unit that it tells."""
        self.click(viewport, world, "Probe")
        self.page.wait_for_function(f"() => {_PROBED}.some((each) => each?.modalityUnit)")
        unit: str = self.ask(f"() => {_PROBED}.at(-1).modalityUnit")
        return unit

    def read_value(self, viewport: int, row: int, column: int) -> float:
        """Return the value of a pixel of the image that a stack shows, as OHIF reckons with it."""
        value: float = self.ask(
            f"""([k, row, column]) => {{
              const image = cornerstone.cache.getImage({_FIND}[k].getCurrentImageId());
              const value = image.voxelManager.getScalarData()[row * image.columns + column];
              return image.preScale?.scaled ? value : value * image.slope + image.intercept; }}""",
            [viewport, row, column],
        )
        return value


@contextmanager
def open_ohif(browser: Browser, address: str) -> Iterator[Ohif]:
    """Give a window of its own."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    try:
        yield Ohif(context.new_page(), address)
    finally:
        context.close()
