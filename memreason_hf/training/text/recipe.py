"""From a recipe to a `TextTrainer`: texts, tokenizer, rows and model, checked against each other."""

from dataclasses import MISSING, field, fields, make_dataclass
from itertools import islice
from typing import Literal

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from memreason_hf.adapters.base import tokenizer_digest
from memreason_hf.adapters.base_files import block_digests
from memreason_hf.checks import check_path
from memreason_hf.data.text.arguments import TextArguments
from memreason_hf.data.text.collator import TextCollator
from memreason_hf.data.text.encoding import DocumentTokenizer, encode_texts
from memreason_hf.data.text.files import find_files
from memreason_hf.data.text.sources import TEXT, open_texts
from memreason_hf.data.text.stream import TextStream
from memreason_hf.messages import first_line
from memreason_hf.models.configs_and_tokenizers import read_config, read_tokenizer
from memreason_hf.models.new_models import train_tokenizer
from memreason_hf.models.pretrained import check_source
from memreason_hf.models.recurrent_models import ModelArguments, make_model
from memreason_hf.training.runs.launch import on_main_process
from memreason_hf.training.text.arguments import TextTrainingArguments
from memreason_hf.training.text.parts import PartArguments, choose_parts
from memreason_hf.training.text.trainer import TextTrainer
from modeling_recurrent import RecurrentDepthConfig
from modeling_recurrent.masks_recurrent import is_flash


logger = logging.get_logger(__name__)

STYLE = "llama"
# A new tokenizer is learned from at most this many documents and characters.
_LEARNED_DOCUMENTS, _LEARNED_CHARACTERS = 20_000, 50_000_000
_NEW_VOCABULARY = 8000
# Fields of section `model` that decide which weights there are. Those of model.path have theirs.
_SHAPES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_prelude_layers",
    "num_recurrent_layers",
    "num_coda_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "gated_mlp",
)


def _text_model_arguments() -> type:
    """`ModelArguments` with another style by default, the dtype, and what is trained."""
    described = [
        (
            "style",
            Literal["gpt2", "llama"],
            field(default=STYLE, metadata={"help": "A new model: blocks as in GPT-2 or Llama."}),
        ),
        (
            "dtype",
            Literal["float32", "bfloat16", "auto"],
            field(
                default="float32",
                metadata={"help": "The dtype of the weights of model.path. With bf16 they stay in float32."},
            ),
        ),
    ]
    described += [
        (item.name, item.type, field(default=item.default, metadata=item.metadata))
        for item in fields(PartArguments)
        if item.default is not MISSING
    ]
    return make_dataclass("TextModelArguments", described, bases=(ModelArguments,), namespace={"__module__": __name__})


TextModelArguments = _text_model_arguments()
_PART_FIELDS = tuple(item.name for item in fields(PartArguments))


def prepare_text_run(args: TextTrainingArguments, *, model: dict, data: dict) -> tuple[TextTrainer, str]:
    """
    Makes the trainer of a recipe.

    Args:
        args ([`TextTrainingArguments`]): Section `training`.
        model (`dict`): Section `model`, fields of `TextModelArguments`.
        data (`dict`): Section `data`, fields of `TextArguments`.

    Returns:
        The trainer, and a report on the texts.

    Raises:
        ValueError, OSError, StrictDataclassError, TrainingError: a part that is missing or impossible, or parts that
            do not match.
    """
    texts_of, parts = TextArguments(**data), PartArguments(**{k: v for k, v in model.items() if k in _PART_FIELDS})
    _check_choices(args, texts_of, model, parts)
    _check_length(texts_of, model)
    seed = args.seed if args.data_seed is None else args.data_seed
    with args.main_process_first(desc="opening the texts"):
        texts, heldout = open_texts(texts_of, seed)
    tokenizer = on_main_process(args, lambda: open_tokenizer(texts_of, model, texts))
    with args.main_process_first(desc="tokenising"):
        rows, report = _encode(texts_of, texts, tokenizer, args, seed)
        eval_rows, _ = (
            (None, None)
            if heldout is None
            else encode_texts(heldout, tokenizer, texts_of.sequence_length, _eval_policy(texts_of), texts_of.num_proc)
        )
    set_seed(args.seed)
    network = _make_model(model, tokenizer, texts_of.sequence_length)
    _warn_without_depth(network.config)
    choose_parts(network, parts)
    # The random numbers of dropout must not depend on how the model was made.
    set_seed(args.seed)
    trainer = TextTrainer(
        model=network,
        args=args,
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=TextCollator(_padding_of(tokenizer), flatten=is_flash(network.config)),
        processing_class=tokenizer,
        origin=_origin(model, parts),
    )
    trainer.data_record = _data_record(texts_of, rows)
    return trainer, report


def open_tokenizer(arguments: TextArguments, model: dict, texts: Dataset | IterableDataset) -> PreTrainedTokenizerBase:
    """
    The tokenizer of `data.tokenizer` or `model.path`; for a new model without one, a new one, learned from the texts.

    Args:
        arguments (`TextArguments`): Section `data`.
        model (`dict`): Section `model`.
        texts (`datasets.Dataset` or `datasets.IterableDataset`): The texts to train on.

    Raises:
        ValueError: there is no tokenizer, or `model.vocab_size` is too small for a new one.
    """
    name, where = (arguments.tokenizer, "data.tokenizer") if arguments.tokenizer else (model.get("path"), "model.path")
    if name:
        try:
            return read_tokenizer(name, where)
        except ValueError as error:
            first = first_line(error)
            raise ValueError(
                f"{where}={name!r} holds no tokenizer that can be read ({first}). Pass --tokenizer with its folder."
            ) from error
    size = model.get("vocab_size") or _NEW_VOCABULARY
    least = 258
    if size < least:
        raise ValueError(f"model.vocab_size={size} must be at least {least}, the bytes and two special tokens.")
    return train_tokenizer(_first_texts(texts), size)


def _first_texts(texts):
    characters = 0
    for row in islice(texts, _LEARNED_DOCUMENTS):
        yield row[TEXT] or ""
        characters += len(row[TEXT] or "")
        if characters > _LEARNED_CHARACTERS:
            return


def _check_choices(args, texts, model, parts):
    if model.get("path") is not None:
        check_path("model.path", model["path"])
    if parts.train != "all" and not model.get("path"):
        raise ValueError(
            f"model.train={parts.train!r} keeps other weights as they are, but those of a new model are random. Pass "
            "model.path, or train=all."
        )
    if model.get("style") is not None and model.get("path"):
        raise ValueError(
            f"model.style={model['style']!r} describes a new model, but model.path={model['path']!r} has its blocks. "
            "Leave one of them out."
        )
    given = [name for name in model if name in _PART_FIELDS and name.startswith("lora_")]
    if given and parts.train != "lora":
        raise ValueError(
            f"model.{given[0]}={model[given[0]]!r} has no effect with model.train={parts.train!r}. Use train=lora, or "
            f"leave {given[0]} out."
        )
    has_heldout = texts.eval_files or texts.eval_split or texts.eval_documents
    if args.eval_strategy != IntervalStrategy.NO and not has_heldout:
        raise ValueError(
            f"training.eval_strategy={args.eval_strategy.value!r} needs held-out texts: data.eval_files, "
            "data.eval_split or data.eval_documents."
        )
    if texts.streaming and args.max_steps <= 0 and args.max_tokens is None:
        raise ValueError(
            "data.streaming=true: the length of a stream is not known in advance. Set training.max_tokens or "
            "training.max_steps."
        )


def _check_length(texts, model):
    """Refuses rows that are longer than the context of the model, before anything is read."""
    longest = model.get("max_position_embeddings")
    if model.get("path"):
        check_source(model["path"], "model.path")
        config = read_config(model["path"], "model.path")
        longest = longest or getattr(config, "max_position_embeddings", None)
        _check_shapes(model, config)
    if longest is not None and texts.sequence_length > longest:
        raise ValueError(
            f"data.sequence_length={texts.sequence_length} is above the model's max_position_embeddings={longest}. "
            f"Use at most {longest}, or raise model.max_position_embeddings where the positions are not learned."
        )


def _check_shapes(model, config):
    """Refuses fields that the model of `model.path` cannot have: it would get random layers, or lose some."""
    for name in _SHAPES:
        own = getattr(config, name, None)
        if own is not None and model.get(name) not in (None, own):
            raise ValueError(
                f"model.{name}={model[name]}: the model at {model['path']} has {name}={own}, which decides the shapes "
                f"of its weights. Leave model.{name} out."
            )


def _warn_without_depth(config):
    # A converted decoder has one recurrence: what re-enters its loop would stay as it is.
    deepest = config.num_recurrences if config.recurrence_sampling == "fixed" else config.recurrence_max
    if deepest == 1:
        logger.warning(
            "Every training step takes one recurrence, so the model learns nothing that more recurrences could use. "
            "For example: --recurrence_sampling uniform --recurrence_min 1 --recurrence_max 8."
        )


def _eval_policy(texts):
    # A held-out document that is too long is no reason to stop: it is split.
    return "split" if texts.too_long == "error" else texts.too_long


def _encode(arguments, texts, tokenizer, args, seed):
    """The rows to train on, in memory or as a stream, and a report."""
    if not arguments.streaming:
        rows, counts = encode_texts(
            texts, tokenizer, arguments.sequence_length, arguments.too_long, arguments.num_proc
        )
        return rows, counts.describe(arguments.sequence_length, arguments.too_long)
    stream = TextStream(
        texts,
        DocumentTokenizer(tokenizer),
        source=_source(arguments, tokenizer),
        sequence_length=arguments.sequence_length,
        too_long=arguments.too_long,
        shuffle_buffer=arguments.shuffle_buffer,
        seed=seed,
        num_streams=arguments.num_streams,
        by_document=bool(arguments.eval_documents),
        rank=args.process_index,
        world_size=args.world_size,
    )
    shards = texts.num_shards
    return stream, f"Streaming {shards:,} {'shard' if shards == 1 else 'shards'} in {stream.num_streams} shares."


def _data_record(arguments, rows):
    """What the card of the model says about the data."""
    names = ("dataset", "dataset_config", "revision", "split")
    record = {name: getattr(arguments, name) for name in names} if arguments.dataset else {}
    if arguments.files:
        record["files"] = [path.name for path in find_files(arguments.files)]
    if not arguments.streaming:
        record["rows"] = {"training": len(rows)}
    return {"kind": "text", "sequence_length": arguments.sequence_length, **record}


def _source(arguments, tokenizer):
    """What decides the documents of a stream, without reading them."""
    source = {"tokenizer": tokenizer_digest(tokenizer), "column": arguments.column}
    if arguments.files:
        files = find_files(arguments.files)
        # Without their folders: the files may be moved.
        digests = [[path.name, block_digests({path.name: path})[path.name]["blocks"]] for path in files]
        return source | {"files": digests, "sample_by": arguments.sample_by, "held_out": arguments.eval_documents}
    names = ("dataset", "dataset_config", "revision", "split")
    return source | {name: getattr(arguments, name) for name in names} | {"held_out": arguments.eval_documents}


def _make_model(model, tokenizer, sequence_length):
    chosen = {name: value for name, value in model.items() if name not in _PART_FIELDS}
    if model.get("path"):
        try:
            return make_model({"dtype": "float32", **chosen}, tokenizer)
        except ValueError as error:
            fields_of_shape = ", ".join(sorted(set(chosen) - {"path", "dtype"}))
            if not fields_of_shape or "mismatched_sizes" not in str(error.__cause__):
                raise
            raise ValueError(
                f"model.path={model['path']!r}: its weights do not have the shapes that these fields of section model "
                f"need: {fields_of_shape}. Leave out those that change shapes, such as input_injection."
            ) from error
    chosen.pop("dtype", None)
    longest = max(sequence_length, RecurrentDepthConfig().max_position_embeddings)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return make_model(chosen, tokenizer, style=STYLE, max_position_embeddings=longest, **ends)


def _padding_of(tokenizer):
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(index for index in ids if index is not None)


def _origin(model, parts):
    origin = {"model.path": model.get("path"), "model.train": parts.train}
    if parts.train == "lora":
        origin |= {f"model.{name}": getattr(parts, name) for name in _PART_FIELDS if name.startswith("lora_")}
    return origin
