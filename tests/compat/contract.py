"""The contract, seen by a client that shares no code with the server.

    contract.py URL KEY

Python's own HTTP client and Debian's WebSocket client; every field and event of the contract that
this server offers. The first thing that is not as promised ends it with a traceback.
"""

import asyncio
import base64
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

import websockets

URL, KEY = sys.argv[1].rstrip("/"), sys.argv[2]
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
RUNTIMES = {
    "python": "print(6 * 7)",
    "node": "console.log(6 * 7)",
    "bun": "const n: number = 6; console.log(n * 7)",
    "deno": "const n: number = 6; console.log(n * 7)",
    "bash": "echo $((6 * 7))",
}


def call(method, path, body=None, key=KEY, raw=False):
    """The status and the parsed body of an answer."""
    data = body if raw or body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data=data, method=method)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, content = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    return status, content if raw else json.loads(content)


def execute(request, options=None, session=None, expected=200):
    body = {"request": request}
    if options is not None:
        body["options"] = options
    if session is not None:
        body["sessionId"] = session
    status, answer = call("POST", "/execute", body)
    assert status == expected, (status, answer)
    return answer


def python(code, **members):
    return {"runtime": "python", "code": code, **members}


def refused(answer, code):
    assert set(answer) == {"error", "code"}, answer
    assert answer["code"] == code and answer["error"], answer


def results():
    result = execute(python("import sys; print('out '); print('err', file=sys.stderr); sys.exit(3)"))
    assert result["stdout"] == "out" and result["stderr"] == "err", "trailing space is trimmed"
    assert result["exitCode"] == 3 and result["truncated"] is False
    assert result["runtime"] == "python" and isinstance(result["durationMs"], (int, float))
    assert UUID.fullmatch(result["executionId"]) and ISO.fullmatch(result["timestamp"])
    assert result["containerId"] and "files" not in result
    usage = result["resourceUsage"]
    names = {"cpuMs", "cpuPercent", "memoryMB", "peakMemoryMB", "networkBytesIn", "networkBytesOut"}
    assert set(usage) == names, usage
    assert set(result["timings"]) == {"queueMs", "acquireMs", "setupMs", "runMs"}
    for runtime, code in RUNTIMES.items():
        result = execute({"runtime": runtime, "code": code})
        assert (result["stdout"], result["runtime"]) == ("42", runtime), result


def requests():
    assert execute({"runtime": "python", "cmd": "echo $0"})["stdout"].endswith("bash")
    assert execute(python("import os; print(os.environ['A'])", env={"A": "b c"}))["stdout"] == "b c"
    assert execute(python("print(input())", stdin="line\n"))["stdout"] == "line"
    files = {
        "/sandbox/a/text": "t",
        "/sandbox/buffer": {"type": "Buffer", "data": [98, 0, 255]},
        "/tmp/base64": {"base64": base64.b64encode(b"6").decode()},
    }
    code = "for p in ['/sandbox/a/text', '/sandbox/buffer', '/tmp/base64']: print(open(p, 'rb').read())"
    assert execute(python(code, files=files))["stdout"] == "b't'\nb'b\\x00\\xff'\nb'6'"
    result = execute(python("open('/sandbox/o', 'wb').write(b'\\xff')", outputPaths=["/sandbox/o", "/tmp/no"]))
    assert result["files"] == {"/sandbox/o": base64.b64encode(b"\xff").decode()}
    assert execute(python("print(open('x').read())", setupScript="echo hi > x", workdir="/sandbox"))["stdout"] == "hi"
    refused(execute(python("1", setupScript="echo no >&2; exit 4"), expected=400), "SETUP_FAILED")
    assert execute(python("import os; print(os.getcwd())", workdir="sub", files={"/sandbox/sub/x": ""}))["stdout"] == "/sandbox/sub"
    refused(execute(python("1", workdir="../etc"), expected=400), "INVALID_REQUEST")
    cjs = {"runtime": "node", "code": "console.log(typeof require)", "fileExtension": ".cjs"}
    assert execute(cjs)["stdout"] == "function"
    assert execute(python("1", metadata={"team": "a"}))["exitCode"] == 0


def limits():
    result = execute(python("print('before', flush=True)\nwhile True: pass", timeoutMs=300))
    assert result["exitCode"] == 137 and result["timedOut"] is True and result["stdout"] == "before"
    assert result["stderr"].splitlines()[-1] == "--- EXECUTION TIMED OUT ---"
    assert execute(python("while True: pass"), {"timeoutMs": 300})["timedOut"] is True
    result = execute(python("print('é' * 100)"), {"maxOutputSize": 21})
    assert result["truncated"] is True
    assert result["stdout"] == "é" * 10 + "\n--- OUTPUT TRUNCATED (201 bytes, limit: 21) ---", result["stdout"]
    result = execute(python("b'x' * (400 << 20)"), {"memoryLimit": "128m", "cpuLimit": 0.5, "pidsLimit": 32})
    assert result["exitCode"] != 0, result
    secret = execute(python("import os; print('a' + os.environ['K'] + 'b')"), {"secrets": {"K": "hunter2"}})
    assert secret["stdout"] == "a***b"
    refused(execute(python("1"), {"network": "host"}, expected=403), "POLICY_DENIED")
    refused(execute(python("1", timeoutMs=10**12), expected=400), "INVALID_REQUEST")
    for ignored in ({"mode": "x"}, {"poolStrategy": "fast"}, {"poolSize": 1}, {"audit": {}}, {"debug": True}):
        execute(python("1"), ignored)


def network():
    fetch = "import urllib.request as u, urllib.error as e\ntry: u.urlopen('http://10.0.0.1/secret')\nexcept e.HTTPError as r: print(r.code)"
    filtered = execute(python(fetch), {"network": "filtered", "logNetwork": True})
    assert filtered["stdout"] == "403", filtered
    [entry] = filtered["networkLogs"]
    assert set(entry) == {"timestamp", "method", "host", "path", "action", "durationMs"}, entry
    assert (entry["method"], entry["host"], entry["path"], entry["action"]) == ("GET", "10.0.0.1", "/secret", "BLOCK")
    assert "networkLogs" not in execute(python("1"), {"network": "filtered"})
    both = {"network": "filtered", "networkFilter": {"whitelist": ["["], "blacklist": []}}
    refused(execute(python("1"), both, expected=400), "INVALID_REQUEST")


def sessions():
    name = f"s.{uuid.uuid4()}:_-"
    execute(python("x = 41"), session=name)
    assert execute(python("print(x + 1)"), session=name)["stdout"] == "42"
    refused(execute({"runtime": "bash", "code": "1"}, session=name, expected=409), "RUNTIME_MISMATCH")
    status, listed = call("GET", "/sessions")
    (mine,) = [one for one in listed["sessions"] if one["id"] == name]
    assert status == 200 and mine["isActive"] is False and mine["runtime"] == "python"
    now = time.time() * 1000
    assert mine["createdAt"] <= mine["lastAccessedAt"] <= now + 1000 < mine["expiresAt"]
    assert mine["containerId"] and mine["tenantId"]
    files(name)
    path = "/session/" + urllib.parse.quote(name)
    assert call("DELETE", path) == (200, {"ok": True})
    assert call("DELETE", path) == (200, {"ok": True}), "also where there is none"
    for bad in ("", "a b", "x" * 129):
        refused(execute(python("1"), session=bad, expected=400), "INVALID_REQUEST")


def files(session):
    content = base64.b64encode(bytes(range(256)) * 400).decode()
    body = {"sessionId": session, "path": "/sandbox/dir/file", "content": content}
    assert call("POST", "/file", body) == (200, {"ok": True})
    query = "/file?" + urllib.parse.urlencode({"sessionId": session, "path": "/sandbox/dir/file"})
    assert call("GET", query) == (200, {"content": content})
    raw = f"/session/{urllib.parse.quote(session)}/files"
    assert call("GET", raw + "/sandbox/dir/file", raw=True) == (200, base64.b64decode(content))
    status, _ = call("PUT", raw + "/sandbox/dir/other", b"\x00raw", raw=True)
    assert status in (200, 201, 204), status
    status, listed = call("GET", raw + "?path=/sandbox/dir")
    entries = {entry["name"]: entry for entry in listed["entries"]}
    assert status == 200 and set(entries) == {"file", "other"}
    assert entries["other"]["size"] == 4 and entries["other"]["type"] == "file"
    assert {"mode", "mtime"} < set(entries["file"])
    status, answer = call("GET", f"/file?path=/sandbox/dir/file")
    assert status == 400 and "sessionId" in answer["error"], answer
    status, answer = call("GET", f"/file?sessionId={urllib.parse.quote(session)}&path=/sandbox/none")
    assert status == 404, answer
    status, answer = call("GET", "/file?sessionId=no-such&path=/sandbox/x")
    assert status == 404 and "not found" in answer["error"].lower(), answer
    for outside in ("/etc/passwd", "/sandbox/../etc/passwd", "relative"):
        query = urllib.parse.urlencode({"sessionId": session, "path": outside})
        status, answer = call("GET", "/file?" + query)
        assert status == 400, (outside, answer)


def service():
    status, health = call("GET", "/health", key=None)
    assert status == 200 and health["status"] == "ok" and health["version"] and health["backend"]
    refused(call("GET", "/sessions", key=None)[1], "UNAUTHORIZED")
    assert call("GET", "/sessions", key="wrong")[0] == 403
    while call("GET", "/ready", key=None)[0] != 200:
        time.sleep(0.05)
    assert call("POST", "/execute", b"{", raw=True)[0] == 400
    assert call("GET", "/nowhere")[0] == 404


def streamed(body):
    """All events of a run."""
    request = urllib.request.Request(URL + "/execute/stream", json.dumps(body).encode(), method="POST")
    request.add_header("Authorization", f"Bearer {KEY}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.read().decode().split("\n\n")
    return [json.loads(line[len("data: "):]) for line in lines if line.startswith("data: ")]


def server_sent_events():
    body = {"request": {"runtime": "bash", "code": "echo out; echo err >&2; exit 3", "setupScript": "echo setting up"}}
    events = streamed(body)
    assert events[0] == {"type": "stdout", "data": "setting up\n", "phase": "setup"}, events
    rest = [(event["type"], event["data"], event["phase"]) for event in events[1:]]
    assert sorted(rest[:-1]) == [("stderr", "err\n", "code"), ("stdout", "out\n", "code")], events
    assert events[-1] == {"type": "exit", "data": "3", "phase": "code"}, "nothing else to tell"
    code = "echo kept > /tmp/made; head -c 100 /dev/zero; sleep 30"
    request = {"runtime": "bash", "code": code, "outputPaths": ["/tmp/made", "/tmp/none"], "timeoutMs": 300}
    exit = streamed({"request": request, "options": {"maxOutputSize": 10}})[-1]
    assert (exit["type"], exit["data"]) == ("exit", "137"), exit
    assert exit["timedOut"] is True and exit["truncated"] is True, exit
    assert exit["files"] == {"/tmp/made": base64.b64encode(b"kept\n").decode()}, exit
    name = f"lost-{uuid.uuid4()}"
    exit = streamed({"request": python("import os; os._exit(1)"), "sessionId": name})[-1]
    assert exit["stateLost"] is True and "timedOut" not in exit, exit
    call("DELETE", f"/session/{name}")
    events = streamed({"request": python("1", setupScript="echo no >&2; exit 4")})
    assert [event["type"] for event in events] == ["stderr", "error", "exit"], events
    assert all(event["phase"] == "setup" for event in events) and events[-1]["data"] == "4", events


def connect():
    address = URL.replace("http", "ws", 1) + "/execute/ws"
    return websockets.connect(address, extra_headers={"Authorization": f"Bearer {KEY}"})


async def conversation(socket, code, *messages, session=None, runtime="python", **members):
    """Starts a program, sends a message at each line that it prints, and gives all events."""
    execute = {"type": "execute", "request": {"runtime": runtime, "code": code, **members}}
    if session:
        execute["sessionId"] = session
    await socket.send(json.dumps(execute))
    events, left = [], list(messages)
    async for text in socket:
        events.append(json.loads(text))
        if events[-1]["type"] == "stdout" and left:
            await socket.send(json.dumps(left.pop(0)))
    assert (socket.close_code, socket.close_reason) == (1000, "Execution complete"), socket.close_code
    assert events[-1]["type"] == "exit"
    return events


def text_of(events, stream="stdout"):
    return "".join(event["data"] for event in events if event["type"] == stream)


async def web_sockets():
    async with connect() as socket:
        code = "print('ready', flush=True)\nfor line in iter(input, 'end'): print('got', line, flush=True)\n"
        told = [{"type": "stdin", "data": f"{word}\n"} for word in ("one", "end")]
        events = await conversation(socket, code, *told)
        assert text_of(events) == "ready\ngot one\n" and events[-1]["data"] == "0", events
    async with connect() as socket:
        code = "import sys; print('ready', flush=True); print(len(sys.stdin.read()))"
        events = await conversation(socket, code, {"type": "stdinEnd"})
        assert text_of(events) == "ready\n0\n", events
    async with connect() as socket:
        code = "import time; print('ready', flush=True); time.sleep(30)"
        events = await conversation(socket, code, {"type": "signal", "signal": "SIGINT"})
        assert events[-1]["data"] == "130" and "KeyboardInterrupt" in text_of(events, "stderr"), events
    await terminals()
    session = f"ws-{uuid.uuid4()}"
    for code, printed in (("y = 1", ""), ("print(y + 1)", "2\n")):
        async with connect() as socket:
            assert text_of(await conversation(socket, code, session=session)) == printed
    call("DELETE", f"/session/{session}")
    async with connect() as socket:
        await socket.send(json.dumps({"type": "what"}))
        assert json.loads(await socket.recv())["type"] == "error"
        assert text_of(await conversation(socket, "print(1)")) == "1\n", "the connection stays"
    async with connect() as socket:
        await socket.send("{")
        assert json.loads(await socket.recv())["type"] == "error"
        await socket.wait_closed()
        assert socket.close_code == 1003, socket.close_code


async def terminals():
    size = "import os, sys, time; print(sys.stdin.isatty(), *os.get_terminal_size(), flush=True)\n"
    async with connect() as socket:
        code = size + "while os.get_terminal_size().columns == 80: time.sleep(0.01)\nprint(*os.get_terminal_size())"
        events = await conversation(socket, code, {"type": "resize", "cols": 100, "rows": 30}, tty=True)
        assert text_of(events) == "True 80 24\r\n100 30\r\n" and events[-1]["data"] == "0", events
    async with connect() as socket:
        code = size + "time.sleep(30)"
        events = await conversation(socket, code, {"type": "stdin", "data": "\x03"}, tty=True, cols=7, rows=9)
        assert text_of(events).startswith("True 7 9\r\n") and events[-1]["data"] == "130", events
    async with connect() as socket:
        code = "print('ready', flush=True); print(input())"
        told = {"type": "resize", "cols": 7, "rows": 9}, {"type": "stdin", "data": "on\n"}
        await socket.send(json.dumps({"type": "execute", "request": python(code)}))
        kinds = []
        async for text in socket:
            kinds.append(json.loads(text)["type"])
            if len(kinds) <= len(told):
                await socket.send(json.dumps(told[len(kinds) - 1]))
        assert kinds == ["stdout", "error", "stdout", "exit"], "the connection stays"
    refused(execute(python("1", tty=True), expected=400), "INVALID_REQUEST")


if __name__ == "__main__":
    for part in (service, results, requests, limits, network, sessions, server_sent_events):
        part()
    asyncio.run(web_sockets())
    print("the contract holds")
