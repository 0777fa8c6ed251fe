"""A server on loopback that stands for the Hugging Face Hub: it takes a repository and its files."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from loopback import Reply, Request, serve

TOKEN = "hf_loopback"


@dataclass
class Hub:
    """What was put there; `refusal`: the status that every request gets, if any."""

    refusal: int = 0
    root: str = ""
    visibility: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, request: Request) -> Reply:
        """As the Hub's interface, so far as an upload of one commit asks."""
        held, content = {name.lower(): value for name, value in request.headers.items()}, dict[str, Any]()
        if request.method == "POST" and held.get("authorization") != f"Bearer {TOKEN}":
            return 401, {}, b"{}"
        if self.refusal:
            return self.refusal, {}, b'{"error": "You may not write here"}'
        if request.path.endswith("/repos/create"):
            body = json.loads(request.body)
            name = f"{body['organization']}/{body['name']}"
            self.visibility[name] = body.get("visibility", "public")
            content = {"url": f"{self.root}/{name}", "id": name}
        elif "/preupload/" in request.path:
            names = [file["path"] for file in json.loads(request.body)["files"]]
            large = [name for name in names if name.endswith(".safetensors")]
            content["files"] = [
                {"path": name, "uploadMode": "lfs" if name in large else "regular", "shouldIgnore": False}
                for name in names
            ]
        elif request.path.endswith("/objects/batch"):
            objects = json.loads(request.body)["objects"]
            places = [{"actions": {"upload": {"href": f"{self.root}/put/{one['oid']}"}}} | one for one in objects]
            content = {"transfer": "basic", "objects": places}
        elif request.method == "PUT":
            self.files[request.path.rpartition("/")[2]] = request.body
        elif "/commit/" in request.path:
            for line in map(json.loads, request.body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.files.pop(value["oid"])
            name = request.path.removeprefix("/api/models/").partition("/commit/")[0]
            content = {"commitUrl": f"{self.root}/{name}/commit/1", "commitOid": "1", "success": True}
        return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@contextmanager
def hub_server(refusal: int = 0) -> Iterator[Hub]:
    """The server while it runs."""
    hub = Hub(refusal)
    with serve(hub.answer) as root:
        hub.root = root
        yield hub
