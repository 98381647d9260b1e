"""A tiny saved model that reads any text, for tests of commands and of other libraries."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


TEXT = "the cat sat on the mat and the dog ran after the cat. what did the dog see? the dog saw the cat on the mat."


def text_tokenizer():
    """Byte-level BPE: no text is unknown, and characters outside ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "</s>", "<memory>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([AddedToken("<reason>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def save_text_model(folder, **config):
    """Saves a model, with weights so large that depths differ, and its tokenizer; returns both."""
    tokenizer = text_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_recurrent_layers": 2,
            "num_recurrences": 3,
            "max_recurrences": 9,
            "input_injection": "add",
            "state_norm": "rmsnorm",
            "initializer_range": 0.25,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **config,
        }
        model = RecurrentDepthForCausalLM(RecurrentDepthConfig.llama_style(**values)).eval()
    # Makes the model write readable text, and hardly ever bytes that are not a character.
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    unreadable = [index for index, name in enumerate(names) if not name.lstrip("Ġ").isascii()]
    with torch.no_grad():
        model.lm_head.weight[unreadable] *= 0.01
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer
