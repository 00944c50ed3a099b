"""A model hub in a process of its own, as far as the real client needs one: run as a script.

Serves folders as repositories (``--repo owner/name=folder``), takes uploads into memory, and misbehaves as told through
``/_control``. Prints its port, then one line of JSON for each request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import processes

USER, TOKEN = "tester", "hf_canaryCANARYcanary1234567"
SPEAKING = threading.Lock()
LARGE = 20_000  # bytes from which a file is kept apart, as LFS does


@dataclass
class Repo:
    """Files by path, as bytes or as a file on disk; and its commits, the newest last."""

    files: dict[str, bytes | Path] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        """Of the newest commit."""
        return hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()


def content(value: bytes | Path) -> bytes:
    """A file's bytes."""
    return value.read_bytes() if isinstance(value, Path) else value


class Hub(ThreadingHTTPServer):
    """State of the hub; quiet about connections that break off."""

    daemon_threads = True

    def __init__(self, repos: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = {
            name: Repo({f.relative_to(folder).as_posix(): f for f in folder.rglob("*") if f.is_file()})
            for name, folder in repos.items()
        }
        self.blobs: dict[str, bytes] = {}
        self.faults: list[dict[str, Any]] = []
        self.login = f"Bearer {TOKEN}"

    def handle_error(self, *_: object) -> None:
        """Nothing."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Refusal(Exception):
    """An answer that is an error: status, error code, words, and the commit that was looked at."""

    def __init__(self, status: int, code: str = "", words: str = "refused", commit: str = "") -> None:
        super().__init__(words)
        self.status, self.code, self.words, self.commit = status, code, words, commit


class Handler(BaseHTTPRequestHandler):
    """The hub's HTTP interface."""

    protocol_version = "HTTP/1.1"
    server: Hub
    cut = False  # the next answer breaks off in its middle

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        """Every method comes here."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.partition("?")[0])
        if path == "/_control":
            self._control(json.loads(body))
            return
        note = {"method": self.command, "path": path, "authorization": self.headers.get("Authorization")}
        with SPEAKING:
            print(json.dumps(note | {"range": self.headers.get("Range")}), flush=True)
        try:
            self._faulty(path)
            self._route(path, body)
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.words}
            headers |= {"X-Repo-Commit": refusal.commit} if refusal.commit else {}
            self._answer(refusal.status, json.dumps({"error": refusal.words}).encode(), **headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def _control(self, told: dict[str, Any]) -> None:
        self.server.faults = told.get("faults", self.server.faults)
        for name, values in told.get("repos", {}).items():
            vars(self.server.repos[name]).update(values)
        repos = {
            name: {
                "files": {path: hashlib.sha256(content(value)).hexdigest() for path, value in repo.files.items()},
                "commits": repo.commits,
                "private": repo.private,
            }
            for name, repo in self.server.repos.items()
        }
        self._json(repos)

    def _faulty(self, path: str) -> None:
        for fault in self.server.faults:
            if re.search(fault["match"], f"{self.command} {path}") and fault.get("times", 1) > 0:
                fault["times"] = fault.get("times", 1) - 1
                if "seconds" in fault:
                    time.sleep(fault["seconds"])
                if fault.get("cut"):
                    self.cut = True
                if "status" in fault:
                    raise Refusal(fault["status"], fault.get("code", ""), fault.get("words", "as told"))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        if self.cut:
            self.close_connection = True
            self.cut = False

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def _repo(self, name: str) -> Repo:
        given = self.headers.get("Authorization")
        if given not in (None, self.server.login):
            raise Refusal(401, words="Invalid credentials in Authorization header")
        repo, known = self.server.repos.get(name), given is not None
        if repo is None or (repo.private and not known):
            raise Refusal(404 if known else 401, "RepoNotFound", "Repository not found")
        return repo

    def _must_know(self) -> None:
        if self.headers.get("Authorization") != self.server.login:
            raise Refusal(401, words="Invalid credentials in Authorization header")

    def _route(self, path: str, body: bytes) -> None:
        routes = {
            r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self._resolve,
            r"/cdn/([^/]+/[^/]+)/(.+)": self._large,
            r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?": self._info,
            r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?": self._tree,
            r"/api/whoami-v2": self._whoami,
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)": self._preupload,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/lfs/([0-9a-f]{64})": self._put,
            r"/api/models/([^/]+/[^/]+)/commit/([^/]+)": self._commit,
        }
        for pattern, handle in routes.items():
            if match := re.fullmatch(pattern, path):
                handle(*match.groups(), body=body)
                return
        raise Refusal(404, words=f"no such address: {path}")

    def _resolve(self, name: str, revision: str, file: str, body: bytes) -> None:
        repo = self._repo(name)
        if repo.gated:
            raise Refusal(403, "GatedRepo", "Access to this model is restricted")
        if revision not in ("main", repo.sha):
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        if file not in repo.files:  # the client keeps this answer too, by the commit
            raise Refusal(404, "EntryNotFound", "Entry not found", repo.sha)
        data = content(repo.files[file])
        etag = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": repo.sha, "Accept-Ranges": "bytes"}
        if len(data) < LARGE:
            self._answer(200, data, ETag=f'"{etag}"', **headers)
            return
        linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        self._answer(302, Location=f"http://localhost:{self.server.server_port}/cdn/{name}/{file}", **linked, **headers)

    def _large(self, name: str, file: str, body: bytes) -> None:
        """From another host, as large files are: no token may come here. In part if asked."""
        data, asked = content(self.server.repos[name].files[file]), self.headers.get("Range")
        if self.headers.get("Authorization"):
            raise Refusal(400, words="a token was sent elsewhere")
        if asked:
            first = int(asked.removeprefix("bytes=").partition("-")[0])
            self._answer(206, data[first:], Content_Range=f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self._answer(200, data)

    def _info(self, name: str, revision: str | None, body: bytes) -> None:
        repo = self._repo(name)
        if revision not in (None, "main", repo.sha):
            raise Refusal(404, "RevisionNotFound", "Invalid rev id")
        files = [{"rfilename": path} for path in repo.files]
        self._json({"_id": "1", "id": name, "sha": repo.sha, "private": repo.private, "siblings": files, "tags": []})

    def _tree(self, name: str, revision: str, below: str | None, body: bytes) -> None:
        repo = self._repo(name)
        found = [p for p in repo.files if not below or p.startswith(f"{below}/")]
        if below and not found:
            raise Refusal(404, "EntryNotFound", "no such folder")
        sizes = {path: len(content(repo.files[path])) for path in found}
        self._json([{"type": "file", "path": p, "oid": "0" * 40, "size": sizes[p]} for p in found])

    def _whoami(self, body: bytes) -> None:
        self._must_know()
        self._json({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}})

    def _create(self, body: bytes) -> None:
        self._must_know()
        asked = json.loads(body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if not name.startswith(f"{USER}/"):
            raise Refusal(403, words="You don't have the rights to create a model under this namespace")
        if name in self.server.repos:
            body = json.dumps({"error": "You already created this model repo", "url": f"{self.server.address}/{name}"})
            self._answer(409, body.encode(), Content_Type="application/json")
            return
        self.server.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self._json({"url": f"{self.server.address}/{name}", "name": name})

    def _validate(self, body: bytes) -> None:
        import yaml

        text = json.loads(body)["content"]
        head = yaml.safe_load(text.split("---")[1])
        if not isinstance(head, dict) or not isinstance(head.get("license"), str):
            raise Refusal(400, words="Invalid metadata")
        self._json({"errors": [], "warnings": []})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        self._must_know()
        self._repo(name)
        files = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for f in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _batch(self, name: str, body: bytes) -> None:
        self._must_know()
        objects = [
            {"oid": o["oid"], "size": o["size"]}
            if o["oid"] in self.server.blobs
            else {**o, "actions": {"upload": {"href": f"{self.server.address}/lfs/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, oid: str, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, words="other bytes than announced")
        self.server.blobs[oid] = body
        self._json({})

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        self._must_know()
        repo, changes, summary = self._repo(name), {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                summary = value["summary"]
            elif line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.server.blobs[value["oid"]]
            else:
                raise Refusal(400, words=f"unknown operation {line['key']}")
        repo.files |= changes
        repo.commits.append({"summary": summary, "files": sorted(changes)})
        self._json({"commitUrl": f"{self.server.address}/{name}/commit/{repo.sha}", "commitOid": repo.sha})


class Client:
    """A test's hold on the hub's process."""

    def __init__(self, running: processes.Server) -> None:
        self.address = f"http://127.0.0.1:{running.port}"
        self.process, self.requests = running.process, running.requests

    def environment(self, home: Path, token: str = TOKEN) -> dict[str, str]:
        """For a command that is to use it."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_TOKEN": token,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def tell(self, **values: Any) -> dict[str, Any]:
        """Set ``faults`` or ``repos``; what the repositories hold."""
        request = urllib.request.Request(f"{self.address}/_control", json.dumps(values).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer))

    def stop(self) -> None:
        """The hub is gone."""
        self.process.kill()
        self.process.wait()


@contextmanager
def hub(**repos: Path) -> Iterator[Client]:
    """A hub with these repositories; ``owner__name=folder``."""
    named = [f"{name.replace('__', '/')}={folder}" for name, folder in repos.items()]
    with processes.server(__file__, *named) as running:
        yield Client(running)


if __name__ == "__main__":
    server = Hub({name: Path(folder) for name, _, folder in (word.partition("=") for word in sys.argv[1:])})
    print(server.server_port, flush=True)
    server.serve_forever()
