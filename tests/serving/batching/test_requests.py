"""What a request may ask for: sampling, ends, stop strings, log-probabilities; and what is refused."""

import random

import pytest
import torch
from depth_batches import alone, batched, random_requests, token_depths
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from recurrent_models import lively_model, random_ids, tiny_model
from small_tokenizers import byte_level, sentence_piece
from transformers import GenerationConfig

from memreason_hf.serving.batching import DepthBatcher, GenerationRequest, QueueFull


def run(batcher, *requests):
    return list(batcher.generate_batch(requests, progress_bar=False).values())


def test_a_seed_gives_the_same_text_alone_and_in_a_crowd():
    model = lively_model("llama", {"input_injection": "add"})
    requests = random_requests(12, [{"depth_schedule": token_depths(5)}], most_tokens=9, do_sample=True)
    for request in requests:
        request.seed, request.temperature = random.randrange(2**63), random.uniform(0.5, 1.5)
        request.top_k, request.top_p = random.choice((None, 5, 30)), random.choice((None, 0.8))
        request.min_p, request.repetition_penalty = random.choice((None, 0.05)), random.choice((None, 1.3))
    expected = [alone(model, request) for request in requests]
    assert batched(DepthBatcher(model, max_rows=5, max_cache_tokens=200), requests) == expected
    reversed_outputs = batched(DepthBatcher(model, max_rows=12, max_cache_tokens=400), requests[::-1])
    assert reversed_outputs[::-1] == expected
    state = torch.random.get_rng_state()
    batched(DepthBatcher(model, max_cache_tokens=200), requests)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_a_seed_texts_follow_the_seed_of_torch():
    batcher = DepthBatcher(lively_model("llama", {}), max_cache_tokens=200)
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        requests = [GenerationRequest([1, 2], max_new_tokens=12, do_sample=True, top_k=0) for _ in range(2)]
        texts.append([output.generated_tokens for output in run(batcher, *requests)])
    assert texts[0] == texts[1] != texts[2] and texts[0][0] != texts[0][1]


def test_processors_of_the_generation_config_apply():
    model = lively_model("gpt2", {"input_injection": "add"})
    model.generation_config.update(repetition_penalty=1.4, no_repeat_ngram_size=2, suppress_tokens=[3, 9])
    config = GenerationConfig(bad_words_ids=[[7], [11, 12]], min_new_tokens=4, eos_token_id=list(range(20, 40)))
    requests = random_requests(6, [{}], most_tokens=9)
    requests += random_requests(6, [{"generation_config": config}], most_tokens=9)
    plain = [GenerationRequest(request.prompt_ids, max_new_tokens=request.max_new_tokens) for request in requests]
    outputs = batched(DepthBatcher(model, max_cache_tokens=400), requests)
    assert outputs == [alone(model, request) for request in requests]
    model.generation_config = GenerationConfig(pad_token_id=0)
    assert outputs != batched(DepthBatcher(model, max_cache_tokens=400), plain)


def test_processors_that_read_the_prompt_and_the_length():
    model = lively_model("gpt2", {})
    configs = (GenerationConfig(forced_eos_token_id=7), GenerationConfig(encoder_repetition_penalty=1.5))
    requests = random_requests(8, [{"generation_config": config} for config in configs], most_tokens=9)
    outputs = batched(DepthBatcher(model, max_cache_tokens=400), requests)
    assert outputs == [alone(model, request) for request in requests]
    forced = [tokens for request, (tokens, _) in zip(requests, outputs) if request.generation_config is configs[0]]
    assert len(forced) == 4 and all(tokens[-1] == 7 for tokens in forced)


def test_ends_and_their_reasons():
    model = lively_model("llama", {})
    text, _ = alone(model, GenerationRequest([4, 5], max_new_tokens=9))
    last, unused = text[5], next(token for token in range(len(text) + 1) if token not in text)
    batcher = DepthBatcher(model, max_cache_tokens=100)
    ended, whole = run(
        batcher,
        GenerationRequest([4, 5], max_new_tokens=9, eos_token_id=[last, unused]),
        GenerationRequest([4, 5], max_new_tokens=9),
    )
    place = text.index(last)
    assert (ended.generated_tokens, ended.finish_reason) == (text[: place + 1], "stop")
    assert (whole.generated_tokens, whole.finish_reason) == (text, "length")


def test_log_probabilities_are_those_of_the_model():
    model = lively_model("llama", {"input_injection": "add"})
    batcher = DepthBatcher(model, max_cache_tokens=200)
    request = GenerationRequest([4, 5, 6], max_new_tokens=7, num_recurrences=3, top_logprobs=2, repetition_penalty=1.5)
    (output,) = run(batcher, request)
    ids = torch.tensor([[*request.prompt_ids, *output.generated_tokens]])
    with torch.no_grad():
        expected = model(ids, num_recurrences=3).logits[0, 2:-1].log_softmax(-1)
    for token, given, right in zip(output.generated_tokens, output.logprobs, expected):
        values, best = right.topk(2)
        assert next(iter(given)) == token and set(given) == {token, *best.tolist()}
        assert all(abs(value - right[name].item()) < 1e-5 for name, value in given.items())
        assert abs(given[int(best[0])] - values[0].item()) < 1e-5


def written(model, tokenizer, request):
    """(pieces, finish reason) of a request."""
    batcher = DepthBatcher(model, tokenizer, max_cache_tokens=200)
    batcher.submit(request)
    outputs = list(batcher)
    return [output.text for output in outputs], outputs[-1].finish_reason


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
def test_pieces_are_the_text_and_end_before_a_stop_string(make):
    """With random tokens, so that characters of several bytes are cut; stop strings are any part of the text."""
    tokenizer = make()
    model = lively_model("llama", {"num_recurrent_layers": 1}, vocab_size=len(tokenizer))
    for _ in range(12):
        request = {"max_new_tokens": 12, "do_sample": True, "top_k": 0, "temperature": 3.0, "num_recurrences": 1}
        request |= {"prompt_ids": random_ids(3).tolist(), "seed": random.randrange(99)}
        pieces, reason = written(model, tokenizer, GenerationRequest(**request))
        tokens = alone(model, GenerationRequest(**request))[0]
        text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert "".join(pieces) == text and reason == "length"
        if len(text) < 3:
            continue
        start = random.randrange(len(text) - 1)
        stop = text[start : start + random.randint(1, 5)]
        # The other strings begin like the text, but do not occur.
        others = [other for place in range(len(text)) if (other := text[place : place + 3] + "\0") not in text]
        pieces, reason = written(model, tokenizer, GenerationRequest(**request, stop_strings=[*others, stop]))
        assert "".join(pieces) == text[: text.index(stop)] and reason == "stop"


def test_text_is_held_back_while_a_stop_string_may_have_begun():
    tokenizer = byte_level()
    model = lively_model("llama", {}, vocab_size=len(tokenizer))
    ids = tokenizer("the memory reason").input_ids
    request = GenerationRequest([1], max_new_tokens=len(ids), stop_strings=(" memory the", "reasons"))
    batcher = DepthBatcher(model, tokenizer, max_cache_tokens=200)
    batcher.submit(request)
    (row,) = batcher._waiting
    forced = iter(ids)
    row.processors.append(
        lambda text, scores: torch.full_like(scores, -9.0).index_fill_(1, torch.tensor([next(forced)]), 0.0)
    )
    pieces = [output.text for output in batcher]
    shown = ["".join(pieces[:count]) for count in range(1, len(ids) + 1)]
    for count, text in enumerate(shown[:-1], 1):
        whole = tokenizer.decode(ids[:count])
        held = max(
            len(part) for part in ("", " ", " m", " memory", " memory ", "r", "re", "reason") if whole.endswith(part)
        )
        assert text == whole[: len(whole) - held]
    assert shown[-1] == "the memory reason"


def test_a_full_queue_is_refused_and_ids_are_unique():
    batcher = DepthBatcher(tiny_model(), max_rows=1, max_cache_tokens=30, max_waiting=2)
    batcher.submit(GenerationRequest([1], request_id="a"))
    with pytest.raises(ValueError, match="request_id='a'"):
        batcher.submit(GenerationRequest([1], request_id="a"))
    batcher.submit(GenerationRequest([1]))
    with pytest.raises(QueueFull, match="max_waiting=2"):
        batcher.submit(GenerationRequest([1]))
    batcher.step()
    batcher.submit(GenerationRequest([1], request_id="b"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt_ids": []}, "prompt_ids is empty"),
        ({"prompt_ids": "text"}, "prompt_ids must be a list"),
        ({"prompt_ids": [1, 61]}, "prompt_ids holds 61"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"eos_token_id": "x"}, "eos_token_id='x'"),
        ({"eos_token_id": [3, "x"]}, "eos_token_id="),
        ({"max_new_tokens": 63}, "max_position_embeddings=64"),
        ({"prompt_ids": [1] * 30, "max_new_tokens": 30, "num_recurrences": 12}, "max_cache_tokens"),
        ({"num_recurrences": 0}, "num_recurrences=0"),
        ({"num_recurrences": [1, 2]}, "num_recurrences has 2 entries"),
        ({"num_recurrences": 3, "max_recurrences": 5}, "max_recurrences=5"),
        ({"halting_criterion": "guess"}, "halting_criterion='guess'"),
        ({"halting_criterion": "exit_gate"}, "exit_gate"),
        ({"halting_criterion": "kl", "entropy_threshold": 1.0}, "entropy_threshold=1.0"),
        ({"kl_threshold": 1.0}, "kl_threshold=1.0"),
        ({"halting_criterion": "kl", "halting_granularity": "word"}, "halting_granularity='word'"),
        ({"halting_criterion": "kl", "min_recurrences": 9, "max_recurrences": 4}, "min_recurrences=9"),
        ({"depth_schedule": token_depths(3), "num_recurrences": 3}, "depth_schedule"),
        ({"depth_schedule": 3}, "depth_schedule"),
        ({"stop_strings": "x"}, "tokenizer"),
        ({"stop_strings": ["", "x"]}, "stop_strings holds ''"),
        ({"top_logprobs": -1}, "top_logprobs=-1"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "seed": 1.5}, "seed"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams=2"),
        ({"generation_config": GenerationConfig(guidance_scale=1.5)}, "guidance_scale=1.5"),
        ({"generation_config": GenerationConfig(cache_implementation="static")}, "cache_implementation='static'"),
        ({"generation_config": GenerationConfig(prompt_lookup_num_tokens=2)}, "prompt_lookup_num_tokens=2"),
        ({"generation_config": GenerationConfig(cache_recurrences="last")}, "cache_recurrences='last'"),
        ({"generation_config": GenerationConfig(draft_recurrences=1)}, "draft_recurrences=1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_run_is_refused_by_name(fields, words):
    batcher = DepthBatcher(tiny_model("gpt2"), max_cache_tokens=40)
    with pytest.raises((ValueError, TypeError), match=words):
        batcher.submit(GenerationRequest(**{"prompt_ids": [1, 2, 3], **fields}))
    assert not batcher.has_work
    (output,) = run(batcher, GenerationRequest([1, 2, 3], max_new_tokens=2))
    assert len(output.generated_tokens) == 2


def test_criteria_on_logits_need_a_whole_row_where_there_is_a_coda():
    model = lively_model("llama", {"num_coda_layers": 1})
    batcher = DepthBatcher(model, max_cache_tokens=100)
    fields = {"halting_criterion": "entropy", "entropy_threshold": 3.0, "max_new_tokens": 4}
    with pytest.raises(ValueError, match="halting_granularity"):
        batcher.submit(GenerationRequest([1, 2], **fields))
    request = GenerationRequest([1, 2], halting_granularity="sequence", **fields)
    assert batched(batcher, [request]) == [alone(model, request)]


def test_an_error_ends_one_request_and_not_the_others():
    model = lively_model("llama", {})
    fields = {"max_new_tokens": 5}

    def too_deep(ids):
        return torch.full_like(ids, 1 if ids.shape[1] < 4 else 99)

    def broken(ids):
        raise RuntimeError("no depth")

    def deep_prompt(ids):
        return torch.full_like(ids, 99)

    good, deep, deeper, wrong = run(
        DepthBatcher(model, max_cache_tokens=100),
        GenerationRequest([1, 2], **fields),
        GenerationRequest([1, 2], depth_schedule=too_deep, **fields),
        GenerationRequest([1, 2], depth_schedule=deep_prompt, **fields),
        GenerationRequest([1, 2], depth_schedule=broken, **fields),
    )
    assert good.generated_tokens == alone(model, GenerationRequest([1, 2], **fields))[0]
    assert deep.finish_reason == deeper.finish_reason == wrong.finish_reason == "error"
    assert "99 recurrences" in deeper.error and not deeper.generated_tokens
    assert "99 recurrences" in deep.error and "no depth" in wrong.error and len(deep.generated_tokens) == 2
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    batcher = DepthBatcher(model, max_cache_tokens=100)
    (output,) = run(batcher, GenerationRequest([1, 2], **fields))
    assert output.finish_reason == "error" and "NaN" in output.error and batcher.stats().slots_used == 0


def test_models_that_cannot_be_batched_are_refused():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="training mode"):
        DepthBatcher(model.train())
    model.eval().config.cache_recurrences = "last"
    with pytest.raises(ValueError, match="cache_recurrences='last'"):
        DepthBatcher(model)
    model = tiny_model("llama")
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="flex_attention"):
        DepthBatcher(model)
    limits = {"max_rows": 0, "prefill_tokens": 0, "max_cache_tokens": -5, "max_waiting": -1}
    for name, value in limits.items():
        with pytest.raises(ValueError, match=f"{name}={value}"):
            DepthBatcher(tiny_model(), **{name: value})
        with pytest.raises(TypeError, match=f"{name}=2.5"):
            DepthBatcher(tiny_model(), **{name: 2.5})
    model = tiny_model()
    batcher = DepthBatcher(model, max_cache_tokens=20)
    model.train()
    with pytest.raises(ValueError, match="training mode"):
        batcher.submit(GenerationRequest([1]))
    with pytest.raises(ValueError, match="RecurrentDepthForCausalLM"):
        DepthBatcher(torch.nn.Linear(2, 2))


def test_an_adapter_is_part_of_the_model():
    model = lively_model("llama", {"input_injection": "add"})
    request = GenerationRequest([1, 2, 3], max_new_tokens=8, top_logprobs=0)
    (plain,) = run(DepthBatcher(model, max_cache_tokens=100), request)
    adapted = get_peft_model(model, LoraConfig(target_modules=["qkv_proj", "down_proj"], init_lora_weights=False))
    (output,) = run(DepthBatcher(adapted.eval(), max_cache_tokens=100), request)
    assert (output.generated_tokens, output.num_recurrences) == alone(model, request)
    assert output.logprobs != plain.logprobs
    prompted = get_peft_model(
        tiny_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ).eval()
    with pytest.raises(ValueError, match="adds a prompt"):
        DepthBatcher(prompted)


def test_a_list_of_prompts_is_checked_first_and_given_up_whole():
    model = lively_model("llama", {})
    batcher = DepthBatcher(model, max_rows=2, max_cache_tokens=60, max_waiting=1)
    prompts = [random_ids(length).tolist() for length in (3, 1, 4, 2)]
    with pytest.raises(ValueError, match="prompt_ids holds 61"):
        batcher.generate_batch([*prompts, [61]], max_new_tokens=3, progress_bar=False)
    with pytest.raises(TypeError, match="max_tokens=3"):
        batcher.generate_batch(prompts, max_tokens=3)
    with pytest.raises(TypeError, match="prompt_ids must be a list of token ids, got 1"):
        batcher.generate_batch([1, 2, 3])
    assert not batcher.has_work
    outputs = batcher.generate_batch(
        prompts, GenerationConfig(num_recurrences=2), max_new_tokens=3, progress_bar=False
    )
    assert list(outputs) == ["req_0", "req_1", "req_2", "req_3"]
    expected = [alone(model, GenerationRequest(prompt, max_new_tokens=3, num_recurrences=2)) for prompt in prompts]
    assert [(output.generated_tokens, output.num_recurrences) for output in outputs.values()] == expected
    first = next(results := batcher.generate_iter(prompts, max_new_tokens=3))
    assert first.finish_reason == "length"
    results.close()
    assert not batcher.has_work and batcher.stats().slots_used == 0
    name = batcher.submit(GenerationRequest([1], max_new_tokens=2))
    with pytest.raises(ValueError, match="other requests"):
        batcher.generate_batch(prompts, progress_bar=False)
    assert {output.request_id for output in batcher} == {name}
