"""The data set, read from its files and followed step by step without the code that built it."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import pytest
from datasets import load_from_disk
from paths import ROOT

from memreason_hf.data import MultiHopConfig, build_multi_hop, load_multi_hop, save_multi_hop, select_chains


SMALL = {
    "num_entities": 20,
    "num_relations": 4,
    "train_hops": "2-4",
    "test_hops": "1-5,9,45",
    "num_train_chains": 60,
    "num_test_chains": 15,
    "num_small_test_chains": 4,
    "num_atomic_probes": 30,
    "num_train_probes": 10,
}


def read_json(folder):
    names = ("train", "valid", "test", "test_small", "vocab")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def tokens_of(text):
    tokens = re.findall("<[^>]+>", text)
    assert "".join(tokens) == text
    return tokens


def follow(files):
    """Walks every item over the atomic facts. Returns, by file, lists of (type, tokens, entities reached)."""
    facts = {}
    for item in files["train"]:
        if item["type"] == "atomic":
            head, relation, tail, end = tokens_of(item["target_text"])
            assert end == "</a>" and facts.setdefault((head, relation), tail) == tail
    followed = {}
    for name in ("train", "test", "test_small"):
        followed[name] = []
        for item in files[name]:
            assert list(item) == ["input_text", "target_text", "type"]
            tokens = tokens_of(item["input_text"])
            entities = tokens[:1]
            for relation in tokens[1:]:
                entities.append(facts[entities[-1], relation])
            assert item["target_text"] == item["input_text"] + entities[-1] + "</a>"
            followed[name].append((item["type"], tokens, entities[1:]))
    return facts, followed


def check_folder(folder, config):
    """Checks everything that the protocol says about a data set with these sizes."""
    files = read_json(folder)
    facts, followed = follow(files)
    degree = config.relations_per_entity
    entities = [f"<e_{i}>" for i in range(config.num_entities)]
    relations = [f"<r_{i}>" for i in range(config.num_relations)]
    assert files["vocab"] == [*entities, *relations, "<mask>", "<sep>", "<a>", "</a>", "<q>", "</q>"]
    assert files["valid"] == files["test"]

    assert len(facts) == config.num_entities * degree
    for relation in relations:
        tails = [tail for (_, r), tail in facts.items() if r == relation]
        assert len(set(tails)) == len(tails)
    assert set(Counter(head for head, _ in facts).values()) == {degree}

    plan = config.plan_chains()
    num_facts = len(facts)
    expected_train, expected_test, expected_small = {"atomic": num_facts}, {}, {}
    expected_test["atomic_facts"] = min(config.num_atomic_probes, num_facts)
    if 1 in config.test_hop_counts:
        expected_small["atomic_facts"] = min(config.num_small_test_chains, expected_test["atomic_facts"])
    for hops, (num_train, num_test) in plan.items():
        expected_train[f"{hops}hop_train"] = num_train
        expected_test[f"{hops}hop_train"] = min(config.num_train_probes, num_train)
        expected_test[f"{hops}hop_test"] = num_test
        expected_small[f"{hops}hop_test"] = min(config.num_small_test_chains, num_test)
    for name, expected in (("train", expected_train), ("test", expected_test), ("test_small", expected_small)):
        rows = followed[name]
        assert Counter(type_ for type_, _, _ in rows) == Counter({k: v for k, v in expected.items() if v})
        assert len({(type_, *tokens) for type_, tokens, _ in rows}) == len(rows)
        for type_, tokens, _ in rows:
            assert type_.startswith("atomic") or type_.split("hop_")[0] == str(len(tokens) - 1)

    chains = {name: {} for name in followed}
    for name, rows in followed.items():
        for type_, tokens, _ in rows:
            chains[name].setdefault(type_, set()).add(tuple(tokens))
    for hops in plan:
        trained = chains["train"].get(f"{hops}hop_train", set())
        tested = chains["test"].get(f"{hops}hop_test", set())
        assert not trained & tested
        assert chains["test"].get(f"{hops}hop_train", set()) <= trained
        assert chains["test_small"].get(f"{hops}hop_test", set()) <= tested
    assert chains["test"].get("atomic_facts", set()) <= chains["train"]["atomic"]
    return files, followed


def check_arrow(folder, files, followed):
    dataset = load_from_disk(folder)
    assert list(dataset) == ["train", "validation", "test", "test_small"]
    assert dataset["validation"].to_dict() == dataset["test"].to_dict()
    for split, rows in followed.items():
        assert dataset[split].column_names == ["input_text", "target_text", "type", "hops", "entities"]
        assert [dataset[split][key] for key in ("input_text", "target_text", "type")] == [
            [item[key] for item in files[split]] for key in ("input_text", "target_text", "type")
        ]
        assert list(dataset[split]["hops"]) == [len(tokens) - 1 for _, tokens, _ in rows]
        assert list(dataset[split]["entities"]) == [entities for _, _, entities in rows]


def save(config, folder):
    return save_multi_hop(build_multi_hop(config), folder)


def test_a_small_world(tmp_path):
    config = MultiHopConfig(**SMALL)
    manifest = save(config, tmp_path / "data")
    files, followed = check_folder(tmp_path / "data", config)
    check_arrow(tmp_path / "data", files, followed)
    assert manifest["config"] == asdict(config)
    assert manifest["rows"] == {"train": 80 + 3 * 60, "validation": 150, "test": 150, "test_small": 28}


def test_fresh_random_sizes(tmp_path):
    for trial in range(6):
        num_relations = random.randint(1, 6)
        hop_counts = [random.sample(range(2, 14), random.randint(1, 4)) for _ in range(2)]
        config = MultiHopConfig(
            num_entities=random.randint(2, 40),
            num_relations=num_relations,
            out_degree=random.choice([None, random.randint(1, num_relations)]),
            train_hops=hop_counts[0],
            test_hops=[*hop_counts[1], *random.choice([[], [1]])],
            num_train_chains=random.randint(1, 200),
            num_test_chains=random.randint(1, 60),
            num_small_test_chains=random.randint(1, 30),
            num_atomic_probes=random.randint(1, 60),
            num_train_probes=random.randint(0, 60),
            cap_to_available=True,
            seed=random.randrange(1 << 40),
        )
        print(config)
        save(config, tmp_path / str(trial))
        check_arrow(tmp_path / str(trial), *check_folder(tmp_path / str(trial), config))


def test_the_study_at_full_hop_counts(tmp_path):
    """All 39 hop counts of the study, with fewer chains each."""
    config = MultiHopConfig(num_train_chains=100, num_test_chains=60, num_train_probes=70)
    save(config, tmp_path / "data")
    files, _ = check_folder(tmp_path / "data", config)
    assert [item["type"] for item in files["train"]] == ["atomic"] * 2_000 + [
        f"{hops}hop_train" for hops in range(2, 41) for _ in range(100)
    ]
    assert [item["type"] for item in files["test"]] == (
        [f"{hops}hop_test" for hops in range(2, 41) for _ in range(60)]
        + ["atomic_facts"] * 2_000
        + [f"{hops}hop_train" for hops in range(2, 41) for _ in range(70)]
    )
    assert [item["type"] for item in files["test_small"]] == [
        f"{hops}hop_test" for hops in range(2, 41) for _ in range(50)
    ]


@pytest.mark.slow
def test_the_study_at_full_size(tmp_path):
    """Follows every one of the 614,250 chains, which takes a minute."""
    save(MultiHopConfig(), tmp_path / "data")
    files, followed = check_folder(tmp_path / "data", MultiHopConfig())
    assert [len(followed[name]) for name in ("train", "test", "test_small")] == [587_000, 109_250, 1_950]
    check_arrow(tmp_path / "data", files, followed)


def test_the_files_are_what_json_dump_writes(tmp_path):
    save(MultiHopConfig(**SMALL), tmp_path)
    for name in ("train", "valid", "test", "test_small", "vocab"):
        text = (tmp_path / f"{name}.json").read_text()
        assert text == json.dumps(json.loads(text))


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_another_process_writes_the_same_bytes(tmp_path):
    save(MultiHopConfig(**SMALL), tmp_path / "here")
    code = (
        "import sys; from memreason_hf.data import *;"
        f"save_multi_hop(build_multi_hop(MultiHopConfig(**{SMALL!r})), sys.argv[1])"
    )
    root = ROOT
    hash_seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code, tmp_path / "there"], env=environment, check=True, capture_output=True)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    assert len(digests(tmp_path / "here")) == 5 + 2 + 2 + 4 * 3


def test_the_seed_decides():
    """The digest is pinned, so that data sets do not change unnoticed. A new release of numpy may change it."""
    one, same, other = (build_multi_hop(MultiHopConfig(**SMALL, seed=seed)).dataset["train"] for seed in (3, 3, 4))
    assert one.to_dict() == same.to_dict() and one._fingerprint == same._fingerprint
    assert one["target_text"] != other["target_text"] and one._fingerprint != other._fingerprint
    text = "\n".join(one["target_text"])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "657ed74fbfaeed3d"


def test_test_chains_do_not_depend_on_the_training_chains():
    few = build_multi_hop(MultiHopConfig(**SMALL))
    many = build_multi_hop(MultiHopConfig(**{**SMALL, "num_train_chains": 100, "train_hops": "2-5"}))
    few, many = (select_chains(data.dataset["test"], kind="test")["target_text"] for data in (few, many))
    assert list(few) == list(many)


def test_chains_are_selected_by_kind_and_hops():
    test = build_multi_hop(MultiHopConfig(**SMALL)).dataset["test"]
    assert Counter(select_chains(test, kind="test", hops=[3, 9, 100])["type"]) == {"3hop_test": 15, "9hop_test": 15}
    assert Counter(select_chains(test, kind="train", hops=range(3))["type"]) == {"2hop_train": 10}
    assert Counter(select_chains(test, kind="atomic")["type"]) == {"atomic_facts": 30}
    assert select_chains(test)["input_text"] == test["input_text"]
    with pytest.raises(ValueError, match=r"kind='test' and hops=\[6\].*\[1, 2, 3, 4, 5, 9, 45\]"):
        select_chains(test, kind="test", hops=[6])
    with pytest.raises(ValueError, match="kind='probe' must be one of test, train, atomic"):
        select_chains(test, kind="probe")


def test_selecting_after_selecting():
    test = build_multi_hop(MultiHopConfig(**SMALL)).dataset["test"]
    backwards = test.select(range(len(test) - 1, -1, -1))
    kept = select_chains(select_chains(backwards, kind="test"), hops=[9])
    assert list(kept["input_text"]) == list(select_chains(test, kind="test", hops=[9])["input_text"])[::-1]


def test_loading_gives_what_was_built(tmp_path):
    data = build_multi_hop(MultiHopConfig(**SMALL))
    save_multi_hop(data, tmp_path)
    loaded = load_multi_hop(tmp_path)
    assert {k: v.to_dict() for k, v in loaded.items()} == {k: v.to_dict() for k, v in data.dataset.items()}
    assert loaded["train"].features == data.dataset["train"].features
