"""`hub_strategy`, `push_to_hub` and `create_model_card` of the trainers: what is sent, and what is not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from card_checks import assert_is_true_card, forbidden_lines
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from local_hub import WRITER, Fault
from paths import ROOT
from small_adapters import adapted, save_base
from small_finetunes import small_finetune
from small_runs import assert_same_weights, small_chains, small_trainer, weights
from small_texts import small_rows, small_text_trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from memreason_hf.hub.cards import make_card
from modeling_recurrent.card_recurrent import CARD_MARK


REPO = "user/run"
STATE = {"optimizer.pt", "scheduler.pt", "trainer_state.json", "callbacks.json", "manifest.json"}
PERSON = "# Mine\n\nWritten by hand.\n"


class StopAfterFour(TrainerCallback):
    """Ends a run early, whose arguments are those of the whole run."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 4


def pushing(output_dir, strategy="end", make=small_trainer, **arguments):
    hub = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": strategy, "hub_token": WRITER}
    return make(output_dir, **{"max_steps": 8, "save_steps": 4, **hub, **arguments})


def files_of():
    return set(HfApi().list_repo_files(REPO))


def content_of(hub):
    """All bytes of all files of the repository, in all its commits."""
    repo = hub.repositories.get(REPO)
    names = {name for commit in repo.history() for name in HfApi().list_repo_files(REPO, revision=commit.oid)}
    return names, b"".join(path.read_bytes() for path in hub.folder.rglob("*") if path.is_file())


def finish(trainer):
    trainer.train()
    trainer.save_model()


@pytest.mark.parametrize("strategy", ["end", "every_save", "checkpoint", "all_checkpoints"])
def test_what_each_strategy_sends(strategy, at_hub, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("private")
    # Otherwise a checkpoint is passed over while an earlier one is still being sent.
    trainer = pushing(run, strategy, hub_always_push=True)
    finish(trainer)
    names = files_of()
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "modeling_recurrent.py"} <= names
    checkpoints = {"checkpoint": {"last-checkpoint"}, "all_checkpoints": {"checkpoint-4", "checkpoint-8"}}
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == checkpoints.get(strategy, set())
    for folder in folders:
        assert {f"{folder}/{name}" for name in STATE} <= names
    every_name, content = content_of(at_hub)
    sent = {name.rpartition("/")[2] for name in every_name}
    assert not sent & {"training_args.bin", "run.json", "training_data.json", "notes.txt"}
    assert bool(sent & STATE) == bool(folders)
    assert WRITER.encode() not in content and str(tmp_path).encode() not in content
    # What was sent is gone from the folder of the run, and nothing half-made is left.
    assert not list(run.glob(".*"))
    loaded = AutoModelForCausalLM.from_pretrained(REPO)
    assert_same_weights(weights(trainer.model), weights(loaded))


def test_the_card_is_ours(at_hub, tmp_path):
    trainer = pushing(tmp_path / "run", "every_save")
    trainer.data_record = {"kind": "chains", "folder": "/home/somebody/world", "rows": {"training": 138}}
    finish(trainer)
    card = ModelCard(Path(hf_hub_download(REPO, "README.md")).read_text())
    assert_is_true_card(card)
    assert "# run\n" in card.text and "| training steps | 8 |" in card.text and "Rows: 138 training." in card.text
    assert f'from_pretrained("{REPO}")' in card.text and (tmp_path / "run" / "README.md").is_file()
    trainer.push_to_hub(license="mit", language="en", tags="chains", dataset_tags="user/world")
    data = ModelCard(Path(hf_hub_download(REPO, "README.md")).read_text()).data
    assert (data.license, data.datasets) == ("mit", ["user/world"]) and "chains" in data.tags
    with pytest.raises(ValueError, match="tasks='qa' is not supported"):
        trainer.create_model_card(tasks="qa")


def test_control_the_card_of_the_stock_trainer(at_hub, tmp_path):
    tokenizer, train, _ = small_chains()
    trainer = Trainer(
        model=small_trainer(tmp_path / "other").model,
        args=TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none"),
        train_dataset=train,
        processing_class=tokenizer,
    )
    trainer.create_model_card()
    text = (tmp_path / "run" / "README.md").read_text()
    assert forbidden_lines(text) and CARD_MARK not in text


def test_the_stock_trainer_leaves_the_card_of_an_adapter_to_us(tmp_path):
    model, tokenizer = adapted(save_base(tmp_path / "base"), "tokens")
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to="none"),
        train_dataset=small_chains()[1],
        processing_class=tokenizer,
    )
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert_is_true_card(card)
    assert CARD_MARK in card.text


def test_a_persons_card_stays(at_hub, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text(PERSON)
    finish(pushing(tmp_path / "run", "every_save"))
    repo = at_hub.repositories.get(REPO)
    for commit in repo.history():
        if "README.md" in HfApi().list_repo_files(REPO, revision=commit.oid):
            assert Path(hf_hub_download(REPO, "README.md", revision=commit.oid)).read_text() == PERSON
    assert (tmp_path / "run" / "README.md").read_text() == PERSON


def test_a_run_is_resumed_from_a_checkpoint_on_the_hub(at_hub, tmp_path):
    """Bit for bit, on another machine that has nothing else."""
    undisturbed = small_trainer(tmp_path / "undisturbed", max_steps=8, save_steps=4)
    undisturbed.train()
    first = pushing(tmp_path / "first", "checkpoint", callbacks=[StopAfterFour()])
    first.train()
    first._finish_current_push()
    downloaded = Path(snapshot_download(REPO, allow_patterns="last-checkpoint/*")) / "last-checkpoint"
    state = json.loads((downloaded / "trainer_state.json").read_text())
    assert state["global_step"] == 4 and state["best_model_checkpoint"] is None
    second = small_trainer(tmp_path / "second", max_steps=8, save_steps=4)
    second.train(resume_from_checkpoint=str(downloaded))
    assert_same_weights(weights(second.model), weights(undisturbed.model))


@pytest.mark.parametrize("restart", [False, True])
def test_a_push_that_is_being_sent_outlives_the_next_run(at_hub, tmp_path, restart):
    """With `blocking=False` training may begin again before the files are read."""
    trainer = pushing(tmp_path / "run")
    finish(trainer)
    at_hub.faults.append(Fault("POST", "/preupload/", seconds=2.0))
    job = trainer.push_to_hub(blocking=False)
    again = small_trainer(tmp_path / "run", max_steps=8, save_steps=4, restart=restart)
    again.train(resume_from_checkpoint=not restart)
    again.save_model()
    assert not job.done() and list((tmp_path / "run").glob(".push-*"))  # a control
    job.result()
    assert "model.safetensors" in files_of()
    assert_same_weights(weights(trainer.model), weights(AutoModelForCausalLM.from_pretrained(REPO)))
    # A callback of the future removes it, which may run after `result` has returned.
    deadline = time.monotonic() + 30
    while list((tmp_path / "run").glob(".push-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not list((tmp_path / "run").glob(".push-*"))


def test_the_saved_arguments_hold_no_token(tmp_path):
    trainer = small_trainer(tmp_path / "run", max_steps=2, save_steps=2, hub_token=WRITER)
    finish(trainer)
    paths = [*(tmp_path / "run").rglob("training_args.bin")]
    assert len(paths) == 2
    for path in paths:
        assert WRITER.encode() not in path.read_bytes()
    assert trainer.args.hub_token == WRITER
    # A control: the library's way to save them.
    torch.save(trainer.args, tmp_path / "args.bin")
    assert WRITER.encode() in (tmp_path / "args.bin").read_bytes()


def test_a_push_that_fails_on_the_way_is_reported_and_training_goes_on(at_hub, tmp_path, caplog):
    at_hub.faults.append(Fault("POST", "/commit/", status=403, times=1))
    trainer = pushing(tmp_path / "run", "every_save", hub_always_push=True)
    trainer.train()
    assert trainer.state.global_step == 8
    assert caplog.text.count(f"A push to {REPO} during training failed") == 1
    # The last push at the end raises. Its card differs, or nothing would be sent.
    at_hub.faults.append(Fault("POST", "/commit/", status=403, times=9))
    with pytest.raises(HfHubHTTPError, match="403"):
        trainer.push_to_hub(license="mit")
    at_hub.faults.clear()
    trainer.push_to_hub(license="mit")
    assert_same_weights(weights(trainer.model), weights(AutoModelForCausalLM.from_pretrained(REPO)))


def test_what_names_a_path_is_refused_by_file_and_line(at_hub, tmp_path, caplog):
    trainer = pushing(tmp_path / "run", "every_save")
    trainer.processing_class.init_kwargs["origin"] = "/home/somebody/data/tokenizer"
    try:
        trainer.train()
        assert "was not pushed" in caplog.text and "tokenizer_config.json" in caplog.text
        with pytest.raises(ValueError, match=r"tokenizer_config\.json, line \d+"):
            trainer.push_to_hub()
        assert "model.safetensors" not in files_of()
    finally:
        del trainer.processing_class.init_kwargs["origin"]


@pytest.mark.parametrize("make", [small_text_trainer, small_finetune])
def test_the_other_trainers_push_the_same_way(make, at_hub, tmp_path):
    hub = {"push_to_hub": True, "hub_model_id": REPO, "hub_token": WRITER}
    if make is small_text_trainer:
        trainer = make(tmp_path / "run", small_rows(), max_steps=2, **hub)
    else:
        trainer = make(tmp_path / "run", num_train_epochs=1, **hub)
    finish(trainer)
    card = ModelCard(Path(hf_hub_download(REPO, "README.md")).read_text())
    assert_is_true_card(card)
    assert not files_of() & {"training_args.bin", "run.json"}
    assert AutoTokenizer.from_pretrained(REPO).get_vocab() == trainer.processing_class.get_vocab()


def test_an_adapter_on_a_local_base_names_it_on_the_hub(at_hub, tmp_path, caplog):
    model, _ = adapted(save_base(tmp_path / "base"), "tokens")
    options = {"push_to_hub": True, "hub_model_id": REPO, "hub_strategy": "checkpoint", "hub_token": WRITER}
    trainer = small_finetune(tmp_path / "run", model=model, num_train_epochs=1, **options)
    trainer.train()
    assert "was not pushed" in caplog.text and "is a folder of this machine" in caplog.text
    for push in (trainer.save_model, trainer.push_to_hub):
        with pytest.raises(ValueError, match="is a folder of this machine"):
            push()
    assert "adapter_config.json" not in files_of()
    trainer.push_to_hub(finetuned_from="user/base")
    folder = Path(snapshot_download(REPO))
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "user/base"
    assert ModelCard.load(folder / "README.md").data.base_model == "user/base"
    names, content = content_of(at_hub)
    assert "local_base.json" not in {name.rpartition("/")[2] for name in names}
    assert str(tmp_path / "base").encode() not in content
    # The folder is as it was: there the base is found by its place.
    assert (tmp_path / "run" / "local_base.json").is_file()
    written = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(tmp_path / "base")


def test_results_and_pictures_of_the_finished_run_go_with_it(at_hub, folders, tmp_path):
    folder = folders.copy_of("chains", tmp_path)
    for path in (folder / "results").glob("*.json"):
        path.write_text(path.read_text().replace("/home/somebody/", ""))
    trainer = pushing(folder, max_steps=4, eval_strategy="steps", eval_steps=4)
    trainer.train(resume_from_checkpoint=True)
    trainer.push_to_hub()
    assert {"results/evaluation.json", "results/depth_sweep.json", "results/depth_sweep.png"} <= files_of()
    card = ModelCard(Path(hf_hub_download(REPO, "README.md")).read_text())
    assert "### Accuracy by recurrence" in card.text
    assert card.data.eval_results == make_card(folder, REPO).data.eval_results


@pytest.mark.slow
def test_who_imports_the_trainer_alone_gets_this_card(tmp_path):
    """In a fresh process, which has not imported the room of the cards."""
    code = f"""
import sys; sys.path[:0] = [{str(ROOT / "tests" / "helpers")!r}]
from memreason_hf import RecurrentTrainer
assert "memreason_hf.hub.cards" not in sys.modules
from small_runs import small_trainer
trainer = small_trainer({str(tmp_path / "run")!r}, max_steps=1)
trainer.train(); trainer.save_model(); trainer.create_model_card()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_is_true_card(ModelCard.load(tmp_path / "run" / "README.md"))
