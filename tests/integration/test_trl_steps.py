"""TRL's trainers on models that write steps, of recurrent depth and extended decoders, with the package's rewards."""

import math

import pytest
import torch
from datasets import Dataset
from small_tokenizers import byte_level, llama
from step_texts import deep_recurrent
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from memreason_hf.data.questions.encoding import StepCollator, encode_solutions
from memreason_hf.steps import StepScheme, answer_step
from memreason_hf.steps.tokenization import decode_solution, encode_prompt, extend_tokenizer
from memreason_hf.training.solutions.rewards import AnswerReward, StepReward, prompt_rows


trl = pytest.importorskip("trl", reason="trl is not installed")

SCHEME = StepScheme(1, 2)
STEPS = [{"kind": "memory", "text": "the memory"}, {"kind": "reason", "text": "a step"}]
OPTIONS = [{"label": label, "text": label} for label in ("True", "False")]
FAMILIES = {"recurrent": deep_recurrent, "llama": lambda size: llama(size, hidden_size=32, intermediate_size=64)}
COMMON = {"logging_steps": 1, "report_to": "none", "use_cpu": True, "save_strategy": "no", "bf16": False}


def completion(answer):
    """What follows a prompt, which ends with the first prefix tokens."""
    return SCHEME.render([*STEPS, answer_step(answer)]).removeprefix("".join(SCHEME.prefix_tokens))


def rows_with(answers):
    questions = ["Is the memory a step?", "Is a reason the memory?", "Is the answer a prefix?", "Is it the step?"]
    return [
        {"question": question, "options": OPTIONS, "answer": answer, "steps": STEPS}
        for question in questions
        for answer in answers
    ]


def make(family, **switch):
    torch.manual_seed(0)
    tokenizer = byte_level()
    model = FAMILIES[family](len(tokenizer))
    extend_tokenizer(tokenizer, SCHEME, model, **switch)
    return model, tokenizer


def solution_loss(model, tokenizer, rows):
    """The mean loss over the tokens of all solutions, from the package's own rows."""
    batch = StepCollator(tokenizer)(list(encode_solutions(tokenizer, rows)[0]))
    labels = batch.pop("shift_labels")
    return functional.cross_entropy(model(**batch).logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


@pytest.fixture(scope="module", params=FAMILIES)
def taught(request, tmp_path_factory):
    """The folder of a model that mostly writes well-formed steps, with either answer; its tokenizer."""
    model, tokenizer = make(request.param)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(60):
        loss = solution_loss(model, tokenizer, rows_with(["True", "False"]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    folder = tmp_path_factory.mktemp("taught")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), AutoTokenizer.from_pretrained(folder)


def train(trainer):
    """Trains, checks that every weight has changed, and returns the logs of the steps."""
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    same = [name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])]
    assert not same
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_has_the_loss_of_our_own_rows(family, tmp_path):
    """The loss is over solutions with their marks and the end of the text, never over the question."""
    model, tokenizer = make(family)
    rows = rows_with(["True"])
    with torch.no_grad():
        expected = solution_loss(model.eval(), tokenizer, rows).item()
    pairs = [{"prompt": SCHEME.prompt(row["question"]), "completion": completion("True")} for row in rows]
    config = trl.SFTConfig(str(tmp_path), per_device_train_batch_size=4, max_steps=3, learning_rate=1e-2, **COMMON)
    trainer = trl.SFTTrainer(model, config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    logs = train(trainer)
    assert len(logs) == 3 and logs[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert logs[-1]["loss"] < 0.9 * expected


def test_dpo_prefers_the_right_answer(taught, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(taught[0]), taught[1]
    rows = prompt_rows(rows_with(["True"]), tokenizer)
    texts = {"chosen": completion("True"), "rejected": completion("False")}
    pairs = [{"prompt": row["prompt"], **texts} for row in rows]
    config = trl.DPOConfig(str(tmp_path), per_device_train_batch_size=4, max_steps=3, learning_rate=1e-2, **COMMON)
    trainer = trl.DPOTrainer(model, args=config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    logs = train(trainer)
    # Before the first step the model is its own reference.
    assert logs[0]["loss"] == pytest.approx(math.log(2), abs=1e-4) and logs[-1]["loss"] < 0.9 * math.log(2)
    assert logs[-1]["rewards/accuracies"] == 1.0


def grpo(taught, folder, rewards, **arguments):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(taught[0]), taught[1]
    config = trl.GRPOConfig(
        str(folder),
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=64,
        gradient_checkpointing=False,
        **{"learning_rate": 1e-3, "max_steps": 3, **COMMON, **arguments},
    )
    dataset = prompt_rows(rows_with(["True"]), tokenizer)
    return trl.GRPOTrainer(model, rewards, config, train_dataset=dataset, processing_class=tokenizer)


class Watch:
    """Passes a reward on, and keeps what it was given."""

    def __init__(self, reward):
        self.reward, self.__name__, self.calls = reward, reward.__name__, []

    def __call__(self, **arguments):
        values = self.reward(**arguments)
        self.calls.append((arguments, values))
        return values


def test_grpo_rewards_right_answers_and_well_formed_steps(taught, tmp_path):
    """The texts that TRL passes have no marks; the rewards are those of the ids all the same."""
    tokenizer = taught[1]
    watched = [Watch(AnswerReward(tokenizer)), Watch(StepReward(tokenizer))]
    logs = train(grpo(taught, tmp_path, watched))
    names = ("rewards/answer_reward/mean", "rewards/step_reward/mean")
    given = {value for watch in watched for _, values in watch.calls for value in values}
    assert {0.0, 1.0} <= given and all(entry[name] >= 0 for entry in logs for name in names)
    for arguments, values in watched[0].calls:
        for text, ids, prompt, value in zip(
            arguments["completions"], arguments["completion_ids"], arguments["prompts"], values, strict=True
        ):
            assert not any(token in text for token in SCHEME.tokens)
            assert prompt.endswith("<prefix>")
            written = decode_solution(tokenizer, ids)
            assert value == float("The answer is: True" in written.split("<answer_0><answer_1>")[-1])
    means = [sum(values) / len(values) for _, values in watched[1].calls]
    assert [entry[names[1]] for entry in logs] == pytest.approx(means[: len(logs)], abs=1e-5)


def test_prompts_of_trl_are_those_of_evaluation(taught, tmp_path):
    tokenizer = taught[1]
    trainer = grpo(taught, tmp_path, AnswerReward(tokenizer), max_steps=1)
    seen = []
    generate = trainer.model.generate

    def watch(**arguments):
        rows = arguments["input_ids"].tolist()
        seen.extend([id_ for id_ in row if id_ != tokenizer.pad_token_id] for row in rows)
        return generate(**arguments)

    trainer.model.generate = watch
    trainer.train()
    expected = [encode_prompt(tokenizer, row["question"]) for row in rows_with(["True"])]
    assert seen and all(ids in expected for ids in seen)


@pytest.mark.slow
def test_grpo_learns_the_right_answers(taught, tmp_path):
    """Without the reward the model answers every second question correctly."""
    tokenizer = taught[1]
    trainer = grpo(
        taught, tmp_path, [AnswerReward(tokenizer), StepReward(tokenizer)], max_steps=30, learning_rate=3e-3
    )
    logs = train(trainer)
    rewards = [entry["rewards/answer_reward/mean"] for entry in logs]
    assert rewards[0] < 0.8 and sum(rewards[-5:]) / 5 > 0.95
