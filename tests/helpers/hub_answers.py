"""What the local Hub answers to each request of huggingface_hub's client."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

import yaml
from hub_metadata import check_metadata, read_metadata
from hub_repos import Commit, HubError, PullRequest, Repo, Repositories, Token


_PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass
class Call:
    """
    A request after its body has been read.

    Attributes:
        hub: the server: `url`, `storage_url`, `repositories`, `page_size`, `largest_regular_file`.
        body: the content; None where it went to a file.
        token: who asks; None for nobody.
    """

    hub: object
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict
    body: bytes | None
    token: Token | None
    groups: dict[str, str] = field(default_factory=dict)

    @property
    def repositories(self) -> Repositories:
        return self.hub.repositories

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def group(self, name: str) -> str:
        return unquote(self.groups[name])

    def repo(self, **options) -> Repo:
        type = self.groups.get("type") or "models"
        return self.repositories.find(self.group("repo"), type.rstrip("/").removesuffix("s"), self.token, **options)


@dataclass
class Answer:
    """A status, headers, and a content: an object for JSON, bytes, or a file that is sent with ranges."""

    content: object = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None


ROUTES: list[tuple[str, re.Pattern, Callable[[Call], Answer]]] = []
_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/(?P<type>models|datasets|spaces)/{_REPO}"


def route(method: str, pattern: str):
    """Registers a function that answers a method and a path, which is matched before it is unquoted."""

    def register(function):
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


def answer(call: Call) -> Answer:
    """Finds the route of a request and answers it."""
    for method, pattern, function in ROUTES:
        match = pattern.fullmatch(call.path)
        if match and method == call.method.replace("HEAD", "GET"):
            call.groups = match.groupdict()
            return function(call)
    raise HubError(404, f"Sorry, we can't find the page you are looking for: {call.method} {call.path}")


def page_url(hub, repo: Repo) -> str:
    return f"{hub.url}/{_PREFIXES[repo.type]}{repo.name}"


# Users and repositories.


@route("GET", r"/api/whoami-v2")
def who_am_i(call):
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    return Answer(
        {
            "type": "user",
            "id": call.token.user,
            "name": call.token.user,
            "fullname": call.token.user.title(),
            "isPro": False,
            "orgs": [{"type": "org", "name": name} for name in call.token.organizations],
            "auth": {
                "type": "access_token",
                "accessToken": {"displayName": "test", "role": "write" if call.token.write else "read"},
            },
        }
    )


@route("POST", r"/api/repos/create")
def create_repo(call):
    given = call.json()
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    namespace, type = given.get("organization") or call.token.user, given.get("type") or "model"
    call.repositories.check_writing(call.token, namespace)
    if type == "space" and given.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
        raise HubError(400, "Invalid sdk of a Space")
    private = given.get("visibility") == "private" or bool(given.get("private"))
    options = {"user": call.token.user, "private": private, "sdk": given.get("sdk")}
    name = f"{namespace}/{given['name']}"
    try:
        repo = call.repositories.create(name, type, **options)
    except HubError as error:
        if error.status == 409:
            error.extra["url"] = page_url(call.hub, call.repositories.get(name, type))
        raise
    return Answer({"url": page_url(call.hub, repo), "name": repo.name, "id": repo.name})


@route("DELETE", r"/api/repos/delete")
def delete_repo(call):
    given = call.json()
    name = f"{given.get('organization') or (call.token.user if call.token else '')}/{given['name']}"
    repo = call.repositories.find(name, given.get("type") or "model", call.token, write=True)
    call.repositories.delete(repo)
    return Answer({})


@route("PUT", rf"{_API}/settings")
def change_settings(call):
    repo, given = call.repo(write=True), call.json()
    repo.private = given.get("private", given.get("visibility", "private" if repo.private else "") == "private")
    repo.gated = given.get("gated", repo.gated)
    return Answer({})


@route("GET", rf"{_API}/auth-check(?P<write>/write)?")
def check_access(call):
    repo = call.repo(write=bool(call.groups["write"]))
    call.repositories.check_files(repo, call.token)
    return Answer({})


@route("GET", r"/api/(?P<type>models|datasets|spaces)")
def list_repos(call):
    type, author = call.groups["type"].removesuffix("s"), call.query.get("author", [None])[0]
    found = []
    for repo in call.repositories.all():
        try:
            call.repositories.find(repo.name, repo.type, call.token)
        except HubError:
            continue
        if repo.type == type and author in (None, repo.namespace):
            found.append(_describe(call, repo, repo.find_commit("main")))
    return Answer(found)


@route("GET", rf"{_API}(/revision/(?P<revision>[^/]+))?")
def repo_info(call):
    repo = call.repo()
    return Answer(_describe(call, repo, repo.find_commit(unquote(call.groups["revision"] or "main"))))


def _describe(call, repo: Repo, commit: Commit) -> dict:
    with_blobs, siblings = call.flag("blobs"), []
    for path, entry in sorted(commit.files.items()):
        sibling = {"rfilename": path}
        if with_blobs:
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.lfs:
                sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": 130}
        siblings.append(sibling)
    card = _card_data(call, commit)
    facts = {
        "_id": repo.name,
        "id": repo.name,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": commit.date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [str(tag) for tag in card.get("tags") or []],
        "siblings": siblings,
        "cardData": card,
    }
    if repo.type == "model":
        facts |= {"modelId": repo.name, "pipeline_tag": card.get("pipeline_tag")}
        facts |= {"library_name": card.get("library_name")}
    if repo.type == "space":
        facts["sdk"] = card.get("sdk", repo.sdk)
    return facts


def _card_data(call, commit):
    entry = commit.files.get("README.md")
    if entry is None:
        return {}
    try:
        return read_metadata(call.repositories.blob(entry.sha256).read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}


@route("POST", r"/api/validate-yaml")
def validate_yaml(call):
    given = call.json()
    errors, warnings = [], []
    try:
        metadata = read_metadata(given["content"])
    except yaml.YAMLError as error:
        errors.append(f"YAML: {error}")
    else:
        if metadata is None:
            warnings.append("empty or missing yaml metadata in repo card")
        elif not isinstance(metadata, dict):
            errors.append("the metadata must be a mapping")
        else:
            errors += check_metadata(metadata, given.get("repoType", "model"))
    content = {
        name: [{"message": text} for text in texts] for name, texts in (("errors", errors), ("warnings", warnings))
    }
    return Answer(content, status=400 if errors else 200)


# Files and folders.


def _describe_entry(path, entry):
    facts = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if entry.lfs:
        facts["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}
    return facts


def _folders(commit: Commit) -> list[str]:
    return sorted(
        {"/".join(path.split("/")[:depth]) for path in commit.files for depth in range(1, path.count("/") + 1)}
    )


@route("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<folder>.*))?")
def list_tree(call):
    commit = call.repo().find_commit(call.group("revision"))
    folder = unquote(call.groups["folder"] or "")
    beginning = f"{folder}/" if folder else ""
    everything = [_describe_entry(path, entry) for path, entry in commit.files.items()]
    everything += [{"type": "directory", "path": path, "size": 0, "oid": commit.oid} for path in _folders(commit)]
    found = sorted((item for item in everything if item["path"].startswith(beginning)), key=lambda item: item["path"])
    if folder and not found:
        raise HubError(404, f"{folder} does not exist on {call.group('revision')}", "EntryNotFound")
    if not call.flag("recursive"):
        found = [item for item in found if "/" not in item["path"][len(beginning) :]]
    start = int(call.query.get("cursor", ["0"])[0])
    page, headers = found[start : start + call.hub.page_size], {}
    if start + len(page) < len(found):
        query = "&".join(f"{key}={quote(values[0])}" for key, values in call.query.items() if key != "cursor")
        headers["Link"] = f'<{call.hub.url}{call.path}?{query}&cursor={start + len(page)}>; rel="next"'
    return Answer(page, headers=headers)


@route("POST", rf"{_API}/paths-info/(?P<revision>[^/]+)")
def paths_info(call):
    commit = call.repo().find_commit(call.group("revision"))
    is_json = "json" in call.headers.get("content-type", "")
    paths = call.json()["paths"] if is_json else parse_qs(call.body.decode()).get("paths", [])
    folders = _folders(commit)
    found = [_describe_entry(path, commit.files[path]) for path in paths if path in commit.files]
    found += [{"type": "directory", "path": path, "size": 0, "oid": commit.oid} for path in paths if path in folders]
    return Answer(found)


@route("GET", rf"/(?P<type>datasets/|spaces/)?{_REPO}/(resolve|raw)/(?P<revision>[^/]+)/(?P<file>.+)")
def resolve(call):
    repo = call.repo()
    call.repositories.check_files(repo, call.token)
    commit, path = repo.find_commit(call.group("revision")), call.group("file")
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    entry = commit.files.get(path)
    if entry is None:
        raise HubError(404, "Entry not found", "EntryNotFound", headers=headers)
    headers["ETag"] = f'"{entry.etag}"'
    if entry.lfs:
        headers |= {"X-Linked-Size": str(entry.size), "X-Linked-ETag": f'"{entry.sha256}"'}
        headers["Location"] = f"{call.hub.storage_url}/files/{entry.sha256}"
        return Answer({}, status=302, headers=headers)
    return Answer(headers=headers, file=call.repositories.blob(entry.sha256))


@route("GET", r"/files/(?P<sha256>[0-9a-f]{64})")
def read_large_file(call):
    return Answer(headers={"ETag": f'"{call.groups["sha256"]}"'}, file=call.repositories.blob(call.groups["sha256"]))


# Uploads and commits.


@route("POST", rf"{_API}/preupload/(?P<revision>[^/]+)")
def preupload(call):
    repo = call.repo()
    _check_commit_rights(call, repo, call.group("revision"))
    commit, files = repo.find_commit(call.group("revision")), []
    ignored = call.json().get("gitIgnore", "").split()
    if ".gitignore" in commit.files and not ignored:
        ignored = call.repositories.blob(commit.files[".gitignore"].sha256).read_text().split()
    for file in call.json()["files"]:
        sample = base64.b64decode(file["sample"])
        largest = call.hub.largest_regular_file
        is_large = call.repositories.is_lfs(commit, file["path"], file["size"], sample, largest)
        entry = commit.files.get(file["path"])
        found = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular"}
        found["shouldIgnore"] = any(fnmatch(file["path"], pattern) for pattern in ignored)
        if entry is not None:
            found["oid"] = entry.etag
        files.append(found)
    return Answer({"files": files, "commitOid": commit.oid})


def _check_commit_rights(call, repo, revision):
    if call.flag("create_pr") or revision.startswith("refs/pr/"):
        # Everybody who may read the files and write somewhere may propose a change.
        call.repositories.check_files(repo, call.token)
        call.repositories.check_writing(call.token, call.token.user if call.token else "")
    else:
        call.repositories.check_writing(call.token, repo.namespace)


@route("POST", rf"/(?P<type>datasets/|spaces/)?{_REPO}\.git/info/lfs/objects/batch")
def lfs_batch(call):
    call.repositories.check_writing(call.token, call.token.user if call.token else "")
    call.repo()
    objects = []
    for given in call.json()["objects"]:
        found = {"oid": given["oid"], "size": given["size"], "authenticated": True}
        blob = call.repositories.blob(given["oid"])
        if not blob.exists() or blob.stat().st_size != given["size"]:
            upload = {"href": f"{call.hub.storage_url}/uploads/{given['oid']}"}
            size = call.hub.part_size
            if size and given["size"] > size:
                count = -(-given["size"] // size)
                parts = {f"{n:05d}": f"{upload['href']}/{n}" for n in range(1, count + 1)}
                upload = {
                    "href": f"{call.hub.url}/complete/{given['oid']}",
                    "header": {"chunk_size": str(size), **parts},
                }
            verify = {"href": f"{call.hub.url}/verify/{given['oid']}"}
            found["actions"] = {"upload": upload, "verify": verify}
        objects.append(found)
    return Answer({"transfer": "basic", "objects": objects})


@route("POST", r"/verify/(?P<sha256>[0-9a-f]{64})")
def verify_upload(call):
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    blob = call.repositories.blob(call.groups["sha256"])
    if not blob.exists() or blob.stat().st_size != call.json()["size"]:
        raise HubError(404, "The uploaded file does not exist or has another size")
    return Answer({})


@route("POST", rf"{_API}/commit/(?P<revision>[^/]+)")
def commit_files(call):
    repo, revision = call.repo(), call.group("revision")
    _check_commit_rights(call, repo, revision)
    lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    with call.repositories.lock:
        parent = repo.find_commit(revision)
        expected = header.get("parentCommit")
        if expected is not None and not parent.oid.startswith(expected):
            if not call.flag("create_pr"):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            parent = repo.find_commit(expected)
        files = _apply(call, lines, parent.files)
        texts = (header["summary"], header.get("description", ""), call.token.user)
        commit = call.repositories.add_commit(repo, parent.oid, *texts, files)
        pull = None
        if call.flag("create_pr"):
            pull = _open(repo, header["summary"], call.token.user, base=revision)
            repo.pull_refs[pull.ref] = commit.oid
        elif revision in repo.pull_refs:
            repo.pull_refs[revision] = commit.oid
        elif revision in repo.branches:
            repo.branches[revision] = commit.oid
        else:
            raise HubError(400, f"{revision} is not a branch.")
    url = page_url(call.hub, repo)
    found = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}", "hookOutput": ""}
    if pull is not None:
        found["pullRequestUrl"] = f"{url}/discussions/{pull.num}"
    return Answer(found)


def _apply(call, lines, before):
    files = dict(before)
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            files[value["path"]] = call.repositories.make_entry(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[value["path"]] = call.repositories.make_lfs_entry(value["oid"])
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        elif key == "deletedFolder":
            beginning = value["path"].rstrip("/") + "/"
            files = {path: entry for path, entry in files.items() if not path.startswith(beginning)}
        elif key != "header":
            raise HubError(400, f"Unknown operation {key}")
    return files


# Branches, tags, discussions.


@route("GET", rf"{_API}/refs")
def list_refs(call):
    repo = call.repo()

    def shown(refs, kind):
        return [{"name": name, "ref": f"{kind}{name}", "targetCommit": oid} for name, oid in refs.items()]

    found = {"branches": shown(repo.branches, "refs/heads/"), "tags": shown(repo.tags, "refs/tags/"), "converts": []}
    if call.flag("include_prs"):
        found["pullRequests"] = shown(repo.pull_refs, "")
    return Answer(found)


@route("GET", rf"{_API}/commits/(?P<revision>[^/]+)")
def list_commits(call):
    found = [
        {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date,
         "authors": [{"user": commit.author}]}
        for commit in call.repo().history(call.group("revision"))
    ]  # fmt: skip
    return Answer(found)


@route("POST", rf"{_API}/branch/(?P<name>[^/]+)")
def create_branch(call):
    repo, name = call.repo(write=True), call.group("name")
    if name in repo.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{name}")
    repo.branches[name] = repo.find_commit(call.json().get("startingPoint") or "main").oid
    return Answer({})


@route("DELETE", rf"{_API}/branch/(?P<name>[^/]+)")
def delete_branch(call):
    if call.repo(write=True).branches.pop(call.group("name"), None) is None:
        raise HubError(404, "Reference does not exist", "RevisionNotFound")
    return Answer({})


@route("POST", rf"{_API}/tag/(?P<revision>[^/]+)")
def create_tag(call):
    repo, name = call.repo(write=True), call.json()["tag"]
    if name in repo.tags:
        raise HubError(409, f"Reference already exists: refs/tags/{name}")
    repo.tags[name] = repo.find_commit(call.group("revision")).oid
    return Answer({})


@route("DELETE", rf"{_API}/tag/(?P<name>[^/]+)")
def delete_tag(call):
    if call.repo(write=True).tags.pop(call.group("name"), None) is None:
        raise HubError(404, "Reference does not exist", "RevisionNotFound")
    return Answer({})


def _open(repo, title, author, **options):
    num = len(repo.discussions) + 1
    date = next(iter(reversed(repo.commits.values()))).date
    repo.discussions[num] = PullRequest(num, title, author, date, **options)
    return repo.discussions[num]


def _describe_discussion(repo, discussion):
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "author": {"name": discussion.author},
        "createdAt": discussion.date,
        "isPullRequest": discussion.is_pull_request,
        "repo": {"name": repo.name, "type": repo.type},
    }


@route("GET", rf"{_API}/discussions")
def list_discussions(call):
    repo = call.repo()
    kind, status = (call.query.get(name, ["all"])[0] for name in ("type", "status"))
    author = call.query.get("author", [None])[0]
    found = [
        _describe_discussion(repo, item)
        for item in reversed(repo.discussions.values())
        if kind in ("all", "pull_request" if item.is_pull_request else "discussion")
        and status in ("all", "open" if item.status in ("open", "draft") else "closed")
        and author in (None, item.author)
    ]
    return Answer({"discussions": found, "count": len(found), "start": 0})


@route("POST", rf"{_API}/discussions")
def open_discussion(call):
    repo, given = call.repo(), call.json()
    call.repositories.check_writing(call.token, call.token.user if call.token else "")
    is_pull_request = bool(given.get("pullRequest"))
    status = "draft" if is_pull_request else "open"
    item = _open(repo, given["title"], call.token.user, is_pull_request=is_pull_request, status=status)
    if is_pull_request:
        repo.pull_refs[item.ref] = repo.branches["main"]
    return Answer({"num": item.num, "pullRequest": is_pull_request})


@route("GET", rf"{_API}/discussions/(?P<num>\d+)")
def show_discussion(call):
    repo = call.repo()
    item = repo.discussions.get(int(call.groups["num"]))
    if item is None:
        raise HubError(404, "Discussion not found")
    facts = _describe_discussion(repo, item) | {"events": [], "filesWithConflicts": [], "diff": ""}
    return Answer(facts | {"changes": {"base": f"refs/heads/{item.base}"}})


@route("POST", rf"{_API}/discussions/(?P<num>\d+)/merge")
def merge_pull_request(call):
    repo = call.repo(write=True)
    item = repo.discussions[int(call.groups["num"])]
    with call.repositories.lock:
        proposed, base = repo.commits[repo.pull_refs[item.ref]], repo.find_commit(item.base)
        text = (f"{item.title} (#{item.num})", "", call.token.user)
        merged = call.repositories.add_commit(repo, base.oid, *text, base.files | proposed.files)
        repo.branches[item.base], item.status = merged.oid, "merged"
    return Answer({})
