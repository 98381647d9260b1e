"""What a card says: the numbers of the files, of nothing else, and no markup of theirs."""

import json
import re

import pytest
import yaml
from card_checks import assert_is_true_card, private_lines
from card_folders import save_solutions_summary
from hub_metadata import read_metadata
from huggingface_hub import EvalResult
from local_hub import Fault
from markdown_it import MarkdownIt
from small_adapters import adapted, save_base

from memreason_hf.adapters.modes import save_adapter
from memreason_hf.evaluation import results
from memreason_hf.hub.cards import ResultsSection, make_card, register_section
from memreason_hf.hub.cards import results as card_results
from memreason_hf.hub.cards.markdown import LOCAL_FOLDER, code, last_part, plain
from memreason_hf.models.conversion.record import read_record
from modeling_recurrent import RecurrentDepthForCausalLM
from modeling_recurrent.card_recurrent import CARD_MARK


def rows_of(text, heading):
    """The rows of the first table below a heading, as dicts."""
    lines = text.partition(heading)[2].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(table[0], row)) for row in table[2:]]


def test_the_tables_hold_the_numbers_of_the_results(folders):
    folder = folders("chains")
    text = make_card(folder).text
    sweep = json.loads((folder / "results" / "depth_sweep.json").read_text())
    rows = rows_of(text, "### Accuracy by recurrence")
    assert [row["hops"] for row in rows] == ["all", *(str(group["group"]) for group in sweep["groups"])]
    for row, entry in zip(rows, [sweep["overall"], *sweep["groups"]]):
        for recurrence, accuracy in enumerate(entry["accuracy"], start=1):
            assert row[f"r = {recurrence}"] == f"{accuracy:.1%}"
        assert int(row["best at"]) == entry["best_recurrence"]
    evaluation = json.loads((folder / "results" / "evaluation.json").read_text())
    rows = rows_of(text, "### Accuracy and depth")
    for row, entry in zip(rows, [evaluation["overall"], *evaluation["groups"]], strict=True):
        assert row["accuracy"] == f"{entry['accuracy']:.1%}"
        assert row["mean recurrences"] == f"{entry['recurrences']['mean']:.2f}"
        assert row["its accuracy"] == f"{entry['fixed']['best_accuracy']:.1%}"


def test_the_metadata_holds_the_numbers_of_the_results(folders):
    folder = folders("chains")
    values = {result.metric_name: result.metric_value for result in make_card(folder).data.eval_results}
    sweep = json.loads((folder / "results" / "depth_sweep.json").read_text())["overall"]
    evaluation = json.loads((folder / "results" / "evaluation.json").read_text())["overall"]
    by_sweep = next(name for name in values if name.startswith("Accuracy after"))
    by_rule = next(name for name in values if "halting by kl" in name)
    assert (values[by_sweep], values[by_rule]) == (sweep["best_accuracy"], evaluation["accuracy"])


def test_a_picture_is_linked_only_where_it_is(folders, tmp_path):
    folder = folders.copy_of("chains", tmp_path)
    assert "](results/depth_sweep.png)" in make_card(folder).text
    (folder / "results" / "depth_sweep.png").unlink()
    assert "![" not in make_card(folder).text


def test_the_architecture_is_that_of_the_model(folders):
    for kind in ("bare", "chains", "converted"):
        model = RecurrentDepthForCausalLM.from_pretrained(folders(kind))
        text = make_card(folders(kind)).text
        assert f"- Parameters: {model.num_parameters():,}\n" in text
        assert f"- Recurrences: {model.config.num_recurrences} by default" in text
        assert f"{model.config.num_recurrent_layers} in it" in text


def test_halting_of_the_config_and_of_the_generation_config(folders, tmp_path):
    folder = folders.copy_of("bare", tmp_path)
    assert "- Halting: fixed depth of 3" in make_card(folder).text
    config = json.loads((folder / "config.json").read_text())
    config |= {"halting_criterion": "kl", "kl_threshold": 0.25, "min_recurrences": 2, "max_recurrences": 7}
    (folder / "config.json").write_text(json.dumps(config))
    assert (
        "`kl`, `kl_threshold=0.25`; every token decides for itself, from recurrence 2 to 7" in make_card(folder).text
    )
    (folder / "generation_config.json").write_text(json.dumps({"halting_criterion": "entropy", "max_recurrences": 5}))
    line = next(line for line in make_card(folder).text.splitlines() if line.startswith("- Halting"))
    assert "`entropy`" in line and "from recurrence 2 to 5" in line and "kl" not in line


def test_exactness_is_what_was_measured(folders, tmp_path):
    folder = folders.copy_of("converted", tmp_path)
    assert read_record(folder)["exactness"]["is_exact"]
    assert "all logits are the same, bit for bit" in make_card(folder).text
    record = read_record(folder)
    record["exactness"] |= {"is_exact": False, "is_expected": False}
    record["exactness"]["differences"] = {"no_padding": 0.125, "cached": None}
    (folder / "conversion.json").write_text(json.dumps(record))
    text = make_card(folder).text
    assert "bit for bit" not in text and "without padding 0.125, token by token from the cache not finite" in text


def test_a_base_on_the_hub_is_named_with_its_commit(folders, tmp_path):
    folder = folders.copy_of("converted", tmp_path)
    record = read_record(folder)
    record["source"] |= {"name_or_path": "owner/base", "commit": "0123456789abcdef"}
    (folder / "conversion.json").write_text(json.dumps(record))
    card = make_card(folder)
    assert card.data.base_model == "owner/base" and "at commit `0123456789ab`" in card.text
    # A control: a relative path has the same form, but no commit.
    record["source"]["commit"] = None
    (folder / "conversion.json").write_text(json.dumps(record))
    assert make_card(folder).data.base_model is None
    # Who publishes says its name: the text does not speak of a local folder then.
    card = make_card(folder, base_model="owner/base", license="mit")
    assert card.data.base_model == "owner/base" and "local folder" not in card.text
    assert "Converted from [owner/base](https://huggingface.co/owner/base) (" in card.text
    assert "\n\n`mit`.\n" in card.text


def test_the_licence_of_a_base_comes_from_its_card(tmp_path):
    base = save_base(tmp_path / "base")
    model, tokenizer = adapted(base, "tokens")
    save_adapter(model, tokenizer, tmp_path / "adapter")
    assert make_card(tmp_path / "adapter").data.license is None
    (base / "README.md").write_text("---\nlicense: llama3.2\n---\n# Base\n")
    card = make_card(tmp_path / "adapter")
    assert card.data.license == "llama3.2" and "That of the base: `llama3.2`." in card.text
    assert make_card(tmp_path / "adapter", license="mit").data.license == "mit"
    (base / "README.md").write_text("---\nlicense: [broken\n---\n# Base\n")
    assert make_card(tmp_path / "adapter").data.license is None


def test_the_licence_of_a_base_on_the_hub(folders, tmp_path, at_hub):
    """The Hub is asked when the card is to go there, and only then; without an answer the card names no licence."""
    content = b"---\nlicense: other\nlicense_name: own\nlicense_link: https://example.com/licence\n---\n# Base\n"
    commits = {}
    for name in ("owner/base", "owner/second"):
        repo = at_hub.repositories.create(name)
        commits[name] = at_hub.repositories.put_files(repo, {"README.md": content})
    folder = folders.copy_of("converted", tmp_path)
    record = read_record(folder)

    def card_of(name, *repo_id):
        record["source"] |= {"name_or_path": name, "commit": commits[name]}
        (folder / "conversion.json").write_text(json.dumps(record))
        return make_card(folder, *repo_id)

    assert card_of("owner/base").data.license is None and at_hub.requests == []
    card = card_of("owner/base", "user/model")
    assert_is_true_card(card)
    assert (card.data.license, card.data.license_name) == ("other", "own") and "That of the base: own." in card.text
    at_hub.faults.append(Fault("GET", "second", status=503, times=99))
    assert card_of("owner/second", "user/model").data.license is None


def test_results_of_another_model_are_left_out(folders, tmp_path, caplog):
    folder = folders.copy_of("chains", tmp_path)
    path = folder / "results" / "evaluation.json"
    document = json.loads(path.read_text())
    document["model"]["num_parameters"] += 1
    path.write_text(json.dumps(document))
    card = make_card(folder)
    assert "### Accuracy and depth" not in card.text and "### Accuracy by recurrence" in card.text
    assert "evaluation.json holds results of another model" in caplog.text


def test_solutions_belong_to_the_weights_that_wrote_them(folders, tmp_path):
    folder = folders.copy_of("steps", tmp_path)
    assert "60.0% of the answers are right" in make_card(folder).text
    save_solutions_summary(folder, weights={"model.safetensors": "of another model"})
    assert "60.0%" not in make_card(folder).text


def test_who_judged_solutions_and_how_they_were_drawn(folders, tmp_path):
    folder = folders.copy_of("steps", tmp_path)
    text = make_card(folder).text
    assert "Greedy solutions of 5 questions" in text and "judged" not in text
    path = folder / "test.jsonl.summary.json"
    summary = json.loads(path.read_text())
    settings_path = folder / "test.jsonl.settings.json"
    settings = json.loads(settings_path.read_text())
    settings |= {"answer_judge": {"name": "a *judge*"}, "sampling": {"num_samples": 3}}
    settings_path.write_text(json.dumps(settings))
    summary |= {"num_judged_answers": 4, "num_right_by_judge": 3, "num_undecided_answers": 2}
    path.write_text(json.dumps({**summary, "num_samples": 3, "num_texts": 15}))
    text = make_card(folder).text
    assert "3 drawn solutions of each of 5 questions" in text
    assert "judged 4 free-text answers in other words, of which 3 count as right; 2 without a readable" in text
    assert "a *judge*" not in text  # a name is no Markdown
    # Earlier releases counted texts.
    path.write_text(json.dumps({**summary, "num_samples": 3, "num_items": 15}))
    assert "3 drawn solutions of each of 5 questions" in make_card(folder).text


def test_a_new_kind_of_results_brings_its_own_section(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_KINDS", dict(results._KINDS))
    monkeypatch.setattr(card_results, "_SECTIONS", dict(card_results._SECTIONS))

    class Promise(results.Document):
        kind: str
        promised: float

    results.register_kind("promise", Promise)
    document = results.new_document("promise", environment=results.describe_environment("cpu"), promised=0.95)
    folder = folders.copy_of("bare", tmp_path)
    results.write_results(folder / "promise.json", document)
    assert "## Results" not in make_card(folder).text
    entry = EvalResult("text-generation", "world", "world", "accuracy", 0.95)
    register_section("promise", lambda found: ResultsSection("Promised", [f"{found['promised']:.0%}"], {}, [entry]))
    card = make_card(folder)
    assert "### Promised\n\n95%" in card.text and card.data.eval_results == [entry]
    with pytest.raises(ValueError, match="already registered"):
        register_section("promise", lambda found: None)


TAGS = {"h1", "h2", "h3", "p", "ul", "li", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "img", "a"}
HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}{% for x in y %}",
    "$x$ \\(y\\) `code` *b* _i_ [l](javascript:alert(1)) ![p](http://x/y.png)",
    "line\nbreak\r\n---\nlicense: mit\n---\n# Heading",
    "name: value # comment",
    "&lt;b&gt; \u202eoverride\u200b \x00\x1b[31m",
    "| --- |\n| x |",
    "x" * 5000,
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_values_of_files_are_text(value, folders, tmp_path):
    """Names of data sets, files, groups, families and modes are shown as text, whatever they hold."""
    before = make_card(folders("chains"))
    folder = folders.copy_of("chains", tmp_path)
    for name in ("evaluation.json", "depth_sweep.json"):
        path = folder / "results" / name
        document = json.loads(path.read_text())
        document["data"] |= {"path": value, "split": value, "kind": value, "group_column": value}
        document["model"]["name_or_path"] = value
        for group in document["groups"]:
            group["group"] = value
        path.write_text(json.dumps(document))
    (folder / "training_data.json").write_text(json.dumps({"kind": "chains", "folder": value, "rows": {value: 3}}))
    run = json.loads((folder / "run.json").read_text())
    run["fingerprint"] |= {"model.path": value, "training.optim": value, "training.lr_scheduler_type": value}
    (folder / "run.json").write_text(json.dumps(run))
    state = json.loads((folder / "trainer_state.json").read_text())
    state["log_history"].append({"eval_" + value: 0.5, "step": 4})
    (folder / "trainer_state.json").write_text(json.dumps(state))
    card = make_card(folder, "user/model")
    assert_is_true_card(card)
    text = str(card)
    assert not re.search(r"\{\{|\{%|\b49\b|\x1b|\u202e|x{300}", text)
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    tags = set(re.findall(r"<(\w+)", rendered.replace(CARD_MARK, "")))
    assert tags <= TAGS
    assert set(re.findall(r'src="([^"]*)"', rendered)) == {"results/depth_sweep.png"}
    assert all(link.startswith("https://huggingface.co/") for link in re.findall(r'href="([^"]*)"', rendered))
    assert set(read_metadata(text)) == set(read_metadata(str(before))) | ({"base_model"} & set(read_metadata(text)))
    headings = [line for line in text.splitlines() if line.startswith("#")]
    expected = [line for line in str(before).splitlines() if line.startswith("#")]
    assert [line for line in headings if line not in ("# model", "## Base")] == expected[1:]


def test_control_an_unescaped_value_breaks_the_card():
    rendered = MarkdownIt("commonmark", {"html": True}).render(HOSTILE[1])
    assert "<script>" in rendered and "<script" not in MarkdownIt().render(plain(HOSTILE[1]))
    text = plain("a|b <script> {{ x }} $y$ `z`")
    assert not set("|<{$") & set(text) and "\\`" in text
    assert code("kl_threshold=0.1") == "`kl_threshold=0.1`" and "`" not in code("a`b").replace("\\`", "")
    assert yaml.safe_load(f"- {plain('x: y')}") != ["x: y"]


@pytest.mark.parametrize(
    "path", ["/home/somebody", "/Users/somebody", "C:\\Users\\somebody", "/root", "/", "..", "/data"]
)
def test_a_path_that_may_be_a_name_is_a_local_folder(path):
    assert last_part(path) == LOCAL_FOLDER


@pytest.mark.parametrize("path", ["/home/somebody/world", "data/world", "C:\\data\\world", "world"])
def test_of_other_paths_the_last_part_is_shown(path):
    assert last_part(path) == "world"


def test_this_user_and_this_machine_are_not_named(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "somebody")
    monkeypatch.setattr("socket.gethostname", lambda: "workstation7.example")
    assert last_part("data/somebody-world") == last_part("runs_workstation7") == LOCAL_FOLDER
    folder = folders.copy_of("chains", tmp_path)
    path = folder / "training_data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "folder": "/mnt/data-of-somebody"}))
    assert "somebody" not in str(make_card(folder)) and "from a local folder" in make_card(folder).text
    assert private_lines("see /home/x")


def test_a_quantised_model_says_so_and_counts_nothing(folders, tmp_path):
    folder = folders.copy_of("bare", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    card = make_card(folder, base_model="owner/base")
    assert_is_true_card(card)
    assert "The weights are quantised (bitsandbytes)." in card.text and "Parameters" not in card.text
    assert (card.data.base_model, card.data.base_model_relation) == ("owner/base", "quantized")
