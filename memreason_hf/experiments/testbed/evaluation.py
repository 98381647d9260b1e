"""
What the models of the test bed are asked after training: accuracy by hops, tokens, recurrences by kind, their errors.

    answers = evaluate_answers(model, tokenizer, chains)              # models that answer at once
    solutions = evaluate_solutions(model, tokenizer, facts, rows)     # models that write steps
    told = false_memories(model, tokenizer, facts, rows)              # do they reason from what they recalled?
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.data.chains.encoding import encode_chains
from memreason_hf.evaluation.chains.predictions import evaluation_mode, predict_answers
from memreason_hf.evaluation.solutions.generation import GeneratedSolution, generate_solutions
from memreason_hf.experiments.testbed.attribution import attribute_errors, recalled_facts
from memreason_hf.experiments.testbed.variants import wrong_memory
from memreason_hf.experiments.testbed.world import Facts, WrittenQuestion, read_step
from memreason_hf.steps.tokenization import decode_solution, encode_prompt, encode_solution, read_scheme


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
        mean over tokens), `is_cut` (solutions without an end), `recalled` (the share whose memory steps hold every
        fact of the chain) and `attribution`, see `attribute_errors`; `recurrences_by_kind` and `recurrences_by_word`
        (a mean by kind, and by word of a step); `steps_by_kind`, a mean a solution.
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
            "recalled": float(
                np.mean([_recalls_all(facts, questions[index], generations[index].steps) for index in chosen])
            ),
            "attribution": attribute_errors(
                facts,
                [
                    (questions[index], generations[index].steps, rows[index]["steps"], generations[index].is_correct)
                    for index in chosen
                ],
            ),
        }
    by_kind, by_word = defaultdict(list), defaultdict(list)
    for text in depths:
        for kind, word, depth in text:
            by_kind[kind].append(depth)
            by_word[f"{kind}: {word}"].append(depth)
    kinds = ("memory", "reason", "answer", "step")
    return {
        "hops": hops,
        "recurrences_by_kind": {kind: float(np.mean(values)) for kind, values in by_kind.items()},
        "recurrences_by_word": {word: float(np.mean(values)) for word, values in by_word.items()},
        "steps_by_kind": {
            kind: float(np.mean([sum(step.kind == kind for step in g.steps) for g in generations])) for kind in kinds
        },
    }


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
    What a model makes of a false memory: right memory steps, but one needed fact recalled with another tail, are put
    into its mouth, and it goes on from there.

    Returns:
        Counts of what the reason step of that hop says: `"as recalled"`, `"the truth"` (known from elsewhere, the
        weights), `"another fact"` or `"no such step"`; and `carried_on`: of the first, those whose answer is where the
        false fact leads.
    """
    scheme = read_scheme(tokenizer)
    prompts, expected = {}, {}
    for index, row in enumerate(rows):
        question = WrittenQuestion.parse(row["question"])
        generator = np.random.default_rng([seed, index])
        told = wrong_memory(facts, question, row["steps"], generator)
        memory = [step for step in told.steps if step.kind == "memory"]
        prompts[index] = encode_prompt(tokenizer, row["question"]) + encode_solution(tokenizer, memory)
        expected[index] = (question, read_step(told.steps[told.index].text), told.steps[-1])
    found: Counter = Counter(dict.fromkeys(("as recalled", "the truth", "another fact", "no such step"), 0))
    carried_on = 0
    most = 5 * max(row["hops"] for row in rows) + 20
    for index, text in _continue(model, tokenizer, prompts, batch_size, most):
        question, false, answer = expected[index]
        said = [read_step(step.text) for step in scheme.parse(text) if step.kind == "reason"]
        said = next((step for step in said if step is not None and step.name == false.name), None)
        hop = question.hops(facts)[question.names.index(false.name)]
        found[_what(said, false, hop)] += 1
        carried_on += said == false and answer in scheme.parse(text)
    return {**found, "carried_on": carried_on}


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


def _what(said, false, hop):
    if said is None:
        return "no such step"
    return {false: "as recalled", hop: "the truth"}.get(said, "another fact")


def _continue(model, tokenizer, prompts, batch_size, max_new_tokens):
    """(index, text) of greedy texts behind left-padded prompts."""
    order = sorted(prompts, key=lambda index: len(prompts[index]))
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        batch = tokenizer.pad({"input_ids": [prompts[row] for row in rows]}, padding_side="left", return_tensors="pt")
        with evaluation_mode(model):
            made = model.generate(
                **batch.to(model.device),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        for row, ids in zip(rows, made[:, batch["input_ids"].shape[1] :]):
            yield row, decode_solution(tokenizer, ids)


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
