"""Several processes that need one data set: one builds it, the others wait, and none fails."""

import os

from processes import load_result, run_children, save_result

from memreason_hf.data.chains import multi_hop
from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.multi_hop import load_multi_hop, prepare_multi_hop


CONFIG = MultiHopConfig(
    num_entities=6, num_relations=3, train_hops="2-3", test_hops="2-3", num_train_chains=20, num_test_chains=8
)


def build(folder, result):
    built = []
    build_multi_hop = multi_hop.build_multi_hop
    multi_hop.build_multi_hop = lambda config: (built.append(config), build_multi_hop(config))[1]
    manifest = prepare_multi_hop(CONFIG, folder)
    save_result(result, (len(built), manifest["files"]))


def test_three_builds_of_one_path_at_once(tmp_path):
    folder, results = tmp_path / "data" / "world", [tmp_path / f"result_{number}" for number in range(3)]
    assert run_children([(build, (folder, result), {}) for result in results]) == [0, 0, 0]
    found = [load_result(result) for result in results]
    assert sum(count for count, _ in found) == 1
    assert all(manifest == found[0][1] for _, manifest in found)
    assert os.listdir(tmp_path / "data") == ["world"]
    assert set(load_multi_hop(folder)) == {"train", "validation", "test", "test_small"}
