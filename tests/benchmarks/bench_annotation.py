"""
Annotation of questions against a server with a fixed time a call, and the ideal time: calls x seconds / concurrency.

    python tests/benchmarks/bench_annotation.py [--items 1000] [--seconds 0.2] [--concurrency 32] [--runs 3]

The server runs in a process of its own. Every run writes its output, its replies and its report as
`memreason annotate` does.
"""

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import machine


sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from annotation_answers import Annotated, question_rows
from chat_servers import chat_server

from memreason_hf.annotation import annotate_questions
from memreason_hf.chat import EndpointChat


def serve(connection, seconds, bad):
    """Sends the address of a server, which ends with the connection."""
    with chat_server(Annotated(bad=bad), seconds=seconds) as server:
        connection.send(server.url)
        try:
            connection.recv()
        except EOFError:
            threading.Event().wait(0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.2, help="time of a call")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--bad", type=float, default=0.0, help="share of answers that must be asked for again")
    args = parser.parse_args()
    print(machine())
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, args.seconds, args.bad), daemon=True)
    process.start()
    theirs.close()
    try:
        url = mine.recv()
        with tempfile.TemporaryDirectory() as folder:
            for number in range(args.runs):
                run(args, url, Path(folder, f"{number}.jsonl"))
    finally:
        mine.close()
        process.join(10)


def run(args, url, path):
    rows = question_rows(args.items)
    chat = EndpointChat("any", url, concurrency=args.concurrency)
    start = time.perf_counter()
    report = annotate_questions(rows, chat, path)
    seconds = time.perf_counter() - start
    assert report.num_annotated == args.items
    ideal = report.num_calls * args.seconds / args.concurrency
    print(
        f"{args.items:,} items, {report.num_calls:,} calls of {args.seconds} s, concurrency {args.concurrency}: "
        f"{seconds:.1f} s; ideal {ideal:.1f} s; {seconds / ideal:.2f} times"
    )


if __name__ == "__main__":
    main()
