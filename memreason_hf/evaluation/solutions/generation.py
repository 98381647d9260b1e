"""
Generated solutions: greedy or drawn, in left-padded batches, written as JSON lines so that an interrupted run can
continue.

    rows = load_memory_reason("data/strategy_qa")["test"]
    generations = generate_solutions(model, tokenizer, rows, batch_size=16, path="runs/generations.jsonl")
    sum(generation.is_correct for generation in generations) / len(generations)
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from memreason_hf.adapters.prompts import virtual_tokens_of
from memreason_hf.checks import (
    check_callable,
    check_choice,
    check_has,
    check_int,
    check_path,
    check_row,
    check_sequence,
    check_type,
)
from memreason_hf.data.questions.encoding import choose_prompter
from memreason_hf.data.questions.prompts import Prompter
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.evaluation.solutions.answer_judges import AnswerJudge, ask_judge
from memreason_hf.evaluation.solutions.answers import ANSWER_RULES, Verdict, check_answers, judge_row
from memreason_hf.evaluation.solutions.generation_files import FIELDS, OPTIONAL_FIELDS, GenerationFile
from memreason_hf.evaluation.solutions.generation_sampling import AnswerStop, Sampling, end_of_answer
from memreason_hf.locks import locked
from memreason_hf.steps import Step
from memreason_hf.steps.attention import get_step_attention
from memreason_hf.steps.depth import StepKinds, recurrences_by_kind
from memreason_hf.steps.tokenization import SCHEME_KEY, decode_solution, padding_id, read_scheme


CORRECT, WRONG = "correct", "wrong"
# Far beyond any context, and still an end.
_MOST_NEW_TOKENS = 2**20
# Positions of these kinds have no end, so `max_position_embeddings` of the config does not matter.
_ENDLESS_POSITIONS = ("none", "sinusoidal")


@dataclass(frozen=True)
class GeneratedSolution:
    """
    One generated solution and its verdict: a line of a generations file.

    Attributes:
        index: index of the item in its split.
        question: the question of the item.
        text: `Question: …`, a newline and the solution with the tokens of its steps.
        steps: the steps of the solution.
        verdict: `"correct"` or `"wrong"`.
        answer: what the text answers; None if it gives no valid answer.
        reference: the right answer.
        is_truncated: whether the text ends inside the tokens of a step.
        is_cut: whether the text was cut off by `max_new_tokens` or by the end of the model's context.
        num_tokens: generated tokens, the end of the text included.
        recurrences: `{kind: [tokens, recurrences]}`, see `recurrences_by_kind`; None unless the model has recurrent
            depth and the scheme has tokens for kinds.
        sample: the number of the solution, from 0, where an item has several.
        answer_judge: the `name` of the judge of free-text answers and its `verdict` (`"right"`, `"wrong"` or
            `"undecided"`); None where the answer rule alone decided.
    """

    index: int
    question: str
    text: str
    steps: list[Step]
    verdict: str
    answer: str | None
    reference: str
    is_truncated: bool
    is_cut: bool
    num_tokens: int
    recurrences: dict[str, list[int]] | None = None
    sample: int | None = None
    answer_judge: dict[str, str] | None = None

    @property
    def is_correct(self) -> bool:
        return self.verdict == CORRECT


@dataclass(frozen=True)
class Continuation:
    """
    What a model wrote after one prompt.

    Attributes:
        index: the key of the prompt: the index of the item, or this and the number of the sample.
        ids: ids of the new tokens, the end of the text included.
        is_cut: whether the text was cut off by `max_new_tokens` or by the end of the model's context.
        recurrences: as in `GeneratedSolution`.
        has_end: whether a text that was not cut off ends with an id of its own, and not after its answer.
    """

    index: Hashable
    ids: list[int]
    is_cut: bool
    recurrences: dict[str, list[int]] | None = None
    has_end: bool = True

    @property
    def text_ids(self) -> list[int]:
        """The ids of the new tokens without the end of the text."""
        return self.ids if self.is_cut or not self.has_end else self.ids[:-1]


def generate_solutions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 512,
    demonstrations: Callable[[str], Sequence[tuple[str, Sequence]]] | None = None,
    prompter: Prompter | None = None,
    sampling: Sampling | None = None,
    stop_at_answer: bool = False,
    match_option_text: bool = False,
    answer_rule: str = "published",
    answer_judge: AnswerJudge | None = None,
    path: str | None = None,
    settings: Mapping | None = None,
    overwrite: bool = False,
    progress: bool = False,
    **generate_kwargs,
) -> list[GeneratedSolution]:
    """
    Generates a solution for every row, greedily or drawn at random, and judges its answer.

    Args:
        model: any causal language model; its training mode is restored afterwards.
        tokenizer: its tokenizer, extended unless the style of the prompts does without a scheme.
        rows: rows with `question`, `options` and `answer`, as from `load_questions`.
        batch_size, max_new_tokens: see `continue_prompts`.
        demonstrations: solved questions to put before a question, for example `Demonstrations(train, 4)`.
        prompter: makes the prompts. Default: one of the format that was recorded in the tokenizer, with
            `demonstrations`.
        sampling: draw this number of solutions for each row. Default: one greedy solution.
        stop_at_answer: whether a text ends after its first line with an answer, for models that were not trained on
            solutions and go on with questions of their own.
        match_option_text: see `extract_answer`.
        answer_rule: the `rule` of `extract_answer`.
        answer_judge: decides about free-text answers in other words, after all solutions are generated.
        path: a file of JSON lines to which every batch is added. Solutions that it already holds are not generated
            again.
        settings: what the texts depend on apart from the rows. A file with other settings is refused.
        overwrite: whether to generate everything again. The file is replaced when the first batch is done.
        progress: whether to show a progress bar.
        generate_kwargs: for `model.generate`, for example `num_recurrences=16`.

    Returns:
        The solutions, in the order of the rows; those of a row, if there are several, in the order of their samples.

    Raises:
        InUseError: another process is adding to the file.
        ValueError: there are no rows, the tokenizer has no scheme or is larger than the model, a prompt leaves no room
            in the model's context, the file has other contents, or demonstrations are combined with step attention.

    Example:

    ```python
    rows = load_memory_reason("data/strategy_qa")["test"]
    solutions = generate_solutions(model, tokenizer, rows, batch_size=16, path="runs/generations.jsonl")
    accuracy = sum(solution.is_correct for solution in solutions) / len(solutions)
    ```
    """
    check_sequence("rows", rows, "a list of rows")
    rows = list(rows)
    for index, row in enumerate(rows):
        check_row(f"rows[{index}]", row, ("question", "answer", "options"))
        check_type(f"rows[{index}]['question']", row["question"], str, "a text")
    if demonstrations is not None:
        check_callable("demonstrations", demonstrations, "a function such as Demonstrations(train, 4)")
    if path is not None:
        check_path("path", path)
    if sampling is not None:
        check_type("sampling", sampling, Sampling, "a Sampling or None")
        sampling.check_arguments(generate_kwargs)
    if not rows:
        raise ValueError("There are no rows to generate solutions for. Check the split and the filters.")
    check_choice("answer_rule", answer_rule, ANSWER_RULES)
    check_answers(rows)
    # Checked before a file is touched.
    _check(model, tokenizer, batch_size, max_new_tokens)
    prompter = choose_prompter(tokenizer, prompter, demonstrations)
    if prompter.shows_demonstrations and get_step_attention(model) is not None:
        raise ValueError(
            f"demonstrations cannot be combined with step attention {get_step_attention(model)!r}: the question would "
            "count as part of the last demonstration. Leave them out, or call set_step_attention(model, tokenizer, "
            "None)."
        )
    solve = partial(
        continue_prompts,
        model,
        tokenizer,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        end_id=prompter.end_id,
    )
    if stop_at_answer:
        solve = partial(solve, stops=_Stops(prompter))
    rule = {"match_option_text": match_option_text, "rule": answer_rule}
    judges = (
        partial(_judged, prompter, stop_at_answer=stop_at_answer, **rule),
        partial(_judged_again, prompter, **rule),
    )
    # Two processes would generate the same solutions, and write each line twice.
    with nullcontext() if path is None else locked(path):
        file = None
        if path is not None:
            file = GenerationFile(path, [row["question"] for row in rows], settings, overwrite=overwrite)
        solve = partial(solve, **generate_kwargs)
        return _solve_missing(rows, sampling, file, prompter, solve, judges, answer_judge, progress)


def _solve_missing(rows, sampling, file, prompter, solve, judges, answer_judge, progress):
    """Solves the rows that a file does not hold yet, and adds them to it batch by batch."""
    samples = [None] if sampling is None else range(sampling.num_samples)
    keys = [(index, sample) for index in range(len(rows)) for sample in samples]
    judge, judge_again = judges
    known, in_file = {}, {}
    if file is not None:
        in_file = {_key_of(generation): generation for generation in map(_from_line, file.read())}
        # The answers of the data may have been corrected since.
        known = {key: judge_again(rows[generation.index], generation) for key, generation in in_file.items()}
        if answer_judge is None:
            _add_changed(file, in_file, known)
    missing = [key for key in keys if key not in known]
    prompts = {index: prompter.prompt_ids(rows[index]["question"]) for index in dict(missing)}
    with tqdm(
        total=len(keys), initial=len(keys) - len(missing), desc="solutions", unit="text", disable=not progress
    ) as bar:
        for batch in solve({key: prompts[key[0]] for key in missing}):
            solved = [judge(rows[new.index[0]], new) for new in batch]
            known.update((_key_of(generation), generation) for generation in solved)
            if file is not None:
                file.add(_to_line(generation) for generation in solved)
                in_file.update((_key_of(generation), generation) for generation in solved)
            bar.update(len(solved))
    if answer_judge is not None:
        known = dict(zip(known, _ask_judge(rows, list(known.values()), answer_judge)))
        if file is not None:
            _add_changed(file, in_file, known)
    return [known[key] for key in keys]


def _add_changed(file, in_file, known):
    """Adds the solutions with another verdict than in the file. The last line of a solution counts."""
    if changed := [generation for key, generation in known.items() if in_file.get(key) != generation]:
        file.add(map(_to_line, changed))


def _ask_judge(rows, generations, answer_judge):
    """Solutions with the verdicts of a judge of answers."""
    ruled = [Verdict(one.answer, one.reference, one.is_correct) for one in generations]
    decided = ask_judge(ruled, [rows[one.index] for one in generations], answer_judge)
    return [
        one
        if verdict.said_by_judge is None
        else replace(
            one,
            verdict=CORRECT if verdict.is_correct else WRONG,
            answer_judge={"name": answer_judge.name, "verdict": verdict.said_by_judge},
        )
        for one, verdict in zip(generations, decided)
    ]


def _key_of(generation):
    return generation.index, generation.sample


def continue_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[int, Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    **generate_kwargs,
) -> Iterator[list[Continuation]]:
    """`continue_prompts` by plain greedy search."""
    return continue_prompts(
        model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens, **generate_kwargs
    )


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[Hashable, Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stops: Callable | None = None,
    end_id: int | None = None,
    **generate_kwargs,
) -> Iterator[list[Continuation]]:
    """
    Continues prompts, whatever the model's own generation config says.

    Args:
        model: any causal language model; its training mode is restored after every batch.
        tokenizer: the tokenizer of the model.
        prompts: the ids of each prompt, by the index of its item, or by this and the number of the sample.
        batch_size: prompts in a batch, left-padded and sorted by length. It does not change the continuations, except
            through rounding where two tokens are equally probable.
        max_new_tokens: the maximum number of new tokens of a prompt. The end of the model's context can come first.
        sampling: draw the tokens. Default: plain greedy search.
        stops: a function that makes an `AnswerStop` for the keys and prompts of a batch.
        end_id: an id that ends a text besides those of the tokenizer and the model.
        generate_kwargs: for `model.generate`, for example `num_recurrences=16`.

    Yields:
        The continuations of one batch, the longest prompts first.

    Raises:
        ValueError: a number is below 1, the tokenizer is larger than the model or has no token to pad with, or a
            prompt leaves no room in the model's context.
    """
    _check(model, tokenizer, batch_size, max_new_tokens)
    check_prompts(model, prompts)
    pad, ends = padding_id(tokenizer), _end_ids(model, tokenizer, end_id)
    arguments = {
        "do_sample": False,
        "num_beams": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "repetition_penalty": 1.0,
        "pad_token_id": pad,
        "eos_token_id": ends or None,
        **generate_kwargs,
    }
    kinds = None
    if hasattr(getattr(model, "config", None), "num_recurrences") and _has_kind_tokens(tokenizer):
        kinds = StepKinds(tokenizer)
        arguments["return_dict_in_generate"] = True
    for keys, limit in _batches(prompts, batch_size, max_new_tokens, context_length(model)):
        inputs = left_padded([prompts[key] for key in keys], pad, model.device)
        stop = None if stops is None else stops(keys, inputs["input_ids"].shape[1])
        with evaluation_mode(model):
            outputs = model.generate(**inputs, max_new_tokens=limit, **_with_batch(arguments, keys, sampling, stop))
        sequences = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
        new = [_until_end(ids, ends) for ids in sequences[:, inputs["input_ids"].shape[1] :].tolist()]
        stopped = [None] * len(new) if stop is None else stop.lengths
        new = [ids if length is None else ids[:length] for ids, length in zip(new, stopped)]
        recurrences = [None] * len(new)
        if kinds is not None:
            lengths = [len(ids) for ids in new]
            recurrences = recurrences_by_kind(kinds, sequences, outputs.num_recurrences, lengths)
        has_end = [bool(ids) and ids[-1] in ends for ids in new]
        is_cut = [not end and length is None for end, length in zip(has_end, stopped)]
        yield [Continuation(*of_row) for of_row in zip(keys, new, is_cut, recurrences, has_end)]


def _with_batch(arguments, keys, sampling, stop):
    """The arguments of `generate` for one batch: what draws its tokens, and what stops its rows."""
    added = {}
    if sampling is not None:
        drawing = sampling.processors(keys)
        added["logits_processor"] = LogitsProcessorList([*arguments.get("logits_processor", ()), *drawing])
    if stop is not None:
        added["stopping_criteria"] = StoppingCriteriaList([*arguments.get("stopping_criteria", ()), stop])
    return {**arguments, **added}


class _Stops:
    """Makes what stops the rows of a batch after their answers."""

    def __init__(self, prompter: Prompter):
        self.prompter = prompter

    def __call__(self, keys, prompt_width):
        start = self.prompter.start_text(self.prompter.shows_demonstrations)
        decode = partial(_decode, self.prompter.tokenizer)
        return AnswerStop(decode, [start] * len(keys), prompt_width, self.prompter.stop_texts)


def left_padded(
    rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device | str
) -> dict[str, torch.LongTensor]:
    """Rows of ids as `input_ids` and `attention_mask`, both `(batch, longest row)`, padded on the left."""
    width = max(map(len, rows))
    ids = [[pad_token_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def context_length(model: PreTrainedModel) -> int | None:
    """
    The model's maximum number of positions, for prompt and solution together; None if there is no limit. Virtual
    prompt tokens of an adapter take some of them.
    """
    config = model.config.get_text_config()
    if getattr(config, "position_embedding_type", None) in _ENDLESS_POSITIONS:
        return None
    positions = getattr(config, "max_position_embeddings", None)
    return None if positions is None else positions - virtual_tokens_of(model)


def check_prompts(model: PreTrainedModel, prompts: Mapping[Hashable, Sequence[int]]) -> None:
    """
    Checks that every prompt leaves room for at least one new token in the model's context.

    Args:
        prompts: the ids of each prompt, by the index of its item, or by this and the number of the sample.

    Raises:
        ValueError: a prompt leaves no room; the message names the first one.
    """
    context = context_length(model)
    too_long = [index for index, ids in prompts.items() if context is not None and len(ids) >= context]
    if too_long:
        item = too_long[0][0] if isinstance(too_long[0], tuple) else too_long[0]
        raise ValueError(
            f"{len(too_long)} of {len(prompts)} prompts have no room for a solution in the model's context of "
            f"{context} tokens; the first is that of item {item}, with {len(prompts[too_long[0]])} tokens. "
            "Leave out demonstrations, or these items."
        )


def check_max_new_tokens(value: int) -> None:
    """
    Checks a maximum number of new tokens.

    Raises:
        TypeError, ValueError: it is no whole number, below 1, or beyond any context.
    """
    check_int("max_new_tokens", value, 1, _MOST_NEW_TOKENS, "tokens are generated one after the other")


def _check(model, tokenizer, batch_size, max_new_tokens):
    check_int("batch_size", batch_size, least=1)
    check_max_new_tokens(max_new_tokens)
    check_has("model", model, "get_input_embeddings", "a causal language model")
    check_has("tokenizer", tokenizer, "get_vocab", "a tokenizer")
    num_rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values())
    if largest >= num_rows:
        raise ValueError(
            f"The tokenizer has ids up to {largest}, but the model has only {num_rows} embedding rows. Use the "
            "tokenizer that is saved with the model, or extend both (extend_tokenizer)."
        )
    padding_id(tokenizer)


def _batches(prompts, batch_size, max_new_tokens, context):
    """(indices, new tokens) of each batch. A prompt with less room in the context comes alone, to cut no other one."""
    order = sorted(prompts, key=lambda index: -len(prompts[index]))
    room = {index: max_new_tokens if context is None else context - len(prompts[index]) for index in order}
    for index in order:
        if room[index] < max_new_tokens:
            yield [index], room[index]
    order = [index for index in order if room[index] >= max_new_tokens]
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size], max_new_tokens


def _end_ids(model, tokenizer, end_id=None):
    """The ids that end a text: of the tokenizer, of the model's generation config, and of a turn of a chat."""
    ends = getattr(model.generation_config, "eos_token_id", None) if model.generation_config is not None else None
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    own = [token_id for token_id in (tokenizer.eos_token_id, end_id) if token_id is not None]
    return list(dict.fromkeys([*own, *ends]))


def _until_end(ids, ends):
    end = next((position for position, token_id in enumerate(ids) if token_id in ends), len(ids) - 1)
    return ids[: end + 1]


def _has_kind_tokens(tokenizer):
    is_extended = tokenizer.init_kwargs.get(SCHEME_KEY) is not None
    return is_extended and read_scheme(tokenizer).has_kind_tokens


def _decode(tokenizer, ids):
    """The text of generated ids, with the tokens of steps where the tokenizer has some."""
    if tokenizer.init_kwargs.get(SCHEME_KEY) is not None:
        return decode_solution(tokenizer, ids)
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _judged(prompter: Prompter, row, new: Continuation, *, stop_at_answer, **rule):
    # What ends the prompt belongs to the solution.
    has_demonstrations = prompter.shows_demonstrations
    if prompter.format.style == "steps":
        solution = _decode(prompter.tokenizer, prompter.start_ids(has_demonstrations) + new.text_ids)
    else:
        solution = prompter.start_text(has_demonstrations) + _decode(prompter.tokenizer, new.text_ids)
    if stop_at_answer:
        solution = solution[: end_of_answer(solution, prompter.stop_texts)]
    steps = prompter.scheme.parse(solution)
    verdict = judge_row(solution, row, **rule)
    index, sample = new.index
    return GeneratedSolution(
        index=index,
        question=row["question"],
        text=prompter.scheme.question_text(row["question"]) + solution,
        steps=list(steps),
        verdict=CORRECT if verdict.is_correct else WRONG,
        answer=verdict.answer,
        reference=row["answer"],
        is_truncated=steps.truncated,
        is_cut=new.is_cut,
        num_tokens=len(new.ids),
        recurrences=new.recurrences,
        sample=sample,
    )


def _judged_again(prompter: Prompter, row, generation: GeneratedSolution, **rule) -> GeneratedSolution:
    """A solution of a file, judged by the answers that its row has now."""
    solution = generation.text[len(prompter.scheme.question_text(row["question"])) :]
    verdict = judge_row(solution, row, **rule)
    return replace(
        generation,
        verdict=CORRECT if verdict.is_correct else WRONG,
        answer=verdict.answer,
        reference=row["answer"],
        answer_judge=None,
    )


def _to_line(generation):
    steps = [{"kind": step.kind, "text": step.text} for step in generation.steps]
    values = {name: getattr(generation, name) for name in (*FIELDS, *OPTIONAL_FIELDS)}
    return {name: value for name, value in values.items() if name in FIELDS or value is not None} | {"steps": steps}


def _from_line(line):
    return GeneratedSolution(**{**line, "steps": [Step(**step) for step in line["steps"]]})
