"""Conversations of annotated questions, as TRL's SFTTrainer takes them: as they are, in every format."""

import random

import pytest
import torch
from question_rows import random_rows
from small_finetunes import SCHEME, small_model, small_tokenizer

from memreason_hf.data.questions.conversations import FORMATS, from_messages, to_messages
from memreason_hf.data.questions.memory_reason import reference_solution


trl = pytest.importorskip("trl", reason="trl is not installed")

# The plainest chat template; `generation` marks the reply for TRL.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ message['role'] }}: {{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize("format", FORMATS)
def test_sft_trains_on_the_rows_as_they_are(format, tmp_path):
    rng = random.Random()
    rows = [{**row, "accepted_answers": []} for row in random_rows(rng, 4, ("yes_no",))]
    conversations = to_messages(rows, SCHEME, format=format)
    tokenizer, model = small_tokenizer(), small_model()
    tokenizer.chat_template = TEMPLATE
    before = {name: value.clone() for name, value in model.named_parameters()}
    config = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        max_length=None,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(model, config, train_dataset=conversations, processing_class=tokenizer)
    trainer.train()
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    # TRL's own encoding holds the whole solution, with the tokens of its steps.
    text = tokenizer.decode(trainer.train_dataset[0]["input_ids"])
    assert SCHEME.render(reference_solution(rows[0])).rstrip() in text
    assert from_messages(conversations, SCHEME).to_list() == rows
