"""Small tokenizers and models, built in memory."""

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


TEXTS = [
    "Question: Is the memory of a reason the answer to a step?\n",
    "The reason is a memory: the first step gives the answer.\n",
    "the memory the reason the answer the step a prefix of words\n",
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def byte_level(**kwargs):
    """Byte-level, as for GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **SPECIAL, **kwargs)


def sentence_piece():
    """As for Llama 2: a space before every piece of text, and bytes for characters that the vocabulary lacks."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<unk>", *SPECIAL.values(), *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    # Trained on single words, because the model has no pre-tokenizer that separates them.
    words = [word for text in TEXTS for word in text.split()]
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        **SPECIAL,
    )


def word_level(unknown=True):
    """Whole words, as in a written-out world; line breaks are lost."""
    words = sorted({word for text in TEXTS for word in text.replace("?", " ?").replace(":", " :").split()})
    tokens = [*SPECIAL.values(), *(["<unk>"] if unknown else []), *words, "True", "False", "Air", "."]
    unk = {"unk_token": "<unk>"} if unknown else {}
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(dict.fromkeys(tokens))}, **unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **unk, **SPECIAL)


TOKENIZERS = {"byte_level": byte_level, "sentence_piece": sentence_piece, "word_level": word_level}


# The ids of the special tokens of all tokenizers here, and the sizes of a model of one layer.
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SIZES = {"hidden_size": 16, "num_attention_heads": 2}
LAYERS = {**SIZES, "intermediate_size": 32, "num_hidden_layers": 1}


def llama(vocab_size, tied=False, **kwargs):
    values = {"vocab_size": vocab_size, "tie_word_embeddings": tied, **IDS, **LAYERS, **kwargs}
    return LlamaForCausalLM(LlamaConfig(**values))


def gpt2(vocab_size, tied=True):
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 512}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, tie_word_embeddings=tied, **IDS, **sizes))


def qwen2(vocab_size, tied=False):
    values = {"vocab_size": vocab_size, "tie_word_embeddings": tied, "num_key_value_heads": 1, **IDS, **LAYERS}
    return Qwen2ForCausalLM(Qwen2Config(**values))


def recurrent(vocab_size, tied=True):
    sizes = {**SIZES, "num_recurrent_layers": 1, "num_recurrences": 2}
    config = RecurrentDepthConfig.gpt2_style(vocab_size=vocab_size, tie_word_embeddings=tied, **IDS, **sizes)
    return RecurrentDepthForCausalLM(config)


MODELS = {"llama": llama, "gpt2": gpt2, "qwen2": qwen2, "recurrent": recurrent}


def with_random_rows(model, seed=0):
    """Gives every row of the embeddings other values, so that a wrong row shows."""
    generator = torch.Generator().manual_seed(seed)
    for matrix in {
        id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())
    }.values():
        matrix.data.copy_(torch.randn(matrix.shape, generator=generator))
    return model
