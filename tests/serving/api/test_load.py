"""
64 clients for minutes, of whom one in twenty goes early: every text right, no request lost, no memory kept.

    python -m pytest -m slow tests/serving/api/test_load.py
    MEMREASON_LOAD_SECONDS=20 python -m pytest -m slow tests/serving/api/test_load.py
"""

import asyncio
import json
import os
import random
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from api_servers import HALTING, reference
from served_processes import served_process
from text_models import TEXT, save_text_model

from memreason_hf.serving.api.limits import Limits
from memreason_hf.serving.api.served_model import ServedModel


pytestmark = pytest.mark.slow
pytest.importorskip("fastapi", reason='needs "memreason-hf[serve]"')
pytest.importorskip("uvicorn", reason='needs "memreason-hf[serve]"')

SECONDS = float(os.environ.get("MEMREASON_LOAD_SECONDS", "180"))
CLIENTS = 64
CANCELLING = 0.05
# Memory that allocators keep without a leak.
SLACK = 48 * 2**20


def requests(served, count):
    """`(fields, text)` of different requests: lengths, depths, draws, stop strings."""
    words = TEXT.replace("?", "").replace(".", "").split()
    made = []
    for index in range(count):
        prompt = " ".join(random.choices(words, k=random.randint(1, 30)))
        length = random.randint(1, 40)
        depth = random.choice([{}, {"num_recurrences": random.randint(1, 9)}, HALTING])
        draws = {"do_sample": True, "temperature": 0.9, "seed": index} if index % 3 == 0 else {}
        text = reference(served, prompt, length, **depth, **draws)[0]
        fields = {"prompt": prompt, "max_tokens": length, **depth, **draws, "stream": index % 2 == 0}
        if index % 5 == 0 and len(text) > 8:
            fields["stop"] = text[4:7]
            text = text[: text.index(text[4:7])]
        made.append((fields, text))
    return made


async def ask(port, fields, cancels):
    """The text of an answer; None if this client has gone before its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        body = json.dumps(fields).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        if cancels:
            await asyncio.sleep(random.random() * random.choice([0.01, 0.5, 3]))
            return None
        answer = await reader.read()
    finally:
        writer.transport.abort() if cancels else writer.close()
    status, _, rest = answer.partition(b"\r\n")
    assert status == b"HTTP/1.1 200 OK", answer
    content = rest.partition(b"\r\n\r\n")[2]
    if not fields["stream"]:
        return json.loads(content)["choices"][0]["text"]
    # The chunks of HTTP stand around the events.
    lines = [line.removeprefix(b"data: ") for line in content.split(b"\n") if line.startswith(b"data: ")]
    assert lines.pop() == b"[DONE]"
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines)


async def clients(port, made, seconds):
    """Runs all clients for a time; returns what came of their requests."""
    results, deadline = Counter(), time.monotonic() + seconds

    async def client():
        while time.monotonic() < deadline:
            fields, text = random.choice(made)
            found = await ask(port, fields, cancels=random.random() < CANCELLING)
            results["cancelled" if found is None else "right" if found == text else "wrong"] += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return results


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def wait_until_idle(server):
    names = ("memreason_running_requests", "memreason_waiting_requests", "memreason_slots_used")
    deadline = time.monotonic() + 60
    while any((metrics := server.metrics())[name] for name in names) or metrics["memreason_open_requests"] > 1:
        assert time.monotonic() < deadline, metrics
        time.sleep(0.1)
    return metrics


def answered(metrics):
    """The number of completions by status."""
    start = 'memreason_requests_total{endpoint="/v1/completions",status="'
    return {name[len(start) :][:3]: int(value) for name, value in metrics.items() if name.startswith(start)}


def test_many_clients(tmp_path):
    folder = tmp_path / "model"
    model, tokenizer = save_text_model(folder, max_position_embeddings=256)
    served = ServedModel(str(folder), model, tokenizer, Limits(256, 9))
    made = requests(served, 60)
    assert len({text for _, text in made}) > 20
    with served_process(tmp_path, [str(folder), "--max_rows", "32"]) as server:
        # Code and caches are loaded once.
        before = asyncio.run(clients(server.port, made, max(3.0, SECONDS / 10)))
        wait_until_idle(server)
        start = resident(server.process.pid)
        began = time.perf_counter()
        results = asyncio.run(clients(server.port, made, SECONDS))
        seconds = time.perf_counter() - began
        metrics = wait_until_idle(server)
        grown = resident(server.process.pid) - start
        print(
            f"\n{sum(results.values())} requests in {seconds:.1f} s: {dict(results)}; "
            f"{metrics['memreason_generated_tokens_total'] / (seconds + SECONDS / 10):.0f} tokens/s, mean depth "
            f"{metrics['memreason_mean_recurrences']:.2f}; memory {start / 2**20:.0f} MB, {grown / 2**20:+.1f} MB"
        )
        assert results["wrong"] == before["wrong"] == 0
        assert results["right"] > CLIENTS and results["cancelled"] > 0
        # Whoever waited has got an answer, and whoever has gone was noticed: every request is in the count.
        statuses, everyone = answered(metrics), before + results
        assert set(statuses) <= {"200", "499"}
        assert statuses["200"] >= everyone["right"]
        assert everyone["right"] <= sum(statuses.values()) <= sum(everyone.values())
        assert metrics["memreason_engine_failures_total"] == 0
        assert grown < SLACK
        os.kill(server.process.pid, signal.SIGTERM)
        code, printed = server.end()
    assert code == 143 and "Traceback" not in printed
