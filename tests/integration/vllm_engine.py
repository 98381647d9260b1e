"""
Runs vLLM on saved models and saves what it answers.

This file runs in an environment of its own, whose releases vLLM pins, and imports nothing of this package:

    PYTHON tests/integration/vllm_engine.py JOBS OUT

`JOBS` is a JSON file with a list of jobs; `OUT` receives a list with the answer to each. A job runs in a process of
its own, which has imported vLLM already.

| key of a job | meaning |
|---|---|
| `model`, `engine` | a folder, and keyword arguments of `LLM` |
| `rounds` | lists of prompts, each a list of ids; a round is sent at once, and after the one before it |
| `max_tokens` | the length of an answer |
| `environment` | variables that vLLM reads |
| `adapter` | a folder of a LoRA adapter, for every second prompt |
| `share_slots` | whether all recurrences of a layer get the keys and values of one slot: a control |

| key of an answer | meaning |
|---|---|
| `texts`, `logprobs` | by round and prompt, the new ids and their log-probabilities |
| `metrics` | counters of the engine |
| `error` | what was raised instead |
"""

import json
import os
import sys
import traceback
from pathlib import Path


ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)

from vllm import LLM, SamplingParams  # noqa: E402  reads the environment
from vllm.lora.request import LoRARequest  # noqa: E402


DEFAULTS = {
    "block_size": 32,
    "dtype": "float32",
    "disable_log_stats": False,
    "enforce_eager": True,
    "max_model_len": 128,
    "seed": 0,
    "skip_tokenizer_init": True,
}


def share_slots(llm, recurrences, looped, prelude):
    """Gives the slots of later recurrences the memory of the first recurrence."""
    worker = llm.llm_engine.model_executor.driver_worker
    slots = worker.model_runner.model.model.key_value_slots
    for recurrence in range(1, recurrences):
        for layer in range(looped):
            slots[prelude + recurrence * looped + layer].attn = slots[prelude + layer].attn


def run(job):
    os.environ.update(job.get("environment", {}))
    llm = LLM(job["model"], **{**DEFAULTS, **job.get("engine", {})})
    if job.get("share_slots"):
        share_slots(llm, *job["share_slots"])
    sampling = SamplingParams(
        temperature=0, max_tokens=job["max_tokens"], ignore_eos=True, detokenize=False, logprobs=0
    )
    answer = {"texts": [], "logprobs": []}
    for prompts in job["rounds"]:
        adapters = None
        if job.get("adapter"):
            adapter = LoRARequest("adapter", 1, job["adapter"])
            adapters = [adapter if place % 2 else None for place in range(len(prompts))]
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = [
            output.outputs[0] for output in llm.generate(requests, sampling, use_tqdm=False, lora_request=adapters)
        ]
        texts = [list(output.token_ids) for output in outputs]
        answer["texts"].append(texts)
        answer["logprobs"].append(
            [
                [entry[token].logprob for token, entry in zip(text, output.logprobs)]
                for text, output in zip(texts, outputs)
            ]
        )
    answer["metrics"] = {
        metric.name: metric.value
        for metric in llm.get_metrics()
        if isinstance(getattr(metric, "value", None), int | float)
    }
    return answer


def main(jobs, out):
    answers = []
    for place, job in enumerate(json.loads(Path(jobs).read_text())):
        part = Path(f"{out}.{place}")
        child = os.fork()
        if child == 0:
            try:
                answer = run(job)
            except BaseException as error:
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}"}
            part.write_text(json.dumps(answer))
            sys.stderr.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        answers.append(json.loads(part.read_text()) if status == 0 else {"error": f"ended with status {status}"})
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
