"""
Measures the trained models: accuracy by hops, tokens, recurrences by kind of step, and errors.

    answers = evaluate_answers(model, tokenizer, chains, collator)    # models that answer at once
    solutions = evaluate_solutions(model, tokenizer, facts, rows)     # models that write steps
    counts = false_memories(model, tokenizer, facts, rows)            # do they reason from what they recalled?
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.data.chains.encoding import encode_chains
from memreason_hf.evaluation.chains.halting_statistics import halting_statistics
from memreason_hf.evaluation.chains.predictions import predict_answers
from memreason_hf.evaluation.known_truth.attribution import attribute_errors, recalled_facts
from memreason_hf.evaluation.known_truth.variants import wrong_memory
from memreason_hf.evaluation.known_truth.world import Facts, WrittenQuestion, read_step
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.evaluation.solutions.generation import (
    GeneratedSolution,
    continue_greedily,
    generate_solutions,
    left_padded,
)
from memreason_hf.steps import KINDS
from memreason_hf.steps.tokenization import decode_solution, encode_prompt, encode_solution, read_scheme


# Names of the tokens of a step, from its mark on.
STEP_WORDS = ("mark", "entity", "name", "relation", "entity reached")
ANSWER_WORDS = ("mark", "marker", "entity", "end")


def evaluate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chains: Dataset,
    collator: Callable,
    *,
    batch_size: int = 256,
) -> dict:
    """
    Accuracy and recurrences of a model that answers at once, halting as its config says.

    Args:
        chains: test chains, not encoded.
        collator: the one that the model was trained with.

    Returns:
        `hops` and `recurrences_by_kind` of `ModelResults`.
    """
    encoded = encode_chains(chains, tokenizer)
    statistics = halting_statistics(predict_answers(model, encoded, collator, batch_size=batch_size))
    hops = {
        str(group): {"count": entry.count, "accuracy": entry.accuracy, "tokens": 1.0, "recurrences": entry.mean}
        for group, entry in statistics.by_group.items()
    }
    return {"hops": hops, "recurrences_by_kind": {"answer": statistics.overall.mean}}


def evaluate_solutions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    rows: Sequence[Mapping],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 200,
    path: str | None = None,
    settings: Mapping | None = None,
) -> dict:
    """
    The greedy solutions of a model that writes steps, halting as its config says.

    Args:
        facts: of the world.
        rows: from `written_questions`.
        batch_size, max_new_tokens, path, settings: see `generate_solutions`.

    Returns:
        `hops`, `recurrences_by_kind`, `recurrences_by_word` and `steps_by_kind` of `ModelResults`.
    """
    generations = generate_solutions(
        model,
        tokenizer,
        rows,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        match_option_text=True,
        path=path,
        settings=settings,
    )
    depths = token_recurrences(model, tokenizer, generations, batch_size=batch_size)
    groups = defaultdict(list)
    for row, generation, labelled in zip(rows, generations, depths):
        groups[row["hops"]].append((row, generation, labelled))
    by_kind, by_word = defaultdict(list), defaultdict(list)
    for kind, word, depth in (entry for labelled in depths for entry in labelled):
        by_kind[kind].append(depth)
        by_word[f"{kind}: {word}"].append(depth)
    return {
        "hops": {str(hops): _describe_group(facts, groups[hops]) for hops in sorted(groups)},
        "recurrences_by_kind": {kind: _mean(values) for kind, values in by_kind.items()},
        "recurrences_by_word": {word: _mean(values) for word, values in by_word.items()},
        "steps_by_kind": {
            kind: _mean(sum(step.kind == kind for step in generation.steps) for generation in generations)
            for kind in KINDS
        },
    }


def _describe_group(facts, group):
    """The numbers of the solutions of one hop count: (row, generation, recurrences of its tokens) each."""
    solved = []
    for row, generation, _ in group:
        question = WrittenQuestion.parse(row["question"])
        solved.append((question, generation.steps, row["steps"], generation.is_correct))
    return {
        "count": len(group),
        "accuracy": _mean(generation.is_correct for _, generation, _ in group),
        "tokens": _mean(generation.num_tokens for _, generation, _ in group),
        "recurrences": _mean(depth for *_, labelled in group for *_, depth in labelled),
        "is_cut": sum(generation.is_cut for _, generation, _ in group),
        "recalled": _mean(_recalls_all(facts, question, steps) for question, steps, *_ in solved),
        "attribution": attribute_errors(facts, solved),
    }


def token_recurrences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    generations: Sequence[GeneratedSolution],
    *,
    batch_size: int = 64,
) -> list[list[tuple[str, str, int]]]:
    """
    The recurrences behind every generated token, read in one pass over each text. Where every token decides for
    itself they equal those of the generation.

    Returns:
        For each solution a list of (kind of the step, word of the step, recurrences) in the order of its tokens. The
        kind is that of the last mark so far, the token itself included, and `"none"` before the first mark.
    """
    marks = _kinds_by_mark(tokenizer)
    texts = [_encode_text(tokenizer, generation) for generation in generations]
    labelled: list = [None] * len(texts)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index][1]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        inputs = left_padded([texts[row][1] for row in rows], tokenizer.pad_token_id, model.device)
        with evaluation_mode(model):
            counts = model(**inputs, logits_to_keep=1, use_cache=False).num_recurrences
        width = inputs["input_ids"].shape[1]
        counts = counts[:, None].expand(-1, width) if counts.ndim == 1 else counts
        for row, depths in zip(rows, counts.tolist()):
            num_prompt, ids = texts[row]
            # The logits of a token come from the position before it.
            labelled[row] = _label(ids[num_prompt:], depths[width - len(ids) + num_prompt - 1 : width - 1], marks)
    return labelled


def false_memories(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    rows: Sequence[Mapping],
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> dict:
    """
    What a model does with a false memory. The prompt continues with correct memory steps, except that one needed fact
    has another tail; the model continues from there.

    Returns:
        Counts as in `FalseMemories`.
    """
    scheme = read_scheme(tokenizer)
    prompts, expected = {}, {}
    for index, row in enumerate(rows):
        question = WrittenQuestion.parse(row["question"])
        variant = wrong_memory(facts, question, row["steps"], np.random.default_rng([seed, index]))
        memory = [step for step in variant.steps if step.kind == "memory"]
        prompts[index] = encode_prompt(tokenizer, row["question"]) + encode_solution(tokenizer, memory)
        false = read_step(variant.steps[variant.index].text)
        true = question.hops(facts)[question.names.index(false.name)]
        expected[index] = (false, true, variant.steps[-1])
    outcomes: Counter = Counter(dict.fromkeys(("as recalled", "the truth", "another fact", "no such step"), 0))
    carried_on = 0
    longest = 5 * max(row["hops"] for row in rows) + 20
    for batch in continue_greedily(model, tokenizer, prompts, batch_size=batch_size, max_new_tokens=longest):
        for new in batch:
            false, true, answer = expected[new.index]
            steps = scheme.parse(decode_solution(tokenizer, new.text_ids))
            reasons = [read_step(step.text) for step in steps if step.kind == "reason"]
            said = next((reason for reason in reasons if reason is not None and reason.name == false.name), None)
            outcomes[_outcome(said, false, true)] += 1
            carried_on += said == false and answer in steps
    return {**outcomes, "carried_on": carried_on}


def _outcome(said, false, true):
    if said is None:
        return "no such step"
    return {false: "as recalled", true: "the truth"}.get(said, "another fact")


def _encode_text(tokenizer, generation):
    """(number of tokens of the prompt, all ids) of a generated text, its end included unless the text was cut."""
    scheme = read_scheme(tokenizer)
    prompt = encode_prompt(tokenizer, generation.question)
    solution = generation.text.removeprefix(scheme.question_text(generation.question))
    ids = tokenizer(solution, add_special_tokens=False)["input_ids"]
    return len(prompt), prompt + ids + ([] if generation.is_cut else [tokenizer.eos_token_id])


def _kinds_by_mark(tokenizer):
    scheme = read_scheme(tokenizer)
    return {tokenizer.convert_tokens_to_ids(scheme.kind_tokens(kind)[0]): kind for kind in KINDS}


def _label(ids, depths, marks):
    labelled, kind, place = [], "none", 0
    for token_id, depth in zip(ids, depths):
        if token_id in marks:
            kind, place = marks[token_id], 0
        words = ANSWER_WORDS if kind == "answer" else STEP_WORDS
        labelled.append((kind, words[place] if place < len(words) else "more", depth))
        place += 1
    return labelled


def _recalls_all(facts, question, steps):
    return {hop.fact for hop in question.hops(facts)} <= recalled_facts(steps)


def _mean(values):
    return float(np.mean(list(values)))
