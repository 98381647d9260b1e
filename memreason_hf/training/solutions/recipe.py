"""From a recipe to a `FinetuneTrainer`: data, tokenizer, model, scheme and adapter, checked against each other."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy

import modeling_recurrent  # noqa: F401  (registers its model: a base can be one)
from memreason_hf.adapters.modes import AdapterArguments, add_adapter, is_adapter_folder
from memreason_hf.data.questions.demonstrations import Demonstrations
from memreason_hf.data.questions.encoding import TOO_LONG, EncodingReport, StepCollator, encode_solutions
from memreason_hf.data.questions.memory_reason import (
    NAMES,
    TRAINING_SPLIT,
    build_memory_reason,
    load_memory_reason,
    reference_solution,
)
from memreason_hf.evaluation.solutions.generation import check_prompts, context_length
from memreason_hf.messages import first_few
from memreason_hf.models.new_models import NewModelArguments, build_new_model, train_tokenizer
from memreason_hf.models.pretrained import check_source, read_model, torch_dtype
from memreason_hf.steps import StepScheme
from memreason_hf.steps.attention import get_step_attention, restore_step_attention, set_step_attention
from memreason_hf.steps.masks import VARIANTS
from memreason_hf.steps.tokenization import SCHEME_KEY, encode_prompt, extend_tokenizer, read_scheme
from memreason_hf.training.solutions.trainer import FinetuneArguments, FinetuneTrainer


@dataclass
class QuestionArguments:
    """Annotated questions to train on and to be judged by."""

    path: str | None = field(
        default=None,
        metadata={
            "help": "Folder of data_scripts/build_memory_reason.py; or, with name, the source that it reads. Without: "
            "the authors' repository."
        },
    )
    name: Literal[NAMES] | None = field(
        default=None, metadata={"help": "The data set in a source; a saved one needs no name."}
    )
    eval_split: str = field(default="test", metadata={"help": "Split whose questions are solved in evaluation."})
    num_train_items: int | None = field(default=None, metadata={"help": "Only the first so many training items."})
    num_demonstrations: int = field(
        default=0, metadata={"help": "Solved training questions in front of each question, in training and after."}
    )
    max_length: int | None = field(
        default=None,
        metadata={"help": "The most tokens of a question with its solution; the model's context if less."},
    )
    too_long: Literal[TOO_LONG] = field(
        default="refuse", metadata={"help": "Items that are longer: an error, or left out. Never cut; counted."}
    )


@dataclass
class BaseModelArguments:
    """The model to go on from."""

    path: str | None = field(
        default=None, metadata={"help": "Folder or name on the Hub of the model, with its tokenizer."}
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Of its weights. Default: as they were saved; float32 if all are trained."}
    )
    load_in_8bit: bool = field(default=False, metadata={"help": "Frozen weights in 8 bits (bitsandbytes)."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Frozen weights in 4 bits (bitsandbytes)."})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "For example sdpa or eager. Default: what the library chooses."}
    )
    step_attention: Literal[("none", *VARIANTS)] | None = field(
        default=None,
        metadata={
            "help": "Sparse attention between steps: own (ordinary tokens see their own step only) or tokens (also "
            "the question and all earlier step tokens). For a new model, too. Default: what the model was saved with, "
            "as a rule none."
        },
    )

    def __post_init__(self):
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_8bit and load_in_4bit contradict each other: give one of them.")


def prepare_finetuning(
    args: FinetuneArguments,
    *,
    data: dict,
    model: dict | None = None,
    new_model: dict | None = None,
    steps: dict | None = None,
    adapter: dict | None = None,
) -> tuple[FinetuneTrainer, EncodingReport]:
    """
    The trainer of a recipe, and what became of the training items.

    Args:
        args: section `training`.
        data, model, new_model, adapter: what the sections of these names give: fields of `QuestionArguments`,
            `BaseModelArguments`, `NewModelArguments` (if it names an architecture, there is no `model.path`) and
            `AdapterArguments`.
        steps: fields of `StepScheme`; of a tokenizer that was extended already only the same ones.

    Raises:
        ValueError, OSError, ImportError: what is missing, impossible or does not match.
    """
    questions, base = QuestionArguments(**data), BaseModelArguments(**(model or {}))
    new, chosen = NewModelArguments(**(new_model or {})), AdapterArguments(**(adapter or {}))
    _check_choices(base, new, chosen)
    if questions.max_length is not None and questions.max_length < 1:
        raise ValueError(f"data.max_length={questions.max_length} must be at least 1; leave it out for no limit.")
    with args.main_process_first(desc="opening the data set"):
        train, test, demonstrations = open_questions(questions, args.seed)
    set_seed(args.seed)
    if new.architecture is None:
        tokenizer, network = open_base(base, chosen.mode)
    else:
        tokenizer, network = _make_base(new, train)
    extend_tokenizer(tokenizer, choose_scheme(tokenizer, steps or {}), network)
    if base.step_attention is None:
        restore_step_attention(network)
    else:
        set_step_attention(network, tokenizer, None if base.step_attention == "none" else base.step_attention)
    if questions.num_demonstrations and get_step_attention(network) is not None:
        raise ValueError(
            f"data.num_demonstrations={questions.num_demonstrations} does not go with model.step_attention="
            f"{get_step_attention(network)!r}: the question would be taken for a part of the last demonstration. "
            "Leave one of them out."
        )
    max_length = min(filter(None, (questions.max_length, context_length(network))), default=None)
    rows, report = encode_solutions(
        tokenizer, train, max_length=max_length, too_long=questions.too_long, demonstrations=demonstrations
    )
    if args.eval_strategy != IntervalStrategy.NO:
        # Now, and not after an epoch of training.
        solved = test.select(range(min(args.num_test, len(test))))["question"]
        shown = [demonstrations(question) if demonstrations else () for question in solved]
        prompts = [encode_prompt(tokenizer, question, pairs) for question, pairs in zip(solved, shown)]
        check_prompts(network, dict(enumerate(prompts)))
    # The first random numbers that the adapter and dropout see do not depend on how the base was made.
    set_seed(args.seed)
    trainer = FinetuneTrainer(
        model=add_adapter(network, tokenizer, chosen),
        args=args,
        train_dataset=rows,
        eval_dataset=test,
        data_collator=StepCollator(tokenizer),
        processing_class=tokenizer,
        demonstrations=demonstrations,
        origin=_origin(base, new, chosen) | {"model.dtype": str(network.dtype).removeprefix("torch.")},
    )
    return trainer, report


def open_questions(questions: QuestionArguments, seed: int) -> tuple[Dataset, Dataset, Demonstrations | None]:
    """
    Training items, test items, and what draws demonstrations from the training items.

    Raises:
        ValueError, OSError: no data set named, splits that are not there, or files that are not as they should be.
    """
    dataset = _load_questions(questions)
    for split in (TRAINING_SPLIT, questions.eval_split):
        if split not in dataset:
            raise ValueError(f"The data have no split {split!r}; there are {', '.join(dataset)}.")
    train = dataset[TRAINING_SPLIT]
    if questions.num_train_items is not None:
        if questions.num_train_items < 1:
            raise ValueError(f"data.num_train_items={questions.num_train_items} must be at least 1.")
        train = train.select(range(min(questions.num_train_items, len(train))))
    demonstrations = None
    if questions.num_demonstrations:
        demonstrations = Demonstrations(train, questions.num_demonstrations, seed=seed)
    return train, dataset[questions.eval_split], demonstrations


def open_base(base: BaseModelArguments, mode: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """
    The model to go on from and its tokenizer.

    Raises:
        ValueError, OSError: nothing there, an adapter, or not to be read.
        ImportError: bitsandbytes is asked for and not installed.
    """
    if is_adapter_folder(base.path):
        raise ValueError(
            f"model.path={base.path!r} holds an adapter, no whole model: name the base, or merge the adapter into it."
        )
    check_source(base.path, "model.path")
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    arguments = {"dtype": torch_dtype(base.dtype or ("float32" if mode == "full" else "auto"))}
    if base.attn_implementation is not None:
        arguments["attn_implementation"] = base.attn_implementation
    if base.load_in_8bit or base.load_in_4bit:
        arguments["quantization_config"] = _quantization(base, arguments["dtype"])
        # Each process keeps all of the model on its own device.
        device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else "cpu"
        arguments["device_map"] = {"": device}
    network, problems = read_model(base.path, "model.path", **arguments)
    if missing := problems.get("missing_keys"):
        raise ValueError(
            f"model.path={base.path!r} lacks {len(missing)} weights of a {type(network).__name__}: "
            f"{first_few(missing, 3)}. Give a whole model with its head."
        )
    return tokenizer, network


def choose_scheme(tokenizer: PreTrainedTokenizerBase, steps: dict) -> StepScheme:
    """
    The scheme that `steps` describes, or the one that the tokenizer has already.

    Raises:
        ValueError: these are two.
    """
    if tokenizer.init_kwargs.get(SCHEME_KEY) is None:
        return StepScheme(**steps)
    there = read_scheme(tokenizer)
    wanted = StepScheme(**{**there.to_dict(), **steps})
    if wanted != there:
        raise ValueError(
            f"The tokenizer was extended with {there} before, and section steps asks for {wanted}. Leave the section "
            "out, or begin with a model that was not extended."
        )
    return there


def _check_choices(base, new, chosen):
    if new.architecture is None and not base.path:
        raise ValueError(
            "model.path is not given: --model NAME_OR_FOLDER; or --architecture llama for a new small model."
        )
    if new.architecture is not None:
        if base.path:
            raise ValueError(
                f"model.path={base.path!r} and new_model.architecture={new.architecture!r} contradict each other: "
                "leave one of them out."
            )
        if chosen.mode != "full":
            raise ValueError(
                f"adapter.mode={chosen.mode!r} keeps the weights of the base, but a new model's are random: use full."
            )
    bits = "load_in_8bit" if base.load_in_8bit else "load_in_4bit" if base.load_in_4bit else None
    if bits and chosen.mode == "full":
        raise ValueError(
            f"model.{bits} with adapter.mode='full': weights in {bits[8]} bits cannot be trained. Choose the mode "
            "lora, tokens or lora+tokens."
        )
    if bits and new.architecture is not None:
        raise ValueError(f"model.{bits} is for pretrained models, not for a new one.")


def _load_questions(questions) -> DatasetDict:
    if questions.path:
        return load_memory_reason(questions.path, questions.name)
    if questions.name is None:
        raise ValueError(
            "data.path is not given: --data FOLDER; or --data_name alone for a data set of the authors' repository or "
            f"the Hub: {', '.join(NAMES)}."
        )
    return build_memory_reason(questions.name).dataset


def _make_base(new: NewModelArguments, train: Dataset):
    texts = (
        text
        for row in train
        for text in (f"Question: {row['question']}\n", *(f" {step.text}\n" for step in reference_solution(row)))
    )
    tokenizer = train_tokenizer(texts, new.vocab_size)
    return tokenizer, build_new_model(new, tokenizer)


def _quantization(base, dtype):
    if find_spec("bitsandbytes") is None:
        bits = "load_in_8bit" if base.load_in_8bit else "load_in_4bit"
        raise ImportError(f"model.{bits} needs bitsandbytes, which is not installed: pip install bitsandbytes.")
    if dtype == "auto":
        # bitsandbytes itself would compute in float32 then.
        dtype = AutoConfig.from_pretrained(base.path).dtype or torch.float32
    return BitsAndBytesConfig(
        load_in_8bit=base.load_in_8bit,
        load_in_4bit=base.load_in_4bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )


def _origin(base: BaseModelArguments, new: NewModelArguments, chosen: AdapterArguments) -> dict:
    """What decides a run's weights and is not in the config of its model."""
    return {
        "model.path": base.path,
        "model.bits": 8 if base.load_in_8bit else 4 if base.load_in_4bit else None,
        "new_model.architecture": new.architecture,
        "adapter.mode": chosen.mode,
    }
