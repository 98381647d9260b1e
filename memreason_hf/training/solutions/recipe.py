"""From a recipe to a `FinetuneTrainer`: data, tokenizer, model, scheme and adapter, checked against each other."""

from collections.abc import Callable

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import IntervalStrategy

from memreason_hf.adapters.modes import AdapterArguments, add_adapter
from memreason_hf.adapters.prompts import prompt_length
from memreason_hf.data.questions.encoding import EncodingReport, StepCollator, encode_solutions
from memreason_hf.data.questions.memory_reason import reference_solution
from memreason_hf.data.questions.prompt_arguments import PromptArguments
from memreason_hf.data.questions.prompts import Demonstrated, Prompter, read_prompt_format, record_prompt_format
from memreason_hf.evaluation.solutions.generation import check_prompts, context_length
from memreason_hf.models.new_models import NewModelArguments, build_new_model, train_tokenizer
from memreason_hf.steps import StepScheme
from memreason_hf.steps.attention import get_step_attention, restore_step_attention, set_step_attention
from memreason_hf.steps.tokenization import SCHEME_KEY, extend_tokenizer, read_scheme
from memreason_hf.training.solutions.arguments import FinetuneArguments
from memreason_hf.training.solutions.base_models import BaseModelArguments, open_base
from memreason_hf.training.solutions.questions import QuestionArguments, open_questions
from memreason_hf.training.solutions.trainer import FinetuneTrainer


def prepare_finetuning(
    args: FinetuneArguments,
    *,
    data: dict,
    model: dict | None = None,
    new_model: dict | None = None,
    steps: dict | None = None,
    adapter: dict | None = None,
    prompt: dict | None = None,
) -> tuple[FinetuneTrainer, EncodingReport]:
    """
    Makes the trainer of a recipe.

    Args:
        args ([`FinetuneArguments`]): Section `training`.
        data (`dict`): Section `data`, fields of `QuestionArguments`.
        model (`dict`, *optional*): Section `model`, fields of `BaseModelArguments`.
        new_model (`dict`, *optional*):
            Section `new_model`, fields of `NewModelArguments`. If it names an architecture, there is no `model.path`.
        steps (`dict`, *optional*):
            Section `steps`, fields of `StepScheme`. For a tokenizer that was extended before, only the same values.
        adapter (`dict`, *optional*): Section `adapter`, fields of `AdapterArguments`.
        prompt (`dict`, *optional*):
            Section `prompt`, fields of `PromptArguments`. The prompt is saved with the tokenizer.

    Returns:
        The trainer, and a report on the training items.

    Raises:
        ValueError, OSError, ImportError: a part that is missing or impossible, or parts that do not match.
    """
    questions, base = QuestionArguments(**data), BaseModelArguments(**(model or {}))
    new, chosen = NewModelArguments(**(new_model or {})), AdapterArguments(**(adapter or {}))
    prompts = PromptArguments(**(prompt or {}))
    _check_choices(base, new, chosen)
    with args.main_process_first(desc="opening the dataset"):
        train, test = open_questions(questions)
    set_seed(args.seed)
    if new.architecture is None:
        tokenizer, network = open_base(base, chosen.mode)
    else:
        tokenizer, network = _make_base(new, train)
    extend_tokenizer(tokenizer, choose_scheme(tokenizer, steps or {}), network)
    demonstrations = choose_prompts(tokenizer, prompts, questions, train, args.seed)
    _end_at_turns(network, tokenizer, Prompter(tokenizer, demonstrations=demonstrations).end_id)
    _set_attention(network, tokenizer, base.step_attention, read_prompt_format(tokenizer).num_demonstrations)
    limits = (questions.max_length, _room(network, tokenizer, chosen), args.packing_length)
    max_length = min(filter(None, limits), default=None)
    rows, report = encode_solutions(
        tokenizer, train, max_length=max_length, too_long=questions.too_long, demonstrations=demonstrations
    )
    if args.eval_strategy != IntervalStrategy.NO:
        # Before training, not after an epoch of it.
        _check_test_prompts(network, tokenizer, test.select(range(min(args.num_test, len(test)))), demonstrations)
    if base.visible_marks is not None:
        extend_tokenizer(tokenizer, read_scheme(tokenizer), visible_marks=base.visible_marks)
    # The random numbers of the adapter and of dropout must not depend on how the base was made.
    set_seed(args.seed)
    trainer = FinetuneTrainer(
        model=add_adapter(network, tokenizer, chosen),
        args=args,
        train_dataset=rows,
        eval_dataset=test,
        data_collator=StepCollator(tokenizer),
        processing_class=tokenizer,
        demonstrations=demonstrations,
        answer_rule=questions.answer_rule,
        origin=_origin(base, new, chosen),
    )
    trainer.data_record = _data_record(questions, rows)
    return trainer, report


def _room(network, tokenizer, chosen) -> int | None:
    """The tokens of the model's context that virtual prompt tokens leave; `None` without a limit."""
    context = context_length(network)
    if context is None or chosen.mode != "prompt":
        return context
    count = prompt_length(tokenizer, chosen.num_virtual_tokens, chosen.prompt_init_text)
    if count >= context:
        raise ValueError(
            f"adapter.num_virtual_tokens={count} must be below the model's context of {context} tokens. Use fewer."
        )
    return context - count


def choose_scheme(tokenizer: PreTrainedTokenizerBase, steps: dict) -> StepScheme:
    """
    The scheme that section `steps` describes, or the scheme of a tokenizer that was extended before.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The tokenizer of the model.
        steps (`dict`): Section `steps`, fields of `StepScheme`.

    Raises:
        ValueError: the two schemes differ.
    """
    if tokenizer.init_kwargs.get(SCHEME_KEY) is None:
        return StepScheme(**steps)
    existing = read_scheme(tokenizer)
    wanted = StepScheme(**{**existing.to_dict(), **steps})
    if wanted != existing:
        raise ValueError(
            f"The tokenizer was extended with {existing} before, but section steps describes {wanted}. Leave the "
            "section out, or start from a model that was not extended."
        )
    return existing


def choose_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptArguments,
    questions: QuestionArguments,
    train: Dataset,
    seed: int,
) -> Callable[[str], Demonstrated] | None:
    """
    Records the prompt of a recipe in the tokenizer, with which it is saved.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The extended tokenizer. What the recipe does not say stays as it was recorded before.
        prompts (`PromptArguments`): Section `prompt`.
        questions (`QuestionArguments`): Section `data`.
        train (`Dataset`): The training items, which demonstrations are taken from.
        seed (`int`): Decides which demonstrations a question gets.

    Returns:
        What gives the demonstrations of a question; `None` without demonstrations.

    Raises:
        ValueError, OSError, ImportError: the prompt is impossible, or swallows a part of what it should hold.
    """
    # With a file of demonstrations, no number means all of them.
    count = questions.num_demonstrations or (None if prompts.demonstrations_file is not None else 0)
    choice = {"demonstrations_seed": seed, "num_pool_items": questions.num_train_items}
    format = prompts.changed(read_prompt_format(tokenizer), num_demonstrations=count, **choice)
    demonstrations = prompts.choose(format, train)
    record_prompt_format(tokenizer, format)
    # Checks the chat template.
    Prompter(tokenizer, demonstrations=demonstrations)
    return demonstrations


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
                f"adapter.mode={chosen.mode!r} keeps the weights of the base, but those of a new model are random. "
                "Use full."
            )
    if base.bits is not None and chosen.mode == "full":
        raise ValueError(
            f"model.load_in_{base.bits}bit with adapter.mode='full': weights in {base.bits} bits cannot be trained. "
            "Use the mode lora, tokens, lora+tokens or prompt."
        )
    if base.bits is not None and new.architecture is not None:
        raise ValueError(f"model.load_in_{base.bits}bit is for pretrained models, not for a new one.")


def _make_base(new: NewModelArguments, train: Dataset) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A new model, and a tokenizer trained on the training texts."""
    texts = (
        text
        for row in train
        for text in (f"Question: {row['question']}\n", *(f" {step.text}\n" for step in reference_solution(row)))
    )
    tokenizer = train_tokenizer(texts, new.vocab_size)
    return tokenizer, build_new_model(new, tokenizer)


def _set_attention(network, tokenizer, step_attention, num_demonstrations):
    if step_attention is None:
        restore_step_attention(network)
    else:
        set_step_attention(network, tokenizer, None if step_attention == "none" else step_attention)
    if num_demonstrations and get_step_attention(network) is not None:
        raise ValueError(
            f"data.num_demonstrations={num_demonstrations} does not work with model.step_attention="
            f"{get_step_attention(network)!r}: the question would count as part of the last demonstration. Leave one "
            "of them out."
        )


def _end_at_turns(network, tokenizer, end_id):
    """Lets the model's own `generate` stop where solutions end, if that is the end of a turn of a chat."""
    config = getattr(network, "generation_config", None)
    if config is None or end_id in (None, tokenizer.eos_token_id):
        return
    ends = config.eos_token_id
    ends = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]
    config.eos_token_id = list(dict.fromkeys([*ends, end_id]))


def _check_test_prompts(network, tokenizer, test, demonstrations):
    prompter = Prompter(tokenizer, demonstrations=demonstrations)
    check_prompts(network, {index: prompter.prompt_ids(text) for index, text in enumerate(test["question"])})


def _data_record(questions, rows) -> dict:
    """What the card of the model says about the data."""
    record = {"kind": "questions", "name": questions.name, "folder": questions.path, "rows": {"training": len(rows)}}
    return {name: value for name, value in record.items() if value is not None}


def _origin(base: BaseModelArguments, new: NewModelArguments, chosen: AdapterArguments) -> dict:
    """What decides the weights of a run in addition to the arguments, the data and the model's config."""
    return {
        "model.path": base.path,
        "model.bits": base.bits,
        "new_model.architecture": new.architecture,
        "adapter.mode": chosen.mode,
    }
