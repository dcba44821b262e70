"""The rooms of the web page beside Create: gallery, laboratory, server, commands, languages."""

import io
import json
import math
import re
import time
import zipfile

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image, PngImagePlugin
from tests.browser import CHROMIUM, Page, open_page
from tests.pages import DONE, READY, close_dialogs, drop, kept_request, picture, violations
from tests.serving import RunningServer, running_server

from mezzotint.service.jobs.results import ResultFiles
from mezzotint.service.jobs.schema import IMAGES, JOBS
from mezzotint.service.jobs.store import JobStore
from mezzotint.service.objects import FolderObjects

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
PICTURES = "document.querySelectorAll('.tile').length"


@pytest.fixture
def server(page_server: RunningServer) -> RunningServer:
    return page_server


def make(page: Page, prompt: str, seed: int) -> None:
    page.type("prompt", prompt)
    page.type("seed", seed)
    page.click("#make")
    page.wait(f"{DONE} && document.getElementById('picture')?.alt === '{prompt}, seed {seed}'")


def test_pictures_are_starred_rated_laid_on_boards_and_found_by_all_of_it(page, server):
    for seed in (41, 42, 43):
        make(page, "marked", seed)
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('search')")
    page.type("search", "marked")
    page.wait(f"{PICTURES} === 3")
    page.click(".tiles li .star")
    page.click("#starred")
    page.wait(f"{PICTURES} === 1")
    page.click(".tile")
    page.click(".stars button:nth-child(4)")
    page.wait("document.querySelector('.stars [aria-checked=true]')")
    page.run(
        """(() => { const i = document.querySelector('.opinion .board'); i.value = 'best <b>of</b>';
          i.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true})); })()"""
    )
    page.wait("document.querySelector('.opinion .chip')?.textContent.includes('best <b>of</b>')")
    page.click("#close-detail")
    page.click("#starred")
    page.wait(f"{PICTURES} === 3")
    page.wait("document.querySelectorAll('#board option').length === 2")
    page.run(
        """(() => { const b = document.getElementById('board'); b.selectedIndex = 1;
          b.dispatchEvent(new Event('change', {bubbles: true})); })()"""
    )
    page.wait(f"{PICTURES} === 1")
    marked = httpx.get(f"{server.url}/v1/gallery/pictures").json()["pictures"][0]
    assert marked["marks"] == {"star": True, "rating": 4, "boards": ["best <b>of</b>"]}
    page.click(".filters .quiet")


def test_a_star_outlives_a_list_that_was_asked_for_before_it(page, server):
    make(page, "tardy", 45)
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('search')")
    page.type("search", "tardy")
    page.wait(f"{PICTURES} === 1")
    page.run("location.hash = '#create'")
    page.wait("document.getElementById('make')")
    page.run(
        """(() => { const ask = window.fetch; window.late = 0;
          window.fetch = async (...args) => {
            const answer = await ask(...args);
            if (!String(args[0]).includes('/v1/gallery/pictures?limit=1000')) return answer;
            const body = await answer.text();
            window.late = 1;
            while (window.late !== 2) await new Promise((r) => setTimeout(r, 10));
            window.late = 3; window.fetch = ask;
            return new Response(body, answer);
          }; })()"""
    )
    page.run("location.hash = '#gallery'")
    page.wait("window.late === 1")
    page.click(".tiles li .star")
    page.wait("document.querySelector('.tiles .star.on')")
    page.run("window.late = 2")
    page.wait("window.late === 3")
    page.run("new Promise((r) => setTimeout(r, 200))")
    assert page.run("document.querySelectorAll('.tiles .star.on').length") == 1
    page.click(".filters .quiet")


def test_many_are_selected_by_a_range_and_fetched_as_one_file(page, tmp_path):
    for seed in (51, 52, 53):
        make(page, "packed", seed)
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('search')")
    page.type("search", "packed")
    page.wait(f"{PICTURES} === 3")
    page.click("#select")
    page.click(".tile")
    page.run(
        """[...document.querySelectorAll('.tile')].at(-1).dispatchEvent(
          new MouseEvent('click', {bubbles: true, shiftKey: true}))"""
    )
    page.wait("document.querySelectorAll('.tile[aria-pressed=true]').length === 3")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#zip")
    until = time.monotonic() + 15
    while not (tmp_path / "pictures.zip").is_file():
        assert time.monotonic() < until
        time.sleep(0.1)
    with zipfile.ZipFile(tmp_path / "pictures.zip") as file:
        assert file.testzip() is None
        assert sorted(name.split("-")[2] for name in file.namelist()) == ["51", "52", "53"]
    page.click("#select")
    page.type("search", "")


def test_the_laboratory_computes_what_the_library_computes(page):
    """Points, levels and data as in the page; the errors of its table from our solvers."""
    import torch

    from mezzotint.sampling.loop import sample
    from mezzotint.sampling.mixtures import GaussianMixture
    from mezzotint.sampling.sigma_curves import sigma_curve

    page.run("location.hash = '#lab'")
    page.click("[data-solver=heun]")
    for id_, value in (("lab-steps", 8), ("lab-guidance", 2.5)):
        page.type(id_, value)
    page.wait("document.querySelector('[data-row=heun] td')?.textContent === '15'")
    told = {
        name: float(page.text(f"[data-row={name}] td:last-child"))
        for name in ("euler", "heun", "dpmpp_2m")
    }
    golden, count = math.pi * (3 - math.sqrt(5)), 48
    radii = [10 * math.sqrt(-2 * math.log(1 - (k + 0.5) / count)) for k in range(count)]
    starts = torch.tensor(
        [[r * math.cos(k * golden), r * math.sin(k * golden)] for k, r in enumerate(radii)],
        dtype=torch.float64,
    )
    means = torch.tensor([[1, 0], [-0.5, 0.9], [-0.5, -0.9]], dtype=torch.float64)
    tight = GaussianMixture(means, (0.25,) * 3, (1.0,) * 3)
    wide = GaussianMixture(means, (0.5,) * 3, (1.0,) * 3)

    def denoise(latents, sigma):
        without = wide(latents, sigma)
        return without + 2.5 * (tight(latents, sigma) - without)

    def ends(name: str, steps: int) -> torch.Tensor:
        levels = sigma_curve("karras", steps, 0.002, 10.0)
        return sample(denoise, starts.float(), scheduler=name, sigmas=levels).double()

    exact = ends("heun", 400)
    for name, error in told.items():
        expected = math.sqrt(float((ends(name, 8) - exact).square().sum(1).mean()))
        assert error == pytest.approx(expected, rel=2e-3), name


def test_the_laboratory_hands_its_solvers_to_a_sheet(page):
    page.type("prompt", "side by side")
    page.run("location.hash = '#lab'")
    page.wait(
        "document.getElementById('side-by-side') && !document.getElementById('side-by-side').disabled"
    )
    page.type("lab-steps", 4)
    chosen = page.run(
        "[...document.querySelectorAll('[data-solver][aria-pressed=true]')].map((b) => b.dataset.solver)"
    )
    page.click("#side-by-side")
    page.wait("document.getElementById('make-sheet')")
    texts = page.run("[...document.querySelectorAll('.axes textarea')].map((t) => t.value)")
    assert texts == ["2, 4, 8", ", ".join(chosen)]


def test_the_server_room_measures_lists_answers_and_changes_models(page, server):
    make(page, "measured", 61)
    page.run("location.hash = '#operate'")
    page.wait("document.querySelectorAll('.spark').length === 7")
    page.type("model-source", "missing.mzt")
    page.click("#add-model")
    page.wait("document.querySelector('.add-model .plan.bad')")
    page.errors.clear()  # the browser logs the refusal itself
    page.type("model-source", "tulip.mzt")
    page.type("model-name", "tulip")
    page.click("#add-model")
    page.wait("document.querySelector('[data-model=tulip]')")
    page.run("window.confirm = () => true")
    page.click("[data-model=tulip] .danger")
    page.wait("!document.querySelector('[data-model=tulip]')")
    page.run("document.getElementById('answers').open = true")
    page.type("answers-search", "/v1/operations/models")
    page.wait("document.querySelectorAll('.answers tbody tr').length === 3")
    rows = page.run("[...document.querySelectorAll('.answers tbody tr')].map((r) => r.textContent)")
    assert [status for status in ("200", "201", "404") if any(status in row for row in rows)]
    page.run("document.getElementById('clients').open = true")
    page.wait("document.querySelector('#clients tbody tr')?.textContent.includes('address:')")


def test_a_model_is_unloaded_and_loaded_by_hand(page, server):
    page.run("location.hash = '#operate'")
    card = "[data-model='plate-gan']"
    page.click(f"{card} [data-memory=unload]")
    page.wait(f'document.querySelector("{card} [data-memory=load]")')
    assert "loaded when first asked for" in page.text(f"{card} .ready")
    ready = {
        m["name"]: m["ready"] for m in httpx.get(f"{server.url}/v1/capabilities").json()["models"]
    }
    assert ready["plate-gan"] is False
    page.click(f"{card} [data-memory=load]")
    page.wait(f'document.querySelector("{card} [data-memory=unload]")')
    assert page.text(f"{card} .ready") == "loaded"


def test_an_address_that_changes_while_the_page_begins_is_followed(page):
    early = page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="""const real = window.requestAnimationFrame;
        window.requestAnimationFrame = (then) => { // asked for when the page stands, before its effects
          if (!window.isMoved) { window.isMoved = true; location.hash = "#gallery"; }
          return real(then);
        };""",
    )
    page.reload()
    page.wait("document.getElementById('search')")
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=early["identifier"])
    page.reload()


def test_a_gallery_opened_while_the_server_is_away_fills_when_it_is_back(page):
    make(page, "kept meanwhile", 72)
    page.reload()
    page.wait(READY)
    page.run(
        """window.realFetch ??= window.fetch;
        window.fetch = () => Promise.reject(new TypeError("away"));
        location.hash = "#gallery";"""
    )
    page.wait("document.getElementById('dot').className === 'dot bad'")
    assert page.run(PICTURES) == 0
    page.run("window.fetch = window.realFetch")
    page.wait(f"{PICTURES} > 0")


OPEN_JOB = {
    "id": "job-of-nobody", "status": "running", "position": 0, "eta_s": 5.0, "warnings": [],
    "progress": {"step": 0, "steps": 20}, "request": {"prompt": "a boat"}, "images": [],
}  # fmt: skip


def test_a_model_that_is_read_for_its_first_picture_is_said_to_be_and_no_time_is_promised(
    page, server
):
    httpx.post(f"{server.url}/v1/operations/models/plate@1.0/unload").raise_for_status()
    page.run("location.hash = '#operate'")  # which asks anew what is loaded
    page.wait("document.querySelector('li[data-model=plate] [data-memory=load]')")
    page.run("location.hash = '#create'")
    page.run(
        f"""window.realFetch ??= window.fetch;
        const began = Date.now() / 1000 - 12;
        const job = {{...{json.dumps(OPEN_JOB)}, created: began, started: began, finished: null}};
        window.fetch = (path, more) => path.includes("which=open")
          ? Promise.resolve(new Response(JSON.stringify({{jobs: [job], next: null}})))
          : path.includes(job.id) ? new Promise(() => {{}}) : window.realFetch(path, more);"""
    )
    page.wait("document.getElementById('about')?.textContent.startsWith('loading the model, 1')")
    assert re.fullmatch(r"loading the model, 1\d s so far", page.text("#about"))
    page.run("window.fetch = window.realFetch")
    page.wait(READY)


def test_everything_is_a_command_and_found_by_some_of_its_letters(page):
    page.press("k", ctrl=True)
    page.wait("document.querySelector('#palette[open]')")
    page.type("command", "lab")
    page.wait(
        "document.querySelector('#commands [aria-selected=true]')?.textContent === 'Go to Lab'"
    )
    page.press("Enter")
    page.wait("location.hash === '#lab' && !document.querySelector('dialog[open]')")
    page.press("k", ctrl=True)
    page.wait("document.querySelector('#palette[open]')")
    page.type("command", "techn regi")
    page.press("ArrowDown")
    page.press("Enter")
    page.wait("document.getElementById('technique-regions')?.open")


def test_a_dialog_that_was_closed_a_moment_ago_opens_again(page):
    """Its "close" event comes as a task of its own; what opens it again came before that."""
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {{{}, bubbles: true}}))"
    for seed in (61, 62):
        make(page, "shut", seed)
    opens_again(page, press.format("key: 'k', ctrlKey: true"), "#palette")
    opens_again(page, press.format("key: '?'"), "#help-box")
    opens_again(page, "document.getElementById('models').click()", "#model-picker")
    opens_again(page, "document.getElementById('details').click()", "dialog.detail")
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('search')")
    page.type("search", "shut")
    page.wait(f"{PICTURES} === 2")
    page.click("#select")
    page.click("#select-all")
    page.wait("!document.getElementById('compare').disabled")
    opens_again(page, "document.getElementById('compare').click()", "dialog:has(#cut)")
    page.click("#select")
    page.type("search", "")


def opens_again(page: Page, press: str, box: str) -> None:
    is_open = f"document.querySelector('{box}')?.open"
    page.run(press)
    page.wait(is_open)
    page.run(f"document.querySelector('{box}').close(); {press}")
    page.run("new Promise((done) => setTimeout(done, 100))")
    assert page.run(is_open) is True, box
    close_dialogs(page)
    page.wait(f"!({is_open})")


def test_the_page_speaks_german_and_chinese_and_keeps_what_was_chosen(page):
    page.type("prompt", "bleibt")
    for code, word in (("de", "Erzeugen"), ("zh", "生成")):
        page.click("#help")
        page.type("language", code)
        page.wait(f"document.getElementById('make')?.textContent === '{word}'")
        assert page.run("document.documentElement.lang") == code
        assert page.run("document.getElementById('prompt').value") == "bleibt"
        close_dialogs(page)
    page.reload()
    page.wait("document.getElementById('make')?.textContent === '生成'")
    page.click("#help")
    page.type("language", "en")
    page.wait("document.getElementById('make')?.textContent === 'Generate'")
    close_dialogs(page)
    page.wait(READY)


def test_the_form_is_walked_by_the_keyboard_alone(page):
    """From the top of the page by Tab to the prompt, typing, and sending it."""
    page.run("document.activeElement?.blur(); document.querySelector('.skip').focus()")
    page.press("Enter")  # skips to the content
    seen = []
    for _ in range(8):  # the form comes first, as it is read: no picture stands before it
        page.press("Tab")
        seen.append(page.run("document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "prompt":
            break
    assert seen == ["models", "model", "prompt"]
    page.call("Input.insertText", text="typed by keys")
    kept = kept_request(page, lambda request: request.get("prompt") == "typed by keys")
    assert kept["prompt"] == "typed by keys"
    page.press("Enter", ctrl=True)
    page.wait(f"{DONE} && document.getElementById('picture')?.alt.startsWith('typed by keys')")


def test_the_strip_is_one_stop_of_tab_and_the_arrows_go_through_it(page):
    for seed in (81, 82):
        make(page, "in the strip", seed)
    stops = "[...document.querySelectorAll('.strip button')].map((b) => b.tabIndex)"
    assert page.run(stops).count(0) == 1
    page.run("document.querySelector('.strip [tabindex=\"0\"]').focus()")
    page.press("ArrowRight")
    page.wait("document.getElementById('picture').alt === 'in the strip, seed 81'")
    assert page.run("document.activeElement.querySelector('img').alt") == "in the strip, seed 81"
    assert page.run(stops).count(0) == 1


def test_the_gallery_is_one_stop_of_tab_and_a_key_stars_the_tile(page, server):
    for seed in (83, 84):
        make(page, "one stop", seed)
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('search')")
    page.type("search", "one stop")
    page.wait(f"{PICTURES} === 2")
    inside = "document.querySelector('.tiles').contains(document.activeElement)"
    page.run("[...document.querySelectorAll('.search button, .search input')].at(-1).focus()")
    while not page.run(inside):
        page.press("Tab")
    assert page.run("document.activeElement.ariaLabel") == "one stop, seed 84"  # the newest first
    page.press("ArrowRight")
    page.wait("document.activeElement.ariaLabel === 'one stop, seed 83'")
    page.press("f")
    page.wait("document.getElementById('said').textContent === 'Starred'")
    page.wait("document.activeElement.ariaDescription === 'Starred'")
    assert page.run("document.activeElement.ariaLabel") == "one stop, seed 83"
    marks = [
        p["marks"] for p in httpx.get(f"{server.url}/v1/gallery/pictures").json()["pictures"][:2]
    ]
    assert [mark.get("star", False) for mark in marks] == [False, True]
    assert violations(page) == []
    page.press("f")
    page.wait("document.getElementById('said').textContent === 'Star taken off'")
    page.press("Tab")
    assert not page.run(inside)
    page.press("Tab", shift=True)  # back to the tile that had the focus, in one step
    assert page.run("document.activeElement.ariaLabel") == "one stop, seed 83"
    page.press("Tab", shift=True)
    assert not page.run(inside)
    page.click(".filters .quiet")


def fill(folder, count: int) -> None:
    """Put ended jobs of one picture each into the store of a server, without drawing any."""
    folder.mkdir(parents=True)
    digest = ResultFiles(FolderObjects(folder / "results")).put(picture("teal", 64))
    store = JobStore(f"sqlite:///{folder / 'jobs.sqlite3'}", "test")
    words = ("apple", "boat", "cloud", "dragon", "engine", "forest", "glass")
    now = time.time()
    jobs = [
        {
            "id": f"job-{k:024d}", "client": "address:127.0.0.1", "status": "succeeded",
            "priority": 0, "body_digest": "0" * 64, "use_cache": True, "created": now - k,
            "started": now - k, "finished": now - k, "runs": 1, "cancel": False, "outcome": "{}",
            "request": json.dumps({"prompt": f"a {words[k % 7]} number {k}", "seed": k}),
        }
        for k in reversed(range(count))
    ]  # fmt: skip
    about = {"format": "png", "width": 64, "height": 64, "warnings": [], "recipe_digest": ""}
    images = [
        {
            "job": f"job-{k:024d}", "position": 0, "digest": digest, "bytes": 100,
            "about": json.dumps({**about, "index": 0, "seed": k}),
        }
        for k in range(count)
    ]  # fmt: skip
    with store._engine.begin() as db:
        db.execute(sa.insert(JOBS), jobs)
        db.execute(sa.insert(IMAGES), images)
    store.close()


SCROLL = """new Promise((resolve) => {
  let left = 150;
  const step = () => {
    left -= 1;
    scrollBy(0, left % 10 ? 160 : 4000);
    left ? requestAnimationFrame(step) : resolve();
  };
  requestAnimationFrame(step);
})"""
SEARCH = """(async () => {
  const field = document.getElementById("search");
  field.value = "dragon 49";
  field.dispatchEvent(new Event("input", {bubbles: true}));
  const count = document.getElementById("count");
  while (!count.textContent.includes("of 5000")) await new Promise((r) => setTimeout(r, 4));
  await new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)));
})()"""


@pytest.mark.slow
def test_a_gallery_of_five_thousand_scrolls_and_searches_at_once(tmp_path):
    """In processor time of the page's own thread: what else the machine does adds little."""
    fill(tmp_path / "jobs", 5000)
    with (
        running_server(tmp_path / "jobs") as server,
        open_page(f"{server.url}/#gallery", tmp_path, "--window-size=1440,900") as page,
    ):
        page.wait("document.getElementById('count')?.textContent === '5000 pictures'", seconds=60)
        assert page.run(PICTURES) < 200  # those in sight and a little more
        passes = []
        for _ in range(5):  # one that nothing disturbed says what the page needs
            page.run("scrollTo(0, 0)")
            passes.append(page.tasks_ms(SCROLL))
            print("the longest tasks of scrolling", passes[-1][-3:])
            if passes[-1][-1] < 50:
                break
        assert min(tasks[-1] for tasks in passes) < 50  # milliseconds: no frame took more
        page.run("scrollTo(0, 0)")
        tasks = page.tasks_ms(SEARCH)
        print("searching", sum(tasks), "the longest", tasks[-1])
        assert sum(tasks) < 100
        expected = sum(1 for k in range(5000) if k % 7 == 3 and "49" in str(k))
        assert page.text("#count").startswith(f"{expected} of 5000")


EVIL = "<img src=x onerror='window.over=1'><script>window.over=1</script>"


def test_hostile_words_are_shown_as_words(page, server):
    page.run("delete window.over")
    make(page, EVIL.replace("'", ""), 71)  # as a prompt, in picture, title, tile and search
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", f"{EVIL}\nSteps: 7, Sampler: {EVIL}, Seed: 5, Model: {EVIL}")
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(stream, "PNG", pnginfo=text)
    drop(page, stream.getvalue(), f"{EVIL}.png")
    page.wait(f"document.getElementById('prompt').value === {json.dumps(EVIL)}")
    page.run("location.hash = '#gallery'")
    page.wait("document.getElementById('search')")
    page.type("search", "onerror")
    page.click(".tile")
    page.wait("document.querySelector('dialog[open]')?.textContent.includes('onerror')")
    close_dialogs(page)
    page.click("#select")
    page.click(".tile")
    page.type("to-board", EVIL)
    page.wait(
        "[...document.querySelectorAll('#board option')].some((o) => o.value.includes('onerror'))"
    )
    page.click("#select")
    page.type("search", "")
    for name in ("create", "sheet", "operate"):
        page.run(f"location.hash = '#{name}'")
        time.sleep(0.2)
    assert page.run("window.over ?? null") is None
    assert page.run("document.querySelectorAll('img[src=x], script:not([src])').length") == 0
