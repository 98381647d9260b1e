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
from memreason_hf.data.questions.conversations import from_messages, to_messages
from memreason_hf.data.questions.demonstrations import Demonstrations
from memreason_hf.data.questions.memory_reason import (
    build_memory_reason,
    load_memory_reason,
    reference_solution,
    save_memory_reason,
)
from memreason_hf.data.questions.own_data import load_questions, read_questions
from memreason_hf.data.questions.schema import write_questions


__all__ = [
    "Demonstrations",
    "MultiHopConfig",
    "MultiHopData",
    "build_memory_reason",
    "build_multi_hop",
    "convert_multi_hop",
    "encode_chains",
    "from_messages",
    "load_memory_reason",
    "load_multi_hop",
    "load_multi_hop_tokenizer",
    "load_questions",
    "prepare_multi_hop",
    "read_multi_hop_json",
    "read_questions",
    "reference_solution",
    "save_memory_reason",
    "save_multi_hop",
    "select_chains",
    "to_messages",
    "write_questions",
]
