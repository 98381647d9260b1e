"""The thread that runs the model: all or nothing, cancellation, failures that end, and an end."""

import asyncio
import threading

import pytest
from api_servers import reference, served_model

from memreason_hf.serving.api.engine import Engine
from memreason_hf.serving.api.refusals import ApiError
from memreason_hf.serving.batching import DepthBatcher, GenerationRequest


@pytest.fixture(scope="module")
def served():
    return served_model()


def request(served, prompt="the cat", max_new_tokens=6, **fields):
    return GenerationRequest(served.tokenizer(prompt)["input_ids"], max_new_tokens=max_new_tokens, **fields)


def in_engine(engine, act):
    """Runs `act` with the engine, which must end in time."""

    async def run():
        engine.start()
        try:
            return await asyncio.wait_for(act(), 60)
        finally:
            assert await asyncio.to_thread(engine.close)

    return asyncio.run(run())


async def ids_of(answers, count=1):
    found = [[] for _ in range(count)]
    async for news in answers:
        for index, output in news:
            found[index].append(output.token_id)
    return found


class FailingBatcher(DepthBatcher):
    """A decode loop whose steps fail where `fails` says so."""

    def __init__(self, *args, fails, **kwargs):
        super().__init__(*args, **kwargs)
        self.fails = fails

    def step(self):
        if self.fails():
            raise RuntimeError("out of luck\nand more")
        return super().step()


def test_requests_get_their_own_tokens(served):
    engine = Engine(lambda: served.make_batcher(max_rows=2))
    prompts = ["the cat", "a dog", "the mat and", "what did"]

    async def act():
        together = await engine.submit([request(served, prompt) for prompt in prompts])
        alone = await engine.submit([request(served, prompts[1])])
        return await ids_of(together, 4), await ids_of(alone)

    together, alone = in_engine(engine, act)
    assert together == [reference(served, prompt)[1] for prompt in prompts]
    assert alone == [together[1]]
    assert engine.counters.tokens == sum(map(len, [*together, *alone])) == engine.counters.stats.tokens
    assert engine.counters.recurrences == engine.counters.stats.recurrences > 0


@pytest.mark.parametrize("fields", [{"max_new_tokens": 10**6}, {"halting_criterion": "magic"}])
def test_all_of_a_submission_is_accepted_or_none(served, fields):
    engine = Engine(lambda: served.make_batcher(max_cache_tokens=512))

    async def act():
        with pytest.raises(ValueError, match=next(iter(fields))):
            await engine.submit([request(served), request(served), request(served, **fields)])
        assert engine.counters.stats.waiting == engine.counters.stats.running == 0

    in_engine(engine, act)


def test_a_full_queue_is_429(served):
    engine = Engine(lambda: served.make_batcher(max_rows=1, max_waiting=2))

    async def act():
        with pytest.raises(ApiError, match="max_waiting=2") as refused:
            await engine.submit([request(served, max_new_tokens=50) for _ in range(4)])
        assert refused.value.status == 429 and refused.value.retry_after
        return await ids_of(await engine.submit([request(served)]))

    assert in_engine(engine, act) == [reference(served, "the cat")[1]]


def test_cancelled_answers_free_their_memory(served):
    engine = Engine(lambda: served.make_batcher(max_rows=2))

    async def act():
        answers = await engine.submit([request(served, max_new_tokens=200) for _ in range(4)])
        await anext(answers)
        assert engine.counters.stats.slots_used > 0
        answers.cancel()
        answers.cancel()
        other = await ids_of(await engine.submit([request(served)]))
        while engine.counters.stats.slots_used:
            await asyncio.sleep(0.01)
        assert engine.counters.stats.finished == 5
        # Far fewer tokens than were asked for.
        assert engine.counters.tokens < 400
        return other

    assert in_engine(engine, act) == [reference(served, "the cat")[1]]


def test_a_client_that_goes_while_its_request_is_submitted(served):
    engine = Engine(lambda: served.make_batcher())

    async def act():
        submission = asyncio.create_task(engine.submit([request(served, max_new_tokens=200)]))
        await asyncio.sleep(0)
        submission.cancel()
        await asyncio.gather(submission, return_exceptions=True)
        await ids_of(await engine.submit([request(served)]))
        stats = engine.counters.stats
        assert (stats.running, stats.waiting, stats.slots_used) == (0, 0, 0)

    in_engine(engine, act)


def test_a_step_that_fails_ends_what_runs_and_the_engine_goes_on(served):
    failing = iter([False, False, True])
    engine = Engine(
        lambda: FailingBatcher(served.model, served.tokenizer, fails=lambda: next(failing, False)),
    )

    async def act():
        answers = await engine.submit([request(served, max_new_tokens=50), request(served, max_new_tokens=50)])
        with pytest.raises(ApiError, match=r"The model failed: RuntimeError: out of luck\.") as failed:
            await ids_of(answers, 2)
        assert failed.value.status == 500
        return await ids_of(await engine.submit([request(served)]))

    assert in_engine(engine, act) == [reference(served, "the cat")[1]]
    assert engine.counters.failures == 1 and not engine.has_failed


def test_a_model_that_only_fails_is_given_up(served):
    died = threading.Event()
    engine = Engine(lambda: FailingBatcher(served.model, served.tokenizer, fails=lambda: True), on_death=died.set)

    async def act():
        for _ in range(3):
            assert not engine.has_failed
            with pytest.raises(ApiError, match="out of luck"):
                await ids_of(await engine.submit([request(served)]))
        await asyncio.to_thread(died.wait, 10)
        with pytest.raises(ApiError, match="out of luck") as refused:
            await engine.submit([request(served)])
        assert refused.value.status == 503

    in_engine(engine, act)
    assert died.is_set() and engine.has_failed and "out of luck" in engine.failure


def test_a_decode_loop_that_cannot_be_made_again(served):
    made = []

    def make():
        if made:
            raise MemoryError("no room")
        made.append(1)
        return FailingBatcher(served.model, served.tokenizer, fails=lambda: True)

    engine = Engine(make)

    async def act():
        with pytest.raises(ApiError):
            await ids_of(await engine.submit([request(served)]))
        while engine.failure is None:
            await asyncio.sleep(0.01)

    in_engine(engine, act)
    assert "no room" in engine.failure


def test_a_fault_outside_a_step_does_not_leave_clients_waiting(served):
    class Broken(DepthBatcher):
        def cancel(self, request_id):
            raise RuntimeError("broken")

    engine = Engine(lambda: Broken(served.model, served.tokenizer))

    async def act():
        waiting = await engine.submit([request(served, max_new_tokens=200)])
        (await engine.submit([request(served, max_new_tokens=200)])).cancel()
        with pytest.raises(ApiError, match="broken"):
            await ids_of(waiting)

    in_engine(engine, act)
    assert engine.has_failed


def test_what_comes_while_the_engine_ends_is_answered(served):
    """No submission may wait for a thread that has ended."""
    for _ in range(20):
        engine = Engine(lambda: served.make_batcher())

        async def act(engine=engine):
            engine.start()
            closing = asyncio.create_task(asyncio.to_thread(engine.close))
            attempts = [asyncio.create_task(engine.submit([request(served, max_new_tokens=2)])) for _ in range(20)]
            results = await asyncio.wait_for(asyncio.gather(*attempts, return_exceptions=True), 30)
            assert await closing
            for result in results:
                if isinstance(result, ApiError):
                    assert result.status == 503
                else:
                    try:
                        await asyncio.wait_for(ids_of(result), 30)
                    except ApiError as error:
                        assert error.status == 503
            with pytest.raises(ApiError, match="shutting down"):
                await engine.submit([request(served)])

        asyncio.run(act())
        assert not engine.has_failed


def test_everything_can_be_ended_with_an_error(served):
    engine = Engine(lambda: served.make_batcher(max_rows=1))

    async def act():
        answers = [await engine.submit([request(served, max_new_tokens=200)]) for _ in range(3)]
        engine.fail_all(ApiError(503, "the end"))
        for one in answers:
            with pytest.raises(ApiError, match="the end"):
                await ids_of(one)
        while engine.counters.stats.slots_used:
            await asyncio.sleep(0.01)

    in_engine(engine, act)


def test_a_reader_who_reads_nothing_cannot_fill_the_memory(served):
    engine = Engine(lambda: served.make_batcher())

    async def act():
        answers = await engine.submit([request(served, max_new_tokens=200, top_logprobs=5)])
        answers._most_waiting = 60
        while engine.counters.tokens < 5:
            await asyncio.sleep(0.01)
        while engine.counters.stats.running:
            await asyncio.sleep(0.01)
        with pytest.raises(ApiError, match="too slowly") as failed:
            await ids_of(answers)
        assert failed.value.status == 408 and not answers._news
        # It was ended early, and not for one who reads.
        assert engine.counters.tokens < 150
        read = await engine.submit([request(served, max_new_tokens=100, top_logprobs=5)])
        read._most_waiting = 60
        assert len((await ids_of(read))[0]) == 100

    in_engine(engine, act)
