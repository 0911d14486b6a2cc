"""Just enough of a Weights & Biases server for a run and for dashboards: it keeps the history's lines, and views."""

import base64
import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Listens on a free port of this machine; ``serve_forever`` in a thread, and ``shutdown`` and ``server_close``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.history: list[str] = []  # as JSON
        self.views: dict[str, dict[str, Any]] = {}  # workspaces and reports, by id
        self.is_dead = False

    def environment(self) -> dict[str, str]:
        return {"WANDB_MODE": "online", "WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A run that ends hangs up on the server."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "e", "name": "me"}
        bucket = {"id": "r", "name": variables.get("name"), "displayName": "run", "historyLineCount": len(self.history)}
        if "RunResumeStatus" in query:
            tail = {"historyTail": json.dumps(self.history[-1:]), "eventsTail": "[]", "logLineCount": 0}
            rest = {"eventsLineCount": 0, "summaryMetrics": "{}", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'}
            known = {"id": "p", "name": "pigment", "entity": entity, "bucket": {**bucket, **tail, **rest}}
            return {"model": known if self.history else None}
        if "UpsertBucket" in query:
            project = {"id": "p", "name": "pigment", "entity": entity}
            return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": not self.history}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/file"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "upsertView" in query:
            new_id = base64.b64encode(f"View:{len(self.views):04}".encode()).decode()
            view = {**variables, "id": variables.get("id") or new_id}
            view["project"] = {"id": "p", "name": variables["projectName"], "entityName": variables["entityName"]}
            self.views[view["id"]] = view
            return {"upsertView": {"view": view, "inserted": view["id"] == new_id}}
        if "SpecificReport" in query:
            return {"view": self.views[variables["reportId"]]}
        if "allViews" in query:
            name, kind = variables.get("viewName"), variables.get("viewType", "runs")
            found = [one for one in self.views.values() if one["type"] == kind and name in (None, one["name"])]
            edges = [{"node": one, "cursor": "c"} for one in found]
            return {"project": {"allViews": {"edges": edges, "pageInfo": {"hasNextPage": False}}}}
        if "GetProjects" in query:
            project = {"__typename": "Project", "id": "p", "name": "pigment", "entityName": "me", "createdAt": ""}
            nothing: dict[str, Any] = {"isBenchmark": False, "user": None}
            page: dict[str, Any] = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": {**project, **nothing}}]}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "p", "internalId": "1"}}
        if "viewer" in query:
            return {"viewer": {"id": "v", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
        return {"serverInfo": {"features": []}, "entity": {"organization": {"coreWeaveOrganizationId": None}}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        if self.server.is_dead:
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        self.server.is_dead |= self.path == "/die"
        if self.path.endswith("/graphql"):
            request = json.loads(body)
            self.reply({"data": self.server.answer(request["query"], request.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            chunk = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if chunk:
                self.server.history[chunk["offset"] :] = chunk["content"]
            self.reply({})
        else:
            self.reply({})

    do_PUT = do_POST

    def reply(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass
