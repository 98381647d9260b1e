"""
The demo page in a real browser: Chromium without a window, driven by playwright.

    pip install gradio playwright; apt-get install chromium

`DEMO_SCREENSHOTS=FOLDER` keeps a picture of every state, at the width of a desktop and of a phone.
"""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from demo_models import demo_model, looped, scripted_model
from local_hub import local_hub
from small_tokenizers import byte_level
from tokenizers import AddedToken
from without_package import library_links

from memreason_hf.serving.demo.answers import DemoModel, Limits
from memreason_hf.serving.demo.depth_choice import DepthOptions
from memreason_hf.serving.demo.space import stage_space
from memreason_hf.steps import Step, answer_step


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the page in a browser needs {', '.join(MISSING)}"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
HOSTILE = "<script>window.pwned=1</script><img src=x onerror=window.pwned=2>${window.pwned=3}{{window.pwned}}\u202e"
QUESTION = "Is the sky <b>blue</b>?"
STEPS = [
    Step("memory", "Air scatters blue light more than red light."),
    Step("memory", "Sunlight comes to the ground through air."),
    Step("reason", "So blue light arrives from all sides."),
    answer_step("True"),
]
WAIT = 60_000


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def serve():
    """Starts the page of a `DemoModel`; returns its address."""
    from memreason_hf.serving.demo.page import build_page, launch_page

    pages = {}

    def start(key, make, examples=None, max_new_tokens=64):
        if key not in pages:
            demo = make()
            page = build_page(demo, examples, {"max_new_tokens": max_new_tokens})
            pages[key] = page, launch_page(page, prevent_thread_lock=True)[1]
        return pages[key][1]

    yield start
    for page, _ in pages.values():
        page.blocks.close(verbose=False)


class Visitor:
    """A tab of the browser."""

    def __init__(self, browser, url, size="desktop", scheme="light"):
        self.context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.faults, self.outside = [], []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        self.page.on("request", lambda request: self._check(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#mr-run")

    def _check(self, url):
        if not re.match(r"(http://(127\.0\.0\.1|localhost)[:/]|data:|blob:)", url):
            self.outside.append(url)

    def type(self, text):
        self.page.fill("#mr-prompt-box textarea", text)

    def text(self, selector):
        return self.page.inner_text(selector)

    def count(self, selector):
        return self.page.locator(selector).count()

    def answer(self, press=True):
        """Presses the button and waits for the end of the answer; returns the line on its cost."""
        if press:
            self.page.click("#mr-run")
        self.page.wait_for_function(
            "/ended by|cut off|stopped/.test(document.querySelector('#mr-answer .mr-cost')?.innerText ?? '')"
        )
        return self.text("#mr-answer .mr-cost")

    def slide(self, label, value):
        """Moves a slider that can be seen with the keyboard's number field, as its reader sees it."""
        field = self.page.locator(f"input[aria-label='number input for {label}']:visible").first
        field.fill(str(value))
        field.press("Enter")

    def wait_for(self, text):
        """Waits for a text in the answer."""
        self.page.wait_for_function(
            "text => document.querySelector('#mr-answer .mr-cost')?.innerText.includes(text)", arg=text
        )

    def keep(self, name):
        folder = os.environ.get("DEMO_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def check(self):
        """No script of a model ran, nothing was asked of other servers, and nothing is wider than the screen."""
        assert self.faults == []
        assert self.outside == []
        assert self.page.evaluate("window.pwned") is None
        assert self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0

    def close(self):
        self.context.close()


@pytest.fixture
def visit(browser):
    visitors = []

    def open_tab(url, *args):
        visitors.append(Visitor(browser, url, *args))
        return visitors[-1]

    yield open_tab
    for visitor in visitors:
        visitor.close()


def text_model():
    return demo_model(seed=0, limits=Limits(max_new_tokens=256, prompt_tokens=100), name="user/text")


def chain_model():
    return demo_model("chain", seed=0, name="user/chain", halting_criterion="kl_entropy")


def slow_model():
    """A model whose text never ends."""
    demo = demo_model(seed=0, limits=Limits(max_new_tokens=5000), eos_token_id=None)
    demo.tokenizer.eos_token = None
    return demo


def hostile_model():
    """A vocabulary and a name that hold markup; the random model says such tokens often."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(f"{HOSTILE}{i}", normalized=False) for i in range(40)])
    model = looped(tokenizer, 0, eos_token_id=None)
    model.lm_head.weight.data[:-40] *= 0.01
    tokenizer.eos_token = None
    return DemoModel(model, tokenizer, HOSTILE, DepthOptions.of(model.config), Limits(max_new_tokens=64))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_an_answer_and_its_lens(serve, visit, size, scheme):
    visitor = visit(serve("text", text_model), size, scheme)
    visitor.keep(f"text-{size}-{scheme}-empty")
    visitor.type("the cat sat on")
    cost = visitor.answer()
    assert "4.0 recurrences a token" in cost and "33.3 % of the deepest (12)" in cost
    assert visitor.count("#mr-answer .mr-answer .mr-t.d4") >= 1
    visitor.page.wait_for_selector("#mr-lens tr.mr-halted")
    assert visitor.count("#mr-lens tbody tr") == 4
    assert visitor.count("#mr-answer .mr-selected") == 1
    visitor.keep(f"text-{size}-{scheme}-answer")
    # Another token, by a click on it.
    visitor.page.click("#mr-answer .mr-prompt .mr-t[data-pos='2']")
    visitor.page.wait_for_selector("#mr-answer .mr-prompt .mr-selected")
    assert "prompt 3" in visitor.page.input_value("#mr-position input")
    # And by the list, for which the keyboard is enough.
    visitor.page.click("#mr-position input")
    visitor.page.click("[role=option]:has-text('(what comes next)')")
    visitor.page.wait_for_function(
        "document.querySelector('#mr-lens').innerText.includes('after the end of the text')"
    )
    assert visitor.count("#mr-answer .mr-selected") == 0
    visitor.page.check("#mr-numbers")
    number = "getComputedStyle(document.querySelector('#mr-answer .mr-t[data-depth]'), '::after').content"
    assert visitor.page.evaluate(number) != "none"
    visitor.keep(f"text-{size}-{scheme}-numbers")
    visitor.check()


def test_depth_follows_the_sliders(serve, visit):
    visitor = visit(serve("text", text_model))
    visitor.type("the dog ran")
    visitor.answer()
    visitor.slide("Recurrences", 9)
    visitor.wait_for("9.0 recurrences a token")
    visitor.page.wait_for_function("document.querySelectorAll('#mr-lens tbody tr').length == 9")
    # A criterion shows its threshold; moved to its end, every token halts as early as it can.
    visitor.page.click("input[aria-label='Depth']:visible")
    visitor.page.click("[role=option]:has-text('state_difference')")
    visitor.page.wait_for_selector("text=state_difference_threshold, as a power of ten")
    visitor.wait_for("state_difference (state_difference_threshold")
    visitor.slide("state_difference_threshold, as a power of ten", 1)
    visitor.wait_for("state_difference_threshold 10")
    mean = float(re.search(r"([\d.]+) recurrences a token", visitor.answer(press=False))[1])
    assert mean <= 3
    visitor.keep("text-desktop-criterion")
    visitor.check()


@pytest.mark.parametrize("size", SIZES)
def test_two_depths(serve, visit, size):
    visitor = visit(serve("text", text_model), size)
    visitor.type("the cat sat on")
    visitor.page.click("button[role=tab]:has-text('Two depths')")
    visitor.page.click("#mr-run-both")
    visitor.page.wait_for_selector("#mr-difference .mr-cost")
    assert "4.00 times" in visitor.text("#mr-difference")
    assert visitor.count("#mr-left .mr-differs") + visitor.count("#mr-right .mr-differs") > 0
    visitor.keep(f"text-{size}-two")
    visitor.check()


@pytest.mark.parametrize("size", SIZES)
def test_a_chain_by_a_click_on_an_example(serve, visit, size):
    visitor = visit(serve("chain", chain_model, max_new_tokens=1), size)
    visitor.page.click(".gallery-item >> nth=1")
    visitor.page.wait_for_function("document.querySelector('#mr-prompt-box textarea').value.split('<').length == 4")
    assert "1 token" in visitor.answer()
    visitor.page.wait_for_selector("#mr-lens table")
    visitor.keep(f"chain-{size}")
    visitor.type("<e_1><r_77>")
    visitor.page.click("#mr-run")
    visitor.page.wait_for_selector("#mr-answer .mr-error")
    assert "<r_77>" in visitor.text("#mr-answer") and "<e_0> to <e_11>" in visitor.text("#mr-answer")
    visitor.keep(f"chain-{size}-unknown")
    visitor.check()


@pytest.mark.parametrize("size", SIZES)
def test_steps_are_coloured(serve, visit, size):
    url = serve("steps", lambda: scripted_model(QUESTION, STEPS), max_new_tokens=200)
    visitor = visit(url, size)
    visitor.type(QUESTION)
    assert "ended by the model" in visitor.answer()
    boxes = visitor.page.locator("#mr-answer .mr-step")
    assert [boxes.nth(i).locator(".mr-kind").inner_text() for i in range(boxes.count())] == [
        *(step.kind for step in STEPS)
    ]
    for i, step in enumerate(STEPS):
        assert step.text in boxes.nth(i).inner_text().replace("\n", "")
    borders = {boxes.nth(i).evaluate("e => getComputedStyle(e).borderLeftColor") for i in range(boxes.count())}
    assert len(borders) == 3
    assert "<b>" in visitor.text("#mr-answer .mr-prompt")
    visitor.keep(f"steps-{size}")
    visitor.check()


def test_a_decoder_without_recurrences(serve, visit):
    visitor = visit(serve("plain", lambda: demo_model("plain", name="user/plain")))
    assert "no recurrences" in visitor.text("#mr-no-depth")
    visitor.type("the memory")
    assert "recurrence" not in visitor.answer()
    visitor.keep("plain")
    visitor.check()


@pytest.mark.parametrize("prompt", ["", "   ", "the " * 150])
def test_what_cannot_be_answered_is_said_in_the_page(serve, visit, prompt):
    visitor = visit(serve("text", text_model))
    visitor.type(prompt)
    visitor.page.click("#mr-run")
    visitor.page.wait_for_selector("#mr-answer .mr-error[role=alert]")
    visitor.keep(f"error-{len(prompt)}")
    visitor.check()


def test_markup_of_a_model_and_of_a_visitor_is_text(serve, visit):
    visitor = visit(serve("hostile", hostile_model, [HOSTILE, "x"]))
    assert HOSTILE.rstrip("\u202e") in visitor.text("#mr-heading h1")
    visitor.type(f"say {HOSTILE}")
    visitor.answer()
    visitor.page.wait_for_selector("#mr-lens table")
    for place in ("#mr-answer .mr-prompt", "#mr-answer .mr-answer", "#mr-lens"):
        assert "<script>window.pwned=1</script>" in visitor.text(place).replace("\n", ""), place
        assert "[U+202E]" in visitor.text(place)
    visitor.page.click("#mr-position input")
    visitor.page.wait_for_selector("[role=option]")
    visitor.keep("hostile")
    visitor.page.keyboard.press("Escape")
    visitor.page.click(".gallery-item >> nth=0")
    visitor.page.wait_for_timeout(500)
    assert visitor.count(".gradio-container img[src=x]") + visitor.count("gradio-app script") == 0
    visitor.check()


def test_an_answer_is_stopped_and_the_next_visitor_is_served(serve, visit):
    url = serve("slow", slow_model)
    visitor, other = visit(url), visit(url)
    visitor.type("the cat")
    # The slider of the length is folded away.
    visitor.page.click("text=Choice of tokens")
    visitor.slide("max_new_tokens", 5000)
    visitor.keep("options")
    visitor.page.click("#mr-run")
    visitor.page.wait_for_function("document.querySelectorAll('#mr-answer .mr-answer .mr-t').length > 5")
    visitor.keep("writing")
    # The other one waits in line, and gives up.
    other.type("the dog")
    other.page.click("#mr-run")
    visitor.page.click("#mr-stop")
    assert "stopped" in visitor.answer(press=False)
    assert "cut off" in other.answer(press=False)
    # A visitor who leaves does not block those who stay.
    visitor.page.click("#mr-run")
    visitor.page.wait_for_function("!/stopped/.test(document.querySelector('#mr-answer').innerText)")
    visitor.page.close()
    other.page.click("#mr-run")
    other.wait_for("cut off")
    other.check()


def test_the_keyboard_is_enough(serve, visit):
    visitor = visit(serve("text", text_model))
    visitor.page.focus("#mr-prompt-box textarea")
    visitor.page.keyboard.type("the cat")
    for _ in range(60):
        visitor.page.keyboard.press("Tab")
        if visitor.page.evaluate("document.activeElement.closest('#mr-run') !== null"):
            break
    visitor.page.keyboard.press("Enter")
    visitor.answer(press=False)
    # One step up on the slider of recurrences.
    visitor.page.focus("input[type=range]:visible >> nth=0")
    visitor.page.keyboard.press("ArrowRight")
    visitor.wait_for("5.0 recurrences a token")
    visitor.check()


def test_a_space_runs_as_it_is_where_the_package_is_not_installed(visit, tmp_path, monkeypatch):
    """The model comes from a Hub on this machine, the page from the staged files."""
    demo = demo_model("chain", seed=1)
    with local_hub(tmp_path / "hub") as hub:
        folder = tmp_path / "model"
        demo.model.save_pretrained(folder)
        demo.tokenizer.save_pretrained(folder)
        publish = "from huggingface_hub import HfApi; a=HfApi(); a.create_repo('user/model'); "
        publish += f"a.upload_folder(repo_id='user/model', folder_path={str(folder)!r})"
        subprocess.run([sys.executable, "-c", publish], env=hub.environment(), check=True, capture_output=True)
        stage_space("user/model", tmp_path / "space")
        site = library_links(tmp_path / "site")
        environment = hub.environment(PYTHONPATH=str(site), GRADIO_SERVER_PORT=_free_port(), PYTHONUNBUFFERED="1")
        command = [sys.executable, "-S", "app.py"]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(command, cwd=tmp_path / "space", env=environment, **output)
        try:
            url = f"http://127.0.0.1:{environment['GRADIO_SERVER_PORT']}"
            _wait_for(url, process)
            visitor = visit(url)
            assert "user/model" in visitor.text("#mr-heading h1")
            assert "1 token" in visitor.answer()
            visitor.check()
        finally:
            process.terminate()
            process.communicate(timeout=30)
        assert hub.matching("GET", "user/model/resolve") or hub.matching("HEAD", "user/model/resolve")


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _wait_for(url, process):
    for _ in range(600):
        assert process.poll() is None, process.stdout.read()
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the Space does not answer")
