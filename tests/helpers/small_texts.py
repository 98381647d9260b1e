"""Small texts, tokenizers and files that the tests of text share."""

import functools
import json
import random

from datasets import Dataset, load_dataset
from transformers import set_seed

from memreason_hf.data.text.collator import TextCollator
from memreason_hf.data.text.encoding import DocumentTokenizer, encode_texts
from memreason_hf.data.text.stream import TextStream
from memreason_hf.models.new_models import train_tokenizer
from memreason_hf.training.text.arguments import TextTrainingArguments
from memreason_hf.training.text.trainer import TextTrainer
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


_WORDS = ("a", "loop", "reads", "its", "own", "state", "again", "until", "nothing", "changes", "and", "the", "last")


def small_texts(count=60, seed=0, longest=40):
    """Documents of 1 to `longest` words, no two of them equal."""
    words = random.Random(seed)
    return [f"{index} " + " ".join(words.choices(_WORDS, k=words.randint(1, longest))) for index in range(count)]


@functools.cache
def small_text_tokenizer(vocab_size=300):
    return train_tokenizer(small_texts(), vocab_size)


def write_jsonl(path, texts, column="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({column: text, "n": index}) + "\n" for index, text in enumerate(texts)))
    return path


@functools.cache
def small_rows(sequence_length=24, count=60, seed=0):
    """Packed rows of small texts."""
    texts = Dataset.from_dict({"text": small_texts(count, seed)})
    return encode_texts(texts, small_text_tokenizer(), sequence_length)[0]


def small_stream(folder, num_files=3, count=12, rank=0, world_size=1, **settings):
    """A stream over files in `folder`, which are written if they are not there."""
    paths = [folder / f"part-{index}.jsonl" for index in range(num_files)]
    for index, path in enumerate(paths):
        if not path.exists():
            write_jsonl(path, small_texts(count)[index::num_files])
    texts = load_dataset("json", data_files=list(map(str, paths)), split="train", streaming=True)
    encode = DocumentTokenizer(small_text_tokenizer())
    settings = {"source": {}, "sequence_length": 24, "shuffle_buffer": 7, "seed": 5, **settings}
    return TextStream(texts.select_columns(["text"]), encode, rank=rank, world_size=world_size, **settings)


def small_text_model(**overrides):
    set_seed(0)
    fields = {
        "vocab_size": len(small_text_tokenizer()),
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_prelude_layers": 1,
        "num_recurrent_layers": 1,
        "num_coda_layers": 1,
        "num_recurrences": 3,
        "recurrence_sampling": "uniform",
        "recurrence_min": 2,
        "recurrence_max": 4,
        "input_injection": "add",
        "state_norm": "rmsnorm",
        "residual_dropout": 0.1,
        "pad_token_id": small_text_tokenizer().pad_token_id,
        "eos_token_id": small_text_tokenizer().eos_token_id,
    }
    return RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**{**fields, **overrides}))


def small_text_trainer(output_dir, train_dataset=None, model=None, callbacks=(), eval_dataset=None, **arguments):
    defaults = {
        "output_dir": str(output_dir),
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 3,
        "logging_steps": 2,
        "save_total_limit": 10,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    return TextTrainer(
        model=small_text_model() if model is None else model,
        args=TextTrainingArguments(**{**defaults, **arguments}),
        train_dataset=small_rows() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        data_collator=TextCollator(small_text_tokenizer().pad_token_id),
        processing_class=small_text_tokenizer(),
        callbacks=list(callbacks),
    )
