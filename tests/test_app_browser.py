"""The explorer in a real browser: every page at two sizes, addresses, keyboard, files; nothing leaves the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest

from app.grid import shipped
from planner.exploring.whatif import Where
from planner.problem import load_problem
from simulator import presets
from tests.app_browser import browser, missing, open_page, served, settle

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "a browser is there"),
    pytest.mark.filterwarnings("ignore"),
]
SIZES = ((1440, 900), (390, 844))
SMALL = "model=fa-pool&cluster=dgx-a100-2&workload=local&max_gpus=2&base_gpus=1"
PLAN = quote("fa-pool --cluster dgx-a100-2 --workload local --max-gpus 2 --base-gpus 1")
PAGES = {
    f"?{SMALL}": "Plan",
    "whatif?phase=decode": "What if",
    f"compare?a={PLAN}&b=": "Compare",
    "timeline?tokens=1024&pool=8": "Timeline",
    "topology?tokens=1024&pool=8": "Topology",
    "validate": "Validate",
    "documents": "Documents",
}


PARTS = {"model": "two-level", "cluster": "a100-4x4", "profile": "a100-sxm4-80gb"}
STEP = {"scenario": "two-level", **PARTS, "phase": "decode", "tokens": "2048", "batch": "4", "pool": "4"}
INPUTS: dict[str, dict[str, str | list[str]]] = {
    "plan": {
        "scenario": "two-level", "model": "fa-pool", "cluster": "dgx-a100-2", "workload": "local",
        "profile": "a100-sxm4-80gb", "objective": "tpot", "max_gpus": "2", "base_gpus": "1", "ttft_slo": "9",
        "tpot_slo": "8", "entry": "decode-long",
    },
    "whatif": {
        **STEP, "tokens": "4096", "batch": "2", "pool": "8", "nics": "2", "nic_gb_s": "12.5", "tornado": "true",
    },
    "compare": {"a": "", "b": "two-level --max-gpus", "c": "nowhere"},
    "timeline": {**STEP, "scheme": "tensor parallel", "layer": "0", "ranks": ["1", "6"]},
    "topology": {**STEP, "scheme": "context parallel", "rank": "5"},
    "validate": {"allocation": "plan-b.json", "measurement": "run-b.json"},
    "documents": {
        "document": "MA Separation, methodology", "verdict": "inconsistent", "search": "GB", "statement": "M22",
    },
}  # fmt: skip
"""Every input of every page, none at its default."""
SHOWN = """
keys => Object.fromEntries(keys.map(key => {
  const box = document.querySelector('.st-key-' + key);
  if (!box) return [key, null];
  const tick = box.querySelector('input[type=checkbox]'), range = box.querySelector('input[type=range], [role=slider]');
  const tags = [...box.querySelectorAll('[data-tag]')];
  if (tick) return [key, String(tick.checked)];
  if (range) return [key, range.getAttribute('aria-valuetext')];
  if (tags.length) return [key, tags.map(tag => tag.innerText.trim())];
  const text = box.querySelector('input'), list = box.querySelector('[data-baseweb=select]') ?? text ?? box;
  return [key, text && text.value ? text.value : list.innerText?.trim() ?? ''];
}))
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    for name in ("plan-a", "plan-b"):
        (folder / f"{name}.json").write_text('{"policy": []}', encoding="utf-8")
    for name in ("run-a", "run-b"):
        (folder / f"{name}.json").write_text('{"steps": []}', encoding="utf-8")
    with served(folder) as found:
        yield found


@pytest.fixture(scope="module")
def window() -> Iterator[Any]:
    """One for all tests: scripts are fetched and compiled once; a page is a session of its own all the same."""
    with browser() as found:
        yield found.new_context(viewport={"width": SIZES[0][0], "height": SIZES[0][1]})


@pytest.fixture
def context(window: Any) -> Iterator[Any]:
    yield window
    for page in window.pages:
        page.close()


@pytest.fixture(scope="module")
def grid_is_current() -> bool:
    return bool(shipped(Where(load_problem(presets.scenario("fa-pool")), "decode", 8)))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_opens_by_its_address_at_both_sizes_and_asks_no_other_host(
    address: str, context: Any, path: str, grid_is_current: bool
) -> None:
    if path.startswith("whatif") and not grid_is_current:
        pytest.skip("the shipped grid was made from other inputs; python -m app.grid makes it again")
    hosts: set[str] = set()
    page = open_page(context, f"{address}/{path}", hosts)
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        settle(page)
        assert page.locator("h1").inner_text() == PAGES[path]
        assert page.locator("[data-testid=stException]").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert {host for host in hosts if host} == {address.removeprefix("http://")}


def test_a_slider_moved_by_keyboard_changes_map_and_address_and_a_reload_keeps_it(
    address: str, context: Any, grid_is_current: bool
) -> None:
    if not grid_is_current:
        pytest.skip("the shipped grid was made from other inputs; python -m app.grid makes it again")
    page = open_page(context, f"{address}/whatif?phase=decode&nics=2&batch=16&tokens=4096&pool=8")
    before = page.locator(".ap-map").inner_html()
    page.locator("input[type=range]").first.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("location.search.includes('nics=1')", timeout=20_000)
    page.wait_for_function("old => document.querySelector('.ap-map').innerHTML !== old", arg=before, timeout=20_000)
    address_now = page.url
    for part in ("phase=decode", "batch=16", "tokens=4096", "pool=8"):
        assert part in address_now
    page.reload()
    settle(page)
    values = [one.get_attribute("aria-valuetext") for one in page.locator("input[type=range]").all()]
    assert values == ["1", "25.0", "16", "4096", "8"]


@pytest.mark.parametrize("page_name", INPUTS)
def test_every_input_of_a_page_is_read_from_the_address_and_stays_in_it(
    address: str, context: Any, page_name: str
) -> None:
    given = INPUTS[page_name]
    page = open_page(context, f"{address}/{page_name}?{urlencode(given, doseq=True)}")
    for _ in range(40):  # boxes fill in after the page has settled where the machine is busy
        if page.evaluate(SHOWN, list(given)) == given:
            break
        page.wait_for_timeout(250)
    assert page.evaluate(SHOWN, list(given)) == given
    asked = {key: [value] if isinstance(value, str) else value for key, value in given.items()}
    assert parse_qs(urlsplit(page.url).query, keep_blank_values=True) == asked


def test_what_a_page_is_told_by_hand_is_in_its_address(address: str, context: Any) -> None:
    page = open_page(context, f"{address}/timeline?tokens=1024&pool=8&ranks=0&ranks=9")
    page.locator(".st-key-ranks").get_by_role("button").first.click()
    page.wait_for_function("!location.search.includes('ranks=0')", timeout=20_000)
    assert "ranks=9" in page.url
    page.locator(".st-key-phase input").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("location.search.includes('phase=decode')", timeout=20_000)
    settle(page)
    assert page.locator("[data-testid=stException]").count() == 0


def test_a_gpu_of_the_drawing_is_chosen_by_mouse_and_by_keyboard(address: str, context: Any) -> None:
    page = open_page(context, f"{address}/topology?tokens=1024&pool=8")
    page.locator("[data-rank='9']").click()
    page.wait_for_function("location.search.includes('rank=9')", timeout=20_000)
    settle(page)
    assert page.locator("h4").first.inner_text().startswith("GPU 9:")
    page.locator("[data-rank='3']").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("location.search.includes('rank=3')", timeout=20_000)
    settle(page)
    assert page.locator(".chosen").get_attribute("data-rank") == "3"


@pytest.mark.parametrize(
    "query",
    [
        "timeline?phase=%3Cscript%3Ealert(1)%3C/script%3E",
        "timeline?scenario=..%2F..%2Fetc%2Fpasswd",
        "topology?pool=NaN",
        "topology?rank=99999",
        "?max_gpus=1e309",
        "?scenario=fa-pool&scenario=local",
        "compare?a=%27&b=",
        "documents?verdict=%00",
    ],
)
def test_a_hostile_address_gives_a_notice_and_never_a_traceback(address: str, context: Any, query: str) -> None:
    page = context.new_page()
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.goto(f"{address}/{query}")
    page.wait_for_selector("[data-testid=stAlert]", timeout=90_000)
    assert page.locator("[data-testid=stException]").count() == 0
    assert "Traceback" not in page.inner_text("body")


def test_a_hostile_upload_gives_a_notice(address: str, context: Any, tmp_path: Path) -> None:
    page = open_page(context, f"{address}/validate")
    bad = tmp_path / "bad.json"
    bad.write_text('{"a": 1, "a": NaN', encoding="utf-8")
    for index in range(2):
        page.locator("input[type=file]").nth(index).set_input_files(bad)
        page.get_by_text("bad.json").nth(index).wait_for(timeout=20_000)
    page.locator("[data-testid=stAlert]", has_text="bad.json").first.wait_for(timeout=20_000)
    assert page.locator("[data-testid=stException]").count() == 0


def test_an_upload_above_five_megabytes_is_refused(address: str, context: Any, tmp_path: Path) -> None:
    page = open_page(context, f"{address}/validate")
    big = tmp_path / "big.json"
    big.write_bytes(b" " * (6 * 10**6))
    page.locator("input[type=file]").first.set_input_files(big)
    page.get_by_role("alert").filter(has_text="5.0MB").wait_for(timeout=20_000)


def test_planning_can_be_stopped_and_taken_up_again(address: str, context: Any) -> None:
    page = context.new_page()
    page.goto(f"{address}/?scenario=fa-pool&model=llama-3.1-70b")  # takes long
    page.locator("[data-testid=stMain] button", has_text="Stop").click(timeout=60_000)  # not the toolbar's
    page.get_by_text("Planning was stopped").wait_for(timeout=30_000)
    page.locator("[data-testid=stMain] button", has_text="Plan again").wait_for(timeout=10_000)
