"""What is measured of untrained models, against what they did."""

import types

import numpy as np
import pytest
import torch

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.multi_hop import MultiHopConfig, build_multi_hop
from memreason_hf.data.chains.world import build_world, world_facts
from memreason_hf.evaluation.known_truth.world import (
    SCHEME,
    Fact,
    NamedFact,
    WrittenQuestion,
    build_written_tokenizer,
    read_step,
    step_text,
)
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.experiments.testbed import evaluation
from memreason_hf.experiments.testbed.evaluation import (
    evaluate_answers,
    evaluate_solutions,
    false_memories,
    token_recurrences,
)
from memreason_hf.experiments.testbed.rows import WrittenRows, written_questions
from memreason_hf.steps import KINDS, Step, answer_step
from memreason_hf.steps.tokenization import decode_solution, encode_prompt, encode_solution
from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM


CONFIG = MultiHopConfig(
    num_entities=7, num_relations=3, train_hops="2-3", test_hops="2-4", num_train_chains=9, num_test_chains=4
)


@pytest.fixture(scope="module")
def world():
    facts = world_facts(build_world(CONFIG))
    chains = build_multi_hop(CONFIG).dataset["test"].select(range(12))
    return facts, chains, build_written_tokenizer(7, 3, 16), written_questions(facts, chains, WrittenRows(seed=1))


def make_model(tokenizer, **fields):
    torch.manual_seed(3)
    config = RecurrentDepthConfig.gpt2_style(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_attention_heads=4,
        num_recurrent_layers=1,
        num_coda_layers=1,
        position_embedding_type="rope",
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        **{
            "input_injection": "add",
            "state_norm": "layernorm",
            "halting_criterion": "state_difference",
            "state_difference_threshold": 0.7,
            "max_recurrences": 12,
            **fields,
        },
    )
    return RecurrentDepthForCausalLM(config).eval()


def test_recurrences_read_afterwards_are_those_of_the_generation(world):
    _, _, tokenizer, rows = world
    model = make_model(tokenizer)
    found = token_recurrences(
        model, tokenizer, generate_solutions(model, tokenizer, rows, max_new_tokens=24, match_option_text=True)
    )
    seen = set()
    for row, text in zip(rows, found):
        ids = torch.tensor([encode_prompt(tokenizer, row["question"])])
        made = model.generate(
            ids,
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            return_dict_in_generate=True,
        )
        depths = [depth for _, _, depth in text]
        assert depths == made.num_recurrences[0].tolist()
        seen |= set(depths)
        new = tokenizer.convert_ids_to_tokens(made.sequences[0, ids.shape[1] :].tolist())
        kinds, kind = [], "none"
        for token in new:
            kind = token[1:-1] if token in ("<memory>", "<reason>", "<answer>", "<step>") else kind
            kinds.append(kind)
        assert [kind for kind, _, _ in text] == kinds
    assert len(seen) >= 4


def test_all_tokens_of_a_text_take_the_recurrences_of_its_row(world):
    _, _, tokenizer, rows = world
    fields = {"halting_granularity": "sequence", "state_difference_threshold": 0.3}
    model = make_model(tokenizer, **fields)
    texts = generate_solutions(model, tokenizer, rows, max_new_tokens=12, match_option_text=True)
    seen = set()
    for text, labelled in zip(texts, token_recurrences(model, tokenizer, texts, batch_size=5)):
        solution = text.text.removeprefix(f"Question: {text.question}\n")
        ids = encode_prompt(tokenizer, text.question) + tokenizer(solution, add_special_tokens=False)["input_ids"]
        ids += [] if text.is_cut else [tokenizer.eos_token_id]
        with torch.no_grad():
            count = int(model(torch.tensor([ids])).num_recurrences[0])
        assert [depth for *_, depth in labelled] == [count] * text.num_tokens
        seen.add(count)
    assert len(seen) > 1


def test_what_is_measured_of_solutions(world, tmp_path):
    facts, _, tokenizer, rows = world
    model = make_model(tokenizer)
    path = tmp_path / "solutions.jsonl"
    found = evaluate_solutions(model, tokenizer, facts, rows, max_new_tokens=24, path=str(path), batch_size=5)
    assert {hops: group["count"] for hops, group in found["hops"].items()} == {
        str(hops): sum(row["hops"] == hops for row in rows) for hops in {row["hops"] for row in rows}
    }
    generations = generate_solutions(model, tokenizer, rows, max_new_tokens=24, match_option_text=True)
    for hops, group in found["hops"].items():
        chosen = [g for g, row in zip(generations, rows) if row["hops"] == int(hops)]
        assert group["accuracy"] == np.mean([g.is_correct for g in chosen])
        assert group["tokens"] == np.mean([g.num_tokens for g in chosen])
        judged = group["attribution"]
        assert sum(judged["right_answers"].values()) + sum(judged["wrong_answers"].values()) == len(chosen)
        assert group["recalled"] == 0.0
    assert len(path.read_text().splitlines()) == len(rows)
    told = false_memories(model, tokenizer, facts, rows, batch_size=5)
    assert sum(told.values()) - told["carried_on"] == len(rows) and told["carried_on"] <= told["as recalled"]
    assert told == false_memories(model, tokenizer, facts, rows, batch_size=12)


class Scripted:
    """Continues the prompt of row n, which ends with memory steps, with the n-th list of steps."""

    device = torch.device("cpu")
    generation_config = None
    training = False
    config = types.SimpleNamespace(get_text_config=lambda: types.SimpleNamespace(position_embedding_type="none"))

    def __init__(self, tokenizer, rows, answers):
        self.tokenizer, self.prompts = tokenizer, [encode_prompt(tokenizer, row["question"]) for row in rows]
        self.answers = answers

    def modules(self):
        return [self]

    def eval(self):
        pass

    def get_input_embeddings(self):
        return types.SimpleNamespace(weight=torch.zeros(len(self.tokenizer), 1))

    def generate(self, input_ids, attention_mask, max_new_tokens, **kwargs):
        rows = []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist()):
            ids = ids[mask.count(0) :]
            row = next(i for i, prompt in enumerate(self.prompts) if ids[: len(prompt)] == prompt)
            memory = SCHEME.parse(decode_solution(self.tokenizer, ids[len(self.prompts[row]) :]))
            new = encode_solution(self.tokenizer, self.answers(row, memory))
            rows.append([*new, self.tokenizer.eos_token_id])
        width = max(map(len, rows))
        assert width <= max_new_tokens
        pad = self.tokenizer.pad_token_id
        return torch.cat([input_ids, torch.tensor([row + [pad] * (width - len(row)) for row in rows])], dim=1)


def test_right_and_wrong_solutions(world, monkeypatch):
    facts, _, tokenizer, rows = world
    depths = [
        [("memory", "mark", 2), ("memory", "entity", 4), ("answer", "mark", 3 + row % 2)] for row in range(len(rows))
    ]
    monkeypatch.setattr(evaluation, "token_recurrences", lambda *args, **kwargs: depths)

    def right(row, _):
        return rows[row]["steps"]

    def hurried(row, _):
        """Answers with the entity that the first hop reaches, and recalls only the fact of the last hop."""
        hops = WrittenQuestion.parse(rows[row]["question"]).hops(facts)
        last, first = (Step(kind, step_text(hop)) for kind, hop in (("memory", hops[-1]), ("reason", hops[0])))
        return [last, first, answer_step(f"<e_{hops[0].fact.tail}>")]

    results = evaluate_solutions(Scripted(tokenizer, rows, right), tokenizer, facts, rows, batch_size=5)
    assert list(results["hops"]) == ["2", "3", "4"]
    for hops, group in results["hops"].items():
        chosen = [row for row in rows if row["hops"] == int(hops)]
        assert group["accuracy"] == group["recalled"] == 1.0 and group["is_cut"] == 0
        assert group["attribution"]["right_answers"]["none"] == group["count"] == len(chosen)
        assert group["tokens"] == np.mean([len(encode_solution(tokenizer, row["steps"])) + 1 for row in chosen])
        of_group = [depth for row, labelled in zip(rows, depths) if row["hops"] == int(hops) for *_, depth in labelled]
        assert group["recurrences"] == np.mean(of_group)
    assert results["recurrences_by_kind"] == {"memory": 3.0, "answer": 3.5}
    assert results["recurrences_by_word"] == {"memory: mark": 2.0, "memory: entity": 4.0, "answer: mark": 3.5}
    means = {kind: np.mean([sum(s.kind == kind for s in row["steps"]) for row in rows]) for kind in KINDS}
    assert results["steps_by_kind"] == means

    results = evaluate_solutions(Scripted(tokenizer, rows, hurried), tokenizer, facts, rows)
    for hops, group in results["hops"].items():
        chains = [WrittenQuestion.parse(row["question"]).hops(facts) for row in rows if row["hops"] == int(hops)]
        # A chain may come back to the same fact, or end where its first hop leads.
        assert group["recalled"] == np.mean([{hop.fact for hop in chain} == {chain[-1].fact} for chain in chains]) < 1
        num_right = sum(chain[0].fact.tail == chain[-1].fact.tail for chain in chains)
        assert group["accuracy"] == num_right / len(chains) < 1
        wrong = group["attribution"]["wrong_answers"]
        assert wrong["answer"] == sum(wrong.values()) == len(chains) - num_right
        assert group["attribution"]["answer_errors"] == {"stopped early": wrong["answer"], "another": 0}


def test_what_models_do_with_a_false_memory(world):
    facts, _, tokenizer, rows = world
    seen = {}

    def false_step(row, memory):
        """The false memory, found by looking up every step."""
        stated = [read_step(step.text) for step in memory]
        (false,) = [said for said in stated if facts[said.fact[:2]] != said.fact.tail]
        question = WrittenQuestion.parse(rows[row]["question"])
        seen[row] = (false, question.names.index(false.name))
        return false

    def recalled(row, memory):
        """Reasons from the memory steps, whatever they say."""
        false_step(row, memory)
        said = {said.name: said for said in (read_step(step.text) for step in memory)}
        reasons = [said[name] for name in WrittenQuestion.parse(rows[row]["question"]).names]
        answer = answer_step(f"<e_{reasons[-1].fact.tail}>")
        return [*(Step("reason", step_text(reason)) for reason in reasons), answer]

    def other_end(row, memory):
        *reasons, answer = recalled(row, memory)
        return [*reasons, answer_step("<e_0>" if "<e_0>" not in answer.text else "<e_1>")]

    def true(row, memory):
        false_step(row, memory)
        return [step for step in rows[row]["steps"] if step.kind != "memory"]

    def another(row, memory):
        false = false_step(row, memory)
        head = (false.fact.head + 1) % 7
        fact = Fact(head, false.fact.relation, facts[head, false.fact.relation])
        reasons = [Step("reason", "<e_0>"), Step("reason", step_text(NamedFact(fact, false.name)))]
        return [*reasons, answer_step("<e_0>")]

    def without(row, memory):
        false_step(row, memory)
        return [answer_step("<e_0>")]

    outcomes = dict.fromkeys(("as recalled", "the truth", "another fact", "no such step", "carried_on"), 0)
    for answers, changes in (
        (recalled, {"as recalled": len(rows), "carried_on": len(rows)}),
        (other_end, {"as recalled": len(rows)}),
        (true, {"the truth": len(rows)}),
        (another, {"another fact": len(rows)}),
        (without, {"no such step": len(rows)}),
    ):
        counts = false_memories(Scripted(tokenizer, rows, answers), tokenizer, facts, rows, batch_size=5)
        assert counts == {**outcomes, **changes}

    # Every place of a chain has a false memory, and another seed puts it elsewhere.
    places = {row: place for row, (_, place) in seen.items()}
    assert {0, 1, 2} <= set(places.values())
    seen.clear()
    false_memories(Scripted(tokenizer, rows, true), tokenizer, facts, rows, seed=1)
    assert {row: place for row, (_, place) in seen.items()} != places


def test_what_is_measured_of_answers(world):
    _, chains, tokenizer, _ = world
    model = make_model(tokenizer, halting_granularity="sequence")
    found = evaluate_answers(model, tokenizer, chains, ChainCollator(tokenizer.pad_token_id, "prefix"))
    right = []
    for chain in chains:
        ids = tokenizer(chain["input_text"], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**ids)
        word = tokenizer.convert_ids_to_tokens(int(outputs.logits[0, -1].argmax()))
        right.append((chain["hops"], word == chain["entities"][-1], int(outputs.num_recurrences[0])))
    for hops, group in found["hops"].items():
        assert group["accuracy"] == np.mean([ok for h, ok, _ in right if h == int(hops)])
        assert group["recurrences"] == np.mean([count for h, _, count in right if h == int(hops)])
    assert found["recurrences_by_kind"] == {"answer": np.mean([count for *_, count in right])}
