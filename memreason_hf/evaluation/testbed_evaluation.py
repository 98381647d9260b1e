"""
What the models of the test bed are asked after training: accuracy by hops, tokens, recurrences by kind, their errors.

    answers = evaluate_answers(model, tokenizer, chains)              # models that answer at once
    solutions = evaluate_solutions(model, tokenizer, facts, rows)     # models that write steps
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.data.encoding import encode_chains
from memreason_hf.data.written_world import Facts, WrittenQuestion
from memreason_hf.tokenization import encode_prompt, read_scheme

from .generation import GeneratedSolution, generate_solutions
from .predictions import evaluation_mode, predict_answers
from .world_attribution import attribute_errors, recalled_facts


# A word of a step by its place behind the step's mark.
STEP_WORDS = ("mark", "entity", "name", "relation", "entity reached")
ANSWER_WORDS = ("mark", "marker", "entity", "end")


def evaluate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chains: Dataset, collator, *, batch_size: int = 256
) -> dict:
    """
    Accuracy and recurrences of a model that answers at once, halting as its config says.

    Args:
        chains: test chains, not encoded.
        collator: of its training.

    Returns:
        `hops`: for every hop count `count`, `accuracy`, `tokens` (1, the answer) and `recurrences` (their mean);
        `recurrences_by_kind`: the mean of all answers under `answer`.
    """
    answers = predict_answers(model, encode_chains(chains, tokenizer), collator, batch_size=batch_size)
    right = np.asarray(answers.predictions) == np.asarray(answers.references)
    counts, groups = np.asarray(answers.num_recurrences), np.asarray(answers.groups)
    hops = {
        int(group): {
            "count": int((groups == group).sum()),
            "accuracy": float(right[groups == group].mean()),
            "tokens": 1.0,
            "recurrences": float(counts[groups == group].mean()),
        }
        for group in np.unique(groups)
    }
    return {"hops": hops, "recurrences_by_kind": {"answer": float(counts.mean())}}


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
    What a model that writes steps says, greedily, halting as its config says.

    Args:
        facts: those of the world.
        rows: of `written_questions`.
        batch_size, max_new_tokens, path, settings: see `generate_solutions`.

    Returns:
        `hops`: for every hop count `count`, `accuracy`, `tokens` (generated, the end included), `recurrences` (their
        mean over tokens) and `is_cut` (solutions without an end); `recurrences_by_kind`, `recurrences_by_word` (a mean
        by kind and by word of a step); `steps_by_kind`, a mean a solution; `all_needed_recalled`, the share of
        solutions whose memory steps hold every fact of the chain; `attribution`, see `attribute_errors`.
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
    questions = [WrittenQuestion.parse(row["question"]) for row in rows]
    depths = token_recurrences(model, tokenizer, generations, batch_size=batch_size)
    hops = {}
    for group in sorted({row["hops"] for row in rows}):
        chosen = [index for index, row in enumerate(rows) if row["hops"] == group]
        hops[group] = {
            "count": len(chosen),
            "accuracy": float(np.mean([generations[index].is_correct for index in chosen])),
            "tokens": float(np.mean([generations[index].num_tokens for index in chosen])),
            "recurrences": float(np.mean(np.concatenate([[d for *_, d in depths[index]] for index in chosen]))),
            "is_cut": int(sum(generations[index].is_cut for index in chosen)),
        }
    by_kind, by_word = defaultdict(list), defaultdict(list)
    for text in depths:
        for kind, word, depth in text:
            by_kind[kind].append(depth)
            by_word[f"{kind}: {word}"].append(depth)
    solved = [
        (question, generation.steps, row["steps"], generation.is_correct)
        for question, generation, row in zip(questions, generations, rows)
    ]
    kinds = ("memory", "reason", "answer", "step")
    return {
        "hops": hops,
        "recurrences_by_kind": {kind: float(np.mean(values)) for kind, values in by_kind.items()},
        "recurrences_by_word": {word: float(np.mean(values)) for word, values in by_word.items()},
        "steps_by_kind": {
            kind: float(np.mean([sum(step.kind == kind for step in g.steps) for g in generations])) for kind in kinds
        },
        "all_needed_recalled": float(
            np.mean([_recalls_all(facts, question, g.steps) for question, g in zip(questions, generations)])
        ),
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
    The recurrences behind every generated token, read in one pass over each text: where every token decides for
    itself they are those of its generation.

    Returns:
        For each solution a list of (kind of the step, word of the step, recurrences) in the order of its tokens; the
        kind is that of the step whose mark came last, the mark itself included, and `"none"` before any.
    """
    marks = {id_: kind for kind, id_ in _mark_ids(tokenizer).items()}
    read = [_ids(tokenizer, generation) for generation in generations]
    found: list = [None] * len(read)
    order = sorted(range(len(read)), key=lambda index: len(read[index][1]))
    with evaluation_mode(model):
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            width = max(len(read[row][1]) for row in rows)
            ids = torch.full((len(rows), width), tokenizer.pad_token_id)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, width - len(read[row][1]) :] = torch.tensor(read[row][1])
                mask[place, width - len(read[row][1]) :] = 1
            outputs = model(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                logits_to_keep=1,
                use_cache=False,
            )
            counts = outputs.num_recurrences
            counts = counts[:, None].expand(-1, width) if counts.ndim == 1 else counts
            for place, row in enumerate(rows):
                prompt, whole = read[row]
                # The position before a token is the one whose logits gave it.
                behind = counts[place, width - len(whole) + prompt - 1 : width - 1].tolist()
                found[row] = _label(whole[prompt:], behind, marks)
    return found


def _ids(tokenizer, generation):
    """(tokens of the prompt, all tokens) of a solution, its end included where it has one."""
    scheme = read_scheme(tokenizer)
    prompt = encode_prompt(tokenizer, generation.question)
    solution = generation.text.removeprefix(scheme.question_text(generation.question))
    ids = tokenizer(solution, add_special_tokens=False)["input_ids"]
    return len(prompt), prompt + ids + ([] if generation.is_cut else [tokenizer.eos_token_id])


def _mark_ids(tokenizer):
    scheme = read_scheme(tokenizer)
    return {
        kind: tokenizer.convert_tokens_to_ids(scheme.kind_tokens(kind)[0])
        for kind in ("memory", "reason", "answer", "step")
    }


def _label(ids, depths, marks):
    labelled, kind, place = [], "none", 0
    for id_, depth in zip(ids, depths):
        if id_ in marks:
            kind, place = marks[id_], 0
        words = ANSWER_WORDS if kind == "answer" else STEP_WORDS
        labelled.append((kind, words[place] if place < len(words) else "more", depth))
        place += 1
    return labelled


def _recalls_all(facts, question, steps):
    return {hop.fact for hop in question.hops(facts)} <= recalled_facts(steps)
