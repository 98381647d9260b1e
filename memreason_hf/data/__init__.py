"""Building and reading data sets, without argument parsing."""

from memreason_hf.data.chains.multi_hop import (
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
from memreason_hf.data.questions.demonstrations import Demonstrations, GivenDemonstrations, SimilarDemonstrations
from memreason_hf.data.questions.memory_reason import (
    build_memory_reason,
    load_memory_reason,
    reference_solution,
    save_memory_reason,
)


__all__ = [
    "Demonstrations",
    "GivenDemonstrations",
    "MultiHopConfig",
    "MultiHopData",
    "SimilarDemonstrations",
    "build_memory_reason",
    "build_multi_hop",
    "convert_multi_hop",
    "encode_chains",
    "load_memory_reason",
    "load_multi_hop",
    "load_multi_hop_tokenizer",
    "prepare_multi_hop",
    "read_multi_hop_json",
    "reference_solution",
    "save_memory_reason",
    "save_multi_hop",
    "select_chains",
]
