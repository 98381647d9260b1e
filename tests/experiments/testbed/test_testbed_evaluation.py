"""Models of the test bed, untrained: what is measured of them is what they did."""

import numpy as np
import pytest
import torch

from memreason_hf.data.chains.collator import ChainCollator
from memreason_hf.data.chains.multi_hop import MultiHopConfig, build_multi_hop
from memreason_hf.data.chains.world import build_world
from memreason_hf.evaluation.solutions.generation import generate_solutions
from memreason_hf.experiments.testbed.evaluation import (
    evaluate_answers,
    evaluate_solutions,
    false_memories,
    token_recurrences,
)
from memreason_hf.experiments.testbed.rows import WrittenRows, written_questions
from memreason_hf.experiments.testbed.world import build_written_tokenizer, world_facts
from memreason_hf.steps.tokenization import encode_prompt
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
