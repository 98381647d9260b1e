"""
Measures the models: right answers by hops, and what follows from a false memory.

    evaluate_steps(model, tokenizer, None, num_questions=600, seed=0)      # worlds that a table gives
    evaluate_steps(model, tokenizer, world, num_questions=600, seed=0)     # the learned world
    evaluate_answers(model, tokenizer, num_questions=600, seed=0)          # models that answer at once
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from memreason_hf.data.chains.tokenizer import entity_token
from memreason_hf.evaluation.known_truth.world import SCHEME
from memreason_hf.evaluation.mode import evaluation_mode
from memreason_hf.evaluation.solutions.generation import left_padded
from memreason_hf.experiments.given_facts.lookup import TableLookup
from memreason_hf.experiments.given_facts.training import LIES, TEST, TEST_HOPS, TRAINED_HOPS
from memreason_hf.experiments.given_facts.world import (
    NUM_ENTITIES,
    GivenQuestion,
    draw_questions,
    draw_world,
    encode,
    facts_prompt,
    steps_prompt,
)
from memreason_hf.steps import answer_step
from memreason_hf.steps.depth import DepthByKind
from memreason_hf.steps.tokenization import decode_solution


BATCH_SIZE = 60


def evaluate_steps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    learned_world: np.ndarray | None,
    *,
    num_questions: int,
    seed: int,
    depths: DepthByKind | None = None,
) -> dict:
    """
    Greedy solutions of a model that writes steps.

    Args:
        learned_world: a world that the model knows. `None`: a table gives each question's own.
        num_questions: shared evenly among 1 to 12 hops.
        seed: of the questions and the lies.
        depths: recurrences by the kind of step. Default: those of the model's config.

    Returns:
        `hops`, `false_memories` and, for fresh worlds, `other_memories` of `StepsMeasures`.
    """
    generator = np.random.default_rng([seed, TEST])
    questions = draw_questions(range(1, TEST_HOPS + 1), num_questions, generator, learned_world)
    tables = [given.world if given.is_fresh else None for given in questions]
    answers = solve(model, tokenizer, questions, tables, depths=depths)
    right = [answer == given.answer for answer, given in zip(answers, questions)]
    generator = np.random.default_rng([seed, LIES])
    lies = [draw_lie(given, generator) for given in questions]
    told = solve(model, tokenizer, questions, tables, lies, depths=depths)
    measures = {
        "hops": _by_hops(questions, right),
        "false_memories": {
            name: count_outcomes(questions, lies, told, range(first, last + 1))
            for name, first, last in (("trained", 1, TRAINED_HOPS), ("longer", TRAINED_HOPS + 1, TEST_HOPS))
        },
    }
    if learned_world is None:
        other = [draw_world(generator) for _ in questions]
        answers = solve(model, tokenizer, questions, other, depths=depths)
        measures["other_memories"] = float(np.mean([a == given.answer for a, given in zip(answers, questions)]))
    return measures


def evaluate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, num_questions: int, seed: int
) -> dict:
    """
    Answers of a model that reads the facts in its prompt and writes no steps.

    Returns:
        `hops` as in `evaluate_steps`.
    """
    generator = np.random.default_rng([seed, TEST])
    questions = draw_questions(range(1, TEST_HOPS + 1), num_questions, generator)
    prompts = [encode(tokenizer, facts_prompt(given, generator)) for given in questions]
    entities = tokenizer.convert_tokens_to_ids([entity_token(entity) for entity in range(NUM_ENTITIES)])
    right = []
    for first in range(0, len(prompts), BATCH_SIZE):
        rows = range(first, min(first + BATCH_SIZE, len(prompts)))
        inputs = left_padded([prompts[row] for row in rows], tokenizer.pad_token_id, model.device)
        with evaluation_mode(model):
            # At the last relation's name. Two tokens for the answer follow.
            logits = model(**inputs, logits_to_keep=3, use_cache=False).logits[:, 0]
        answers = logits[:, entities].argmax(-1).tolist()
        right += [answer == questions[row].answer for row, answer in zip(rows, answers)]
    return {"hops": _by_hops(questions, right)}


def solve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[GivenQuestion],
    tables: Sequence[np.ndarray | None],
    lies: Sequence[tuple[int, int]] | None = None,
    *,
    depths: DepthByKind | None = None,
) -> list[int | None]:
    """
    The entity that each greedy solution answers; `None` where it answers none.

    Args:
        tables, lies: see `TableLookup`.
        depths: recurrences by the kind of step.
    """
    answers: list[int | None] = [None] * len(questions)
    entities = {answer_step(entity_token(entity)).text: entity for entity in range(NUM_ENTITIES)}
    order = sorted(range(len(questions)), key=lambda row: len(questions[row].question.relations))
    extra = {} if depths is None else {"depth_schedule": depths}
    for first in range(0, len(order), BATCH_SIZE):
        rows = order[first : first + BATCH_SIZE]
        inputs = left_padded(
            [encode(tokenizer, steps_prompt(questions[row])) for row in rows], tokenizer.pad_token_id, model.device
        )
        lookup = TableLookup(
            tokenizer, [tables[row] for row in rows], None if lies is None else [lies[row] for row in rows]
        )
        hops = max(len(questions[row].question.relations) for row in rows)
        with evaluation_mode(model):
            output = model.generate(
                **inputs,
                do_sample=False,
                # Nine tokens a hop, and the answer.
                max_new_tokens=9 * hops + 10,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                logits_processor=LogitsProcessorList([lookup]),
                **extra,
            )
        for row, ids in zip(rows, output[:, inputs["input_ids"].shape[1] :].tolist()):
            if tokenizer.eos_token_id in ids:
                text = decode_solution(tokenizer, ids[: ids.index(tokenizer.eos_token_id)])
                said = [step.text for step in SCHEME.parse(text) if step.kind == "answer"]
                answers[row] = entities.get(said[-1]) if said else None
    return answers


def draw_lie(given: GivenQuestion, generator: np.random.Generator) -> tuple[int, int]:
    """A random hop, and an entity that it does not reach."""
    hops = given.hops
    hop = int(generator.integers(len(hops)))
    false = int(generator.integers(NUM_ENTITIES - 1))
    return hop, false + (false >= hops[hop].fact.tail)


def count_outcomes(
    questions: Sequence[GivenQuestion],
    lies: Sequence[tuple[int, int]],
    answers: Sequence[int | None],
    hop_counts: Sequence[int],
) -> dict[str, int]:
    """What solutions answer that contain a false memory, as in `FalseMemories`, for some hop counts."""
    counts = Counter(dict.fromkeys(("follows", "the truth", "another answer"), 0))
    for given, lie, answer in zip(questions, lies, answers):
        if len(given.question.relations) in hop_counts:
            # Relations are permutations, so the two answers always differ.
            outcome = {given.answer_after(*lie): "follows", given.answer: "the truth"}.get(answer, "another answer")
            counts[outcome] += 1
    return dict(counts)


def _by_hops(questions, right):
    groups = defaultdict(list)
    for given, is_right in zip(questions, right):
        groups[len(given.question.relations)].append(is_right)
    return {str(hops): {"count": len(group), "accuracy": float(np.mean(group))} for hops, group in groups.items()}
