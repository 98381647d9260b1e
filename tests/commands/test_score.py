"""memreason score as a user runs it."""

import json
import re
import threading

import evaluate
import pytest
import torch
from chat_servers import HTML, Fault, chat_server
from paths import PUBLISHED, QUESTIONS
from published_texts import VERDICTS
from refusals import refused
from small_tokenizers import byte_level, llama

from memreason_hf.commands.score import main, make_parser, read_text_columns
from memreason_hf.locks import locked
from memreason_hf.metrics import metric_path
from memreason_hf.steps import StepScheme


SCHEME = StepScheme(1, 2)
STEP = re.compile(r"^(\d+)\. \[(\w+)\] (.*)$", re.MULTILINE)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """evaluate copies the metrics it loads into a cache."""
    load = evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda *a, **k: load(*a, cache_dir=str(tmp_path / "cache"), **k))


def run(*arguments):
    return main([*map(str, arguments), "--no_progress"])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def solution(index, answer="True", memory="Iron is heavy.", marks=True):
    steps = [("memory", memory), ("reason", "So it sinks."), ("answer", f"The answer is: {answer}")]
    if answer is None:
        steps = steps[:-1]
    text = "".join(f"{SCHEME.mark(kind) if marks else 'xx'} {said}\n" for kind, said in steps)
    return f"Question: Is it {index}?\n{text}"


def write(path, items):
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def texts(tmp_path):
    """Right, wrong, missing and wrong-stepped solutions, with a verdict that is not that of the rule."""
    reference = "".join(
        f"{SCHEME.mark(k)} {t}\n" for k, t in [("memory", "Iron is heavy."), ("reason", "So it sinks.")]
    )
    reference += f"{SCHEME.mark('answer')} The answer is: True\n"
    said = [
        solution(0),
        solution(1, "False"),
        solution(2, None),
        solution(3, memory="Iron is light."),
        solution(4, "False", memory="Iron is light."),
    ]
    verdicts = ["correct", "correct", "wrong", "correct", "wrong"]
    return write(
        tmp_path / "texts.jsonl",
        [
            {"question": f"Is it {i}?", "text": text, "reference": reference, "verdict": verdict}
            for i, (text, verdict) in enumerate(zip(said, verdicts))
        ],
    )


def test_every_verdict_is_kept(texts, tmp_path, capsys):
    out = tmp_path / "out" / "scores.jsonl"
    assert run(texts, "--judge", "exact", "--output_file", out) == 0
    shown = capsys.readouterr()
    assert "texts.jsonl: 5 texts, 5 questions" in shown.out and "accuracy 40.0% (2 right" in shown.out
    assert "no valid answer 1;" in shown.out and "verdicts in the file: 4 of 5 the same; different: 1" in shown.out
    assert "judge exact, against the known truth of the test bed (60 solutions, 14 changes each):" in shown.out
    assert re.search(r"memory +precision [\d.]+ % +recall [\d.]+ % +false alarms [\d.]+ %", shown.out)
    assert not shown.err
    scores = lines_of(out)
    assert [line["verdict"] for line in scores] == ["correct", "wrong", "wrong", "correct", "wrong"]
    assert [line["answer"] for line in scores] == ["True", "False", None, "True", "False"]
    assert [line["outcome"] for line in scores] == ["none", "answer", "no answer", "memory", "memory"]
    assert [line["step"] for line in scores] == [None, 2, None, 0, 0]
    assert scores[3]["judged"] == ["departs", None, None] and {line["file"] for line in scores} == {"texts.jsonl"}
    summary = json.loads((tmp_path / "out" / "scores.jsonl.summary.json").read_text())
    (part,) = summary["files"].values()
    wrong = {name: n for name, n in part["outcomes"]["wrong"].items() if n}
    assert wrong == {"memory": 1, "answer": 1, "no answer": 1} and part["outcomes"]["right"]["memory"] == 1
    assert part["steps"]["steps_by_kind"] == {"memory": 5, "reason": 5, "answer": 4, "step": 0}
    assert summary["agreement"]["by_kind"]["reason"]["recall"] == 1.0 and summary["judge"] == "exact"
    # The metric on the same texts.
    rows = lines_of(texts)
    metric = evaluate.load(metric_path("answer_accuracy"), keep_in_memory=True)
    expected = metric.compute(
        predictions=[row["text"] for row in rows],
        references=[row["reference"] for row in rows],
        questions=[row["question"] for row in rows],
    )
    for name in ("accuracy", "accuracy_interval", "num_items", "num_questions", "num_invalid_answers"):
        assert part[name] == expected[name]
    assert "already exist" in refused(capsys, run, texts, "--output_file", out)
    assert run(texts, "--judge", "none", "--output_file", out, "--overwrite") == 0
    assert "outcome" not in lines_of(out)[0]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the authors' files in ../shared/data")
@pytest.mark.parametrize("name", VERDICTS)
def test_published_verdicts_item_by_item(name, tmp_path, capsys):
    data, num_items, num_right, _ = VERDICTS[name]
    out = tmp_path / "scores.jsonl"
    arguments = ["--data", QUESTIONS, "--name", data, "--judge", "none", "--output_file", out]
    assert run(PUBLISHED / name, *arguments) == 0
    text = capsys.readouterr().out
    assert f"{num_items:,} texts" in text and f"({num_right} right" in text
    assert f"verdicts in the file: {num_items:,} of {num_items:,} the same" in text
    published = [item["result"] for item in json.loads((PUBLISHED / name).read_text())]
    scores = lines_of(out)
    assert [line["verdict"] for line in scores] == published == [line["verdict_in_file"] for line in scores]
    assert [line["index"] for line in scores] == list(range(num_items))
    assert all(line["has_marks"] for line in scores)


def test_texts_without_readable_marks_get_a_warning_and_no_numbers(tmp_path, capsys):
    """Texts as those of a model whose new tokens decode to unrelated words."""
    items = [{"text": solution(i, marks=False), "reference": "True"} for i in range(4)]
    out = tmp_path / "s.jsonl"
    assert run(write(tmp_path / "none.jsonl", items), "--output_file", out) == 0
    shown = capsys.readouterr()
    assert (
        "warning: none.jsonl: no text shows readable marks of steps, so nothing is said about their steps" in shown.err
    )
    assert "accuracy 100.0% (4 right" in shown.out and "steps by kind: not counted" in shown.out
    assert "memory" not in shown.out and "first departure" not in shown.out
    (part,) = json.loads((tmp_path / "s.jsonl.summary.json").read_text())["files"].values()
    assert part["steps"] is None and part["outcomes"] is None and part["num_with_marks"] == 0
    # Some texts with marks: the numbers are theirs.
    items += [{"text": solution(9), "reference": "True"}]
    assert run(write(tmp_path / "some.jsonl", items)) == 0
    shown = capsys.readouterr()
    assert "warning: some.jsonl: 4 of 5 texts show no readable marks" in shown.err
    assert "steps: those of the 1 of 5 texts that show readable marks" in shown.out
    assert re.search(r"generated steps +1 +1 +1 +0\n", shown.out)
    # Controls: marks in words are read if the scheme says so; a scheme without marks expects none.
    words = [{"text": "Memory: Iron is heavy.\nAnswer: The answer is: True", "reference": "True"}]
    path = write(tmp_path / "words.jsonl", words)
    assert run(path) == 0 and "no text shows readable marks" in capsys.readouterr().err
    for marks, counts in (("words", "1 +0 +1 +0"), ("none", "0 +0 +0 +2")):
        assert run(path, "--marks", marks) == 0
        shown = capsys.readouterr()
        assert not shown.err and re.search(rf"generated steps +{counts}\n", shown.out)


def test_several_files_and_named_columns(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [
        write(tmp_path / folder / "x.jsonl", [{"out": f"The answer is: {said}", "gold": 12}] * 2)
        for folder, said in (("a", "12.0"), ("b", "13"))
    ]
    out = tmp_path / "s.jsonl"
    columns = "text=out, reference=gold"
    assert run(*paths, "--columns", columns, "--marks", "none", "--output_file", out) == 0
    text = capsys.readouterr().out
    assert re.search(r"^a/x\.jsonl +2 +100\.0", text, re.MULTILINE) and re.search(
        r"^b/x\.jsonl +2 +0\.0", text, re.MULTILINE
    )
    assert "steps are not judged: no text has both readable marks and reference steps" in text
    assert [(line["file"], line["verdict"]) for line in lines_of(out)] == [("a/x.jsonl", "correct")] * 2 + [
        ("b/x.jsonl", "wrong")
    ] * 2
    assert str(tmp_path) not in out.read_text() + (tmp_path / "s.jsonl.summary.json").read_text()
    assert read_text_columns({"text": "a"}) == {"text": "a"} and read_text_columns(None) == {}


def test_a_data_set_for_each_file(tmp_path, capsys):
    """Files of two data sets of one folder: named in the order of the files, or in the settings beside them."""
    folder = tmp_path / "json"
    folder.mkdir()
    question = {"StrategyQA": ("Is it cold?", "True"), "TruthfulQA": ("Is it so? A. yes B. no", "B")}
    files = {"StrategyQA": "StrategyQA_{}_clean.json", "TruthfulQA": "truthful_qa_{}_clean_CC.json"}
    paths = []
    for name, (asked, right) in question.items():
        for split, said in (("train", f"Or: {asked}"), ("test", asked)):
            row = {"question": said, "answer": right, "cot_steps": ["[rag]: it", "[reason]: so"]}
            (folder / files[name].format(split)).write_text(json.dumps([row]))
        paths.append(write(tmp_path / f"{name}.jsonl", [{"text": f"Question: {asked}\nThe answer is: {right}"}]))
    flags = ["--data", folder, "--judge", "none", "--marks", "none"]
    assert run(*paths, *flags, "--name", "strategy_qa,truthful_qa") == 0
    text = capsys.readouterr().out
    assert re.search(r"StrategyQA\.jsonl +1 +100", text) and re.search(r"TruthfulQA\.jsonl +1 +100", text)
    # Controls: the names in the other order, one name for both, and too many.
    for names, message in (
        ("truthful_qa,strategy_qa", "begins with no question of the 1 items"),
        ("strategy_qa", "begins with no question of the 1 items"),
        ("strategy_qa,truthful_qa,gsm8k", "names 3 data sets for 2 files"),
    ):
        assert message in refused(capsys, run, *paths, *flags, "--name", names)
    # Files of memreason evaluate-steps say which data set they are of.
    ours = []
    for path, name, (asked, right) in zip(paths, ("strategy_qa", "truthful_qa"), question.values()):
        line = {"index": 0, "question": asked, "text": path.read_text(), "steps": [], "verdict": "correct"}
        line |= {"answer": right, "reference": right, "is_truncated": False, "is_cut": False, "num_tokens": 1}
        line["text"] = f"Question: {asked}\nThe answer is: {right}"
        ours.append(write(tmp_path / f"ours_{path.name}", [line]))
        (tmp_path / f"ours_{path.name}.settings.json").write_text(json.dumps({"name": name}))
    assert run(*ours, *flags) == 0 and "verdicts in the file: 1 of 1 the same" in capsys.readouterr().out
    assert "With --name or --data_name, name the data set" in refused(capsys, run, *paths, *flags)


def test_types_of_answers_and_the_lenient_rule(tmp_path, capsys):
    """Own data with free text, of which some answers look like numbers, and a rule that reads markup."""
    questions = [
        {"question": "Which river?", "answer": "the Nile", "accepted_answers": ["Nile River"]},
        {"question": "Which route?", "answer": "66"},
    ]
    data = write(tmp_path / "test.jsonl", questions)
    texts = [{"question": q["question"], "text": text} for q, text in zip(questions, ("Nile river.", "**66**"))]
    texts = [{**item, "text": f"The answer is: {item['text']}"} for item in texts]
    path, out = write(tmp_path / "t.jsonl", texts), tmp_path / "s.jsonl"
    flags = ["--data", data, "--marks", "none", "--judge", "none", "--output_file", out, "--overwrite"]
    assert run(path, *flags) == 0
    assert [line["verdict"] for line in lines_of(out)] == ["correct", "correct"]
    items = [{"text": f"Answer: **({letter})**", "reference": "B", "options": ["x", "y"]} for letter in "BA"]
    path = write(tmp_path / "l.jsonl", items)
    for rule, verdicts in (("published", ["wrong", "wrong"]), ("lenient", ["correct", "wrong"])):
        assert run(path, *flags[2:], "--answer_rule", rule) == 0
        assert [line["verdict"] for line in lines_of(out)] == verdicts
    assert "answer='B' must be a number" in refused(
        capsys, run, path, "--answer_type", "number", "--columns", "text=text"
    )


def knowing(call):
    """An endpoint that knows that iron is heavy."""
    return json.dumps({n: "departs" if "light" in text else "agrees" for n, _, text in STEP.findall(call.prompt)})


def llm_at(server, *flags):
    return ["--judge", "llm", "--llm", "scripted", "--endpoint", server.url, *flags]


def test_a_language_model_judges_without_reference_steps(tmp_path, capsys):
    items = [
        {"question": f"Is it {i}?", "text": solution(i, ("True", "False")[i % 2]), "reference": "True"}
        for i in range(4)
    ]
    items[1]["text"] = solution(1, "False", memory="Iron is light.")
    items[2]["text"] = solution(2, "True", memory="Iron is light.")
    path, out = write(tmp_path / "t.jsonl", items), tmp_path / "s.jsonl"
    with chat_server(knowing) as server:
        assert run(path, *llm_at(server), "--agreement", 2, "--output_file", out) == 0
        num_calls = len(server.calls)
        text = capsys.readouterr().out
        assert "judge scripted, against the known truth of the test bed (2 solutions, 14 changes each):" in text
        assert re.search(r"memory +precision - +recall 0\.0 %", text)
        assert f"scripted was asked {num_calls:,} times" in text
        assert [line["outcome"] for line in lines_of(out)] == ["none", "memory", "memory", "answer"]
        (part,) = json.loads((tmp_path / "s.jsonl.summary.json").read_text())["files"].values()
        assert part["outcomes"]["right"]["memory"] == part["outcomes"]["wrong"]["memory"] == 1
        # The same again: every reply is in the file next to the scores.
        before = out.read_bytes()
        assert run(path, *llm_at(server), "--agreement", 2, "--output_file", out, "--overwrite") == 0
        assert len(server.calls) == num_calls and out.read_bytes() == before
        assert "scripted was asked 0 times" in capsys.readouterr().out
    background, prompt = tmp_path / "facts.txt", tmp_path / "prompt.txt"
    background.write_text("Iron rusts.")
    prompt.write_text("{background}|{question}|{right_answer}|\n{steps}")
    with chat_server(knowing) as server:
        flags = ["--judge_background", background, "--judge_prompt", prompt, "--agreement", 0]
        assert run(path, *llm_at(server), *flags) == 0
        # Requests run at the same time, in any order.
        first = "Iron rusts.\n\n|Is it 0?|The right answer: True\n|\n1. [memory]"
        assert any(call.prompt.startswith(first) for call in server.calls)
        assert "against the known truth" not in capsys.readouterr().out


def test_a_judge_that_cannot_be_used_ends_with_one_line(texts, tmp_path, capsys):
    out = tmp_path / "s.jsonl"
    for answer, message in (
        (lambda call: "I would say yes.", "judge 'scripted': none of its replies about 8 solutions can be read"),
        (lambda call: Fault(200, {"Content-Type": "text/html"}, HTML), "answers with a web page"),
    ):
        with chat_server(answer) as server:
            error = refused(capsys, run, texts, *llm_at(server), "--output_file", out)
        assert message in error and not out.exists()
    assert not list(tmp_path.glob("s.jsonl*"))


def test_a_model_on_this_machine_as_judge(tmp_path, capsys):
    """Through its chat template. A model without training writes nonsense, which is said in one line."""
    tokenizer = byte_level(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    torch.manual_seed(0)
    model = llama(len(tokenizer))
    for folder in ("judge", "plain"):
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
        tokenizer.chat_template = None
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{question} {steps}")
    items = [{"question": "Is it 0?", "text": solution(0), "reference": "True"}]
    path = write(tmp_path / "t.jsonl", items)
    flags = ["--judge", "llm", "--judge_prompt", prompt, "--llm_max_tokens", 4, "--judge_tries", 1, "--agreement", 0]
    message = refused(capsys, run, path, *flags, "--llm", tmp_path / "judge")
    assert "none of its replies about 1 solution can be read. The reply holds no JSON object with verdicts" in message
    assert "It was cut off at 4 tokens" in message
    assert "has no chat template" in refused(capsys, run, path, *flags, "--llm", tmp_path / "plain")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--judge", "llm"], "llm is not given. Pass --llm MODEL"),
        (["--llm", "x"], "llm='x' is for a language model as judge. Add --judge llm"),
        (["--judge", "me"], "invalid choice: 'me'"),
        (["--judge_prompt", "x"], "judge_prompt='x' is for a language model as judge"),
        (["--agreement", "-1"], "agreement=-1 must be at least 0"),
        (["--columns", "text"], "columns='text' must name columns as in text=output,reference=gold"),
        (["--columns", "text=words"], "line 1: lacks the column 'words'"),
        (["--name", "strategy_qa"], "name='strategy_qa' is of a data set of --data, which is not given"),
        (["--data", "nowhere"], "data='nowhere': nowhere is no file or folder here"),
        (["nowhere.jsonl"], "files='nowhere.jsonl': no such file"),
        (["--concurrency", "0"], "concurrency=0 is for a language model as judge. Add --judge llm, or leave it out"),
        (["--agreement", "99999"], "agreement=99999 must be at most 10,000"),
        (["--marks", "dots"], "marks='dots' must be one of tokens"),
        (["--output_file", "."], "is a folder"),
        (["--judge", "llm", "--llm", "x", "--endpoint", "http://x", "--judge_prompt", "p.txt"], "p.txt: No such file"),
    ],
)
def test_bad_requests_end_with_one_line(texts, capsys, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, run, texts, *flags)


def test_bad_files_end_with_one_line(texts, tmp_path, capsys):
    assert "files is not given" in refused(capsys, run)
    assert "texts.jsonl is given twice" in refused(capsys, run, texts, texts)
    path = write(tmp_path / "p.json", [{"generated_text": "a", "result": "wrong"}])
    assert "p.json, text 0: the right answer is not known. Name its column" in refused(capsys, run, path)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Is {steps} right?")
    flags = ["--judge", "llm", "--llm", "x", "--endpoint", "http://127.0.0.1:9/v1", "--judge_prompt", prompt]
    assert "the field {question} is missing, so the judge would not see it" in refused(capsys, run, texts, *flags)
    (tmp_path / "s.jsonl.replies.jsonl").write_text("of somebody else\n")
    with chat_server(knowing) as server:
        message = refused(capsys, run, texts, *llm_at(server), "--output_file", tmp_path / "s.jsonl")
    assert "s.jsonl.replies.jsonl, line 1: must hold a reply of a judge" in message


def test_one_process_at_a_time_writes_a_file(texts, tmp_path, capsys):
    out, taken, done = tmp_path / "out" / "s.jsonl", threading.Event(), threading.Event()

    def hold():
        with locked(out):
            taken.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait(60)
    try:
        assert "s.jsonl is in use by" in refused(capsys, run, texts, "--output_file", out)
    finally:
        done.set()
        thread.join()
    assert run(texts, "--output_file", out, "--judge", "none") == 0
    assert {path.name for path in out.parent.iterdir()} == {"s.jsonl", "s.jsonl.summary.json"}


def test_recipes_and_help(texts, tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"inputs: {{files: ['{texts}'], columns: {{text: text}}}}\njudge: {{judge: none}}\n")
    assert run(recipe) == 0
    assert "5 texts" in capsys.readouterr().out
    text = make_parser().format_help(shows_all=False)
    assert "[RECIPE.yaml] FILES... [--flag value ...]" in text and "--llm_device" not in text
