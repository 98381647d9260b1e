"""Flipped bits in an Arrow file are one error or other rows, and never the end of the process."""

import random
from pathlib import Path

from processes import load_result, run_child, save_result

from memreason_hf.data.chains.config import MultiHopConfig
from memreason_hf.data.chains.multi_hop import build_multi_hop, load_multi_hop, save_multi_hop, select_chains


CONFIG = MultiHopConfig(
    num_entities=6, num_relations=3, train_hops="2-3", test_hops="2-4", num_train_chains=20, num_test_chains=4
)
FLIPS = 40


def read_damaged(folder, result, seed):
    """Saves how often the rows could be read, and the errors."""
    rng, path = random.Random(seed), next(Path(folder, "test").glob("*.arrow"))
    content, errors = path.read_bytes(), []
    for _ in range(FLIPS):
        damaged = bytearray(content)
        # Schema, offsets and the first rows, and of numbers the upper byte: where Arrow follows a wrong offset, it
        # ends the process.
        damaged[4 * rng.randrange(750) + 3] ^= 1 << rng.randrange(7)
        # A new file: the old one may still be mapped into memory.
        path.unlink()
        path.write_bytes(damaged)
        try:
            select_chains(load_multi_hop(folder)["test"], kind="test", hops=[2]).to_list()
        except (OSError, ValueError) as error:
            errors.append(str(error))
    save_result(result, errors)


def test_flipped_bits(tmp_path):
    save_multi_hop(build_multi_hop(CONFIG), tmp_path / "world")
    assert (next((tmp_path / "world" / "test").glob("*.arrow"))).stat().st_size > 3000
    seed = random.SystemRandom().randrange(10**6)
    assert run_child(read_damaged, tmp_path / "world", tmp_path / "result", seed) == 0, seed
    errors = load_result(tmp_path / "result")
    assert 0 < len(errors) < FLIPS, seed
    # Others are about the rows: a changed letter makes a token or a hop count that nothing fits.
    assert [error for error in errors if "world" in error and "damaged" in error], seed
