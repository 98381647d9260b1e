"""Many requests for code that does not wait: order, errors, and what happens when the caller stops."""

import asyncio
import threading
import time

import pytest

from memreason_hf.chat import in_order_of_completion


def no_thread_is_left():
    return not any(thread.name == "requests" for thread in threading.enumerate())


def test_results_come_in_the_order_in_which_they_end():
    async def work(key):
        await asyncio.sleep(key / 20)
        return -key

    found = list(in_order_of_completion(work, [6, 0, 4, 2], concurrency=4))
    assert found == [(0, 0), (2, -2), (4, -4), (6, -6)]
    assert no_thread_is_left()


def test_keys_are_read_as_they_are_needed():
    read = []

    def keys():
        for key in range(1000):
            read.append(key)
            yield key

    async def work(key):
        await asyncio.sleep(0.01)
        return key

    iterator = in_order_of_completion(work, keys(), concurrency=3)
    for _ in range(5):
        next(iterator)
    assert len(read) < 50
    iterator.close()
    assert no_thread_is_left()


def test_an_error_of_the_work_ends_it_and_cancels_the_others():
    cancelled = []

    async def work(key):
        try:
            await asyncio.sleep(0.05 if key == 1 else 60)
        except asyncio.CancelledError:
            cancelled.append(key)
            raise
        raise KeyError("broken")

    began = time.monotonic()
    with pytest.raises(KeyError, match="broken"):
        list(in_order_of_completion(work, [0, 1, 2], concurrency=3))
    assert sorted(cancelled) == [0, 2] and time.monotonic() - began < 10
    assert no_thread_is_left()


@pytest.mark.parametrize("grace, ended", [(0.0, []), (10.0, [1])])
def test_a_caller_that_stops_cancels_what_is_under_way_after_a_grace(grace, ended):
    begun, done = [], []

    async def work(key):
        begun.append(key)
        await asyncio.sleep(0 if key == 0 else 0.3)
        done.append(key)
        return key

    closed = []

    async def close():
        closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        for _ in in_order_of_completion(work, range(100), concurrency=1, grace=grace, close=close):
            # The next key is begun in the meantime.
            time.sleep(0.1)
            raise KeyboardInterrupt
    assert done == [0, *ended] and begun == [0, 1] and closed == [True]
    assert no_thread_is_left()


def test_close_is_called_at_the_end():
    closed = []

    async def work(key):
        return key

    async def close():
        closed.append(True)

    assert list(in_order_of_completion(work, [1], concurrency=5, close=close)) == [(1, 1)]
    assert closed == [True]


def test_the_concurrency_must_be_a_whole_number():
    async def work(key):
        return key

    with pytest.raises(ValueError, match="concurrency=0 must be at least 1"):
        in_order_of_completion(work, [1], concurrency=0)
