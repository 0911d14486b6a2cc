"""Just enough of a Weights & Biases server for runs, artifacts, and dashboards: it keeps what is sent."""

import base64
import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "internalId": "1", "name": "pigment", "entity": {"id": "e", "name": "me"}}
LAST_PAGE = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


class WandbServer(ThreadingHTTPServer):
    """Listens on a free port of this machine; ``serve_forever`` in a thread, and ``shutdown`` and ``server_close``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.history: list[str] = []  # as JSON
        self.summary: dict[str, Any] = {}
        self.views: dict[str, dict[str, Any]] = {}  # workspaces and reports, by id
        self.artifacts: dict[str, dict[str, Any]] = {}  # by id
        self.files: dict[str, bytes] = {}  # by path: artifacts' manifests and files
        self.cuts_off = False  # whether it hangs up in the middle of each file
        self.is_dead = False

    def environment(self) -> dict[str, str]:
        return {"WANDB_MODE": "online", "WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A run that ends hangs up on the server."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if answered := self.answer_about_artifacts(query, variables):
            return answered
        bucket = {"id": "r", "name": variables.get("name"), "displayName": "run", "historyLineCount": len(self.history)}
        if "RunResumeStatus" in query:
            tail = {"historyTail": json.dumps(self.history[-1:]), "eventsTail": "[]", "logLineCount": 0}
            summary = {"summaryMetrics": json.dumps(self.summary)}
            rest = {**summary, "eventsLineCount": 0, "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'}
            return {"model": {**PROJECT, "bucket": {**bucket, **tail, **rest}} if self.history else None}
        if "run(name" in query:
            start, stop = variables.get("minStep", 0), variables.get("maxStep")
            steps = {"historyKeys": {"lastStep": len(self.history) - 1}, "history": self.history[start:stop]}
            steps["parquetHistory"] = {"parquetUrls": [], "liveData": [{"_step": 0}]}
            rest = {"state": "running", "config": "{}", "systemMetrics": "{}", "summaryMetrics": "{}", "user": {}}
            return {"project": {"run": {**bucket, **steps, **rest}}}
        if "UpsertBucket" in query:
            return {"upsertBucket": {"bucket": {**bucket, "project": PROJECT}, "inserted": not self.history}}
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
            return {"project": {"allViews": {"edges": edges, "pageInfo": LAST_PAGE}}}
        if "GetProjects" in query:
            project = {"__typename": "Project", "id": "p", "name": "pigment", "entityName": "me", "createdAt": ""}
            nothing: dict[str, Any] = {"isBenchmark": False, "user": None}
            return {"models": {"pageInfo": LAST_PAGE, "edges": [{"node": {**project, **nothing}}]}}
        if "ProjectInternalId" in query:
            return {"project": PROJECT}
        if "viewer" in query:
            return {"viewer": {"id": "v", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
        return {"serverInfo": {"features": []}, "entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def answer_about_artifacts(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Answer W&B's own process, which uploads, and its public API."""
        match query.split("(")[0].split():
            case ["mutation", "CreateArtifact"]:
                return {"createArtifact": {"artifact": self.create_artifact(variables["input"])}}
            case ["mutation", "CreateArtifactManifest" | "UpdateArtifactManifest" as name]:
                artifact_id = variables.get("artifactID") or variables["artifactManifestID"]
                path = f"/manifest/{artifact_id}"
                file = {"id": "f", "uploadUrl": self.url + path, "uploadHeaders": []}
                return {name[0].lower() + name[1:]: {"artifactManifest": {"id": artifact_id, "file": file}}}
            case ["mutation", "CreateArtifactFiles"]:
                nodes = []
                for file in variables["input"]["artifactFiles"]:
                    path, of = f"/artifact/{file['artifactID']}/{file['name']}", {"id": file["artifactID"]}
                    upload = {"storagePath": path, "uploadUrl": self.url + path, "uploadHeaders": []}
                    nodes.append({"node": {**upload, "uploadMultipartUrls": None, "artifact": of}})
                return {"createArtifactFiles": {"files": {"edges": nodes}}}
            case ["mutation", "CommitArtifact"]:
                artifact = self.artifacts[variables["artifactID"]]
                artifact["state"] = "COMMITTED"
                return {"commitArtifact": {"artifact": artifact}}
            case ["query", "ArtifactType"]:
                return {"project": None}
            case ["query", "ArtifactByID"]:
                return {"artifact": self.artifacts[variables["id"]]}
            case ["query", "ArtifactMembershipByName"]:
                return {"project": {"artifactCollectionMembership": self.membership(variables["name"])}}
            case ["query", "FetchArtifactManifest"]:
                file = {"directUrl": f"{self.url}/manifest/{variables['id']}"}
                return {"artifact": {"currentManifest": {"file": file}}}
            case ["query", "GetArtifactMembershipFileUrls"]:
                artifact = self.membership(f"{variables['collection']}:{variables['alias']}")["artifact"]
                paths = [path for path in self.files if path.startswith(f"/artifact/{artifact['id']}/")]
                nodes = [{"node": {"name": path.split("/", 3)[3], "directUrl": self.url + path}} for path in paths]
                membership = {"artifactMembership": {"files": {"pageInfo": LAST_PAGE, "edges": nodes}}}
                return {"project": {"artifactCollection": {"__typename": "ArtifactSequence", **membership}}}
        return None

    def create_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return a new version, or the one with the same content; it gets the aliases, which others lose."""
        collection = {"__typename": "ArtifactSequence", "name": given["artifactCollectionName"], "project": PROJECT}
        versions = [one for one in self.artifacts.values() if one["artifactSequence"] == collection]
        artifact = next((one for one in versions if one["digest"] == given["digest"]), None)
        if artifact is None:
            artifact = {name: given[name] for name in ("digest", "digestAlgorithm", "metadata", "description")}
            artifact |= {"id": f"a{len(self.artifacts)}", "state": "PENDING", "versionIndex": len(versions)}
            artifact |= {"artifactSequence": collection, "artifactType": {"name": given["artifactTypeName"]}}
            artifact |= {"ttlDurationSeconds": -1, "ttlIsInherited": True, "tags": [], "historyStep": None, "size": 0}
            artifact |= {"commitHash": None, "fileCount": 1, "createdAt": "", "updatedAt": None, "aliases": []}
            self.artifacts[artifact["id"]] = artifact
        for alias in (one["alias"] for one in given["aliases"]):
            for one in versions:
                one["aliases"] = [other for other in one["aliases"] if other["alias"] != alias]
            artifact["aliases"].append({"id": alias, "alias": alias, "artifactCollection": collection})
        return artifact

    def membership(self, name: str) -> dict[str, Any] | None:
        """Find an artifact by ``<collection>:<alias or version>``."""
        for artifact in self.artifacts.values():
            names = {f"v{artifact['versionIndex']}", *(one["alias"] for one in artifact["aliases"])}
            collection = artifact["artifactSequence"]
            if name in {f"{collection['name']}:{one}" for one in names}:
                found = {"id": "m", "versionIndex": artifact["versionIndex"], "createdAt": ""}
                return {**found, "aliases": artifact["aliases"], "artifactCollection": collection, "artifact": artifact}
        return None


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
            chunks = json.loads(body).get("files") or {}
            if history := chunks.get("wandb-history.jsonl"):
                self.server.history[history["offset"] :] = history["content"]
            if summary := chunks.get("wandb-summary.json"):
                self.server.summary = json.loads(summary["content"][-1])
            self.reply({})
        else:
            self.server.files[self.path] = body
            self.reply({})

    do_PUT = do_POST

    def do_GET(self) -> None:
        body = self.server.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.server.cuts_off else body)
        self.close_connection = self.server.cuts_off

    def reply(self, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass
