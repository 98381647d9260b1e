import json
import random

import pytest


def glue(*tokens):
    return "".join(tokens)


@pytest.fixture
def study_folder(tmp_path):
    """
    A folder as the study's own generator leaves it, made here with plain Python: relations of an entity in random
    order, labels of training chains two hops too low, no `<pad>` in the vocabulary.
    """
    rng = random.Random(5)
    entities, relations = [f"<e_{i}>" for i in range(9)], [f"<r_{i}>" for i in range(3)]
    tails = {r: rng.sample(entities, len(entities)) for r in relations}
    facts = {(e, r): tails[r][i] for i, e in enumerate(entities) for r in rng.sample(relations, len(relations))}

    def item(tokens, type_):
        answer = tokens[0]
        for relation in tokens[1:]:
            answer = facts[answer, relation]
        return {"input_text": glue(*tokens), "target_text": glue(*tokens, answer, "</a>"), "type": type_}

    train = [item(fact, "atomic") for fact in facts]
    test, probes, small = [], [], []
    for hops in (2, 3, 5):
        chains = set()
        while len(chains) < 25:
            chains.add((rng.choice(entities), *rng.choices(relations, k=hops)))
        chains = rng.sample(sorted(chains), 25)
        train += [item(chain, f"{hops - 2}hop_train") for chain in chains[:20]]
        test += [item(chain, f"{hops}hop_test") for chain in chains[20:]]
        small += test[-2:]
        probes += [item(chain, f"{hops}hop_train") for chain in rng.sample(chains[:20], 4)]
    test += [item(fact, "atomic_facts") for fact in rng.sample(sorted(facts), 6)] + probes
    folder = tmp_path / "study"
    folder.mkdir()
    vocabulary = [*entities, *relations, "<mask>", "<sep>", "<a>", "</a>", "<q>", "</q>"]
    files = {"train": train, "valid": test, "test": test, "test_small": small, "vocab": vocabulary}
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents))
    return folder
