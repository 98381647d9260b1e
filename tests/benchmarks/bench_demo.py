"""
How long a visitor of the demo page waits for the first token, from the press of the button.

    memreason quickstart && python tests/benchmarks/bench_demo.py runs/quickstart [--runs 20]

Starts the page in a process of its own, asks it over HTTP as the browser does, and prints the median, the best and the
worst time until the first update that holds a token of the answer. Each prompt is another chain. Needs
`pip install gradio`. With `--browser`, a real Chromium presses the button (`pip install playwright`).
"""

import argparse
import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import time

import torch
from common import machine


_TOKEN = re.compile(r'class="mr-answer">.*?class="mr-t', re.DOTALL)


@contextlib.contextmanager
def page_of(model):
    """The address of the page of a model, which a process of its own serves."""
    command = [sys.executable, "-m", "memreason_hf.commands.demo", model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield re.search(r"http://\S+", process.stdout.readline())[0]
    finally:
        process.terminate()
        process.wait()


def over_http(url, prompts):
    """Seconds until the first token, for each prompt, by Gradio's own client."""
    from gradio_client import Client

    client = Client(url, verbose=False)
    parameters = client.view_api(return_format="dict", print_info=False)["named_endpoints"]["/answer"]["parameters"]
    # What the controls of depth and sampling show at first.
    start = [parameter["parameter_default"] for parameter in parameters][1:]
    seconds = []
    for prompt in prompts:
        began = time.perf_counter()
        for update in client.submit(prompt, *start, api_name="/answer"):
            if _TOKEN.search(update[0] if isinstance(update, tuple | list) else update):
                seconds.append(time.perf_counter() - began)
                break
    return seconds


def in_browser(url, prompts):
    """The same, from the press of the button to the token on the page."""
    from playwright.sync_api import sync_playwright

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for prompt in prompts:
            page = browser.new_page()
            page.goto(url)
            page.fill("#mr-prompt-box textarea", prompt)
            page.wait_for_timeout(300)
            began = time.perf_counter()
            page.click("#mr-run")
            page.wait_for_selector("#mr-answer .mr-answer .mr-t")
            seconds.append(time.perf_counter() - began)
            page.close()
        browser.close()
    return seconds


def chains(count, hops):
    """Random chains of the quickstart's world."""
    relations = torch.randint(4, (count, hops)).tolist()
    entities = torch.randint(20, (count,)).tolist()
    return [
        f"<e_{entity}>" + "".join(f"<r_{relation}>" for relation in row) for entity, row in zip(entities, relations)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a memreason quickstart")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--hops", type=int, default=16)
    parser.add_argument("--browser", action="store_true", help="also in Chromium")
    args = parser.parse_args()

    print(machine())
    with page_of(args.model) as url:
        for name, ask in [("HTTP", over_http), *([("browser", in_browser)] if args.browser else [])]:
            # The first visit loads what the next ones have.
            seconds = ask(url, chains(args.runs + 1, args.hops))[1:]
            print(
                f"{name}: first token after {statistics.median(seconds):.3f} s (best {min(seconds):.3f}, "
                f"worst {max(seconds):.3f}; {len(seconds)} presses, chains of {args.hops} hops)"
            )


if __name__ == "__main__":
    main()
