"""The admin page as a person sees it: in Chromium, by mouse and by keyboard, in light and dark."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from pydicom.uid import generate_uid

from dicom_node.admin.pictures import VOLUME_PLANES, Gallery, Plane
from dicom_node.domain import DeliveryState
from dicom_node.jobs import JobState
from dicom_node.ledger import Job
from doubles.admin import STAPLE, AdminUnderTest
from doubles.bench import Bench
from doubles.browser import PATIENCE_MS, Window, open_window, run_chromium
from doubles.ledger import record
from doubles.series import make_series

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with run_chromium() as browser:
        yield browser


@pytest.fixture
def window(chromium: Browser) -> Iterator[Window]:
    with open_window(chromium) as window:
        yield window
        assert window.complaints == []


def log_in(page: Page, admin: AdminUnderTest, name: str) -> None:
    page.goto(admin.address)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(STAPLE)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/studies")


def find_done(bench: Bench) -> Job:
    return next(job for job in bench.ledger.jobs() if job.state is JobState.DONE)


def press_until(page: Page, key: str, selector: str, most: int = 60) -> None:
    """Walk by keyboard until the focus is where it should be."""
    for _ in range(most):
        if page.evaluate("(at) => document.activeElement.matches(at)", selector):
            return
        page.keyboard.press(key)
    raise AssertionError(f"{most} times {key} do not lead to {selector}")


def type_in(page: Page, admin: AdminUnderTest, name: str) -> None:
    """Log in by keyboard alone: the first field has the focus."""
    page.goto(admin.address)
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(STAPLE)
    page.keyboard.press("Enter")
    page.wait_for_url("**/studies")


def test_person_finds_a_study_its_story_and_its_pictures(
    window: Window, admin: AdminUnderTest, bench: Bench
) -> None:
    page, job = window.page, find_done(bench)
    log_in(page, admin, "V. Viewer")

    page.get_by_label("Study Instance UID").fill(job.plan.study_instance_uid)
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_role("heading", name="What came")).to_be_visible()
    page.get_by_text("Each of").click()
    expect(page.get_by_role("cell", name="pending").first).to_be_visible()
    page.get_by_role("link", name="Look at it").click()

    expect(page.get_by_text("SYNTHETIC", exact=True)).to_have_count(len(VOLUME_PLANES))


def read_shown(page: Page, selector: str) -> np.ndarray:
    """Return the pixels of a picture as the browser has decoded them."""
    page.wait_for_function(
        "(at) => { const i = document.querySelector(at); return i.complete && i.naturalWidth; }",
        arg=selector,
    )
    pixels = page.evaluate(
        """(at) => {
          const image = document.querySelector(at);
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          const brush = canvas.getContext("2d");
          brush.drawImage(image, 0, 0);
          const found = brush.getImageData(0, 0, canvas.width, canvas.height);
          return [found.height, found.width, [...found.data.filter((_, k) => k % 4 === 0)]];
        }""",
        selector,
    )
    height, width, values = pixels
    return np.array(values, np.uint8).reshape(height, width)


def test_slider_takes_source_and_result_to_the_same_slice(
    window: Window, admin: AdminUnderTest, bench: Bench
) -> None:
    page, job = window.page, find_done(bench)
    log_in(page, admin, "V. Viewer")
    page.goto(f"{admin.address}/jobs/{job.plan.plan_id}")
    look = Gallery(bench.ledger, bench.store).look(job.plan.plan_id)
    slider = page.get_by_role("slider", name="Slice, coronal")

    slider.focus()
    page.keyboard.press("Home")
    for _ in range(7):
        page.keyboard.press("ArrowRight")

    for layer in ("source", "result"):
        at = f"section[aria-label=coronal] .{layer} img"
        expect(page.locator(at)).to_have_attribute(
            "src", f"/jobs/{job.plan.plan_id}/{layer}/coronal/7.png"
        )
        drawn = np.asarray(Image.open(io.BytesIO(look.draw(layer, Plane.CORONAL, 7))))
        assert np.array_equal(read_shown(page, at), drawn)
    expect(page.locator("section[aria-label=coronal] output")).to_have_text(
        f"8 of {look.count(Plane.CORONAL)}"
    )


def test_person_releases_a_result_by_keyboard_alone(
    window: Window, admin: AdminUnderTest, bench: Bench, held: Job
) -> None:
    page = window.page
    type_in(page, admin, "O. Operator")
    press_until(page, "Tab", ".skip")
    press_until(page, "Tab", "a[href='/holds']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/holds")

    press_until(page, "Tab", f"#why-{held.plan.plan_id}")
    page.keyboard.type("Looked at; it is the implant.")
    press_until(page, "Tab", "button.release")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")

    expect(page.get_by_role("status")).to_contain_text("was released, in your name")
    assert bench.ledger.job(held.plan.plan_id).state is JobState.DONE
    assert bench.ledger.events(held.plan.study_instance_uid)[-1].detail["by"] == "O. Operator"


def test_person_looks_through_a_result_by_keyboard_alone(
    window: Window, admin: AdminUnderTest, bench: Bench
) -> None:
    page, job = window.page, find_done(bench)
    study = f"/studies/{job.plan.study_instance_uid}"
    type_in(page, admin, "V. Viewer")

    press_until(page, "Tab", f"a[href='{study}']")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{study}")
    press_until(page, "Tab", f"a[href='/jobs/{job.plan.plan_id}']")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/jobs/{job.plan.plan_id}")
    press_until(page, "Tab", "#slice-sagittal")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")

    expect(page.locator("section[aria-label=sagittal] .result img")).to_have_attribute(
        "src", f"/jobs/{job.plan.plan_id}/result/sagittal/1.png"
    )


def test_study_behind_a_dot_of_a_chart_is_reached_by_keyboard_alone(
    window: Window, admin: AdminUnderTest, bench: Bench
) -> None:
    bench.receive(make_series("T1w", key=generate_uid()))
    bench.judge()
    job = bench.claim("FLAIR")
    scanner = {"manufacturer": "ACME", "model_name": "Ring 7", "field_strength": 3.0}
    quality = {"verdict": "pass", "comparison": {**scanner, "ssim": 0.9, "psnr_db": 21.0}}
    assert bench.ledger.record_derived(
        job.plan.plan_id, job.attempt, [], quality=quality, seconds={}, record=[]
    )
    page = window.page
    type_in(page, admin, "V. Viewer")
    press_until(page, "Tab", "a[href='/comparison']")
    page.keyboard.press("Enter")
    page.wait_for_url("**/comparison")

    expect(page.get_by_role("img", name="SSIM over time")).to_have_count(1)
    study = f"/studies/{job.plan.study_instance_uid}"
    press_until(page, "Tab", f".chart a[href='{study}']")
    page.keyboard.press("Enter")

    page.wait_for_url(f"**{study}")


def test_decision_without_a_reason_does_not_leave_the_browser(
    window: Window, admin: AdminUnderTest, bench: Bench, held: Job
) -> None:
    page = window.page
    log_in(page, admin, "O. Operator")
    page.goto(f"{admin.address}/holds")

    page.locator(f"#job-{held.plan.plan_id}").get_by_role("button", name="Reject").click()

    assert page.evaluate("document.activeElement.matches(':invalid')")
    assert bench.ledger.job(held.plan.plan_id).state is JobState.HELD


def test_story_follows_what_happens_without_a_reload(
    window: Window, admin: AdminUnderTest, bench: Bench
) -> None:
    page, job = window.page, find_done(bench)
    log_in(page, admin, "V. Viewer")
    page.goto(f"{admin.address}/studies/{job.plan.study_instance_uid}")
    waiting = [
        each
        for each in bench.ledger.deliveries(job.plan.study_instance_uid)
        if each.state is DeliveryState.PENDING
    ]
    page.evaluate("window.stays = true")
    page.locator("summary", has_text="Each of").click()

    for each in waiting[:4]:
        record(bench.ledger, each.delivery_id, DeliveryState.SENT, 0, None)

    expect(page.get_by_text(f"4 of {len(waiting)} instances sent")).to_be_visible()
    expect(page.get_by_role("cell", name="0x0000").first).to_be_visible()
    assert page.evaluate("window.stays")


PAGES = ("/login", "/studies", "/holds", "/rules", "/node", "/comparison", "/acts")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_is_legible_and_fits(
    width: int, scheme: str, chromium: Browser, admin: AdminUnderTest, bench: Bench, held: Job
) -> None:
    job = find_done(bench)
    found = {}
    with open_window(chromium, width, 844, scheme) as window:
        log_in(window.page, admin, "A. Admin")
        for path in (
            *PAGES,
            f"/studies/{job.plan.study_instance_uid}",
            f"/studies/{held.plan.study_instance_uid}",
            f"/jobs/{job.plan.plan_id}",
        ):
            window.page.goto(f"{admin.address}{path}")
            if faults := (window.find_weak_text(), window.is_too_wide()) != ([], False):
                found[path] = faults, window.find_weak_text()[:5], window.is_too_wide()

        assert found == {}
        assert window.complaints == []
