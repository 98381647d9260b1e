"""`memreason convert` on the published loops."""

import pytest
import torch
from published_loops import published, save_any
from recurrent_models import random_ids
from refusals import refused

from memreason_hf.commands.convert import main
from memreason_hf.models import convert_published
from memreason_hf.models.conversion.record import read_record
from modeling_recurrent import RecurrentDepthForCausalLM


@pytest.mark.parametrize("kind", ["huginn", "ouro"])
def test_a_published_loop_is_read_and_saved(kind, tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    save_any(source, kind, *published(kind))
    line = refused(capsys, main, [str(source), str(out), "--loop", "2"])
    assert "loop='2' is for decoders" in line and "which has its own layers" in line
    line = refused(capsys, main, [str(source), str(out), "--num_attention_heads", "2"])
    assert "num_attention_heads=2 is for checkpoints of the study" in line and not out.exists()
    assert main([str(source), str(out)]) == 0
    record = read_record(out)
    loaded, (expected, _) = RecurrentDepthForCausalLM.from_pretrained(out), convert_published(source)
    assert record["kind"] == "published_loop"
    assert record["result"]["num_parameters"] == sum(p.numel() for p in expected.parameters())
    ids = random_ids(2, 7)
    with torch.no_grad():
        for depth in (1, 3):
            logits = [model(ids, num_recurrences=depth, use_cache=False).logits for model in (loaded, expected)]
            assert torch.equal(*logits)


def test_a_checkpoint_of_the_study_needs_what_it_does_not_tell(tmp_path, capsys):
    source, out = tmp_path / "source", tmp_path / "out"
    fields = save_any(source, "study", *published("study"))
    flags = ["--num_attention_heads", str(fields["num_attention_heads"]), "--num_recurrences", "3"]
    line = refused(capsys, main, [str(source), str(out), *flags, "--input_injection", "gate"])
    assert "input_injection='gate' must be one of none, add" in line
    assert main([str(source), str(out), *flags, "--input_injection", "add"]) == 0
    config = RecurrentDepthForCausalLM.from_pretrained(out).config
    assert (config.num_recurrences, config.input_injection) == (3, "add")
    assert read_record(out)["family"] == "a checkpoint of the study"
