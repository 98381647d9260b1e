"""What must not leave is found in every format, and what may leave is not refused."""

import bz2
import gzip
import json
import random
import string
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from safetensors.torch import save_file

from memreason_hf.hub.inspection import Finding, inspect_files, refuse_private
from memreason_hf.hub.private_text import Machine


MACHINE = Machine(user="ada", host="node17", folders=("/srv/people/ada", "/srv/people/ada/work"))
RNG = random.Random()


def letters(count, alphabet=string.ascii_letters + string.digits):
    """Random characters with at least one digit."""
    text = "".join(RNG.choices(alphabet, k=count - 1))
    place = RNG.randrange(count)
    return text[:place] + RNG.choice(string.digits) + text[place:]


# Texts that look like secrets, made anew each time: none may stand in a file of this repository.
TOKENS = {
    "hub": lambda: "hf_" + letters(34),
    "openai": lambda: "sk-" + letters(40),
    "openai project": lambda: "sk-proj-" + letters(60),
    "anthropic": lambda: "sk-ant-api03-" + letters(60),
    "aws": lambda: "AKIA" + letters(16, string.ascii_uppercase + string.digits),
    "github": lambda: "ghp_" + letters(36),
    "github, fine-grained": lambda: "github_pat_" + letters(50),
    "gitlab": lambda: "glpat-" + letters(20),
    "slack": lambda: "xoxb-" + letters(24),
    "groq": lambda: "gsk_" + letters(52),
    "replicate": lambda: "r8_" + letters(37),
    "docker": lambda: "dckr_pat_" + letters(27),
    "sendgrid": lambda: f"SG.{letters(22)}.{letters(43)}",
    "azure": lambda: f"AccountKey={letters(86)}==",
    "header": lambda: f"Authorization: Bearer {letters(32)}",
    "google": lambda: "AIza" + letters(35),
    "json web token": lambda: f"eyJ{letters(20)}.eyJ{letters(40)}.{letters(30)}",
    "url": lambda: f"https://ada:{letters(12)}@example.org/x.git",
    "private key": lambda: "-----BEGIN " + "RSA PRIVATE KEY-----",
    "field": lambda: f'"hub_token": "{letters(20)}"',
    "variable": lambda: f"export MY_API_KEY={letters(20)}",
}
PATHS = [
    "/home/ada/runs/x",
    "/Users/ada/x.json",
    "/Volumes/disk/models",
    "/mnt/c/Users/ada",
    "/tmp/tmpx1/model",
    "/gpfs/project/ada",
    "/var/folders/1x/y",
    r"C:\Users\ada\x",
    r"D:\\Users\\ada\\x",
    "c:/Users/ada/x",
    "/c/Users/ada/x",
    "file:///srv/x/y",
    "%2Fhome%2Fada%2Fx",
    "/srv/people/ada/notes",
]
HARMLESS = [
    "https://example.org/home/ada and http://host/Users/x and //cdn/home/x.js",
    "and/or, 1/2/3, a/home/b, ./tmp/x, ../home/x, ~/tmp/x, $HOME/tmp/x, ${DIR}/tmp/x, **/tmp/x",
    "#!/usr/bin/env python, /dev/null, /etc/hosts, /bin/sh, /usr/share/ada",
    "runs/quickstart, data/world, C:\\n, A:\nB: the home, the root, /root",
    "ada is a user of the machine node17; ada/llama is a model, ada@example.org writes",
    "task-sk-learn, risk-adjusted-returns-2024-final-version, hf_hub_download, hf_home, sk-SK",
    "token=tokenizer.pad_token_id secret: none, password=getpass.getpass('password: '), api_key=os.environ['KEY']",
    "<prefix_0><memory_1><reason_2> The answer is: C:/ or D",
    "eos_token: </s>, bos_token_id: 1234567890123456789, sha256: " + "0123456789abcdef" * 4,
]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def inspected(path, **kwargs):
    return inspect_files([path], **{"machine": MACHINE, **kwargs})


@pytest.mark.parametrize("name", ["a.md", "a.json", "a.jsonl", "a.yaml", "a.py", "a.html", "a.csv", "a", "a.svg"])
@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_are_found_and_masked(write, name, kind):
    secret = TOKENS[kind]()
    before = RNG.randrange(50)
    path = write(name, "x: y\n" * before + f"text {secret} text\nx: y\n")
    (finding,) = inspected(path)
    assert (finding.path, finding.line, finding.kind) == (name, before + 1, "token")
    # Neither a finding nor a message shows the secret itself.
    with pytest.raises(ValueError, match=f"{name}, line {before + 1}") as refused:
        refuse_private([path], machine=MACHINE)
    shown = str(finding) + str(refused.value)
    assert not any(secret[i : i + 10] in shown for i in range(4, len(secret) - 10)) or kind in ("private key", "url")


@pytest.mark.parametrize("text", PATHS)
@pytest.mark.parametrize("name", ["a.md", "a.json", "a.jsonl", "a.html", "a.py", "tokenizer_config.json", "x.bin"])
def test_absolute_paths_are_found(write, name, text):
    written = json.dumps({"text": f"see\n{text}"}) if ".json" in name else f"see <b>'{text}'</b>"
    path = write(name, "{}\n" * 3 + written + "\n")
    found = inspected(path)
    assert {(finding.line, finding.kind) for finding in found} == {(4, "absolute path")}
    # The control: without the path there is nothing.
    assert not inspected(write(name, "{}\n" * 3 + written.replace(json.dumps(text)[1:-1], "").replace(text, "")))


@pytest.mark.parametrize("name", ["a.md", "a.json", "a.jsonl", "a.py", "a.yaml", "README.md"])
@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_texts_pass(write, name, text):
    assert inspected(write(name, json.dumps({"text": text}) if ".json" in name else text)) == []


def test_whole_values_of_settings_are_paths_in_any_folder(write):
    for value in ("/data7/models/x", "E:\\models\\x", "\\\\server\\models\\x"):
        (finding,) = inspected(write("config.json", json.dumps({"a": 1, "name_or_path": value}, indent=2)))
        assert (finding.line, finding.kind) == (3, "absolute path")
        assert inspected(write("data.jsonl", json.dumps({"text": value}))) == []
    assert inspected(write("a.yaml", "a: 1\npath: /data7/models/x\n"))[0].line == 2
    assert inspected(write("a.yaml", "a: 1\nfiles:\n  - /data7/texts/*.jsonl\n"))[0].line == 3
    assert inspected(write("a.yaml", "a: 1\npath: data7/models/x\nurl: https://x.org/a/b\n")) == []


def test_paths_that_exist_here_are_found_in_any_folder(write):
    # The folder of this file, wherever it was cloned to.
    here = Path(__file__).parent
    assert inspected(write("a.md", f"In {here} it ran."))[0].kind == "absolute path"
    assert inspected(write("a.md", "In /data7/unknown/folder it ran.")) == []


@pytest.mark.parametrize("name", ["user", "model", "root", "gpt-2", "data", "llama", "a"])
def test_a_common_name_does_not_refuse_every_text(write, name):
    machine = Machine(user=name, host=name, folders=(f"/{name}", "/"))
    text = f"The {name} of {name}: {name}/{name}-7b, a {name} model for a user. {name}@example.org"
    assert inspected(write("README.md", text), machine=machine) == []
    assert inspected(write("config.json", json.dumps({name: name, "model_type": name})), machine=machine) == []
    for private in (f"{name}@{name}:~$", f"http://{name}:8080/", f"scp {name}:/data7", f"/home/{name}/x"):
        assert inspected(write("README.md", private), machine=machine) != []


def test_names_in_known_fields_and_distinctive_hosts(write):
    for key, value in (("user", "ada"), ("hostname", "node17"), ("username", "ada")):
        (finding,) = inspected(write("a.json", json.dumps({"x": 1, key: value}, indent=1)))
        assert (finding.line, finding.kind) == (3, "user or host name")
        assert inspected(write("a.json", json.dumps({key: "someone"}))) == []
        # Rows of conversations have such keys.
        assert inspected(write("a.jsonl", json.dumps({key: value}))) == []
    for host in ("3f2a9c1d7e21", "DESKTOP-4AB12CD", "ip-10-0-3-17", "n17.cluster.example.edu"):
        machine = Machine(user="ada", host=host)
        assert inspected(write("a.md", f"It ran on {host}."), machine=machine)[0].kind == "user or host name"
        assert inspected(write("a.md", f"It ran on x{host}y."), machine=machine) == []


def test_tensorboard_files_name_the_machine(write):
    path = write("runs/events.out.tfevents.1700000000.node17.12.0", b"\0\1\2")
    assert {finding.kind for finding in inspected(path)} == {"user or host name"}


def test_values_of_this_process_are_found(write, monkeypatch):
    secret, other = letters(24), letters(24)
    monkeypatch.setenv("SOME_SERVICE_TOKEN", secret)
    monkeypatch.setenv("SOME_SERVICE_NAME", other)
    monkeypatch.setenv("SHORT_TOKEN", "model")
    monkeypatch.setenv("HF_TOKEN", "the-token")
    (finding,) = inspect_files([write("a.md", f"{other} is a model\n{secret}")])
    assert (finding.line, finding.kind) == (2, "token") and "$SOME_SERVICE_TOKEN" in finding.excerpt
    # The user's own token is one however it looks, and so is one that is passed.
    assert inspect_files([write("a.md", "the-token")])[0].kind == "token"
    assert inspect_files([write("a.md", "given")], secrets=["given"])[0].kind == "token"
    assert inspect_files([write("a.md", "nothing")]) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("run.json", "record of a run"),
        ("training_args.bin", "training state"),
        ("checkpoint-5/optimizer.pt", "training state"),
        ("checkpoint-5/rng_state_1.pth", "training state"),
        ("global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "training state"),
        ("__0_0.distcp", "training state"),
        ("data.pkl", "pickle"),
        (".env", "credentials"),
        (".env.local", "credentials"),
        ("server.pem", "credentials"),
        (".git/config", "credentials"),
        ("all.zip", "archive"),
    ],
)
def test_files_of_some_kinds_are_refused_as_such(write, tmp_path, name, kind):
    write(name, "{}")
    (finding,) = inspected(tmp_path / "folder")
    assert (finding.path, finding.line, finding.kind) == (name, None, kind)
    assert inspected(tmp_path / "folder", allow=[name]) == []


def test_pickles_are_recognised_by_their_content(write, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
    torch.save({"a": torch.zeros(2)}, folder / "old.bin", _use_new_zipfile_serialization=False)
    np.save(folder / "objects.npy", np.array([{}, None], dtype=object))
    np.savez(folder / "objects.npz", x=np.array([{}, None], dtype=object))
    np.save(folder / "numbers.npy", np.arange(5))
    np.savez(folder / "numbers.npz", x=np.arange(5))
    found = {finding.path for finding in inspected(folder)}
    assert found == {"pytorch_model.bin", "old.bin", "objects.npy", "objects.npz"}


def test_headers_of_weights_are_read_but_not_the_weights(tmp_path):
    path = tmp_path / "model.safetensors"
    values = torch.frombuffer(bytearray(b"/home/ada/x " * 1000), dtype=torch.uint8)
    save_file({"a": values}, path, metadata={"format": "pt"})
    assert inspected(path) == []
    save_file({"a": values}, path, metadata={"format": "pt", "made_in": "/data7/runs/ada"})
    (finding,) = inspected(path)
    assert (finding.kind, finding.place) == ("absolute path", "metadata") and "/data7/runs/ada" in finding.excerpt


def test_a_sparse_file_of_many_gigabytes_takes_no_time(tmp_path):
    path = tmp_path / "model.safetensors"
    size = 64 << 30
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    start = time.perf_counter()
    assert inspected(path) == []
    assert time.perf_counter() - start < 5


def test_rows_and_metadata_of_tables(tmp_path):
    rows = [{"text": f"row {index}", "steps": [{"kind": "a", "text": "b\nc"}]} for index in range(10_000)]
    rows[7777]["text"] = f"my token\nis {TOKENS['hub']()}"
    rows[8888]["steps"][0]["text"] = "see\n/home/ada/x"
    dataset = Dataset.from_list(rows)
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", next((tmp_path / "saved").glob("*.arrow"))):
        found = [(finding.line, finding.kind, finding.place) for finding in inspected(path)]
        assert found == [(7778, "token", "row"), (8889, "absolute path", "row")]
    table = pa.table({"a": [1]}).replace_schema_metadata({"info": json.dumps({"cache": "/data7/cache/x"})})
    pq.write_table(table, tmp_path / "b.parquet")
    assert [finding.place for finding in inspected(tmp_path / "b.parquet")] == ["metadata"]


def test_metadata_of_pictures(tmp_path):
    for name in ("a.png", "a.pdf", "a.svg"):
        figure = Figure()
        figure.subplots().set_title("runs")
        figure.savefig(tmp_path / name)
        assert inspected(tmp_path / name) == []
        figure.savefig(tmp_path / name, metadata={"Title": "made in /home/ada/runs"})
        assert inspected(tmp_path / name)[0].kind == "absolute path"
    # Compressed texts, as some programs write them.
    packed = b"Comment\0\0" + zlib.compress(b"from /home/ada/x")
    whole = (tmp_path / "a.png").read_bytes()
    for kind, content in ((b"zTXt", packed), (b"iTXt", b"Comment\0\1\0\0\0" + packed[9:])):
        chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        (tmp_path / "b.png").write_bytes(whole[:33] + chunk + whole[-12:])
        assert inspected(tmp_path / "b.png")[0].place == f"{kind.decode()} chunk"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_compressed_lines_are_read(write, suffix, pack):
    content = '{"a": 1}\n' * 5000 + '{"a": "/home/ada/x"}\n'
    assert inspected(write(f"a.jsonl{suffix}", pack(content.encode())))[0].line == 5001


def test_other_encodings_and_broken_files(write):
    assert inspected(write("a.txt", "see /home/ada/x".encode("utf-16")))[0].kind == "absolute path"
    assert inspected(write("a.txt", "siehe „/home/ädä/x“".encode()))[0].kind == "absolute path"
    for name in ("a.safetensors", "a.parquet", "a.arrow", "a.png", "a.pdf", "a.npz", "a.json"):
        assert inspected(write(name, "cut off at /home/ada/x"))[0].kind == "absolute path"
        assert inspected(write(name, b"")) == []


@pytest.mark.parametrize("length", [(1 << 20) - 5, (1 << 20) + 3, (1 << 22) - 11])
def test_long_lines_are_read_in_pieces_that_overlap(write, length):
    text = "x" * length + " /home/ada/secret-place " + "y" * RNG.randrange(3 << 20) + "\n/home/ada/z\n"
    found = inspected(write("a.jsonl", text))
    assert [(finding.line, finding.excerpt) for finding in found] == [
        (1, "/home/ada/secret-place"),
        (2, "/home/ada/z"),
    ]


def test_what_is_accepted(write, tmp_path):
    folder, secret = tmp_path / "folder", TOKENS["hub"]()
    write("notes/a.md", f"/home/ada/x\n{secret}\n/home/ada/y\n")
    write("run.json", f'{{"token": "{secret}"}}')
    lines = lambda **kwargs: [(f.path, f.line) for f in inspected(folder, **kwargs)]  # noqa: E731
    everything = [("run.json", None), ("run.json", 1), ("notes/a.md", 1), ("notes/a.md", 2), ("notes/a.md", 3)]
    assert lines() == everything
    assert lines(allow=["a.md:3"]) == everything[:-1]
    # Nobody accepts a token by accepting a file.
    assert lines(allow=["notes/*.md", "run.json"]) == [("run.json", 1), ("notes/a.md", 2)]
    assert lines(allow=["notes/*.md", "run.json", "notes/a.md:2", "run.json:1"]) == []
    assert lines(allow=["b.md", "notes", "a.md:4"]) == everything


def test_a_token_behind_any_number_of_accepted_lines_is_found(write):
    """Prose about paths is accepted by the file; the search goes on behind the first hundred places."""
    rows = [{"text": f"In Linux, files are in /home/user{index}/Documents."} for index in range(9000)]
    rows[8500]["text"] += f" {TOKENS['hub']()}"
    path = write("train.parquet", b"")
    Dataset.from_list(rows).to_parquet(path)
    # A control: where nothing is accepted, the report is cut.
    assert len(inspected(path)) == 100
    assert [(finding.line, finding.kind) for finding in inspected(path, allow=["*.parquet"])] == [(8501, "token")]


def test_the_refusal_is_one_line_that_says_where_and_what_to_do(write, tmp_path):
    for index in range(9):
        write(f"a{index}.md", "x\n/home/ada/x\n")
    with pytest.raises(ValueError) as refused:
        refuse_private([tmp_path / "folder"], machine=MACHINE)
    message = str(refused.value)
    assert "\n" not in message
    assert "a0.md, line 2 (absolute path: /home/ada/x)" in message and "and 4 more" in message
    assert "for example a0.md:2" in message
    assert refuse_private([tmp_path / "folder"], machine=MACHINE, allow=["*.md"]) is None


def test_names_of_files_are_read_too(write, tmp_path):
    write("home/ada/x.md", "nothing")
    write(f"{TOKENS['hub']()}.md", "nothing")
    (finding,) = inspected(tmp_path / "folder")
    assert (finding.kind, finding.place) == ("token", "its name")
    assert isinstance(finding, Finding)


def test_missing_files_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        inspect_files([tmp_path / "missing.md"])
