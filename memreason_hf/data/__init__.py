"""Building and reading data sets: pure functions, no argument parsing."""

from .multi_hop import (
    MultiHopConfig,
    MultiHopData,
    build_multi_hop,
    convert_multi_hop,
    encode_chains,
    load_multi_hop,
    load_multi_hop_tokenizer,
    prepare_multi_hop,
    read_multi_hop_json,
    save_multi_hop,
    select_chains,
)


__all__ = [
    "MultiHopConfig",
    "MultiHopData",
    "build_multi_hop",
    "convert_multi_hop",
    "encode_chains",
    "load_multi_hop",
    "load_multi_hop_tokenizer",
    "prepare_multi_hop",
    "read_multi_hop_json",
    "save_multi_hop",
    "select_chains",
]
